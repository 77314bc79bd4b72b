"""The examples run, and so do the commands and the code on docs/compile-and-run.md."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neuron_mlir.models.bert import CONFIGS, write_bert
from neuron_mlir.runtime.files import read_npz
from neuron_mlir.tools import neuron_cc, neuron_opt, neuron_run

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "compile-and-run.md").read_text(encoding="utf-8")


def test_mlp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, final = str(EXAMPLES / "mlp.mlir"), str(tmp_path / "final.mlir")
    assert neuron_opt.main([source, "-p", "nn-fuse,nn-cast"]) == 0
    assert neuron_opt.main([source, "-p", "neuron{cores=2}", "-o", final]) == 0
    outputs: list[str] = [str(tmp_path / "nn.npz"), str(tmp_path / "final.npz")]
    for program, out in zip((source, final), outputs, strict=True):
        assert neuron_run.main([program, "--outputs", out]) == 0
    first, second = (read_npz(out)["probabilities"] for out in outputs)
    assert np.abs(first - second).max() < 0.02
    np.testing.assert_allclose(second.sum(1), 1, atol=0.02)
    assert "throughput" in capsys.readouterr().out


def test_fast_dram(tmp_path: Path) -> None:
    model = write_bert(tmp_path / "b.onnx", CONFIGS["bert-tiny"], seq=16)
    machine = str(EXAMPLES / "fast_dram.toml")
    assert neuron_cc.main(["compile", str(model), "--machine", machine, "-q", "-o", str(tmp_path / "b.neff")]) == 0


@pytest.mark.slow
def test_sweep() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "sweep_cores.py"), "1", "3"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["cores", "1", "3"]
    one, three = (float(line.split()[1].replace(",", "")) for line in lines[1:])
    assert three > one


def test_runtime() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / "runtime.py")], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and lines[0].startswith("on cores [(0, 1)]")
    assert lines[1].startswith("5 rows are 3 requests: (5, 64)")
    waits = [float(word.strip(",")) for word in lines[2].split() if word[0].isdigit() and "." in word]
    assert len(waits) == 6 and waits == sorted(waits)
    assert lines[3].endswith("[(2,), (3,)]")
    assert lines[4].startswith("NRT_LOAD_NOT_ENOUGH_NC: no 2 neighbouring cores are free")


def test_python_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bert(tmp_path / "model.onnx", CONFIGS["bert-tiny"], seq=16)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/compile-and-run.md", "exec"), {})
    assert (tmp_path / "model.neff").exists()


def test_every_flag_is_on_the_page() -> None:
    compile_parser = argparse.ArgumentParser()
    neuron_cc.add_compile(compile_parser)
    obvious = {"--help", "--traceback", "--framework", "--output", "--quiet", "--verbose", "--show"}
    for parser in (compile_parser, neuron_run.make_parser()):
        flags = set(re.findall(r"--[a-z][a-z0-9-]+", parser.format_help())) - obvious
        assert flags and {flag for flag in flags if flag not in PAGE} == set()
    keys = {"throughput_per_s", "latency_ms", "engine_utilization", "dram_bytes_per_inference", "bound", "model_bound"}
    assert {key for key in keys if f"`{key}`" not in PAGE} == set()
