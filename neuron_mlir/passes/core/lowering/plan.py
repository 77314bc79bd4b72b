"""What goes where: which axes of each value are on the partitions, its padding, and whether it is too large for
SBUF.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.memory import element_bytes
from neuron_mlir.dialects.pipe.ops import StageOp, YieldOp
from neuron_mlir.passes.core.lowering import window
from neuron_mlir.passes.core.lowering.context import Context, Padding, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.elementwise import ELEMENTWISE
from neuron_mlir.passes.core.lowering.layout import LANES
from neuron_mlir.passes.depth_first_rows import goes_by_rows, unit_reads
from neuron_mlir.passes.layouts import large_bytes
from neuron_mlir.passes.phases import transposed_pads
from neuron_mlir.passes.unfolding import ROWS, packing_before

VIEWS = (nn.ReshapeOp, nn.TransposeOp)
TILED = "nn.tile_bytes"
"""Attribute of a layer that `nn-rematerialize` lets go in tiles of rows: bytes per partition of a tile. Results of
`nn.spill` that it reads pass through SBUF so, and its own goes to DRAM so when an `nn.spill` alone reads it."""


class Plan:
    """What consumers want of each value of a stage."""

    def __init__(self, context: Context, stage: StageOp):
        self.context = context
        self.stage = stage
        self.wishes: dict[SSAValue, tuple[int, ...]] = {}

    def run(self) -> None:
        """What consumers want of each value: its partition axes, padding, and whether it is too large for SBUF.

        Wishes about partitions go backwards from those who have a need (windows, products, rows) through views and
        element-wise layers; then, forwards, a value nobody has a wish about takes after the operand it is made of.
        """
        context = self.context
        ops = [op for op in self.stage.body.block.ops if is_layer(op)]
        for op in reversed(ops):
            self.plan_layer(op)
        for value in self.stage.body.block.args:
            context.partition_of[value] = self.wishes.get(value, self.default_partition(value))
        for op in ops:
            if isinstance(op, nn.PlaceOp):
                context.partition_of[op.result] = context.partition_of.get(op.x, self.default_partition(op.x))
                continue
            for result in op.results:
                context.partition_of[result] = self.wishes.get(result) or self.inherited(op, result)
        for value in context.partition_of:
            if self.is_large(value) and goes_by_rows(value):
                context.in_dram.add(value)
        for op in ops:
            if TILED in op.attributes:
                context.in_dram.update(v for v in op.operands if isinstance(v.owner, nn.SpillOp))
            if isinstance(op, nn.SpillOp) and is_streamed(op):
                context.in_dram.add(op.x)

    def inherited(self, op: Operation, result: SSAValue) -> tuple[int, ...]:
        """Partition axes of a value without wishes: those of the operand of its shape for element-wise layers, else a
        default.
        """
        context = self.context
        if (isinstance(op, nn.FusedOp) and group_root(op) is None) or isinstance(op, ELEMENTWISE):
            for operand in op.operands:
                if operand in context.partition_of and shape_of(operand) == shape_of(result):
                    return context.partition_of[operand]
        if isinstance(op, nn.TransposeOp) and op.x in context.partition_of:
            return tuple(op.perm.index(axis) for axis in context.partition_of[op.x])
        return self.default_partition(result)

    def default_partition(self, value: SSAValue) -> tuple[int, ...]:
        """Outputs of a product with a weight; channels of a feature map; else the axis before the last."""
        shape = shape_of(value)
        made_by = self.producer(value)
        if isinstance(made_by, nn.MatmulOp):
            rhs = outer_value(cast(Operation, value.owner), made_by.rhs)
            if self.context.is_constant(made_by.rhs if rhs is None else rhs):
                return (len(shape) - 1,)
            return (len(shape) - 2,)
        if isinstance(made_by, (nn.SoftmaxOp, nn.LayerNormOp)):
            return self.rows_axis(made_by.operands[0], made_by.axis)
        if len(shape) >= 4 or isinstance(made_by, (nn.ConvOp, nn.ConvTransposeOp, nn.PoolOp, nn.LrnOp)):
            return (1,)
        return (max(0, len(shape) - 2),) if shape else ()

    @staticmethod
    def rows_axis(value: SSAValue, axis: int) -> tuple[int, ...]:
        """The axis that is on the partitions when `axis` (and those after it) are rows."""
        return (max(0, axis - 1),) if axis > 0 else (1,)

    @staticmethod
    def producer(value: SSAValue) -> Operation | None:
        """The layer that makes a value: the root of a group, for a group's result."""
        owner = value.owner
        if isinstance(owner, nn.FusedOp):
            return group_root(owner)
        return owner if isinstance(owner, Operation) else None

    def wish(self, value: SSAValue, partition: tuple[int, ...]) -> None:
        """Record what a consumer wants, unless an earlier (later in program order) one wanted something else."""
        if self.context.is_constant(value):
            return
        sizes = [shape_of(value)[axis] for axis in partition]
        if len(sizes) > 1 and (LANES % sizes[-1] or sizes[-1] % 32):
            return  # several axes share the partitions only as heads do, a whole number of them on each tile
        self.wishes.setdefault(value, partition)

    def flexible(self, value: SSAValue) -> bool:
        """Whether the layer that makes a value can put either of its axes on the partitions at no cost: any product, or
        what puts products together, beside nothing but what comes from other stages: anything else would go element by
        element."""
        while isinstance(value.owner, VIEWS):
            value = value.owner.operands[0]
        if value in self.context.turned:
            return True
        if isinstance(value.owner, nn.ConcatOp):
            parts = [self.context.origin(part) for part in value.owner.inputs]
            made = [part for part in parts if isinstance(part.owner, Operation) or part in self.context.turned]
            return bool(made) and all(self.flexible(part) for part in made)
        return isinstance(self.producer(value), nn.MatmulOp)

    def plan_layer(self, op: Operation) -> None:
        """Let one layer state its wishes about its operands (called from last to first)."""
        if isinstance(op, nn.FusedOp) and op.tile is not None:
            self.plan_depth_first(op)
            return
        root = group_root(op) if isinstance(op, nn.FusedOp) else op
        if isinstance(root, nn.ResizeOp):
            self.wish(root.x, (1,))
        elif isinstance(root, (nn.ConvOp, nn.ConvTransposeOp, nn.PoolOp)):
            value = outer_value(op, root.operands[0])
            if value is None:
                return
            self.wish(value, (1,))
            pads = pads_of(root)
            fill = window.FILL.get(type(root), 0.0)
            if any(any(p) for p in pads.values()):
                self.wish_padding(value, pads, fill)
        elif isinstance(root, nn.MatmulOp):
            self.plan_matmul(op, root)
        elif isinstance(root, (nn.SoftmaxOp, nn.LayerNormOp)):
            self.wish(root.operands[0], self.rows_axis(root.operands[0], root.axis))
        elif isinstance(root, VIEWS):
            self.plan_view(root)
        elif isinstance(root, nn.ConcatOp):
            # Parts that lie as the whole does are copied by engines; others would go element by element.
            wanted = self.wishes.get(root.result) or self.default_partition(root.result)
            for part in root.inputs:
                self.wish(part, wanted)
        elif isinstance(root, nn.PlaceOp):
            self.plan_place(root)
        elif isinstance(op, (nn.FusedOp, *ELEMENTWISE)):
            wanted = self.wishes.get(op.results[0])
            for operand in op.operands:
                if wanted is not None and shape_of(operand) == shape_of(op.results[0]):
                    self.wish(operand, wanted)

    def plan_depth_first(self, op: nn.FusedOp) -> None:
        """Maps that a depth-first group reads, with the padding that its windows want around them."""
        for layer in op.body.block.ops:
            reads = () if isinstance(layer, (nn.YieldOp, nn.WeightOp, nn.ConstOp)) else unit_reads(layer)
            for read in () if isinstance(reads, str) else reads:
                value = outer_value(op, read.operand)
                if value is None and read.operand in op.yielded:
                    value = op.outputs[op.yielded.index(read.operand)]
                if value is None:
                    continue
                self.wish(value, (1,))
                if read.fill is not None:
                    rows = shape_of(value)[ROWS]
                    below = max(0, read.read.end(shape_of(layer.results[0])[ROWS]) - rows)
                    pads = {ROWS: (max(0, read.read.pad), below), ROWS + 1: read.columns}
                    self.wish_padding(value, pads, read.fill)
        for result in op.outputs:
            self.wish(result, (1,))

    def plan_matmul(self, op: Operation, root: nn.MatmulOp) -> None:
        """Operands of products want the contraction axis on the partitions, where that is free to have."""
        left, right = outer_value(op, root.lhs), outer_value(op, root.rhs)
        constant = (right is not None and self.context.is_constant(right)) or isinstance(root.rhs.owner, nn.ConstOp)
        if left is not None and self.flexible(left):
            self.wish(left, (len(shape_of(left)) - 1,))
        if right is not None and not constant and self.flexible(right):
            self.wish(right, (len(shape_of(right)) - 2,))
        wanted = self.wishes.get(op.results[0])
        for operand in op.operands:
            if wanted is not None and operand not in (left, right) and shape_of(operand) == shape_of(op.results[0]):
                self.wish(operand, wanted)

    def plan_view(self, op: Operation) -> None:
        """Carry the wish about a view's result over to its operand."""
        value, result = op.operands[0], op.results[0]
        wanted = self.wishes.get(result)
        if wanted is None or sum(1 for _ in value.uses) > 1:
            return
        if isinstance(op, nn.TransposeOp):
            self.wish(value, tuple(op.perm[axis] for axis in wanted))
            return
        mapped = axes_before(shape_of(value), shape_of(result), wanted)
        if mapped:
            self.wish(value, mapped)

    def plan_place(self, op: nn.PlaceOp) -> None:
        """What is wanted of a value that comes back is wanted of it before: it comes back as it was."""
        if op.result in self.wishes:
            self.wish(op.x, self.wishes[op.result])
        padding = self.context.paddings.get(op.result)
        if padding is not None:
            self.wish_padding(op.x, padding.axes, padding.value)

    def wish_padding(self, value: SSAValue, pads: dict[int, tuple[int, int]], fill: float) -> None:
        """Merge a wish for padding; a second fill value gets a copy of its own later."""
        known = self.context.paddings.get(value)
        if known is None:
            self.context.paddings[value] = Padding(dict(pads), fill)
            return
        if known.value != fill:
            return
        for axis, (low, high) in pads.items():
            before, after = known.axes.get(axis, (0, 0))
            known.axes[axis] = (max(before, low), max(after, high))

    def bytes_per_partition(self, value: SSAValue) -> int:
        """What a value takes in SBUF."""
        shape = list(shape_of(value))
        partition = self.context.partition_of[value]
        lanes = math.prod(shape[a] for a in partition)
        padding = self.context.paddings.get(value)
        free = 1
        for axis, size in enumerate(shape):
            if axis not in partition:
                free *= size + (sum(padding.axes.get(axis, (0, 0))) if padding is not None else 0)
        return -(-lanes // LANES) * free * element_bytes(tensor_type(value).element_type)

    def is_large(self, value: SSAValue) -> bool:
        """Whether a value is a feature map too large to keep in SBUF."""
        if len(shape_of(value)) < 4 or self.context.partition_of[value] != (1,):
            return False
        most = self.context.large_bytes or large_bytes(shape_of(value)[0])
        return self.bytes_per_partition(value) > most

    def plan_interior(self, op: nn.FusedOp, inner: Sequence[Operation], root: Operation | None) -> None:
        """Wishes about values inside a group that are stored before its root runs."""
        context = self.context
        for o in inner:
            for result in o.results:
                context.partition_of.setdefault(result, self.default_partition(result))
        if root is not None and packing_before(root):
            return  # packed tile by tile
        if isinstance(root, (nn.ConvOp, nn.ConvTransposeOp)) and root.x not in op.body.block.args:
            context.partition_of[root.x] = (1,)
            pads = pads_of(root)
            if any(any(p) for p in pads.values()):
                self.wish_padding(root.x, pads, 0.0)
            if self.is_large(root.x) or TILED in op.attributes:
                context.in_dram.add(root.x)
        elif isinstance(root, nn.MatmulOp) and root.lhs not in op.body.block.args:
            context.partition_of[root.lhs] = (len(shape_of(root.lhs)) - 1,)


def is_layer(op: Operation) -> bool:
    """Whether the op is a unit of work (not a constant, not a terminator)."""
    return not isinstance(op, (nn.WeightOp, nn.ConstOp, YieldOp))


def is_streamed(spill: nn.PlaceOp) -> bool:
    """Whether the layer that makes a spilled value writes it to DRAM tile by tile; it is never whole in SBUF."""
    layer = spill.x.owner
    if isinstance(layer, nn.CastOp) and TILED not in layer.attributes:
        layer = layer.x.owner
    return isinstance(layer, Operation) and TILED in layer.attributes and sum(1 for _ in spill.x.uses) == 1


def group_root(op: Operation) -> Operation | None:
    """The contraction a group is built around, or None."""
    assert isinstance(op, nn.FusedOp)
    if op.tile is not None:
        return None
    return next((o for o in op.body.block.ops if isinstance(o, nn.CONTRACTIONS)), None)


def axes_before(before: Sequence[int], after: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of a tensor that become (part of) the given axes of a reshape of it, those of size 1 left out."""
    found: list[int] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        a = before[i] if left else 1
        b = after[j] if right else 1
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b and i < len(before):
                a *= before[i]
                left.append(i)
                i += 1
            elif j < len(after):
                b *= after[j]
                right.append(j)
                j += 1
            else:
                return ()
        if any(axis in axes and after[axis] > 1 for axis in right):
            found += [axis for axis in left if before[axis] > 1]
    return tuple(found)


def outer_value(layer: Operation, value: SSAValue) -> SSAValue | None:
    """A group's argument as the operand it stands for; None for a value made inside the group."""
    if not isinstance(layer, nn.FusedOp):
        return value
    args: list[SSAValue] = list(layer.body.block.args)
    return layer.inputs[args.index(value)] if value in args else None


def pads_of(op: nn.ConvOp | nn.ConvTransposeOp | nn.PoolOp) -> dict[int, tuple[int, int]]:
    """Padding of each spatial axis of a window's input."""
    if isinstance(op, nn.ConvTransposeOp):
        return transposed_pads(op)
    count = len(op.pads) // 2
    return {2 + a: (op.pads[a], op.pads[count + a]) for a in range(count)}
