"""ResNet-18 compiled and simulated, beside ZigZag's search for the same network: `python -m benchmarks zigzag`.

ZigZag (Mei et al., "ZigZag: Enlarging Joint Architecture-Mapping Design Space Exploration for DNN Accelerators", IEEE
Transactions on Computers 70(8), 2021; the package `zigzag-dse`) is installed from the package index into an environment
of its own in the working directory, at the versions of `zigzag_requirements.txt`; nothing of it is imported here.
`python -m benchmarks.zigzag FILE` is our side, a process too: a line of JSON for each of its parts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.models import model_file
from benchmarks.networks import WORK
from benchmarks.tables import Result

REQUIREMENTS = Path(__file__).with_name("zigzag_requirements.txt")
SEARCH = Path(__file__).with_name("_zigzag_search.py")
ACCELERATOR = "tpu_like"
"""One of ZigZag's own, with the mapping it ships for it: 32 x 32 multipliers, 2 MB of SRAM, a DRAM."""
NETWORK, CORES = "resnet18-224", 4
LAYERS = 21
"""Of ResNet-18 that multiply: 20 convolutions (3 of them on skips) and the classifier."""


class UnavailableError(Exception):
    """ZigZag could not be installed or run; why, in a line."""


@dataclass(frozen=True)
class Part:
    """Something that takes time.

    Attributes:
        name: what it is.
        gives: what comes of it, in words.
        wall_s: time on the clock.
        cpu_s: time of the processor.
    """

    name: str
    gives: str
    wall_s: float
    cpu_s: float


def zigzag(_: Sequence[str]) -> Result:
    """ResNet-18 at 224 x 224, batch 1. Ours: from the ONNX file to a program for 4 NeuronCores, that program run by the
    clock until its throughput is steady, and one image run with all its values (hazards not checked); what comes out is
    held against ONNX Runtime. ZigZag: for each of its 21 layers that multiply, the mapping with the least latency on an
    accelerator of its own by an analytic cost model; no program, no values, one layer at a time. Two tools with other
    aims on the same network: the ratio says how long one waits for an answer, not which is better. One thread each, one
    after the other, start-up of both counted."""
    result = Result(
        "zigzag",
        "ResNet-18 beside ZigZag",
        zigzag,
        ["tool", "part", "what it gives", "wall-clock, s", "CPU, s"],
    )

    def add(tool: str, part: Part) -> None:
        result.add(tool, part.name, part.gives, part.wall_s, part.cpu_s)

    path = model_file(NETWORK)
    ours: list[Part] = []
    for part in our_parts(path):
        ours.append(part)
        add("neuron_mlir", part)
    try:
        python = environment()
        theirs, model = search(python)
    except UnavailableError as error:
        result.limit(f"ZigZag ran ({error})", False)
        return result
    for part in theirs:
        add("ZigZag", part)
    clock, values = (sum(part.wall_s for part in ours[:count]) for count in (3, 4))
    other = sum(part.wall_s for part in theirs)
    result.limit(f"both have the same {macs(path):,} multiply-adds", macs(path) == macs(model))
    result.limit(f"compiled and run by the clock in 1/{other / clock:.1f} of ZigZag's time", clock < other)
    result.limit(f"compiled and run by the clock and with values in 1/{other / values:.1f} of it", values < other)
    return result


def macs(path: Path) -> int:
    """Multiply-adds of a network's convolutions and dense layers, of its ONNX file (shapes inferred)."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    shapes = {
        value.name: [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.output)
    }
    total = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        weight, output = weights[node.input[1]], shapes[node.output[0]]
        # Each weight is used once for each position of the output.
        total += _product(weight) * (_product(output[2:]) if node.op_type == "Conv" else 1)
    return total


def _product(numbers: Sequence[int]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total


def one_thread() -> dict[str, str]:
    """The environment of both tools' processes: BLAS on one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


# ZigZag ---------------------------------------------------------------------------------------------------------------


def environment() -> Path:
    """The Python of ZigZag's environment, made on first use.

    Raises:
        UnavailableError: it cannot be installed, as when the package index is not reached.
    """
    folder = WORK / "zigzag"
    python = (folder / "bin" / "python").absolute()
    installed = folder / REQUIREMENTS.name
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if installed.exists() and installed.read_text(encoding="utf-8") == wanted:
        return python
    print(f"  installing ZigZag into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Collecting"):
                print(f"  {line.split()[1]}", flush=True)
    if process.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        words = next(
            (line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output"
        )
        raise UnavailableError(f"pip: {words}; is the package index reached?")
    installed.write_text(wanted, encoding="utf-8")
    return python


def search(python: Path) -> tuple[list[Part], Path]:
    """What ZigZag takes, and its file of the network.

    Raises:
        UnavailableError: it fails.
    """
    folder = WORK / "zigzag-outputs"
    # Isolated: neither this folder nor PYTHONPATH is searched for modules.
    command = [str(python), "-I", str(SEARCH), ACCELERATOR, str(folder)]
    done, last = 0, ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stderr:
            last = line.strip() or last
            if "Processing" in line:
                done += 1
                print(f"  ZigZag: layer {done} of {LAYERS}", flush=True)
        lines = process.stdout.read().strip().splitlines()
    shutil.rmtree(folder, ignore_errors=True)
    if process.returncode or not lines:
        raise UnavailableError(last[:300])
    found: dict[str, Any] = json.loads(lines[-1])
    gives = f"{found['cycles']:,.0f} cycles, {found['picojoules'] / 1e6:,.0f} uJ"
    parts = [
        Part("start-up", "its modules", *found["start_up"]),
        Part(f"search, {ACCELERATOR}", gives, *found["search"]),
    ]
    return parts, Path(found["model"])


# Ours -----------------------------------------------------------------------------------------------------------------


def our_parts(path: Path) -> Iterator[Part]:
    """What our side takes, part by part as they end."""
    command = [sys.executable, "-m", "benchmarks.zigzag", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one_thread()) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Part(**json.loads(line))
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")


def run_here(path: Path, told: Callable[[Part], None]) -> None:
    """Start up, compile, run by the clock, run with values."""
    since = time.perf_counter(), time.process_time()

    def end(name: str, gives: str) -> None:
        nonlocal since
        now = time.perf_counter(), time.process_time()
        told(Part(name, gives, now[0] - since[0], now[1] - since[1]))
        since = time.perf_counter(), time.process_time()

    from neuron_mlir.models.catalogue import network_inputs
    from neuron_mlir.runtime.artifact import read_artifact
    from neuron_mlir.runtime.compiler import CompileOptions, compile_model, save
    from neuron_mlir.simulator.machine_run import MachineSimulator
    from neuron_mlir.simulator.program import read_program
    from neuron_mlir.simulator.report import make_report, requests_for_steady_state

    end("start-up", "its modules")
    target = WORK / "resnet18.zigzag.neff"
    save(compile_model(path, CompileOptions(cores=CORES)), str(target))
    end(f"compile for {CORES} cores", "an artifact")
    artifact = read_artifact(target)
    program = read_program(artifact.module())
    run = MachineSimulator(program, values=False, hazards=False).run(requests_for_steady_state(program))
    report = make_report(program, run)
    end("clock", f"{report.throughput_per_s:,.0f} images/s, {report.latency_ms.first:.2f} ms for the first")
    import onnx

    from neuron_mlir.tools.demo import cosine, reference

    inputs = network_inputs("resnet18", onnx.load(path, load_external_data=False))
    (expected,) = reference(path, inputs, ["logits"]).values()
    since = time.perf_counter(), time.process_time()  # the reference is not ours to count
    (outputs,) = MachineSimulator(program, artifact.weights, hazards=False).run([inputs]).outputs
    end("values of an image", f"1 - cosine to ONNX Runtime: {1 - cosine(outputs['logits'], expected):.1e}")
    target.unlink()


def main() -> int:
    """What the process runs."""
    run_here(Path(sys.argv[1]), lambda part: print(json.dumps(asdict(part)), flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
