"""`nn-fuse`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.builtin import f32
from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.passes.base import NeuronPass, Relation, option
from neuron_mlir.passes.nn._constants import is_constant, nn_blocks
from neuron_mlir.passes.nn._groups import outline, packing_of

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp

_ELEMENTWISE = (
    nn.ReluOp,
    nn.LeakyReluOp,
    nn.ClipOp,
    *nn.FUNCTION_OPS,
    nn.NegOp,
    nn.AddOp,
    nn.SubOp,
    nn.MulOp,
    nn.DivOp,
    nn.MaxOp,
    nn.MinOp,
)
"""What the scalar and vector engines do to a value on its way out of PSUM or SBUF."""
_LOOK_AHEAD = 8
"""How many ops a branch may take to come together again, as x and erf(x / sqrt(2)) do in gelu."""


@dataclass(frozen=True)
class FusePass(NeuronPass):
    """Groups a contraction with the element-wise layers behind it, and chains of element-wise layers, into `nn.fused`.

    A group starts at an `nn.conv` or `nn.matmul` and takes in bias, activation, residual addition and whatever
    element-wise layer follows, as long as one value leaves the group and has the contraction's shape: what is inside
    never goes back to memory. A value may be used several times inside (gelu written with erf). Element-wise layers
    left over group among themselves when there are at least two. A lone layer stays as it is, which the lowering
    takes for a group of its own. A residual addition joins the later of the two layers it adds.

    Nothing is computed differently. Groups are placed where their last layer was; since no value inside is used
    outside, no cycle between groups can arise.

    Before:

    ```mlir
    func.func @main(%x: tensor<2x8xf32>, %r: tensor<2x4xf32>) -> tensor<2x4xf32> {
      %w = nn.weight "w" : tensor<8x4xf32>
      %b = nn.weight "b" : tensor<4xf32>
      %0 = nn.matmul %x, %w : (tensor<2x8xf32>, tensor<8x4xf32>) -> tensor<2x4xf32>
      %1 = nn.add %0, %b : tensor<2x4xf32>, tensor<4xf32>
      %2 = nn.add %1, %r : tensor<2x4xf32>, tensor<2x4xf32>
      %3 = nn.relu %2 : tensor<2x4xf32>
      func.return %3 : tensor<2x4xf32>
    }
    ```

    After:

    ```mlir
    func.func @main(%x: tensor<2x8xf32>, %r: tensor<2x4xf32>) -> tensor<2x4xf32> {
      %w = nn.weight "w" : tensor<8x4xf32>
      %b = nn.weight "b" : tensor<4xf32>
      %0 = nn.fused "matmul" (%x, %w, %b, %r) {
      ^bb0(%ix: tensor<2x8xf32>, %iw: tensor<8x4xf32>, %ib: tensor<4xf32>, %ir: tensor<2x4xf32>):
        %1 = nn.matmul %ix, %iw : (tensor<2x8xf32>, tensor<8x4xf32>) -> tensor<2x4xf32>
        %2 = nn.add %1, %ib : tensor<2x4xf32>, tensor<4xf32>
        %3 = nn.add %2, %ir : tensor<2x4xf32>, tensor<2x4xf32>
        %4 = nn.relu %3 : tensor<2x4xf32>
        nn.yield %4 : tensor<2x4xf32>
      } : (tensor<2x8xf32>, tensor<8x4xf32>, tensor<4xf32>, tensor<2x4xf32>) -> tensor<2x4xf32>
      func.return %0 : tensor<2x4xf32>
    }
    ```
    """

    name = "nn-fuse"
    summary = "group contractions with bias, activation and residual, and chains of element-wise layers"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "contraction-groups": "groups made around a convolution or matrix product",
        "elementwise-groups": "groups made of element-wise layers",
        "layers": "layers that are now in a group",
    }

    max_layers: int = option(16, "most layers in one group")
    elementwise: bool = option(True, "also group element-wise layers among themselves")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for block in list(nn_blocks(op)):
            ops = list(block.ops)
            order = {inner: i for i, inner in enumerate(ops)}
            grouped: set[Operation] = set()
            # Backwards, so that of two layers a residual addition adds, the later one takes it: its group then waits
            # for nothing it would not wait for anyway.
            for inner in reversed(ops):
                if isinstance(inner, nn.CONTRACTIONS):
                    self._group(inner, order, grouped)
            if self.elementwise:
                for inner in ops:
                    if inner not in grouped and _is_elementwise(inner):
                        self._group(inner, order, grouped)

    def _group(self, root: Operation, order: dict[Operation, int], grouped: set[Operation]) -> None:
        group = [*packing_of(root), root]
        while extension := _extension(group[-1].results[0], root, order, grouped):
            if len(group) + len(extension) > self.max_layers:
                break
            group += extension
        if len(group) < 2:
            return
        contraction = isinstance(root, nn.CONTRACTIONS)
        self.count("contraction-groups" if contraction else "elementwise-groups")
        self.count("layers", len(group))
        grouped.update(group)
        outline(group, root.name.removeprefix("nn.") if contraction else "elementwise")


def _is_elementwise(op: Operation) -> bool:
    if not isinstance(op, _ELEMENTWISE) or type_of(op.results[0]).element_type != f32:
        return False
    return not all(is_constant(operand) for operand in op.operands)


def _extension(
    value: SSAValue, root: Operation, order: dict[Operation, int], grouped: set[Operation]
) -> list[Operation]:
    """The fewest element-wise ops after `value` that use it up and give one value; [] when there are none."""
    shape = type_of(root.results[0]).get_shape()
    taken: list[Operation] = []
    open_uses = _users(value)
    while open_uses and len(taken) < _LOOK_AHEAD:
        # The earliest first: what it takes from inside is inside already.
        user = min(open_uses, key=lambda op: order.get(op, -1))
        fits = user in order and user not in grouped and _is_elementwise(user)
        if not fits or type_of(user.results[0]).get_shape() != shape:
            return []
        taken.append(user)
        open_uses.remove(user)
        if not open_uses:
            return taken
        open_uses |= _users(user.results[0])
    return []


def _users(value: SSAValue) -> set[Operation]:
    return {use.operation for use in value.uses}
