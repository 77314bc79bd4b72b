"""Rewrites of single `core` ops that change no value: what `canonicalize` applies."""

from __future__ import annotations

from xdsl.ir import Operation
from xdsl.ir.affine import AffineConstantExpr
from xdsl.pattern_rewriter import PatternRewriter, RewritePattern

from neuron_mlir.dialects.core.compute import CopyOp
from neuron_mlir.dialects.core.memory import AllocOp, ConstOp
from neuron_mlir.dialects.core.movement import DmaOp, SemaphoreOp, WaitOp


class EraseIdle(RewritePattern):
    """Drops storage and semaphores without a use, waits for 0 signals or fewer, and copies onto themselves."""

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter, /) -> None:
        if does_nothing(op):
            rewriter.erase(op)


def does_nothing(op: Operation) -> bool:
    """Whether the program computes the same without the op."""
    if isinstance(op, (AllocOp, ConstOp, SemaphoreOp)):
        return not op.result.uses
    if isinstance(op, WaitOp):
        (value,) = op.value.data.results
        return isinstance(value, AffineConstantExpr) and value.value <= 0
    if isinstance(op, (CopyOp, DmaOp)):
        same = op.buffers[0] is op.buffers[1] and op.accesses.data[0] == op.accesses.data[1]
        return same and not (isinstance(op, DmaOp) and op.permute is not None)
    return False
