"""Undo cuts: buffers that together fill a rectangle of time and bytes are planned as one.

Where no byte may be lost, what ends at a moment leaves exactly the bytes of what starts then. Some of the buffers alive
from `l` to `m` that have as many bytes as some of those alive from `m` to `u` are likely the two halves of a rectangle
from `l` to `u`: sums of a few sizes are seldom equal by chance. So are five buffers around one another, a *pinwheel*,
whose sizes agree twice. What was found is one buffer, which may be part of a larger rectangle.

As with other joins (`neuron_mlir.solvers.memory_plan.joining`), only an answer "yes" carries over to the buffers
themselves: two rectangles beside each other agree in their sums as well and are none. So of what is hardly chance the
fewest buffers go first; each seed draws what is hardly chance, and another order of those that are about as likely.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import combinations, product
from math import comb, log
from random import Random

from neuron_mlir.solvers.memory_plan.joining import Joined
from neuron_mlir.solvers.memory_plan.model import Buffer

_SUBSETS = 600
"""Sets of buffers of one live range that are added up; of many buffers only pairs and triples are."""


_STACKS = 60
"""The same, for each side of a pinwheel."""
_CHANCE = 0.0
"""Logarithm of how many like it may be expected by chance: of what is joined at all."""
_SURE = -5.0
"""Of what counts as hardly chance."""
_SURE_WHEEL = -3.0
"""Of a pinwheel that is joined."""


@dataclass(eq=False, slots=True)
class _Block:
    """Bytes that stay together: its parts are positions of buffers, with their offsets in the block."""

    lower: int
    upper: int
    """The first moment after it."""
    size: int
    parts: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Match:
    """Two sets of one sum, the second starting as the first ends."""

    chance: float
    """Logarithm of how many such sums are expected by chance, about."""
    left: tuple[_Block, ...]
    right: tuple[_Block, ...]

    def rank(self, sure: float) -> tuple[bool, int, float]:
        """The least goes first."""
        return self.chance > sure, len(self.left) + len(self.right), self.chance


def match(buffers: Sequence[Buffer], work: int, seed: int = 0) -> tuple[Joined, int]:
    """Join until nothing fits together or the work is up; also the work that took, in steps of the inner loops.

    All buffers are of one alignment, their sizes multiples of it, and without boundaries. Seed 0 draws nothing.
    """
    matching = _Matching(Random(seed) if seed else None)
    for position, b in enumerate(buffers):
        matching.add(_Block(b.lower, b.upper + 1, b.size, [(position, 0)]))
    while matching.work < work:
        found = matching.best()
        if found is not None:
            matching.replace((*found.left, *found.right), _side_by_side(found))
        elif not matching.turn():
            break
    blocks = sorted(matching.blocks(), key=lambda b: (b.lower, b.upper, b.size, b.parts[0]))
    alignment = buffers[0].alignment if buffers else 1
    joined = tuple(Buffer(n, b.lower, b.upper - 1, b.size, alignment) for n, b in enumerate(blocks))
    return Joined(joined, tuple(tuple(b.parts) for b in blocks)), matching.work


@dataclass(frozen=True, slots=True)
class _Set:
    """Blocks of one live range, and how many sets of as many there are."""

    ways: int
    size: int
    blocks: tuple[_Block, ...]


@dataclass(frozen=True, slots=True)
class _Wheel:
    """Five sets: below, right, above, left and in the middle of the others."""

    chance: float
    sides: tuple[_Set, ...]


class _Matching:
    """Blocks by live range, and for each moment the best pair of sets."""

    def __init__(self, random: Random | None):
        self.random = random
        self.sure = _SURE if random is None else random.uniform(2 * _SURE, _SURE / 2)
        self.groups: dict[tuple[int, int], list[_Block]] = {}
        self.ending: dict[int, dict[tuple[int, int], None]] = {}
        self.starting: dict[int, dict[tuple[int, int], None]] = {}
        self.known: dict[int, _Match | None] = {}
        self.queue: list[tuple[tuple[bool, int, float], int, int, _Match]] = []
        """By rank; also holds pairs that are not known any more."""
        self.changed: dict[int, None] = {}
        self.stacks: dict[tuple[int, int], list[_Set]] = {}
        self.work = 0

    def blocks(self) -> Iterator[_Block]:
        """All there are."""
        for group in self.groups.values():
            yield from group

    def add(self, block: _Block) -> None:
        key = block.lower, block.upper
        if key not in self.groups:
            self.groups[key] = []
            self.ending.setdefault(block.upper, {})[key] = None
            self.starting.setdefault(block.lower, {})[key] = None
        self.groups[key].append(block)
        self.stacks.pop(key, None)
        self.change(block)

    def change(self, block: _Block) -> None:
        """What is known of the moments at which a block starts and ends is not true any more."""
        for moment in (block.lower, block.upper):
            self.known[moment] = None
            self.changed[moment] = None

    def replace(self, old: Iterable[_Block], new: _Block) -> None:
        for block in old:
            key = block.lower, block.upper
            self.groups[key].remove(block)
            self.stacks.pop(key, None)
            if not self.groups[key]:
                del self.groups[key]
                del self.ending[block.upper][key]
                del self.starting[block.lower][key]
            self.change(block)
        self.add(new)

    def turn(self) -> bool:
        """Join pinwheels that have no block in common, the surest first. False where there is none."""
        used: dict[int, None] = {}
        for wheel in self.pinwheels():
            blocks = [block for side in wheel.sides for block in side.blocks]
            if not any(id(block) in used for block in blocks):
                used.update((id(block), None) for block in blocks)
                self.replace(blocks, _turned(wheel))
        return bool(used)

    def best(self) -> _Match | None:
        """The pair of least rank."""
        for moment in self.changed:
            found = self.known[moment] = self.at(moment)
            if found is not None:
                heappush(self.queue, (found.rank(self.sure), self.work, moment, found))
        self.changed.clear()
        while self.queue:
            _, _, moment, found = heappop(self.queue)
            if self.known.get(moment) is found:
                return found
        return None

    def at(self, moment: int) -> _Match | None:
        """The best pair at a moment."""
        ending, starting = self.ending.get(moment), self.starting.get(moment)
        self.work += 1
        if not ending or not starting:
            return None
        sums: dict[int, list[tuple[int, tuple[_Block, ...]]]] = {}
        for key in ending:
            for ways, taken in _subsets(self.groups[key]):
                self.work += 1
                sums.setdefault(sum(b.size for b in taken), []).append((ways, taken))
        best: _Match | None = None
        for key in starting:
            for ways, right in _subsets(self.groups[key]):
                self.work += 1
                total = sum(b.size for b in right)
                for others, left in sums.get(total, ()):
                    chance = log(ways * others / total)
                    if self.random is not None:
                        chance += self.random.uniform(0.0, 2.0)
                    if chance > _CHANCE:
                        continue
                    candidate = _Match(chance, left, right)
                    if best is None or candidate.rank(self.sure) < best.rank(self.sure):
                        best = candidate
        return best

    def pinwheels(self) -> list[_Wheel]:
        """What five sets of blocks form, each set stacked; those that are least likely to be chance first."""
        found: list[_Wheel] = []
        for moment in sorted(self.starting):
            if moment in self.ending:
                found += self._around(moment)
        return sorted(found, key=lambda wheel: wheel.chance)

    def _around(self, moment: int) -> Iterator[_Wheel]:
        """Pinwheels whose left part ends at a moment, when the middle and what is above it begin."""
        lefts: dict[int, list[_Set]] = {}
        for key in self.ending[moment]:
            for left in self.sets(key):
                lefts.setdefault(left.size, []).append(left)
        begun = sorted((upper, self.sets((moment, upper))) for _, upper in self.starting[moment])
        for (middle_end, middles), (above_end, aboves) in combinations(begun, 2):
            rights = self.sets((middle_end, above_end))
            if not rights:
                continue
            self.work += len(middles) * len(aboves)
            for middle, above in product(middles, aboves):
                for left in lefts.get(middle.size + above.size, ()):
                    for below in self.sets((left.blocks[0].lower, middle_end)):
                        wanted = below.size + middle.size
                        for right in rights:
                            if right.size == wanted:
                                sides = below, right, above, left, middle
                                chance = sum(log(side.ways) for side in sides) - log(left.size) - log(wanted)
                                if chance <= _SURE_WHEEL:
                                    yield _Wheel(chance, sides)

    def sets(self, key: tuple[int, int]) -> list[_Set]:
        """Sets of blocks of one live range."""
        if key not in self.stacks:
            group = self.groups.get(key, ())
            self.stacks[key] = [
                _Set(ways, sum(b.size for b in taken), taken) for ways, taken in _subsets(group, _STACKS)
            ]
        return self.stacks[key]


def _subsets(blocks: Sequence[_Block], most: int = _SUBSETS) -> Iterator[tuple[int, tuple[_Block, ...]]]:
    """Sets of blocks, the smaller first, each with how many there are of its size."""
    made = 0
    for count in range(1, len(blocks) + 1):
        ways = comb(len(blocks), count)
        made += ways
        if count > 1 and made > most:
            return
        for taken in combinations(blocks, count):
            yield ways, taken


def _stacked(blocks: Sequence[_Block], start: int) -> list[tuple[int, int]]:
    parts: list[tuple[int, int]] = []
    for block in blocks:
        parts += [(position, start + inside) for position, inside in block.parts]
        start += block.size
    return parts


def _side_by_side(found: _Match) -> _Block:
    parts = _stacked(found.left, 0) + _stacked(found.right, 0)
    return _Block(found.left[0].lower, found.right[0].upper, sum(b.size for b in found.left), parts)


def _turned(wheel: _Wheel) -> _Block:
    below, right, above, left, middle = wheel.sides
    starts = ((below, 0), (right, 0), (above, right.size), (left, below.size), (middle, below.size))
    parts = [part for side, start in starts for part in _stacked(side.blocks, start)]
    return _Block(left.blocks[0].lower, right.blocks[0].upper, below.size + left.size, parts)
