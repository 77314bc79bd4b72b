"""`nn-batch`: a batch of N gives what N runs give, and what cannot be batched says which layer is in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from neuron_mlir.errors import NeuronError
from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.models.bert import CONFIGS, write_bert
from neuron_mlir.passes.nn.batch import BatchPass
from neuron_mlir.runtime.modules import make_context, module_text, parse_module
from neuron_mlir.simulator.run import random_inputs, run_module


def parse(arguments: str, body: str, results: str) -> ModuleOp:
    return parse_module(f"func.func @main({arguments}) -> ({results}) {{\n{body}\n}}", "test")


def check(module: ModuleOp, size: int, tolerance: float = 1e-5) -> ModuleOp:
    """Batch a copy; compare it with single runs."""
    batched = module.clone()
    batch = BatchPass(size=size)
    batch.apply(make_context(), batched)
    batched.verify()
    inputs = random_inputs(batched, 1)
    parts = batch.split_inputs(inputs)
    assert len(parts) == size
    expected = batch.join_outputs([run_module(module, part).outputs for part in parts])
    actual = run_module(batched, inputs).outputs
    assert list(expected) == list(actual)
    for name, value in expected.items():
        assert value.shape == actual[name].shape
        np.testing.assert_allclose(actual[name], value, rtol=tolerance, atol=tolerance)
    return batched


def test_inputs_of_the_runs_are_different() -> None:
    """The comparison is worth something only when each run has its own data."""
    module = parse("%x: tensor<2x3xf32>", "func.return %x : tensor<2x3xf32>", "tensor<2x3xf32>")
    batch = BatchPass(size=4)
    batch.apply(make_context(), module)
    parts = batch.split_inputs(random_inputs(module, 0))
    assert [part["arg0"].shape for part in parts] == [(2, 3)] * 4
    assert not np.array_equal(parts[0]["arg0"], parts[1]["arg0"])


LAYERS = {
    "pad the batch axis": (
        "%0 = nn.pad %x low [1, 0] high [0, 2] value 3.0 : (tensor<2x6xf32>) -> tensor<3x8xf32>",
        "3x8",
    ),
    "reverse the batch axis": (
        "%0 = nn.slice %x starts [1, 0] sizes [2, 6] strides [-1, 1] : (tensor<2x6xf32>) -> tensor<2x6xf32>",
        "2x6",
    ),
    "concat along the batch axis": (
        '%w = nn.weight "w" seeded<1> : tensor<3x6xf32>\n'
        "%0 = nn.concat %x, %w, %x axis 0 : (tensor<2x6xf32>, tensor<3x6xf32>, tensor<2x6xf32>) -> tensor<7x6xf32>",
        "7x6",
    ),
    "mean over the batch axis": (
        "%0 = nn.reduce_mean %x axes [0] keepdims : (tensor<2x6xf32>) -> tensor<1x6xf32>",
        "1x6",
    ),
    "sum of rows, axis gone": ("%0 = nn.reduce_sum %x axes [1] : (tensor<2x6xf32>) -> tensor<2xf32>", "2"),
    "layer norm over everything": (
        '%s = nn.weight "s" seeded<1> : tensor<2x6xf32>\n'
        "%0 = nn.layer_norm %x, %s axis 0 eps 1.0e-5 : (tensor<2x6xf32>, tensor<2x6xf32>) -> tensor<2x6xf32>",
        "2x6",
    ),
    "layer norm with a scale per row": (
        '%s = nn.weight "s" seeded<1> : tensor<2x6xf32>\n'
        "%0 = nn.layer_norm %x, %s axis 1 eps 1.0e-5 : (tensor<2x6xf32>, tensor<2x6xf32>) -> tensor<2x6xf32>",
        "2x6",
    ),
    "constants with the batch's rows": (
        '%w = nn.weight "w" seeded<1> : tensor<2x6xf32>\n%v = nn.weight "v" seeded<2> : tensor<2x1xf32>\n'
        "%1 = nn.mul %x, %w : tensor<2x6xf32>, tensor<2x6xf32>\n"
        "%0 = nn.add %v, %1 : tensor<2x1xf32>, tensor<2x6xf32>",
        "2x6",
    ),
    "picked rows": (
        '%i = nn.weight "i" dense<[1, 0, 1]> : tensor<3xi64>\n'
        "%0 = nn.gather %x, %i axis 0 : (tensor<2x6xf32>, tensor<3xi64>) -> tensor<3x6xf32>",
        "3x6",
    ),
    "columns on the right": (
        '%w = nn.weight "w" seeded<1> : tensor<5x6xf32>\n'
        "%t = nn.transpose %x perm [1, 0] : (tensor<2x6xf32>) -> tensor<6x2xf32>\n"
        "%0 = nn.matmul %w, %t : (tensor<5x6xf32>, tensor<6x2xf32>) -> tensor<5x2xf32>",
        "5x2",
    ),
    "one row against three": (
        '%w = nn.weight "w" seeded<1> : tensor<3x6xf32>\n'
        "%r = nn.slice %x starts [0, 0] sizes [1, 6] : (tensor<2x6xf32>) -> tensor<1x6xf32>\n"
        "%0 = nn.sub %r, %w : tensor<1x6xf32>, tensor<3x6xf32>",
        "3x6",
    ),
    "the batch behind an axis of 1": (
        "%a = nn.reshape %x : (tensor<2x6xf32>) -> tensor<1x2x6xf32>\n"
        "%b = nn.reshape %x : (tensor<2x6xf32>) -> tensor<2x6x1xf32>\n"
        "%c = nn.transpose %b perm [2, 0, 1] : (tensor<2x6x1xf32>) -> tensor<1x2x6xf32>\n"
        "%0 = nn.add %a, %c : tensor<1x2x6xf32>, tensor<1x2x6xf32>",
        "1x2x6",
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("size", [1, 3])
def test_layers_along_the_batch_axis(layer: str, size: int) -> None:
    body, shape = LAYERS[layer]
    module = parse("%x: tensor<2x6xf32>", f"{body}\nfunc.return %0 : tensor<{shape}xf32>", f"tensor<{shape}xf32>")
    check(module, size)


REFUSED = {
    "this reshape of 6x2 to 4x3 mixes axis 1": (
        "%t = nn.transpose %x perm [1, 0] : (tensor<2x6xf32>) -> tensor<6x2xf32>\n"
        "%0 = nn.reshape %t : (tensor<6x2xf32>) -> tensor<4x3xf32>",
        "4x3",
    ),
    "it sums over the axis of the requests": (
        '%w = nn.weight "w" seeded<1> : tensor<5x2xf32>\n'
        "%0 = nn.matmul %w, %x : (tensor<5x2xf32>, tensor<2x6xf32>) -> tensor<5x6xf32>",
        "5x6",
    ),
    "no axis left for the batch": ("%0 = nn.reduce_max %x axes [0, 1] : (tensor<2x6xf32>) -> tensor<f32>", ""),
    "along different axes of its operands": (
        "%s = nn.slice %x starts [0, 0] sizes [2, 2] : (tensor<2x6xf32>) -> tensor<2x2xf32>\n"
        "%t = nn.transpose %s perm [1, 0] : (tensor<2x2xf32>) -> tensor<2x2xf32>\n"
        "%0 = nn.add %s, %t : tensor<2x2xf32>, tensor<2x2xf32>",
        "2x2",
    ),
    "each request has its own product": (
        "%t = nn.transpose %x perm [1, 0] : (tensor<2x6xf32>) -> tensor<6x2xf32>\n"
        "%0 = nn.matmul %x, %t : (tensor<2x6xf32>, tensor<6x2xf32>) -> tensor<2x2xf32>",
        "2x2",
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_batched_is_named(message: str) -> None:
    body, shape = REFUSED[message]
    type_text = f"tensor<{shape}xf32>" if shape else "tensor<f32>"
    module = parse("%x: tensor<2x6xf32>", f"{body}\nfunc.return %0 : {type_text}", type_text)
    with pytest.raises(NeuronError) as caught:
        BatchPass(size=2).apply(make_context(), module)
    assert message in caught.value.line
    assert caught.value.op is not None and caught.value.op.startswith("nn.")
    assert caught.value.advice is not None


def test_size_below_one() -> None:
    module = parse("%x: tensor<2x3xf32>", "func.return %x : tensor<2x3xf32>", "tensor<2x3xf32>")
    with pytest.raises(NeuronError, match="at least 1"):
        BatchPass(size=0).apply(make_context(), module)


def test_without_a_batch_dimension() -> None:
    module = parse("%x: tensor<f32>", "func.return %x : tensor<f32>", "tensor<f32>")
    with pytest.raises(NeuronError, match="no input with a batch dimension"):
        BatchPass(size=2).apply(make_context(), module)


def test_bert_gives_what_single_runs_give_and_what_the_importer_makes(tmp_path: Path) -> None:
    path = tmp_path / "bert.onnx"
    write_bert(path, CONFIGS["bert-base"], layers=1, seq=16)
    batched = check(import_model(path), 2, 1e-3)
    other = import_model(path, batch_size=2)
    inputs = random_inputs(batched, 3)
    ours, theirs = run_module(batched, inputs).outputs, run_module(other, inputs).outputs
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    # The types agree layer by layer too.
    assert module_text(batched).count("tensor<2x16x768xf32>") == module_text(other).count("tensor<2x16x768xf32>")
