"""ONNX operators that make maps larger or smaller: transposed convolution and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from xdsl.ir import SSAValue

from neuron_mlir.dialects.nn import (
    AddOp,
    ConvTransposeOp,
    GatherOp,
    MulOp,
    ResizeOp,
    SliceOp,
)
from neuron_mlir.frontends.onnx_context import Array, Context, operator


@operator(
    "ConvTranspose",
    "auto_pad",
    "dilations",
    "group",
    "kernel_shape",
    "output_padding",
    "output_shape",
    "pads",
    "strides",
    becomes="nn.conv_transpose",
    notes="one group, no dilations",
)
def conv_transpose(ctx: Context) -> SSAValue:
    rank = ctx.rank(0) - 2
    kernel = ctx.shape(1)[2:]
    if rank < 1 or len(kernel) != rank:
        raise ctx.error(
            "its input has the wrong rank", needed=f"{len(kernel) + 2}", available=f"shape {list(ctx.shape(0))}"
        )
    declared = ctx.ints("kernel_shape")
    if declared is not None and tuple(declared) != kernel:
        raise ctx.error(f"kernel_shape {declared} is not that of the weight, {list(ctx.shape(1))}")
    if int(ctx.attribute("group", 1)) != 1:
        raise ctx.error("groups are not supported", advice="one ConvTranspose for each group, joined by a Concat")
    if any(dilation != 1 for dilation in ctx.ints("dilations") or ()):
        raise ctx.error("dilations are not supported", advice="a kernel with the zeros written out")
    strides = ctx.ints("strides") or [1] * rank
    longer = ctx.ints("output_padding") or [0] * rank
    pads = ctx.ints("pads") or [0] * 2 * rank
    for what, found, count in (("strides", strides, rank), ("output_padding", longer, rank), ("pads", pads, 2 * rank)):
        if len(found) != count:
            raise ctx.error(f"{what} must be one per spatial dimension", needed=count, available=len(found))
    if min(strides) < 1 or min((*longer, *pads)) < 0:
        raise ctx.error("strides must be at least 1, pads and output_padding at least 0")
    pads = _transposed_pads(ctx, kernel, strides, longer, pads)
    return ctx.emit(
        ConvTransposeOp(ctx.value(0), ctx.value(1), ctx.optional(2), strides=strides, pads=pads, output_padding=longer)
    )


def _transposed_pads(
    ctx: Context, kernel: Sequence[int], strides: Sequence[int], longer: Sequence[int], pads: list[int]
) -> list[int]:
    """What is cut off the result, with `auto_pad` and `output_shape` (with or without batch and channels) worked in."""
    rank = len(kernel)
    mode = ctx.attribute("auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ctx.error(f"auto_pad '{mode}' is not known")
    wanted = ctx.ints("output_shape")
    if wanted is None and mode.startswith("SAME"):
        wanted = [size * stride for size, stride in zip(ctx.shape(0)[2:], strides, strict=True)]
    if wanted is None:
        return [0] * 2 * rank if mode == "VALID" else pads
    found = [0] * 2 * rank
    for axis, size in enumerate(wanted[-rank:]):
        missing = (ctx.shape(0)[2 + axis] - 1) * strides[axis] + longer[axis] + kernel[axis] - size
        if missing < 0:
            raise ctx.error(
                f"the output cannot be {size} long along spatial axis {axis}", needed=f"at most {size + missing}"
            )
        less, more = missing // 2, missing - missing // 2
        found[axis], found[rank + axis] = (less, more) if mode == "SAME_UPPER" else (more, less)
    return found


@operator("Upsample", "mode", "scales", becomes="nn.resize", notes="as Resize")
def upsample(ctx: Context) -> SSAValue:
    if ctx.opset >= 9:
        scales = [float(number) for number in ctx.constant(1, "scales").reshape(-1)]
    else:
        scales = [float(number) for number in ctx.attribute("scales", [])]
    return _resize(ctx, _sizes(ctx, scales), scales, ctx.attribute("mode", "nearest"), "asymmetric", "floor")


@operator(
    "Resize",
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
    becomes="nn.resize",
    notes="nearest and linear; whole scales of nearest are nn.resize, the rest nn.slice, nn.gather, nn.mul, nn.add",
)
def resize(ctx: Context) -> SSAValue:
    if ctx.attribute("antialias", 0):
        raise ctx.error("antialias is not supported", advice="antialias = 0")
    mode = ctx.attribute("mode", "nearest")
    if ctx.opset < 11:
        scales = [float(number) for number in ctx.constant(1, "scales").reshape(-1)]
        return _resize(ctx, _sizes(ctx, scales), scales, mode, "asymmetric", "floor")
    shape = ctx.shape(0)
    axes = [ctx.axis(axis, len(shape)) for axis in ctx.ints("axes") or range(len(shape))]
    scales, sizes = [1.0] * len(shape), list(shape)
    if ctx.has(2) and ctx.operand(2).size:
        given = [float(number) for number in ctx.constant(2, "scales").reshape(-1)]
        for axis, scale in zip(axes, given, strict=True):
            scales[axis] = scale
        sizes = _sizes(ctx, scales)
    elif ctx.has(3):
        if ctx.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise ctx.error("keep_aspect_ratio_policy is not supported", advice="sizes in the right ratio, or scales")
        for axis, size in zip(axes, ctx.constant_ints(3, "sizes"), strict=True):
            sizes[axis], scales[axis] = size, size / shape[axis]
    else:
        raise ctx.error("it has neither scales nor sizes")
    where = ctx.attribute("coordinate_transformation_mode", "half_pixel")
    return _resize(ctx, sizes, scales, mode, where, ctx.attribute("nearest_mode", "round_prefer_floor"))


def _sizes(ctx: Context, scales: Sequence[float]) -> list[int]:
    shape = ctx.shape(0)
    if len(scales) != len(shape):
        raise ctx.error("scales must be one per dimension", needed=len(shape), available=len(scales))
    return [math.floor(size * scale) for size, scale in zip(shape, scales, strict=True)]


def _resize(
    ctx: Context, sizes: Sequence[int], scales: Sequence[float], mode: str, where: str, nearest: str
) -> SSAValue:
    shape = ctx.shape(0)
    if min(sizes) < 1 or min(scales) <= 0:
        raise ctx.error(f"cannot resize {list(shape)} to {list(sizes)}")
    if mode not in ("nearest", "linear"):
        raise ctx.error(f"mode '{mode}' is not supported", advice="mode nearest or linear")
    places = [_places(ctx, *axis, where) for axis in zip(shape, sizes, scales, strict=True)]
    if mode == "linear":
        x = ctx.value(0)
        for axis, at in enumerate(places):
            x = _interpolated(ctx, x, axis, shape[axis], at)
        return x
    picked = [_nearest(ctx, at, nearest).clip(0, size - 1) for at, size in zip(places, shape, strict=True)]
    x = ctx.value(0)
    repeats = [_repeats(index, size) for index, size in zip(picked, shape, strict=True)]
    if len(shape) > 2 and repeats[0] == repeats[1] == 1 and any(repeat > 1 for repeat in repeats):
        spatial = [max(1, repeat) for repeat in repeats[2:]]
        x = ctx.emit(ResizeOp(x, spatial))
        picked = [
            np.arange(size) if repeat else index for index, repeat, size in zip(picked, repeats, sizes, strict=True)
        ]
    for axis, index in enumerate(picked):
        x = _taken(ctx, x, axis, index)
    return x


def _places(ctx: Context, size: int, wanted: int, scale: float, where: str) -> Array:
    """Where elements of the result are along an axis of the input, as the specification of Resize has it."""
    at = np.arange(wanted, dtype=np.float64)
    if wanted == size and scale == 1.0:
        return at
    match where:
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            adjustment = wanted / (scale * size)
            return size / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if wanted > 1 else at * 0.0
        case "asymmetric":
            return at / scale
        case "align_corners":
            return at * (size - 1) / (wanted - 1) if wanted > 1 else at * 0.0
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / scale
        case _:
            raise ctx.error(
                f"coordinate_transformation_mode '{where}' is not supported", advice="half_pixel or asymmetric"
            )


def _nearest(ctx: Context, at: Array, rule: str) -> Array:
    match rule:
        case "round_prefer_floor":
            found = np.ceil(at - 0.5)
        case "round_prefer_ceil":
            found = np.floor(at + 0.5)
        case "floor":
            found = np.floor(at)
        case "ceil":
            found = np.ceil(at)
        case _:
            raise ctx.error(f"nearest_mode '{rule}' is not known", advice="round_prefer_floor or floor")
    return found.astype(np.int64)


def _repeats(index: Array, size: int) -> int:
    """How often an axis repeats each of its elements in order; 0 where the index is anything else."""
    repeat, rest = divmod(len(index), size)
    return repeat if rest == 0 and np.array_equal(index, np.arange(len(index)) // repeat) else 0


def _taken(ctx: Context, x: SSAValue, axis: int, index: Array) -> SSAValue:
    """The elements of an axis by number: a slice where they are evenly spaced."""
    shape = list(ctx.type(x).get_shape())
    if np.array_equal(index, np.arange(shape[axis])):
        return x
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    if step > 0 and np.array_equal(index, index[0] + step * np.arange(len(index))):
        starts, strides = [0] * len(shape), [1] * len(shape)
        starts[axis], strides[axis], shape[axis] = int(index[0]), step, len(index)
        return ctx.emit(SliceOp(x, starts, shape, strides))
    return ctx.emit(GatherOp(x, ctx.table(f"{ctx.name}/indices.{axis}", index), axis=axis))


def _interpolated(ctx: Context, x: SSAValue, axis: int, size: int, at: Array) -> SSAValue:
    """Between the two neighbours of each place, beyond the ends the last element."""
    if np.array_equal(at, np.arange(size)):
        return x
    at = at.clip(0, size - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    part = (at - low).astype(np.float32)
    rank = len(ctx.type(x).get_shape())
    below = _taken(ctx, x, axis, low)
    if not part.any():
        return below
    above = _taken(ctx, x, axis, high)
    shape = tuple(len(at) if a == axis else 1 for a in range(rank))
    less = ctx.emit(MulOp(below, ctx.table(f"{ctx.name}/below.{axis}", (np.float32(1) - part).reshape(shape))))
    more = ctx.emit(MulOp(above, ctx.table(f"{ctx.name}/above.{axis}", part.reshape(shape))))
    return ctx.emit(AddOp(less, more))
