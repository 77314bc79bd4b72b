"""Layers in pieces: what `pipe-stage` divides by output channels, so that a cut may go through a layer.

First every layer with large weights becomes pieces of one size and an `nn.concat` (`divide`); the cut is made between
pieces; then those of a layer that share a stage become one again (`unite`). A layer that is all in one stage is then as
it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from xdsl.ir import Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.machine import Machine
from neuron_mlir.passes.estimate import estimate_group, is_constant, is_large
from neuron_mlir.passes.pipe._slicing import CannotSliceError, Cut, Slicer, Want, slice_of

CHANNELS = 128
"""Pieces have whole multiples of it, one on each partition, so that they are put together without sharing any."""


@dataclass
class Piece:
    """Some output channels of a layer."""

    start: int
    size: int
    ops: list[Operation]
    """Slices of operands, then the layer for its channels."""

    @property
    def result(self) -> SSAValue:
        return self.ops[-1].results[0]


@dataclass
class Division:
    """A layer in pieces."""

    whole: Operation
    """The layer as it was; not in the block, without operands."""
    operands: list[SSAValue]
    axis: int
    join: nn.ConcatOp
    pieces: list[Piece] = field(default_factory=list[Piece])


def divide(block: Block, machine: Machine, most_bytes: int, but: Sequence[Operation]) -> list[Division]:
    """Divide the layers of a block, other than those of `but`, whose weights take more than `most_bytes` in a
    partition of SBUF.

    Layers of feature maps that do not fit SBUF stay whole, as rows of them go through several layers at once. So do
    those whose result leaves the block.
    """
    divisions: list[Division] = []
    last = block.last_op
    for op in list(block.ops):
        axis = None if op in but else _channel_axis(op)
        if axis is None or any(use.operation is last for use in op.results[0].uses):
            continue
        if any(is_large(machine, v) for v in (*op.operands, op.results[0]) if not is_constant_value(v)):
            continue
        blocks, rest = divmod(type_of(op.results[0]).get_shape()[axis], CHANNELS)
        count = min(blocks, -(-estimate_group(machine, op).resident_bytes // max(1, most_bytes)))
        if rest or count < 2:
            continue
        division = _divided(op, axis, [blocks * n // count * CHANNELS for n in range(count + 1)])
        if division is not None:
            divisions.append(division)
    return divisions


def is_constant_value(value: SSAValue) -> bool:
    """Whether a weight, or derived from weights."""
    return isinstance(value.owner, Operation) and is_constant(value.owner)


def _channel_axis(op: Operation) -> int | None:
    """The axis of output channels of a layer with a stationary weight; None for any other."""
    inner = op
    if isinstance(op, nn.FusedOp):
        if op.tile is not None or len(op.results) != 1:
            return None
        roots = [o for o in op.body.block.ops if isinstance(o, (nn.ConvOp, nn.MatmulOp))]
        if len(roots) != 1:
            return None
        inner = roots[0]
    if not isinstance(inner, (nn.ConvOp, nn.MatmulOp)) or not is_constant_value(_outside(op, inner.operands[1])):
        return None
    if isinstance(inner, nn.ConvOp):
        return 1 if inner.group == 1 else None
    rank = type_of(inner.result).get_num_dims()
    return rank - 1 if rank > 1 and type_of(inner.operands[1]).get_num_dims() == 2 else None


def _outside(op: Operation, value: SSAValue) -> SSAValue:
    """What an argument of a group stands for."""
    if isinstance(op, nn.FusedOp) and isinstance(value.owner, Block):
        return op.inputs[op.body.block.args.index(value)]
    return value


class _Part(Slicer):
    """Writes one layer for some of its channels, and slices of what it reads."""

    def __init__(self, block: Block, layer: Operation):
        super().__init__(block, lambda argument, _: argument)
        self.layer = layer

    def make(self, value: SSAValue, want: Want) -> SSAValue:
        if value.owner is self.layer or is_constant_value(value):
            return super().make(value, want)
        return value if want is None else self.add(slice_of(value, want), self.layer)


def _piece(whole: Operation, axis: int, start: int, size: int, before: Operation) -> Piece:
    """Some channels of a layer, written in front of an op. Raises `CannotSliceError`."""
    scratch = Block()
    _Part(scratch, whole).get(whole.results[0], Cut(axis, start, size))
    ops = list(scratch.ops)
    for op in ops:
        op.detach()
        Rewriter.insert_op(op, InsertPoint.before(before))
    return Piece(start, size, [op for op in ops if not is_constant(op)])


def _divided(op: Operation, axis: int, borders: Sequence[int]) -> Division | None:
    """Put pieces in the place of a layer; None if it has no smaller form."""
    try:
        pieces = [_piece(op, axis, a, b - a, op) for a, b in pairwise(borders)]
    except CannotSliceError:
        return None
    join = nn.ConcatOp([piece.result for piece in pieces], axis=axis)
    join.location = op.location
    join.result.name_hint = op.results[0].name_hint
    Rewriter.insert_op(join, InsertPoint.before(op))
    op.results[0].replace_all_uses_with(join.result)
    operands = list(op.operands)
    op.detach()
    op.operands = []
    return Division(op, operands, axis, join, pieces)


def unite(
    divisions: Sequence[Division],
    home: Callable[[Operation], int],
    moved: Callable[[Sequence[Operation], Sequence[Operation]], None],
) -> list[nn.ConcatOp]:
    """Make the pieces of a layer that share a stage one; what puts together those layers that stay divided.

    `home` tells the stage of an op, `moved` is told which ops take the place of which. Pieces are in stages in their
    order.
    """
    joins: list[nn.ConcatOp] = []
    replaced: dict[SSAValue, SSAValue] = {}
    for division in divisions:
        whole, join = division.whole, division.join
        whole.operands = [replaced.get(v, v) for v in division.operands]
        parts: list[SSAValue] = []
        for _, run in groupby(division.pieces, key=lambda piece: home(piece.ops[-1])):
            pieces = list(run)
            old = [op for piece in pieces for op in piece.ops]
            if len(pieces) == len(division.pieces):
                Rewriter.insert_op(whole, InsertPoint.before(old[0]))
                parts.append(whole.results[0])
                moved(old, [whole])
                _erase_later(old, join)
            elif len(pieces) > 1:
                size = sum(piece.size for piece in pieces)
                one = _piece(whole, division.axis, pieces[0].start, size, old[0])
                parts.append(one.result)
                moved(old, one.ops)
                _erase_later(old, join)
            else:
                parts.append(pieces[0].result)
        joined = parts[0]
        if len(parts) > 1:
            new = nn.ConcatOp(parts, axis=division.axis)
            new.location = join.location
            new.result.name_hint = join.result.name_hint
            Rewriter.insert_op(new, InsertPoint.before(join))
            joins.append(new)
            joined = new.result
            whole.operands = []
            whole.erase()
        replaced[join.result] = joined
        join.result.replace_all_uses_with(joined)
        Rewriter.erase_op(join)
    return joins


def _erase_later(ops: Sequence[Operation], join: nn.ConcatOp) -> None:
    """Erase ops that only what is about to go still uses."""
    join.operands = [v for v in join.operands if v.owner not in ops]
    for op in reversed(ops):
        Rewriter.erase_op(op)
