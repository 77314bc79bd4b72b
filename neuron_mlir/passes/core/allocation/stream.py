"""Streamed weights: one region of SBUF through which a DMA queue passes constants, layer after layer.

A queue that only brings constants can run far ahead of the engines: nothing it reads is computed. What holds it up are
the bytes it writes to. So its buffers get a region of their own, in which they follow each other round and round: a
buffer's slots are written as soon as whoever lay there before, about a region's bytes earlier, has been used. Layers
without weights, and the ends of layers, then pass while the queue fills what comes next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from neuron_mlir.dialects.core.instruction import Instruction
from neuron_mlir.dialects.core.memory import ConstOp
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.passes.core.allocation.buffers import Local, StageCode

REGIONS = tuple(1024 * kib for kib in (48, 40, 32, 28, 24, 20, 16, 14, 12, 10, 8, 6, 4))
"""Sizes of the region that are tried, bytes per partition."""
MIN_REGION = REGIONS[-1]
SHARE = 3
"""A buffer's slots take one part in so many of the region, if two of them do: the next layers' are beside it."""


@dataclass(frozen=True)
class Streams:
    """Buffers that constants are streamed through, in the order in which they are filled."""

    buffers: tuple[Local, ...]

    @staticmethod
    def of(code: StageCode) -> Streams:
        """Those of a stage: filled during `run`, by DMA from constants, by a queue that does nothing else there."""
        known: dict[SSAValue, Local] = {local.op.result: local for local in code.of_space("sbuf") if not local.resident}
        found: dict[str, dict[Local, None]] = {}
        mixed: set[str] = set()
        for op in code.run.walk():
            if not isinstance(op, Instruction) or not op.engine.startswith("dma"):
                continue
            local = known.get(op.buffers[0])
            if local is None or not isinstance(op, DmaOp) or not isinstance(op.buffers[1].owner, ConstOp):
                mixed.add(op.engine)
            else:
                found.setdefault(op.engine, {})[local] = None
        chosen = [local for queue, locals_ in found.items() if queue not in mixed for local in locals_]
        only = [local for local in chosen if _written_by_dma(local)]
        return Streams(tuple(sorted(only, key=lambda b: b.lower)))

    def total(self, align: int) -> int:
        """Bytes per partition that a request streams."""
        return sum(_rounded(b.bytes * b.instances, align) for b in self.buffers)

    def regions(self, align: int) -> Iterator[tuple[int, tuple[Local, ...]]]:
        """Sizes of a region, the largest first, each with the buffers that pass through it: those of which it holds two
        slots and more."""
        total = self.total(align)
        for size in REGIONS:
            through = tuple(b for b in self.buffers if _rounded(b.bytes * min(2, b.instances), align) <= size)
            if len(through) > 1 and (total >= size or size == MIN_REGION):
                yield size, through


def place_streams(size: int, buffers: Sequence[Local], align: int) -> tuple[dict[Local, int], dict[Local, int]] | None:
    """Slots and offsets within a region of `size` bytes: each buffer behind the one before, from the beginning again
    where the end comes too soon, and past what is still in use. None when that is too much.
    """
    depths: dict[Local, int] = {}
    offsets: dict[Local, int] = {}
    in_use: list[tuple[int, int, Local]] = []
    at = 0
    for b in buffers:
        depth = max(min(2, b.instances), min(b.instances, size // (SHARE * b.bytes)))
        taken = _rounded(b.bytes * depth, align)
        in_use = [entry for entry in in_use if entry[2].upper >= b.lower]
        found = _gap(at, taken, size, in_use)
        if found is None:
            return None
        depths[b], offsets[b] = depth, found
        at = found + taken
        in_use.append((found, at, b))
    return depths, offsets


def _gap(at: int, taken: int, size: int, in_use: Sequence[tuple[int, int, Local]]) -> int | None:
    """The first place for so many bytes at `at` or behind it, else from the beginning."""
    for start in (at, 0):
        # Places change only behind what is in use.
        for place in sorted({start, *(end for _, end, _ in in_use if end > start)}):
            if place + taken <= size and all(place + taken <= low or place >= high for low, high, _ in in_use):
                return place
    return None


def _written_by_dma(local: Local) -> bool:
    """Whether nothing but transfers writes to it."""
    return all(isinstance(use.operation, DmaOp) or use.index > 0 for use in local.op.result.uses)


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
