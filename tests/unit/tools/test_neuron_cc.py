"""neuron-cc: from a model to an artifact that runs, and what is said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from neuron_mlir.models.bert import CONFIGS, bert_inputs, write_bert
from neuron_mlir.runtime.artifact import read_artifact
from neuron_mlir.runtime.files import read_npz, write_npz
from neuron_mlir.simulator.run import run_module
from neuron_mlir.tools import neuron_cc, neuron_opt, neuron_run
from neuron_mlir.tools.demo import cosine, reference
from neuron_mlir.tools.demo import main as demo

SEQUENCE = 16


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("model") / "bert.onnx", CONFIGS["bert-tiny"], seq=SEQUENCE, layers=1)


def compiled(model: Path, output: Path, *flags: str) -> dict[str, Any]:
    """Compile, and the summary."""
    summary = output.with_suffix(".json")
    assert neuron_cc.main(["compile", str(model), "--output", str(output), "--json", str(summary), "-q", *flags]) == 0
    data: dict[str, Any] = json.loads(summary.read_text())
    return data


def test_compile_run_and_compare(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, program, out = bert_inputs(CONFIGS["bert-tiny"], seq=SEQUENCE), tmp_path / "b.neff", tmp_path / "out.npz"
    write_npz(str(tmp_path / "in.npz"), inputs)
    summary = compiled(bert, program, "--neuroncore-pipeline-cores", "2")
    # Weights are in the artifact: the model may go.
    model = bert.read_bytes()
    bert.unlink()
    try:
        assert neuron_run.main([str(program), "--inputs", str(tmp_path / "in.npz"), "--outputs", str(out)]) == 0
    finally:
        bert.write_bytes(model)
    for name, truth in reference(bert, inputs, ["last_hidden_state", "pooler_output"]).items():
        assert cosine(read_npz(str(out))[name], truth) > 0.999
    assert [stage["cores"] for stage in summary["stages"]] == [[0], [1]]
    (certificate,) = summary["certificates"].values()
    assert certificate["lower_bound"] <= certificate["objective"] and certificate["unit"] == "ps"
    assert [port["name"] for port in summary["inputs"]] == list(inputs)
    assert summary["bytes"]["file"] == program.stat().st_size
    assert summary["phases"][0]["name"] == "import" and summary["phases"][-1]["name"] == "package"
    capsys.readouterr()


def test_same_input_same_bytes(bert: Path, tmp_path: Path) -> None:
    """In another process, with other hashes of strings, and from another directory."""
    first, second = tmp_path / "1.neff", tmp_path / "2.neff"
    compiled(bert, first, "--neuroncore-pipeline-cores", "3")
    subprocess.run(
        [
            *(sys.executable, "-m", "neuron_mlir.tools.neuron_cc", "compile", bert.name, "--output", str(second)),
            *("--neuroncore-pipeline-cores", "3", "-q"),
        ],
        check=True,
        cwd=bert.parent,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
    )
    assert first.read_bytes() == second.read_bytes()


def test_it_runs_the_passes_of_neuron_opt(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--neuroncore-pipeline-cores", "2", "--fp32-cast", "matmult-fp16"]
    compiled(bert, tmp_path / "a.neff", *flags)
    assert neuron_cc.main(["compile", str(bert), *flags, "--print-pipeline"]) == 0
    pipeline = capsys.readouterr().out.strip()
    assert neuron_opt.main(["--print-pipeline", "-p", "neuron{cores=2 fp32-cast=matmult-fp16}"]) == 0
    assert capsys.readouterr().out.strip() == pipeline
    assert neuron_opt.main([str(bert), "-p", pipeline, "-o", str(tmp_path / "a.mlir")]) == 0
    feed = str(tmp_path / "in.npz")
    write_npz(feed, bert_inputs(CONFIGS["bert-tiny"], seq=SEQUENCE))
    for program in ("a.neff", "a.mlir"):
        out = str(tmp_path / f"{program}.npz")
        assert neuron_run.main([str(tmp_path / program), "--inputs", feed, "--outputs", out]) == 0
    first, second = (read_npz(str(tmp_path / f"{program}.npz")) for program in ("a.neff", "a.mlir"))
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
    capsys.readouterr()


def test_batch_size(bert: Path, tmp_path: Path) -> None:
    compiled(bert, tmp_path / "b.neff", "--batch-size", "2")
    artifact = read_artifact(tmp_path / "b.neff")
    assert artifact.metadata["inputs"][0]["shape"] == [2, SEQUENCE]
    one, two = (bert_inputs(CONFIGS["bert-tiny"], seq=SEQUENCE, seed=seed) for seed in (1, 2))
    feed = {name: np.concatenate([one[name], two[name]]) for name in one}
    outputs = run_module(artifact.module(), feed, weights=artifact.weights).outputs["last_hidden_state"]
    for index, single in enumerate((one, two)):
        truth = reference(bert, single, ["last_hidden_state"])["last_hidden_state"]
        assert cosine(outputs[index], truth[0]) > 0.999


def test_another_machine_is_recorded(bert: Path, tmp_path: Path) -> None:
    machine = tmp_path / "fast.toml"
    machine.write_text('base = "inferentia1"\n[dram]\nbytes_per_s = 400_000_000_000\n')
    compiled(bert, tmp_path / "a.neff")
    compiled(bert, tmp_path / "b.neff", "--machine", str(machine))
    slow, fast = (read_artifact(tmp_path / name) for name in ("a.neff", "b.neff"))
    assert fast.metadata["machine"]["values"]["dram.bytes_per_s"] == 400_000_000_000
    assert "dram.bytes_per_s = 400000000000" in fast.program
    reports = [run_module(artifact.module(), 8, values=False).report() for artifact in (slow, fast)]
    assert reports[1].resource_utilization["dram of chip 0"] < reports[0].resource_utilization["dram of chip 0"]


def test_auto_says_why(bert: Path, tmp_path: Path) -> None:
    summary = compiled(bert, tmp_path / "a.neff", "--neuroncore-pipeline-cores", "auto")
    assert len(summary["stages"]) == 1
    assert "the fewest whose SBUF holds all weights" in summary["notes"]["reason"]


def test_words_for_a_person(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "a.neff")
    assert neuron_cc.main(["compile", str(bert), "--output", output, "--neuroncore-pipeline-cores", "2", "-v"]) == 0
    captured = capsys.readouterr()
    for words in ("s1", "lower bound", "2 cores: as asked for", "a.neff: "):
        assert words in captured.out
    assert [line.split()[0] for line in captured.err.splitlines()][:2] == ["import", "nn-fold-constants"]
    assert captured.err.splitlines()[-1].startswith("package")


def test_the_default_output_is_named_after_the_model(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert neuron_cc.main(["compile", str(bert), "-q"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bert.neff"]


def test_list_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "ops.json"
    assert neuron_cc.main(["list-operators", "--framework", "ONNX", "--json", str(listed)]) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    rows: list[dict[str, str]] = json.loads(listed.read_text())
    assert {row["name"] for row in rows} == names
    assert {"Conv", "MatMul", "LayerNormalization", "Gather", "Softmax"} <= names
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert names <= known


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["compile"], ["list-operators"], ["compile", "x.onnx", "--fp32-cast", "int8"]):
        with pytest.raises(SystemExit) as caught:
            neuron_cc.main(arguments)
        assert caught.value.code == 2
    capsys.readouterr()


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a smaller network than the default, so that it takes seconds."""
    assert demo(["--model", "squeezenet", "--dir", str(tmp_path / "demo"), "--cores", "3"]) == 0
    text = capsys.readouterr().out
    words = ("It agrees.", "proven optimal for the estimate", "throughput", "What happened", "$ neuron-cc compile")
    for part in words:
        assert part in text
    assert (tmp_path / "demo" / "squeezenet.neff").exists()
