"""Rewrites of `pipe` ops that change no value: what `canonicalize` applies."""

from __future__ import annotations

from xdsl.ir import Operation
from xdsl.pattern_rewriter import PatternRewriter, RewritePattern

from neuron_mlir.dialects.pipe.ops import RingOp, StageOp, YieldOp


class EraseUnusedRing(RewritePattern):
    """Drops a ring that no stage and no port uses."""

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter, /) -> None:
        if isinstance(op, RingOp) and not op.result.uses:
            rewriter.erase(op)


class NarrowStage(RewritePattern):
    """Drops the streams into a value-form stage that it does not read and those out of it that nobody reads, and with
    the last of these the stage.
    """

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter, /) -> None:
        if not isinstance(op, StageOp) or op.in_memory_form:
            return
        terminator = op.body.block.last_op
        if not isinstance(terminator, YieldOp):
            return
        kept = [position for position, result in enumerate(op.results_) if result.uses]
        if not kept:
            rewriter.erase(op)
            return
        if len(kept) < len(op.results_):
            narrow = YieldOp([terminator.values[position] for position in kept])
            narrow.location = terminator.location
            rewriter.replace(terminator, narrow)
        # What only the dropped results needed goes later; its arguments are found unused when the stage is met again.
        arguments = [position for position, arg in enumerate(op.body.block.args) if arg.uses]
        if len(kept) == len(op.results_) and len(arguments) == len(op.arguments):
            return
        operands = [op.arguments[position] for position in arguments]
        for arg in [arg for arg in op.body.block.args if not arg.uses]:
            rewriter.erase_block_argument(arg)
        stage = StageOp(
            op.sym_name.data,
            op.core_list(),
            operands,
            rewriter.move_region_contents_to_new_regions(op.body),
            [op.results_[position].type for position in kept],
            op.replicas is not None,
            dict(op.attributes),
        )
        stage.location = op.location
        results = iter(stage.results_)
        rewriter.replace(
            op, stage, [next(results) if position in kept else None for position in range(len(op.results_))]
        )
