"""VGG-16 with seeded weights.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2014), configuration D:
138,357,544 parameters for 224 x 224 images and 1000 classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuron_mlir.models._network import Network, check_at_least, check_multiple, scaled
from neuron_mlir.models._sink import Sink, inline

if TYPE_CHECKING:
    from onnx import ModelProto

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels of each stage and how many convolutions it has."""
HIDDEN = 4096


def build_vgg16(
    sink: Sink = inline, *, size: int = 224, batch: int = 1, width: float = 1.0, classes: int = 1000, seed: int = 0
) -> ModelProto:
    """VGG-16: input `data` [batch, 3, size, size], a multiple of 32; output `logits` [batch, classes].

    The first dense layer takes the whole last map, so its weight grows with the image.

    Args:
        sink: where weights go.
        width: factor on all numbers of channels and on the dense layers.

    Raises:
        NeuronError: sizes that cannot be.
    """
    check_at_least("vgg16", batch=batch, classes=classes)
    check_multiple("vgg16", size, 32)
    net = Network("vgg16", seed, sink)
    x = net.input("data", (batch, 3, size, size))
    for stage, (channels, convolutions) in enumerate(STAGES, 1):
        for i in range(1, convolutions + 1):
            x = net.relu(net.conv(x, f"conv{stage}_{i}", scaled(channels, width), 3), f"relu{stage}_{i}")
        x = net.max_pool(x, f"pool{stage}", 2, 2)
    x = net.flatten(x, "flatten")
    for i in (6, 7):
        x = net.relu(net.linear(x, f"fc{i}", scaled(HIDDEN, width)), f"relu{i}")
    net.output(net.linear(x, "fc8", classes, gain=1.0), "logits")
    return net.model()
