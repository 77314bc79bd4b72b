"""Small models, compiled once for all tests of the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from neuron_mlir.runtime.compiler import CompileOptions, compile_model, save

VARIABLES = (
    "NEURON_RT_VISIBLE_CORES",
    "NEURON_RT_NUM_CORES",
    "NEURON_MAX_NUM_INFERS",
    "NEURON_RT_EXEC_TIMEOUT",
    "NEURON_MLIR_INSTANCE",
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests are not part of them."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def chain(layers: int = 4, width: int = 16, batch: int | str = "N") -> onnx.ModelProto:
    """`layers` matrix products of width x width, one behind the other, on rows that do not see each other."""
    generator = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    value = "x"
    for layer in range(layers):
        data = (generator.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(numpy_helper.from_array(data, f"w{layer}"))
        result = "y" if layer == layers - 1 else f"r{layer}"
        nodes += [
            helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"], name=f"fc{layer}"),
            helper.make_node("Tanh" if result == "y" else "Relu", [f"m{layer}"], [result], name=f"act{layer}"),
        ]
        value = result
    return model(nodes, {"x": [batch, width]}, {"y": [batch, width]}, weights)


def pair(batch: int | str = "N") -> onnx.ModelProto:
    """Two inputs and two outputs, of which one input has no rows, and one output has its rows along axis 1."""
    nodes = [
        helper.make_node("Mul", ["a", "scale"], ["s"], name="mul"),
        helper.make_node("Add", ["s", "b:0"], ["sum"], name="add"),
        helper.make_node("Transpose", ["s"], ["turned"], name="turn", perm=[1, 0]),
    ]
    inputs = {"a": [batch, 8], "b:0": [batch, 8], "scale": [8]}
    return model(nodes, inputs, {"sum": [batch, 8], "turned": [8, batch]}, [])


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any], weights: list[onnx.TensorProto]
) -> onnx.ModelProto:
    """An ONNX model of float32 tensors."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ports.items()]
        for ports in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "net", values[0], values[1], weights)
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made


def _artifact(folder: Path, proto: onnx.ModelProto, **options: Any) -> str:
    source, target = folder / "model.onnx", folder / "model.neff"
    source.write_bytes(proto.SerializeToString())
    save(compile_model(source, CompileOptions(**options)), str(target))
    return str(target)


@pytest.fixture(scope="session")
def chain_model() -> onnx.ModelProto:
    return chain()


@pytest.fixture(scope="session")
def pair_model() -> onnx.ModelProto:
    return pair()


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four layers on four cores, four rows a request, for dynamic batching."""
    folder = tmp_path_factory.mktemp("pipeline")
    return _artifact(folder, chain(), cores=4, batch_size=4, dynamic_batch_size=True)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same four layers on one core, one row a request, without dynamic batching."""
    return _artifact(tmp_path_factory.mktemp("single"), chain(batch=1))
