"""What an `nn.weight` stands for."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from xdsl.dialects.builtin import bf16, f16, f32, f64, i1, i8, i32, i64
from xdsl.ir import Attribute

from neuron_mlir.dialects.nn import DenseAttr, SeededAttr, SplatAttr, WeightOp
from neuron_mlir.dialects.nn.base import tensor
from neuron_mlir.errors import NeuronError
from neuron_mlir.weights import DictStore, digest, materialize, seeded_values

EMPTY = DictStore()


def _seeded(shape: tuple[int, ...], element: Attribute = f32, seed: int = 7) -> NDArray[Any]:
    return materialize(WeightOp("w", tensor(shape, element), SeededAttr.get(seed)), EMPTY)


def test_seeded_values_follow_from_seed_shape_and_type() -> None:
    np.testing.assert_array_equal(_seeded((30, 40)), _seeded((30, 40)))
    assert not np.array_equal(_seeded((30, 40)), _seeded((30, 40), seed=8))
    # The first values are part of the contract: hand-written tests rely on them.
    rng = np.random.Generator(np.random.PCG64(7))
    expected = rng.standard_normal((4, 2), dtype=np.float32) * np.float32(0.5)
    np.testing.assert_array_equal(_seeded((4, 2)), expected)


@pytest.mark.parametrize(
    ("shape", "fan_in"), [((400,), 1), ((100, 300), 100), ((64, 32, 3, 3), 288), ((50, 60, 7), 420)]
)
def test_seeded_floats_are_scaled_by_the_fan_in(shape: tuple[int, ...], fan_in: int) -> None:
    values = _seeded(shape)
    assert values.std() == pytest.approx(fan_in**-0.5, rel=0.15)
    assert abs(values.mean()) < 0.15 * fan_in**-0.5


@pytest.mark.parametrize(("element", "dtype"), [(i64, np.int64), (i32, np.int32), (i8, np.int8)])
def test_seeded_integers_index_small_tables(element: Attribute, dtype: Any) -> None:
    values = _seeded((1000,), element)
    assert values.dtype == dtype
    assert set(values.tolist()) == set(range(8))


def test_seeded_booleans_are_fair() -> None:
    values = _seeded((1000,), i1)
    assert values.dtype == np.bool_
    assert 400 < values.sum() < 600


def test_narrow_floats_are_held_as_rounded_float32() -> None:
    full = seeded_values(7, (1000,), "f32")
    for element, narrow in ((bf16, ml_dtypes.bfloat16), (f16, np.float16)):
        values = _seeded((1000,), element)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, full.astype(narrow).astype(np.float32))


def test_splat_and_dense() -> None:
    splat = materialize(WeightOp("w", tensor((200, 300)), SplatAttr.get(0.1)), EMPTY)
    assert splat.shape == (200, 300)
    assert splat.strides == (0, 0)
    assert (splat == np.float32(0.1)).all()
    assert materialize(WeightOp("w", tensor(()), SplatAttr.get(2)), EMPTY) == np.float32(2)
    dense = materialize(WeightOp("w", tensor((2, 2), i64), DenseAttr.get([1, -2, 3, 2**62 + 1])), EMPTY)
    np.testing.assert_array_equal(dense, np.array([[1, -2], [3, 2**62 + 1]]))
    flags = materialize(WeightOp("w", tensor((2,), i1), DenseAttr.get([1, 0])), EMPTY)
    np.testing.assert_array_equal(flags, [True, False])
    double = materialize(WeightOp("w", tensor((1,), f64), DenseAttr.get([0.1])), EMPTY)
    assert double[0] == 0.1
    rounded = materialize(WeightOp("w", tensor((2,), bf16), DenseAttr.get([0.1, 1.0])), EMPTY)
    np.testing.assert_array_equal(rounded, np.array([0.1, 1.0], ml_dtypes.bfloat16).astype(np.float32))


def test_stored_weights_are_views() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = materialize(WeightOp("w", tensor((2, 3)), digest=digest(array)), DictStore({"w": array}))
    assert np.shares_memory(found, array)
    assert not found.flags.writeable
    assert array.flags.writeable
    half = DictStore({"w": array.astype(ml_dtypes.bfloat16)})
    held = materialize(WeightOp("w", tensor((2, 3), bf16)), half)
    assert held.dtype == np.float32
    np.testing.assert_array_equal(held, array)


def test_stored_weights_that_do_not_fit() -> None:
    array = np.arange(6, dtype=np.float32)
    store = DictStore({"w": array})
    with pytest.raises(NeuronError, match="no weight 'v'"):
        materialize(WeightOp("v", tensor((6,))), store)
    with pytest.raises(NeuronError, match="of another type") as caught:
        materialize(WeightOp("w", tensor((2, 3))), store)
    assert (caught.value.needed, caught.value.available) == ("[2, 3] of f32", "[6] of f32")
    with pytest.raises(NeuronError, match="of another type"):
        materialize(WeightOp("w", tensor((6,), i32)), store)
    with pytest.raises(NeuronError, match="not the one this module was made from"):
        materialize(WeightOp("w", tensor((6,)), digest=digest(array + 1)), store)
    with pytest.raises(NeuronError, match="element type complex64 is not supported"):
        materialize(WeightOp("w", tensor((6,))), DictStore({"w": array.astype(np.complex64)}))
