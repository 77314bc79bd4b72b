"""Which method plans what: greedy orders first, the exact search behind them."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_mlir.solvers.memory_plan.greedy import improve, orders, place, stack
from neuron_mlir.solvers.memory_plan.model import Buffer, Plan, check_buffer, fit, lower_bound


def plan(buffers: Sequence[Buffer], capacity: int | None = None, *, effort: int = 24) -> Plan:
    """A plan of low peak.

    Args:
        buffers: with distinct ids; order does not matter.
        capacity: bytes there are. A plan within it is good enough; without it the search goes on to the lower bound.
        effort: how many improved orders to try when the greedy ones are above both capacity and bound.

    The plan may exceed the capacity: the caller compares `peak`. Raises `ValueError` for a buffer that is not well
    formed.
    """
    for buffer in buffers:
        check_buffer(buffer)
    bound = lower_bound(buffers)
    if not buffers:
        return Plan({}, 0, 0, "empty")
    goal = bound if capacity is None else max(bound, capacity)
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
    return Plan({**offsets, **best.offsets}, best.peak, bound, best.method)


def plan_without_sharing(buffers: Sequence[Buffer]) -> Plan:
    """Each buffer has its own bytes at all times, in the order given: the plan of least false dependences."""
    always = [Buffer(b.id, 0, 0, b.size, b.alignment, b.boundary) for b in buffers]
    offsets: dict[int, int] = {}
    end = 0
    for buffer in always:
        check_buffer(buffer)
        offsets[buffer.id] = fit(buffer, end)
        end = offsets[buffer.id] + buffer.size
    # The bytes lost to alignment depend on the order; they are part of what was asked for.
    return Plan(offsets, end, min(end, lower_bound(always)), "own bytes for each")
