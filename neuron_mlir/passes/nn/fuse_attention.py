"""`nn-fuse-attention`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.passes.base import NeuronPass, Relation
from neuron_mlir.passes.nn._constants import is_constant, nn_blocks
from neuron_mlir.passes.nn._groups import enclose

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp

_REACH = 8
"""Most layers between the scores and their softmax, and between that and the product."""


@dataclass(frozen=True)
class FuseAttention(NeuronPass):
    """Groups attention: from the product that makes the scores, over scale, mask and softmax, to the product with the
    values.

    The scores of all heads are the largest value of a transformer, used once, and at once: `pipe-stage` cuts between
    groups, so in one group they never leave the core. A chain is taken where each value in it has one reader, both
    products are of two activations, and the softmax is the left operand of the second.

    Run it after `nn-fuse` and `nn-cast`. The projections before and behind are not in the group: cores may share them.
    Lowering takes the layers inside one by one, so nothing is computed differently.

    Before:

    ```mlir
    func.func @main(%q: tensor<4x8x2xf32>, %k: tensor<4x2x8xf32>, %v: tensor<4x8x2xf32>) -> tensor<4x8x2xf32> {
      %s = nn.matmul %q, %k : (tensor<4x8x2xf32>, tensor<4x2x8xf32>) -> tensor<4x8x8xf32>
      %p = nn.softmax %s axis 2 : (tensor<4x8x8xf32>) -> tensor<4x8x8xf32>
      %c = nn.matmul %p, %v : (tensor<4x8x8xf32>, tensor<4x8x2xf32>) -> tensor<4x8x2xf32>
      func.return %c : tensor<4x8x2xf32>
    }
    ```

    After:

    ```mlir
    func.func @main(%q: tensor<4x8x2xf32>, %k: tensor<4x2x8xf32>, %v: tensor<4x8x2xf32>) -> tensor<4x8x2xf32> {
      %c = nn.fused "attention" (%q, %k, %v) {
      ^bb0(%q_1: tensor<4x8x2xf32>, %k_1: tensor<4x2x8xf32>, %v_1: tensor<4x8x2xf32>):
        %s = nn.matmul %q_1, %k_1 : (tensor<4x8x2xf32>, tensor<4x2x8xf32>) -> tensor<4x8x8xf32>
        %p = nn.softmax %s axis 2 : (tensor<4x8x8xf32>) -> tensor<4x8x8xf32>
        %c_1 = nn.matmul %p, %v_1 : (tensor<4x8x8xf32>, tensor<4x8x2xf32>) -> tensor<4x8x2xf32>
        nn.yield %c_1 : tensor<4x8x2xf32>
      } : (tensor<4x8x2xf32>, tensor<4x2x8xf32>, tensor<4x8x2xf32>) -> tensor<4x8x2xf32>
      func.return %c : tensor<4x8x2xf32>
    }
    ```
    """

    name = "nn-fuse-attention"
    summary: ClassVar[str] = "group scores, softmax and the product with the values"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "groups": "attention groups made",
        "layers": "layers and groups in them",
    }

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for block in list(nn_blocks(op)):
            for softmax in [o for o in block.ops if isinstance(o, nn.SoftmaxOp)]:
                before, after = _before(softmax), _after(softmax)
                if before and after:
                    layers = [*reversed(before), softmax, *after]
                    self.count("groups")
                    self.count("layers", len(layers))
                    enclose(layers, "attention")


def _before(softmax: nn.SoftmaxOp) -> list[Operation]:
    """The layers between softmax and the product of its scores, that included, the last first; [] without one."""
    found: list[Operation] = []
    value: SSAValue = softmax.x
    for _ in range(_REACH):
        owner = value.owner
        if not isinstance(owner, Operation) or sum(1 for _ in value.uses) != 1 or owner.parent is not softmax.parent:
            return []
        found.append(owner)
        root = product_of(owner)
        if root is not None:
            return found if _of_activations(owner, root) else []
        if isinstance(owner, nn.SoftmaxOp):
            return []
        shape = type_of(value).get_shape()
        same = [v for v in owner.operands if not is_constant(v) and type_of(v).get_shape() == shape]
        if len(same) != 1:
            return []
        value = same[0]
    return []


def _after(softmax: nn.SoftmaxOp) -> list[Operation]:
    """The layers from softmax to the product that weights the values, that included; [] without one."""
    found: list[Operation] = []
    value: SSAValue = softmax.result
    for _ in range(_REACH):
        uses = list(value.uses)
        if len(uses) != 1:
            return []
        user = uses[0].operation
        if user.parent is not softmax.parent or len(user.results) != 1:
            return []
        found.append(user)
        root = product_of(user)
        if root is not None:
            left = _outside(user, root.lhs)
            return found if left is value and _of_activations(user, root) else []
        if not isinstance(user, (nn.CastOp, nn.UnaryOp, nn.BinaryOp)):
            return []
        value = user.results[0]
    return []


def product_of(op: Operation) -> nn.MatmulOp | None:
    """The product that an op, or a flat group, is built around."""
    if isinstance(op, nn.FusedOp):
        return next((o for o in op.body.block.ops if isinstance(o, nn.MatmulOp)), None)
    return op if isinstance(op, nn.MatmulOp) else None


def _of_activations(op: Operation, root: nn.MatmulOp) -> bool:
    return not any(is_constant(_outside(op, value)) for value in root.operands)


def _outside(op: Operation, value: SSAValue) -> SSAValue:
    """What a value inside a group stands for; casts are passed."""
    while isinstance(value.owner, nn.CastOp) and value.owner.parent_op() is op:
        value = value.owner.x
    if isinstance(op, nn.FusedOp) and value in (arguments := list[SSAValue](op.body.block.args)):
        return op.inputs[arguments.index(value)]
    return value
