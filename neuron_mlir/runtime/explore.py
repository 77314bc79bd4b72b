"""Which plan to run a model with: batch x stages x shards x copies, estimated all, the best of them simulated.

A *plan* is a batch, a number of stages, a number of cores to spread the slowest of these over, and a number of copies
of the whole. What a stage costs depends on all but the copies, so it is estimated once (by the passes, up to
`pipe-stage` and `pipe-shard`) and shared by all plans that differ in those. The plans that no other beats in
throughput, latency and cost are compiled and run on the simulator, clock only. `neuron_mlir.runtime.workers` runs both
steps on many processes; nothing here depends on which.

Latency is that of a saturated program: the time a request spends in it when the next always waits at the door.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.compiler import (
    CompileOptions,
    collector_paused,
    compile_model,
    import_for,
    load_machine_for,
    plan_json,
)
from neuron_mlir.runtime.plans import (
    Plan,
    Rating,
    StageEstimate,
    choose_for_simulation,
    corrected,
    front,
    plans_of,
    rate,
    rate_estimate,
)

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp
    from xdsl.ir import Operation

    from neuron_mlir.machine import Machine

TaskT = TypeVar("TaskT")
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Refused:
    """A plan, or all with its batch and stages, that cannot be: why."""

    batch: int
    stages: str | None
    reason: str
    width: int | None = None
    copies: int | None = None


@dataclass(frozen=True)
class Simulated:
    """A plan with what the simulator says of it."""

    plan: Plan
    estimate: Rating
    rating: Rating
    report: dict[str, Any] = field(compare=False)


@dataclass(frozen=True)
class EstimateTask:
    """All pipelines for one batch."""

    model: str
    digest: str
    options: CompileOptions
    batch: int
    pipelines: tuple[tuple[int | Literal["auto"], int], ...]
    """Stages, and cores to spread the slowest over or 0."""

    def __str__(self) -> str:
        return f"batch {self.batch}"


@dataclass(frozen=True)
class SimulateTask:
    """One plan, as options."""

    model: str
    digest: str
    options: CompileOptions

    def __str__(self) -> str:
        options = self.options
        return f"batch {options.batch_size}, {options.cores} stages, {options.replicas} copies"


class Workers(Protocol):
    """Runs a function on every task, anywhere, in any order."""

    def map(
        self, function: Callable[[TaskT], AnswerT], tasks: Sequence[TaskT], done: Callable[[TaskT], None]
    ) -> list[AnswerT]:
        """The answers, in the order of the tasks; `done` is told of each task that ends."""
        ...


# What workers run -----------------------------------------------------------------------------------------------------


def digest_of(model: str | Path) -> str:
    """A digest of a model file, so that a worker elsewhere can tell that it has the same."""
    try:
        with open(model, "rb") as stream:
            return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise NeuronError(f"cannot read the model '{model}': {error.strerror}") from error


def _check_model(task: EstimateTask | SimulateTask) -> None:
    if digest_of(task.model) != task.digest:
        raise NeuronError(
            f"the model '{task.model}' is another file on this worker",
            needed=f"digest {task.digest}",
            advice="a file system that all workers share",
        )


def estimate(task: EstimateTask) -> list[StageEstimate | Refused]:
    """The estimates of one batch, for every pipeline; a reason where there is none."""
    _check_model(task)
    try:
        whole, grouped = _prepare(task)
    except NeuronError as error:
        return [Refused(task.batch, None, error.line)]
    found: list[StageEstimate | Refused] = []
    stages_alone: dict[int | Literal["auto"], StageEstimate | Refused] = {}
    for stages, spread in task.pipelines:
        if stages not in stages_alone:
            stages_alone[stages] = _estimate_pipeline(task.batch, stages, 0, grouped)
        found.append(_estimate_split(task.batch, stages, spread, whole, stages_alone[stages]))
    return found


def _prepare(task: EstimateTask) -> tuple[ModuleOp, ModuleOp]:
    """The module as `pipe-stage` gets it, and the same with depth-first groups formed, where the pipeline forms them.

    What passes DRAM between such groups only they know; in a pipeline they are formed stage by stage, at much the same
    cost.
    """
    from neuron_mlir.passes.pipelines import load_pipeline
    from neuron_mlir.runtime.modules import make_context

    options = replace(task.options, batch_size=task.batch)
    with collector_paused():
        module, _, factor = import_for(Path(task.model), options, load_machine_for(options))
        context = make_context()
        steps = load_pipeline(replace(options, batch=factor).pipeline().expand())
        cut = [step.name for step in steps].index("pipe-stage")
        for step in steps[:cut]:
            step.apply(context, module)
        grouped = module
        for step in steps[cut:]:
            if step.name == "nn-fuse-depth-first":
                grouped = module.clone()
                try:
                    step.apply(context, grouped)
                except NeuronError:
                    # It knows no groups that pipe-stage takes apart (attention). Such networks have no large maps.
                    grouped = module
    return module, grouped


def _estimate_split(
    batch: int, stages: int | Literal["auto"], spread: int, whole: ModuleOp, alone: StageEstimate | Refused
) -> StageEstimate | Refused:
    """Stages whose slowest are split: what splitting saves, estimated before there are depth-first groups, which cannot
    be split, of what the stages take with them.
    """
    if not spread or isinstance(alone, Refused):
        return alone
    before, after = (_estimate_pipeline(batch, stages, cores, whole) for cores in (0, spread))
    if isinstance(before, Refused) or isinstance(after, Refused):
        return after
    return replace(
        after,
        request_ps=alone.request_ps * after.request_ps // max(1, before.request_ps),
        dram_bytes=alone.dram_bytes * after.dram_bytes // max(1, before.dram_bytes),
    )


def _estimate_pipeline(
    batch: int, stages: int | Literal["auto"], spread: int, module: ModuleOp
) -> StageEstimate | Refused:
    from neuron_mlir.ir.machine_attr import machine_of
    from neuron_mlir.machine import cost
    from neuron_mlir.passes.pipelines import load_pipeline
    from neuron_mlir.runtime.modules import make_context

    machine, staged = machine_of(module), module.clone()
    shards = f",pipe-shard{{cores={spread}}}" if spread else ""
    made = 0
    try:
        for step in load_pipeline(f"pipe-stage{{cores={stages}}}{shards}"):
            step.apply(make_context(), staged)
            made = made or len(plan_json(staged)["stages"])
    except NeuronError as error:
        return Refused(batch, str(stages), error.line, spread or None)
    plan = plan_json(staged)
    found: list[dict[str, Any]] = plan["stages"]
    if spread and len(found) == made:
        return Refused(batch, str(stages), str(plan["notes"].get("sharding_reason", "no split")), spread)
    slowest = max(found, key=lambda stage: stage["cost_ps"])
    request_ps, bottleneck = slowest["cost_ps"], f"stage {slowest['name']}"
    if not spread:
        # With links between chips in it.
        request_ps = round(plan["certificates"]["certificate"]["objective"])
        bottleneck = str(plan["notes"].get("bottleneck", ""))
    per_chip = machine.chip.cores
    for first in range(0, len(found), per_chip):
        moved = sum(stage["dram_bytes"] for stage in found[first : first + per_chip])
        time = cost.service_ps(moved, cost.dram_bytes_per_s(machine))
        if time > request_ps:
            request_ps, bottleneck = time, f"DRAM of chip {first // per_chip}"
    return StageEstimate(batch, made, len(found), request_ps, sum(stage["dram_bytes"] for stage in found), bottleneck)


def simulate(task: SimulateTask) -> dict[str, Any] | Refused:
    """Compile one plan and run its clock; the simulator's report."""
    from neuron_mlir.simulator.program import read_program
    from neuron_mlir.simulator.report import requests_for_steady_state
    from neuron_mlir.simulator.run import run_module

    _check_model(task)
    try:
        compiled = compile_model(task.model, task.options)
        requests = requests_for_steady_state(read_program(compiled.module))
        result = run_module(compiled.module, requests, weights=compiled.weights, values=False, hazards=False)
        assert result.program is not None
        return {**result.report().to_json(), **_model_numbers(result.program.op)}
    except NeuronError as error:
        options = task.options
        width = options.shard_cores or None
        return Refused(options.batch_size or 1, str(options.cores), error.line, width, options.replicas)


def _model_numbers(program: Operation) -> dict[str, int]:
    """What lowering has recorded of the network: `flops` of a request and `weight_bytes`."""
    from xdsl.dialects.builtin import IntegerAttr

    from neuron_mlir.simulator.report import FLOPS_ATTRIBUTE, WEIGHT_BYTES_ATTRIBUTE

    numbers: dict[str, int] = {}
    for name, attribute in (("flops", FLOPS_ATTRIBUTE), ("weight_bytes", WEIGHT_BYTES_ATTRIBUTE)):
        value = program.attributes.get(attribute)
        if isinstance(value, IntegerAttr):
            numbers[name] = value.value.data
    return numbers


# The search -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exploration:
    """All that was found."""

    model: str
    machine: Machine
    estimates: list[tuple[Plan, Rating]]
    """Every plan, in order."""
    stages: list[StageEstimate]
    refused: list[Refused]
    simulated: list[Simulated]
    """Plans of the front that were simulated, fastest answer first."""
    latency_ms: float | None

    @property
    def front(self) -> list[Simulated]:
        """Of the simulated plans those that no other of them beats."""
        kept = {plan for plan, _ in front([(s.plan, s.rating) for s in self.simulated])}
        return [s for s in self.simulated if s.plan in kept]

    def best(self, prefer: str) -> Simulated:
        """The plan to take: the best in `cost`, `throughput` or `latency` among those within the latency asked for.

        Raises:
            NeuronError: none is; with the least latency there is.
        """
        if not self.simulated:
            reasons = "; ".join(dict.fromkeys(r.reason for r in self.refused)) or "none was estimated"
            raise NeuronError(f"no plan can run: {reasons}")
        within = [s for s in self.front if self.latency_ms is None or s.rating.latency_ms <= self.latency_ms]
        if not within:
            least = min(s.rating.latency_ms for s in self.simulated)
            raise NeuronError(
                "no plan answers in time",
                resource="milliseconds",
                needed=f"{self.latency_ms:g} or less",
                available=f"{least:.3g}",
                advice="more cores, or a smaller batch",
            )
        keys: dict[str, Callable[[Simulated], tuple[float, Plan]]] = {
            "cost": lambda s: (s.rating.dollars_per_million, s.plan),
            "throughput": lambda s: (-s.rating.throughput_per_s, s.plan),
            "latency": lambda s: (s.rating.latency_ms, s.plan),
        }
        return min(within, key=keys[prefer])


class Watcher(Protocol):
    """Told about progress."""

    def __call__(self, phase: str, done: int, total: int, last: str) -> None:
        """`done` of `total` tasks of a phase have ended, the last of them being `last`."""
        ...


def explore(
    model: str,
    options: CompileOptions,
    batches: Sequence[int],
    cores: tuple[int, int],
    workers: Workers,
    *,
    shards: Sequence[int] = (1,),
    latency_ms: float | None = None,
    simulations: int = 8,
    watch: Watcher | None = None,
) -> Exploration:
    """Estimate all plans, simulate the best.

    Args:
        model: an ONNX file; on a cluster its path has to be that of the same file everywhere.
        options: of every compilation, but for batch, stages and copies.
        batches: inferences per request to try.
        cores: the fewest and the most to use.
        workers: who does it.
        shards: cores per stage to spread the slowest stages over, besides a core each.
        latency_ms: answers slower than this do not count.
        simulations: how many plans to simulate at most.
        watch: told about progress.

    Raises:
        NeuronError: the model or an option is wrong; a model that differs between workers.
    """
    machine = load_machine_for(options)
    most = min(cores[1], machine.cores_max)
    if not 1 <= cores[0] <= most:
        raise NeuronError(
            f"the machine {machine.name} has 1 to {machine.cores_max} cores", needed=f"{cores[0]} to {cores[1]}"
        )
    digest = digest_of(model)
    plans = plans_of(batches, shards, cores[0], most)
    wanted = tuple(sorted({(plan.stages, plan.width if plan.width > plan.stages else 0) for plan in plans}))
    tasks = [EstimateTask(model, digest, options, batch, wanted) for batch in sorted(set(batches))]
    found = [each for answers in _run(workers, estimate, tasks, "estimate", watch) for each in answers]
    estimated = {(e.batch, e.stages, e.width): e for e in found if isinstance(e, StageEstimate)}
    refused = [e for e in found if isinstance(e, Refused)]
    ratings = [
        (plan, rate_estimate(machine, plan, estimated[plan.batch, plan.stages, plan.width]))
        for plan in plans
        if (plan.batch, plan.stages, plan.width) in estimated
        and plan.chips(machine.chip.cores) <= max(i.chips for i in machine.instances)
    ]
    simulated: list[Simulated] = []
    for budget in (simulations - simulations // 2, simulations // 2):
        members = front(corrected(ratings, [(s.plan, s.estimate, s.rating) for s in simulated]))
        known = {each.plan for each in simulated} | {
            Plan(r.batch, int(r.stages or 0), r.width or 0, r.copies or 0) for r in refused
        }
        left = [(plan, rating) for plan, rating in members if plan not in known]
        chosen = choose_for_simulation(left, budget, latency_ms) if budget else []
        guesses = dict(ratings)
        runs = [SimulateTask(model, digest, plan.options(options)) for plan, _ in chosen]
        for (plan, _), answer in zip(chosen, _run(workers, simulate, runs, "simulate", watch), strict=True):
            if isinstance(answer, Refused):
                refused.append(replace(answer, width=plan.width))
                continue
            rating = rate(machine, plan, answer["throughput_per_s"] * plan.batch, answer["latency_ms"]["p99"])
            simulated.append(Simulated(plan, guesses[plan], rating, answer))
    simulated.sort(key=lambda s: (s.rating.latency_ms, s.plan))
    return Exploration(model, machine, ratings, list(estimated.values()), refused, simulated, latency_ms)


def _run(
    workers: Workers,
    function: Callable[[TaskT], AnswerT],
    tasks: Sequence[TaskT],
    phase: str,
    watch: Watcher | None,
) -> list[AnswerT]:
    if not tasks:
        return []
    done = 0

    def told(task: TaskT) -> None:
        nonlocal done
        done += 1
        if watch is not None:
            watch(phase, done, len(tasks), str(task))

    if watch is not None:
        watch(phase, 0, len(tasks), "")
    return workers.map(function, tasks, told)


def compile_command(model: str, plan: Plan, options: CompileOptions, output: str | None = None) -> list[str]:
    """The `neuron-cc` command line that compiles a plan."""
    command = ["neuron-cc", "compile", model, "--batch-size", str(plan.batch)]
    command += ["--neuroncore-pipeline-cores", str(plan.stages)]
    if plan.width > plan.stages:
        command += ["--shard-cores", str(plan.width)]
    if plan.copies > 1:
        command += ["--replicas", str(plan.copies)]
    if options.fp32_cast != "all":
        command += ["--fp32-cast", options.fp32_cast]
    if options.machine != "inferentia1":
        command += ["--machine", options.machine]
    if options.io_config is not None:
        import json

        command += ["--io-config", json.dumps(dict(options.io_config))]
    return [*command, "--output", output or f"{Path(model).stem}.neff"]


def to_json(exploration: Exploration, best: Simulated | None) -> dict[str, Any]:
    """For `--json`: every estimate, every simulation, the front and the choice."""

    def entry(plan: Plan, rating: Rating) -> dict[str, Any]:
        return {**asdict(plan), "cores": plan.cores, **asdict(rating)}

    def whole(each: Simulated) -> dict[str, Any]:
        return {**entry(each.plan, each.rating), "estimate": asdict(each.estimate), "report": each.report}

    return {
        "model": exploration.model,
        "machine": exploration.machine.name,
        "latency_ms": exploration.latency_ms,
        "chosen": None if best is None else entry(best.plan, best.rating),
        "front": [asdict(each.plan) for each in exploration.front],
        "simulated": [whole(each) for each in exploration.simulated],
        "estimated": [entry(plan, rating) for plan, rating in exploration.estimates],
        "stages": [asdict(each) for each in exploration.stages],
        "refused": [asdict(each) for each in exploration.refused],
    }
