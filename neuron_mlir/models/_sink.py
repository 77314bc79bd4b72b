"""Where a generator puts the weights it makes: into the message, or into a data file beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

Sink: TypeAlias = "Callable[[str, NDArray[Any]], TensorProto]"
"""Takes a weight's name and values, gives its message."""

ALIGNMENT = 4096
"""Offsets in an external data file are multiples of a page, as the ONNX specification suggests."""


def inline(name: str, array: NDArray[Any]) -> TensorProto:
    """The values inside the message."""
    from onnx import numpy_helper

    return numpy_helper.from_array(array, name)


class _ExternalFile:
    """Appends each weight to a data file as it is made, so that only one is in memory."""

    def __init__(self, path: Path) -> None:
        self._location = path.name
        self._file = path.open("wb")

    def __call__(self, name: str, array: NDArray[Any]) -> TensorProto:
        from onnx import TensorProto, helper

        offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(offset)
        self._file.write(np.ascontiguousarray(array).data)
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._location), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def close(self) -> None:
        self._file.close()


def write_model(path: Path, build: Callable[[Sink], ModelProto], *, external_data: bool) -> Path:
    """Writes what `build` makes with a sink; with `external_data` the weights go to `<path>.data`."""
    if not external_data:
        path.write_bytes(build(inline).SerializeToString())
        return path
    sink = _ExternalFile(path.with_name(path.name + ".data"))
    try:
        model = build(sink)
    finally:
        sink.close()
    path.write_bytes(model.SerializeToString())
    return path
