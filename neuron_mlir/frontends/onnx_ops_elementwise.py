"""ONNX operators that work element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from xdsl.dialects.builtin import f32
from xdsl.ir import SSAValue

from neuron_mlir.dialects.nn import (
    AbsOp,
    AddOp,
    AndOp,
    BinaryOp,
    CastOp,
    ClipOp,
    DivOp,
    EqualOp,
    ErfOp,
    ExpandOp,
    ExpOp,
    FloorOp,
    GeluOp,
    GeluTanhOp,
    GreaterOp,
    LeakyReluOp,
    LessOp,
    LogOp,
    MaxOp,
    MinOp,
    MishOp,
    MulOp,
    NegOp,
    NotOp,
    OrOp,
    PowOp,
    ReciprocalOp,
    ReluOp,
    SigmoidOp,
    SiluOp,
    SoftplusOp,
    SqrtOp,
    SubOp,
    TanhOp,
    UnaryOp,
    WhereOp,
)
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.frontends.onnx_context import Context, operator

_MakeUnary = Callable[[SSAValue], UnaryOp]

_UNARY: dict[str, _MakeUnary] = {
    "Relu": ReluOp,
    "Sigmoid": SigmoidOp,
    "Tanh": TanhOp,
    "Erf": ErfOp,
    "Exp": ExpOp,
    "Log": LogOp,
    "Sqrt": SqrtOp,
    "Reciprocal": ReciprocalOp,
    "Abs": AbsOp,
    "Neg": NegOp,
    "Floor": FloorOp,
    "Softplus": SoftplusOp,
    "Mish": MishOp,
    "Not": NotOp,
}
_BINARY: dict[str, type[BinaryOp]] = {
    "Add": AddOp,
    "Sub": SubOp,
    "Mul": MulOp,
    "Div": DivOp,
    "Equal": EqualOp,
    "Less": LessOp,
    "Greater": GreaterOp,
    "And": AndOp,
    "Or": OrOp,
}


def _enter_unary(name: str, make: _MakeUnary) -> None:
    @operator(name, becomes=f"nn.{name.lower()}")
    def handler(ctx: Context) -> SSAValue:
        return ctx.emit(make(ctx.value(0)))


def _enter_binary(name: str, op: type[BinaryOp]) -> None:
    @operator(name, becomes=op.name)
    def handler(ctx: Context) -> SSAValue:
        return ctx.emit(op(ctx.value(0), ctx.value(1)))


for _name, _make in _UNARY.items():
    _enter_unary(_name, _make)
for _name, _op in _BINARY.items():
    _enter_binary(_name, _op)


@operator("LeakyRelu", "alpha", becomes="nn.leaky_relu")
def leaky_relu(ctx: Context) -> SSAValue:
    return ctx.emit(LeakyReluOp(ctx.value(0), float(ctx.attribute("alpha", 0.01))))


@operator("Clip", "min", "max", becomes="nn.clip", notes="constant bounds; of integers: nn.max, nn.min")
def clip(ctx: Context) -> SSAValue:
    x = ctx.value(0)
    if ctx.opset >= 11 and ctx.dtype(0).kind in "iu":
        if ctx.has(1):
            x = ctx.emit(MaxOp(x, ctx.value(1)))
        return ctx.emit(MinOp(x, ctx.value(2))) if ctx.has(2) else x
    if ctx.opset >= 11:
        lo, hi = ctx.constant_number(1, "lower bound"), ctx.constant_number(2, "upper bound")
    else:
        lo, hi = ctx.attribute("min", None), ctx.attribute("max", None)
    largest = float(np.finfo(np.float32).max)
    lo = None if lo is None or lo <= -largest else float(lo)
    hi = None if hi is None or hi >= largest else float(hi)
    if lo is None and hi is None:
        return x
    return ctx.emit(ClipOp(x, lo, hi))


@operator("Gelu", "approximate", becomes="nn.gelu", notes="the tanh form: nn.gelu_tanh")
def gelu(ctx: Context) -> SSAValue:
    x = ctx.value(0)
    return ctx.emit(GeluOp(x) if ctx.attribute("approximate", "none") == "none" else GeluTanhOp(x))


@operator("Ceil", becomes="nn.neg, nn.floor, nn.neg")
def ceil(ctx: Context) -> SSAValue:
    return ctx.emit(NegOp(ctx.emit(FloorOp(ctx.emit(NegOp(ctx.value(0)))))))


@operator("HardSigmoid", "alpha", "beta", becomes="nn.mul, nn.add, nn.clip")
def hard_sigmoid(ctx: Context) -> SSAValue:
    return _hard_sigmoid(ctx, float(ctx.attribute("alpha", 0.2)), float(ctx.attribute("beta", 0.5)))


def _hard_sigmoid(ctx: Context, alpha: float, beta: float) -> SSAValue:
    scaled = ctx.emit(MulOp(ctx.value(0), ctx.scalar(alpha, f32)))
    return ctx.emit(ClipOp(ctx.emit(AddOp(scaled, ctx.scalar(beta, f32))), 0.0, 1.0))


@operator("HardSwish", becomes="nn.mul, nn.add, nn.clip, nn.mul")
def hard_swish(ctx: Context) -> SSAValue:
    return ctx.emit(MulOp(ctx.value(0), _hard_sigmoid(ctx, 1.0 / 6.0, 0.5)))


@operator("Swish", "alpha", becomes="nn.silu", notes="with another alpha than 1: nn.mul, nn.sigmoid, nn.mul")
def swish(ctx: Context) -> SSAValue:
    x = ctx.value(0)
    alpha = float(ctx.attribute("alpha", 1.0))
    if alpha == 1.0:
        return ctx.emit(SiluOp(x))
    return ctx.emit(MulOp(x, ctx.emit(SigmoidOp(ctx.emit(MulOp(x, ctx.scalar(alpha, f32)))))))


@operator("Elu", "alpha", becomes="nn.exp, nn.sub, nn.mul, nn.where")
def elu(ctx: Context) -> SSAValue:
    x = ctx.value(0)
    # exp of min(x, 0): what is not selected must not overflow.
    grown = ctx.emit(SubOp(ctx.emit(ExpOp(ctx.emit(ClipOp(x, None, 0.0)))), ctx.scalar(1.0, f32)))
    scaled = ctx.emit(MulOp(grown, ctx.scalar(float(ctx.attribute("alpha", 1.0)), f32)))
    return ctx.emit(WhereOp(ctx.emit(GreaterOp(x, ctx.scalar(0.0, f32))), _as_f32(ctx, x), scaled))


@operator("PRelu", becomes="nn.less, nn.mul, nn.where")
def prelu(ctx: Context) -> SSAValue:
    x = ctx.value(0)
    scaled = ctx.emit(MulOp(x, ctx.value(1)))
    negative = ctx.emit(LessOp(x, ctx.scalar(0.0, type_of(x).element_type)))
    return ctx.emit(WhereOp(negative, scaled, _as_f32(ctx, x)))


def _as_f32(ctx: Context, x: SSAValue) -> SSAValue:
    """x beside a computed value: arithmetic gave that one f32."""
    return x if type_of(x).element_type == f32 else ctx.emit(CastOp(x, f32))


@operator("Pow", becomes="nn.pow")
def power(ctx: Context) -> SSAValue:
    x, y = ctx.value(0), ctx.value(1)
    if type_of(y).element_type != type_of(x).element_type and ctx.dtype(0).kind != ctx.dtype(1).kind:
        y = ctx.emit(CastOp(y, type_of(x).element_type))
    return ctx.emit(PowOp(x, y))


@operator("Max", becomes="nn.max", notes="any number of inputs")
def maximum(ctx: Context) -> SSAValue:
    return _extremum(ctx, MaxOp, -math.inf)


@operator("Min", becomes="nn.min", notes="any number of inputs")
def minimum(ctx: Context) -> SSAValue:
    return _extremum(ctx, MinOp, math.inf)


def _extremum(ctx: Context, op: type[BinaryOp], neutral: float) -> SSAValue:
    """Folds the operands; one that is infinite in the direction that never wins is dropped."""
    shape = np.broadcast_shapes(*(ctx.shape(index) for index in range(len(ctx.operands))))
    kept = [index for index in range(len(ctx.operands)) if not _is_all(ctx, index, neutral)] or [0]
    result = _fold(ctx, op, kept)
    return result if type_of(result).get_shape() == shape else ctx.emit(ExpandOp(result, shape))


def _is_all(ctx: Context, index: int, number: float) -> bool:
    operand = ctx.operand(index)
    if not operand.is_constant or operand.dtype.kind != "f" or operand.size > 1:
        return False
    array = ctx.module.known(operand)
    return array is not None and array.size == 1 and float(array.reshape(-1)[0]) == number


def _fold(ctx: Context, op: type[BinaryOp], indices: list[int]) -> SSAValue:
    result = ctx.value(indices[0])
    for index in indices[1:]:
        result = ctx.emit(op(result, ctx.value(index)))
    return result


@operator("Sum", becomes="nn.add", notes="any number of inputs")
def total(ctx: Context) -> SSAValue:
    return _fold(ctx, AddOp, list(range(len(ctx.operands))))


@operator("Mean", becomes="nn.add, nn.div", notes="any number of inputs")
def mean(ctx: Context) -> SSAValue:
    count = len(ctx.operands)
    result = _fold(ctx, AddOp, list(range(count)))
    return ctx.emit(DivOp(result, ctx.scalar(float(count), f32))) if count > 1 else result


@operator("LessOrEqual", becomes="nn.less, nn.equal, nn.or")
def less_or_equal(ctx: Context) -> SSAValue:
    x, y = ctx.value(0), ctx.value(1)
    return ctx.emit(OrOp(ctx.emit(LessOp(x, y)), ctx.emit(EqualOp(x, y))))


@operator("GreaterOrEqual", becomes="nn.greater, nn.equal, nn.or")
def greater_or_equal(ctx: Context) -> SSAValue:
    x, y = ctx.value(0), ctx.value(1)
    return ctx.emit(OrOp(ctx.emit(GreaterOp(x, y)), ctx.emit(EqualOp(x, y))))


@operator("Xor", becomes="nn.equal, nn.not")
def exclusive_or(ctx: Context) -> SSAValue:
    return ctx.emit(NotOp(ctx.emit(EqualOp(ctx.value(0), ctx.value(1)))))
