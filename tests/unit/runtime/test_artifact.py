"""The artifact: what is written is read back, and what was changed since is refused."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.artifact import (
    ALIGNMENT,
    FIXED,
    MAGIC,
    PADDING,
    SECTIONS,
    WEIGHTS,
    SectionStore,
    is_artifact,
    read_artifact,
)
from neuron_mlir.runtime.modules import interface_json, module_text, parse_module, read_module
from neuron_mlir.runtime.package import stored, write_artifact
from neuron_mlir.simulator.run import random_inputs, run_module
from neuron_mlir.weights import DictStore

GOLDEN = Path(__file__).parents[2] / "lit" / "golden" / "two_stage_final.mlir"

NET = """
builtin.module attributes {nn.weights = "elsewhere.onnx"} {
  func.func @main(%x: tensor<2x3xf32> {nn.name = "x"}) -> (tensor<2x4xf32> {nn.name = "y"}) {
    %w = nn.weight "w" : tensor<3x4xf32>
    %wb = nn.const {
      %0 = nn.weight "w" : tensor<3x4xf32>
      %1 = nn.cast %0 : (tensor<3x4xf32>) -> tensor<3x4xbf16>
      nn.yield %1 : tensor<3x4xbf16>
    } : tensor<3x4xbf16>
    %h = nn.weight "h" dense<[1.5, 65504.0, -0.25, 0.0]> : tensor<4xf16>
    %a = nn.matmul %x, %w : (tensor<2x3xf32>, tensor<3x4xf32>) -> tensor<2x4xf32>
    %b = nn.matmul %x, %wb : (tensor<2x3xf32>, tensor<3x4xbf16>) -> tensor<2x4xf32>
    %c = nn.add %a, %b : tensor<2x4xf32>, tensor<2x4xf32>
    %d = nn.add %c, %h : tensor<2x4xf32>, tensor<4xf16> loc(fused["last", "one"(unknown), "f.mlir":3:4])
    func.return %d : tensor<2x4xf32>
  }
}
"""


def weights() -> DictStore:
    return DictStore({"w": np.random.default_rng(1).standard_normal((3, 4), np.float32)})


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.neff"
    write_artifact(str(path), read_module(GOLDEN), None, {"note": "ü"})
    return path


def test_the_golden_program_runs_the_same_from_an_artifact(golden: Path) -> None:
    original = read_module(GOLDEN)
    feeds = [random_inputs(original, seed) for seed in range(3)]
    expected = run_module(original, feeds)
    artifact = read_artifact(golden)
    actual = run_module(artifact.module(), feeds, weights=artifact.weights)
    for before, after in zip(expected.requests, actual.requests, strict=True):
        np.testing.assert_array_equal(before["y"], after["y"])
    assert artifact.metadata["note"] == "ü"
    assert artifact.metadata["outputs"] == [{"name": "y", "dtype": "f32", "shape": [32, 512]}]
    # Two constants in bf16: two bytes each element, and the text names no other source of values.
    assert artifact.weights.nbytes == 2 * (128 * 64 + 64 * 32)
    assert "seeded" not in artifact.program


def test_constants_at_the_level_of_tensors(tmp_path: Path) -> None:
    path = str(tmp_path / "net.neff")
    module = parse_module(NET, "net")
    feed = random_inputs(module, 3)
    expected = run_module(module, feed, weights=weights()).outputs["y"]
    packaged = write_artifact(path, module, weights(), {})
    artifact = read_artifact(path)
    after = artifact.module()
    np.testing.assert_array_equal(run_module(after, feed, weights=artifact.weights).outputs["y"], expected)
    assert packaged.weights == 3
    assert "nn.const" not in artifact.program and "elsewhere" not in artifact.program
    assert 'loc(fused["last", "one"(unknown), "f.mlir":3:4])' in artifact.program
    assert sorted(str(artifact.weights.get(name).dtype) for name in artifact.weights.names()) == [
        "bfloat16",
        "float16",
        "float32",
    ]


def test_equal_constants_are_stored_once(tmp_path: Path) -> None:
    text = """
    func.func @main() -> (tensor<4xf32>) {
      %a = nn.weight "a" splat<2.0> : tensor<4xf32>
      %b = nn.weight "b" dense<[2.0, 2.0, 2.0, 2.0]> : tensor<4xf32>
      %c = nn.add %a, %b : tensor<4xf32>, tensor<4xf32>
      func.return %c : tensor<4xf32>
    }"""
    assert write_artifact(str(tmp_path / "a.neff"), parse_module(text, "t"), None, {}).weights == 1


def test_same_input_same_bytes(tmp_path: Path, golden: Path) -> None:
    again = tmp_path / "other name.neff"
    write_artifact(str(again), read_module(GOLDEN), None, {"note": "ü"})
    assert again.read_bytes() == golden.read_bytes()
    # Packaging what was packaged changes nothing either.
    artifact = read_artifact(golden)
    write_artifact(str(again), artifact.module(), artifact.weights, {"note": "ü"})
    assert again.read_bytes() == golden.read_bytes()


def test_weights_are_views_of_the_file(golden: Path) -> None:
    artifact = read_artifact(golden)
    for name in artifact.weights.names():
        array = artifact.weights.get(name)
        assert not array.flags.owndata and not array.flags.writeable
        assert array.ctypes.data % ALIGNMENT == 0


def test_the_weights_section_is_a_safetensors_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

    path = tmp_path / "net.neff"
    write_artifact(str(path), parse_module(NET, "net"), weights(), {})
    artifact = read_artifact(path)
    section = next(section for section in artifact.sections if section.name == WEIGHTS)
    (tmp_path / "w.safetensors").write_bytes(path.read_bytes()[section.offset : section.offset + section.size])
    tensors = cast("dict[str, np.ndarray[Any, Any]]", load_file(tmp_path / "w.safetensors"))
    assert [name for name in sorted(tensors) if not name.startswith(PADDING)] == sorted(artifact.weights.names())
    assert any(name.startswith(PADDING) for name in tensors), "48 bytes of float32 leave a gap"
    for name in artifact.weights.names():
        assert tensors[name].tobytes() == artifact.weights.get(name).tobytes()


def test_bf16_takes_its_upper_half() -> None:
    values = np.array([1.0, -2.5, 0.0, -0.0, 3.0e38, np.inf, 1e-40], np.float32)
    held = stored(values, "bf16", "w")
    assert held.dtype == np.uint16
    assert held[:4].tolist() == [0x3F80, 0xC020, 0x0000, 0x8000]


def test_nan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nan.neff"
    broken = DictStore({"w": np.full((3, 4), np.nan, np.float32)})
    with pytest.raises(NeuronError, match="constant 'w' holds NaN"):
        write_artifact(str(path), parse_module(NET, "net"), broken, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file(
    golden: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    before = golden.read_bytes()

    def fail(*_: object, **__: object) -> str:
        raise interruption

    monkeypatch.setattr("neuron_mlir.runtime.package.module_text", fail)
    with pytest.raises(interruption):
        write_artifact(str(golden), read_module(GOLDEN), None, {})
    assert golden.read_bytes() == before
    assert list(golden.parent.iterdir()) == [golden]


# What was changed is refused ------------------------------------------------------------------------------------------


def resealed(data: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with its table changed and the digest of the table made right, as a forger would."""
    _, version, size, total, _ = FIXED.unpack(data[: FIXED.size])
    table = json.loads(data[FIXED.size : FIXED.size + size])
    edit(table)
    text = json.dumps(table).encode().ljust(size)
    return (
        FIXED.pack(MAGIC, version, len(text), total, hashlib.sha256(text).digest())
        + text
        + data[FIXED.size + len(text) :]
    )


def set_field(index: int, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    """An edit of the table: one field of one section."""

    def edit(table: dict[str, Any]) -> None:
        table["sections"][index][key] = value

    return edit


def drop_section(table: dict[str, Any]) -> None:
    table["sections"].pop()


def no_sections(table: dict[str, Any]) -> None:
    table.clear()


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


def flip_in(name: str) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        size = FIXED.unpack(data[: FIXED.size])[2]
        sections: list[dict[str, Any]] = json.loads(data[FIXED.size : FIXED.size + size])["sections"]
        section = next(entry for entry in sections if entry["name"] == name)
        at = int(section["offset"] + section["size"] // 2)
        return patched(data, at, bytes([data[at] ^ 1]))

    return flip


CHANGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "is empty"),
    "another format": (lambda data: b"PK\x03\x04" + data, "is not a compiled artifact"),
    "text mode": (lambda data: data.replace(b"\r\n", b"\n"), "is not a compiled artifact"),
    "header only": (lambda data: data[:20], "is truncated"),
    "truncated": (lambda data: data[:-1], "is truncated"),
    "cut in half": (lambda data: data[: len(data) // 2], "is truncated"),
    "trailing bytes": (lambda data: data + b"x", "has bytes after its end"),
    "another version": (lambda data: patched(data, 8, struct.pack("<I", 2)), "is an artifact of version 2"),
    "large table": (lambda data: patched(data, 12, struct.pack("<I", 1 << 30)), "table of sections is too large"),
    "changed table": (lambda data: patched(data, FIXED.size + 20, b"7"), "digest of the table"),
    **{f"changed {name}": (flip_in(name), f"digest of section {name}") for name in SECTIONS},
    "bytes in a gap": (
        lambda data: patched(data, FIXED.size + 1024 + 2, b"!"),
        "bytes outside of sections",
    ),
    "section beyond the end": (
        lambda data: resealed(data, set_field(2, "size", 1 << 20)),
        "do not end at the end of the file",
    ),
    "huge section": (lambda data: resealed(data, set_field(1, "size", 1 << 60)), "wrong place or size"),
    "overlapping sections": (lambda data: resealed(data, set_field(1, "offset", 64)), "wrong place or size"),
    "negative size": (lambda data: resealed(data, set_field(0, "size", -1)), "the sections are not"),
    "a path for a name": (
        lambda data: resealed(data, set_field(1, "name", "../../etc/x")),
        "the sections are not",
    ),
    "section missing": (lambda data: resealed(data, drop_section), "the sections are not"),
    "no sections": (lambda data: resealed(data, no_sections), "the sections are not"),
    "other digest": (lambda data: resealed(data, set_field(1, "sha256", "0" * 64)), "digest of section program"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused(golden: Path, change: str) -> None:
    edit, message = CHANGES[change]
    golden.write_bytes(edit(golden.read_bytes()))
    with pytest.raises(NeuronError, match=message) as caught:
        read_artifact(golden)
    assert "\n" not in caught.value.line


def test_every_single_byte_counts(golden: Path) -> None:
    """Changing any byte is noticed; every 97th is tried, in all parts of the file."""
    data = golden.read_bytes()
    for position in range(0, len(data), 97):
        golden.write_bytes(patched(data, position, bytes([data[position] ^ 0x20])))
        with pytest.raises(NeuronError):
            read_artifact(golden)


def section_bytes(header: object, data: bytes = bytes(16)) -> memoryview:
    text: bytes = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}},
        {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"w": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}},
        {"w": {"dtype": "OBJECT", "shape": [4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4]}},
        {"w": 3},
        ["w"],
        b"{",
        b"[" * 5000,
    ],
)
def test_a_forged_weights_header_is_refused(header: object) -> None:
    with pytest.raises(NeuronError):
        SectionStore(section_bytes(header), "here")


def test_the_weights_header_has_a_limit() -> None:
    with pytest.raises(NeuronError, match="has no header"):
        SectionStore(memoryview((1 << 62).to_bytes(8, "little") + bytes(64)), "here")


def test_metadata_and_program_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "net.neff"
    write_artifact(str(path), parse_module(NET, "net"), weights(), {})
    artifact = read_artifact(path)
    cast(list[Any], artifact.metadata["inputs"])[0]["shape"] = [1, 1]
    with pytest.raises(NeuronError, match="do not agree"):
        artifact.module()


def test_text_of_a_module_reads_back_with_locations() -> None:
    module = parse_module(NET, "net")
    text = module_text(module, locations=True)
    assert "loc(unknown)" not in text and " loc(" in text
    again = parse_module(text, "again")
    assert module_text(again, locations=True) == text
    assert interface_json(again) == interface_json(module)


def test_is_artifact_by_name_or_content(golden: Path, tmp_path: Path) -> None:
    assert is_artifact(golden)
    renamed = golden.rename(tmp_path / "program")
    assert is_artifact(renamed)
    other = tmp_path / "x.neff"
    other.write_text("module")
    assert is_artifact(other)
    assert not is_artifact(GOLDEN)
