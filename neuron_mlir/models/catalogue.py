"""The networks written layer by layer, by name: ResNet-18 and -50, YOLOv3, YOLOv4, VGG-16, U-Net and DLRM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.errors import NeuronError
from neuron_mlir.models._sink import inline, write_model
from neuron_mlir.models.dlrm import DIMENSION, ROWS, TABLES, build_dlrm, dlrm_inputs
from neuron_mlir.models.resnet import build_resnet18, build_resnet50
from neuron_mlir.models.unet import build_unet
from neuron_mlir.models.vgg import build_vgg16
from neuron_mlir.models.yolo import build_yolov3
from neuron_mlir.models.yolov4 import build_yolov4

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Generator:
    """A network of any size.

    Attributes:
        summary: what it is.
        build: makes it, given a sink for its weights, the options, `batch` and `seed`.
        options: name to default and help.
    """

    summary: str
    build: Callable[..., ModelProto]
    options: Mapping[str, tuple[int | float | bool, str]]


_WIDTH = (1.0, "factor on all numbers of channels, to make a small one")
_FOLDED = (False, "with batch norms multiplied into the convolutions")

GENERATORS: dict[str, Generator] = {
    "resnet18": Generator(
        "ResNet-18, 11.7 M parameters",
        build_resnet18,
        {"size": (224, "height and width of the image"), "width": _WIDTH, "folded": _FOLDED},
    ),
    "resnet50": Generator(
        "ResNet-50 (v1.5), 25.6 M parameters",
        build_resnet50,
        {"size": (224, "height and width of the image"), "width": _WIDTH, "folded": _FOLDED},
    ),
    "vgg16": Generator(
        "VGG-16, 138 M parameters at size 224",
        build_vgg16,
        {"size": (224, "height and width of the image, a multiple of 32"), "width": _WIDTH},
    ),
    "yolov3": Generator(
        "YOLOv3 with its three raw heads, 62 M parameters",
        build_yolov3,
        {"size": (416, "height and width of the image, a multiple of 32"), "width": _WIDTH, "folded": _FOLDED},
    ),
    "yolov4": Generator(
        "YOLOv4 with mish, pyramid pooling and its three raw heads, 64 M parameters",
        build_yolov4,
        {"size": (608, "height and width of the image, a multiple of 32"), "width": _WIDTH, "folded": _FOLDED},
    ),
    "unet": Generator(
        "U-Net with padded convolutions, 31 M parameters",
        build_unet,
        {
            "size": (512, "height and width of the image, a multiple of 16"),
            "width": _WIDTH,
            "channels": (1, "channels of the image"),
            "classes": (2, "channels of the result"),
        },
    ),
    "dlrm": Generator(
        "recommendation with embedding tables; 666 MB of them",
        build_dlrm,
        {
            "rows": (ROWS, "rows of each table"),
            "tables": (TABLES, "number of tables"),
            "dimension": (DIMENSION, "length of a row"),
        },
    ),
}


def find_generator(name: str) -> Generator:
    """The generator of that name.

    Raises:
        NeuronError: there is none.
    """
    found = GENERATORS.get(name)
    if found is None:
        raise NeuronError(f"there is no generator '{name}'", advice=f"one of {', '.join(GENERATORS)}")
    return found


def make_model(name: str, **options: Any) -> ModelProto:
    """A network of the catalogue with its weights as initializers.

    Args:
        name: one of `GENERATORS`.
        options: those of the generator, `batch` and `seed`.

    Raises:
        NeuronError: an unknown name, or sizes that cannot be.
    """
    return find_generator(name).build(inline, **options)


def write_network(path: str | Path, name: str, *, external_data: bool = False, **options: Any) -> Path:
    """Writes the model of `make_model` to `path`.

    Args:
        external_data: puts the weights into `<path>.data`, one at a time: little memory.

    Raises:
        NeuronError: an unknown name, or sizes that cannot be.
    """
    build = find_generator(name).build
    return write_model(Path(path), lambda sink: build(sink, **options), external_data=external_data)


def network_inputs(name: str, model: ModelProto, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs for a model of the catalogue: standard normal images, features and row numbers for DLRM."""
    if name == "dlrm":
        batch, tables = (int(dim.dim_value) for dim in model.graph.input[1].type.tensor_type.shape.dim)
        rows = next(int(t.dims[0]) for t in model.graph.initializer if t.name == "embedding.0.weight")
        return dlrm_inputs(batch=batch, rows=rows, tables=tables, seed=seed)
    rng = np.random.default_rng(seed)
    shapes = {v.name: [int(dim.dim_value) for dim in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {key: rng.standard_normal(shape, dtype=np.float32) for key, shape in shapes.items()}
