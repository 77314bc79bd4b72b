"""Pooling, depthwise convolution and local response normalisation, on the vector engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from xdsl.dialects.builtin import TensorType, f32
from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.compute import (
    ActivationOp,
    MemsetOp,
    ScalarTensorTensorOp,
    TensorScalarOp,
    TensorTensorOp,
)
from neuron_mlir.dialects.core.memory import SBUF
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import LOAD_QUEUE, STORE_QUEUE, Context, Padding, shape_of
from neuron_mlir.passes.core.lowering.contraction import physical_order
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home, Offset
from neuron_mlir.passes.core.lowering.normalise import reciprocal

FILL: dict[type[Operation], float] = {nn.MaxPoolOp: -math.inf, nn.AvgPoolOp: 0.0}
"""What the windows of each pooling layer find in the padding, and what they start from."""


def _tap_loops(
    context: Context,
    kernel: Sequence[int],
    body: Callable[[list[Linear]], None],
    found: list[Linear] | None = None,
) -> None:
    found = [] if found is None else found
    if len(found) == len(kernel):
        body(found)
        return
    with context.code.loop(kernel[len(found)]) as index:
        _tap_loops(context, kernel, body, [*found, index])


def window_access(
    x: Home,
    op: nn.PoolOp | nn.ConvOp,
    taps: Sequence[Linear],
    extents: Sequence[int],
    lane: tuple[Offset, int],
    tile: Offset,
) -> Access:
    """The input elements one tap sees, for all outputs of a tile: `extents` is (n, spatial..)."""
    offsets: dict[int, Offset] = {}
    sizes: dict[int, int] = {}
    strides: dict[int, int] = {}
    batch = x.free_dim(0)
    if batch is not None:
        sizes[batch] = extents[0]
    for axis, tap in enumerate(taps):
        dim = x.free_dim(2 + axis)
        if dim is None:
            continue
        offsets[dim] = tap * op.dilations[axis] + -op.pads[axis]
        sizes[dim] = extents[1 + axis]
        strides[dim] = op.strides[axis]
    return x.access(offsets, sizes, strides, lane, tile)


def whole_tile(home: Home, lane: tuple[Offset, int], tile: Offset) -> Access:
    """All interior elements of a partition tile."""
    sizes = {f.dim: f.size for axis in home.axes for f in axis if f.dim != 0}
    strides = {f.dim: f.stride for axis in home.axes for f in axis if f.dim != 0}
    return home.access({}, sizes, strides, lane, tile)


def lower_pool(context: Context, op: nn.MaxPoolOp | nn.AvgPoolOp, x: Home, out: Home, scale: Home | None) -> None:
    """Maximum or sum over taps, then the scale of a mean. `x` is padded as the op needs; `scale` is on every partition,
    (1, 1, spatial..), or None where all windows see the same number of elements.
    """
    code = context.code
    extents = (out.logical[0], *out.logical[2:])
    maximum = isinstance(op, nn.MaxPoolOp)
    for segment in segments(out.lanes, LANES):
        with code.loop(segment.count) as index:
            lane: tuple[Offset, int] = (0, segment.size)
            tile = index + segment.start // LANES
            target = whole_tile(out, lane, tile)
            if maximum:
                acc = target
                code.add(MemsetOp(acc, FILL[nn.MaxPoolOp]))
            else:
                sizes = [segment.size, *(size for size in extents)]
                acc = Access.of(code.alloc("sum", sizes, f32, SBUF))
                code.add(MemsetOp(acc, 0.0))

            def one_tap(
                taps: list[Linear], acc: Access = acc, lane: tuple[Offset, int] = lane, tile: Linear = tile
            ) -> None:
                seen = window_access(x, op, taps, extents, lane, tile)
                code.add(TensorTensorOp("max" if maximum else "add", acc, acc, seen))

            _tap_loops(context, op.kernel, one_tap)
            if maximum:
                continue
            if scale is None:
                code.add(TensorScalarOp(target, acc, "mul", reciprocal(math.prod(op.kernel))))
            else:
                sizes_of = {f.dim: f.size for axis in scale.axes for f in axis if f.dim != 0}
                factor = scale.access({}, sizes_of, None, lane, 0)
                with code.loop(extents[0]) as image:
                    one = out.part(0, image, 1)
                    assert one is not None
                    start: list[Offset] = [0, image, *(0 for _ in extents[1:])]
                    summed = Access.of(acc.buffer, start, [segment.size, 1, *extents[1:]])
                    code.add(TensorTensorOp("mul", whole_tile(one, lane, tile), summed, factor))


def window_scale(context: Context, op: nn.AvgPoolOp) -> Home:
    """What sums are multiplied by where windows see different numbers of elements: a constant (1, 1, spatial..) in
    DRAM, the reciprocals of a convolution of ones with ones.
    """
    one = nn.WeightOp("one", TensorType(f32, (1,) * len(shape_of(op.x))), nn.SplatAttr.get(1.0))

    def transform(one: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        x = add(nn.ExpandOp(one, (1, 1, *shape_of(op.x)[2:])))
        w = add(nn.ExpandOp(one, (1, 1, *op.kernel)))
        counts = add(nn.ConvOp(x, w, strides=op.strides, pads=op.pads, dilations=op.dilations))
        # A window of padding only sums to 0 whatever its count.
        return add(nn.ReciprocalOp(add(nn.MaxOp(counts, one))))

    return context.constant(one.result, "scale", transform)


def spread_scale(context: Context, scale: Home, for_good: bool, layer: Operation) -> Home:
    """(Part of) a window's scale on every partition of SBUF: at load, or where code is being written."""
    axes = tuple((Factor(LANES, 0),) if a == 1 else () for a in range(len(scale.axes)))
    target = Home(scale.buffer, (), f32, axes, LANES, ())
    home = context.operand_home("scale", scale.logical, f32, target, context.top if for_good else None)
    copy_by_dma(context.load if for_good else context.code, scale, context.spread(home, target), layer, LOAD_QUEUE)
    return home


def lower_depthwise(
    context: Context,
    op: nn.ConvOp,
    x: Home,
    out: Home,
    finish: Callable[[Access, tuple[Offset, int], Linear], None],
) -> None:
    """A convolution with one input channel per output channel: a multiply-add per tap, the tap's weight one element
    per partition.

    `finish` gets the f32 sum of each partition tile.
    """
    code = context.code
    channels = shape_of(op.w)[0]
    taps = math.prod(shape_of(op.w)[2:])

    def transform(w: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        w = add(nn.ReshapeOp(w, (channels, taps)))
        return add(nn.CastOp(physical_order(w, 0, x, 1, add), f32))

    stored = context.constant(op.w, context.label(op.w), transform)
    lanes = min(channels, LANES)
    tiles = -(-channels // LANES)
    with code.at(context.top):
        kept = code.alloc(context.label(op.w), (lanes, tiles, taps), f32, SBUF)
    home = Home(
        kept,
        (lanes, tiles, taps),
        f32,
        ((Factor(channels, 0),), (Factor(taps, 2),) if taps > 1 else ()),
        channels,
        (Linear(),) * 3,
    )
    copy_by_dma(context.load, stored, home, op, 0)
    extents = (out.logical[0], *out.logical[2:])
    kernel = shape_of(op.w)[2:]
    for segment in segments(channels, LANES):
        with code.loop(segment.count) as index:
            lane: tuple[Offset, int] = (0, segment.size)
            tile = index + segment.start // LANES
            acc = Access.of(code.alloc("sum", [segment.size, *extents], f32, SBUF))
            code.add(MemsetOp(acc, 0.0))

            def one_tap(
                found: list[Linear], acc: Access = acc, lane: tuple[Offset, int] = lane, tile: Linear = tile
            ) -> None:
                flat = Linear()
                for size, tap in zip(kernel, found, strict=True):
                    flat = flat * size + tap
                weight = Access.of(kept, [0, tile, flat], [lane[1], 1, 1])
                seen = window_access(x, op, found, extents, lane, tile)
                code.add(ScalarTensorTensorOp("mul", "add", acc, seen, weight, acc))

            _tap_loops(context, kernel, one_tap)
            finish(acc, lane, tile)


def lower_lrn(context: Context, op: nn.LrnOp, x: Home, out: Home) -> None:
    """`x * (bias + alpha / size * sum of squares) ** -beta`. Squares go to DRAM between zeroed channels; each neighbour
    comes back as one shifted load, since engines cannot move data between partitions.
    """
    code = context.code
    shape = x.logical
    channels = shape[1]
    before, after = (op.size - 1) // 2, op.size // 2
    scratch = context.dram_home("squares", shape, f32, Padding({1: (before, after)}, 0.0))
    total = context.sbuf_home("squares", shape, f32, (1,))

    def each_tile(body: Callable[[Callable[[Home], Access]], None]) -> None:
        for segment in segments(channels, LANES):
            with code.loop(segment.count) as index:
                lane, tile = (0, segment.size), index + segment.start // LANES
                body(lambda home, lane=lane, tile=tile: whole_tile(home, lane, tile))

    each_tile(lambda of: code.add(ActivationOp("square", of(total), of(x))) and None)
    copy_by_dma(code, total, scratch, op, STORE_QUEUE)
    for shift in range(-before, after + 1):
        if shift == 0 or abs(shift) >= channels:
            continue
        part = scratch.part(1, shift, channels)
        assert part is not None
        home = context.sbuf_home("neighbour", shape, f32, (1,))
        copy_by_dma(code, part, home, op, LOAD_QUEUE)
        each_tile(lambda of, home=home: code.add(TensorTensorOp("add", of(total), of(total), of(home))) and None)

    def scaled(of: Callable[[Home], Access]) -> None:
        code.add(TensorScalarOp(of(total), of(total), "mul", op.alpha / op.size, "add", op.bias))
        code.add(TensorScalarOp(of(total), of(total), "pow", -op.beta))
        code.add(TensorTensorOp("mul", of(out), of(total), of(x)))

    each_tile(scaled)
