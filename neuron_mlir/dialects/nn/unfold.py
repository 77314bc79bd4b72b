"""Unfolding: windows of a feature map as channels, so that a shallow convolution fills the rows of the PE array."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xdsl.dialects.builtin import TensorType
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import (
    I64Array,
    Tensor,
    Value,
    WindowOp,
    get_ints,
    ints,
    need_float,
    optional_ints,
    shape_text,
    tensor,
    type_of,
    window_shape,
)


@irdl_op_definition
class UnfoldOp(WindowOp):
    """The elements of each window of x (N, C, spatial..) as channels, as PyTorch's `unfold`, with the windows in place.

    The result is (N, C * kernel.., windows..) of the same element type: channel `(c, d0, d1, ..)`, the last running
    fastest, holds at position `(i0, i1, ..)` what x padded with 0 has at channel `c`, position `strides * i + d`.
    Pads are in ONNX order, all beginnings then all ends.
    """

    name = "nn.unfold"

    x = operand_def(TensorType)
    kernel_attr = prop_def(I64Array, prop_name="kernel")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    assembly_format = (
        "$x `kernel` $kernel (`strides` $strides^)? (`pads` $pads^)? attr-dict `:` functional-type(operands, results)"
    )

    def __init__(
        self,
        x: Value,
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
    ):
        result = self.infer_result_type(type_of(x), kernel, strides=strides, pads=pads)
        super().__init__(
            operands=[x],
            result_types=[result],
            properties={
                "kernel": ints(kernel),
                "strides": optional_ints(strides, 1),
                "pads": optional_ints(pads, 0),
            },
        )

    @property
    def kernel(self) -> tuple[int, ...]:
        """Window size, one per spatial axis."""
        return tuple(self.kernel_attr.iter_values())

    @classmethod
    def infer_result_type(
        cls,
        x: Tensor,
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
    ) -> Tensor:
        """The result type for an operand type and parameters."""
        shape = x.get_shape()
        need_float(x.element_type, cls.name, "input")
        if len(shape) < 3:
            raise VerifyException(
                f"{cls.name} needs an input of rank at least 3 (N, C, spatial..), got {shape_text(shape)}"
            )
        rank = len(shape) - 2
        spatial = window_shape(
            cls.name, shape[2:], kernel, strides or (1,) * rank, pads or (0,) * (2 * rank), (1,) * rank
        )
        return tensor((shape[0], shape[1] * math.prod(kernel), *spatial), x.element_type)

    def infer(self) -> Tensor:
        return self.infer_result_type(
            type_of(self.x), self.kernel, strides=get_ints(self.strides_attr), pads=get_ints(self.pads_attr)
        )
