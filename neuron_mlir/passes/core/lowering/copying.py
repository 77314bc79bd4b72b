"""DMA between any two placements of a tensor: the one general way to move data, used for loads, stores, concatenation and re-layout."""

from __future__ import annotations

import itertools

from xdsl.ir import Operation

from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering.builder import Code
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home, Offset, lane_runs, refine

SHORT = 16
"""A dimension of at most so many elements is worth a loop of DMAs if that keeps the others in order."""
Pair = tuple[Factor | None, Factor | None]


def copy_by_dma(code: Code, source: Home, target: Home, layer: Operation, queue: int | None = None) -> None:
    """DMA `source` to `target`, which have one logical shape (a source axis of size 1 broadcasts).

    As few transfers as placements allow: each moves at most one factor per buffer dimension on either side; the others become loops, or are unrolled
    where they move the first partition.

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
        _loops(code, source, target, moved, looped, lanes, fixed, queue)


def _size(pair: Pair) -> int:
    factor = pair[0] if pair[0] is not None else pair[1]
    assert factor is not None
    return factor.size


def _split(pairs: list[Pair], source: Home, target: Home) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Which pairs one DMA moves, which are loops around it, and which are written out one by one."""
    moved: list[Pair] = []
    looped: list[Pair] = []
    unrolled: list[Pair] = []
    used: tuple[set[int], set[int]] = (set(), set())
    sides = (source, target)

    def on_lanes(pair: Pair) -> list[Factor]:
        return [f for f, home in zip(pair, sides, strict=True) if f is not None and home.in_sbuf and f.dim == 0]

    # Long runs first, so that a DMA takes as much as it can.
    for pair in sorted(pairs, key=lambda p: (not on_lanes(p), -_size(p))):
        lanes = on_lanes(pair)
        dims = [factor.dim if factor is not None else None for factor in pair]
        free = all(dim is None or dim not in taken for dim, taken in zip(dims, used, strict=True))
        if free and all(factor.stride == 1 for factor in lanes) and len(moved) < 5:
            moved.append(pair)
            for dim, taken in zip(dims, used, strict=True):
                if dim is not None:
                    taken.add(dim)
        elif lanes:
            unrolled.append(pair)
        else:
            looped.append(pair)
    for pair in sorted(moved, key=_size):
        # A short outer dimension out of order (images of a batch) is a loop; a DMA that reorders is paid for element by element.
        if (
            _size(pair) <= SHORT
            and not on_lanes(pair)
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
    source: Home,
    target: Home,
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
            _loops(code, source, target, moved, rest, lanes, inner, queue)
        return
    _transfers(code, source, target, moved, lanes, fixed, queue)


def _transfers(
    code: Code,
    source: Home,
    target: Home,
    moved: list[Pair],
    lanes: list[int],
    fixed: list[dict[int, Offset]],
    queue: int | None,
) -> None:
    """The DMAs of one loop body: several where a run of partitions crosses tiles."""
    sides = (source, target)
    lane_pair = next(
        (
            pair
            for pair in moved
            if any(f is not None and home.in_sbuf and f.dim == 0 for f, home in zip(pair, sides, strict=True))
        ),
        None,
    )
    count = 1 if lane_pair is None else _size(lane_pair)
    runs: list[list[tuple[int, int, int, int]]] = []
    for side, home in enumerate(sides):
        factor = None if lane_pair is None else lane_pair[side]
        if home.in_sbuf and factor is not None and factor.dim == 0:
            runs.append(lane_runs(lanes[side], count))
        elif home.in_sbuf:
            tile, lane = divmod(lanes[side], LANES)
            runs.append([(tile, lane, 1, 0)])
        else:
            runs.append([])
    cuts = sorted({0, count} | {piece[3] for run in runs for piece in run})
    for begin, end in itertools.pairwise(cuts):
        accesses: list[object] = []
        dims: list[list[int]] = [[], []]
        for side, home in enumerate(sides):
            offsets = dict(fixed[side])
            sizes: dict[int, int] = {}
            strides: dict[int, int] = {}
            lane: tuple[Offset, int] = (0, 1)
            tile: Offset = 0
            if home.in_sbuf:
                at = lanes[side]
                factor = None if lane_pair is None else lane_pair[side]
                on_lane = factor is not None and factor.dim == 0
                at += begin if on_lane else 0
                lane, tile = (at % LANES, end - begin if on_lane else 1), at // LANES
            for pair in moved:
                factor = pair[side]
                size, start = (end - begin, begin) if pair is lane_pair else (_size(pair), 0)
                if factor is None:
                    dims[side].append(-1)
                    continue
                dims[side].append(factor.dim)
                if home.in_sbuf and factor.dim == 0:
                    continue
                offsets[factor.dim] = Linear.wrap(offsets.get(factor.dim, 0)) + start * factor.stride
                sizes[factor.dim] = size
                strides[factor.dim] = factor.stride
            accesses.append((home, offsets, sizes, strides, lane, tile))
        _emit(code, accesses, dims, moved, (end - begin, lane_pair), queue)


def _emit(
    code: Code,
    accesses: list[object],
    dims: list[list[int]],
    moved: list[Pair],
    run: tuple[int, Pair | None],
    queue: int | None,
) -> None:
    built = []
    for side in range(2):
        home, offsets, sizes, strides, lane, tile = accesses[side]  # type: ignore[misc]
        if side == 0:
            # A factor the source does not have is broadcast: stride 0 on a dimension of size 1 that is not otherwise used.
            spare = [
                d for d in range(len(home.shape)) if d not in dims[0] and d != (home.tile_dim if home.in_sbuf else -1)
            ]
            if home.slot is not None:
                spare = [d for d in spare if d != home.slot[1]]
            if home.in_sbuf:
                spare = [d for d in spare if d != 0]
            for position, pair in enumerate(moved):
                if pair[0] is None:
                    dim = spare.pop()
                    dims[0][position] = dim
                    sizes[dim] = run[0] if pair is run[1] else _size(pair)
                    strides[dim] = 0
        built.append(home.access(offsets, sizes, strides, lane, tile))
    src, dst = built
    order = sorted(range(len(moved)), key=lambda p: dims[1][p])
    wanted = [dims[0][p] for p in order if (run[0] if moved[p] is run[1] else _size(moved[p])) > 1]
    permute = None
    if wanted != sorted(wanted):
        permute = wanted + [d for d in range(len(src.sizes)) if d not in wanted]
    code.add(DmaOp(src, dst, permute, queue))
