"""Ops that say where a value lives between its uses; as functions they are identities."""

from __future__ import annotations

from typing import ClassVar

from xdsl.dialects.builtin import TensorType
from xdsl.irdl import VarConstraint, base, irdl_op_definition, operand_def, result_def

from neuron_mlir.dialects.nn.base import NnOp, Tensor, Value, type_of


class PlaceOp(NnOp):
    """An identity that moves its value to another memory.

    Not `Pure`, on purpose: two reloads of one value are two stays in SBUF, which `cse` must not make one.
    """

    T: ClassVar = VarConstraint("T", base(TensorType))

    x = operand_def(T)
    result = result_def(T)

    def __init__(self, x: Value):
        super().__init__(operands=[x], result_types=[type_of(x)])

    def infer(self) -> Tensor:
        return type_of(self.x)


@irdl_op_definition
class SpillOp(PlaceOp):
    """The value of `x` in DRAM, so that it need not stay in SBUF. `nn.reload` brings it back."""

    name = "nn.spill"

    assembly_format = "$x attr-dict `:` type($x)"


@irdl_op_definition
class ReloadOp(PlaceOp):
    """The value of `x`, which is in DRAM (a result of `nn.spill` or an input), in SBUF again."""

    name = "nn.reload"

    assembly_format = "$x attr-dict `:` type($x)"
