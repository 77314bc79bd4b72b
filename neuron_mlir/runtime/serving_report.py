"""What a served load tells: throughput, latency, utilisation, cost, and Little's law. Formulas: docs/serving.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import Machine as Description
from neuron_mlir.machine.topology import smallest_instance
from neuron_mlir.runtime.serving import (
    ANSWERED,
    GIVEN_UP,
    LATE,
    PS_PER_MS,
    PS_PER_S,
    Inference,
    Little,
    Machine,
    Served,
    little,
    percentile,
)
from neuron_mlir.simulator.report import request_load


@dataclass(frozen=True)
class Times:
    """Milliseconds of inferences."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @staticmethod
    def of(values: list[int]) -> Times:
        """Of picoseconds; nearest rank. Zeros of none."""
        if not values:
            return Times(0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p90, p99 = (percentile(values, q) / PS_PER_MS for q in (50, 90, 99))
        return Times(sum(values) / len(values) / PS_PER_MS, p50, p90, p99, max(values) / PS_PER_MS)


@dataclass(frozen=True)
class Cost:
    """The cheapest instance with as many cores, on demand, this program being all that it runs."""

    instance: str
    dollars_per_hour: float
    dollars_per_million: float | None
    """Of answered inferences; None where none is answered."""


@dataclass(frozen=True)
class LoadReport:
    """One load that a program was put under."""

    inferences: int
    answered: int
    given_up: int
    """Clients that went while their inference waited in the queue: it was never sent."""
    late: int
    """Clients that went while the machine worked for them."""
    measured: int
    """Inferences that the times are of: those after the warm-up that were answered."""
    length_ms: float
    """From the first arrival to the last departure."""
    offered_per_s: float
    throughput_per_s: float
    latency_ms: Times
    queue_ms: Times
    """Of the latency, what passes before an inference is sent."""
    requests: int
    mean_batch: float
    engine_utilization: dict[str, dict[str, float]]
    resource_utilization: dict[str, float]
    stage_utilization: dict[str, float]
    """The share of the busiest engine of each stage, DMA included; of copies, of the busiest."""
    little: dict[str, Little]
    """Of the `system`, the `queue` in front of it, and the `machine` (requests of the compiled batch)."""
    cost: Cost | None
    """None when no instance has so many cores."""

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, for `json.dumps`; Little's law with its mean values."""
        result = asdict(self)
        for name, law in self.little.items():
            means = {"number": law.number, "rate_per_s": law.rate_per_s, "stay_ms": law.stay_ps / PS_PER_MS}
            result["little"][name].update(means)
        return result


def report_load(served: Served, machine: Machine, warm_up: int = 0) -> LoadReport:
    """Add up what happened.

    Args:
        served: the run.
        machine: that it ran on.
        warm_up: as many inferences, the first to arrive, are not in throughput and times.

    Raises:
        NeuronError: nothing was asked for.
    """
    inferences = served.inferences
    if not inferences:
        raise NeuronError("there is nothing to serve", needed="1 inference or more", available=0)
    length = max(max(i.ended for i in inferences), max((end for _, end, *_ in served.requests), default=0))
    begin, end = _window(inferences, warm_up)
    measured = [i for i in inferences[warm_up:] if i.state == ANSWERED] or [
        i for i in inferences if i.state == ANSWERED
    ]
    counted = sum(begin < i.ended <= end for i in inferences if i.state == ANSWERED)
    throughput = counted * PS_PER_S / (end - begin) if end > begin else 0.0
    sent = [request for request in served.requests if begin < request[1] <= end]
    engines, shared = _utilization(machine, sent, end - begin)
    return LoadReport(
        inferences=len(inferences),
        answered=sum(i.state == ANSWERED for i in inferences),
        given_up=sum(i.state == GIVEN_UP for i in inferences),
        late=sum(i.state == LATE for i in inferences),
        measured=len(measured),
        length_ms=length / PS_PER_MS,
        offered_per_s=_offered(inferences, warm_up),
        throughput_per_s=throughput,
        latency_ms=Times.of([i.ended - i.arrived for i in measured]),
        queue_ms=Times.of([i.sent - i.arrived for i in measured]),
        requests=len(served.requests),
        mean_batch=sum(size for *_, size in served.requests) / max(1, len(served.requests)),
        engine_utilization=engines,
        resource_utilization=shared,
        stage_utilization=_stages(machine, engines),
        little={
            # What the run counted as it went on, against what each inference tells of itself.
            "system": replace(little([(i.arrived, i.ended) for i in inferences], length), area_ps=served.area_ps),
            "queue": little([(i.arrived, i.sent if i.sent >= 0 else i.ended) for i in inferences], length),
            "machine": little([(begin_, end_) for begin_, end_, *_ in served.requests], length),
        },
        cost=cost_of(machine.sessions[0].program.machine, machine.last_core + 1, throughput),
    )


def _window(inferences: list[Inference], warm_up: int) -> tuple[int, int]:
    """From the first arrival after the warm-up to the last one; the whole run where that is nothing."""
    begin, end = inferences[min(warm_up, len(inferences) - 1)].arrived, inferences[-1].arrived
    answered = any(begin < i.ended <= end and i.state == ANSWERED for i in inferences)
    return (begin, end) if answered else (0, max(i.ended for i in inferences))


def _offered(inferences: list[Inference], warm_up: int) -> float:
    """Arrivals per second after the warm-up; 0 where all come at once."""
    first = min(warm_up, len(inferences) - 1)
    time = inferences[-1].arrived - inferences[first].arrived
    return (len(inferences) - 1 - first) * PS_PER_S / time if time else 0.0


def _utilization(
    machine: Machine, requests: list[tuple[int, int, int, int]], length: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Share of the time that engines and servers are at work for requests answered in so many picoseconds: how long
    each is at work for one, times how many.
    """
    busy: dict[str, int] = {}
    for copy, session in enumerate(machine.sessions):
        count = sum(request[2] == copy for request in requests)
        for name, time in request_load(session.program).busy_ps.items():
            busy[name] = busy.get(name, 0) + time * count
    engines: dict[str, dict[str, float]] = {
        f"core {core}": {} for session in machine.sessions for core in sorted(session.program.cores)
    }
    shared: dict[str, float] = {}
    for name, time in busy.items():
        share = round(time / length, 6) if length else 0.0
        engine, _, core = name.partition(" of ")
        if core in engines:
            engines[core][engine] = share
        else:
            shared[name] = share
    return engines, shared


def _stages(machine: Machine, engines: dict[str, dict[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for session in machine.sessions:
        for stream in session.program.streams:
            shares = engines[f"core {stream.core}"]
            stage = stream.stage.partition("[")[0]
            found[stage] = max([found.get(stage, 0.0), *shares.values()])
    return found


def cost_of(machine: Description, cores: int, throughput_per_s: float) -> Cost | None:
    """What inferences cost, at so many per second all the time; None when no instance has so many cores."""
    try:
        name = smallest_instance(machine, cores)
    except NeuronError:
        return None
    price = next(size.microdollars_per_hour for size in machine.instances if size.name == name)
    # Microdollars per second over inferences per second are dollars per million.
    million = price / 3600 / throughput_per_s if throughput_per_s else None
    return Cost(name, price / 1e6, million)
