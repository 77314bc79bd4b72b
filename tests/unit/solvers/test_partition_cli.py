"""`python -m neuron_mlir.solvers.partition`: what it prints, and how it fails."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from neuron_mlir.solvers import device_partition_place, partition_cli
from neuron_mlir.solvers.device_partition_lattice import Ideals
from neuron_mlir.solvers.partition_cli import main

DIAMOND: dict[str, Any] = {
    "nodes": [
        {"id": 10, "cost": 0.1, "bytes": 4, "transfer": 0.2, "color": None, "name": "ignored"},
        {"id": 20, "cost": 0.2, "bytes": 4, "transfer": 0.1, "color": 3},
        {"id": 30, "cost": 0.25, "bytes": 4, "transfer": 0.1},
        {"id": 40, "cost": 0.1, "bytes": 4, "color": 3},
    ],
    "edges": [[10, 20], [10, 30], [20, 40]],
}


def written(path: Path, graph: object) -> str:
    """The path of a file that holds this as JSON, or as it is if it is text."""
    path.write_text(graph if isinstance(graph, str) else json.dumps(graph))
    return str(path)


def test_the_plan_is_printed_as_json(tmp_path: Path) -> None:
    file = written(tmp_path / "graph.json", DIAMOND)
    command = [sys.executable, "-W", "error::SyntaxWarning", "-m", "neuron_mlir.solvers.partition", file]
    done = subprocess.run([*command, "--devices", "2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    answer = cast(dict[str, Any], json.loads(done.stdout))
    # 20 and 40 together and 10 with 30: 0.35 and 0.2 for what 10 hands on.
    assert answer["assignment"] == {"10": 0, "20": 1, "30": 0, "40": 1}
    assert answer["objective"] == answer["lower_bound"] == 0.55
    assert (answer["gap"], answer["optimal"], answer["loads"]) == (0, True, [0.55, 0.5])
    assert answer["method"] and answer["seconds"] >= 0


def test_standard_input_an_output_file_and_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(DIAMOND)))
    out = tmp_path / "plan.json"
    assert main(["-", "--devices", "2", "--capacity", "1e1", "--work", "2", "-o", str(out)]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(out.read_text())["objective"] == 0.55
    assert main([written(tmp_path / "g.json", DIAMOND), "--devices", "2", "-o", str(tmp_path / "no" / "plan")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_no_plan_is_exit_1_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "graph.json", DIAMOND)
    assert main([file, "--devices", "4", "--capacity", "7"]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "error: nodes 20, 40 stay together and do not fit a device (bytes: needs 8, has 7)\n"


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("{", "is no JSON"),
        ('{"nodes": [{"id": 0, "cost": NaN}], "edges": []}', "NaN is no number"),
        ("[" * 100_000, "is nested too deep"),
        ({**DIAMOND, "edges": [[10, 11]]}, 'entry 0 of "edges" names node 11'),
        ({**DIAMOND, "edges": [[10, 20], [20, 10]]}, "the graph has a cycle: 20 -> 10 -> 20"),
        ({**DIAMOND, "nodes": DIAMOND["nodes"] * 2}, "two nodes have the id 10"),
        ({"nodes": [{"id": 1, "cost": -1}], "edges": []}, "a cost of -1"),
        # As keys of the assignment they would be one.
        ({"nodes": [{"id": 1, "cost": 1}, {"id": "1", "cost": 1}], "edges": []}, "two nodes have the id 1"),
    ],
)
def test_bad_input_is_exit_2_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], graph: object, message: str
) -> None:
    assert main([written(tmp_path / "graph.json", graph), "--devices", "2"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_byte_order_mark_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([written(tmp_path / "graph.json", "\ufeff" + json.dumps(DIAMOND)), "--devices", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["objective"] == 0.55


def test_too_many_devices_are_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([written(tmp_path / "graph.json", DIAMOND), "--devices", "100000000000"]) == 2
    assert capsys.readouterr().err == "error: too many devices (devices: needs 100000000000, has 1000000)\n"


def test_bad_arguments_are_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing.json"), "--devices", "2"]) == 2
    assert "cannot read" in capsys.readouterr().err
    file = written(tmp_path / "graph.json", DIAMOND)
    for bad in (["--devices", "0"], [], ["--devices", "2", "--capacity", "x"], ["--devices", "2", "--work", "0"]):
        with pytest.raises(SystemExit) as ended:
            main([file, *bad])
        assert ended.value.code == 2


def test_ctrl_c_prints_the_best_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: object) -> Ideals:
        raise KeyboardInterrupt

    monkeypatch.setattr(device_partition_place.Ideals, "enumerate", press)
    file = written(tmp_path / "graph.json", DIAMOND)
    assert main([file, "--devices", "2"]) == 130
    answer = json.loads(capsys.readouterr().out)
    assert answer["objective"] >= answer["lower_bound"] > 0
    assert answer["method"].endswith("interrupted")


def test_long_searches_tell_where_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(partition_cli.time, "perf_counter", lambda: now[0])
    watch = partition_cli.Watch(0.0)
    for now[0], best in ((0.5, 9.0), (2.5, 8.0), (2.6, 7.0), (3.5, 6.0)):
        watch(best, 5.0)
    watch.end()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[3] for line in lines] == ["8", "6", "6"]
    assert lines[0].endswith("bound 5  gap 37.50%")
