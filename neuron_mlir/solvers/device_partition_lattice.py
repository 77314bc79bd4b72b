"""The loads between ideals of a graph of groups, and the search for a chain of ideals within a load.

An ideal is a set of groups that holds what its groups need. A plan is a chain of ideals, the first empty and the last
full; a device's groups are the difference of two neighbours. Its load follows from the two ideals alone: with `c(I)`
the transfers of what is made in I and still used outside, the device between I and J costs

    cost(J) - cost(I)  +  c(I) - (of those, unused between I and J)  +  c(J) - (of those, made in I).

Per ideal and handover one number is kept: how many users are outside once it is made, else 0. The two corrections are
then products of indicator matrices, which run at the speed of a matrix multiplication. All numbers stay below 2^53.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from neuron_mlir.solvers.device_partition_graph import Contracted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

_T = TypeVar("_T", bound=np.generic)
_WORD = 64
_STARTS, _ENDS = 256, 4096
PAIR_WORK, FEATURE_WORK = 14e-9, 0.35e-9
"""About CPU seconds per pair of ideals, and per pair and indicator of a handover."""


class OutOfWork(Exception):
    """The work a search was given is used up."""


@dataclass
class Work:
    """Work done and allowed, in about CPU seconds of one core of 2020; counted, not measured."""

    allowed: float
    done: float = 0.0

    def spend(self, amount: float) -> None:
        """Count work. Raises `OutOfWork`."""
        self.done += amount
        if self.done > self.allowed:
            raise OutOfWork

    @property
    def left(self) -> float:
        return max(0.0, self.allowed - self.done)


@dataclass(frozen=True)
class Ideals:
    """Ideals of a graph, by cost and then by size: what an ideal holds comes before it."""

    graph: Contracted
    members: NDArray[np.uint64]
    """A row of bits per ideal."""
    state: NDArray[np.uint16]
    """Per ideal and handover: users outside if it is made inside, else 0."""
    cost: Ints
    room: Ints
    crossing: Ints
    """`c(I)`."""
    weights: Floats
    """The transfer of each handover."""

    @staticmethod
    def sort(graph: Contracted, members: NDArray[np.uint64], state: NDArray[np.uint16]) -> Ideals:
        """Put ideals, given as rows of bits and of states, in order."""
        count, groups = len(members), len(graph.cost)
        weights = np.array([t for _, _, t in graph.handovers], dtype=np.float64)
        costs = np.array(graph.cost, dtype=np.float64)
        rooms = np.array(graph.room, dtype=np.int64)
        sums = np.zeros((count, 3), dtype=np.int64)
        crossing = np.zeros(count, dtype=np.int64)
        for first in range(0, count, _ENDS):
            part = slice(first, first + _ENDS)
            inside = unpack(members[part], groups)
            sums[part, 0] = inside.astype(np.float64) @ costs
            # In integers, for bytes may exceed what float64 holds exactly.
            sums[part, 1] = inside.astype(np.int64) @ rooms
            sums[part, 2] = inside.sum(axis=1)
            crossing[part] = (state[part] > 0).astype(np.float64) @ weights
        order = np.lexsort((sums[:, 2], sums[:, 0]))
        return Ideals(graph, members[order], state[order], sums[order, 0], sums[order, 1], crossing[order], weights)

    @staticmethod
    def enumerate(graph: Contracted, limit: int, cells: int) -> Ideals | None:
        """All ideals; None if there are more than `limit`, or their states would take more than `cells` numbers.

        With the groups in topological order an ideal is one without its last group, and that group: each arises once.
        """
        groups, handovers = len(graph.cost), len(graph.handovers)
        limit = min(limit, cells // max(1, handovers + 4 * _words(groups)))
        makes: list[list[int]] = [[] for _ in range(groups)]
        uses: list[list[int]] = [[] for _ in range(groups)]
        for number, (maker, users, _) in enumerate(graph.handovers):
            makes[maker].append(number)
            for user in users:
                uses[user].append(number)
        outside = np.array([len(users) for _, users, _ in graph.handovers], dtype=np.uint16)
        members = np.zeros((1024, _words(groups)), dtype=np.uint64)
        state = np.zeros((1024, handovers), dtype=np.uint16)
        count = 1
        for group in range(groups):
            allowed = np.ones(count, dtype=np.bool_)
            needs = sum(1 << m for m in graph.makers[group])
            for word in range(_words(groups)):
                need = np.uint64(needs >> word * _WORD & (1 << _WORD) - 1)
                if need:
                    allowed &= (members[:count, word] & need) == need
            grown = np.flatnonzero(allowed)
            end = count + len(grown)
            if end > limit:
                return None
            if end > len(members):
                size = min(limit, max(end, 2 * len(members)))
                members, state = _resized(members, size), _resized(state, size)
            members[count:end] = members[grown]
            members[count:end, group // _WORD] |= np.uint64(1 << group % _WORD)
            new = state[grown]
            new[:, makes[group]] = outside[makes[group]]
            new[:, uses[group]] -= 1
            state[count:end] = new
            count = end
        return Ideals.sort(graph, members[:count], state[:count])

    @staticmethod
    def of(graph: Contracted, sets: Sequence[int]) -> Ideals:
        """These ideals, as integers with bit n for group n; each once."""
        groups = len(graph.cost)
        width = 8 * _words(groups)
        raw = b"".join(s.to_bytes(width, "little") for s in dict.fromkeys(sets))
        members = np.frombuffer(raw, dtype="<u8").astype(np.uint64).reshape(-1, _words(groups))
        state = np.zeros((len(members), len(graph.handovers)), dtype=np.uint16)
        if graph.handovers:
            inside = unpack(members, groups)
            users = np.concatenate([np.array(u) for _, u, _ in graph.handovers])
            starts = np.cumsum([0, *(len(u) for _, u, _ in graph.handovers)])[:-1]
            makers = np.array([m for m, _, _ in graph.handovers])
            outside = np.add.reduceat((1 - inside)[:, users].astype(np.uint16), starts, axis=1)
            state[:] = outside * inside[:, makers]
        return Ideals.sort(graph, members, state)

    def __len__(self) -> int:
        return len(self.cost)

    def relaxed(self) -> Ideals:
        """The same with the bytes that count for bounds only."""
        rooms, room = np.array(self.graph.least_room, dtype=np.int64), np.zeros_like(self.room)
        for first in range(0, len(self), _ENDS):
            part = slice(first, first + _ENDS)
            room[part] = unpack(self.members[part], len(rooms)).astype(np.int64) @ rooms
        return replace(self, room=room)

    def set_of(self, index: int) -> int:
        """An ideal as an integer with bit n for group n."""
        return int.from_bytes(self.members[index].astype("<u8").tobytes(), "little")

    def loads(self, starts: Ints, ends: Ints, work: Work) -> Floats:
        """The load of a device between each start and end; infinite where the start is not within the end or the
        groups between exceed the capacity.
        """
        before = self.state[starts]
        used = np.flatnonzero(before.any(axis=0))
        before, after = before[:, used], self.state[np.ix_(ends, used)]
        # Indicators of starts, weighed, and of ends.
        left: list[Floats] = [(before > 0) * self.weights[used]]
        right: list[Bools] = [after > 0]
        for level in range(1, int(before.max(initial=0)) + 1):
            at = before == level
            columns = np.flatnonzero(at.any(axis=0))
            if len(columns):
                left.append(at[:, columns] * self.weights[used[columns]])
                right.append(after[:, columns] == level)
        saved = np.hstack(left) @ np.hstack(right).T.astype(np.float64)
        ahead = (self.cost + self.crossing)[ends].astype(np.float64)
        behind = (self.crossing - self.cost)[starts].astype(np.float64)
        load = np.subtract(ahead[None, :] + behind[:, None], saved, out=saved)
        bad = self.room[ends][None, :] - self.room[starts][:, None] > self.graph.capacity
        first, last = self.members[starts], ~self.members[ends]
        within = np.bitwise_or.reduce(first, axis=0) & np.bitwise_or.reduce(last, axis=0)
        for word in np.flatnonzero(within):
            bad |= (first[:, word, None] & last[None, :, word]) != 0
        load[bad] = np.inf
        work.spend(load.size * (PAIR_WORK + FEATURE_WORK * sum(f.shape[1] for f in left)))
        return load

    def chain_within(self, load: int, work: Work) -> list[int] | None:
        """Ideals (indices) of a chain with no more steps than devices, none above `load`; None if there is none.

        Breadth first: an ideal is best reached with as few devices as possible. What cannot be finished by the devices
        left is dropped: they carry at least the cost outside and what crosses to them.
        """
        devices, count = self.graph.devices, len(self)
        outside = self.graph.total - self.cost + self.crossing
        parent = np.full(count, -1, dtype=np.int64)
        waiting = np.ones(count, dtype=np.bool_)
        waiting[0] = False
        reached = np.zeros(1, dtype=np.int64)
        for left in range(devices - 1, -1, -1):
            hopeful = waiting & (outside <= left * load)
            found: list[Ints] = []
            # Far ends first: most ends are reached from the largest starts, and are then done with.
            for last in range(len(reached), 0, -_STARTS):
                starts = reached[max(0, last - _STARTS) : last]
                high = int(np.searchsorted(self.cost, self.cost[starts[-1]] + load, side="right"))
                ends = np.flatnonzero(hopeful[starts[0] + 1 : high]) + starts[0] + 1
                for chunk in range(0, len(ends), _ENDS):
                    part = ends[chunk : chunk + _ENDS]
                    fits = self.loads(starts, part, work) <= load
                    met = fits.any(axis=0)
                    parent[part[met]] = starts[fits[:, met].argmax(axis=0)]
                    hopeful[part[met]] = False
                    waiting[part[met]] = False
                    found.append(part[met])
            if not waiting[-1]:
                break
            reached = np.sort(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
            if not len(reached):
                return None
        if waiting[-1]:
            return None
        chain = [count - 1]
        while chain[-1]:
            chain.append(int(parent[chain[-1]]))
        return chain[::-1]


def unpack(members: NDArray[np.uint64], groups: int) -> NDArray[np.uint8]:
    """Rows of bits as rows of 0 and 1."""
    octets = members.astype("<u8").view(np.uint8).reshape(len(members), -1)
    return np.unpackbits(octets, axis=1, count=groups, bitorder="little")


def _words(groups: int) -> int:
    return max(1, -(-groups // _WORD))


def _resized(rows: NDArray[_T], size: int) -> NDArray[_T]:
    grown = np.zeros((size, rows.shape[1]), dtype=rows.dtype)
    grown[: len(rows)] = rows
    return grown
