"""docs/runtime.md: its code runs, and its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from neuron_mlir import Status, default_instance
from neuron_mlir.runtime import api, instance

PAGE = (Path(__file__).parents[3] / "docs" / "runtime.md").read_text(encoding="utf-8")


def write_model(path: Path) -> None:
    """A small convolutional network with an open batch and an input 'data' of 3 x 32 x 32."""
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["data", "w"], ["c"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["prob"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def test_the_code_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    default_instance().close()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(code, "docs/runtime.md", "exec"), scope)
    assert np.shape(scope["prob"]) == (7, 8)
    loaded = default_instance()
    (cores,) = scope["model"].cores
    assert len(cores) > 1  # the model, and two more of it
    assert len(loaded.cores) - len(loaded.free_cores) == 3 * len(cores)
    loaded.close()


def test_return_codes() -> None:
    lines = re.finditer(r"^\| `(NRT_\w+)` \| (\d+) \|", PAGE, re.MULTILINE)
    listed = {line[1]: int(line[2]) for line in lines}
    assert listed == {status.name: status.value for status in Status}


def test_variables() -> None:
    names = (
        instance.VISIBLE_CORES,
        instance.NUM_CORES,
        instance.INSTANCE_TYPE,
        api.MAX_NUM_INFERS,
        api.EXEC_TIMEOUT,
    )
    assert {name for name in names if name not in PAGE} == set()
    assert f"default {api.TIMEOUT_S} |" in PAGE
