"""AWS's flags of neuron-cc: the documented rules, what each does here, and that none is ignored in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from neuron_mlir.errors import NeuronError
from neuron_mlir.models.bert import CONFIGS, write_bert
from neuron_mlir.runtime.artifact import read_artifact
from neuron_mlir.runtime.batch_size import fits
from neuron_mlir.runtime.compiler import CompileOptions, check_static_weights
from neuron_mlir.runtime.flags import FAST_MATH, FastMath, fast_math, join_words
from neuron_mlir.simulator.interface import input_types
from neuron_mlir.tools import neuron_cc, neuron_opt


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("model") / "bert.onnx", CONFIGS["bert-tiny"], seq=16, layers=1)


def pipeline(capsys: pytest.CaptureFixture[str], model: Path, *flags: str) -> list[str]:
    """The passes that `--print-pipeline` shows."""
    assert neuron_cc.main(["compile", str(model), *flags, "--print-pipeline"]) == 0
    return capsys.readouterr().out.strip().split(",")


def refusal(capsys: pytest.CaptureFixture[str], model: Path, *flags: str) -> str:
    """The error of a compilation that a user's mistake ends."""
    assert neuron_cc.main(["compile", str(model), *flags, "--output", str(model.with_suffix(".neff"))]) == 1
    assert not model.with_suffix(".neff").exists()
    return capsys.readouterr().err


# --fast-math ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "fp32_cast", "expected"),
    [
        (None, None, FastMath("all", True)),
        ("all", None, FastMath("all", True)),
        ("none", None, FastMath("matmult-bf16", False)),
        ("fp32-cast-all fast-relayout", None, FastMath("all", True)),
        ("fp32-cast-matmult-bf16 no-fast-relayout", None, FastMath("matmult-bf16", False)),
        ("no-fast-relayout", None, FastMath("all", False)),
        # Single words come before what all and none stand for, in whatever order.
        ("none fp32-cast-all-fp16", None, FastMath("all-fp16", False)),
        ("fp32-cast-matmult all", None, FastMath("matmult", True)),
        ("none fast-relayout", None, FastMath("matmult-bf16", True)),
        # --fp32-cast comes before casting words, and leaves relayout alone.
        ("none", "all", FastMath("all", False)),
        ("fp32-cast-all no-fast-relayout", "matmult-fp16", FastMath("matmult-fp16", False)),
    ],
)
def test_fast_math_precedence(words: str | None, fp32_cast: str | None, expected: FastMath) -> None:
    assert fast_math(words, fp32_cast) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("all none", "all and none"),
        ("fast-relayout no-fast-relayout", "fast-relayout and no-fast-relayout"),
        ("fp32-cast-all fp32-cast-matmult", "fp32-cast-all and fp32-cast-matmult"),
        ("al", "no option 'al'"),
        ("", "needs at least one"),
    ],
)
def test_fast_math_exclusions(words: str, message: str) -> None:
    with pytest.raises(NeuronError, match=message):
        fast_math(words, None)


def test_words_do_not_swallow_the_model() -> None:
    assert join_words(["compile", "--fast-math", "none", "fast-relayout", "m.onnx", "-v"]) == [
        "compile",
        "--fast-math=none fast-relayout",
        "m.onnx",
        "-v",
    ]
    assert join_words(["compile", "--verbose", "m.onnx"]) == ["compile", "--verbose=INFO", "m.onnx"]
    assert join_words(["--verbose", "ERROR", "compile"]) == ["--verbose=ERROR", "compile"]
    assert join_words(["compile", "m.onnx", "--fast-math", "--verbose"]) == [
        "compile",
        "m.onnx",
        "--fast-math=",
        "--verbose=INFO",
    ]


@pytest.mark.parametrize("word", FAST_MATH)
def test_every_word_reaches_a_pass(word: str, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mode = fast_math(word, None).cast
    passes = pipeline(capsys, bert, "--fast-math", word)
    assert neuron_opt.main(["--print-pipeline", "-p", f"nn-cast{{mode={mode}}}"]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown in passes or f"nn-cast{{mode={mode}}}" in passes


# Flags that map to passes ---------------------------------------------------------------------------------------------


def test_flags_change_the_pipeline(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = pipeline(capsys, bert)
    assert "nn-replicate-inputs" in plain and "core-allocate" in plain and "nn-rematerialize" not in plain
    assert "nn-replicate-inputs" not in pipeline(capsys, bert, "--enable-replication", "False")
    assert "nn-replicate-inputs" in pipeline(capsys, bert, "--enable-replication=True")
    assert "nn-rematerialize" in pipeline(capsys, bert, "--rematerialization_en")
    passes = pipeline(capsys, bert, "--rematerialization_en", "--spill_dis")
    assert "nn-rematerialize{mode=recompute}" in passes and "core-allocate{spill=false}" in passes
    assert "pipe-stage{cores=3 split=true}" in pipeline(capsys, bert, "--num-neuroncores", "3")
    assert "pipe-replicate{copies=2}" in pipeline(capsys, bert, "--replicas", "2")
    assert "nn-batch{size=6}" in pipeline(capsys, bert, "--batch-size", "6")


def test_the_documented_flags_of_a_batch_all_at_once(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """AWS's application note on batching, word for word, but for the name of the framework."""
    output = tmp_path / "out.neff"
    flags = ["--batching_en", "--rematerialization_en", "--spill_dis", "--sb_size", str((4 + 6) * 10)]
    flags += ["--enable-replication", "True", "--num-neuroncores", "2", "--batch-size", "4"]
    assert neuron_cc.main(["compile", str(bert), "--framework", "ONNX", *flags, "--output", str(output)]) == 0
    assert "note: --batching_en" in capsys.readouterr().err
    artifact = read_artifact(output)
    assert artifact.metadata["machine"]["values"]["sbuf.bytes_per_partition"] == 100 * 1024
    assert len(artifact.metadata["stages"]) == 2
    assert {port.shape[0] for port in input_types(artifact.module())} == {4}


def test_flags_without_effect_say_so(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--enable-saturate-infinity", "--enable-fast-loading-neuron-binaries", "--enable-fast-context-switch"]
    output = str(tmp_path / "out.neff")
    relayout = ["--fast-math", "no-fast-relayout"]
    assert neuron_cc.main(["compile", str(bert), *flags, *relayout, "--output", output, "--json", "-"]) == 0
    captured = capsys.readouterr()
    for flag in (*flags, "--fast-math no-fast-relayout"):
        assert f"note: {flag}" in captured.err
    summary: dict[str, Any] = json.loads(captured.out)
    assert len(summary["flags_without_effect"]) == 4


def test_spill_dis_fails_with_the_shortage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = write_bert(tmp_path / "long.onnx", CONFIGS["bert-tiny"], seq=64, layers=1)
    line = refusal(capsys, long, "--spill_dis", "--sb_size", "1").splitlines()[0]
    assert "internal" not in line and "SBUF bytes per partition: needs " in line and "has 1024)" in line


SPILLS = """builtin.module attributes {
  core.machine = "inferentia1", core.machine_overrides = {sbuf.bytes_per_partition = 2048 : i64}
} {
  pipe.program @p {
    pipe.stage @s0 cores [0] () {
      pipe.load {
      }
      pipe.run (%r) {
        %a = core.alloc "a" : memref<64x256xf32, #core.sbuf>
        core.memset %a, 1.0
        %b = core.alloc "b" : memref<64x256xf32, #core.sbuf>
        core.memset %b, 2.0
        %c = core.alloc "c" : memref<64x256xf32, #core.sbuf>
        core.copy %c, %b
        core.tensor_tensor add %c, %c, %a
      }
    }
  }
}
"""


def test_what_needs_a_spill_is_refused_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.mlir"
    path.write_text(SPILLS)
    assert neuron_opt.main([str(path), "-p", "core-allocate"]) == 0
    assert 'core.spills = ["a"]' in capsys.readouterr().out
    assert neuron_opt.main([str(path), "-p", "core-allocate{spill=false}"]) == 1
    assert "(SBUF bytes per partition: needs 3072, has 2048)" in capsys.readouterr().err


MAP_IN_DRAM = """pipe.program @p {
  pipe.stage @s0 cores [0] () {
    pipe.load {
    }
    pipe.run (%r) {
      %a = core.alloc "a" : memref<128x64x256xf32, #core.dram>
      %b = core.alloc "b" : memref<128x64xf32, #core.sbuf>
      core.memset %b, 2.0
      core.dma %b -> %a[0, 0, 0] [128, 64, 1]
    }
  }
}
"""


def test_a_value_that_lies_in_dram_is_refused_without_spills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.mlir"
    path.write_text(MAP_IN_DRAM)
    assert neuron_opt.main([str(path), "-p", "core-allocate"]) == 0
    capsys.readouterr()
    assert neuron_opt.main([str(path), "-p", "core-allocate{spill=false}"]) == 1
    line = capsys.readouterr().err.splitlines()[0]
    assert "stage @s0 keeps 1 value in DRAM, and spills are off; the largest is 'a', 8388608 bytes" in line
    assert "(SBUF bytes per partition for one value: needs 65536, has 20480)" in line


def test_static_weights_fail_with_the_shortage(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, bert, "--static-weights", "--sb_size", "2").splitlines()[0]
    assert "cannot keep its weights in SBUF" in line and "SBUF bytes for weights on core 0: needs " in line
    check_static_weights([{"name": "s0", "cores": [0], "weight_bytes": 10}])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--framework", "TENSORFLOW"), "reads ONNX models"),
        (("--framework", "CAFFE"), "knows no such framework"),
        (("--num-neuroncores", "2", "--neuroncore-pipeline-cores", "3"), "say different things"),
        (("--num-neuroncores", "no"), "--num-neuroncores takes a number of cores"),
        (("--batch-size", "0"), "at least 1, or auto"),
        (("--replicas", "0"), "--replicas must be at least 1"),
        (("--fast-math", "all", "none"), "exclude each other"),
    ],
)
def test_mistakes(flags: tuple[str, ...], message: str, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, bert, *flags)


def test_verbose_levels(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out.neff")
    lines: dict[str, list[str]] = {}
    for level in ("DEBUG", "INFO", "WARN", "ERROR"):
        # AWS documents it before the command.
        assert neuron_cc.main(["--verbose", level, "compile", str(bert), "--output", output]) == 0
        captured = capsys.readouterr()
        lines[level] = captured.err.splitlines()
        assert bool(captured.out) == (level != "ERROR")
    assert lines["WARN"] == lines["ERROR"] == []
    assert [line.split()[0] for line in lines["INFO"]][:2] == ["import", "nn-fold-constants"]
    assert len(lines["DEBUG"]) > len(lines["INFO"])


# The batch ------------------------------------------------------------------------------------------------------------


def test_too_large_a_batch_is_refused_with_the_largest_that_fits(
    bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = refusal(capsys, bert, "--batch-size", "60", "--sb_size", "8", "-q").splitlines()
    assert lines[0].startswith("error: batch 60 is too large: stage @s0 does not fit the SBUF")
    assert "SBUF bytes per partition: needs " in lines[0] and "has 8192)" in lines[0]
    largest = int(lines[0].rsplit("--batch-size ", 1)[1].split(",")[0])
    options = CompileOptions(sbuf_bytes_per_partition=8192)
    assert fits(str(bert), options, largest) and not fits(str(bert), options, largest + 1)


def test_auto_takes_a_batch_it_has_simulated(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "out.json"
    output = str(tmp_path / "out.neff")
    flags = ["--batch-size", "auto", "--sb_size", "8", "--json", str(summary), "--output", output]
    assert neuron_cc.main(["compile", str(bert), *flags]) == 0
    assert "Batches tried" in capsys.readouterr().out
    data: dict[str, Any] = json.loads(summary.read_text())
    simulated = {each["batch"]: each["simulated"] for each in data["batch_search"] if each["simulated"] is not None}
    assert data["options"]["batch_size"] in simulated
    assert simulated[data["options"]["batch_size"]] >= 0.98 * max(simulated.values())
    assert data["inputs"][0]["shape"][0] == data["options"]["batch_size"]


def relu(path: Path, batch: int | str) -> Path:
    """A model of one layer with this batch, a name for an open one."""
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), str(path))
    return path


@pytest.mark.parametrize(
    ("batch", "size", "factor"), [(1, 6, 6), (2, 6, 3), (4, 6, None), ("N", 6, None), (6, 6, None)]
)
def test_the_pass_or_the_importer_sets_the_batch(
    batch: int | str, size: int, factor: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = relu(tmp_path / "m.onnx", batch)
    passes = pipeline(capsys, model, "--batch-size", str(size))
    assert [each for each in passes if each.startswith("nn-batch")] == (
        [f"nn-batch{{size={factor}}}"] if factor else []
    )
    output = tmp_path / "m.neff"
    assert neuron_cc.main(["compile", str(model), "--batch-size", str(size), "--output", str(output), "-q"]) == 0
    assert [port.shape for port in input_types(read_artifact(output).module())] == [(size, 4)]


# neuron-opt -----------------------------------------------------------------------------------------------------------

MODULE = "func.func @main(%x: tensor<2x3xf32>) -> tensor<2x3xf32> {\n  func.return %x : tensor<2x3xf32>\n}\n"


@pytest.mark.parametrize("flags", [("--batch-size", "3"), ("--io-config", '{"inputs": {}}')])
def test_flags_of_models_on_a_module_are_an_error(
    flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.mlir"
    path.write_text(MODULE)
    assert neuron_opt.main([str(path), *flags]) == 1
    assert f"{flags[0]} is for models (.onnx)" in capsys.readouterr().err


def test_json_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.mlir"
    path.write_text(MODULE)
    assert neuron_opt.main([str(path), "-p", "nn-batch{size=2}", "--json", "-", "-o", str(tmp_path / "o.mlir")]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["statistics"][0]["statistics"]["batch"] == 4
    assert neuron_opt.main([str(path), "--json", "-"]) == 1
    assert "would both go to standard output" in capsys.readouterr().err
    assert neuron_opt.main(["--list-passes", "--json", "-"]) == 0
    assert any(each["name"] == "nn-batch" for each in json.loads(capsys.readouterr().out)["passes"])
    assert neuron_cc.main(["list-operators", "--framework", "ONNX", "--json", "-"]) == 0
    assert any(row["name"] == "Conv" for row in json.loads(capsys.readouterr().out))
