"""Schedules of rows: every row that is read has been computed and is still in its buffer, or is padding; results are
complete; and taking like steps together changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.solvers.row_schedule import Part, Read, Rows, RowSchedule, most_alive, schedule_rows


@st.composite
def networks(draw: st.DrawFn) -> list[Rows]:
    """Chains with forks and joins of windows, strides and upsamplings; the last value, and some others, are results."""
    found = [Rows(draw(st.integers(5, 60)), once=draw(st.booleans()))]
    for position in range(1, draw(st.integers(2, 6))):
        value = draw(st.integers(max(0, position - 3), position - 1))
        height = found[value].height
        reach = draw(st.sampled_from([1, 1, 2, 3, 5]))
        stride = draw(st.sampled_from([1, 1, 2, 3]))
        pad, repeat = draw(st.sampled_from([0, reach // 2])), 1
        if draw(st.integers(0, 5)) == 0:
            stride, pad, reach, repeat = 1, 0, draw(st.sampled_from([1, 2])), draw(st.sampled_from([2, 3]))
        if height + 2 * pad < reach:
            stride, pad, reach = 1, 0, 1
        made = ((height + 2 * pad - reach) // stride + 1) * repeat
        reads = [Read(value, stride, pad, reach, repeat)]
        alike = [n for n, v in enumerate(found) if v.height == made and n != value]
        if alike and draw(st.booleans()):
            reads.append(Read(draw(st.sampled_from(alike))))
        unit = repeat * draw(st.sampled_from([1, 1, 2]))
        found.append(Rows(made, tuple(reads), draw(st.integers(0, 4)) == 0, unit))
    read = {r.value for v in found for r in v.reads}
    return [replace(v, is_result=v.is_result or (n > 0 and n not in read)) for n, v in enumerate(found)]


def play(values: list[Rows], schedule: RowSchedule, recompute: bool) -> None:
    """Go through all steps with what each buffer holds."""
    held: list[range] = [range(0) for _ in values]
    done: list[set[int]] = [set() for _ in values]
    for number in range(schedule.steps):
        parts = schedule.step(number)
        for n, (value, part) in enumerate(zip(values, parts, strict=True)):
            base, top = max(part.base, 0), min(part.top, value.height)
            if value.reads or (value.once and not recompute):
                # What is in the buffer was kept from the step before, or is computed now.
                kept = range(part.start - part.kept, part.start)
                assert all(row in held[n] for row in kept)
                assert base == part.start - part.kept or not part.rows or recompute
                for read in value.reads:
                    source = parts[read.value]
                    for row in range(part.start, part.stop):
                        first = read.first(row)
                        for wanted in range(first, first + read.reach):
                            assert source.base <= wanted < source.top
                            inside = 0 <= wanted < values[read.value].height
                            assert not inside or wanted in held[read.value]
            held[n] = range(base, max(base, top))
            done[n].update(range(part.start, part.stop))
    for value, rows in zip(values, done, strict=True):
        whole = value.is_result or (value.once and not recompute)
        assert not whole or rows == set(range(value.height))


@settings(max_examples=150, deadline=None)
@given(networks(), st.integers(1, 7), st.booleans())
def test_rows_are_there_when_they_are_read(values: list[Rows], rows: int, recompute: bool) -> None:
    schedule = schedule_rows(values, rows, recompute=recompute)
    tallest = max(v.height for v in values if v.is_result)
    assert schedule.steps == -(-tallest // rows)
    play(values, schedule, recompute)
    every = [schedule.step(n) for n in range(schedule.steps)]
    for n, value in enumerate(values):
        parts = [step[n] for step in every]
        assert schedule.totals.buffer[n] == max(p.top - p.base for p in parts)
        assert schedule.totals.computed[n] == sum(p.rows for p in parts)
        assert schedule.totals.kept[n] == sum(p.kept for p in parts)
        if (value.reads or value.once) and not recompute:
            assert schedule.totals.computed[n] <= value.height


def code(part: Part, before: Part | None) -> tuple[int, ...]:
    """What the code for a value in a step depends on."""
    moved = part.top - before.top if before is not None and part.kept else 0
    return part.rows, part.start - part.base, part.top - part.stop, part.kept, moved, max(0, -part.base)


@settings(max_examples=100, deadline=None)
@given(networks(), st.integers(1, 5), st.booleans())
def test_steps_of_a_run_differ_by_a_constant_progress(values: list[Rows], rows: int, recompute: bool) -> None:
    schedule = schedule_rows(values, rows, recompute=recompute)
    assert [run.first for run in schedule.runs] == [
        sum(run.count for run in schedule.runs[:n]) for n in range(len(schedule.runs))
    ]
    for run in schedule.runs:
        for n in range(len(values)):
            steps = [schedule.step(run.first + s)[n] for s in range(run.count)]
            before = schedule.step(run.first - 1)[n] if run.first else None
            shapes = {code(part, last) for part, last in zip(steps, [before, *steps], strict=False)}
            assert len(shapes) == 1 or (before is None and not steps[0].kept)
            assert len({b.start - a.start for a, b in pairwise(steps)}) <= 1
            for read in values[n].reads:
                sources = [schedule.step(run.first + s)[read.value] for s in range(run.count)]
                pairs = zip(steps, sources, strict=True)
                assert len({read.first(part.start) - source.base for part, source in pairs if part.rows}) <= 1


def test_a_window_keeps_its_overlap() -> None:
    values = [Rows(12), Rows(12, (Read(0, 1, 1, 3),)), Rows(12, (Read(1, 1, 1, 3),), is_result=True)]
    schedule = schedule_rows(values, 4)
    assert [(run.first, run.count) for run in schedule.runs] == [(0, 1), (1, 1), (2, 1)]
    assert schedule.step(0)[1] == Part(0, 5, -1, 5, 0)
    assert schedule.step(1)[1] == Part(5, 9, 3, 9, 2)
    assert schedule.step(2)[1] == Part(9, 12, 7, 13, 2)


def test_without_keeping_the_overlap_is_computed_again() -> None:
    values = [Rows(12), Rows(12, (Read(0, 1, 1, 3),)), Rows(12, (Read(1, 1, 1, 3),), is_result=True)]
    schedule = schedule_rows(values, 4, recompute=True)
    assert schedule.step(1)[1] == Part(3, 9, 3, 9, 0)
    assert schedule.totals.computed == (20, 16, 12)


def test_the_work_does_not_grow_with_the_height() -> None:
    def chain(height: int) -> RowSchedule:
        values = [Rows(height)]
        values += [Rows(height, (Read(n, 1, 1, 3),), n == 5) for n in range(6)]
        return schedule_rows(values, 1)

    assert len(chain(100).runs) == len(chain(100_000).runs)
    assert chain(100_000).steps == 100_000


def test_what_is_alive_together() -> None:
    values = [Rows(4), Rows(4, (Read(0),)), Rows(4, (Read(1),)), Rows(4, (Read(2), Read(0)), is_result=True)]
    assert most_alive(values, [10, 20, 30, 5]) == 60
    assert most_alive(values, [0, 20, 30, 5]) == 50


def test_there_must_be_a_result() -> None:
    with pytest.raises(ValueError, match="needs a result"):
        schedule_rows([Rows(4)], 1)
