"""Computing part of a value: what of its operands each op needs for a slice of its result, and the op that makes it.

`Slicer` first goes backwards from the slices that are wanted and adds up what is wanted of each value: with windows and
forks several users want different rows, and what covers them all is made once. Then it writes the ops, each for its
part. Ops that know how to make a slice from slices are made smaller; the others are made whole, and the slice is taken
of their result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from xdsl.ir import Block, BlockArgument, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import tensor, type_of
from neuron_mlir.passes.nn._constants import ConstBuilder, is_constant


@dataclass(frozen=True)
class Cut:
    """Elements `start` to `start + size` along an axis."""

    axis: int
    start: int
    size: int


Want = Cut | None
"""A part of a value, or all of it."""
Make = Callable[[list[SSAValue]], Operation]


class CannotSliceError(Exception):
    """The op has no smaller form for that slice."""


class Slicer:
    """Writes ops to `block`; `argument` gives the value inside for an argument of the code that is cut.

    `wanted` are the values to be made, with the part of each; without it (in a group) each part is made as asked for.
    """

    def __init__(
        self,
        block: Block,
        argument: Callable[[BlockArgument, Want], SSAValue],
        wanted: Sequence[tuple[SSAValue, Want]] | None = None,
    ):
        self.block = block
        self.argument = argument
        self.made: dict[tuple[SSAValue, Want], SSAValue] = {}
        self.hull: dict[SSAValue, Want] | None = None if wanted is None else _hulls(wanted)

    def get(self, value: SSAValue, want: Want) -> SSAValue:
        """The part of `value` that is wanted."""
        want = _normal(value, want)
        key = value, want
        if key in self.made:
            return self.made[key]
        hull = want if self.hull is None or is_constant(value) else self.hull[value]
        if hull == want:
            made = self.make(value, want)
        else:
            assert want is not None
            start = want.start - (0 if hull is None else hull.start)
            made = self.add(slice_of(self.get(value, hull), Cut(want.axis, start, want.size)), value.owner)
        if made.name_hint is None:
            made.name_hint = value.name_hint
        self.made[key] = made
        return made

    def prepare(self) -> None:
        """Write what others need, in the order of the program: so that no value asks for a long chain behind it."""
        hull = self.hull or {}
        blocks = [value.owner.parent for value in hull if isinstance(value.owner, Operation)]
        for op in list(blocks[0].ops) if blocks and blocks[0] is not None else ():
            for result in op.results:
                if result in hull and not is_constant(result):
                    self.get(result, hull[result])

    def make(self, value: SSAValue, want: Want) -> SSAValue:
        """Write what makes it."""
        if isinstance(value, BlockArgument):
            return self.argument(value, want)
        op = cast(Operation, value.owner)
        if is_constant(value):
            return self.constant(op, want)
        if isinstance(op, nn.FusedOp):
            return self.group(op, value, want)
        if isinstance(op, nn.ConcatOp) and want is not None and want.axis == op.axis:
            pieces = [self.get(operand, part) for operand, part in _pieces(op, want)]
            return pieces[0] if len(pieces) == 1 else self.add(nn.ConcatOp(pieces, axis=op.axis), op)
        wanted, make = operands_for(op, want) if want is not None else whole(op)
        return self.add(make([self.get(v, w) for v, w in zip(op.operands, wanted, strict=True)]), op)

    def add(self, new: Operation, old: Operation | Block) -> SSAValue:
        """Append an op that stands for part of another."""
        if isinstance(old, Operation):
            new.location = old.location
        self.block.add_op(new)
        return new.results[0]

    def constant(self, op: Operation, want: Want) -> SSAValue:
        """A constant, or an expression for part of it."""
        builder = ConstBuilder()
        inside = builder.take(op.results[0])
        if want is not None:
            inside = builder.add(slice_of(inside, want))
        return self.add(builder.finish(inside, [op.location]), op)

    def group(self, op: nn.FusedOp, value: SSAValue, want: Want) -> SSAValue:
        """A group that makes part of its result, from parts of its operands."""
        if want is not None and len(op.results) != 1:
            raise CannotSliceError
        body = Block()
        operands: list[SSAValue] = []
        taken: dict[tuple[BlockArgument, Want], SSAValue] = {}

        def argument(inner: BlockArgument, part: Want) -> SSAValue:
            if (inner, part) not in taken:
                outer = self.get(op.inputs[inner.index], part)
                operands.append(outer)
                taken[inner, part] = body.insert_arg(outer.type, len(body.args))
                taken[inner, part].name_hint = inner.name_hint
            return taken[inner, part]

        inner = Slicer(body, argument)
        last = op.body.block.last_op
        assert isinstance(last, nn.YieldOp)
        values = [inner.get(v, want) for v in last.values]
        end = nn.YieldOp(*values)
        end.location = last.location
        body.add_op(end)
        new = nn.FusedOp(operands, [v.type for v in values], body, op.kind)
        new.location = op.location
        self.block.add_op(new)
        if want is None:
            self.made |= {(old, None): result for old, result in zip(op.results, new.results, strict=True)}
        return next(result for old, result in zip(op.results, new.results, strict=True) if old is value)


def _normal(value: SSAValue, want: Want) -> Want:
    """None for what is all of the value."""
    return None if want is not None and want.size == type_of(value).get_shape()[want.axis] else want


def _hulls(wanted: Sequence[tuple[SSAValue, Want]]) -> dict[SSAValue, Want]:
    """The part of each value, constants apart, that covers what is wanted of it directly and by others.

    An op that has no smaller form for its part is made whole.
    """
    hulls: dict[SSAValue, Want] = {}

    def merge(value: SSAValue, want: Want) -> None:
        want = _normal(value, want)
        known = hulls.get(value, want)
        if known is None or want is None or known.axis != want.axis:
            hulls[value] = None
            return
        start, stop = min(known.start, want.start), max(known.start + known.size, want.start + want.size)
        hulls[value] = _normal(value, Cut(want.axis, start, stop - start))

    for value, want in wanted:
        merge(value, want)
    blocks = [value.owner.parent for value, _ in wanted if isinstance(value.owner, Operation)]
    ops = [] if not blocks or blocks[0] is None else list(blocks[0].ops)
    for op in reversed(ops):
        asked = [result for result in op.results if result in hulls]
        if not asked or is_constant(asked[0]):
            continue
        try:
            for operand, part in _operands(op, asked, hulls):
                merge(operand, part)
        except CannotSliceError:
            for result in op.results:
                hulls[result] = None
            for operand in op.operands:
                merge(operand, None)
    return hulls


def _operands(op: Operation, asked: Sequence[SSAValue], hulls: dict[SSAValue, Want]) -> list[tuple[SSAValue, Want]]:
    """The parts of its operands that an op needs for what is asked of its results."""
    want = hulls[asked[0]]
    if want is None:
        return [(operand, None) for operand in op.operands]
    if isinstance(op, nn.FusedOp):
        found: list[tuple[SSAValue, Want]] = []

        def argument(inner: BlockArgument, part: Want) -> SSAValue:
            outer = op.inputs[inner.index]
            found.append((outer, part))
            shape = list(type_of(outer).get_shape())
            if part is not None:
                shape[part.axis] = part.size
            return scratch.insert_arg(tensor(shape, type_of(outer).element_type), len(scratch.args))

        if len(op.results) != 1:
            raise CannotSliceError
        scratch = Block()
        last = op.body.block.last_op
        assert isinstance(last, nn.YieldOp)
        Slicer(scratch, argument).get(last.values[0], want)
        return found
    if isinstance(op, nn.ConcatOp) and want.axis == op.axis:
        return _pieces(op, want)
    return list(zip(op.operands, operands_for(op, want)[0], strict=True))


def _pieces(op: nn.ConcatOp, want: Cut) -> list[tuple[SSAValue, Want]]:
    """Those operands of what lies one behind the other that have a share in a part, and their shares."""
    found: list[tuple[SSAValue, Want]] = []
    at = 0
    for operand in op.inputs:
        size = type_of(operand).get_shape()[op.axis]
        start, stop = max(want.start, at), min(want.start + want.size, at + size)
        if start < stop:
            found.append((operand, Cut(op.axis, start - at, stop - start)))
        at += size
    return found


def slice_of(value: SSAValue, cut: Cut) -> nn.SliceOp:
    """Part of a value that is there as a whole."""
    shape = list(type_of(value).get_shape())
    starts = [0] * len(shape)
    starts[cut.axis], shape[cut.axis] = cut.start, cut.size
    return nn.SliceOp(value, starts, shape)


def whole(op: Operation) -> tuple[list[Want], Make]:
    """The op as it is."""
    return [None] * len(op.operands), lambda operands: _like(op, operands, None)


def _like(op: Operation, operands: Sequence[SSAValue], cut: Want) -> Operation:
    """The same op on other operands, its result cut."""
    kind = type_of(op.results[0])
    shape = list(kind.get_shape())
    if cut is not None:
        shape[cut.axis] = cut.size
    return type(op).create(
        operands=list(operands),
        result_types=[tensor(shape, kind.element_type)],
        properties=dict(op.properties),
        attributes=dict(op.attributes),
    )


def operands_for(op: Operation, cut: Cut) -> tuple[list[Want], Make]:
    """What of its operands an op needs to make part of its result, and how it is made.

    Raises `CannotSliceError` when it is not a smaller op of the same kind.
    """

    def like(operands: list[SSAValue]) -> Operation:
        return _like(op, operands, cut)

    if isinstance(op, (nn.UnaryOp, nn.BinaryOp, nn.WhereOp, nn.CastOp)):
        return [_broadcast(op, v, cut) for v in op.operands], like
    if isinstance(op, nn.ConvOp):
        return _conv(op, cut)
    if isinstance(op, nn.PoolOp):
        return _pool(op, cut)
    if isinstance(op, nn.UnfoldOp):
        return _unfold(op, cut)
    if isinstance(op, nn.MatmulOp):
        return _matmul(op, cut), like
    if isinstance(op, (nn.SoftmaxOp, nn.LayerNormOp)):
        first = cut.axis == op.axis if isinstance(op, nn.SoftmaxOp) else cut.axis >= op.axis
        if first:
            raise CannotSliceError
        return [cut, *[None] * (len(op.operands) - 1)], like
    if isinstance(op, nn.ReduceOp):
        return [_reduced(op, cut)], like
    if isinstance(op, nn.TransposeOp):
        return [Cut(op.perm[cut.axis], cut.start, cut.size)], like
    if isinstance(op, nn.ReshapeOp):
        return [_reshaped(op, cut)], like
    if isinstance(op, nn.ConcatOp):
        return [cut] * len(op.inputs), like
    if isinstance(op, nn.SliceOp):
        return _sliced(op, cut)
    if isinstance(op, nn.GatherOp):
        return _gather(op, cut), like
    raise CannotSliceError


def _broadcast(op: Operation, value: SSAValue, cut: Cut) -> Want:
    """The part of an element-wise operand, numpy broadcasting."""
    shape = type_of(value).get_shape()
    axis = cut.axis - (type_of(op.results[0]).get_num_dims() - len(shape))
    return None if axis < 0 or shape[axis] == 1 else Cut(axis, cut.start, cut.size)


def _window(cut: Cut, extent: int, reach: int, stride: int, low: int) -> tuple[Cut, int, int]:
    """The part of a window's input along a spatial axis, and how much padding is left before and behind it."""
    first = cut.start * stride - low
    end = (cut.start + cut.size - 1) * stride - low + reach
    start, stop = max(0, first), min(extent, end)
    if start >= stop:
        raise CannotSliceError  # nothing but padding
    return Cut(cut.axis, start, stop - start), start - first, end - stop


def _with_pads(pads: Sequence[int], position: int, low: int, high: int) -> list[int]:
    found = list(pads)
    found[position], found[len(pads) // 2 + position] = low, high
    return found


def _conv(op: nn.ConvOp, cut: Cut) -> tuple[list[Want], Make]:
    x, w = type_of(op.x).get_shape(), type_of(op.w).get_shape()
    rest: list[Want] = [None] * (len(op.operands) - 2)
    pads, group = list(op.pads), op.group
    if cut.axis == 0:
        wanted: list[Want] = [cut, None, *rest]
    elif cut.axis == 1:
        along: Want = None
        if group > 1:
            if not group == x[1] == w[0]:
                raise CannotSliceError
            along, group = cut, cut.size
        wanted = [along, Cut(0, cut.start, cut.size), *[Cut(0, cut.start, cut.size) for _ in rest]]
    else:
        i = cut.axis - 2
        reach = (w[cut.axis] - 1) * op.dilations[i] + 1
        part, low, high = _window(cut, x[cut.axis], reach, op.strides[i], pads[i])
        pads = _with_pads(pads, i, low, high)
        wanted = [part, None, *rest]

    def make(v: list[SSAValue]) -> Operation:
        bias = v[2] if len(v) > 2 else None
        return nn.ConvOp(v[0], v[1], bias, strides=op.strides, pads=pads, dilations=op.dilations, group=group)

    return wanted, make


def _pool(op: nn.PoolOp, cut: Cut) -> tuple[list[Want], Make]:
    if cut.axis < 2:
        return [cut], lambda v: _like(op, v, cut)
    i = cut.axis - 2
    reach = (op.kernel[i] - 1) * op.dilations[i] + 1
    extent = type_of(op.operands[0]).get_shape()[cut.axis]
    part, low, high = _window(cut, extent, reach, op.strides[i], op.pads[i])
    pads = _with_pads(op.pads, i, low, high)
    given = {"strides": op.strides, "pads": pads, "dilations": op.dilations}

    def make(v: list[SSAValue]) -> Operation:
        if isinstance(op, nn.AvgPoolOp):
            return nn.AvgPoolOp(v[0], op.kernel, **given, count_include_pad=op.count_include_pad)
        return nn.MaxPoolOp(v[0], op.kernel, **given)

    return [part], make


def _unfold(op: nn.UnfoldOp, cut: Cut) -> tuple[list[Want], Make]:
    if cut.axis == 0:
        return [cut], lambda v: _like(op, v, cut)
    if cut.axis == 1:
        raise CannotSliceError
    i = cut.axis - 2
    part, low, high = _window(cut, type_of(op.x).get_shape()[cut.axis], op.kernel[i], op.strides[i], op.pads[i])
    pads = _with_pads(op.pads, i, low, high)
    return [part], lambda v: nn.UnfoldOp(v[0], op.kernel, strides=op.strides, pads=pads)


def _matmul(op: nn.MatmulOp, cut: Cut) -> list[Want]:
    rank = type_of(op.result).get_num_dims()
    left, right = type_of(op.lhs).get_num_dims(), type_of(op.rhs).get_num_dims()
    if cut.axis == rank - 1:
        return [None, Cut(right - 1, cut.start, cut.size)]
    if cut.axis == rank - 2:
        return [Cut(left - 2, cut.start, cut.size), None]
    return [_broadcast(op, v, cut) for v in (op.lhs, op.rhs)]


def _reduced(op: nn.ReduceOp, cut: Cut) -> Cut:
    rank = type_of(op.x).get_num_dims()
    reduced = {axis % rank for axis in op.axes}
    kept = list(range(rank)) if op.keepdims else [axis for axis in range(rank) if axis not in reduced]
    if kept[cut.axis] in reduced:
        raise CannotSliceError
    return Cut(kept[cut.axis], cut.start, cut.size)


def _reshaped(op: nn.ReshapeOp, cut: Cut) -> Cut:
    """The axis of x whose elements, and those of the axes behind it, are the same run in both shapes."""
    to, x = type_of(op.result).get_shape(), type_of(op.x).get_shape()
    before, behind = math.prod(to[: cut.axis]), math.prod(to[cut.axis + 1 :])
    for axis in range(len(x)):
        inner = math.prod(x[axis + 1 :])
        if math.prod(x[:axis]) != before or x[axis] * inner != to[cut.axis] * behind:
            continue
        if cut.start * behind % inner == 0 and cut.size * behind % inner == 0:
            return Cut(axis, cut.start * behind // inner, cut.size * behind // inner)
    raise CannotSliceError


def _sliced(op: nn.SliceOp, cut: Cut) -> tuple[list[Want], Make]:
    if op.strides[cut.axis] != 1:
        raise CannotSliceError
    starts, sizes = list(op.starts), list(type_of(op.result).get_shape())
    part = Cut(cut.axis, starts[cut.axis] + cut.start, cut.size)
    starts[cut.axis], sizes[cut.axis] = 0, cut.size
    return [part], lambda v: nn.SliceOp(v[0], starts, sizes, op.strides)


def _gather(op: nn.GatherOp, cut: Cut) -> list[Want]:
    rank = type_of(op.indices).get_num_dims()
    if cut.axis < op.axis:
        return [cut, None]
    if cut.axis < op.axis + rank:
        return [None, Cut(cut.axis - op.axis, cut.start, cut.size)]
    return [Cut(cut.axis - rank + 1, cut.start, cut.size), None]
