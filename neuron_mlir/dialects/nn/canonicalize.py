"""Rewrites of a single op that change no bit: what `canonicalize` applies, and `nn-fold-constants` too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from xdsl.dialects.builtin import BFloat16Type, Float16Type, Float32Type
from xdsl.ir import BlockArgument, Operation, SSAValue
from xdsl.pattern_rewriter import PatternRewriter, RewritePattern

from neuron_mlir.dialects.nn.base import is_float, type_of
from neuron_mlir.dialects.nn.constants import ConstOp, DenseAttr, SplatAttr, WeightOp
from neuron_mlir.dialects.nn.elementwise import AddOp, DivOp, MulOp, ReluOp, SubOp
from neuron_mlir.dialects.nn.movement import (
    CastOp,
    ConcatOp,
    ExpandOp,
    PadOp,
    ReshapeOp,
    ResizeOp,
    SliceOp,
    TransposeOp,
)
from neuron_mlir.dialects.nn.structure import FusedOp, YieldOp

Simplified = SSAValue | Operation | None
"""What an op may be replaced by: a value there is, a new op, or nothing better."""


def splat_number(value: SSAValue) -> float | None:
    """The one number a weight written in the IR holds everywhere, else None."""
    op = value.owner
    if not isinstance(op, WeightOp):
        return None
    if isinstance(op.source, SplatAttr):
        return op.source.number
    if isinstance(op.source, DenseAttr):
        numbers = op.source.numbers
        return numbers[0] if all(number == numbers[0] for number in numbers) else None
    return None


def simplify(op: Operation) -> Simplified:
    """A replacement that computes the same bits with less, or None."""
    rule = _RULES.get(type(op))
    return None if rule is None else rule(op)


def _reshape(op: ReshapeOp) -> Simplified:
    if op.type == op.x.type:
        return op.x
    inner = op.x.owner
    if isinstance(inner, ReshapeOp):
        return ReshapeOp(inner.x, op.type.get_shape())
    return None


def _transpose(op: TransposeOp) -> Simplified:
    if op.perm == tuple(range(len(op.perm))):
        return op.x
    inner = op.x.owner
    if isinstance(inner, TransposeOp):
        return TransposeOp(inner.x, [inner.perm[axis] for axis in op.perm])
    return None


def _slice(op: SliceOp) -> Simplified:
    # All elements of every axis, in order: the same type and no axis counted down.
    if op.type == op.x.type and all(start == 0 for start in op.starts):
        return op.x
    return None


def _pad(op: PadOp) -> Simplified:
    return None if any(op.low) or any(op.high) else op.x


def _expand(op: ExpandOp) -> Simplified:
    if op.type == op.x.type:
        return op.x
    inner = op.x.owner
    if isinstance(inner, ExpandOp):
        return ExpandOp(inner.x, op.type.get_shape())
    return None


def _resize(op: ResizeOp) -> Simplified:
    if all(scale == 1 for scale in op.scales):
        return op.x
    inner = op.x.owner
    if isinstance(inner, ResizeOp):
        return ResizeOp(inner.x, [a * b for a, b in zip(inner.scales, op.scales, strict=True)])
    return None


def _concat(op: ConcatOp) -> Simplified:
    return op.inputs[0] if len(op.inputs) == 1 else None


def _cast(op: CastOp) -> Simplified:
    if op.type == op.x.type:
        return op.x
    inner = op.x.owner
    narrow = (BFloat16Type, Float16Type)
    if isinstance(inner, CastOp):
        source = type_of(inner.x).element_type
        # Widening to f32 loses nothing, so the cast back, or to anything else, may start from the narrow value.
        if isinstance(source, narrow) and isinstance(inner.type.element_type, Float32Type):
            return inner.x if source == op.type.element_type else CastOp(inner.x, op.type.element_type)
    return None


def _relu(op: ReluOp) -> Simplified:
    return op.input if isinstance(op.input.owner, ReluOp) else None


def _identity_operand(number: float, *, left: bool, minus_zero: bool = False) -> Callable[[Any], Simplified]:
    """The other operand, where one is the neutral number everywhere and the result is of the other's type."""

    def neutral(value: SSAValue) -> bool:
        found = splat_number(value)
        if found is None or found != number:
            return False
        if not minus_zero or not is_float(type_of(value).element_type):
            return True
        # Adding +0 turns -0 into +0; adding -0 changes nothing.
        return str(float(found)).startswith("-")

    def rule(op: AddOp | SubOp | MulOp | DivOp) -> Simplified:
        if op.lhs.type == op.type and neutral(op.rhs):
            return op.lhs
        if left and op.rhs.type == op.type and neutral(op.lhs):
            return op.rhs
        return None

    return rule


def _subtract(op: SubOp) -> Simplified:
    number = splat_number(op.rhs)
    if number is None or number != 0 or op.lhs.type != op.type:
        return None
    # x - (-0) is x + 0, which turns -0 into +0.
    return None if str(float(number)).startswith("-") and is_float(type_of(op.lhs).element_type) else op.lhs


def _const(op: ConstOp) -> Simplified:
    first = op.body.block.first_op
    if isinstance(first, WeightOp) and first.next_op is op.body.block.last_op:
        return first.clone()
    return None


def _fused(op: FusedOp) -> Simplified:
    """A group of which nothing is left."""
    last = op.body.block.first_op
    if not isinstance(last, YieldOp) or len(last.values) != 1:
        return None
    yielded: SSAValue = last.values[0]
    return op.inputs[yielded.index] if isinstance(yielded, BlockArgument) else None


_RULES: dict[type[Operation], Callable[[Any], Simplified]] = {
    ReshapeOp: _reshape,
    TransposeOp: _transpose,
    SliceOp: _slice,
    PadOp: _pad,
    ExpandOp: _expand,
    ResizeOp: _resize,
    ConcatOp: _concat,
    CastOp: _cast,
    ReluOp: _relu,
    MulOp: _identity_operand(1, left=True),
    DivOp: _identity_operand(1, left=False),
    AddOp: _identity_operand(0, left=True, minus_zero=True),
    SubOp: _subtract,
    ConstOp: _const,
    FusedOp: _fused,
}


class Simplify(RewritePattern):
    """`simplify` as a pattern; the new op keeps the location of the old."""

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter, /) -> None:
        found = simplify(op)
        if found is None:
            return
        if isinstance(found, Operation):
            found.location = op.location
            rewriter.replace(op, found)
            return
        rewriter.replace(op, (), (cast("SSAValue[Any]", found),))
