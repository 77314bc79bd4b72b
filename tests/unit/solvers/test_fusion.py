"""Grouping layers into intervals: the best of all covers, as enumerating them shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.solvers.fusion import cover_intervals, group_intervals


def covers(count: int) -> Iterator[list[tuple[int, int]]]:
    """All ways to cut `count` layers into intervals."""
    for cuts in itertools.product([False, True], repeat=count - 1):
        ends = [0, *(n + 1 for n, cut in enumerate(cuts) if cut), count]
        yield list(itertools.pairwise(ends))


Costs = dict[tuple[int, int], int | None]


@st.composite
def costs(draw: st.DrawFn) -> tuple[int, Costs]:
    """Costs of all intervals: from some length on there are none."""
    count = draw(st.integers(1, 7))
    found: Costs = {}
    for start in range(count):
        reach = draw(st.integers(start + 1, count))
        for stop in range(start + 1, count + 1):
            found[start, stop] = draw(st.integers(0, 20)) if stop <= reach else None
    return count, found


@settings(max_examples=150, deadline=None)
@given(costs(), st.integers(1, 7))
def test_no_cover_is_cheaper(given_costs: tuple[int, Costs], longest: int) -> None:
    count, table = given_costs
    answer = group_intervals(count, lambda i, j: table[i, j], longest=longest)
    best = min(
        sum(table[i] or 0 for i in cover)
        for cover in covers(count)
        if all(table[i] is not None and i[1] - i[0] <= longest for i in cover)
    )
    assert answer.certificate.objective == answer.certificate.lower_bound == best
    assert sum(table[i] or 0 for i in answer.intervals) == best
    assert [n for i in answer.intervals for n in range(*i)] == list(range(count))
    bounded = group_intervals(
        count, lambda i, j: table[i, j], longest=longest, least=lambda i, j: (table[i, j] or 0) // 2
    )
    assert bounded.certificate.objective == best


@settings(max_examples=100, deadline=None)
@given(costs(), st.integers(1, 7))
def test_runs_of_layers_are_covered_as_if_they_were_all(given_costs: tuple[int, Costs], longest: int) -> None:
    count, table = given_costs

    def cost(start: int, stop: int) -> int | None:
        return table[start, stop]

    times, pieces = cover_intervals(
        count,
        cost,
        (lambda i, j: table[i, j] or 0, lambda i, j: j - i),
        longest,
        least=lambda i, j: (table[i, j] or 0) // 2,
    )
    for first in range(count):
        for stop in range(first + 1, count + 1):
            alone = group_intervals(stop - first, lambda i, j, at=first: table[at + i, at + j], longest=longest)
            assert times[first][stop] == alone.certificate.objective
            assert pieces[first][stop] == stop - first


def test_bounds_spare_looking_at_groups() -> None:
    looked: list[tuple[int, int]] = []

    def cost(start: int, stop: int) -> int:
        looked.append((start, stop))
        return (stop - start) ** 2

    answer = group_intervals(12, cost, least=lambda i, j: (j - i) ** 2)
    assert answer.intervals == tuple((n, n + 1) for n in range(12))
    assert looked == [(n, n + 1) for n in range(12)]


def test_a_layer_must_have_a_cost_of_its_own() -> None:
    with pytest.raises(ValueError, match="layer 1 has no cost"):
        group_intervals(2, lambda i, j: None if i == 1 else 1)
