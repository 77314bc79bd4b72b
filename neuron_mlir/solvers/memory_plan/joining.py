"""Fewer buffers, the same bytes alive: those that fit together are planned as one.

Two buffers with one live range are stacked; two of one size, the second beginning as the first ends, are chained. Each
gives one rectangle in time and bytes, which may be joined further. At no time does that change how many bytes are
alive, so the bound stays; but it is a choice, and a plan without the join may exist where none with it does: only an
answer "yes" carries over.

The sizes of an instance without slack are seldom equal by chance. Where they are, another order of joins may help:
each seed is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from neuron_mlir.solvers.memory_plan.model import Buffer, round_up


@dataclass(frozen=True, slots=True)
class Joined:
    """Buffers that stand for several, numbered from 0, and what each holds."""

    buffers: tuple[Buffer, ...]
    parts: tuple[tuple[tuple[int, int], ...], ...]
    """For each the positions of the buffers in it, with their offsets from its own."""

    def expand(self, offsets: Sequence[int]) -> list[int]:
        """Offsets of the buffers that were joined, from those of the joined ones."""
        found: dict[int, int] = {}
        for start, parts in zip(offsets, self.parts, strict=True):
            for position, inside in parts:
                found[position] = start + inside
        return [found[position] for position in range(len(found))]


@dataclass(slots=True)
class _Block:
    lower: int
    upper: int
    size: int
    alignment: int
    boundary: int
    parts: list[tuple[int, int]]


def join(buffers: Sequence[Buffer], seed: int = 0) -> Joined:
    """Join until nothing fits together.

    Seed 0 stacks first, seed 1 chains first; others draw the order, and which of several ends is continued.
    """
    blocks = [
        _Block(b.lower, b.upper, b.size, b.alignment, b.boundary, [(position, 0)]) for position, b in enumerate(buffers)
    ]
    random = Random(seed) if seed > 1 else None
    chain_first = seed == 1 or (random is not None and random.random() < 0.5)
    while True:
        count = len(blocks)
        if random is not None:
            random.shuffle(blocks)
            chain_first = random.random() < 0.7
        blocks = _chain(blocks, random) if chain_first else _stack(blocks)
        if len(blocks) == count:
            blocks = _stack(blocks) if chain_first else _chain(blocks, random)
        if len(blocks) == count:
            break
    blocks.sort(key=lambda b: (b.lower, b.upper, b.size, b.parts[0]))
    return Joined(
        tuple(Buffer(n, b.lower, b.upper, b.size, b.alignment, b.boundary) for n, b in enumerate(blocks)),
        tuple(tuple(b.parts) for b in blocks),
    )


def _stack(blocks: Sequence[_Block]) -> list[_Block]:
    """One for all of one live range, alignment, and no boundary."""
    found: dict[tuple[int, int, int, int], _Block] = {}
    for number, b in enumerate(blocks):
        key = (b.lower, b.upper, b.alignment, number + 1 if b.boundary else 0)
        below = found.get(key)
        if below is None:
            found[key] = b
            continue
        start = round_up(below.size, b.alignment)
        parts = below.parts + [(position, start + inside) for position, inside in b.parts]
        found[key] = _Block(b.lower, b.upper, start + b.size, b.alignment, 0, parts)
    return list(found.values())


def _chain(blocks: Sequence[_Block], random: Random | None) -> list[_Block]:
    """One for each chain of equals that follow each other without a pause."""
    starts: dict[tuple[int, int, int, int], list[_Block]] = {}
    for b in blocks:
        starts.setdefault((b.lower, b.size, b.alignment, b.boundary), []).append(b)
    if random is None:
        # The shortest next: it is the likelier to be a piece of something.
        for group in starts.values():
            group.sort(key=lambda b: (-b.upper, b.parts[0]))
    found: list[_Block] = []
    used: set[int] = set()
    for b in sorted(blocks, key=lambda b: b.lower):
        if id(b) in used:
            continue
        whole = b
        while group := starts.get((whole.upper + 1, b.size, b.alignment, b.boundary)):
            following = group.pop()
            used.add(id(following))
            whole = _Block(b.lower, following.upper, b.size, b.alignment, b.boundary, whole.parts + following.parts)
        found.append(whole)
    return found
