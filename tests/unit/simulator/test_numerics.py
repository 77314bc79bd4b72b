"""Rounding against ml_dtypes and numpy over all exponents, halves and special values."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from xdsl.dialects.builtin import bf16, f16, f32, f64, i1, i8, i64

from neuron_mlir.dialects.nn.base import ui8
from neuron_mlir.simulator.numerics import as_values, cast_array, dtype_of, round_bf16, round_f16


def patterns() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Every bf16 and f16-sized step, halfway between steps, and a regular sample of all float32."""
    every = np.arange(1 << 16, dtype=np.uint32) << 16
    fine = np.arange(1 << 19, dtype=np.uint32) << 13
    sample = np.arange(0, 1 << 32, 4099, dtype=np.uint64).astype(np.uint32)
    parts = [every, every + 0x8000, every + 0x7FFF, every + 0x8001, fine, fine + 0x1000, fine + 0x1001, sample]
    return np.concatenate(parts).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(("function", "dtype"), [(round_bf16, ml_dtypes.bfloat16), (round_f16, np.float16)])
def test_rounds_as_the_reference(function: Any, dtype: Any) -> None:
    x = patterns()
    with np.errstate(all="ignore"):
        got = function(x)
        expected = x.astype(dtype).astype(np.float32)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@pytest.mark.parametrize("function", [round_bf16, round_f16])
def test_keeps_shape_and_argument(function: Any) -> None:
    x = np.float32(1.0 + 2.0**-9) * np.ones((2, 3, 4), np.float32)[:, ::2].transpose(2, 0, 1)
    before = x.copy()
    once = function(x)
    assert once.shape == x.shape
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(function(once), once)
    assert function(np.float32(3.5)).shape == ()


def test_held_types() -> None:
    assert [str(dtype_of(t)) for t in (f32, bf16, f16, f64, i64, i8, ui8, i1)] == [
        "float32",
        "float32",
        "float32",
        "float64",
        "int64",
        "int8",
        "uint8",
        "bool",
    ]


def test_casts_between_kinds() -> None:
    x = np.array([-1.5, 0.0, 300.7], np.float32)
    assert cast_array(x, i64).tolist() == [-1, 0, 300]
    assert cast_array(x, i1).tolist() == [True, False, True]
    assert cast_array(np.array([257, -1]), ui8).tolist() == [1, 255]
    assert cast_array(np.array([True, False]), bf16).dtype == np.float32
    assert as_values(np.array([0.1]), bf16).tolist() == [0.10009765625]
    assert as_values(np.array([0.1], np.float32), f32).dtype == np.float32
