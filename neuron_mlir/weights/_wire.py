"""Reads the outline of an ONNX file without its tensors' bytes.

A model file is one protocol buffer. Parsing it whole copies every weight (and the format stops at 2 GB), so this module
walks the wire format over a memory map, cuts the payload of each large tensor out, and returns the rest: a small
message that parses in milliseconds, and where in the file each payload lies.

Only what is needed of the encoding is read: varints, 64-bit, 32-bit and length-delimited fields, as described in
https://protobuf.dev/programming-guides/encoding/. Field numbers are those of ``onnx.proto3``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Buffer = memoryview

INLINE_LIMIT = 1024
"""Tensors whose message is at most this many bytes stay in the skeleton."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# (field number -> wire type) of ModelProto: the test of "is this an ONNX file at all".
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 2, 4, 5
_ATTRIBUTE_TENSOR = 5
_TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_DOUBLES = 4, 8, 9, 10


class WireError(Exception):
    """The bytes are not a protocol buffer of the expected shape. ``truncated``: they are one, cut short."""

    def __init__(self, message: str, *, truncated: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated


@dataclass(frozen=True)
class Payload:
    """Bytes of a tensor in the file: ``[start, end)``, little-endian, dense."""

    start: int
    end: int


@dataclass(frozen=True)
class Skeleton:
    """A model's message without the payloads of large tensors, and where those are, by tensor name.

    The payload of a ``Constant`` node goes by the name of the node's output.
    """

    message: bytes
    payloads: dict[str, Payload]


def _varint(data: Buffer, pos: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if pos >= end:
            raise WireError("the data ends inside a number", truncated=True)
        byte = data[pos]
        pos += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, pos
        shift += 7
        if shift > 63:
            raise WireError("a number is longer than 64 bits")


def _fields(data: Buffer, pos: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields (field, wire type, start of the field, start of its value, end of its value)."""
    while pos < end:
        start = pos
        tag, pos = _varint(data, pos, end)
        field, wire = tag >> 3, tag & 7
        if field == 0:
            raise WireError("field number 0")
        if wire == _VARINT:
            value = pos
            _, pos = _varint(data, pos, end)
        elif wire == _BYTES:
            length, value = _varint(data, pos, end)
            pos = value + length
        elif wire == _FIXED64:
            value, pos = pos, pos + 8
        elif wire == _FIXED32:
            value, pos = pos, pos + 4
        else:
            raise WireError(f"wire type {wire}")
        if pos > end:
            raise WireError(f"a field of {pos - value} bytes starts {end - value} bytes before the end", truncated=True)
        yield field, wire, start, value, pos


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(field: int, body: bytes) -> bytes:
    return _encode_varint(field << 3 | _BYTES) + _encode_varint(len(body)) + body


def _tensor(data: Buffer, pos: int, end: int) -> tuple[bytes, str, Payload | None]:
    """A TensorProto without its payload, its name, and the payload."""
    parts: list[bytes] = []
    name = ""
    payload: Payload | None = None
    for field, wire, start, value, stop in _fields(data, pos, end):
        # Packed floats and doubles are laid out exactly as raw data. Packed integers are varints: those stay.
        if wire == _BYTES and field in (_TENSOR_RAW, _TENSOR_FLOATS, _TENSOR_DOUBLES) and payload is None:
            payload = Payload(value, stop)
            continue
        if field == _TENSOR_NAME:
            name = bytes(data[value:stop]).decode("utf-8", "replace")
        parts.append(bytes(data[start:stop]))
    return b"".join(parts), name, payload


def _constant_node(data: Buffer, pos: int, end: int, payloads: dict[str, Payload]) -> bytes | None:
    """A large ``Constant`` node without its tensor's payload; None for any other node."""
    fields = list(_fields(data, pos, end))
    op_types = [bytes(data[value:stop]) for field, _, _, value, stop in fields if field == _NODE_OP_TYPE]
    outputs = [bytes(data[value:stop]) for field, _, _, value, stop in fields if field == _NODE_OUTPUT]
    if op_types != [b"Constant"] or len(outputs) != 1:
        return None
    parts: list[bytes] = []
    for field, _, start, value, stop in fields:
        if field != _NODE_ATTRIBUTE:
            parts.append(bytes(data[start:stop]))
            continue
        attribute: list[bytes] = []
        for inner, wire, inner_start, inner_value, inner_stop in _fields(data, value, stop):
            if inner != _ATTRIBUTE_TENSOR or wire != _BYTES:
                attribute.append(bytes(data[inner_start:inner_stop]))
                continue
            body, _, payload = _tensor(data, inner_value, inner_stop)
            if payload is not None:
                payloads[outputs[0].decode("utf-8", "replace")] = payload
            attribute.append(_message(_ATTRIBUTE_TENSOR, body))
        parts.append(_message(_NODE_ATTRIBUTE, b"".join(attribute)))
    return b"".join(parts)


def _graph(data: Buffer, pos: int, end: int, payloads: dict[str, Payload]) -> bytes:
    parts: list[bytes] = []
    for field, wire, start, value, stop in _fields(data, pos, end):
        body: bytes | None = None
        if wire == _BYTES and stop - value > INLINE_LIMIT:
            if field == _GRAPH_INITIALIZER:
                body, name, payload = _tensor(data, value, stop)
                if payload is not None:
                    payloads[name] = payload
            elif field == _GRAPH_NODE:
                body = _constant_node(data, value, stop, payloads)
        parts.append(bytes(data[start:stop]) if body is None else _message(field, body))
    return b"".join(parts)


def read_skeleton(data: Buffer) -> Skeleton:
    """Reads the outline of the model in ``data``.

    Raises:
        WireError: the bytes are not a ``ModelProto``, or end early.
    """
    parts: list[bytes] = []
    payloads: dict[str, Payload] = {}
    recognised = False
    has_graph = False
    for field, wire, start, value, stop in _checked_fields(data):
        recognised = recognised or field in _MODEL_FIELDS
        if field == _MODEL_GRAPH and wire == _BYTES:
            has_graph = True
            parts.append(_message(field, _graph(data, value, stop, payloads)))
        else:
            parts.append(bytes(data[start:stop]))
    if not has_graph:
        raise WireError("there is no graph in it", truncated=recognised)
    return Skeleton(b"".join(parts), payloads)


def _checked_fields(data: Buffer) -> Iterator[tuple[int, int, int, int, int]]:
    """Top-level fields; an unknown field before any known one means this is not a model."""
    known = False
    try:
        for item in _fields(data, 0, len(data)):
            field, wire = item[0], item[1]
            expected = _MODEL_FIELDS.get(field)
            if (expected is None and not known) or (expected is not None and expected != wire):
                raise WireError(f"its first fields are not those of an ONNX model (field {field}, wire type {wire})")
            known = True
            yield item
    except WireError as error:
        # Text and archives also "end early": believe it only after something that a model begins with.
        if error.truncated and not known and not _begins_like_model(data):
            raise WireError("its first bytes are not those of an ONNX model") from error
        raise


def _begins_like_model(data: Buffer) -> bool:
    """Whether the first byte is a tag of ModelProto (``ir_version``, a producer string, the graph)."""
    return len(data) > 0 and _MODEL_FIELDS.get(data[0] >> 3) == data[0] & 7
