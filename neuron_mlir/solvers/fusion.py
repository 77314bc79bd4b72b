"""Grouping a sequence of layers: which neighbours run as one group, so that the sum of what groups cost is least.

With the order given, groups are intervals, and a dynamic program over the end of the last group is exact: `best[j]` is
the least of `best[i] + cost(i, j)`. Forks and joins need nothing special, as an interval holds whatever lies between
its ends; they are in what `cost` says. (tpu-mlir and others group layers by such a program.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neuron_mlir.solvers.certificate import Certificate


@dataclass(frozen=True)
class Grouping:
    """Intervals `[start, stop)` that cover the layers, in order."""

    intervals: tuple[tuple[int, int], ...]
    certificate: Certificate


def group_intervals(
    count: int,
    cost: Callable[[int, int], int | None],
    unit: str = "ps",
    longest: int | None = None,
    least: Callable[[int, int], int] | None = None,
) -> Grouping:
    """The cheapest cover of layers `0..count-1` by intervals.

    Args:
        count: layers.
        cost: of layers `i` to `j - 1` as one group, at least 0; None where they cannot be one. An interval of one
            layer can always be. If an interval cannot be a group, longer ones that begin there are not looked at, and
            the certificate does not speak of them.
        unit: of the cost.
        longest: most layers in a group.
        least: no more than the cost of layers `i` to `j - 1` as one group, and quicker to tell: groups that cannot be
            part of the best cover are not looked at.

    Raises `ValueError` for a single layer without a cost.
    """
    best: list[int] = [0]
    before: list[int] = [0]
    reach = [0] * (count + 1)
    for start in range(count):
        reach[start] = count if longest is None else min(count, start + longest)
    for stop in range(1, count + 1):
        chosen: tuple[int, int] | None = None
        for start in range(stop - 1, -1, -1):
            if reach[start] < stop:
                continue
            if least is not None and chosen is not None and best[start] + least(start, stop) >= chosen[0]:
                continue
            own = cost(start, stop)
            if own is None:
                reach[start] = stop - 1
                if stop - start == 1:
                    raise ValueError(f"layer {start} has no cost of its own")
                continue
            total = best[start] + own
            if chosen is None or total < chosen[0]:
                chosen = total, start
        assert chosen is not None
        best.append(chosen[0])
        before.append(chosen[1])
    intervals: list[tuple[int, int]] = []
    stop = count
    while stop > 0:
        intervals.append((before[stop], stop))
        stop = before[stop]
    method = "interval DP over the order of the program"
    return Grouping(tuple(reversed(intervals)), Certificate(best[count], best[count], unit, method))


def cover_intervals(
    count: int,
    cost: Callable[[int, int], int | None],
    amounts: Sequence[Callable[[int, int], int]],
    longest: int | None = None,
    least: Callable[[int, int], int] | None = None,
) -> list[list[list[int]]]:
    """For each of `amounts` the sum over the intervals of the cheapest cover of layers `start` to `stop - 1`, as
    `group_intervals` finds it for all layers: `[start][stop]`, with 0 where there are no layers.

    Each interval's cost and amounts are asked for at most once. Raises `ValueError` for a single layer without a cost.
    """
    known: dict[tuple[int, int], int | None] = {}
    added: dict[tuple[int, int], list[int]] = {}
    reach = [count if longest is None else min(count, start + longest) for start in range(count)]
    # Where the last interval of a cover may begin, for each of its ends: what turns out to be none leaves.
    left: list[Sequence[int]] = [
        range(stop - 1, -1 if longest is None else max(-1, stop - 1 - longest), -1) for stop in range(count + 1)
    ]
    found: list[list[list[int]]] = [[] for _ in amounts]
    for first in range(count):
        best = [0] * (count + 1)
        sums = [[0] * (count + 1) for _ in amounts]
        for stop in range(first + 1, count + 1):
            chosen: tuple[int, int] | None = None
            fewer = False
            for start in left[stop]:
                if start < first:
                    break
                if reach[start] < stop:
                    fewer = True
                    continue
                if least is not None and chosen is not None and best[start] + least(start, stop) >= chosen[0]:
                    continue
                if (start, stop) not in known:
                    known[start, stop] = cost(start, stop)
                own = known[start, stop]
                if own is None:
                    reach[start] = stop - 1
                    if stop - start == 1:
                        raise ValueError(f"layer {start} has no cost of its own")
                    fewer = True
                    continue
                if chosen is None or best[start] + own < chosen[0]:
                    chosen = best[start] + own, start
            if fewer:
                left[stop] = [start for start in left[stop] if reach[start] >= stop]
            assert chosen is not None
            best[stop], before = chosen
            if (before, stop) not in added:
                added[before, stop] = [amount(before, stop) for amount in amounts]
            for total, own in zip(sums, added[before, stop], strict=True):
                total[stop] = total[before] + own
        for every, total in zip(found, sums, strict=True):
            every.append(total)
    return found
