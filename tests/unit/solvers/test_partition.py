"""The partition solver against exhaustive search on small graphs, and its promises on large ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.certificate import Certificate
from neuron_mlir.solvers.partition import (
    PS_PER_S,
    Intervals,
    Node,
    Partition,
    PartitionProblem,
    Value,
    crossing_bytes,
    evaluate,
    fewest_stages,
    fewest_stages_bound,
    partition_chain,
    partition_dag,
    simple_bound,
)
from neuron_mlir.solvers.partition_lattice import ideals, pair_estimate
from neuron_mlir.solvers.partition_sat import improve


@st.composite
def problems(draw: st.DrawFn, uniform: bool = False) -> PartitionProblem:
    """Graphs of up to 6 nodes on up to 4 cores; `uniform` weights block in proportion to their bytes, with
    nothing else in memory.
    """
    count = draw(st.integers(1, 6))
    small = st.integers(0, 40)
    nodes: list[Node] = []
    for n in range(count):
        resident = draw(small)
        weight = 16 * resident if uniform else draw(st.integers(0, 1000))
        dram, moved, working, streaming = (draw(st.sampled_from([0, 0, size])) for size in (150, 90, 20, 30))
        if uniform:
            working = streaming = 0
        time = draw(st.integers(0, 1000))
        nodes.append(Node(f"n{n}", time, weight, resident, dram, moved, working, streaming))
    values: list[Value] = []
    for n in range(count):
        later = [m for m in range(n + 1, count) if draw(st.integers(0, 2)) == 0]
        leaves = not later or draw(st.integers(0, 9)) == 0
        host = draw(st.integers(0, 300)) if leaves else 0
        values.append(Value(n, tuple(later), draw(st.integers(0, 500)), leaves, host_bytes=host))
    for _ in range(draw(st.integers(1, 2))):
        readers = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3))
        values.append(Value(None, tuple(readers), draw(st.integers(0, 200)), host_bytes=draw(st.integers(0, 300))))
    stages = draw(st.integers(1, min(4, count)))
    return PartitionProblem(
        tuple(nodes),
        tuple(values),
        stages,
        exactly=draw(st.booleans()),
        capacity_bytes=draw(st.integers(1, 60)),
        exposed_ps_per_byte=draw(st.integers(0, 2)),
        exposed_stream_ps_per_byte=draw(st.integers(0, 2)),
        exposed_link_ps_per_byte=draw(st.integers(0, 2)),
        core_bytes_per_s=10**12,
        dram_bytes_per_s=5 * 10**11,
        link_bytes_per_s=10**12,
        host_bytes_per_s=draw(st.sampled_from([10**12, 2 * 10**11])),
        cores_per_chip=draw(st.integers(1, 4)),
        first_core=draw(st.integers(0, 5)),
    )


def exhaustive(problem: PartitionProblem, in_order: bool) -> int:
    """The best objective of all assignments, by trying them."""
    best: int | None = None
    for stage_of in itertools.product(range(problem.stages), repeat=len(problem.nodes)):
        backwards = any(stage_of[s] > stage_of[n] for n in range(len(stage_of)) for s in problem.predecessors[n])
        if backwards or (in_order and list(stage_of) != sorted(stage_of)):
            continue
        if problem.exactly and len(set(stage_of)) < problem.stages:
            continue
        objective = evaluate(problem, stage_of).objective
        best = objective if best is None else min(best, objective)
    assert best is not None
    return best


def check(problem: PartitionProblem, partition: Partition) -> None:
    """A partition is what its certificate says, and keeps to the problem."""
    stage_of = assignment(partition)
    assert evaluate(problem, stage_of).objective == partition.certificate.objective
    assert sorted(n for s in partition.stages for n in s.nodes) == list(range(len(problem.nodes)))
    if problem.exactly:
        assert all(s.nodes for s in partition.stages)
    assert partition.bottleneck


def assignment(partition: Partition) -> list[int]:
    pairs = [(node, index) for index, stage in enumerate(partition.stages) for node in stage.nodes]
    return [stage for _, stage in sorted(pairs)]


@given(problems())
@settings(max_examples=150, deadline=None)
def test_chain_is_optimal_in_its_order(problem: PartitionProblem) -> None:
    partition = partition_chain(problem)
    check(problem, partition)
    assert partition.certificate.proven_optimal
    assert partition.certificate.objective == exhaustive(problem, in_order=True)
    assert assignment(partition) == sorted(assignment(partition))


@st.composite
def with_intervals(draw: st.DrawFn) -> PartitionProblem:
    """Problems whose runs of nodes take more than their sum, some of whose values go by rows."""
    problem = draw(problems())
    count = len(problem.nodes)
    spans = [0, *itertools.accumulate(node.compute_ps for node in problem.nodes)]
    more = st.integers(0, 800)
    time = tuple(
        tuple(spans[b] - spans[a] + draw(more) if a < b else 0 for b in range(count + 1)) for a in range(count + 1)
    )
    maps = tuple(tuple(draw(more) if a < b else 0 for b in range(count + 1)) for a in range(count + 1))
    values = tuple(replace(value, by_rows=draw(st.booleans())) for value in problem.values)
    return replace(problem, values=values, intervals=Intervals(time, maps))


@given(with_intervals())
@settings(max_examples=150, deadline=None)
def test_intervals_have_costs_of_their_own(problem: PartitionProblem) -> None:
    partition = partition_dag(problem)
    check(problem, partition)
    assert partition.certificate.proven_optimal
    assert partition.certificate.objective == exhaustive(problem, in_order=True)
    assert partition.certificate.method == "interval DP over the given order"


def test_stages_are_runs_where_intervals_have_costs() -> None:
    nodes = tuple(Node(f"n{n}", 1) for n in range(3))
    table = ((0,) * 4,) * 4
    problem = PartitionProblem(nodes, (), 2, intervals=Intervals(table, table))
    with pytest.raises(NeuronError, match="a run of nodes"):
        evaluate(problem, [0, 1, 0])


@given(problems())
@settings(max_examples=150, deadline=None)
def test_dag_is_optimal_over_all_orders(problem: PartitionProblem) -> None:
    partition = partition_dag(problem, good_enough=0)
    check(problem, partition)
    assert partition.certificate.proven_optimal
    best = exhaustive(problem, in_order=False)
    assert partition.certificate.objective == best
    assert simple_bound(problem) <= best


@given(problems(uniform=True))
@settings(max_examples=60, deadline=None)
def test_cp_sat_bounds_and_finds(problem: PartitionProblem) -> None:
    start = assignment(partition_chain(problem))
    best = exhaustive(problem, in_order=False)
    found, bound = improve(problem, start, simple_bound(problem), 5.0, 0.0, None)
    objective = evaluate(problem, found).objective
    assert bound <= best <= objective <= evaluate(problem, start).objective
    # Capacity and sizes are rounded in the model, so it may stop short of the last unit of bytes, not of more.
    assert objective - best <= 2 * 16 * problem.stages


@given(problems())
@settings(max_examples=40, deadline=None)
def test_cp_sat_bound_holds_for_weights_of_any_thinness(problem: PartitionProblem) -> None:
    start = assignment(partition_chain(problem))
    _, bound = improve(problem, start, simple_bound(problem), 5.0, 0.0, None)
    assert bound <= exhaustive(problem, in_order=False)


@given(problems())
@settings(max_examples=40, deadline=None)
def test_ideals_are_all_closed_sets(problem: PartitionProblem) -> None:
    count = len(problem.nodes)
    closed = [
        mask
        for mask in range(1 << count)
        if all(mask >> s & 1 for n in range(count) if mask >> n & 1 for s in problem.predecessors[n])
    ]
    found = ideals(problem.predecessors, 1 << count)
    assert found is not None
    assert sorted(found) == closed
    assert found[0] == 0 and found[-1] == (1 << count) - 1
    assert ideals(problem.predecessors, len(closed) - 1) is None
    pairs = sum((a & ~b) == 0 for a in closed for b in closed)
    assert pair_estimate(problem, found, 10**9) >= pairs


def chain_of(computes: Sequence[int], stages: int, **changes: int) -> PartitionProblem:
    nodes = tuple(Node(f"n{i}", c, 16 * c, c) for i, c in enumerate(computes))
    last = len(nodes) - 1
    values = tuple(Value(i, (i + 1,) if i < last else (), 8, i == last) for i in range(len(nodes)))
    return replace(PartitionProblem(nodes, values, stages), **changes)


def test_stage_costs_by_hand() -> None:
    problem = chain_of([100, 50, 30, 20], 3, capacity_bytes=90, cores_per_chip=2, core_bytes_per_s=5 * 10**11)
    loads = evaluate(problem, [0, 1, 1, 2])
    first, second, third = loads.stages
    # 10 of 100 bytes per partition do not fit: a tenth of 1600 bytes is streamed. 8 bytes are handed on: they pass the
    # reader's DMA once and its chip's DRAM twice, as the 8 bytes of output do.
    assert (first.streamed_bytes, first.out_bytes, first.cost_ps) == (160, 8, 336)
    assert (second.compute_ps, second.streamed_bytes, second.in_bytes, second.cost_ps) == (80, 0, 8, 80)
    assert (third.out_bytes, third.dram_bytes, third.cost_ps) == (8, 32, 32)
    assert loads.dram_ps == (176, 32)
    assert loads.link_ps == (8,)
    assert loads.objective == 336
    # One core further along the chain, the link is crossed after the first stage.
    moved = evaluate(replace(problem, first_core=1), [0, 1, 1, 2])
    assert moved.dram_ps == (160, 48)
    assert replace(problem, first_core=1).chip_starts == (0, 1)
    with pytest.raises(NeuronError, match="reads from node"):
        evaluate(problem, [1, 0, 1, 2])


def test_values_and_parts_of_weights_take_room() -> None:
    nodes = (Node("a", 0, 1600, 100, 0, 7, 20, 40), Node("b", 0, 160, 10, 5, 0, 30, 30))
    problem = PartitionProblem(nodes, (Value(0, (1,), 8), Value(1, (), 8, True)), 1, capacity_bytes=140)
    # All 110 bytes per partition fit beside 30; with a byte less the parts under way take 40 instead.
    assert evaluate(problem, [0, 0]).stages[0].streamed_bytes == 0
    exposed = replace(problem, capacity_bytes=139, exposed_ps_per_byte=3, exposed_stream_ps_per_byte=2)
    (tight,) = evaluate(exposed, [0, 0]).stages
    assert (tight.streamed_bytes, tight.working_bytes) == (176, 40)
    assert tight.cost_ps == 2 * 176 + 3 * (7 + 5 + 8)


def test_stages_are_evened_out() -> None:
    # The first stage sets the pace; the others could be 100 and 20 as well.
    even = partition_chain(chain_of([200, 60, 20, 20, 20], 3))
    assert [stage.compute_ps for stage in even.stages] == [200, 60, 60]
    # One byte less through DRAM is worth more than even stages, unless cuts that much worse are accepted.
    nodes = tuple(Node(f"n{i}", time) for i, time in enumerate([300, 100, 100, 100]))
    values = tuple(Value(i, (i + 1,), size) for i, size in enumerate([100, 100, 99]))
    problem = PartitionProblem(nodes, values, 3, exactly=True, dram_bytes_per_s=10**11)
    strict = partition_chain(problem)
    assert strict.certificate.objective == 3980 and [len(s.nodes) for s in strict.stages] == [1, 2, 1]
    loose = partition_chain(replace(problem, stages=2), even_out=0.02)
    assert [len(s.nodes) for s in loose.stages] == [1, 3] or loose.certificate.objective == 1980
    assert loose.certificate.lower_bound == 1980


def test_bottlenecks_are_named() -> None:
    assert partition_chain(chain_of([100, 1], 2)).bottleneck == "compute of stage 0"
    slow = chain_of([10, 10], 1, capacity_bytes=1, core_bytes_per_s=10**11)
    assert partition_chain(slow).bottleneck == "DMA of stage 0"
    assert (
        partition_chain(replace(slow, core_bytes_per_s=10**12, dram_bytes_per_s=10**9)).bottleneck == "DRAM of chip 0"
    )
    far = chain_of([10, 10], 2, cores_per_chip=1, link_bytes_per_s=10**9)
    assert partition_chain(replace(far, exactly=True)).bottleneck == "link from chip 0 to 1"
    assert partition_chain(replace(far, exactly=True, first_core=2)).bottleneck == "link from chip 2 to 3"
    # The input goes from the host to every stage that reads it, the output back once.
    values = (Value(None, (0, 1), 8, host_bytes=60), Value(0, (1,), 8), Value(1, (), 8, True, host_bytes=90))
    fed = PartitionProblem((Node("a", 50), Node("b", 50)), values, 1)
    assert partition_chain(fed).bottleneck == "compute of stage 0"
    twice = partition_chain(replace(fed, stages=2, exactly=True))
    assert (twice.bottleneck, twice.host_ps) == ("host link in", (120, 90))
    out = partition_chain(replace(fed, host_bytes_per_s=10**11))
    assert (out.bottleneck, out.certificate.objective, out.certificate.lower_bound) == ("host link out", 900, 900)
    # Free to leave a stage empty, nothing crosses.
    assert partition_chain(far).bottleneck.startswith("compute of stage")


def test_fewest_stages() -> None:
    assert fewest_stages(chain_of([4, 4, 4, 4], 1, capacity_bytes=8)) == 2
    assert fewest_stages(chain_of([5, 5, 5], 1, capacity_bytes=8)) == 3
    assert fewest_stages(chain_of([5, 9], 1, capacity_bytes=8)) is None
    assert fewest_stages(chain_of([5, 2], 1, capacity_bytes=80)) == 1


@given(problems())
@settings(max_examples=100, deadline=None)
def test_fewest_stages_in_its_order_and_in_any(problem: PartitionProblem) -> None:
    nodes = problem.nodes[:5]

    def holds(stage: Sequence[Node]) -> bool:
        room = problem.capacity_bytes - max(node.working_bytes for node in stage)
        return sum(node.resident_bytes for node in stage) <= max(0, room)

    best: dict[bool, int] = {}
    for stage_of in itertools.product(range(len(nodes)), repeat=len(nodes)):
        if any(stage_of[s] > stage_of[n] for n in range(len(nodes)) for s in problem.predecessors[n]):
            continue
        used = set(stage_of)
        if all(holds([n for n, k in zip(nodes, stage_of, strict=True) if k == stage]) for stage in used):
            for in_order in (True, False):
                if not in_order or list(stage_of) == sorted(stage_of):
                    best[in_order] = min(best.get(in_order, len(nodes)), len(used))
    part = replace(problem, nodes=nodes)
    assert fewest_stages(part) == best.get(True)
    assert not best or fewest_stages_bound(part) <= best[False]


def test_mistakes() -> None:
    with pytest.raises(NeuronError, match="at least one stage"):
        partition_chain(chain_of([1], 0))
    with pytest.raises(NeuronError, match=r"2 groups do not fill 3 stages.*try: use at most 2 stages"):
        partition_dag(replace(chain_of([1, 1], 3), exactly=True))
    nodes = (Node("a", 1), Node("b", 1))
    with pytest.raises(NeuronError, match="not in topological order"):
        partition_chain(PartitionProblem(nodes, (Value(1, (0,), 4),), 1))
    with pytest.raises(ValueError, match="is not between 0 and the objective"):
        Certificate(3, 4, "ps", "none")
    assert Certificate(0, 0, "ps", "none").gap == 0
    assert Certificate(4, 3, "ps", "none").gap == 0.25


def transformer(layers: int, stages: int) -> PartitionProblem:
    """Three branches that join, a residual around them, a mask that every layer reads."""
    nodes = [Node("mask", 900), Node("embed", 5000)]
    reads: dict[int, list[int]] = {0: [], 1: []}

    def add(compute: int, weight: int, *sources: int) -> int:
        nodes.append(Node(f"n{len(nodes)}", compute, weight, weight // 128))
        reads[len(nodes) - 1] = []
        for source in sources:
            reads[source].append(len(nodes) - 1)
        return len(nodes) - 1

    x = 1
    for layer in range(layers):
        branches = [add(2000, 0, add(9000 + 17 * layer, 1 << 20, x)) for _ in range(3)]
        scores = add(7000, 0, *branches[:2], 0)
        x = add(4000, 0, add(9000, 1 << 20, scores, branches[2]), x)
        x = add(30000, 1 << 22, add(30000, 1 << 22, x), x)
    values = tuple(Value(n, tuple(users), 4096, not users) for n, users in reads.items())
    return PartitionProblem(
        tuple(nodes),
        values,
        stages,
        exactly=True,
        capacity_bytes=1 << 17,
        core_bytes_per_s=24 * 10**12,
        dram_bytes_per_s=39 * 10**12,
        link_bytes_per_s=8 * 10**12,
    )


@pytest.mark.parametrize("stages", [2, 5, 16])
def test_large_graph_is_proven_and_repeats(stages: int) -> None:
    problem = transformer(6, stages)
    first, second = partition_dag(problem), partition_dag(problem)
    check(problem, first)
    assert first == second
    assert first.certificate.gap <= 0.005
    assert first.certificate.objective <= partition_chain(problem).certificate.objective


def test_cp_sat_takes_over_and_agrees() -> None:
    problem = transformer(2, 5)
    exact = partition_dag(problem, good_enough=0)
    sat = partition_dag(problem, good_enough=0, pairs_max=16)
    assert sat.certificate.method.endswith("CP-SAT")
    assert sat == partition_dag(problem, good_enough=0, pairs_max=16)
    assert sat.certificate.lower_bound <= exact.certificate.objective <= sat.certificate.objective
    assert sat.certificate.gap < 0.01
    loose = partition_dag(problem, good_enough=0, pairs_max=16, sat_size_max=1)
    assert loose.certificate.method == "interval DP, simple bound"
    assert loose.certificate.lower_bound == simple_bound(problem)


def test_progress_is_reported_and_can_stop_the_search() -> None:
    problem = transformer(3, 7)
    seen: list[tuple[int, int]] = []

    def watch(objective: int, bound: int) -> bool:
        seen.append((objective, bound))
        return True

    full = partition_dag(problem, good_enough=0, progress=watch)
    assert len(seen) > 2
    assert all(bound <= objective for objective, bound in seen)
    stopped = partition_dag(problem, good_enough=0, progress=lambda objective, bound: False)
    check(problem, stopped)
    assert stopped.certificate.lower_bound <= full.certificate.objective <= stopped.certificate.objective


def test_maps_by_rows_cross_a_link_once_for_each_stage_that_reads_them() -> None:
    work = (15, 10, 10, 10)
    nodes = tuple(Node(str(n), time) for n, time in enumerate(work))
    shared = Value(0, (1, 2), 100, by_rows=True)
    times = tuple(tuple(sum(work[a:b]) for b in range(5)) for a in range(5))
    intervals = Intervals(times, tuple((0,) * 5 for _ in range(5)))
    problem = PartitionProblem(
        nodes, (shared,), 3, exactly=True, cores_per_chip=1, link_bytes_per_s=5 * PS_PER_S, intervals=intervals
    )
    assert crossing_bytes(problem, [0, 1, 2, 2]) == {1: 200, 2: 100}
    assert crossing_bytes(replace(problem, values=(replace(shared, by_rows=False),)), [0, 1, 2, 2]) == {1: 100, 2: 100}
    best = partition_chain(problem)
    assert [stage.nodes for stage in best.stages] == [(0,), (1, 2), (3,)]
    assert best.certificate.objective == best.certificate.lower_bound == 20


def test_many_equal_branches_are_proven():
    """As in a recommender: columns of an input look up rows of tables, which are put together. Ideals are too many."""
    count = 24
    join = 2 * count
    columns = [Node(f"column{i}", 0) for i in range(count)]
    lookups = [Node(f"lookup{i}", 0, dram_bytes=8_192) for i in range(count)]
    rest = [Node("join", 124_000, moved_bytes=212_992), Node("products", 5_742_000), Node("top", 2_282_000)]
    values = [Value(None, tuple(range(count)), 16_384, host_bytes=13_312)]
    values += [Value(i, (count + i,), 4_096) for i in range(count)]
    values += [Value(count + i, (join,), 8_192) for i in range(count)]
    values += [Value(join, (join + 1,), 221_184), Value(join + 1, (join + 2,), 94_208)]
    problem = PartitionProblem(
        (*columns, *lookups, *rest),
        (*values, Value(join + 2, (), 4_096, is_output=True)),
        3,
        exactly=True,
        exposed_ps_per_byte=35,
        core_bytes_per_s=24_000_000_000,
        dram_bytes_per_s=39_000_000_000,
    )
    certificate = partition_dag(problem, work=0.5).certificate
    assert certificate.method == "interval DP, then CP-SAT"
    assert certificate.gap <= 0.005
