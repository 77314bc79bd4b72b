"""Which method plans what: greedy orders first, the exact search behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

from neuron_mlir.solvers.certificate import Progress
from neuron_mlir.solvers.memory_plan.exact import pack
from neuron_mlir.solvers.memory_plan.greedy import improve, orders, place, stack
from neuron_mlir.solvers.memory_plan.model import Buffer, Plan, check_buffer, fit, lower_bound, round_up

DEFAULT_WORK = 8_000_000
"""Work of the exact search in a compile: less than a second."""


def plan(
    buffers: Sequence[Buffer],
    capacity: int | None = None,
    *,
    effort: int = 24,
    work: int = DEFAULT_WORK,
    report: Progress | None = None,
) -> Plan:
    """A plan of low peak.

    Args:
        buffers: with distinct ids; order does not matter.
        capacity: bytes there are. A plan within it is good enough; without it the search goes on to the lower bound.
        effort: how many improved orders to try when the greedy ones are above both capacity and bound.
        work: steps of the exact search when those are too; some 10 million a second. 0: no such search.
        report: called with the best peak and the bound so far; returns False to stop.

    The plan may exceed the capacity: the caller compares `peak`. If `lower_bound` exceeds it as well, there is none.
    Raises `ValueError` for a buffer that is not well formed.
    """
    for buffer in buffers:
        check_buffer(buffer)
    bound = lower_bound(buffers)
    if not buffers:
        return Plan({}, 0, 0, "empty")
    goal = bound if capacity is None else max(bound, capacity)
    crowned = _crowned(buffers, bound, goal, capacity, effort, work // 2, report)
    if crowned is not None and crowned.peak <= goal:
        return crowned
    best = _plan(buffers, bound, goal, capacity, effort, work if crowned is None else work // 2, report)
    return best if crowned is None or best.peak < crowned.peak else replace(crowned, lower_bound=best.lower_bound)


def _plan(
    buffers: Sequence[Buffer],
    bound: int,
    goal: int,
    capacity: int | None,
    effort: int,
    work: int,
    report: Progress | None,
) -> Plan:
    """A plan with what is alive at all times at the bottom, or wherever the search puts it."""
    offsets, base, rest = stack(buffers)
    best: Plan | None = None
    for method, order in orders(rest):
        candidate = Plan(*place(order, base), bound, method)
        if best is None or candidate.peak < best.peak:
            best = candidate
        if best.peak <= goal:
            break
    assert best is not None
    if best.peak > goal:
        best = improve(rest, best, base, goal, effort)
    hopeless = capacity is not None and bound > capacity
    if best.peak > goal and work and not hopeless:
        best = _search(buffers, rest, best, base, goal, work, report, only_goal=capacity is not None)
    return Plan({**offsets, **best.offsets}, best.peak, best.lower_bound, best.method)


def _crowned(
    buffers: Sequence[Buffer],
    bound: int,
    goal: int,
    capacity: int | None,
    effort: int,
    work: int,
    report: Progress | None,
) -> Plan | None:
    """A plan with those on top that are alive at all times and of which some size would put others out of line; None
    where there are none, or all others are.

    At the bottom they push what is aligned more coarsely up by their padding; on top nothing is padded.
    """
    start, end = min(b.lower for b in buffers), max(b.upper for b in buffers)
    others = [b for b in buffers if b.lower != start or b.upper != end]
    coarsest = max((b.alignment for b in others), default=0)
    if not coarsest or any(b.boundary for b in buffers):
        return None
    top = [b for b in buffers if b.lower == start and b.upper == end and b.size % coarsest]
    if not top:
        return None
    taken = {b.id for b in top}
    inner = [b for b in buffers if b.id not in taken]
    least = lower_bound(inner)
    room = goal - sum(b.size for b in top)
    below = _plan(
        inner, least, least if capacity is None else max(least, room), capacity and room, effort, work, report
    )
    order = sorted(top, key=lambda b: (-b.alignment, -b.size % b.alignment, -b.size, b.id))
    offsets, peak = place(order, below.peak)
    return Plan({**below.offsets, **offsets}, peak, bound, below.method)


def plan_without_sharing(buffers: Sequence[Buffer]) -> Plan:
    """Each buffer has its own bytes at all times: the plan of least false dependences.

    In the order given, unless that loses bytes to alignment which another order saves.
    """
    always = [Buffer(b.id, 0, 0, b.size, b.alignment, b.boundary) for b in buffers]
    bound = lower_bound(always)
    offsets: dict[int, int] = {}
    end = 0
    for buffer in always:
        check_buffer(buffer)
        offsets[buffer.id] = fit(buffer, end)
        end = offsets[buffer.id] + buffer.size
    if end > bound:
        # The coarsest first; the others fill the gaps between them. The one that pads most goes last of its kind.
        order = sorted(always, key=lambda b: (-b.boundary, -b.alignment, -b.size % b.alignment, -b.size, b.id))
        denser, peak = place(order, 0)
        if peak < end:
            offsets, end = denser, peak
    return Plan(offsets, end, bound, "own bytes for each")


def _below_is_free(buffers: Sequence[Buffer], rest: Sequence[Buffer], base: int) -> bool:
    """Whether what is alive at all times may lie below the rest, up to `base`, without making any plan impossible.

    Take it out of a plan and let what is above it sink: that stays aligned if its sizes are multiples of all alignments
    in the rest. Otherwise it may fill what alignment leaves between two buffers of the rest.
    """
    above = {b.id for b in rest}
    always = [b for b in buffers if b.id not in above]
    aligned = all(a.size % alignment == 0 for alignment in sorted({b.alignment for b in rest}) for a in always)
    return aligned and base == sum(a.size for a in always) and not any(b.boundary for b in buffers)


def _search(
    buffers: Sequence[Buffer],
    rest: Sequence[Buffer],
    best: Plan,
    base: int,
    goal: int,
    work: int,
    report: Progress | None,
    only_goal: bool,
) -> Plan:
    """Try the goal; if there is more work to spend, and not `only_goal`, halve what is between bound and best."""
    bound = best.lower_bound
    # Peaks are sums of sizes and alignments.
    unit = gcd(*(b.size for b in buffers), *(b.alignment for b in buffers))
    if not _below_is_free(buffers, rest, base):
        rest, base = buffers, 0
    stopped = False

    def watch() -> bool:
        nonlocal stopped
        stopped = stopped or (report is not None and not report(best.peak, bound))
        return not stopped

    capacity = goal
    while best.peak > max(goal, bound) and work > 0 and not stopped:
        last = only_goal or capacity + unit >= best.peak
        found = pack(rest, capacity, base=base, work=work if last else work * 3 // 4, report=watch)
        work -= found.work
        if found.offsets is not None:
            placed = {b.id: offset for b, offset in zip(rest, found.offsets, strict=True)}
            peak = max([base, *(placed[b.id] + b.size for b in rest)])
            best = Plan({**best.offsets, **placed}, peak, bound, "exact search")
        elif found.complete:
            bound = round_up(capacity + 1, unit)
            best = Plan(best.offsets, best.peak, bound, best.method)
        elif last:
            break
        else:
            # Too hard: at least a little better than the best.
            capacity = best.peak - unit
            continue
        if only_goal:
            break
        capacity = bound + (best.peak - bound) // (2 * unit) * unit
    method = best.method
    if best.peak == bound > goal:
        method += ", proven by exact search"
    return Plan(best.offsets, best.peak, min(bound, best.peak) if not only_goal else bound, method)
