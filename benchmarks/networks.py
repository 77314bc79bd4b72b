"""The networks that are measured, as files: made once, with seeded weights, in a working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neuron_mlir.models.bert import CONFIGS, bert_inputs, write_bert
from neuron_mlir.models.light import LIGHT_MODELS, write_light
from neuron_mlir.runtime.compiler import CompileOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

WORK = Path(os.environ.get("NEURON_BENCH_DIR", "build/bench"))
SEQUENCE = 128
NAMES = (*LIGHT_MODELS, "bert-base", "magika")
"""All networks, in the order of the tables."""


@dataclass(frozen=True)
class Network:
    """A model file, what pins its inputs, and one request."""

    name: str
    path: Path
    io_config: Mapping[str, Any] | None
    inputs: dict[str, Array]

    def options(self, cores: int) -> CompileOptions:
        """Compile options for so many cores."""
        return CompileOptions(cores=cores, io_config=self.io_config)


@cache
def network(name: str) -> Network:
    """One of `NAMES`."""
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{name}.onnx"
    if name == "magika":
        return magika()
    if name == "bert-base":
        if not path.exists():
            write_bert(path, CONFIGS["bert-base"], seq=SEQUENCE)
        return Network(name, path, None, dict(bert_inputs(CONFIGS["bert-base"], seq=SEQUENCE)))
    if not path.exists():
        write_light(path, name)
    return Network(name, path, None, image(path))


def image(path: Path) -> dict[str, Array]:
    """A random image for a model of the onnx package."""
    import onnx

    from neuron_mlir.models.light import light_inputs

    return dict(light_inputs(onnx.load(path)))


def magika() -> Network:
    """The model that the package magika ships, its axes pinned to one file: this source file is the request."""
    import magika as package
    import numpy as np

    path = WORK / "magika.onnx"
    path.write_bytes(sorted(Path(package.__file__).parent.glob("models/*/model.onnx"))[0].read_bytes())
    content = Path(__file__).read_bytes()
    # Magika's features: 1,024 bytes of the beginning and of the end, 256 where there are none.
    features = np.full((1, 2048), 256, np.int32)
    head, tail = content[:1024], content[-1024:]
    features[0, : len(head)] = np.frombuffer(head, np.uint8)
    features[0, 2048 - len(tail) :] = np.frombuffer(tail, np.uint8)
    return Network("magika", path, {"inputs": {"bytes": [[1, 2048], "int32"]}}, {"bytes": features})


def session(path: Path) -> Any:
    """ONNX Runtime on a model, one thread."""
    import onnxruntime

    ort = cast(Any, onnxruntime)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
