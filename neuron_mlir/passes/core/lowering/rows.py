"""Feature maps too large for SBUF: tiles of rows come in from DRAM, are computed on, and go out."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from xdsl.dialects.builtin import IntegerAttr, f32
from xdsl.ir import Attribute, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.dialects.core.compute import MemsetOp, TensorScalarOp, TensorTensorOp
from neuron_mlir.dialects.core.memory import element_bytes
from neuron_mlir.passes.core.lowering import normalise, window
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import LOAD_QUEUE, STORE_QUEUE, Context, Padding, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.contraction import Weight, conv_contraction, dense_weight, keep_for_layer
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.elementwise import lower_elementwise
from neuron_mlir.passes.core.lowering.groups import choose_weight, contract, depthwise_conv, operands_of, prepare
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home, has_padding
from neuron_mlir.passes.core.lowering.plan import TILED
from neuron_mlir.passes.core.lowering.relayout import move
from neuron_mlir.passes.estimate import TILE_BYTES
from neuron_mlir.passes.unfolding import ROWS

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering

Pads = dict[int, tuple[int, int]]


def row_bytes(shape: Sequence[int], element: Attribute) -> int:
    """Bytes per partition of one row of a feature map with its channels on the partitions."""
    if len(shape) < 4:
        return 1
    return -(-shape[1] // LANES) * shape[0] * math.prod(shape[3:]) * element_bytes(element)


def tile_bytes(layer: Operation) -> int:
    """Bytes per partition that a tile of rows may take: what `nn-rematerialize` has decided for the layer or its group,
    or the common size.
    """
    op: Operation | None = layer
    while op is not None and isinstance(op.parent_op(), nn.FusedOp):
        op = op.parent_op()
    chosen = op.attributes.get(TILED) if op is not None else None
    return cast("IntegerAttr[Any]", chosen).value.data if chosen is not None else TILE_BYTES


def rows_per_tile(value: SSAValue, result: SSAValue, stride: int, reach: int, most: int) -> int:
    """Output rows such that neither the input tile nor the output tile exceeds `most` bytes per partition."""
    into = row_bytes(shape_of(value), tensor_type(value).element_type)
    out = row_bytes(shape_of(result), tensor_type(result).element_type)
    rows = max(1, min((most // into - reach) // stride + 1, most // out))
    total = shape_of(result)[ROWS]
    return -(-total // -(-total // min(rows, total)))


def goes_in_tiles(
    context: Context, layer: Operation, value: SSAValue, results: Sequence[tuple[SSAValue, SSAValue]]
) -> bool:
    """Whether a contraction goes some rows at a time: its map or result is in DRAM, or it has been decided."""
    if results[0][1] in context.in_dram or (value in context.in_dram and not context.is_in_sbuf(value)):
        return True
    return TILED in layer.attributes


# Where rows come from


def row_source(stage: StageLowering, value: SSAValue, pads: Pads, fill: float, layer: Operation) -> Home:
    """A place of a feature map of which tiles of rows can be taken, with the padding a window needs: in SBUF with
    channels on the partitions, or in DRAM with axes in order; a copy is made where there is none.
    """
    context = stage.context
    pads = {axis: pad for axis, pad in pads.items() if any(pad)}
    if context.is_in_sbuf(value):
        return stage.want(value, (1,), layer, pads, fill)
    places = context.places(value)
    for home in places:
        if _in_order(home) and has_padding(home, pads, fill):
            return home
    source = places[0]
    padding = Padding(pads, fill) if pads else None
    copy = context.dram_home("padded" if pads else "rows", source.logical, source.element, padding)
    copy_by_dma(context.code, source, copy, layer, STORE_QUEUE)
    context.define(value, copy)
    return copy


def _in_order(home: Home) -> bool:
    """Whether a buffer in DRAM has one dimension for each axis, in order and without steps."""
    base = home.first_free
    if len(home.shape) != base + len(home.axes):
        return False
    return all(not axis or axis == (Factor(axis[0].size, base + a),) for a, axis in enumerate(home.axes))


def row_tile(context: Context, source: Home, start: Linear, count: int, layer: Operation) -> Home:
    """`count` rows of `source` from row `start` of its interior on (negative in padding): a part of it when it is in
    SBUF, else a copy there. Other axes keep their padding.
    """
    if source.in_sbuf:
        dim = source.free_dim(ROWS)
        if dim is None:
            return source
        low = tuple(offset + start if d == dim else offset for d, offset in enumerate(source.low))
        cut = tuple((Factor(count, dim),) if a == ROWS else axis for a, axis in enumerate(source.axes))
        return replace(source, low=low, axes=cut, pad=(), pad_value=None)
    base = source.first_free
    shape = [count if a == ROWS else size for a, size in enumerate(source.logical)]
    before = [0] * len(shape)
    full = list(shape)
    for a in range(len(shape)):
        if a != ROWS and source.pad:
            before[a] = source.pad[base + a][0]
            full[a] += sum(source.pad[base + a])
    tile = context.sbuf_home("rows", full, source.element, (1,))
    low = list(source.low)
    for a in range(len(shape)):
        low[base + a] = low[base + a] + (start if a == ROWS else -before[a])
    around = tuple((Factor(size, base + a),) if size > 1 else () for a, size in enumerate(full))
    copy_by_dma(context.code, replace(source, low=tuple(low), axes=around), tile, layer, LOAD_QUEUE)
    # Seen from the interior, leading padding is an offset.
    inside = list(tile.low)
    axes: list[tuple[Factor, ...]] = []
    for a, axis in enumerate(tile.axes):
        dim = tile.free_dim(a)
        if dim is None:
            axes.append(axis)
            continue
        inside[dim] = Linear.wrap(before[a])
        axes.append((Factor(shape[a], dim),))
    return replace(tile, low=tuple(inside), axes=tuple(axes))


def window_tile(
    context: Context, source: Home, start: Linear, rows: int, op: nn.ConvOp | nn.PoolOp, size: int, layer: Operation
) -> Home:
    """The input rows behind `rows` output rows from `start`, for windows `size` rows high. Windows address it as they
    would the whole map: the first row of the tile is at `-op.pads[0]`.
    """
    first, step = -op.pads[0], op.strides[0]
    needed = (rows - 1) * step + (size - 1) * op.dilations[0] + 1
    tile = row_tile(context, source, start * step + first, needed, layer)
    dim = tile.free_dim(ROWS)
    if dim is None:
        return tile
    return replace(tile, low=tuple(offset + -first if d == dim else offset for d, offset in enumerate(tile.low)))


class RowOperands:
    """Operands of element-wise code over tiles of rows: those that have rows are cut with it.

    Made before the loops, where copies that all tiles share are written.
    """

    def __init__(self, stage: StageLowering, values: Sequence[SSAValue], shape: Sequence[int], layer: Operation):
        self.context = stage.context
        self.layer = layer
        self.sources: dict[SSAValue, Home] = {}
        self.kept: list[SSAValue] = []
        for value in values:
            own = shape_of(value)
            axis = ROWS - (len(shape) - len(own))
            has_rows = axis >= 0 and own[axis] == shape[ROWS] > 1
            constant = self.context.is_constant(value)
            if value in self.sources or value in self.kept or (constant and not has_rows):
                continue
            if not has_rows:
                self.kept.append(value)
            elif constant:
                if self.context.number(value) is None:
                    self.sources[value] = self.context.constant(value, self.context.label(value))
            elif len(own) == len(shape):
                self.sources[value] = row_source(stage, value, {}, 0.0, layer)
            else:
                copy = self.context.dram_home("rows", own, tensor_type(value).element_type)
                move(self.context, self.context.places(value)[0], copy, layer)
                self.sources[value] = copy

    @contextmanager
    def tile(self, rank: int, start: Linear, rows: int) -> Generator[None, None, None]:
        """While open, the operands are in place for rows `start` on; afterwards places made inside are forgotten."""
        homes = self.context.homes
        saved = {value: list(homes.get(value, [])) for value in (*self.sources, *self.kept)}
        for value, source in self.sources.items():
            axis = ROWS - (rank - len(source.axes))
            if axis == ROWS and not self.context.is_constant(value):
                homes[value] = [row_tile(self.context, source, start, rows, self.layer)]
                continue
            part = source.part(axis, start, rows)
            assert part is not None
            homes[value] = [replace(part, pad=(), pad_value=None)]
        yield
        for value, places in saved.items():
            if places:
                homes[value] = places
            else:
                del homes[value]


def store_rows(context: Context, value: SSAValue, tile: Home, start: Linear, rows: int, layer: Operation) -> None:
    """Put a computed tile of rows where the value lives."""
    part = context.places(value)[0].part(ROWS, start, rows)
    assert part is not None
    if part.in_sbuf:
        move(context, tile, part, layer)
    else:
        copy_by_dma(context.code, tile, part, layer, STORE_QUEUE)


def _tile_home(context: Context, value: SSAValue, rows: int) -> Home:
    """A buffer for that many rows of a result."""
    shape = [rows if a == ROWS else size for a, size in enumerate(shape_of(value))]
    return context.sbuf_home("rows", shape, tensor_type(value).element_type, (1,))


# Layers


def elementwise_by_rows(
    stage: StageLowering,
    ops: Sequence[Operation],
    inputs: Sequence[SSAValue],
    results: Sequence[tuple[SSAValue, SSAValue]],
    layer: Operation,
) -> None:
    """A group of element-wise layers: tiles of rows in, compute, tiles of rows out."""
    context = stage.context
    value = results[0][1]
    shape = shape_of(value)
    operands = RowOperands(stage, inputs, shape, layer)
    for _, outer in results:
        stage.new_home(outer, (1,))
    widest = max(row_bytes(shape_of(v), tensor_type(v).element_type) for v in (*inputs, value) if shape_of(v))
    rows = max(1, min(shape[ROWS], tile_bytes(layer) // max(1, widest)))
    for segment in segments(shape[ROWS], rows):
        context.local.clear()
        with context.code.tiles(segment) as start:
            with operands.tile(len(shape), start, segment.size):
                targets = [(inner, _tile_home(context, outer, segment.size)) for inner, outer in results]
                lower_elementwise(context, ops, inputs, targets, layer)
            for (_, outer), (_, home) in zip(results, targets, strict=True):
                store_rows(context, outer, home, start, segment.size, layer)


def pool_by_rows(
    stage: StageLowering, op: nn.MaxPoolOp | nn.AvgPoolOp, pads: Pads, fill: float, scale: Home | None
) -> None:
    """Pooling, a tile of rows at a time; `scale` is a constant (1, 1, spatial..) in DRAM or None."""
    context = stage.context
    source = row_source(stage, op.x, pads, fill, op)
    stage.new_home(op.result, (1,))
    shape = shape_of(op.result)
    rows = rows_per_tile(op.x, op.result, op.strides[0], (op.kernel[0] - 1) * op.dilations[0] + 1, tile_bytes(op))
    for segment in segments(shape[ROWS], rows):
        context.local.clear()
        with context.code.tiles(segment) as start:
            x = window_tile(context, source, start, segment.size, op, op.kernel[0], op)
            out = _tile_home(context, op.result, segment.size)
            here = None
            if scale is not None:
                part = scale.part(ROWS, start, segment.size)
                assert part is not None
                here = window.spread_scale(context, part, False, op)
            window.lower_pool(context, op, x, out, here)
            store_rows(context, op.result, out, start, segment.size, op)


def lrn_by_rows(stage: StageLowering, op: nn.LrnOp) -> None:
    """Local response normalisation in tiles of rows: the sum over neighbouring channels takes several copies of
    each.
    """
    context = stage.context
    source = row_source(stage, op.x, {}, 0.0, op)
    stage.new_home(op.result, (1,))
    shape = shape_of(op.result)
    rows = max(1, min(shape[ROWS], tile_bytes(op) // 4 // row_bytes(shape, f32)))
    for segment in segments(shape[ROWS], rows):
        with context.code.tiles(segment) as start:
            x = row_tile(context, source, start, segment.size, op)
            out = _tile_home(context, op.result, segment.size)
            window.lower_lrn(context, op, x, out)
            store_rows(context, op.result, out, start, segment.size, op)


def conv_by_rows(
    stage: StageLowering,
    op: nn.ConvOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
    source: Home,
    depthwise: bool,
) -> None:
    """A convolution whose input or output is too large for SBUF, with its group, a tile of rows at a time."""
    context = stage.context
    shape = shape_of(op.result)
    size = shape_of(op.w)[2]
    rows = rows_per_tile(op.x, results[0][1], op.strides[0], (size - 1) * op.dilations[0] + 1, tile_bytes(layer))
    weight = None if depthwise else weight_for_rows(stage, op, layer, source)
    operands = RowOperands(stage, operands_of(stage, after), shape, layer)
    for _, outer in results:
        stage.new_home(outer, (1,))
    for segment in segments(shape[ROWS], rows):
        context.local.clear()
        with context.code.tiles(segment) as start:
            x = window_tile(context, source, start, segment.size, op, size, layer)
            homes = [_tile_home(context, outer, segment.size) for _, outer in results]
            with operands.tile(len(shape), start, segment.size):
                prepare(stage, after, layer, homes[0])
                if weight is None:
                    depthwise_conv(stage, op, layer, after, results, homes, x)
                else:
                    extents = [shape[0], segment.size, *shape[3:]]
                    contract(stage, conv_contraction(op, x), x, weight, extents, op, layer, after, results, homes)
            for (_, outer), home in zip(results, homes, strict=True):
                store_rows(context, outer, home, start, segment.size, layer)


def weight_for_rows(stage: StageLowering, op: nn.ConvOp, layer: Operation, source: Home) -> Weight:
    """The weight of a convolution done in tiles of rows. One that does not stay in SBUF for good stays for the layer,
    so that it is read once, not once a tile.
    """
    context = stage.context
    x = source
    if not source.in_sbuf:  # a tile has its channels in order
        shape = source.logical
        axes = tuple((Factor(size, 0 if a == 1 else a + 2),) if size > 1 else () for a, size in enumerate(shape))
        x = replace(source, axes=axes, lanes=shape[1])
    contraction = conv_contraction(op, x)
    weight = choose_weight(stage, op.w, dense_weight(op, x), contraction)
    if weight.kept is not None or contraction.weight_bytes > context.machine.sbuf.bytes_per_partition // 3:
        return weight
    return keep_for_layer(context, weight, contraction)


def reduce_by_rows(stage: StageLowering, op: nn.ReduceOp) -> None:
    """A reduction over rows and columns of a map in DRAM: tile by tile, each taken together with those before."""
    context = stage.context
    source = row_source(stage, op.x, {}, 0.0, op)
    shape = (*shape_of(op.x)[:2], 1, 1)
    total, part = (context.sbuf_home(label, shape, f32, (1,)) for label in ("total", "part"))
    function = normalise.REDUCERS[type(op)]
    each = [(0, segment.size, segment) for segment in segments(total.lanes, LANES)]
    code = context.code

    def for_tiles(body: Callable[[tuple[int, int], Linear], object]) -> None:
        for first, lanes, segment in each:
            with code.loop(segment.count) as index:
                body((first, lanes), index + segment.start // LANES)

    for_tiles(lambda lane, tile: code.add(MemsetOp(window.whole_tile(total, lane, tile), _FIRST[function])))
    rows = max(1, min(shape_of(op.x)[ROWS], tile_bytes(op) // row_bytes(shape_of(op.x), source.element)))
    kind = nn.ReduceSumOp if isinstance(op, nn.ReduceMeanOp) else type(op)
    for segment in segments(shape_of(op.x)[ROWS], rows):
        with code.tiles(segment) as start:
            x = row_tile(context, source, start, segment.size, op)
            normalise.lower_reduce(context, kind(op.x, op.axes, keepdims=True), x, part)
            for_tiles(
                lambda lane, tile: code.add(
                    TensorTensorOp(
                        function,
                        window.whole_tile(total, lane, tile),
                        window.whole_tile(total, lane, tile),
                        window.whole_tile(part, lane, tile),
                    )
                )
            )
    out = stage.new_home(op.result, (1,))
    count = math.prod(shape_of(op.x)[ROWS:])
    scale = normalise.reciprocal(count) if isinstance(op, nn.ReduceMeanOp) else 1.0
    for_tiles(
        lambda lane, tile: code.add(
            TensorScalarOp(window.whole_tile(out, lane, tile), window.whole_tile(total, lane, tile), "mul", scale)
        )
    )


_FIRST = {"add": 0.0, "mul": 1.0, "max": -math.inf, "min": math.inf}
"""What a reduction starts from."""
