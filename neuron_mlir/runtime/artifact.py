"""The compiled artifact (`.neff`): one file with the program, its weights and what they were made with.

The layout is described in docs/artifact.md. Reading trusts nothing: every size is bounded and checked against the file
before it is used, every byte of a section is covered by a digest, no byte is outside one, and nothing is executed or
unpickled. Weights are handed out as views of a memory map.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from xdsl.dialects.builtin import ModuleOp

    from neuron_mlir.weights import WeightInfo

MAGIC = b"\x89NMLIR\r\n"
"""First bytes of the file. The line end in them shows a file that was transferred as text."""

VERSION = 1
"""Version of the layout; a reader takes only its own."""

FIXED = struct.Struct("<8sIIQ32s")
"""Magic, version, bytes of the table of sections, bytes of the file, SHA-256 of the table."""

ALIGNMENT = 64
"""Sections, and every weight in the file, start at a multiple of this many bytes."""

PADDING = "pad."
"""Begins the names of tensors that only fill the gaps between aligned weights."""

TABLE_LIMIT = 1 << 16
METADATA_LIMIT = 1 << 24
PROGRAM_LIMIT = 1 << 28
WEIGHTS_HEADER_LIMIT = 1 << 26
"""Upper limits in bytes: what claims to be larger is refused before it is read."""

METADATA, PROGRAM, WEIGHTS = "metadata.json", "program.mlir", "weights.safetensors"
SECTIONS = (WEIGHTS, PROGRAM, METADATA)
"""The sections, in the order they stand in the file: the order in which they can be written in one go."""

SAFETENSORS_TYPES: dict[str, tuple[str, str, int]] = {
    "f32": ("F32", "float32", 4),
    "bf16": ("BF16", "bfloat16", 2),
    "f16": ("F16", "float16", 2),
    "f64": ("F64", "float64", 8),
    "i64": ("I64", "int64", 8),
    "i32": ("I32", "int32", 4),
    "i8": ("I8", "int8", 1),
    "ui8": ("U8", "uint8", 1),
    "i1": ("BOOL", "bool", 1),
}
"""IR element type to its safetensors name, its NumPy name and its bytes."""

_BY_SAFETENSORS = {name: (element, numpy, size) for element, (name, numpy, size) in SAFETENSORS_TYPES.items()}


def aligned(position: int) -> int:
    """The next multiple of `ALIGNMENT` from a position on."""
    return -(-position // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Section:
    """Where a section lies in the file, and the SHA-256 of its bytes in hexadecimal."""

    name: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class _Entry:
    element: str
    shape: tuple[int, ...]
    start: int
    end: int


class SectionStore:
    """The weights section of an artifact: a safetensors file over a memory map (a `WeightStore`).

    Raises:
        NeuronError: the section is not a whole safetensors file with tensors that fit it.
    """

    def __init__(self, data: memoryview, where: str) -> None:
        self.where = where
        length = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
        if not 2 <= length <= min(WEIGHTS_HEADER_LIMIT, len(data) - 8):
            raise NeuronError(f"{where}: the weights section has no header", advice=_COMPILE_AGAIN)
        self._data = data[8 + length :]
        header = _json_object(bytes(data[8 : 8 + length]), f"{where}: the header of the weights")
        self._entries = {name: self._entry(name, value) for name, value in header.items() if name != "__metadata__"}

    def _entry(self, name: str, value: object) -> _Entry:
        problem = NeuronError(f"{self.where}: weight '{name}' has a broken description", advice=_COMPILE_AGAIN)
        if not isinstance(value, dict):
            raise problem
        fields = cast("dict[str, object]", value)
        shape, offsets = _integers(fields.get("shape")), _integers(fields.get("data_offsets"))
        known = _BY_SAFETENSORS.get(str(fields.get("dtype")))
        if known is None or shape is None or offsets is None or len(offsets) != 2:
            raise problem
        element, _, size = known
        start, end = offsets
        if not 0 <= start <= end <= len(self._data) or end - start != size * math.prod(shape):
            raise problem
        return _Entry(element, tuple(shape), start, end)

    def names(self) -> Sequence[str]:
        """The names of all weights."""
        return tuple(name for name in self._entries if not name.startswith(PADDING))

    def get(self, name: str) -> NDArray[Any]:
        """A weight, read-only, a view of the file. Raises NeuronError when there is none of that name."""
        from neuron_mlir.weights.store import numpy_dtype, view_bytes

        entry = self._find(name)
        dtype: np.dtype[Any] = numpy_dtype(SAFETENSORS_TYPES[entry.element][1])
        return view_bytes(name, self._data[entry.start : entry.end], dtype, entry.shape)

    def describe(self, name: str) -> WeightInfo:
        """Shape, element type and digest of a weight."""
        from neuron_mlir.weights.store import describe_array

        return describe_array(self.get(name))

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, without padding."""
        return sum(self._entries[name].end - self._entries[name].start for name in self.names())

    def _find(self, name: str) -> _Entry:
        from neuron_mlir.weights.store import missing

        entry = self._entries.get(name)
        if entry is None:
            raise missing(name, self.names(), self.where)
        return entry


_COMPILE_AGAIN = "compiling the model again"


@dataclass(frozen=True)
class Artifact:
    """A compiled program, read and checked: the text of the module, its weights, and what docs/artifact.md lists."""

    path: str
    metadata: dict[str, Any]
    program: str
    weights: SectionStore
    sections: tuple[Section, ...]
    data: memoryview
    """The whole file, mapped."""

    def module(self) -> ModuleOp:
        """The program, parsed and verified.

        Raises:
            NeuronError: the text is not a valid module, or its interface is not the one of the metadata.
        """
        from neuron_mlir.runtime.modules import interface_json, parse_module

        try:
            module = parse_module(self.program, f"{self.path}:{PROGRAM}")
            inputs, outputs = interface_json(module)
        except (NeuronError, OSError):
            raise
        except Exception as error:
            # What is no IR at all can make the parser and the verifiers fail in any way.
            text = f"{type(error).__name__}: {error}"[:200]
            raise NeuronError(
                f"'{self.path}': section {PROGRAM} is no valid IR: {text}", advice=_COMPILE_AGAIN
            ) from error
        if inputs != self.metadata.get("inputs") or outputs != self.metadata.get("outputs"):
            raise NeuronError(f"'{self.path}': program and metadata do not agree on inputs and outputs")
        return module


def is_artifact(path: str | Path) -> bool:
    """Whether a file begins as an artifact does, or is named as one. Raises OSError when it cannot be read."""
    with open(path, "rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC or Path(path).suffix == ".neff"


def read_artifact(path: str | Path, *, verify: bool = True) -> Artifact:
    """Read and check an artifact; weights stay in the file, mapped.

    Args:
        path: the file.
        verify: compare the digests of all sections; without, of all but the weights.

    Raises:
        NeuronError: no artifact, another version, truncated or longer than it says, or changed after it was written.
    """
    from neuron_mlir.weights.store import map_file

    where = f"'{os.fspath(path)}'"
    data = map_file(Path(path))
    sections = _read_table(data, where)
    views: dict[str, memoryview] = {}
    for section in sections:
        view = views[section.name] = data[section.offset : section.offset + section.size]
        if section.name == WEIGHTS and not verify:
            continue
        if hashlib.sha256(view).hexdigest() != section.sha256:
            raise NeuronError(
                f"{where}: the digest of section {section.name} does not match, so it was changed or damaged",
                advice=_COMPILE_AGAIN,
            )
    metadata = _json_object(bytes(views[METADATA]), f"{where}: section {METADATA}")
    try:
        program = str(views[PROGRAM], "utf-8")
    except UnicodeDecodeError as error:
        raise NeuronError(f"{where}: section {PROGRAM} is not UTF-8 text", advice=_COMPILE_AGAIN) from error
    return Artifact(os.fspath(path), metadata, program, SectionStore(views[WEIGHTS], where), sections, data)


def _read_table(data: memoryview, where: str) -> tuple[Section, ...]:
    """The table of sections, after all checks that need no digest of a section."""
    if len(data) < len(MAGIC) or bytes(data[: len(MAGIC)]) != MAGIC:
        raise NeuronError(f"{where} is not a compiled artifact (.neff)", advice="neuron-cc compile MODEL.onnx")
    if len(data) < FIXED.size:
        raise NeuronError(f"{where} is truncated", needed=f"{FIXED.size} bytes or more", available=f"{len(data)} bytes")
    _, version, table_size, file_size, table_digest = cast(
        "tuple[bytes, int, int, int, bytes]", FIXED.unpack(data[: FIXED.size])
    )
    if version != VERSION:
        raise NeuronError(
            f"{where} is an artifact of version {version}",
            needed=f"version {VERSION}",
            available=f"version {version}",
            advice=_COMPILE_AGAIN,
        )
    if table_size > TABLE_LIMIT:
        raise NeuronError(
            f"{where}: the table of sections is too large", needed=f"{table_size} bytes", available=TABLE_LIMIT
        )
    if file_size != len(data):
        what = "is truncated" if file_size > len(data) else "has bytes after its end"
        raise NeuronError(f"{where} {what}", needed=f"{file_size} bytes", available=f"{len(data)} bytes")
    table = bytes(data[FIXED.size : FIXED.size + table_size])
    if hashlib.sha256(table).digest() != table_digest:
        raise NeuronError(f"{where}: the digest of the table of sections does not match", advice=_COMPILE_AGAIN)
    listed = _json_object(table, f"{where}: the table of sections").get("sections")
    sections = _sections(listed)
    if sections is None or tuple(section.name for section in sections) != SECTIONS:
        raise NeuronError(f"{where}: the sections are not {', '.join(SECTIONS)}", advice=_COMPILE_AGAIN)
    end = FIXED.size + table_size
    for section, limit in zip(sections, (file_size, PROGRAM_LIMIT, METADATA_LIMIT), strict=True):
        # Each section begins where the one before it ends, aligned: no gaps to hide bytes in, no overlaps.
        if section.offset != aligned(end) or section.size < 0 or section.size > limit:
            raise NeuronError(f"{where}: section {section.name} has a wrong place or size", advice=_COMPILE_AGAIN)
        if any(data[end : min(section.offset, file_size)]):
            raise NeuronError(f"{where}: there are bytes outside of sections", advice=_COMPILE_AGAIN)
        end = section.offset + section.size
    if end != file_size:
        raise NeuronError(f"{where}: the sections do not end at the end of the file", advice=_COMPILE_AGAIN)
    return sections


def _sections(listed: object) -> tuple[Section, ...] | None:
    if not isinstance(listed, list):
        return None
    sections: list[Section] = []
    for item in cast("list[object]", listed):
        if not isinstance(item, dict):
            return None
        fields = cast("dict[str, object]", item)
        name, digest = fields.get("name"), fields.get("sha256")
        numbers = _integers([fields.get("offset"), fields.get("size")])
        if not isinstance(name, str) or not isinstance(digest, str) or numbers is None:
            return None
        sections.append(Section(name, numbers[0], numbers[1], digest))
    return tuple(sections)


def _integers(value: object) -> list[int] | None:
    """A list of integers, none negative; None for anything else."""
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    numbers = [item for item in items if isinstance(item, int) and not isinstance(item, bool) and item >= 0]
    return numbers if len(numbers) == len(items) else None


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NeuronError(f"{what} is not JSON", advice=_COMPILE_AGAIN) from error
    if not isinstance(value, dict):
        raise NeuronError(f"{what} is not a JSON object", advice=_COMPILE_AGAIN)
    return cast("dict[str, Any]", value)
