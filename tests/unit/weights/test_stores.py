"""Weight stores: what they hand out, that they do not copy, and what they say about broken files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, StringAttr

from neuron_mlir.errors import NeuronError
from neuron_mlir.weights import DictStore, OnnxStore, SafetensorsStore, WeightStore, digest, open_weights

LARGE = np.arange(3000, dtype=np.float32).reshape(30, 100)
SMALL = np.array([1.0, 2.0], np.float32)


def _model(initializers: list[TensorProto], nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    body = [*(nodes or []), helper.make_node("Relu", ["x"], ["y"])]
    return helper.make_model(helper.make_graph(body, "g", [x], [y], initializers))


def _external(location: str, *, offset: int = 0, length: int | None = None) -> TensorProto:
    tensor = TensorProto(name="w", dims=[30, 100], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value=str(offset))
    if length is not None:
        tensor.external_data.add(key="length", value=str(length))
    return tensor


def _save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def _root(array: NDArray[Any]) -> Any:
    base: Any = array
    while getattr(base, "base", None) is not None:
        base = base.base
    return base


def test_onnx_store_reads_large_tensors_as_views_of_the_file(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(LARGE * 2, "ignored"))
    path = _save(
        tmp_path / "m.onnx",
        _model([numpy_helper.from_array(LARGE, "w"), numpy_helper.from_array(SMALL, "s")], [constant]),
    )
    store = OnnxStore(path)
    assert isinstance(store, WeightStore)
    assert list(store.names()) == ["w", "s", "k"]
    np.testing.assert_array_equal(store.get("w"), LARGE)
    np.testing.assert_array_equal(store.get("s"), SMALL)
    np.testing.assert_array_equal(store.get("k"), LARGE * 2)
    assert not store.get("w").flags.writeable
    assert isinstance(_root(store.get("w")), memoryview)
    assert len(store.file.model.SerializeToString()) < LARGE.nbytes
    info = store.describe("w")
    assert (info.shape, info.dtype, info.digest) == ((30, 100), "f32", digest(LARGE))


def test_onnx_store_reads_what_onnx_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        dtype: rng.integers(0, 2, (40, 50)).astype(dtype)
        for dtype in ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")
    }
    raw = [numpy_helper.from_array(array, f"raw_{name}") for name, array in arrays.items()]
    typed = [
        helper.make_tensor(f"typed_{name}", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel())
        for name, array in arrays.items()
    ]
    bf16 = helper.make_tensor("bf16", TensorProto.BFLOAT16, [3], [1.0, -2.0, 0.5])
    model = _model([*raw, *typed, bf16])
    for store in (OnnxStore(_save(tmp_path / "m.onnx", model)), OnnxStore(model)):
        for name, array in arrays.items():
            for form in ("raw", "typed"):
                got = store.get(f"{form}_{name}")
                assert got.dtype == array.dtype
                np.testing.assert_array_equal(got, array)
        np.testing.assert_array_equal(store.get("bf16").astype(np.float32), [1.0, -2.0, 0.5])
        assert store.describe("bf16").dtype == "bf16"


def test_external_data_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 64 + LARGE.tobytes())
    path = _save(tmp_path / "m.onnx", _model([_external("w.bin", offset=64, length=LARGE.nbytes)]))
    array = OnnxStore(path).get("w")
    np.testing.assert_array_equal(array, LARGE)
    assert isinstance(_root(array), memoryview)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "", "..\\w.bin", "link/w.bin"])
def test_external_data_outside_the_model_directory_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(LARGE.tobytes())
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "link").symlink_to(tmp_path)
    path = _save(directory / "m.onnx", _model([_external(location)]))
    with pytest.raises(NeuronError, match="not inside the model's directory"):
        OnnxStore(path).get("w")


def test_external_data_missing_or_short(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", _model([_external("w.bin", length=LARGE.nbytes)]))
    with pytest.raises(NeuronError, match=r"external data file 'w\.bin' of tensor 'w' is missing"):
        OnnxStore(path).get("w")
    (tmp_path / "w.bin").write_bytes(LARGE.tobytes()[:-4])
    with pytest.raises(NeuronError, match="beyond the end") as caught:
        OnnxStore(path).get("w")
    assert caught.value.needed == "12000 bytes"
    with pytest.raises(NeuronError, match="given in memory"):
        OnnxStore(_model([_external("w.bin")])).get("w")


def test_bytes_that_do_not_fit_the_shape(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(LARGE, "w")
    tensor.dims[0] = 31
    with pytest.raises(NeuronError, match=r"do not fit its shape \[31, 100\]"):
        OnnxStore(_save(tmp_path / "m.onnx", _model([tensor]))).get("w")


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path: Path, cut: float) -> None:
    data = _model([numpy_helper.from_array(LARGE, "w")]).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(NeuronError, match="truncated"):
        OnnxStore(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is no model", "not an ONNX file"),
        (b"PK\x03\x04" + b"\0" * 40, "zip archive"),
        (b"builtin.module {}", "MLIR text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\xff" * 64, "not an ONNX file"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(NeuronError, match=message):
        OnnxStore(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(NeuronError, match="there is no file"):
        OnnxStore(tmp_path / "none.onnx")
    with pytest.raises(NeuronError, match="is a directory"):
        OnnxStore(tmp_path)


def test_missing_weight_names_the_nearest() -> None:
    store = DictStore({"conv1.weight": SMALL})
    with pytest.raises(NeuronError) as caught:
        store.get("conv1.weigth")
    assert "conv1.weight" in (caught.value.advice or "")


def test_dict_store_is_read_only_and_shares_memory() -> None:
    source = SMALL.copy()
    view = DictStore({"s": source}).get("s")
    assert not view.flags.writeable
    assert np.shares_memory(view, source)
    assert source.flags.writeable


def _safetensors(path: Path, entries: dict[str, tuple[str, NDArray[Any]]]) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    body = b""
    for name, (dtype, array) in entries.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_safetensors_store(tmp_path: Path) -> None:
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

    path = tmp_path / "w.safetensors"
    save_file({"a": LARGE, "b": np.arange(4, dtype=np.int64)}, path)
    store = SafetensorsStore(path)
    assert sorted(store.names()) == ["a", "b"]
    np.testing.assert_array_equal(store.get("a"), LARGE)
    np.testing.assert_array_equal(store.get("b"), np.arange(4))
    assert isinstance(_root(store.get("a")), memoryview)
    bf16 = _safetensors(tmp_path / "b.safetensors", {"h": ("BF16", np.array([0x3F80, 0xC000], np.uint16))})
    np.testing.assert_array_equal(SafetensorsStore(bf16).get("h").astype(np.float32), [1.0, -2.0])


def test_broken_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 1000) + b"{}")
    with pytest.raises(NeuronError, match="not a safetensors file"):
        SafetensorsStore(path)
    path.write_bytes(struct.pack("<Q", 8) + b'{"a": 1}')
    with pytest.raises(NeuronError, match="broken safetensors header"):
        SafetensorsStore(path)
    _safetensors(path, {"a": ("F32", LARGE)})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(NeuronError, match="do not fit"):
        SafetensorsStore(path).get("a")
    with pytest.raises(NeuronError, match="unsupported type C64"):
        SafetensorsStore(_safetensors(path, {"a": ("C64", LARGE)})).get("a")


def test_digest_tells_values_types_and_shapes_apart() -> None:
    big = np.zeros(1_000_000, np.float32)
    last = big.copy()
    last[-1] = 1
    digests = [
        digest(SMALL),
        digest(SMALL.reshape(2, 1)),
        digest(SMALL.view(np.int32)),
        digest(SMALL[::-1]),
        digest(big),
        digest(last),
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(text) == 16 for text in digests)
    assert digest(big).startswith("~")


def test_open_weights_follows_the_module_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path / "m.onnx", _model([numpy_helper.from_array(LARGE, "w")]))
    module = ModuleOp([], {"nn.weights": StringAttr("m.onnx")})
    np.testing.assert_array_equal(open_weights(module, tmp_path).get("w"), LARGE)
    with pytest.raises(NeuronError, match=r"weight file 'm\.onnx' of this module is not there"):
        open_weights(module)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(open_weights(module, tmp_path / "elsewhere").get("w"), LARGE)
    assert list(open_weights(ModuleOp([])).names()) == []
    with pytest.raises(NeuronError, match="must be a string"):
        open_weights(ModuleOp([], {"nn.weights": IntegerAttr(1, 64)}))
