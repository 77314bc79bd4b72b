"""Depths of buffers: what is found gets through, and it is found whenever there is any (all depths are tried)."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.solvers.stream_depths import Event, Stuck, least_depths, run

MOST = 4


def process(steps: list[tuple[str, int]]) -> list[Event]:
    """Events of `take`, `give` (reserve a slot and fill it), `reserve`, `fill` and `free`, each with its buffer."""
    done: dict[tuple[str, int], int] = {}
    found: list[Event] = []
    for kind, buffer in steps:
        for one in ("reserve", "fill") if kind == "give" else ("take", "free") if kind == "eat" else (kind,):
            count = done[one, buffer] = done.get((one, buffer), 0) + 1
            if one == "take":
                found.append(Event(2 * buffer, count))
            elif one == "reserve":
                found.append(Event(2 * buffer + 1, count, buffer))
            else:
                found.append(Event(2 * buffer + (one == "free")))
    return found


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[list[Event]], int]:
    """Processes along a line, with buffers from earlier to later ones; each goes through its events in some order."""
    count = draw(st.integers(2, 4))
    ends = [(n, n + 1) for n in range(count - 1)]
    ends += [(0, draw(st.integers(1, count - 1)))] if draw(st.booleans()) else []
    steps: list[list[tuple[str, int]]] = [[] for _ in range(count)]
    for buffer, (writer, reader) in enumerate(ends):
        total = draw(st.integers(1, 4))
        steps[writer] += [("give", buffer)] * total
        steps[reader] += [("eat", buffer)] * total
    return [process(draw(st.permutations(own))) for own in steps], len(ends)


@settings(max_examples=100, deadline=None)
@given(networks())
def test_a_way_is_found_if_there_is_one(network: tuple[list[list[Event]], int]) -> None:
    processes, count = network
    works = [d for d in product(range(1, MOST + 1), repeat=count) if run(processes, d) is None]
    answer = least_depths(processes, [1] * count, [MOST] * count, [1] * count)
    if isinstance(answer, Stuck):
        assert not works
        for number, at in answer.waiting:
            assert processes[number][at].value is not None
    else:
        assert answer in works
        # What is deeper gets through as well.
        assert run(processes, [d + 1 for d in answer]) is None


def test_only_the_branch_that_goes_around_becomes_deeper() -> None:
    """Of a fork of which one way lags by three, the other holds three."""
    source = process([("give", 0), ("give", 1)] * 8)
    slow = process([("eat", 0)] * 3 + [("eat", 0), ("give", 2)] * 5 + [("give", 2)] * 3)
    join = process([("eat", 2), ("eat", 1)] * 8)
    assert least_depths([source, slow, join], [1, 1, 1], [9, 9, 9], [1, 1, 1]) == (1, 3, 1)
    stuck = least_depths([source, slow, join], [1, 1, 1], [9, 2, 9], [1, 1, 1])
    assert isinstance(stuck, Stuck)
    assert sorted(number for number, _ in stuck.waiting) == [0, 1, 2]


def test_waiting_for_nobody() -> None:
    assert run([[Event(0, 1)]]) == Stuck(((0, 0),))
    assert run([[Event(0), Event(1, 2)], [Event(0, 1), Event(1)]]) == Stuck(((0, 1),))


@pytest.mark.parametrize("depth", [1, 2])
def test_a_reader_that_looks_ahead(depth: int) -> None:
    """Two slots are held at a time: one is too few."""
    writer, reader = process([("give", 0)] * 6), process([("take", 0)] + [("take", 0), ("free", 0)] * 5 + [("free", 0)])
    assert (run([writer, reader], [depth]) is None) == (depth == 2)
