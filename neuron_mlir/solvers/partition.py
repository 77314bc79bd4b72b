"""Cutting a graph of layers into pipeline stages: the slowest stage as fast as possible.

A node is what must stay on one core (a fused group); a stage is the nodes of one core; stages are numbered along the
chain of cores and a value only ever goes to its own or a later stage. Requests stream through, so throughput is one
over the slowest resource:

- a stage's compute, and beside it (they overlap) its DMA: weights beyond its resident capacity, streamed from DRAM for
every
  request, inputs of the graph that it fetches, and what it hands on (the producer writes into the consumer's memory; a
  value that several later stages read is counted once);
- a chip's DRAM: the streamed weights of all its stages, and inputs and outputs of the graph, which the host and a core
each pass;
- a link between chips: the values that cross it, once each, those by rows once for each stage that reads them there;
- the link to the host, each direction: an input once for every stage that reads it, and the outputs.

`partition_chain` cuts one given order, `partition_dag` chooses among all topological orders. Both are exact unless
they say otherwise in the certificate. The method is the interval dynamic program over the ideals (down-closed sets) of
the graph (as Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators", 2020), run as a
feasibility test inside a bisection on the objective, because the DRAM couples stages of a chip; where ideals are too
many, CP-SAT improves the best order found and proves a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.certificate import Certificate, Progress

PS_PER_S = 1_000_000_000_000
RING_PASSES = 2
"""A value handed on passes DRAM twice on the reader's chip: written by its maker, read by the stage that needs it."""
HOST_PASSES = 2
"""An input or output of the graph passes DRAM twice: between host and DRAM, and between DRAM and core."""


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of work that stays on one core."""

    name: str
    compute_ps: int
    weight_bytes: int = 0
    """What is moved when its weights are streamed."""
    resident_bytes: int = 0
    """What its weights block in every SBUF partition when resident, bytes per partition."""
    dram_bytes: int = 0
    """What it moves between DRAM and SBUF for every request in any case, e.g. rows of an embedding table."""
    moved_bytes: int = 0
    """What it moves by DMA within SBUF."""
    working_bytes: int = 0
    """What values take in every SBUF partition while it runs: no room for weights."""
    streaming_bytes: int = 0
    """The same when the stage streams weights, with the parts of its weights that are under way; 0: no more."""

    @property
    def dma_total(self) -> int:
        """Bytes that pass the core's DMA in any case."""
        return self.dram_bytes + self.moved_bytes

    @property
    def taken_bytes(self) -> int:
        """SBUF bytes per partition that are no room for weights when the stage streams some."""
        return max(self.working_bytes, self.streaming_bytes)


@dataclass(frozen=True, slots=True)
class Value:
    """A value that nodes pass on. `producer` is None for an input of the graph."""

    producer: int | None
    consumers: tuple[int, ...]
    size_bytes: int
    is_output: bool = False
    """Whether it also leaves the graph."""
    by_rows: bool = False
    """A map of which some rows at a time come and go: what that costs both ends is in `Intervals`."""
    host_bytes: int = 0
    """What an input or output of the graph takes on the link to the host: once for each stage that reads it, once as an
    output."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """What nodes `start` to `stop - 1` of the given order take together as one stage, `[start][stop]`, where that is
    not the sum of what they take alone."""

    time_ps: tuple[tuple[int, ...], ...]
    """Instead of the sum of `compute_ps`, and no less: with the time that moving maps `by_rows` adds."""
    dram_bytes: tuple[tuple[int, ...], ...]
    """Maps that go to DRAM or come from there, those at both ends included."""
    fits: tuple[tuple[bool, ...], ...] = ()
    """Whether all weights are known to be resident, whatever `working_bytes` nodes have; empty: of none."""


@dataclass(frozen=True)
class PartitionProblem:
    """Nodes in a topological order, the values between them, and the machine's rates (bytes per second)."""

    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    stages: int
    exactly: bool = False
    """Every stage holds a node; otherwise stages may stay empty."""
    capacity_bytes: int = 1 << 40
    """Bytes per partition of one stage for resident weights and for the largest `working_bytes` of its nodes."""
    exposed_ps_per_byte: int = 0
    """How much longer than its compute a stage takes for each byte of its DMA, streamed weights apart; 0: they overlap
    perfectly.
    """
    exposed_stream_ps_per_byte: int = 0
    """The same for each byte of streamed weights, which come ahead of their layers."""
    exposed_link_ps_per_byte: int = 0
    """How much longer yet the last stage of a chip takes for each byte it hands on to the next chip."""
    core_bytes_per_s: int = PS_PER_S
    """What one core's DMA moves."""
    dram_bytes_per_s: int = PS_PER_S
    """What one chip's DRAM delivers."""
    link_bytes_per_s: int = PS_PER_S
    """One direction between neighbouring chips."""
    host_bytes_per_s: int = PS_PER_S
    """One direction of the link to the host, which all stages share."""
    cores_per_chip: int = 4
    first_core: int = 0
    """The core of stage 0: stage k is on chip (first_core + k) // cores_per_chip."""
    intervals: Intervals | None = None
    """Only cuts of the given order are looked at then."""

    @cached_property
    def chip_starts(self) -> tuple[int, ...]:
        """The first stage on each chip, beginning with 0: links are crossed before all but the first."""
        return (0, *(k for k in range(1, self.stages) if (self.first_core + k) % self.cores_per_chip == 0))

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes it reads from, sorted, each once."""
        sources: list[set[int]] = [set() for _ in self.nodes]
        for value in self.values:
            if value.producer is not None:
                for consumer in value.consumers:
                    sources[consumer].add(value.producer)
        return tuple(tuple(sorted(s)) for s in sources)

    def check(self) -> None:
        """Raise `NeuronError` when the problem makes no sense: no stage, an order that is not topological, too few
        nodes.
        """
        if self.stages < 1:
            raise NeuronError(f"a partition needs at least one stage, got {self.stages}")
        if self.exactly and self.stages > len(self.nodes):
            raise NeuronError(
                f"{len(self.nodes)} groups do not fill {self.stages} stages",
                resource="groups",
                needed=self.stages,
                available=len(self.nodes),
                advice=f"use at most {len(self.nodes)} stages",
            )
        for node, sources in enumerate(self.predecessors):
            if sources and sources[-1] >= node:
                raise NeuronError(f"nodes are not in topological order: node {node} reads from node {sources[-1]}")


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What one stage holds and does for one request."""

    nodes: tuple[int, ...]
    compute_ps: int
    weight_bytes: int
    resident_bytes: int
    streamed_bytes: int
    """Weights beyond the capacity, read from DRAM for every request."""
    dram_bytes: int
    """All that passes the chip's DRAM for every request."""
    in_bytes: int
    """Inputs of the graph, and values of earlier stages."""
    out_bytes: int
    """Values for later stages, and outputs of the graph."""
    cost_ps: int
    """The larger of DMA and compute with what of the DMA it does not hide."""
    working_bytes: int = 0
    """SBUF bytes per partition that are no room for weights, at the worst moment."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A cut with what it costs."""

    stages: tuple[StageLoad, ...]
    """Of every stage, empty ones included."""
    dram_ps: tuple[int, ...]
    """Of every chip in use, in order."""
    link_ps: tuple[int, ...]
    """From each chip in use to the next."""
    host_ps: tuple[int, int]
    """From the host, and to it."""
    first_chip: int
    certificate: Certificate

    @property
    def bottleneck(self) -> str:
        """What the objective is the time of, e.g. `compute of stage 3`."""
        objective = self.certificate.objective
        for index, stage in enumerate(self.stages):
            if stage.cost_ps == objective:
                return f"{'compute' if 2 * stage.compute_ps >= objective else 'DMA'} of stage {index}"
        for chip, time in enumerate(self.dram_ps, self.first_chip):
            if time == objective:
                return f"DRAM of chip {chip}"
        for chip, time in enumerate(self.link_ps, self.first_chip):
            if time == objective:
                return f"link from chip {chip} to {chip + 1}"
        return f"host link {'in' if self.host_ps[0] == objective else 'out'}"


@dataclass(frozen=True, slots=True)
class Loads:
    """`evaluate`'s answer: a partition before its certificate."""

    stages: tuple[StageLoad, ...]
    dram_ps: tuple[int, ...]
    link_ps: tuple[int, ...]
    host_ps: tuple[int, int]

    @property
    def objective(self) -> int:
        return max(*(s.cost_ps for s in self.stages), *self.dram_ps, *self.link_ps, *self.host_ps)


def streamed_bytes(weight_bytes: int, resident_bytes: int, capacity_bytes: int) -> int:
    """Weight bytes of a stage that are read from DRAM for every request: what exceeds the capacity, all weights
    alike.
    """
    excess = resident_bytes - capacity_bytes
    return 0 if excess <= 0 else -(-weight_bytes * excess // resident_bytes)


def crossing_bytes(problem: PartitionProblem, stage_of: Sequence[int]) -> dict[int, int]:
    """Bytes on the link before each stage that begins a chip: of maps `by_rows` once for each stage behind it that
    reads them, of other values once.
    """
    found = dict.fromkeys(problem.chip_starts[1:], 0)
    for value in problem.values:
        if value.producer is None:
            continue
        readers = {stage_of[c] for c in value.consumers}
        for boundary in found:
            if stage_of[value.producer] < boundary:
                times = sum(stage >= boundary for stage in readers)
                found[boundary] += value.size_bytes * (times if value.by_rows else min(times, 1))
    return found


def evaluate(problem: PartitionProblem, stage_of: Sequence[int]) -> Loads:
    """What an assignment of nodes to stages costs. Raises `NeuronError` if a value would go to an earlier stage."""
    count = problem.stages
    members: list[list[int]] = [[] for _ in range(count)]
    for node, stage in enumerate(stage_of):
        members[stage].append(node)
        for source in problem.predecessors[node]:
            if stage_of[source] > stage:
                raise NeuronError(f"node {node} of stage {stage} reads from node {source} of stage {stage_of[source]}")
    in_bytes, out_bytes, over_link, passing = [0] * count, [0] * count, [0] * count, [0] * count
    boundaries = problem.chip_starts[1:]
    crossing = crossing_bytes(problem, stage_of)
    received = sent = 0
    for value in problem.values:
        readers = sorted({stage_of[c] for c in value.consumers})
        size = 0 if value.by_rows else value.size_bytes
        if value.producer is None:
            received += len(readers) * value.host_bytes
            for stage in readers:
                in_bytes[stage] += size
                passing[stage] += HOST_PASSES * size if size else value.size_bytes
            continue
        home = stage_of[value.producer]
        for stage in readers:
            if stage > home:
                in_bytes[stage] += size
                passing[stage] += RING_PASSES * size
        if readers and readers[-1] > home:
            out_bytes[home] += size
            over_link[home] += size
        if value.is_output:
            sent += value.host_bytes
            out_bytes[home] += size
            passing[home] += HOST_PASSES * size if size else value.size_bytes
    loads: list[StageLoad] = []
    for index, nodes in enumerate(members):
        compute = sum(problem.nodes[n].compute_ps for n in nodes)
        maps, fits = 0, False
        if problem.intervals is not None and nodes:
            if len(nodes) != nodes[-1] + 1 - nodes[0]:
                raise NeuronError("where intervals have costs of their own, a stage is a run of nodes")
            compute = problem.intervals.time_ps[nodes[0]][nodes[-1] + 1]
            maps = problem.intervals.dram_bytes[nodes[0]][nodes[-1] + 1]
            fits = bool(problem.intervals.fits) and problem.intervals.fits[nodes[0]][nodes[-1] + 1]
        weights = sum(problem.nodes[n].weight_bytes for n in nodes)
        resident = sum(problem.nodes[n].resident_bytes for n in nodes)
        working = max((problem.nodes[n].working_bytes for n in nodes), default=0)
        streamed = 0
        if not fits and resident > max(0, problem.capacity_bytes - working):
            working = max(problem.nodes[n].taken_bytes for n in nodes)
            streamed = streamed_bytes(weights, resident, max(0, problem.capacity_bytes - working))
        moved = streamed + sum(problem.nodes[n].dma_total for n in nodes) + in_bytes[index] + out_bytes[index]
        read = streamed + sum(problem.nodes[n].dram_bytes for n in nodes) + maps
        dma = _service_ps(moved + maps, problem.core_bytes_per_s)
        crossed = over_link[index] if index + 1 in boundaries else 0
        loads.append(
            StageLoad(
                tuple(nodes),
                compute,
                weights,
                resident,
                streamed,
                read + passing[index],
                in_bytes[index],
                out_bytes[index],
                max(
                    compute
                    + (moved - streamed) * problem.exposed_ps_per_byte
                    + streamed * problem.exposed_stream_ps_per_byte
                    + crossed * problem.exposed_link_ps_per_byte,
                    dma,
                ),
                working,
            )
        )
    ends = (*boundaries, count)
    dram_ps = tuple(
        _service_ps(sum(s.dram_bytes for s in loads[start:end]), problem.dram_bytes_per_s)
        for start, end in zip(problem.chip_starts, ends, strict=True)
    )
    links = tuple(_service_ps(crossing[b], problem.link_bytes_per_s) for b in boundaries)
    host = (_service_ps(received, problem.host_bytes_per_s), _service_ps(sent, problem.host_bytes_per_s))
    return Loads(tuple(loads), dram_ps, links, host)


def simple_bound(problem: PartitionProblem) -> int:
    """A bound without search: the average compute, the largest node, the weights that no core has room for, and each
    input and output once over the link to the host.
    """
    exposed = problem.exposed_ps_per_byte
    bound = max(*(n.compute_ps + n.dma_total * exposed for n in problem.nodes), 0)
    weights = sum(n.weight_bytes for n in problem.nodes)
    resident = sum(n.resident_bytes for n in problem.nodes)
    excess = max(0, resident - problem.stages * problem.capacity_bytes)
    least = 0
    host = sum(v.size_bytes for v in problem.values if v.is_output or (v.producer is None and v.consumers))
    if excess:
        # Per byte blocked at least this many bytes are streamed, whichever weights they are.
        thin = min((n for n in problem.nodes if n.resident_bytes), key=lambda n: n.weight_bytes / n.resident_bytes)
        least += min(weights, excess * thin.weight_bytes // thin.resident_bytes)
    chips = len(problem.chip_starts)
    passing = least + sum(n.dram_bytes for n in problem.nodes) + HOST_PASSES * host
    moved = least + sum(n.dma_total for n in problem.nodes) + host
    dram = _service_ps(passing, chips * problem.dram_bytes_per_s)
    dma = _service_ps(moved, problem.stages * problem.core_bytes_per_s)
    busy = sum(n.compute_ps for n in problem.nodes) + (moved - least) * exposed
    busy += least * problem.exposed_stream_ps_per_byte
    received = sum(v.host_bytes for v in problem.values if v.producer is None and v.consumers)
    sent = sum(v.host_bytes for v in problem.values if v.producer is not None and v.is_output)
    link = _service_ps(max(received, sent), problem.host_bytes_per_s)
    return max(bound, -(-busy // problem.stages), dram, dma, link)


def partition_chain(problem: PartitionProblem, *, even_out: float = 0.0, progress: Progress | None = None) -> Partition:
    """The best cut of the nodes in their given order into contiguous stages; the bound is over cuts of that order.

    Among the best, and cuts worse by no more than `even_out` (relative), one whose stages take similar times is taken:
    with the least sum of their squares, as far as DRAM and links allow.

    Raises `NeuronError` for a senseless problem (`PartitionProblem.check`).
    """
    from neuron_mlir.solvers import partition_lattice as lattice

    problem.check()
    prefixes = [(1 << n) - 1 for n in range(len(problem.nodes) + 1)]
    stage_of, bound = lattice.search(problem, prefixes, simple_bound(problem), None, progress, even_out)
    return _finish(problem, stage_of, bound, "interval DP over the given order")


def partition_dag(
    problem: PartitionProblem,
    *,
    pairs_max: int = 4_000_000,
    sat_size_max: int = 20_000,
    work: float = 5.0,
    good_enough: float = 0.005,
    even_out: float = 0.0,
    progress: Progress | None = None,
) -> Partition:
    """The best cut over all topological orders, to within `good_enough`.

    Args:
        pairs_max: with no more pairs of ideals than this (about a second per million) the answer is exact.
        sat_size_max: otherwise CP-SAT is tried if nodes times stages are no more than this, else the gap stays as it
        is. work: CP-SAT's deterministic time (about seconds).
        good_enough: a relative gap at which the search ends.
        even_out: as for `partition_chain`.

    With `intervals` only the given order is looked at.

    Raises `NeuronError` for a senseless problem (`PartitionProblem.check`).
    """
    from neuron_mlir.solvers import partition_lattice as lattice

    if problem.intervals is not None:
        return partition_chain(problem, even_out=even_out, progress=progress)
    chain = partition_chain(problem, even_out=even_out, progress=progress)
    objective, bound = chain.certificate.objective, simple_bound(problem)
    if objective - bound <= good_enough * objective:
        return _finish(problem, _stage_of(chain), bound, "interval DP, simple bound")
    ideals = lattice.ideals(problem.predecessors, 4 * math.isqrt(pairs_max))
    if ideals is not None and lattice.pair_estimate(problem, ideals, objective) <= pairs_max:
        stage_of, bound = lattice.search(problem, ideals, bound, _stage_of(chain), progress, even_out)
        return _finish(problem, stage_of, bound, "interval DP over all orders")
    if len(problem.nodes) * problem.stages > sat_size_max:
        return _finish(problem, _stage_of(chain), bound, "interval DP, simple bound")
    from neuron_mlir.solvers.partition_sat import improve

    stage_of, bound = improve(problem, _stage_of(chain), bound, work, good_enough, progress)
    return _finish(problem, stage_of, bound, "interval DP, then CP-SAT")


def fewest_stages(problem: PartitionProblem) -> int | None:
    """The fewest stages, in the given order, in which all weights are resident; None if those of a node alone have no
    room beside its values.
    """
    stages = 1
    used = working = 0
    for node in problem.nodes:
        if node.resident_bytes > max(0, problem.capacity_bytes - node.working_bytes):
            return None
        working = max(working, node.working_bytes)
        if used + node.resident_bytes > max(0, problem.capacity_bytes - working):
            stages, used, working = stages + 1, 0, node.working_bytes
        used += node.resident_bytes
    return stages


def fewest_stages_bound(problem: PartitionProblem) -> int:
    """No cut into fewer stages, in any order of the nodes, keeps all weights resident: those that each take a stage of
    their own, or all in as many stages as their bytes fill beside the least that values take.
    """
    free = problem.capacity_bytes - min((n.working_bytes for n in problem.nodes), default=0)
    total = sum(n.resident_bytes for n in problem.nodes)
    # Any two of these are too much for one stage, whatever else is there.
    large = sum(2 * n.resident_bytes > free for n in problem.nodes)
    return max(1, large, -(-total // max(1, free)))


def _stage_of(partition: Partition) -> list[int]:
    stage_of = [0] * sum(len(s.nodes) for s in partition.stages)
    for index, stage in enumerate(partition.stages):
        for node in stage.nodes:
            stage_of[node] = index
    return stage_of


def _finish(problem: PartitionProblem, stage_of: Sequence[int], bound: int, method: str) -> Partition:
    loads = evaluate(problem, stage_of)
    certificate = Certificate(loads.objective, min(bound, loads.objective), "ps", method)
    first_chip = problem.first_core // problem.cores_per_chip
    return Partition(loads.stages, loads.dram_ps, loads.link_ps, loads.host_ps, first_chip, certificate)


def _service_ps(size_bytes: int, bytes_per_s: int) -> int:
    return -(-size_bytes * PS_PER_S // bytes_per_s)


if __name__ == "__main__":
    import sys

    from neuron_mlir.solvers.partition_cli import main

    sys.exit(main())
