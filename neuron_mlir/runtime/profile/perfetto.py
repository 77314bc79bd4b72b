"""The trace as Chrome's JSON trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Processes are the cores, the chips and the host; threads are engines and DMA queues. Times are microseconds from time 0
of the requests, with as many digits as picoseconds need. The format: "Trace Event Format", Google, 2016; events used
are X (slices), b and e (requests), C (counters), s and f (flow arrows), M (names).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_mlir.runtime.profile.memory import lives, occupancy
from neuron_mlir.runtime.profile.timeline import joined_tracks, layer_name, producers, server_load, stage_spans
from neuron_mlir.simulator.program import Stream
from neuron_mlir.simulator.trace import Rows, Trace, WaitTrace

if TYPE_CHECKING:
    from neuron_mlir.runtime.profile.capture import Capture

Event = dict[str, Any]
Span = tuple[int, int]
Wait = tuple[WaitTrace, list[int]]
"""A wait, and one row of it: request, start, end, number of the signal."""

EVENTS_MAX = 100_000
"""More slices than that are joined layer by layer, and lose their instructions."""
ARROWS_MAX = 8_000
"""The waits that took longest have arrows."""
BINS = 2_000
HOST = 1_000_000
CHIPS = 500_000
"""Process numbers: cores have their own, chips and the host have these and up."""
ENGINES = ("tensor", "vector", "scalar")


def trace_events(capture: Capture, limit: int = EVENTS_MAX) -> dict[str, Any]:
    """The whole trace file: `{"displayTimeUnit", "traceEvents", "otherData"}`.

    Args:
        capture: a traced run.
        limit: most slices; beyond, only the window is shown, and if need be instructions of a layer are joined.
    """
    trace = capture.trace
    span = _span(capture, limit)
    waits = _longest(trace, span)
    events = [
        *_names(trace),
        *_slices(capture, limit, span),
        *_waits(trace, waits),
        *_arrows(trace, waits),
        *_requests(trace),
        *_host(trace),
        *_memory(capture),
        *_servers(capture),
    ]
    return {
        "displayTimeUnit": "ns",
        "traceEvents": events,
        "otherData": {
            "program": trace.program.name,
            "machine": capture.report.machine,
            "requests": f"{trace.first} to {trace.last - 1}",
        },
    }


def _us(ps: int) -> float:
    return int(ps) / 1_000_000


def _thread(stream: Stream) -> int:
    """Of a stream in its core: engines first, then queues."""
    if stream.engine in ENGINES:
        return 1 + ENGINES.index(stream.engine)
    digits = "".join(c for c in stream.engine if c.isdigit())
    return 10 + int(digits or 0)


def _names(trace: Trace) -> Iterator[Event]:
    def name(process: int, text: str, order: int) -> Iterator[Event]:
        yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": text}}
        yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": order}}

    yield from name(HOST, "host", 0)
    for number, host in enumerate(trace.host):
        lane = f" {host.port.turns.first}" if host.port.turns.every > 1 else ""
        label = f"{host.direction} '{host.port.label}'{lane}"
        yield {"ph": "M", "name": "thread_name", "pid": HOST, "tid": number + 1, "args": {"name": label}}
    stages: dict[int, list[str]] = {}
    for stream in trace.program.streams:
        here = stages.setdefault(stream.core, [])
        if stream.stage not in here:
            here.append(stream.stage)
    for core in sorted(stages):
        yield from name(core, f"core {core} ({', '.join('@' + stage for stage in stages[core])})", 10 + core)
    for chip in sorted({trace.program.chip(core) for core in stages}):
        yield from name(CHIPS + chip, f"chip {chip}, shared", 5)
    for stream in trace.program.streams:
        place: dict[str, Any] = {"ph": "M", "pid": stream.core, "tid": _thread(stream)}
        yield {**place, "name": "thread_name", "args": {"name": stream.engine}}
        yield {**place, "name": "thread_sort_index", "args": {"sort_index": _thread(stream)}}


def _span(capture: Capture, limit: int) -> Span:
    """From when to when there are slices: all that is traced, or the window if that is too much."""
    steps = [step.rows for step in capture.trace.steps if len(step.rows)]
    if sum(map(len, steps)) > limit:
        return capture.window
    return min((int(rows[0, 1]) for rows in steps), default=0), max(
        (int(rows[:, 3].max()) for rows in steps), default=1
    )


def _inside(rows: Rows, span: Span) -> Rows:
    return rows[(rows[:, 2] > span[0]) & (rows[:, 1] < span[1])]


def _slices(capture: Capture, limit: int, span: Span) -> Iterator[Event]:
    trace = capture.trace
    if sum(len(_inside(step.rows, span)) for step in trace.steps) > limit:
        yield from _joined_slices(capture, limit, span)
        return
    for step in trace.steps:
        layer, op = layer_name(step.step), step.step.op.name.removeprefix("core.")
        moved = {} if step.transfer is None else {"bytes": step.transfer.charged_bytes}
        base: Event = {"ph": "X", "cat": op, "name": layer, "pid": step.stream.core, "tid": _thread(step.stream)}
        for request, start, end, *_ in _inside(step.rows, span).tolist():
            args = {"request": request, **moved}
            yield {**base, "ts": _us(start), "dur": _us(end - start), "args": args}


def _joined_slices(capture: Capture, limit: int, span: Span) -> Iterator[Event]:
    names = [layer.name for layer in capture.layers]
    found, _ = joined_tracks(capture.trace, {name: number for number, name in enumerate(names)}, span, limit)
    for track in found:
        base: Event = {"ph": "X", "cat": "layer", "pid": track.stream.core, "tid": _thread(track.stream)}
        for start, end, layer, request, busy in track.slices.tolist():
            args = {"request": request, "at work us": _us(busy)}
            yield {**base, "name": names[layer], "ts": _us(start), "dur": _us(end - start), "args": args}


def _longest(trace: Trace, span: Span) -> list[Wait]:
    """The waits that took longest and end within a span, in order of time."""
    found = [(wait, row) for wait in trace.waits for row in _inside(wait.rows, span).tolist()]
    found = [(wait, row) for wait, row in found if span[0] <= row[1] and row[2] <= span[1]]
    found.sort(key=lambda item: item[1][1] - item[1][2])
    return sorted(found[:ARROWS_MAX], key=lambda item: (item[1][1], item[0].stream.number))


def _waits(trace: Trace, waits: Sequence[Wait]) -> Iterator[Event]:
    """Waits as slices of their own."""
    names = producers(trace.program)
    for wait, (request, start, end, _) in waits:
        yield {
            "ph": "X",
            "cat": "wait",
            "name": f"wait for {names[wait.semaphore.number]}",
            "pid": wait.stream.core,
            "tid": _thread(wait.stream),
            "ts": _us(start),
            "dur": _us(end - start),
            "cname": "grey",
            "args": {"request": request, "semaphore": wait.semaphore.label},
        }


def _arrows(trace: Trace, waits: Sequence[Wait]) -> Iterator[Event]:
    """From the instruction before a signal to the one after the wait that it ended, both within the span."""
    wanted = {(wait.semaphore.number, row[3]) for wait, row in waits}
    first = min((row[1] for _, row in waits), default=0)
    sources: dict[tuple[int, int], tuple[Stream, int]] = {}
    for signal in trace.signals:
        for number, start in signal.rows.tolist():
            if (signal.semaphore.number, number) in wanted and start >= first:
                sources[signal.semaphore.number, number] = signal.stream, start
    number = 0
    for wait, row in waits:
        source = sources.get((wait.semaphore.number, row[3]))
        if source is None:
            continue  # by the host, or before the span
        stream, start = source
        number += 1
        base: Event = {"cat": "signal", "name": wait.semaphore.label, "id": number}
        yield {**base, "ph": "s", "pid": stream.core, "tid": _thread(stream), "ts": _us(start)}
        yield {**base, "ph": "f", "bp": "e", "pid": wait.stream.core, "tid": _thread(wait.stream), "ts": _us(row[2])}


def _requests(trace: Trace) -> Iterator[Event]:
    """Requests, and inside each what a stage does for it, as slices that may overlap."""
    for request in range(trace.first, trace.last):
        base: Event = {"cat": "request", "id": request, "pid": HOST, "tid": 0, "name": f"request {request}"}
        yield {**base, "ph": "b", "ts": _us(trace.run.started[request])}
        yield {**base, "ph": "e", "ts": _us(trace.run.finished[request])}
    for stage, spans in stage_spans(trace).items():
        for request, start, end in spans:
            base = {"cat": "request", "id": request, "pid": HOST, "tid": 0, "name": f"@{stage}"}
            yield {**base, "ph": "b", "ts": _us(start)}
            yield {**base, "ph": "e", "ts": _us(end)}


def _host(trace: Trace) -> Iterator[Event]:
    for number, host in enumerate(trace.host):
        base: Event = {"ph": "X", "cat": "host", "name": f"{host.direction} '{host.port.label}'", "pid": HOST}
        for request, start, end, done in host.rows.tolist():
            args = {"request": request, "bytes": host.transfer.charged_bytes, "there at us": _us(done)}
            yield {**base, "tid": number + 1, "ts": _us(start), "dur": _us(end - start), "args": args}


def _memory(capture: Capture) -> Iterator[Event]:
    for each in lives(capture.trace, capture.window):
        steps = occupancy(each.rectangles)
        if len(steps) > BINS:
            # The largest of neighbours, so that peaks stay.
            places = np.linspace(0, len(steps), BINS, endpoint=False).astype(np.int64)
            steps = np.column_stack((steps[places, 0], np.maximum.reduceat(steps[:, 1], places)))
        name = f"{each.memory.space.upper()} in use, bytes per partition"
        for time, size in steps.tolist():
            yield {"ph": "C", "name": name, "pid": each.memory.place, "ts": _us(time), "args": {"bytes": size}}


def _servers(capture: Capture) -> Iterator[Event]:
    start, end = capture.window
    rates = {each.server.name: each.server.bytes_per_s for each in capture.trace.servers}
    for server, values in server_load(capture.trace, capture.window, BINS // 4).items():
        kind, number = _place(server)
        process = number if kind == "core" else CHIPS + number if kind == "chip" else HOST
        for value, time in zip(values, _times(start, end, len(values)), strict=True):
            args = {"GB/s": round(value * rates[server] / 1e9, 3)}
            yield {"ph": "C", "name": f"{server}, GB/s", "pid": process, "ts": _us(time), "args": args}


def _times(start: int, end: int, count: int) -> Sequence[int]:
    return [start + (end - start) * number // count for number in range(count)]


def _place(server: str) -> tuple[str, int]:
    """`dma of core 3` -> core 3; `dram of chip 0` -> chip 0; `link 0->1` -> chip 0; else the host."""
    for kind in ("core", "chip"):
        _, found, number = server.partition(f"of {kind} ")
        if found:
            return kind, int(number)
    if server.startswith("link "):
        return "chip", int(server.removeprefix("link ").partition("->")[0])
    return "host", 0
