"""U-Net with seeded weights.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation" (2015): four levels down by max
pooling and up by transposed convolutions of 2 x 2, with the map of each level concatenated on the way up. Its
convolutions are padded here, as most implementations have it, so that the result is as large as the image. 31.0 M
parameters at full width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuron_mlir.models._network import Network, Tensor, check_at_least, check_multiple, scaled
from neuron_mlir.models._sink import Sink, inline

if TYPE_CHECKING:
    from onnx import ModelProto

CHANNELS = (64, 128, 256, 512, 1024)


def build_unet(
    sink: Sink = inline,
    *,
    size: int = 512,
    batch: int = 1,
    width: float = 1.0,
    channels: int = 1,
    classes: int = 2,
    seed: int = 0,
) -> ModelProto:
    """U-Net: input `image` [batch, channels, size, size], a multiple of 16; output `scores`, as large with `classes`.

    Args:
        sink: where weights go.
        width: factor on the numbers of channels inside.
        channels: of the image.

    Raises:
        NeuronError: sizes that cannot be.
    """
    check_at_least("unet", batch=batch, channels=channels, classes=classes)
    check_multiple("unet", size, 2 ** (len(CHANNELS) - 1))
    net = Network("unet", seed, sink)
    x = net.input("image", (batch, channels, size, size))
    sizes = [scaled(count, width) for count in CHANNELS]
    skips: list[Tensor] = []
    for level, count in enumerate(sizes[:-1]):
        x = _double(net, x, f"down{level}", count)
        skips.append(x)
        x = net.max_pool(x, f"down{level}.pool", 2, 2)
    x = _double(net, x, "bottom", sizes[-1])
    for level in reversed(range(len(sizes) - 1)):
        x = net.conv_transpose(x, f"up{level}.upsample", sizes[level], 2)
        x = net.concat([skips[level], x], f"up{level}.concat")
        x = _double(net, x, f"up{level}", sizes[level])
    net.output(net.conv(x, "scores", classes, 1, gain=1.0), "scores")
    return net.model()


def _double(net: Network, x: Tensor, name: str, channels: int) -> Tensor:
    for i in (1, 2):
        x = net.relu(net.conv(x, f"{name}.conv{i}", channels, 3), f"{name}.relu{i}")
    return x
