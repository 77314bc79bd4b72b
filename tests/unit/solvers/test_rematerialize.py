"""Rematerialization: against a search of all schedules on small problems, and on long chains with skips."""

from __future__ import annotations

import heapq
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers import rematerialize_search
from neuron_mlir.solvers.rematerialize import (
    Event,
    Mode,
    Node,
    Problem,
    check,
    rematerialize,
    schedule_of,
)

State = tuple[int, int, frozenset[int], frozenset[int], frozenset[int]]
"""Stage, the next node that may come back in it, what is in memory, what is in the slower memory, and what has been in
memory in this stage."""


def cheapest(problem: Problem, budget: int, mode: Mode) -> int | None:
    """The least extra time of all schedules, by Dijkstra's algorithm over what is where; None when none fits."""
    nodes = problem.nodes
    stored = frozenset(i for i, node in enumerate(nodes) if node.is_stored)
    tick = count()
    queue: list[tuple[int, int, State]] = [(0, next(tick), (0, 0, frozenset(), stored, frozenset()))]
    best: dict[State, int] = {}

    def bytes_of(values: frozenset[int]) -> int:
        return sum(nodes[i].size for i in values)

    while queue:
        time, _, state = heapq.heappop(queue)
        if state in best:
            continue
        best[state] = time
        j, k, here, slow, seen = state
        if j == len(nodes):
            return time

        def to(extra: int, *state: int | frozenset[int], time: int = time) -> None:
            heapq.heappush(queue, (time + extra, next(tick), state))  # pyright: ignore[reportArgumentType]

        for i in here:
            to(0, j, k, here - {i}, slow, seen)
            if i not in slow and nodes[i].can_spill and mode != "recompute":
                to(nodes[i].spill_ps, j, k, here, slow | {i}, seen)
        if k < j:
            to(0, j, k + 1, here, slow, seen | here)
            node = nodes[k]
            if k in here:
                continue
            if k in slow and bytes_of(here) + node.size <= budget:
                to(node.reload_ps, j, k + 1, here | {k}, slow, seen | here | {k})
            runs = node.can_recompute and not node.is_stored and mode != "spill" and set(node.inputs) <= here
            if runs and bytes_of(here) + node.size + node.working <= budget:
                to(node.compute_ps, j, k + 1, here | {k}, slow, seen | here | {k})
            continue
        node = nodes[j]
        missing = set(node.inputs) - here
        if not missing <= (set(node.direct) & slow) - seen:
            continue
        needs = bytes_of(here) + node.size + node.working + len(missing) * node.direct_bytes
        reads = sum(problem.read_ps(i, j) for i in missing)
        tiled = (node.tiled_bytes, node.tiled_ps)
        more_bytes, more_ps = tiled if missing else (0, 0)
        if needs + more_bytes <= budget:
            to(reads + more_ps, j + 1, 0, here | {j}, slow, frozenset())
        if node.replaces in here and not missing and needs - node.size <= budget:
            to(0, j + 1, 0, here - {node.replaces} | {j}, slow, frozenset())
        streams = node.can_stream and node.can_spill and not node.is_stored and mode != "recompute"
        if streams and needs - node.size + tiled[0] <= budget:
            to(reads + tiled[1] + node.spill_ps, j + 1, 0, here, slow | {j}, frozenset())
    return None


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    nodes: list[Node] = []
    small = st.integers(0, 5)
    for j in range(draw(st.integers(2, 6))):
        inputs = tuple(i for i in range(j) if draw(st.booleans()))
        stored = not inputs and draw(st.booleans())
        direct = tuple(i for i in inputs if draw(st.integers(0, 3)) == 0)
        size = draw(st.integers(0, 4))
        same = [i for i in inputs if nodes[i].size == size]
        node = Node(
            f"n{j}",
            inputs,
            size,
            draw(st.integers(0, 2)),
            draw(small),
            draw(small),
            draw(small),
            replaces=same[0] if same and draw(st.booleans()) else None,
            is_stored=stored,
            direct=direct,
            direct_ps=tuple(draw(small) for _ in direct) if draw(st.booleans()) else (),
            direct_bytes=draw(st.integers(0, 2)),
            can_stream=draw(st.integers(0, 2)) == 0,
            tiled_bytes=draw(st.integers(-1, 2)),
            tiled_ps=draw(st.integers(0, 2)),
            can_spill=draw(st.integers(0, 5)) > 0,
            can_recompute=draw(st.integers(0, 5)) > 0,
        )
        nodes.append(node)
    return Problem(tuple(nodes))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems(), st.integers(0, 4), st.sampled_from(["both", "spill", "recompute"]))
def test_small_problems_are_solved(problem: Problem, below: int, mode: Mode) -> None:
    budget = schedule_of(problem, {}).peak - below
    expected = cheapest(problem, budget, mode)
    try:
        plan = rematerialize(problem, budget, mode)
    except NeuronError as error:
        assert expected is None
        assert isinstance(error.needed, int) and error.needed > budget
        return
    certificate = plan.certificate
    assert certificate.objective == expected == certificate.lower_bound
    assert check(problem, plan.schedule.events, budget) == certificate.objective
    assert plan.schedule.peak <= budget
    kinds = {event.kind for event in plan.schedule.events}
    assert mode != "spill" or "recompute" not in kinds
    assert mode != "recompute" or "spill" not in kinds


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems(), st.integers(0, 3), st.sampled_from(["both", "recompute"]), st.integers(0, 2))
def test_windows_over_short_chains_are_valid(problem: Problem, below: int, mode: Mode, depth: int) -> None:
    """What large problems go through, forced on small ones."""
    budget = schedule_of(problem, {}).peak - below
    expected = cheapest(problem, budget, mode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rematerialize_search, "MODEL_TERMS", 0)
        patch.setattr(rematerialize_search, "DEPTH", depth)
        patch.setattr(rematerialize_search, "WINDOW", 2)
        try:
            plan = rematerialize(problem, budget, mode)
        except NeuronError:
            assert expected is None
            return
    assert expected is not None
    assert plan.certificate.lower_bound <= expected <= plan.certificate.objective
    assert check(problem, plan.schedule.events, budget) == plan.certificate.objective


def ladder(levels: int, reload_ps: int = 30) -> Problem:
    """Down `levels` rungs and up again, each rung on the way up reading the one on the way down."""
    nodes = [Node("x", (), 4, reload_ps=reload_ps, is_stored=True)]
    for level in range(levels):
        nodes.append(Node(f"down{level}", (len(nodes) - 1,), 16, 2, 40 + level, reload_ps, reload_ps))
    for level in reversed(range(levels)):
        inputs = tuple(dict.fromkeys((len(nodes) - 1, 1 + level)))
        nodes.append(Node(f"up{level}", inputs, 16, 2, 40 + level, reload_ps, reload_ps))
    return Problem(tuple(nodes))


@pytest.mark.parametrize("mode", ["both", "spill", "recompute"])
def test_less_memory_takes_longer(mode: Mode) -> None:
    problem = ladder(7)
    peak = schedule_of(problem, {}).peak
    times: list[int] = []
    for percent in (100, 90, 75, 60):
        plan = rematerialize(problem, peak * percent // 100, mode, work=2.0)
        assert check(problem, plan.schedule.events, peak * percent // 100) == plan.certificate.objective
        times.append(plan.certificate.objective)
    assert times[0] == 0 < times[1]
    assert times == sorted(times)


def test_spilling_a_long_ladder_is_proven_optimal() -> None:
    problem = ladder(40)
    plan = rematerialize(problem, schedule_of(problem, {}).peak // 2, "spill")
    assert plan.certificate.proven_optimal
    assert any(event.kind == "spill" for event in plan.schedule.events)


def test_both_is_never_worse_than_one() -> None:
    problem = ladder(8, reload_ps=21)
    budget = schedule_of(problem, {}).peak * 3 // 5
    both, spill, recompute = (
        rematerialize(problem, budget, mode, work=2.0).certificate for mode in ("both", "spill", "recompute")
    )
    assert both.objective <= min(spill.objective, recompute.objective)
    assert both.lower_bound <= both.objective


def test_the_same_problem_has_the_same_answer() -> None:
    problem = ladder(12)
    budget = schedule_of(problem, {}).peak * 3 // 5
    assert rematerialize(problem, budget, work=1.0) == rematerialize(problem, budget, work=1.0)


def test_a_reader_of_slower_memory_needs_less() -> None:
    nodes = (Node("a", (), 8), Node("b", (0,), 8), Node("c", (0, 1), 8, direct=(0,)))
    problem = Problem(nodes)
    assert schedule_of(problem, {}).peak == 24
    plan = rematerialize(problem, 16, "spill")
    assert [event.kind for event in plan.schedule.events if event.stage == 2] == ["direct", "compute", "free", "free"]


def test_the_smallest_budget_is_named() -> None:
    with pytest.raises(NeuronError) as caught:
        rematerialize(ladder(5), 33)
    assert caught.value.needed == 50
    assert caught.value.available == 33
    assert rematerialize(ladder(5), 50).schedule.peak <= 50


def test_a_search_can_be_watched_and_stopped() -> None:
    seen: list[tuple[int, int]] = []

    def watch(best: int, bound: int) -> bool:
        seen.append((best, bound))
        return False

    problem = ladder(7)
    plan = rematerialize(problem, schedule_of(problem, {}).peak * 3 // 5, progress=watch)
    assert seen
    assert check(problem, plan.schedule.events, plan.schedule.peak) == plan.certificate.objective


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([Event("compute", 1, 1)], "input is not in memory"),
        ([Event("compute", 0, 0), Event("free", 0, 0), Event("reload", 0, 1)], "was not spilled"),
        ([Event("compute", 0, 0), Event("compute", 0, 0)], "is in memory"),
        ([Event("compute", 0, 0), Event("compute", 1, 1)], "takes 16"),
        ([Event("free", 0, 0)], "not in memory"),
        ([Event("compute", 0, 0)], "never run"),
    ],
)
def test_bad_schedules_are_refused(events: list[Event], text: str) -> None:
    problem = Problem((Node("a", (), 8), Node("b", (0,), 8)))
    with pytest.raises(NeuronError, match=text):
        check(problem, tuple(events), 15)


def test_nodes_read_earlier_ones() -> None:
    with pytest.raises(NeuronError, match="from 0 to 0"):
        Problem((Node("a", (), 1), Node("b", (1,), 1)))
