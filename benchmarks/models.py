"""The networks of the passes' tables, as files written by the package's own generators; weights seeded, beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.networks import SEQUENCE, WORK
from neuron_mlir.models.bert import CONFIGS, write_bert
from neuron_mlir.models.catalogue import write_network


@dataclass(frozen=True)
class Model:
    """A network, and what to run it with.

    Attributes:
        write: makes the file.
        batch: inferences of a request that `nn-batch` is shown with.
        cores: NeuronCores that `pipe-stage` and the passes after it are shown with.
    """

    write: Callable[[Path], object]
    batch: int
    cores: int = 4


def _of(name: str, **options: Any) -> Callable[[Path], object]:
    return lambda path: write_network(path, name, external_data=True, **options)


def _bert(name: str) -> Callable[[Path], object]:
    return lambda path: write_bert(path, CONFIGS[name], seq=SEQUENCE, external_data=True)


MODELS: Mapping[str, Model] = {
    "resnet50-224": Model(_of("resnet50"), 5),
    "resnet50-1440": Model(_of("resnet50", size=1440), 2),
    "yolov3-416": Model(_of("yolov3"), 4),
    "yolov3-1440": Model(_of("yolov3", size=1440), 2),
    "vgg16": Model(_of("vgg16"), 8),
    "bert-base-128": Model(_bert("bert-base"), 6),
    "bert-large-128": Model(_bert("bert-large"), 6, 16),
    "dlrm": Model(_of("dlrm"), 64),
    "unet-512": Model(_of("unet"), 2),
}
"""All of them, in the order of the tables."""

OTHERS: Mapping[str, Model] = {"yolov4-608": Model(_of("yolov4"), 2), "resnet18-224": Model(_of("resnet18"), 5)}
"""That only some tables have."""


def model_file(name: str) -> Path:
    """The file of one of `MODELS` or `OTHERS` in the working directory, written on first use."""
    folder = WORK / "models"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    if not path.exists():
        print(f"  writing {path}", flush=True)
        {**MODELS, **OTHERS}[name].write(path)
    return path
