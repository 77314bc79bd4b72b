"""Who did what when: slices of engines and queues, waits, and what shared servers moved over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.machine.cost import PS_PER_S
from neuron_mlir.simulator.layers import UNNAMED, node_names
from neuron_mlir.simulator.program import Program, Step, Stream
from neuron_mlir.simulator.trace import StepTrace, Trace

Table = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Track:
    """What one stream did, in order of time.

    `slices`: start, end, layer, request, busy: work on one layer without a gap to speak of, and how long the engine
    was at work in it. Times are picoseconds.
    """

    stream: Stream
    slices: Table


def layer_name(step: Step) -> str:
    """The layer an instruction belongs to, as `neuron-run --layers` names it."""
    return (node_names(step.op) or (UNNAMED,))[0]


def tracks(trace: Trace, layers: Mapping[str, int], window: tuple[int, int], tolerance: int) -> list[Track]:
    """The streams of a trace within a window, instructions of one layer and request joined over gaps of at most
    `tolerance` picoseconds.

    Args:
        trace: of the run.
        layers: number of each layer, by name.
        window: from when to when; slices that reach out of it are cut.
        tolerance: 0 joins only what follows without a gap.
    """
    by_stream: dict[Stream, list[StepTrace]] = {stream: [] for stream in trace.program.streams if stream.run}
    for step in trace.steps:
        by_stream[step.stream].append(step)
    return [Track(stream, _slices(steps, layers, window, tolerance)) for stream, steps in by_stream.items()]


def joined_tracks(
    trace: Trace, layers: Mapping[str, int], window: tuple[int, int], limit: int
) -> tuple[list[Track], int]:
    """The streams of a trace, joined over gaps as small as keep slices below a limit, and how large those are.

    Many layers and requests can make more slices than that: those are not joined.
    """
    tolerance, found = 0, tracks(trace, layers, window, 0)
    count = sum(len(track.slices) for track in found)
    while count > limit:
        wider = max(tolerance * 2, (window[1] - window[0]) // 8192, 1)
        fewer = tracks(trace, layers, window, wider)
        left = sum(len(track.slices) for track in fewer)
        if wider > window[1] - window[0] or (left > 0.9 * count and tolerance):
            break
        tolerance, found, count = wider, fewer, left
    return found, tolerance


def _slices(steps: Sequence[StepTrace], layers: Mapping[str, int], window: tuple[int, int], tolerance: int) -> Table:
    parts = [
        np.column_stack(
            (step.rows[:, 1], step.rows[:, 2], np.full(len(step.rows), layers[layer_name(step.step)]), step.rows[:, 0])
        )
        for step in steps
        if len(step.rows)
    ]
    if not parts:
        return np.zeros((0, 5), np.int64)
    rows = np.concatenate(parts)
    rows = rows[(rows[:, 1] > window[0]) & (rows[:, 0] < window[1])]
    if not len(rows):
        return np.zeros((0, 5), np.int64)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    rows[:, 0], rows[:, 1] = np.maximum(rows[:, 0], window[0]), np.minimum(rows[:, 1], window[1])
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:, 2] != rows[:-1, 2]) | (rows[1:, 3] != rows[:-1, 3]) | (rows[1:, 0] - rows[:-1, 1] > tolerance)
    starts = np.flatnonzero(new)
    busy = np.add.reduceat(rows[:, 1] - rows[:, 0], starts)
    ends = np.maximum.reduceat(rows[:, 1], starts)
    return np.column_stack((rows[starts, 0], ends, rows[starts, 2], rows[starts, 3], busy))


def elapsed(trace: Trace, layers: Mapping[str, int]) -> list[int | None]:
    """From the first instruction of a layer for a request to the last result of it, in the median of the traced
    requests that are there whole; by number of the layer, None for one that was not traced.
    """
    first: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], int] = {}
    for step in trace.steps:
        layer = layers[layer_name(step.step)]
        if not len(step.rows):
            continue
        order = step.rows[np.argsort(step.rows[:, 0], kind="stable")]
        requests, places = np.unique(order[:, 0], return_index=True)
        starts = np.minimum.reduceat(order[:, 1], places)
        ends = np.maximum.reduceat(order[:, 3], places)
        for request, start, end in zip(requests.tolist(), starts.tolist(), ends.tolist(), strict=True):
            key = layer, request
            first[key] = min(first.get(key, start), start)
            last[key] = max(last.get(key, end), end)
    spans: dict[int, list[int]] = {}
    for (layer, request), start in first.items():
        spans.setdefault(layer, []).append(last[layer, request] - start)
    found: list[int | None] = []
    for layer in range(len(layers)):
        times = sorted(spans.get(layer, []))
        found.append(times[len(times) // 2] if times else None)
    return found


def stage_spans(trace: Trace) -> dict[str, list[tuple[int, int, int]]]:
    """Of each stage (each copy by itself), when it began and ended each traced request: request, start of its first
    instruction, its last result.
    """
    spans: dict[str, dict[int, list[int]]] = {stream.stage: {} for stream in trace.program.streams if stream.run}
    for step in trace.steps:
        rows = step.rows
        if not len(rows):
            continue
        known = spans[step.stream.stage]
        order = rows[np.argsort(rows[:, 0], kind="stable")]
        requests, places = np.unique(order[:, 0], return_index=True)
        starts, ends = np.minimum.reduceat(order[:, 1], places), np.maximum.reduceat(order[:, 3], places)
        for request, start, end in zip(requests.tolist(), starts.tolist(), ends.tolist(), strict=True):
            span = known.setdefault(request, [start, end])
            span[0], span[1] = min(span[0], start), max(span[1], end)
    return {
        stage: [(request, start, end) for request, (start, end) in sorted(known.items())]
        for stage, known in spans.items()
    }


def producers(program: Program) -> dict[int, str]:
    """Who signals each semaphore, by its number: the name of a stream, or the host's part."""
    found: dict[int, str] = {}
    for stream in program.streams:
        for number in stream.signals():
            found[number] = stream.name
    for port in program.inputs:
        if port.full is not None:
            found[port.full.number] = f"host input '{port.label}'"
    for port in program.outputs:
        if port.credit is not None:
            found[port.credit.number] = f"host output '{port.label}'"
    return found


@dataclass(frozen=True)
class Stall:
    """How long a stream waited for another, and how often, within a window; picoseconds."""

    waits: str
    for_: str
    time_ps: int
    times: int


def stalls(trace: Trace, window: tuple[int, int]) -> list[Stall]:
    """Who waited for whom, the longest first. A wait ends with the signal that comes last; the time before it that
    others would have taken is not split among them.
    """
    names = producers(trace.program)
    sums: dict[tuple[str, str], list[int]] = {}
    for wait in trace.waits:
        start, end = np.maximum(wait.rows[:, 1], window[0]), np.minimum(wait.rows[:, 2], window[1])
        inside = end > start
        if not inside.any():
            continue
        total = sums.setdefault((wait.stream.name, names[wait.semaphore.number]), [0, 0])
        total[0] += int((end - start)[inside].sum())
        total[1] += int(inside.sum())
    found = [Stall(waits, for_, time, times) for (waits, for_), (time, times) in sums.items()]
    return sorted(found, key=lambda stall: (-stall.time_ps, stall.waits, stall.for_))


def server_load(trace: Trace, window: tuple[int, int], bins: int) -> dict[str, list[float]]:
    """Of each server (DRAM, DMA engines, links, host link), the part of each of `bins` equal times it was at work."""
    start, end = window
    edges = np.linspace(start, end, bins + 1)
    found: dict[str, list[float]] = {}
    for each in sorted(trace.servers, key=lambda item: item.server.name):
        ends = each.rows[:, 0].astype(np.float64)
        begins = ends - each.rows[:, 1] * (PS_PER_S / each.server.bytes_per_s)
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], ends[order]
        # Work up to a moment is piecewise linear in time: a server does one thing at a time.
        done = np.concatenate(([0.0], np.cumsum(ends - begins)))
        times = np.column_stack((begins, ends)).ravel()
        values = np.column_stack((done[:-1], done[1:])).ravel()
        work = np.interp(edges, np.maximum.accumulate(times), values) if len(times) else np.zeros(bins + 1)
        share = np.diff(work) / np.maximum(np.diff(edges), 1e-9)
        found[each.server.name] = [round(float(part), 4) for part in np.clip(share, 0.0, 1.0)]
    return found
