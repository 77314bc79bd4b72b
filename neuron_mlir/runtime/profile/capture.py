"""Running a program to look at it: once to see when it is full, once to write down the requests of that time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.layers import LayerTime, layer_times
from neuron_mlir.simulator.machine_run import MachineRun, MachineSimulator
from neuron_mlir.simulator.program import Program
from neuron_mlir.simulator.report import Report, cycle, make_report, requests_for_steady_state
from neuron_mlir.simulator.trace import Trace, TracingSimulator

Watcher = Callable[[str], None]
"""Told what is being done."""

SHOWN = 4
"""Requests that the window shows at least, in whole turns of all replicas."""


@dataclass(frozen=True, eq=False)
class Capture:
    """A program that was run, and the part of the run that was written down.

    Attributes:
        program: what ran.
        report: of the whole run, as `neuron-run` gives it.
        layers: as `neuron-run --layers` gives them.
        trace: some requests of it.
        window: from when to when every stream's work is in the trace, picoseconds.
        in_flight: what the host had under way at most; None: as many as the program took in.
    """

    program: Program
    report: Report
    layers: list[LayerTime]
    trace: Trace
    window: tuple[int, int]
    in_flight: int | None


def capture(
    program: Program,
    requests: int | None = None,
    first: int | None = None,
    shown: int | None = None,
    in_flight: int | None = None,
    watch: Watcher | None = None,
) -> Capture:
    """Run a scheduled program on the clock, and trace requests of its steady state.

    Args:
        program: in the final form.
        requests: to run; default: enough for a steady state.
        first: the request to trace from; default: one of the steady state. 0 shows how the machine fills.
        shown: requests to show; default: four, in whole turns of replicas. Beside them those are traced that are in
            the machine at the same time.
        in_flight: requests that the host has under way at most.
        watch: told what is being done.

    Raises:
        NeuronError: the program has no clock, or a number is out of range.
    """
    if not program.scheduled:
        raise NeuronError(
            "only the final form has a clock; this program has values only", op=program.op, advice="run core-schedule"
        )
    for name, value, least in (("requests", requests, 1), ("first", first, 0), ("shown", shown, 1)):
        if value is not None and value < least:
            raise NeuronError(f"{name} is too small", needed=f"{least} or more", available=value)
    whole = cycle(program)
    count = requests or requests_for_steady_state(program)
    if watch is not None:
        watch(f"timing {count} requests")
    plain = MachineSimulator(program, values=False, hazards=False).run(count, in_flight)
    report = make_report(program, plain)
    inside = most_at_once(plain)
    wanted = -(-(shown or SHOWN) // whole) * whole
    traced = min(count, -(-(inside + wanted) // whole) * whole)
    start = max(0, (count - traced - inside) // whole * whole) if first is None else first
    if start >= count:
        raise NeuronError("there is no such request to trace", needed=f"0 to {count - 1}", available=start)
    last = min(count, start + traced)
    if watch is not None:
        watch(f"tracing requests {start} to {last - 1}")
    trace = TracingSimulator(program, start, last).trace(count, in_flight)
    layers = layer_times(program, trace.run.exposed_loads, count)
    return Capture(program, report, layers, trace, _window(trace, report, wanted), in_flight)


def most_at_once(run: MachineRun) -> int:
    """Requests that were in the machine at once, at most."""
    ends = sorted(run.finished)
    most = done = 0
    for number, start in enumerate(sorted(run.started)):
        while ends[done] <= start:
            done += 1
        most = max(most, number + 1 - done)
    return most


def _window(trace: Trace, report: Report, wanted: int) -> tuple[int, int]:
    """The time in which every stream is at work on traced requests, cut to as long as the wanted ones take."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step in trace.steps:
        if not len(step.rows):
            continue
        number = step.stream.number
        first[number] = min(first.get(number, int(step.rows[0, 1])), int(step.rows[0, 1]))
        last[number] = max(last.get(number, 0), int(step.rows[-1, 3]))
    if not first:
        raise NeuronError("the program does nothing for a request", op=trace.program.op)
    start = 0 if trace.first == 0 else max(first.values())
    end = max(last.values()) if trace.last == len(trace.run.finished) else min(last.values())
    if end <= start:
        # Too few requests for all streams to be seen at work together.
        start, end = min(first.values()), max(last.values())
    period = int(wanted / report.throughput_per_s * 1e12) if report.throughput_per_s else end - start
    return start, min(end, start + max(period, 1))
