"""ONNX operators that move, select or re-type values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from xdsl.ir import SSAValue

from neuron_mlir.dialects.nn import (
    CastOp,
    ConcatOp,
    ExpandOp,
    GatherOp,
    PadOp,
    ReshapeOp,
    SliceOp,
    TransposeOp,
    WhereOp,
)
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.frontends.onnx_context import DENSE_LIMIT, ELEMENT_TYPES, Context, Emitted, operator
from neuron_mlir.weights import element_name
from neuron_mlir.weights.onnx_store import dtype_of


def reshape_to(ctx: Context, x: SSAValue, shape: Sequence[int]) -> SSAValue:
    """x under another shape; itself when it has that shape already."""
    if tuple(type_of(x).get_shape()) == tuple(shape):
        return x
    return ctx.emit(ReshapeOp(x, shape))


@operator("Identity", becomes="(nothing)")
def identity(ctx: Context) -> Emitted:
    return ctx.value(0)


@operator("Dropout", "ratio", "seed", "is_test", becomes="(nothing)", notes="inference; no mask output")
def dropout(ctx: Context) -> SSAValue:
    if ctx.has(2) and bool(ctx.constant(2, "training mode").reshape(-1)[0]):
        raise ctx.error("training mode is on", advice="exporting the model for inference")
    return ctx.value(0)


@operator("Reshape", "allowzero", becomes="nn.reshape", notes="constant shape")
def reshape(ctx: Context) -> SSAValue:
    shape = ctx.shape(0)
    target = literal_shape(ctx, 1)
    if not ctx.attribute("allowzero", 0):
        target = [_copied(ctx, shape, axis) if dim == 0 else dim for axis, dim in enumerate(target)]
    if target.count(-1) > 1 or any(dim < -1 for dim in target):
        raise ctx.error(f"the shape {target} is not one: it may have one -1")
    if -1 in target:
        rest = -math.prod(target)
        if rest == 0 or math.prod(shape) % rest:
            raise ctx.error(f"cannot reshape {list(shape)} to {target}", advice="checking the model's shapes")
        target = [math.prod(shape) // rest if dim == -1 else dim for dim in target]
    return reshape_to(ctx, ctx.value(0), target)


def _copied(ctx: Context, shape: tuple[int, ...], axis: int) -> int:
    if axis >= len(shape):
        raise ctx.error(f"the shape copies dimension {axis} of an input of rank {len(shape)}")
    return shape[axis]


def literal_shape(ctx: Context, index: int) -> list[int]:
    """A shape operand. When the batch was changed, a literal one that begins with the old batch gets the new one."""
    target = ctx.constant_ints(index, "shape")
    if ctx.module.batch is None or not target:
        return target
    old, new = ctx.module.batch
    if ctx.operand(index).literal and target[0] == old and ctx.shape(0)[:1] == (new,):
        return [new, *target[1:]]
    return target


@operator("Flatten", "axis", becomes="nn.reshape")
def flatten(ctx: Context) -> SSAValue:
    shape = ctx.shape(0)
    axis = ctx.axis(int(ctx.attribute("axis", 1)), len(shape), inclusive=True)
    return reshape_to(ctx, ctx.value(0), [math.prod(shape[:axis]), math.prod(shape[axis:])])


@operator("Squeeze", "axes", becomes="nn.reshape", notes="constant axes")
def squeeze(ctx: Context) -> SSAValue:
    shape = ctx.shape(0)
    axes = ctx.axes_operand(1, 13)
    gone = [axis for axis, dim in enumerate(shape) if dim == 1] if axes is None else ctx.axes(axes, len(shape))
    for axis in gone:
        if shape[axis] != 1:
            raise ctx.error(f"dimension {axis} of {list(shape)} is not 1")
    return reshape_to(ctx, ctx.value(0), [dim for axis, dim in enumerate(shape) if axis not in gone])


@operator("Unsqueeze", "axes", becomes="nn.reshape", notes="constant axes")
def unsqueeze(ctx: Context) -> SSAValue:
    shape = list(ctx.shape(0))
    axes = ctx.axes_operand(1, 13) or []
    for axis in ctx.axes(axes, len(shape) + len(axes)):
        shape.insert(axis, 1)
    return reshape_to(ctx, ctx.value(0), shape)


@operator("Transpose", "perm", becomes="nn.transpose")
def transpose(ctx: Context) -> SSAValue:
    perm = ctx.ints("perm") or list(range(ctx.rank(0)))[::-1]
    if perm == list(range(ctx.rank(0))):
        return ctx.value(0)
    return ctx.emit(TransposeOp(ctx.value(0), perm))


@operator("Slice", "starts", "ends", "axes", becomes="nn.slice", notes="constant bounds")
def slice_(ctx: Context) -> SSAValue:
    shape = ctx.shape(0)
    steps: list[int] | None = None
    if ctx.opset >= 10:
        begins, ends = ctx.constant_ints(1, "starts"), ctx.constant_ints(2, "ends")
        axes = ctx.constant_ints(3, "axes") if ctx.has(3) else None
        steps = ctx.constant_ints(4, "steps") if ctx.has(4) else None
    else:
        begins, ends, axes = ctx.ints("starts") or [], ctx.ints("ends") or [], ctx.ints("axes")
    axes = list(range(len(begins))) if axes is None else [ctx.axis(axis, len(shape)) for axis in axes]
    steps = [1] * len(axes) if steps is None else steps
    if not len(begins) == len(ends) == len(axes) == len(steps):
        raise ctx.error("starts, ends, axes and steps must be equally many")
    starts, sizes, strides = [0] * len(shape), list(shape), [1] * len(shape)
    for begin, end, axis, step in zip(begins, ends, axes, steps, strict=True):
        if step == 0:
            raise ctx.error(f"the step of axis {axis} is 0")
        # Python's slices clamp as ONNX's do.
        taken = range(shape[axis])[slice(begin, _stop(end, shape[axis], step), step)]
        if not taken:
            raise ctx.error(f"nothing is left of axis {axis} (size {shape[axis]}, {begin} to {end})")
        starts[axis], sizes[axis], strides[axis] = taken[0], len(taken), step
    if tuple(sizes) == shape and all(stride == 1 for stride in strides):
        return ctx.value(0)
    return ctx.emit(SliceOp(ctx.value(0), starts, sizes, strides))


def _stop(end: int, dim: int, step: int) -> int | None:
    """Backwards, an end before the first element (INT_MIN) means "to the first": None, as -1 would be the last."""
    return None if step < 0 and end < -dim else end


@operator("Concat", "axis", becomes="nn.concat")
def concat(ctx: Context) -> SSAValue:
    values = ctx.values()
    if len(values) == 1:
        return values[0]
    return ctx.emit(ConcatOp(values, axis=ctx.axis(int(ctx.attribute("axis", 1)), ctx.rank(0))))


@operator("Split", "axis", "split", "num_outputs", becomes="nn.slice", notes="constant sizes")
def split(ctx: Context) -> list[SSAValue]:
    shape = ctx.shape(0)
    axis = ctx.axis(int(ctx.attribute("axis", 0)), len(shape))
    count = len(ctx.node.output)
    if ctx.opset >= 13:
        sizes = ctx.constant_ints(1, "sizes") if ctx.has(1) else None
    else:
        sizes = ctx.ints("split")
    if sizes is None:
        chunk = -(-shape[axis] // count)
        if shape[axis] % count and not ctx.has_attribute("num_outputs"):
            raise ctx.error(f"dimension {axis} of {list(shape)} does not split into {count} equal parts")
        sizes = [chunk] * (count - 1) + [shape[axis] - chunk * (count - 1)]
    if len(sizes) != count or sum(sizes) != shape[axis] or any(size < 1 for size in sizes):
        raise ctx.error(f"the sizes {sizes} do not split dimension {axis} of {list(shape)} into {count} parts")
    results: list[SSAValue] = []
    start = 0
    for size in sizes:
        starts, taken = [0] * len(shape), list(shape)
        starts[axis], taken[axis] = start, size
        results.append(ctx.emit(SliceOp(ctx.value(0), starts, taken)))
        start += size
    return results


@operator("Gather", "axis", becomes="nn.gather")
def gather(ctx: Context) -> SSAValue:
    axis = ctx.axis(int(ctx.attribute("axis", 0)), ctx.rank(0))
    indices = ctx.operand(1)
    known = ctx.module.known(indices) if indices.is_constant else None
    dim = ctx.shape(0)[axis]
    if known is not None and known.size:
        low, high = int(known.min()), int(known.max())
        if low < -dim or high >= dim:
            raise ctx.error(
                f"an index is out of range of dimension {axis}",
                needed=f"{-dim} to {dim - 1}",
                available=f"{low} to {high}",
            )
        if known.ndim == 0:  # one element: a slice, which needs no index at run time
            starts, sizes = [0] * ctx.rank(0), list(ctx.shape(0))
            starts[axis], sizes[axis] = low % dim, 1
            picked = ctx.emit(SliceOp(ctx.value(0), starts, sizes))
            return reshape_to(ctx, picked, [*sizes[:axis], *sizes[axis + 1 :]])
        if indices.stored and 1 < known.size <= DENSE_LIMIT:  # written out, so that lowering sees what is picked
            return ctx.emit(GatherOp(ctx.value(0), ctx.table(indices.name, known % dim), axis=axis))
    return ctx.emit(GatherOp(ctx.value(0), ctx.value(1), axis=axis))


@operator("Pad", "mode", "pads", "value", becomes="nn.pad, nn.slice", notes="mode constant; constant pads")
def pad(ctx: Context) -> SSAValue:
    mode = ctx.attribute("mode", "constant")
    if mode != "constant":
        raise ctx.error(f"mode '{mode}' is not supported", advice="mode constant")
    rank = ctx.rank(0)
    value = 0.0
    axes = list(range(rank))
    if ctx.opset >= 11:
        pads = ctx.constant_ints(1, "pads")
        value = ctx.constant_number(2, "value") or 0.0
        if ctx.has(3):
            axes = [ctx.axis(axis, rank) for axis in ctx.constant_ints(3, "axes")]
    else:
        pads, value = ctx.ints("pads") or [0] * 2 * rank, float(ctx.attribute("value", 0.0))
    if len(pads) != 2 * len(axes):
        raise ctx.error("pads must be two per axis", needed=2 * len(axes), available=len(pads))
    if not math.isfinite(value):
        raise ctx.error(f"padding with {value} is not supported", advice="a large finite number")
    low, high = [0] * rank, [0] * rank
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        low[axis], high[axis] = begin, end
    x = _crop(ctx, [max(0, -n) for n in low], [max(0, -n) for n in high])
    low, high = [max(0, n) for n in low], [max(0, n) for n in high]
    return ctx.emit(PadOp(x, low, high, value=value)) if any(low) or any(high) else x


def _crop(ctx: Context, low: list[int], high: list[int]) -> SSAValue:
    """What negative pads cut off."""
    if not any(low) and not any(high):
        return ctx.value(0)
    sizes = [dim - a - b for dim, a, b in zip(ctx.shape(0), low, high, strict=True)]
    if min(sizes) < 1:
        raise ctx.error(f"negative pads leave nothing of {list(ctx.shape(0))}")
    return ctx.emit(SliceOp(ctx.value(0), low, sizes))


@operator("Expand", becomes="nn.expand", notes="constant shape")
def expand(ctx: Context) -> SSAValue:
    target = literal_shape(ctx, 1)
    try:
        shape = np.broadcast_shapes(ctx.shape(0), tuple(target))
    except ValueError as error:
        raise ctx.error(
            f"cannot expand {list(ctx.shape(0))} to {target}", advice="checking the model's shapes"
        ) from error
    if shape == ctx.shape(0):
        return ctx.value(0)
    return ctx.emit(ExpandOp(ctx.value(0), shape))


@operator("Tile", becomes="nn.reshape, nn.expand, nn.reshape", notes="constant repeats")
def tile(ctx: Context) -> SSAValue:
    shape = ctx.shape(0)
    repeats = ctx.constant_ints(1, "repeats")
    if len(repeats) != len(shape) or any(repeat < 1 for repeat in repeats):
        raise ctx.error(f"repeats {repeats} do not fit an input of shape {list(shape)}")
    pairs = [(repeat, dim) for repeat, dim in zip(repeats, shape, strict=True)]
    x = reshape_to(ctx, ctx.value(0), [n for repeat, dim in pairs for n in ((1, dim) if repeat > 1 else (dim,))])
    if any(repeat > 1 for repeat in repeats):
        x = ctx.emit(ExpandOp(x, [n for repeat, dim in pairs for n in ((repeat, dim) if repeat > 1 else (dim,))]))
    return reshape_to(ctx, x, [repeat * dim for repeat, dim in pairs])


@operator("Where", becomes="nn.where")
def where(ctx: Context) -> SSAValue:
    return ctx.emit(WhereOp(ctx.value(0), ctx.value(1), ctx.value(2)))


@operator("Cast", "to", "saturate", "round_mode", becomes="nn.cast")
def cast(ctx: Context) -> SSAValue:
    element_type = ELEMENT_TYPES[element_name(dtype_of(int(ctx.attribute("to", 1)), f"the result of '{ctx.name}'"))]
    x = ctx.value(0)
    return x if type_of(x).element_type == element_type else ctx.emit(CastOp(x, element_type))


@operator("CastLike", "saturate", "round_mode", becomes="nn.cast")
def cast_like(ctx: Context) -> SSAValue:
    element_type = ELEMENT_TYPES[element_name(ctx.dtype(1))]
    x = ctx.value(0)
    return x if type_of(x).element_type == element_type else ctx.emit(CastOp(x, element_type))


@operator("DepthToSpace", "blocksize", "mode", becomes="nn.reshape, nn.transpose, nn.reshape")
def depth_to_space(ctx: Context) -> SSAValue:
    n, c, h, w = _image(ctx)
    block = int(ctx.attribute("blocksize", 1))
    if block < 1 or c % (block * block):
        raise ctx.error(f"{c} channels are not a multiple of the block's {block * block} pixels")
    depth = c // (block * block)
    if ctx.attribute("mode", "DCR") == "DCR":
        split_, perm = [n, block, block, depth, h, w], [0, 3, 4, 1, 5, 2]
    else:
        split_, perm = [n, depth, block, block, h, w], [0, 1, 4, 2, 5, 3]
    x = ctx.emit(TransposeOp(reshape_to(ctx, ctx.value(0), split_), perm))
    return reshape_to(ctx, x, [n, depth, h * block, w * block])


@operator("SpaceToDepth", "blocksize", becomes="nn.reshape, nn.transpose, nn.reshape")
def space_to_depth(ctx: Context) -> SSAValue:
    n, c, h, w = _image(ctx)
    block = int(ctx.attribute("blocksize", 1))
    if block < 1 or h % block or w % block:
        raise ctx.error(f"an image of {h} x {w} does not divide into blocks of {block}")
    x = reshape_to(ctx, ctx.value(0), [n, c, h // block, block, w // block, block])
    x = ctx.emit(TransposeOp(x, [0, 3, 5, 1, 2, 4]))
    return reshape_to(ctx, x, [n, c * block * block, h // block, w // block])


def _image(ctx: Context) -> tuple[int, int, int, int]:
    shape = ctx.shape(0)
    if len(shape) != 4:
        raise ctx.error("needs an input (N, C, H, W)", available=f"shape {list(shape)}")
    return shape[0], shape[1], shape[2], shape[3]
