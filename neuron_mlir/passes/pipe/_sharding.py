"""What splitting stages of a program would give, and which stages to split with some cores to spend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import IntegerAttr, i64

from neuron_mlir.dialects.pipe.ops import OutputOp, ProgramOp, StageOp
from neuron_mlir.machine import Machine, cost
from neuron_mlir.passes.estimate import tensor_bytes
from neuron_mlir.passes.pipe._graph import Graph, map_rates
from neuron_mlir.passes.pipe._shards import AXES, Axis, Split, cuts_of, replace_by_shards
from neuron_mlir.passes.pipe._streams import narrow
from neuron_mlir.passes.pipe._traffic import crossing_times, dram_by_chip, dram_bytes, host_times
from neuron_mlir.solvers.partition import HOST_PASSES
from neuron_mlir.solvers.placement import place_on_chain

if TYPE_CHECKING:
    from neuron_mlir.solvers.partition import StageLoad

Splits = Mapping[int, Split]
"""How stages are split, by their number."""
MARGIN_PERCENT = 10
"""What a program has to be faster to be worth more cores: estimates are not better than that."""
PATIENCE = 3
"""Splits in a row that do not help before no more are tried: one alone may do nothing where two stages are as slow."""


@dataclass(frozen=True)
class Estimate:
    """A program some of whose stages are split; times per request, picoseconds.

    Attributes:
        splits: of which stages.
        cores: of each stage and shard, in order.
        stage_ps: of each stage as it was, the slowest of its shards.
        objective_ps: of the slowest stage, DRAM, link between chips or to the host.
        slowest: which that is.
    """

    splits: Splits
    cores: tuple[int, ...]
    stage_ps: tuple[int, ...]
    objective_ps: int
    slowest: str


class Planner:
    """Estimates splits of a program's stages, on copies of it.

    Args:
        program: in value form, a core to each stage.
        machine: what it runs on.
        axis: the axis to split by, or `auto`.
    """

    def __init__(self, program: ProgramOp, machine: Machine, axis: Axis):
        self.program = program
        self.machine = machine
        self.axes = AXES if axis == "auto" else (axis,)
        self.stages = program.stages()
        self.names = [stage.sym_name.data for stage in self.stages]
        self.first = min(stage.core_list()[0] for stage in self.stages)
        self.neighbours = [_neighbours(stage, self.stages) for stage in self.stages]
        self.loads: dict[object, StageLoad] = {}

    def estimate(self, splits: Splits, room: int) -> Estimate:
        """What these splits give on `room` cores: shards lie next to each other; where links or DRAM would be slow and
        cores are left, a chip is not filled.
        """
        program = self.program.clone()
        parts = apply(program, splits)
        stage_ps: list[int] = []
        part_ps: list[int] = []
        for number, part in enumerate(parts):
            worst = 0
            for n, stage in enumerate(part):
                load = self._load(number, n, len(part), splits, stage)
                annotate(stage, load)
                part_ps.append(load.cost_ps)
                worst = max(worst, load.cost_ps)
            stage_ps.append(worst)
        stages = [stage for part in parts for stage in part]
        slowest = max(range(len(parts)), key=lambda n: stage_ps[n])
        times = host_times(program, self.machine) | {f"stage {self.names[slowest]}": stage_ps[slowest]}
        per_chip = self.machine.chip.cores
        crossing = crossing_times(stages, part_ps, self.machine)
        cores = place_on_chain(
            [cost.service_ps(dram_bytes(stage), cost.dram_bytes_per_s(self.machine)) for stage in stages],
            crossing,
            per_chip,
            self.first,
            room,
            max(times.values()),
        ).cores
        homes = {stage: (core,) for stage, core in zip(stages, cores, strict=True)}
        times |= {f"DRAM of chip {chip}": time for chip, time in dram_by_chip(stages, homes, self.machine).items()}
        for border, (before, after) in enumerate(pairwise(cores), 1):
            if before // per_chip != after // per_chip:
                times[f"link {before // per_chip}->{after // per_chip}, or who writes to it,"] = crossing[border]
        name = max(times, key=lambda name: times[name])
        return Estimate(splits, cores, tuple(stage_ps), times[name], name)

    def ways(self, number: int, ways: int, others: Splits, room: int) -> list[Estimate]:
        """A stage split so many ways beside other splits, by each axis there is."""
        stage = self.stages[number]
        found = [Split(axis, ways) for axis in self.axes if cuts_of(stage, ways, axis) is not None]
        return [self.estimate(dict(sorted({**others, number: split}.items())), room) for split in found]

    def spread(self, room: int) -> tuple[Estimate, Estimate, int, Estimate | None]:
        """Spend up to `room` cores.

        The slowest stage is split one way further again and again; of all that come by, the fastest is taken, DRAM and
        links counted in.

        Returns:
            The program as it is, on neighbouring cores; the best found, with the fewest cores; what no split of single
            stages beats, DRAM and links left out; and the best of the splits tried, if any.
        """
        start = self.estimate({}, len(self.stages))
        best = now = self.estimate({}, room)
        tried: Estimate | None = None
        worse = 0
        while worse < PATIENCE:
            slowest = max(range(len(self.stages)), key=lambda n: now.stage_ps[n])
            better = self._further(slowest, now, now.splits, room)
            if better is None:
                break
            now = better
            if tried is None or now.objective_ps < tried.objective_ps:
                tried = now
            worse += 1
            if now.objective_ps < best.objective_ps:
                best, worse = now, 0
        if 100 * start.objective_ps < (100 + MARGIN_PERCENT) * best.objective_ps:
            best = start
        return start, best, min(best.objective_ps, self._alone(start, room)), tried

    def _further(self, number: int, now: Estimate, others: Splits, room: int) -> Estimate | None:
        """A stage split the next number of ways that makes it faster: by the axis with the fastest program."""
        have = others[number].ways if number in others else 1
        for ways in range(have + 1, have + room - _used(self.stages, others) + 1):
            faster = [e for e in self.ways(number, ways, others, room) if e.stage_ps[number] < now.stage_ps[number]]
            if faster:
                return min(faster, key=lambda e: (e.objective_ps, e.stage_ps[number]))
        return None

    def _alone(self, start: Estimate, room: int) -> int:
        """The slowest stage when each is split as if it were alone: greedy, which is optimal for stages that get no
        slower with more ways (`neuron_mlir.solvers.replicate`).
        """
        times = list(start.stage_ps)
        have = [1] * len(times)
        while True:
            slowest = max(range(len(times)), key=lambda n: times[n])
            most = have[slowest] + room - sum(have)
            for ways in range(have[slowest] + 1, most + 1):
                found = [e.stage_ps[slowest] for e in self.ways(slowest, ways, {}, room)]
                if min(found, default=times[slowest]) < times[slowest]:
                    have[slowest], times[slowest] = ways, min(found)
                    break
            else:
                return times[slowest]

    def _load(self, number: int, n: int, ways: int, splits: Splits, stage: StageOp) -> StageLoad:
        """The load of a shard. The first and the last have a border on one side only; all between are alike."""
        around = tuple((other, splits.get(other)) for other in (number, *self.neighbours[number]))
        key = number, min(n, 1) + (1 if 0 < n == ways - 1 else 0), around
        if key not in self.loads:
            self.loads[key] = load_of(stage, self.machine)
        return self.loads[key]


def apply(program: ProgramOp, splits: Splits) -> list[list[StageOp]]:
    """Split stages of a program; the stages that each of its stages has become."""
    names = [stage.sym_name.data for stage in program.stages()]
    for number, stage in enumerate(program.stages()):
        if number in splits:
            replace_by_shards(program, stage, splits[number])
    if splits:
        narrow(program)
    found = {stage.sym_name.data: stage for stage in program.stages()}
    return [
        [found[f"{name}.{n}"] for n in range(splits[number].ways)] if number in splits else [found[name]]
        for number, name in enumerate(names)
    ]


def load_of(stage: StageOp, machine: Machine) -> StageLoad:
    """What a stage takes per request, by the estimates that cuts are made with."""
    from neuron_mlir.passes.depth_first_runs import run_costs
    from neuron_mlir.solvers.partition import evaluate

    graph = Graph.of(stage, machine, depth_first=True)
    program = stage.parent_op()
    stages = len(program.stages()) if isinstance(program, ProgramOp) else 1
    runs = run_costs(machine, stage.body.block, stages, *map_rates(machine, stages)) if graph.nodes else None
    problem = graph.problem(machine, 1, machine.sbuf.bytes_per_partition, 0, runs)
    return evaluate(problem, [0] * len(graph.nodes)).stages[0]


def annotate(stage: StageOp, load: StageLoad) -> None:
    """Write a stage's load to it, as `pipe-stage` does: bytes in DRAM of streams to other stages are their readers'."""
    inner = [result for result in stage.results_ if not any(isinstance(u.operation, OutputOp) for u in result.uses)]
    rings = HOST_PASSES * sum(tensor_bytes(result.type.element) for result in inner)
    stage.attributes |= {
        "compute_ps": IntegerAttr(load.compute_ps, i64),
        "cost_ps": IntegerAttr(load.cost_ps, i64),
        "dram_bytes": IntegerAttr(max(0, load.dram_bytes - rings), i64),
        "weight_bytes": IntegerAttr(load.weight_bytes, i64),
    }


def _neighbours(stage: StageOp, stages: Sequence[StageOp]) -> list[int]:
    """Stages that hand a stage something or take something from it."""
    found = {value.owner for value in stage.arguments} | {u.operation for r in stage.results_ for u in r.uses}
    return [number for number, other in enumerate(stages) if other in found]


def _used(stages: Sequence[StageOp], splits: Splits) -> int:
    return len(stages) + sum(split.ways - 1 for split in splits.values())
