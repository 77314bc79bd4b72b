"""Rounding and conversion of values, shared by every level's interpreter.

A bf16 or f16 value lives in a float32 array that holds only values of that type; integers are numpy integers, i1 is
bool, and f64 (constants only) is float64. Rounding is to nearest, ties to even (IEEE 754): denormals are kept, f16
overflows to infinity, NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import BFloat16Type, Float16Type
from xdsl.ir import Attribute

Array = NDArray[Any]
F32 = NDArray[np.float32]

_CHUNK = 1 << 15
"""Elements rounded at a time: 128 KiB."""
_HELD_AS = {
    "f32": "float32",
    "bf16": "float32",
    "f16": "float32",
    "f64": "float64",
    "i64": "int64",
    "i32": "int32",
    "i8": "int8",
    "ui8": "uint8",
    "i1": "bool",
}

F16_MAX = 65504.0
"""The largest finite f16."""
_F16_OVERFLOW = np.float32(65520.0)
"""From here on f16 rounds to infinity: half a unit in the last place above the largest finite value."""
_F16_MIN_NORMAL = np.float32(2.0**-14)


def round_bf16(x: Array) -> F32:
    """x (float32) rounded to the nearest bf16, as float32."""
    return _by_chunks(x, _round_bf16)


def round_f16(x: Array) -> F32:
    """x (float32) rounded to the nearest f16, as float32."""
    return _by_chunks(x, _round_f16)


def _by_chunks(x: Array, kernel: Callable[[F32, F32], None]) -> F32:
    """Apply an element-wise kernel `(from, to)` to pieces that fit the cache; a transposed array stays transposed."""
    x = np.asarray(x, np.float32)
    turned = x.flags.f_contiguous and not x.flags.c_contiguous
    source = np.ascontiguousarray(x.T if turned else x).reshape(-1)
    result = np.empty_like(source)
    for start in range(0, source.size, _CHUNK):
        kernel(source[start : start + _CHUNK], result[start : start + _CHUNK])
    return result.reshape(x.shape[::-1]).T if turned else result.reshape(x.shape)


def _round_bf16(x: F32, out: F32) -> None:
    bits = x.view(np.uint32)
    rounded = out.view(np.uint32)
    np.right_shift(bits, np.uint32(16), out=rounded)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded &= np.uint32(0xFFFF0000)
    nan = np.isnan(x)
    if nan.any():
        # The carry could run a NaN's payload into the sign: NaNs are not numbers to round.
        out[nan] = np.nan


def _round_f16(x: F32, out: F32) -> None:
    bits = x.view(np.uint32)
    rounded = out.view(np.uint32)
    np.right_shift(bits, np.uint32(13), out=rounded)
    rounded &= np.uint32(1)
    rounded += np.uint32(0xFFF)
    rounded += bits
    rounded &= np.uint32(0xFFFFE000)
    size = np.abs(x)
    small = size < _F16_MIN_NORMAL
    if small.any():
        # f32 numbers in [0.5, 1) are multiples of 2^-24, the unit of f16's denormals: adding 0.5 rounds to it.
        tiny = (size[small] + np.float32(0.5)) - np.float32(0.5)
        out[small] = np.copysign(tiny, x[small])
    large = ~(size < _F16_OVERFLOW)
    if large.any():
        out[large] = np.copysign(np.float32(np.inf), x[large])
        out[np.isnan(x)] = np.nan


def dtype_of(element_type: Attribute) -> np.dtype[Any]:
    """The numpy type that holds values of an element type.

    Raises:
        TypeError: for a type no tensor has.
    """
    held = _HELD_AS.get(str(element_type))
    if held is None:
        raise TypeError(f"no values of type {element_type}")
    return np.dtype(held)


def cast_array(a: Array, element_type: Attribute) -> Array:
    """Values converted to another element type, as `nn.cast` does.

    Float to integer truncates towards 0 (what does not fit is unspecified), integer to narrower integer wraps, anything
    to i1 is `!= 0`; 64-bit values reach bf16 and f16 through f32.
    """
    dtype = dtype_of(element_type)
    with np.errstate(all="ignore"):
        if dtype == np.bool_:
            return np.not_equal(a, 0)
        if isinstance(element_type, BFloat16Type):
            return round_bf16(a.astype(np.float32, copy=False))
        if isinstance(element_type, Float16Type):
            return round_f16(a.astype(np.float32, copy=False))
        return a.astype(dtype, copy=False)


def as_values(a: Any, element_type: Attribute) -> Array:
    """Data from outside (an input, a weight) as the array that holds values of the type; not copied where it fits."""
    array = np.asarray(a)
    dtype = dtype_of(element_type)
    if dtype == np.float32 and array.dtype != np.float32:
        array = array.astype(np.float32)
    if isinstance(element_type, (BFloat16Type, Float16Type)):
        return cast_array(array, element_type)
    return array if array.dtype == dtype else array.astype(dtype)
