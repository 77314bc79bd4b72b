"""`nn-match-activations`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.builtin import f32
from xdsl.ir import Block, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.dialects.nn.canonicalize import splat_number
from neuron_mlir.ir.locations import fuse_locations, insert_before, replace
from neuron_mlir.passes.base import NeuronPass, Relation
from neuron_mlir.passes.nn._constants import erase_unused_constants, nn_blocks

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp

_CLOSE = 1e-4
"""Relative: exporters write sqrt(2) and its like with few digits."""


@dataclass(frozen=True)
class MatchActivations(NeuronPass):
    """Recognises activation functions that exporters write out, and makes each the one layer it is.

    The scalar engine has mish, silu (swish), and both forms of gelu as single instructions; written out they take three
    to nine, on two engines. A product is one of these when its factors, in any order and grouping, are

    - mish: x and tanh(softplus(x)),
    - silu: x and sigmoid(x),
    - gelu: x, 1 + erf(x / sqrt(2)) and 0.5,
    - gelu with tanh: x, 1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)) and 0.5.

    Values inside that something else reads, too, stay for that reader. A tensor rounded to 16 bits between the parts
    is not recognised: the one layer would not round there. Results differ in the last bits of f32.

    Before:

    ```mlir
    func.func @main(%x: tensor<2x8xf32>) -> tensor<2x8xf32> {
      %0 = nn.softplus %x : tensor<2x8xf32>
      %1 = nn.tanh %0 : tensor<2x8xf32>
      %2 = nn.mul %x, %1 : tensor<2x8xf32>, tensor<2x8xf32>
      func.return %2 : tensor<2x8xf32>
    }
    ```

    After:

    ```mlir
    func.func @main(%x: tensor<2x8xf32>) -> tensor<2x8xf32> {
      %0 = nn.mish %x : tensor<2x8xf32>
      func.return %0 : tensor<2x8xf32>
    }
    ```
    """

    name = "nn-match-activations"
    summary: ClassVar[str] = "recognise mish, silu and gelu where they are written out"
    relation: ClassVar[Relation] = Relation.REASSOCIATES
    statistics_help: ClassVar[dict[str, str]] = {
        "matched": "activation functions recognised",
        "layers": "layers they were written as",
    }

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for block in list(nn_blocks(op)):
            for layer in list(block.ops):
                # An earlier match may have erased it.
                if layer.parent is block and isinstance(layer, (nn.MulOp, nn.DivOp)):
                    self._match(block, layer)
            erase_unused_constants(block)

    def _match(self, block: Block, root: nn.MulOp | nn.DivOp) -> None:
        if root.type.element_type != f32:
            return
        factors, number = _factors(root)
        for x, gate in ((factors[0], factors[-1]), (factors[-1], factors[0])) if len(factors) == 2 else ():
            kind = _function(x, gate, number)
            if kind is not None and type_of(x).get_shape() == root.type.get_shape():
                made = kind(x)
                inside = _unused_without(root, x)
                made.location = fuse_locations([layer.location for layer in reversed(inside)])
                self.count("matched")
                self.count("layers", len(inside))
                insert_before(root, made)
                replace(root, (), (made.result,))
                for layer in inside[1:]:
                    block.erase_op(layer)
                return


def _factors(root: nn.MulOp | nn.DivOp) -> tuple[list[SSAValue], float]:
    """What is multiplied, products that nothing else reads taken apart, and the product of the numbers among it."""
    factors: list[SSAValue] = []
    number = 1.0
    values: list[SSAValue] = [root.result]
    while values:
        value = values.pop()
        op = value.owner
        constant = splat_number(value)
        if constant is not None:
            number *= constant
        elif isinstance(op, nn.MulOp) and (op is root or value.has_one_use()):
            values += [op.rhs, op.lhs]
        elif isinstance(op, nn.DivOp) and (op is root or value.has_one_use()) and splat_number(op.rhs):
            number /= splat_number(op.rhs) or 1.0
            values.append(op.lhs)
        else:
            factors.append(value)
    return factors, number


def _function(x: SSAValue, gate: SSAValue, number: float) -> type[nn.UnaryOp] | None:
    """The function that x * gate * number is."""
    op = gate.owner
    if isinstance(op, nn.SigmoidOp) and op.input is x and number == 1.0:
        return nn.SiluOp
    if isinstance(op, nn.TanhOp) and number == 1.0:
        inner = op.input.owner
        return nn.MishOp if isinstance(inner, nn.SoftplusOp) and inner.input is x else None
    if not isinstance(op, nn.AddOp) or number != 0.5:
        return None
    for one, other in _either(op):
        if splat_number(one) != 1.0:
            continue
        inner = other.owner
        if isinstance(inner, nn.ErfOp) and _is_scaled(inner.input, x, math.sqrt(0.5)):
            return nn.GeluOp
        if isinstance(inner, nn.TanhOp) and _is_cubic(inner.input, x):
            return nn.GeluTanhOp
    return None


def _is_scaled(value: SSAValue, x: SSAValue, scale: float) -> bool:
    """Whether a value is x times a number."""
    op = value.owner
    if isinstance(op, nn.DivOp):
        number = splat_number(op.rhs)
        return op.lhs is x and bool(number) and math.isclose(1.0 / (number or 1.0), scale, rel_tol=_CLOSE)
    if not isinstance(op, nn.MulOp):
        return False
    return any(
        other is x and (number := splat_number(one)) is not None and math.isclose(number, scale, rel_tol=_CLOSE)
        for one, other in _either(op)
    )


def _is_cubic(value: SSAValue, x: SSAValue) -> bool:
    """Whether a value is sqrt(2 / pi) * (x + 0.044715 * x^3)."""
    op = value.owner
    if not isinstance(op, nn.MulOp):
        return False
    for one, total in _either(op):
        number, inner = splat_number(one), total.owner
        if number is None or not math.isclose(number, math.sqrt(2.0 / math.pi), rel_tol=_CLOSE):
            continue
        if isinstance(inner, nn.AddOp):
            return any(plain is x and _is_cube(cube, x, 0.044715) for plain, cube in _either(inner))
    return False


def _is_cube(value: SSAValue, x: SSAValue, scale: float) -> bool:
    """Whether a value is scale * x^3, as a power or as products."""
    if not isinstance(value.owner, nn.MulOp):
        return False
    factors, number = _factors(value.owner)
    if not math.isclose(number, scale, rel_tol=_CLOSE):
        return False
    power = 0
    for factor in factors:
        op = factor.owner
        if factor is x:
            power += 1
        elif isinstance(op, nn.PowOp) and op.lhs is x and splat_number(op.rhs) in (2.0, 3.0):
            power += int(splat_number(op.rhs) or 0)
        else:
            return False
    return power == 3


def _either(op: nn.BinaryOp) -> Iterator[tuple[SSAValue, SSAValue]]:
    """The operands in both orders."""
    yield op.lhs, op.rhs
    yield op.rhs, op.lhs


def _unused_without(root: Operation, x: SSAValue) -> list[Operation]:
    """`root` and the layers before it, up to `x`, that only it needs; users before what they use."""
    inside: list[Operation] = [root]
    members: set[Operation] = {root}
    for op in inside:
        for operand in op.operands:
            owner = operand.owner
            if operand is x or owner in members or not isinstance(owner, nn.NnOp) or owner.parent is not root.parent:
                continue
            if all(use.operation in members for use in operand.uses):
                inside.append(owner)
                members.add(owner)
    return inside
