"""Greedy placement in a few orders, and improvement by moving what stands at the peak to the front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from neuron_mlir.solvers.memory_plan.model import Buffer, Plan, fit


def orders(buffers: Sequence[Buffer]) -> Iterator[tuple[str, list[Buffer]]]:
    """Named orders in which to place."""
    yield "best fit by size", sorted(buffers, key=lambda b: (-b.size, b.lower - b.upper, b.lower, b.id))
    yield "best fit by start", sorted(buffers, key=lambda b: (b.lower, b.lower - b.upper, -b.size, b.id))
    yield "best fit by area", sorted(buffers, key=lambda b: (-b.size * (b.upper - b.lower + 1), b.lower, b.id))
    yield "best fit by length", sorted(buffers, key=lambda b: (b.lower - b.upper, -b.size, b.lower, b.id))


def stack(buffers: Sequence[Buffer]) -> tuple[dict[int, int], int, list[Buffer]]:
    """What is alive at all times goes to the bottom, the coarsest alignment first: nothing is lost by that.

    Returns its offsets, the first free byte, and the other buffers.
    """
    start, end = min(b.lower for b in buffers), max(b.upper for b in buffers)
    always = [b for b in buffers if b.lower == start and b.upper == end]
    offsets: dict[int, int] = {}
    base = 0
    for buffer in sorted(always, key=lambda b: (-b.boundary, -b.alignment, -b.size, b.id)):
        offsets[buffer.id] = fit(buffer, base)
        base = offsets[buffer.id] + buffer.size
    return offsets, base, [b for b in buffers if b.id not in offsets]


def place(order: Sequence[Buffer], base: int) -> tuple[dict[int, int], int]:
    """Each buffer of the order in the tightest gap above `base` that holds it, else above everything alive with it."""
    import numpy as np

    lower = np.array([b.lower for b in order], np.int64)
    upper = np.array([b.upper for b in order], np.int64)
    placed: list[tuple[int, int]] = []  # Offset and end of each, in order.
    peak = base
    for number, buffer in enumerate(order):
        size = buffer.size
        cursor = base
        chosen, tightest = -1, -1
        # Of thousands of buffers most are not alive together.
        beside = ((lower[:number] <= buffer.upper) & (upper[:number] >= buffer.lower)).nonzero()[0]
        for offset, end in sorted([placed[n] for n in beside.tolist()]):
            if offset > cursor:
                start = fit(buffer, cursor)
                if start + size <= offset and (tightest < 0 or offset - cursor < tightest):
                    chosen, tightest = start, offset - cursor
            if end > cursor:
                cursor = end
        if chosen < 0:
            chosen = fit(buffer, cursor)
        placed.append((chosen, chosen + size))
        peak = max(peak, chosen + size)
    return {b.id: offset for b, (offset, _) in zip(order, placed, strict=True)}, peak


def improve(buffers: Sequence[Buffer], best: Plan, base: int, goal: int, effort: int) -> Plan:
    """Place first what stood at the peak, again and again."""
    order = next(order for method, order in orders(buffers) if method == best.method)
    offsets = best.offsets
    for _ in range(effort if order else 0):
        peak = max(offsets[b.id] + b.size for b in order)
        top = [b for b in order if offsets[b.id] + b.size == peak]
        if order[: len(top)] == top:
            break
        order = top + [b for b in order if b not in top]
        offsets, reached = place(order, base)
        if reached < best.peak:
            best = Plan(offsets, reached, best.lower_bound, "best fit, what stood at the peak first")
            if best.peak <= goal:
                break
    return best
