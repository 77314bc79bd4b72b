"""Elementary functions numpy lacks, in f32, shared by every level's interpreter so that levels agree bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

_CHUNK = 1 << 14
"""Elements at a time: a few temporaries of this size stay in the first-level cache."""

# Minimax polynomials after N. Juffa's single-precision erff: x + x * p(x^2) near 0 and 1 - exp(q(|x|)) away from it.
_SPLIT = np.float32(0.927734375)
_NEAR = tuple(
    np.float32(c) for c in (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)
)
_FAR = tuple(
    np.float32(c)
    for c in (
        -1.72853470e-5,
        3.83197126e-4,
        -3.88396438e-3,
        2.42546219e-2,
        -1.06777877e-1,
        -6.34846687e-1,
        -1.28717512e-1,
    )
)
_FAR_END = np.float32(4.0)
"""From here on erf rounds to 1 in f32."""
_SQRT_HALF = np.float32(0.70710678118654752440)
_SQRT_2_OVER_PI = np.float32(0.79788456080286535588)
_CUBIC = np.float32(0.044715)


def erf(x: NDArray[Any]) -> F32:
    """The error function of float32 values, within 2 units in the last place."""
    flat = np.ascontiguousarray(x, np.float32).reshape(-1)
    out = np.empty_like(flat)
    with np.errstate(all="ignore"):  # Infinities meet polynomials they do not use.
        for start in range(0, flat.size, _CHUNK):
            _erf_chunk(flat[start : start + _CHUNK], out[start : start + _CHUNK])
    return out.reshape(np.shape(x))


def _erf_chunk(x: F32, out: F32) -> None:
    square = x * x
    size = np.abs(x)
    far = size > _SPLIT
    # Near 0; far values overflow harmlessly and are replaced below.
    np.minimum(square, np.float32(1), out=square)
    p = square * _NEAR[0]
    for c in _NEAR[1:-1]:
        p += c
        p *= square
    p += _NEAR[-1]
    p *= x
    np.add(p, x, out=out)
    if not far.any():
        return
    t = np.minimum(size[far], _FAR_END)
    q = t * _FAR[0]
    for c in _FAR[1:]:
        q += c
        q *= t
    q -= t
    np.exp(q, out=q)
    np.subtract(np.float32(1), q, out=q)
    out[far] = np.copysign(q, x[far])


def gelu(x: NDArray[Any]) -> F32:
    """x * 0.5 * (1 + erf(x / sqrt(2)))."""
    x = np.asarray(x, np.float32)
    result = erf(x * _SQRT_HALF)
    result += np.float32(1)
    result *= np.float32(0.5)
    result *= x
    return result


def sigmoid(x: NDArray[Any]) -> F32:
    """1 / (1 + exp(-x)); below about -88 exp overflows to infinity and the result is 0."""
    with np.errstate(over="ignore"):
        result = np.exp(-np.asarray(x, np.float32))
    result = np.asarray(result + np.float32(1))
    return np.divide(np.float32(1), result, out=result)


def gelu_tanh(x: NDArray[Any]) -> F32:
    """x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))."""
    x = np.asarray(x, np.float32)
    with np.errstate(over="ignore"):  # The tanh of infinity is 1.
        result = np.asarray(x * x)
        result *= _CUBIC
        result += np.float32(1)
        result *= x
    result *= _SQRT_2_OVER_PI
    np.tanh(result, out=result)
    result += np.float32(1)
    result *= np.float32(0.5)
    result *= x
    return result


def silu(x: NDArray[Any]) -> F32:
    """x * sigmoid(x)."""
    result = sigmoid(x)
    result *= x
    return result


def softplus(x: NDArray[Any]) -> F32:
    """log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), whose exponential is at most 1."""
    x = np.asarray(x, np.float32)
    result = np.asarray(np.abs(x))
    np.negative(result, out=result)
    np.exp(result, out=result)
    np.log1p(result, out=result)
    result += np.maximum(x, np.float32(0))
    return result


def mish(x: NDArray[Any]) -> F32:
    """x * tanh(log(1 + exp(x))), with one exponential.

    tanh(log(t)) is (t^2 - 1) / (t^2 + 1); with t = 1 + exp(x) that is n / (n + 2) for n = exp(x) * (exp(x) + 2). Where
    x is above 20, the quotient is 1 in f32, so that the exponential need not grow beyond.
    """
    x = np.asarray(x, np.float32)
    grown = np.asarray(np.exp(np.minimum(x, np.float32(20))))
    result = np.asarray(grown + np.float32(2))
    result *= grown
    np.add(result, np.float32(2), out=grown)
    result /= grown
    result *= x
    return result
