"""Packed convolutions compute what they computed before, to the same bits on whole numbers: see `lowered`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from lowered import Case, Net, apply, same
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.simulator.run import run_module

PACK = "nn-replicate-inputs{gain=0}"


def _conv(channels: int, size: Sequence[int], outputs: int, *kernel: int, batch: int = 1, **keys: Any) -> Case:
    def build(net: Net) -> SSAValue:
        return net(nn.ReluOp(net.conv(net.x(batch, channels, *size), outputs, *kernel, **keys)))

    return build


def _after_a_layer(net: Net) -> SSAValue:
    """What is packed is in SBUF, its channels on the partitions."""
    x = net(nn.AddOp(net.x(1, 3, 12, 10), net.w(3, 1, 1)))
    return net.conv(net(nn.ReluOp(x)), 8, 3, 3, pads=[1, 1, 1, 1])


def _residual(net: Net) -> SSAValue:
    """Images go together where an operand of the group has rows."""
    x = net.conv(net.x(2, 3, 40, 90), 8, 3, 3, pads=[1, 1, 1, 1])
    return net(nn.ReluOp(net(nn.AddOp(x, net.x(2, 8, 40, 90)))))


CASES: dict[str, Case] = {
    "3x3": _conv(3, (9, 9), 24, 3, 3, pads=[1, 1, 1, 1]),
    "3x3 strided": _conv(3, (10, 10), 70, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]),
    "asymmetric": _conv(5, (8, 9), 65, 3, 2, pads=[0, 1, 2, 0], strides=[1, 2]),
    "odd size": _conv(3, (17, 19), 16, 7, 7, strides=[2, 2], pads=[3, 3, 3, 3]),
    "no padding": _conv(4, (13, 11), 8, 5, 3, strides=[3, 1]),
    "narrower than the stride": _conv(3, (20, 20), 8, 2, 2, strides=[3, 3]),
    "wide stride": _conv(3, (35, 35), 20, 11, 11, strides=[4, 4]),
    "more channels than fit at once": _conv(16, (30, 12), 40, 3, 3, pads=[1, 1, 1, 1]),
    "one channel": _conv(1, (28, 28), 32, 5, 5, pads=[2, 2, 2, 2]),
    "batch": _conv(3, (12, 12), 10, 3, 3, batch=3, pads=[1, 1, 1, 1], strides=[2, 2]),
    "several tiles": _conv(3, (200, 120), 130, 3, 3, pads=[1, 1, 1, 1]),
    "several tiles, strided": _conv(3, (201, 160), 64, 7, 7, pads=[3, 3, 3, 3], strides=[2, 2], batch=2),
    "padding deeper than a tile": _conv(2, (40, 600), 64, 13, 3, pads=[6, 1, 6, 1]),
    "after a layer": _after_a_layer,
    "residual": _residual,
}


def build(case: Case) -> tuple[Net, ModuleOp]:
    net = Net()
    result = case(net)
    assert isinstance(result, SSAValue)
    return net, net.module(result)


def output(net: Net, module: ModuleOp) -> dict[str, Any]:
    """The one output, whatever its name at this level."""
    (value,) = run_module(module, net.inputs, weights=net).outputs.values()
    return {"out": value}


@pytest.mark.parametrize("name", CASES)
def test_packed_convolutions_give_the_same_bits(name: str) -> None:
    net, module = build(CASES[name])
    expected = output(net, module)
    apply(module, f"{PACK},nn-fuse,nn-cast{{mode=matmult}}")
    assert "nn.unfold" in str(module)
    same(expected, output(net, module))
    apply(module, "pipe-stage{cores=1},core-lower")
    same(expected, output(net, module))


@pytest.mark.parametrize(
    "name", ["odd size", "several tiles, strided", "more channels than fit at once", "after a layer"]
)
def test_the_final_form_has_no_race(name: str) -> None:
    net, module = build(CASES[name])
    apply(module, f"{PACK},nn-fuse,nn-cast,pipe-stage{{cores=1}}")
    expected = run_module(module, net.inputs, weights=net).outputs
    apply(module, "core-lower,core-allocate,core-schedule")
    same(expected, run_module(module, [net.inputs] * 3, weights=net, hazards=True).outputs)


def test_the_definition() -> None:
    net = Net()
    u = net(nn.UnfoldOp(net.x(2, 3, 9, 8), (3, 2), strides=(2, 3), pads=(1, 2, 0, 1)))
    module = net.module(u)
    (x,) = net.inputs.values()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1)))
    found = output(net, module)["out"]
    assert found.shape == (2, 18, 4, 4)
    for channel, (c, dy, dx) in enumerate(np.ndindex(3, 3, 2)):
        assert (found[:, channel] == padded[:, c, dy : dy + 7 : 2, dx : dx + 10 : 3]).all()


def test_an_unfolding_alone() -> None:
    """Where something else reads it too."""
    net = Net()
    u = net(nn.UnfoldOp(net.x(2, 3, 14, 15), (3, 2), strides=(1, 2), pads=(1, 0, 1, 1)))
    module = net.module(net(nn.ReluOp(u)), net.conv(u, 8, 1, 1))
    apply(module, "nn-fuse,nn-cast,pipe-stage{cores=1}")
    expected = run_module(module, net.inputs, weights=net).outputs
    apply(module, "core-lower")
    same(expected, run_module(module, net.inputs, weights=net).outputs)


def _stem(net: Net, stride: int, kernel: int, size: int, batch: int = 1) -> SSAValue:
    pads = [kernel // 2] * 4
    x = net.conv(net.x(batch, 3, size, size), 64, kernel, kernel, strides=[stride, stride], pads=pads)
    x = net(nn.ReluOp(x))
    return net(nn.MaxPoolOp(x, (3, 3), strides=(2, 2), pads=(1, 1, 1, 1)))


DEEP: dict[str, Case] = {
    "stem": lambda net: _stem(net, 2, 7, 160),
    "stem of images": lambda net: _stem(net, 2, 7, 90, batch=3),
    "more rows than partitions": lambda net: _stem(net, 1, 3, 220),
}


@pytest.mark.parametrize("rows", [5, 7])
@pytest.mark.parametrize("name", DEEP)
def test_packed_and_depth_first(name: str, rows: int) -> None:
    net, module = build(DEEP[name])
    expected = output(net, module)
    apply(module, f"{PACK},nn-fuse,nn-cast{{mode=matmult}},nn-fuse-depth-first{{rows={rows}}}")
    assert "depth-first" in str(module) and "nn.unfold" in str(module)
    apply(module, "pipe-stage{cores=1},core-lower,core-allocate,core-schedule")
    found = run_module(module, [net.inputs] * 2, weights=net, hazards=True).outputs
    same(expected, {"out": next(iter(found.values()))})
