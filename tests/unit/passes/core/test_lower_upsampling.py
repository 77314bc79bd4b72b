"""Transposed convolutions and resizing are lowered to the same bits: see `lowered`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from lowered import FINAL, LOWERED, Case, Cases, Net
from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of

CASES = Cases()


def _transposed(net: Net, x: SSAValue, outputs: int, *kernel: int, bias: bool = True, **keys: Any) -> SSAValue:
    weight = net.w(type_of(x).get_shape()[1], outputs, *kernel)
    return net(nn.ConvTransposeOp(x, weight, net.w(outputs) if bias else None, **keys))


def _up(channels: int, size: Sequence[int], outputs: int, *kernel: int, batch: int = 1, **keys: Any) -> Case:
    def build(net: Net) -> SSAValue:
        return net(nn.ReluOp(_transposed(net, net.x(batch, channels, *size), outputs, *kernel, **keys)))

    return build


def _resized(shape: Sequence[int], *scales: int) -> Case:
    return lambda net: net(nn.ResizeOp(net(nn.ReluOp(net.x(*shape))), scales))


CASES.update(
    {
        "2x2 stride 2": _up(20, (5, 6), 24, 2, 2, strides=[2, 2]),
        "2x2 stride 2, many channels": _up(150, (4, 4), 130, 2, 2, strides=[2, 2]),
        "2x2 stride 2, batch": _up(20, (5, 6), 24, 2, 2, strides=[2, 2], batch=3),
        "3x3 stride 2": _up(20, (5, 6), 24, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        "4x4 stride 2": _up(8, (5, 6), 70, 4, 4, strides=[2, 2], pads=[1, 1, 1, 1]),
        "3x2 stride 1 2": _up(8, (5, 6), 9, 3, 2, strides=[1, 2], pads=[0, 1, 2, 0]),
        "5x5 stride 3": _up(8, (4, 5), 9, 5, 5, strides=[3, 3], pads=[2, 0, 1, 3], output_padding=[2, 0]),
        "kernel shorter than the stride": _up(8, (4, 5), 9, 1, 2, strides=[3, 3], bias=False),
        "4x6 stride 2 3, pads of a stride": _up(70, (5, 4), 70, 4, 6, strides=[2, 3], pads=[2, 3, 2, 0]),
        "result shorter than the stride": _up(8, (1, 1), 9, 2, 1, strides=[3, 2], output_padding=[0, 1]),
        "one pixel": _up(8, (1, 1), 9, 3, 3, strides=[2, 2], pads=[1, 1, 0, 0]),
        "1-D": _up(8, (9,), 9, 4, strides=[2], pads=[1, 1]),
        "large map": _up(8, (60, 100), 12, 2, 2, strides=[2, 2]),
        "large map with overlap": _up(8, (61, 90), 12, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1]),
        "large result only": _up(8, (40, 150), 12, 4, 2, strides=[4, 2], output_padding=[3, 0]),
        "resize": _resized((1, 20, 5, 6), 2, 2),
        "resize one axis, many channels": _resized((2, 150, 5, 6), 1, 3),
        "resize one pixel": _resized((1, 20, 1, 1), 2, 2),
        "resize 1-D": _resized((1, 20, 7), 3),
        "resize large map": _resized((1, 20, 70, 90), 2, 2),
        "resize to a large map": _resized((2, 20, 30, 90), 2, 2),
    }
)


@CASES.add("group with a map, a row and a column")
def _group(net: Net) -> SSAValue:
    y = _transposed(net, net.x(1, 20, 5, 6), 24, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1])
    y = net(nn.AddOp(y, net.x(1, 24, 9, 11)))
    y = net(nn.AddOp(y, net.w(1, 24, 9, 11)))
    y = net(nn.AddOp(y, net.w(24, 1, 1)))
    return net(nn.ReluOp(y))


@CASES.add("group by rows")
def _group_by_rows(net: Net) -> SSAValue:
    x = net.x(1, 8, 60, 100)
    y = _transposed(net, x, 12, 2, 2, strides=[2, 2])
    y = net(nn.AddOp(y, net.x(1, 12, 120, 200)))
    return net(nn.ReluOp(net(nn.AddOp(y, net.w(12, 1, 1)))))


@CASES.add("down and up again")
def _unet(net: Net) -> SSAValue:
    x = net.x(1, 8, 12, 12)
    skip = net(nn.ReluOp(net.conv(x, 16, 3, 3, pads=[1, 1, 1, 1])))
    y = net(nn.MaxPoolOp(skip, [2, 2], strides=[2, 2]))
    y = net(nn.ReluOp(net.conv(y, 32, 3, 3, pads=[1, 1, 1, 1])))
    y = _transposed(net, y, 16, 2, 2, strides=[2, 2])
    y = net(nn.ConcatOp([skip, y], axis=1))
    return net(nn.ReluOp(net.conv(y, 8, 3, 3, pads=[1, 1, 1, 1])))


@CASES.add("pyramid")
def _pyramid(net: Net) -> SSAValue:
    x = net.x(1, 16, 12, 12)
    y = net(nn.LeakyReluOp(net.conv(x, 32, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1]), 0.125))
    y = net(nn.ResizeOp(net.conv(y, 20, 1, 1), [2, 2]))
    y = net(nn.ConcatOp([y, x], axis=1))
    return net.conv(y, 8, 3, 3, pads=[1, 1, 1, 1])


SCHEDULED = ("2x2 stride 2", "group by rows", "resize", "resize large map", "down and up again")


@pytest.mark.parametrize("name", list(CASES))
def test_lowered(name: str) -> None:
    CASES.run(name, forms=(LOWERED, FINAL) if name in SCHEDULED else (LOWERED,))


@pytest.mark.parametrize("mode", ["matmult", "all-fp16"])
@pytest.mark.parametrize("name", ["3x3 stride 2", "large map with overlap", "pyramid"])
def test_other_casts(name: str, mode: str) -> None:
    CASES.run(name, mode)
