"""The exact search in many orders, each with little work at first and then with more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from neuron_mlir.solvers.memory_plan.joining import Joined, join
from neuron_mlir.solvers.memory_plan.matching import match
from neuron_mlir.solvers.memory_plan.model import Buffer
from neuron_mlir.solvers.memory_plan.search import REPORT_EACH, Outcome, Packing

DEFAULT_WORK = 300_000_000
"""Steps of the inner loops: about half a minute of a CPU of 2024."""

_FIRST = 60
"""Work of the first attempts, for each pair of buffers that are alive together."""


def pack(
    buffers: Sequence[Buffer],
    capacity: int,
    *,
    base: int = 0,
    work: int = DEFAULT_WORK,
    report: Callable[[], bool] | None = None,
) -> Outcome:
    """Offsets at or above `base` and within the capacity, or none: then complete when there are none.

    Attempts go round: joined buffers in fixed orders, all buffers in fixed orders, and in each round two drawn joins
    and drawn orders more; each round has twice the work of the one before. `report` is called now and then, and returns
    False to stop.
    """
    stopped = False

    def watch() -> bool:
        nonlocal stopped
        stopped = stopped or (report is not None and not report())
        return not stopped

    pairs = _pairs(buffers)
    if 2 * pairs > work:
        return Outcome(None, False, 0)
    whole = Packing(buffers, capacity, base)
    spent, share = pairs, _FIRST * pairs
    models: list[tuple[Packing, Joined | None]] = []
    matches = whole.plain and whole.limit == capacity
    """Whether sizes are whole: sums of them say what they take."""

    def add(to: list[tuple[Packing, Joined | None]], at: int, joined: Joined) -> None:
        known = [j.buffers for _, j in to if j]
        if len(joined.buffers) < len(buffers) and joined.buffers not in known:
            to.insert(at, (Packing(joined.buffers, capacity, base), joined))

    def matched(seed: int) -> Joined:
        nonlocal spent
        found, steps = match(buffers, (work - spent) // 8, seed)
        spent += steps
        return found

    if matches:
        add(models, 0, matched(0))
    for seed in (0, 1):
        add(models, len(models), join(buffers, seed))
    models.append((whole, None))
    drawn, told = 1, 0
    while spent < work:
        drawn += 1
        tried = list(models)
        add(tried, len(tried) - 1, join(buffers, drawn))
        if matches:
            add(tried, 0, matched(drawn))
        for packing, joined in tried:
            for order in _orders(packing, drawn):
                answer = packing.search(order, min(share, work - spent), watch)
                spent += answer.work
                if answer.offsets is not None:
                    offsets = joined.expand(answer.offsets) if joined else list(answer.offsets)
                    return Outcome(offsets, True, spent)
                if answer.complete:
                    if joined is None:
                        return Outcome(None, True, spent)
                    # Not with these joins.
                    models = [m for m in models if m[0] is not packing]
                    break
                if spent > told + REPORT_EACH and not stopped:
                    told = spent
                    watch()
                if spent >= work or stopped:
                    return Outcome(None, False, spent)
        share *= 2
    return Outcome(None, False, spent)


def _pairs(buffers: Sequence[Buffer]) -> int:
    """How many pairs are alive together, each counted from both sides, and a buffer with itself."""
    live = pairs = 0
    for _, starts in sorted([(b.lower, 1) for b in buffers] + [(b.upper + 1, 0) for b in buffers]):
        pairs += 2 * live + 1 if starts else 0
        live += 1 if starts else -1
    return pairs


def _orders(packing: Packing, seed: int) -> Iterator[list[int]]:
    """Positions of buffers in the order in which they are tried: those that leave least choice first."""
    everything = range(len(packing.buffers))
    wide = [packing.end[i] - packing.first[i] for i in everything]
    long = [b.upper - b.lower + 1 for b in packing.buffers]
    area = [length * size for length, size in zip(long, packing.sizes, strict=True)]
    total = [max(packing.totals[packing.first[i] : packing.end[i]]) for i in everything]
    size = packing.sizes
    yield sorted(everything, key=lambda i: (-wide[i], -area[i], -total[i]))
    yield sorted(everything, key=lambda i: (-total[i], -area[i], -wide[i]))
    yield sorted(everything, key=lambda i: (-total[i], -wide[i], -area[i]))
    yield sorted(everything, key=lambda i: (-long[i], -size[i]))
    yield sorted(everything, key=lambda i: (-size[i], -long[i]))
    random = Random(seed)
    yield sorted(everything, key=lambda i: -area[i] * random.uniform(0.2, 1.0))
    yield sorted(everything, key=lambda i: -wide[i] * random.uniform(0.2, 1.0))
