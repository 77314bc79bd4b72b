"""Packed convolutions: windows of a shallow feature map as channels (`nn.unfold`), and the convolution that reads them.

Few channels mean few partitions, where engines and the PE array are slow. So rows of the map, not channels, come onto
the partitions: in row group `g` (as many rows as the stride) of channel `c` on partition `c * groups + g`. There one
engine copy rounds, and parts the columns by their phase, column `stride * j + q` to place `j` of phase `q`. From then
on every tap is a run of whole rows: DMA takes them, SBUF to SBUF, to the partition of the tap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from xdsl.ir import Attribute, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.compute import CopyOp, MemsetOp
from neuron_mlir.dialects.core.memory import SBUF, Buffer, element_bytes
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.passes.core.lowering.builder import Segment, segments
from neuron_mlir.passes.core.lowering.context import LOAD_QUEUE, STORE_QUEUE, Context, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.contraction import conv_contraction
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.groups import contract, operands_of
from neuron_mlir.passes.core.lowering.groups import prepare as prepare_group
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home
from neuron_mlir.passes.core.lowering.rows import RowOperands, row_source, tile_bytes, weight_for_rows
from neuron_mlir.passes.estimate import TILE_BYTES
from neuron_mlir.passes.unfolding import ROWS, Unfolding

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering

PACK_QUEUE = 3
"""DMA queue of the copies within SBUF: loads of the next tile do not wait behind them."""


@dataclass(frozen=True)
class Phases:
    """All rows of some images on the partitions, rounded, columns parted by phase: where taps are taken from.

    Attributes:
        buffer: groups of rows x slots x maps x rows of a group x phases x places.
        slot: which of the slots.
        channels: how many maps there are of each image.
        rows: where rows are loaded to.
    """

    buffer: SSAValue
    slot: Linear
    channels: int
    rows: SSAValue

    def in_slot(self, slot: Linear) -> Phases:
        """The same of other images, in another slot."""
        return replace(self, slot=slot)


def phases_home(context: Context, unfolding: Unfolding, source: Home, images: int, slots: int = 1) -> Phases | None:
    """Room for all rows of some images, and so many slots of it; None where their groups of rows are more than there
    are partitions, or take too much of each.
    """
    channels = shape_of(unfolding.value)[1]
    groups = unfolding.shape[2] + unfolding.reach - 1
    element = tensor_type(unfolding.op.result).element_type
    shape = (groups, slots, images * channels, unfolding.op.strides[0], unfolding.phases, unfolding.places)
    taken = channels * unfolding.op.strides[0] * shape_of(unfolding.value)[3] * element_bytes(source.element)
    if groups > LANES or math.prod(shape[2:]) * element_bytes(element) + taken > TILE_BYTES:
        return None
    code = context.code
    step, width = unfolding.op.strides[0], shape_of(unfolding.value)[3]
    # For good, so that the next request is loaded while this one is computed; what is padding is set once.
    with code.at(context.top):
        rows = code.alloc("rows", (groups, channels, step, width), source.element, SBUF)
    if any(high - low < groups for low, high in _inside(unfolding, Linear(), groups)):
        context.load.add(MemsetOp(Access.of(rows), 0.0))
    return Phases(code.alloc("phases", shape, element, SBUF), Linear(), channels, rows)


def prepare(context: Context, unfolding: Unfolding, source: Home, image: Linear, images: int, phases: Phases) -> None:
    """Bring all rows of some images to `phases`, ready for `unfold_rows` to take any tile of them.

    Done ahead of the loop over tiles, it lets the DMA of the next tile run while engines are busy with this one.
    """
    code, channels = context.code, phases.channels
    groups = unfolding.shape[2] + unfolding.reach - 1
    with code.loop(images) as index, code.loop(channels) as channel:
        to = phases.rows, Linear(), channel
        _load_rows(context, unfolding, source, (image + index, channel), to, Linear(), groups)
        at = phases.slot, index * channels + channel
        _part_columns(context, unfolding, (phases.rows, channel), phases.buffer, at)


def unfold_rows(
    context: Context,
    unfolding: Unfolding,
    source: Home | Phases,
    target: Home,
    start: Linear,
    rows: int,
    image: Linear,
) -> None:
    """Rows `start` to `start + rows` of the unfolded map, of as many images from `image` on as `target` has.

    Args:
        source: what `prepare` has made (of which `image` counts from the first one there). Or all of what is unfolded:
            in DRAM with its axes in order, or in SBUF with channels on the partitions; then, where `start` is not a
            constant, all rows behind it must lie in the map (`Unfolding.inside`).
        target: images x channels x rows x columns, channels on the partitions.
    """
    code = context.code
    channels = shape_of(unfolding.value)[1]
    if isinstance(source, Phases):
        with code.loop(target.logical[0]) as index, code.loop(channels) as channel:
            at = start, source.slot, (image + index) * channels + channel
            _gather(context, unfolding, source.buffer, at, target, (index, channel), rows)
        return
    groups = rows + unfolding.reach - 1
    with code.loop(target.logical[0]) as index:
        for segment in segments(channels, max(1, min(channels, LANES // groups))):
            with code.tiles(segment) as channel:
                whole = _load(context, unfolding, source, (image + index, channel, segment.size), start, groups)
                shape = (segment.size * groups, 1, 1, unfolding.op.strides[0], unfolding.phases, unfolding.places)
                element = tensor_type(unfolding.op.result).element_type
                buffer = code.alloc("phases", shape, element, SBUF)
                _part_columns(context, unfolding, (whole, Linear()), buffer, (Linear(), Linear()))
                with code.loop(segment.size) as own:
                    at = own * groups, Linear(), Linear()
                    _gather(context, unfolding, buffer, at, target, (index, channel + own), rows)


def _load(
    context: Context,
    unfolding: Unfolding,
    source: Home,
    at: tuple[Linear, Linear, int],
    start: Linear,
    groups: int,
) -> SSAValue:
    """The groups of rows behind output rows from `start` on, `(channel, group) x 1 x row of the group x columns`."""
    code, step = context.code, unfolding.op.strides[0]
    image, channel, count = at
    width = shape_of(unfolding.value)[3]
    buffer = code.alloc("rows", (count * groups, 1, step, width), source.element, SBUF)
    for phase, (low, high) in enumerate(_inside(unfolding, start, groups)):
        if high - low < groups:
            code.add(MemsetOp(Access.of(buffer, [0, 0, phase, 0], [count * groups, 1, 1, width]), 0.0))
    with code.loop(count) as index:
        to = (buffer, index * groups, Linear())
        _load_rows(context, unfolding, source, (image, channel + index), to, start, groups)
    return buffer


def _inside(unfolding: Unfolding, start: Linear, groups: int) -> list[tuple[int, int]]:
    """Of the groups of rows behind output rows from `start` on, the first and the one past the last in the map; for
    each row of a group. All, where `start` is not a constant.
    """
    step, begin = unfolding.op.strides[0], start + unfolding.first
    height = shape_of(unfolding.value)[ROWS]
    found: list[tuple[int, int]] = []
    for phase in range(step):
        low, high = 0, groups
        if not begin.terms:
            low = max(0, -begin.constant)
            high = max(low, min(groups, -(-(height - phase) // step) - begin.constant))
        found.append((low, high))
    return found


def _load_rows(
    context: Context,
    unfolding: Unfolding,
    source: Home,
    at: tuple[Linear, Linear],
    to: tuple[SSAValue, Linear, Linear],
    start: Linear,
    groups: int,
) -> None:
    """The rows of one channel of one image (`at`) to `(buffer, partition, map)`; what is padding is left alone."""
    step, width = unfolding.op.strides[0], shape_of(unfolding.value)[3]
    buffer, lane, place = to
    for phase, (low, high) in enumerate(_inside(unfolding, start, groups)):
        if low == high:
            continue
        row = (start + unfolding.first + low) * step + phase
        taken = _rows_of(source, *at, row, high - low, step)
        put = Access.of(buffer, [lane + low, place, phase, 0], [high - low, 1, 1, width])
        context.code.add(DmaOp(taken, put, queue=LOAD_QUEUE))


def _rows_of(source: Home, image: Linear, channel: Linear, row: Linear, count: int, step: int) -> Access:
    """Every `step`-th row of one channel of one image, `count` of them."""
    width = source.logical[3]
    base = source.first_free
    if not source.in_sbuf:
        offsets = {base: image, base + 1: channel, base + ROWS: row}
        return source.access(dict(offsets), {base + ROWS: count, base + 3: width}, {base + ROWS: step})
    dims = [source.free_dim(axis) for axis in (0, 2, 3)]
    offsets = {dim: at for dim, at in zip(dims, (image, row), strict=False) if dim is not None}
    sizes = {dim: size for dim, size in zip(dims[1:], (count, width), strict=True) if dim is not None}
    strides = {} if dims[1] is None else {dims[1]: step}
    return source.access(dict(offsets), sizes, strides, (channel + source.lane0, 1))


def _part_columns(
    context: Context,
    unfolding: Unfolding,
    whole: tuple[SSAValue, Linear],
    buffer: SSAValue,
    at: tuple[Linear, Linear],
) -> None:
    """Rounds a map of rows into slot and map `at` of `Phases.buffer`, columns parted by their phase; zeros where that
    is padding.
    """
    code, op = context.code, unfolding.op
    step, left = op.strides[1], op.pads[1]
    width = shape_of(unfolding.value)[3]
    lanes, _, _, rows, *_ = cast(Buffer, buffer.type).get_shape()
    places = unfolding.places
    spans: list[tuple[int, int]] = []
    for phase in range(unfolding.phases):
        low = min(places, max(0, -((phase - left) // step)))
        spans.append((low, max(low, min(places, (width - 1 + left - phase) // step + 1))))
    before, after = max(low for low, _ in spans), min(high for _, high in spans)
    for begin, end in ((0, before), (max(before, after), places)):
        if begin < end:
            edge = Access.of(buffer, [0, *at, 0, 0, begin], [lanes, 1, 1, rows, len(spans), end - begin])
            code.add(MemsetOp(edge, 0.0))
    for phase, (low, high) in enumerate(spans):
        if low == high:
            continue
        first = step * low + phase - left
        taken = Access.of(whole[0], [0, whole[1], 0, first], [lanes, 1, rows, high - low], [1, 1, 1, step])
        put = Access.of(buffer, [0, *at, 0, phase, low], [lanes, 1, 1, rows, 1, high - low])
        # All on the vector engine: the scalar engine takes sums out of PSUM, and the next tile would wait for that.
        code.add(CopyOp(put, taken))


def _gather(
    context: Context,
    unfolding: Unfolding,
    phases: SSAValue,
    at: tuple[Linear, Linear, Linear],
    target: Home,
    to: tuple[Linear, Linear],
    rows: int,
) -> None:
    """Every tap of a channel to its partition: rows from consecutive partitions, one behind the other on one.

    Args:
        at: the partition of the first group of rows, the slot and the map, in `phases`.
        to: the image and the channel.
    """
    code, op = context.code, unfolding.op
    (height, width), (down, across), top = op.kernel, op.strides, op.pads[0]
    for phase in range(down):
        tap = (phase + top) % down
        if tap >= height:
            continue
        with code.loop(-(-(height - tap) // down)) as step:
            lane = at[0] + step + ((tap - top) // down - unfolding.first)
            put = (to[1] * height + step * down + tap) * width
            for part in segments(width, across):
                with code.tiles(part) as column:
                    place = _divided(column, across)
                    sizes = [rows, 1, 1, 1, part.size, unfolding.shape[3]]
                    taken = Access.of(phases, [lane, *at[1:], phase, 0, place], sizes)
                    order = (4, 0, 1, 2, 3, 5) if part.size > 1 and rows > 1 else None
                    code.add(DmaOp(taken, _packed(target, to[0], put + column, part.size), order, PACK_QUEUE))


def _divided(column: Linear, step: int) -> Linear:
    """A multiple of `step` over `step`."""
    return Linear(tuple((value, factor // step) for value, factor in column.terms), column.constant // step)


def _packed(target: Home, image: Linear, lane: Linear, count: int) -> Access:
    dims = [target.free_dim(axis) for axis in (0, 2, 3)]
    offsets = {} if dims[0] is None else {dims[0]: image}
    sizes = {dim: target.logical[axis] for axis, dim in zip((2, 3), dims[1:], strict=True) if dim is not None}
    return target.access(dict(offsets), sizes, None, (lane + target.lane0, count))


# Layers


def _tiles(unfolding: Unfolding, total: int, rows: int) -> list[Segment]:
    """The output rows in tiles, those that `unfold_rows` can take in one loop together."""
    return [Segment(start, count, size) for start, count, size in unfolding.tiles(total, rows)]


def tile_home(context: Context, unfolding: Unfolding, images: int, rows: int) -> Home:
    """A buffer for that many rows of the unfolded map."""
    _, channels, _, columns = unfolding.shape
    element = tensor_type(unfolding.op.result).element_type
    return context.sbuf_home("packed", (images, channels, rows, columns), element, (1,))


def ring_home(context: Context, unfolding: Unfolding, images: int, rows: int) -> Home:
    """Two such buffers in one: tiles of different height take turns, so that one fills while the other is read. Take
    one with `slot_of`.
    """
    _, channels, _, columns = unfolding.shape
    element = tensor_type(unfolding.op.result).element_type
    shape = (channels, 2, 1, images, rows, columns)
    buffer = context.code.alloc("packed", shape, element, SBUF)
    axes = (
        (Factor(images, 3),) if images > 1 else (),
        (Factor(channels, 0),),
        (Factor(rows, 4),),
        (Factor(columns, 5),),
    )
    return Home(buffer, shape, element, axes, channels, (Linear(),) * len(shape), slot=(Linear(), 1))


def slot_of(ring: Home, number: Linear) -> Home:
    """The buffer that tile `number` has."""
    return replace(ring, slot=(Linear(number.terms, number.constant, mod=2), 1))


def lower_unfold(stage: StageLowering, op: nn.UnfoldOp) -> None:
    """An unfolding alone."""
    context = stage.context
    unfolding = Unfolding(op, op.x, (op,))
    source = row_source(stage, context.origin(op.x), {}, 0.0, op)
    home = stage.new_home(op.result, (1,))
    images, channels, rows, columns = unfolding.shape
    size = unfolding.rows_per_tile((images, channels, rows, columns), element_bytes(home.element), tile_bytes(op))
    for segment in _tiles(unfolding, rows, size):
        with context.code.loop(images) as image, context.code.tiles(segment) as start:
            inside = home.in_sbuf
            tile = (
                _cut(home, 1, image, start, segment.size) if inside else tile_home(context, unfolding, 1, segment.size)
            )
            unfold_rows(context, unfolding, source, tile, start, segment.size, image)
            if not inside:
                _store(context, home, tile, image, start, segment.size, op)


def packed_conv(
    stage: StageLowering,
    op: nn.ConvOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
) -> None:
    """A convolution of an unfolded map, with its group, in tiles of rows: pack, multiply, store."""
    context = stage.context
    assert isinstance(op.x.owner, nn.UnfoldOp)
    unfolding = Unfolding.of(op.x.owner)
    source = row_source(stage, context.origin(unfolding.value), {}, 0.0, layer)
    weight = weight_for_rows(stage, op, layer, _unfolded(source, unfolding))
    shape = shape_of(op.result)
    operands = RowOperands(stage, operands_of(stage, after), shape, layer)
    images = shape[0] if operands.sources else 1
    for _, outer in results:
        stage.new_home(outer, (1,))
    item = max(element_bytes(tensor_type(outer).element_type) for _, outer in results)
    rows = unfolding.rows_per_tile(shape, item * images, tile_bytes(layer))
    halo = unfolding.shape[2] - shape[2]
    with context.code.loop(shape[0] // images) as image:
        ready = phases_home(context, unfolding, source, images)
        tiles = _tiles(unfolding, shape[2], rows)
        if ready is not None:
            prepare(context, unfolding, source, image, images, ready)
            tiles = segments(shape[2], rows)
        for segment in tiles:
            context.local.clear()
            with context.code.tiles(segment) as start:
                x = tile_home(context, unfolding, images, segment.size + halo)
                if ready is None:
                    unfold_rows(context, unfolding, source, x, start, segment.size + halo, image)
                else:
                    unfold_rows(context, unfolding, ready, x, start, segment.size + halo, Linear())
                homes = [_target(context, outer, images, image, start, segment.size) for _, outer in results]
                with operands.tile(len(shape), start, segment.size):
                    prepare_group(stage, after, layer, homes[0])
                    extents = [images, segment.size, shape[3]]
                    contract(stage, conv_contraction(op, x), x, weight, extents, op, layer, after, results, homes)
                for (_, outer), home in zip(results, homes, strict=True):
                    place = context.places(outer)[0]
                    if not place.in_sbuf:
                        _store(context, place, home, image, start, segment.size, layer)


def _unfolded(source: Home, unfolding: Unfolding) -> Home:
    """A stand-in for the unfolded map, for what depends on its shape only."""
    axes = tuple((Factor(size, axis),) if size > 1 else () for axis, size in enumerate(unfolding.shape))
    element: Attribute = tensor_type(unfolding.op.result).element_type
    return replace(source, axes=axes, element=element, lanes=0, slot=None)


def _target(context: Context, value: SSAValue, images: int, image: Linear, start: Linear, rows: int) -> Home:
    """Where a tile of a result is computed: in place, or in a buffer of its own when the map is in DRAM."""
    place = context.places(value)[0]
    if place.in_sbuf:
        return _cut(place, images, image, start, rows)
    shape = (images, shape_of(value)[1], rows, shape_of(value)[3])
    return context.sbuf_home("rows", shape, tensor_type(value).element_type, (1,))


def _store(
    context: Context, place: Home, tile: Home, image: Linear, start: Linear, rows: int, layer: Operation
) -> None:
    copy_by_dma(context.code, tile, _cut(place, tile.logical[0], image, start, rows), layer, STORE_QUEUE)


def _cut(place: Home, images: int, image: Linear, start: Linear, rows: int) -> Home:
    part = place.part(0, image, images)
    part = None if part is None else part.part(ROWS, start, rows)
    assert part is not None
    return replace(part, pad=(), pad_value=None)
