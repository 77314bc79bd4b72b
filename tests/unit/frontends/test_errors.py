"""Broken and unsupported models: one clear line each, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from neuron_mlir.errors import NeuronError
from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.frontends.onnx_io_config import IoConfig, parse_io_config

FLOAT = TensorProto.FLOAT


def _value(name: str, shape: Sequence[int | str | None], element: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    weights: dict[str, Any] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [_value("x", [2, 4])],
        outputs or [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _node(
    op: str, inputs: Sequence[str] = ("x",), outputs: Sequence[str] = ("y",), **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=attributes.pop("name", "the_node"), **attributes)


def _refused(model: onnx.ModelProto | Path, match: str, *, location: str | None = None, **options: Any) -> NeuronError:
    with pytest.raises(NeuronError, match=match) as caught:
        import_model(model, **options)
    error = caught.value
    assert "\n" not in error.line
    assert error.advice or error.needed
    if location is not None:
        assert error.location == location
    return error


def test_unknown_operator_names_node_and_domain() -> None:
    error = _refused(_model([_node("Sofmax")]), "operator 'Sofmax' of domain 'ai.onnx'", location="the_node")
    assert "Softmax" in (error.advice or "")
    _refused(_model([_node("Attention", domain="com.microsoft")]), "of domain 'com.microsoft'", location="the_node")


def test_control_flow() -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "b", [], [_value("b", [2, 4])])
    condition = _value("c", [], TensorProto.BOOL)
    node = _node("If", ["c"], then_branch=branch, else_branch=branch)
    _refused(_model([node], [_value("x", [2, 4]), condition]), "control flow", location="the_node")


def test_cycle_names_its_nodes() -> None:
    nodes = [
        _node("Relu", ["x"], ["p"], name="before"),
        _node("Add", ["p", "c"], ["a"], name="first"),
        _node("Relu", ["a"], ["b"], name="second"),
        _node("Abs", ["b"], ["c"], name="third"),
        _node("Neg", ["c"], ["y"], name="after"),
    ]
    error = _refused(_model(nodes), "cycle of 3 nodes")
    assert "first -> second -> third -> first" in error.message


def test_a_node_that_feeds_itself() -> None:
    _refused(_model([_node("Add", ["x", "y"], ["y"])]), "cycle of 1 nodes: the_node -> the_node")


def test_unsorted_nodes_are_sorted() -> None:
    module = import_model(_model([_node("Relu", ["h"], ["y"]), _node("Abs", ["x"], ["h"])]))
    text = str(module)
    assert text.index("nn.abs") < text.index("nn.relu")


def test_undefined_and_twice_defined_values() -> None:
    _refused(_model([_node("Add", ["x", "ghost"])]), "input 'ghost' is produced by no node", location="the_node")
    _refused(_model([_node("Relu"), _node("Abs")]), "'y' is defined twice")


def test_dynamic_shapes_name_input_and_axis() -> None:
    model = _model([_node("Relu")], [_value("x", ["N", 3, None])])
    error = _refused(model, r"axis 0 of input 'x' \('N'\), axis 2 of input 'x'$|axis 0 of input 'x' \('N'\), axis 2")
    assert "--io-config" in (error.advice or "")
    assert json.dumps({"inputs": {"x": [[1, 3, 1], "float32"]}}) in (error.advice or "")


def test_input_without_rank() -> None:
    value = helper.make_tensor_value_info("x", FLOAT, None)
    _refused(_model([_node("Relu")], [value]), "dynamic")
    assert "tensor<2x5xf32>" in str(import_model(_model([_node("Relu")], [value]), io_config={"x": [2, 5]}))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"inputs": {"z": [[2, 4], "float32"]}}, "names the input 'z', which the model does not have"),
        ({"inputs": {"x": [[2, 4, 1], "float32"]}}, "another rank"),
        ({"inputs": {"x": [[2, 4], "int32"]}}, "another data type"),
        ({"inputs": {"x": [[2, 5], "float32"]}}, "changes axis 1 of input 'x', which the model fixes"),
        ({"inputs": {"x": [[0, 4], "float32"]}}, "not at least 1"),
        ({"inputs": {"x": [[2, 4], "float31"]}}, "unknown data type"),
        ({"inputs": {"x": "2,4"}}, "needs"),
        ({"inputs": [1]}, "names the input 'inputs'"),
        ({"outputs": "y"}, "list of names"),
        ({"outputs": []}, "list of names"),
        ({"outputs": ["z"]}, "names the output 'z'"),
        ({"inputs": {}, "extra": 1}, "unknown member 'extra'"),
        ('{"inputs": ', "not JSON"),
        ("no_such_file.json", "no readable file"),
    ],
)
def test_io_config_that_does_not_fit(config: Any, match: str) -> None:
    _refused(_model([_node("Relu")], [_value("x", ["N", 4])]), match, io_config=config)


def test_io_config_forms(tmp_path: Path) -> None:
    want = parse_io_config({"inputs": {"x": [[2, 4], "float32"]}})
    text = '{"inputs": {"x": [[2, 4], "float32"]}}'
    path = tmp_path / "io.json"
    path.write_text(text)
    for form in (text, path, str(path), want, {"x": [[2, 4], "float32"]}):
        assert parse_io_config(form) == want
    shape_only = parse_io_config({"x": [2, 4]})
    assert shape_only == parse_io_config({"inputs": {"x": [[2, 4]]}})
    assert shape_only.inputs["x"].dtype is None
    assert parse_io_config(None) == IoConfig({})
    # Inputs may be called "inputs".
    assert parse_io_config({"inputs": [2, 4]}).inputs["inputs"].shape == (2, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_that_are_not_finite(bad: float, dtype: Any) -> None:
    weight = np.ones((600, 700), dtype)
    weight[599, 699] = bad
    model = _model(
        [_node("Add", ["x", "w"])],
        [_value("x", [600, 700], helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))],
        weights={"w": weight},
    )
    error = _refused(model, "weight 'w' holds " + ("NaN" if np.isnan(bad) else "an infinity"), location="w")
    if np.isinf(bad):
        assert "-1e9" in (error.advice or "")


def test_huge_finite_weights_are_fine() -> None:
    import_model(_model([_node("Add", ["x", "w"])], weights={"w": np.full((2, 4), 3e38, np.float32)}))


def test_empty_tensors() -> None:
    _refused(_model([_node("Relu")], [_value("x", [2, 0])]), "dimension of size 0")
    _refused(_model([_node("Concat", ["x", "w"], axis=0)], weights={"w": np.zeros((0, 4), np.float32)}), "no elements")
    bounds = {"a": np.array([3]), "b": np.array([3])}
    _refused(
        _model([_node("Slice", ["x", "a", "b"])], weights=bounds), "nothing is left of axis 0", location="the_node"
    )


@pytest.mark.parametrize(
    ("element", "name"),
    [(TensorProto.UINT16, "UINT16"), (TensorProto.COMPLEX64, "COMPLEX64"), (TensorProto.STRING, "STRING")],
)
def test_unsupported_element_types(element: int, name: str) -> None:
    _refused(_model([_node("Identity")], [_value("x", [2], element)]), f"unsupported element type {name}")
    if element == TensorProto.UINT16:
        _refused(_model([_node("Cast", to=element)]), f"unsupported element type {name}")


def test_double_is_for_constants_only() -> None:
    _refused(_model([_node("Relu")], [_value("x", [2], TensorProto.DOUBLE)]), "f64", location="the_node")


def test_sequences_and_sparse_weights() -> None:
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, [2])
    _refused(_model([_node("Relu")], [sequence]), "input 'x' is a sequence, not a tensor", location="x")
    model = _model([_node("Add", ["x", "w"])])
    values = helper.make_tensor("w", FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    _refused(model, "sparse weights", location="w")


def test_wrong_ranks_and_shapes_name_the_node() -> None:
    weight = {"w": np.ones((3, 3, 3, 3), np.float32)}
    _refused(_model([_node("Conv", ["x", "w"])], weights=weight), "rank", location="the_node")
    image = [_value("x", [1, 4, 8, 8])]
    _refused(_model([_node("Conv", ["x", "w"])], image, weights=weight), "input channels", location="the_node")
    _refused(
        _model([_node("MatMul", ["x", "w"])], weights={"w": np.ones((5, 2), np.float32)}),
        "columns",
        location="the_node",
    )
    _refused(
        _model([_node("Gemm", ["x", "w"])], weights={"w": np.ones((1, 4, 2), np.float32)}),
        "matrix",
        location="the_node",
    )
    _refused(
        _model([_node("Add", ["x", "w"])], weights={"w": np.ones((3, 4), np.float32)}), "broadcast", location="the_node"
    )
    _refused(
        _model([_node("Reshape", ["x", "s"])], weights={"s": np.array([3, -1])}), "cannot reshape", location="the_node"
    )
    _refused(_model([_node("Softmax", axis=2)]), "axis 2 is out of range", location="the_node")
    _refused(_model([_node("Gather", ["x", "i"])], weights={"i": np.array([2])}), "out of range", location="the_node")


def test_declared_output_of_another_shape() -> None:
    error = _refused(_model([_node("Relu")], outputs=[_value("y", [2, 5])]), "another shape than the model declares")
    assert (error.needed, error.available) == ([2, 5], [2, 4])


def test_parameters_that_are_computed_at_run_time() -> None:
    model = _model([_node("Reshape", ["x", "s"])], [_value("x", [2, 4]), _value("s", [1], TensorProto.INT64)])
    _refused(model, "its shape .* is computed while the model runs", location="the_node")


def test_attributes_and_modes_that_are_not_supported() -> None:
    _refused(
        _model([_node("Pad", ["x", "p"], mode="reflect")], weights={"p": np.array([0, 1, 0, 1])}), "mode 'reflect'"
    )
    _refused(
        _model([_node("Add", ["x", "x"], broadcast=1)]),
        "attribute 'broadcast' is not supported",
        location="the_node",
    )
    vectors = {name: np.ones(4, np.float32) for name in "sbmv"}
    train = _node("BatchNormalization", ["x", *"sbmv"], ["y", "m2", "v2"], training_mode=1)
    _refused(_model([train], weights=vectors), "training mode", location="the_node")


def test_second_outputs_that_are_used() -> None:
    nodes = [_node("MaxPool", ["x"], ["h", "i"], kernel_shape=[2]), _node("Identity", ["i"], ["y"], name="use")]
    _refused(_model(nodes, [_value("x", [1, 2, 4])]), r"output 1 \('i'\) is not supported", location="the_node")
    unused = [_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2])]
    import_model(_model(unused, [_value("x", [1, 2, 4])]))


@pytest.mark.parametrize("opset", [6, 99])
def test_opsets_out_of_range(opset: int) -> None:
    _refused(_model([_node("Relu")], opset=opset), f"opset {opset} is not supported")


def test_a_model_without_opset_or_outputs() -> None:
    model = _model([_node("Relu")])
    del model.opset_import[:]
    _refused(model, "which opset")
    model = _model([_node("Relu")])
    del model.graph.output[:]
    _refused(model, "no outputs")


def test_external_data_and_files(tmp_path: Path) -> None:
    model = _model([_node("Add", ["x", "w"])], weights={"w": np.ones((2, 4), np.float32)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    error = _refused(path, "external data file 'weights.bin' of tensor 'w' is missing")
    assert "weights.bin" in str(error.needed)
    tensor.external_data[0].value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    _refused(path, "not inside the model's directory")
    _refused(tmp_path / "none.onnx", "there is no file")
    path.write_bytes(b"not a model")
    _refused(path, "not an ONNX file")
    path.write_bytes(_model([_node("Relu")]).SerializeToString()[:-10])
    _refused(path, "truncated")


def test_every_truncation_of_a_model_is_one_error(tmp_path: Path) -> None:
    data = _model([_node("Add", ["x", "w"])], weights={"w": np.ones((2, 4), np.float32)}).SerializeToString()
    path = tmp_path / "model.onnx"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        try:
            import_model(path)
        except NeuronError as error:
            assert "\n" not in error.line


def test_flipped_bytes_are_errors_or_models(tmp_path: Path) -> None:
    data = bytearray(_model([_node("Add", ["x", "w"])], weights={"w": np.ones((2, 4), np.float32)}).SerializeToString())
    path = tmp_path / "model.onnx"
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        broken[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(broken)
        try:
            import_model(path)
        except NeuronError as error:
            assert "\n" not in error.line
