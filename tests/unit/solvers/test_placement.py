"""Stages along the chain of chips: the best of all placements, by trying all."""

from __future__ import annotations

import random
from itertools import product

from neuron_mlir.solvers.placement import place_on_chain


def worst(cores: tuple[int, ...], dram: list[int], crossing: list[int], per_chip: int) -> int:
    """Of a placement, as its definition says."""
    chips: dict[int, int] = {}
    for core, time in zip(cores, dram, strict=True):
        chips[core // per_chip] = chips.get(core // per_chip, 0) + time
    borders = [crossing[n] for n in range(1, len(cores)) if cores[n] // per_chip != cores[n - 1] // per_chip]
    return max([*chips.values(), *borders])


def test_against_all_placements() -> None:
    """Every way to skip to the next chip, on small chains."""
    values = random.Random(1)
    for _ in range(60):
        count, per_chip = values.randint(1, 7), values.randint(1, 4)
        first, room = values.randint(0, 3), count + values.randint(0, 6)
        dram = [values.randint(0, 20) for _ in range(count)]
        crossing = [values.randint(0, 40) for _ in range(count)]
        best: int | None = None
        for skips in product((False, True), repeat=count - 1):
            cores = [first]
            for skip in skips:
                cores.append((cores[-1] // per_chip + 1) * per_chip if skip else cores[-1] + 1)
            if cores[-1] - first < room:
                found = worst(tuple(cores), dram, crossing, per_chip)
                best = found if best is None else min(best, found)
        placement = place_on_chain(dram, crossing, per_chip, first, room)
        assert placement.worst_ps == best == worst(placement.cores, dram, crossing, per_chip)
        assert placement.cores[0] == first and placement.cores[-1] - first < room
        assert all(a < b for a, b in zip(placement.cores, placement.cores[1:], strict=False))


def test_nothing_is_skipped_for_nothing() -> None:
    assert place_on_chain([1] * 6, [9] * 6, 4, 0, 16).cores == (0, 1, 2, 3, 4, 5)
    assert place_on_chain([1] * 6, [0, 9, 9, 2, 9, 9], 4, 0, 16).cores == (0, 1, 2, 4, 5, 6)
    assert place_on_chain([1] * 6, [0, 9, 9, 2, 9, 9], 4, 0, 16, enough_ps=9).cores == (0, 1, 2, 3, 4, 5)
    assert place_on_chain([1] * 6, [0, 9, 9, 2, 9, 9], 4, 2, 6).cores == (2, 3, 4, 5, 6, 7)
