"""The profile of a program as one JSON object: what the page is made from, and what `--json` writes.

Times are integer picoseconds. Those of slices, spans and rectangles count from the start of the window, others from
time 0 of the requests. docs/profile.md lists every key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.machine import cost
from neuron_mlir.runtime.profile.decisions import decisions
from neuron_mlir.runtime.profile.memory import KINDS, Lives, cut, lives, most_in_bins, occupancy
from neuron_mlir.runtime.profile.timeline import elapsed, joined_tracks, server_load, stage_spans, stalls
from neuron_mlir.simulator.layers import LayerTime, node_names
from neuron_mlir.simulator.program import Program, walk
from neuron_mlir.simulator.report import request_load

if TYPE_CHECKING:
    from neuron_mlir.runtime.profile.capture import Capture

FORMAT = 1
"""Of the JSON; changes when a key changes its meaning."""

SLICES_MAX = 16_000
RECTANGLES_MAX = 48_000
"""Beyond these, slices that are close together are joined, and the map of a memory ends sooner, so that a page stays
below some megabytes."""

BINS = 240
"""Points of the charts of servers over time."""

STALLS_MAX = 40


def profile_data(capture: Capture, file: str = "", metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The profile as plain dictionaries and lists.

    Args:
        capture: a traced run.
        file: name of the program's file.
        metadata: of the artifact, if it is one.
    """
    program, trace, window = capture.program, capture.trace, capture.window
    numbers = {layer.name: number for number, layer in enumerate(capture.layers)}
    timelines, tolerance = joined_tracks(trace, numbers, window, SLICES_MAX)
    return {
        "format": FORMAT,
        "file": file,
        "producer": (metadata or {}).get("producer", ""),
        "report": capture.report.to_json(),
        "in_flight": capture.in_flight,
        "window": {
            "start_ps": window[0],
            "end_ps": window[1],
            "joined_ps": tolerance,
            "first_request": trace.first,
            "last_request": trace.last - 1,
        },
        "roofline": roofline(program),
        "layers": layers_json(capture, numbers),
        "tracks": [
            {
                "core": track.stream.core,
                "stage": track.stream.stage,
                "engine": track.stream.engine,
                "busy_ps": int(track.slices[:, 4].sum()),
                "slices": _since(track.slices, window[0]),
            }
            for track in timelines
        ],
        "stages": stages_json(capture),
        "stalls": [
            {"stream": stall.waits, "for": stall.for_, "time_ps": stall.time_ps, "times": stall.times}
            for stall in stalls(trace, window)[:STALLS_MAX]
        ],
        "servers": {
            "rates": {each.server.name: each.server.bytes_per_s for each in trace.servers},
            "load": server_load(trace, window, BINS),
        },
        "requests": [
            [request, trace.run.started[request], trace.run.finished[request]]
            for request in range(trace.first, trace.last)
        ],
        "memory": _memory(capture),
        "memory_kinds": KINDS,
        "decisions": decisions(program, metadata),
        "machine": {fact.key: fact.value for fact in program.machine.facts},
    }


def stages_json(capture: Capture) -> list[dict[str, Any]]:
    """Each stage, and each copy of one: how long it has a request, and which of its engines is busiest for it."""
    load = request_load(capture.program)
    start, end = capture.window
    found: list[dict[str, Any]] = []
    for stage, spans in stage_spans(capture.trace).items():
        streams = [stream for stream in capture.program.streams if stream.stage == stage]
        core, every = streams[0].core, streams[0].turns.every
        # `request_load` is the mean over all requests; a copy has only some.
        busy = {
            name.partition(" of ")[0]: time * every
            for name, time in load.busy_ps.items()
            if name.endswith(f" of core {core}")
        }
        busiest = max(busy, key=lambda engine: busy[engine], default="")
        times = sorted(last - first for _, first, last in spans)
        found.append(
            {
                "name": stage,
                "core": core,
                "elapsed_ps": times[len(times) // 2] if times else None,
                "busiest": busiest,
                "busiest_ps": busy.get(busiest, 0),
                "busy_ps": busy,
                "spans": [
                    [request, max(first, start) - start, min(last, end) - start]
                    for request, first, last in spans
                    if last > start and first < end
                ],
            }
        )
    return found


def roofline(program: Program) -> dict[str, int]:
    """The ceilings: of a core's engines in operations per second, of memory in bytes per second."""
    machine = program.machine
    # What the array does at this clock, a little more than the rounded number that is published.
    array = 2 * machine.tensor_engine.rows * machine.tensor_engine.columns
    per_cycle = machine.scalar_engine.lanes + machine.vector_engine.lanes
    return {
        "tensor_ops_per_s": array * cost.PS_PER_S // machine.clock.cycle_ps,
        "lane_ops_per_s": per_cycle * cost.PS_PER_S // machine.clock.cycle_ps,
        "dram_bytes_per_s": cost.dram_bytes_per_s(machine),
        "dma_bytes_per_s": cost.core_dma_bytes_per_s(machine),
    }


def layers_json(capture: Capture, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """The layers, each with its place under the roofline and how long it took from end to end."""
    program = capture.program
    lanes, stages = _lane_operations(program), _stages_of(program)
    spans = elapsed(capture.trace, numbers)
    shares = _cores_of_a_request(program)
    ceilings = roofline(program)
    found: list[dict[str, Any]] = []
    for number, layer in enumerate(capture.layers):
        active = sum(shares[core] for core in layer.cores)
        chips = sum(1 for _ in dict.fromkeys(program.chip(core) for core in layer.cores))
        operations = 2 * layer.macs + lanes.get(layer.name, 0)
        found.append(
            {
                **layer.to_json(),
                "stages": stages.get(layer.name, []),
                "elapsed_ps": spans[number],
                "operations": operations,
                **_under_roof(layer, operations, active, chips, ceilings),
            }
        )
    return found


def _under_roof(
    layer: LayerTime, operations: int, active: float, chips: int, ceilings: Mapping[str, int]
) -> dict[str, float | None]:
    """Operations per byte of DRAM (None: it moves none), operations per second, and the most that the roof allows."""
    rate = operations * cost.PS_PER_S / layer.time_ps if layer.time_ps else 0.0
    peak = max(1.0, active) * (ceilings["tensor_ops_per_s"] + ceilings["lane_ops_per_s"])
    if not layer.dram_bytes:
        return {"intensity": None, "ops_per_s": rate, "roof_ops_per_s": peak}
    intensity = operations / layer.dram_bytes
    roof = min(peak, intensity * ceilings["dram_bytes_per_s"] * chips)
    return {"intensity": intensity, "ops_per_s": rate, "roof_ops_per_s": roof}


def _lane_operations(program: Program) -> dict[str, int]:
    """Elements that the ScalarEngine and VectorEngine write or read for a request, by layer: one operation each."""
    found: dict[str, int] = {}
    for stream in program.streams:
        if stream.engine not in ("scalar", "vector"):
            continue
        for step, times in walk(stream.run):
            if not step.touches:
                continue
            name = (node_names(step.op) or ("",))[0]
            elements = max(math.prod(touch.sizes) for touch in step.touches)
            found[name] = found.get(name, 0) + elements * times // stream.turns.every
    return found


def _stages_of(program: Program) -> dict[str, list[str]]:
    """The stages each layer has instructions in, replicas of a stage as one."""
    found: dict[str, dict[str, None]] = {}
    for stream in program.streams:
        for step, _ in walk(stream.run):
            if step.touches:
                name = (node_names(step.op) or ("",))[0]
                found.setdefault(name, {})[stream.stage.partition("[")[0]] = None
    return {name: list(stages) for name, stages in found.items()}


def _cores_of_a_request(program: Program) -> dict[int, float]:
    """Of each core, which part of the requests it has."""
    return {stream.core: 1 / stream.turns.every for stream in program.streams}


def _memory(capture: Capture) -> list[dict[str, Any]]:
    """Each SBUF and PSUM; the map of what it holds where covers as much of the window as it takes rectangles for."""
    start, end = capture.window
    found = lives(capture.trace, capture.window)
    room = max(500, RECTANGLES_MAX // len(found))
    machine = capture.program.machine
    capacity = {"sbuf": machine.sbuf.bytes_per_partition, "psum": machine.psum.bytes_per_partition}
    result: list[dict[str, Any]] = []
    for each in found:
        mapped = end
        while len(cut(each.rectangles, start, mapped)) > room and mapped > start + 1:
            mapped = start + (mapped - start) * 3 // 4
        result.append(_memory_json(each, capacity[each.memory.space], capture.window, mapped))
    return result


def _since(rows: NDArray[np.int64], start: int) -> list[list[int]]:
    """Rows whose first two columns are times, counted from `start`."""
    moved = rows.copy()
    moved[:, :2] -= start
    return moved.tolist()


def _memory_json(each: Lives, capacity: int, window: tuple[int, int], mapped: int) -> dict[str, Any]:
    steps = occupancy(each.rectangles)
    times = each.rectangles[:, 1] - each.rectangles[:, 0]
    rectangles = cut(each.rectangles, window[0], mapped)
    used = np.unique(each.rectangles[:, 4])
    places = np.full(len(each.buffers) + 1, -1, np.int64)
    places[used] = np.arange(len(used))
    rectangles[:, 4] = places[rectangles[:, 4]]
    return {
        "core": each.memory.place,
        "space": each.memory.space,
        "capacity": capacity,
        "peak": int(steps[:, 1].max()) if len(steps) else 0,
        "mean": int((times * each.rectangles[:, 3]).sum()) // max(1, window[1] - window[0]),
        "most": most_in_bins(steps, window, BINS),
        "map_end_ps": mapped - window[0],
        "buffers": [
            {
                "name": storage.label,
                "layer": (node_names(storage.op) or ("",))[0],
                "address": storage.address,
                "bytes": storage.bytes,
                "partitions": storage.shape[0],
                "kind": each.kinds[number],
            }
            for number, storage in enumerate(each.buffers)
            if places[number] >= 0
        ],
        "rectangles": _since(rectangles, window[0]),
    }
