"""`--io-config`: what pins a model's inputs and picks its outputs.

The form is the one AWS documents for neuron-cc: a JSON object with `inputs`, which maps each input tensor's name to its
shape and data type, and `outputs`, a list of tensor names:

    {"inputs": {"bytes": [[1, 2048], "int32"]}, "outputs": ["target_label"]}

The data type, and either member, may be left out; a plain mapping of names to shapes is taken for `inputs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from neuron_mlir.errors import NeuronError

EXAMPLE = '{"inputs": {"NAME": [[1, 128], "int32"]}, "outputs": ["NAME"]}'

_DTYPE_NAMES = {
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float64": "float64",
    "double": "float64",
    "int64": "int64",
    "int32": "int32",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "bool",
}


@dataclass(frozen=True)
class InputConfig:
    """The shape of an input, and its NumPy data type name or None to leave it as the model has it."""

    shape: tuple[int, ...]
    dtype: str | None = None


@dataclass(frozen=True)
class IoConfig:
    """What is said about inputs, by name, and which tensors are the outputs; None for those of the model."""

    inputs: dict[str, InputConfig]
    outputs: tuple[str, ...] | None = None


def parse_io_config(config: IoConfig | Mapping[str, Any] | str | Path | None) -> IoConfig:
    """Reads an io-config: a mapping, JSON text, or the path of a file of it.

    Raises:
        NeuronError: no JSON, or not of the form above.
    """
    if config is None:
        return IoConfig({})
    if isinstance(config, IoConfig):
        return config
    if isinstance(config, str | Path):
        config = _load(config)
    members = dict(config)
    if not members.keys() & {"inputs", "outputs"} or isinstance(members.get("inputs"), list):
        members = {"inputs": members}
    unknown = sorted(members.keys() - {"inputs", "outputs"})
    if unknown:
        raise _error(f"it has an unknown member '{unknown[0]}'")
    inputs = members.get("inputs", {})
    if not isinstance(inputs, Mapping):
        raise _error("'inputs' must map names to shapes")
    outputs = members.get("outputs")
    if outputs is not None and not (
        isinstance(outputs, list | tuple) and outputs and all(isinstance(o, str) for o in cast("list[Any]", outputs))
    ):
        raise _error("'outputs' must be a list of names")
    return IoConfig(
        {name: _input(name, value) for name, value in cast("Mapping[str, Any]", inputs).items()},
        None if outputs is None else tuple(cast("list[str]", outputs)),
    )


def _load(source: str | Path) -> Mapping[str, Any]:
    text = str(source)
    if isinstance(source, Path) or not text.lstrip().startswith("{"):
        try:
            text = Path(source).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise _error(f"there is no readable file '{source}', and it is no JSON object") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _error(f"it is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    if not isinstance(value, dict):
        raise _error("it must be a JSON object")
    return cast("Mapping[str, Any]", value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(dim, int) and not isinstance(dim, bool) for dim in cast("Sequence[Any]", value)
    )


def _input(name: str, value: Any) -> InputConfig:
    dtype: Any = None
    shape: Any = value
    if isinstance(value, list | tuple):
        parts = cast("Sequence[Any]", value)
        if len(parts) in (1, 2) and _is_shape(parts[0]):
            shape, dtype = parts[0], parts[1] if len(parts) == 2 else None
    if not _is_shape(shape):
        raise _error(f"input '{name}' needs [[dimensions..], \"type\"]")
    if any(dim < 1 for dim in shape):
        raise _error(f"input '{name}' has a dimension that is not at least 1: {list(shape)}")
    if dtype is not None and dtype not in _DTYPE_NAMES:
        raise _error(f"input '{name}' has the unknown data type {json.dumps(dtype)}; known: {', '.join(_DTYPE_NAMES)}")
    return InputConfig(tuple(shape), None if dtype is None else _DTYPE_NAMES[dtype])


def _error(what: str) -> NeuronError:
    return NeuronError(f"bad io-config: {what}", advice=EXAMPLE)
