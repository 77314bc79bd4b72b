"""Which streams pass with their last axis outermost: made on the partitions, and wanted there.

A product leaves its output channels on the partitions, and the next one wants its contraction axis there. Written row
by row, such a matrix is turned through the PE array by the stage that makes it and back by the one that reads it, with
a buffer for the rows on both sides. A ring whose slots are the transposed matrix spares all of that.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.memory import element_bytes
from neuron_mlir.dialects.pipe.ops import StageOp, YieldOp
from neuron_mlir.passes.core.lowering.context import shape_of, tensor_type
from neuron_mlir.passes.core.lowering.layout import LANES
from neuron_mlir.passes.core.lowering.plan import group_root, outer_value

BURST = 64
"""Bytes that DRAM moves at least: runs of the transposed matrix are multiples of it."""


def turned_axes(value: SSAValue) -> tuple[int, int] | None:
    """The two axes of a matrix, others of size 1 aside, that a ring may exchange; None where runs would be short."""
    shape = shape_of(value)
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    if len(axes) != 2 or axes[1] != len(shape) - 1 or shape[axes[1]] % LANES:
        return None
    item = element_bytes(tensor_type(value).element_type)
    return (axes[0], axes[1]) if item == 2 and shape[axes[0]] * item % BURST == 0 else None


def passes_turned(value: SSAValue, readers: Sequence[tuple[StageOp, SSAValue]]) -> bool:
    """Whether a result of a stage is on hand with its last axis on the partitions, and all of these stages, by these
    arguments of theirs, want it so.
    """
    return (
        turned_axes(value) is not None
        and _made_so(value)
        and all(turned_axes(argument) is not None and _wanted_so(argument) for _, argument in readers)
    )


def _made_so(value: SSAValue) -> bool:
    """Whether the stage has the value so in any case: a product makes it, or one there reads it."""
    uses = [use.operation for use in value.uses if not isinstance(use.operation, YieldOp)]
    if any(_is_product_of(op, value) for op in uses):
        return True
    return _is_product(value.owner) and all(_wants(op, value) for op in uses)


def _wanted_so(value: SSAValue) -> bool:
    """Whether all who read a value, and there are some, want its last axis on the partitions."""
    uses = [use.operation for use in value.uses]
    return bool(uses) and all(_wants(op, value) for op in uses)


def _wants(op: Operation, value: SSAValue) -> bool:
    if isinstance(op, YieldOp) or _is_product_of(op, value):
        return True
    if isinstance(op, nn.SliceOp):
        return turned_axes(op.result) is not None and _wanted_so(op.result)
    if isinstance(op, nn.ConcatOp):
        whole = all(shape_of(part)[-1] % LANES == 0 for part in op.inputs)
        return whole and op.axis == len(shape_of(op.result)) - 1 and _feeds_products(op.result)
    # Beside a product: as its result, which products leave so unless somebody there wants rows.
    return (
        _is_product(op)
        and shape_of(value) == shape_of(op.results[0])
        and all(
            isinstance(use.operation, YieldOp) or _wants(use.operation, op.results[0]) for use in op.results[0].uses
        )
    )


def _feeds_products(value: SSAValue) -> bool:
    uses = [use.operation for use in value.uses]
    return bool(uses) and all(_is_product_of(op, value) for op in uses)


def _root(op: object) -> nn.MatmulOp | None:
    root = group_root(op) if isinstance(op, nn.FusedOp) else op
    return root if isinstance(root, nn.MatmulOp) else None


def _is_product(op: object) -> bool:
    """Whether it is a product with a weight, with what its group does to it."""
    root = _root(op)
    if root is None or not isinstance(op, Operation):
        return False
    weight = outer_value(op, root.rhs)
    owner = root.rhs.owner if weight is None else weight.owner
    return isinstance(owner, (nn.WeightOp, nn.ConstOp)) and len(shape_of(root.rhs)) == 2


def _is_product_of(op: Operation, value: SSAValue) -> bool:
    """Whether it multiplies the value with a weight, and does nothing else with it."""
    root = _root(op)
    return (
        root is not None
        and _is_product(op)
        and outer_value(op, root.lhs) is value
        and sum(operand is value for operand in op.operands) == 1
    )
