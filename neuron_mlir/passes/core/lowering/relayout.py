"""Copies between two placements of a value, the cheapest way there is: an engine, the PE array, or DMA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import f32
from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.dialects.core.compute import CopyOp, TransposeOp
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import LOAD_QUEUE, STORE_QUEUE, Padding
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.context import Context


def copy_to(
    context: Context, value: SSAValue, source: Home, partition: Sequence[int], padding: Padding | None, layer: Operation
) -> Home:
    """A new copy of a value in SBUF with the given partition axes."""
    shape = source.logical
    home = context.sbuf_home(context.label(value), shape, source.element, partition, padding)
    move(context, source, home, layer)
    context.define(value, home)
    context.count("re-layouts")
    return home


def move(context: Context, source: Home, target: Home, layer: Operation) -> None:
    """Copy between two placements the cheapest way there is: an engine copy, the PE array, or DMA (through DRAM at
    need).
    """
    if source.in_sbuf and target.in_sbuf:
        if same_lanes(source, target) and engine_copy(context, source, target):
            return
        if transpose_copy(context, source, target):
            return
        middle = context.dram_home("relayout", source.logical, source.element)
        copy_by_dma(context.code, source, middle, layer, STORE_QUEUE)
        copy_by_dma(context.code, middle, target, layer, STORE_QUEUE)
        return
    rows = rows_first(context, source, target)
    if rows is not None:
        copy_by_dma(context.code, source, rows, layer, LOAD_QUEUE)
        if transpose_copy(context, rows, target):
            return
    copy_by_dma(context.code, source, target, layer, LOAD_QUEUE)


def rows_first(context: Context, source: Home, target: Home) -> Home | None:
    """A stopover in SBUF for a load that would put the innermost axis on the partitions: a DMA moves single elements
    then, 64 bytes of traffic for each. Whole rows are loaded instead, and the PE array turns them. None where that is
    not needed or not possible.
    """
    shape = target.logical
    inner = max((axis for axis, size in enumerate(shape) if size > 1), default=0)
    if source.in_sbuf or not target.in_sbuf or target.partition_axes() != (inner,):
        return None
    if any(f.dim > g.dim for a, axis in enumerate(source.axes) if a != inner for f in axis for g in source.axes[inner]):
        return None  # another axis is innermost there: rows of the transposed matrix
    axis = row_axis(shape, inner)
    if axis is None or str(source.element) not in ("bf16", "f16") or any(len(f) > 1 for f in target.merged().axes):
        return None
    return context.sbuf_home("rows", shape, source.element, (axis,))


def engine_copy(context: Context, source: Home, target: Home) -> bool:
    """Copy on the vector engine between placements that agree on the partitions; False when they do not fit."""
    dims: list[tuple[Factor, Factor]] = []
    for a, b in zip(source.merged().axes, target.merged().axes, strict=True):
        if len(a) > 1 or len(b) > 1 or bool(a) != bool(b):
            return False
        for pair in zip(a, b, strict=True):
            if pair[0].dim != 0:
                dims.append(pair)
    for side in range(2):
        order = [pair[side].dim for pair in dims]
        if order != sorted(set(order)):
            return False
    lanes = max(math.prod(f.size for _, f in source.partition_factors()), 1)
    if source.lane0 % LANES or target.lane0 % LANES:
        return False
    for segment in segments(lanes, LANES):
        with context.code.loop(segment.count) as tile:
            accesses = [
                home.access(
                    {},
                    {pair[side].dim: pair[side].size for pair in dims},
                    {pair[side].dim: pair[side].stride for pair in dims},
                    (0, segment.size),
                    tile + (segment.start + home.lane0) // LANES,
                )
                for side, home in enumerate((source, target))
            ]
            context.code.add(CopyOp(accesses[1], accesses[0]))
    return True


def transpose_copy(context: Context, source: Home, target: Home) -> bool:
    """Swap a partition axis and a free axis through the PE array (bf16 and f16 only); False when the shapes do not
    allow it.
    """
    if str(source.element) not in ("bf16", "f16") or source.lane0 or target.lane0:
        return False
    a, b = source.merged(), target.merged()
    rows = list(a.partition_axes())
    columns = list(b.partition_axes())
    if len(rows) > 1 or len(columns) != 1 or rows == columns:
        return False
    if any(len(axis) > 1 for axis in (*a.axes, *b.axes)):
        return False
    others = [i for i in range(len(a.axes)) if a.axes[i] and i not in (*rows, *columns)]
    column = columns[0]
    row = rows[0] if rows else None
    column_factor = a.axes[column][0] if a.axes[column] else None
    row_factor = b.axes[row][0] if row is not None and b.axes[row] else None
    row_count = a.logical[row] if row is not None else 1
    with_loops = [(i, a.axes[i][0], b.axes[i][0]) for i in others]
    _transpose_nest(
        context, source, target, with_loops, {}, {}, row_count, row_factor, a.logical[column], column_factor
    )
    return True


def _transpose_nest(
    context: Context,
    source: Home,
    target: Home,
    others: list[tuple[int, Factor, Factor]],
    at: dict[int, Linear],
    to: dict[int, Linear],
    rows: int,
    row_factor: Factor | None,
    columns: int,
    column_factor: Factor | None,
) -> None:
    """One loop per remaining axis, then tiles of 128 partitions by 64 elements."""
    if others:
        (_, left, right), *rest = others
        with context.code.loop(left.size) as index:
            _transpose_nest(
                context,
                source,
                target,
                rest,
                {**at, left.dim: at.get(left.dim, Linear()) + index * left.stride},
                {**to, right.dim: to.get(right.dim, Linear()) + index * right.stride},
                rows,
                row_factor,
                columns,
                column_factor,
            )
        return
    half = context.machine.tensor_engine.columns
    for row in segments(rows, LANES):
        for column in segments(columns, half):
            # 64 columns land on half a tile of partitions: even blocks on the lower, odd ones on the upper half.
            pairs = segments(column.count, 2) if column.count > 1 else segments(1, 1)
            for pair in pairs:
                with context.code.loop(row.count) as i, context.code.loop(pair.count) as j:
                    for side in range(pair.size):
                        block = (j * pair.size) + (pair.start + side)
                        first = block * column.size + column.start
                        whole_tile = (j + (pair.start // 2)) if column.count > 1 else Linear.wrap(column.start // LANES)
                        lane = side * half if column.count > 1 else column.start % LANES
                        if column.count > 1 and pair.size == 1:
                            lane = (pair.start * half + column.start) % LANES
                            whole_tile = Linear.wrap((pair.start * half + column.start) // LANES)
                        psum = context.code.psum("transposed", [column.size, row.size], f32)
                        out = Home(psum, (column.size, row.size), f32, (), 0, (Linear(), Linear()))
                        offsets = dict(at)
                        if column_factor is not None:
                            offsets[column_factor.dim] = (
                                at.get(column_factor.dim, Linear()) + first * column_factor.stride
                            )
                        taken = source.access(
                            dict(offsets),
                            {column_factor.dim: column.size} if column_factor is not None else {},
                            {column_factor.dim: column_factor.stride} if column_factor is not None else {},
                            (0, row.size),
                            i + row.start // LANES,
                        )
                        context.code.add(TransposeOp(out.access({}, {0: column.size, 1: row.size}), taken))
                        places = dict(to)
                        if row_factor is not None:
                            places[row_factor.dim] = (
                                to.get(row_factor.dim, Linear()) + (i * row.size + row.start) * row_factor.stride
                            )
                        put = target.access(
                            dict(places),
                            {row_factor.dim: row.size} if row_factor is not None else {},
                            {row_factor.dim: row_factor.stride} if row_factor is not None else {},
                            (lane, column.size),
                            whole_tile,
                        )
                        context.code.add(CopyOp(put, out.access({}, {0: column.size, 1: row.size})))


def row_axis(shape: Sequence[int], inner: int) -> int | None:
    """The axis to put on the partitions when `inner` is to stay in rows: the longest of the others, or None when all
    are 1.
    """
    others = [axis for axis, size in enumerate(shape) if size > 1 and axis != inner]
    return max(others, key=lambda axis: (shape[axis], axis)) if others else None


def same_lanes(a: Home, b: Home) -> bool:
    """Whether the two agree on what is on which partition."""
    return a.merged().partition_factors() == b.merged().partition_factors() and a.lane0 == b.lane0
