"""Pooling, depthwise convolution and local response normalisation, on the vector engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from xdsl.dialects.builtin import f32
from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.compute import (
    ActivationOp,
    CopyOp,
    MemsetOp,
    ScalarTensorTensorOp,
    TensorScalarOp,
    TensorTensorOp,
)
from neuron_mlir.dialects.core.memory import SBUF
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import Context, shape_of
from neuron_mlir.passes.core.lowering.contraction import physical_order
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.layout import LANES, Home, Offset

LOWEST = {"f32": -3.4028234663852886e38, "bf16": -3.3895313892515355e38, "f16": -65504.0}
"""The least finite number of each type: what a maximum starts from."""


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


def lower_pool(context: Context, op: nn.MaxPoolOp | nn.AvgPoolOp, x: Home, out: Home, counts: Home | None) -> None:
    """Maximum or sum over taps, then the division. `x` is padded as the op needs; `counts` holds elements per window where they differ."""
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
                code.add(MemsetOp(acc, LOWEST[str(out.element)]))
            else:
                sizes = [segment.size, *(size for size in extents)]
                acc = Access.of(code.alloc("sum", sizes, f32, SBUF))
                code.add(MemsetOp(acc, 0.0))

            def one_tap(taps: list[Linear], acc: Access = acc, lane: tuple[Offset, int] = lane, tile: Linear = tile) -> None:
                seen = window_access(x, op, taps, extents, lane, tile)
                code.add(TensorTensorOp("max" if maximum else "add", acc, acc, seen))

            _tap_loops(context, op.kernel, one_tap)
            if maximum:
                continue
            if counts is None:
                code.add(TensorScalarOp(target, acc, "div", float(math.prod(op.kernel))))
            else:
                sizes_of = {f.dim: f.size for axis in counts.axes for f in axis if f.dim != 0}
                divisor = counts.access({}, sizes_of, None, lane, 0)
                code.add(TensorTensorOp("div", target, acc, divisor))


def window_counts(op: nn.AvgPoolOp) -> Callable[[SSAValue, Callable[[Operation], SSAValue]], SSAValue]:
    """Elements that each window sees, as a constant (1, 1, spatial..): a convolution of ones with ones."""

    def transform(one: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        spatial = shape_of(op.x)[2:]
        x = add(nn.ExpandOp(one, (1, 1, *spatial)))
        w = add(nn.ExpandOp(one, (1, 1, *op.kernel)))
        return add(nn.ConvOp(x, w, strides=op.strides, pads=op.pads, dilations=op.dilations))

    return transform


def lower_depthwise(
    context: Context,
    op: nn.ConvOp,
    x: Home,
    out: Home,
    finish: Callable[[Access, tuple[Offset, int], Linear], None],
) -> None:
    """A convolution with one input channel per output channel: a multiply-add per tap, the tap's weight one element per partition.

    `finish` gets the f32 sum of each partition tile.
    """
    code = context.code
    channels = shape_of(op.w)[0]
    taps = math.prod(op.w.type.get_shape()[2:])  # type: ignore[attr-defined]

    def transform(w: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        w = add(nn.ReshapeOp(w, (channels, taps)))
        return add(nn.CastOp(physical_order(w, 0, x, 1, add), f32))

    stored = context.constant(op.w, context.label(op.w), transform)
    lanes = min(channels, LANES)
    tiles = -(-channels // LANES)
    with code.at(context.top):
        kept = code.alloc(context.label(op.w), (lanes, tiles, taps), f32, SBUF)
    from neuron_mlir.passes.core.lowering.layout import Factor

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

            def one_tap(found: list[Linear], acc: Access = acc, lane: tuple[Offset, int] = lane, tile: Linear = tile) -> None:
                flat = Linear()
                for size, tap in zip(kernel, found, strict=True):
                    flat = flat * size + tap
                weight = Access.of(kept, [0, tile, flat], [lane[1], 1, 1])
                seen = window_access(x, op, found, extents, lane, tile)
                code.add(ScalarTensorTensorOp("mul", "add", acc, seen, weight, acc))

            _tap_loops(context, kernel, one_tap)
            finish(acc, lane, tile)


def lower_lrn(context: Context, op: nn.LrnOp, x: Home, out: Home) -> None:
    """Squares go to DRAM between zeroed channels; each neighbour comes back as one shifted load. Then `x * (bias + a * sum) ** -beta`.

    The power is taken with the vector engine's `pow`, as the `nn` level does.
    """
    code = context.code
    batch, channels, *spatial = x.logical
    pixels = math.prod(spatial)
    before, after = (op.size - 1) // 2, op.size // 2
    from neuron_mlir.passes.core.lowering.context import Padding

    scratch = context.dram_home("squares", (batch, channels, pixels), f32, Padding({1: (before, after)}, 0.0))
    flat_x, flat_out = x.reshaped((batch, channels, pixels)), out.reshaped((batch, channels, pixels))
    del flat_out
    squares = context.sbuf_home("squares", (batch, channels, *spatial), f32, (1,))
    for segment in segments(channels, LANES):
        with code.loop(segment.count) as index:
            lane: tuple[Offset, int] = (0, segment.size)
            tile = index + segment.start // LANES
            source = whole_tile(x, lane, tile)
            code.add(ActivationOp("square", whole_tile(squares, lane, tile), source))
    whole = scratch.reshaped((batch, channels, *spatial))
    assert whole is not None or flat_x is not None
    target = whole if whole is not None else scratch
    copy_by_dma(code, squares, target, op, 1)
    total = context.sbuf_home("sum", (batch, channels, *spatial), f32, (1,))
    for neighbour in range(op.size):
        part = scratch.part(1, neighbour - before, channels)
        assert part is not None
        shifted = part.reshaped((batch, channels, *spatial))
        assert shifted is not None
        home = total if neighbour == 0 else context.sbuf_home("neighbour", (batch, channels, *spatial), f32, (1,))
        copy_by_dma(code, shifted, home, op, 1)
        if neighbour == 0:
            continue
        for segment in segments(channels, LANES):
            with code.loop(segment.count) as index:
                lane = (0, segment.size)
                tile = index + segment.start // LANES
                acc = whole_tile(total, lane, tile)
                code.add(TensorTensorOp("add", acc, acc, whole_tile(home, lane, tile)))
    for segment in segments(channels, LANES):
        with code.loop(segment.count) as index:
            lane = (0, segment.size)
            tile = index + segment.start // LANES
            acc = whole_tile(total, lane, tile)
            code.add(TensorScalarOp(acc, acc, "mul", op.alpha / op.size, "add", op.bias))
            code.add(TensorScalarOp(acc, acc, "pow", op.beta))
            code.add(TensorTensorOp("div", whole_tile(out, lane, tile), whole_tile(x, lane, tile), acc))


__all__ = ["CopyOp", "lower_depthwise", "lower_lrn", "lower_pool", "whole_tile", "window_counts"]
