"""Ops over windows of neighbours: pooling, and normalisation over neighbouring channels."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import TensorType, UnitAttr, f32
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def, traits_def
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import (
    F32Attr,
    I64Array,
    I64Attr,
    NnOp,
    Number,
    Tensor,
    Value,
    WindowOp,
    f32_attr,
    get_ints,
    i64_attr,
    ints,
    is_float,
    is_integer,
    need_float,
    optional_ints,
    shape_text,
    tensor,
    type_of,
    window_shape,
)


def _pool_shape(
    op: str,
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
) -> tuple[int, ...]:
    shape = x.get_shape()
    if len(shape) < 3:
        raise VerifyException(f"{op} needs an input of rank at least 3 (N, C, spatial..), got {shape_text(shape)}")
    rank = len(shape) - 2
    pads = pads or (0,) * 2 * rank
    dilations = dilations or (1,) * rank
    spatial = window_shape(op, shape[2:], kernel, strides or (1,) * rank, pads, dilations)
    for axis in range(rank):
        span = dilations[axis] * (kernel[axis] - 1) + 1
        if max(pads[axis], pads[rank + axis]) >= span:
            # Such a window would hold padding only, and its maximum or average is undefined.
            raise VerifyException(f"{op} needs pads smaller than the window of {span}, got {list(pads)}")
    return (*shape[:2], *spatial)


class PoolOp(WindowOp):
    """A window slid over the spatial dimensions of (N, C, spatial..)."""

    x = operand_def(TensorType)
    kernel_attr = prop_def(I64Array, prop_name="kernel")
    dilations_attr = opt_prop_def(I64Array, prop_name="dilations")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    @property
    def kernel(self) -> tuple[int, ...]:
        """Window size, one per spatial axis."""
        return tuple(self.kernel_attr.iter_values())

    @property
    def dilations(self) -> tuple[int, ...]:
        """One per spatial axis."""
        return self.per_axis(self.dilations_attr, 1)


@irdl_op_definition
class MaxPoolOp(PoolOp):
    """The maximum of each window, as ONNX `MaxPool`; padding never wins. Keeps the element type.

    The result has floor((in + pads - dilation * (kernel - 1) - 1) / stride) + 1 windows per axis (an importer turns
    ONNX's ceil_mode into end pads).
    """

    name = "nn.max_pool"

    assembly_format = (
        "$x `kernel` $kernel (`strides` $strides^)? (`pads` $pads^)? (`dilations` $dilations^)? "
        "attr-dict `:` functional-type(operands, results)"
    )

    def __init__(
        self,
        x: Value,
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
    ):
        result = self.infer_result_type(type_of(x), kernel, strides=strides, pads=pads, dilations=dilations)
        super().__init__(
            operands=[x],
            result_types=[result],
            properties={
                "kernel": ints(kernel),
                "strides": optional_ints(strides, 1),
                "pads": optional_ints(pads, 0),
                "dilations": optional_ints(dilations, 1),
            },
        )

    @classmethod
    def infer_result_type(
        cls,
        x: Tensor,
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
    ) -> Tensor:
        """The result type for an operand type and parameters."""
        if not (is_float(x.element_type) or is_integer(x.element_type)):
            raise VerifyException(f"{cls.name} needs elements of f32, bf16, f16 or an integer, got {x.element_type}")
        return tensor(_pool_shape(cls.name, x, kernel, strides, pads, dilations), x.element_type)

    def infer(self) -> Tensor:
        return self.infer_result_type(
            type_of(self.x),
            self.kernel,
            strides=get_ints(self.strides_attr),
            pads=get_ints(self.pads_attr),
            dilations=get_ints(self.dilations_attr),
        )


@irdl_op_definition
class AvgPoolOp(PoolOp):
    """The mean of each window, as ONNX `AveragePool`; f32.

    Padding counts as 0 with `count_include_pad`, else the mean is over the elements inside the input.
    """

    name = "nn.avg_pool"

    count_include_pad_attr = opt_prop_def(UnitAttr, prop_name="count_include_pad")

    assembly_format = (
        "$x `kernel` $kernel (`strides` $strides^)? (`pads` $pads^)? (`dilations` $dilations^)? "
        "(`count_include_pad` $count_include_pad^)? attr-dict `:` functional-type(operands, results)"
    )

    def __init__(
        self,
        x: Value,
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        count_include_pad: bool = False,
    ):
        result = self.infer_result_type(type_of(x), kernel, strides=strides, pads=pads, dilations=dilations)
        super().__init__(
            operands=[x],
            result_types=[result],
            properties={
                "kernel": ints(kernel),
                "strides": optional_ints(strides, 1),
                "pads": optional_ints(pads, 0),
                "dilations": optional_ints(dilations, 1),
                "count_include_pad": UnitAttr() if count_include_pad else None,
            },
        )

    @classmethod
    def infer_result_type(
        cls,
        x: Tensor,
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
    ) -> Tensor:
        """The result type for an operand type and parameters."""
        need_float(x.element_type, cls.name)
        return tensor(_pool_shape(cls.name, x, kernel, strides, pads, dilations), f32)

    @property
    def count_include_pad(self) -> bool:
        """Whether padding counts as elements of value 0."""
        return self.count_include_pad_attr is not None

    def infer(self) -> Tensor:
        return self.infer_result_type(
            type_of(self.x),
            self.kernel,
            strides=get_ints(self.strides_attr),
            pads=get_ints(self.pads_attr),
            dilations=get_ints(self.dilations_attr),
        )


@irdl_op_definition
class LrnOp(NnOp):
    """Local response normalisation over channels, as ONNX `LRN`; f32.

    x / (bias + alpha / size * sum of squares) ^ beta, where the sum is over the channels from
    c - floor((size - 1) / 2) to c + ceil((size - 1) / 2) that exist. x is (N, C, spatial..).
    """

    name = "nn.lrn"

    x = operand_def(TensorType)
    size_attr = prop_def(I64Attr, prop_name="size")
    alpha_attr = prop_def(F32Attr, prop_name="alpha")
    beta_attr = prop_def(F32Attr, prop_name="beta")
    bias_attr = prop_def(F32Attr, prop_name="bias")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    custom_directives = (Number,)
    assembly_format = (
        "$x `size` $size `alpha` custom<Number>($alpha) `beta` custom<Number>($beta) `bias` custom<Number>($bias) "
        "attr-dict `:` functional-type(operands, results)"
    )

    def __init__(self, x: Value, size: int, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0):
        super().__init__(
            operands=[x],
            result_types=[self.infer_result_type(type_of(x), size)],
            properties={
                "size": i64_attr(size),
                "alpha": f32_attr(alpha),
                "beta": f32_attr(beta),
                "bias": f32_attr(bias),
            },
        )

    @classmethod
    def infer_result_type(cls, x: Tensor, size: int) -> Tensor:
        """The result type for an operand type."""
        need_float(x.element_type, cls.name)
        if x.get_num_dims() < 2:
            raise VerifyException(f"{cls.name} needs an input (N, C, ..), got {shape_text(x.get_shape())}")
        if size < 1:
            raise VerifyException(f"{cls.name} needs a size of at least 1, got {size}")
        return tensor(x.get_shape(), f32)

    @property
    def size(self) -> int:
        """How many neighbouring channels are summed."""
        return self.size_attr.value.data

    @property
    def alpha(self) -> float:
        """Scale of the sum of squares, before the division by size."""
        return self.alpha_attr.value.data

    @property
    def beta(self) -> float:
        """The exponent."""
        return self.beta_attr.value.data

    @property
    def bias(self) -> float:
        """What is added to the scaled sum."""
        return self.bias_attr.value.data

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.x), self.size)
