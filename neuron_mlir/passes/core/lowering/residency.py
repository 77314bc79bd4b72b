"""Which weights stay in SBUF for good."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Residency:
    """Shares SBUF out to the constants of a stage, in the order of their layers.

    The first time a stage is lowered nobody knows how much there is: who comes first is served, while there is room. If
    that is too much in all, the stage is lowered again with the `total` known, and of what has been asked for so far
    the same part stays everywhere: then what is streamed is spread over the request, and transfers go on while layers,
    or parts of layers, compute with what stays.
    """

    budget: int
    """Bytes per partition to share out."""
    total: int | None = None
    """What is asked for in all, if known."""
    asked: int = 0
    kept: int = 0
    rows: int = 0
    """What rows that every partition wants ask for; kept once, not on each, they take next to nothing."""

    def take(self, size: int, pieces: int = 1, row: bool = False) -> int:
        """How many of so many pieces of a constant, each of `size` bytes per partition, stay."""
        self.asked += size * pieces
        self.rows += size * pieces if row else 0
        room = self.budget - self.kept
        if self.total is None or self.total <= self.budget:
            count = pieces if size * pieces <= room else 0
        else:
            due = self.asked * self.budget // self.total - self.kept
            # Of what cannot be divided the nearer choice; what is not taken is left to those that follow.
            count = int(2 * due >= size) if pieces == 1 else due // size
            count = max(0, min(count, pieces, room // size))
        self.kept += count * size
        return count
