"""Placing weighted DAGs on devices: against exhaustive search on small graphs, by an own checker on larger ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import cast
from unittest.mock import patch

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.device_partition import (
    DeviceProblem,
    NoPlan,
    WorkNode,
    device_loads,
    read_graph,
    to_grid,
)
from neuron_mlir.solvers.device_partition_graph import better_than, contract
from neuron_mlir.solvers.device_partition_lattice import Ideals, Work
from neuron_mlir.solvers.device_partition_place import place
from neuron_mlir.solvers.device_partition_relax import direct_pairs, relaxed_bound


def checked_loads(problem: DeviceProblem, device_of: Sequence[int]) -> list[Fraction] | None:
    """Loads written down from the statement of the problem, device by device; None for what is no plan."""
    nodes, edges = problem.nodes, problem.edges
    if any(device_of[a] > device_of[b] for a, b in edges):
        return None
    for a, b in itertools.combinations(range(len(nodes)), 2):
        if nodes[a].color is not None and nodes[a].color == nodes[b].color and device_of[a] != device_of[b]:
            return None
    loads: list[Fraction] = []
    for device in range(problem.devices):
        mine = [n for n in range(len(nodes)) if device_of[n] == device]
        held = sum(Fraction(str(nodes[n].bytes)) for n in mine)
        if problem.capacity is not None and held > Fraction(str(problem.capacity)):
            return None
        load = sum((Fraction(str(nodes[n].cost)) for n in mine), Fraction(0))
        handed_on = {a for a, b in edges if device_of[a] == device and device_of[b] != device}
        taken_in = {a for a, b in edges if device_of[b] == device and device_of[a] != device}
        load += sum((Fraction(str(nodes[n].transfer)) for n in sorted(handed_on | taken_in)), Fraction(0))
        loads.append(load)
    return loads


def optimum(problem: DeviceProblem) -> Fraction | None:
    """The least largest load of all assignments; None if there is no plan."""
    plans = itertools.product(range(problem.devices), repeat=len(problem.nodes))
    return min((max(loads) for plan in plans if (loads := checked_loads(problem, plan)) is not None), default=None)


@st.composite
def problems(draw: st.DrawFn) -> DeviceProblem:
    """Graphs of up to 7 nodes in any order of ids, up to 3 devices."""
    count = draw(st.integers(1, 7))
    devices = draw(st.integers(1, 3 if count > 5 else 4))
    numbers = draw(
        st.sampled_from([st.integers(0, 9), st.sampled_from([0, 0, 0.1, 0.25, 1e-7, 2.5]), st.integers(0, 10**9)])
    )
    colors = st.sampled_from([None, None, None, "a", 1])
    sizes = st.sampled_from([0, 0, 1, 3, 7])
    nodes = tuple(WorkNode(n, draw(numbers), draw(sizes), draw(numbers), draw(colors)) for n in range(count))
    order = draw(st.permutations(range(count)))
    pairs = [(order[a], order[b]) for a in range(count) for b in range(a + 1, count)]
    edges = tuple(pair for pair in pairs if draw(st.integers(0, 2)) == 0)
    capacity = draw(st.sampled_from([None, None, 5, 8, 12, 20]))
    return DeviceProblem(nodes, edges, devices, capacity)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_small_graphs_are_solved_to_the_optimum(problem: DeviceProblem) -> None:
    best = optimum(problem)
    if best is None:
        with pytest.raises(NoPlan):
            place(problem, work=0.2)
        return
    plan = place(problem, work=0.2)
    loads = checked_loads(problem, plan.device_of)
    assert loads is not None
    assert loads == device_loads(problem, plan.device_of)
    assert plan.objective == float(max(loads))
    assert Fraction(plan.lower_bound) <= best * (1 + Fraction(1, 10**15))
    if problem.capacity is None:
        assert max(loads) == best
        assert plan.certificate.proven_optimal
        assert plan.gap == pytest.approx(0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_bounds_hold_and_contraction_keeps_the_optimum(problem: DeviceProblem) -> None:
    best = optimum(problem)
    if best is None:
        return
    grid = to_grid(problem)
    graph = contract(grid)
    assert graph.simple_bound() * grid.scale <= best
    assert sorted(n for members in graph.members for n in members) == list(range(len(problem.nodes)))
    assert all(a < b for a, b in graph.edges)
    if problem.capacity is not None:
        return
    for above in (1, 7):
        # A plan better than this exists, and so on the contracted graph.
        tight = better_than(graph, int(best / grid.scale) + above + len(problem.nodes))
        groups = tuple(WorkNode(g, Fraction(c) * grid.scale, 0, 0) for g, c in enumerate(tight.cost))
        group_of = {n: g for g, members in enumerate(tight.members) for n in members}
        plans = itertools.product(range(problem.devices), repeat=len(groups))
        reached = min(
            max(loads)
            for plan in plans
            if (loads := checked_loads(problem, [plan[group_of[n]] for n in range(len(problem.nodes))])) is not None
        )
        assert reached == best


def brute_ideals(count: int, edges: Sequence[tuple[int, int]]) -> set[int]:
    return {s for s in range(1 << count) if all(s >> a & 1 or not s >> b & 1 for a, b in edges)}


@settings(max_examples=60, deadline=None)
@given(problems())
def test_ideals_are_all_there_and_their_loads_are_those_of_devices(problem: DeviceProblem) -> None:
    grid = to_grid(replace(problem, capacity=None, devices=3))
    # The same weights as on the grid, where transfers are not too large to be paid.
    rounded = [
        replace(n, cost=c * grid.scale, transfer=t * grid.scale)
        for n, c, t in zip(problem.nodes, grid.costs, grid.transfers, strict=True)
    ]
    problem = DeviceProblem(tuple(rounded), problem.edges, 3)
    graph = contract(grid)
    ideals = Ideals.enumerate(graph, 1000, 10**6)
    assert ideals is not None
    sets = [ideals.set_of(i) for i in range(len(ideals))]
    assert len(sets) == len(set(sets))
    assert set(sets) == brute_ideals(len(graph.cost), graph.edges)
    assert Ideals.enumerate(graph, len(sets) - 1, 10**6) is None
    again = Ideals.of(graph, [*sets, *sets])
    assert (again.state == ideals.state).all() and [again.set_of(i) for i in range(len(again))] == sets
    every = np.arange(len(ideals))
    loads = ideals.loads(every, every, Work(10))
    for i, j in itertools.product(range(len(sets)), repeat=2):
        if sets[i] & ~sets[j]:
            assert loads[i, j] == np.inf
            continue
        device_of = [0] * len(problem.nodes)
        for group, members in enumerate(graph.members):
            for node in members:
                device_of[node] = 0 if sets[i] >> group & 1 else 1 if sets[j] >> group & 1 else 2
        expected = device_loads(problem, device_of)[1] / grid.scale
        assert loads[i, j] == expected


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(3, 9))
def test_loosening_groups_only_lowers_the_bound(problem: DeviceProblem, ideals_max: int) -> None:
    best = optimum(problem)
    grid = to_grid(problem)
    graph = contract(grid)
    low = graph.simple_bound()
    if best is None or len(graph.cost) < 2:
        return
    with patch("neuron_mlir.solvers.device_partition_relax._IDEALS_MAX", (ideals_max,)):
        bound = relaxed_bound(graph, low, 3 * int(best / grid.scale) + 9, Work(2))
    assert bound >= low
    assert bound * grid.scale <= best


@settings(max_examples=60, deadline=None)
@given(problems())
def test_direct_pairs_say_what_all_pairs_say(problem: DeviceProblem) -> None:
    graph = contract(to_grid(replace(problem, capacity=None)))
    every = nx.transitive_closure(nx.DiGraph(graph.edges))
    between = np.zeros((len(graph.cost),) * 2, dtype=np.bool_)
    for pair in every.edges:
        between[pair] = True
    assert direct_pairs(between) == tuple(sorted(nx.transitive_reduction(cast("nx.DiGraph[int]", every)).edges))


def test_loosening_dangling_nodes_bounds_a_ladder() -> None:
    # A chain whose every node also has an output of its own: 2^40 ideals, and a handover that no cut avoids.
    chain = [WorkNode(n, 1, 0, 0.5) for n in range(40)]
    outputs = [WorkNode(40 + n, 0.75, 0, 0) for n in range(40)]
    edges = [(n, n + 1) for n in range(39)] + [(n, 40 + n) for n in range(40)]
    problem = DeviceProblem((*chain, *outputs), tuple(edges), 4)
    plan = place(problem, work=2)
    # The costs are 70 in all. With one device left to the outputs, the chain is cut twice, with 0.5 on both sides.
    assert plan.lower_bound >= 72 / 4
    assert "loosened" in plan.certificate.method
    assert plan.gap < 0.05


def layered(count: int, width: int, seed: int, sizes: int = 0) -> DeviceProblem:
    """Layers of nodes, each using one to three of the layer before."""
    rng = random.Random(seed)
    nodes = tuple(
        WorkNode(n, round(rng.uniform(0.1, 2), 3), rng.randint(0, sizes), round(rng.uniform(0, 0.3), 3))
        for n in range(count)
    )
    edges = [
        (source, n)
        for n in range(width, count)
        for source in rng.sample(range(n // width * width - width, n // width * width), rng.randint(1, min(3, width)))
    ]
    return DeviceProblem(nodes, tuple(edges), 4)


def test_wide_graphs_get_a_plan_and_an_honest_gap() -> None:
    problem = layered(120, 8, 1)
    reports: list[tuple[float, float]] = []
    plan = place(problem, work=0.8, report=lambda best, bound: reports.append((best, bound)))
    loads = checked_loads(problem, plan.device_of)
    assert loads is not None and plan.objective == float(max(loads))
    assert 0 < plan.gap < 0.12
    assert plan.lower_bound >= sum(float(n.cost) for n in problem.nodes) / 4 - 1e-9
    assert reports == sorted(reports, key=lambda r: (-r[0], r[1]))
    assert reports[-1] == (pytest.approx(plan.objective), pytest.approx(plan.lower_bound))
    assert place(problem, work=0.8) == plan


def test_narrow_graphs_are_proven() -> None:
    problem = layered(120, 2, 5)
    plan = place(problem, work=5)
    assert plan.certificate.proven_optimal and plan.gap == 0


def test_a_tight_capacity_is_kept() -> None:
    problem = layered(60, 3, 2, sizes=1000)
    total = sum(int(n.bytes) for n in problem.nodes)
    free = place(problem, work=2)
    held = place(replace(problem, capacity=int(total / 4 * 1.04)), work=5)
    assert checked_loads(replace(problem, capacity=int(total / 4 * 1.04)), held.device_of) is not None
    assert held.objective >= free.lower_bound
    assert held.lower_bound <= held.objective


def test_what_a_capacity_forbids_is_told() -> None:
    nodes = (WorkNode("a", 1, 10, 0, 5), WorkNode("b", 1, 10, 0, 5), WorkNode("c", 1, 3))
    problem = DeviceProblem(nodes, (), 2, 19)
    with pytest.raises(NoPlan, match=r"nodes a, b stay together and do not fit a device.*needs 20, has 19"):
        place(problem)
    with pytest.raises(NoPlan, match="node a does not fit"):
        place(replace(problem, nodes=tuple(replace(n, color=None) for n in nodes), capacity=9))
    with pytest.raises(NoPlan, match=r"do not fit 2 devices.*needs 23, has 22.*at least 3 devices"):
        place(replace(problem, nodes=tuple(replace(n, color=None) for n in nodes), capacity=11))
    # Two nodes of 6 bytes and one of 4 fit 2 devices of 8 by their sum only.
    three = tuple(WorkNode(n, 1, size) for n, size in enumerate((6, 6, 4)))
    with pytest.raises(NoPlan, match="all ways"):
        place(DeviceProblem(three, (), 2, 8))


def test_more_devices_than_nodes_and_no_nodes() -> None:
    chain = DeviceProblem((WorkNode(0, 3, 0, 1), WorkNode(1, 4)), ((0, 1),), 9)
    plan = place(chain)
    assert plan.objective == plan.lower_bound == 5
    empty = place(DeviceProblem((), (), 3))
    assert (empty.device_of, empty.objective, empty.gap) == ((), 0, 0)


def test_transfers_that_no_good_plan_pays_do_not_make_the_grid_coarse() -> None:
    chain = tuple(WorkNode(n, cost, 0, 1e9 / 3) for n, cost in enumerate((0.4443614905725449, 1e-10, 0.25)))
    plan = place(DeviceProblem((*chain, WorkNode(3, 4e-10, 0, 1e9 / 7)), ((0, 1),), 3))
    assert plan.optimal
    assert plan.gap < 1e-12
    assert plan.objective == pytest.approx(0.4443614905725449 + 1e-10, rel=1e-15)


def test_what_a_coarse_grid_cannot_tell_apart_is_not_called_optimal() -> None:
    # The capacity forces the large transfer on the one plan; the small costs are lost beside it.
    nodes = (WorkNode(0, 1 / 3, 2, 1e15 / 7), WorkNode(1, 1e-5 / 3, 2, 0), WorkNode(2, 1e-6 / 7, 0, 1e15 / 9))
    plan = place(DeviceProblem(nodes, ((2, 0),), 2, 2))
    assert plan.certificate.proven_optimal
    assert plan.gap > 1e-9
    assert not plan.optimal


def test_senseless_problems_are_refused() -> None:
    one = WorkNode(0, 1)
    with pytest.raises(NeuronError, match="at least one device"):
        place(DeviceProblem((one,), (), 0))
    with pytest.raises(NeuronError, match="the graph has a cycle: 1 -> 0 -> 1"):
        place(DeviceProblem((one, WorkNode(1, 1)), ((0, 1), (1, 0)), 2))
    with pytest.raises(NeuronError, match="a cost of -1"):
        place(DeviceProblem((WorkNode(0, -1),), (), 2))
    with pytest.raises(NeuronError, match="a transfer of nan"):
        place(DeviceProblem((WorkNode(0, 1, 0, float("nan")),), (), 2))
    with pytest.raises(NeuronError, match="earlier device"):
        device_loads(DeviceProblem((one, WorkNode(1, 1)), ((0, 1),), 2), [1, 0])


def test_graphs_are_read_with_their_defaults() -> None:
    data: object = {"nodes": [{"id": "x", "cost": 2, "more": 0}, {"id": 7, "cost": 1.5}], "edges": [["x", 7]]}
    problem = read_graph(data, 2)
    assert problem.nodes == (WorkNode("x", 2, 0, 0, None), WorkNode(7, 1.5, 0, 0, None))
    assert problem.edges == ((0, 1),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a graph is an object"),
        ({"nodes": []}, 'a list of "edges"'),
        ({"nodes": [3], "edges": []}, 'entry 0 of "nodes"'),
        ({"nodes": [{"cost": 3}], "edges": []}, 'no "id"'),
        ({"nodes": [{"id": 1}], "edges": []}, 'no "cost"'),
        ({"nodes": [{"id": 1, "cost": "3"}], "edges": []}, "is no number"),
        ({"nodes": [{"id": 1, "cost": -3}], "edges": []}, "a cost of -3"),
        ({"nodes": [{"id": 1, "cost": 1, "bytes": -2}], "edges": []}, "a bytes of -2"),
        ({"nodes": [{"id": 1, "cost": 1}] * 2, "edges": []}, "two nodes have the id 1"),
        ({"nodes": [{"id": 1, "cost": 1}], "edges": [[1]]}, "not a pair"),
        ({"nodes": [{"id": 1, "cost": 1}], "edges": [[1, 2]]}, "names node 2"),
        ({"nodes": [{"id": 1, "cost": 1, "color": 1.5}], "edges": []}, '"color"'),
    ],
)
def test_bad_graphs_are_refused_in_one_line(data: object, message: str) -> None:
    with pytest.raises(NeuronError, match=message) as error:
        read_graph(data, 2)
    assert "\n" not in error.value.line
