"""DMA between any two placements of a tensor: the one general way to move data, used for loads, stores, concatenation
and re-layout.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from xdsl.ir import Operation

from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering.builder import Code, segments
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home, Offset, refine

SHORT = 16
"""A dimension of at most so many elements is worth a loop of DMAs if that keeps the others in order."""
Pair = tuple[Factor | None, Factor | None]


def copy_by_dma(code: Code, source: Home, target: Home, layer: Operation, queue: int | None = None) -> None:
    """DMA `source` to `target`, which have one logical shape (a source axis of size 1 broadcasts).

    As few transfers as placements allow: each moves at most one factor per buffer dimension on either side; the
    others become loops, or are unrolled where they move the first partition.

    Raises `NeuronError` when the factors of the two do not divide each other.
    """
    pairs = refine(source.merged().axes, target.merged().axes)
    if pairs is None:
        raise NeuronError(
            f"cannot move {source.logical} between these layouts: their factors do not divide each other", op=layer
        )
    moved, looped, unrolled = _split(pairs, source, target)
    for indices in itertools.product(*(range(_size(pair)) for pair in unrolled)):
        lanes = [source.lane0, target.lane0]
        fixed: list[dict[int, Offset]] = [{}, {}]
        for index, pair in zip(indices, unrolled, strict=True):
            for side, factor in enumerate(pair):
                if factor is None:
                    continue
                if factor.dim == 0 and (source, target)[side].in_sbuf:
                    lanes[side] += index * factor.stride
                else:
                    fixed[side][factor.dim] = Linear.wrap(fixed[side].get(factor.dim, 0)) + index * factor.stride
        _loops(code, (source, target), moved, looped, lanes, fixed, queue)


def _size(pair: Pair) -> int:
    factor = pair[0] if pair[0] is not None else pair[1]
    assert factor is not None
    return factor.size


def _on_lanes(pair: Pair, sides: tuple[Home, Home]) -> list[Factor]:
    """The factors of a pair that are on partitions."""
    return [f for f, home in zip(pair, sides, strict=True) if f is not None and home.in_sbuf and f.dim == 0]


def _split(pairs: list[Pair], source: Home, target: Home) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Which pairs one DMA moves, which are loops around it, and which are written out one by one."""
    moved: list[Pair] = []
    looped: list[Pair] = []
    unrolled: list[Pair] = []
    used: tuple[set[int], set[int]] = (set(), set())
    repeats = len(_spare(source))
    sides = (source, target)

    # Long runs first, so that a DMA takes as much as it can.
    for pair in sorted(pairs, key=lambda p: (not _on_lanes(p, sides), -_size(p))):
        lanes = _on_lanes(pair, sides)
        dims = [factor.dim if factor is not None else None for factor in pair]
        free = all(dim is None or dim not in taken for dim, taken in zip(dims, used, strict=True))
        if pair[0] is None and not repeats:
            free = False  # nothing is left to repeat the source along
        if free and all(factor.stride == 1 for factor in lanes) and len(moved) < 5:
            moved.append(pair)
            repeats -= pair[0] is None
            for dim, taken in zip(dims, used, strict=True):
                if dim is not None:
                    taken.add(dim)
        elif lanes:
            unrolled.append(pair)
        else:
            looped.append(pair)
    for pair in sorted(moved, key=_size):
        # A short outer dimension out of order (images of a batch) is a loop; a DMA that reorders is paid for element
        # by element.
        if (
            _size(pair) <= SHORT
            and not _on_lanes(pair, sides)
            and not _ordered(moved)
            and _ordered([p for p in moved if p is not pair])
        ):
            moved.remove(pair)
            looped.append(pair)
    return moved, looped, unrolled


def _ordered(pairs: list[Pair]) -> bool:
    """Whether source and target take the dimensions in the same order."""
    both = [(a.dim, b.dim) for a, b in pairs if a is not None and b is not None]
    return sorted(both) == sorted(both, key=lambda dims: dims[1])


def _loops(
    code: Code,
    sides: tuple[Home, Home],
    moved: list[Pair],
    looped: list[Pair],
    lanes: list[int],
    fixed: list[dict[int, Offset]],
    queue: int | None,
) -> None:
    if looped:
        pair, *rest = looped
        with code.loop(_size(pair)) as index:
            inner = [dict(side) for side in fixed]
            for side, factor in enumerate(pair):
                if factor is not None:
                    inner[side][factor.dim] = Linear.wrap(inner[side].get(factor.dim, 0)) + index * factor.stride
            _loops(code, sides, moved, rest, lanes, inner, queue)
        return
    _transfers(code, sides, moved, lanes, fixed, queue)


@dataclass
class _Side:
    """What one DMA touches of one side: see `Home.access`. `dims` is the dimension of each moved pair, -1 for none."""

    home: Home
    offsets: dict[int, Offset]
    sizes: dict[int, int]
    strides: dict[int, int]
    lane: tuple[Offset, int]
    tile: Offset
    dims: list[int]

    def access(self) -> Access:
        return self.home.access(self.offsets, self.sizes, self.strides, self.lane, self.tile)


def _transfers(
    code: Code,
    sides: tuple[Home, Home],
    moved: list[Pair],
    lanes: list[int],
    fixed: list[dict[int, Offset]],
    queue: int | None,
) -> None:
    """The DMAs of one loop body: several where a run of partitions crosses tiles, in a loop over tiles of a long
    run.
    """
    run = next((i for i, pair in enumerate(moved) if _on_lanes(pair, sides)), None)
    count = 1 if run is None else _size(moved[run])
    first = [0, 0]
    for i, home in enumerate(sides):
        factor = None if run is None else moved[run][i]
        if home.in_sbuf and factor is not None and factor.dim == 0:
            first[i] = lanes[i]
    # Where one side begins a new tile; the pattern repeats every 128 partitions.
    cuts = sorted({0} | {-lane % LANES for lane in first})
    for segment in segments(count, LANES):
        ends = [*(cut for cut in cuts if cut < segment.size), segment.size]
        with code.loop(segment.count) as tile:
            for begin, end in itertools.pairwise(ends):
                start = begin + segment.start
                pieces = [(end - begin, start) if i == run else (_size(pair), 0) for i, pair in enumerate(moved)]
                src, dst = (
                    _side(home, [pair[i] for pair in moved], pieces, lanes[i], fixed[i], run, tile)
                    for i, home in enumerate(sides)
                )
                _repeat(src, [size for size, _ in pieces])
                order = sorted(range(len(moved)), key=lambda i, dims=dst.dims: dims[i])
                wanted = [src.dims[i] for i in order if pieces[i][0] > 1]
                permute = None
                if wanted != sorted(wanted):
                    permute = wanted + [d for d in range(len(src.home.shape)) if d not in wanted]
                code.add(DmaOp(src.access(), dst.access(), permute, queue))


def _side(
    home: Home,
    factors: list[Factor | None],
    pieces: list[tuple[int, int]],
    at: int,
    fixed: dict[int, Offset],
    run: int | None,
    index: Linear,
) -> _Side:
    """One side of a DMA. `pieces` is what it takes of each factor, `(size, start)`; that of the run of partitions
    moves on by a tile with each step of the loop over `index`.
    """
    side = _Side(home, dict(fixed), {}, {}, (at % LANES, 1), at // LANES, [])
    for position, (factor, (size, start)) in enumerate(zip(factors, pieces, strict=True)):
        side.dims.append(-1 if factor is None else factor.dim)
        if factor is None:
            continue
        if home.in_sbuf and factor.dim == 0:
            side.lane, side.tile = ((at + start) % LANES, size), index + (at + start) // LANES
            continue
        begin = index * LANES + start if position == run else Linear.wrap(start)
        side.offsets[factor.dim] = Linear.wrap(side.offsets.get(factor.dim, 0)) + begin * factor.stride
        side.sizes[factor.dim], side.strides[factor.dim] = size, factor.stride
    return side


def _spare(home: Home) -> list[int]:
    """Dimensions that may be walked without a step, to repeat what is there: those of size 1, and a ring's slots."""
    taken = {factor.dim for axis in home.axes for factor in axis}
    if home.in_sbuf:
        taken |= {0, home.tile_dim}
    return sorted(set(range(len(home.shape))) - taken, key=lambda d: (home.slot is None or d != home.slot[1], d))


def _repeat(src: _Side, sizes: list[int]) -> None:
    """A factor the source does not have is repeated: stride 0 along a dimension that is not otherwise used."""
    spare = _spare(src.home)
    for position, dim in enumerate(src.dims):
        if dim < 0:
            src.dims[position] = dim = spare.pop()
            src.sizes[dim], src.strides[dim] = sizes[position], 0
