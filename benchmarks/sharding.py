"""Plans for many cores: pipelines, copies of them, spare cores on the slowest stages, and stages split over cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.networks import network
from benchmarks.tables import Result
from neuron_mlir.machine import load_machine
from neuron_mlir.passes.pipelines import Neuron, load_pipeline
from neuron_mlir.runtime.compiler import import_for
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.program import read_program
from neuron_mlir.simulator.report import Report, requests_for_steady_state
from neuron_mlir.simulator.run import run_module

NETWORKS = ("resnet50", "bert-base")
HOLDS = {"resnet50": 8, "bert-base": 25}
"""Stages in which all weights stay in SBUF (and that divide a power of two, or nearly), as `cores=auto` finds them."""
MOST_STAGES = {"resnet50": 32, "bert-base": 64}
"""ResNet-50 has 58 groups; more stages than these do not help."""
CORES = (1, 4, 16, 32, 64)


@dataclass(frozen=True)
class Plan:
    """Options of pipe-stage, and the pass after it."""

    stages: int
    after: str
    words: str


def plans(name: str, cores: int) -> list[Plan]:
    """What is compared for so many cores."""
    holds = HOLDS[name]
    found = [Plan(cores, "", f"{cores} stages")] if cores <= MOST_STAGES[name] else []
    if 1 < cores <= 4:
        found.append(Plan(1, f"pipe-replicate{{copies={cores}}}", f"{cores} copies of 1 stage"))
    if cores > holds:
        found.append(Plan(holds, f"pipe-replicate{{cores={cores}}}", f"{holds} stages, other cores for copies"))
    if holds < cores <= 2 * holds:
        found.append(Plan(holds, f"pipe-shard{{cores={cores}}}", f"{holds} stages, the slowest split"))
    return found


def measure(name: str, plan: Plan) -> tuple[float, int, str, Report]:
    """Estimated requests per second, cores in use, what was done in words, and the simulator's report."""
    net = network(name)
    module, _, _ = import_for(net.path, net.options(1), load_machine("inferentia1"))
    estimate, cores, done = 0.0, plan.stages, plan.words
    steps = load_pipeline(Neuron(cores=plan.stages).expand())
    at = next(n for n, step in enumerate(steps) if step.name == "pipe-stage") + 1
    steps[at:at] = load_pipeline(plan.after) if plan.after else []
    for step in steps:
        step.apply(make_context(), module)
        statistics = getattr(step, "statistics", {})
        if "bottleneck-ps" in statistics:
            estimate = 1e12 / float(statistics["bottleneck-ps"])
            cores = int(statistics.get("cores", cores))
    program = read_program(module)
    run = run_module(module, requests_for_steady_state(program), values=False, hazards=False)
    return estimate, cores, done, run.report()


def sharding(names: Sequence[str]) -> Result:
    """Batch 1, all passes on. Estimate: one over the slowest stage, chip's DRAM or link that the passes foresee, before
    anything is lowered. Simulated: steady state, or the mean of a long run with its filling and draining. Share: of
    what the program's own instructions and bytes allow on these engines and memories. Latency: p50 with all requests
    waiting from the start, and that of a request that finds the machine empty."""
    result = Result(
        "sharding",
        "Many cores: stages, copies and shards",
        sharding,
        [
            "network",
            "cores",
            "plan",
            "estimate, /s",
            "simulated, /s",
            "p50, ms",
            "first, ms",
            "share of bound",
            "bound by",
        ],
    )
    for name in [name for name in NETWORKS if name in names]:
        best: dict[int, float] = {}
        for cores in CORES:
            for plan in plans(name, cores):
                estimate, used, words, report = measure(name, plan)
                rate = report.throughput_per_s
                best[cores] = max(best.get(cores, 0.0), rate)
                share = rate / report.bound.throughput_per_s
                result.add(
                    name,
                    used,
                    words,
                    estimate,
                    rate,
                    report.latency_ms.p50,
                    report.latency_ms.first,
                    f"{share:.0%}",
                    report.bound.resource,
                )
                result.limit(f"{name}, {words}: not above its bound", share <= 1.0)
        result.limit(
            f"{name}: the best plan is faster with more cores",
            all(best[a] < best[b] for a, b in pairwise(CORES)),
        )
    return result
