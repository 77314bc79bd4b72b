"""Outputs are whole or not there: after SIGKILL at any moment, and with several writers at once."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_mlir.runtime import files
from neuron_mlir.runtime.files import replacing

ROOT = Path(__file__).parents[3]

WRITERS = """
import random, sys
from pathlib import Path
import numpy as np
from benchmarks import kills
from benchmarks.kills import Work, arrays_are_whole, killed, report_is_whole, together
from neuron_mlir.runtime.files import replacing, write_npz
from neuron_mlir.tools._files import write_json

folder = Path(sys.argv[1])
kills.LONGEST_S = 0.06
a, b = bytes(range(256)) * 4000, bytes(reversed(range(256))) * 3000

def put(data):
    with replacing(str(folder / "one")) as stream:
        for start in range(0, len(data), 65536):
            stream.write(data[start : start + 65536])

def whole(path):
    assert path.read_bytes() in (a, b)

work = Work("writers", [
    lambda: put(a), lambda: put(b),
    lambda: write_npz(str(folder / "o.npz"), {"x": np.arange(200_000), "y": np.ones(50_000)}),
    lambda: write_json(str(folder / "r.json"), {"k": list(range(20_000))}),
], {"one": whole, "o.npz": arrays_are_whole, "r.json": report_is_whole})
tally = killed(work, folder, 150, random.Random(3))
assert tally.there > 150, tally
print(tally.broken, tally.left)
(folder / "one").unlink(missing_ok=True)
assert together([[lambda: put(a)], [lambda: put(b)], [lambda: put(b)]], folder / "one", [a, b], 1.0) > 20
"""

TOOLS = """
import contextlib, io, random, sys, threading
from pathlib import Path
from benchmarks import kills
from benchmarks.kills import killed, small_model, works

base = Path(sys.argv[1])
kills.LONGEST_S = 0.4
model = small_model(base / "m.onnx")
for work in works(base / "out", model, sys.argv[2]):
    (base / "out").mkdir(exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        for call in work.calls:  # what is imported is, in every child
            call()
    assert threading.active_count() == 1
    tally = killed(work, base / "out", 5, random.Random(5))
    for path in (base / "out").iterdir():
        path.unlink()
    print(tally.broken, tally.left)
"""


def run(code: str, *arguments: str) -> str:
    # A process of its own: forking is for those who have no threads.
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_writers_that_are_killed_or_many(tmp_path: Path) -> None:
    broken, left = map(int, run(WRITERS, str(tmp_path)).split())
    # A kill may hit between the link of a complete file and its taking another's place: two calls one behind the other.
    assert broken == 0 and left < 15


def test_tools_that_are_killed(tmp_path: Path, single: str) -> None:
    tallies = [line.split() for line in run(TOOLS, str(tmp_path), single).splitlines()]
    assert len(tallies) == 4 and all(broken == "0" and int(left) <= 1 for broken, left in tallies)


def test_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems and some file systems know none: the same, but for what a killed process leaves."""

    def none(folder: str) -> None:
        return None

    monkeypatch.setattr(files, "_nameless", none)
    target = tmp_path / "x"
    for text in (b"first", b"second"):
        with replacing(str(target)) as stream:
            stream.write(text)
        assert target.read_bytes() == text and [p.name for p in tmp_path.iterdir()] == ["x"]
    with pytest.raises(ZeroDivisionError), replacing(str(target)) as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"second" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_long_names(tmp_path: Path) -> None:
    generator = random.Random(1)
    name = "".join(generator.choice("abc") for _ in range(250))
    for _ in range(2):
        with replacing(str(tmp_path / name)) as stream:
            stream.write(b"x")
    assert [p.name for p in tmp_path.iterdir()] == [name]
