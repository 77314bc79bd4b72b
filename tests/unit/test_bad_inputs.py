"""Broken inputs, through the command lines: one line with the cause, a code that is not 0, nothing half-written."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from neuron_mlir.runtime.modules import read_module
from neuron_mlir.runtime.package import write_artifact
from neuron_mlir.tools import neuron_cc, neuron_opt, neuron_run

GOLDEN = Path(__file__).parents[1] / "lit" / "golden" / "two_stage_final.mlir"

Make = Callable[[Path], None]
"""Writes the broken file."""


def model(
    nodes: list[NodeProto],
    *,
    shape: tuple[int | str, ...] = (1, 4),
    out: tuple[int | str, ...] = (1, 4),
    weights: dict[str, Any] | None = None,
    domain: str = "",
) -> ModelProto:
    """A model of an input `x`, an output `y` and the given nodes and weights, unchecked."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", **attributes: Any) -> NodeProto:
    """A node that is called as its operator unless told otherwise."""
    return helper.make_node(op, inputs, outputs, name=name or op.lower(), **attributes)


def relu() -> ModelProto:
    return model([node("Relu", ["x"], ["y"], "act")])


def saved(proto: ModelProto) -> Make:
    return written(proto.SerializeToString())


def written(data: bytes) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def no_file(path: Path) -> None:
    """Nothing is there."""


def external(location: str) -> Make:
    """A weight whose bytes are said to be in another file."""
    proto = model([node("Add", ["x", "w"], ["y"])], weights={"w": np.ones((1, 4))})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value=location))
    return saved(proto)


def control_flow() -> ModelProto:
    inner = helper.make_graph([node("Relu", ["x"], ["z"])], "b", [], [helper.make_empty_tensor_value_info("z")])
    branch = node("If", ["c"], ["y"], "choose", then_branch=inner, else_branch=inner)
    proto = model([branch])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    return proto


CYCLE = model([node("Add", ["x", "b"], ["a"], "first"), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"], "last")])
WEIGHT = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
GEMM = model([node("MatMul", ["x", "w"], ["y"], "fc")], out=(1, 64), weights={"w": WEIGHT})
NAN = model([node("Add", ["x", "w"], ["y"])], weights={"w": [[1.0, np.nan, 0.0, 0.0]]})
OPEN = model([node("Relu", ["x"], ["y"])], shape=("batch", 4), out=("batch", 4))

MODELS: dict[str, tuple[Make, list[str], str]] = {
    "missing file": (no_file, [], "there is no file"),
    "directory": (Path.mkdir, [], "is a directory"),
    "empty file": (written(b""), [], "is empty"),
    "text file": (written(b"This is no model.\n" * 9), [], "not an ONNX"),
    "truncated": (written(GEMM.SerializeToString()[:-200]), [], "truncated"),
    "noise": (written(bytes(range(7, 250)) * 40), [], ""),
    "cycle": (saved(CYCLE), [], "cycle"),
    "unknown operator": (saved(model([node("Frobnicate", ["x"], ["y"], "f1")])), [], "'Frobnicate'"),
    "foreign domain": (
        saved(model([node("Relu", ["x"], ["y"], domain="com.example")], domain="com.example")),
        [],
        "com.example",
    ),
    "undefined tensor": (saved(model([node("Add", ["x", "nowhere"], ["y"])])), [], "nowhere"),
    "wrong rank": (
        saved(model([node("Conv", ["x", "w"], ["y"], "conv1")], weights={"w": np.ones((4, 4, 3, 3))})),
        [],
        "conv1",
    ),
    "shapes that do not fit": (
        saved(model([node("MatMul", ["x", "w"], ["y"], "fc")], weights={"w": np.ones((5, 4))})),
        [],
        "fc",
    ),
    "NaN weight": (saved(NAN), [], "NaN"),
    "infinite weight": (
        saved(model([node("Add", ["x", "w"], ["y"])], weights={"w": [[np.inf, 0, 0, 0]]})),
        [],
        "infinit",
    ),
    "zero-size input": (saved(model([node("Relu", ["x"], ["y"])], shape=(0, 4), out=(0, 4))), [], ""),
    "open axis": (saved(OPEN), [], "--io-config"),
    "control flow": (saved(control_flow()), [], "control flow"),
    "external data missing": (external("gone.bin"), [], "gone.bin"),
    "external data elsewhere": (external("../../../etc/passwd"), [], "passwd"),
    "io-config: no JSON": (saved(OPEN), ["--io-config", "{'x': 3}"], "is not JSON"),
    "io-config: no file": (saved(OPEN), ["--io-config", "gone.json"], "gone.json"),
    "io-config: other name": (saved(OPEN), ["--io-config", '{"inputs": {"z": [[1, 4], "float32"]}}'], "'z'"),
    "io-config: other rank": (saved(OPEN), ["--io-config", '{"inputs": {"x": [[1, 4, 4], "float32"]}}'], "x"),
    "io-config: other type": (saved(OPEN), ["--io-config", '{"inputs": {"x": [[1, 4], "int64"]}}'], "x"),
    "no cores": (saved(GEMM), ["--neuroncore-pipeline-cores", "0"], "number of cores or auto"),
    "half a core": (saved(GEMM), ["--neuroncore-pipeline-cores", "1.5"], "number of cores or auto"),
    "too many cores": (saved(GEMM), ["--neuroncore-pipeline-cores", "65"], "has 64 cores"),
    "more cores than layers": (saved(GEMM), ["--neuroncore-pipeline-cores", "9"], "9 stages"),
    "batch of none": (saved(GEMM), ["--batch-size", "0"], "--batch-size"),
    "unknown machine": (saved(GEMM), ["--machine", "inferentia9"], "inferentia9"),
    "no such machine file": (saved(GEMM), ["--machine", "gone.toml"], "gone.toml"),
}


def one_line(capsys: pytest.CaptureFixture[str], code: int | str | None) -> str:
    """The error; checked to be one, of a line, perhaps with the op below, without a traceback."""
    captured = capsys.readouterr()
    assert code == 1, captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err and "internal error" not in captured.err
    first, *rest = captured.err.rstrip("\n").split("\n")
    assert first.startswith("error: ") and len(first) < 600
    assert all(line.startswith("  ") for line in rest), captured.err
    return first


@pytest.mark.parametrize("case", MODELS)
def test_compile(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, flags, message = MODELS[case]
    path, output, summary = tmp_path / "model.onnx", tmp_path / "out.neff", tmp_path / "out.json"
    make(path)
    before = sorted(tmp_path.iterdir())
    code = neuron_cc.main(["compile", str(path), "--output", str(output), "--json", str(summary), *flags])
    assert message in one_line(capsys, code)
    assert sorted(tmp_path.iterdir()) == before


def test_a_failed_compilation_keeps_the_old_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, broken = tmp_path / "out.neff", tmp_path / "nan.onnx"
    output.write_bytes(b"of yesterday")
    saved(NAN)(broken)
    one_line(capsys, neuron_cc.main(["compile", str(broken), "--output", str(output)]))
    assert output.read_bytes() == b"of yesterday"


def test_an_interrupted_compilation_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("neuron_mlir.runtime.compiler.plan_json", interrupt)
    path = tmp_path / "model.onnx"
    saved(GEMM)(path)
    assert neuron_cc.main(["compile", str(path), "--output", str(tmp_path / "out.neff")]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("gone/out.neff", "directory that does not exist"),
        ("folder", "is a directory"),
        ("model.onnx", "is the model itself"),
        # A file system that nobody may write to, not even root.
        ("/proc/out.neff", "cannot be written"),
        ("/dev/full", "is not a regular file"),
    ],
)
def test_outputs(output: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    (tmp_path / "folder").mkdir()
    saved(relu())(path)
    content = path.read_bytes()
    code = neuron_cc.main(["compile", str(path), "--output", os.path.join(tmp_path, output)])
    assert message in one_line(capsys, code)
    assert path.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder", path]


def test_a_full_disk(tmp_path: Path) -> None:
    """Files of the process may have 1,024 bytes, which is found out in the middle of writing."""
    path = tmp_path / "model.onnx"
    saved(relu())(path)
    done = subprocess.run(
        [sys.executable, "-m", "neuron_mlir.tools.neuron_cc", "compile", str(path), "-o", str(tmp_path / "out.neff")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: output '") and "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


MACHINES: dict[str, tuple[str, str]] = {
    "no TOML": ("cores = ", "machine"),
    "unknown key": ("[sbuf]\nbytes_per_partitions = 5\n", "bytes_per_partition"),
    "not a number": ('[sbuf]\nbytes_per_partition = "many"\n', "integer"),
    "negative": ("[sbuf]\nbytes_per_partition = -1\n", "positive"),
    "impossible": ("[sbuf]\npartitions = 64\n", "sbuf.partitions"),
}


@pytest.mark.parametrize("case", MACHINES)
def test_machines(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = MACHINES[case]
    path, machine = tmp_path / "model.onnx", tmp_path / "my.toml"
    saved(GEMM)(path)
    machine.write_text(text)
    code = neuron_cc.main(["compile", str(path), "--output", str(tmp_path / "o.neff"), "--machine", str(machine)])
    assert message in one_line(capsys, code)
    assert not (tmp_path / "o.neff").exists()


# Programs -------------------------------------------------------------------------------------------------------------

PROGRAMS: dict[str, tuple[bytes | str, str]] = {
    "missing": ("", "No such file"),
    "noise": (bytes(range(128, 256)) * 8, "neither a compiled artifact"),
    "syntax": ("func.func @main( {", "program"),
    "unknown op": ('func.func @main() { "nn.nothing"() : () -> () \n func.return }', "nn.nothing"),
    "nothing to run": ("builtin.module {}", "nothing to run"),
    "use before definition": (
        "func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {\n"
        "  %a = nn.relu %b : tensor<2xf32>\n"
        "  %b = nn.relu %x : tensor<2xf32>\n  func.return %a : tensor<2xf32>\n}",
        "%b",
    ),
    "wrong type": (
        "func.func @main(%x: tensor<2xf32>) -> tensor<3xf32> {\n"
        "  %a = nn.reshape %x : (tensor<2xf32>) -> tensor<3xf32>\n  func.return %a : tensor<3xf32>\n}",
        "nn.reshape",
    ),
    "weights gone": (
        'builtin.module attributes {nn.weights = "gone.onnx"} {\n'
        '  func.func @main() -> tensor<2xf32> {\n    %w = nn.weight "w" : tensor<2xf32>\n'
        "    func.return %w : tensor<2xf32>\n  }\n}",
        "gone.onnx",
    ),
    "weight without values": (
        'func.func @main() -> tensor<2xf32> {\n  %w = nn.weight "w" : tensor<2xf32>\n'
        "  func.return %w : tensor<2xf32>\n}",
        "'w'",
    ),
    "capacity": (
        GOLDEN.read_text().replace('%w = core.alloc "w" at 0', '%w = core.alloc "w" at 98300'),
        "capacity overflow",
    ),
    "negative seed": (
        'func.func @main() -> tensor<2xf32> {\n  %w = nn.weight "w" seeded<-1> : tensor<2xf32>\n'
        "  func.return %w : tensor<2xf32>\n}",
        "program.mlir:2:31: needs a seed of 0 or more",
    ),
    "number beyond 64 bits": (
        "func.func @main(%x: tensor<2x3xf32>) -> tensor<3x2xf32> {\n"
        f"  %0 = nn.transpose %x perm [{10**20}, 0] : (tensor<2x3xf32>) -> tensor<3x2xf32>\n"
        "  func.return %0 : tensor<3x2xf32>\n}",
        "program.mlir:2:56: a number in front of this does not fit its type",
    ),
    "nested deeply": ("module {\n" * 500 + "}\n" * 500, "nested too deeply"),
    "control flow": (
        "func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {\n  cf.br ^bb1\n^bb1:\n"
        "  func.return %x : tensor<2xf32>\n}",
        "@main has control flow",
    ),
    "inputs of one name": (
        'func.func @main(%x: tensor<2xf32> {nn.name = "x"}, %y: tensor<2xf32> {nn.name = "x"}) -> tensor<2xf32> {\n'
        "  %0 = nn.add %x, %y : tensor<2xf32>, tensor<2xf32>\n  func.return %0 : tensor<2xf32>\n}",
        "inputs 0 and 1 of @main are both named 'x'",
    ),
    "read before it is written": (
        GOLDEN.read_text().replace("core.wait %act >= %r + 1", ""),
        "[at 'core.dma', \"",
    ),
    "deadlock": (GOLDEN.read_text().replace("%mm >= %r + 1", "%mm >= %r + 9"), "deadlock"),
    "wrong engine": (
        GOLDEN.read_text().replace("core.engine tensor {", "core.engine vector {"),
        "cannot run on engine vector",
    ),
    "out of range": (
        GOLDEN.read_text().replace("%xs[0, %r mod 2, 0] [128, 1, 512]", "%xs[0, %r mod 3, 0] [128, 1, 512]"),
        "out-of-range",
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = PROGRAMS[case]
    path, out = tmp_path / "program.mlir", tmp_path / "out.npz"
    if content:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code = neuron_run.main([str(path), "--outputs", str(out)])
    assert message in one_line(capsys, code)
    assert not out.exists()


PIPELINES: dict[str, tuple[str, str]] = {
    "control flow": ("nn-batch{size=2}", "control flow"),
    "control flow, in nn-cast": ("nn-cast", "control flow"),
    "control flow, in nn-rematerialize": ("nn-rematerialize", "control flow"),
    "control flow, in pipe-stage": ("pipe-stage", "control flow"),
    "inputs of one name": ("nn-fuse,pipe-stage", "both named 'x'"),
    "nested deeply": ("canonicalize", "nested too deeply"),
    "negative seed": ("canonicalize", "needs a seed of 0 or more"),
    "number beyond 64 bits": ("canonicalize", "does not fit its type"),
}


@pytest.mark.parametrize("case", PIPELINES)
def test_passes_on_programs(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, message = PIPELINES[case]
    path = tmp_path / "program.mlir"
    path.write_bytes(str(PROGRAMS[case.split(",")[0]][0]).encode())
    assert message in one_line(capsys, neuron_opt.main([str(path), "-p", pipeline]))


def test_a_network_that_is_its_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    saved(model([node("Identity", ["x"], ["y"])]))(path)
    line = one_line(capsys, neuron_cc.main(["compile", str(path), "--output", str(tmp_path / "o.neff")]))
    assert "no layers" in line and "try: " in line


TAMPERED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a bit": (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "digest of section"),
    "the version": (lambda data: data[:8] + struct.pack("<I", 7) + data[12:], "version 7"),
    "the end": (lambda data: data[: len(data) // 2], "is truncated"),
    "more at the end": (lambda data: data + bytes(8), "has bytes after its end"),
    "another file": (lambda _: b"PK\x03\x04" + bytes(60), "is not a compiled artifact"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_artifacts(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit, message = TAMPERED[case]
    path = tmp_path / "program.neff"
    write_artifact(str(path), read_module(GOLDEN), None, {})
    path.write_bytes(edit(path.read_bytes()))
    assert message in one_line(capsys, neuron_run.main([str(path), "--clock-only"]))


def test_a_model_is_not_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    saved(relu())(path)
    assert "neuron-cc compile" in one_line(capsys, neuron_run.main([str(path)]))


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("nn-fusion", "there is no pass named 'nn-fusion'"),
        ("pipe-stage{core=4}", "no option 'core'"),
        ("pipe-stage{cores=many}", "option 'cores'"),
        ("nn-cast{mode=int8}", "option 'mode'"),
        ("neuron{cores=0}", "cores"),
        ("core-schedule", "core-lower"),
    ],
)
def test_pipelines(pipeline: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.mlir"
    saved(GEMM)(path)
    assert message in one_line(capsys, neuron_opt.main([str(path), "-p", pipeline, "-o", str(out)]))
    assert not out.exists()


@pytest.mark.parametrize("tool", ["neuron_cc", "neuron_run", "neuron_opt"])
def test_as_a_process(tool: str, tmp_path: Path) -> None:
    """What a shell sees: the exit code, and standard error without a traceback."""
    path = tmp_path / "model.onnx"
    path.write_bytes(GEMM.SerializeToString()[:100])
    arguments = ["compile", str(path), "--output", str(tmp_path / "o.neff")] if tool == "neuron_cc" else [str(path)]
    done = subprocess.run(
        [sys.executable, "-m", f"neuron_mlir.tools.{tool}", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]
