"""Results stored over a residual that nobody reads afterwards, to the same bits on whole numbers (see `lowered`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lowered import PREPARE, Net, apply, same
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.passes import get_all_passes
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.run import run_module

Build = Callable[[Net], list[SSAValue]]


def _block(net: Net, x: SSAValue, channels: int = 8) -> SSAValue:
    y = net(nn.ReluOp(net.conv(x, 4, 1, 1)))
    y = net(nn.ReluOp(net.conv(y, 4, 3, 3, pads=[1, 1, 1, 1])))
    return net(nn.ReluOp(net(nn.AddOp(net.conv(y, channels, 1, 1), x))))


def _chain(net: Net) -> list[SSAValue]:
    x = net.conv(net.x(2, 3, 9, 7), 8, 1, 1)
    return [_block(net, _block(net, x))]


def _many_channels(net: Net) -> list[SSAValue]:
    x = net.conv(net.x(1, 3, 6, 6), 200, 1, 1)
    return [net.conv(_block(net, _block(net, x, 200), 200), 5, 1, 1)]


def _read_later(net: Net) -> list[SSAValue]:
    x = net.conv(net.x(1, 3, 8, 8), 8, 1, 1)
    y = _block(net, x)
    return [net.conv(net(nn.AddOp(net.conv(y, 8, 1, 1), net.conv(x, 8, 1, 1))), 8, 1, 1)]


def _convolved(net: Net) -> list[SSAValue]:
    """The residual is what the convolution of the group reads: its neighbours too."""
    x = net(nn.ReluOp(net.conv(net.x(1, 3, 8, 8), 8, 1, 1)))
    y = net(nn.ReluOp(net(nn.AddOp(net.conv(x, 8, 1, 1), x))))
    return [net.conv(y, 8, 1, 1)]


def _padded(net: Net) -> list[SSAValue]:
    """The result is wanted with a border that the residual has not."""
    y = _block(net, net.conv(net.x(1, 3, 8, 8), 8, 1, 1))
    return [net.conv(y, 8, 3, 3, pads=[1, 1, 1, 1])]


def _leaves(net: Net) -> list[SSAValue]:
    x = net.conv(net.x(1, 3, 8, 8), 8, 1, 1)
    y = _block(net, x)
    return [x, net.conv(y, 8, 1, 1)]


def _viewed(net: Net) -> list[SSAValue]:
    """A view of the residual is read later."""
    x = net.conv(net.x(1, 3, 8, 8), 8, 1, 1)
    view = net(nn.ReshapeOp(x, (1, 8, 64)))
    y = net.conv(_block(net, x), 8, 1, 1)
    return [y, net(nn.ReluOp(view))]


CASES: dict[str, tuple[Build, int]] = {  # with how many results are stored over an operand
    "chain": (_chain, 1),
    "many channels": (_many_channels, 2),
    "read later": (_read_later, 1),
    "convolved": (_convolved, 0),
    "padded": (_padded, 0),
    "leaves": (_leaves, 1),
    "viewed": (_viewed, 0),
}


def lower(module: ModuleOp) -> int:
    """Run `core-lower`; how many results it has put over an operand."""
    step = get_all_passes()["core-lower"]()()
    step.apply(make_context(), module)
    return int(getattr(step, "statistics", {}).get("in place", 0))


@pytest.mark.parametrize("name", CASES)
def test_same_bits(name: str) -> None:
    build, count = CASES[name]
    net = Net()
    module = net.module(*build(net))
    apply(module, PREPARE.format(mode="all"))
    expected = run_module(module, net.inputs, weights=net).outputs
    assert lower(module) == count
    same(expected, run_module(module, net.inputs, weights=net).outputs)
    apply(module, "core-allocate,core-schedule")
    same(expected, run_module(module, net.inputs, weights=net, hazards=True).outputs)
