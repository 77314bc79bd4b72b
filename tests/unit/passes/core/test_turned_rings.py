"""Rings whose slots are transposed matrices: only between stages that both have channels on the partitions."""

from __future__ import annotations

import numpy as np
import pytest
from lowered import Cases, Net, apply, same
from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.pipe.ops import RingOp
from neuron_mlir.simulator.run import run_module

TOKENS, CHANNELS = 32, 256
STAGES = Cases()


def _hidden(net: Net, x: SSAValue | None = None) -> SSAValue:
    return net(nn.ReluOp(net.dense(net.x(1, TOKENS, 128) if x is None else x, CHANNELS)))


@STAGES.add("products")
def _(net: Net) -> SSAValue:
    return net.dense(_hidden(net), 128)


@STAGES.add("residual")
def _(net: Net) -> SSAValue:
    hidden = _hidden(net)
    return net.dense(net(nn.AddOp(net.dense(hidden, CHANNELS), hidden)), 128)


@STAGES.add("parts")
def _(net: Net) -> SSAValue:
    x = net.x(1, TOKENS, 128)
    whole = net(nn.ConcatOp([_hidden(net, x), _hidden(net, x)], axis=2))
    return net.dense(whole, 128)


@STAGES.add("rows wanted")
def _(net: Net) -> SSAValue:
    return net(nn.ReduceMaxOp(net.dense(_hidden(net), CHANNELS), (2,)))


@pytest.mark.parametrize(
    ("name", "stages", "turned", "straight"),
    [("products", 2, 1, 0), ("residual", 3, 2, 0), ("parts", 3, 1, 0), ("rows wanted", 3, 1, 1)],
)
def test_the_same_values(name: str, stages: int, turned: int, straight: int) -> None:
    net = Net()
    result = STAGES[name](net)
    assert isinstance(result, SSAValue)
    module = net.module(result)
    apply(module, f"nn-fuse,nn-cast{{mode=all}},pipe-stage{{cores={stages} piece-percent=0}}")
    feeds = [{"x0": np.roll(net.inputs["x0"], n)} for n in range(5)]
    expected = [run_module(module, feed, weights=net).outputs for feed in feeds]
    apply(module, "core-lower")
    rings = [tuple(ring.type.get_shape())[1:] for ring in module.walk() if isinstance(ring, RingOp)]
    assert (rings.count((1, CHANNELS, TOKENS)), rings.count((1, TOKENS, CHANNELS))) == (turned, straight)
    apply(module, "core-allocate,core-schedule")
    for wanted, got in zip(expected, run_module(module, feeds, weights=net, hazards=True).requests, strict=True):
        same(wanted, got)
