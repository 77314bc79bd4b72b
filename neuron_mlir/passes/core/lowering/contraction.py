"""Convolutions and products with weights: tiles of output channels by pixels, summed in PSUM over channel tiles and
taps.

The weight is stationary, 128 input channels by 64 output channels at a time; pixels move. A convolution reads its
input in place, one strided access per tap: nothing is unfolded in memory. A matrix product is a convolution without
taps; where its input has part of the contraction axis off the partitions (a flattened feature map), those positions
are taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from xdsl.dialects.builtin import f32
from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.dialects.core.memory import SBUF
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering.builder import Code, Segment, segments
from neuron_mlir.passes.core.lowering.context import WEIGHT_QUEUE, Context, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.layout import LANES, Home

HALF = 64
"""Columns of the PE array: output channels of one matmul."""
BANK = 512
"""f32 elements of a PSUM bank: pixels of one matmul."""


@dataclass(frozen=True)
class Tap:
    """A loop over window positions (or over part of the contraction axis): `count` steps of `step` elements in
    dimension `dim` of the input.
    """

    count: int
    dim: int
    step: int


@dataclass(frozen=True)
class Contraction:
    """What is summed: weight (rows on partitions, taps), and how often an output element steps in the input.

    Attributes:
        outputs: output channels.
        rows: input channels: elements on the partitions of the input.
        taps: loops over taps, outermost first.
        pixel_axes: axes of the result that move, outermost first, with the input dimension, step there, and start
            (negative in padding).
        channel_axis: axis of the result that is on the partitions.
    """

    outputs: int
    rows: int
    taps: tuple[Tap, ...]
    pixel_axes: tuple[tuple[int, int | None, int, int], ...]
    channel_axis: int

    @property
    def tap_count(self) -> int:
        """Matmuls per channel tile."""
        return math.prod(tap.count for tap in self.taps)

    @property
    def row_tiles(self) -> int:
        """Channel tiles of the input."""
        return -(-self.rows // LANES)

    @property
    def weight_shape(self) -> tuple[int, int, int, int, int]:
        """Of the re-laid weight: blocks of 64 outputs, rows of a tile, row tiles, taps, 64."""
        return (-(-self.outputs // HALF), min(self.rows, LANES), self.row_tiles, self.tap_count, HALF)

    @property
    def blocks(self) -> int:
        """Blocks of 64 outputs."""
        return self.weight_shape[0]

    @property
    def whole_tiles(self) -> int:
        """Into how many equal parts the weight may be divided: tiles of 128 outputs, if there are only whole ones."""
        return 1 if self.outputs % LANES else self.outputs // LANES

    @property
    def weight_bytes(self) -> int:
        """Bytes per partition of the whole weight in SBUF (16-bit elements)."""
        blocks, _, tiles, taps, columns = self.weight_shape
        return blocks * tiles * taps * columns * 2


def check_operands(op: nn.ConvOp | nn.ConvTransposeOp | nn.MatmulOp) -> None:
    """Raises `NeuronError` for operands that the PE array cannot multiply."""
    for name, value in zip(("left operand", "weight"), op.operands, strict=False):
        element = str(tensor_type(value).element_type)
        if element not in ("bf16", "f16"):
            raise NeuronError(
                f"the PE array has no {element} product ({name} of {op.name})",
                op=op,
                needed="bf16 or f16",
                available=element,
                advice="run nn-cast{mode=all} or nn-cast{mode=matmult} before pipe-stage",
            )


def conv_contraction(op: nn.ConvOp, x: Home) -> Contraction:
    """A convolution over an input whose channels are on the partitions."""
    outputs, channels = shape_of(op.w)[0], shape_of(op.x)[1]
    kernel = shape_of(op.w)[2:]
    taps: list[Tap] = []
    pixels: list[tuple[int, int | None, int, int]] = [(0, x.free_dim(0), 1, 0)]
    for axis, size in enumerate(kernel):
        dim = x.free_dim(2 + axis)
        if size > 1:
            if dim is None:
                raise NeuronError("a window needs its axis in memory", op=op)
            taps.append(Tap(size, dim, op.dilations[axis]))
        pixels.append((2 + axis, dim, op.strides[axis], -op.pads[axis]))
    return Contraction(outputs, channels, tuple(taps), tuple(pixels), 1)


def dense_weight(op: nn.ConvOp, x: Home) -> Callable[[SSAValue, Callable[[Operation], SSAValue]], SSAValue]:
    """The weight of a convolution as `Contraction.weight_shape`: groups written out with zeros, channels in the order
    they have on the partitions, both channel counts padded to full tiles."""

    def transform(w: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        group = op.group
        if group > 1:
            w = _spread_groups(w, group, add)
        outputs, channels, *kernel = shape_of(w)
        flat = add(nn.ReshapeOp(w, (outputs, channels, math.prod(kernel))))
        flat = physical_order(flat, 1, x, 1, add)
        # (outputs, rows, taps) -> (blocks, row of tile, tile, taps, 64)
        return tile_weight(flat, add)

    return transform


def tile_weight(w: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
    """(outputs, rows, taps) to (blocks, row of tile, tile, taps, 64), zeros where a tile is not full."""
    outputs, rows, taps = shape_of(w)
    blocks, tiles = -(-outputs // HALF), -(-rows // LANES)
    lanes = min(rows, LANES)
    high = (blocks * HALF - outputs, tiles * lanes - rows, 0)
    if any(high):
        w = add(nn.PadOp(w, (0, 0, 0), high))
    w = add(nn.ReshapeOp(w, (blocks, HALF, tiles, lanes, taps)))
    return add(nn.TransposeOp(w, (0, 3, 2, 4, 1)))


def physical_order(w: SSAValue, axis: int, x: Home, x_axis: int, add: Callable[[Operation], SSAValue]) -> SSAValue:
    """Reorder an axis of a weight from logical order to the order its elements have on the partitions of `x`."""
    factors = [f for f in x.merged().axes[x_axis] if f.dim == 0]
    if len(factors) < 2:
        return w
    shape = shape_of(w)
    sizes = [f.size for f in factors]
    w = add(nn.ReshapeOp(w, (*shape[:axis], *sizes, *shape[axis + 1 :])))
    order = sorted(range(len(factors)), key=lambda i: -factors[i].stride)
    before, after = list(range(axis)), list(range(axis + len(sizes), len(shape) + len(sizes) - 1))
    w = add(nn.TransposeOp(w, (*before, *(axis + i for i in order), *after)))
    return add(nn.ReshapeOp(w, shape))


def _spread_groups(w: SSAValue, group: int, add: Callable[[Operation], SSAValue]) -> SSAValue:
    outputs, channels, *kernel = shape_of(w)
    per_group = outputs // group
    parts: list[SSAValue] = []
    for index in range(group):
        start = (index * per_group, *(0,) * (len(kernel) + 1))
        part = add(nn.SliceOp(w, start, (per_group, channels, *kernel)))
        low, high = index * channels, (group - 1 - index) * channels
        zeros = (0,) * len(kernel)
        parts.append(add(nn.PadOp(part, (0, low, *zeros), (0, high, *zeros))))
    return add(nn.ConcatOp(parts, axis=0))


@dataclass
class Weight:
    """Where a contraction's weight is: in SBUF for good, or in DRAM to be streamed block by block.

    Attributes:
        stored: all of it, in DRAM.
        first: the first blocks, in SBUF; None when all are streamed.
        count: how many these are.
        total: how many there are.
    """

    stored: Home
    first: SSAValue | None
    count: int
    total: int

    @property
    def kept(self) -> SSAValue | None:
        """The buffer in SBUF that holds all of it, if there is one."""
        return self.first if self.count == self.total else None

    def block(
        self, context: Context, contraction: Contraction, index: Linear, kept: bool
    ) -> tuple[SSAValue, Linear | None]:
        """The buffer that holds block `index`, and the index there (None for a buffer of one block, loaded here).

        `kept` says whether it is one of those that stay.
        """
        if kept and self.first is not None:
            return self.first, index
        _, lanes, tiles, taps, columns = contraction.weight_shape
        buffer = context.code.alloc("weights", (lanes, tiles, taps, columns), self.stored.element, SBUF)
        source = Access.of(self.stored.buffer, [index, 0, 0, 0, 0], [1, lanes, tiles, taps, columns])
        context.code.add(DmaOp(source, Access.of(buffer), queue=WEIGHT_QUEUE))
        return buffer, None


def place_weight(context: Context, stored: Home, contraction: Contraction, count: int, label: str) -> Weight:
    """Load the first `count` blocks of a weight into SBUF once, and leave the others in DRAM."""
    total = contraction.blocks
    context.count("resident weights" if count == total else "divided weights" if count else "streamed weights")
    if not count:
        return Weight(stored, None, 0, total)
    with context.code.at(context.top):
        kept = context.code.alloc(label, _kept_shape(contraction, count), stored.element, SBUF)
    _load_blocks(context.load, stored, kept, contraction, count)
    return Weight(stored, kept, count, total)


def keep_for_layer(context: Context, weight: Weight, contraction: Contraction) -> Weight:
    """Load a whole streamed weight where code is being written, for the loops that follow."""
    total = contraction.blocks
    kept = context.code.alloc("weights", _kept_shape(contraction, total), weight.stored.element, SBUF)
    _load_blocks(context.code, weight.stored, kept, contraction, total)
    return Weight(weight.stored, kept, total, total)


def _kept_shape(contraction: Contraction, count: int) -> tuple[int, ...]:
    _, lanes, tiles, taps, columns = contraction.weight_shape
    return (lanes, count, tiles, taps, columns)


def _load_blocks(code: Code, stored: Home, kept: SSAValue, contraction: Contraction, count: int) -> None:
    _, lanes, tiles, taps, columns = contraction.weight_shape
    with code.loop(count) as index:
        source = Access.of(stored.buffer, [index, 0, 0, 0, 0], [1, lanes, tiles, taps, columns])
        target = Access.of(kept, [0, index, 0, 0, 0], [lanes, 1, tiles, taps, columns])
        code.add(DmaOp(source, target, queue=WEIGHT_QUEUE))


Epilogue = Callable[[Access, tuple[Linear | int, int], Linear, dict[int, tuple[Linear, int]]], None]
"""Called with the finished PSUM tile, its partitions in the result, the partition tile there, and `(offset, size)` of
each pixel axis.
"""


def pixel_tiles(sizes: Sequence[int]) -> list[int]:
    """How many of each pixel axis (outermost first) one matmul takes: whole inner axes, then as many rows as fill a
    bank evenly.
    """
    taken = [1] * len(sizes)
    room = BANK
    for position in reversed(range(len(sizes))):
        size = sizes[position]
        if size <= room:
            taken[position] = size
            room //= size
            continue
        pieces = -(-size // room)
        taken[position] = -(-size // pieces)
        break
    return taken


def emit_contraction(
    context: Context,
    contraction: Contraction,
    x: Home,
    weight: Weight,
    extents: Sequence[int],
    epilogue: Epilogue,
) -> None:
    """The loop nest: output blocks, pixel tiles, then the sum over row tiles and taps.

    `extents` is the number of output elements along each pixel axis.
    """
    taken = pixel_tiles(extents)
    full, rest = divmod(contraction.outputs, LANES)
    here = min(full, weight.count // 2)

    def whole_tiles(start: Linear, count: int, kept: bool) -> None:
        block = Block(start if kept else start + here, count, 2, HALF, kept)
        _emit_block(context, contraction, x, weight, extents, taken, block, epilogue)

    alternate(context.code, here, full - here, whole_tiles)
    for block in _last_blocks(full, rest, weight.count == weight.total):
        _emit_block(context, contraction, x, weight, extents, taken, block, epilogue)


def alternate(code: Code, here: int, away: int, emit: Callable[[Linear, int, bool], None]) -> None:
    """Write code for parts of a weight, of which `here` stay and `away` are streamed, in turns: streaming goes on while
    parts that stay are used.

    `emit` is called with the first of some parts of one kind, how many, and whether they stay.
    """
    turns = min(
        range(2, min(here, away) + 1), key=lambda n: (here % n + away % n, -n), default=0
    )  # with few parts left over
    done = [0, 0]
    if turns:
        done = [here - here % turns, away - away % turns]
        with code.loop(turns) as turn:
            emit(turn * (here // turns), here // turns, True)
            emit(turn * (away // turns), away // turns, False)
    for first, count, kept in ((done[0], here, True), (done[1], away, False)):
        if count > first:
            emit(Linear.wrap(first), count - first, kept)


@dataclass(frozen=True)
class Block:
    """Output channels: `count` tiles of 128 from tile `start` on, in each some blocks of so many channels.

    Attributes:
        halves: blocks in a tile; -1 is one, the second.
        kept: whether their weights stay in SBUF.
    """

    start: Linear
    count: int
    halves: int
    channels: int
    kept: bool


def _last_blocks(tile: int, rest: int, kept: bool) -> list[Block]:
    """The blocks of a tile that is not full."""
    found: list[Block] = []
    if rest >= HALF:
        found.append(Block(Linear.wrap(tile), 1, 1, HALF, kept))
    if rest % HALF:
        found.append(Block(Linear.wrap(tile), 1, -1 if rest > HALF else 1, rest % HALF, kept))
    return found


def _emit_block(
    context: Context,
    contraction: Contraction,
    x: Home,
    weight: Weight,
    extents: Sequence[int],
    taken: Sequence[int],
    block: Block,
    epilogue: Epilogue,
) -> None:
    code, channels = context.code, block.channels
    with code.loop(block.count) as tile_index, code.loop(abs(block.halves)) as half_index:
        half = half_index + (1 if block.halves < 0 else 0)
        tile = block.start + tile_index
        buffer, slot = weight.block(context, contraction, tile * 2 + half, block.kept)
        for piece in _products([segments(extent, size) for extent, size in zip(extents, taken, strict=True)]):
            with ExitStack() as stack:
                starts = [stack.enter_context(code.tiles(part)) for part in piece]
                ranges = {
                    axis: (start, part.size)
                    for (axis, _, _, _), start, part in zip(contraction.pixel_axes, starts, piece, strict=True)
                }
                sizes = [part.size for part in piece]
                acc = Access.of(code.psum("acc", [channels, *sizes], f32))
                _emit_sum(context, contraction, x, (buffer, slot), acc, starts, sizes, channels)
                epilogue(acc, (half * HALF, channels), tile, ranges)


def _products(parts: list[list[Segment]]) -> list[list[Segment]]:
    combined: list[list[Segment]] = [[]]
    for options in parts:
        combined = [[*chosen, option] for chosen in combined for option in options]
    return combined


def _emit_sum(
    context: Context,
    contraction: Contraction,
    x: Home,
    weight: tuple[SSAValue, Linear | None],
    acc: Access,
    starts: Sequence[Linear],
    sizes: Sequence[int],
    channels: int,
) -> None:
    """`acc = sum over row tiles and taps`: the first product overwrites, the others add."""
    code = context.code
    row_parts = segments(contraction.rows, LANES)
    for position, part in enumerate(row_parts):
        with ExitStack() as stack:
            row = stack.enter_context(code.loop(part.count)) + part.start // LANES
            taps = [stack.enter_context(code.loop(tap.count)) for tap in contraction.taps]
            offsets: dict[int, int | SSAValue | Linear] = {}
            strides: dict[int, int] = {}
            taken: dict[int, int] = {}
            for (_, dim, step, first), start, size in zip(contraction.pixel_axes, starts, sizes, strict=True):
                if dim is None:
                    continue
                offsets[dim] = start * step + first
                taken[dim], strides[dim] = size, step
            for tap, index in zip(contraction.taps, taps, strict=True):
                offsets[tap.dim] = Linear.wrap(offsets.get(tap.dim, 0)) + index * tap.step
            moving = x.access(offsets, taken, strides, (0, part.size), row + x.lane0 // LANES)
            flat_tap = Linear()
            for tap, index in zip(contraction.taps, taps, strict=True):
                flat_tap = flat_tap * tap.count + index
            buffer, slot = weight
            where: list[int | SSAValue | Linear] = [0, row, flat_tap, 0]
            counts = [part.size, 1, 1, channels]
            if slot is not None:
                where.insert(1, slot)
                counts.insert(1, 1)
            stationary = Access.of(buffer, where, counts)
            init: Linear = flat_tap + (row if position == 0 else 1)
            if position > 0:
                init = Linear.wrap(1)
            code.add(MatmulOp(acc, stationary, moving, init))


def matmul_contraction(op: nn.MatmulOp, x: Home) -> Contraction | None:
    """`x @ weight` with the contraction axis of `x` (its last) on the partitions, or None when its layout does not
    allow it.
    """
    shape = shape_of(op.lhs)
    outputs = shape_of(op.rhs)[-1]
    last = len(shape) - 1
    home = x.merged()
    # An axis of size 1 has no factors: it is the one row of every product.
    if set(home.partition_axes()) != ({last} if shape[last] > 1 else set[int]()):
        return None
    rows = math.prod(f.size for f in home.axes[last] if f.dim == 0)
    taps = tuple(Tap(f.size, f.dim, f.stride) for f in home.axes[last] if f.dim != 0)
    pixels: list[tuple[int, int | None, int, int]] = []
    for axis in range(last):
        factors = home.axes[axis]
        if len(factors) > 1:
            return None
        pixels.append((axis, factors[0].dim, factors[0].stride, 0) if factors else (axis, None, 1, 0))
    return Contraction(outputs, rows, taps, tuple(pixels), last)


def matmul_weight(x: Home, axis: int) -> Callable[[SSAValue, Callable[[Operation], SSAValue]], SSAValue]:
    """A weight (contraction, outputs) as `Contraction.weight_shape`, its contraction axis split into partitions and
    taps as in `x`.
    """

    def transform(w: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        factors = x.merged().axes[axis]
        outputs = shape_of(w)[-1]
        w = add(nn.ReshapeOp(w, (*(f.size for f in factors), outputs)))
        lanes = sorted((i for i, f in enumerate(factors) if f.dim == 0), key=lambda i: -factors[i].stride)
        taps = [i for i, f in enumerate(factors) if f.dim != 0]
        w = add(nn.TransposeOp(w, (len(factors), *lanes, *taps)))
        rows = math.prod(factors[i].size for i in lanes)
        return tile_weight(add(nn.ReshapeOp(w, (outputs, rows, math.prod(factors[i].size for i in taps)))), add)

    return transform
