"""Random small networks are lowered to the same bits: see `lowered`."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lowered import FINAL, LOWERED, Net, check
from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of

LAYERS = ("conv", "depthwise", "max_pool", "avg_pool", "binary", "unary", "concat", "slice", "channel", "shuffle")
CHANNELS = st.sampled_from((1, 3, 8, 31, 32, 64, 65, 96, 128, 130))


def window(draw: st.DrawFn, size: tuple[int, ...]) -> tuple[list[int], dict[str, Any]]:
    """A kernel that fits, with strides, pads smaller than it, and dilations."""
    kernel = [draw(st.integers(1, min(3, s))) for s in size]
    dilations = [draw(st.integers(1, 2)) if (k - 1) * 2 < s else 1 for k, s in zip(kernel, size, strict=True)]
    pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    strides = [draw(st.integers(1, 2)) for _ in size]
    return kernel, {"strides": strides, "pads": pads, "dilations": dilations}


def layer(draw: st.DrawFn, net: Net, values: list[SSAValue]) -> SSAValue:
    """A layer over values there are."""
    kind = draw(st.sampled_from(LAYERS))
    x = draw(st.sampled_from(values))
    shape = tuple(type_of(x).get_shape())
    channels, size = shape[1], shape[2:]
    like = [v for v in values if tuple(type_of(v).get_shape()) == shape]
    if kind == "conv":
        kernel, keys = window(draw, size)
        outputs = draw(CHANNELS)
        group = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0 and outputs % g == 0]))
        return net(nn.ClipOp(net.conv(x, outputs, *kernel, group=group, **keys), -8, 8))
    if kind == "depthwise":
        kernel, keys = window(draw, size)
        return net(nn.ClipOp(net.conv(x, channels, *kernel, group=channels, **keys), -8, 8))
    if kind == "max_pool":
        kernel, keys = window(draw, size)
        return net(nn.MaxPoolOp(x, kernel, **keys))
    if kind == "avg_pool":
        kernel, keys = window(draw, size)
        return net(nn.FloorOp(net(nn.AvgPoolOp(x, kernel, count_include_pad=draw(st.booleans()), **keys))))
    if kind == "binary":
        op = draw(st.sampled_from((nn.AddOp, nn.SubOp, nn.MaxOp, nn.MinOp)))
        return net(op(x, draw(st.sampled_from(like))))
    if kind == "unary":
        return net(draw(st.sampled_from((nn.ReluOp, nn.AbsOp, nn.NegOp, nn.FloorOp)))(x))
    if kind == "concat":
        return net(nn.ConcatOp([x, draw(st.sampled_from(like))], axis=draw(st.sampled_from((1, 2)))))
    if kind == "slice":
        starts = [draw(st.integers(0, s - 1)) for s in shape[1:]]
        sizes = [draw(st.integers(1, s - start)) for s, start in zip(shape[1:], starts, strict=True)]
        return net(nn.SliceOp(x, (0, *starts), (shape[0], *sizes)))
    if kind == "channel":
        return net(nn.AddOp(net(nn.MulOp(x, net.w(channels, 1, 1, low=-1, high=1))), net.w(1, channels, 1, 1)))
    half = 2 if channels % 2 == 0 else 1
    split = net(nn.ReshapeOp(x, (shape[0], half, channels // half, *size)))
    turned = net(nn.TransposeOp(split, (0, 2, 1, 3, 4)))
    return net(nn.ReluOp(net(nn.ReshapeOp(turned, shape))))


@st.composite
def networks(draw: st.DrawFn, least: int = 1, most: int = 9) -> Net:
    net = Net(draw(st.integers(0, 9)))
    size = (draw(st.integers(least, most)), draw(st.integers(least, most)))
    values = [net.x(draw(st.integers(1, 2)), draw(CHANNELS), *size)]
    for _ in range(draw(st.integers(1, 5))):
        values.append(layer(draw, net, values))
    net.results = [values[-1], *draw(st.lists(st.sampled_from(values[1:]), max_size=1))]
    return net


@settings(max_examples=45, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.sampled_from(("all", "matmult-fp16")))
def test_lowered(net: Net, mode: str) -> None:
    check(net, *net.results, mode=mode)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_lowered_and_final(net: Net) -> None:
    check(net, *net.results, forms=(LOWERED, FINAL))
