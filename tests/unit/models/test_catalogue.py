"""The networks of the catalogue: their published sizes, and that they say the same in ONNX Runtime and as `nn`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from xdsl.dialects.func import FuncOp

from neuron_mlir.errors import NeuronError
from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.models.__main__ import main
from neuron_mlir.models._sink import inline
from neuron_mlir.models.catalogue import GENERATORS, make_model, network_inputs, write_network
from neuron_mlir.models.unet import build_unet
from neuron_mlir.simulator.nn_eval import evaluate_function
from neuron_mlir.weights import OnnxStore

SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"size": 64, "width": 0.25},
    "resnet50": {"size": 64, "width": 0.25},
    "vgg16": {"size": 32, "width": 0.125},
    "yolov3": {"size": 64, "width": 0.125},
    "yolov4": {"size": 64, "width": 0.0625},
    "unet": {"size": 32, "width": 0.125, "channels": 3},
    "dlrm": {"rows": 50, "batch": 3},
}


def _run(source: onnx.ModelProto, inputs: dict[str, Any]) -> list[NDArray[np.float32]]:
    import onnxruntime

    ort = cast(Any, onnxruntime)
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return cast(
        "list[NDArray[np.float32]]", ort.InferenceSession(source.SerializeToString(), options).run(None, inputs)
    )


def _evaluate(source: onnx.ModelProto, inputs: dict[str, Any]) -> list[NDArray[Any]]:
    function = import_model(source).body.block.first_op
    assert isinstance(function, FuncOp)
    return evaluate_function(function, list(inputs.values()), OnnxStore(source))


def test_every_network_has_a_small_one() -> None:
    assert list(SMALL) == list(GENERATORS)


@pytest.mark.parametrize("name", list(SMALL))
def test_small_networks_run_and_agree(name: str) -> None:
    model = make_model(name, **SMALL[name])
    onnx.checker.check_model(model, full_check=True)
    inputs = network_inputs(name, model)
    expected = _run(model, inputs)
    others = _run(model, network_inputs(name, model, seed=1))
    for want, got, other in zip(expected, _evaluate(model, inputs), others, strict=True):
        scale = float(np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale)
        # Of order 1, and other inputs give other results.
        assert 0.05 < float(want.std()) < 3.0
        assert float(np.abs(want - other).max()) > 0.01 * float(want.std())


def _floats(model: onnx.ModelProto) -> dict[str, int]:
    """Numbers in each weight; those of batch norm that are not trained left out."""
    found = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    return {name: n for name, n in found.items() if not name.endswith((".mean", ".var")) and "scales" not in name}


@pytest.mark.parametrize(
    ("name", "parameters"),
    # torchvision's documentation (ResNet-18 and -50, VGG-16); Keras summaries of the weights of YOLOv3 and
    # YOLOv4.
    [
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("yolov3", 61_949_149),
        ("yolov4", 64_363_101),
        ("vgg16", 138_357_544),
    ],
)
def test_published_sizes(name: str, parameters: int) -> None:
    def shapes_only(label: str, array: NDArray[Any]) -> onnx.TensorProto:
        tensor = inline(label, array) if array.size < 16 else onnx.TensorProto(name=label, dims=array.shape)
        tensor.data_type = onnx.TensorProto.FLOAT
        return tensor

    assert sum(_floats(GENERATORS[name].build(shapes_only)).values()) == parameters


def test_unet_is_as_large_as_its_image() -> None:
    model = build_unet(size=48, width=0.125, classes=3)
    shapes = [
        [int(d.dim_value) for d in v.type.tensor_type.shape.dim] for v in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [[1, 1, 48, 48], [1, 3, 48, 48]]
    assert [node.op_type for node in model.graph.node].count("ConvTranspose") == 4


def test_folding_batch_norms_changes_no_result() -> None:
    plain, folded = (make_model("resnet50", size=32, width=0.125, folded=folded) for folded in (False, True))
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    inputs = network_inputs("resnet50", plain)
    one, other = _run(plain, inputs)[0], _run(folded, inputs)[0]
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(np.abs(one).max()))


def test_weights_depend_on_seed_and_name_alone() -> None:
    first = make_model("yolov3", size=32, width=0.125)
    assert first.SerializeToString() == make_model("yolov3", size=32, width=0.125).SerializeToString()
    larger = make_model("yolov3", size=64, width=0.125)
    other = make_model("yolov3", size=32, width=0.125, seed=1)
    values = [{t.name: t.raw_data for t in model.graph.initializer} for model in (first, larger, other)]
    assert values[0] == values[1]
    assert all(values[0][name] != values[2][name] for name in values[0] if name.endswith(".weight"))


def test_pairs_of_dlrm_are_the_triangle_below_the_diagonal() -> None:
    model = make_model("dlrm", rows=10, tables=3)
    (pairs,) = (t for t in model.graph.initializer if t.name == "pairs")
    assert onnx.numpy_helper.to_array(pairs).tolist() == [4, 8, 9, 12, 13, 14]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("yolov3", {"size": 100}, "multiple of 32"),
        ("unet", {"size": 8}, "multiple of 16"),
        ("resnet50", {"batch": 0}, "batch must be at least 1"),
        ("dlrm", {"rows": 0}, "rows must be at least 1"),
        ("lenet", {}, "no generator 'lenet'"),
    ],
)
def test_sizes_that_cannot_be(name: str, options: dict[str, int], match: str) -> None:
    with pytest.raises(NeuronError, match=match):
        make_model(name, **options)


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.onnx"
    assert main(["yolov3", "--size", "32", "--width", "0.125", "--folded", "--batch", "2", "-o", str(path)]) == 0
    model = onnx.load(path)
    assert model == make_model("yolov3", size=32, width=0.125, folded=True, batch=2)
    outside = write_network(tmp_path / "outside.onnx", "dlrm", external_data=True, rows=20)
    assert outside.stat().st_size < 32 << 10
    inputs = network_inputs("dlrm", make_model("dlrm", rows=20))
    np.testing.assert_array_equal(_run(onnx.load(outside), inputs)[0], _run(make_model("dlrm", rows=20), inputs)[0])
    assert main(["vgg16", "--size", "33", "-o", str(path)]) == 1
    assert "multiple of 32" in capsys.readouterr().err
