"""What a run took: throughput, latency, utilisation, and two bounds beside them. Formulas: docs/simulator.md."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from xdsl.dialects.builtin import IntegerAttr

from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.machine import Machine, cost
from neuron_mlir.simulator.costs import StepCosts, Transfer
from neuron_mlir.simulator.machine_run import MachineRun
from neuron_mlir.simulator.program import Program, Step, Touch

FLOPS_ATTRIBUTE = "pipe.model_flops"
"""On `pipe.program`, i64: floating-point operations of one inference of the network (two per multiply-add)."""
WEIGHT_BYTES_ATTRIBUTE = "pipe.model_weight_bytes"
"""On `pipe.program`, i64: bytes of the network's weights in the types they are computed with."""
PS = cost.PS_PER_S


@dataclass(frozen=True)
class Latency:
    """Milliseconds from the host's first byte of a request to the last byte of its outputs at the host."""

    p50: float
    p90: float
    p99: float
    first: float
    """Of request 0, which finds the machine empty."""


@dataclass(frozen=True)
class Bound:
    """Requests per second that nothing can beat, and what limits them."""

    throughput_per_s: float
    binding: str
    """`compute`, `dram`, `dma`, `link` or `host`."""
    resource: str
    """The one that is busy all the time at that throughput."""
    basis: str
    """What it was computed from."""


@dataclass(frozen=True)
class Report:
    """One run of a final-form program."""

    program: str
    machine: str
    requests: int
    throughput_per_s: float
    steady_state: str
    """How the throughput was taken from the run."""
    latency_ms: Latency
    cores: int
    chips: int
    engine_utilization: dict[str, dict[str, float]]
    """Per core and engine (`tensor`, `scalar`, `vector`, `dma`): the part of the time it is busy."""
    resource_utilization: dict[str, float]
    """The same of what cores share: DRAM of each chip, links, both directions of the host link."""
    dram_bytes_per_inference: int
    load_ms: float
    bound: Bound
    model_bound: Bound
    hazards_checked_requests: int
    """Requests whose every access was checked against the order that semaphores give."""

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class Load:
    """What one request asks of each resource of a program; on average, where replicas take turns."""

    busy_ps: dict[str, int]
    """Time each engine, server and direction of the host link is busy, by name, in order of first use."""
    dram_bytes: int
    flops: int
    """Of the matmul instructions: two for each multiply-add."""

    @property
    def binding(self) -> tuple[str, int]:
        """The resource that is busy longest, and for how long."""
        return max(self.busy_ps.items(), key=lambda item: item[1], default=("nothing", 0))


def request_load(program: Program, costs: StepCosts | None = None) -> Load:
    """Add up what one request does in every stream: the same costs that the clock charges."""
    costs = StepCosts(program) if costs is None else costs
    busy: dict[str, int] = {}
    dram = flops = 0

    def move(transfer: Transfer, times: int) -> None:
        nonlocal dram
        dram += transfer.dram_bytes * times
        for name, time in transfer.busy_ps():
            busy[name] = busy.get(name, 0) + time * times

    # What replicas do is added up over as many requests as it takes until all have had as many turns as any.
    period = cycle(program)
    for stream in program.streams:
        turns = period // stream.turns.every
        for step, times, is_load in stream.steps():
            if is_load or not step.touches:
                continue
            transfer = costs.transfer(step, stream)
            if transfer is not None:
                move(transfer, times * turns)
                continue
            name = f"{stream.engine} of core {stream.core}"
            busy[name] = busy.get(name, 0) + costs.issue(step, stream)[0] * times * turns
            flops += matmul_flops(step) * times * turns
    for direction, ports in (("in", program.inputs), ("out", program.outputs)):
        for port in ports:
            size = port.ring.bytes_of_slot(port.depth)
            move(costs.host_transfer(port.ring.memory, size, direction), period // port.turns.every)
    return Load({name: time // period for name, time in busy.items()}, dram // period, flops // period)


def cycle(program: Program) -> int:
    """Requests after which each replica of every stage has had its turn."""
    return math.lcm(*(stream.turns.every for stream in program.streams))


def matmul_flops(step: Step) -> int:
    """Two for each multiply-add of a matmul instruction; 0 for other instructions."""
    if not isinstance(step.op, MatmulOp):
        return 0
    _, stationary, moving = step.touches
    return 2 * _elements(stationary) * _elements(moving) // moving.sizes[0]


def make_report(program: Program, run: MachineRun, costs: StepCosts | None = None) -> Report:
    """The report of a run of a scheduled program with at least one request."""
    load = request_load(program, costs)
    throughput, how = _throughput(run, cycle(program))
    latencies = [(end - start) / 1e9 for start, end in zip(run.started, run.finished, strict=True)]
    p50, p90, p99 = (float(np.percentile(latencies, q, method="inverted_cdf")) for q in (50, 90, 99))
    used = {name: round(time * throughput / PS, 6) for name, time in load.busy_ps.items()}
    engines: dict[str, dict[str, float]] = {f"core {core}": {} for core in sorted(program.cores)}
    shared: dict[str, float] = {}
    for name, value in used.items():
        engine, _, core = name.partition(" of ")
        if core in engines:
            engines[core][engine] = value
        else:
            shared[name] = value
    return Report(
        program=program.name,
        machine=machine_summary(program.machine),
        requests=len(run.finished),
        throughput_per_s=throughput,
        steady_state=how,
        latency_ms=Latency(p50, p90, p99, latencies[0]),
        cores=len(program.cores),
        chips=len(_chips(program)),
        engine_utilization=engines,
        resource_utilization=shared,
        dram_bytes_per_inference=load.dram_bytes,
        load_ms=run.load_ps / 1e9,
        bound=program_bound(load),
        model_bound=model_bound(program, load),
        hazards_checked_requests=run.checked_requests,
    )


def program_bound(load: Load) -> Bound:
    """What this program must move and compute: the resource that is busy longest for one request sets the pace."""
    name, time = load.binding
    kind = name.split(" ")[0]
    binding = kind if kind in ("dram", "dma", "link", "host") else "compute"
    return Bound(PS / time if time else float("inf"), binding, name, "the instructions of this program")


def model_bound(program: Program, load: Load) -> Bound:
    """What any program for this network on as many cores must compute and move."""
    machine, cores, chips = program.machine, len(program.cores), len(_chips(program))
    flops, flops_basis = _attribute(program, FLOPS_ATTRIBUTE), "the network"
    weights = _attribute(program, WEIGHT_BYTES_ATTRIBUTE)
    if flops is None or weights is None:
        flops_basis = "the matmuls and constants of this program, as it does not record the network's"
    flops = load.flops if flops is None else flops
    weights = _constant_bytes(program) if weights is None else weights
    received = sum(port.ring.bytes_of_slot(port.depth) // port.turns.every for port in program.inputs)
    sent = sum(port.ring.bytes_of_slot(port.depth) // port.turns.every for port in program.outputs)
    beyond = max(0, weights - cores * machine.sbuf.size_bytes)
    times = {
        f"tensor engines of {cores} cores": ("compute", flops / (cores * machine.tensor_engine.flops_per_s)),
        f"dram of {chips} chips": ("dram", (beyond + received + sent) / (chips * cost.dram_bytes_per_s(machine))),
        "host link in": ("host", received / cost.host_link_bytes_per_s(machine)),
        "host link out": ("host", sent / cost.host_link_bytes_per_s(machine)),
    }
    resource, (binding, seconds) = max(times.items(), key=lambda item: item[1][1])
    return Bound(1 / seconds if seconds else float("inf"), binding, resource, flops_basis)


def requests_for_steady_state(program: Program) -> int:
    """Requests that fill every ring and buffer several times over: enough for a steady state to show."""
    # Streams of one stage name its replicas apart; each takes only its share.
    stages = sum(1 / stream.turns.every for stream in {stream.stage: stream for stream in program.streams}.values())
    # A deep pipeline takes as many to fill as it has stages: several times that must be in the mean. Where stages share
    # a DRAM it repeats only after some ten requests, three times of which have to be seen.
    count = round(stages)
    return max(min(96, 16 + 8 * count), min(240, 20 * (count - 4)), 6 * count) * cycle(program)


def _throughput(run: MachineRun, cycle: int) -> tuple[float, str]:
    """Requests per second, and how it was found.

    The machine is full between the finish of the requests that were in flight when the first one left, and the start
    of the last one. There the intervals between finishes become periodic, as time is an integer; a period is the steady
    state exactly. Without one, all requests over the whole time from the first start: a little low, but never more than
    the resources allow, which intervals between finishes of a short run can be. Replicas may finish in bunches, so
    a period has whole cycles of their turns.
    """
    started, finished = run.started, sorted(run.finished)
    count = len(finished)
    first = sum(start < finished[0] for start in started)
    last = sum(end <= started[-1] for end in finished) - 1
    gaps = np.diff(finished[first : last + 1]) if last - first >= 2 else np.zeros(0, np.int64)
    for period in range(cycle, len(gaps) // 3 + 1, cycle):
        if np.array_equal(gaps[-2 * period :], gaps[-3 * period : -period]):
            time = int(gaps[-period:].sum())
            return period * PS / time, f"exact: repeats every {period} request{'s' if period > 1 else ''}"
    rate = count * PS / (finished[-1] - started[0])
    return rate, f"mean of {count} request{'s' if count > 1 else ''}, filling and draining the pipeline included"


def _chips(program: Program) -> list[int]:
    return sorted({program.chip(core) for core in program.cores})


def _attribute(program: Program, name: str) -> int | None:
    value = program.op.attributes.get(name)
    return value.value.data if isinstance(value, IntegerAttr) else None


def _constant_bytes(program: Program) -> int:
    sizes = {storage.constant: storage.bytes for storage in program.storages if storage.constant is not None}
    return sum(sizes.values())


def _elements(touch: Touch) -> int:
    total = 1
    for size in touch.sizes:
        total *= size
    return total


def machine_summary(machine: Machine) -> str:
    """The machine in a few words: name and overrides."""
    changes = ", ".join(f"{key}={value}" for key, value in machine.overrides)
    return f"{machine.name} with {changes}" if changes else machine.name
