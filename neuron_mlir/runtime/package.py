"""From a module and its weights to an artifact on disk.

Constants are evaluated one by one and go to the file at once, so memory holds one at a time. The file is written beside
its target under a temporary name and renamed when it is complete: a reader sees the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from neuron_mlir import __version__
from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.artifact import (
    FIXED,
    MAGIC,
    METADATA,
    METADATA_LIMIT,
    PADDING,
    PROGRAM,
    PROGRAM_LIMIT,
    SAFETENSORS_TYPES,
    VERSION,
    WEIGHTS,
    WEIGHTS_HEADER_LIMIT,
    aligned,
)
from neuron_mlir.runtime.files import replacing
from neuron_mlir.runtime.modules import interface_json, module_text
from neuron_mlir.weights.store import WEIGHTS_ATTRIBUTE

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp
    from xdsl.ir import Operation

    from neuron_mlir.weights import WeightStore

Array = NDArray[Any]

TABLE_BYTES = 1024
"""The table of sections is padded with spaces to this size, so that it can be written last."""


@dataclass(frozen=True)
class Packaged:
    """What was written: bytes of the file, of the program's text and of the weights, and how many weights."""

    file_bytes: int
    program_bytes: int
    weight_bytes: int
    weights: int


def write_artifact(path: str, module: ModuleOp, weights: WeightStore | None, metadata: Mapping[str, Any]) -> Packaged:
    """Write `module` and the values of its constants to `path`.

    The module is changed: every constant expression becomes a stored weight named after its digest, and the attribute
    that names the file the weights came from goes.

    Args:
        path: the file to write; an existing one is replaced when the new one is complete.
        module: any level; usually the final one.
        weights: where the module's stored weights are; None for the file that the module names.
        metadata: more entries for the metadata section, JSON.

    Raises:
        NeuronError: a constant cannot be evaluated, or the output cannot be written.
        OSError: the disk is full, or the like. The old file stays as it was.
    """
    if weights is None:
        from neuron_mlir.weights import open_weights

        weights = open_weights(module)
    module.attributes.pop(WEIGHTS_ATTRIBUTE, None)
    with replacing(path) as stream:
        stream.write(bytes(FIXED.size + TABLE_BYTES))
        writer = _WeightWriter(stream, _header_bound(module))
        _store_constants(module, weights, writer)
        writer.finish()
        sections = [_describe(stream, WEIGHTS, writer.start)]
        program = module_text(module, locations=True).encode()
        if len(program) > PROGRAM_LIMIT:
            raise NeuronError(
                "the program's text is too large for an artifact", needed=len(program), available=PROGRAM_LIMIT
            )
        sections.append(_append(stream, PROGRAM, program))
        inputs, outputs = interface_json(module)
        entries = {"producer": f"neuron-mlir {__version__}", **metadata, "inputs": inputs, "outputs": outputs}
        text = (json.dumps(entries, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        if len(text) > METADATA_LIMIT:
            raise NeuronError("the metadata is too large for an artifact", needed=len(text), available=METADATA_LIMIT)
        sections.append(_append(stream, METADATA, text))
        size = stream.tell()
        table = json.dumps({"sections": sections}, sort_keys=True).encode().ljust(TABLE_BYTES)
        assert len(table) == TABLE_BYTES
        stream.seek(0)
        stream.write(FIXED.pack(MAGIC, VERSION, TABLE_BYTES, size, hashlib.sha256(table).digest()) + table)
    return Packaged(size, len(program), writer.nbytes, len(writer.entries))


def _append(stream: BinaryIO, name: str, data: bytes) -> dict[str, Any]:
    _pad(stream)
    start = stream.tell()
    stream.write(data)
    return {"name": name, "offset": start, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _describe(stream: BinaryIO, name: str, start: int) -> dict[str, Any]:
    """The table's entry for all bytes from `start` to the end of what is written."""
    stream.flush()
    end = stream.tell()
    digest = hashlib.sha256()
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        digest.update(view[start:end])
    return {"name": name, "offset": start, "size": end - start, "sha256": digest.hexdigest()}


def _pad(stream: BinaryIO) -> None:
    stream.write(bytes(aligned(stream.tell()) - stream.tell()))


# Weights --------------------------------------------------------------------------------------------------------------


Placed = tuple[str, tuple[int, ...], int, int]
"""Element type, shape, and where the bytes begin and end."""


@dataclass
class _WeightWriter:
    """Appends a safetensors file to a stream: data first, into the place of its header at the end."""

    stream: BinaryIO
    header_bytes: int
    entries: dict[str, Placed] = field(default_factory=dict[str, Placed])
    padding: dict[str, Placed] = field(default_factory=dict[str, Placed])
    nbytes: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        _pad(self.stream)
        self.start = self.stream.tell()
        self.header_bytes = aligned(8 + self.header_bytes) - 8
        self.stream.write(bytes(8 + self.header_bytes))

    def add(self, values: Array, element: str, shape: tuple[int, ...], label: str) -> str:
        """Store a constant unless an equal one is there; its name, which is its digest."""
        data = stored(values, element, label).reshape(shape)
        raw = data.reshape(-1).view(np.uint8)
        hasher = hashlib.blake2b(f"{element}{list(shape)}".encode(), digest_size=16)
        hasher.update(raw.data)
        name = hasher.hexdigest()
        if name in self.entries:
            return name
        begin = self._align()
        self.stream.write(raw.data)
        self.entries[name] = (element, shape, begin, begin + raw.nbytes)
        self.nbytes += raw.nbytes
        return name

    def _align(self) -> int:
        """The next place for a weight. safetensors knows no gaps, so that padding is a tensor of bytes, too."""
        position = self.stream.tell() - self.start - 8 - self.header_bytes
        begin = aligned(position)
        if begin > position:
            self.stream.write(bytes(begin - position))
            self.padding[f"{PADDING}{position}"] = ("ui8", (begin - position,), position, begin)
        return begin

    def finish(self) -> None:
        """Write the header."""
        header = {
            name: {"dtype": SAFETENSORS_TYPES[element][0], "shape": list(shape), "data_offsets": [begin, end]}
            for name, (element, shape, begin, end) in (*self.entries.items(), *self.padding.items())
        }
        text = json.dumps(header, separators=(",", ":")).encode().ljust(self.header_bytes)
        assert len(text) == self.header_bytes
        end = self.stream.tell()
        self.stream.seek(self.start)
        self.stream.write(self.header_bytes.to_bytes(8, "little") + text)
        self.stream.seek(end)


def stored(values: Array, element: str, label: str) -> Array:
    """Values as an artifact holds them: bf16 as its two bytes (uint16), everything else in its NumPy type.

    Raises:
        NeuronError: a NaN among them.
    """
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise NeuronError(
            f"constant '{label}' holds NaN",
            available=f"{int(np.isnan(values).sum())} of {values.size}",
            advice="checking the weights of the model",
        )
    if element == "bf16":
        from neuron_mlir.simulator.numerics import round_bf16

        bits = round_bf16(values).view(np.uint32) >> np.uint32(16)
        return np.ascontiguousarray(bits.astype(np.uint16))
    dtype = np.dtype(SAFETENSORS_TYPES[element][1])
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype.newbyteorder("<") if dtype.kind in "iuf" else dtype)


def _constants(module: ModuleOp) -> list[Operation]:
    """The ops to replace by a stored weight: constant expressions, and weights that stand outside of one."""
    from neuron_mlir.dialects import nn
    from neuron_mlir.dialects.core.memory import ConstOp

    found: list[Operation] = []
    work: list[Operation] = [module]
    while work:
        op = work.pop()
        if isinstance(op, (ConstOp, nn.ConstOp, nn.WeightOp)):
            found.append(op)
            continue
        for region in reversed(op.regions):
            for block in reversed(region.blocks):
                work.extend(reversed(list(block.ops)))
    return found


def _type(op: Operation) -> tuple[str, tuple[int, ...]]:
    type = cast(Any, op.results[0].type)
    return str(type.element_type), tuple(type.get_shape())


def _header_bound(module: ModuleOp) -> int:
    """Enough bytes for the header: for each constant a name of 32 digits, its shape, two offsets, and padding."""
    bound = 2 + sum(280 + 20 * len(_type(op)[1]) for op in _constants(module))
    if bound > WEIGHTS_HEADER_LIMIT:
        raise NeuronError("too many constants for an artifact", needed=bound, available=WEIGHTS_HEADER_LIMIT)
    return bound


def _store_constants(module: ModuleOp, weights: WeightStore, writer: _WeightWriter) -> None:
    from xdsl.dialects.builtin import TensorType
    from xdsl.ir import Block, Region

    from neuron_mlir.dialects import nn
    from neuron_mlir.dialects.core.memory import ConstOp
    from neuron_mlir.simulator.nn_eval import evaluate_block, evaluate_const

    for op in _constants(module):
        element, shape = _type(op)
        if isinstance(op, ConstOp):
            label = op.label.data
            values = evaluate_block(op.body.block, [], weights)[0]
        else:
            assert isinstance(op, (nn.ConstOp, nn.WeightOp))
            label = op.key if isinstance(op, nn.WeightOp) else "nn.const"
            values = evaluate_const(op, weights)
        name = writer.add(values, element, shape, label)
        weight = nn.WeightOp(name, TensorType(cast(Any, op.results[0].type).element_type, shape))
        weight.location = op.location
        if isinstance(op, ConstOp):
            old = op.detach_region(op.body)
            old.drop_all_references()
            end = nn.YieldOp(weight.result)
            op.add_region(Region(Block([weight, end])))
            continue
        block = op.parent_block()
        assert block is not None
        block.insert_op_before(weight, op)
        op.results[0].replace_all_uses_with(weight.result)
        block.erase_op(op)
