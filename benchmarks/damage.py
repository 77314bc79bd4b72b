"""Artifacts that someone has damaged or forged, for `benchmarks.fuzz` and the tests: bytes from bytes and a seed.

Most kinds sign what they change, so that it gets past the digests to the parsers, the verifier and the simulator.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import random
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from neuron_mlir.runtime.artifact import FIXED, MAGIC, METADATA, PROGRAM, SECTIONS, VERSION, WEIGHTS, aligned

TABLE_BYTES = 1024
CANARY = "neuron-mlir-canary"
"""Name of the file that forged content would make, if anything in an artifact were executed."""


@dataclass(frozen=True)
class Case:
    """A file to load: its number, how it came about, and its bytes."""

    number: int
    kind: str
    data: bytes


def sections_of(data: bytes) -> dict[str, bytes]:
    """The sections of a good artifact, by name."""
    _, _, table_size, _, _ = FIXED.unpack(data[: FIXED.size])
    table = json.loads(data[FIXED.size : FIXED.size + table_size])
    return {s["name"]: data[s["offset"] : s["offset"] + s["size"]] for s in table["sections"]}


def signed(sections: dict[str, bytes]) -> bytes:
    """An artifact of these sections whose digests are right, whatever is in them."""
    body = bytearray(FIXED.size + TABLE_BYTES)
    entries: list[dict[str, object]] = []
    for name in SECTIONS:
        body += bytes(aligned(len(body)) - len(body))
        data = sections[name]
        digest = hashlib.sha256(data).hexdigest()
        entries.append({"name": name, "offset": len(body), "size": len(data), "sha256": digest})
        body += data
    table = json.dumps({"sections": entries}, sort_keys=True).encode().ljust(TABLE_BYTES)
    head = FIXED.pack(MAGIC, VERSION, TABLE_BYTES, len(body), hashlib.sha256(table).digest())
    body[: FIXED.size + TABLE_BYTES] = head + table
    return bytes(body)


def cases(bases: Sequence[bytes], seed: int, count: int) -> Iterator[Case]:
    """`count` cases, the kinds in turn; the same for the same seed."""
    generator = random.Random(seed)
    kinds = list(KINDS.items())
    for number in range(count):
        kind, make = kinds[number % len(kinds)]
        yield Case(number, kind, make(generator.choice(bases), generator))


# Whole files ----------------------------------------------------------------------------------------------------------


def _flip(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8))):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _cut(data: bytes, generator: random.Random) -> bytes:
    match generator.randrange(4):
        case 0:
            return data[: generator.randrange(len(data))]
        case 1:
            return data[: generator.randrange(FIXED.size + 64)]
        case 2:
            return data + bytes(generator.randrange(1, 5000))
        case _:
            start = generator.randrange(len(data))
            return data[:start] + data[start + generator.randrange(1, 2000) :]


def _header(data: bytes, generator: random.Random) -> bytes:
    """Sizes in the fixed header that are far too large, and other versions."""
    values = list(FIXED.unpack(data[: FIXED.size]))
    which = generator.choice((1, 2, 3))
    values[which] = generator.choice((0, 1, 2, 63, 65_536, 65_537, 2**31, 2**32 - 1))
    if which == 3:
        values[3] = generator.choice((0, len(data) - 1, len(data) + 1, 2**40, 2**63, 2**64 - 1))
    return FIXED.pack(*values) + data[FIXED.size :]


def _table(data: bytes, generator: random.Random) -> bytes:
    """A signed table of sections that lie elsewhere, overlap, are missing, or are no sections."""
    table = json.loads(data[FIXED.size : FIXED.size + TABLE_BYTES])
    listed = table["sections"]
    section = generator.choice(listed)
    match generator.randrange(7):
        case 0:
            section["offset"] = generator.choice((0, 64, 1088, 2**40, 2**63, -64))
        case 1:
            section["size"] = generator.choice((0, 1, 2**40, 2**63, 10**30, -1))
        case 2:
            section["name"] = generator.choice(("../../etc/passwd", "/etc/passwd", "", "x" * 300, "program.mlir\x00"))
        case 3:
            listed.remove(section)
        case 4:
            generator.shuffle(listed)
        case 5:
            section[generator.choice(("name", "size", "offset", "sha256"))] = json.loads(
                generator.choice(("null", "[]", "{}", '"1"', "1.5"))
            )
        case _:
            tables = ("[]", "{}", '{"sections": {}}', '{"sections": [1, 2, 3]}', '{"sections": null}', "7")
            table = json.loads(generator.choice(tables))
    text = json.dumps(table).encode()
    text = text[:TABLE_BYTES].ljust(TABLE_BYTES)
    values = list(FIXED.unpack(data[: FIXED.size]))
    values[4] = hashlib.sha256(text).digest()
    return FIXED.pack(*values) + text + data[FIXED.size + TABLE_BYTES :]


class _Attack:
    """What unpickling would make of it: a file named `CANARY`."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (CANARY, "w")


def _foreign(data: bytes, generator: random.Random) -> bytes:
    """Other formats under the name, with and without our magic: zip bombs, gzip bombs, pickles."""
    match generator.randrange(5):
        case 0 | 1:
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
                name = generator.choice((PROGRAM, f"../../{CANARY}", "/etc/passwd"))
                # A date of its own: the same bytes whenever they are made.
                entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
                archive.writestr(entry, bytes(generator.choice((1 << 20, 1 << 25))), zipfile.ZIP_DEFLATED)
            forged = stream.getvalue()
        case 2:
            forged = gzip.compress(bytes(1 << 24), 9, mtime=0)
        case 3:
            forged = pickle.dumps(_Attack())
        case _:
            forged = generator.randbytes(generator.randrange(1, 5000))
    return forged if generator.random() < 0.5 else MAGIC + forged[len(MAGIC) :]


# Signed sections ------------------------------------------------------------------------------------------------------


def _with(data: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    sections = sections_of(data)
    sections[name] = change(sections[name])
    return signed(sections)


def _text_bytes(data: bytes, generator: random.Random) -> bytes:
    return _with(data, PROGRAM, lambda text: _flip(text, generator))


HUGE = (
    0,
    1,
    2,
    3,
    7,
    63,
    64,
    65,
    127,
    128,
    129,
    255,
    1 << 16,
    1 << 31,
    (1 << 31) - 1,
    1 << 40,
    1 << 63,
    1 << 64,
    10**40,
)


def _text_number(data: bytes, generator: random.Random) -> bytes:
    """One number of the program replaced."""

    def change(text: bytes) -> bytes:
        found = list(re.finditer(rb"(?<![\w%#.])-?\d+(?:\.\d+)?", text))
        place = generator.choice(found)
        number = generator.choice((*HUGE, -1, -64, int(float(place[0])) + generator.choice((-1, 1, 2))))
        new = str(number).encode() if generator.random() < 0.9 else b"1e308"
        return text[: place.start()] + new + text[place.end() :]

    return _with(data, PROGRAM, change)


def _text_size(data: bytes, generator: random.Random) -> bytes:
    """A dimension of a type, or the bound of a loop, made large: memory and time without end."""

    def change(text: bytes) -> bytes:
        found = list(re.finditer(rb"(?<=[<x])\d+(?=x)|(?<= to )\d+|(?<=step )\d+|(?<=depth )\d+", text))
        place = generator.choice(found)
        new = str(generator.choice((10**4, 10**6, 10**7, 10**9, 10**12, 10**18, 1 << 62))).encode()
        if generator.random() < 0.5:
            # Everywhere the same, so that types still agree.
            old = re.escape(place[0])
            return re.sub(rb"(?<=[<x ])" + old + rb"(?=[x ])", new, text)
        return text[: place.start()] + new + text[place.end() :]

    return _with(data, PROGRAM, change)


def _text_lines(data: bytes, generator: random.Random) -> bytes:
    """Lines of the program removed, doubled, swapped or moved."""

    def change(text: bytes) -> bytes:
        lines = text.split(b"\n")
        for _ in range(generator.choice((1, 1, 2, 5))):
            i, j = generator.randrange(len(lines)), generator.randrange(len(lines))
            match generator.randrange(4):
                case 0:
                    del lines[i]
                case 1:
                    lines.insert(j, lines[i])
                case 2:
                    lines[i], lines[j] = lines[j], lines[i]
                case _:
                    lines.insert(j, lines.pop(i))
        return b"\n".join(lines)

    return _with(data, PROGRAM, change)


def _text_words(data: bytes, generator: random.Random) -> bytes:
    """Words of the program replaced by other words of it."""

    def change(text: bytes) -> bytes:
        for _ in range(generator.choice((1, 2, 4))):
            words = list(re.finditer(rb"[%#@!]?[\w.]+", text))
            place, other = generator.choice(words), generator.choice(words)
            text = text[: place.start()] + other[0] + text[place.end() :]
        return text

    return _with(data, PROGRAM, change)


def _text_forged(data: bytes, generator: random.Random) -> bytes:
    """Paths, code and depth where the program has names."""
    names = (
        b"/etc/passwd",
        b"../../../../etc/passwd",
        b"file:///etc/passwd",
        f"');open('{CANARY}','w');('".encode(),
        f'\\");import os;os.system(\\"touch {CANARY}\\")#'.encode(),
        f"__import__('os').system('touch {CANARY}')".encode(),
        b"\\00\\0a\\22",
        b"a" * 100_000,
        b"{0.__class__}",
        b"%s%s%n",
        "name‮\ud7ff😀".encode(),
    )

    def change(text: bytes) -> bytes:
        match generator.randrange(5):
            case 0 | 1:
                strings = list(re.finditer(rb'"[^"\n]*"', text))
                place = generator.choice(strings)
                return text[: place.start()] + b'"' + generator.choice(names) + b'"' + text[place.end() :]
            case 2:
                key = generator.choice((b"nn.weights", b"core.machine", b"nn.file", b"path"))
                value = generator.choice((*names, b"/dev/zero", b"/proc/self/mem", b"./machine.toml", b"../x.toml"))
                text = re.sub(rb'core\.machine = "[^"]*"', b"", text) if key == b"core.machine" else text
                first, brace, rest = text.partition(b"{")
                sep = b"" if rest.lstrip().startswith(b"}") else b", "
                if not first.rstrip().endswith(b"attributes"):
                    return text.replace(b"builtin.module", b'builtin.module attributes {%s = "%s"}' % (key, value), 1)
                return first + brace + b'%s = "%s"' % (key, value) + sep + rest
            case 3:
                depth = generator.choice((200, 2000, 50_000))
                kind = generator.choice((b"[", b"(", b"{a = "))
                return text.replace(b"builtin.module", b"builtin.module attributes {deep = " + kind * depth + b"}", 1)
            case _:
                depth = generator.choice((200, 2000, 20_000))
                return b'"a.b"() ({\n' * depth + text + b"}) : () -> ()\n" * depth

    return _with(data, PROGRAM, change)


def _seeds(data: bytes, generator: random.Random) -> bytes:
    """Weights that are made instead of stored, of any size."""

    def change(text: bytes) -> bytes:
        place = generator.choice(list(re.finditer(rb'nn\.weight "[0-9a-f]+"', text)))
        how = generator.choice((b" seeded<7>", b" splat<1.0>", b" dense<[1.0]>", b" splat<nan>"))
        text = text[: place.end()] + how + text[place.end() :]
        if generator.random() < 0.7:
            size = str(generator.choice((10**5, 10**7, 10**9, 10**12))).encode()
            text = text[: place.end()] + re.sub(
                rb"tensor<(\d+)x", b"tensor<" + size + b"x", text[place.end() :], count=2
            )
        return text

    return _with(data, PROGRAM, change)


def _metadata(data: bytes, generator: random.Random) -> bytes:
    def change(text: bytes) -> bytes:
        match generator.randrange(5):
            case 0:
                return _flip(text, generator)
            case 1:
                depth = generator.choice((100, 1000, 100_000))
                return (
                    b"[" * depth + b"]" * depth if generator.random() < 0.5 else b'{"a":' * depth + b"1" + b"}" * depth
                )
            case 2:
                return b'{"inputs": ' + b"9" * generator.choice((100, 5000, 1_000_000)) + b"}"
            case _:
                record = json.loads(text)
                key = generator.choice(list(record))
                texts = ("null", "7", "-1", '"x"', "[]", "{}", "[[]]", '{"size": 1000000000000}', "1e308", "true")
                value = json.loads(generator.choice(texts))
                if generator.random() < 0.3 and isinstance(record[key], list) and record[key]:
                    record[key] = record[key] * generator.choice((2, 1000))
                elif generator.random() < 0.5 and isinstance(record[key], dict) and record[key]:
                    record[key][generator.choice(list(record[key]))] = value
                elif generator.random() < 0.3:
                    del record[key]
                else:
                    record[key] = value
                return json.dumps(record).encode()

    return _with(data, METADATA, change)


def _weights(data: bytes, generator: random.Random) -> bytes:
    """The header of the weights: lengths, places, shapes and types that do not fit; and the bytes of weights."""

    def change(section: bytes) -> bytes:
        length = int.from_bytes(section[:8], "little")
        match generator.randrange(5):
            case 0:
                return _flip(section[: 8 + length], generator) + section[8 + length :]
            case 1:
                value = generator.choice((0, 1, 2, len(section), len(section) - 8, 2**31, 2**62, 2**64 - 1))
                return value.to_bytes(8, "little") + section[8:]
            case 2:
                return section[:8] + generator.randbytes(min(length, 200)) + section[8 + min(length, 200) :]
            case _:
                header = json.loads(section[8 : 8 + length])
                entry = header[generator.choice(list(header))]
                key = generator.choice(("dtype", "shape", "data_offsets"))
                shape = entry["shape"]
                choices: dict[str, tuple[object, ...]] = {
                    "dtype": ("F64", "I8", "F8", 7, None, "O", "object"),
                    "shape": ([], [0], [-1], [10**12], [2**63], [*shape, 1], [*shape, 2**40], "x", [1.5], shape[::-1]),
                    "data_offsets": ([0, 0], [0, 2**63], [-2, 2], [2, 0], [0], None, [0, 10**30], ["0", "1"]),
                }
                entry[key] = generator.choice(choices[key])
                text = json.dumps(header, separators=(",", ":")).encode()
                text = text.ljust(length)
                return len(text).to_bytes(8, "little") + text + section[8 + length :]

    return _with(data, WEIGHTS, change)


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flips": _flip,
    "truncated, longer or with a hole": _cut,
    "sizes and version of the header": _header,
    "table of sections, signed": _table,
    "zip bombs, pickles, other formats": _foreign,
    "program: bytes, signed": _text_bytes,
    "program: numbers, signed": _text_number,
    "program: sizes and bounds, signed": _text_size,
    "program: lines, signed": _text_lines,
    "program: words, signed": _text_words,
    "program: paths, code and depth, signed": _text_forged,
    "program: made weights, signed": _seeds,
    "metadata, signed": _metadata,
    "weights: header and values, signed": _weights,
}
"""How a file can be wrong, by name."""
