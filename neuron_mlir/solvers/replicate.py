"""Spending cores on copies of pipeline stages: the slowest stage, divided by its copies, as fast as possible.

A stage of time `t` with `n` copies that take requests in turn finishes one every `t / n`. With `cores` to spend, the
least achievable bottleneck is found greedily: the next core goes to the stage that is slowest now. That is optimal: any
plan with a lower bottleneck `T` gives every stage at least `ceil(t / T)` cores. The stage the greedy plan leaves at
more than `T` then needs one more than it has, and no other stage has one that it does not need (marginal allocation, as
in Ibaraki and Katoh, Resource Allocation Problems, 1988).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.certificate import Certificate


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of each stage, and the certificate of the slowest: picoseconds per request, rounded up."""

    counts: tuple[int, ...]
    certificate: Certificate


def spread(times_ps: Sequence[int], cores: int, least: Sequence[int] | None = None) -> Copies:
    """The copies of each stage that make the slowest fastest, with no more cores than that takes.

    Args:
        times_ps: what one core takes for a request, of each stage.
        cores: to spend at most.
        least: copies that each stage has in any case; 1 by default.

    Raises:
        NeuronError: not even the least fits.
    """
    counts = [1] * len(times_ps) if least is None else list(least)
    used = sum(counts)
    if used > cores:
        raise NeuronError("there are more stages than cores to spend", resource="cores", needed=used, available=cores)
    heap = [(-time / count, index) for index, (time, count) in enumerate(zip(times_ps, counts, strict=True))]
    heapq.heapify(heap)
    best, best_time = tuple(counts), _slowest(times_ps, counts)
    while used < cores and heap and heap[0][0] < 0:
        _, index = heapq.heappop(heap)
        counts[index] += 1
        used += 1
        heapq.heappush(heap, (-times_ps[index] / counts[index], index))
        time = _slowest(times_ps, counts)
        # Cores that only equalise stages which are as slow together are not worth it until the last of them has one.
        if time < best_time:
            best, best_time = tuple(counts), time
    return Copies(best, Certificate(best_time, best_time, "ps", "greedy, exact"))


def fewest_cores(times_ps: Sequence[int], bottleneck_ps: int) -> int:
    """The cores it takes for every stage to finish a request within `bottleneck_ps` of the one before."""
    return sum(max(1, -(-time // bottleneck_ps)) for time in times_ps)


def _slowest(times_ps: Sequence[int], counts: Sequence[int]) -> int:
    return max((-(-time // count) for time, count in zip(times_ps, counts, strict=True)), default=0)
