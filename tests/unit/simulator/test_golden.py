"""The hand-written two-stage program: its values, its clock, and what happens when any one thing in it is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from reading import parse

from neuron_mlir.dialects.core.movement import WaitOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.machine_run import MachineSimulator
from neuron_mlir.simulator.program import read_program
from neuron_mlir.simulator.run import RunResult, random_inputs, run_module

GOLDEN = Path(__file__).parents[2] / "lit" / "golden" / "two_stage_final.mlir"
TEXT = re.sub(r"^//.*\n", "", GOLDEN.read_text(encoding="utf-8"), flags=re.MULTILINE)
WAITS = [match.start() for match in re.finditer(r"core\.wait %", TEXT)]
SIGNALS = [match.start() for match in re.finditer(r"core\.signal %", TEXT)]
Arrays = dict[str, NDArray[Any]]


def line_of(position: int) -> str:
    return TEXT[position : TEXT.index("\n", position)]


def without_line(position: int) -> str:
    start = TEXT.rindex("\n", 0, position)
    return TEXT[:start] + TEXT[TEXT.index("\n", position) :]


def integer_weights(text: str) -> str:
    """The golden program with weights that are small integers (a pattern written out), so that sums are exact."""
    w0 = [(3 * i + 5 * (i // 64)) % 7 - 3 for i in range(128 * 64)]
    w1 = [(2 * i + 3 * (i // 32)) % 5 - 2 for i in range(64 * 32)]
    return text.replace("seeded<1>", f"dense<{w0}>").replace("seeded<2>", f"dense<{w1}>")


def run(text: str, requests: int = 6, hazards: Literal["auto"] | bool = True) -> RunResult:
    module = parse(text)
    feeds = [random_inputs(module, seed, integer=True) for seed in range(requests)]
    return run_module(module, feeds, hazards=hazards)


def expected(feed: Arrays) -> NDArray[Any]:
    """The program's meaning in three lines of numpy: bf16 between the stages, f32 at the end."""
    w0 = np.array([(3 * i + 5 * (i // 64)) % 7 - 3 for i in range(128 * 64)], np.float32).reshape(128, 64)
    w1 = np.array([(2 * i + 3 * (i // 32)) % 5 - 2 for i in range(64 * 32)], np.float32).reshape(64, 32)
    hidden = np.maximum(w0.T @ feed["x"], 0)
    bits = hidden.view(np.uint32)
    hidden = (bits + 0x7FFF + ((bits >> 16) & 1) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.maximum(w1.T @ hidden, 0)


def test_values_bit_for_bit() -> None:
    module = parse(integer_weights(TEXT))
    feeds = [random_inputs(module, seed, integer=True) for seed in range(5)]
    result = run_module(module, feeds, hazards=True)
    for feed, outputs in zip(feeds, result.requests, strict=True):
        assert np.array_equal(outputs["y"], expected(feed))
    assert np.any(result.outputs["y"] > 256), "the rounding to bf16 between the stages is put to use"


def test_round_trip_runs_the_same() -> None:
    first, second = run(TEXT), run(str(parse(TEXT)))
    assert first.machine is not None and second.machine is not None
    assert first.machine.finished == second.machine.finished
    for a, b in zip(first.requests, second.requests, strict=True):
        assert np.array_equal(a["y"], b["y"])


def test_three_requests_are_in_flight() -> None:
    machine = run(TEXT, 12).machine
    assert machine is not None
    in_flight = [
        sum(s <= start and start < f for s, f in zip(machine.started, machine.finished, strict=True))
        for start in machine.started
    ]
    assert max(in_flight) >= 3
    assert machine.finished == sorted(machine.finished)


def test_clock_does_not_need_values() -> None:
    with_values = run(TEXT, 8).machine
    without = run_module(parse(TEXT), 8, values=False).machine
    assert with_values is not None and without is not None
    assert with_values.finished == without.finished


def test_backpressure_holds_the_producer_back() -> None:
    """With a slow last stage no ring holds more than its two slots: a request starts when an earlier one leaves."""
    slow = "core.activation relu %ys[0, %r mod 2, 0] [32, 1, 512], %acc[0, %r mod 2, 0] [32, 1, 512]\n"
    machine = run(TEXT.replace(slow, slow * 60), 30).machine
    assert machine is not None
    starts, ends = machine.started, machine.finished
    assert np.diff(ends[6:18]).tolist() == [60 * 572 * 1000] * 11, "the slow engine sets the pace"
    assert np.diff(starts[-8:]).tolist() == [60 * 572 * 1000] * 7, "the host is held back to the same pace"
    # Rings x, h and y hold two requests each; so do xs, acc, hs, acc and ys.
    assert all(starts[request] >= ends[request - 16] for request in range(16, 30))


def test_depth_matters() -> None:
    """A ring of one slot serialises host and DMA; the answer is the same, only later."""
    shallow = TEXT.replace("depth 2 on chip 0 at 0 : memref<2x128", "depth 1 on chip 0 at 0 : memref<1x128")
    shallow = shallow.replace("%xr: memref<2x128x512", "%xr: memref<1x128x512").replace("%xr[%r mod 2,", "%xr[0,")
    deep, slow = run(TEXT, 8), run(shallow, 8)
    assert deep.machine is not None and slow.machine is not None
    assert slow.machine.finished[-1] > deep.machine.finished[-1]
    for a, b in zip(deep.requests, slow.requests, strict=True):
        assert np.array_equal(a["y"], b["y"])


HAZARD = re.compile(r"race: |read of never-written|read of overwritten|deadlock: ")


@pytest.mark.parametrize("wait", WAITS, ids=[f"{i}-{line_of(p)}" for i, p in enumerate(WAITS)])
def test_no_wait_is_superfluous(wait: int) -> None:
    """Deleting any one wait is noticed, and both sides are named."""
    with pytest.raises(NeuronError, match=HAZARD) as caught:
        run(without_line(wait), 6)
    assert caught.value.advice
    if caught.value.message.startswith("race"):
        assert caught.value.message.count("core.") + caught.value.message.count("transfer of") >= 2
        assert " and " in caught.value.message


@pytest.mark.parametrize("wait", WAITS, ids=[f"{i}-{line_of(p)}" for i, p in enumerate(WAITS)])
def test_no_wait_may_come_one_sooner(wait: int) -> None:
    line = line_of(wait)
    sooner = line.replace("+ 1", "+ 0") if "+ 1" in line else line.replace("- 1", "- 2")
    assert sooner != line
    with pytest.raises(NeuronError, match=HAZARD):
        run(TEXT[:wait] + sooner + TEXT[wait + len(line) :], 6)


@pytest.mark.parametrize("signal", SIGNALS, ids=[f"{i}-{line_of(p)}" for i, p in enumerate(SIGNALS)])
def test_a_missing_signal_is_a_deadlock(signal: int) -> None:
    with pytest.raises(NeuronError, match=r"deadlock: .* waits for .* which is at 0"):
        run(without_line(signal), 6)


@pytest.mark.parametrize("wait", WAITS, ids=[f"{i}-{line_of(p)}" for i, p in enumerate(WAITS)])
def test_waiting_longer_than_needed_is_no_hazard(wait: int) -> None:
    """One more signal to wait for is safe where it does not deadlock."""
    line = line_of(wait)
    later = line.replace("+ 1", "+ 2") if "+ 1" in line else line.replace("- 1", "- 0")
    try:
        run(TEXT[:wait] + later + TEXT[wait + len(line) :], 6)
    except NeuronError as error:
        assert error.message.startswith("deadlock")


def test_shifted_address_overwrites() -> None:
    """The weights of stage 0 moved onto its input buffer."""
    text = TEXT.replace('"w" at 0 : memref<128x64xbf16', '"w" at 1200 : memref<128x64xbf16')
    with pytest.raises(NeuronError, match=r"read of overwritten memory.*'w'.*overwritten through 'xs'"):
        run(text, 6)


def test_overlapping_buffers_race() -> None:
    """The output buffer of stage 0 shares bytes with its input buffer, and no semaphore keeps them apart."""
    text = TEXT.replace('"hs" at 2176', '"hs" at 1152')
    with pytest.raises(NeuronError, match=r"race: |read of overwritten"):
        run(text, 6)


def test_auto_checks_until_the_rings_have_gone_round() -> None:
    machine = run(TEXT, 12, hazards="auto").machine
    assert machine is not None and machine.checked_requests == 4


def test_waits_are_counted() -> None:
    waits = [op for op in parse(TEXT).walk() if isinstance(op, WaitOp)]
    assert len(waits) == len(WAITS) == 14


def test_a_simulator_runs_again() -> None:
    module = parse(TEXT)
    simulator = MachineSimulator(read_program(module), None)
    feeds = [random_inputs(module, seed) for seed in range(4)]
    first, second = simulator.run(feeds), simulator.run(feeds)
    assert first.finished == second.finished and first.checked_requests == second.checked_requests == 4
    for a, b in zip(first.outputs, second.outputs, strict=True):
        assert np.array_equal(a["y"], b["y"])
