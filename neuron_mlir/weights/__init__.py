"""Weights: where they live (`WeightStore` and its kinds), and what an `nn.weight` stands for (`materialize`).

See docs/weights.md.
"""

from __future__ import annotations

from neuron_mlir.weights.onnx_store import OnnxFile, OnnxStore
from neuron_mlir.weights.store import (
    WEIGHTS_ATTRIBUTE,
    DictStore,
    SafetensorsStore,
    WeightInfo,
    WeightStore,
    digest,
    element_name,
    open_store,
    open_weights,
)
from neuron_mlir.weights.values import materialize, seeded_values

WeightSource = WeightStore
"""Another name of `WeightStore`, for code that only reads."""

__all__ = [
    "WEIGHTS_ATTRIBUTE",
    "DictStore",
    "OnnxFile",
    "OnnxStore",
    "SafetensorsStore",
    "WeightInfo",
    "WeightSource",
    "WeightStore",
    "digest",
    "element_name",
    "materialize",
    "open_store",
    "open_weights",
    "seeded_values",
]
