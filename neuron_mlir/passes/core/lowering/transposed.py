"""Transposed convolutions: a convolution for each phase (see `phases`), whose results go to every stride-th place.

No zeros are put between input elements, and every product counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.passes.core.lowering.builder import Segment, segments
from neuron_mlir.passes.core.lowering.context import Context, Transform, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.contraction import (
    Contraction,
    Tap,
    Weight,
    check_operands,
    emit_contraction,
    keep_for_layer,
    physical_order,
    tile_weight,
)
from neuron_mlir.passes.core.lowering.elementwise import Source, Tile
from neuron_mlir.passes.core.lowering.groups import choose_weight, finish, operands_of, prepare
from neuron_mlir.passes.core.lowering.layout import Factor, Home
from neuron_mlir.passes.core.lowering.roots import channels_of
from neuron_mlir.passes.core.lowering.rows import RowOperands, row_bytes, row_source, row_tile, store_rows
from neuron_mlir.passes.estimate import TILE_BYTES
from neuron_mlir.passes.phases import Phase, phases_of, transposed_pads

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering

ROWS = 2


def conv_transpose(
    stage: StageLowering,
    op: nn.ConvTransposeOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
) -> None:
    """A transposed convolution and what its group does with it."""
    context = stage.context
    value = context.origin(op.x)
    check_operands(op)
    pads = transposed_pads(op)
    if results[0][1] in context.in_dram or (value in context.in_dram and not context.is_in_sbuf(value)):
        _by_rows(stage, op, layer, after, results, row_source(stage, value, pads, 0.0, layer))
        return
    x = channels_of(stage, value, layer, pads)
    homes = [stage.new_home(outer, (1,)) for _, outer in results]
    prepare(stage, after, layer, homes[0])
    phases = [phases_of(op, axis) for axis in range(len(op.strides))]
    for phase in itertools.product(*phases):
        contraction = _contraction(op, phase, x)
        weight = choose_weight(stage, op.w, _phase_weight(op, phase, x), contraction)
        _emit(stage, op, layer, after, results, homes, phase, x, contraction, weight)


def _contraction(op: nn.ConvTransposeOp, phase: Sequence[Phase], x: Home) -> Contraction:
    """One phase over an input whose channels are on the partitions."""
    channels, outputs = shape_of(op.w)[:2]
    taps: list[Tap] = []
    pixels: list[tuple[int, int | None, int, int]] = [(0, x.free_dim(0), 1, 0)]
    for axis, part in enumerate(phase):
        dim = x.free_dim(2 + axis)
        if part.taps > 1:
            assert dim is not None  # several taps along an axis of size 1 have padding there
            taps.append(Tap(part.taps, dim, 1))
        pixels.append((2 + axis, dim, 1, part.start))
    return Contraction(outputs, channels, tuple(taps), tuple(pixels), 1)


def _phase_weight(op: nn.ConvTransposeOp, phase: Sequence[Phase], x: Home) -> Transform:
    """The taps of a phase, in reverse, as `Contraction.weight_shape`."""

    def transform(w: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        channels, outputs, *kernel = shape_of(w)
        missing = [max(0, stride - size) for stride, size in zip(op.strides, kernel, strict=True)]
        if any(missing):
            w = add(nn.PadOp(w, (0,) * len(shape_of(w)), (0, 0, *missing), value=0.0))
        steps = [stride if part.taps > 1 else 1 for stride, part in zip(op.strides, phase, strict=True)]
        last = [part.tap + step * (part.taps - 1) for part, step in zip(phase, steps, strict=True)]
        sizes = [part.taps for part in phase]
        w = add(nn.SliceOp(w, (0, 0, *last), (channels, outputs, *sizes), (1, 1, *(-step for step in steps))))
        w = add(nn.TransposeOp(w, (1, 0, *range(2, 2 + len(sizes)))))
        flat = add(nn.ReshapeOp(w, (outputs, channels, math.prod(sizes))))
        return tile_weight(physical_order(flat, 1, x, 1, add), add)

    return transform


def _emit(
    stage: StageLowering,
    op: nn.ConvTransposeOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
    homes: Sequence[Home],
    phase: Sequence[Phase],
    x: Home,
    contraction: Contraction,
    weight: Weight,
) -> None:
    """One phase with the group's element-wise rest on every finished tile."""
    parts = [_part(home, phase, op.strides) for home in homes]

    def epilogue(
        acc: Access, lane: tuple[Linear | int, int], tile: Linear, ranges: dict[int, tuple[Linear, int]]
    ) -> None:
        place = Tile(parts[0], ranges, lane, tile)
        finish(stage, Source(access=acc), place, op, op.bias, layer, after, results, parts)

    extents = [shape_of(op.result)[0], *(part.count for part in phase)]
    with _operands_of_phase(stage.context, operands_of(stage, after), homes[0], phase, op.strides):
        emit_contraction(stage.context, contraction, x, weight, extents, epilogue)


def _part(home: Home, phase: Sequence[Phase], strides: Sequence[int]) -> Home:
    """The places of a map that belong to a phase. Axes of size 1, which do not vary, stay as they are."""
    offset = len(home.axes) - len(phase)
    for axis, (part, stride) in enumerate(zip(phase, strides, strict=True)):
        if home.logical[offset + axis] == 1:
            continue
        found = home.part(offset + axis, part.first, part.count, stride)
        assert found is not None  # a spatial axis is a dimension of its own
        home = found
    return replace(home, pad=(), pad_value=None)


@contextmanager
def _operands_of_phase(
    context: Context, values: Sequence[SSAValue], target: Home, phase: Sequence[Phase], strides: Sequence[int]
) -> Generator[None, None, None]:
    """While open, maps that a group reads besides are where the phase meets them."""
    saved: dict[SSAValue, list[Home] | None] = {}
    for value in values:
        rank = len(phase)
        if context.number(value) is not None or all(size == 1 for size in shape_of(value)[-rank:]):
            continue
        if context.is_whole_constant(value):
            places = [context.constant_like(value, target, len(target.axes))]
        else:
            places = [home for home in context.places(value) if home.in_sbuf and _is_split(home, rank)]
        saved[value] = context.homes.get(value)
        context.homes[value] = [_part(home, phase, strides) for home in places]
    yield
    for value, places in saved.items():
        if places is None:
            del context.homes[value]
        else:
            context.homes[value] = places


def _is_split(home: Home, rank: int) -> bool:
    """Whether the last `rank` axes are dimensions of their own."""
    return all(not home.axes[-1 - a] or home.free_dim(len(home.axes) - 1 - a) is not None for a in range(rank))


# Maps too large for SBUF


def _by_rows(
    stage: StageLowering,
    op: nn.ConvTransposeOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
    source: Home,
) -> None:
    """A tile of rows at a time: `t` rows of each phase together are `t * stride` rows of the result."""
    context = stage.context
    shape, stride = shape_of(op.result), op.strides[0]
    phases = [phases_of(op, axis) for axis in range(len(op.strides))]
    start = min(phase.start for phase in phases[0])
    reach = max(phase.end - phase.count for phase in phases[0]) - start
    weights = _weights_for_rows(stage, op, source, list(itertools.product(*phases)))
    operands = RowOperands(stage, operands_of(stage, after), shape, layer)
    for _, outer in results:
        stage.new_home(outer, (1,))
    into = row_bytes(shape_of(op.x), tensor_type(op.x).element_type)
    out = row_bytes(shape, tensor_type(results[0][1]).element_type)
    rows = max(1, min(TILE_BYTES // into - reach, TILE_BYTES // (out * stride)))
    for segment in _row_segments(shape[ROWS], stride, rows):
        context.local.clear()
        made = min(segment.size * stride, shape[ROWS] - segment.start * stride)
        with context.code.tiles(segment) as at:
            x = row_tile(context, source, at + start, segment.size + reach, layer)
            x = _shifted(x, -start)
            homes = [_row_home(context, outer, made) for _, outer in results]
            with operands.tile(len(shape), at * stride, made):
                prepare(stage, after, layer, homes[0])
                for phase, (contraction, weight) in weights.items():
                    count = len(range(phase[0].first, made, stride))
                    if count:
                        part = (replace(phase[0], count=count), *phase[1:])
                        contraction = _contraction(op, part, x)
                        _emit(stage, op, layer, after, results, homes, part, x, contraction, weight)
            for (_, outer), home in zip(results, homes, strict=True):
                store_rows(context, outer, home, at * stride, made, layer)


def _row_segments(size: int, stride: int, rows: int) -> list[Segment]:
    """Rows of a phase in tiles of about `rows`; a last row that not all phases have is in the last tile, apart."""
    total = -(-size // stride)
    even = -(-total // -(-total // min(rows, total)))
    parts = segments(total, even)
    last = parts[-1]
    if size % stride and last.count > 1:
        parts[-1:] = [
            Segment(last.start, last.count - 1, last.size),
            Segment(last.start + (last.count - 1) * last.size, 1, last.size),
        ]
    return parts


def _shifted(tile: Home, by: int) -> Home:
    """A tile of rows addressed as the whole map is: row 0 of the interior is row `by` of the tile."""
    dim = tile.free_dim(ROWS)
    if dim is None:
        return tile
    return replace(tile, low=tuple(offset + by if d == dim else offset for d, offset in enumerate(tile.low)))


def _row_home(context: Context, value: SSAValue, rows: int) -> Home:
    shape = [rows if a == ROWS else size for a, size in enumerate(shape_of(value))]
    return context.sbuf_home("rows", shape, tensor_type(value).element_type, (1,))


def _weights_for_rows(
    stage: StageLowering, op: nn.ConvTransposeOp, source: Home, phases: Sequence[tuple[Phase, ...]]
) -> dict[tuple[Phase, ...], tuple[Contraction, Weight]]:
    """The weight of each phase; one that does not stay in SBUF for good stays for the layer, where that fits."""
    context = stage.context
    x = source
    if not source.in_sbuf:  # a tile has its channels in order, and every spatial axis as a dimension
        axes = tuple((Factor(size, 0 if a == 1 else a + 2),) for a, size in enumerate(source.logical))
        x = replace(source, axes=axes, lanes=source.logical[1])
    found: dict[tuple[Phase, ...], tuple[Contraction, Weight]] = {}
    for phase in phases:
        contraction = _contraction(op, phase, x)
        weight = choose_weight(stage, op.w, _phase_weight(op, phase, x), contraction)
        room = context.machine.sbuf.bytes_per_partition // 3 // len(phases)
        if weight.kept is None and contraction.weight_bytes <= room:
            weight = keep_for_layer(context, weight, contraction)
        found[phase] = contraction, weight
    return found
