"""BERT as an op-level ONNX graph with seeded weights.

The graph is the encoder of Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2018), in the
operators an exporter emits: Gather, MatMul, Add, LayerNormalization, Erf, Softmax, Transpose, Reshape, Slice, Where.
Weight names are those of the Hugging Face checkpoints, except that a linear layer's matrix is stored [in, out].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.errors import NeuronError
from neuron_mlir.models._sink import Sink, inline, write_model

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

OPSET = 17
"""First opset with LayerNormalization."""

MASKED = -1e9
"""Score of a masked position. Finite: an infinity becomes NaN on a machine that transposes by multiplying."""

SEQ = 128
"""Default sequence length, that of AWS's published measurements of BERT."""

WEIGHT_SCALE = 0.02
"""Standard deviation of the weights, as in BERT's own initialisation."""


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT. `hidden` must be a multiple of `heads`."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    vocabulary: int = 30522
    positions: int = 512
    token_types: int = 2
    epsilon: float = 1e-12


BASE = BertConfig()
LARGE = BertConfig(layers=24, hidden=1024, heads=16, intermediate=4096)
TINY = BertConfig(layers=2, hidden=64, heads=2, intermediate=128, vocabulary=97, positions=64)
"""For tests."""

CONFIGS = {"bert-base": BASE, "bert-large": LARGE, "bert-tiny": TINY}


class _Builder:
    """Collects nodes and weights. Nodes are named by their path in the network; so are their outputs."""

    def __init__(self, config: BertConfig, seed: int, sink: Sink) -> None:
        self.config = config
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._sink = sink
        self._seed = seed
        self._constants: set[str] = set()

    def weight(self, name: str, shape: tuple[int, ...], *, centre: float = 0.0) -> str:
        # A stream per weight: adding a layer leaves the values of the others as they were.
        rng = np.random.default_rng([self._seed, len(self.initializers)])
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(WEIGHT_SCALE)
        values += np.float32(centre)
        self.initializers.append(self._sink(name, values))
        return name

    def constant(self, name: str, values: Any, dtype: str = "int64") -> str:
        if name not in self._constants:
            self._constants.add(name)
            self.initializers.append(inline(name, np.array(values, dtype=dtype)))
        return name

    def op(self, op_type: str, name: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        output = output or name + ":0"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def linear(self, x: str, name: str, inputs: int, outputs: int, *, node: str) -> str:
        product = self.op("MatMul", f"{node}/MatMul", [x, self.weight(f"{name}.weight", (inputs, outputs))])
        return self.op("Add", f"{node}/Add", [product, self.weight(f"{name}.bias", (outputs,))])

    def layer_norm(self, x: str, name: str, *, node: str, output: str | None = None) -> str:
        scale = self.weight(f"{name}.weight", (self.config.hidden,), centre=1.0)
        shift = self.weight(f"{name}.bias", (self.config.hidden,))
        return self.op("LayerNormalization", node, [x, scale, shift], output, axis=-1, epsilon=self.config.epsilon)

    def gelu(self, x: str, node: str) -> str:
        ratio = self.op("Div", f"{node}/Div", [x, self.constant("sqrt_2", math.sqrt(2.0), "float32")])
        erf = self.op("Erf", f"{node}/Erf", [ratio])
        gate = self.op("Add", f"{node}/Add", [erf, self.constant("one", 1.0, "float32")])
        product = self.op("Mul", f"{node}/Mul", [x, gate])
        return self.op("Mul", f"{node}/Mul_1", [product, self.constant("half", 0.5, "float32")])


def _embeddings(b: _Builder, seq: int) -> str:
    config, root = b.config, "bert.embeddings"
    words = b.weight(f"{root}.word_embeddings.weight", (config.vocabulary, config.hidden))
    positions = b.weight(f"{root}.position_embeddings.weight", (config.positions, config.hidden))
    types = b.weight(f"{root}.token_type_embeddings.weight", (config.token_types, config.hidden))
    word = b.op("Gather", "/embeddings/word_embeddings/Gather", [words, "input_ids"])
    token_type = b.op("Gather", "/embeddings/token_type_embeddings/Gather", [types, "token_type_ids"])
    bounds = [b.constant("zeros_1", [0]), b.constant("sequence_length", [seq]), b.constant("axis_0", [0])]
    position = b.op("Slice", "/embeddings/position_embeddings/Slice", [positions, *bounds])
    total = b.op("Add", "/embeddings/Add", [word, token_type])
    total = b.op("Add", "/embeddings/Add_1", [total, position])
    return b.layer_norm(total, f"{root}.LayerNorm", node="/embeddings/LayerNorm")


def _attention(b: _Builder, x: str, keep: str, layer: int) -> str:
    config = b.config
    head = config.hidden // config.heads
    root, node = f"bert.encoder.layer.{layer}.attention", f"/encoder/layer.{layer}/attention"
    split = b.constant("split_heads", [0, 0, config.heads, head])
    parts: dict[str, str] = {}
    for part, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        y = b.linear(x, f"{root}.self.{part}", config.hidden, config.hidden, node=f"{node}/self/{part}")
        y = b.op("Reshape", f"{node}/self/{part}/Reshape", [y, split])
        parts[part] = b.op("Transpose", f"{node}/self/{part}/Transpose", [y], perm=perm)
    scores = b.op("MatMul", f"{node}/self/scores/MatMul", [parts["query"], parts["key"]])
    scores = b.op("Div", f"{node}/self/scores/Div", [scores, b.constant("sqrt_head", math.sqrt(head), "float32")])
    scores = b.op("Where", f"{node}/self/mask/Where", [keep, scores, b.constant("masked", MASKED, "float32")])
    weights = b.op("Softmax", f"{node}/self/Softmax", [scores], axis=-1)
    context = b.op("MatMul", f"{node}/self/context/MatMul", [weights, parts["value"]])
    context = b.op("Transpose", f"{node}/self/context/Transpose", [context], perm=[0, 2, 1, 3])
    context = b.op("Reshape", f"{node}/self/context/Reshape", [context, b.constant("merge", [0, 0, config.hidden])])
    y = b.linear(context, f"{root}.output.dense", config.hidden, config.hidden, node=f"{node}/output/dense")
    y = b.op("Add", f"{node}/output/Add", [y, x])
    return b.layer_norm(y, f"{root}.output.LayerNorm", node=f"{node}/output/LayerNorm")


def _feed_forward(b: _Builder, x: str, layer: int, output: str | None) -> str:
    config = b.config
    root, node = f"bert.encoder.layer.{layer}", f"/encoder/layer.{layer}"
    up, down = f"{root}.intermediate.dense", f"{root}.output.dense"
    y = b.linear(x, up, config.hidden, config.intermediate, node=f"{node}/intermediate/dense")
    y = b.gelu(y, f"{node}/intermediate/gelu")
    y = b.linear(y, down, config.intermediate, config.hidden, node=f"{node}/output/dense")
    y = b.op("Add", f"{node}/output/Add", [y, x])
    return b.layer_norm(y, f"{root}.output.LayerNorm", node=f"{node}/output/LayerNorm", output=output)


def _pooler(b: _Builder, x: str) -> None:
    bounds = [b.constant("zeros_1", [0]), b.constant("ones_1", [1]), b.constant("axis_1", [1])]
    first = b.op("Slice", "/pooler/Slice", [x, *bounds])
    first = b.op("Reshape", "/pooler/Reshape", [first, b.constant("first_token", [0, b.config.hidden])])
    y = b.linear(first, "bert.pooler.dense", b.config.hidden, b.config.hidden, node="/pooler/dense")
    b.op("Tanh", "/pooler/Tanh", [y], "pooler_output")


def _build(config: BertConfig, batch: int, seq: int, seed: int, sink: Sink) -> ModelProto:
    from onnx import TensorProto, helper

    _check(config, batch, seq)
    b = _Builder(config, seed, sink)
    mask = b.op("Cast", "/mask/Cast", ["attention_mask"], to=TensorProto.BOOL)
    keep = b.op("Reshape", "/mask/Reshape", [mask, b.constant("mask_shape", [0, 1, 1, seq])])
    x = _embeddings(b, seq)
    for layer in range(config.layers):
        x = _attention(b, x, keep, layer)
        x = _feed_forward(b, x, layer, "last_hidden_state" if layer == config.layers - 1 else None)
    _pooler(b, x)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [batch, seq])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [batch, seq, config.hidden]),
        helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, [batch, config.hidden]),
    ]
    graph = helper.make_graph(b.nodes, "bert", inputs, outputs, b.initializers)
    return helper.make_model(
        graph, producer_name="neuron_mlir.models", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
    )


def _check(config: BertConfig, batch: int, seq: int) -> None:
    for name, value in (("layers", config.layers), ("batch", batch), ("seq", seq)):
        if value < 1:
            raise NeuronError(f"bert: {name} must be at least 1", available=value)
    if config.hidden % config.heads:
        raise NeuronError(f"bert: hidden size {config.hidden} is not a multiple of {config.heads} heads")
    if seq > config.positions:
        raise NeuronError(
            "bert: the sequence is longer than the position table", needed=seq, available=config.positions
        )


def bert_model(
    config: BertConfig = BASE, *, layers: int | None = None, batch: int = 1, seq: int = SEQ, seed: int = 0
) -> ModelProto:
    """A BERT with seeded weights.

    Inputs (int64 [batch, seq]): `input_ids`, `attention_mask` (1 keep, 0 mask), `token_type_ids`. Outputs (float32):
    `last_hidden_state` [batch, seq, hidden] and `pooler_output` [batch, hidden]: tanh of a linear layer on the first
    token.

    Args:
        config: sizes. BASE is 440 MB of weights.
        layers: replaces the number of layers of `config`.
        seed: the same seed gives the same weights, layer by layer, whatever the number of layers.

    Raises:
        NeuronError: sizes that do not go together.
    """
    config = config if layers is None else replace(config, layers=layers)
    return _build(config, batch, seq, seed, inline)


def write_bert(
    path: str | Path,
    config: BertConfig = BASE,
    *,
    layers: int | None = None,
    batch: int = 1,
    seq: int = SEQ,
    seed: int = 0,
    external_data: bool = False,
) -> Path:
    """Writes the model of `bert_model` to `path`.

    Args:
        external_data: puts the weights into `<path>.data`, one at a time: any size, little memory. A file without it
            stops at 2 GB.

    Raises:
        NeuronError: sizes that do not go together.
    """
    path = Path(path)
    config = config if layers is None else replace(config, layers=layers)
    _check(config, batch, seq)
    return write_model(path, lambda sink: _build(config, batch, seq, seed, sink), external_data=external_data)


def bert_inputs(
    config: BertConfig = BASE, *, batch: int = 1, seq: int = SEQ, seed: int = 0, length: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """Random inputs: tokens below the vocabulary size, the first half of the sequence of type 0, positions from
    `length` on (default: three quarters) masked."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((batch, seq), np.int64)
    mask[:, : length or max(1, seq * 3 // 4)] = 1
    types = np.zeros((batch, seq), np.int64)
    types[:, seq // 2 :] = 1
    return {
        "input_ids": rng.integers(0, config.vocabulary, (batch, seq), dtype=np.int64),
        "attention_mask": mask,
        "token_type_ids": types,
    }
