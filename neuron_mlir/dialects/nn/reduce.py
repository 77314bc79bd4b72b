"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import TensorType, UnitAttr, i64
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def, traits_def
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import (
    I64Array,
    I64Attr,
    NnOp,
    Tensor,
    Value,
    check_axis,
    computed,
    i64_attr,
    ints,
    need_float,
    tensor,
    type_of,
)


def _reduced_shape(op: str, shape: Sequence[int], axes: Sequence[int], keepdims: bool) -> list[int]:
    if not axes:
        raise VerifyException(f"{op} needs at least one axis, got none")
    if list(axes) != sorted(set(axes)):
        raise VerifyException(f"{op} needs axes in ascending order without repetition, got {list(axes)}")
    for axis in axes:
        check_axis(op, axis, len(shape))
    return [1 if i in axes else dim for i, dim in enumerate(shape) if keepdims or i not in axes]


class ReduceOp(NnOp):
    """A reduction over `axes` (ascending, not negative); they stay as dimensions of 1 with `keepdims`, else vanish.

    Floats are reduced in f32 and give f32, integers keep their type.
    """

    x = operand_def(TensorType)
    axes_attr = prop_def(I64Array, prop_name="axes")
    keepdims_attr = opt_prop_def(UnitAttr, prop_name="keepdims")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    assembly_format = "$x `axes` $axes (`keepdims` $keepdims^)? attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: Value, axes: Sequence[int], *, keepdims: bool = False):
        super().__init__(
            operands=[x],
            result_types=[self.infer_result_type(type_of(x), axes, keepdims=keepdims)],
            properties={"axes": ints(axes), "keepdims": UnitAttr() if keepdims else None},
        )

    @classmethod
    def infer_result_type(cls, x: Tensor, axes: Sequence[int], *, keepdims: bool = False) -> Tensor:
        """The result type for an operand type and parameters."""
        element_type = computed(x.element_type, cls.name)
        return tensor(_reduced_shape(cls.name, x.get_shape(), axes, keepdims), element_type)

    @property
    def axes(self) -> tuple[int, ...]:
        """The reduced dimensions, ascending."""
        return tuple(self.axes_attr.iter_values())

    @property
    def keepdims(self) -> bool:
        """Whether reduced dimensions stay, as 1."""
        return self.keepdims_attr is not None

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), self.axes, keepdims=self.keepdims)


@irdl_op_definition
class ReduceSumOp(ReduceOp):
    """The sum."""

    name = "nn.reduce_sum"


@irdl_op_definition
class ReduceMeanOp(ReduceOp):
    """The mean, of floats only. Over all spatial dimensions it is ONNX's GlobalAveragePool."""

    name = "nn.reduce_mean"

    @classmethod
    def infer_result_type(cls, x: Tensor, axes: Sequence[int], *, keepdims: bool = False) -> Tensor:
        need_float(x.element_type, cls.name)
        return super().infer_result_type(x, axes, keepdims=keepdims)


@irdl_op_definition
class ReduceMaxOp(ReduceOp):
    """The greatest; NaN if any is."""

    name = "nn.reduce_max"


@irdl_op_definition
class ReduceMinOp(ReduceOp):
    """The least; NaN if any is."""

    name = "nn.reduce_min"


@irdl_op_definition
class ReduceProdOp(ReduceOp):
    """The product."""

    name = "nn.reduce_prod"


@irdl_op_definition
class ArgMaxOp(NnOp):
    """The index of the greatest element along one axis, the first of equals; i64, as ONNX `ArgMax`."""

    name = "nn.arg_max"

    x = operand_def(TensorType)
    axis_attr = prop_def(I64Attr, prop_name="axis")
    keepdims_attr = opt_prop_def(UnitAttr, prop_name="keepdims")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    assembly_format = "$x `axis` $axis (`keepdims` $keepdims^)? attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: Value, *, axis: int, keepdims: bool = False):
        super().__init__(
            operands=[x],
            result_types=[self.infer_result_type(type_of(x), axis=axis, keepdims=keepdims)],
            properties={"axis": i64_attr(axis), "keepdims": UnitAttr() if keepdims else None},
        )

    @classmethod
    def infer_result_type(cls, x: Tensor, *, axis: int, keepdims: bool = False) -> Tensor:
        """The result type for an operand type and parameters."""
        computed(x.element_type, cls.name)
        return tensor(_reduced_shape(cls.name, x.get_shape(), [axis], keepdims), i64)

    @property
    def axis(self) -> int:
        """The searched dimension."""
        return self.axis_attr.value.data

    @property
    def keepdims(self) -> bool:
        """Whether the searched dimension stays, as 1."""
        return self.keepdims_attr is not None

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), axis=self.axis, keepdims=self.keepdims)


REDUCE_OPS = (ReduceSumOp, ReduceMeanOp, ReduceMaxOp, ReduceMinOp, ReduceProdOp)
