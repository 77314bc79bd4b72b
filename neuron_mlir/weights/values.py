"""The value of an `nn.weight`: from the store, or from its own text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.errors import NeuronError
from neuron_mlir.weights.store import Array, WeightStore, element_name

if TYPE_CHECKING:
    from neuron_mlir.dialects.nn import WeightOp

# How the simulator holds each element type: a bf16 or f16 is a float32 that the narrow type represents exactly.
_HELD_AS: dict[str, type[np.generic]] = {
    "f32": np.float32,
    "bf16": np.float32,
    "f16": np.float32,
    "f64": np.float64,
    "i64": np.int64,
    "i32": np.int32,
    "i8": np.int8,
    "ui8": np.uint8,
    "i1": np.bool_,
}


def seeded_values(seed: int, shape: tuple[int, ...], element: str) -> Array:
    """What `seeded<seed>` stands for: values that follow from seed, shape and element type, and from nothing else.

    NumPy's PCG64 generator, seeded with `seed`. Floats: `standard_normal` in float32 divided by the square root of the
    fan-in (rank 2: rows, as for x @ w; above: the product of all dimensions but the first, as for a convolution kernel;
    below: 1), then rounded to the element type. Integers: uniform in 0..7, so that they index small tables. i1: fair.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    if element == "i1":
        return rng.integers(0, 2, shape, dtype=np.uint8).astype(np.bool_)
    if element not in ("f32", "bf16", "f16", "f64"):
        return rng.integers(0, 8, shape, dtype=np.int64).astype(_HELD_AS[element])
    fan_in = 1 if len(shape) < 2 else shape[0] if len(shape) == 2 else math.prod(shape[1:])
    values = rng.standard_normal(shape, dtype=np.float32)
    values = np.asarray(values * np.float32(1.0 / math.sqrt(fan_in)), np.float32)
    return _held(values, element)


def _round_bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounds to bf16, to nearest with ties to even; an infinity stays one, NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), values, rounded.view(np.float32))


def _held(values: Array, element: str) -> Array:
    """Values as the simulator holds that element type, rounded to it."""
    if element == "bf16":
        return _round_bf16(np.ascontiguousarray(values, np.float32))
    if element == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    return values.astype(_HELD_AS[element], copy=False)


def materialize(op: WeightOp, store: WeightStore) -> Array:
    """The value of a weight, read-only, as the simulator holds its type: bf16 and f16 as float32, i1 as bool.

    A float32 weight of a store is the store's own view: no copy.

    Raises:
        NeuronError: the store has no such weight, or one of another shape, type or digest.
    """
    from neuron_mlir.dialects.nn import DenseAttr, SeededAttr, SplatAttr

    shape = tuple(op.type.get_shape())
    element = str(op.type.element_type)
    source = op.source
    if isinstance(source, SeededAttr):
        array = seeded_values(source.seed.data, shape, element)
    elif isinstance(source, SplatAttr):
        array = np.broadcast_to(_held(_typed([source.number], element), element).reshape(()), shape)
    elif isinstance(source, DenseAttr):
        array = _held(_typed(source.numbers, element), element).reshape(shape)
    else:
        array = _stored(op, store, shape, element)
    array.flags.writeable = False
    return array


def _typed(numbers: Any, element: str) -> Array:
    """Numbers of the text in a type that loses nothing before rounding; integers wrap as a cast does."""
    if element in ("i64", "i32", "i8", "ui8", "i1"):
        return np.array(numbers, np.int64)
    return np.array(numbers, np.float64)


def _stored(op: WeightOp, store: WeightStore, shape: tuple[int, ...], element: str) -> Array:
    try:
        array = store.get(op.key)
        found = element_name(array.dtype)
    except NeuronError as error:
        raise NeuronError(error.message, op=op, advice=error.advice) from error
    if array.shape != shape or found != element:
        raise NeuronError(
            f"the stored weight '{op.key}' is of another type",
            op=op,
            needed=f"{list(shape)} of {element}",
            available=f"{list(array.shape)} of {found}",
            advice="running with the weights this module was made from",
        )
    if op.digest is not None and store.describe(op.key).digest != op.digest:
        raise NeuronError(
            f"the stored weight '{op.key}' is not the one this module was made from",
            op=op,
            needed=f"digest {op.digest}",
            available=f"digest {store.describe(op.key).digest}",
            advice="importing the model again, or giving the weights of that time",
        )
    held = _held(array, element)
    return held.view() if held is array else held
