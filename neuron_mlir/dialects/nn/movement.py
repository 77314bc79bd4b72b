"""Ops that move or select values and compute nothing; all but `cast` keep the element type."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xdsl.dialects.builtin import TensorType, i1
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def, traits_def, var_operand_def
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import (
    F32Attr,
    I64Array,
    I64Attr,
    NnOp,
    Number,
    Simplifies,
    Tensor,
    Value,
    broadcast_shapes,
    check_axis,
    check_length,
    f32_attr,
    get_ints,
    i64_attr,
    ints,
    is_integer,
    optional_ints,
    shape_text,
    tensor,
    type_of,
)


@irdl_op_definition
class ReshapeOp(NnOp):
    """The same elements in row-major order under another shape."""

    name = "nn.reshape"

    x = operand_def(TensorType)
    result = result_def(TensorType)

    traits = traits_def(Pure(), Simplifies())

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: Value, shape: Sequence[int]):
        super().__init__(operands=[x], result_types=[self.infer_result_type(type_of(x), shape)])

    @classmethod
    def infer_result_type(cls, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The result type for an operand type and the new shape, all of whose dimensions are given."""
        if math.prod(shape) != math.prod(x.get_shape()):
            raise VerifyException(
                f"{cls.name} needs a shape of {math.prod(x.get_shape())} elements, "
                f"got {math.prod(shape)} ({shape_text(x.get_shape())} to {shape_text(shape)})"
            )
        return tensor(shape, x.element_type)

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), type_of(self.result).get_shape())


@irdl_op_definition
class TransposeOp(NnOp):
    """Dimension i of the result is dimension perm[i] of x."""

    name = "nn.transpose"

    x = operand_def(TensorType)
    perm_attr = prop_def(I64Array, prop_name="perm")
    result = result_def(TensorType)

    traits = traits_def(Pure(), Simplifies())

    assembly_format = "$x `perm` $perm attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: Value, perm: Sequence[int]):
        super().__init__(
            operands=[x],
            result_types=[self.infer_result_type(type_of(x), perm)],
            properties={"perm": ints(perm)},
        )

    @classmethod
    def infer_result_type(cls, x: Tensor, perm: Sequence[int]) -> Tensor:
        """The result type for an operand type and the permutation."""
        shape = x.get_shape()
        if sorted(perm) != list(range(len(shape))):
            raise VerifyException(f"{cls.name} needs a permutation of 0 to {len(shape) - 1}, got {list(perm)}")
        return tensor([shape[axis] for axis in perm], x.element_type)

    @property
    def perm(self) -> tuple[int, ...]:
        """For each dimension of the result the dimension of x."""
        return tuple(self.perm_attr.iter_values())

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), self.perm)


@irdl_op_definition
class SliceOp(NnOp):
    """Element i along an axis is element start + i * stride of x; sizes are the result's. Strides may be negative."""

    name = "nn.slice"

    x = operand_def(TensorType)
    starts_attr = prop_def(I64Array, prop_name="starts")
    sizes_attr = prop_def(I64Array, prop_name="sizes")
    strides_attr = opt_prop_def(I64Array, prop_name="strides")
    result = result_def(TensorType)

    traits = traits_def(Pure(), Simplifies())

    assembly_format = (
        "$x `starts` $starts `sizes` $sizes (`strides` $strides^)? attr-dict `:` functional-type(operands, results)"
    )

    def __init__(self, x: Value, starts: Sequence[int], sizes: Sequence[int], strides: Sequence[int] | None = None):
        super().__init__(
            operands=[x],
            result_types=[self.infer_result_type(type_of(x), starts, sizes, strides)],
            properties={"starts": ints(starts), "sizes": ints(sizes), "strides": optional_ints(strides, 1)},
        )

    @classmethod
    def infer_result_type(
        cls, x: Tensor, starts: Sequence[int], sizes: Sequence[int], strides: Sequence[int] | None = None
    ) -> Tensor:
        """The result type for an operand type and parameters."""
        shape = x.get_shape()
        strides = (1,) * len(shape) if strides is None else strides
        check_length(cls.name, "starts", starts, len(shape), 0)
        check_length(cls.name, "sizes", sizes, len(shape), 1)
        check_length(cls.name, "strides", strides, len(shape))
        for axis, dim in enumerate(shape):
            last = starts[axis] + (sizes[axis] - 1) * strides[axis]
            if strides[axis] == 0:
                raise VerifyException(f"{cls.name} needs strides other than 0, got {list(strides)}")
            if not (starts[axis] < dim and 0 <= last < dim):
                raise VerifyException(
                    f"{cls.name} needs elements 0 to {dim - 1} along axis {axis}, got {starts[axis]} to {last}"
                )
        return tensor(sizes, x.element_type)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first element, per axis."""
        return tuple(self.starts_attr.iter_values())

    @property
    def sizes(self) -> tuple[int, ...]:
        """The result's shape."""
        return tuple(self.sizes_attr.iter_values())

    @property
    def strides(self) -> tuple[int, ...]:
        """The step, per axis."""
        return get_ints(self.strides_attr) or (1,) * len(self.starts)

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), self.starts, self.sizes, get_ints(self.strides_attr))


@irdl_op_definition
class ConcatOp(NnOp):
    """The operands, one behind the other along an axis."""

    name = "nn.concat"

    inputs = var_operand_def(TensorType)
    axis_attr = prop_def(I64Attr, prop_name="axis")
    result = result_def(TensorType)

    traits = traits_def(Pure(), Simplifies())

    assembly_format = "$inputs `axis` $axis attr-dict `:` functional-type(operands, results)"

    def __init__(self, inputs: Sequence[Value], *, axis: int):
        super().__init__(
            operands=[[SSAValue.get(value) for value in inputs]],
            result_types=[self.infer_result_type([type_of(value) for value in inputs], axis=axis)],
            properties={"axis": i64_attr(axis)},
        )

    @classmethod
    def infer_result_type(cls, inputs: Sequence[Tensor], *, axis: int) -> Tensor:
        """The result type for operand types and the axis, which is not negative."""
        if not inputs:
            raise VerifyException(f"{cls.name} needs at least one operand, got none")
        first = inputs[0]
        shape = list(first.get_shape())
        check_axis(cls.name, axis, len(shape))
        for other in inputs[1:]:
            dims = list(other.get_shape())
            if other.element_type != first.element_type:
                raise VerifyException(
                    f"{cls.name} needs operands of one element type, got {first.element_type} and {other.element_type}"
                )
            if len(dims) != len(shape) or dims[:axis] + dims[axis + 1 :] != shape[:axis] + shape[axis + 1 :]:
                raise VerifyException(
                    f"{cls.name} needs operands that differ along axis {axis} only, "
                    f"got {shape_text(first.get_shape())} and {shape_text(dims)}"
                )
        shape[axis] = sum(x.get_shape()[axis] for x in inputs)
        return tensor(shape, first.element_type)

    @property
    def axis(self) -> int:
        """The dimension along which sizes add up."""
        return self.axis_attr.value.data

    def infer(self) -> Tensor:
        return self.infer_result_type([type_of(value) for value in self.inputs], axis=self.axis)


@irdl_op_definition
class GatherOp(NnOp):
    """Slices of data along an axis picked by integer indices, as ONNX `Gather`.

    The result's shape is data's with dimension `axis` replaced by the shape of indices. A negative index counts from
    the end; one out of range is an error when it runs.
    """

    name = "nn.gather"

    data = operand_def(TensorType)
    indices = operand_def(TensorType)
    axis_attr = prop_def(I64Attr, prop_name="axis")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    assembly_format = "$data `,` $indices `axis` $axis attr-dict `:` functional-type(operands, results)"

    def __init__(self, data: Value, indices: Value, *, axis: int = 0):
        super().__init__(
            operands=[data, indices],
            result_types=[self.infer_result_type(type_of(data), type_of(indices), axis=axis)],
            properties={"axis": i64_attr(axis)},
        )

    @classmethod
    def infer_result_type(cls, data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
        """The result type for operand types and the axis, which is not negative."""
        if not is_integer(indices.element_type):
            raise VerifyException(f"{cls.name} needs integer indices, got {indices.element_type}")
        shape = data.get_shape()
        check_axis(cls.name, axis, len(shape))
        return tensor((*shape[:axis], *indices.get_shape(), *shape[axis + 1 :]), data.element_type)

    @property
    def axis(self) -> int:
        """The dimension that is indexed."""
        return self.axis_attr.value.data

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.data), type_of(self.indices), axis=self.axis)


@irdl_op_definition
class PadOp(NnOp):
    """x surrounded by `value`: `low` elements before and `high` behind, per axis. Integer tensors take whole values."""

    name = "nn.pad"

    x = operand_def(TensorType)
    low_attr = prop_def(I64Array, prop_name="low")
    high_attr = prop_def(I64Array, prop_name="high")
    value_attr = prop_def(F32Attr, prop_name="value")
    result = result_def(TensorType)

    traits = traits_def(Pure(), Simplifies())

    custom_directives = (Number,)
    assembly_format = (
        "$x `low` $low `high` $high `value` custom<Number>($value) attr-dict `:` functional-type(operands, results)"
    )

    def __init__(self, x: Value, low: Sequence[int], high: Sequence[int], *, value: float = 0.0):
        super().__init__(
            operands=[x],
            result_types=[self.infer_result_type(type_of(x), low, high)],
            properties={"low": ints(low), "high": ints(high), "value": f32_attr(value)},
        )

    @classmethod
    def infer_result_type(cls, x: Tensor, low: Sequence[int], high: Sequence[int]) -> Tensor:
        """The result type for an operand type and parameters."""
        shape = x.get_shape()
        check_length(cls.name, "low pads", low, len(shape), 0)
        check_length(cls.name, "high pads", high, len(shape), 0)
        return tensor([dim + a + b for dim, a, b in zip(shape, low, high, strict=True)], x.element_type)

    @property
    def low(self) -> tuple[int, ...]:
        """Elements before, per axis."""
        return tuple(self.low_attr.iter_values())

    @property
    def high(self) -> tuple[int, ...]:
        """Elements behind, per axis."""
        return tuple(self.high_attr.iter_values())

    @property
    def pad_value(self) -> float:
        """The value of added elements."""
        return self.value_attr.value.data

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), self.low, self.high)


@irdl_op_definition
class ExpandOp(NnOp):
    """x broadcast, as in numpy, to the result's shape."""

    name = "nn.expand"

    x = operand_def(TensorType)
    result = result_def(TensorType)

    traits = traits_def(Pure(), Simplifies())

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: Value, shape: Sequence[int]):
        super().__init__(operands=[x], result_types=[self.infer_result_type(type_of(x), shape)])

    @classmethod
    def infer_result_type(cls, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The result type for an operand type and the shape to reach."""
        found = x.get_shape()
        if len(found) > len(shape) or any(d not in (1, s) for d, s in zip(found[::-1], shape[::-1], strict=False)):
            raise VerifyException(
                f"{cls.name} needs an operand that broadcasts to {shape_text(shape)}, got {shape_text(found)}"
            )
        return tensor(shape, x.element_type)

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), type_of(self.result).get_shape())


@irdl_op_definition
class ResizeOp(NnOp):
    """Each element of x (N, C, spatial..) repeated `scales` times along the spatial axes: nearest neighbours.

    Element i of the result along an axis is element floor(i / scale) of x, as ONNX `Resize` does for whole scales with
    the modes `asymmetric` and `floor`, or `half_pixel` and `round_prefer_floor`.
    """

    name = "nn.resize"

    x = operand_def(TensorType)
    scales_attr = prop_def(I64Array, prop_name="scales")
    result = result_def(TensorType)

    traits = traits_def(Pure(), Simplifies())

    assembly_format = "$x `scales` $scales attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: Value, scales: Sequence[int]):
        super().__init__(
            operands=[x],
            result_types=[self.infer_result_type(type_of(x), scales)],
            properties={"scales": ints(scales)},
        )

    @classmethod
    def infer_result_type(cls, x: Tensor, scales: Sequence[int]) -> Tensor:
        """The result type for an operand type and the scales."""
        shape = x.get_shape()
        if len(shape) < 3:
            raise VerifyException(
                f"{cls.name} needs an input of rank at least 3 (N, C, spatial..), got {shape_text(shape)}"
            )
        check_length(cls.name, "scales", scales, len(shape) - 2, 1)
        spatial = [size * scale for size, scale in zip(shape[2:], scales, strict=True)]
        return tensor((*shape[:2], *spatial), x.element_type)

    @property
    def scales(self) -> tuple[int, ...]:
        """How often an element is repeated, one per spatial axis."""
        return tuple(self.scales_attr.iter_values())

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), self.scales)


@irdl_op_definition
class WhereOp(NnOp):
    """Element of `on_true` where the condition (i1) holds, else of `on_false`; numpy broadcasting."""

    name = "nn.where"

    condition = operand_def(TensorType)
    on_true = operand_def(TensorType)
    on_false = operand_def(TensorType)
    result = result_def(TensorType)

    traits = traits_def(Pure())

    assembly_format = "$condition `,` $on_true `,` $on_false attr-dict `:` functional-type(operands, results)"

    def __init__(self, condition: Value, on_true: Value, on_false: Value):
        super().__init__(
            operands=[condition, on_true, on_false],
            result_types=[self.infer_result_type(type_of(condition), type_of(on_true), type_of(on_false))],
        )

    @classmethod
    def infer_result_type(cls, condition: Tensor, on_true: Tensor, on_false: Tensor) -> Tensor:
        """The result type for operand types."""
        if condition.element_type != i1:
            raise VerifyException(f"{cls.name} needs a condition of i1, got {condition.element_type}")
        if on_true.element_type != on_false.element_type:
            raise VerifyException(
                f"{cls.name} needs two choices of one element type, "
                f"got {on_true.element_type} and {on_false.element_type}"
            )
        shape = broadcast_shapes(cls.name, condition.get_shape(), on_true.get_shape(), on_false.get_shape())
        return tensor(shape, on_true.element_type)

    def infer(self) -> Tensor:
        return self.infer_result_type(*(type_of(value) for value in self.operands))


@irdl_op_definition
class CastOp(NnOp):
    """Each element as another type: the one place where values are rounded.

    Float to narrower float rounds to nearest, ties to even (f16 overflows to infinity). Float to integer truncates
    towards 0; integer to narrower integer wraps; anything to i1 is `!= 0`.
    """

    name = "nn.cast"

    x = operand_def(TensorType)
    result = result_def(TensorType)

    traits = traits_def(Pure(), Simplifies())

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: Value, element_type: Attribute):
        super().__init__(operands=[x], result_types=[self.infer_result_type(type_of(x), element_type)])

    @classmethod
    def infer_result_type(cls, x: Tensor, element_type: Attribute) -> Tensor:
        """The result type for an operand type and the new element type."""
        return tensor(x.get_shape(), element_type)

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), type_of(self.result).element_type)
