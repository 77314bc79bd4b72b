"""Lowering one stage: what goes where, then each unit (a fused group or a lone layer) in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from xdsl.dialects.builtin import TensorType, f32
from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.memory import element_bytes
from neuron_mlir.dialects.pipe.ops import StageOp, YieldOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering import attention, movement, normalise, window
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import Context, Padding, row_axis, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.contraction import (
    Contraction,
    Weight,
    conv_contraction,
    dense_weight,
    emit_contraction,
    keep_for_layer,
    matmul_contraction,
    matmul_weight,
    place_weight,
    staged_rows,
)
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.elementwise import (
    ELEMENTWISE,
    Emitter,
    Source,
    Tile,
    lower_elementwise,
    operand_source,
    prepare_operand,
    tile_access,
)
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home, Offset

VIEWS = (nn.ReshapeOp, nn.TransposeOp)
ROWS = 2
"""The axis that large feature maps are cut along."""
LARGE = 20 * 1024
"""A value that takes more bytes per partition than this stays in DRAM and passes through SBUF in tiles of rows."""
TILE_BYTES = 10 * 1024
"""What one such tile may take per partition."""


def is_layer(op: Operation) -> bool:
    """Whether the op is a unit of work (not a constant, not a terminator)."""
    return not isinstance(op, (nn.WeightOp, nn.ConstOp, YieldOp))


class StageLowering:
    """Lowers the layers of one stage, in order."""

    def __init__(self, context: Context, stage: StageOp):
        self.context = context
        self.stage = stage
        self.weight_budget = 0
        self.wishes: dict[SSAValue, tuple[int, ...]] = {}

    # Plan

    def plan(self) -> None:
        """What consumers want of each value: its partition axes, padding, and whether it is too large for SBUF.

        Wishes about partitions go backwards from those who have a need (windows, products, rows) through views and element-wise layers; then, forwards, a value
        nobody has a wish about takes after the operand it is made of.
        """
        context = self.context
        ops = [op for op in self.stage.body.block.ops if is_layer(op)]
        for op in reversed(ops):
            self.plan_layer(op)
        for value in self.stage.body.block.args:
            context.partition_of[value] = self.wishes.get(value, self.default_partition(value))
        for op in ops:
            for result in op.results:
                context.partition_of[result] = self.wishes.get(result) or self.inherited(op, result)
        for value in context.partition_of:
            if self.is_large(value):
                context.in_dram.add(value)

    def inherited(self, op: Operation, result: SSAValue) -> tuple[int, ...]:
        """Partition axes of a value without wishes: those of the operand of its shape for element-wise layers, else a default."""
        context = self.context
        if isinstance(op, nn.FusedOp) and group_root(op) is None or isinstance(op, ELEMENTWISE):
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
        if len(shape) >= 4 or isinstance(made_by, (nn.ConvOp, nn.PoolOp, nn.LrnOp)):
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
        """Whether the layer that makes a value can put either of its axes on the partitions at no cost: any product."""
        while isinstance(value.owner, VIEWS):
            value = value.owner.operands[0]
        return isinstance(self.producer(value), nn.MatmulOp)

    def plan_layer(self, op: Operation) -> None:
        """Let one layer state its wishes about its operands (called from last to first)."""
        root = group_root(op) if isinstance(op, nn.FusedOp) else op
        if isinstance(root, (nn.ConvOp, nn.PoolOp)):
            value = outer_value(op, root.operands[0])
            if value is None:
                return
            self.wish(value, (1,))
            count = len(shape_of(value)) - 2
            pads = {2 + a: (root.pads[a], root.pads[count + a]) for a in range(count)}
            fill = window.LOWEST["bf16"] if isinstance(root, nn.MaxPoolOp) else 0.0
            if any(any(p) for p in pads.values()):
                self.wish_padding(value, pads, fill)
        elif isinstance(root, nn.MatmulOp):
            self.plan_matmul(op, root)
        elif isinstance(root, (nn.SoftmaxOp, nn.LayerNormOp)):
            self.wish(root.operands[0], self.rows_axis(root.operands[0], root.axis))
        elif isinstance(root, VIEWS):
            self.plan_view(root)
        elif isinstance(op, nn.FusedOp) or isinstance(op, ELEMENTWISE):
            wanted = self.wishes.get(op.results[0])
            for operand in op.operands:
                if wanted is not None and shape_of(operand) == shape_of(op.results[0]):
                    self.wish(operand, wanted)

    def plan_matmul(self, op: Operation, root: nn.MatmulOp) -> None:
        """Operands of products want the contraction axis on the partitions, where that is free to have."""
        left, right = outer_value(op, root.lhs), outer_value(op, root.rhs)
        constant = right is not None and self.context.is_constant(right) or isinstance(root.rhs.owner, nn.ConstOp)
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
        return self.bytes_per_partition(value) > LARGE

    # Values

    def new_home(self, value: SSAValue, partition: Sequence[int] | None = None) -> Home:
        """Where a layer's result goes."""
        context = self.context
        shape, element = shape_of(value), tensor_type(value).element_type
        padding = context.paddings.get(value)
        if value in context.in_dram:
            home = context.dram_home(context.label(value), shape, element, padding)
        else:
            chosen = context.partition_of[value] if partition is None else tuple(partition)
            home = context.sbuf_home(context.label(value), shape, element, chosen, padding)
        context.define(value, home)
        return home

    def want(
        self, value: SSAValue, partition: Sequence[int], layer: Operation, pads: dict[int, tuple[int, int]] | None = None,
        fill: float = 0.0,
    ) -> Home:
        """A place of a value in SBUF with these axes on the partitions (in that order) and at least this padding; copied there at need."""
        context = self.context
        if context.is_constant(value):
            return self.constant_home(value, partition, layer)
        pads = {} if pads is None else {a: p for a, p in pads.items() if any(p)}
        for home in context.places(value):
            if home.in_sbuf and _fits(home, partition, pads, fill):
                return home
        padding = Padding(pads, fill) if pads else None
        known = context.paddings.get(value)
        if known is not None and (known.value == fill or not pads):
            padding = known
        source = next((h for h in context.places(value) if h.in_sbuf), context.places(value)[0])
        return context.copy_to(value, source, partition, padding, layer)

    def in_rows(self, value: SSAValue, layer: Operation) -> Home:
        """The best place to store a value row-major from: one that does not have the innermost axis on the partitions (see `Context.rows_first`)."""
        context = self.context
        shape = shape_of(value)
        inner = max((axis for axis, size in enumerate(shape) if size > 1), default=0)
        places = context.places(value)
        for home in places:
            if home.in_sbuf and inner not in home.partition_axes():
                return home
        axis = row_axis(shape, inner)
        source = next((home for home in places if home.in_sbuf), places[0])
        turns = source.in_sbuf and source.partition_axes() == (inner,) and not any(len(f) > 1 for f in source.merged().axes)
        if axis is None or not turns or str(source.element) not in ("bf16", "f16"):
            return source
        return self.want(value, (axis,), layer)

    def constant_home(self, value: SSAValue, partition: Sequence[int], layer: Operation) -> Home:
        """A constant as a whole tensor in SBUF."""
        context = self.context
        source = context.constant(value, context.label(value))
        shape = shape_of(value)
        source = replace(source, axes=tuple((Factor(s, a),) if s > 1 else () for a, s in enumerate(shape)))
        home = context.sbuf_home(context.label(value), shape, source.element, partition)
        copy_by_dma(context.code, source, home, layer, 0)
        return home

    # Layers

    def run(self) -> None:
        """Lower every layer of the stage."""
        self.plan()
        for op in self.stage.body.block.ops:
            if not is_layer(op):
                continue
            self.context.code.location = op.location
            self.context.load.location = op.location
            self.context.count("layers")
            self.layer(op)

    def layer(self, op: Operation) -> None:
        """Lower one unit."""
        self.context.local.clear()
        if isinstance(op, nn.FusedOp):
            self.group(op)
        elif isinstance(op, nn.ConvOp):
            self.conv(op, op, [], [(op.result, op.result)])
        elif isinstance(op, nn.MatmulOp):
            self.matmul(op, op, [], [(op.result, op.result)])
        elif isinstance(op, ELEMENTWISE):
            self.elementwise([op], list(op.operands), [(op.results[0], op.results[0])], op)
        elif isinstance(op, VIEWS):
            movement.lower_view(self, op)
        elif isinstance(op, nn.PoolOp):
            self.pool(op)
        elif isinstance(op, nn.LrnOp):
            self.lrn(op)
        elif isinstance(op, nn.ReduceOp):
            self.reduce(op)
        elif isinstance(op, nn.SoftmaxOp):
            x = self.want(op.x, self.row_partition(op.x, (op.axis,)), op)
            home = self.new_home(op.result, x.partition_axes() or self.row_partition(op.x, (op.axis,)))
            normalise.lower_softmax(self.context, op, x, home)
        elif isinstance(op, nn.LayerNormOp):
            self.layer_norm(op)
        else:
            movement.lower_movement(self, op)

    def lrn(self, op: nn.LrnOp) -> None:
        """Row tiles of a feature map: the sum over neighbouring channels takes several copies of each."""
        context = self.context
        self.new_home(op.result, (1,))
        shape = shape_of(op.result)
        if not _in_sbuf(context, op.x) and op.x not in context.in_dram:
            self.want(op.x, (1,), op)
        rows = max(1, min(shape[ROWS], TILE_BYTES // 4 // _row_bytes(shape, f32)))
        for segment in segments(shape[ROWS], rows):
            with context.code.tiles(segment) as start:
                resident = next((h for h in context.places(op.x) if h.in_sbuf), None)
                x = None if resident is None else resident.part(ROWS, start, segment.size)
                if x is None:
                    x = self.rows_of(op.x, start, segment.size, 1, 0, segment.size, op)
                tile_shape = [segment.size if a == ROWS else s for a, s in enumerate(shape)]
                out = context.sbuf_home("rows", tile_shape, tensor_type(op.result).element_type, (1,))
                window.lower_lrn(context, op, replace(x, pad=(), pad_value=None), out)
                self.store_rows(op.result, out, start, segment.size, op)

    def row_partition(self, value: SSAValue, reduced: Sequence[int]) -> tuple[int, ...]:
        """The axis to put on the partitions when others are reduced: where the value is now if that is kept, else the largest kept axis."""
        shape = shape_of(value)
        if value in self.context.homes:
            for home in self.context.places(value):
                axes = home.partition_axes()
                if home.in_sbuf and axes and not set(axes) & set(reduced) and len(axes) == 1:
                    return axes
        kept = [a for a in range(len(shape)) if a not in reduced]
        if not kept:
            return ()
        return (max(kept, key=lambda a: (shape[a], a)),)

    def reduce(self, op: nn.ReduceOp) -> None:
        partition = self.row_partition(op.x, op.axes)
        x = self.want(op.x, partition, op)
        kept = [a for a in range(len(shape_of(op.x))) if a not in op.axes]
        mapped = tuple(a if op.keepdims else kept.index(a) for a in partition)
        normalise.lower_reduce(self.context, op, x, self.new_home(op.result, mapped))

    def layer_norm(self, op: nn.LayerNormOp) -> None:
        rank = len(shape_of(op.x))
        axes = tuple(range(op.axis, rank))
        x = self.want(op.x, self.row_partition(op.x, axes), op)
        out = self.new_home(op.result, x.partition_axes() or self.row_partition(op.x, axes))
        scale = self.context.constant_like(op.scale, out, rank)
        bias = None if op.bias is None else self.context.constant_like(op.bias, out, rank)
        normalise.lower_layer_norm(self.context, op, x, out, scale, bias)

    # Groups

    def group(self, op: nn.FusedOp) -> None:
        """A fused group: what feeds its root is lowered on its own, then the root, with the rest of the group on each finished tile."""
        root = group_root(op)
        inner = [o for o in op.body.block.ops if not isinstance(o, nn.YieldOp)]
        for argument, operand in zip(op.body.block.args, op.inputs, strict=True):
            self.bind(argument, operand)
        self.plan_interior(op, inner, root)
        results = list(zip(op.yielded, op.outputs, strict=True))
        if root is None:
            self.elementwise(inner, list(op.body.block.args), results, op)
            return
        before = _before(root, inner)
        for o in before:
            if isinstance(o, (nn.WeightOp, nn.ConstOp)):
                continue
            self.layer(o)
        after = [o for o in inner if o is not root and o not in before]
        if isinstance(root, nn.ConvOp):
            self.conv(root, op, after, results)
        else:
            assert isinstance(root, nn.MatmulOp)
            self.matmul(root, op, after, results)

    def plan_interior(self, op: nn.FusedOp, inner: Sequence[Operation], root: Operation | None) -> None:
        """Wishes about values inside a group that are stored before its root runs."""
        context = self.context
        for o in inner:
            for result in o.results:
                context.partition_of.setdefault(result, self.default_partition(result))
        if isinstance(root, nn.ConvOp) and root.x not in op.body.block.args:
            context.partition_of[root.x] = (1,)
            count = len(shape_of(root.x)) - 2
            pads = {2 + a: (root.pads[a], root.pads[count + a]) for a in range(count)}
            if any(any(p) for p in pads.values()):
                self.wish_padding(root.x, pads, 0.0)
            if self.is_large(root.x):
                context.in_dram.add(root.x)
        elif isinstance(root, nn.MatmulOp) and root.lhs not in op.body.block.args:
            context.partition_of[root.lhs] = (len(shape_of(root.lhs)) - 1,)

    def bind(self, argument: SSAValue, operand: SSAValue) -> None:
        """Inside a group, its argument stands for the operand outside."""
        self.context.aliases[argument] = operand

    def elementwise(
        self,
        ops: Sequence[Operation],
        inputs: Sequence[SSAValue],
        results: Sequence[tuple[SSAValue, SSAValue]],
        layer: Operation,
    ) -> None:
        """A group without a root."""
        context = self.context
        inputs = [context.origin(v) for v in inputs]
        value = results[0][1]
        used = [v for v in inputs if not context.is_constant(v)]
        if value in context.in_dram or any(v in context.in_dram and not _in_sbuf(context, v) for v in used):
            self.elementwise_by_rows(ops, inputs, results, layer)
            return
        like = next((v for v in used if shape_of(v) == shape_of(value)), None)
        partition = context.partition_of[value]
        if like is not None:
            place = next((h for h in context.places(like) if h.in_sbuf), None)
            if place is not None and len(place.partition_factors()) == 1:
                partition = place.partition_axes()
        homes = [(inner, self.new_home(outer, partition)) for inner, outer in results]
        for v in used:
            if shape_of(v) == shape_of(value):
                self.want(v, partition, layer)
        lower_elementwise(context, ops, inputs, homes, layer)

    def elementwise_by_rows(
        self,
        ops: Sequence[Operation],
        inputs: Sequence[SSAValue],
        results: Sequence[tuple[SSAValue, SSAValue]],
        layer: Operation,
    ) -> None:
        """A group over feature maps too large for SBUF: tiles of rows in, compute, tiles of rows out."""
        context = self.context
        value = results[0][1]
        shape = shape_of(value)
        for _, outer in results:
            self.new_home(outer, (1,))
        widest = max(_row_bytes(shape_of(v), tensor_type(v).element_type) for v in (*inputs, value) if shape_of(v))
        rows = max(1, min(shape[ROWS], TILE_BYTES // max(1, widest)))
        for segment in segments(shape[ROWS], rows):
            context.local.clear()
            with context.code.tiles(segment) as start:
                saved: dict[SSAValue, list[Home]] = {}
                for v in inputs:
                    if context.is_constant(v) or len(shape_of(v)) != len(shape) or shape_of(v)[ROWS] != shape[ROWS]:
                        continue
                    if v in saved:
                        continue
                    saved[v] = context.homes[v]
                    context.homes[v] = [self.rows_of(v, start, segment.size, 1, 0, segment.size, layer)]
                targets: list[tuple[SSAValue, Home]] = []
                tile_shape = [segment.size if a == ROWS else s for a, s in enumerate(shape)]
                for inner, outer in results:
                    element = tensor_type(outer).element_type
                    targets.append((inner, context.sbuf_home("rows", tile_shape, element, (1,))))
                lower_elementwise(context, ops, inputs, targets, layer)
                for v, homes in saved.items():
                    context.homes[v] = homes
                for (_, outer), (_, home) in zip(results, targets, strict=True):
                    self.store_rows(outer, home, start, segment.size, layer)

    def rows_of(
        self, value: SSAValue, start: Linear, rows: int, step: int, first: int, count: int, layer: Operation
    ) -> Home:
        """Rows of a feature map for outputs from `start`: in place when it is in SBUF, else loaded.

        Output row `r` of the tile reads from input row `r * step + first` on (`first` is negative in padding); `count` input rows are loaded. Addressing is
        as in the whole map: the caller adds `first` itself.
        """
        context = self.context
        for home in context.places(value):
            if home.in_sbuf:
                dim = home.free_dim(ROWS)
                if dim is None:
                    return home
                low = tuple(o + start * step if d == dim else o for d, o in enumerate(home.low))
                return replace(home, low=low)
        home = context.places(value)[0]
        dim = home.free_dim(ROWS)
        padded = start * step + (first + (home.pad[dim][0] if dim is not None and home.pad else 0))
        tile = staged_rows(context, home, ROWS, padded, count, layer)
        dim = tile.free_dim(ROWS)
        if dim is None:
            return tile
        low = tuple(o + -first if d == dim else o for d, o in enumerate(tile.low))
        return replace(tile, low=low)

    def store_rows(self, value: SSAValue, tile: Home, start: Linear, rows: int, layer: Operation) -> None:
        """Put a computed tile of rows where the value lives."""
        context = self.context
        home = context.places(value)[0]
        part = home.part(ROWS, start, rows)
        assert part is not None
        if part.in_sbuf:
            context.move(tile, part, layer)
        else:
            copy_by_dma(context.code, tile, part, layer, 1)

    # Roots

    def pool(self, op: nn.PoolOp) -> None:
        assert isinstance(op, (nn.MaxPoolOp, nn.AvgPoolOp))
        context = self.context
        count = len(shape_of(op.x)) - 2
        pads = {2 + a: (op.pads[a], op.pads[count + a]) for a in range(count)}
        fill = window.LOWEST["bf16"] if isinstance(op, nn.MaxPoolOp) else 0.0
        counts = None
        if isinstance(op, nn.AvgPoolOp) and any(op.pads) and not op.count_include_pad:
            counts = self.window_counts(op)
        if op.x in context.in_dram and not _in_sbuf(context, op.x):
            self.windowed_by_rows(op, op.x, op.result, op, pads, fill, counts)
            return
        x = self.want(op.x, (1,), op, pads, fill)
        if op.result in context.in_dram:
            self.windowed_by_rows(op, op.x, op.result, op, pads, fill, counts)
            return
        window.lower_pool(context, op, x, self.new_home(op.result, (1,)), counts)

    def window_counts(self, op: nn.AvgPoolOp) -> Home:
        """Elements per window on every partition."""
        context = self.context
        one = nn.WeightOp("one", TensorType(f32, (1,) * len(shape_of(op.x))), nn.SplatAttr.get(1.0))
        stored = context.constant(one.result, "counts", window.window_counts(op))
        shape = shape_of(op.result)
        target = Home(stored.buffer, (), f32, tuple((Factor(LANES, 0),) if a == 1 else () for a in range(len(shape))), LANES, ())
        home = context.operand_home("counts", stored.shape, f32, target, at_top=True)
        copy_by_dma(context.load, stored, context.spread(home, target), op, 0)
        return home

    def windowed_by_rows(
        self,
        op: nn.PoolOp,
        value: SSAValue,
        result: SSAValue,
        layer: Operation,
        pads: dict[int, tuple[int, int]],
        fill: float,
        counts: Home | None,
    ) -> None:
        """Pooling of a feature map in DRAM, a tile of rows at a time."""
        context = self.context
        if counts is not None:
            raise NeuronError("average pooling without counting padding on a map too large for SBUF", op=op)
        self.pad_in_dram(value, pads, fill, layer)
        self.new_home(result, (1,))
        shape = shape_of(result)
        rows = self.rows_per_tile(value, result, op.strides[0], (op.kernel[0] - 1) * op.dilations[0] + 1)
        for segment in segments(shape[ROWS], rows):
            context.local.clear()
            with context.code.tiles(segment) as start:
                needed = (segment.size - 1) * op.strides[0] + (op.kernel[0] - 1) * op.dilations[0] + 1
                x = self.rows_of(value, start, segment.size, op.strides[0], -op.pads[0], needed, layer)
                tile_shape = [segment.size if a == ROWS else s for a, s in enumerate(shape)]
                out = context.sbuf_home("rows", tile_shape, tensor_type(result).element_type, (1,))
                assert isinstance(op, (nn.MaxPoolOp, nn.AvgPoolOp))
                window.lower_pool(context, op, x, out, None)
                self.store_rows(result, out, start, segment.size, layer)

    def rows_per_tile(self, value: SSAValue, result: SSAValue, stride: int, reach: int) -> int:
        """Output rows such that neither the input tile nor the output tile exceeds its share of SBUF."""
        into = _row_bytes(shape_of(value), tensor_type(value).element_type)
        out = _row_bytes(shape_of(result), tensor_type(result).element_type)
        rows = max(1, min((TILE_BYTES // into - reach) // stride + 1, TILE_BYTES // out))
        total = shape_of(result)[ROWS]
        return -(-total // -(-total // min(rows, total)))

    def pad_in_dram(self, value: SSAValue, pads: dict[int, tuple[int, int]], fill: float, layer: Operation) -> None:
        """Make sure that a value in DRAM has the padding a window needs."""
        context = self.context
        for home in context.places(value):
            if home.in_sbuf or _has_padding(home, {a: p for a, p in pads.items() if any(p)}, fill):
                if not home.in_sbuf:
                    context.homes[value].remove(home)
                    context.homes[value].insert(0, home)
                return
        source = context.places(value)[0]
        copy = context.dram_home("padded", source.logical, source.element, Padding(pads, fill))
        copy_by_dma(context.code, source, copy, layer, 1)
        context.homes[value].insert(0, copy)

    def conv(
        self, op: nn.ConvOp, layer: Operation, after: Sequence[Operation], results: Sequence[tuple[SSAValue, SSAValue]]
    ) -> None:
        """A convolution and what its group does with it."""
        context = self.context
        value = context.origin(op.x)
        count = len(shape_of(op.x)) - 2
        pads = {2 + a: (op.pads[a], op.pads[count + a]) for a in range(count)}
        result = results[0][1]
        streaming = (value in context.in_dram and not _in_sbuf(context, value)) or result in context.in_dram
        if streaming and count >= 2:
            if not _in_sbuf(context, value):
                self.pad_in_dram(value, pads, 0.0, layer)
            else:
                self.want(value, (1,), layer, pads, 0.0)
        x = (
            next((h for h in context.places(value) if h.in_sbuf), context.places(value)[0])
            if streaming
            else self.want_channels(value, layer, pads)
        )
        depthwise = op.group == shape_of(op.x)[1] == shape_of(op.w)[0] and op.group > 1
        for _, outer in results:
            self.new_home(outer, (1,))
        if streaming:
            self.conv_by_rows(op, layer, after, results, value, depthwise)
            return
        homes = [context.places(outer)[0] for _, outer in results]
        extents = [shape_of(op.result)[0], *shape_of(op.result)[2:]]
        self.prepare(after, layer, homes[0], results)
        if depthwise:
            self.depthwise(op, layer, after, results, homes, x)
            return
        contraction = conv_contraction(op, x)
        weight = self.weight(op.w, layer, dense_weight(op, x), contraction)
        self.contract(contraction, x, weight, extents, op, layer, after, results, homes)

    def want_channels(self, value: SSAValue, layer: Operation, pads: dict[int, tuple[int, int]]) -> Home:
        """A feature map with all its channels on the partitions, in any order."""
        pads = {a: p for a, p in pads.items() if any(p)}
        for home in self.context.places(value):
            if not home.in_sbuf or home.lane0 or home.partition_axes() != (1,) and shape_of(value)[1] > 1:
                continue
            if any(f.dim != 0 for f in home.axes[1]):
                continue
            if all(home.is_plain(a) for a in range(len(home.axes)) if a != 1) and _has_padding(home, pads, 0.0):
                return home
        return self.want(value, (1,), layer, pads, 0.0)

    def conv_by_rows(
        self,
        op: nn.ConvOp,
        layer: Operation,
        after: Sequence[Operation],
        results: Sequence[tuple[SSAValue, SSAValue]],
        value: SSAValue,
        depthwise: bool,
    ) -> None:
        """A convolution whose input or output is too large for SBUF, a tile of rows at a time."""
        context = self.context
        shape = shape_of(op.result)
        reach = (shape_of(op.w)[2] - 1) * op.dilations[0] + 1
        rows = self.rows_per_tile(value, results[0][1], op.strides[0], reach)
        weight = None if depthwise else self.weight_for_rows(op, layer, value)
        others = [v for v in self.operands_of(after, layer) if not context.is_constant(v) and len(shape_of(v)) == len(shape)]
        for segment in segments(shape[ROWS], rows):
            context.local.clear()
            with context.code.tiles(segment) as start:
                needed = (segment.size - 1) * op.strides[0] + reach
                x = self.rows_of(value, start, segment.size, op.strides[0], -op.pads[0], needed, layer)
                saved = {v: context.homes[v] for v in others}
                for v in others:
                    context.homes[v] = [self.rows_of(v, start, segment.size, 1, 0, segment.size, layer)]
                tile_shape = [segment.size if a == ROWS else s for a, s in enumerate(shape)]
                homes = [
                    context.sbuf_home("rows", tile_shape, tensor_type(outer).element_type, (1,)) for _, outer in results
                ]
                self.prepare(after, layer, homes[0], results)
                extents = [tile_shape[0], *tile_shape[2:]]
                if depthwise:
                    self.depthwise(op, layer, after, results, homes, x)
                else:
                    assert weight is not None
                    self.contract(conv_contraction(op, x), x, weight, extents, op, layer, after, results, homes)
                for v, known in saved.items():
                    context.homes[v] = known
                for (_, outer), home in zip(results, homes, strict=True):
                    self.store_rows(outer, home, start, segment.size, layer)

    def weight_for_rows(self, op: nn.ConvOp, layer: Operation, value: SSAValue) -> Weight:
        """The weight of a convolution done in tiles of rows. One that does not stay in SBUF for good stays for the layer, so that it is read once, not
        once a tile."""
        context = self.context
        x = next((home for home in context.places(value) if home.in_sbuf), None)
        if x is None:  # a staged tile has its channels in order
            axes = tuple((Factor(s, 0 if a == 1 else a + 2),) if s > 1 else () for a, s in enumerate(shape_of(value)))
            x = replace(context.places(value)[0], axes=axes, lanes=shape_of(value)[1])
        contraction = conv_contraction(op, x)
        weight = self.weight(op.w, layer, dense_weight(op, x), contraction)
        if weight.kept is not None or contraction.weight_bytes > self.context.machine.sbuf.bytes_per_partition // 3:
            return weight
        return keep_for_layer(context, weight, contraction)

    def operands_of(self, after: Sequence[Operation], layer: Operation) -> list[SSAValue]:
        """What the rest of a group reads from outside, each once, in order."""
        made = {r for op in after for r in op.results}
        found: list[SSAValue] = []
        for op in after:
            for operand in op.operands:
                outer = self.context.origin(operand)
                inside = operand in made or (isinstance(operand.owner, (nn.ConvOp, nn.MatmulOp)) and outer is operand)
                if not inside and outer not in found and not isinstance(operand.owner, (nn.ConvOp, nn.MatmulOp)):
                    found.append(outer)
        return found

    def prepare(
        self, after: Sequence[Operation], layer: Operation, target: Home, results: Sequence[tuple[SSAValue, SSAValue]]
    ) -> None:
        """Bring a group's other operands into reach before its loops begin."""
        rank = len(shape_of(results[0][1]))
        for value in self.operands_of(after, layer):
            prepare_operand(self.context, value, target, rank, layer)

    def weight(self, value: SSAValue, layer: Operation, transform: object, contraction: Contraction) -> Weight:
        """Re-lay a weight and decide where it stays."""
        context = self.context
        outer = context.origin(value)
        stored = context.constant(outer, context.label(outer), transform)  # type: ignore[arg-type]
        keep = contraction.weight_bytes <= self.weight_budget
        if keep:
            self.weight_budget -= contraction.weight_bytes
        return place_weight(context, stored, contraction, keep, context.label(outer))

    def contract(
        self,
        contraction: Contraction,
        x: Home,
        weight: Weight,
        extents: Sequence[int],
        op: nn.ConvOp | nn.MatmulOp,
        layer: Operation,
        after: Sequence[Operation],
        results: Sequence[tuple[SSAValue, SSAValue]],
        homes: Sequence[Home],
    ) -> None:
        """Emit a contraction with its group's element-wise rest on every finished tile."""
        bias = op.bias if isinstance(op, nn.ConvOp) else None

        def epilogue(
            acc: Access, lane: tuple[Linear | int, int], tile: Linear, ranges: dict[int, tuple[Linear, int]]
        ) -> None:
            place = Tile(homes[0], ranges, lane, tile)
            self.finish(Source(access=acc), place, op, bias, layer, after, results, homes)

        emit_contraction(self.context, contraction, x, weight, extents, epilogue)

    def finish(
        self,
        root: Source,
        tile: Tile,
        op: Operation,
        bias: SSAValue | None,
        layer: Operation,
        after: Sequence[Operation],
        results: Sequence[tuple[SSAValue, SSAValue]],
        homes: Sequence[Home],
    ) -> None:
        """The rest of a group over one finished tile of its root."""
        context = self.context
        rank = len(shape_of(results[0][1]))

        def leaf(value: SSAValue) -> Source:
            if value.owner is op:
                if bias is None:
                    return root
                outer = context.origin(bias)
                channel = context.constant_like(outer, tile.home, rank, (1, -1, *(1,) * (rank - 2)))
                column = tile_access(channel, tile, layer)
                assert column is not None
                return Source(access=root.access, bias=column.column or column.access)
            return operand_source(context, context.origin(value), tile, rank, layer)

        targets: list[tuple[SSAValue, Access]] = []
        for (inner, _), home in zip(results, homes, strict=True):
            source = tile_access(home, tile, layer)
            assert source is not None
            target = source.access if source.access is not None else source.column
            assert target is not None
            targets.append((inner, target))
        Emitter(context, tile, leaf).run(after, targets)

    def depthwise(
        self,
        op: nn.ConvOp,
        layer: Operation,
        after: Sequence[Operation],
        results: Sequence[tuple[SSAValue, SSAValue]],
        homes: Sequence[Home],
        x: Home,
    ) -> None:
        """A depthwise convolution keeps the order its input's channels have on the partitions."""
        axes = tuple(x.axes[1] if a == 1 else axis for a, axis in enumerate(homes[0].axes))
        moved = [replace(home, axes=axes) for home in homes]
        for (_, outer), old, new in zip(results, homes, moved, strict=True):
            known = self.context.homes[outer]
            if old in known:
                known[known.index(old)] = new
        extents = [moved[0].logical[0], *moved[0].logical[2:]]
        free = {0: (Linear(), extents[0])} | {2 + a: (Linear(), size) for a, size in enumerate(extents[1:])}

        def finish(acc: Access, lane: tuple[Offset, int], tile: Linear) -> None:
            place = Tile(moved[0], free, lane, tile)
            self.finish(Source(access=acc), place, op, op.bias, layer, after, results, moved)

        if moved[0].axes[1] != homes[0].axes[1]:
            self.prepare(after, layer, moved[0], results)
        window.lower_depthwise(self.context, op, x, moved[0], finish)

    def matmul(
        self, op: nn.MatmulOp, layer: Operation, after: Sequence[Operation], results: Sequence[tuple[SSAValue, SSAValue]]
    ) -> None:
        """A product with a weight, or of two activations."""
        context = self.context
        lhs, rhs = context.origin(op.lhs), context.origin(op.rhs)
        if not context.is_constant(rhs) or len(shape_of(rhs)) != 2 or len(shape_of(lhs)) < 2:
            attention.lower_product(self, op, layer, after, results)
            return
        rank = len(shape_of(results[0][1]))
        result = results[0][1]
        rows_out = context.partition_of[result] != (rank - 1,)
        if rows_out and rank >= 2:
            attention.lower_rows_product(self, op, layer, after, results)
            return
        last = len(shape_of(lhs)) - 1
        x = next(
            (h for h in context.places(lhs) if h.in_sbuf and h.lane0 == 0 and matmul_contraction(op, h) is not None),
            None,
        )
        if x is None:
            x = self.want(lhs, (last,), layer)
        contraction = matmul_contraction(op, x)
        if contraction is None:
            raise NeuronError("the product's input cannot be laid out with its contraction axis on the partitions", op=op)
        for _, outer in results:
            self.new_home(outer, (rank - 1,))
        homes = [context.places(outer)[0] for _, outer in results]
        self.prepare(after, layer, homes[0], results)
        weight = self.weight(op.rhs, layer, matmul_weight(x, last), contraction)
        extents = [shape_of(op.result)[axis] for axis, *_ in contraction.pixel_axes]
        self.contract(contraction, x, weight, extents, op, layer, after, results, homes)


# Small questions about groups


def group_root(op: Operation) -> Operation | None:
    """The contraction a group is built around, or None."""
    assert isinstance(op, nn.FusedOp)
    return next((o for o in op.body.block.ops if isinstance(o, (nn.ConvOp, nn.MatmulOp))), None)


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
    args = list(layer.body.block.args)
    return layer.inputs[args.index(value)] if value in args else None


def _before(root: Operation, inner: Sequence[Operation]) -> list[Operation]:
    """Ops of a group that its root depends on."""
    needed: set[Operation] = set()
    stack = [v.owner for v in root.operands]
    while stack:
        owner = stack.pop()
        if isinstance(owner, Operation) and owner in inner and owner not in needed:
            needed.add(owner)
            stack += [v.owner for v in owner.operands]
    return [op for op in inner if op in needed]


def _in_sbuf(context: Context, value: SSAValue) -> bool:
    return any(home.in_sbuf for home in context.homes.get(value, []))


def _fits(home: Home, partition: Sequence[int], pads: dict[int, tuple[int, int]], fill: float) -> bool:
    """Whether a place has exactly these axes on the partitions, the others as plain dimensions in order, and the padding."""
    if home.lane0:
        return False
    merged = home.merged()
    shape = home.logical
    wanted: list[tuple[int, Factor]] = []
    stride = 1
    for axis in reversed(partition):
        if shape[axis] > 1:
            wanted.insert(0, (axis, Factor(shape[axis], 0, stride)))
        stride *= shape[axis]
    if list(merged.partition_factors()) != wanted:
        return False
    dims: list[int] = []
    for axis in range(len(shape)):
        if axis in partition:
            continue
        if not merged.is_plain(axis):
            return False
        dim = merged.free_dim(axis)
        if dim is not None:
            dims.append(dim)
    return dims == sorted(dims) and _has_padding(home, pads, fill)


def _has_padding(home: Home, pads: dict[int, tuple[int, int]], fill: float) -> bool:
    if not pads:
        return True
    if home.pad_value != fill or not home.pad:
        return False
    for axis, (low, high) in pads.items():
        dim = home.free_dim(axis)
        if dim is None or home.pad[dim][0] < low or home.pad[dim][1] < high:
            return False
    return True


def _row_bytes(shape: Sequence[int], element: object) -> int:
    """Bytes per partition of one row of a feature map with its channels on the partitions."""
    if len(shape) < 4:
        return 1
    return -(-shape[1] // LANES) * shape[0] * math.prod(shape[3:]) * element_bytes(element)  # type: ignore[arg-type]
