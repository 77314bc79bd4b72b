"""What a memory plan is: buffers with live ranges, offsets for them, and when they are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

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


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """The most bytes alive at one time, with the padding that alignment makes unavoidable.

    Buffers whose alignment is a multiple of some unit take whole units of it, each its own, but for the topmost. So
    their padded bytes are a bound, for every unit: what is aligned less may lie in the padding.
    """
    units = {buffer.alignment for buffer in buffers} | {gcd(*(buffer.alignment for buffer in buffers))}
    return max((_padded_bytes(buffers, unit) for unit in sorted(units) if unit), default=0)


def _padded_bytes(buffers: Sequence[Buffer], unit: int) -> int:
    events: list[tuple[int, int, int]] = []
    slack = 0
    for buffer in buffers:
        if buffer.alignment % unit:
            continue
        padded = round_up(buffer.size, unit)
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
        if offset < 0 or offset != fit(buffer, offset):
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


def check_buffer(buffer: Buffer) -> None:
    """Raise `ValueError` for a buffer that is not well formed."""
    if buffer.size < 1 or buffer.alignment < 1 or buffer.lower > buffer.upper or buffer.boundary < 0:
        raise ValueError(f"not a buffer: {buffer}")
    if buffer.boundary % buffer.alignment:
        raise ValueError(f"the boundary must be a multiple of the alignment: {buffer}")


def fit(buffer: Buffer, offset: int) -> int:
    """The first allowed offset at or after `offset`."""
    start = round_up(offset, buffer.alignment)
    if buffer.boundary:
        room = buffer.boundary - start % buffer.boundary
        if room < buffer.size and room != buffer.boundary:
            start += room
    return start


def round_up(value: int, unit: int) -> int:
    """The first multiple of `unit` at or after `value`."""
    return -(-value // unit) * unit
