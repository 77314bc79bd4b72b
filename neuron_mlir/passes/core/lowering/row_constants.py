"""Rows that every partition wants, such as the scale of a layer normalisation, kept once and repeated by the PE array.

One row of f32 on every partition takes as much SBUF as a block of 128 x 2n weights; brought by DMA, 128 times its
bytes. Kept as three rows of bf16 whose sum it is (`hi + mid + lo`: three times 8 bits of significand are the 24 of
f32), it takes three partitions. A matmul with ones as its stationary operand adds them up on 64 partitions at once:
products with 1 and sums of parts of one number are exact. Operands of an engine begin at partitions 0, 32, 64 or 96:
ten rows lie behind each, and those that come before the one wanted are multiplied by zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from xdsl.dialects.builtin import TensorType, bf16, f32
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access
from neuron_mlir.dialects.core.compute import CopyOp, MatmulOp
from neuron_mlir.dialects.core.memory import DRAM, SBUF, ConstOp, buffer_type
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.layout import LANES, Home

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.context import Context

PARTS = 3
"""bf16 numbers whose sum is any f32."""
QUADRANT = 32
"""Partitions between those where an operand of an engine may begin."""
PER_QUADRANT = QUADRANT // PARTS
COLUMNS = 64
"""Partitions of PSUM: so many copies of a row are made at once."""
BANK = 512
"""f32 elements of a PSUM bank."""
SHORTEST = 64
"""Rows with fewer elements stay on every partition."""


@dataclass
class RowConstants:
    """The rows of a stage, packed by length; `ones` picks one of those that share partitions."""

    packs: dict[int, list[SSAValue]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    places: dict[SSAValue, tuple[SSAValue, int, int]] = field(default_factory=dict)
    """Buffer, quadrant and number in it of each row that is packed."""
    ones: SSAValue | None = None

    def repeat(self, context: Context, value: SSAValue, length: int, home: Home, queue: int) -> None:
        """Write code that puts a row of `length` elements on all partitions of a buffer `[partitions, 1, length]`.

        The row is loaded, by DMA on `queue`, the first time it is asked for.
        """
        if value not in self.places:
            self.places[value] = self._load(context, value, length, queue)
        ones = self._selection(context, queue)
        pack, quadrant, number = self.places[value]
        code = context.code
        lanes = home.shape[0]
        width, rows = min(lanes, COLUMNS), PARTS * (number + 1)
        stationary = Access.of(ones, [QUADRANT * quadrant, number], [rows, width], [1, 0])
        for chunk in segments(length, BANK):
            with code.tiles(chunk) as first:
                acc = code.psum("row", [width, chunk.size], f32)
                moving = Access.of(pack, [QUADRANT * quadrant, first], [rows, chunk.size])
                code.add(MatmulOp(Access.of(acc), stationary, moving))
                for start in range(0, lanes, COLUMNS):
                    count = min(COLUMNS, lanes - start)
                    target = Access.of(home.buffer, [start, 0, first], [count, 1, chunk.size])
                    code.add(CopyOp(target, Access.of(acc, [0, 0], [count, chunk.size]), "scalar"))

    def _load(self, context: Context, value: SSAValue, length: int, queue: int) -> tuple[SSAValue, int, int]:
        number = self.counts.get(length, 0)
        self.counts[length] = number + 1
        pack, within = divmod(number, PER_QUADRANT * (LANES // QUADRANT))
        packs = self.packs.setdefault(length, [])
        if pack == len(packs):
            with context.code.at(context.top):
                packs.append(context.code.alloc("rows", (LANES, length), bf16, SBUF))
        quadrant, place = divmod(within, PER_QUADRANT)
        stored = context.constant(value, context.label(value), _in_parts)
        start = QUADRANT * quadrant + PARTS * place
        context.load.add(
            DmaOp(Access.of(stored.buffer), Access.of(packs[pack], [start, 0], [PARTS, length]), queue=queue)
        )
        return packs[pack], quadrant, place

    def _selection(self, context: Context, queue: int) -> SSAValue:
        """`[128, 10]`: column `j` has ones in the rows of the `j`-th row of each quadrant, else zeros."""
        if self.ones is None:
            body = Block()

            def add(op: Operation) -> SSAValue:
                body.add_op(op)
                return op.results[0]

            # Rows of 33 whose first 3 are ones, read on in rows of 30: each begins 3 further on than the one before.
            size = PARTS * PER_QUADRANT
            ones = add(nn.WeightOp("rows.ones", TensorType(bf16, (PER_QUADRANT, PARTS)), nn.SplatAttr.get(1.0)))
            wide = add(nn.PadOp(ones, (0, 0), (0, size)))
            flat = add(nn.ReshapeOp(wide, (PER_QUADRANT * (size + PARTS),)))
            square = add(nn.ReshapeOp(add(nn.SliceOp(flat, (0,), (PER_QUADRANT * size,))), (PER_QUADRANT, size)))
            column = add(nn.TransposeOp(square, (1, 0)))
            quadrant = add(nn.PadOp(column, (0, 0), (QUADRANT - size, 0)))
            body.add_op(nn.YieldOp(add(nn.ConcatOp([quadrant] * (LANES // QUADRANT), axis=0))))
            shape = (LANES, PER_QUADRANT)
            op = ConstOp("rows.ones", Region(body), buffer_type(shape, bf16, DRAM))
            context.top.add_op(op)
            with context.code.at(context.top):
                self.ones = context.code.alloc("rows.ones", shape, bf16, SBUF)
            context.load.add(DmaOp(Access.of(op.result), Access.of(self.ones), queue=queue))
        return self.ones


def _in_parts(value: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
    """A constant as three rows of bf16 that add up to it."""
    shape = cast("TensorType[Attribute]", value.type).get_shape()
    rest = add(nn.ReshapeOp(value, (1, math.prod(shape))))
    parts = [add(nn.CastOp(rest, bf16))]
    while len(parts) < PARTS:
        rest = add(nn.SubOp(rest, parts[-1]))
        parts.append(add(nn.CastOp(rest, bf16)))
    return add(nn.ConcatOp(parts, axis=0))
