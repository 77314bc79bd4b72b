"""The interpreter of `nn`: what every op computes, in numpy.

Arithmetic is f32 inside, whatever the width of the operands; see `numerics` for how values are held. Values are freed
after their last use, and nothing recurses over the graph, so that a long network costs what its widest part costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue
from xdsl.traits import IsTerminator

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import shape_text, type_of
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator import nn_kernels as kernels
from neuron_mlir.simulator.functions import UNARY_FUNCTIONS
from neuron_mlir.simulator.numerics import as_values, cast_array

Array = NDArray[Any]
OpT = TypeVar("OpT", bound=Operation)


class Weights(Protocol):
    """Where named weights come from."""

    def get(self, name: str) -> Array:
        """The value of a weight; raises `NeuronError` for an unknown name."""
        ...


_LARGE = 1 << 20
"""From this many elements on a transposed matrix stays where it is."""

ConstantCache = dict[Operation, Array]
"""Values of `nn.weight` and `nn.const` ops kept from one evaluation to the next. Valid while the IR is not changed."""

_Evaluator = Callable[[Any, list[Array]], Array]
_EVALUATORS: dict[type[Operation], _Evaluator] = {}


def _evaluates(
    *types: type[OpT],
) -> Callable[[Callable[[OpT, list[Array]], Array]], Callable[[OpT, list[Array]], Array]]:
    def register(function: Callable[[OpT, list[Array]], Array]) -> Callable[[OpT, list[Array]], Array]:
        for op_type in types:
            _EVALUATORS[op_type] = function
        return function

    return register


# Entry points ---------------------------------------------------------------------------------------------------------


def evaluate_function(
    function: FuncOp, inputs: Sequence[Array], weights: Weights | None = None, *, cache: ConstantCache | None = None
) -> list[Array]:
    """Run a function of `nn` ops.

    Args:
        function: a `func.func` with one block.
        inputs: one array per argument, of its shape; numbers are converted to its element type.
        weights: where named weights come from; may be None when there are none.
        cache: keeps weights and constants for the next call.

    Returns:
        One array per result: float32 for bf16, f16 and f32, numpy integers, bool for i1.

    Raises:
        NeuronError: for inputs that do not fit, a missing weight, or an op without semantics.
    """
    arguments = function.body.block.args
    if len(inputs) != len(arguments):
        raise NeuronError(
            f"@{function.sym_name.data} takes another number of inputs", needed=len(arguments), available=len(inputs)
        )
    values: list[Array] = []
    for i, (argument, given) in enumerate(zip(arguments, inputs, strict=True)):
        expected = type_of(argument)
        array = np.asarray(given)
        if array.shape != expected.get_shape():
            raise NeuronError(
                f"input {i} of @{function.sym_name.data} has another shape",
                needed=shape_text(expected.get_shape()),
                available=shape_text(array.shape),
            )
        values.append(as_values(array, expected.element_type))
    return evaluate_block(function.body.block, values, weights, cache=cache)


def evaluate_region(
    region: Region, arguments: Sequence[Array], weights: Weights | None = None, *, cache: ConstantCache | None = None
) -> list[Array]:
    """Run the one block of a region; see `evaluate_block`."""
    return evaluate_block(region.block, arguments, weights, cache=cache)


def evaluate_block(
    block: Block, arguments: Sequence[Array], weights: Weights | None = None, *, cache: ConstantCache | None = None
) -> list[Array]:
    """Run a block of `nn` ops on values for its arguments, as `numerics` holds them; returns what its terminator takes.

    Raises:
        NeuronError: for a missing weight or an op without semantics.
    """
    last_use = _last_uses(block)
    values: dict[SSAValue, Array] = dict(zip(block.args, arguments, strict=True))
    with np.errstate(all="ignore"):
        for op in block.ops:
            if op.has_trait(IsTerminator):
                return [values[operand] for operand in op.operands]
            operands = [values[operand] for operand in op.operands]
            for operand in op.operands:
                if last_use[operand] is op:
                    values.pop(operand, None)
            results = _evaluate_op(op, operands, weights, cache)
            del operands
            for result, value in zip(op.results, results, strict=True):
                if result in last_use:
                    values[result] = value
    raise NeuronError("a block of nn ops needs a terminator", op=block.parent_op())


def evaluate_const(
    op: nn.ConstOp | nn.WeightOp, weights: Weights | None = None, *, cache: ConstantCache | None = None
) -> Array:
    """The value of an `nn.const` or `nn.weight`."""
    if cache is not None and op in cache:
        return cache[op]
    if isinstance(op, nn.WeightOp):
        value = _weight(op, weights)
    else:
        value = evaluate_block(op.body.block, [], weights)[0]
    if cache is not None:
        cache[op] = value
    return value


def evaluate_op(op: Operation, operands: Sequence[Array], weights: Weights | None = None) -> list[Array]:
    """The results of a single `nn` op on operand values."""
    with np.errstate(all="ignore"):
        return _evaluate_op(op, list(operands), weights, None)


def _last_uses(block: Block) -> dict[SSAValue, Operation]:
    """The last op of the block that takes each value."""
    return {operand: op for op in block.ops for operand in op.operands}


def _evaluate_op(
    op: Operation, operands: list[Array], weights: Weights | None, cache: ConstantCache | None
) -> list[Array]:
    if isinstance(op, (nn.WeightOp, nn.ConstOp)):
        return [evaluate_const(op, weights, cache=cache)]
    if isinstance(op, nn.FusedOp):
        return evaluate_block(op.body.block, operands, weights, cache=cache)
    evaluator = _EVALUATORS.get(type(op))
    if evaluator is None:
        raise NeuronError(f"{op.name} has no meaning to the nn interpreter", op=op)
    try:
        return [np.asarray(evaluator(op, operands))]
    except MemoryError:
        raise NeuronError("out of memory", op=op, resource="host memory") from None


def _weight(op: nn.WeightOp, weights: Weights | None) -> Array:
    if op.source is None and weights is None:
        raise NeuronError(
            f"weight '{op.key}' is not in the text and there is no weight store",
            op=op,
            advice="give the weights file, or a source such as seeded<1>",
        )
    from neuron_mlir.weights.values import materialize

    # A memory-mapped file may hold numbers at odd addresses, which BLAS cannot take and numpy would copy at every use.
    return np.require(materialize(op, cast(Any, weights)), requirements="A")


def _shape(op: Operation) -> tuple[int, ...]:
    return cast("TensorType[Attribute]", op.results[0].type).get_shape()


def _element(op: Operation) -> Attribute:
    return cast("TensorType[Attribute]", op.results[0].type).element_type


# Data movement --------------------------------------------------------------------------------------------------------


@_evaluates(nn.SpillOp, nn.ReloadOp)
def _place(op: nn.PlaceOp, x: list[Array]) -> Array:
    return x[0]


@_evaluates(nn.ReshapeOp)
def _reshape(op: nn.ReshapeOp, x: list[Array]) -> Array:
    return x[0].reshape(_shape(op))


@_evaluates(nn.TransposeOp)
def _transpose(op: nn.TransposeOp, x: list[Array]) -> Array:
    turned = x[0].transpose(op.perm)
    # The weight of a large dense layer is not worth moving: BLAS takes it as it lies.
    return turned if turned.ndim == 2 and turned.size >= _LARGE else np.ascontiguousarray(turned)


@_evaluates(nn.SliceOp)
def _slice(op: nn.SliceOp, x: list[Array]) -> Array:
    index: list[slice] = []
    for start, size, stride in zip(op.starts, op.sizes, op.strides, strict=True):
        end = start + size * stride
        # Counting down to element 0 ends before it, which only None can say.
        index.append(slice(start, None if end < 0 else end, stride))
    return np.ascontiguousarray(x[0][tuple(index)])


@_evaluates(nn.ConcatOp)
def _concat(op: nn.ConcatOp, x: list[Array]) -> Array:
    return np.concatenate(x, axis=op.axis)


@_evaluates(nn.GatherOp)
def _gather(op: nn.GatherOp, x: list[Array]) -> Array:
    data, indices = x
    size = data.shape[op.axis]
    low, high = int(indices.min()), int(indices.max())
    if low < -size or high >= size:
        raise NeuronError(
            "an index of gather is out of range",
            op=op,
            needed=f"-{size} to {size - 1}",
            available=low if low < -size else high,
            advice="indices that the table has",
        )
    # Indices wrap below 0; unsigned ones cannot be there.
    return np.take(data, indices.astype(np.int64), axis=op.axis, mode="wrap")


@_evaluates(nn.PadOp)
def _pad(op: nn.PadOp, x: list[Array]) -> Array:
    value = np.asarray(op.pad_value).astype(x[0].dtype)
    if x[0].dtype == np.float32:
        value = as_values(np.float32(op.pad_value), _element(op))
    out = np.full(_shape(op), value, x[0].dtype)
    out[tuple(slice(low, low + dim) for low, dim in zip(op.low, x[0].shape, strict=True))] = x[0]
    return out


@_evaluates(nn.ExpandOp)
def _expand(op: nn.ExpandOp, x: list[Array]) -> Array:
    return np.broadcast_to(x[0], _shape(op))


@_evaluates(nn.ResizeOp)
def _resize(op: nn.ResizeOp, x: list[Array]) -> Array:
    result = x[0]
    for axis, scale in enumerate(op.scales, 2):
        result = result if scale == 1 else np.repeat(result, scale, axis=axis)
    return result


@_evaluates(nn.WhereOp)
def _where(op: nn.WhereOp, x: list[Array]) -> Array:
    return np.where(x[0], x[1], x[2])


@_evaluates(nn.CastOp)
def _cast(op: nn.CastOp, x: list[Array]) -> Array:
    return cast_array(x[0], _element(op))


# Contractions and windows ---------------------------------------------------------------------------------------------


@_evaluates(nn.ConvOp)
def _conv(op: nn.ConvOp, x: list[Array]) -> Array:
    bias = x[2] if len(x) > 2 else None
    return kernels.conv(x[0], x[1], bias, op.strides, op.pads, op.dilations, op.group, _shape(op)[2:])


@_evaluates(nn.ConvTransposeOp)
def _conv_transpose(op: nn.ConvTransposeOp, x: list[Array]) -> Array:
    bias = x[2] if len(x) > 2 else None
    return kernels.conv_transpose(x[0], x[1], bias, op.strides, op.pads, _shape(op)[2:])


@_evaluates(nn.MatmulOp)
def _matmul(op: nn.MatmulOp, x: list[Array]) -> Array:
    lhs, rhs = x
    if rhs.ndim == 2 and lhs.ndim >= 2:
        # One product of all rows instead of one per leading index.
        return _product(lhs.reshape(-1, lhs.shape[-1]), rhs).reshape(_shape(op))
    return np.matmul(lhs, rhs)


_TERMS = 2048
"""A product of one row with more terms is summed in parts: BLAS adds a vector's terms one by one, and errors grow."""


def _product(rows: Array, matrix: Array) -> Array:
    terms = rows.shape[1]
    if rows.shape[0] > 1 or terms <= _TERMS:
        return np.matmul(rows, matrix)
    parts = [np.matmul(rows[:, k : k + _TERMS], matrix[k : k + _TERMS]) for k in range(0, terms, _TERMS)]
    return np.add.reduce(np.stack(parts), axis=0)


@_evaluates(nn.MaxPoolOp)
def _max_pool(op: nn.MaxPoolOp, x: list[Array]) -> Array:
    return kernels.max_pool(x[0], op.kernel, op.strides, op.pads, op.dilations, _shape(op)[2:])


@_evaluates(nn.AvgPoolOp)
def _avg_pool(op: nn.AvgPoolOp, x: list[Array]) -> Array:
    return kernels.avg_pool(x[0], op.kernel, op.strides, op.pads, op.dilations, _shape(op)[2:], op.count_include_pad)


@_evaluates(nn.UnfoldOp)
def _unfold(op: nn.UnfoldOp, x: list[Array]) -> Array:
    return kernels.unfold(x[0], op.kernel, op.strides, op.pads, _shape(op))


@_evaluates(nn.LrnOp)
def _lrn(op: nn.LrnOp, x: list[Array]) -> Array:
    return kernels.lrn(x[0], op.size, op.alpha, op.beta, op.bias)


# Normalisation and reduction ------------------------------------------------------------------------------------------


@_evaluates(nn.BatchNormOp)
def _batch_norm(op: nn.BatchNormOp, operands: list[Array]) -> Array:
    x, scale, bias, mean, var = operands
    factor = scale / np.sqrt(var + np.float32(op.eps))
    shift = bias - mean * factor
    per_channel = (1, -1) + (1,) * (x.ndim - 2)
    out = x * factor.reshape(per_channel)
    out += shift.reshape(per_channel)
    return out


@_evaluates(nn.LayerNormOp)
def _layer_norm(op: nn.LayerNormOp, operands: list[Array]) -> Array:
    x, scale = operands[:2]
    axes = tuple(range(op.axis, x.ndim))
    count = np.float32(np.prod([x.shape[axis] for axis in axes]))
    inverse = np.float32(1) / count
    out = x - np.add.reduce(x, axis=axes, keepdims=True) * inverse
    variance = np.add.reduce(np.square(out), axis=axes, keepdims=True) * inverse
    out *= np.float32(1) / np.sqrt(variance + np.float32(op.eps))
    out *= scale
    if len(operands) > 2:
        out += operands[2]
    return out


@_evaluates(nn.SoftmaxOp)
def _softmax(op: nn.SoftmaxOp, operands: list[Array]) -> Array:
    x = operands[0]
    out = np.subtract(x, x.max(axis=op.axis, keepdims=True))
    np.exp(out, out=out)
    out *= np.float32(1) / np.add.reduce(out, axis=op.axis, keepdims=True)
    return out


@_evaluates(nn.ReduceSumOp)
def _reduce_sum(op: nn.ReduceSumOp, x: list[Array]) -> Array:
    return np.add.reduce(x[0], axis=op.axes, keepdims=op.keepdims, dtype=x[0].dtype)


@_evaluates(nn.ReduceMeanOp)
def _reduce_mean(op: nn.ReduceMeanOp, x: list[Array]) -> Array:
    count = np.prod([x[0].shape[axis] for axis in op.axes])
    return np.add.reduce(x[0], axis=op.axes, keepdims=op.keepdims) * (np.float32(1) / np.float32(count))


@_evaluates(nn.ReduceMaxOp)
def _reduce_max(op: nn.ReduceMaxOp, x: list[Array]) -> Array:
    return x[0].max(axis=op.axes, keepdims=op.keepdims)


@_evaluates(nn.ReduceMinOp)
def _reduce_min(op: nn.ReduceMinOp, x: list[Array]) -> Array:
    return x[0].min(axis=op.axes, keepdims=op.keepdims)


@_evaluates(nn.ReduceProdOp)
def _reduce_prod(op: nn.ReduceProdOp, x: list[Array]) -> Array:
    return np.multiply.reduce(x[0], axis=op.axes, keepdims=op.keepdims, dtype=x[0].dtype)


@_evaluates(nn.ArgMaxOp)
def _arg_max(op: nn.ArgMaxOp, x: list[Array]) -> Array:
    return np.asarray(x[0].argmax(axis=op.axis, keepdims=op.keepdims), np.int64)


# Element-wise ---------------------------------------------------------------------------------------------------------


@_evaluates(nn.ReluOp)
def _relu(op: nn.ReluOp, x: list[Array]) -> Array:
    return np.maximum(x[0], x[0].dtype.type(0))


@_evaluates(nn.LeakyReluOp)
def _leaky_relu(op: nn.LeakyReluOp, x: list[Array]) -> Array:
    return np.where(x[0] >= 0, x[0], x[0] * np.float32(op.alpha))


@_evaluates(nn.ClipOp)
def _clip(op: nn.ClipOp, x: list[Array]) -> Array:
    result = x[0]
    if op.lo is not None:
        result = np.maximum(result, np.float32(op.lo))
    if op.hi is not None:
        result = np.minimum(result, np.float32(op.hi))
    return result


def _unary(name: str) -> _Evaluator:
    function = UNARY_FUNCTIONS[name]
    return lambda op, x: function(x[0])


for _type in nn.FUNCTION_OPS:
    _EVALUATORS[_type] = _unary(_type.name.removeprefix("nn."))


def _ufunc(function: np.ufunc) -> _Evaluator:
    return lambda op, x: np.asarray(function(*x))


for _type, _function in (
    (nn.NegOp, np.negative),
    (nn.NotOp, np.logical_not),
    (nn.AddOp, np.add),
    (nn.SubOp, np.subtract),
    (nn.MulOp, np.multiply),
    (nn.MaxOp, np.maximum),
    (nn.MinOp, np.minimum),
    (nn.EqualOp, np.equal),
    (nn.LessOp, np.less),
    (nn.GreaterOp, np.greater),
    (nn.AndOp, np.logical_and),
    (nn.OrOp, np.logical_or),
):
    _EVALUATORS[_type] = _ufunc(_function)


@_evaluates(nn.PowOp)
def _pow(op: nn.PowOp, x: list[Array]) -> Array:
    base, exponent = x
    if base.dtype.kind != "f" and (exponent < 0).any():
        raise NeuronError("a negative power of integers", op=op, advice="casting both operands to f32")
    return np.power(base, exponent)


@_evaluates(nn.DivOp)
def _div(op: nn.DivOp, x: list[Array]) -> Array:
    lhs, rhs = x
    if lhs.dtype.kind == "f":
        return np.divide(lhs, rhs)
    if not rhs.all():
        raise NeuronError("division of integers by 0", op=op)
    # ONNX truncates where numpy floors.
    quotient = np.floor_divide(lhs, rhs)
    inexact = quotient * rhs != lhs
    return quotient + (inexact & ((lhs < 0) != (rhs < 0)))
