"""The rules of `nn-batch`: where the batch is in every value, and what each layer becomes.

A *batched* value holds N values of its old type, one behind the other along one of its axes, the *batch axis*: its
dimension d there becomes N * d. A value without a batch axis is the same for all N (weights, and what is made of them).
Most layers only get wider types. Where a layer works along the batch axis itself (a slice of the rows of a matrix, a
mean over them) the axis is split for it, `N * d` to `N x d`, and merged again behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

from xdsl.ir import Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import shape_text, tensor, type_of
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.locations import replace, set_locations
from neuron_mlir.passes.nn._constants import fold_operation, is_constant

ADVICE = "a model exported with that batch, or neuron-opt --batch-size, which changes the ONNX model"

_SAME_AXIS = (nn.UnaryOp, nn.CastOp)
_IMAGES = (nn.ConvOp, nn.ConvTransposeOp, nn.PoolOp, nn.LrnOp, nn.ResizeOp, nn.UnfoldOp, nn.BatchNormOp)
"""Layers on (N, C, ..) that treat each N alike; their other operands are weights."""


class Batcher:
    """Batches values and layers in the order of the graph.

    Args:
        size: how many requests' values a batched value holds.
        count: told the name of a statistic for each thing done.
    """

    def __init__(self, size: int, count: Callable[[str], None]) -> None:
        self.size = size
        self.count = count
        self.axes: dict[SSAValue, int] = {}
        """The batch axis of each batched value."""
        self._tiled: dict[tuple[SSAValue, int, Block | None], SSAValue] = {}

    def widen(self, value: SSAValue, axis: int) -> SSAValue:
        """Give a value of the old type its batch; the value of the new type that takes its place."""
        shape = list(type_of(value).get_shape())
        shape[axis] *= self.size
        new = Rewriter.replace_value_with_new_type(value, tensor(shape, type_of(value).element_type))
        self.axes[new] = axis
        self.count("batched")
        return new

    def block(self, block: Block) -> None:
        """Batch the layers of a block whose arguments are done.

        Raises:
            NeuronError: a layer mixes what belongs to different requests; names it.
        """
        for op in list(block.ops):
            if op is not block.last_op and any(operand in self.axes for operand in op.operands):
                self._layer(op)

    def _layer(self, op: Operation) -> None:
        if isinstance(op, nn.FusedOp):
            self._group(op)
            return
        for kinds, rule in _RULES:
            if isinstance(op, kinds):
                axis = rule(self, op)
                if axis is not None:
                    self.widen(op.results[0], axis)
                return
        raise self.refuse(op, "nn-batch does not know this layer")

    def _group(self, op: nn.FusedOp) -> None:
        """The inside of a group like the outside; its results have the batch where what it yields has it."""
        if set(op.properties) - {"kind"} or op.attributes:
            raise self.refuse(op, "this group is cut into tiles of the old batch", "nn-batch before nn-fuse")
        for operand, argument in zip(list(op.operands), list(op.body.block.args), strict=True):
            axis = self.axes.get(operand)
            if axis is not None:
                self.widen(argument, axis)
        self.block(op.body.block)
        for value, result in zip(op.yielded, list(op.results), strict=True):
            if value in self.axes:
                self.widen(result, self.axes[value])

    # What rules use ---------------------------------------------------------------------------------------------------

    def refuse(self, op: Operation, why: str, advice: str = ADVICE) -> NeuronError:
        """The error of a layer that cannot take a batch."""
        return NeuronError(f"cannot batch {self.size} requests: {why}", op=op, advice=advice)

    def old_shape(self, value: SSAValue) -> list[int]:
        """The shape before the batch."""
        shape = list(type_of(value).get_shape())
        if value in self.axes:
            shape[self.axes[value]] //= self.size
        return shape

    def insert(self, before: Operation, op: Operation) -> SSAValue:
        """Put an op before another, with its location; constants of constants at once."""
        folded = fold_operation(op)
        if folded is not None:
            op.drop_all_references()
            op = folded
        set_locations((op,), before.location)
        Rewriter.insert_op(op, InsertPoint.before(before))
        return op.results[0]

    def split(self, op: Operation, value: SSAValue) -> SSAValue:
        """A batched value with its batch as an axis of its own, in front of what was the batch axis."""
        axis, shape = self.axes[value], self.old_shape(value)
        self.count("reshapes")
        return self.insert(op, nn.ReshapeOp(value, [*shape[:axis], self.size, *shape[axis:]]))

    def merge(self, op: Operation, new: nn.NnOp, axis: int) -> None:
        """Replace `op` by `new`, whose result has the batch as an axis of its own, merged into the axis behind it."""
        shape = list(new.type.get_shape())
        if axis + 1 >= len(shape):
            raise self.refuse(op, "its result has no axis left for the batch")
        shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
        merged = nn.ReshapeOp(new, shape)
        self.count("reshapes")
        self.count("batched")
        replace(op, [new, merged])
        self.axes[merged.results[0]] = axis

    def move(self, op: Operation, operand: int, axis: int) -> bool:
        """Have the batch of an operand along another axis, where only axes of size 1 are in between."""
        value = op.operands[operand]
        current, shape = self.axes[value], self.old_shape(value)
        if current == axis:
            return True
        between = shape[current:axis] if current < axis else shape[axis:current]
        if not 0 <= axis < len(shape) or math.prod(between) != 1:
            return False
        shape[axis] *= self.size
        moved = self.insert(op, nn.ReshapeOp(value, shape))
        self.count("reshapes")
        self.axes[moved] = axis
        op.operands[operand] = moved
        return True

    def tile(self, op: Operation, operand: int, axis: int) -> None:
        """Repeat an operand that is the same for all requests along an axis, once for each."""
        value = op.operands[operand]
        # A constant is repeated once for all its users, behind it; anything else where it is used.
        block = None if is_constant(value) else op.parent_block()
        key = (value, axis, block)
        if key not in self._tiled:
            shape = list(type_of(value).get_shape())
            made: nn.NnOp = nn.ConcatOp([value] * self.size, axis=axis)
            if shape[axis] == 1:
                shape[axis] = self.size
                made = nn.ExpandOp(value, shape)
            self._tiled[key] = self.insert(_behind(value) if block is None else op, made)
            self.axes[self._tiled[key]] = axis
            self.count("tiled")
        op.operands[operand] = self._tiled[key]

    def broadcast(self, op: Operation, operands: Sequence[int], shape: Sequence[int]) -> int:
        """Line up the batch of operands that broadcast to `shape`, the old one of the result; the axis there."""
        batched = [i for i in operands if op.operands[i] in self.axes]
        last = [self.axes[op.operands[i]] - len(self.old_shape(op.operands[i])) for i in batched]
        for target in dict.fromkeys(last):
            if all(self._can_move(op.operands[i], target) for i in batched):
                break
        else:
            shapes = " and ".join(shape_text(self.old_shape(op.operands[i])) for i in batched)
            raise self.refuse(op, f"the requests are along different axes of its operands, {shapes}")
        for i in batched:
            moved = self.move(op, i, len(self.old_shape(op.operands[i])) + target)
            assert moved, "asked before"
        for i in operands:
            old = self.old_shape(op.operands[i])
            if len(old) < -target:
                continue
            if i in batched and old[target] != shape[target]:
                self._spread(op, i, target, shape[target])
            elif i not in batched and old[target] > 1:
                self.tile(op, i, len(old) + target)
        return len(shape) + target

    def _can_move(self, value: SSAValue, target: int) -> bool:
        shape = self.old_shape(value)
        axis, current = len(shape) + target, self.axes[value]
        between = shape[current:axis] if current < axis else shape[axis:current]
        return axis >= 0 and math.prod(between) == 1

    def _spread(self, op: Operation, operand: int, target: int, size: int) -> None:
        """Each request's one element along the batch axis, repeated `size` times, as broadcasting would."""
        value = op.operands[operand]
        shape = self.old_shape(value)
        axis = len(shape) + target
        parts = self.split(op, value)
        wide = self.insert(op, nn.ExpandOp(parts, [*shape[:axis], self.size, size, *shape[axis + 1 :]]))
        merged = self.insert(op, nn.ReshapeOp(wide, [*shape[:axis], self.size * size, *shape[axis + 1 :]]))
        self.count("reshapes")
        self.axes[merged] = axis
        op.operands[operand] = merged


def _behind(value: SSAValue) -> Operation:
    owner = value.owner
    assert isinstance(owner, Operation) and owner.next_op is not None, "a constant is not the end of a block"
    return owner.next_op


# Rules: the batch axis of the result, or None when the rule has replaced the op. ------------------------------------


def _same(b: Batcher, op: Operation) -> int | None:
    return b.axes[op.operands[0]]


def _binary(b: Batcher, op: Operation) -> int | None:
    return b.broadcast(op, range(len(op.operands)), type_of(op.results[0]).get_shape())


def _expand(b: Batcher, op: Operation) -> int | None:
    return b.broadcast(op, (0,), type_of(op.results[0]).get_shape())


def _image(b: Batcher, op: Operation) -> int | None:
    for operand in op.operands[1:]:
        if operand in b.axes:
            raise b.refuse(op, "its weights depend on the request")
    if not b.move(op, 0, 0):
        raise b.refuse(op, f"the requests are along axis {b.axes[op.operands[0]]} of its input, not the first")
    return 0


def _reshape(b: Batcher, op: Operation) -> int | None:
    """Row-major order: as many elements must come before the batch axis as before."""
    value = op.operands[0]
    axis, old, new = b.axes[value], b.old_shape(value), list(type_of(op.results[0]).get_shape())
    before = math.prod(old[:axis])
    fitting = [i for i in range(len(new)) if math.prod(new[:i]) == before]
    if not fitting:
        raise b.refuse(
            op, f"this reshape of {shape_text(old)} to {shape_text(new)} mixes axis {axis}, that of the requests"
        )
    return axis if axis in fitting else fitting[0]


def _transpose(b: Batcher, op: Operation) -> int | None:
    assert isinstance(op, nn.TransposeOp)
    return op.perm.index(b.axes[op.x])


def _slice(b: Batcher, op: Operation) -> int | None:
    assert isinstance(op, nn.SliceOp)
    axis, shape = b.axes[op.x], b.old_shape(op.x)
    starts, sizes, strides = list(op.starts), list(op.sizes), list(op.strides)
    if (starts[axis], sizes[axis], strides[axis]) == (0, shape[axis], 1):
        sizes[axis] *= b.size
        _replace(b, op, nn.SliceOp(op.x, starts, sizes, strides), axis)
        return None
    starts.insert(axis, 0)
    sizes.insert(axis, b.size)
    strides.insert(axis, 1)
    b.merge(op, nn.SliceOp(b.split(op, op.x), starts, sizes, strides), axis)
    return None


def _pad(b: Batcher, op: Operation) -> int | None:
    assert isinstance(op, nn.PadOp)
    axis, low, high = b.axes[op.x], list(op.low), list(op.high)
    if not low[axis] and not high[axis]:
        return axis
    low.insert(axis, 0)
    high.insert(axis, 0)
    b.merge(op, nn.PadOp(b.split(op, op.x), low, high, value=op.pad_value), axis)
    return None


def _concat(b: Batcher, op: Operation) -> int | None:
    assert isinstance(op, nn.ConcatOp)
    batched = [i for i, value in enumerate(op.operands) if value in b.axes]
    axis = b.axes[op.operands[batched[0]]]
    for i in range(len(op.operands)):
        if i not in batched:
            b.tile(op, i, axis)
        elif not b.move(op, i, axis):
            raise b.refuse(op, "the requests are along different axes of its operands")
    if op.axis != axis:
        return axis
    b.merge(op, nn.ConcatOp([b.split(op, value) for value in op.operands], axis=axis + 1), axis)
    return None


def _gather(b: Batcher, op: Operation) -> int | None:
    assert isinstance(op, nn.GatherOp)
    rank = type_of(op.indices).get_num_dims()
    if op.data not in b.axes:
        return op.axis + b.axes[op.indices]
    if op.indices in b.axes:
        raise b.refuse(op, "the table it picks from depends on the request, and so do its indices")
    axis = b.axes[op.data]
    if axis != op.axis:
        return axis if axis < op.axis else axis - 1 + rank
    b.merge(op, nn.GatherOp(b.split(op, op.data), op.indices, axis=axis + 1), axis)
    return None


def _matmul(b: Batcher, op: Operation) -> int | None:
    assert isinstance(op, nn.MatmulOp)
    shape = type_of(op.result).get_shape()
    last = [b.axes[v] - type_of(v).get_num_dims() if v in b.axes else None for v in op.operands]
    left, right = last
    if right is None and left == -2:
        return len(shape) - 2
    if left is None and right == -1:
        return len(shape) - 1
    if all(at is None or at <= -3 for at in last):
        return b.broadcast(op, (0, 1), shape)
    if left is not None and right is not None and left <= -2 and -1 not in last:
        # Rows of one request that stand behind an axis of 1 can go there.
        moved = [b.move(op, i, max(0, len(b.old_shape(v)) - 3)) for i, v in enumerate(list(op.operands))]
        if all(moved) and all(len(b.old_shape(v)) >= 3 for v in op.operands):
            return b.broadcast(op, (0, 1), shape)
    if left == -1 or right == -2:
        raise b.refuse(op, "it sums over the axis of the requests")
    raise b.refuse(op, "each request has its own product there, and no axis before the matrices tells them apart")


def _softmax(b: Batcher, op: Operation) -> int | None:
    assert isinstance(op, nn.SoftmaxOp)
    axis = b.axes[op.x]
    if axis != op.axis:
        return axis
    b.merge(op, nn.SoftmaxOp(b.split(op, op.x), axis=axis + 1), axis)
    return None


def _layer_norm(b: Batcher, op: Operation) -> int | None:
    assert isinstance(op, nn.LayerNormOp)
    if any(operand in b.axes for operand in op.operands[1:]):
        raise b.refuse(op, "its scale or bias depends on the request")
    axis, rank = b.axes[op.x], type_of(op.x).get_num_dims()
    if axis > op.axis and not b.move(op, 0, op.axis):
        raise b.refuse(op, "it normalises over the axis of the requests")
    axis = b.axes[op.x]
    if axis < op.axis:
        for i, operand in enumerate(list(op.operands)[1:], 1):
            shape = type_of(operand).get_shape()
            at = axis - rank + len(shape)
            if at >= 0 and shape[at] > 1:
                b.tile(op, i, at)
        return axis
    if any(type_of(operand).get_num_dims() > rank - axis for operand in op.operands[1:]):
        raise b.refuse(op, "it normalises over the axis of the requests")
    parts = b.split(op, op.x)
    b.merge(op, nn.LayerNormOp(parts, op.scale, op.bias, axis=axis + 1, eps=op.eps), axis)
    return None


def _reduce(b: Batcher, op: Operation) -> int | None:
    assert isinstance(op, (nn.ReduceOp, nn.ArgMaxOp))
    axis = b.axes[op.operands[0]]
    axes = op.axes if isinstance(op, nn.ReduceOp) else (op.axis,)
    behind = axis if op.keepdims else axis - sum(a < axis for a in axes)
    if axis not in axes:
        return behind
    parts = b.split(op, op.operands[0])
    shifted = [a if a < axis else a + 1 for a in axes]
    if isinstance(op, nn.ArgMaxOp):
        b.merge(op, nn.ArgMaxOp(parts, axis=shifted[0], keepdims=op.keepdims), behind)
    else:
        b.merge(op, type(op)(parts, shifted, keepdims=op.keepdims), behind)
    return None


def _replace(b: Batcher, op: Operation, new: nn.NnOp, axis: int) -> None:
    b.count("batched")
    replace(op, new)
    b.axes[cast(SSAValue, new.results[0])] = axis


_RULES: tuple[tuple[tuple[type[Operation], ...], Callable[[Batcher, Operation], int | None]], ...] = (
    (_SAME_AXIS, _same),
    ((nn.BinaryOp, nn.WhereOp), _binary),
    ((nn.ExpandOp,), _expand),
    (_IMAGES, _image),
    ((nn.ReshapeOp,), _reshape),
    ((nn.TransposeOp,), _transpose),
    ((nn.SliceOp,), _slice),
    ((nn.PadOp,), _pad),
    ((nn.ConcatOp,), _concat),
    ((nn.GatherOp,), _gather),
    ((nn.MatmulOp,), _matmul),
    ((nn.SoftmaxOp,), _softmax),
    ((nn.LayerNormOp,), _layer_norm),
    ((nn.ReduceOp, nn.ArgMaxOp), _reduce),
)
