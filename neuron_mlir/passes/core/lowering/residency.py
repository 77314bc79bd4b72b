"""Which weights stay in SBUF for good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xdsl.ir import Operation


@dataclass
class Residency:
    """Shares SBUF out to the constants of a stage, in the order of their layers.

    The first time a stage is lowered nobody knows how much there is: who comes first is served, while there is room. If
    that is too much in all, the stage is lowered again with the `total` known. What is streamed then is spread over the
    time of a request: transfers go on, at an even rate, while layers without weights, or with weights that stay,
    compute. A region of SBUF that constants pass through evens out what is left.
    """

    budget: int
    """Bytes per partition to share out."""
    total: int | None = None
    """What is asked for in all, if known."""
    spans: Mapping[Operation, int] = field(default_factory=dict[Operation, int])
    """How long layers take, ps."""
    asked: int = 0
    kept: int = 0
    rows: int = 0
    """What rows that every partition wants ask for; kept once, not on each, they take next to nothing."""
    held: int = 0
    """What depth-first groups ask for. A group holds all its weights while it runs: if SBUF is fullest there, keeping
    them for good takes no more."""
    only_held: bool = False
    """Whether that alone stays."""
    elapsed: int = 0

    def begin(self, layer: Operation) -> None:
        """What is asked for next is of this layer."""
        self.elapsed += self.spans.get(layer, 0)

    def take(self, size: int, pieces: int = 1, row: bool = False, held: bool = False) -> int:
        """How many of so many pieces of a constant, each of `size` bytes per partition, stay."""
        room = self.budget - self.kept
        if self.only_held:
            count = pieces if held and size * pieces <= room else 0
        elif self.total is None or self.total <= self.budget:
            count = pieces if size * pieces <= room else 0
        else:
            streamed = self.asked - self.kept
            due = self._due(size * pieces) - streamed
            # The nearest number of pieces; what is over or short is left to those that follow.
            count = pieces - max(0, min(pieces, (2 * due + size) // (2 * size)))
            count = min(count, room // size)
        self.asked += size * pieces
        self.rows += size * pieces if row else 0
        self.held += size * pieces if held else 0
        self.kept += count * size
        return count

    def _due(self, size: int) -> int:
        """What should have been streamed when the next constant, of `size` bytes, has been used."""
        assert self.total is not None
        time = sum(self.spans.values())
        if time:
            return (self.total - self.budget) * self.elapsed // time
        return (self.total - self.budget) * (self.asked + size) // self.total
