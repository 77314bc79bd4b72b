"""Builds an ONNX graph layer by layer, with seeded weights scaled so that activations stay of order 1.

Each tensor carries its moments (see `_moments`); a weight is drawn for the moments of what it multiplies, by the rules
of `neuron_mlir.models.light`. A weight's values depend on the seed and its name alone, so that the same layer of a
network with more layers, or with batch norm folded into its convolutions, has the same weights.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.errors import NeuronError
from neuron_mlir.models import _moments as moments
from neuron_mlir.models._moments import Moments
from neuron_mlir.models._sink import Sink, inline

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

F32 = NDArray[np.float32]

OPSET = 13
IR_VERSION = 8
EPSILON = 1e-5
"""Of batch norm."""
CENTRING = 0.5
"""Which part of a kernel's mean is removed; see `neuron_mlir.models.light`."""
RECTIFIED = math.sqrt(2.0)
"""Gain of a layer that a ReLU follows (He et al., 2015)."""


@dataclass(frozen=True)
class Tensor:
    """A value of the graph."""

    name: str
    shape: tuple[int, ...]
    moments: Moments

    @property
    def channels(self) -> int:
        """Size of axis 1."""
        return self.shape[1]


@dataclass(frozen=True)
class _Affine:
    """A scale and a shift per channel: what a batch norm comes to."""

    scale: F32
    shift: F32


class Network:
    """Collects nodes and weights. Nodes are named by their path in the network, and so are their outputs."""

    def __init__(self, name: str, seed: int, sink: Sink, *, folded: bool = False) -> None:
        """`folded`: batch norms are multiplied into the convolutions before them."""
        self.name = name
        self.folded = folded
        self._seed = seed
        self._sink = sink
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._constants: set[str] = set()

    # Pieces

    def input(self, name: str, shape: Sequence[int], *, integers: bool = False) -> Tensor:
        """A graph input: standard normal floats, or int64 numbers."""
        from onnx import TensorProto, helper

        kind = TensorProto.INT64 if integers else TensorProto.FLOAT
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return Tensor(name, tuple(shape), Moments(0.0, 1.0))

    def output(self, x: Tensor, name: str) -> None:
        """Makes a value, the result of the last node that was added or an earlier one, an output of that name."""
        from onnx import TensorProto, helper

        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape)))
        for node in self._nodes:
            for field in (node.input, node.output):
                for index, found in enumerate(field):
                    if found == x.name:
                        field[index] = name

    def random(self, name: str) -> np.random.Generator:
        """The stream of numbers of a weight."""
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())])

    def store(self, name: str, values: F32) -> str:
        """Enters a weight."""
        self._initializers.append(self._sink(name, values.astype(np.float32, copy=False)))
        return name

    def constant(self, name: str, values: Any, dtype: str = "int64") -> str:
        """Enters a parameter (a shape, axes, scales), once."""
        if name not in self._constants:
            self._constants.add(name)
            self._initializers.append(inline(name, np.array(values, dtype=dtype)))
        return name

    def op(self, op_type: str, name: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node; gives the names of its outputs."""
        from onnx import helper

        names = [f"{name}:{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(op_type, list(inputs), names, name=name, **attributes))
        return names

    def unary(self, op_type: str, x: Tensor, name: str, found: Moments | None = None, **attributes: Any) -> Tensor:
        """A node that keeps the shape."""
        return Tensor(self.op(op_type, name, [x.name], **attributes)[0], x.shape, found or x.moments)

    def model(self) -> ModelProto:
        """The finished model."""
        from onnx import helper

        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._initializers)
        return helper.make_model(
            graph,
            producer_name="neuron_mlir.models",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )

    # Layers with weights

    def conv(
        self, x: Tensor, name: str, channels: int, kernel: int, stride: int = 1, *, gain: float = RECTIFIED
    ) -> Tensor:
        """A convolution with a bias, padded by half of the (odd) kernel; results of variance `gain` squared."""
        values, variance = self._kernel(x, name, channels, kernel, gain)
        weights = [self.store(f"{name}.weight", values), self._bias(name, channels)]
        return self._conv(x, name, weights, channels, kernel, stride, Moments(0.0, variance + 0.01))

    def conv_norm(self, x: Tensor, name: str, channels: int, kernel: int, stride: int = 1) -> Tensor:
        """A convolution without bias and a batch norm; one convolution with a bias where norms are folded."""
        values, variance = self._kernel(x, name, channels, kernel, RECTIFIED)
        affine = self._norm(f"{name}.norm", channels, variance)
        after = Moments(0.0, 1.03)
        if self.folded:
            values *= affine.scale.reshape(-1, 1, 1, 1)
            weights = [self.store(f"{name}.weight", values), self.store(f"{name}.bias", affine.shift)]
            return self._conv(x, name, weights, channels, kernel, stride, after)
        y = self._conv(x, name, [self.store(f"{name}.weight", values)], channels, kernel, stride, after)
        parts = [f"{name}.norm.{part}" for part in ("weight", "bias", "mean", "var")]
        return self.unary_with("BatchNormalization", y, f"{name}.norm", parts, epsilon=EPSILON)

    def unary_with(self, op_type: str, x: Tensor, name: str, others: Sequence[str], **attributes: Any) -> Tensor:
        """A node with weights that keeps shape and moments."""
        return Tensor(self.op(op_type, name, [x.name, *others], **attributes)[0], x.shape, x.moments)

    def _conv(
        self,
        x: Tensor,
        name: str,
        weights: Sequence[str],
        channels: int,
        kernel: int,
        stride: int,
        found: Moments,
    ) -> Tensor:
        pad = kernel // 2
        y = self.op(
            "Conv",
            name,
            [x.name, *weights],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
        )
        height, width = (_windows(size, kernel, stride, pad) for size in x.shape[2:])
        return Tensor(y[0], (x.shape[0], channels, height, width), found)

    def _kernel(self, x: Tensor, name: str, channels: int, kernel: int, gain: float) -> tuple[F32, float]:
        """Values of a convolution's weight and the variance of its results."""
        fan_in = x.channels * kernel * kernel
        values = self.random(f"{name}.weight").standard_normal((channels, x.channels, kernel, kernel), np.float32)
        values -= np.float32(CENTRING) * values.mean(axis=(1, 2, 3), keepdims=True)
        mean = x.moments.mean
        square = x.moments.square - (1.0 - (1.0 - CENTRING) ** 2) * mean * mean
        values *= np.float32(gain / math.sqrt(fan_in * square))
        return values, gain * gain

    def _bias(self, name: str, channels: int) -> str:
        values = self.random(f"{name}.bias").standard_normal(channels, np.float32)
        return self.store(f"{name}.bias", np.float32(0.1) * values)

    def _norm(self, name: str, channels: int, variance: float) -> _Affine:
        """Draws a batch norm over results of mean 0; its vectors are stored unless norms are folded."""
        scale = self.random(f"{name}.weight").uniform(0.8, 1.2, channels)
        bias = 0.1 * self.random(f"{name}.bias").standard_normal(channels)
        mean = 0.05 * math.sqrt(variance) * self.random(f"{name}.mean").standard_normal(channels)
        var = variance * self.random(f"{name}.var").uniform(0.9, 1.1, channels)
        if not self.folded:
            for part, values in (("weight", scale), ("bias", bias), ("mean", mean), ("var", var)):
                self.store(f"{name}.{part}", values.astype(np.float32))
        factor = scale / np.sqrt(var + EPSILON)
        return _Affine(factor.astype(np.float32), (bias - mean * factor).astype(np.float32))

    def conv_transpose(self, x: Tensor, name: str, channels: int, scale: int) -> Tensor:
        """A transposed convolution with a bias whose kernel is its stride: every element becomes `scale` x `scale`."""
        values = self.random(f"{name}.weight").standard_normal((x.channels, channels, scale, scale), np.float32)
        values -= np.float32(CENTRING) * values.mean(axis=0, keepdims=True)
        mean = x.moments.mean
        square = x.moments.square - (1.0 - (1.0 - CENTRING) ** 2) * mean * mean
        values *= np.float32(1.0 / math.sqrt(x.channels * square))
        weights = [self.store(f"{name}.weight", values), self._bias(name, channels)]
        y = self.op("ConvTranspose", name, [x.name, *weights], kernel_shape=[scale] * 2, strides=[scale] * 2)
        return Tensor(y[0], (x.shape[0], channels, *(size * scale for size in x.shape[2:])), Moments(0.0, 1.01))

    def linear(self, x: Tensor, name: str, outputs: int, *, gain: float = RECTIFIED) -> Tensor:
        """A dense layer with a bias on a matrix; results of variance `gain` squared."""
        inputs = x.shape[1]
        values = self.random(f"{name}.weight").standard_normal((outputs, inputs), np.float32)
        values -= np.float32(CENTRING) * values.mean(axis=1, keepdims=True)
        mean = x.moments.mean
        square = x.moments.square - (1.0 - (1.0 - CENTRING) ** 2) * mean * mean
        values *= np.float32(gain / math.sqrt(inputs * square))
        weights = [self.store(f"{name}.weight", values), self._bias(name, outputs)]
        y = self.op("Gemm", name, [x.name, *weights], transB=1)
        return Tensor(y[0], (x.shape[0], outputs), Moments(0.0, gain * gain + 0.01))

    # Layers without

    def relu(self, x: Tensor, name: str) -> Tensor:
        return self.unary("Relu", x, name, moments.relu(x.moments))

    def leaky_relu(self, x: Tensor, name: str, alpha: float) -> Tensor:
        return self.unary("LeakyRelu", x, name, moments.leaky_relu(x.moments, alpha), alpha=alpha)

    def max_pool(self, x: Tensor, name: str, kernel: int, stride: int, pad: int = 0) -> Tensor:
        y = self.op(
            "MaxPool",
            name,
            [x.name],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
        )
        spatial = (_windows(size, kernel, stride, pad) for size in x.shape[2:])
        return Tensor(y[0], (*x.shape[:2], *spatial), moments.max_pool(x.moments))

    def global_mean(self, x: Tensor, name: str) -> Tensor:
        y = self.op("GlobalAveragePool", name, [x.name])
        return Tensor(y[0], (*x.shape[:2], *(1 for _ in x.shape[2:])), moments.mean_pool(x.moments))

    def flatten(self, x: Tensor, name: str) -> Tensor:
        return Tensor(self.op("Flatten", name, [x.name], axis=1)[0], (x.shape[0], math.prod(x.shape[1:])), x.moments)

    def add(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        y = self.op("Add", name, [a.name, b.name])
        return Tensor(y[0], a.shape, moments.total([a.moments, b.moments]))

    def concat(self, parts: Sequence[Tensor], name: str) -> Tensor:
        """Along axis 1."""
        y = self.op("Concat", name, [part.name for part in parts], axis=1)
        sizes = [part.channels for part in parts]
        shape = (parts[0].shape[0], sum(sizes), *parts[0].shape[2:])
        return Tensor(y[0], shape, moments.joined(sizes, [part.moments for part in parts]))

    def upsample(self, x: Tensor, name: str, scale: int) -> Tensor:
        """Nearest neighbours, as exporters write them."""
        scales = self.constant(f"scales_{scale}", [1.0, 1.0, float(scale), float(scale)], "float32")
        y = self.op(
            "Resize",
            name,
            [x.name, "", scales],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return Tensor(y[0], (*x.shape[:2], *(size * scale for size in x.shape[2:])), x.moments)


def _windows(size: int, kernel: int, stride: int, pad: int) -> int:
    return (size + 2 * pad - kernel) // stride + 1


def scaled(channels: int, width: float) -> int:
    """A number of channels times a width factor, a multiple of 4 from 4 on; itself at width 1."""
    return channels if width == 1.0 else max(4, round(channels * width / 4) * 4)


def check_at_least(network: str, least: int = 1, /, **sizes: float) -> None:
    """Raises `NeuronError` for a size below `least`."""
    for name, value in sizes.items():
        if value < least:
            raise NeuronError(f"{network}: {name} must be at least {least}", available=value)


def check_multiple(network: str, size: int, step: int) -> None:
    """Raises `NeuronError` for an image that the network's strides do not divide."""
    if size < step or size % step:
        raise NeuronError(
            f"{network}: the image size must be a multiple of {step}",
            available=size,
            advice=f"{max(step, round(size / step) * step)}",
        )
