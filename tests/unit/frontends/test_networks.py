"""Whole networks: imported, printed, parsed, run, and compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp

from neuron_mlir.dialects.nn import ConvOp, WeightOp
from neuron_mlir.errors import NeuronError, location_text
from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.models.bert import TINY, bert_inputs, bert_model, write_bert
from neuron_mlir.models.light import LIGHT_MODELS, light_inputs, light_model, light_path, write_light

Compare = Callable[..., ModuleOp]
SMALL = ("squeezenet", "shufflenet")
LARGE = tuple(name for name in LIGHT_MODELS if name not in SMALL)


def _main(module: ModuleOp) -> FuncOp:
    main = module.body.block.first_op
    assert isinstance(main, FuncOp)
    return main


def _names(module: ModuleOp) -> tuple[list[str], list[str]]:
    main = _main(module)
    assert main.arg_attrs is not None and main.res_attrs is not None
    found: list[list[str]] = []
    for attributes in (main.arg_attrs, main.res_attrs):
        names = [entry.data["nn.name"] for entry in attributes]
        found.append([name.data for name in names if isinstance(name, StringAttr)])
    return found[0], found[1]


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_light_networks_import_as_shipped(name: str) -> None:
    """The files of the onnx package, whose weights are `ConstantOfShape` nodes: those become splats."""
    module = import_model(light_path(name))
    assert "splat<" in str(module)
    # IR does not grow with the weights: DenseNet, the longest, has 121 batch norms of 4 weights each.
    assert len(str(module)) < 200_000


@pytest.mark.parametrize("name", SMALL)
def test_small_light_networks_agree_with_onnxruntime(compare: Compare, name: str) -> None:
    model = light_model(name)
    compare(model, light_inputs(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_light_networks_agree_with_onnxruntime(compare: Compare, name: str, tmp_path: Path) -> None:
    path = write_light(tmp_path / "model.onnx", name, external_data=True)
    compare(path, light_inputs(onnx.load(path, load_external_data=False)))


@pytest.mark.parametrize(("batch", "seq"), [(1, 16), (3, 8)])
def test_tiny_bert_agrees_with_onnxruntime(compare: Compare, batch: int, seq: int) -> None:
    module = compare(bert_model(TINY, batch=batch, seq=seq), bert_inputs(TINY, batch=batch, seq=seq))
    assert _names(module) == (
        ["input_ids", "attention_mask", "token_type_ids"],
        ["last_hidden_state", "pooler_output"],
    )


@pytest.mark.slow
def test_bert_base_agrees_with_onnxruntime(compare: Compare, tmp_path: Path) -> None:
    compare(write_bert(tmp_path / "bert.onnx", external_data=True), bert_inputs())


def test_a_bert_in_external_data_agrees_with_onnxruntime(compare: Compare, tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert.onnx", TINY, seq=16, external_data=True)
    module = compare(path, bert_inputs(TINY, seq=16))
    assert module.attributes["nn.weights"] == StringAttr(str(path))


def test_magika_agrees_with_onnxruntime_once_pinned(compare: Compare) -> None:
    magika = pytest.importorskip("magika")
    path = next(Path(magika.__file__).parent.glob("models/*/model.onnx"))
    with pytest.raises(NeuronError, match=r"dynamic: axis 0 of input 'bytes'") as caught:
        import_model(path)
    assert '{"inputs": {"bytes": [[1, 2048], "int32"]}}' in (caught.value.advice or "")
    tokens = np.random.default_rng(0).integers(0, 257, (1, 2048), dtype=np.int32)
    compare(path, {"bytes": tokens}, io_config={"inputs": {"bytes": [[1, 2048], "int32"]}})


def test_locations_are_node_names() -> None:
    module = import_model(light_path("squeezenet"))
    convs = [op for op in module.walk() if isinstance(op, ConvOp)]
    model = onnx.load(light_path("squeezenet"))
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert [location_text(op.location) for op in convs] == names


def test_a_weight_that_is_used_twice_appears_once() -> None:
    module = import_model(bert_model(TINY, seq=8))
    names = [op.key for op in module.walk() if isinstance(op, WeightOp)]
    assert len(names) == len(set(names))


def test_the_import_is_deterministic() -> None:
    assert str(import_model(bert_model(TINY, seq=8))) == str(import_model(bert_model(TINY, seq=8)))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_is_as_many_single_runs(name: str, batch: int) -> None:
    """ONNX Runtime cannot run the changed batch of a file with literal shapes; single images are the reference."""
    from neuron_mlir.simulator.nn_eval import evaluate_function
    from neuron_mlir.weights import OnnxStore

    model = light_model(name)
    store = OnnxStore(model)
    images = [next(iter(light_inputs(model, seed=seed).values())) for seed in range(batch)]
    module = import_model(model, batch_size=batch)
    (together,) = evaluate_function(_main(module), [np.concatenate(images)], store)
    single = _main(import_model(model))
    for index, image in enumerate(images):
        (alone,) = evaluate_function(single, [image], store)
        np.testing.assert_allclose(together[index : index + 1], alone, atol=1e-5 * float(alone.max()))


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_every_light_network_takes_another_batch(name: str) -> None:
    main = _main(import_model(light_path(name), batch_size=7))
    for found in (*main.function_type.inputs, *main.function_type.outputs):
        shape: Any = found
        assert shape.get_shape()[0] == 7


def test_a_batch_for_a_dynamic_axis(compare: Compare) -> None:
    """The batch of a model with a named axis is set; other dynamic axes still need an io-config."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    inputs = {"x": np.ones((5, 4), np.float32)}
    compare(model, inputs, batch_size=5)
    compare(model, inputs, io_config={"x": [5, 4]})


def test_a_batch_that_the_model_cannot_take() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    two = helper.make_tensor("two", TensorProto.FLOAT, [2, 1], [1.0, 2.0])
    model = helper.make_model(
        helper.make_graph([helper.make_node("Mul", ["x", "two"], ["y"], name="scale")], "g", [x], [y], [two])
    )
    with pytest.raises(NeuronError, match="broadcast") as caught:
        import_model(model, batch_size=3)
    assert caught.value.location == "scale"
    assert "batch size" in (caught.value.advice or "")
    with pytest.raises(NeuronError, match="at least 1"):
        import_model(model, batch_size=0)


def test_io_config_picks_outputs() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Foo", ["h"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    module = import_model(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), io_config={"outputs": ["h"]})
    assert _names(module)[1] == ["h"]


def test_local_functions_are_inlined(compare: Compare) -> None:
    body = [helper.make_node("Mul", ["a", "a"], ["s"]), helper.make_node("Add", ["s", "a"], ["b"])]
    function = helper.make_function("mine", "Poly", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    graph = helper.make_graph([helper.make_node("Poly", ["x"], ["y"], domain="mine")], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=9)
    compare(model, {"x": np.array([1.0, -2.0, 0.5], np.float32)})


def test_shape_chains_vanish(compare: Compare) -> None:
    """Shape, Gather, Concat and so on around a Reshape and an Expand, as exporters write them."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2, 3, 4] x) => (float[6, 4] y, int64[6] ids) {
        shape = Shape(x)
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        n = Gather(shape, zero)
        m = Gather(shape, one)
        rows = Mul(n, m)
        axes = Constant<value_ints = [0]>()
        rows1 = Unsqueeze(rows, axes)
        minus = Constant<value_ints = [-1]>()
        target = Concat<axis = 0>(rows1, minus)
        y = Reshape(x, target)
        range = Range(zero, rows, one)
        mask = Less(range, m)
        ids = Where(mask, range, zero)
    }
    """
    module = compare(onnx.parser.parse_model(text), {"x": np.random.default_rng(0).random((2, 3, 4), np.float32)})
    assert [op.name for op in _main(module).body.block.ops] == ["nn.reshape", "nn.weight", "func.return"]
    assert "dense<[0, 1, 2, 0, 0, 0]>" in str(module)


def test_a_repeating_table_is_written_once(compare: Compare) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[40] x) => (float[100, 40] y) {
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        count = Constant<value_int = 40>()
        range = Range(zero, count, one)
        shape = Constant<value_ints = [100, 40]>()
        table = Expand(range, shape)
        y = Gather(x, table)
    }
    """
    module = compare(onnx.parser.parse_model(text), {"x": np.random.default_rng(0).random(40, np.float32)})
    assert "nn.expand" in str(module)
    assert len(str(module)) < 1500
