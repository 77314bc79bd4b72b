"""A recommendation model with embedding tables, seeded weights.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (2019): dense
features go through a small network, each sparse feature picks a row of its table, all pairs of these vectors are
multiplied, and a second network scores the products together with the dense vector. The number of features is that of
the Criteo data (13 dense, 26 sparse); tables are equally long, 100,000 rows of 64 unless told otherwise (666 MB).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.models import _moments as moments
from neuron_mlir.models._network import RECTIFIED, Network, Tensor, check_at_least
from neuron_mlir.models._sink import Sink, inline

if TYPE_CHECKING:
    from onnx import ModelProto

DENSE = 13
TABLES = 26
ROWS = 100_000
DIMENSION = 64
BOTTOM = (512, 256)
"""Hidden layers of the dense features' network; its result has the tables' dimension."""
TOP = (512, 256)
"""Hidden layers of the network that scores."""


def build_dlrm(
    sink: Sink = inline,
    *,
    batch: int = 1,
    rows: int = ROWS,
    tables: int = TABLES,
    dimension: int = DIMENSION,
    seed: int = 0,
) -> ModelProto:
    """The model: inputs `dense` [batch, 13] (f32) and `sparse` [batch, tables] (int64, a row of each table); output
    `click` [batch, 1], a probability.

    Args:
        sink: where weights go.
        rows: of each table.
        tables: sparse features.
        dimension: of the vectors.

    Raises:
        NeuronError: sizes that cannot be.
    """
    check_at_least("dlrm", batch=batch, rows=rows, tables=tables, dimension=dimension)
    net = Network("dlrm", seed, sink)
    dense = net.input("dense", (batch, DENSE))
    net.input("sparse", (batch, tables), integers=True)
    # Vectors such that their products are of order 1.
    scale = dimension**-0.25
    x = _perceptron(net, dense, "bottom", (*BOTTOM, dimension), RECTIFIED * scale)
    numbers = net.op("Split", "sparse.split", ["sparse", net.constant("sizes", [1] * tables)], tables, axis=1)
    vector = Tensor("", (batch, 1, dimension), moments.of(0.0, scale * scale))
    rows_of = [net.constant("as_row", [batch, 1, dimension])]
    parts = [Tensor(net.op("Reshape", "bottom.row", [x.name, *rows_of])[0], vector.shape, x.moments)]
    for i, number in enumerate(numbers):
        name = f"embedding.{i}"
        values = net.random(name).standard_normal((rows, dimension), np.float32)
        values *= np.float32(scale)
        picked = net.op("Gather", name, [net.store(f"{name}.weight", values), number], axis=0)
        parts.append(Tensor(picked[0], vector.shape, vector.moments))
    vectors = net.concat(parts, "vectors")
    x = _interaction(net, x, vectors)
    x = _perceptron(net, x, "top", TOP, RECTIFIED)
    x = net.linear(x, "top.out", 1, gain=1.0)
    net.output(net.unary("Sigmoid", x, "click"), "click")
    return net.model()


def _perceptron(net: Network, x: Tensor, name: str, sizes: Sequence[int], last_gain: float) -> Tensor:
    for i, size in enumerate(sizes):
        gain = last_gain if i == len(sizes) - 1 else RECTIFIED
        x = net.relu(net.linear(x, f"{name}.{i}", size, gain=gain), f"{name}.{i}.relu")
    return x


def _interaction(net: Network, dense: Tensor, vectors: Tensor) -> Tensor:
    """The dense vector and the products of all pairs, each once: the triangle below the diagonal."""
    batch, count, dimension = vectors.shape
    turned = net.op("Transpose", "interaction.transpose", [vectors.name], perm=[0, 2, 1])
    products = net.op("MatMul", "interaction.products", [vectors.name, turned[0]])
    flat = net.op("Reshape", "interaction.flat", [products[0], net.constant("flat", [batch, count * count])])
    below = [count * i + j for i in range(count) for j in range(i)]
    pairs = net.op("Gather", "interaction.pairs", [flat[0], net.constant("pairs", below)], axis=1)
    square = dimension * vectors.moments.square**2
    found = Tensor(pairs[0], (batch, len(below)), moments.of(0.0, square))
    return net.concat([dense, found], "interaction.concat")


def dlrm_inputs(*, batch: int = 1, rows: int = ROWS, tables: int = TABLES, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs: standard normal dense features; rows of the tables, small numbers more often than large ones."""
    rng = np.random.default_rng(seed)
    # Popular rows first, about as skewed as clicks are: log-uniform.
    picked = np.exp(rng.uniform(0.0, math.log(rows + 1), (batch, tables))).astype(np.int64) - 1
    return {
        "dense": rng.standard_normal((batch, DENSE), dtype=np.float32),
        "sparse": picked.clip(0, rows - 1),
    }
