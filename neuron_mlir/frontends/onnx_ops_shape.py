"""ONNX operators that compute shapes and constants: they leave nothing in the IR."""

from __future__ import annotations

import math

import numpy as np

from neuron_mlir.frontends.onnx_context import READ_LIMIT, Array, Context, operator

MAX_ELEMENTS = 1 << 36
"""More than any tensor has; NumPy refuses shapes not far above."""


@operator("Shape", "start", "end", becomes="(folded)")
def shape(ctx: Context) -> Array:
    begin, end = int(ctx.attribute("start", 0)), ctx.attribute("end", None)
    return np.array(ctx.shape(0)[begin:end], np.int64)


@operator("Size", becomes="(folded)")
def size(ctx: Context) -> Array:
    return np.array(math.prod(ctx.shape(0)), np.int64)


@operator(
    "Constant",
    "value",
    "value_float",
    "value_floats",
    "value_int",
    "value_ints",
    becomes="nn.weight",
)
def constant(ctx: Context) -> Array:
    from onnx import numpy_helper

    # Of the main graph, `value` is in the weight store and never comes here; of an inlined function it does.
    if ctx.has_attribute("value"):
        return numpy_helper.to_array(ctx.attribute("value", None))
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for attribute in (name, name + "s"):
            if ctx.has_attribute(attribute):
                return np.array(ctx.attribute(attribute, None), dtype)
    raise ctx.error("it has no value of a supported kind", advice="a tensor value")


@operator("ConstantOfShape", "value", becomes="nn.weight", notes="constant shape")
def constant_of_shape(ctx: Context) -> Array:
    from onnx import numpy_helper

    dims = ctx.constant_ints(0, "shape")
    if any(dim < 0 for dim in dims):
        raise ctx.error(f"its input {dims} is not a shape")
    if math.prod(dims) > MAX_ELEMENTS:
        raise ctx.error(
            "it makes a tensor beyond all memory", needed=f"{math.prod(dims)} elements", available=MAX_ELEMENTS
        )
    value = ctx.attribute("value", None)
    number = np.zeros((), np.float32) if value is None else numpy_helper.to_array(value).reshape(-1)[:1].reshape(())
    return np.broadcast_to(number, dims)


@operator("Range", becomes="(folded)", notes="constant bounds")
def range_(ctx: Context) -> Array:
    bounds = [ctx.constant(index, what).reshape(-1) for index, what in enumerate(("start", "limit", "delta"))]
    if any(bound.size != 1 for bound in bounds):
        raise ctx.error("its start, limit and delta must be one number each")
    start, limit, delta = (bound[0] for bound in bounds)
    if not delta or (limit - start) / delta > READ_LIMIT:
        raise ctx.error(f"from {start} to {limit} by {delta} does not end, or is too long")
    return np.arange(start, limit, delta, dtype=ctx.dtype(0))
