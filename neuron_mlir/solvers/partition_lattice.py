"""The interval dynamic program over ideals of the graph, which `partition` bisects with.

An ideal is a set of nodes closed under predecessors, held as an integer with bit n for node n. Any cut into stages, in
any topological order, is a chain of ideals, the first empty and the last full; stage k is the difference of two
neighbours. So the best cut is a best path in a graph whose vertices are ideals and whose edges are pairs of them. With
the prefixes of one order as the only ideals it is the textbook interval DP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from neuron_mlir.solvers.certificate import Progress
from neuron_mlir.solvers.partition import PS_PER_S, PartitionProblem, crossing_bytes, evaluate
from neuron_mlir.solvers.partition_table import NEVER, Table, budget

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

_BARRED = np.int64(1 << 61)
"""More than any sum of what is allowed."""
_CHUNK = 512
_DRAM_WEIGHTS = (0, 1, 4, 16, 64, 1024, 1 << 14)
"""How much a chip's DRAM traffic counts beside even stages, tried in turn until it allows the cut."""

_SPARING_WEIGHTS = (8, 16, 64, 1024, 1 << 14, 4, 1, 0)
"""The same where stages of feature maps may or may not pass them through DRAM."""


def ideals(predecessors: Sequence[Sequence[int]], limit: int) -> list[int] | None:
    """All ideals of a graph, smaller ones first; None if there are more than `limit`."""
    needs = [sum(1 << p for p in sources) for sources in predecessors]
    level, found = [0], [0]
    for _ in needs:
        following: dict[int, None] = {}
        for ideal in level:
            for node, need in enumerate(needs):
                if not ideal >> node & 1 and need & ideal == need:
                    following[ideal | 1 << node] = None
            if len(found) + len(following) > limit:
                return None
        level = sorted(following)
        found += level
    return found


def pair_estimate(problem: PartitionProblem, ideal_list: list[int], time_ps: int) -> int:
    """At most how many pairs of these ideals make a stage of at most `time_ps` of compute: the work of a search."""
    times = [n.compute_ps for n in problem.nodes]
    compute = np.sort([sum(t for n, t in enumerate(times) if ideal >> n & 1) for ideal in ideal_list])
    return int((np.searchsorted(compute, compute + time_ps, side="right") - np.arange(len(compute))).sum())


def search(
    problem: PartitionProblem,
    ideal_list: list[int],
    bound: int,
    seed: list[int] | None,
    progress: Progress | None,
    even_out: float = 0.0,
) -> tuple[list[int], int]:
    """The best path through `ideal_list`: (stage of each node, proven lower bound over these ideals).

    `bound` is a lower bound known before, `seed` an assignment known before; the search ends early only if `progress`
    says so. Of the paths no longer than the best by more than `even_out` (relative), one with even stages is taken.
    """
    best = seed
    high = None if seed is None else evaluate(problem, seed).objective
    pairs = _Pairs.build(problem, ideal_list, None if high is None else high + int(even_out * high))
    low, step = bound, max(1, bound >> 6)
    proven = target = low
    while high is None or low < high:
        path = pairs.path_within(problem, target)
        if path is None:
            low = target + 1
            proven = proven if pairs.guessed else low
            target, step = low + step, 2 * step
        else:
            stages = _stages(ideal_list, path, len(problem.nodes))
            objective = evaluate(problem, stages).objective
            if best is None or high is None or objective < high:
                best, high = stages, objective
                pairs = pairs.within(problem, high + int(even_out * high))
            if objective > target and (stricter := pairs.crossed(problem, path, stages, target)) is not None:
                pairs = stricter
                continue
        if high is not None:
            target = (low + high) // 2
            if progress is not None and not progress(high, low):
                break
    assert best is not None and high is not None
    accepted = high + int(even_out * high)
    evened: list[int] | None = None
    trying: _Pairs | None = pairs
    while trying is not None and evened is None:
        pairs, trying = trying, None
        for path in pairs.balanced_paths(problem, accepted):
            stages = _stages(ideal_list, path, len(problem.nodes))
            if evaluate(problem, stages).objective <= accepted:
                evened = stages
                break
            trying = trying or pairs.crossed(problem, path, stages, accepted)
    return evened or best, min(proven, high)


def _stages(ideal_list: list[int], path: list[int], nodes: int) -> list[int]:
    """The stage of each node on a path of ideals (indices, first and last included)."""
    stage_of = [0] * nodes
    for stage, (start, end) in enumerate(pairwise(path)):
        inside = ideal_list[end] & ~ideal_list[start]
        for node in range(nodes):
            if inside >> node & 1:
                stage_of[node] = stage
    return stage_of


@dataclass(frozen=True)
class _Pairs:
    """Pairs (start, end) of ideals with what the stage between them costs, sorted by end."""

    size: int
    crossing: Ints
    """Of each ideal: bytes of the values that leave it."""
    start: Ints
    end: Ints
    compute: Ints
    """With what of the DMA is not hidden behind it."""
    dma: Ints
    dram: Ints
    sent: Ints
    """What is handed on to later stages."""
    host: Ints
    """Of inputs that more than one node reads, which thus may come from the host more than once."""
    again: Ints
    """Of values that come by rows from before the pair: what is read in it and behind it, and so crosses a link twice.
    """
    hosted: int
    """What passes the busier direction of the link to the host however the nodes are cut, but those inputs."""
    received: int
    """The same of the way in."""
    guessed: bool = False
    """Whether `crossing` is more than what is sure to cross."""

    @staticmethod
    def build(problem: PartitionProblem, ideal_list: list[int], limit: int | None) -> _Pairs:
        """All pairs whose compute and DMA take at most `limit` ps."""
        table = Table(problem, ideal_list)
        columns: list[tuple[Ints, ...]] = []
        for first in range(0, len(ideal_list), _CHUNK):
            columns.append(table.columns(first, min(first + _CHUNK, len(ideal_list)), limit))
        start, end, compute, dma, dram, sent, host, again = (
            np.concatenate(parts) for parts in zip(*columns, strict=True)
        )
        once = sum(v.host_bytes for v in problem.values if v.producer is None and len(set(v.consumers)) == 1)
        out = sum(v.host_bytes for v in problem.values if v.producer is not None and v.is_output)
        return _Pairs(
            len(ideal_list),
            table.crossing,
            start,
            end,
            compute,
            dma,
            dram,
            sent,
            host,
            again,
            max(once, out),
            received=once,
        )

    def within(self, problem: PartitionProblem, time_ps: int) -> _Pairs:
        """The pairs whose compute and DMA take at most `time_ps`."""
        keep = (self.compute <= time_ps) & (self.dma <= budget(time_ps, problem.core_bytes_per_s))
        return _Pairs(
            self.size,
            self.crossing,
            self.start[keep],
            self.end[keep],
            self.compute[keep],
            self.dma[keep],
            self.dram[keep],
            self.sent[keep],
            self.host[keep],
            self.again[keep],
            self.hosted,
            self.received,
            self.guessed,
        )

    def crossed(self, problem: PartitionProblem, path: list[int], stages: Sequence[int], time_ps: int) -> _Pairs | None:
        """The same where links cannot be crossed again where this path crosses them, as maps that come by rows to more
        than one stage there take more than a link moves within a time; None if they do not.

        Whether they do depends on the cuts behind, so what is found then is not proven to be the best.
        """
        room = budget(time_ps, problem.link_bytes_per_s)
        crossing = self.crossing.copy()
        for boundary, passing in crossing_bytes(problem, stages).items():
            if passing > room >= crossing[path[boundary]]:
                crossing[path[boundary]] = passing
        return None if (crossing == self.crossing).all() else replace(self, crossing=crossing, guessed=True)

    def path_within(self, problem: PartitionProblem, time_ps: int) -> list[int] | None:
        """A path with every stage, chip and link within `time_ps`: the one with least DRAM traffic chip by chip; or
        None.
        """
        room = budget(time_ps, problem.host_bytes_per_s)
        if self.hosted > room:
            return None
        pairs = self.within(problem, time_ps)
        room -= self.received
        if problem.stages * int(pairs.host.max(initial=0)) > room:
            return pairs._path_with_host(problem, time_ps, room)
        dram = budget(time_ps, problem.dram_bytes_per_s)
        # What the stages so far of this chip stream, per ideal reached: less is never worse, for only their sum
        # matters.
        reached = np.full(self.size, NEVER)
        reached[0] = 0
        history: list[Ints] = [reached]
        weights: list[Ints] = []
        for stage in range(1, problem.stages + 1):
            weights.append(pairs.weight(problem, time_ps, stage))
            reached = self._on(problem, time_ps, stage, pairs.relax(reached, weights[-1]))
            history.append(reached)
        if history[-1][-1] >= NEVER:
            return None
        return pairs.trace(history, weights, dram)

    def weight(self, problem: PartitionProblem, time_ps: int, stage: int) -> Ints:
        """The DRAM bytes of each pair as stage number `stage`, from 1; those barred that as the last of their chip, or
        as the first for what the link brings, would take longer than `time_ps`.
        """
        late = np.zeros(len(self.start), dtype=np.bool_)
        if problem.exposed_link_ps_per_byte and stage in problem.chip_starts:
            late |= self.compute + self.sent * problem.exposed_link_ps_per_byte > time_ps
        if stage - 1 in problem.chip_starts[1:]:
            late |= self._comes_late(problem, time_ps)
        return np.where(late, _BARRED, self.dram) if late.any() else self.dram

    def _comes_late(self, problem: PartitionProblem, time_ps: int) -> Bools:
        """Whether what pairs, and others behind them, read takes a link longer than a time, if a chip begins there."""
        return self.crossing[self.start] + self.again > budget(time_ps, problem.link_bytes_per_s)

    def _on(self, problem: PartitionProblem, time_ps: int, stage: int, reached: Ints) -> Ints:
        """What is within a time once so many stages are done; on a new chip its DRAM has done nothing yet."""
        within = reached <= budget(time_ps, problem.dram_bytes_per_s)
        if stage not in problem.chip_starts:
            return np.where(within, reached, NEVER)
        return np.where(within & (self.crossing <= budget(time_ps, problem.link_bytes_per_s)), np.int64(0), NEVER)

    def _path_with_host(self, problem: PartitionProblem, time_ps: int, room: int) -> list[int] | None:
        """As `path_within`, of pairs that all are within the time, where inputs that more than one stage reads may come
        to more than `room` bytes on the link to the host.

        For each sum of them the least DRAM traffic; a larger sum is kept only where it has less.
        """
        sizes = np.unique(self.host)
        alike = [
            replace(
                self,
                start=self.start[k],
                end=self.end[k],
                compute=self.compute[k],
                dram=self.dram[k],
                sent=self.sent[k],
                again=self.again[k],
            )
            for k in _kinds(self.host)
        ]
        first = np.full(self.size, NEVER)
        first[0] = 0
        history: list[dict[int, Ints]] = [{0: first}]
        for stage in range(1, problem.stages + 1):
            found: dict[int, Ints] = {}
            for total, reached in history[-1].items():
                for size, pairs in zip(sizes.tolist(), alike, strict=True):
                    if total + size <= room:
                        weight = pairs.weight(problem, time_ps, stage)
                        there = self._on(problem, time_ps, stage, pairs.relax(reached, weight))
                        found[total + size] = np.minimum(there, found.get(total + size, NEVER))
            best = np.full(self.size, NEVER)
            kept: dict[int, Ints] = {}
            for total in sorted(found):
                better = found[total] < best
                if better.any():
                    kept[total] = np.where(better, found[total], NEVER)
                    best = np.minimum(best, found[total])
            history.append(kept)
        ends = [total for total, reached in history[-1].items() if reached[-1] < NEVER]
        if not ends:
            return None
        path, total = [self.size - 1], min(ends)
        for stage in range(problem.stages, 0, -1):
            ways: list[tuple[int, int, int]] = []
            for size, pairs in zip(sizes.tolist(), alike, strict=True):
                before = history[stage - 1].get(total - size)
                here = slice(*np.searchsorted(pairs.end, [path[-1], path[-1] + 1]))
                if before is not None and here.start < here.stop:
                    weight = pairs.weight(problem, time_ps, stage)
                    sums = np.minimum(before[pairs.start[here]] + weight[here], NEVER)
                    at = int(np.argmin(sums))
                    ways.append((int(sums[at]), total - size, int(pairs.start[here][at])))
            _, total, start = min(ways)
            path.append(start)
        return path[::-1]

    def balanced_paths(self, problem: PartitionProblem, time_ps: int) -> Iterator[list[int]]:
        """Among paths with every stage within `time_ps` that with the least sum of squared stage times, so that the
        other stages are as short and as even as the longest allows; then paths that weigh DRAM traffic more and more
        beside it, for what a chip's DRAM allows is not looked at here. Where some intervals spare DRAM it weighs much
        from the beginning.
        """
        pairs = self.within(problem, time_ps)
        limit = max(1, time_ps)
        busy = pairs.dma * (PS_PER_S / problem.core_bytes_per_s)
        last = pairs.compute + pairs.sent * problem.exposed_link_ps_per_byte
        dram = pairs.dram / max(1, budget(time_ps, problem.dram_bytes_per_s))
        dram += pairs.host / max(1, budget(time_ps, problem.host_bytes_per_s))
        # With 2^40 for a stage or a DRAM that is busy all the time, sums stay far below 2^61.
        inside, ending = (
            ((np.maximum(compute, busy) / limit) ** 2 * (1 << 40)).astype(np.int64) for compute in (pairs.compute, last)
        )
        ending = np.where(last > time_ps, _BARRED, ending)
        late = np.where(pairs._comes_late(problem, time_ps), _BARRED, 0)
        for weigh in _DRAM_WEIGHTS if problem.intervals is None else _SPARING_WEIGHTS:
            beside = (dram * (weigh << 40)).astype(np.int64)
            weights = [
                np.minimum(
                    (ending if stage in problem.chip_starts else inside)
                    + beside
                    + (late if stage - 1 in problem.chip_starts[1:] else 0),
                    _BARRED,
                )
                for stage in range(1, problem.stages + 1)
            ]
            reached = np.full(self.size, NEVER)
            reached[0] = 0
            history: list[Ints] = [reached]
            for weight in weights:
                reached = pairs.relax(reached, weight)
                history.append(reached)
            if history[-1][-1] >= _BARRED:
                return
            yield pairs.trace(history, weights, int(_BARRED) - 1)

    def relax(self, reached: Ints, weight: Ints) -> Ints:
        """One more stage: the least sum per ideal."""
        result = np.full(self.size, NEVER)
        if not len(self.end):
            return result
        starts = np.flatnonzero(np.diff(self.end, prepend=-1))
        result[self.end[starts]] = np.minimum.reduceat(np.minimum(reached[self.start] + weight, NEVER), starts)
        return result

    def trace(self, history: list[Ints], weights: Sequence[Ints], limit: int) -> list[int]:
        """The path behind the last entry of `history`, each step of which, weighed for its stage, must be within
        `limit`.
        """
        path = [self.size - 1]
        for stage in range(len(history) - 1, 0, -1):
            here = slice(*np.searchsorted(self.end, [path[-1], path[-1] + 1]))
            sums = np.minimum(history[stage - 1][self.start[here]] + weights[stage - 1][here], NEVER)
            best = int(np.argmin(sums))
            assert sums[best] <= limit, "the history does not lead back"
            path.append(int(self.start[here][best]))
        assert path[-1] == 0
        return path[::-1]


def _kinds(host: Ints) -> list[Bools]:
    """Which pairs have each of the amounts there are, in ascending order."""
    return [host == size for size in np.unique(host)]
