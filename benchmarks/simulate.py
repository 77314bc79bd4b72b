"""How long the simulator takes: with values beside ONNX Runtime and `onnx.reference`, and by the clock alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bounds import CLAIMS
from benchmarks.networks import NAMES, WORK, Network, network, session
from benchmarks.runs import Spec, measure
from benchmarks.tables import Result, best_of, cpu_of
from neuron_mlir.runtime.artifact import Artifact, read_artifact
from neuron_mlir.runtime.compiler import compile_model, save

CORES = 4
VALUES_LIMIT, CLOCK_LIMIT_S, LARGE_CLOCK_LIMIT_S = 2.5, 0.15, 5.0
"""Times ONNX Runtime; CPU seconds of `JUDGED`; CPU seconds of `LARGE`."""
JUDGED = ("resnet50", "bert-base")
LARGE = "yolov3-1440"
TIMED_REQUESTS = 32
TIMES, ORT_TIMES = 3, 5


def artifact_of(net: Network, cores: int = CORES) -> Artifact:
    """The network compiled for some cores, from the working directory when it is there and newer than the sources."""
    path = WORK / f"{net.name}.{cores}.neff"
    newest = max(file.stat().st_mtime for file in Path("neuron_mlir").rglob("*.py"))
    if not path.exists() or path.stat().st_mtime < max(newest, net.path.stat().st_mtime):
        save(compile_model(net.path, net.options(cores)), str(path))
    return read_artifact(path)


def simulation(names: Sequence[str]) -> Result:
    """Programs for 4 NeuronCores. `values`: one inference with values and the clock. `each`: one more in the same run
    (weights loaded, streams compiled). `plain`: one inference by the plain interpreter, instruction by instruction.
    `clock`: one inference by the clock alone; `clock each`: one more. Reading the artifact and evaluating constants is
    start-up (`set-up`). ONNX Runtime and `onnx.reference` run the model in float32 beside it. CPU seconds, one thread;
    `values`, `clock` and ONNX Runtime are the least of several calls, which take turns. The rows of YOLOv3 at 1440
    are by the clock alone, reading the program included: one inference, and as many as it takes until the throughput
    is steady."""
    result = Result(
        "simulate",
        "Simulating: CPU time of an inference",
        simulation,
        [
            "network",
            "set-up, s",
            "values, s",
            "each, s",
            "plain, s",
            "ONNX Runtime, s",
            "onnx.reference, s",
            "values / ORT",
            "each / ORT",
            "clock, s",
            "clock each, s",
            "clock to steady, s",
        ],
    )
    for name in names:
        if name in NAMES:
            _network(name, result)
    if LARGE in names or tuple(names) == NAMES:
        _large(result)
    return result


def _large(result: Result) -> None:
    """The plans of `bounds` for the largest network by the clock alone: a row each."""
    worst = 0.0
    for words, options in [plan for claim in CLAIMS if claim.model == LARGE for plan in claim.plans.items()]:
        one, steady = (measure(Spec(LARGE, dict(options), requests=requests)) for requests in (1, 0))
        cells = [None if run.error else run.clock_cpu_s for run in (one, steady)]
        result.add(f"{LARGE}, {words}", *(None,) * 8, cells[0], None, cells[1])
        worst = max(worst, float("inf") if one.error else one.clock_cpu_s)
    result.limit(
        f"{LARGE}: clock only within {LARGE_CLOCK_LIMIT_S:g} CPU s (at most {worst:.1f})", worst <= LARGE_CLOCK_LIMIT_S
    )


def _network(name: str, result: Result) -> None:
    """Measure one of `NAMES`: a row."""
    from neuron_mlir.simulator.machine_run import MachineSimulator
    from neuron_mlir.simulator.program import read_program

    net = network(name)
    artifact = artifact_of(net)
    program = read_program(artifact.module())
    runtime = session(net.path)
    setup, _ = cpu_of(lambda: MachineSimulator(program, artifact.weights, hazards=False))

    def values(count: int, plain: bool = False) -> float:
        """CPU seconds of a run of so many requests, set-up apart."""
        simulator = MachineSimulator(program, artifact.weights, hazards=False, plain=plain)
        return cpu_of(lambda: simulator.run([net.inputs] * count))[0]

    def clock(count: int) -> float:
        return best_of(lambda: MachineSimulator(program, None, values=False, hazards=False).run(count), TIMES)

    def onnx_runtime() -> float:
        return best_of(lambda: runtime.run(None, net.inputs), ORT_TIMES)

    # In turns, so that what else the machine does in the meantime is on both sides.
    ones: list[float] = []
    threes: list[float] = []
    orts: list[float] = [onnx_runtime()]
    for _ in range(TIMES):
        ones.append(values(1))
        threes.append(values(3))
        orts.append(onnx_runtime())
    one, ort = min(ones), min(orts)
    each = (min(threes) - one) / 2
    clock_one, clock_many = clock(1), clock(1 + TIMED_REQUESTS)
    result.add(
        name,
        setup,
        one,
        each,
        values(1, plain=True),
        ort,
        _reference(net),
        one / ort,
        each / ort,
        clock_one,
        (clock_many - clock_one) / TIMED_REQUESTS,
        None,
    )
    if name in JUDGED:
        result.limit(f"{name}: values within {VALUES_LIMIT:g} x ONNX Runtime", one <= VALUES_LIMIT * ort)
        result.limit(f"{name}: clock only within {CLOCK_LIMIT_S:g} CPU s", clock_one <= CLOCK_LIMIT_S)


def _reference(net: Network) -> float | None:
    """CPU seconds of an inference by `onnx.reference`; the model is read before. None where it fails (magika's squeeze
    of an axis that its result before does not have).
    """
    import onnx.reference

    evaluator: Any = onnx.reference.ReferenceEvaluator(str(net.path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of overflow in masks
        try:
            return cpu_of(lambda: evaluator.run(None, net.inputs))[0]
        except ValueError:
            return None
