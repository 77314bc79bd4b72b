"""The nine image networks that the `onnx` package ships for its own tests, with seeded weights.

Those files hold the graphs of AlexNet, DenseNet-121, Inception v1 and v2, ResNet-50, ShuffleNet, SqueezeNet, VGG-19 and
ZFNet in full size, but most weights are `ConstantOfShape` nodes of one value (some batch-norm vectors kept theirs). A
network of equal weights tells little: every channel is the same. `light_model` gives each weight values by the role it
plays, so that activations stay of order 1 through all layers and the class scores differ from one another:

- kernels of Conv and Gemm: normal, with half of the mean over each output's inputs removed, scaled to an output
  variance of 2 (He et al., 2015; centred as in Qiao et al., "Weight Standardization", 2019: a ReLU's output has a large
  mean, which would otherwise drown what depends on the input); the classifier's to scores of standard deviation 1;
- biases: standard deviation 0.1;
- batch norm: scale in [0.8, 1.2), bias of standard deviation 0.1, small mean, variance near that of its input;
- separate Mul and Add after a batch norm (DenseNet, Inception v2): scale in [0.8, 1.2), bias of standard deviation 0.1.

"Of its input" comes from carrying a mean and a second moment per tensor through the graph, for an input of mean 0 and
variance 1: exact over the draw of the weights for what is linear, the half-normal formula for ReLU, rules of thumb for
pooling. Nothing is run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.errors import NeuronError
from neuron_mlir.models import _moments as moments
from neuron_mlir.models._moments import Moments
from neuron_mlir.models._sink import Sink, inline, write_model

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Array = NDArray[Any]

LIGHT_MODELS: tuple[str, ...] = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
"""Names of the networks, as in the files of the onnx package."""

SCORE_STD = 1.0
"""Standard deviation of the class scores aimed at. A softmax turns an absolute error of a score into a relative one:
with 2, the rounding of sixteen float32 convolutions shows as 1.2e-5 of the probabilities of VGG-19."""

CENTRING = 0.5
"""Which part of a kernel's mean is removed. With none, two random images score the same to 1 in 1000: only the mean of
the activations is seen. With all, rounding differences grow 1.2 times per layer, to 1e-4 of the result in ResNet-50.
With half, scores of two random images still differ by a fifth (correlation 0.98), and rounding stays below 1e-5."""

_ALIASES = {"alexnet": "bvlc_alexnet", "zfnet": "zfnet512", "densenet": "densenet121", "resnet": "resnet50"}


def light_path(name: str) -> Path:
    """The file of that network in the installed `onnx` package.

    Raises:
        NeuronError: an unknown name, or an onnx package without its test data.
    """
    import onnx.backend.test

    name = _ALIASES.get(name, name)
    if name not in LIGHT_MODELS:
        raise NeuronError(f"there is no light model '{name}'", advice=f"one of {', '.join(LIGHT_MODELS)}")
    root = Path(onnx.backend.test.__file__ or "").parent
    path = root / "data" / "light" / f"light_{name}.onnx"
    if not path.exists():
        raise NeuronError(f"the installed onnx package does not ship '{path.name}'", advice="onnx 1.16 or later")
    return path


def light_model(name: str, *, seed: int = 0) -> ModelProto:
    """One of `LIGHT_MODELS` with seeded weights as initializers, and one input: the image.

    Raises:
        NeuronError: an unknown name.
    """
    return _build(name, seed, inline)


def write_light(path: str | Path, name: str, *, seed: int = 0, external_data: bool = False) -> Path:
    """Writes the model of `light_model` to `path`.

    Args:
        external_data: puts the weights into `<path>.data`, one at a time: little memory.

    Raises:
        NeuronError: an unknown name.
    """
    light_path(name)
    return write_model(Path(path), lambda sink: _build(name, seed, sink), external_data=external_data)


def _build(name: str, seed: int, sink: Sink) -> ModelProto:
    import onnx

    model = onnx.load(light_path(name))
    _Filler(model, seed, sink).run()
    return model


def light_inputs(model: ModelProto, *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """A standard normal image for each input of the model."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, NDArray[np.float32]] = {}
    for value in model.graph.input:
        shape = [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        inputs[value.name] = rng.standard_normal(shape, dtype=np.float32)
    return inputs


class _Filler:
    """Walks the graph once in order: gives each node's weights values, then carries the moments over it."""

    def __init__(self, model: ModelProto, seed: int, sink: Sink) -> None:
        from onnx import numpy_helper, shape_inference

        graph = model.graph
        self.model = model
        self.producer = {output: node for node in graph.node for output in node.output}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        inferred = shape_inference.infer_shapes(model).graph
        self.shapes: dict[str, tuple[int, ...]] = {
            value.name: tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
            for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        self.integers = {name: numpy_helper.to_array(t) for name, t in self.stored.items() if t.data_type == 7}
        self.weights: dict[str, TensorProto] = {}
        self.moments: dict[str, Moments] = {}
        self.seed = seed
        self.sink = sink

    def rng(self) -> np.random.Generator:
        """A stream of its own for each weight, by its place in the network."""
        return np.random.default_rng([self.seed, len(self.weights)])

    def run(self) -> None:
        graph = self.model.graph
        for value in graph.input:
            if value.name not in self.stored and value.type.tensor_type.elem_type == 1:
                self.moments[value.name] = Moments(0.0, 1.0)
        for node in graph.node:
            found = self.visit(node)
            if found is not None:
                self.moments[node.output[0]] = found
        self.rewrite()

    def base(self, name: str) -> str:
        """The stored tensor or ConstantOfShape output behind a weight operand, through Reshape and Unsqueeze."""
        while name in self.producer and self.producer[name].op_type in ("Reshape", "Unsqueeze"):
            name = self.producer[name].input[0]
        return name

    def set(self, name: str, values: Array) -> None:
        base = self.base(name)
        values = values.astype(np.float32, copy=False).reshape(self.shapes[base])
        self.weights[base] = self.sink(base, values)

    def rewrite(self) -> None:
        """Replaces filled tensors by initializers; drops what made them, and inputs that are initializers."""
        graph = self.model.graph
        nodes = [node for node in graph.node if node.output[0] not in self.weights]
        used = {name for node in nodes for name in node.input}
        kept = [t for name, t in self.stored.items() if name in used and name not in self.weights]
        inputs = [value for value in graph.input if value.name in used and value.name not in self.stored]
        for field in ("node", "initializer", "input"):
            graph.ClearField(field)
        graph.node.extend(nodes)
        graph.input.extend(inputs)
        graph.initializer.extend(kept)
        for name in list(self.weights):
            graph.initializer.append(self.weights.pop(name))
        self.model.ir_version = 8  # from version 4 on, initializers need not be inputs

    def visit(self, node: NodeProto) -> Moments | None:
        x = self.moments.get(node.input[0]) if node.input else None
        if x is None:
            return None
        match node.op_type:
            case "Conv" | "Gemm":
                return self.linear(node, x)
            case "BatchNormalization":
                return self.batch_norm(node, x)
            case "Mul" | "Add" if node.input[1] not in self.moments:
                return self.affine(node, x)
            case "Sum" | "Add":
                terms = [self.moments[name] for name in node.input]
                return moments.total(terms)
            case "Relu":
                return moments.relu(x)
            case "MaxPool":
                return moments.max_pool(x)
            case "AveragePool" | "GlobalAveragePool":
                return moments.mean_pool(x)
            case "Concat":
                return self.concat(node)
            case _:
                return x

    def linear(self, node: NodeProto, x: Moments) -> Moments:
        attributes = {a.name: a for a in node.attribute}
        shape = self.shapes[node.input[1]]
        outputs_first = node.op_type == "Conv" or ("transB" in attributes and bool(attributes["transB"].i))
        inputs = tuple(range(1, len(shape))) if outputs_first else (0,)
        fan_in = math.prod(shape[axis] for axis in inputs)
        values = self.rng().standard_normal(shape, dtype=np.float32)
        square = x.square
        if outputs_first and shape[1] > 1:  # a depthwise kernel without its mean would only see edges
            values -= np.float32(CENTRING) * values.mean(axis=inputs, keepdims=True)
            square -= (1.0 - (1.0 - CENTRING) ** 2) * x.mean * x.mean
        gain = SCORE_STD if self.is_classifier(node) else math.sqrt(2.0)
        values *= np.float32(gain / math.sqrt(fan_in * square))
        self.set(node.input[1], values)
        if len(node.input) > 2:
            self.set(node.input[2], 0.1 * self.rng().standard_normal(shape[0] if outputs_first else shape[1]))
        return Moments(0.0, gain * gain + 0.01)

    def is_classifier(self, node: NodeProto) -> bool:
        """Whether only pooling and the like stand between the node and the softmax or the end."""
        name = node.output[0]
        while self.consumers.get(name):
            following = self.consumers[name][0]
            if following.op_type == "Softmax":
                return True
            if following.op_type not in ("Reshape", "Relu", "GlobalAveragePool", "AveragePool", "Dropout"):
                return False
            name = following.output[0]
        return True

    def batch_norm(self, node: NodeProto, x: Moments) -> Moments:
        _, scale, bias, mean, var = node.input
        channels = self.shapes[scale][0]
        self.set(scale, self.rng().uniform(0.8, 1.2, channels))
        self.set(bias, 0.1 * self.rng().standard_normal(channels))
        self.set(mean, x.mean + 0.05 * math.sqrt(x.var) * self.rng().standard_normal(channels))
        self.set(var, x.var * self.rng().uniform(0.9, 1.1, channels))
        return Moments(0.0, 1.03)

    def affine(self, node: NodeProto, x: Moments) -> Moments:
        """A scale or a shift per channel as an op of its own."""
        channels = math.prod(self.shapes[self.base(node.input[1])])
        if node.op_type == "Mul":
            self.set(node.input[1], self.rng().uniform(0.8, 1.2, channels))
            return Moments(x.mean, 1.013 * x.square)
        self.set(node.input[1], 0.1 * self.rng().standard_normal(channels))
        return Moments(x.mean, x.square + 0.01)

    def concat(self, node: NodeProto) -> Moments:
        sizes = [self.shapes[name][1] for name in node.input]
        return moments.joined(sizes, [self.moments[name] for name in node.input])
