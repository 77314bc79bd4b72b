"""neuron-bench: table, JSON, plot and log agree; mistakes; and a report is whole or not there."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from neuron_mlir.runtime.modules import read_module
from neuron_mlir.runtime.package import write_artifact
from neuron_mlir.tools import neuron_bench

GOLDEN = Path(__file__).parents[2] / "lit" / "golden" / "two_stage_final.mlir"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("golden") / "golden.neff")
    write_artifact(path, read_module(GOLDEN), None, {})
    return path


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert neuron_bench.main([*arguments, "--json", "-"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error line of a run that has to fail."""
    assert neuron_bench.main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err.splitlines()[0]


def test_closed_loop(golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(capsys, golden, "--inferences", "60")
    assert result["cores"] == 2 and result["policy"]["in_flight"] == 5, "cores + 3"
    assert [run["clients"] for run in result["runs"]] == [1, 2, 4, 8, 16]
    rates = [run["throughput_per_s"] for run in result["runs"]]
    assert rates[0] < rates[1] <= rates[2] * 1.01
    assert result["runs"][0]["queue_ms"]["mean"] == 0 < result["runs"][-1]["queue_ms"]["mean"]


def test_open_loop(golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (golden, "--rate", "2000,2e6", "--inferences", "80", "--timeout-ms", "0.2", "--seed", "5")
    result = bench(capsys, *arguments)
    calm, storm = result["runs"]
    assert calm["answered"] == 80 and calm["given_up"] == calm["late"] == 0
    assert storm["given_up"] + storm["late"] > 0
    assert storm["answered"] + storm["given_up"] + storm["late"] == 80
    assert bench(capsys, *arguments) == result, "the same seed, the same run"
    assert bench(capsys, *arguments[:-1], "6") != result


def test_threads_carry_a_request_each(golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = (golden, "--clients", "6", "--inferences", "60")
    threads, flying = bench(capsys, *common, "--threads", "2"), bench(capsys, *common, "--in-flight", "2")
    assert threads == flying and threads["policy"]["in_flight"] == 2


def test_batches(golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(
        capsys, golden, "--rate", "100000", "--batch", "4", "--window-ms", "0.1", "--inferences", "80", "--copies", "2"
    )
    assert result["copies"] == 2 and result["cores"] == 4
    assert 2 < result["runs"][0]["mean_batch"] <= 4


def test_log_plot_and_json_agree(golden: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("b.json", "b.svg", "b.csv")]
    arguments = [golden, "--clients", "1,3", "--inferences", "40", "--warm-up", "0"]
    assert neuron_bench.main([*arguments, "--json", files[0], "--plot", files[1], "--log", files[2]]) == 0
    out = capsys.readouterr().out
    assert "3 clients" in out and "$/million" in out and "inf1.xlarge" in out
    result = json.loads(Path(files[0]).read_text())
    rows = list(csv.DictReader(Path(files[2]).read_text().splitlines()))
    for run, name in zip(result["runs"], ("1 client", "3 clients"), strict=True):
        mine = [row for row in rows if row["load"] == name]
        stays = [int(row["ended_ps"]) - int(row["arrived_ps"]) for row in mine]
        system = run["little"]["system"]
        assert len(mine) == run["inferences"] == 40 and sum(stays) == system["stays_ps"] == system["area_ps"]
        assert max(stays) / 1e9 == run["latency_ms"]["max"]
        assert system["number"] == pytest.approx(system["rate_per_s"] * system["stay_ms"] / 1000, rel=1e-12)
    picture = ElementTree.fromstring(Path(files[1]).read_text())
    circles = [node for node in picture.iter() if node.tag.endswith("circle")]
    assert len(circles) == 4 and any("3 clients" in (node.text or "") for node in picture.iter())


def test_mistakes(golden: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--clients takes" in refused(capsys, golden, "--clients", "0")
    assert "--clients takes" in refused(capsys, golden, "--clients", "a")
    assert "--rate takes" in refused(capsys, golden, "--rate", "-5")
    assert "--rate takes" in refused(capsys, golden, "--rate", "nan")
    assert "--inferences must be" in refused(capsys, golden, "--inferences", "0")
    assert "--warm-up must leave" in refused(capsys, golden, "--inferences", "5", "--warm-up", "5")
    assert "--window-ms must be" in refused(capsys, golden, "--window-ms", "nan")
    assert "--timeout-ms must be" in refused(capsys, golden, "--timeout-ms", "0")
    assert "--copies must be" in refused(capsys, golden, "--copies", "0")
    assert "do not fit the machine" in refused(capsys, golden, "--copies", "99", "--clients", "1", "-q")
    assert "does not exist" in refused(capsys, golden, "--json", str(tmp_path / "no" / "b.json"))
    values = tmp_path / "net.mlir"
    values.write_text(
        'func.func @main(%x: tensor<2xf32> {nn.name = "x"}) -> (tensor<2xf32> {nn.name = "y"}) {\n'
        "  %0 = nn.relu %x : tensor<2xf32>\n  func.return %0 : tensor<2xf32>\n}\n"
    )
    assert "only the final form has a clock" in refused(capsys, str(values))


def test_nothing_answered_is_no_error(golden: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(capsys, golden, "--clients", "2", "--timeout-ms", "0.0001", "--inferences", "10")
    (run,) = result["runs"]
    assert run["answered"] == 0 and run["throughput_per_s"] == 0 and run["cost"]["dollars_per_million"] is None
    plot = str(tmp_path / "b.svg")
    assert "nothing to draw" in refused(
        capsys, golden, "--clients", "2", "--timeout-ms", "0.0001", "--plot", plot, "-q"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [0.2, 0.9, 1.6])
def test_a_killed_run_leaves_no_part_of_a_report(golden: str, tmp_path: Path, seconds: float) -> None:
    """Whenever it is killed: the old report, or all of the new one."""
    report, log = tmp_path / "b.json", tmp_path / "b.csv"
    report.write_text('{"old": true}\n')
    log.write_text("old\n")
    command = [sys.executable, "-m", "neuron_mlir.tools.neuron_bench", golden, "--clients", "1,4", "--inferences", "60"]
    process = subprocess.Popen(
        [*command, "--json", str(report), "--log", str(log), "-q"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = json.loads(report.read_text())
    assert found == {"old": True} or len(found["runs"]) == 2
    assert log.read_text() == "old\n" or len(log.read_text().splitlines()) == 121
