"""Writes broken models into a directory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(sys.argv[1])


def write(name: str, nodes: list[onnx.NodeProto], dims: list[int | str], weights: list[TensorProto]) -> bytes:
    """One model with input x and output y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)
    opset = [helper.make_opsetid("", 17)]
    data = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=opset).SerializeToString()
    (ROOT / f"{name}.onnx").write_bytes(data)
    return data


def main() -> None:
    """Writes them all."""
    ROOT.mkdir(parents=True, exist_ok=True)
    relu = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    data = write("dynamic", relu, ["N", 4], [])
    (ROOT / "truncated.onnx").write_bytes(data[:-20])
    write("unknown", [helper.make_node("Sofmax", ["x"], ["y"], name="scores")], [4], [])
    loop = [helper.make_node("Add", ["x", "q"], ["y"], name="a"), helper.make_node("Relu", ["y"], ["q"], name="b")]
    write("cycle", loop, [4], [])
    add = [helper.make_node("Add", ["x", "w"], ["y"], name="add")]
    write("nan", add, [2], [numpy_helper.from_array(np.array([1, np.nan], np.float32), "w")])
    missing = TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    missing.external_data.add(key="location", value="gone.bin")
    write("missing", add, [2], [missing])


main()
