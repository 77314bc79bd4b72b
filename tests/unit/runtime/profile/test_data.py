"""Profiles: the traced run is the run, what is in memory when, and the files made of it."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.parser import Parser

from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import record_machine
from neuron_mlir.machine import load_machine
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context, module_text
from neuron_mlir.runtime.profile import memory
from neuron_mlir.runtime.profile.capture import Capture, capture, most_at_once
from neuron_mlir.runtime.profile.data import profile_data
from neuron_mlir.runtime.profile.memory import RESIDENT, lives
from neuron_mlir.runtime.profile.page import embedded, page
from neuron_mlir.runtime.profile.perfetto import CHIPS, trace_events
from neuron_mlir.simulator.costs import StepCosts
from neuron_mlir.simulator.machine_run import MachineRun, MachineSimulator
from neuron_mlir.simulator.program import Program, Storage, read_program
from neuron_mlir.simulator.report import cycle, request_load
from neuron_mlir.simulator.trace import TracingSimulator

NETWORK = """
func.func @main(%x: tensor<1x8x28x28xf32> {nn.name = "x"}) -> (tensor<1x64x14x14xf32> {nn.name = "y"}) {
  %w1 = nn.weight "w1" seeded<1> : tensor<160x8x3x3xf32>
  %w2 = nn.weight "w2" seeded<2> : tensor<64x160x1x1xf32>
  %w3 = nn.weight "w3" seeded<3> : tensor<64x64x3x3xf32>
  %0 = nn.conv %x, %w1 pads [1, 1, 1, 1]
    : (tensor<1x8x28x28xf32>, tensor<160x8x3x3xf32>) -> tensor<1x160x28x28xf32> loc("a")
  %1 = nn.relu %0 : tensor<1x160x28x28xf32> loc("a.relu")
  %2 = nn.max_pool %1 kernel [2, 2] strides [2, 2]
    : (tensor<1x160x28x28xf32>) -> tensor<1x160x14x14xf32> loc("pool</script>")
  %3 = nn.conv %2, %w2 : (tensor<1x160x14x14xf32>, tensor<64x160x1x1xf32>) -> tensor<1x64x14x14xf32> loc("b")
  %4 = nn.conv %3, %w3 pads [1, 1, 1, 1]
    : (tensor<1x64x14x14xf32>, tensor<64x64x3x3xf32>) -> tensor<1x64x14x14xf32> loc("c")
  func.return %4 : tensor<1x64x14x14xf32>
}
"""

PIPELINES = {"one core": "neuron{cores=1}", "two stages": "neuron{cores=2}", "copies": "neuron{cores=2 replicas=2}"}


def network(passes: str) -> ModuleOp:
    context = make_context()
    module = Parser(context, NETWORK).parse_module()
    record_machine(module, load_machine())
    for step in load_pipeline(passes):
        step.apply(Context(), module)
    return Parser(context, module_text(module, locations=True)).parse_module()


@pytest.fixture(scope="module", params=list(PIPELINES))
def program(request: pytest.FixtureRequest) -> Program:
    return read_program(network(PIPELINES[request.param]))


@pytest.fixture(scope="module")
def captured(program: Program) -> Capture:
    return capture(program)


@pytest.fixture(scope="module")
def data(captured: Capture) -> dict[str, Any]:
    return profile_data(captured, "net.neff")


def test_tracing_does_not_change_the_run(program: Program) -> None:
    plain = MachineSimulator(program, values=False, hazards=False).run(12, 5)
    trace = TracingSimulator(program, 4, 8).trace(12, 5)
    assert (trace.run.started, trace.run.finished, trace.run.load_ps) == (plain.started, plain.finished, plain.load_ps)


def test_a_request_in_the_trace_is_what_a_request_costs(program: Program) -> None:
    """Engines of all replicas together, over as many requests as give each its turn."""
    whole = cycle(program)
    trace = TracingSimulator(program, 2 * whole, 3 * whole).trace(4 * whole)
    load = request_load(program)
    busy: dict[str, int] = defaultdict(int)
    for step in trace.steps:
        assert set(step.rows[:, 0].tolist()) <= set(range(2 * whole, 3 * whole))
        if step.transfer is None:
            busy[f"{step.stream.engine} of core {step.stream.core}"] += int((step.rows[:, 2] - step.rows[:, 1]).sum())
    assert busy
    for name, time in busy.items():
        assert time // whole == load.busy_ps[name]
    moved = {each.server.name: int(each.rows[:, 1].sum()) for each in trace.servers}
    loaded = sum(
        transfer.charged_bytes * times
        for stream in program.streams
        for step, times, is_load in stream.steps()
        if is_load and (transfer := StepCosts(program).transfer(step, stream)) is not None
    )
    assert loaded > 0
    dram = sum(size for name, size in moved.items() if name.startswith("dram"))
    assert dram == load.dram_bytes * 4 * whole + loaded


def test_instructions_of_a_stream_follow_each_other(captured: Capture) -> None:
    by_stream: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for step in captured.trace.steps:
        by_stream[step.stream.number] += [(row[1], row[2]) for row in step.rows.tolist()]
    for times in by_stream.values():
        times.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(times))


def test_waits_end_with_their_signal(captured: Capture) -> None:
    """Waits are where the time between instructions goes, and each is ended by a signal that was given before."""
    given = {
        (signal.semaphore.number, number): start
        for signal in captured.trace.signals
        for number, start in signal.rows.tolist()
    }
    ended = 0
    for wait in captured.trace.waits:
        for _, start, end, number in wait.rows.tolist():
            assert start < end
            if (wait.semaphore.number, number) in given:
                ended += 1
                assert given[wait.semaphore.number, number] < end
    assert ended > 20


def test_most_at_once() -> None:
    assert most_at_once(MachineRun([], [0, 1, 5, 6], [5, 7, 9, 10])) == 3
    assert most_at_once(MachineRun([], [0, 5], [5, 6])) == 1


# Memory ---------------------------------------------------------------------------------------------------------------


def test_nothing_lives_where_something_else_does(captured: Capture) -> None:
    """What allocation promises: at no time do two buffers hold something at one address."""
    for each in lives(captured.trace, captured.window):
        capacity = captured.program.machine.sbuf.bytes_per_partition
        rows: list[list[int]] = each.rectangles[np.argsort(each.rectangles[:, 0], kind="stable")].tolist()
        for number, (start, end, address, size, buffer, _) in enumerate(rows):
            storage = each.buffers[buffer]
            low = storage.address or 0
            assert low <= address and address + size <= low + storage.bytes <= capacity and start < end
            for other in rows[number + 1 :]:
                if other[0] >= end:
                    break
                apart = other[2] >= address + size or other[2] + other[3] <= address
                assert apart, (storage.label, each.buffers[other[4]].label, start, other)


def test_lives_are_what_a_byte_by_byte_walk_says(captured: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some bytes of each buffer: from each write to the last read before the next one."""
    monkeypatch.setattr(memory, "PIECES", 1 << 20)  # otherwise some bytes have the times of their neighbours
    window = captured.window
    found = lives(captured.trace, window)
    events = accesses_by_byte(captured)
    compared = 0
    for each in found:
        for number, storage in enumerate(each.buffers):
            if each.kinds[number] == RESIDENT or storage not in events:
                continue
            mine = [row for row in each.rectangles.tolist() if row[4] == number]
            base = storage.address or 0
            for byte in range(base, base + storage.bytes, max(4, storage.bytes // 8)):
                got = sorted((row[0], row[1]) for row in mine if row[2] <= byte < row[2] + row[3])
                assert merged(got) == merged(spans_of(events[storage], byte, window)), (storage.label, byte)
                compared += 1
    assert compared > 50


def accesses_by_byte(captured: Capture) -> dict[Storage, list[tuple[int, int, int, int, bool]]]:
    """Of each buffer: start, end, first and last byte, and whether it writes; in order of start."""
    from neuron_mlir.simulator.trace import touch_bytes

    events: dict[Storage, list[tuple[int, int, int, int, bool]]] = defaultdict(list)
    for step in captured.trace.steps:
        for place, touch in enumerate(step.touches):
            for row in step.rows.tolist():
                low = row[4 + place]
                span = (low, low + touch_bytes(touch))
                if touch.write:
                    events[touch.storage].append((row[1], row[3], *span, True))
                if not touch.write or (step.accumulates and row[-1]):
                    events[touch.storage].append((row[1], row[2 if not touch.write else 3], *span, False))
    for items in events.values():
        # At one moment a write comes first, so that a read that begins with it belongs to it.
        items.sort(key=lambda item: (item[0], not item[4]))
    return events


def spans_of(
    events: list[tuple[int, int, int, int, bool]], byte: int, window: tuple[int, int]
) -> list[tuple[int, int]]:
    spans: list[list[int]] = []
    for start, end, low, high, write in events:
        if not low <= byte < high:
            continue
        if write or not spans:
            spans.append([start if write else window[0], end])
        else:
            spans[-1][1] = max(spans[-1][1], end)
    return [
        (max(start, window[0]), min(end, window[1])) for start, end in spans if end > window[0] and start < window[1]
    ]


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(result[-1][1], end)
        else:
            result.append((start, end))
    return result


# The data -------------------------------------------------------------------------------------------------------------


def test_no_layer_is_above_its_roof(data: dict[str, Any]) -> None:
    assert [layer["name"] for layer in data["layers"]]
    for layer in data["layers"]:
        assert 0 <= layer["ops_per_s"] <= layer["roof_ops_per_s"] * (1 + 1e-9), layer["name"]
        assert layer["elapsed_ps"] > 0
    assert {"a", "pool</script>", "b", "c"} <= {node for layer in data["layers"] for node in layer["nodes"]}


def test_shares_agree_with_the_report(captured: Capture, data: dict[str, Any]) -> None:
    """Where the steady state repeats exactly, the window has the shares of the report, but for what it cuts."""
    window = data["window"]["end_ps"] - data["window"]["start_ps"]
    period = 1e12 * cycle(captured.program) / captured.report.throughput_per_s
    for name, values in data["servers"]["load"].items():
        core = name.removeprefix("dma of ")
        engines = captured.report.engine_utilization
        known = engines[core]["dma"] if core in engines else captured.report.resource_utilization[name]
        assert sum(values) / len(values) == pytest.approx(known, abs=0.02 + 0.5 * period / window)


def test_slices_add_up(captured: Capture, data: dict[str, Any]) -> None:
    start, end = captured.window
    for track in data["tracks"]:
        times = [(first, last) for first, last, *_ in track["slices"]]
        assert all(before[1] <= after[0] for before, after in pairwise(times))
        assert all(0 <= first < last <= end - start for first, last in times)
        assert track["busy_ps"] == sum(part[4] for part in track["slices"])
        mine = [
            (max(row[1], start), min(row[2], end))
            for step in captured.trace.steps
            if (step.stream.core, step.stream.engine) == (track["core"], track["engine"])
            for row in step.rows.tolist()
        ]
        assert track["busy_ps"] == sum(last - first for first, last in mine if last > first)


def test_stages(captured: Capture, data: dict[str, Any]) -> None:
    load = request_load(captured.program)
    names = {stream.stage for stream in captured.program.streams}
    assert {stage["name"] for stage in data["stages"]} == names
    for stage in data["stages"]:
        assert stage["busiest_ps"] == max(stage["busy_ps"].values()) > 0
        assert stage["elapsed_ps"] > stage["busiest_ps"] * 0.5
        copies = len(names) // len({name.partition("[")[0] for name in names})
        assert stage["busy_ps"]["tensor"] == load.busy_ps[f"tensor of core {stage['core']}"] * copies
        requests = [request for request, *_ in stage["spans"]]
        assert requests == sorted(requests) and requests
        assert all(b - a == copies for a, b in pairwise(requests)), "a copy has every so many-th request"


def test_memory_is_counted(data: dict[str, Any]) -> None:
    spaces = {(each["core"], each["space"]) for each in data["memory"]}
    assert spaces == {(core, space) for core in range(data["report"]["cores"]) for space in ("sbuf", "psum")}
    for each in data["memory"]:
        assert 0 < each["mean"] <= each["peak"] <= each["capacity"]
        assert max(each["most"]) == each["peak"]
        assert all(0 <= row[4] < len(each["buffers"]) for row in each["rectangles"])


def test_the_first_request_shows_the_machine_filling(program: Program) -> None:
    found = capture(program, requests=8, first=0, shown=2)
    assert found.trace.first == 0 and found.window[0] == 0
    with pytest.raises(NeuronError, match="no such request"):
        capture(program, requests=4, first=4)


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_page_holds_the_data_and_nothing_from_elsewhere(data: dict[str, Any]) -> None:
    text = page(data)
    assert text.count("</script>") == 2, "a name of a layer does not end the script"
    raw = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(raw) == json.loads(json.dumps(data))
    assert "{{" not in text.replace(raw, "") and "src=" not in text and "@import" not in text
    assert 'href="http' not in text and page(data) == text


def test_embedded_ends_no_element() -> None:
    assert "<" not in embedded({"name": "</script><!--"})
    assert json.loads(embedded({"name": "</script><!--"})) == {"name": "</script><!--"}


@pytest.mark.parametrize("limit", [100_000, 40])
def test_perfetto(captured: Capture, limit: int) -> None:
    """Slices of a thread do not overlap, arrows begin and end in slices, what begins ends."""
    events = json.loads(json.dumps(trace_events(captured, limit)))["traceEvents"]
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    for event in events:
        assert event["ph"] in "MXbeCsf"
        if event["ph"] == "X":
            assert (event["pid"], event["tid"]) in named and event["dur"] >= 0
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    if limit > 1000:
        for times in slices.values():
            times.sort()
            assert all(before[1] <= after[0] + 1e-6 for before, after in pairwise(times))
    else:
        start, end = (time / 1e6 for time in captured.window)
        engines = [times for (process, _), times in slices.items() if process < CHIPS]
        assert all(start - 1e-6 <= a and b <= end + 1e-6 for times in engines for a, b in times)
    arrows: dict[int, list[Any]] = defaultdict(list)
    open_: dict[tuple[int, str], int] = defaultdict(int)
    for event in events:
        if event["ph"] in "sf":
            arrows[event["id"]].append(event)
            inside = np.array(slices[event["pid"], event["tid"]])
            assert within(inside, event["ts"]), event
        if event["ph"] in "be":
            open_[event["id"], event["name"]] += 1 if event["ph"] == "b" else -1
    assert arrows and all([e["ph"] for e in pair] == ["s", "f"] for pair in arrows.values())
    assert all(pair[0]["ts"] < pair[1]["ts"] for pair in arrows.values())
    assert not any(open_.values())
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert any(name.startswith("SBUF") for name in counters) and any(name.startswith("dram") for name in counters)


def within(slices: NDArray[Any], time: float) -> bool:
    return bool(((slices[:, 0] <= time + 1e-6) & (time <= slices[:, 1] + 1e-6)).any())
