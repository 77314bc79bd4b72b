"""The generated networks: deterministic, valid, and of sane ranges when ONNX Runtime runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from neuron_mlir.errors import NeuronError
from neuron_mlir.models.__main__ import main
from neuron_mlir.models.bert import BASE, LARGE, TINY, BertConfig, bert_inputs, bert_model, write_bert
from neuron_mlir.models.light import LIGHT_MODELS, light_inputs, light_model, light_path, write_light

QUICK = ("squeezenet", "shufflenet", "inception_v1", "densenet121")


def _run(model: onnx.ModelProto | Path, inputs: dict[str, Any]) -> list[NDArray[np.float32]]:
    import onnxruntime

    ort = cast(Any, onnxruntime)
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return cast("list[NDArray[np.float32]]", ort.InferenceSession(source, options).run(None, inputs))


def test_all_nine_are_there() -> None:
    assert len(LIGHT_MODELS) == 9
    for name in LIGHT_MODELS:
        onnx.checker.check_model(str(light_path(name)))


@pytest.mark.parametrize("name", QUICK)
def test_light_networks_run_with_scores_that_differ(name: str) -> None:
    model = light_model(name)
    onnx.checker.check_model(model)
    assert len(model.graph.input) == 1
    assert not any(node.op_type == "ConstantOfShape" for node in model.graph.node)
    first, second = (_run(model, light_inputs(model, seed=seed))[0].ravel() for seed in (0, 1))
    scores = first if name == "densenet121" else np.log(first)  # DenseNet ends without a softmax
    assert 0.3 < float(scores.std()) < 6.0
    assert len(np.unique(first)) > 900
    if name != "densenet121":
        assert float(first.sum()) == pytest.approx(1.0, abs=1e-4)
        assert float(first.max()) < 0.9
    # Another image gives other scores.
    assert float(np.abs(first - second).max()) > 0.01 * float(first.std())


def test_light_networks_are_deterministic_and_seeded() -> None:
    model = light_model("shufflenet")
    assert model.SerializeToString() == light_model("shufflenet").SerializeToString()
    assert model.SerializeToString() != light_model("shufflenet", seed=1).SerializeToString()


def test_variances_are_positive() -> None:
    model = light_model("shufflenet")
    variances = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    assert len(variances) == 49
    for tensor in model.graph.initializer:
        if tensor.name in variances:
            assert float(onnx.numpy_helper.to_array(tensor).min()) > 0


def test_an_unknown_network() -> None:
    with pytest.raises(NeuronError, match="no light model 'resnet51'"):
        light_model("resnet51")
    assert light_path("alexnet") == light_path("bvlc_alexnet")


def test_bert_runs_and_honours_its_mask() -> None:
    model = bert_model(TINY, seq=16, batch=2)
    onnx.checker.check_model(model, full_check=True)
    inputs = bert_inputs(TINY, seq=16, batch=2, length=10)
    hidden, pooled = _run(model, inputs)
    assert hidden.shape == (2, 16, 64)
    assert pooled.shape == (2, 64)
    assert float(np.abs(pooled).max()) < 1.0
    assert float(hidden.std()) == pytest.approx(1.0, abs=0.1)
    # What is masked does not reach the other positions.
    inputs["input_ids"][:, 10:] = 0
    again, _ = _run(model, inputs)
    np.testing.assert_array_equal(again[:, :10], hidden[:, :10])
    inputs["input_ids"][:, 3] += 1
    changed, _ = _run(model, inputs)
    assert not np.array_equal(changed[:, 0], hidden[:, 0])


def test_bert_uses_the_operators_of_an_exporter() -> None:
    found = {node.op_type for node in bert_model(TINY, seq=8).graph.node}
    wanted = {
        "Gather",
        "MatMul",
        "Add",
        "LayerNormalization",
        "Erf",
        "Softmax",
        "Transpose",
        "Reshape",
        "Slice",
        "Where",
    }
    assert wanted <= found


def test_bert_sizes() -> None:
    def parameters(config: BertConfig) -> int:
        hidden, inner = config.hidden, config.intermediate
        layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
        tables = (config.vocabulary + config.positions + config.token_types) * hidden + 2 * hidden
        return config.layers * layer + tables + hidden * hidden + hidden

    # The published sizes, 110 M and 340 M, rounded.
    assert parameters(BASE) == 109_482_240
    assert parameters(LARGE) == 335_141_888
    model = bert_model(TINY, seq=8)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.dims]
    assert sum(int(np.prod(t.dims)) for t in floats) == parameters(TINY)


def test_more_layers_leave_the_first_ones_as_they_were() -> None:
    short = {t.name: t.raw_data for t in bert_model(TINY, layers=1, seq=8).graph.initializer}
    long = {t.name: t.raw_data for t in bert_model(TINY, layers=3, seq=8).graph.initializer}
    encoder = [name for name in short if "layer.0" in name or "embeddings" in name]
    assert len(encoder) == 21
    assert all(short[name] == long[name] for name in encoder)


def test_external_data_holds_the_same_weights(tmp_path: Path) -> None:
    inside = write_bert(tmp_path / "inside.onnx", TINY, seq=8)
    outside = write_bert(tmp_path / "outside.onnx", TINY, seq=8, external_data=True)
    assert outside.stat().st_size < inside.stat().st_size / 4
    inputs = bert_inputs(TINY, seq=8)
    for one, other in zip(_run(inside, inputs), _run(outside, inputs), strict=True):
        np.testing.assert_array_equal(one, other)
    light = write_light(tmp_path / "light.onnx", "shufflenet", external_data=True)
    model = light_model("shufflenet")
    np.testing.assert_array_equal(_run(light, light_inputs(model))[0], _run(model, light_inputs(model))[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seq": 65}, "longer than the position table"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"config": BertConfig(hidden=10, heads=3)}, "not a multiple"),
    ],
)
def test_bert_sizes_that_do_not_go_together(options: dict[str, Any], match: str) -> None:
    with pytest.raises(NeuronError, match=match):
        settings: dict[str, Any] = {"config": TINY, **options}
        bert_model(**settings)


def test_the_command_writes_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    assert main(["light", "squeezenet", "-o", str(path)]) == 0
    assert onnx.load(path) == light_model("squeezenet")
    assert main(["bert-tiny", "--layers", "1", "--seq", "8", "--external-data", "-o", str(path)]) == 0
    assert path.with_name("m.onnx.data").exists()
    assert main(["bert-tiny", "--layers", "1", "-o", str(tmp_path / "whole.onnx")]) == 0
    assert main(["light", "nothing", "-o", str(path)]) == 1
    assert main(["bert-tiny", "-o", str(tmp_path / "no" / "m.onnx"), "--seq", "8"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["error", "error"]
