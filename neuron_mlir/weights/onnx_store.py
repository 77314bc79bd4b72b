"""Weights inside an ONNX file, or in the external data files beside it, memory-mapped.

`OnnxFile` is also how the importer reads a model: its message without the bytes of large tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_mlir.errors import NeuronError
from neuron_mlir.weights._wire import Payload, WireError, read_skeleton
from neuron_mlir.weights.store import Array, WeightInfo, describe_array, map_file, missing, numpy_dtype, view_bytes

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

# TensorProto.DataType -> NumPy name, for the element types the IR has.
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}

_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)"),
    (b"\x89HDF", "an HDF5 file (a Keras model?)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for"),
    (b"builtin.module", "MLIR text"),
    (b"{", "JSON text"),
)


@dataclass
class OnnxTensor:
    """A tensor of a model: an initializer, or the value of a `Constant` node.

    `shape` is its shape, `type_number` its `TensorProto.DataType`, `proto` its message, perhaps without its bytes.
    """

    name: str
    shape: tuple[int, ...]
    type_number: int
    proto: TensorProto
    _payload: Payload | None
    _file: OnnxFile
    _array: Array | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type. Raises NeuronError for a type the IR does not have (strings, complex, 4 and 8 bit floats)."""
        return dtype_of(self.type_number, f"tensor '{self.name}'")

    @property
    def is_inline(self) -> bool:
        """Whether `proto` holds its bytes."""
        return self._payload is None and self.proto.data_location != 1

    def array(self) -> Array:
        """The values, read-only; a view of the file where the file holds plain bytes.

        Raises:
            NeuronError: unsupported type, missing or unsafe external file, bytes that do not fit the shape.
        """
        if self._array is None:
            self._array = self._read()
        return self._array

    def _read(self) -> Array:
        dtype = self.dtype
        if self.proto.data_location == 1:  # EXTERNAL
            return view_bytes(self.name, self._file.external(self.proto, self.name), dtype, self.shape)
        if self._payload is not None:
            data = self._file.data[self._payload.start : self._payload.end]
            return view_bytes(self.name, data, dtype, self.shape)
        if self.proto.HasField("raw_data"):
            return view_bytes(self.name, memoryview(self.proto.raw_data), dtype, self.shape)
        from onnx import numpy_helper

        try:
            array: Array = numpy_helper.to_array(self.proto)
        except (ValueError, TypeError) as error:
            raise NeuronError(f"tensor '{self.name}' is broken: {error}", advice="exporting the model again") from error
        array.flags.writeable = False
        return array


def dtype_of(type_number: int, what: str) -> np.dtype[Any]:
    """The NumPy type of a `TensorProto.DataType`; `what` names the tensor in the error for one the IR does not have."""
    name = _DTYPES.get(type_number)
    if name is None:
        from onnx import TensorProto

        known: dict[int, str] = {value: key for key, value in TensorProto.DataType.items()}
        raise NeuronError(
            f"{what} has the unsupported element type {known.get(type_number, type_number)}",
            advice=f"exporting the model with one of {', '.join(_DTYPES.values())}",
        )
    return numpy_dtype(name)


class OnnxFile:
    """An ONNX model without its large tensors in memory.

    Args:
        source: a path, or a model in memory (which is neither changed nor copied).

    Attributes:
        path: where the model came from, None for one in memory.
        model: the message. Of a model read from a file it lacks the payloads of large tensors.
        tensors: initializers and the values of `Constant` nodes of the main graph, by name, in file order.

    Raises:
        NeuronError: the file is missing, empty, truncated, corrupt, or no ONNX model.
    """

    def __init__(self, source: str | Path | ModelProto) -> None:
        self.path: Path | None = None
        self.data = memoryview(b"")
        payloads: dict[str, Payload] = {}
        if isinstance(source, str | Path):
            self.path = Path(source)
            self.data = map_file(self.path)
            self.model, payloads = self._parse(self.path)
        else:
            self.model = source
        self._external: dict[Path, memoryview] = {}
        self.tensors: dict[str, OnnxTensor] = {}
        graph = self.model.graph
        for tensor in graph.initializer:
            self._add(tensor.name, tensor, payloads)
        for node in graph.node:
            if node.op_type != "Constant" or len(node.output) != 1:
                continue
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.HasField("t"):
                    self._add(node.output[0], attribute.t, payloads)

    def _add(self, name: str, tensor: TensorProto, payloads: dict[str, Payload]) -> None:
        shape = tuple(int(dim) for dim in tensor.dims)
        self.tensors[name] = OnnxTensor(name, shape, tensor.data_type, tensor, payloads.get(name), self)

    def _parse(self, path: Path) -> tuple[ModelProto, dict[str, Payload]]:
        from google.protobuf.message import DecodeError
        from onnx import ModelProto

        try:
            skeleton = read_skeleton(self.data)
            model = ModelProto()
            model.ParseFromString(skeleton.message)
        except WireError as error:
            if error.truncated:
                raise NeuronError(
                    f"'{path}' is truncated: {error}",
                    available=f"{len(self.data)} bytes",
                    advice="copying or exporting the file again",
                ) from error
            raise NeuronError(
                f"'{path}' is not an ONNX file: {self._guess() or error}", advice="giving a model saved as .onnx"
            ) from error
        except DecodeError as error:
            raise NeuronError(
                f"'{path}' is a corrupt ONNX file: a message in it does not decode", advice="exporting the model again"
            ) from error
        return model, skeleton.payloads

    def _guess(self) -> str | None:
        head = bytes(self.data[:32])
        return next((f"it looks like {what}" for magic, what in _OTHER_FORMATS if head.startswith(magic)), None)

    def external(self, tensor: TensorProto, name: str) -> memoryview:
        """The bytes of a tensor in an external data file.

        The location must be a plain relative path that stays, symbolic links followed, in the model's directory, as
        the ONNX specification asks.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if self.path is None:
            raise NeuronError(
                f"tensor '{name}' lies in the external file '{location}', but the model was given in memory",
                advice="giving the path of the .onnx file",
            )
        path = self._safe_path(self.path.parent, location, name)
        if path not in self._external:
            if not path.exists():
                raise NeuronError(
                    f"the external data file '{location}' of tensor '{name}' is missing",
                    needed=str(self.path.parent / location),
                    advice="putting the data file beside the .onnx file",
                )
            self._external[path] = map_file(path)
        data = self._external[path]
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries["length"]) if "length" in entries else len(data) - offset
        except ValueError as error:
            raise NeuronError(f"tensor '{name}' has an external offset or length that is no number") from error
        if offset < 0 or length < 0 or offset + length > len(data):
            raise NeuronError(
                f"tensor '{name}' lies beyond the end of its external data file '{location}'",
                needed=f"{offset + length} bytes",
                available=f"{len(data)} bytes",
                advice="copying or exporting the data file again",
            )
        return data[offset : offset + length]

    @staticmethod
    def _safe_path(base: Path, location: str, name: str) -> Path:
        relative = Path(location)
        base = base.resolve()
        unsafe = not location or relative.is_absolute() or ".." in relative.parts or "\\" in location
        path = (base / relative).resolve() if not unsafe else base
        if unsafe or not path.is_relative_to(base):
            raise NeuronError(
                f"tensor '{name}' names the external data file '{location}', which is not inside the model's directory",
                advice="saving the model with its data file beside it",
            )
        return path


class OnnxStore:
    """The weights of an ONNX model, by the names of its initializers and `Constant` outputs.

    Args:
        source: a path, a model in memory, or an `OnnxFile` that is already open.

    Raises:
        NeuronError: as `OnnxFile`.
    """

    def __init__(self, source: str | Path | ModelProto | OnnxFile) -> None:
        self.file = source if isinstance(source, OnnxFile) else OnnxFile(source)
        self._info: dict[str, WeightInfo] = {}

    def names(self) -> Sequence[str]:
        return tuple(self.file.tensors)

    def get(self, name: str) -> Array:
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise missing(name, self.names(), f"'{self.file.path}'" if self.file.path else "the model")
        return tensor.array()

    def describe(self, name: str) -> WeightInfo:
        if name not in self._info:
            self._info[name] = describe_array(self.get(name))
        return self._info[name]
