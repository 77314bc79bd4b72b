"""Layers that compute are lowered to the same bits: see `lowered`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from lowered import FINAL, LOWERED, Case, Cases, Net
from xdsl.dialects.builtin import i1
from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn

CASES = Cases()


# Convolutions


def _conv(channels: int, size: Sequence[int], outputs: int, *kernel: int, batch: int = 1, **keys: Any) -> Case:
    def build(net: Net) -> SSAValue:
        return net(nn.ReluOp(net.conv(net.x(batch, channels, *size), outputs, *kernel, **keys)))

    return build


CASES.update(
    {
        "conv 1x1": _conv(32, (7, 7), 32, 1, 1),
        "conv 1x1 strided": _conv(16, (8, 8), 48, 1, 1, strides=[2, 2]),
        "conv 3x3": _conv(3, (9, 9), 24, 3, 3, pads=[1, 1, 1, 1]),
        "conv 3x3 strided": _conv(3, (10, 10), 70, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]),
        "conv asymmetric pads": _conv(5, (8, 9), 65, 3, 2, pads=[0, 1, 2, 0], strides=[1, 2]),
        "conv dilated": _conv(40, (11, 9), 20, 3, 3, dilations=[2, 3], pads=[2, 3, 2, 3]),
        "conv wide kernel": _conv(3, (17, 17), 16, 7, 7, strides=[2, 2], pads=[3, 3, 3, 3]),
        "conv ragged channels": _conv(150, (5, 5), 200, 3, 3, pads=[1, 1, 1, 1]),
        "conv 129 to 130": _conv(129, (3, 3), 130, 1, 1),
        "conv 256 to 256": _conv(256, (3, 3), 256, 1, 1),
        "conv many pixels": _conv(8, (30, 40), 8, 3, 3, pads=[1, 1, 1, 1]),
        "conv long row": _conv(4, (2, 700), 8, 1, 3, pads=[0, 1, 0, 1]),
        "conv batch": _conv(20, (6, 6), 40, 3, 3, batch=2, pads=[1, 1, 1, 1]),
        "conv batch 3 ragged": _conv(130, (5, 5), 33, 2, 2, batch=3),
        "conv groups": _conv(12, (6, 6), 24, 3, 3, group=3, pads=[1, 1, 1, 1]),
        "conv depthwise": _conv(40, (7, 7), 40, 3, 3, group=40, pads=[1, 1, 1, 1]),
        "conv depthwise strided": _conv(144, (8, 8), 144, 3, 3, group=144, strides=[2, 2], pads=[1, 1, 1, 1]),
        "conv depthwise batch": _conv(33, (6, 6), 33, 3, 3, batch=2, group=33, dilations=[2, 1]),
        "conv depthwise twice the channels": _conv(16, (6, 6), 32, 3, 3, group=16, pads=[1, 1, 1, 1]),
        "conv 1-D": _conv(20, (50,), 30, 5, pads=[2, 2]),
        "conv 1-D strided": _conv(70, (40,), 65, 3, strides=[2], pads=[0, 1], dilations=[2]),
        "conv to one pixel": _conv(32, (5, 5), 40, 5, 5),
        "conv one channel": _conv(1, (6, 6), 1, 3, 3),
        "conv without bias": _conv(16, (6, 6), 16, 3, 3, bias=False),
    }
)


@CASES.add("conv chain")
def _conv_chain(net: Net) -> SSAValue:
    x = net.x(1, 3, 12, 12)
    for outputs in (16, 40, 130, 8):
        x = net(nn.ReluOp(net.conv(x, outputs, 3, 3, pads=[1, 1, 1, 1])))
        x = net(nn.ClipOp(x, 0, 6))
    return x


@CASES.add("residual")
def _residual(net: Net) -> SSAValue:
    x = net.x(1, 40, 6, 6)
    y = net(nn.ReluOp(net.conv(x, 40, 3, 3, pads=[1, 1, 1, 1])))
    y = net.conv(y, 40, 3, 3, pads=[1, 1, 1, 1])
    return net(nn.ReluOp(net(nn.AddOp(y, x))))


@CASES.add("residual, projected")
def _residual_projected(net: Net) -> SSAValue:
    x = net.x(1, 20, 8, 8)
    y = net(nn.ReluOp(net.conv(x, 70, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2])))
    y = net.conv(y, 70, 1, 1)
    return net(nn.ReluOp(net(nn.AddOp(y, net.conv(x, 70, 1, 1, strides=[2, 2])))))


@CASES.add("several users, several results")
def _several(net: Net) -> Sequence[SSAValue]:
    x = net.x(1, 20, 8, 8)
    y = net(nn.ReluOp(net.conv(x, 24, 3, 3, pads=[1, 1, 1, 1])))
    a = net.conv(y, 10, 1, 1)
    b = net(nn.MaxPoolOp(y, [3, 3], pads=[1, 1, 1, 1]))
    c = net(nn.AvgPoolOp(y, [2, 2], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=True))
    return [y, a, b, c]


@CASES.add("padding of two values")
def _two_paddings(net: Net) -> Sequence[SSAValue]:
    x = net(nn.NegOp(net(nn.ReluOp(net.x(1, 20, 7, 7)))))
    return [
        net(nn.MaxPoolOp(x, [3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
        net.conv(x, 20, 3, 3, pads=[1, 1, 1, 1]),
        net.conv(x, 9, 5, 5, pads=[2, 2, 2, 2]),
    ]


# Pooling


def _pool(kind: type[nn.PoolOp], shape: Sequence[int], kernel: Sequence[int], **keys: Any) -> Case:
    def build(net: Net) -> SSAValue:
        x = net(nn.SubOp(net.x(*shape), net.splat(5.0)))
        return net(kind(x, kernel, **keys))  # pyright: ignore[reportCallIssue]

    return build


for _kind in (nn.MaxPoolOp, nn.AvgPoolOp):
    _name = _kind.name.removeprefix("nn.")
    CASES.update(
        {
            f"{_name} 2x2": _pool(_kind, (1, 20, 8, 8), [2, 2], strides=[2, 2]),
            f"{_name} 3x3 pads": _pool(_kind, (1, 130, 7, 7), [3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            f"{_name} ceil pads": _pool(_kind, (1, 33, 8, 8), [3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
            f"{_name} dilated": _pool(_kind, (2, 8, 9, 9), [2, 3], dilations=[2, 1]),
            f"{_name} 1-D": _pool(_kind, (1, 10, 20), [3], strides=[2], pads=[1, 0]),
            f"{_name} all": _pool(_kind, (1, 70, 7, 7), [7, 7]),
        }
    )
CASES["avg_pool counting pads"] = _pool(nn.AvgPoolOp, (1, 20, 6, 6), [3, 3], pads=[1, 1, 1, 1], count_include_pad=True)


@CASES.add("lrn")
def _lrn(net: Net) -> SSAValue:
    # beta 1: the power is a division, of which the order of operations is the only freedom.
    return net(nn.LrnOp(net.x(1, 140, 4, 4), 5, alpha=5.0, beta=1.0, bias=1.0))


# Reductions and normalisation


def _reduce(kind: type[nn.ReduceOp], shape: Sequence[int], axes: Sequence[int], keep: bool = False) -> Case:
    return lambda net: net(kind(net.x(*shape), axes, keepdims=keep))


for _kind in (nn.ReduceSumOp, nn.ReduceMeanOp, nn.ReduceMaxOp, nn.ReduceMinOp, nn.ReduceProdOp):
    _name = _kind.name.removeprefix("nn.")
    CASES.update(
        {
            f"{_name} spatial": _reduce(_kind, (1, 70, 3, 3), [2, 3]),
            f"{_name} rows": _reduce(_kind, (2, 70, 10), [2], True),
        }
    )
CASES.update(
    {
        "reduce_mean spatial kept": _reduce(nn.ReduceMeanOp, (2, 130, 7, 7), [2, 3], True),
        "reduce_mean last": _reduce(nn.ReduceMeanOp, (3, 50, 65), [2], True),
        "reduce_sum channels": _reduce(nn.ReduceSumOp, (2, 24, 5, 5), [1]),
        "reduce_max first": _reduce(nn.ReduceMaxOp, (6, 40), [0]),
        "reduce_sum all": _reduce(nn.ReduceSumOp, (6, 40), [0, 1]),
        "softmax last": lambda net: net(nn.SoftmaxOp(net.x(2, 70, 9), axis=2)),
        "softmax of a vector": lambda net: net(nn.SoftmaxOp(net.x(1, 100), axis=1)),
        "softmax channels": lambda net: net(nn.SoftmaxOp(net.x(1, 2, 6, 6), axis=1)),
        "softmax of scores": lambda net: net(nn.SoftmaxOp(net.x(1, 3, 70, 65), axis=3)),
        "layer norm": lambda net: net(nn.LayerNormOp(net.x(1, 70, 48), net.w(48), net.w(48), axis=2)),
        "layer norm without bias": lambda net: net(nn.LayerNormOp(net.x(2, 130, 16), net.w(16), axis=2)),
        "layer norm over two axes": lambda net: net(nn.LayerNormOp(net.x(20, 3, 8), net.w(3, 8), net.w(3, 8), axis=1)),
    }
)


@CASES.add("global mean, dense, softmax")
def _classifier(net: Net) -> SSAValue:
    x = net(nn.ReluOp(net.conv(net.x(1, 8, 6, 6), 140, 3, 3)))
    x = net(nn.ReduceSumOp(x, [2, 3]))
    return net(nn.SoftmaxOp(net(nn.AddOp(net.dense(x, 70), net.w(70))), axis=1))


# Products


def _dense(*shape: int, outputs: int, then: Callable[[Net, SSAValue], SSAValue] | None = None) -> Case:
    def build(net: Net) -> SSAValue:
        y = net(nn.AddOp(net.dense(net.x(*shape), outputs), net.w(outputs)))
        return y if then is None else then(net, y)

    return build


CASES.update(
    {f"dense {m} x {k} x {n}": _dense(m, k, outputs=n) for m in (1, 64, 65, 130) for k, n in ((40, 20), (300, 130))}
)
CASES.update(
    {
        "dense 3-D": _dense(2, 70, 48, outputs=65),
        "dense wide": _dense(3, 64, outputs=700),
        "dense rows": _dense(1, 70, 48, outputs=600, then=lambda net, y: net(nn.SoftmaxOp(y, axis=2))),
        "dense rows 65 x 150": _dense(65, 150, outputs=40, then=lambda net, y: net(nn.ReduceMaxOp(y, [1]))),
        "dense gelu": _dense(1, 66, 32, outputs=64, then=lambda net, y: net(nn.GeluOp(y))),
        "dense twice": _dense(1, 70, 48, outputs=65, then=lambda net, y: net.dense(net(nn.ReluOp(y)), 30)),
        "dense, one row": _dense(1, 1, 48, outputs=30),
    }
)


@CASES.add("flatten and dense")
def _flatten(net: Net) -> SSAValue:
    x = net(nn.ReluOp(net.conv(net.x(1, 3, 8, 8), 70, 3, 3)))
    return net(nn.ReluOp(net.dense(net(nn.ReshapeOp(x, (1, 70 * 36))), 40)))


@CASES.add("flatten a batch")
def _flatten_batch(net: Net) -> SSAValue:
    x = net(nn.ReluOp(net.conv(net.x(2, 3, 6, 6), 40, 3, 3)))
    return net.dense(net(nn.ReshapeOp(x, (2, 40 * 16))), 20)


def _attention(batch: int, rows: int, heads: int, width: int, masked: bool = False) -> Case:
    def build(net: Net) -> SSAValue:
        x = net.x(batch, rows, 32, low=-1, high=1)
        parts: list[SSAValue] = []
        for perm in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
            y = net(nn.ReshapeOp(net.dense(x, heads * width), (batch, rows, heads, width)))
            parts.append(net(nn.TransposeOp(y, perm)))
        scores = net(nn.MatmulOp(parts[0], parts[1]))
        if masked:
            scores = net(nn.AddOp(scores, net.x(batch, 1, 1, rows)))
        scores = net(nn.ClipOp(scores, -2, 2))  # a softmax would bring fractions, whose sums depend on their order
        mixed = net(nn.TransposeOp(net(nn.MatmulOp(scores, parts[2])), (0, 2, 1, 3)))
        return net.dense(net(nn.ReshapeOp(mixed, (batch, rows, heads * width))), 24)

    return build


CASES.update(
    {
        f"attention {b} x {r}, {h} heads of {w}": _attention(b, r, h, w)
        for b, r, h, w in (
            (1, 16, 4, 32),
            (1, 70, 2, 64),
            (1, 130, 2, 128),
            (2, 20, 2, 64),
            (1, 33, 3, 64),
            (1, 10, 3, 20),
        )
    }
)
CASES["attention, masked"] = _attention(2, 40, 2, 64, masked=True)
CASES.update(
    {
        "batched product": lambda net: net(nn.MatmulOp(net.x(3, 20, 30), net.x(3, 30, 40))),
        "batched product, broadcast": lambda net: net(nn.MatmulOp(net.x(2, 3, 20, 30), net.x(3, 30, 70))),
        "batched product, deep": lambda net: net(nn.MatmulOp(net.x(2, 70, 300), net.x(2, 300, 70))),
        "product with a constant on the left": lambda net: net(nn.MatmulOp(net.w(20, 30), net.x(30, 40))),
        "product with a batch of constants": lambda net: net(nn.MatmulOp(net.x(3, 20, 30), net.w(3, 30, 40))),
        "outer product": lambda net: net.dense(net.x(130, 1), 70),
        "outer products, batched": lambda net: net(nn.MatmulOp(net.x(2, 5, 1), net.x(2, 1, 70))),
        "product of one number": lambda net: net.dense(net.x(1, 1), 3),
        "concatenation, then a product with one column": lambda net: net.dense(
            net(nn.ConcatOp([net.x(5, 7), net.x(5, 130)], axis=1)), 1
        ),
        "padded, then one column": lambda net: net.dense(
            net(nn.ReshapeOp(net(nn.PadOp(net.x(2, 130), (1, 0), (0, 2))), (396, 1))), 5
        ),
        "product of one value with itself": lambda net: (x := net.x(40, 40)) and net(nn.MatmulOp(x, x)),
    }
)


# Element-wise layers


@CASES.add("unary functions")
def _unary(net: Net) -> Sequence[SSAValue]:
    x, positive = net.x(2, 40, 5), net.x(2, 40, 5, low=1, high=9)
    some = (nn.SigmoidOp, nn.TanhOp, nn.ErfOp, nn.GeluOp, nn.GeluTanhOp, nn.SiluOp, nn.SoftplusOp, nn.MishOp, nn.ExpOp)
    return [
        *(net(kind(x)) for kind in (nn.ReluOp, *some, nn.AbsOp, nn.NegOp, nn.FloorOp)),
        *(net(kind(positive)) for kind in (nn.LogOp, nn.SqrtOp, nn.ReciprocalOp)),
        net(nn.LeakyReluOp(x, 0.1)),
        net(nn.ClipOp(x, -1, 2)),
        net(nn.ClipOp(x, None, 2)),
        net(nn.ClipOp(x, 0, None)),
        net(nn.ClipOp(x)),
    ]


BINARY = (nn.AddOp, nn.SubOp, nn.MulOp, nn.DivOp, nn.MaxOp, nn.MinOp)
COMPARE = (nn.EqualOp, nn.LessOp, nn.GreaterOp)
OPERANDS: dict[str, Sequence[int]] = {
    "same": (2, 33, 5, 6),
    "per channel": (33, 1, 1),
    "per channel 4-D": (1, 33, 1, 1),
    "per pixel": (1, 1, 5, 6),
    "per row": (5, 1),
    "per column": (6,),
    "per request": (2, 1, 1, 1),
    "scalar": (),
    "one": (1,),
    "channel and column": (33, 1, 6),
    "request and channel": (2, 33, 1, 1),
}


def _binary(shape: Sequence[int], constant: bool, left: bool) -> Case:
    def build(net: Net) -> Sequence[SSAValue]:
        x = net.x(2, 33, 5, 6)
        y = net.w(*shape, low=1, high=4) if constant else net.x(*shape, low=1, high=4)
        pair = (y, x) if left else (x, y)
        found = [net(kind(*pair)) for kind in (*BINARY, *COMPARE)]
        positive = net(nn.AddOp(net(nn.AbsOp(x)), net.splat(1.0)))
        return [*found, net(nn.PowOp(*((y, positive) if left else (positive, y))))]

    return build


CASES.update(
    {
        f"binary with a {kind} {name}, {side}": _binary(shape, kind == "constant", side == "left")
        for name, shape in OPERANDS.items()
        for kind in ("constant", "variable")
        for side in ("left", "right")
    }
)


@CASES.add("logic")
def _logic(net: Net) -> Sequence[SSAValue]:
    x, y = net.x(3, 40), net.x(3, 40)
    a, b = net(nn.LessOp(x, y)), net(nn.GreaterOp(x, net.splat(1.0)))
    either = net(nn.OrOp(a, net(nn.NotOp(b))))
    return [either, net(nn.WhereOp(net(nn.AndOp(a, b)), x, y)), net(nn.WhereOp(either, x, net.splat(-1.0)))]


@CASES.add("where with a constant mask")
def _where(net: Net) -> SSAValue:
    return net(nn.WhereOp(net.w(40, 40, element=i1, low=0, high=1), net.x(2, 40, 40), net.splat(-9.0)))


@CASES.add("gate: one value used twice")
def _gate(net: Net) -> SSAValue:
    y = net.conv(net.x(1, 16, 5, 5), 20, 1, 1)
    return net(nn.MulOp(y, net(nn.SigmoidOp(y))))


@CASES.add("squeeze and excite")
def _excite(net: Net) -> SSAValue:
    x = net(nn.ReluOp(net.conv(net.x(1, 8, 6, 6), 40, 3, 3)))
    s = net.conv(net(nn.ReduceMaxOp(x, [2, 3], keepdims=True)), 40, 1, 1)
    return net(nn.MulOp(x, net(nn.SigmoidOp(s))))


@CASES.add("expand")
def _expand(net: Net) -> SSAValue:
    return net(nn.AddOp(net(nn.ExpandOp(net.x(20, 1), (3, 20, 5))), net.x(3, 20, 5)))


@pytest.mark.parametrize("name", CASES)
def test_lowered_and_final(name: str) -> None:
    CASES.run(name, forms=(LOWERED, FINAL))


MODES = ("all-fp16", "matmult", "matmult-bf16", "matmult-fp16")
SOME = (
    "conv asymmetric pads",
    "conv depthwise",
    "residual",
    "several users, several results",
    "max_pool 3x3 pads",
    "avg_pool ceil pads",
    "layer norm",
    "global mean, dense, softmax",
    "flatten and dense",
    "attention, masked",
    "gate: one value used twice",
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOME)
def test_modes(name: str, mode: str) -> None:
    CASES.run(name, mode)
