"""neuron-run: programs of every level, data in and out, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuron_mlir.runtime.files import read_npz, write_npz
from neuron_mlir.runtime.modules import read_module
from neuron_mlir.runtime.package import write_artifact
from neuron_mlir.simulator.run import random_inputs, run_module
from neuron_mlir.tools import neuron_run

GOLDEN = Path(__file__).parents[2] / "lit" / "golden" / "two_stage_final.mlir"
NET = """func.func @main(%x: tensor<2x3xf32> {nn.name = "x"}, %i: tensor<2xi64> {nn.name = "ids"})
    -> (tensor<2x4xf32> {nn.name = "y"}) {
  %w = nn.weight "w" seeded<3> : tensor<3x4xf32>
  %t = nn.weight "t" seeded<4> : tensor<9x4xf32>
  %a = nn.matmul %x, %w : (tensor<2x3xf32>, tensor<3x4xf32>) -> tensor<2x4xf32>
  %b = nn.gather %t, %i axis 0 : (tensor<9x4xf32>, tensor<2xi64>) -> tensor<2x4xf32>
  %c = nn.add %a, %b : tensor<2x4xf32>, tensor<2x4xf32>
  func.return %c : tensor<2x4xf32>
}
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    path = tmp_path / "net.mlir"
    path.write_text(NET)
    return str(path)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("golden") / "golden.neff")
    write_artifact(path, read_module(GOLDEN), None, {})
    return path


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert neuron_run.main([*arguments, "--json", "-"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error line of a run that has to fail."""
    assert neuron_run.main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert lines[0].startswith("error: ")
    return lines[0]


def test_report_has_what_is_promised(golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, golden, "--clock-only")
    assert report["throughput_per_s"] > 0
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    assert report["cores"] == 2
    assert 0 < report["engine_utilization"]["core 0"]["tensor"] <= 1
    assert report["dram_bytes_per_inference"] > 0
    for bound in (report["bound"], report["model_bound"]):
        assert report["throughput_per_s"] <= bound["throughput_per_s"]
        assert bound["binding"] in ("compute", "dram", "dma", "link", "host")
    assert report["values"] is False
    assert report["hazards_checked_requests"] > 0


def test_artifact_and_text_run_alike(golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = report_of(capsys, golden, "--requests", "5")
    second = report_of(capsys, str(GOLDEN), "--requests", "5")
    assert first.pop("file") == golden and second.pop("file") == str(GOLDEN)
    assert first == second
    assert first["requests"] == 5 and first["values"] is True


def test_the_clock_runs_alike_with_and_without_values(golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    with_values = report_of(capsys, golden, "--requests", "7")
    without = report_of(capsys, golden, "--requests", "7", "--clock-only")
    assert with_values.pop("values") and not without.pop("values")
    assert with_values == without


def test_table_for_a_person(golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert neuron_run.main([golden]) == 0
    text = capsys.readouterr().out
    for words in ("throughput", "latency", "bound of this program", "by dram of chip 0 (dram)", "core 1", "Outputs"):
        assert words in text


def test_layers(golden: str, net: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = report_of(capsys, golden, "--clock-only")
    report = report_of(capsys, golden, "--clock-only", "--layers")
    layers = report.pop("layers")
    assert report == plain
    assert sum(layer["macs"] for layer in layers) == 512 * (128 * 64 + 64 * 32)
    assert all(layer["binding"] in layer["busy_ps"] for layer in layers)
    assert report_of(capsys, golden, "--requests", "2", "--layers")["layers"], "with values as well"
    assert neuron_run.main([golden, "--clock-only", "--layers"]) == 0
    text = capsys.readouterr().out
    for words in ("Layers", "bound by", "columns", "loads"):
        assert words in text
    assert "only the final form has times of layers" in refused(capsys, net, "--layers")


def test_inputs_and_outputs(golden: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = read_module(GOLDEN)
    feeds = [random_inputs(module, seed) for seed in (5, 6, 7)]
    expected = [outputs["y"] for outputs in run_module(module, feeds).requests]
    one, three, out = str(tmp_path / "one.npz"), str(tmp_path / "three.npz"), str(tmp_path / "out.npz")
    write_npz(one, feeds[0])
    write_npz(three, {"x": np.stack([feed["x"] for feed in feeds])})
    assert neuron_run.main([golden, "--inputs", one, "--outputs", out]) == 0
    np.testing.assert_array_equal(read_npz(out)["y"], expected[0])
    assert neuron_run.main([golden, "--inputs", three, "--outputs", out]) == 0
    np.testing.assert_array_equal(read_npz(out)["y"], np.stack(expected))
    # More requests than inputs: they go round.
    assert neuron_run.main([golden, "--inputs", three, "--outputs", out, "--requests", "4"]) == 0
    np.testing.assert_array_equal(read_npz(out)["y"], np.stack([*expected, expected[0]]))
    capsys.readouterr()


def test_seeds(golden: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written: list[bytes] = []
    for seed in ("1", "1", "2"):
        out = tmp_path / "out.npz"
        assert neuron_run.main([golden, "--seed", seed, "--outputs", str(out)]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]
    capsys.readouterr()


def test_a_level_without_clock(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, out = str(tmp_path / "in.npz"), str(tmp_path / "out.npz")
    feed = {"x": np.eye(2, 3, dtype=np.float32), "ids": np.array([0, 8])}
    write_npz(inputs, feed)
    report = report_of(capsys, net, "--inputs", inputs, "--outputs", out)
    assert report == {"file": net, "values": True, "requests": 1}
    expected = run_module(read_module(net), feed).outputs["y"]
    np.testing.assert_array_equal(read_npz(out)["y"], expected)
    assert "only the final form has a clock" in refused(capsys, net, "--clock-only")


def test_show(golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert neuron_run.main([golden, "--show"]) == 0
    text = capsys.readouterr().out
    assert "'x': 128x512 of bf16" in text and '"producer"' in text


def test_a_race_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOLDEN.read_text()
    wait = "        core.wait %mm >= %r + 1\n        core.wait %out >= %r - 1\n"
    assert text.count(wait) == 2
    path = tmp_path / "race.mlir"
    path.write_text(text.replace(wait, "        core.wait %out >= %r - 1\n", 1))
    line = refused(capsys, str(path), "--clock-only")
    assert "acc" in line
    # Without the check the clock runs: the wait is missing, not the signal.
    assert neuron_run.main([str(path), "--clock-only", "--no-check"]) == 0
    capsys.readouterr()


BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"x": np.zeros((2, 3), np.float32)}, "input 'ids' is missing"),
    "unknown": (
        {"x": np.zeros((2, 3), np.float32), "ids": np.zeros(2, np.int64), "z": np.zeros(1)},
        "there is no input 'z'",
    ),
    "shape": ({"x": np.zeros((3, 2), np.float32), "ids": np.zeros(2, np.int64)}, "'x' has the wrong shape"),
    "type": ({"x": np.zeros((2, 3), np.int64), "ids": np.zeros(2, np.int64)}, "'x' has the wrong element type"),
    "index type": ({"x": np.zeros((2, 3), np.float32), "ids": np.zeros(2)}, "'ids' has the wrong element type"),
    "requests": (
        {"x": np.zeros((4, 2, 3), np.float32), "ids": np.zeros((3, 2), np.int64)},
        "do not hold the same number of requests",
    ),
    "some stacked": (
        {"x": np.zeros((4, 2, 3), np.float32), "ids": np.zeros(2, np.int64)},
        "do not hold the same number of requests",
    ),
    "none": ({"x": np.zeros((0, 2, 3), np.float32), "ids": np.zeros((0, 2), np.int64)}, "the same number of requests"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    arrays, message = BAD_INPUTS[case]
    path, out = str(tmp_path / "in.npz"), tmp_path / "out.npz"
    write_npz(path, arrays)
    line = refused(capsys, net, "--inputs", path, "--outputs", str(out))
    assert message in line
    assert not out.exists()


def test_files_that_are_no_arrays(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.npz"
    assert "cannot be read" in refused(capsys, net, "--inputs", str(path))
    path.write_text("x")
    assert "not an .npz file" in refused(capsys, net, "--inputs", str(path))
    np.savez(path, x=np.zeros((2, 3), np.float32), ids=np.zeros(2, np.int64))
    path.write_bytes(path.read_bytes()[:-30])
    assert "not an .npz file" in refused(capsys, net, "--inputs", str(path))
    objects = np.empty(2, object)
    np.savez(path, x=np.zeros((2, 3), np.float32), ids=objects, allow_pickle=True)
    assert "not an .npz file of plain arrays" in refused(capsys, net, "--inputs", str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "0"], "--requests must be 1 to"),
        (["--requests", "-3"], "--requests must be 1 to"),
        (["--in-flight", "0"], "--in-flight must be at least 1"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--clock-only", "--outputs", "x.npz"], "--clock-only computes no values"),
        (["--outputs", "/nowhere/x.npz"], "directory that does not exist"),
        (["--outputs", "/"], "is a directory"),
        (["--outputs", "/dev/null"], "is not a regular file"),
        (["--json", "/nowhere/x.json"], "directory that does not exist"),
    ],
)
def test_bad_arguments(golden: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(capsys, golden, *arguments)


def test_npz_files_are_the_same_every_time(tmp_path: Path) -> None:
    arrays = {"a": np.arange(4.0), "b/c:0": np.array(3)}
    first, second = tmp_path / "1.npz", tmp_path / "2.npz"
    write_npz(str(first), arrays)
    write_npz(str(second), arrays)
    assert first.read_bytes() == second.read_bytes()
    with np.load(first) as archive:
        assert sorted(archive.files) == ["a", "b/c:0"]
