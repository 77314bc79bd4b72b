"""Leaving cores for a layer that is the slowest stage: `pipe-stage` makes fewer stages, `pipe-shard` splits it.

No cut of the layers is faster than the slowest layer with what it is not to be cut from. With fewer stages that are as
fast, some cores are left to split that stage over (and others, once it is no longer the slowest). How many stages is
chosen as if shards shared a stage's time evenly; whether that wins is said by `pipe-shard`'s estimate of the program,
beside the same estimate of the program with a stage for every core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp

from neuron_mlir.dialects.pipe.ops import ProgramOp
from neuron_mlir.ir.machine_attr import record_machine
from neuron_mlir.machine import Machine
from neuron_mlir.passes.pipe._sharding import MARGIN_PERCENT, Planner
from neuron_mlir.passes.pipe.shard import PipeShard

if TYPE_CHECKING:
    from xdsl.context import Context

    from neuron_mlir.solvers.partition import Partition

NEARLY = 0.01
"""How much slower fewer stages may be and still count as fast."""

MOST_PERCENT = 60
"""How much of the slowest stage one layer has to take to be what bounds it."""


@dataclass(frozen=True)
class Spare:
    """What to do about a layer that is the slowest stage.

    Attributes:
        node: which it is, of the graph that was cut.
        time_ps: what its stage takes on one core.
        stages: how many stages to make; 0 where no split can win.
        ideal_ps: the slowest resource if shards shared the time of stages evenly.
        bottleneck: which resource that is, other than a stage; empty if it is one.
    """

    node: int
    time_ps: int
    stages: int
    ideal_ps: int
    bottleneck: str


def spare_cores(
    cut: Callable[[int], Partition], partition: Partition, cores: int, spans: Sequence[int]
) -> Spare | None:
    """What is the slowest stage of a cut into a stage for every core, though more stages do not help, and how many to
    make instead; None where it is no stage that is slowest, or one of many layers, or the last core helps.

    `cut` gives the best partition into so many stages; it is asked about ten times. `spans` has what nodes take, ps.
    """
    objective = partition.certificate.objective
    slowest = max(partition.stages, key=lambda stage: stage.cost_ps)
    layer = max(slowest.nodes, key=lambda node: spans[node])
    if (
        cores < 2
        or slowest.cost_ps * (1 + NEARLY) < objective
        or 100 * spans[layer] < MOST_PERCENT * slowest.compute_ps
    ):
        return None
    known: dict[int, Partition] = {}

    def of(stages: int) -> Partition:
        if stages not in known:
            known[stages] = cut(stages)
        return known[stages]

    if of(cores - 1).certificate.objective > (1 + NEARLY) * objective:
        return None
    low, high = 1, cores - 1
    while low < high:
        middle = (low + high) // 2
        if of(middle).certificate.objective <= (1 + NEARLY) * objective:
            high = middle
        else:
            low = middle + 1
    best: tuple[int, int, str] | None = None
    for stages in sorted({*range(low, min(low + 3, cores)), (low + cores) // 2, cores - 1}, reverse=True):
        ideal, bottleneck = _ideal(of(stages), cores)
        if best is None or ideal < best[0]:
            best = ideal, stages, bottleneck
    assert best is not None
    ideal, stages, bottleneck = best
    wins = 100 * objective >= (100 + MARGIN_PERCENT) * ideal
    return Spare(layer, slowest.cost_ps, stages if wins else 0, ideal, bottleneck)


def _ideal(partition: Partition, cores: int) -> tuple[int, str]:
    """The slowest resource with spare cores on the slowest stages, which get as much faster; its name if no stage."""
    from neuron_mlir.solvers.replicate import spread

    stages = spread([stage.cost_ps for stage in partition.stages], cores).certificate.objective
    shared = {f"DRAM of chip {chip}": time for chip, time in enumerate(partition.dram_ps, partition.first_chip)}
    for chip, time in enumerate(partition.link_ps, partition.first_chip):
        shared[f"the link from chip {chip} to {chip + 1}"] = time
    shared["the link to the host"] = max(partition.host_ps)
    name = max(shared, key=lambda name: shared[name])
    return (shared[name], name) if shared[name] > stages else (int(stages), "")


def split_instead(
    ctx: Context, program: ProgramOp, trial: FuncOp, stage: Callable[[ModuleOp], None], cores: int, machine: Machine
) -> tuple[ProgramOp | None, str, Mapping[str, object]]:
    """A program with fewer stages, some of them split, if it is faster than `program` by the estimate; why, or why not;
    and the statistics of `pipe-shard`.

    Args:
        ctx: for passes.
        program: a stage for every core.
        trial: the function it was made of, as it was before.
        stage: makes fewer stages of a module with such a function.
        cores: to spend.
        machine: what it is for.
    """
    module = ModuleOp([trial])
    record_machine(module, machine)
    stage(module)
    before = Planner(program, machine, "auto").estimate({}, cores).objective_ps
    shard = PipeShard(cores=cores)
    shard.apply(ctx, module)
    after = int(str(shard.statistics["bottleneck-ps"]))
    (found,) = (op for op in module.ops if isinstance(op, ProgramOp))
    reason = found.attributes["sharding_reason"]
    assert isinstance(reason, StringAttr)
    if not shard.statistics["sharded"] or 100 * before < (100 + MARGIN_PERCENT) * after:
        text = f"{reason.data} ({after} ps per request in all; {before} ps with {cores} stages)"
        return None, text, shard.statistics
    found.detach()
    return found, reason.data, shard.statistics
