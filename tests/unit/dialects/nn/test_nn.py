"""The nn dialect as a library: builders, numbers in text, and what the parser refuses."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, bf16, f32, i1, i64
from xdsl.ir import Block, Operation
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError, VerifyException

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import f32_text, number_text, tensor


def parse(text: str) -> Operation:
    ctx = Context()
    for dialect in (Builtin, nn.Nn):
        ctx.load_dialect(dialect)
    return Parser(ctx, text).parse_op()


def test_builders_leave_defaults_out_of_the_text() -> None:
    x, w = Block(arg_types=[tensor((1, 3, 8, 8)), tensor((4, 3, 3, 3))]).args
    plain = nn.ConvOp(x, w, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1)
    assert list(plain.properties) == []
    assert (plain.strides, plain.pads, plain.dilations, plain.group) == ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    strided = nn.ConvOp(x, w, strides=(2, 1), pads=(1, 1, 1, 1))
    assert str(strided).endswith(
        "strides [2, 1] pads [1, 1, 1, 1] : (tensor<1x3x8x8xf32>, tensor<4x3x3x3xf32>) -> tensor<1x4x4x8xf32>"
    )


def test_builders_infer_types() -> None:
    x, y, i, c = Block(arg_types=[tensor((4, 1), bf16), tensor((3,)), tensor((2,), i64), tensor((3,), i1)]).args
    assert nn.AddOp(x, y).type == tensor((4, 3), f32)
    assert nn.EqualOp(x, y).type == tensor((4, 3), i1)
    assert nn.GatherOp(x, i, axis=0).type == tensor((2, 1), bf16)
    assert nn.WhereOp(c, x, x).type == tensor((4, 3), bf16)
    assert nn.ReduceSumOp(x, [0], keepdims=True).type == tensor((1, 1), f32)
    assert nn.ArgMaxOp(x, axis=1).type == tensor((4,), i64)
    assert nn.CastOp(x, i64).type == tensor((4, 1), i64)
    assert nn.ConcatOp([x, x], axis=1).type == tensor((4, 2), bf16)


def test_builders_refuse_what_the_verifier_would() -> None:
    (x,) = Block(arg_types=[tensor((4, 3))]).args
    with pytest.raises(VerifyException, match=r"nn\.matmul needs as many columns"):
        nn.MatmulOp(x, x)
    with pytest.raises(VerifyException, match=r"nn\.reshape needs a shape of 12 elements"):
        nn.ReshapeOp(x, (5,))


def test_parameters_read_as_python_numbers() -> None:
    (x,) = Block(arg_types=[tensor((1, 4, 3))]).args
    assert nn.LeakyReluOp(x, 0.01).alpha == struct.unpack("f", struct.pack("f", 0.01))[0]
    assert nn.ClipOp(x, hi=6.0).lo is None
    assert nn.ClipOp(x, hi=6.0).hi == 6.0
    assert nn.PadOp(x, (0, 0, 0), (0, 0, 1), value=-math.inf).pad_value == -math.inf
    lrn = nn.LrnOp(x, 3, alpha=0.5, beta=0.25, bias=2.0)
    assert (lrn.size, lrn.alpha, lrn.beta, lrn.bias) == (3, 0.5, 0.25, 2.0)


@given(st.floats(width=32))
def test_f32_text_gives_the_same_f32(number: float) -> None:
    op = parse(f'%w = nn.weight "w" splat<{f32_text(number)}> : tensor<f32>')
    assert isinstance(op, nn.WeightOp)
    assert isinstance(op.source, nn.SplatAttr)
    # A NaN has no sign in text.
    written = math.copysign(number, 1.0) if math.isnan(number) else number
    assert struct.pack("f", op.source.number) == struct.pack("f", written)


@given(st.floats() | st.integers(-(2**63), 2**63 - 1))
def test_numbers_in_text_read_back(number: float) -> None:
    text = f'%w = nn.weight "w" dense<[{number_text(number)}]> : tensor<1xf32>'
    op = parse(text)
    assert str(op) == text
    assert isinstance(op, nn.WeightOp)
    assert isinstance(op.source, nn.DenseAttr)
    assert repr(op.source.numbers[0]) == repr(number)


def test_weight_in_text() -> None:
    op = parse('%w = nn.weight "a.b" seeded<12> digest "ff" : tensor<2x3xbf16>')
    assert isinstance(op, nn.WeightOp)
    assert (op.key, op.digest, op.type) == ("a.b", "ff", tensor((2, 3), bf16))
    assert op.source == nn.SeededAttr.get(12)
    built = nn.WeightOp("a.b", tensor((2, 3), bf16), nn.SeededAttr.get(12), "ff")
    assert built.is_structurally_equivalent(op)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('%w = nn.weight "w" dense<[[1, 2], [3]]> : tensor<3xi64>', "nested lists of one shape"),
        ('%w = nn.weight "w" splat<x> : tensor<3xi64>', "needs a number"),
        ('%w = nn.weight "w" seeded<1.5> : tensor<3xi64>', "Expected integer"),
        ('%w = nn.weight "w" random<1> : tensor<3xi64>', "Expected ':'"),
    ],
)
def test_parser_refuses(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(text)
