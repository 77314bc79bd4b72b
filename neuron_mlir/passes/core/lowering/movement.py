"""Layers that move data: views that cost nothing, slices, concatenation, padding, gathers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.memory import DRAM
from neuron_mlir.dialects.core.movement import GatherOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import STORE_QUEUE, Padding, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home
from neuron_mlir.passes.core.lowering.relayout import engine_copy, move, same_lanes, transpose_copy
from neuron_mlir.passes.core.lowering.spilling import lower_place

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering


def lower_view(stage: StageLowering, op: nn.ReshapeOp | nn.TransposeOp) -> None:
    """Relabel every place of the operand. A reshape that cuts an axis unevenly goes through a flat buffer in DRAM."""
    context = stage.context
    value, result = op.operands[0], op.results[0]
    if context.is_constant(value):
        context.define(result, context.constant(value, context.label(value), lambda v, add: add(_same(op, v))))
        return
    if value in context.in_dram:
        context.in_dram.add(result)
    found = False
    for home in context.places(value):
        view = home.transposed(op.perm) if isinstance(op, nn.TransposeOp) else home.reshaped(shape_of(result))
        if view is not None:
            context.define(result, view)
            found = True
    if found:
        return
    source = context.places(value)[0]
    flat = flat_home(stage, source)
    copy_by_dma(context.code, source, flat, op, STORE_QUEUE)
    context.define(result, replace(flat, axes=_flat_axes(shape_of(result))))


def _same(op: nn.ReshapeOp | nn.TransposeOp, value: SSAValue) -> Operation:
    if isinstance(op, nn.TransposeOp):
        return nn.TransposeOp(value, op.perm)
    return nn.ReshapeOp(value, shape_of(op.result))


def flat_home(stage: StageLowering, source: Home) -> Home:
    """A one-dimensional buffer in DRAM for a tensor, row-major."""
    context = stage.context
    total = math.prod(source.logical)
    with context.code.at(context.top):
        buffer = context.code.alloc("flat", [total], source.element, DRAM)
    return Home(buffer, (total,), source.element, _flat_axes(source.logical), 0, (Linear(),))


def _flat_axes(shape: tuple[int, ...]) -> tuple[tuple[Factor, ...], ...]:
    return tuple((Factor(size, 0, math.prod(shape[a + 1 :])),) if size > 1 else () for a, size in enumerate(shape))


def lower_movement(stage: StageLowering, op: Operation) -> None:
    """Slice, concat, pad, gather, spill or reload. Raises `NeuronError` for a layer the device has no code for."""
    if isinstance(op, nn.SliceOp):
        _slice(stage, op)
    elif isinstance(op, nn.ConcatOp):
        _concat(stage, op)
    elif isinstance(op, nn.PadOp):
        _pad(stage, op)
    elif isinstance(op, nn.GatherOp):
        _gather(stage, op)
    elif isinstance(op, nn.PlaceOp):
        lower_place(stage, op)
    else:
        raise NeuronError(f"no lowering for {op.name} on the device", op=op, advice="compute it on the host")


def _taken(home: Home, op: nn.SliceOp) -> Home | None:
    found: Home | None = replace(home, pad=(), pad_value=None)
    for axis, (start, size, stride) in enumerate(zip(op.starts, op.sizes, op.strides, strict=True)):
        if found is None:
            return None
        if start == 0 and size == shape_of(op.x)[axis]:
            continue
        found = found.part(axis, start, size, stride)
    return found


def _slice(stage: StageLowering, op: nn.SliceOp) -> None:
    """A view where it takes whole partitions, else a copy."""
    context = stage.context
    if any(step < 0 for step in op.strides):
        _slice_backwards(stage, op)
        return
    for home in context.places(op.x):
        view = _taken(home, op)
        if view is not None and not view.lane0:
            context.define(op.result, view)
            return
    source = _source_for(stage, op.x, lambda home: _taken(home, op) is not None, op)
    part = _taken(source, op)
    assert part is not None
    target = stage.new_home(op.result)
    _copy(stage, part, target, op)


def _slice_backwards(stage: StageLowering, op: nn.SliceOp) -> None:
    """Through DRAM, a loop for each axis that counts down: accesses have no negative steps."""
    context = stage.context
    source = _source_for(stage, op.x, lambda home: not home.in_sbuf, op)
    whole = context.dram_home(context.label(op.result), shape_of(op.result), source.element)

    def nest(axes: list[int], part: Home, target: Home) -> None:
        if not axes:
            copy_by_dma(context.code, part, target, op, STORE_QUEUE)
            return
        axis, *rest = axes
        start, size, step = op.starts[axis], op.sizes[axis], op.strides[axis]
        if step > 0:
            taken = part.part(axis, start, size, step)
            assert taken is not None
            nest(rest, taken, target)
            return
        with context.code.loop(size) as index:
            one, place = part.part(axis, index * step + start, 1), target.part(axis, index, 1)
            assert one is not None and place is not None
            nest(rest, one, place)

    nest(list(range(len(op.starts))), replace(source, pad=(), pad_value=None), whole)
    context.define(op.result, whole)


def _source_for(stage: StageLowering, value: SSAValue, good: Callable[[Home], bool], layer: Operation) -> Home:
    """A place that serves, or a row-major copy in DRAM, of which every part can be taken."""
    context = stage.context
    for home in context.places(value):
        if good(home):
            return home
    source = context.places(value)[0]
    copy = context.dram_home(context.label(value), source.logical, source.element)
    copy_by_dma(context.code, source, copy, layer, STORE_QUEUE)
    return copy


def _copy(stage: StageLowering, source: Home, target: Home, layer: Operation) -> None:
    context = stage.context
    if source.in_sbuf and target.in_sbuf:
        if (
            not source.lane0
            and not target.lane0
            and same_lanes(source, target)
            and engine_copy(context, source, target)
        ):
            return
        single = len(source.partition_factors()) <= 1 and len(target.partition_factors()) <= 1
        if single and source.partition_axes() == target.partition_axes():
            copy_by_dma(context.code, source, target, layer, STORE_QUEUE)
            return
        middle = context.dram_home("moved", source.logical, source.element)
        copy_by_dma(context.code, source, middle, layer, STORE_QUEUE)
        copy_by_dma(context.code, middle, target, layer, STORE_QUEUE)
        return
    copy_by_dma(context.code, source, target, layer, STORE_QUEUE)


def _concat(stage: StageLowering, op: nn.ConcatOp) -> None:
    """Each input that was not made in its part of the result is copied there."""
    context = stage.context
    target = stage.joined[op] if op in stage.joined else stage.new_home(op.result)
    start = 0
    for value in op.inputs:
        size = shape_of(value)[op.axis]
        part = target.part(op.axis, start, size)
        start += size
        if part is None:
            raise NeuronError("the result of a concatenation cannot be filled in parts", op=op)
        if context.is_constant(value):
            _copy(stage, context.constant(value, context.label(value)), part, op)
            continue
        places = context.places(value)
        if any(home.buffer is part.buffer and home.low == part.low for home in places):
            continue
        source = next((h for h in places if h.in_sbuf and h.partition_axes() == target.partition_axes()), places[0])
        if target.in_sbuf and not source.in_sbuf:
            move(context, source, part, op)
        elif not (source.in_sbuf and not same_lanes(source, part) and transpose_copy(context, source, part)):
            _copy(stage, source, part, op)


def join_home(stage: StageLowering, value: SSAValue, partition: Sequence[int]) -> Home | None:
    """The part of a concatenation's result that a layer's result becomes, if it can be made there: the layer makes
    these axes the partitions, and nothing else is wanted of its result. None if it cannot.
    """
    context = stage.context
    joins = [use.operation for use in value.uses if isinstance(use.operation, nn.ConcatOp)]
    if len(joins) != 1 or context.hold is not None or joins[0].parent_block() is not stage.stage.body.block:
        return None
    (op,) = joins
    result = op.result
    if any(v in context.in_dram or v in context.paddings for v in (value, result)):
        return None
    if tuple(partition) != tuple(context.partition_of[result]) or len(partition) != 1:
        return None
    if partition[0] == op.axis and any(shape_of(v)[op.axis] % LANES for v in op.inputs):
        return None
    if op not in stage.joined:
        stage.joined[op] = stage.new_home(result)
    start = sum(shape_of(v)[op.axis] for v in list(op.inputs)[: list(op.inputs).index(value)])
    return stage.joined[op].part(op.axis, start, shape_of(value)[op.axis])


def _pad(stage: StageLowering, op: nn.PadOp) -> None:
    """The interior is copied into a buffer whose border is set: in SBUF, or in DRAM where partitions are padded."""
    context = stage.context
    low, high = op.low, op.high
    element = tensor_type(op.result).element_type
    partition = context.partition_of[op.result]
    padding = Padding({a: (low[a], high[a]) for a in range(len(low)) if low[a] or high[a]}, op.pad_value)
    if op.result in context.in_dram or any(axis in padding.axes for axis in partition):
        home = context.dram_home(context.label(op.result), shape_of(op.x), element, padding)
    else:
        home = context.sbuf_home(context.label(op.result), shape_of(op.x), element, partition, padding)
    if context.is_constant(op.x):
        source = context.constant(op.x, context.label(op.x))
    elif home.in_sbuf:
        source = stage.want(op.x, partition, op)
    else:
        source = context.places(op.x)[0]
    move(context, source, home, op)
    axes = list(home.axes)
    dim = home.first_free
    for axis, size in enumerate(shape_of(op.x)):
        if home.in_sbuf and (axis in partition or (size == 1 and axis not in padding.axes)):
            continue
        axes[axis] = (Factor(home.shape[dim], dim),) if home.shape[dim] > 1 else ()
        dim += 1
    whole = tuple(Linear() if d >= home.first_free else offset for d, offset in enumerate(home.low))
    context.define(op.result, replace(home, axes=tuple(axes), low=whole, pad=(), pad_value=None))


def _gather(stage: StageLowering, op: nn.GatherOp) -> None:
    """Rows of a table by index: one indirect DMA per 128 indices. A constant single index is a slice."""
    context = stage.context
    if context.is_constant(op.indices):
        _gather_constant(stage, op)
        return
    data_shape, index_shape = shape_of(op.data), shape_of(op.indices)
    if op.axis != 0 or len(data_shape) != 2 or not index_shape or not context.is_constant(op.data):
        raise NeuronError(
            "the device gathers rows of a constant two-dimensional table only",
            op=op,
            needed="axis 0 of a constant [rows, width]",
            available=f"axis {op.axis} of {list(data_shape)}",
            advice="compute it on the host",
        )
    table = context.constant(op.data, context.label(op.data))
    last = len(index_shape) - 1
    index = stage.want(op.indices, (last,), op)
    rank = len(shape_of(op.result))
    target = context.sbuf_home(context.label(op.result), shape_of(op.result), table.element, (rank - 2,))
    context.define(op.result, target)
    width = data_shape[1]
    batch = [a for a in range(last) if index_shape[a] > 1]
    for segment in segments(index_shape[last], LANES):
        with context.code.loop(segment.count) as tile_index:
            tile = tile_index + segment.start // LANES
            _gather_nest(stage, op, table, index, target, batch, {}, segment.size, tile, width)


def _gather_nest(
    stage: StageLowering,
    op: nn.GatherOp,
    table: Home,
    index: Home,
    target: Home,
    batch: list[int],
    fixed: dict[int, Linear],
    lanes: int,
    tile: Linear,
    width: int,
) -> None:
    code = stage.context.code
    if batch:
        with code.loop(shape_of(op.indices)[batch[0]]) as i:
            _gather_nest(stage, op, table, index, target, batch[1:], {**fixed, batch[0]: i}, lanes, tile, width)
        return
    places: list[Access] = []
    for home, sized in ((target, True), (index, False)):
        offsets: dict[int, int | SSAValue | Linear] = {}
        for axis, i in fixed.items():
            dim = home.free_dim(axis)
            if dim is not None:
                offsets[dim] = i
        last = home.free_dim(len(home.axes) - 1) if sized else None
        places.append(home.access(offsets, {last: width} if last is not None else {}, None, (0, lanes), tile))
    code.add(GatherOp(places[0], Access.of(table.buffer), places[1], 0))


def _gather_constant(stage: StageLowering, op: nn.GatherOp) -> None:
    """A gather by constant indices: one slice for each run of them."""
    context = stage.context
    owner = context.origin(op.indices).owner
    source = owner.source if isinstance(owner, nn.WeightOp) else None
    numbers: list[int] | None = None
    count = math.prod(shape_of(op.indices))
    if isinstance(source, nn.SplatAttr):
        numbers = [int(source.number)] * count
    elif isinstance(source, nn.DenseAttr):
        numbers = [int(n) for n in source.numbers]
    if numbers is None:
        raise NeuronError("constant indices must be written in the IR", op=op, advice="nn.weight with dense<[..]>")
    size = shape_of(op.data)[op.axis]
    numbers = [n + size if n < 0 else n for n in numbers]
    shape = list(shape_of(op.data))
    if count == 1:
        for home in context.places(op.data):
            part = replace(home, pad=(), pad_value=None).part(op.axis, numbers[0], 1)
            view = None if part is None or part.lane0 else part.reshaped(shape_of(op.result))
            if view is not None:
                context.define(op.result, view)
                return
    source_home = _source_for(stage, op.data, lambda home: not home.in_sbuf, op)
    target = stage.new_home(op.result)
    shape[op.axis] = count
    flat = target.reshaped(shape)
    if flat is None:
        raise NeuronError("constant gather into a split axis", op=op)
    for position, number, length in _runs(numbers):
        part, place = source_home.part(op.axis, number, length), flat.part(op.axis, position, length)
        assert part is not None and place is not None
        copy_by_dma(context.code, part, place, op, STORE_QUEUE)


def _runs(numbers: list[int]) -> list[tuple[int, int, int]]:
    """Indices cut where they do not count up: where a run begins in the list, its first index, its length."""
    found: list[tuple[int, int, int]] = []
    for position, number in enumerate(numbers):
        start, first, length = found[-1] if found else (0, number, 0)
        if number == first + length and found:
            found[-1] = (start, first, length + 1)
        else:
            found.append((position, number, 1))
    return found
