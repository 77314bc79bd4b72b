"""Offsets for buffers with live ranges: two alive at the same time must not share bytes, and the peak should be low.

This is *dynamic storage allocation* (Garey and Johnson, SR2; NP-hard). Greedy placement in a few orders, the best one
improved by moving what stands at the peak to the front, comes close on the programs of networks (Pisarchyk and Lee,
"Efficient Memory Management for Deep Neural Net Inference", arXiv:2001.03288, compare such orders). The bound is the
most bytes alive at one time.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neuron_mlir.solvers.certificate import Certificate


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes that are needed from time `lower` to time `upper`, both included."""

    id: int
    lower: int
    upper: int
    size: int
    """Bytes, at least 1."""
    alignment: int = 64
    """The offset is a multiple of this."""
    boundary: int = 0
    """When not 0: the buffer does not cross a multiple of this, unless it is larger and starts at one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An offset for each buffer, by id."""

    offsets: dict[int, int]
    peak: int
    """One past the highest byte used."""
    lower_bound: int
    """No plan of the same buffers has a lower peak."""
    method: str

    def certificate(self, unit: str = "bytes") -> Certificate:
        """Peak and bound in the common form."""
        return Certificate(self.peak, self.lower_bound, unit, self.method)


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
        _check(buffer)
    bound = lower_bound(buffers)
    if not buffers:
        return Plan({}, 0, 0, "empty")
    goal = bound if capacity is None else max(bound, capacity)
    offsets, base, rest = _stack(buffers)
    best: Plan | None = None
    for method, order in _orders(rest):
        candidate = Plan(*_place(order, base), bound, method)
        if best is None or candidate.peak < best.peak:
            best = candidate
        if best.peak <= goal:
            break
    assert best is not None
    if best.peak > goal:
        best = _improve(rest, best, base, goal, effort)
    return Plan({**offsets, **best.offsets}, best.peak, bound, best.method)


def plan_without_sharing(buffers: Sequence[Buffer]) -> Plan:
    """Each buffer has its own bytes at all times, in the order given: the plan of least false dependences."""
    always = [Buffer(b.id, 0, 0, b.size, b.alignment, b.boundary) for b in buffers]
    offsets: dict[int, int] = {}
    end = 0
    for buffer in always:
        _check(buffer)
        offsets[buffer.id] = _fit(buffer, end)
        end = offsets[buffer.id] + buffer.size
    # The bytes lost to alignment depend on the order; they are part of what was asked for.
    return Plan(offsets, end, min(end, lower_bound(always)), "own bytes for each")


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """The most bytes alive at one time, padding between aligned neighbours included where all alignments agree."""
    alignments = {buffer.alignment for buffer in buffers}
    unit = alignments.pop() if len(alignments) == 1 else 1
    events: list[tuple[int, int, int]] = []
    slack = 0
    for buffer in buffers:
        padded = _round_up(buffer.size, unit)
        slack = max(slack, padded - buffer.size)
        events.append((buffer.lower, 1, padded))
        events.append((buffer.upper + 1, 0, -padded))
    live = most = 0
    for _, _, change in sorted(events):
        live += change
        most = max(most, live)
    # The padding after the topmost buffer is not part of the peak.
    return max(0, most - slack)


def check_plan(buffers: Sequence[Buffer], answer: Plan, capacity: int | None = None) -> None:
    """Raise `ValueError` unless offsets are aligned, none alive together overlap, and the numbers are true."""
    if sorted(answer.offsets) != sorted(buffer.id for buffer in buffers):
        raise ValueError("the plan does not name each buffer once")
    peak = 0
    for buffer in buffers:
        offset = answer.offsets[buffer.id]
        if offset < 0 or offset != _fit(buffer, offset):
            raise ValueError(f"buffer {buffer.id} at {offset} is not aligned, or crosses a boundary")
        peak = max(peak, offset + buffer.size)
    for index, first in enumerate(buffers):
        for second in buffers[index + 1 :]:
            if first.upper < second.lower or second.upper < first.lower:
                continue
            a, b = answer.offsets[first.id], answer.offsets[second.id]
            if a < b + second.size and b < a + first.size:
                raise ValueError(f"buffers {first.id} at {a} and {second.id} at {b} are alive together and overlap")
    if peak != answer.peak:
        raise ValueError(f"the peak is {peak}, the plan says {answer.peak}")
    if answer.lower_bound > peak:
        raise ValueError(f"the lower bound {answer.lower_bound} is above the peak {peak}")
    if capacity is not None and peak > capacity:
        raise ValueError(f"the peak {peak} is above the capacity {capacity}")


def _check(buffer: Buffer) -> None:
    if buffer.size < 1 or buffer.alignment < 1 or buffer.lower > buffer.upper or buffer.boundary < 0:
        raise ValueError(f"not a buffer: {buffer}")
    if buffer.boundary % buffer.alignment:
        raise ValueError(f"the boundary must be a multiple of the alignment: {buffer}")


def _orders(buffers: Sequence[Buffer]) -> Iterator[tuple[str, list[Buffer]]]:
    yield "best fit by size", sorted(buffers, key=lambda b: (-b.size, b.lower - b.upper, b.lower, b.id))
    yield "best fit by start", sorted(buffers, key=lambda b: (b.lower, b.lower - b.upper, -b.size, b.id))
    yield "best fit by area", sorted(buffers, key=lambda b: (-b.size * (b.upper - b.lower + 1), b.lower, b.id))
    yield "best fit by length", sorted(buffers, key=lambda b: (b.lower - b.upper, -b.size, b.lower, b.id))


def _stack(buffers: Sequence[Buffer]) -> tuple[dict[int, int], int, list[Buffer]]:
    """What is alive at all times goes to the bottom, the coarsest alignment first: nothing is lost by that.

    Returns its offsets, the first free byte, and the other buffers.
    """
    start, end = min(b.lower for b in buffers), max(b.upper for b in buffers)
    always = [b for b in buffers if b.lower == start and b.upper == end]
    offsets: dict[int, int] = {}
    base = 0
    for buffer in sorted(always, key=lambda b: (-b.boundary, -b.alignment, -b.size, b.id)):
        offsets[buffer.id] = _fit(buffer, base)
        base = offsets[buffer.id] + buffer.size
    return offsets, base, [b for b in buffers if b.id not in offsets]


def _place(order: Sequence[Buffer], base: int) -> tuple[dict[int, int], int]:
    """Each buffer of the order in the tightest gap above `base` that holds it, else above everything alive with it."""
    placed: list[tuple[int, int, int, int]] = []  # offset, end, lower, upper: sorted by offset
    offsets: dict[int, int] = {}
    peak = base
    for buffer in order:
        low, high, size = buffer.lower, buffer.upper, buffer.size
        cursor = base
        chosen, tightest = -1, -1
        for offset, end, lower, upper in placed:
            if lower > high or upper < low:
                continue
            if offset > cursor:
                start = _fit(buffer, cursor)
                if start + size <= offset and (tightest < 0 or offset - cursor < tightest):
                    chosen, tightest = start, offset - cursor
            if end > cursor:
                cursor = end
        if chosen < 0:
            chosen = _fit(buffer, cursor)
        offsets[buffer.id] = chosen
        insort(placed, (chosen, chosen + size, low, high))
        peak = max(peak, chosen + size)
    return offsets, peak


def _improve(buffers: Sequence[Buffer], best: Plan, base: int, goal: int, effort: int) -> Plan:
    """Place first what stood at the peak, again and again."""
    order = next(order for method, order in _orders(buffers) if method == best.method)
    offsets = best.offsets
    for _ in range(effort if order else 0):
        peak = max(offsets[b.id] + b.size for b in order)
        top = [b for b in order if offsets[b.id] + b.size == peak]
        if order[: len(top)] == top:
            break
        order = top + [b for b in order if b not in top]
        offsets, reached = _place(order, base)
        if reached < best.peak:
            best = Plan(offsets, reached, best.lower_bound, "best fit, what stood at the peak first")
            if best.peak <= goal:
                break
    return best


def _fit(buffer: Buffer, offset: int) -> int:
    """The first allowed offset at or after `offset`."""
    start = _round_up(offset, buffer.alignment)
    if buffer.boundary:
        room = buffer.boundary - start % buffer.boundary
        if room < buffer.size and room != buffer.boundary:
            start += room
    return start


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
