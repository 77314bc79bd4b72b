"""Dynamic batching: nothing lost, nothing reordered, and a row's bits do not depend on who else is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import neuron_mlir
from neuron_mlir import Instance, Model
from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.batching import Rows

Array = NDArray[np.float32]
POOL = 32
"""Different rows that requests are made of."""


@pytest.fixture(scope="module")
def model(pipeline: str) -> Iterator[Model]:
    with Instance() as instance:
        yield neuron_mlir.load(pipeline, instance=instance)


@pytest.fixture(scope="module")
def pool() -> Array:
    return np.random.default_rng(5).standard_normal((POOL, 16), np.float32)


@pytest.fixture(scope="module")
def alone(model: Model, pool: Array) -> Array:
    """What each row gives in each place of a request, with zeros for neighbours: (place, row, 16)."""
    answers: list[Array] = []
    for place in range(model.batch_size):
        before = np.zeros((place, 16), np.float32)
        answers.append(np.stack([cast("Array", model(np.vstack([before, row[None]])))[place] for row in pool]))
    return np.stack(answers)


def expected(alone: Array, rows: NDArray[np.int64], size: int) -> Array:
    return alone[np.arange(len(rows)) % size, rows]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(0, POOL - 1), min_size=1, max_size=13), min_size=1, max_size=9),
    st.randoms(use_true_random=False),
)
def test_whatever_the_neighbours(
    model: Model, pool: Array, alone: Array, calls: list[list[int]], order: np.random.Generator
) -> None:
    under_way = [(rows, model.submit(pool[rows])) for rows in map(np.array, calls)]
    order.shuffle(cast("NDArray[np.int64]", under_way))
    for rows, call in under_way:
        assert call.requests == -(-len(rows) // model.batch_size)
        answer = cast("Array", call.result())
        assert answer.tobytes() == expected(alone, rows, model.batch_size).tobytes()


def test_ten_thousand_requests(model: Model, pool: Array, alone: Array) -> None:
    generator = np.random.default_rng(9)
    calls = [generator.integers(0, POOL, generator.integers(1, 9)) for _ in range(10_000)]
    answered = 0
    for rows, answer in zip(calls, model.map(pool[rows] for rows in calls), strict=True):
        assert cast("Array", answer).tobytes() == expected(alone, rows, model.batch_size).tobytes()
        answered += 1
    assert answered == len(calls) and model.under_way == 0


def test_values_are_those_of_the_network(model: Model, pool: Array, chain_model: object) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    assert isinstance(chain_model, onnx.ModelProto)
    (wanted,) = cast("list[Array]", ReferenceEvaluator(chain_model).run(None, {"x": pool}))
    np.testing.assert_allclose(cast("Array", model(pool)), wanted, atol=0.03)


def test_an_empty_batch(model: Model) -> None:
    with pytest.raises(NeuronError, match="the batch is empty"):
        model(np.zeros((0, 16), np.float32))
    with pytest.raises(NeuronError, match="wrong shape"):
        model(np.zeros((3, 15), np.float32))


@pytest.mark.parametrize(
    "record",
    [
        None,
        7,
        {},
        {"size": 0, "inputs": {"x": 0}, "outputs": {"y": 0}},
        {"size": True, "inputs": {"x": 0}, "outputs": {"y": 0}},
        {"size": 4, "inputs": {}, "outputs": {"y": 0}},
        {"size": 4, "inputs": {"x": 1}, "outputs": {"y": 0}},
        {"size": 4, "inputs": {"z": 0}, "outputs": {"y": 0}},
        {"size": 4, "inputs": {"x": 0}, "outputs": {"y": 2}},
        {"size": 4, "inputs": {"x": 0}, "outputs": {"y": "0"}},
        {"size": 3, "inputs": {"x": 0}, "outputs": {"y": 0}},
        {"size": 4, "inputs": [["x", 0]], "outputs": {"y": 0}},
    ],
)
def test_a_broken_record_is_refused(record: object) -> None:
    with pytest.raises(NeuronError, match="dynamic batching is broken"):
        Rows.read(record, {"x": (4, 16)}, {"y": (4, 16)})
