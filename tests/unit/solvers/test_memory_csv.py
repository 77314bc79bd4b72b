"""The command for memory plans, and the independent checker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from neuron_mlir.solvers.memory_check import main as check
from neuron_mlir.solvers.memory_plan import Plan, plan
from neuron_mlir.solvers.memory_plan import __main__ as memory_plan_command
from neuron_mlir.solvers.memory_plan.__main__ import main

EXAMPLE = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"
"""The example of MiniMalloc's manual."""


def write(directory: Path, text: str, name: str = "in.csv") -> str:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path, EXAMPLE), tmp_path / "out.csv"
    assert main([source, "--capacity", "12", "-o", str(out)]) == 0
    assert capsys.readouterr().out == ""
    lines = out.read_text().splitlines()
    assert lines[0] == "id,lower,upper,size,offset"
    assert [line.rsplit(",", 1)[0] for line in lines[1:]] == EXAMPLE.splitlines()[1:]
    assert check([str(out), "--capacity", "12", "--instance", source]) == 0
    assert main([source, "--capacity", "12"]) == 0
    assert capsys.readouterr().out.endswith(out.read_text())


@pytest.mark.parametrize("capacity", [None, 1024])
def test_interrupted_it_gives_the_best_so_far(
    capacity: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.memory_instances import cut_rectangle

    def planned_on_ctrl_c(*arguments: Any, **options: Any) -> Plan:
        signal.raise_signal(signal.SIGINT)
        return plan(*arguments, **options)

    monkeypatch.setattr(memory_plan_command, "plan", planned_on_ctrl_c)
    before = signal.getsignal(signal.SIGINT)
    rows = [f"{b.id},{b.lower},{b.upper + 1},{b.size}" for b in cut_rectangle(450, 60, 1024, 0, 1.0)]
    source, out = write(tmp_path, "\n".join(["id,lower,upper,size", *rows])), tmp_path / "out.csv"
    wanted = [] if capacity is None else ["--capacity", str(capacity)]
    assert main([source, "--work", "1000000", "-o", str(out), *wanted]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    said = capsys.readouterr().err
    if capacity is None:
        assert "interrupted: the best plan so far takes" in said
        assert check([str(out), "--instance", source]) == 0
    else:
        assert "interrupted: no plan within 1024 bytes so far" in said
        assert not out.exists()


def test_infeasible_is_said_to_be_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    assert main([write(tmp_path, EXAMPLE), "--capacity", "11", "-o", str(out)]) == 1
    assert "proven infeasible, at least 12" in capsys.readouterr().err
    assert not out.exists()


def test_work_limit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.memory_instances import cut_rectangle

    rows = [f"{b.id},{b.lower},{b.upper + 1},{b.size}" for b in cut_rectangle(450, 60, 1024, 0, 1.0)]
    source = write(tmp_path, "\n".join(["id,lower,upper,size", *rows]))
    assert main([source, "--capacity", "1024", "--work", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "work limit" in captured.err
    assert main([source, "--capacity", "1024", "--work", "1", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["feasible"] is None
    assert answer["offsets"] is None


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write(tmp_path, EXAMPLE), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["peak"] == answer["lower_bound"] == 12
    assert answer["optimal"] is True
    assert answer["gap"] == 0
    assert sorted(answer["offsets"]) == ["b1", "b2", "b3", "b4", "b5"]
    assert main([write(tmp_path, EXAMPLE), "--json", "--capacity", "11"]) == 1
    assert json.loads(capsys.readouterr().out)["feasible"] is False


def test_other_columns_are_kept_and_alignment_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "\ufeffhint,size,id,alignment,lower,upper,offset\r\n-1,5,a,64,0,2,7\r\n,3,b c,64,1,3,0\r\n9,0,z,,5,6,0\r\n\r\n"
    )
    source, out = write(tmp_path, text), tmp_path / "out.csv"
    assert main([source, "--capacity", "67", "-o", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "hint,size,id,alignment,lower,upper,offset"
    assert sorted(int(line.rsplit(",", 1)[1]) for line in lines[1:]) == [0, 0, 64]
    assert check([str(out), "--capacity", "67"]) == 0
    assert main([source, "--capacity", "66"]) == 1
    assert "proven infeasible" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("id,lower,upper\na,0,1\n", "missing column size"),
        ("id,lower,upper,size\na,0,1,-4\n", "size -4 is negative"),
        ("id,lower,upper,size\na,1,1,4\n", "lower 1 is not less than upper 1"),
        ("id,lower,upper,size\na,2,1,4\n", "not less than"),
        ("id,lower,upper,size\na,0,x,4\n", "upper 'x' is not a whole number"),
        ("id,lower,upper,size\na,0,1,4.5\n", "size '4.5' is not a whole number"),
        ("id,lower,upper,size\na,0,1,\n", "size '' is not a whole number"),
        ("id,lower,upper,size\na,0,1,4\na,1,2,4\n", "id 'a' is also that of line 2"),
        ("id,lower,upper,size\na,0,1,4,5\n", "5 fields, the header has 4"),
        ("id,lower,upper,size,size\na,0,1,4,5\n", "'size' is there twice"),
        ("id,lower,upper,size,alignment\na,0,1,4,0\n", "alignment 0"),
        ("id,lower,upper,size,gaps\na,0,4,4,1-2\n", "gaps"),
        ('id,lower,upper,size\n"a,0,1,4\n', "CSV"),
    ],
)
def test_bad_input_is_one_line(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    assert main([write(tmp_path, text), "--capacity", "100", "-o", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no.csv"), "--capacity", "1"]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main([write(tmp_path, EXAMPLE), "--capacity", "12", "-o", str(tmp_path / "no" / "out.csv")]) == 2
    assert "directory" in capsys.readouterr().err
    assert main([write(tmp_path, EXAMPLE), "--capacity", "-3"]) == 2
    assert check([str(tmp_path / "no.csv")]) == 2


def test_outputs_that_cannot_be_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe is written and stays one; where a directory is, nothing is left behind."""
    file = write(tmp_path, "id,lower,upper,size\na,0,2,3\n")
    pipe, answers = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: answers.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    assert main([file, "-o", str(pipe)]) == 0
    reader.join()
    assert pipe.is_fifo()
    assert answers == ["id,lower,upper,size,offset\na,0,2,3,0\n"]
    folder = tmp_path / "folder"
    folder.mkdir()
    before = sorted(tmp_path.iterdir())
    assert main([file, "-o", str(folder)]) == 2
    assert "cannot write the plan: Is a directory" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "neuron_mlir.solvers.memory_plan", "-", "--capacity", "12"]
    run = subprocess.run(command, input=EXAMPLE, capture_output=True, text=True, check=True)
    plan = write(tmp_path, run.stdout)
    command = [sys.executable, "-W", "error", "-m", "neuron_mlir.solvers.memory_check", plan, "--capacity", "12"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("valid: 5 buffers")


@pytest.mark.parametrize(
    "rows, words",
    [
        ("a,0,2,4,0\nb,1,3,4,3\n", "overlap at time 1"),
        ("a,0,2,4,0\nb,1,3,1,2\n", "overlap at time 1"),
        ("a,0,9,1,2\nb,1,3,4,0\n", "overlap at time 1"),
        ("a,0,2,4,9\n", "above the capacity 12"),
        ("a,0,2,4,-1\n", "below 0"),
        ("a,0,2,4,0\na,2,3,4,0\n", "twice"),
    ],
)
def test_checker_finds_mistakes(rows: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "id,lower,upper,size,offset\n" + rows)
    assert check([path, "--capacity", "12"]) == 1
    assert words in capsys.readouterr().out
    assert check([path, "--capacity", "12", "--json"]) == 1
    assert words in capsys.readouterr().out


def test_checker_allows_touching(tmp_path: Path) -> None:
    rows = "a,0,2,4,0\nb,2,4,4,0\nc,0,4,4,4\nd,1,2,0,1\n"
    assert check([write(tmp_path, "id,lower,upper,size,offset\n" + rows), "--capacity", "8"]) == 0


def test_checker_compares_with_the_instance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instance = write(tmp_path, "id,lower,upper,size\na,0,2,4\nb,0,2,4\n", "instance.csv")
    plan = write(tmp_path, "id,lower,upper,size,offset\na,0,2,3,0\nc,0,2,4,3\n")
    assert check([plan, "--instance", instance]) == 1
    out = capsys.readouterr().out
    assert "'b' of the instance is not in the plan" in out
    assert "'c' of the plan is not in the instance" in out
    assert "'a' is another buffer" in out


def test_checker_refuses_what_is_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([write(tmp_path, EXAMPLE)]) == 2
    assert "missing column offset" in capsys.readouterr().err
    assert check([write(tmp_path, "id,lower,upper,size,offset\na,0,2,4,x\n")]) == 2
    assert check([write(tmp_path, "id,lower,upper,size,offset\na,3,2,4,0\n")]) == 2
