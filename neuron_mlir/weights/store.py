"""Where weights live while the IR only names them.

A store hands out read-only arrays by name. Arrays over files are views of a memory map: nothing is read before it is
used, and nothing is copied.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

Array = NDArray[Any]

WEIGHTS_ATTRIBUTE = "nn.weights"
"""The module attribute (a string) with the path of the file that holds the module's weights."""

FULL_DIGEST_LIMIT = 1 << 20
"""Bytes up to which a digest covers every byte; above, it covers `SAMPLES` evenly spaced blocks of `SAMPLE_BYTES`."""

SAMPLES = 16
SAMPLE_BYTES = 1 << 16

_ELEMENT_NAMES = {
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "float64": "f64",
    "int64": "i64",
    "int32": "i32",
    "int8": "i8",
    "uint8": "ui8",
    "bool": "i1",
}


@dataclass(frozen=True)
class WeightInfo:
    """What a store knows of a weight: its shape, its element type as the IR writes it (`f32`), its digest."""

    shape: tuple[int, ...]
    dtype: str
    digest: str


@runtime_checkable
class WeightStore(Protocol):
    """Anything that hands out weights by name."""

    def names(self) -> Sequence[str]:
        """The names of all weights, in the order of the file."""
        ...

    def get(self, name: str) -> Array:
        """The weight, read-only, in its stored type (bf16 as `ml_dtypes.bfloat16`).

        Raises:
            NeuronError: no such weight, or its bytes cannot be read.
        """
        ...

    def describe(self, name: str) -> WeightInfo:
        """Shape, element type and digest; reads at most `SAMPLES * SAMPLE_BYTES` bytes of a large weight."""
        ...


def element_name(dtype: np.dtype[Any]) -> str:
    """The IR's name of a NumPy type: `f32` for float32. Raises NeuronError for a type the IR does not have."""
    name = _ELEMENT_NAMES.get(dtype.name)
    if name is None:
        raise NeuronError(
            f"element type {dtype.name} is not supported", advice=f"convert to one of {', '.join(_ELEMENT_NAMES)}"
        )
    return name


def digest(array: Array) -> str:
    """16 hexadecimal digits that change when the weight does: BLAKE2b over type, shape and bytes.

    Above 1 MiB only 16 blocks of 64 KiB are hashed, the first and last among them, so that the import of a large model
    costs milliseconds. Such a digest begins with `~`. It tells two versions of a weight apart (training moves every
    value); it is no protection against someone who forges a file.
    """
    hasher = hashlib.blake2b(f"{array.dtype.name}{array.shape}".encode(), digest_size=8)
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if data.nbytes <= FULL_DIGEST_LIMIT:
        hasher.update(data.data)
        return hasher.hexdigest()
    span = data.nbytes - SAMPLE_BYTES
    for index in range(SAMPLES):
        start = span * index // (SAMPLES - 1)
        hasher.update(data[start : start + SAMPLE_BYTES].data)
    return "~" + hasher.hexdigest()[:15]


def missing(name: str, available: Sequence[str], where: str) -> NeuronError:
    """The error for a name that a store does not have, with the nearest names."""
    import difflib

    near = difflib.get_close_matches(name, available, n=3, cutoff=0.5)
    advice = f"one of {', '.join(near)}" if near else "giving the file that holds the weights this module was made from"
    return NeuronError(f"there is no weight '{name}' in {where}, which holds {len(available)}", advice=advice)


class DictStore:
    """Weights in memory.

    Args:
        arrays: name to array. Arrays are not copied; views of them are handed out read-only.
    """

    def __init__(self, arrays: Mapping[str, Array] | None = None) -> None:
        self._arrays = dict(arrays or {})

    def names(self) -> Sequence[str]:
        return tuple(self._arrays)

    def get(self, name: str) -> Array:
        array = self._arrays.get(name)
        if array is None:
            raise missing(name, self.names(), "this set of weights")
        view = array.view()
        view.flags.writeable = False
        return view

    def describe(self, name: str) -> WeightInfo:
        return describe_array(self.get(name))


class SafetensorsStore:
    """Weights of a safetensors file (https://huggingface.co/docs/safetensors), memory-mapped.

    Raises:
        NeuronError: no such file, or it is not a whole safetensors file.
    """

    _DTYPES = {
        "F32": "float32",
        "F16": "float16",
        "F64": "float64",
        "I64": "int64",
        "I32": "int32",
        "I8": "int8",
        "U8": "uint8",
        "BOOL": "bool",
        "BF16": "bfloat16",
    }

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._data = map_file(self.path)
        self._entries, self._base = self._read_header()

    def _read_header(self) -> tuple[dict[str, dict[str, Any]], int]:
        length = int.from_bytes(self._data[:8], "little") if len(self._data) >= 8 else -1
        if length < 2 or 8 + length > len(self._data):
            raise NeuronError(f"'{self.path}' is not a safetensors file, or is truncated")
        try:
            header = cast("dict[str, dict[str, Any]]", json.loads(bytes(self._data[8 : 8 + length])))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            for entry in entries.values():
                _ = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NeuronError(f"'{self.path}' has a broken safetensors header") from error
        return entries, 8 + length

    def names(self) -> Sequence[str]:
        return tuple(self._entries)

    def get(self, name: str) -> Array:
        entry = self._entries.get(name)
        if entry is None:
            raise missing(name, self.names(), f"'{self.path}'")
        dtype_name = self._DTYPES.get(entry["dtype"])
        if dtype_name is None:
            raise NeuronError(f"weight '{name}' of '{self.path}' has the unsupported type {entry['dtype']}")
        start, end = entry["data_offsets"]
        shape = tuple(int(d) for d in entry["shape"])
        return view_bytes(name, self._data[self._base + start : self._base + end], numpy_dtype(dtype_name), shape)

    def describe(self, name: str) -> WeightInfo:
        return describe_array(self.get(name))


def describe_array(array: Array) -> WeightInfo:
    """The description of an array in memory."""
    return WeightInfo(array.shape, element_name(array.dtype), digest(array))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of that name; `bfloat16` comes from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def map_file(path: Path) -> memoryview:
    """A read-only memory map of a file. Raises NeuronError for a file that is missing, empty or unreadable."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise NeuronError(f"there is no file '{path}'", advice="checking the path") from error
    except IsADirectoryError as error:
        raise NeuronError(f"'{path}' is a directory, not a file") from error
    except ValueError as error:  # what mmap raises for a file without bytes
        raise NeuronError(f"'{path}' is empty", needed="a model or weight file") from error
    except OSError as error:
        raise NeuronError(f"cannot read '{path}': {error.strerror}") from error


def view_bytes(name: str, data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Dense little-endian bytes as a read-only array, without a copy.

    Raises:
        NeuronError: the number of bytes does not fit the shape.
    """
    needed = dtype.itemsize
    for dim in shape:
        needed *= dim
    if len(data) != needed:
        raise NeuronError(
            f"the bytes of weight '{name}' do not fit its shape {list(shape)} of {dtype.name}",
            needed=f"{needed} bytes",
            available=f"{len(data)} bytes",
            advice="exporting the model again",
        )
    array: Array = np.frombuffer(data, dtype=dtype.newbyteorder("<") if dtype.kind in "iuf" else dtype)
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def open_store(path: str | Path) -> WeightStore:
    """The store for a weight file, by its suffix: `.safetensors`, otherwise ONNX."""
    if Path(path).suffix == ".safetensors":
        return SafetensorsStore(path)
    from neuron_mlir.weights.onnx_store import OnnxStore

    return OnnxStore(path)


def open_weights(module: ModuleOp, base_dir: str | Path | None = None) -> WeightStore:
    """The store that a module's `nn.weights` attribute names; an empty one for a module without.

    Args:
        module: any level of the IR.
        base_dir: where a relative path starts, usually the directory of the module's file. The working directory is
            tried after it.

    Raises:
        NeuronError: the attribute is not a string, or the file is not there or cannot be read.
    """
    from xdsl.dialects.builtin import StringAttr

    attribute = module.attributes.get(WEIGHTS_ATTRIBUTE)
    if attribute is None:
        return DictStore()
    if not isinstance(attribute, StringAttr):
        raise NeuronError(f"the module attribute '{WEIGHTS_ATTRIBUTE}' must be a string: the path of the weight file")
    path = Path(attribute.data)
    candidates = [path] if path.is_absolute() or base_dir is None else [Path(base_dir) / path, path]
    for candidate in candidates:
        if candidate.exists():
            return open_store(candidate)
    raise NeuronError(
        f"the weight file '{attribute.data}' of this module is not there",
        advice="running from the directory the module was made in, or correcting the module's nn.weights attribute",
    )
