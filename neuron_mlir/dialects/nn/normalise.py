"""Normalisation ops."""

from __future__ import annotations

from xdsl.dialects.builtin import TensorType, f32
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import (
    F32Attr,
    I64Attr,
    NnOp,
    Number,
    Tensor,
    Value,
    check_axis,
    f32_attr,
    i64_attr,
    need_float,
    shape_text,
    tensor,
    type_of,
)


@irdl_op_definition
class BatchNormOp(NnOp):
    """Batch normalisation of inference, as ONNX: scale * (x - mean) / sqrt(var + eps) + bias; f32.

    x is (N, C, ..); scale, bias, mean and var are (C).
    """

    name = "nn.batch_norm"

    x = operand_def(TensorType)
    scale = operand_def(TensorType)
    bias = operand_def(TensorType)
    mean = operand_def(TensorType)
    var = operand_def(TensorType)
    eps_attr = prop_def(F32Attr, prop_name="eps")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    custom_directives = (Number,)
    assembly_format = (
        "$x `,` $scale `,` $bias `,` $mean `,` $var `eps` custom<Number>($eps) attr-dict `:` "
        "functional-type(operands, results)"
    )

    def __init__(self, x: Value, scale: Value, bias: Value, mean: Value, var: Value, *, eps: float = 1e-5):
        types = [type_of(value) for value in (scale, bias, mean, var)]
        super().__init__(
            operands=[x, scale, bias, mean, var],
            result_types=[self.infer_result_type(type_of(x), *types)],
            properties={"eps": f32_attr(eps)},
        )

    @classmethod
    def infer_result_type(cls, x: Tensor, *per_channel: Tensor) -> Tensor:
        """The result type; scale, bias, mean and var follow x."""
        need_float(x.element_type, cls.name)
        if x.get_num_dims() < 2:
            raise VerifyException(f"{cls.name} needs an input (N, C, ..), got {shape_text(x.get_shape())}")
        channels = x.get_shape()[1]
        for what, found in zip(("scale", "bias", "mean", "var"), per_channel, strict=False):
            need_float(found.element_type, cls.name, what)
            if found.get_shape() != (channels,):
                raise VerifyException(
                    f"{cls.name} needs a {what} of shape {channels}, got {shape_text(found.get_shape())}"
                )
        return tensor(x.get_shape(), f32)

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return self.eps_attr.value.data

    def infer(self) -> Tensor:
        return self.infer_result_type(*(type_of(value) for value in self.operands))


@irdl_op_definition
class LayerNormOp(NnOp):
    """Layer normalisation, as ONNX: (x - mean) / sqrt(var + eps) * scale + bias; f32.

    Mean and (biased) variance are over all dimensions from `axis` on; scale and the optional bias broadcast to x and
    have at most its rank.
    """

    name = "nn.layer_norm"

    x = operand_def(TensorType)
    scale = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    axis_attr = prop_def(I64Attr, prop_name="axis")
    eps_attr = prop_def(F32Attr, prop_name="eps")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    custom_directives = (Number,)
    assembly_format = (
        "$x `,` $scale (`,` $bias^)? `axis` $axis `eps` custom<Number>($eps) attr-dict `:` "
        "functional-type(operands, results)"
    )

    def __init__(self, x: Value, scale: Value, bias: Value | None = None, *, axis: int, eps: float = 1e-5):
        result = self.infer_result_type(type_of(x), type_of(scale), None if bias is None else type_of(bias), axis=axis)
        super().__init__(
            operands=[x, scale, bias],
            result_types=[result],
            properties={"axis": i64_attr(axis), "eps": f32_attr(eps)},
        )

    @classmethod
    def infer_result_type(cls, x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int) -> Tensor:
        """The result type for operand types and the axis, which is not negative."""
        shape = x.get_shape()
        need_float(x.element_type, cls.name)
        check_axis(cls.name, axis, len(shape))
        for what, found in (("scale", scale), ("bias", bias)):
            if found is None:
                continue
            need_float(found.element_type, cls.name, what)
            dims = found.get_shape()
            if len(dims) > len(shape) or any(d not in (1, s) for d, s in zip(dims[::-1], shape[::-1], strict=False)):
                raise VerifyException(
                    f"{cls.name} needs a {what} that broadcasts to {shape_text(shape)}, got {shape_text(dims)}"
                )
        return tensor(shape, f32)

    @property
    def axis(self) -> int:
        """The first normalised dimension."""
        return self.axis_attr.value.data

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return self.eps_attr.value.data

    def infer(self) -> Tensor:
        return self.infer_result_type(
            type_of(self.x), type_of(self.scale), None if self.bias is None else type_of(self.bias), axis=self.axis
        )


@irdl_op_definition
class SoftmaxOp(NnOp):
    """exp(x - max) / sum of exp(x - max) along one axis, as ONNX `Softmax` from opset 13 on; f32."""

    name = "nn.softmax"

    x = operand_def(TensorType)
    axis_attr = prop_def(I64Attr, prop_name="axis")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    assembly_format = "$x `axis` $axis attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: Value, *, axis: int):
        super().__init__(
            operands=[x],
            result_types=[self.infer_result_type(type_of(x), axis=axis)],
            properties={"axis": i64_attr(axis)},
        )

    @classmethod
    def infer_result_type(cls, x: Tensor, *, axis: int) -> Tensor:
        """The result type for an operand type and the axis, which is not negative."""
        need_float(x.element_type, cls.name)
        check_axis(cls.name, axis, x.get_num_dims())
        return tensor(x.get_shape(), f32)

    @property
    def axis(self) -> int:
        """The dimension that sums to 1."""
        return self.axis_attr.value.data

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), axis=self.axis)
