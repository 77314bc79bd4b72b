"""Writing sequential `core` code: loops, buffers and instructions in order, with the location of the layer they come
from.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from xdsl.dialects import affine
from xdsl.dialects.builtin import IndexType, LocationAttr
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue

from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.dialects.core.memory import PSUM, AllocOp, buffer_type

OpT = TypeVar("OpT", bound=Operation)


@dataclass(frozen=True)
class Segment:
    """Part of a tiled range: `count` tiles of `size` from `start` on. A count of 1 needs no loop."""

    start: int
    count: int
    size: int


def segments(extent: int, tile: int, start: int = 0) -> list[Segment]:
    """`extent` cut into full tiles and a rest."""
    full, rest = divmod(extent, tile)
    parts = [Segment(start, full, tile)] if full else []
    return [*parts, Segment(start + full * tile, 1, rest)] if rest else parts


class Code:
    """An insertion point that moves into and out of loops."""

    def __init__(self, block: Block):
        self.blocks = [block]
        self.location: LocationAttr | None = None
        self.request: SSAValue | None = None

    @property
    def block(self) -> Block:
        """Where the next op goes."""
        return self.blocks[-1]

    def add(self, op: OpT) -> OpT:
        """Append an op."""
        if self.location is not None:
            op.location = self.location
        self.block.add_op(op)
        return op

    @contextmanager
    def at(self, block: Block) -> Generator[None, None, None]:
        """Write somewhere else for a while."""
        self.blocks.append(block)
        yield
        self.blocks.pop()

    @contextmanager
    def loop(self, count: int) -> Generator[Linear, None, None]:
        """`count` iterations; gives the index, or the constant 0 without any loop when `count` is 1."""
        if count == 1:
            yield Linear()
            return
        body = Block(arg_types=[IndexType()])
        op = affine.ForOp.from_region([], [], [], [], 0, count, Region(body))
        self.add(op)
        self.blocks.append(body)
        yield Linear.wrap(body.args[0])
        self.blocks.pop()
        body.add_op(affine.YieldOp.get())

    @contextmanager
    def tiles(self, segment: Segment) -> Generator[Linear, None, None]:
        """Loop over a segment; gives the start of the tile."""
        with self.loop(segment.count) as index:
            yield index * segment.size + segment.start

    def alloc(self, label: str, shape: Sequence[int], element: Attribute, space: Attribute) -> SSAValue:
        """A buffer, fresh where it is written."""
        return self.add(AllocOp(label, buffer_type(shape, element, space))).result

    def psum(self, label: str, shape: Sequence[int], element: Attribute) -> SSAValue:
        """A buffer in PSUM."""
        return self.alloc(label, shape, element, PSUM)
