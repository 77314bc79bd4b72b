"""YOLOv4 with seeded weights: CSPDarknet-53 with mish, spatial pyramid pooling, and a path-aggregation neck.

Bochkovskiy, Wang and Liao, "YOLOv4: Optimal Speed and Accuracy of Object Detection" (2020), with the layers of their
configuration `yolov4.cfg`: 64,363,101 parameters at full width and 80 classes, without those of batch norms that are
not trained. Outputs are the raw maps of the heads, as of `neuron_mlir.models.yolo`. Mish is written as exporters write
it: x * tanh(softplus(x)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuron_mlir.models import _moments as moments
from neuron_mlir.models._network import Network, Tensor, check_at_least, check_multiple, scaled
from neuron_mlir.models._sink import Sink, inline
from neuron_mlir.models.yolo import ANCHORS, SLOPE

if TYPE_CHECKING:
    from onnx import ModelProto

BLOCKS = (1, 2, 8, 8, 4)
WINDOWS = (13, 9, 5)
"""Of the pyramid's pooling, in the order they are joined."""


def build_yolov4(
    sink: Sink = inline,
    *,
    size: int = 608,
    batch: int = 1,
    width: float = 1.0,
    classes: int = 80,
    folded: bool = False,
    seed: int = 0,
) -> ModelProto:
    """YOLOv4: input `images` [batch, 3, size, size], a multiple of 32; outputs `heads_8`, `heads_16` and `heads_32`,
    [batch, 3 * (5 + classes), size / stride, size / stride] for these strides.

    Args:
        sink: where weights go.
        width: factor on all numbers of channels.
        folded: batch norms multiplied into the convolutions.

    Raises:
        NeuronError: sizes that cannot be.
    """
    check_at_least("yolov4", batch=batch, classes=classes)
    check_multiple("yolov4", size, 32)
    net = _Yolo(Network("yolov4", seed, sink, folded=folded), width)
    small, middle, x = net.backbone(net.net.input("images", (batch, 3, size, size)))
    deep = net.pyramid(x)
    # From the deepest map up, and down again.
    wide = net.join(deep, middle, "up16", 256)
    fine = net.join(wide, small, "up8", 128)
    heads = [net.head(fine, "head8", 256, ANCHORS * (5 + classes))]
    for name, channels, other in (("down16", 256, wide), ("down32", 512, deep)):
        fine = net.leaky(fine, f"{name}.down", channels, 3, 2)
        fine = net.five(net.net.concat([fine, other], f"{name}.concat"), name, channels)
        heads.append(net.head(fine, f"head{name[4:]}", 2 * channels, ANCHORS * (5 + classes)))
    for head, stride in zip(heads, (8, 16, 32), strict=True):
        net.net.output(head, f"heads_{stride}")
    return net.net.model()


class _Yolo:
    """The parts; numbers of channels are those of full width."""

    def __init__(self, net: Network, width: float) -> None:
        self.net, self.width = net, width

    def mish(self, x: Tensor, name: str, channels: int, kernel: int, stride: int = 1) -> Tensor:
        """A convolution, its batch norm, and mish."""
        net = self.net
        y = net.conv_norm(x, name, scaled(channels, self.width), kernel, stride)
        soft = net.unary("Softplus", y, f"{name}.softplus")
        gate = net.unary("Tanh", soft, f"{name}.tanh")
        out = net.op("Mul", f"{name}.mish", [y.name, gate.name])[0]
        return Tensor(out, y.shape, moments.mish(y.moments))

    def leaky(self, x: Tensor, name: str, channels: int, kernel: int, stride: int = 1) -> Tensor:
        """A convolution, its batch norm, and a leaky ReLU."""
        y = self.net.conv_norm(x, name, scaled(channels, self.width), kernel, stride)
        return self.net.leaky_relu(y, f"{name}.leaky", SLOPE)

    def backbone(self, x: Tensor) -> list[Tensor]:
        """CSPDarknet-53: the maps of strides 8, 16 and 32."""
        routes: list[Tensor] = []
        x = self.mish(x, "conv0", 32, 3)
        for stage, blocks in enumerate(BLOCKS):
            name, channels = f"stage{stage + 1}", 64 * 2**stage
            # The first stage does not halve its channels.
            part = channels // 2 if stage else channels
            x = self.mish(x, f"{name}.down", channels, 3, 2)
            other = self.mish(x, f"{name}.part1", part, 1)
            x = self.mish(x, f"{name}.part2", part, 1)
            for block in range(blocks):
                y = self.mish(x, f"{name}.{block}.conv1", part if stage else channels // 2, 1)
                y = self.mish(y, f"{name}.{block}.conv2", part, 3)
                x = self.net.add(x, y, f"{name}.{block}.add")
            x = self.mish(x, f"{name}.after", part, 1)
            x = self.mish(self.net.concat([x, other], f"{name}.concat"), f"{name}.merge", channels, 1)
            routes.append(x)
        return routes[2:]

    def pyramid(self, x: Tensor) -> Tensor:
        """Spatial pyramid pooling between convolutions."""
        x = self.three(x, "pyramid.before")
        pools = [self.net.max_pool(x, f"pyramid.pool{window}", window, 1, window // 2) for window in WINDOWS]
        return self.three(self.net.concat([*pools, x], "pyramid.concat"), "pyramid.after")

    def three(self, x: Tensor, name: str) -> Tensor:
        x = self.leaky(x, f"{name}.conv0", 512, 1)
        return self.leaky(self.leaky(x, f"{name}.conv1", 1024, 3), f"{name}.conv2", 512, 1)

    def five(self, x: Tensor, name: str, channels: int) -> Tensor:
        for i in range(5):
            x = self.leaky(x, f"{name}.conv{i}", 2 * channels if i % 2 else channels, 3 if i % 2 else 1)
        return x

    def join(self, x: Tensor, route: Tensor, name: str, channels: int) -> Tensor:
        """A deeper map, enlarged, beside one of the backbone."""
        x = self.net.upsample(self.leaky(x, f"{name}.lateral", channels, 1), f"{name}.upsample", 2)
        route = self.leaky(route, f"{name}.route", channels, 1)
        return self.five(self.net.concat([route, x], f"{name}.concat"), name, channels)

    def head(self, x: Tensor, name: str, channels: int, outputs: int) -> Tensor:
        return self.net.conv(self.leaky(x, f"{name}.conv", channels, 3), f"{name}.out", outputs, 1, gain=1.0)
