"""neuron-explore: the plans it finds, what it says of them, and that it finds the same wherever it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import load_machine
from neuron_mlir.models.bert import CONFIGS, write_bert
from neuron_mlir.runtime.compiler import CompileOptions
from neuron_mlir.runtime.explore import SimulateTask, compile_command, digest_of, explore, simulate, to_json
from neuron_mlir.runtime.plans import (
    Plan,
    Rating,
    StageEstimate,
    aws_batch,
    choose_for_simulation,
    corrected,
    front,
    plans_of,
    rate,
    rate_estimate,
)
from neuron_mlir.runtime.workers import Inline, open_workers
from neuron_mlir.tools import neuron_cc, neuron_explore


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("model") / "bert.onnx", CONFIGS["bert-tiny"], seq=16, layers=1)


@pytest.fixture(scope="module")
def alone(bert: Path) -> dict[str, Any]:
    """What one process finds."""
    return explored(bert, "--jobs", "1")


def explored(model: Path, *flags: str) -> dict[str, Any]:
    output = model.with_suffix(".json")
    arguments = [
        str(model),
        "--cores",
        "1-3",
        "--batches",
        "1,2",
        "--simulate",
        "3",
        "--json",
        str(output),
        "-q",
        *flags,
    ]
    assert neuron_explore.main(arguments) == 0
    data: dict[str, Any] = json.loads(output.read_text())
    return data


# Arithmetic -----------------------------------------------------------------------------------------------------------


def test_plans_are_enumerated() -> None:
    plans = plans_of((2, 1, 2), (1,), 2, 4)
    assert len(plans) == len(set(plans)) == 14 and plans == sorted(plans)
    assert [p.width for p in plans_of((1,), (3,), 1, 6) if p.width > p.stages] == [3, 3, 6]
    by_hand = [(1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]
    assert [(p.stages, p.copies) for p in plans if p.batch == 1] == by_hand


@pytest.mark.parametrize(
    ("stages", "copies", "chips", "together"),
    [(1, 4, 1, 4), (1, 5, 2, 4), (2, 3, 2, 2), (3, 2, 2, 1), (4, 2, 2, 1), (5, 1, 2, 1), (8, 2, 4, 1)],
)
def test_copies_share_chips(stages: int, copies: int, chips: int, together: int) -> None:
    plan = Plan(1, stages, stages, copies)
    assert (plan.chips(4), plan.copies_on_a_chip(4)) == (chips, together)
    assert replace(plan, stages=1).chips(4) == chips, "what counts is how many cores a copy has"


def test_the_instance_and_its_price() -> None:
    machine = load_machine()
    small, large = rate(machine, Plan(1, 4, 4, 1), 1000.0, 1.0), rate(machine, Plan(1, 4, 4, 2), 2000.0, 1.0)
    assert (small.instance, large.instance) == ("inf1.xlarge", "inf1.6xlarge")
    # 0.228 dollars an hour for 3.6 million inferences; 1.18 for 7.2 million.
    assert small.dollars_per_million == pytest.approx(0.228 / 3.6)
    assert large.dollars_per_million == pytest.approx(1.18 / 7.2)


def test_dram_limits_the_copies_of_a_chip() -> None:
    """39e9 bytes per second for all copies of a chip: 39 MB a request are 1 ms of it."""
    machine = load_machine()
    stage = StageEstimate(1, 1, 1, 2_000_000_000, 39_000_000, "")
    per_s = [rate_estimate(machine, Plan(1, 1, 1, copies), stage).throughput_per_s for copies in (1, 2, 4, 8)]
    assert per_s == pytest.approx([500, 1000, 1000, 2000])


def test_the_front_is_what_none_beats() -> None:
    def rating(throughput: float, latency: float, dollars: float) -> Rating:
        return Rating(throughput, latency, "", dollars)

    plans = [Plan(1, 1, 1, i) for i in range(1, 7)]
    ratings = [
        rating(100, 1.0, 5.0),
        rating(90, 1.0, 6.0),  # beaten by the first
        rating(200, 2.0, 5.0),
        rating(200, 2.0, 5.0),  # the same again
        rating(150, 3.0, 1.0),  # slower, but cheap
        rating(150, 3.0, 0.5),  # beats the one before
    ]
    kept = front(list(zip(plans, ratings, strict=True)))
    assert [plan.copies for plan, _ in kept] == [1, 3, 6]
    members = choose_for_simulation(kept, 2, None)
    assert {plan.copies for plan, _ in members} == {3, 6}, "the cheapest and the fastest"
    assert [plan.copies for plan, _ in choose_for_simulation(kept, 8, 2.5)] == [1, 3]


def test_what_was_simulated_corrects_estimates_of_its_kind() -> None:
    whole, split = Plan(1, 2, 2, 1), Plan(1, 1, 2, 1)
    other = Plan(2, 2, 2, 1)
    guess, half = Rating(100, 2.0, "", 1.0), Rating(50, 6.0, "", 2.0)
    result = dict(corrected([(whole, guess), (split, guess), (other, guess)], [(whole, guess, half)]))
    assert result == {whole: half, split: guess, other: half}


def test_aws_rule_of_thumb() -> None:
    """With the parameters and operations AWS's documentation has in mind: ResNet-50 5, BERT-large at 128 tokens 6."""
    machine = load_machine()
    assert aws_batch(machine, 7_700_000_000, 2 * 25_500_000) == 5
    assert aws_batch(machine, 2 * 128 * 303_000_000, 2 * 334_000_000) == 6


# The search -----------------------------------------------------------------------------------------------------------


def test_it_finds_a_plan_that_compiles_as_it_says(
    bert: Path, alone: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [each for each in alone["estimated"] if each["width"] == each["stages"]]
    assert len(whole) == 10 and all(each["width"] for each in alone["refused"]), "but for splits that do not pay"
    assert 1 <= len(alone["simulated"]) <= 3
    chosen = alone["chosen"]
    assert chosen["dollars_per_million"] == min(each["dollars_per_million"] for each in alone["simulated"])
    command = alone["command"].split()
    assert command[:2] == ["neuron-cc", "compile"]
    summary = tmp_path / "summary.json"
    command[command.index("--output") + 1] = str(tmp_path / "out.neff")
    assert neuron_cc.main([*command[1:], "--json", str(summary), "-q"]) == 0
    data = json.loads(summary.read_text())
    assert sum(len(stage["cores"]) for stage in data["stages"]) == chosen["cores"]
    assert data["inputs"][0]["shape"][0] == chosen["batch"]
    # Simulated again from the options that the command stands for.
    plan = Plan(chosen["batch"], chosen["stages"], chosen["width"], chosen["copies"])
    options = plan.options(CompileOptions())
    assert compile_command(str(bert), plan, CompileOptions()) == alone["command"].split()
    report = simulate(SimulateTask(str(bert), digest_of(bert), options))
    assert isinstance(report, dict)
    assert report["throughput_per_s"] * plan.batch == chosen["throughput_per_s"]
    capsys.readouterr()


def test_words_a_plot_and_a_script(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot, script = tmp_path / "plot.svg", tmp_path / "run.sh"
    flags = [
        "--cores",
        "2",
        "--batches",
        "1",
        "--shards",
        "1",
        "--jobs",
        "1",
        "--plot",
        str(plot),
        "--script",
        str(script),
    ]
    assert neuron_explore.main([str(bert), *flags, "--prefer", "throughput"]) == 0
    captured = capsys.readouterr()
    for words in ("best by throughput", "inf1.xlarge", "AWS's rule of thumb", "neuron-cc compile"):
        assert words in captured.out
    assert "estimate: 1 of 1" in captured.err
    assert script.read_text().splitlines() == ["#!/bin/sh", captured.out.strip().splitlines()[-1]]
    circles = ElementTree.fromstring(plot.read_text()).findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 4, "two plans, estimated and simulated"
    places = {(circle.get("cx"), circle.get("cy")) for circle in circles}
    assert len(places) >= 3


def test_no_plan_is_fast_enough(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--cores", "1", "--batches", "1", "--jobs", "1", "--latency-ms", "0.0001"]
    assert neuron_explore.main([str(bert), *flags]) == 1
    captured = capsys.readouterr()
    assert "no plan answers in time (milliseconds: needs 0.0001 or less, has " in captured.err
    assert "simulated" in captured.out, "what there is, is shown all the same"


def test_refused_plans_say_why(bert: Path) -> None:
    found = explore(str(bert), CompileOptions(), (1,), (40, 40), Inline(), simulations=1)
    (reason,) = {each.reason for each in found.refused if each.stages == "40"}
    assert "cannot cut" in reason and "40" in reason
    with pytest.raises(NeuronError, match="1 to 64 cores"):
        explore(str(bert), CompileOptions(), (1,), (65, 70), Inline())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cores", "4-2"), "--cores takes a number or a range"),
        (("--cores", "some"), "--cores takes a number or a range"),
        (("--batches", "1,0"), "--batches takes numbers"),
        (("--shards", "x"), "--shards takes numbers"),
        (("--simulate", "0"), "--simulate must be at least 1"),
        (("--latency-ms", "-1"), "--latency-ms must be positive"),
        (("--scheduler", "tcp://127.0.0.1:9"), "no Dask scheduler answers"),
    ],
)
def test_mistakes(
    flags: tuple[str, ...],
    message: str,
    bert: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("neuron_mlir.runtime.workers.CONNECT_SECONDS", 1)
    assert neuron_explore.main([str(bert), *flags]) == 1
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert neuron_explore.main(["none.onnx", "--jobs", "1"]) == 1
    assert "cannot read the model 'none.onnx'" in capsys.readouterr().err


# Elsewhere ------------------------------------------------------------------------------------------------------------


def test_processes_find_the_same(bert: Path, alone: dict[str, Any]) -> None:
    assert explored(bert, "--jobs", "2") == alone


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """A process of the cluster."""
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Generator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers, each a process of its own; their address, and the workers."""
    found = tmp_path / "scheduler.json"
    scheduler = start(
        *("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(found))
    )
    processes = [scheduler]
    try:
        deadline = time.monotonic() + 60
        while not (found.exists() and found.read_text().rstrip().endswith("}")):
            assert scheduler.poll() is None and time.monotonic() < deadline, "the scheduler does not come up"
            time.sleep(0.1)
        address: str = json.loads(found.read_text())["address"]
        workers = [
            start(
                *("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"),
                *("--local-directory", str(tmp_path / f"worker{i}"), "--death-timeout", "60"),
            )
            for i in range(2)
        ]
        processes += workers
        from distributed import Client

        with cast("Any", Client)(address, timeout=30) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, workers
    finally:
        for process in processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()


class KillsAWorker:
    """Workers of a cluster, one of which is killed while it is at work."""

    def __init__(self, inner: Any, address: str, victim: subprocess.Popen[bytes]) -> None:
        self.inner, self.address, self.victim = inner, address, victim
        self.lost: list[str] = []
        """Tasks the killed worker had begun."""

    def map(self, function: Any, tasks: Any, done: Any) -> list[Any]:
        if self.lost:
            return self.inner.map(function, tasks, done)
        ended = threading.Event()
        thread = threading.Thread(target=self._kill, args=(ended,))
        thread.start()
        try:
            answers: list[Any] = self.inner.map(function, tasks, done)
        finally:
            ended.set()
            thread.join()
        return answers

    def _kill(self, ended: threading.Event) -> None:
        from distributed import Client

        with cast("Any", Client)(self.address, timeout=30, set_as_default=False) as client:
            (mine,) = [worker for worker, pid in client.run(os.getpid).items() if pid == self.victim.pid]
            while not self.lost and not ended.wait(0.01):
                self.lost = [str(key) for key in client.processing()[mine]]
            if self.lost:
                os.kill(self.victim.pid, signal.SIGKILL)


def test_a_cluster_finds_the_same_though_a_worker_is_killed(
    bert: Path, alone: dict[str, Any], cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, workers = cluster
    seen: list[str] = []
    with open_workers(None, address) as inner:
        killer = KillsAWorker(inner, address, workers[0])
        found = explore(
            str(bert),
            CompileOptions(),
            (1, 2),
            (1, 3),
            killer,
            shards=(1, 2),
            simulations=3,
            watch=lambda phase, done, total, last: seen.append(f"{phase} {done} {total}"),
        )
    assert killer.lost, "the worker had something to do when it was killed"
    assert workers[0].poll() == -signal.SIGKILL and workers[1].poll() is None
    best = found.best("cost")
    assert json.loads(json.dumps({**to_json(found, best), "command": alone["command"]})) == alone
    assert seen[-1] == "simulate 1 1" and {"estimate 2 2", "simulate 2 2"} < set(seen), "in two rounds"
