"""Whole networks through all passes: the final form computes what the `nn` interpreter computes after `nn-cast`.

What may differ is the order of float32 sums, and with it now and then a rounding to 16 bits. So

- networks whose contractions have at most two terms that are not zero agree bit for bit, since a sum of two does not
  depend on the order;
- with dense weights, both are roundings of the same float32 network: they are no further apart than two such networks
  may be, in the Euclidean norm twice what the casts alone cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from xdsl.dialects.builtin import ModuleOp

from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.models.bert import CONFIGS, bert_inputs, write_bert
from neuron_mlir.models.catalogue import make_model, network_inputs, write_network
from neuron_mlir.models.light import LIGHT_MODELS, light_inputs, light_model, write_light
from neuron_mlir.passes.pipelines import Neuron, load_pipeline
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.run import run_module
from neuron_mlir.tools.demo import cosine, logits_name, reference
from neuron_mlir.weights import OnnxStore

Array = NDArray[Any]
Arrays = Mapping[str, Array]

CASTS_APART = 2.0
COSINE = 0.999


class Levels:
    """A model's values after `nn-cast`, and its final form."""

    def __init__(
        self, model: ModelProto | Path, inputs: Arrays, *, outputs: list[str] | None = None, **options: Any
    ) -> None:
        config = cast("dict[str, Any]", options.pop("io_config", {}))
        if outputs is not None:
            config = {**config, "outputs": outputs}
        self.inputs = inputs
        self.weights = OnnxStore(model)
        self.module: ModuleOp = import_model(model, io_config=config)
        self.cast: Arrays = {}
        for step in load_pipeline(Neuron(**options).expand()):
            if step.name == "pipe-stage":
                self.cast = run_module(self.module, inputs, weights=self.weights).outputs
            step.apply(make_context(), self.module)
        self.module.verify()

    def final(self) -> Arrays:
        """Values of the final form."""
        return run_module(self.module, self.inputs, weights=self.weights, hazards=False).outputs

    def check_order(self) -> None:
        """Raise for a race, a read of what was never written, or a deadlock; without values."""
        result = run_module(self.module, 4, values=False, hazards=True)
        assert result.machine is not None and result.machine.checked_requests == 4
        report = result.report()
        assert report.throughput_per_s <= report.bound.throughput_per_s <= report.model_bound.throughput_per_s * 1.0001


def apart(a: Array, b: Array) -> float:
    """Euclidean distance."""
    return float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64)))


def check_bounded(levels: Levels, truth: Arrays) -> None:
    """Cast and final values are roundings of the same network."""
    final = levels.final()
    assert list(final) == list(levels.cast)
    for name, values in final.items():
        casts = apart(levels.cast[name], truth[name])
        size = float(np.linalg.norm(truth[name]))
        assert apart(values, levels.cast[name]) <= CASTS_APART * casts + 1e-6 * size, name
    first = next(iter(final))
    assert cosine(final[first], truth[first]) >= COSINE


def with_two_terms(model: ModelProto, seed: int = 0) -> ModelProto:
    """The model with two weights that are not zero for each output of a kernel: its sum is the same in any order."""
    rng = np.random.default_rng(seed)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in stored:
            continue
        tensor = stored[node.input[1]]
        transposed = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        shape = tuple(tensor.dims)
        rows = shape[1] if transposed else shape[0]
        flat = np.zeros((rows, int(np.prod(shape)) // rows), np.float32)
        places = rng.integers(0, flat.shape[1], (2, rows))
        # The larger one is positive, so that enough survives each ReLU.
        flat[np.arange(rows), places[1]] = rng.uniform(-0.4, 0.4, rows)
        flat[np.arange(rows), places[0]] = rng.uniform(0.7, 1.3, rows)
        values = flat.T if transposed else flat
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values).reshape(shape), tensor.name))
    return model


def before_pooling(model: ModelProto) -> str:
    """What goes into the last pooling over all positions, or else the logits: sums of many terms come after it."""
    pools = [node for node in model.graph.node if node.op_type in ("GlobalAveragePool", "AveragePool")]
    return pools[-1].input[0] if pools else logits_name(model) or model.graph.output[0].name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "vgg16"])
def test_bit_for_bit(name: str) -> None:
    if name == "vgg16":  # ends in dense layers; a narrow one, as there is nothing new in its size
        model = with_two_terms(make_model(name, size=64, width=0.25))
        inputs = network_inputs(name, model)
    else:
        model = with_two_terms(light_model(name))
        inputs = light_inputs(model)
    levels = Levels(model, inputs, outputs=[before_pooling(model)], cores=4)
    (expected,), (actual,) = levels.cast.values(), levels.final().values()
    assert np.count_nonzero(expected) > expected.size // 50, "a network that died shows nothing"
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_image_networks(name: str, tmp_path: Path) -> None:
    path = write_light(tmp_path / "model.onnx", name, external_data=True)
    model = onnx.load(path, load_external_data=False)
    inputs = light_inputs(model)
    logits = logits_name(model)
    names = [*([logits] if logits else []), model.graph.output[0].name]
    levels = Levels(path, inputs, outputs=names, cores=4)
    check_bounded(levels, reference(path, inputs, names))
    levels.check_order()


CATALOGUE: dict[str, dict[str, Any]] = {
    "vgg16": {"size": 32, "width": 0.125},
    "yolov3": {"size": 64, "width": 0.125},
    "unet": {"size": 64, "width": 0.25},
    "dlrm": {"rows": 50, "batch": 2},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "yolov3" else name for name in CATALOGUE]
)
def test_small_networks_of_the_catalogue(name: str, tmp_path: Path) -> None:
    path = write_network(tmp_path / "model.onnx", name, **CATALOGUE[name])
    inputs = network_inputs(name, onnx.load(path))
    levels = Levels(path, inputs, cores=2)
    check_bounded(levels, reference(path, inputs, list(levels.cast)))
    levels.check_order()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "width"), [("resnet50", 96, 1.0), ("yolov3", 160, 0.5), ("unet", 128, 1.0)])
def test_networks_of_the_catalogue(name: str, size: int, width: float, tmp_path: Path) -> None:
    """On small images; `python -m benchmarks validate` has their usual sizes."""
    path = write_network(tmp_path / "model.onnx", name, size=size, width=width)
    inputs = network_inputs(name, onnx.load(path))
    levels = Levels(path, inputs, cores=4)
    check_bounded(levels, reference(path, inputs, list(levels.cast)))
    levels.check_order()


def bert(path: Path, name: str, seq: int) -> tuple[Path, Arrays, list[str]]:
    """A BERT on disk, a request, and the names of its outputs."""
    write_bert(path, CONFIGS[name], seq=seq, external_data=True)
    return path, bert_inputs(CONFIGS[name], seq=seq), ["last_hidden_state", "pooler_output"]


@pytest.mark.slow
def test_bert_base(tmp_path: Path) -> None:
    path, inputs, names = bert(tmp_path / "model.onnx", "bert-base", 128)
    levels = Levels(path, inputs, cores=4)
    check_bounded(levels, reference(path, inputs, names))
    levels.check_order()


@pytest.mark.parametrize("cast_mode", ["all", "all-fp16", "matmult", "matmult-bf16", "matmult-fp16"])
def test_cast_modes(cast_mode: str, tmp_path: Path) -> None:
    path, inputs, names = bert(tmp_path / "model.onnx", "bert-tiny", 16)
    levels = Levels(path, inputs, cores=2, fp32_cast=cast_mode)
    check_bounded(levels, reference(path, inputs, names))
    levels.check_order()


def test_values_do_not_depend_on_the_cut(tmp_path: Path) -> None:
    path, inputs, _ = bert(tmp_path / "model.onnx", "bert-tiny", 16)
    results = [Levels(path, inputs, cores=cores).final() for cores in (1, 3, 8)]
    for other in results[1:]:
        for name, values in results[0].items():
            np.testing.assert_array_equal(other[name], values)


# Magika ---------------------------------------------------------------------------------------------------------------

FILES: dict[str, bytes] = {
    "python": Path(__file__).read_bytes(),
    "json": b'{"name": "neuron", "values": [1, 2, 3], "nested": {"a": null, "b": true}}\n' * 30,
    "html": b"<!DOCTYPE html>\n<html><head><title>t</title></head><body><p>text</p></body></html>\n" * 30,
    "c": b'#include <stdio.h>\n\nint main(void) {\n    printf("%d\\n", 3);\n    return 0;\n}\n' * 30,
    "elf": b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + bytes(range(256)) * 16,
    "prose": b"It was a bright cold day in April, and the clocks were striking thirteen. " * 40,
}


def features(content: bytes) -> Array:
    """Magika's input: 1,024 bytes from the beginning and the end, 256 where there are none."""
    row = np.full((1, 2048), 256, np.int32)
    head, tail = content[:1024], content[-1024:]
    row[0, : len(head)] = np.frombuffer(head, np.uint8)
    row[0, 2048 - len(tail) :] = np.frombuffer(tail, np.uint8)
    return row


@pytest.mark.slow
def test_magika_classifies_as_onnx_runtime_does(tmp_path: Path) -> None:
    import magika

    path = sorted(Path(magika.__file__).parent.glob("models/*/model.onnx"))[0]
    copy = tmp_path / "magika.onnx"
    copy.write_bytes(path.read_bytes())
    first = {"bytes": features(FILES["python"])}
    # Its layer norms are spelled out as means of squares less squares of means, which 8 bits do not carry.
    options: dict[str, Any] = {"io_config": {"inputs": {"bytes": [[1, 2048], "int32"]}}, "fp32_cast": "matmult"}
    levels = Levels(path, first, cores=1, **options)
    requests = [{"bytes": features(content)} for content in FILES.values()]
    results = run_module(levels.module, requests, weights=levels.weights, hazards=False).requests
    found: list[int] = []
    for request, outputs in zip(requests, results, strict=True):
        truth = reference(copy, request, ["target_label"])["target_label"]
        scores = outputs["target_label"]
        assert np.argmax(scores) == np.argmax(truth)
        assert cosine(scores, truth) >= COSINE
        found.append(int(np.argmax(scores)))
    assert len(set(found)) >= 4, "the files are of different kinds"
    levels.check_order()
