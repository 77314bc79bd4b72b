"""Transposed convolutions: a convolution for each phase (see `phases`), whose results go to every stride-th place.

No zeros are put between input elements, and every product counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.passes.core.lowering.builder import Segment, segments
from neuron_mlir.passes.core.lowering.context import Context, Transform, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.contraction import (
    HALF,
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
from neuron_mlir.passes.core.lowering.layout import Factor, Home, Offset
from neuron_mlir.passes.core.lowering.roots import channels_of
from neuron_mlir.passes.core.lowering.rows import (
    RowOperands,
    goes_in_tiles,
    row_bytes,
    row_source,
    row_tile,
    store_rows,
    tile_bytes,
)
from neuron_mlir.passes.phases import Phase, phases_of, transposed_pads
from neuron_mlir.passes.unfolding import ROWS

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering


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
    if goes_in_tiles(context, layer, value, results):
        _by_rows(stage, op, layer, after, results, row_source(stage, value, pads, 0.0, layer))
        return
    x = channels_of(stage, value, layer, pads)
    homes = [stage.new_home(outer, (1,)) for _, outer in results]
    prepare(stage, after, layer, homes[0])
    for part in _parts_of(stage, op, x):
        _emit(stage, op, layer, after, results, homes, part, x)


@dataclass(frozen=True)
class _Part:
    """Phases that one loop nest computes: one, or all where they differ in nothing but where they go.

    Attributes:
        phase: along each axis; of all phases the first.
        contraction: what is summed.
        weight: of the phase; of all of them, one after the other.
        every: whether it stands for all phases.
    """

    phase: tuple[Phase, ...]
    contraction: Contraction
    weight: Weight
    every: bool


@dataclass
class _OnePhase(Weight):
    """The blocks of one phase in the weight of all."""

    before: Linear = field(default_factory=Linear)

    def block(
        self, context: Context, contraction: Contraction, index: Linear, kept: bool
    ) -> tuple[SSAValue, Linear | None]:
        return super().block(context, contraction, index + self.before, kept)


def _parts_of(stage: StageLowering, op: nn.ConvTransposeOp, x: Home, share: int = 1) -> list[_Part]:
    """The loop nests to write, with their weights. Above `share` 1, a weight that does not stay in SBUF for good stays
    there for the layer if it takes no more than that part of it.
    """
    context = stage.context
    phases = [phases_of(op, axis) for axis in range(len(op.strides))]
    same = all(
        len(axis) == stride and all(replace(phase, first=0, tap=0) == replace(axis[0], tap=0) for phase in axis)
        for axis, stride in zip(phases, op.strides, strict=True)
    )
    wanted = [tuple(axis[0] for axis in phases)] if same else list(itertools.product(*phases))
    found: list[_Part] = []
    for phase in wanted:
        contraction = whole = _contraction(op, phase, x)
        transform = _phase_weight(op, phase, x)
        if same:
            blocks = -(-contraction.outputs // HALF)
            whole = replace(contraction, outputs=math.prod(op.strides) * blocks * HALF)
            transform = _every_weight(op, phase, x)
        taps = None if same else tuple((part.tap, part.taps) for part in phase)
        weight = choose_weight(stage, op.w, transform, whole, part=taps)
        room = context.machine.sbuf.bytes_per_partition // share // len(wanted)
        if share > 1 and weight.kept is None and whole.weight_bytes <= room:
            weight = keep_for_layer(context, weight, whole)
        found.append(_Part(phase, contraction, weight, same))
    return found


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
        w = _at_least_a_stride(op, w, 0, add)
        channels, outputs = shape_of(w)[:2]
        steps = [stride if part.taps > 1 else 1 for stride, part in zip(op.strides, phase, strict=True)]
        last = [part.tap + step * (part.taps - 1) for part, step in zip(phase, steps, strict=True)]
        sizes = [part.taps for part in phase]
        w = add(nn.SliceOp(w, (0, 0, *last), (channels, outputs, *sizes), (1, 1, *(-step for step in steps))))
        w = add(nn.TransposeOp(w, (1, 0, *range(2, 2 + len(sizes)))))
        flat = add(nn.ReshapeOp(w, (outputs, channels, math.prod(sizes))))
        return tile_weight(physical_order(flat, 1, x, 1, add), add)

    return transform


def _every_weight(op: nn.ConvTransposeOp, phase: Sequence[Phase], x: Home) -> Transform:
    """As `_phase_weight` for all phases, one after the other, each filled up to whole blocks."""

    def transform(w: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        w = _at_least_a_stride(op, w, -shape_of(w)[1] % HALF, add)
        channels, outputs = shape_of(w)[:2]
        rank = len(phase)
        split = [size for part, stride in zip(phase, op.strides, strict=True) for size in (part.taps, stride)]
        w = add(nn.ReshapeOp(w, (channels, outputs, *split)))
        if any(part.taps > 1 for part in phase):
            back = [part.taps > 1 and place == 0 for part in phase for place in (0, 1)]
            starts = [size - 1 if turned else 0 for size, turned in zip(split, back, strict=True)]
            steps = [-1 if turned else 1 for turned in back]
            w = add(nn.SliceOp(w, (0, 0, *starts), shape_of(w), (1, 1, *steps)))
        w = add(nn.TransposeOp(w, (*range(3, 3 + 2 * rank, 2), 1, 0, *range(2, 2 + 2 * rank, 2))))
        flat = add(nn.ReshapeOp(w, (math.prod(op.strides) * outputs, channels, math.prod(part.taps for part in phase))))
        return tile_weight(physical_order(flat, 1, x, 1, add), add)

    return transform


def _at_least_a_stride(
    op: nn.ConvTransposeOp, w: SSAValue, outputs: int, add: Callable[[Operation], SSAValue]
) -> SSAValue:
    """The weight with zeros for taps that a kernel shorter than its stride does not have, and for more outputs."""
    missing = [max(0, stride - size) for stride, size in zip(op.strides, shape_of(w)[2:], strict=True)]
    if not outputs and not any(missing):
        return w
    return add(nn.PadOp(w, (0,) * len(shape_of(w)), (0, outputs, *missing), value=0.0))


def _emit(
    stage: StageLowering,
    op: nn.ConvTransposeOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
    homes: Sequence[Home],
    part: _Part,
    x: Home,
) -> None:
    """One phase, or a loop over all, with the group's element-wise rest on every finished tile."""
    context = stage.context
    extents = [shape_of(op.result)[0], *(phase.count for phase in part.phase)]
    with ExitStack() as stack:
        firsts: list[Offset] = [phase.first for phase in part.phase]
        weight = part.weight
        if part.every:
            number = Linear()
            for axis, stride in enumerate(op.strides):
                firsts[axis] = index = stack.enter_context(context.code.loop(stride))
                number = number * stride + index
            blocks = -(-part.contraction.outputs // HALF)
            kept = blocks if weight.kept is not None else 0
            weight = _OnePhase(weight.stored, weight.first, kept, blocks, number * blocks)
        places = [(first, size, step) for first, size, step in zip(firsts, extents[1:], op.strides, strict=True)]
        targets = [_taken(home, places) for home in homes]

        def epilogue(
            acc: Access, lane: tuple[Linear | int, int], tile: Linear, ranges: dict[int, tuple[Linear, int]]
        ) -> None:
            place = Tile(targets[0], ranges, lane, tile)
            finish(stage, Source(access=acc), place, op, op.bias, layer, after, results, targets)

        stack.enter_context(_operands_of_phase(context, operands_of(stage, after), homes[0], places))
        emit_contraction(context, part.contraction, x, weight, extents, epilogue)


Places = Sequence[tuple[Offset, int, int]]
"""Of the last axes of a map, the first element taken, how many, and how far apart."""


def _taken(home: Home, places: Places) -> Home:
    """The places of a map that belong to a phase. Axes of size 1, which do not vary, stay as they are."""
    offset = len(home.axes) - len(places)
    for axis, (first, size, step) in enumerate(places, offset):
        if home.logical[axis] == 1:
            continue
        found = home.part(axis, first, size, step)
        assert found is not None  # a spatial axis is a dimension of its own
        home = found
    return replace(home, pad=(), pad_value=None)


@contextmanager
def _operands_of_phase(
    context: Context, values: Sequence[SSAValue], target: Home, phase: Places
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
        context.homes[value] = [_taken(home, phase) for home in places]
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
    parts = _parts_of(stage, op, _like_a_tile(source), share=3)
    operands = RowOperands(stage, operands_of(stage, after), shape, layer)
    for _, outer in results:
        stage.new_home(outer, (1,))
    rows, _ = rows_per_phase(op, results[0][1], tile_bytes(layer))
    for segment in _row_segments(shape[ROWS], stride, rows):
        context.local.clear()
        made = min(segment.size * stride, shape[ROWS] - segment.start * stride)
        with context.code.tiles(segment) as at:
            x = row_tile(context, source, at + start, segment.size + reach, layer)
            x = _shifted(x, -start)
            homes = [_row_home(context, outer, made) for _, outer in results]
            with operands.tile(len(shape), at * stride, made):
                prepare(stage, after, layer, homes[0])
                for part in parts:
                    first, *others = part.phase
                    count = len(range(first.first, made, stride))
                    if count:
                        phase = (replace(first, count=count), *others)
                        here = replace(part, phase=phase, contraction=_contraction(op, phase, x))
                        _emit(stage, op, layer, after, results, homes, here, x)
            for (_, outer), home in zip(results, homes, strict=True):
                store_rows(context, outer, home, at * stride, made, layer)


def rows_per_phase(op: nn.ConvTransposeOp, result: SSAValue, most: int) -> tuple[int, int]:
    """Rows of each phase in a tile, so that neither it nor its input exceeds `most` bytes per partition; and how many
    more rows of the input these see.
    """
    phases = phases_of(op, 0)
    reach = max(phase.end - phase.count for phase in phases) - min(phase.start for phase in phases)
    into = row_bytes(shape_of(op.x), tensor_type(op.x).element_type)
    out = row_bytes(shape_of(result), tensor_type(result).element_type)
    rows = max(1, min(most // into - reach, most // (out * op.strides[0])))
    total = -(-shape_of(result)[ROWS] // op.strides[0])
    return -(-total // -(-total // min(rows, total))), reach


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


def _like_a_tile(source: Home) -> Home:
    """A map in DRAM as a tile of its rows will be: channels in order, every spatial axis a dimension."""
    if source.in_sbuf:
        return source
    axes = tuple((Factor(size, 0 if a == 1 else a + 2),) for a, size in enumerate(source.logical))
    return replace(source, axes=axes, lanes=source.logical[1])
