"""Element functions of the scalar and vector engines, in f32, shared with the `nn` interpreter so that levels agree
bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.simulator import elementary

Unary = Callable[[NDArray[Any]], NDArray[Any]]
Binary = Callable[[Any, Any], NDArray[Any]]


def _flag(compare: Callable[[Any, Any], Any]) -> Binary:
    def function(a: Any, b: Any) -> NDArray[Any]:
        return np.asarray(compare(a, b), np.float32)

    return function


def _swapped(function: Binary) -> Binary:
    return lambda a, b: function(b, a)


ALU_FUNCTIONS: dict[str, Binary] = {
    "add": np.add,
    "sub": np.subtract,
    "rsub": _swapped(np.subtract),
    "mul": np.multiply,
    "div": np.divide,
    "rdiv": _swapped(np.divide),
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "rpow": _swapped(np.power),
    "equal": _flag(np.equal),
    "less": _flag(np.less),
    "greater": _flag(np.greater),
    "rless": _flag(np.greater),
    "rgreater": _flag(np.less),
    "and": _flag(np.logical_and),
    "or": _flag(np.logical_or),
}
"""Functions of `core.tensor_tensor` and `core.tensor_scalar`."""


def _relu(x: NDArray[Any]) -> NDArray[Any]:
    return np.maximum(x, np.float32(0))


def _rsqrt(x: NDArray[Any]) -> NDArray[Any]:
    return np.float32(1) / np.sqrt(x)


def _reciprocal(x: NDArray[Any]) -> NDArray[Any]:
    return np.float32(1) / x


UNARY_FUNCTIONS: dict[str, Unary] = {
    "relu": _relu,
    "sigmoid": elementary.sigmoid,
    "tanh": np.tanh,
    "gelu": elementary.gelu,
    "gelu_tanh": elementary.gelu_tanh,
    "silu": elementary.silu,
    "softplus": elementary.softplus,
    "mish": elementary.mish,
    "erf": elementary.erf,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": _rsqrt,
    "square": np.square,
    "reciprocal": _reciprocal,
    "abs": np.abs,
    "floor": np.floor,
}
"""Functions of `core.activation`, applied after scale and bias."""
