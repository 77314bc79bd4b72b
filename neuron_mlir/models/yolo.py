"""YOLOv3 with seeded weights: Darknet-53 and a feature pyramid with three heads.

Redmon and Farhadi, "YOLOv3: An Incremental Improvement" (2018). 61,949,149 trained parameters at full width and 80
classes. The outputs are the raw maps of the heads, before boxes are decoded: 3 anchors times 4 coordinates, an
objectness and the classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuron_mlir.models._network import Network, Tensor, check_at_least, check_multiple, scaled
from neuron_mlir.models._sink import Sink, inline

if TYPE_CHECKING:
    from onnx import ModelProto

BLOCKS = (1, 2, 8, 8, 4)
SLOPE = 0.1
"""Of the leaky ReLU."""
ANCHORS = 3


def build_yolov3(
    sink: Sink = inline,
    *,
    size: int = 416,
    batch: int = 1,
    width: float = 1.0,
    classes: int = 80,
    folded: bool = False,
    seed: int = 0,
) -> ModelProto:
    """YOLOv3: input `images` [batch, 3, size, size], a multiple of 32; outputs `heads_32`, `heads_16` and `heads_8`,
    [batch, 3 * (5 + classes), size / stride, size / stride] for these strides.

    Args:
        sink: where weights go.
        width: factor on all numbers of channels.
        folded: batch norms multiplied into the convolutions.

    Raises:
        NeuronError: sizes that cannot be.
    """
    check_at_least("yolov3", batch=batch, classes=classes)
    check_multiple("yolov3", size, 32)
    net = Network("yolov3", seed, sink, folded=folded)
    x = net.input("images", (batch, 3, size, size))
    x = _conv(net, x, "conv0", scaled(32, width), 3)
    routes: list[Tensor] = []
    for stage, blocks in enumerate(BLOCKS):
        channels = scaled(64 * 2**stage, width)
        x = _conv(net, x, f"stage{stage + 1}.down", channels, 3, 2)
        for block in range(blocks):
            name = f"stage{stage + 1}.{block}"
            y = _conv(net, x, f"{name}.conv1", scaled(32 * 2**stage, width), 1)
            y = _conv(net, y, f"{name}.conv2", channels, 3)
            x = net.add(x, y, f"{name}.add")
        routes.append(x)
    outputs = ANCHORS * (5 + classes)
    heads: list[tuple[Tensor, str]] = []
    for stride, channels, route in ((32, 512, None), (16, 256, routes[3]), (8, 128, routes[2])):
        name = f"neck{stride}"
        if route is not None:
            x = _conv(net, x, f"{name}.lateral", scaled(channels, width), 1)
            x = net.concat([net.upsample(x, f"{name}.upsample", 2), route], f"{name}.concat")
        narrow, wide = scaled(channels, width), scaled(2 * channels, width)
        for i in range(5):
            x = _conv(net, x, f"{name}.conv{i}", wide if i % 2 else narrow, 3 if i % 2 else 1)
        y = _conv(net, x, f"head{stride}.conv", wide, 3)
        heads.append((net.conv(y, f"head{stride}.out", outputs, 1, gain=1.0), f"heads_{stride}"))
    for head, label in heads:
        net.output(head, label)
    return net.model()


def _conv(net: Network, x: Tensor, name: str, channels: int, kernel: int, stride: int = 1) -> Tensor:
    return net.leaky_relu(net.conv_norm(x, name, channels, kernel, stride), f"{name}.leaky", SLOPE)
