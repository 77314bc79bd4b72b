"""What any stage of any cut would cost: columns of numbers, one entry for each pair of ideals that a stage may lie
between (see `partition_lattice`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neuron_mlir.solvers.partition import HOST_PASSES, PS_PER_S, RING_PASSES, PartitionProblem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]
    Levels = list[tuple[int, Ints]]

NEVER = np.int64(1 << 62)
"""More than any amount."""
_WORD = 62
"""Nodes in a word of a set."""


class Table:
    """Per ideal: sums over its nodes, and which values are live, as arrays of one row per ideal."""

    def __init__(self, problem: PartitionProblem, ideal_list: list[int]) -> None:
        nodes = len(problem.nodes)
        member = np.array([[ideal >> n & 1 for n in range(nodes)] for ideal in ideal_list], dtype=np.int64)
        member = member.reshape(len(ideal_list), nodes)
        self.problem = problem
        self.masks = _words(ideal_list, nodes)
        self.compute: Ints = member @ np.array([n.compute_ps for n in problem.nodes], dtype=np.int64)
        self.weights: Ints = member @ np.array([n.weight_bytes for n in problem.nodes], dtype=np.int64)
        self.resident: Ints = member @ np.array([n.resident_bytes for n in problem.nodes], dtype=np.int64)
        self.dma: Ints = member @ np.array([n.dma_total for n in problem.nodes], dtype=np.int64)
        self.dram: Ints = member @ np.array([n.dram_bytes for n in problem.nodes], dtype=np.int64)
        self.working = _levels(member, [n.working_bytes for n in problem.nodes])
        self.taken = _levels(member, [n.taken_bytes for n in problem.nodes])
        if problem.intervals is not None:
            self.time: Ints = np.array(problem.intervals.time_ps, dtype=np.int64)
            self.maps: Ints = np.array(problem.intervals.dram_bytes, dtype=np.int64)
            self.fits: Bools = np.array(problem.intervals.fits, dtype=np.bool_)
        outputs, by_rows = [0] * nodes, [0] * nodes
        for value in problem.values:
            if value.is_output and value.producer is not None:
                (by_rows if value.by_rows else outputs)[value.producer] += value.size_bytes
        self.outputs: Ints = member @ np.array(outputs, dtype=np.int64)
        self.hosted: Ints = member @ np.array(by_rows, dtype=np.int64)
        """Outputs that leave by rows."""
        self.fetched: list[tuple[int, Ints]] = []
        """Of each input of the graph: its bytes, and per ideal how many consumers it holds."""
        self.entering: list[tuple[int, Ints]] = []
        """The same of those that come by rows."""
        self.copied: list[tuple[int, Ints]] = []
        """The same of those that more than one node reads, as they come from the host."""
        self.crossing: Ints = np.zeros(len(ideal_list), dtype=np.int64)
        self.made: list[Bools] = []
        """Per value that is passed on, per ideal: whether it is made there."""
        self.held: list[Ints] = []
        """Per value that is passed on, per ideal: how many of its consumers are there."""
        self.shared: list[tuple[Ints, Ints, int]] = []
        """Per value that goes by rows to several nodes, per ideal: bytes that leave it to a consumer outside, and how
        many of so many consumers are there.
        """
        leaving: list[Ints] = []
        for value in problem.values:
            consumers = sorted(set(value.consumers))
            if not consumers or not (value.size_bytes or value.host_bytes):
                continue
            held: Ints = member[:, consumers].sum(axis=1)
            if value.producer is None:
                if len(consumers) > 1:
                    self.copied.append((value.host_bytes, held))
                (self.entering if value.by_rows else self.fetched).append((value.size_bytes, held))
                continue
            made = member[:, value.producer] > 0
            going = np.where(made & (held < len(consumers)), value.size_bytes, 0)
            self.crossing += going
            if value.by_rows and len(consumers) > 1:
                self.shared.append((going, held, len(consumers)))
            if value.by_rows:
                continue
            self.made.append(made)
            self.held.append(held)
            leaving.append(going)
        self.leaving: Ints = np.array(leaving, dtype=np.int64).reshape(len(leaving), len(ideal_list))
        """Per value that is passed on, per ideal: bytes that leave it to a consumer outside."""

    def columns(self, first: int, last: int, limit: int | None) -> tuple[Ints, ...]:
        """(start, end, compute, DMA, DRAM, handed on, host bytes, bytes read again) of the pairs whose end is in
        [first, last), by end.

        Without `exactly` an ideal is also paired with itself: an empty stage.
        """
        problem = self.problem
        end = np.arange(first, last)
        # Only ideals within the limit of some end can be a start: the band is narrow when stages are many.
        latest = int(self.compute[end].max())
        earliest = 0 if limit is None else int(self.compute[end].min()) - limit
        start = np.flatnonzero((self.compute >= earliest) & (self.compute <= latest))
        compute = self.compute[None, end] - self.compute[start, None]
        allowed = compute >= 0
        if limit is not None:
            allowed &= compute <= limit
        for word in self.masks:
            allowed &= (word[start, None] & ~word[None, end]) == 0
        if problem.exactly:
            allowed &= start[:, None] != end[None, :]
        resident = self.resident[None, end] - self.resident[start, None]
        fits = resident <= self._room(self.working, start, end)
        if problem.intervals is not None and problem.intervals.fits:
            fits |= self.fits[start[:, None], end[None, :]]
        excess = np.where(fits, 0, resident - self._room(self.taken, start, end))
        weights = self.weights[None, end] - self.weights[start, None]
        streamed = np.where(excess > 0, -(-weights * excess // np.maximum(resident, 1)), 0)
        outputs = self.outputs[None, end] - self.outputs[start, None]
        fetched, received = _held_bytes(self.fetched, start, end), self._ring_bytes(start, end)
        dma = streamed + self.dma[None, end] - self.dma[start, None]
        sent = self._out_bytes(start, end)
        dma += fetched + received + outputs + sent
        dram = streamed + self.dram[None, end] - self.dram[start, None]
        dram += HOST_PASSES * (fetched + outputs) + RING_PASSES * received
        exposed = (dma - streamed) * problem.exposed_ps_per_byte + streamed * problem.exposed_stream_ps_per_byte
        if problem.intervals is not None:
            # Ideals are prefixes: the number of each is that of its nodes.
            compute = self.time[start[:, None], end[None, :]]
            maps = self.maps[start[:, None], end[None, :]]
            dma += maps
            dram += maps + _held_bytes(self.entering, start, end) + self.hosted[None, end] - self.hosted[start, None]
        compute = compute + exposed
        if limit is not None:
            allowed &= (compute <= limit) & (dma <= budget(limit, problem.core_bytes_per_s))
        # Transposed, so that pairs come out sorted by end.
        ends, starts = np.nonzero(allowed.T)
        at = (starts, ends)
        host = _held_bytes(self.copied, start, end)
        again = self._again_bytes(start, end)
        return start[starts], ends + first, compute[at], dma[at], dram[at], sent[at], host[at], again[at]

    def _room(self, levels: Levels, start: Ints, end: Ints) -> Ints:
        """Bytes per partition that the largest of the amounts between start and end leaves for weights."""
        capacity = self.problem.capacity_bytes
        room = np.full((len(start), len(end)), capacity, dtype=np.int64)
        for level, count in levels:
            room[count[None, end] > count[start, None]] = max(0, capacity - level)
        return room

    def _again_bytes(self, start: Ints, end: Ints) -> Ints:
        """Values by rows made before the start with a consumer between start and end, and another behind the end."""
        total = np.zeros((len(start), len(end)), dtype=np.int64)
        for going, held, count in self.shared:
            rows = np.flatnonzero(going[start])
            if len(rows):
                first = start[rows]
                both = (held[None, end] > held[first, None]) & (held[None, end] < count)
                total[rows] += going[first][:, None] * both
        return total

    def _ring_bytes(self, start: Ints, end: Ints) -> Ints:
        """Values made before the start with a consumer between start and end."""
        total = np.zeros((len(start), len(end)), dtype=np.int64)
        for held, leaving in zip(self.held, self.leaving, strict=True):
            rows = np.flatnonzero(leaving[start])
            if len(rows):
                first = start[rows]
                total[rows] += leaving[first][:, None] * (held[None, end] > held[first, None])
        return total

    def _out_bytes(self, start: Ints, end: Ints) -> Ints:
        """Values made between start and end with a consumer behind the end."""
        total = np.zeros((len(start), len(end)), dtype=np.int64)
        for made, leaving in zip(self.made, self.leaving, strict=True):
            columns = np.flatnonzero(leaving[end])
            if len(columns):
                total[:, columns] += leaving[end[columns]][None, :] * ~made[start, None]
        return total


def _held_bytes(inputs: list[tuple[int, Ints]], start: Ints, end: Ints) -> Ints:
    """Inputs of the graph with a consumer between start and end."""
    total = np.zeros((len(start), len(end)), dtype=np.int64)
    for size, held in inputs:
        total += size * (held[None, end] > held[start, None])
    return total


def _levels(member: Ints, amounts: list[int]) -> Levels:
    """Of each amount of memory that nodes take, ascending: per ideal how many of its nodes take as much or more."""
    taken = np.array(amounts, dtype=np.int64)
    return [(level, member @ (taken >= level)) for level in sorted(set(amounts) - {0})]


def _words(ideal_list: list[int], nodes: int) -> list[Ints]:
    """The ideals' bits as machine words."""
    low = (1 << _WORD) - 1
    return [
        np.array([ideal >> shift & low for ideal in ideal_list], dtype=np.int64) for shift in range(0, nodes, _WORD)
    ]


def budget(time_ps: int, bytes_per_s: int) -> int:
    """The most bytes served within a time; no more than an int64 holds."""
    return min(time_ps * bytes_per_s // PS_PER_S, int(NEVER) - 1)
