"""Contractions, the ops the TensorEngine runs: convolution, transposed convolution and matrix product."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import TensorType, f32
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, result_def, traits_def
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import (
    I64Array,
    I64Attr,
    NnOp,
    Tensor,
    Value,
    WindowOp,
    broadcast_shapes,
    check_length,
    get_ints,
    i64_attr,
    need_float,
    optional_ints,
    shape_text,
    tensor,
    type_of,
    window_shape,
)


@irdl_op_definition
class ConvOp(WindowOp):
    """Convolution as ONNX: cross-correlation of x (N, C, spatial..) with w (M, C / group, kernel..) plus bias (M).

    Channels are in `group` groups: output channel m of group g sums over the C / group input channels of g. Pads are in
    ONNX order, all beginnings then all ends, and pad with 0. Strides and dilations are 1 and pads 0 when left out. The
    result is f32 (N, M, out spatial..).
    """

    name = "nn.conv"

    x = operand_def(TensorType)
    w = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    dilations_attr = opt_prop_def(I64Array, prop_name="dilations")
    group_attr = opt_prop_def(I64Attr, prop_name="group")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    assembly_format = (
        "$x `,` $w (`,` $bias^)? (`strides` $strides^)? (`pads` $pads^)? (`dilations` $dilations^)? (`group` $group^)? "
        "attr-dict `:` functional-type(operands, results)"
    )

    def __init__(
        self,
        x: Value,
        w: Value,
        bias: Value | None = None,
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        group: int = 1,
    ):
        result = self.infer_result_type(
            type_of(x),
            type_of(w),
            None if bias is None else type_of(bias),
            strides=strides,
            pads=pads,
            dilations=dilations,
            group=group,
        )
        super().__init__(
            operands=[x, w, bias],
            result_types=[result],
            properties={
                "strides": optional_ints(strides, 1),
                "pads": optional_ints(pads, 0),
                "dilations": optional_ints(dilations, 1),
                "group": None if group == 1 else i64_attr(group),
            },
        )

    @classmethod
    def infer_result_type(
        cls,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None = None,
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        group: int = 1,
    ) -> Tensor:
        """The result type for operand types and parameters."""
        xs, ws = x.get_shape(), w.get_shape()
        need_float(x.element_type, cls.name, "input")
        need_float(w.element_type, cls.name, "weight")
        if len(xs) < 3 or len(ws) != len(xs):
            raise VerifyException(
                f"{cls.name} needs an input and a weight of one rank, at least 3, "
                f"got {shape_text(xs)} and {shape_text(ws)}"
            )
        if group < 1 or ws[0] % group:
            raise VerifyException(f"{cls.name} needs a group count that divides {ws[0]} output channels, got {group}")
        if ws[1] * group != xs[1]:
            raise VerifyException(
                f"{cls.name} needs {ws[1] * group} input channels (weight has {ws[1]} x group {group}), got {xs[1]}"
            )
        if bias is not None:
            need_float(bias.element_type, cls.name, "bias")
            if bias.get_shape() != (ws[0],):
                raise VerifyException(f"{cls.name} needs a bias of shape {ws[0]}, got {shape_text(bias.get_shape())}")
        rank = len(xs) - 2
        spatial = window_shape(
            cls.name, xs[2:], ws[2:], strides or (1,) * rank, pads or (0,) * 2 * rank, dilations or (1,) * rank
        )
        return tensor((xs[0], ws[0], *spatial), f32)

    @property
    def dilations(self) -> tuple[int, ...]:
        """One per spatial axis."""
        return self.per_axis(self.dilations_attr, 1)

    @property
    def group(self) -> int:
        """How many groups the channels are in."""
        return 1 if self.group_attr is None else self.group_attr.value.data

    def infer(self) -> Tensor:
        return self.infer_result_type(
            type_of(self.x),
            type_of(self.w),
            None if self.bias is None else type_of(self.bias),
            strides=get_ints(self.strides_attr),
            pads=get_ints(self.pads_attr),
            dilations=get_ints(self.dilations_attr),
            group=self.group,
        )


@irdl_op_definition
class ConvTransposeOp(WindowOp):
    """Transposed convolution as ONNX `ConvTranspose`: x (N, C, spatial..) with w (C, M, kernel..) plus bias (M).

    Element i of x adds w[k] * x[i] to element i * stride + k - pad of the result: the gradient of a convolution with
    regard to its input. Pads are in ONNX order, all beginnings then all ends, and cut the result; output_padding
    lengthens its end, by less than a stride. Strides are 1, pads and output_padding 0 when left out. The result is f32
    (N, M, (in - 1) * stride + kernel - pads + output_padding per spatial axis).
    """

    name = "nn.conv_transpose"

    x = operand_def(TensorType)
    w = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    output_padding_attr = opt_prop_def(I64Array, prop_name="output_padding")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    assembly_format = (
        "$x `,` $w (`,` $bias^)? (`strides` $strides^)? (`pads` $pads^)? (`output_padding` $output_padding^)? "
        "attr-dict `:` functional-type(operands, results)"
    )

    def __init__(
        self,
        x: Value,
        w: Value,
        bias: Value | None = None,
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
    ):
        result = self.infer_result_type(
            type_of(x),
            type_of(w),
            None if bias is None else type_of(bias),
            strides=strides,
            pads=pads,
            output_padding=output_padding,
        )
        super().__init__(
            operands=[x, w, bias],
            result_types=[result],
            properties={
                "strides": optional_ints(strides, 1),
                "pads": optional_ints(pads, 0),
                "output_padding": optional_ints(output_padding, 0),
            },
        )

    @classmethod
    def infer_result_type(
        cls,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None = None,
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
    ) -> Tensor:
        """The result type for operand types and parameters."""
        xs, ws = x.get_shape(), w.get_shape()
        need_float(x.element_type, cls.name, "input")
        need_float(w.element_type, cls.name, "weight")
        if len(xs) < 3 or len(ws) != len(xs):
            raise VerifyException(
                f"{cls.name} needs an input and a weight of one rank, at least 3, "
                f"got {shape_text(xs)} and {shape_text(ws)}"
            )
        if ws[0] != xs[1]:
            raise VerifyException(f"{cls.name} needs {ws[0]} input channels, as its weight has, got {xs[1]}")
        if bias is not None:
            need_float(bias.element_type, cls.name, "bias")
            if bias.get_shape() != (ws[1],):
                raise VerifyException(f"{cls.name} needs a bias of shape {ws[1]}, got {shape_text(bias.get_shape())}")
        rank = len(xs) - 2
        strides, pads = strides or (1,) * rank, pads or (0,) * 2 * rank
        output_padding = output_padding or (0,) * rank
        check_length(cls.name, "strides", strides, rank, 1)
        check_length(cls.name, "pads", pads, 2 * rank, 0)
        check_length(cls.name, "output_padding", output_padding, rank, 0)
        spatial: list[int] = []
        for axis in range(rank):
            if output_padding[axis] >= strides[axis]:
                raise VerifyException(
                    f"{cls.name} needs output_padding below the stride of {strides[axis]}, got {list(output_padding)}"
                )
            whole = (xs[2 + axis] - 1) * strides[axis] + ws[2 + axis] + output_padding[axis]
            left = whole - pads[axis] - pads[rank + axis]
            if left < 1:
                raise VerifyException(f"{cls.name} needs pads that leave something of {whole}, got {list(pads)}")
            spatial.append(left)
        return tensor((xs[0], ws[1], *spatial), f32)

    @property
    def output_padding(self) -> tuple[int, ...]:
        """What the end of the result is lengthened by, one per spatial axis."""
        return self.per_axis(self.output_padding_attr, 0)

    def infer(self) -> Tensor:
        return self.infer_result_type(
            type_of(self.x),
            type_of(self.w),
            None if self.bias is None else type_of(self.bias),
            strides=get_ints(self.strides_attr),
            pads=get_ints(self.pads_attr),
            output_padding=get_ints(self.output_padding_attr),
        )


@irdl_op_definition
class MatmulOp(NnOp):
    """Matrix product of the last two dimensions, (.., M, K) x (.., K, N) -> f32 (.., M, N).

    The dimensions before them broadcast as in numpy. Both operands have a rank of at least 2 (the importer reshapes
    ONNX's rank-1 operands).
    """

    name = "nn.matmul"

    lhs = operand_def(TensorType)
    rhs = operand_def(TensorType)
    result = result_def(TensorType)

    traits = traits_def(Pure())

    assembly_format = "$lhs `,` $rhs attr-dict `:` functional-type(operands, results)"

    def __init__(self, lhs: Value, rhs: Value):
        super().__init__(operands=[lhs, rhs], result_types=[self.infer_result_type(type_of(lhs), type_of(rhs))])

    @classmethod
    def infer_result_type(cls, lhs: Tensor, rhs: Tensor) -> Tensor:
        """The result type for operand types."""
        need_float(lhs.element_type, cls.name, "left operand")
        need_float(rhs.element_type, cls.name, "right operand")
        left, right = lhs.get_shape(), rhs.get_shape()
        if len(left) < 2 or len(right) < 2:
            raise VerifyException(
                f"{cls.name} needs operands of rank at least 2, got {shape_text(left)} and {shape_text(right)}"
            )
        if left[-1] != right[-2]:
            raise VerifyException(
                f"{cls.name} needs as many columns on the left as rows on the right, got {left[-1]} and {right[-2]}"
            )
        batch = broadcast_shapes(cls.name, left[:-2], right[:-2]) if len(left) > 2 or len(right) > 2 else ()
        return tensor((*batch, left[-2], right[-1]), f32)

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.lhs), type_of(self.rhs))


CONTRACTIONS = (ConvOp, ConvTransposeOp, MatmulOp)
"""What the TensorEngine runs; operands 0 and 1 are multiplied."""
