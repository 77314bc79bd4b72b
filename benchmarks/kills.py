"""Tools that are killed at any moment, and tools that write the same file at once: `python -m benchmarks kills`.

A child process, forked so that it starts at once, runs the tools' own entry points in a loop; SIGKILL comes at random.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.tables import Result

Check = Callable[[Path], None]
"""Raises when a file is not whole."""

SEED, KILLS = 20200922, 60
LONGEST_S = 1.5


@dataclass(frozen=True)
class Work:
    """What a child does over and over: tools and their command lines, and how to tell that an output is whole."""

    name: str
    calls: Sequence[Callable[[], object]]
    outputs: Mapping[str, Check]


@dataclass
class Tally:
    """What a number of kills left behind."""

    kills: int = 0
    there: int = 0
    """Kills that found an output there."""
    broken: int = 0
    left: int = 0
    """Other files in the directory: those that were to take an output's place in that moment."""


def artifact_is_whole(path: Path) -> None:
    """Read and check an artifact."""
    from neuron_mlir.runtime.artifact import read_artifact

    read_artifact(path).module()


def report_is_whole(path: Path) -> None:
    """Read a report."""
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise ValueError("a report is an object")


def text_is_whole(path: Path) -> None:
    """Read a file that ends as a plot, a page or a table of lines has to."""
    ends = {".svg": "</svg>\n", ".html": "</html>\n"}
    if not path.read_text(encoding="utf-8").endswith(ends.get(path.suffix, "\n")):
        raise ValueError("the end is missing")


def arrays_are_whole(path: Path) -> None:
    """Read arrays."""
    from neuron_mlir.runtime.files import read_npz

    if not read_npz(str(path)):
        raise ValueError("there are no arrays")


def in_child(work: Sequence[Callable[[], object]], quiet: IO[str]) -> int:
    """Fork a process that does this work over and over; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        with redirect_stdout(quiet), redirect_stderr(quiet):
            while True:
                for call in work:
                    call()
    finally:
        os._exit(70)


def killed(work: Work, folder: Path, kills: int, generator: random.Random) -> Tally:
    """Kill the work many times, and look at what is there each time."""
    tally = Tally()
    with open(os.devnull, "w", encoding="utf-8") as quiet:
        for _ in range(kills):
            child = in_child(work.calls, quiet)
            time.sleep(generator.uniform(0.0, LONGEST_S) * generator.random())
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                raise RuntimeError(f"{work.name} ended by itself: {status}")
            tally.kills += 1
            for name, check in work.outputs.items():
                if (folder / name).exists():
                    tally.there += 1
                    try:
                        check(folder / name)
                    except Exception as error:
                        print(f"{work.name}: {name}: {error}")
                        tally.broken += 1
            for path in folder.iterdir():
                if path.name not in work.outputs:
                    tally.left += 1
                    path.unlink()
    return tally


def together(
    works: Sequence[Sequence[Callable[[], object]]], output: Path, wanted: Sequence[bytes], seconds: float
) -> int:
    """Let several processes write one file at once; how often it was seen, each time with the bytes of one of them.

    Raises:
        RuntimeError: it held something else.
    """
    seen = 0
    with open(os.devnull, "w", encoding="utf-8") as quiet:
        children = [in_child(work, quiet) for work in works]
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if output.exists():
                    if output.read_bytes() not in wanted:
                        raise RuntimeError(f"{output.name} is a mix")
                    seen += 1
                time.sleep(0.001)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    return seen


def works(folder: Path, model: str, artifact: str) -> list[Work]:
    """The tools at work on a small model: compiling, running with outputs and a report, serving, looking into it."""
    from neuron_mlir.tools import neuron_bench, neuron_cc, neuron_profile, neuron_run

    neff, report, outputs = (str(folder / name) for name in ("m.neff", "r.json", "o.npz"))
    plot, log, page, trace = (str(folder / name) for name in ("b.svg", "b.csv", "p.html", "t.json"))
    load = ["--clients", "2", "--inferences", "20", "--json", report, "--plot", plot, "--log", log]
    return [
        Work(
            "neuron-cc",
            [lambda: neuron_cc.main(["compile", model, "--output", neff, "--json", report])],
            {"m.neff": artifact_is_whole, "r.json": report_is_whole},
        ),
        Work(
            "neuron-run",
            [lambda: neuron_run.main([artifact, "--requests", "2", "--outputs", outputs, "--json", report])],
            {"o.npz": arrays_are_whole, "r.json": report_is_whole},
        ),
        Work(
            "neuron-bench",
            [lambda: neuron_bench.main([artifact, *load])],
            {"r.json": report_is_whole, "b.svg": text_is_whole, "b.csv": text_is_whole},
        ),
        Work(
            "neuron-profile",
            [lambda: neuron_profile.main([artifact, "--html", page, "--trace", trace, "--json", report])],
            {"r.json": report_is_whole, "p.html": text_is_whole, "t.json": report_is_whole},
        ),
    ]


def small_model(path: Path, layers: int = 2) -> str:
    """An ONNX file that compiles in a moment."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"fc{i}") for i in range(layers)]
    weights = [
        numpy_helper.from_array(np.random.default_rng(i).standard_normal((256, 256), np.float32), f"w{i}")
        for i in range(layers)
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 256]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return str(path)


def kills(_: Sequence[str]) -> Result:
    """`neuron-cc`, `neuron-run`, `neuron-bench` and `neuron-profile` killed (SIGKILL) at random moments while they
    write over their own output: what is there is always whole. Two compilers that write one artifact at once: a reader
    sees the bytes of the one or of the other."""
    from neuron_mlir.tools import neuron_cc

    result = Result(
        "kills", "Killed while writing", kills, ["what", "kills", "outputs found", "broken", "files left behind"]
    )
    generator = random.Random(SEED)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        models = [small_model(base / f"{i}.onnx", 2 + i) for i in range(2)]
        files = [str(base / f"{i}.neff") for i in range(2)]
        with open(os.devnull, "w", encoding="utf-8") as quiet, redirect_stdout(quiet):
            for model, file in zip(models, files, strict=True):
                neuron_cc.main(["compile", model, "--output", file])
        folder = base / "kills"
        for work in works(folder, models[0], files[0]):
            folder.mkdir()
            tally = killed(work, folder, KILLS, generator)
            result.add(work.name, tally.kills, tally.there, tally.broken, tally.left)
            result.limit(f"{work.name}: nothing broken", not tally.broken)
            result.limit(f"{work.name}: files left behind by less than one kill in 20", tally.left * 20 < tally.kills)
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        target = base / "both.neff"
        compiling = [
            [lambda model=model: neuron_cc.main(["compile", model, "--output", str(target), "-q"])] for model in models
        ]
        seen = together(compiling, target, [Path(file).read_bytes() for file in files], 10)
        result.add("two neuron-cc, one output", 2, seen, 0, 0)
        result.limit("two compilers do not mix", seen > 0)
    return result
