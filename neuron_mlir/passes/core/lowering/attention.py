"""Products whose result has rows on the partitions, and products of two activations (as in attention)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import f32
from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.dialects.core.memory import SBUF
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering.builder import Segment, segments
from neuron_mlir.passes.core.lowering.context import WEIGHT_QUEUE, Context, shape_of
from neuron_mlir.passes.core.lowering.contraction import BANK, HALF, alternate
from neuron_mlir.passes.core.lowering.elementwise import Source, Tile
from neuron_mlir.passes.core.lowering.groups import finish, prepare
from neuron_mlir.passes.core.lowering.layout import LANES, Home, Offset

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering

Results = Sequence[tuple[SSAValue, SSAValue]]
STREAM_PART = 4 * 1024
"""Bytes per partition of the part of a streamed weight that is multiplied at once."""


def row_blocks(rows: int) -> list[tuple[Segment, int, int, int]]:
    """Rows that become partitions of the result, 64 at a time: `(tiles of 128, first half, halves, rows)`."""
    full, rest = divmod(rows, LANES)
    found: list[tuple[Segment, int, int, int]] = []
    if full:
        found.append((Segment(0, full, 1), 0, 2, HALF))
    if rest >= HALF:
        found.append((Segment(full, 1, 1), 0, 1, HALF))
    if rest % HALF:
        found.append((Segment(full, 1, 1), 1 if rest > HALF else 0, 1, rest % HALF))
    return found


def row_weight(x: Home, axis: int) -> Callable[[SSAValue, Callable[[Operation], SSAValue]], SSAValue]:
    """A weight (contraction, outputs) as (tile, row of tile, tap, outputs), the contraction axis split as in `x`."""

    def transform(w: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        factors = x.merged().axes[axis]
        outputs = shape_of(w)[-1]
        w = add(nn.ReshapeOp(w, (*(f.size for f in factors), outputs)))
        lanes = sorted((i for i, f in enumerate(factors) if f.dim == 0), key=lambda i: -factors[i].stride)
        taps = [i for i, f in enumerate(factors) if f.dim != 0]
        w = add(nn.TransposeOp(w, (*lanes, *taps, len(factors))))
        rows = math.prod(factors[i].size for i in lanes)
        count = math.prod(factors[i].size for i in taps)
        tiles, per_tile = -(-rows // LANES), min(rows, LANES)
        w = add(nn.ReshapeOp(w, (rows, count, outputs)))
        if tiles * per_tile != rows:
            w = add(nn.PadOp(w, (0, 0, 0), (tiles * per_tile - rows, 0, 0)))
        return add(nn.ReshapeOp(w, (tiles, per_tile, count, outputs)))

    return transform


def lower_rows_product(
    stage: StageLowering, op: nn.MatmulOp, layer: Operation, after: Sequence[Operation], results: Results
) -> None:
    """`x @ weight` with rows of the result on the partitions: 64 rows of `x` are stationary, the weight moves, 512
    columns at a time.
    """
    context = stage.context
    lhs = context.origin(op.lhs)
    last = len(shape_of(lhs)) - 1
    row_axis = last - 1
    x = _contraction_on_partitions(stage, lhs, last, layer)
    rank = len(shape_of(results[0][1]))
    for _, outer in results:
        stage.new_home(outer, (rank - 2,))
    homes = [context.places(outer)[0] for _, outer in results]
    prepare(stage, after, layer, homes[0])
    weight = context.origin(op.rhs)
    stored = context.constant(weight, context.label(weight), row_weight(x, last))
    tiles, lanes, taps, columns = stored.shape
    kept: SSAValue | None = None
    pieces = columns // LANES if columns % LANES == 0 else 1
    size = tiles * taps * columns // pieces * 2
    here = context.residency.take(size, pieces, moved=size * lanes) * columns // pieces
    context.count("resident weights" if here == columns else "divided weights" if here else "streamed weights")
    if here:
        with context.code.at(context.top):
            kept = context.code.alloc(context.label(weight), (lanes, tiles, taps, here), stored.element, SBUF)
        with context.load.loop(tiles) as index:
            source = Access.of(stored.buffer, [index, 0, 0, 0], [1, lanes, taps, here])
            target = Access.of(kept, [0, index, 0, 0], [lanes, 1, taps, here])
            context.load.add(DmaOp(source, target, queue=WEIGHT_QUEUE))
    code = context.code
    batch = [axis for axis in range(row_axis) if shape_of(lhs)[axis] > 1]

    def product(first: Linear, size: int, stays: bool) -> None:
        """`size` columns of the result from `first` on."""
        if kept is not None and stays:
            buffer, start = kept, first
        else:
            buffer, start = code.alloc("weights", (lanes, tiles, taps, size), stored.element, SBUF), Linear()
            with code.loop(tiles) as index:
                source = Access.of(stored.buffer, [index, 0, 0, first], [1, lanes, taps, size])
                target = Access.of(buffer, [0, index, 0, 0], [lanes, 1, taps, size])
                code.add(DmaOp(source, target, queue=WEIGHT_QUEUE))
        for block, first_half, halves, count in row_blocks(shape_of(lhs)[row_axis]):
            with ExitStack() as stack:
                where = {axis: stack.enter_context(code.loop(shape_of(lhs)[axis])) for axis in batch}
                tile = stack.enter_context(code.loop(block.count)) + block.start
                half = stack.enter_context(code.loop(halves)) + first_half
                acc = Access.of(code.psum("acc", [count, size], f32))
                found = _rows_of(x, where, row_axis, tile * LANES + half * HALF, count)
                _row_sum(context, x, last, found, acc, buffer, start, size)
                ranges = {axis: (index, 1) for axis, index in where.items()} | {rank - 1: (first, size)}
                place = Tile(homes[0], ranges, (half * HALF, count), tile)
                finish(stage, Source(access=acc), place, op, None, layer, after, results, homes)

    part = BANK if here == columns else _streamed_columns(tiles * taps)
    inside = here // part

    def parts(start: Linear, count: int, stays: bool) -> None:
        with code.loop(count) as index:
            product((start + index) * part + (0 if stays else here), part, stays)

    alternate(code, inside, (columns - here) // part, parts)
    if here % part:
        product(Linear.wrap(inside * part), here % part, True)
    if (columns - here) % part:
        product(Linear.wrap(columns - (columns - here) % part), (columns - here) % part, False)


def _streamed_columns(depth: int) -> int:
    """Columns of a streamed weight with `depth` times 128 rows that are in SBUF at once: as many as a matmul moves,
    unless that takes much of the region that weights are streamed through."""
    return min(BANK, max(HALF, STREAM_PART // (2 * depth) // HALF * HALF))


def _row_sum(
    context: Context,
    x: Home,
    last: int,
    found: tuple[dict[int, Offset], dict[int, int], dict[int, int]],
    acc: Access,
    weight: SSAValue,
    column: Linear,
    columns: int,
) -> None:
    """`acc = sum over row tiles and taps` of rows of `x` times `columns` columns of the weight from `column` on."""
    code = context.code
    factors = x.merged().axes[last]
    rows = math.prod(f.size for f in factors if f.dim == 0)
    first_offsets, sizes, strides = found
    for position, part in enumerate(segments(rows, LANES)):
        with ExitStack() as stack:
            row = stack.enter_context(code.loop(part.count)) + part.start // LANES
            offsets = dict(first_offsets)
            flat = Linear()
            for factor in factors:
                if factor.dim == 0:
                    continue
                index = stack.enter_context(code.loop(factor.size))
                offsets[factor.dim] = Linear.wrap(offsets.get(factor.dim, 0)) + index * factor.stride
                flat = flat * factor.size + index
            stationary = x.access(offsets, sizes, strides, (0, part.size), row)
            moving = Access.of(weight, [0, row, flat, column], [part.size, 1, 1, columns])
            code.add(MatmulOp(acc, stationary, moving, flat + row if position == 0 else 1))


def _rows_of(
    home: Home, where: dict[int, Linear], row_axis: int, first: Linear, count: int
) -> tuple[dict[int, Offset], dict[int, int], dict[int, int]]:
    """Offsets, sizes and strides of `count` rows from `first` on, of the batch element `where`."""
    offsets: dict[int, Offset] = {}
    sizes: dict[int, int] = {}
    strides: dict[int, int] = {}
    for axis, index in (*where.items(), (row_axis, first)):
        for factor in home.merged().axes[axis]:
            offsets[factor.dim] = Linear.wrap(offsets.get(factor.dim, 0)) + index * factor.stride
            if axis == row_axis:
                sizes[factor.dim], strides[factor.dim] = count, factor.stride
    return offsets, sizes, strides


def _contraction_on_partitions(stage: StageLowering, value: SSAValue, axis: int, layer: Operation) -> Home:
    """A place with the contraction axis on the partitions (part of it may be free) and the others plain."""
    for home in stage.context.places(value):
        merged = home.merged()
        on = [f for f in merged.axes[axis] if f.dim == 0]
        alone = set(merged.partition_axes()) == {axis}
        if home.in_sbuf and not home.lane0 and on and alone and _simple(merged, axis):
            return home
    return stage.want(value, (axis,), layer)


def _simple(home: Home, axis: int) -> bool:
    return all(len(home.axes[a]) <= 1 for a in range(len(home.axes)) if a != axis)


def lower_product(
    stage: StageLowering, op: nn.MatmulOp, layer: Operation, after: Sequence[Operation], results: Results
) -> None:
    """A product of two activations, one batch element (head) at a time.

    Both need the contraction axis on the partitions. If the result's last axis is to be on the partitions, the right
    operand is stationary, else the left. Heads that share the partitions with the contraction axis (64 of 128 each)
    stay there.
    """
    context = stage.context
    lhs, rhs = op.lhs, op.rhs
    rank = len(shape_of(op.result))
    left_rank, right_rank = len(shape_of(lhs)), len(shape_of(rhs))
    if left_rank < 2 or right_rank < 2:
        raise NeuronError(
            "a product with a vector is not supported on the device", op=op, advice="reshape it to a matrix"
        )
    depth = shape_of(lhs)[-1]
    a, b = _operands(stage, lhs, rhs, left_rank - 1, right_rank - 2, depth, layer)
    wanted = context.partition_of[results[0][1]]
    turned = rank - 1 in wanted
    partition = wanted if turned or rank - 2 in wanted else (rank - 2,)
    out_axis = rank - 1 if turned else rank - 2
    if any(axis not in (out_axis, *range(rank - 2)) for axis in partition) or partition[-1] != out_axis:
        partition = (out_axis,)
    shared = [axis for axis in partition if axis != out_axis]
    size = shape_of(op.result)[out_axis]
    strides = {f.stride for home in (a, b) for _, f in home.merged().partition_factors() if f.stride != 1}
    if shared and (LANES % size or size % 32 or len(shared) > 1 or not strides <= {size}):
        partition, shared = (out_axis,), []
    for _, outer in results:
        stage.new_home(outer, partition)
    homes = [context.places(outer)[0] for _, outer in results]
    prepare(stage, after, layer, homes[0])
    _Product(stage, op, layer, after, results, homes, a, b, turned, shared).emit()


def _operands(
    stage: StageLowering, lhs: SSAValue, rhs: SSAValue, left_axis: int, right_axis: int, depth: int, layer: Operation
) -> tuple[Home, Home]:
    def candidates(value: SSAValue, axis: int) -> list[Home]:
        if stage.context.is_constant(value):
            return []
        found: list[Home] = []
        for home in stage.context.places(value):
            merged = home.merged()
            factors = merged.axes[axis]
            if not home.in_sbuf or home.lane0 or len(factors) != 1 or factors[0].dim != 0 or factors[0].stride != 1:
                continue
            if any(len(a) > 1 for a in merged.axes):
                continue
            others = [f.stride for _, f in merged.partition_factors() if f != factors[0]]
            if others and (others != [depth] or LANES % depth or depth % 32):
                continue
            found.append(home)
        return found

    def heads(home: Home) -> list[tuple[int, int, int]]:
        rank = len(home.axes)
        return [(axis - rank, f.size, f.stride) for axis, f in home.merged().partition_factors() if f.stride != 1]

    for value, axis in ((lhs, left_axis), (rhs, right_axis)):
        outer = stage.context.origin(value)
        if not stage.context.is_constant(value) and not stage.context.is_in_sbuf(outer):
            stage.turn_rows_behind(value, axis, layer)
    for left in candidates(lhs, left_axis):
        for right in candidates(rhs, right_axis):
            if heads(left) == heads(right):
                return left, right
    alone = [
        next((home for home in candidates(value, axis) if not heads(home)), None)
        for value, axis in ((lhs, left_axis), (rhs, right_axis))
    ]
    return (
        alone[0] or stage.want(lhs, (left_axis,), layer),
        alone[1] or stage.want(rhs, (right_axis,), layer),
    )


class _Product:
    def __init__(
        self,
        stage: StageLowering,
        op: nn.MatmulOp,
        layer: Operation,
        after: Sequence[Operation],
        results: Results,
        homes: list[Home],
        a: Home,
        b: Home,
        turned: bool,
        shared: list[int],
    ):
        self.stage, self.op, self.layer, self.after, self.results, self.homes = stage, op, layer, after, results, homes
        self.context: Context = stage.context
        self.a, self.b, self.turned, self.shared = a, b, turned, shared
        self.shape = shape_of(op.result)
        self.rank = len(self.shape)
        self.depth = shape_of(op.lhs)[-1]

    def emit(self) -> None:
        """Loops over batch axes, then tiles of rows and columns."""
        self.batch([axis for axis in range(self.rank - 2) if self.shape[axis] > 1], {}, {})

    def batch(
        self, left: Sequence[int], index: dict[int, Linear], split: dict[int, tuple[Linear, Linear, int]]
    ) -> None:
        """A loop for each batch axis; two where several of its elements (heads) share a partition tile."""
        if not left:
            self.tiles(index, split)
            return
        axis, *rest = left
        code, size, per_tile = self.context.code, self.shape[axis], self.per_tile(axis)
        for segment in segments(size, per_tile):
            with code.loop(segment.count) as outer_index, code.loop(segment.size) as inner:
                outer = outer_index + segment.start // per_tile
                here = {axis: (outer, inner, per_tile)} if per_tile > 1 else {}
                self.batch(rest, {**index, axis: outer * per_tile + inner}, {**split, **here})

    def per_tile(self, axis: int) -> int:
        """How many elements of a batch axis share a partition tile with the contraction axis or the result's rows."""
        found = 1
        for home, own_rank in ((self.a, len(self.a.axes)), (self.b, len(self.b.axes)), (self.homes[0], self.rank)):
            own = axis - (self.rank - own_rank)
            if own < 0:
                continue
            for factor in home.merged().axes[own]:
                if factor.dim == 0:
                    found = max(found, LANES // factor.stride)
        return found

    def tiles(self, index: dict[int, Linear], split: dict[int, tuple[Linear, Linear, int]]) -> None:
        code = self.context.code
        row_axis, column_axis = (self.rank - 1, self.rank - 2) if self.turned else (self.rank - 2, self.rank - 1)
        stationary, moving = (self.b, self.a) if self.turned else (self.a, self.b)
        for block, first_half, halves, count in row_blocks(self.shape[row_axis]):
            for chunk in segments(self.shape[column_axis], BANK):
                with ExitStack() as stack:
                    tile = stack.enter_context(code.loop(block.count)) + block.start
                    half = stack.enter_context(code.loop(halves)) + first_half
                    first = stack.enter_context(code.tiles(chunk))
                    acc = Access.of(code.psum("acc", [count, chunk.size], f32))
                    for position, part in enumerate(segments(self.depth, LANES)):
                        with code.loop(part.count) as step:
                            k = step + part.start // LANES
                            fixed = self.operand(
                                stationary,
                                self.turned,
                                tile * LANES + half * HALF,
                                count,
                                index,
                                split,
                                part.size,
                                k,
                            )
                            moved = self.operand(moving, not self.turned, first, chunk.size, index, split, part.size, k)
                            code.add(MatmulOp(acc, fixed, moved, k if position == 0 else 1))
                    lane: Offset = half * HALF
                    place_tile = tile
                    for axis in self.shared:
                        lane, place_tile = self.lanes_of(axis, self.shape[row_axis], index, split, half * HALF, tile)
                    ranges = {axis: (i, 1) for axis, i in index.items() if axis not in self.shared}
                    ranges[column_axis] = (first, chunk.size)
                    ordered = {axis: ranges[axis] for axis in sorted(ranges)}
                    place = Tile(self.homes[0], ordered, (lane, count), place_tile)
                    finish(
                        self.stage,
                        Source(access=acc),
                        place,
                        self.op,
                        None,
                        self.layer,
                        self.after,
                        self.results,
                        self.homes,
                    )

    @staticmethod
    def lanes_of(
        axis: int,
        stride: int,
        index: dict[int, Linear],
        split: dict[int, tuple[Linear, Linear, int]],
        lane: Linear,
        tile: Linear,
    ) -> tuple[Linear, Linear]:
        """Partition and tile of an element of a batch axis `stride` partitions apart, `lane` and `tile` within it."""
        if axis in split:
            outer, inner, _ = split[axis]
            return inner * stride + lane, outer
        return lane, index[axis] * (stride // LANES) + tile

    def operand(
        self,
        home: Home,
        right: bool,
        start: Linear,
        size: int,
        index: dict[int, Linear],
        split: dict[int, tuple[Linear, Linear, int]],
        lanes: int,
        tile: Linear,
    ) -> Access:
        """Rows (of the left) or columns (of the right operand) `start` on, for the batch element at `index`."""
        shift = self.rank - len(home.axes)
        own = len(home.axes) - 1 if right else len(home.axes) - 2
        offsets: dict[int, Offset] = {}
        sizes: dict[int, int] = {}
        strides: dict[int, int] = {}
        lane: Offset = 0
        merged = home.merged()
        for batch, i in index.items():
            mine = batch - shift
            if mine < 0 or not merged.axes[mine]:
                continue
            factor = merged.axes[mine][0]
            if factor.dim == 0:
                lane, tile = self.lanes_of(batch, factor.stride, index, split, Linear(), tile)
            else:
                offsets[factor.dim] = Linear.wrap(offsets.get(factor.dim, 0)) + i * factor.stride
        factors = merged.axes[own]
        if factors:
            dim = factors[0].dim
            offsets[dim] = Linear.wrap(offsets.get(dim, 0)) + start * factors[0].stride
            sizes[factors[0].dim], strides[factors[0].dim] = size, factors[0].stride
        return home.access(offsets, sizes, strides, (lane, lanes), tile)
