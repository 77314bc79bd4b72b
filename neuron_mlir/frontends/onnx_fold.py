"""Folds what follows from shapes: nodes whose operands are all small constants, by ONNX's reference implementation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from neuron_mlir.frontends.onnx_context import READ_LIMIT, Array, Context, Value

if TYPE_CHECKING:
    from neuron_mlir.frontends.onnx_graph import Inferred

FLOAT_LIMIT = 16
"""Floats are weights, not shapes: only constants of at most this many elements are folded."""

# Their handlers give constants themselves, without an array of the full size.
_HANDLED = ("Constant", "ConstantOfShape", "Shape", "Size", "Range")


# Their result is as large as a number in an operand says.
_GROWING = ("Expand", "Tile", "Pad", "Resize", "Upsample", "OneHot")


def fold(ctx: Context, inferred: Sequence[Inferred | None]) -> list[Array] | None:
    """The values of a node's outputs if its operands are known and small; None if it has to run."""
    operands = [value for value in ctx.operands if value is not None]
    if not operands or ctx.op_type in _HANDLED:
        return None
    if not all(_foldable(value) for value in operands):
        return None
    # Where the size of the result is not known, that of an outer product of the operands bounds it.
    bound = math.prod(value.size for value in operands)
    if ctx.op_type in _GROWING:
        bound = READ_LIMIT + 1
    if any((bound if item is None or item.shape is None else math.prod(item.shape)) > READ_LIMIT for item in inferred):
        return None
    inputs: dict[str, Array] = {}
    for value in operands:
        array = ctx.module.known(value)
        if array is None:
            return None
        inputs[value.name] = array
    return _evaluate(ctx, inputs)


def _foldable(value: Value) -> bool:
    if not value.is_constant or value.dtype.kind not in "iubf":
        return False
    return value.size <= (FLOAT_LIMIT if value.dtype.kind == "f" else READ_LIMIT)


def _evaluate(ctx: Context, inputs: dict[str, Array]) -> list[Array] | None:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    outputs = [output for output in ctx.node.output if output]
    graph = helper.make_graph(
        [ctx.node], "fold", infos, [helper.make_empty_tensor_value_info(name) for name in outputs]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ctx.opset)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(model).run(None, inputs)
    except Exception:
        # Whatever the reference implementation cannot do, the handler does or reports better.
        return None
    found = [np.asarray(result) for result in cast("Sequence[Array]", results)]
    if any(array.dtype.kind not in "iubf" for array in found):
        return None
    by_name = dict(zip(outputs, found, strict=True))
    return [by_name.get(output, np.zeros(0)) for output in ctx.node.output]
