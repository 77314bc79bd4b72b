"""ONNX operators that are layers: contractions, windows, normalisation, reductions."""

from __future__ import annotations

import math

from xdsl.dialects.builtin import f32
from xdsl.ir import SSAValue

from neuron_mlir.dialects.nn import (
    AddOp,
    ArgMaxOp,
    AvgPoolOp,
    BatchNormOp,
    ConvOp,
    ExpOp,
    LayerNormOp,
    LogOp,
    LrnOp,
    MatmulOp,
    MaxPoolOp,
    MulOp,
    ReduceMaxOp,
    ReduceMeanOp,
    ReduceMinOp,
    ReduceOp,
    ReduceProdOp,
    ReduceSumOp,
    SoftmaxOp,
    SqrtOp,
    SubOp,
    TransposeOp,
)
from neuron_mlir.frontends.onnx_context import Context, operator
from neuron_mlir.frontends.onnx_ops_movement import reshape_to

_WINDOW = ("auto_pad", "kernel_shape", "strides", "pads", "dilations")


def _window(ctx: Context, kernel: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """Strides, pads and dilations of a sliding window, `auto_pad` and `ceil_mode` turned into pads."""
    spatial = ctx.shape(0)[2:]
    rank = len(spatial)
    if rank < 1 or len(kernel) != rank:
        raise ctx.error(
            "its input has the wrong rank", needed=f"{len(kernel) + 2}", available=f"shape {list(ctx.shape(0))}"
        )
    strides = ctx.ints("strides") or [1] * rank
    dilations = ctx.ints("dilations") or [1] * rank
    pads = ctx.ints("pads") or [0] * 2 * rank
    for what, found, count in (("strides", strides, rank), ("dilations", dilations, rank), ("pads", pads, 2 * rank)):
        if len(found) != count:
            raise ctx.error(f"{what} must be one per spatial dimension", needed=count, available=len(found))
    if min((*strides, *dilations, *kernel)) < 1 or min(pads) < 0:
        raise ctx.error("kernel, strides and dilations must be at least 1, pads at least 0")
    mode = ctx.attribute("auto_pad", "NOTSET")
    spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    if mode == "VALID":
        pads = [0] * 2 * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(rank):
            windows = -(-spatial[axis] // strides[axis])
            missing = max((windows - 1) * strides[axis] + spans[axis] - spatial[axis], 0)
            less, more = missing // 2, missing - missing // 2
            pads[axis], pads[rank + axis] = (less, more) if mode == "SAME_UPPER" else (more, less)
    elif mode != "NOTSET":
        raise ctx.error(f"auto_pad '{mode}' is not known")
    for axis in range(rank):
        padded = spatial[axis] + pads[axis] + pads[rank + axis]
        if spans[axis] > padded:
            raise ctx.error(
                f"the window is larger than the padded input along spatial axis {axis}",
                needed=spans[axis],
                available=padded,
            )
        if ctx.attribute("ceil_mode", 0):
            windows = -(-(padded - spans[axis]) // strides[axis]) + 1
            if (windows - 1) * strides[axis] >= spatial[axis] + pads[axis]:
                windows -= 1  # a window that begins in the end padding does not count
            pads[rank + axis] += max(0, (windows - 1) * strides[axis] + spans[axis] - padded)
    return strides, pads, dilations


@operator("Conv", *_WINDOW, "group", becomes="nn.conv")
def conv(ctx: Context) -> SSAValue:
    kernel = ctx.shape(1)[2:]
    declared = ctx.ints("kernel_shape")
    if declared is not None and tuple(declared) != kernel:
        raise ctx.error(f"kernel_shape {declared} is not that of the weight, {list(ctx.shape(1))}")
    strides, pads, dilations = _window(ctx, kernel)
    group = int(ctx.attribute("group", 1))
    return ctx.emit(
        ConvOp(
            ctx.value(0), ctx.value(1), ctx.optional(2), strides=strides, pads=pads, dilations=dilations, group=group
        )
    )


@operator("MatMul", becomes="nn.matmul", notes="rank-1 operands reshaped")
def matmul(ctx: Context) -> SSAValue:
    x, y = ctx.value(0), ctx.value(1)
    left, right = ctx.shape(0), ctx.shape(1)
    if not left or not right:
        raise ctx.error("needs operands of rank at least 1, not scalars")
    if len(left) == 1:
        x = reshape_to(ctx, x, [1, *left])
    if len(right) == 1:
        y = reshape_to(ctx, y, [*right, 1])
    result = ctx.emit(MatmulOp(x, y))
    shape = list(ctx.type(result).get_shape())
    if len(left) == 1:
        del shape[-2]
    if len(right) == 1:
        del shape[-1]
    return reshape_to(ctx, result, shape)


@operator("Gemm", "alpha", "beta", "transA", "transB", becomes="nn.transpose, nn.matmul, nn.mul, nn.add")
def gemm(ctx: Context) -> SSAValue:
    for index in (0, 1):
        if ctx.rank(index) != 2:
            raise ctx.error(f"input {index} must be a matrix", available=f"shape {list(ctx.shape(index))}")
    a, b = ctx.value(0), ctx.value(1)
    if ctx.attribute("transA", 0):
        a = ctx.emit(TransposeOp(a, [1, 0]))
    if ctx.attribute("transB", 0):
        b = ctx.emit(TransposeOp(b, [1, 0]))
    result = ctx.emit(MatmulOp(a, b))
    alpha, beta = float(ctx.attribute("alpha", 1.0)), float(ctx.attribute("beta", 1.0))
    if alpha != 1.0:
        result = ctx.emit(MulOp(result, ctx.scalar(alpha, f32)))
    c = ctx.optional(2)
    if c is None or beta == 0.0:
        return result
    if beta != 1.0:
        c = ctx.emit(MulOp(c, ctx.scalar(beta, f32)))
    return ctx.emit(AddOp(result, c))


def _kernel(ctx: Context) -> tuple[int, ...]:
    kernel = ctx.ints("kernel_shape")
    if kernel is None:
        raise ctx.error("kernel_shape is missing")
    return tuple(kernel)


@operator("MaxPool", *_WINDOW, "ceil_mode", "storage_order", becomes="nn.max_pool", notes="no Indices output")
def max_pool(ctx: Context) -> SSAValue:
    kernel = _kernel(ctx)
    strides, pads, dilations = _window(ctx, kernel)
    return ctx.emit(MaxPoolOp(ctx.value(0), kernel, strides=strides, pads=pads, dilations=dilations))


@operator("AveragePool", *_WINDOW, "ceil_mode", "count_include_pad", becomes="nn.avg_pool")
def average_pool(ctx: Context) -> SSAValue:
    kernel = _kernel(ctx)
    strides, pads, dilations = _window(ctx, kernel)
    include = bool(ctx.attribute("count_include_pad", 0))
    if include and ctx.attribute("ceil_mode", 0) and pads != (ctx.ints("pads") or [0] * len(pads)):
        # The elements that ceil_mode adds count in no divisor, those of pads do: nn.avg_pool has one kind only.
        raise ctx.error("ceil_mode together with count_include_pad is not supported", advice="explicit pads")
    return ctx.emit(
        AvgPoolOp(ctx.value(0), kernel, strides=strides, pads=pads, dilations=dilations, count_include_pad=include)
    )


def _spatial_axes(ctx: Context) -> list[int]:
    if ctx.rank(0) < 3:
        raise ctx.error("needs an input (N, C, spatial..)", available=f"shape {list(ctx.shape(0))}")
    return list(range(2, ctx.rank(0)))


@operator("GlobalAveragePool", becomes="nn.reduce_mean")
def global_average_pool(ctx: Context) -> SSAValue:
    return ctx.emit(ReduceMeanOp(ctx.value(0), _spatial_axes(ctx), keepdims=True))


@operator("GlobalMaxPool", becomes="nn.reduce_max")
def global_max_pool(ctx: Context) -> SSAValue:
    return ctx.emit(ReduceMaxOp(ctx.value(0), _spatial_axes(ctx), keepdims=True))


@operator("LRN", "size", "alpha", "beta", "bias", becomes="nn.lrn")
def lrn(ctx: Context) -> SSAValue:
    return ctx.emit(
        LrnOp(
            ctx.value(0),
            int(ctx.attribute("size", 1)),
            alpha=float(ctx.attribute("alpha", 1e-4)),
            beta=float(ctx.attribute("beta", 0.75)),
            bias=float(ctx.attribute("bias", 1.0)),
        )
    )


@operator(
    "BatchNormalization",
    "epsilon",
    "momentum",
    "spatial",
    "is_test",
    "training_mode",
    becomes="nn.batch_norm",
    notes="inference",
)
def batch_norm(ctx: Context) -> SSAValue:
    if ctx.attribute("training_mode", 0):
        raise ctx.error("training mode is on", advice="exporting the model for inference")
    if not ctx.attribute("spatial", 1):
        raise ctx.error("spatial = 0 (statistics per activation) is not supported", advice="opset 9 or later")
    operands = [ctx.value(index) for index in range(5)]
    x, scale, bias, mean, var = operands
    return ctx.emit(BatchNormOp(x, scale, bias, mean, var, eps=float(ctx.attribute("epsilon", 1e-5))))


@operator("LayerNormalization", "axis", "epsilon", "stash_type", becomes="nn.layer_norm")
def layer_norm(ctx: Context) -> SSAValue:
    axis = ctx.axis(int(ctx.attribute("axis", -1)), ctx.rank(0))
    eps = float(ctx.attribute("epsilon", 1e-5))
    return ctx.emit(LayerNormOp(ctx.value(0), ctx.value(1), ctx.optional(2), axis=axis, eps=eps))


@operator("Softmax", "axis", becomes="nn.softmax", notes="before opset 13 over all dimensions from axis on")
def softmax(ctx: Context) -> SSAValue:
    shape = ctx.shape(0)
    x = ctx.value(0)
    if ctx.opset >= 13:
        return ctx.emit(SoftmaxOp(x, axis=ctx.axis(int(ctx.attribute("axis", -1)), len(shape))))
    axis = ctx.axis(int(ctx.attribute("axis", 1)), len(shape))
    wide = [index for index in range(axis, len(shape)) if shape[index] > 1]
    if len(wide) <= 1:  # then flattening changes nothing
        return ctx.emit(SoftmaxOp(x, axis=wide[0] if wide else axis))
    flat = reshape_to(ctx, x, [math.prod(shape[:axis]), math.prod(shape[axis:])])
    return reshape_to(ctx, ctx.emit(SoftmaxOp(flat, axis=1)), shape)


@operator("LogSoftmax", "axis", becomes="nn.reduce_max, nn.sub, nn.exp, nn.reduce_sum, nn.log, nn.sub")
def log_softmax(ctx: Context) -> SSAValue:
    if ctx.opset >= 13:
        axes = [ctx.axis(int(ctx.attribute("axis", -1)), ctx.rank(0))]
    else:
        axes = list(range(ctx.axis(int(ctx.attribute("axis", 1)), ctx.rank(0)), ctx.rank(0)))
    x = ctx.value(0)
    shifted = ctx.emit(SubOp(x, ctx.emit(ReduceMaxOp(x, axes, keepdims=True))))
    total = ctx.emit(ReduceSumOp(ctx.emit(ExpOp(shifted)), axes, keepdims=True))
    return ctx.emit(SubOp(shifted, ctx.emit(LogOp(total))))


def _axes(ctx: Context, since: int) -> tuple[list[int], bool]:
    """The axes of a reduction, none if it does nothing, and keepdims."""
    rank = ctx.rank(0)
    axes = ctx.axes_operand(1, since) or []
    if not axes and not ctx.attribute("noop_with_empty_axes", 0):
        axes = list(range(rank))
    return ctx.axes(axes, rank), bool(ctx.attribute("keepdims", 1))


def _enter_reduce(name: str, op: type[ReduceOp], since: int) -> None:
    @operator(name, "axes", "keepdims", "noop_with_empty_axes", becomes=op.name, notes="constant axes")
    def handler(ctx: Context) -> SSAValue:
        axes, keepdims = _axes(ctx, since)
        return ctx.emit(op(ctx.value(0), axes, keepdims=keepdims)) if axes else ctx.value(0)


# The opset from which the axes are an input.
_enter_reduce("ReduceSum", ReduceSumOp, 13)
_enter_reduce("ReduceMean", ReduceMeanOp, 18)
_enter_reduce("ReduceMax", ReduceMaxOp, 18)
_enter_reduce("ReduceMin", ReduceMinOp, 18)
_enter_reduce("ReduceProd", ReduceProdOp, 18)


@operator("ReduceSumSquare", "axes", "keepdims", "noop_with_empty_axes", becomes="nn.mul, nn.reduce_sum")
def reduce_sum_square(ctx: Context) -> SSAValue:
    axes, keepdims = _axes(ctx, 18)
    square = ctx.emit(MulOp(ctx.value(0), ctx.value(0)))
    return ctx.emit(ReduceSumOp(square, axes, keepdims=keepdims)) if axes else square


@operator("ReduceL2", "axes", "keepdims", "noop_with_empty_axes", becomes="nn.mul, nn.reduce_sum, nn.sqrt")
def reduce_l2(ctx: Context) -> SSAValue:
    return ctx.emit(SqrtOp(reduce_sum_square(ctx)))  # pyright: ignore[reportArgumentType]


@operator("ArgMax", "axis", "keepdims", "select_last_index", becomes="nn.arg_max", notes="the first of equals")
def arg_max(ctx: Context) -> SSAValue:
    if ctx.attribute("select_last_index", 0):
        raise ctx.error("select_last_index is not supported", advice="select_last_index = 0")
    axis = ctx.axis(int(ctx.attribute("axis", 0)), ctx.rank(0))
    return ctx.emit(ArgMaxOp(ctx.value(0), axis=axis, keepdims=bool(ctx.attribute("keepdims", 1))))
