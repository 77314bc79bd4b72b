"""A lower bound for graphs with too many ideals: some groups loosened until the ideals of the others are few.

A group that many others may run beside, such as an output early in the graph, multiplies the ideals. Here such groups
are loosened: their costs may be spread over devices as one likes, their transfers are left out, and of their order is
kept what binds them to the others: what a group inside an ideal needs is done by the devices so far, what needs a
group outside is done by those left. Every plan of the whole graph is a plan of this problem with loads no larger. Its
least load is found by a dynamic program over the ideals of the others that keeps the least sum of the loads so far:
beside that sum the loosened costs must find room.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from neuron_mlir.solvers.device_partition_graph import Contracted
from neuron_mlir.solvers.device_partition_lattice import Ideals, OutOfWork, Work, unpack

if TYPE_CHECKING:
    from neuron_mlir.solvers.device_partition_lattice import Bools, Floats

_IDEALS_MAX = (2_000, 15_000, 60_000)
"""Ideals of the groups kept, in turn: few give most of the bound soon."""
_CELLS_MAX = 40_000_000
_GROUPS_MAX = 4000
_PRECISION = 5e-4
_STARTS, _ENDS = 256, 4096
_BUILD_WORK = 40e-6
"""About CPU seconds for a group of a smaller graph, and its place in ideals."""
_ROUNDING = 1 + 1e-10
"""Sums of loads are held in float64: what exceeds a limit by less is taken to keep it."""


def relaxed_bound(graph: Contracted, low: int, high: int, work: Work) -> int:
    """A load below which there is no plan, at least `low`, and at most `high` as a better one is not looked for.

    Ends early, with what is proven, when the work is used up.
    """
    if low >= high or len(graph.cost) > _GROUPS_MAX:
        return low
    try:
        ahead = _reach(graph)
        removal = _removal(ahead, work)
        for limit in _IDEALS_MAX:
            relaxation = _Relaxation.build(graph, ahead, removal, limit, work)
            above = high if relaxation is not None else low
            while relaxation is not None and above - low > _PRECISION * high:
                load = low + (above - low) // 3
                if relaxation.allows(load, work):
                    above = load
                else:
                    low = load + 1
    except OutOfWork:
        pass
    return low


class _Relaxation:
    """The ideals of the groups kept, and what of the loosened costs is bound to each."""

    def __init__(self, ideals: Ideals, loose: int, before: Floats, after: Floats) -> None:
        self.ideals = ideals
        self.loose = loose
        """The cost of all loosened groups."""
        self.before = before
        """Per ideal: of those that something inside needs."""
        self.after = after
        """Per ideal: of those that need something outside."""

    @staticmethod
    def build(graph: Contracted, ahead: Bools, removal: list[int], limit: int, work: Work) -> _Relaxation | None:
        """Loosen as few groups as leave the rest with no more than `limit` ideals."""
        count = len(graph.cost)
        least, most, ideals = 0, count, None
        while least < most:
            # Few loosened groups are wanted, and the enumeration of many ideals costs most: close in from above.
            middle = (least + most) // 2
            kept = _kept(graph, ahead, sorted(removal[middle:]))
            found = Ideals.enumerate(kept, limit, _CELLS_MAX)
            size = limit * len(kept.handovers) if found is None else found.state.size
            work.spend(min(_CELLS_MAX, size) * 2.5e-9 + len(kept.cost) * _BUILD_WORK)
            if found is None:
                least = middle + 1
            else:
                most, ideals = middle, found
        if ideals is None or len(ideals) < 3:
            return None
        keep, loose = np.array(sorted(removal[most:])), np.array(sorted(removal[:most]), dtype=np.int64)
        costs = np.array(graph.cost, dtype=np.float64)[loose]
        needed, needing = ahead[np.ix_(loose, keep)], ahead[np.ix_(keep, loose)]
        before, after = np.zeros(len(ideals)), np.zeros(len(ideals))
        for first in range(0, len(ideals), _ENDS):
            part = slice(first, first + _ENDS)
            inside = unpack(ideals.members[part], len(keep)).astype(np.float32)
            before[part] = (inside @ needed.T.astype(np.float32) > 0) @ costs
            after[part] = ((1 - inside) @ needing.astype(np.float32) > 0) @ costs
            work.spend(inside.size * len(loose) * 2 * 0.2e-9)
        return _Relaxation(ideals, int(costs.sum()), before, after)

    def allows(self, load: int, work: Work) -> bool:
        """Whether the relaxed problem has a plan with no device above `load`."""
        ideals, devices = self.ideals, self.ideals.graph.devices
        outside = (ideals.graph.total - ideals.cost + ideals.crossing).astype(np.float64)
        limit = load * _ROUNDING
        least = np.full(len(ideals), np.inf)
        least[0] = 0
        for left in range(devices - 1, -1, -1):
            hopeful = outside + self.after <= left * limit
            following = least.copy()
            reached = np.flatnonzero(np.isfinite(least))
            for begin in range(0, len(reached), _STARTS):
                starts = reached[begin : begin + _STARTS]
                high = int(np.searchsorted(ideals.cost, ideals.cost[starts[-1]] + load, side="right"))
                ends = np.flatnonzero(hopeful[starts[0] + 1 : high]) + starts[0] + 1
                for chunk in range(0, len(ends), _ENDS):
                    part = ends[chunk : chunk + _ENDS]
                    steps = ideals.loads(starts, part, work)
                    steps[steps > load] = np.inf
                    following[part] = np.minimum(following[part], (steps + least[starts][:, None]).min(axis=0))
            following[~hopeful | (following + self.before > (devices - left) * limit)] = np.inf
            following[following + outside + self.loose > devices * limit] = np.inf
            least = following
        return bool(np.isfinite(least[-1]))


def _reach(graph: Contracted) -> Bools:
    """Entry (a, b): whether there is a path from group a to group b."""
    count = len(graph.cost)
    ahead = np.zeros((count, count), dtype=np.bool_)
    for group in range(count - 1, -1, -1):
        for user in graph.users[group]:
            ahead[group] |= ahead[user]
            ahead[group, user] = True
    return ahead


def _removal(ahead: Bools, work: Work) -> list[int]:
    """The groups in the order of loosening: always the one that may run beside most of those left."""
    count = len(ahead)
    beside = ~(ahead | ahead.T)
    np.fill_diagonal(beside, False)
    many = beside.sum(axis=0)
    order: list[int] = []
    for _ in range(count):
        chosen = int(many.argmax())
        order.append(chosen)
        many -= beside[chosen]
        many[chosen] = -(1 << 30)
    work.spend(count * count * 2e-9)
    return order


def _kept(graph: Contracted, ahead: Bools, keep: list[int]) -> Contracted:
    """The graph of some of its groups, in their order as it is on the whole graph."""
    number = {group: n for n, group in enumerate(keep)}
    between = ahead[np.ix_(keep, keep)]
    handovers = [
        (number[maker], inside, transfer)
        for maker, users, transfer in graph.handovers
        if maker in number and (inside := tuple(number[u] for u in users if u in number))
    ]
    return replace(
        graph,
        members=tuple(graph.members[g] for g in keep),
        cost=tuple(graph.cost[g] for g in keep),
        room=tuple(graph.least_room[g] for g in keep),
        least_room=tuple(graph.least_room[g] for g in keep),
        handovers=tuple(handovers),
        edges=direct_pairs(between),
    )


def direct_pairs(between: Bools) -> tuple[tuple[int, int], ...]:
    """Of all pairs with a path from the first to the second, those that no other group lies between, sorted.

    All pairs say the same, but of a chain of a thousand groups they are half a million.
    """
    packed = np.packbits(between, axis=0, bitorder="little").T
    before = [int.from_bytes(row.tobytes(), "little") for row in packed]
    edges: list[tuple[int, int]] = []
    for group, left in enumerate(before):
        while left:
            # What it needs with the largest number is needed by nothing else that it needs.
            maker = left.bit_length() - 1
            edges.append((maker, group))
            left &= ~(before[maker] | 1 << maker)
    return tuple(sorted(edges))
