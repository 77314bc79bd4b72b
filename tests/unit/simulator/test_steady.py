"""A steady state that is skipped: the same times as without, on programs of the compiler and random machines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import DictionaryAttr, IntegerAttr, StringAttr, i64

from benchmarks.mutants import program_text
from neuron_mlir.runtime.modules import parse_module
from neuron_mlir.simulator.machine_run import MachineRun, MachineSimulator
from neuron_mlir.simulator.program import Limit, Program, read_program
from neuron_mlir.simulator.steady import keeps_pace

NAMES = ("pipeline", "shards", "replicas", "depth first")


def program(name: str, **numbers: int) -> Program:
    """A program on a machine with other numbers."""
    module = parse_module(program_text(name), name)
    module.attributes["core.machine"] = StringAttr("inferentia1")
    overrides = {key.replace("__", "."): IntegerAttr(value, i64) for key, value in numbers.items()}
    module.attributes["core.machine_overrides"] = DictionaryAttr(overrides)
    return read_program(module)


def run(
    found: Program, requests: int, in_flight: int | None, skip: bool, count_loads: bool = True
) -> tuple[MachineRun, int]:
    """With loads counted streams are Python code, else tables."""
    simulator = MachineSimulator(found, values=False, hazards=False, count_loads=count_loads, skip=skip)
    result = simulator.run(requests, in_flight)
    return result, simulator.skipped_requests


@settings(max_examples=14, deadline=None, derandomize=True)
@given(
    st.sampled_from(NAMES),
    st.integers(16, 200),
    st.sampled_from([None, 1, 2, 5]),
    st.integers(20_000, 3_000_000),
    st.integers(1_000_000_000, 50_000_000_000),
    st.integers(300, 3000),
    st.integers(1, 90),
    st.booleans(),
)
def test_times_are_those_of_the_whole_run(
    name: str, requests: int, in_flight: int | None, fixed: int, rate: int, cycle: int, share: int, loads: bool
) -> None:
    found = program(
        name,
        dma__fixed_ps=fixed,
        host_link__bytes_per_s=rate,
        clock__cycle_ps=cycle,
        dram__efficiency_permille=10 * share,
    )
    short, _ = run(found, requests, in_flight, True, loads)
    whole, skipped = run(found, requests, in_flight, False)
    assert not skipped
    assert short.started == whole.started and short.finished == whole.finished
    if loads:
        assert list(short.exposed_loads.values()) == list(whole.exposed_loads.values())


@pytest.mark.parametrize("name", NAMES)
def test_most_of_a_long_run_is_skipped(name: str) -> None:
    result, skipped = run(program(name), 3000, None, True, count_loads=False)
    assert skipped > 2500
    assert len(result.finished) == 3000 and min(result.finished) > 0


def test_with_hazards_the_checked_requests_are_run() -> None:
    found = program("pipeline")
    simulator = MachineSimulator(found, values=False)
    result = simulator.run(500)
    assert 0 < simulator.skipped_requests <= 500 - simulator.checked_requests
    assert result.finished == run(found, 500, None, False)[0].finished


def test_what_repeats_before_all_checked_requests_came_is_run_all_the_same() -> None:
    found = program("pipeline")
    simulator = MachineSimulator(found, values=False)
    simulator.checked_requests = simulator.options.checked_requests = 400
    result = simulator.run(500)
    assert 0 < simulator.skipped_requests <= 100
    assert result.finished == run(found, 500, None, False)[0].finished


def test_a_wait_that_falls_behind_is_not_skipped() -> None:
    """One that is for every other signal only: its state is another in each request."""
    module = parse_module(program_text("pipeline"), "pipeline")
    assert keeps_pace(read_program(module)) is not None
    slower = program_text("pipeline").replace("core.wait %tensor >= %r + 1", "core.wait %tensor >= 1", 1)
    assert slower != program_text("pipeline")
    assert keeps_pace(read_program(parse_module(slower, "slower"))) is None


def test_a_limit_may_come_down() -> None:
    limit = Limit()
    limit.last = 10
    seen: list[int] = []
    for turn in limit.turns(2):
        seen.append(turn)
        limit.last = 5
    assert seen == [2, 3, 4]
    assert list(limit.turns(1, 3)) == [1, 2] and list(limit.turns(3, 9)) == [3, 4]
