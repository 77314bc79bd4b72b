"""`nn-fold-constants`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.ir import Block, Operation

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.canonicalize import simplify
from neuron_mlir.ir.locations import replace
from neuron_mlir.passes.base import NeuronPass, Relation, option
from neuron_mlir.passes.nn._constants import elements, erase_unused, fold_operation, nn_blocks

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp


@dataclass(frozen=True)
class FoldConstantsPass(NeuronPass):
    """Turns layers over weights into constants and drops layers that do nothing.

    A layer whose operands are all weights or constants becomes one `nn.const`, with the expressions of its operands
    merged into it; nothing is computed now. Identities go: multiplication and division by 1, subtraction of 0
    (addition of +0 stays, it turns -0 into +0), reshapes of reshapes, transposes of transposes, casts, slices, pads
    and expansions that change nothing. What nothing uses is erased. A layer that would blow a small constant up
    beyond `limit` elements is kept.

    Before:

    ```mlir
    func.func @main(%x: tensor<2x4xf32>) -> tensor<2x4xf32> {
      %w = nn.weight "w" : tensor<4xf32>
      %r = nn.reshape %w : (tensor<4xf32>) -> tensor<1x4xf32>
      %e = nn.exp %r : tensor<1x4xf32>
      %one = nn.weight "one" splat<1.0> : tensor<f32>
      %0 = nn.mul %x, %one : tensor<2x4xf32>, tensor<f32>
      %1 = nn.add %0, %e : tensor<2x4xf32>, tensor<1x4xf32>
      func.return %1 : tensor<2x4xf32>
    }
    ```

    After:

    ```mlir
    func.func @main(%x: tensor<2x4xf32>) -> tensor<2x4xf32> {
      %c = nn.const {
        %w = nn.weight "w" : tensor<4xf32>
        %r = nn.reshape %w : (tensor<4xf32>) -> tensor<1x4xf32>
        %e = nn.exp %r : tensor<1x4xf32>
        nn.yield %e : tensor<1x4xf32>
      } : tensor<1x4xf32>
      %1 = nn.add %x, %c : tensor<2x4xf32>, tensor<1x4xf32>
      func.return %1 : tensor<2x4xf32>
    }
    ```
    """

    name = "nn-fold-constants"
    summary = "turn layers over weights into constant expressions and drop layers that do nothing"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "folded": "layers that became part of a constant",
        "simplified": "layers dropped or merged as identities",
    }

    limit: int = option(1 << 20, "largest constant, in elements, that may outgrow the constants it is made of")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for block in list(nn_blocks(op)):
            self._fold(block)
            erase_unused(block)

    def _fold(self, block: Block) -> None:
        for op in list(block.ops):
            if not isinstance(op, (nn.NnOp, nn.ConstOp, nn.FusedOp)):
                continue
            current: Operation = op
            while (better := simplify(current)) is not None:
                self.count("simplified")
                if not isinstance(better, Operation):
                    replace(current, (), (better,))
                    break
                replace(current, better)
                current = better
            else:
                self._fold_op(current)

    def _fold_op(self, op: Operation) -> None:
        if isinstance(op, nn.NnOp) and op.operands:
            size = elements(op.results[0])
            if size > self.limit and size > sum(elements(operand) for operand in op.operands):
                return
        folded = fold_operation(op)
        if folded is not None:
            self.count("folded")
            replace(op, folded)
