"""What was in SBUF and PSUM when: from a write to the last read before the next one, at the address it had.

An access counts as the span from its first to its last byte in a partition. The addresses of a buffer are cut where
accesses begin and end, and each piece has its own times, so that a buffer of several slots, or one that is read while
it is refilled, shows as what of it holds something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.simulator.program import Memory, Program, Storage, Touch, walk
from neuron_mlir.simulator.trace import StepTrace, Trace, on_core, touch_bytes

Table = NDArray[np.int64]

PIECES = 48
"""A buffer is cut in at most so many pieces; beyond that, evenly."""

RESIDENT, STREAMED, VALUE, SUMS = "resident", "streamed", "value", "sums"
KINDS = {
    RESIDENT: "weights and constants that stay between requests",
    STREAMED: "weights brought in for each request",
    VALUE: "values of a request",
    SUMS: "partial sums of matmuls (PSUM)",
}


@dataclass(frozen=True, eq=False)
class Lives:
    """What one memory held within a window.

    `rectangles`: start, end, address, bytes of a partition, number of the buffer, request that wrote it (-1: none of
    those traced), in order of start.
    """

    memory: Memory
    buffers: list[Storage]
    kinds: list[str]
    rectangles: Table


@dataclass(frozen=True)
class _Access:
    start: Table
    end: Table
    low: Table
    high: Table
    request: Table


def lives(trace: Trace, window: tuple[int, int]) -> list[Lives]:
    """What each SBUF and PSUM held within a window, by core."""
    found: list[Lives] = []
    writes, reads = _accesses(trace)
    kinds = buffer_kinds(trace.program)
    for core in sorted(trace.program.cores):
        for space in ("sbuf", "psum"):
            memory = Memory(space, core)
            buffers = [storage for storage in trace.program.storages if storage.memory == memory]
            parts: list[Table] = []
            for number, storage in enumerate(buffers):
                if kinds[storage] == RESIDENT:
                    whole = (*window, storage.address or 0, storage.bytes, number, -1)
                    parts.append(np.array([whole], np.int64))
                    continue
                rows = _life(writes.get(storage, []), reads.get(storage, []), window)
                if len(rows):
                    parts.append(np.insert(rows, 4, number, axis=1))
            rows = np.concatenate(parts) if parts else np.zeros((0, 6), np.int64)
            rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
            found.append(Lives(memory, buffers, [kinds[storage] for storage in buffers], rows))
    return found


def buffer_kinds(program: Program) -> dict[Storage, str]:
    """What each buffer of SBUF and PSUM is for; see `KINDS`."""
    written: dict[Storage, None] = {}
    weights: dict[Storage, None] = {}
    for stream in program.streams:
        for step, _ in walk(stream.run):
            for touch in step.touches:
                if touch.write and on_core(touch):
                    written[touch.storage] = None
                    if isinstance(step.op, DmaOp) and step.touches[1].storage.constant is not None:
                        weights[touch.storage] = None
    kinds: dict[Storage, str] = {}
    for storage in program.storages:
        if storage.memory.space == "dram":
            continue
        if storage.memory.space == "psum":
            kinds[storage] = SUMS
        elif storage not in written:
            kinds[storage] = RESIDENT
        else:
            kinds[storage] = STREAMED if storage in weights else VALUE
    return kinds


def _accesses(trace: Trace) -> tuple[dict[Storage, list[_Access]], dict[Storage, list[_Access]]]:
    writes: dict[Storage, list[_Access]] = {}
    reads: dict[Storage, list[_Access]] = {}
    for step in trace.steps:
        if not len(step.rows):
            continue
        for number, touch in enumerate(step.touches):
            access = _access(step, number, touch)
            if not touch.write:
                reads.setdefault(touch.storage, []).append(access)
                continue
            writes.setdefault(touch.storage, []).append(access)
            if step.accumulates:
                # A matmul that adds to what is there reads it, too.
                adds = step.rows[:, -1] != 0
                kept = _Access(*(column[adds] for column in vars(access).values()))
                reads.setdefault(touch.storage, []).append(kept)
    return writes, reads


def _access(step: StepTrace, number: int, touch: Touch) -> _Access:
    rows = step.rows
    low = rows[:, 4 + number]
    return _Access(rows[:, 1], rows[:, 3 if touch.write else 2], low, low + touch_bytes(touch), rows[:, 0])


def _joined(accesses: Sequence[_Access]) -> _Access:
    if not accesses:
        return _Access(*(np.zeros(0, np.int64) for _ in range(5)))
    columns = [np.concatenate([vars(access)[name] for access in accesses]) for name in vars(accesses[0])]
    order = np.argsort(columns[0], kind="stable")
    return _Access(*(column[order] for column in columns))


def _life(writes: Sequence[_Access], reads: Sequence[_Access], window: tuple[int, int]) -> Table:
    """Rectangles of one buffer: start, end, address, bytes, request."""
    written, read = _joined(writes), _joined(reads)
    ends: list[Table] = [written.low, written.high, read.low, read.high]
    cuts = np.unique(np.concatenate(ends))
    if len(cuts) > PIECES + 1:
        even: Table = np.linspace(int(cuts[0]), int(cuts[-1]), PIECES + 1).astype(np.int64)
        cuts = np.unique(even)
    done: list[Table] = []
    # Pieces above each other that hold something at the same times are one rectangle.
    below: Table | None = None
    for low, high in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        rows = _piece(written, read, low, high, window)
        if below is not None and len(below) == len(rows) and np.array_equal(below[:, :2], rows[:, :2]):
            below[:, 3] += high - low
            continue
        below = np.column_stack((rows[:, :2], np.full((len(rows), 2), (low, high - low)), rows[:, 2]))
        done.append(below)
    return np.concatenate(done) if done else np.zeros((0, 5), np.int64)


def _piece(written: _Access, read: _Access, low: int, high: int, window: tuple[int, int]) -> Table:
    """When the bytes from `low` to `high` of a buffer hold something: start, end, request."""
    ours = (written.low < high) & (written.high > low)
    starts, ends, requests = written.start[ours], written.end[ours].copy(), written.request[ours]
    theirs = (read.low < high) & (read.high > low)
    read_start, read_end = read.start[theirs], read.end[theirs]
    before = np.searchsorted(starts, read_start, side="right") - 1
    known = before >= 0
    if len(starts):
        np.maximum.at(ends, before[known], read_end[known])
    early = read_end[~known]
    if len(early):
        # Written before the trace begins.
        starts = np.concatenate(([window[0]], starts))
        ends, requests = np.concatenate(([early.max()], ends)), np.concatenate(([-1], requests))
    if not len(starts):
        return np.zeros((0, 3), np.int64)
    reach = np.maximum.accumulate(ends)
    new = np.ones(len(starts), bool)
    new[1:] = starts[1:] > reach[:-1]
    places = np.flatnonzero(new)
    rows = np.column_stack((starts[places], np.maximum.reduceat(ends, places), requests[places]))
    rows = rows[(rows[:, 1] > window[0]) & (rows[:, 0] < window[1])]
    rows[:, 0], rows[:, 1] = np.maximum(rows[:, 0], window[0]), np.minimum(rows[:, 1], window[1])
    return rows


def cut(rectangles: Table, start: int, end: int) -> Table:
    """The rectangles of a part of the time, cut to it."""
    rows = rectangles[(rectangles[:, 1] > start) & (rectangles[:, 0] < end)].copy()
    rows[:, 0], rows[:, 1] = np.maximum(rows[:, 0], start), np.minimum(rows[:, 1], end)
    return rows


def occupancy(rectangles: Table) -> Table:
    """Bytes of a partition in use from each time on: rows of time and bytes, in order of time."""
    if not len(rectangles):
        return np.zeros((0, 2), np.int64)
    times = np.concatenate((rectangles[:, 0], rectangles[:, 1]))
    sizes = np.concatenate((rectangles[:, 3], -rectangles[:, 3]))
    order = np.argsort(times, kind="stable")
    moments, places = np.unique(times[order], return_index=True)
    return np.column_stack((moments, np.cumsum(np.add.reduceat(sizes[order], places))))


def most_in_bins(steps: Table, window: tuple[int, int], bins: int) -> list[int]:
    """The most bytes in use in each of `bins` equal times of a window, of the steps of `occupancy`."""
    if not len(steps):
        return [0] * bins
    edges = np.linspace(window[0], window[1], bins + 1).astype(np.int64)
    first = np.searchsorted(steps[:, 0], edges[:-1], side="right") - 1
    last = np.searchsorted(steps[:, 0], edges[1:], side="left")
    return [int(steps[max(0, low) : max(high, low + 1, 1), 1].max()) for low, high in zip(first, last, strict=True)]
