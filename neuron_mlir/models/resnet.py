"""ResNet-18 and ResNet-50 for square images of any size, with seeded weights.

He et al., "Deep Residual Learning for Image Recognition" (2015), in the form known as v1.5: a block that halves the
image does so in its 3x3 convolution, as torchvision's models do. For 1000 classes 11,689,512 and 25,557,032 parameters.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from neuron_mlir.models._network import Network, Tensor, check_at_least, scaled
from neuron_mlir.models._sink import Sink, inline

if TYPE_CHECKING:
    from onnx import ModelProto

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
"""Residual blocks of each of the four groups, by depth."""


def build_resnet(
    sink: Sink = inline,
    *,
    depth: int = 50,
    size: int = 224,
    batch: int = 1,
    width: float = 1.0,
    classes: int = 1000,
    folded: bool = False,
    seed: int = 0,
) -> ModelProto:
    """A ResNet: input `data` [batch, 3, size, size], output `logits` [batch, classes].

    Args:
        sink: where weights go.
        depth: 18 (blocks of two 3x3 convolutions) or 50 (bottlenecks).
        width: factor on all numbers of channels.
        folded: batch norms multiplied into the convolutions.

    Raises:
        NeuronError: sizes that cannot be.
    """
    name = f"resnet{depth}"
    check_at_least(name, batch=batch, classes=classes)
    check_at_least(name, 32, size=size)
    net = Network(name, seed, sink, folded=folded)
    make_block = _basic if depth == 18 else _bottleneck
    x = net.input("data", (batch, 3, size, size))
    x = net.relu(net.conv_norm(x, "conv1", scaled(64, width), 7, 2), "relu1")
    x = net.max_pool(x, "pool1", 3, 2, 1)
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = make_block(net, x, f"layer{stage + 1}.{block}", scaled(64 * 2**stage, width), stride)
    x = net.flatten(net.global_mean(x, "pool5"), "flatten")
    net.output(net.linear(x, "fc", classes, gain=1.0), "logits")
    return net.model()


build_resnet18 = partial(build_resnet, depth=18)
build_resnet50 = partial(build_resnet, depth=50)


def _basic(net: Network, x: Tensor, name: str, channels: int, stride: int) -> Tensor:
    y = net.relu(net.conv_norm(x, f"{name}.conv1", channels, 3, stride), f"{name}.relu1")
    y = net.conv_norm(y, f"{name}.conv2", channels, 3)
    if stride > 1 or x.channels != channels:
        x = net.conv_norm(x, f"{name}.downsample", channels, 1, stride)
    return net.relu(net.add(y, x, f"{name}.add"), f"{name}.relu2")


def _bottleneck(net: Network, x: Tensor, name: str, channels: int, stride: int) -> Tensor:
    y = net.relu(net.conv_norm(x, f"{name}.conv1", channels, 1), f"{name}.relu1")
    y = net.relu(net.conv_norm(y, f"{name}.conv2", channels, 3, stride), f"{name}.relu2")
    y = net.conv_norm(y, f"{name}.conv3", 4 * channels, 1)
    if stride > 1 or x.channels != 4 * channels:
        x = net.conv_norm(x, f"{name}.downsample", 4 * channels, 1, stride)
    return net.relu(net.add(y, x, f"{name}.add"), f"{name}.relu3")
