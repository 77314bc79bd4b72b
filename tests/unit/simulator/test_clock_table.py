"""Streams as tables: the times of the generated code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.mutants import program_text
from neuron_mlir.runtime.modules import parse_module
from neuron_mlir.simulator import clock_table
from neuron_mlir.simulator.clock_table import Row, interleave, make_table
from neuron_mlir.simulator.costs import StepCosts
from neuron_mlir.simulator.machine_run import MachineSimulator
from neuron_mlir.simulator.program import Program, read_program

REQUESTS = 9
NAMES = ("pipeline", "shards", "replicas", "depth first", "attention")


def program(name: str) -> Program:
    return read_program(parse_module(program_text(name), name))


def times(found: Program, generated: bool) -> tuple[list[int], list[int], int]:
    """Of a run, as tables or as generated code, which also counts loads."""
    run = MachineSimulator(found, values=False, hazards=False, count_loads=generated).run(REQUESTS)
    return run.started, run.finished, run.load_ps


@pytest.mark.parametrize("name", NAMES)
def test_times_are_those_of_the_generated_code(name: str) -> None:
    found = program(name)
    signals: list[list[int]] = [[] for _ in found.semaphores]
    tables = [make_table(stream, StepCosts(found), signals, False) for stream in found.streams]
    assert all(table is not None for table in tables)
    assert times(found, False) == times(found, True)


def test_links_that_are_slower_than_memory() -> None:
    """Results that are there later than those of the transfer after them."""
    found = program("replicas")
    transfers = [StepCosts(found).transfer(step, stream) for stream in found.streams for step, _, _ in stream.steps()]
    assert len({transfer.fixed_ps for transfer in transfers if transfer is not None}) > 1
    signals: list[list[int]] = [[] for _ in found.semaphores]
    tables = [make_table(stream, StepCosts(found), signals, False) for stream in found.streams]
    kinds = {row[0] for table in tables if table is not None for rows in table.rows for row in rows}
    assert len(kinds) >= 4


def test_a_stream_without_a_table_is_generated() -> None:
    text = program_text("pipeline")
    uneven = text.replace("core.wait %tensor >= %r + 1", "core.wait %tensor >= (%r floordiv 7) * 7 + 1", 1)
    assert uneven != text
    found = read_program(parse_module(uneven, "uneven"))
    signals: list[list[int]] = [[] for _ in found.semaphores]
    tables = [make_table(stream, StepCosts(found), signals, False) for stream in found.streams]
    assert [table is None for table in tables].count(True) == 1
    assert times(found, False) == times(found, True)


def test_a_list_that_is_too_long_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_table, "_LONGEST", 1)
    found = program("pipeline")
    busiest = max(found.streams, key=lambda stream: len(stream.run))
    assert make_table(busiest, StepCosts(found), [[] for _ in found.semaphores], False) is None


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 9))
def test_parts_follow_one_another_in_each_turn(sizes: list[int], turns: int) -> None:
    def row(part: int, turn: int, n: int) -> Row:
        return (part, None, turn, n, 0)

    parts = [
        ([row(part, turn, n) for turn in range(turns) for n in range(size)], size) for part, size in enumerate(sizes)
    ]
    expected = [row(part, turn, n) for turn in range(turns) for part, size in enumerate(sizes) for n in range(size)]
    assert interleave(parts, turns) == expected
