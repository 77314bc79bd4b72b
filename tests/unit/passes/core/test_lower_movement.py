"""Movement of data, and feature maps done in tiles of rows, are lowered to the same bits: see `lowered`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from lowered import FINAL, LOWERED, Case, Cases, Net
from xdsl.dialects.builtin import i32, i64
from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import tensor

CASES = Cases()


# Movement


def _moved(*shape: int, then: Callable[[Net, SSAValue], SSAValue]) -> Case:
    """Some movement of a computed value, and a layer after it."""
    return lambda net: net(nn.ReluOp(then(net, net(nn.AddOp(net.x(*shape), net.splat(1.0))))))


def _concat(axis: int, *shapes: Sequence[int]) -> Case:
    def build(net: Net) -> SSAValue:
        parts = [net(nn.ReluOp(net.x(*shape))) for shape in shapes]
        return net(nn.ReluOp(net(nn.ConcatOp(parts, axis=axis))))

    return build


def _slice(
    shape: Sequence[int], starts: Sequence[int], sizes: Sequence[int], strides: Sequence[int] | None = None
) -> Case:
    return _moved(*shape, then=lambda net, v: net(nn.SliceOp(v, starts, sizes, strides)))


CASES.update(
    {
        "concat channels": _concat(1, (1, 20, 5, 5), (1, 45, 5, 5), (1, 70, 5, 5), (1, 128, 5, 5)),
        "concat channels, aligned": _concat(1, (1, 32, 4, 4), (1, 96, 4, 4), (1, 256, 4, 4)),
        "concat rows": _concat(2, (1, 20, 5, 4), (1, 20, 2, 4)),
        "concat batch": _concat(0, (1, 20, 5, 4), (2, 20, 5, 4)),
        "concat matrices": _concat(1, (40, 10), (40, 3)),
        "concat columns": _concat(2, (2, 40, 10), (2, 40, 3)),
        "slice channels": _slice((1, 100, 4, 4), (0, 10, 0, 0), (1, 50, 4, 4)),
        "slice whole tiles": _slice((1, 300, 3, 3), (0, 128, 0, 0), (1, 130, 3, 3)),
        "slice every other channel": _slice((1, 100, 4, 4), (0, 1, 0, 0), (1, 50, 4, 4), (1, 2, 1, 1)),
        "slice rows": _slice((1, 20, 9, 6), (0, 0, 2, 1), (1, 20, 4, 5)),
        "slice every other pixel": _slice((1, 20, 9, 8), (0, 0, 1, 0), (1, 20, 4, 4), (1, 1, 2, 2)),
        "slice backwards": _slice((1, 20, 6, 6), (0, 0, 5, 0), (1, 20, 6, 6), (1, 1, -1, 1)),
        "slice batch": _slice((4, 20, 6), (1, 0, 0), (2, 20, 6)),
        "transpose matrix": _moved(40, 70, then=lambda net, v: net(nn.TransposeOp(v, (1, 0)))),
        "transpose channels last": _moved(1, 40, 6, 5, then=lambda net, v: net(nn.TransposeOp(v, (0, 2, 3, 1)))),
        "transpose batch": _moved(3, 20, 30, then=lambda net, v: net(nn.TransposeOp(v, (2, 0, 1)))),
        "reshape uneven": _moved(1, 30, 7, 2, then=lambda net, v: net(nn.ReshapeOp(v, (1, 20, 21)))),
        "reshape matrix": _moved(12, 35, then=lambda net, v: net(nn.ReshapeOp(v, (20, 21)))),
        "reshape split": _moved(2, 70, 64, then=lambda net, v: net(nn.ReshapeOp(v, (2, 70, 4, 16)))),
        "reshape to a vector": _moved(6, 20, 3, then=lambda net, v: net(nn.ReshapeOp(v, (360,)))),
        "pad": _moved(1, 20, 5, 5, then=lambda net, v: net(nn.PadOp(v, (0, 0, 1, 2), (0, 0, 3, 0), value=7.0))),
        "pad channels": _moved(1, 20, 5, 5, then=lambda net, v: net(nn.PadOp(v, (0, 3, 0, 0), (0, 4, 0, 0)))),
        "pad a matrix": _moved(20, 30, then=lambda net, v: net(nn.PadOp(v, (2, 0), (0, 5), value=1.0))),
        "gather rows": lambda net: net(nn.GatherOp(net.w(50, 24), net.x(2, 70, element=i32, low=0, high=49))),
        "gather a row": lambda net: net(nn.GatherOp(net.w(50, 24), net.x(1, element=i32, low=0, high=49))),
        "concat with a constant": lambda net: net(
            nn.ConcatOp([net.w(1, 3, 20), net(nn.ReluOp(net.x(1, 30, 20)))], axis=1)
        ),
    }
)


@CASES.add("channel shuffle")
def _shuffle(net: Net) -> SSAValue:
    x = net.conv(net.x(1, 8, 5, 5), 24, 1, 1)
    x = net(nn.TransposeOp(net(nn.ReshapeOp(x, (1, 3, 8, 5, 5))), (0, 2, 1, 3, 4)))
    x = net(nn.ReshapeOp(x, (1, 24, 5, 5)))
    x = net.conv(x, 24, 3, 3, group=24, pads=[1, 1, 1, 1])
    return net.conv(x, 24, 1, 1, group=3)


@CASES.add("channel shuffle of many")
def _shuffle_many(net: Net) -> SSAValue:
    x = net(nn.ReluOp(net.conv(net.x(1, 8, 4, 4), 272, 1, 1)))
    x = net(nn.TransposeOp(net(nn.ReshapeOp(x, (1, 4, 68, 4, 4))), (0, 2, 1, 3, 4)))
    return net.conv(net(nn.ReshapeOp(x, (1, 272, 4, 4))), 272, 3, 3, group=272, pads=[1, 1, 1, 1])


@CASES.add("two layouts of one value")
def _layouts(net: Net) -> Sequence[SSAValue]:
    x = net(nn.ReluOp(net.dense(net.x(1, 70, 40), 48)))
    return [
        net(nn.SoftmaxOp(x, axis=2)),
        net.dense(x, 30),
        net(nn.ReduceMaxOp(x, [1])),
        net(nn.TransposeOp(x, (0, 2, 1))),
    ]


@CASES.add("gather of runs")
def _gather_runs(net: Net) -> Sequence[SSAValue]:
    x = net(nn.ReluOp(net.x(3, 40)))
    below = [5 * i + j for i in range(5) for j in range(i)]
    picked = net(nn.WeightOp("below", tensor((len(below),), i64), nn.DenseAttr.get(below)))
    back = net(nn.WeightOp("back", tensor((5,), i64), nn.DenseAttr.get([39, 38, -1, 0, 1])))
    return [net(nn.GatherOp(x, picked, axis=1)), net(nn.GatherOp(x, back, axis=1))]


@CASES.add("gather by constant indices")
def _gather_constant(net: Net) -> Sequence[SSAValue]:
    x = net(nn.ReluOp(net.x(1, 40, 16)))
    one = net(nn.WeightOp("i", tensor((), i32), nn.DenseAttr.get([0])))
    some = net(nn.WeightOp("j", tensor((3,), i32), nn.DenseAttr.get([5, 0, -1])))
    return [net(nn.GatherOp(x, one, axis=1)), net(nn.GatherOp(x, some, axis=1))]


# Feature maps larger than SBUF gives them: tiles of rows


@CASES.add("rows: conv, residual, pool")
def _rows(net: Net) -> SSAValue:
    x = net(nn.ReluOp(net.conv(net.x(1, 3, 150, 150), 8, 3, 3, pads=[1, 1, 1, 1])))
    y = net.conv(x, 8, 3, 3, pads=[1, 1, 1, 1])
    y = net(nn.ReluOp(net(nn.AddOp(y, x))))
    y = net(nn.MaxPoolOp(y, [3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
    return net.conv(y, 8, 3, 3, strides=[2, 2])


@CASES.add("rows: depthwise and means")
def _rows_depthwise(net: Net) -> SSAValue:
    x = net(nn.ReluOp(net.x(1, 6, 130, 160)))
    y = net(nn.ClipOp(net.conv(x, 6, 3, 3, group=6, pads=[1, 1, 1, 1]), 0, 6))
    y = net(nn.AvgPoolOp(y, [2, 2], strides=[2, 2]))
    y = net(nn.AvgPoolOp(y, [3, 3], pads=[1, 1, 1, 1]))
    return net(nn.ReluOp(y))


@CASES.add("rows: means that leave padding out")
def _rows_counts(net: Net) -> SSAValue:
    return net(nn.AvgPoolOp(net(nn.ReluOp(net.x(1, 6, 130, 160))), [3, 3], pads=[1, 1, 1, 1]))


@CASES.add("rows: element-wise, two results")
def _rows_elementwise(net: Net) -> Sequence[SSAValue]:
    x = net.x(1, 6, 140, 150)
    y = net(nn.AddOp(net(nn.MulOp(x, net.w(6, 1, 1))), net.w(1, 6, 1, 1)))
    return [net(nn.ReluOp(y)), net(nn.MulOp(x, x)), net(nn.AddOp(x, net.w(1, 1, 140, 150)))]


@CASES.add("concat of pooled tiles")
def _pooled_concat(net: Net) -> SSAValue:
    """Whole tiles of channels of the result, each with the tiles of its own part only."""
    x = net.conv(net.x(1, 8, 5, 5), 256, 1, 1)
    pooled = [net(nn.MaxPoolOp(x, (k, k), pads=(k // 2,) * 4)) for k in (3, 5)]
    return net(nn.ConcatOp([*pooled, x], axis=1))


@CASES.add("rows: concat and slices")
def _rows_concat(net: Net) -> SSAValue:
    x, y = net.x(1, 6, 140, 150), net.x(1, 7, 140, 150)
    z = net(nn.ReluOp(net(nn.ConcatOp([net(nn.ReluOp(x)), y], axis=1))))
    return net.conv(net(nn.SliceOp(z, (0, 2, 1, 0), (1, 9, 138, 150))), 4, 3, 3)


# Parts of a whole that are made in their places


def _joined(then: Callable[[Net, SSAValue], SSAValue], left: int, right: int) -> Case:
    """Two products and an input put together by columns; the second product leaves as well."""

    def build(net: Net) -> Sequence[SSAValue]:
        x = net(nn.ReluOp(net.x(1, 40, 96)))
        parts = [net.dense(x, left), net(nn.ReluOp(net.dense(x, right))), net.x(1, 40, 128)]
        return [then(net, net(nn.ConcatOp(parts, axis=2))), parts[1]]

    return build


CASES.update(
    {
        "join: products for a product": _joined(lambda net, v: net.dense(v, 70), 128, 256),
        "join: products for a product, uneven": _joined(lambda net, v: net.dense(v, 70), 128, 72),
        "join: products for rows": _joined(lambda net, v: net(nn.SoftmaxOp(v, axis=2)), 128, 64),
        "join: products, half of them read": _joined(
            lambda net, v: net.dense(net(nn.SliceOp(v, (0, 0, 128), (1, 40, 256))), 70), 128, 256
        ),
    }
)


@CASES.add("join: convolutions")
def _join_convolutions(net: Net) -> SSAValue:
    x = net(nn.ReluOp(net.x(1, 20, 6, 6)))
    parts = [net(nn.ReluOp(net.conv(x, 128, 3, 3, pads=[1, 1, 1, 1]))), net.conv(x, 256, 1, 1), net.conv(x, 70, 1, 1)]
    y = net(nn.ConcatOp(parts, axis=1))
    return net(nn.AddOp(net.conv(y, 454, 1, 1), y))


@CASES.add("join: convolutions in order, one read before")
def _join_residual(net: Net) -> SSAValue:
    x = net(nn.ReluOp(net.x(1, 20, 6, 6)))
    first = net(nn.ReluOp(net.conv(x, 128, 1, 1)))
    second = net(nn.ReluOp(net(nn.AddOp(net.conv(first, 128, 1, 1), first))))
    return net.conv(net(nn.ConcatOp([first, second], axis=1)), 30, 1, 1)


@pytest.mark.parametrize("name", CASES)
def test_lowered_and_final(name: str) -> None:
    CASES.run(name, forms=(LOWERED, FINAL))
