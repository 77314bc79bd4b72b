"""A model compiled and timed in a process of its own: `python -m benchmarks.runs SPEC` prints a `Run` as JSON.

A process per run, so that its CPU seconds and its memory are its own, and so that one that fails, or takes more than it
may, is a row of the table and not the end of it. Answers are kept in the working directory under a digest of the
sources and of what was asked: a table that is made again measures only what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.networks import WORK

CPU_LIMIT_S = 600
MEMORY_LIMIT = 6 << 30
"""Bytes of its own a process may have (beside files it maps) before it is refused more."""


@dataclass(frozen=True)
class Spec:
    """What to run.

    Attributes:
        model: one of `MODELS`.
        options: of `CompileOptions`, by name.
        without: passes to leave out of the pipeline.
        in_flight: requests that the host has under way at most; 0: as many as the program takes.
        requests: to time; 0: as many as it takes for a steady state.
        save: write the artifact, as `neuron-cc compile` does, and time nothing.
        layers: tell of each layer as well.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    without: tuple[str, ...] = ()
    in_flight: int = 0
    requests: int = 0
    save: bool = False
    layers: bool = False


@dataclass(frozen=True)
class Run:
    """What came of it: `error` in one line, or the rest."""

    error: str = ""
    cpu_s: float = 0.0
    """Of compiling; start-up apart."""
    clock_cpu_s: float = 0.0
    peak_bytes: int = 0
    """Resident memory at its most, mapped files included."""
    slowest: str = ""
    """The pass that took most of it."""
    slowest_share: float = 0.0
    certificates: dict[str, Any] = field(default_factory=dict[str, Any])
    batch: int = 1
    weight_bytes: int = 0
    """Of the network, in the types it is computed with."""
    flops: int = 0
    """Of the network, for a request; two per multiply-add."""
    interface_bytes: int = 0
    """Of a request's inputs and outputs."""
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of the simulator."""
    layers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """`LayerTime`s, if asked for."""

    @property
    def throughput(self) -> float:
        """Inferences per second."""
        return self.report["throughput_per_s"] * self.batch

    @property
    def dram_bytes(self) -> float:
        """Per inference."""
        return self.report["dram_bytes_per_inference"] / self.batch

    @property
    def compulsory_bytes(self) -> float:
        """Of an inference that reads all weights once for its request: these, the input and the output."""
        return (self.weight_bytes + self.interface_bytes) / self.batch

    def share(self, bound: str) -> float:
        """Of `bound` or `model_bound`."""
        return self.report["throughput_per_s"] / self.report[bound]["throughput_per_s"]


def measure(spec: Spec) -> Run:
    """Run it in a process, or take the answer from before."""
    from benchmarks.models import model_file

    path = model_file(spec.model)
    key = hashlib.sha256(json.dumps([sources(), asdict(spec)], sort_keys=True).encode()).hexdigest()[:24]
    kept = WORK / "runs" / f"{key}.json"
    if kept.exists():
        return Run(**json.loads(kept.read_text(encoding="utf-8")))
    command = [sys.executable, "-m", "benchmarks.runs", json.dumps(asdict(spec)), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = [line for line in done.stderr.strip().splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        what = "over its limit of CPU time" if done.returncode == -24 else words[-1]
        run = Run(error=what[:300])
    else:
        run = Run(**json.loads(lines[-1]))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asdict(run)), encoding="utf-8")
    return run


@cache
def sources() -> str:
    """A digest of the package, and of this file."""
    import neuron_mlir

    root = Path(neuron_mlir.__file__).parent
    digest = hashlib.sha256()
    for file in [*sorted(root.rglob("*.py")), *sorted(root.rglob("*.toml")), Path(__file__)]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


# In the process -------------------------------------------------------------------------------------------------------


def run_here(spec: Spec, path: Path) -> Run:
    """Compile and time."""
    from neuron_mlir.errors import NeuronError
    from neuron_mlir.runtime.compiler import CompileOptions, compile_model, cpu_seconds, save

    options = CompileOptions(**spec.options)
    start = cpu_seconds()
    try:
        if spec.save:
            compiled = compile_model(path, options)
            target = WORK / f"{os.getpid()}.neff"
            try:
                save(compiled, str(target))
            finally:
                target.unlink(missing_ok=True)
            phases = {phase.name: phase.cpu_seconds for phase in compiled.phases}
            slowest = max(phases, key=lambda name: phases[name])
            total = cpu_seconds() - start
            return Run(
                cpu_s=total,
                peak_bytes=peak_bytes(),
                slowest=slowest,
                slowest_share=phases[slowest] / total,
                certificates=compiled.plan["certificates"],
            )
        return compile_and_time(spec, path, options)
    except NeuronError as error:
        return Run(error=error.line[:300], cpu_s=cpu_seconds() - start, peak_bytes=peak_bytes())


def compile_and_time(spec: Spec, path: Path, options: Any) -> Run:
    """Without packaging; passes may be left out."""
    from dataclasses import replace

    from xdsl.dialects.builtin import IntegerAttr

    from neuron_mlir.passes.pipelines import load_pipeline
    from neuron_mlir.runtime.compiler import collector_paused, cpu_seconds, import_for, load_machine_for, plan_json
    from neuron_mlir.runtime.modules import make_context
    from neuron_mlir.simulator.layers import layer_times
    from neuron_mlir.simulator.machine_run import MachineSimulator
    from neuron_mlir.simulator.program import read_program
    from neuron_mlir.simulator.report import (
        FLOPS_ATTRIBUTE,
        WEIGHT_BYTES_ATTRIBUTE,
        make_report,
        requests_for_steady_state,
    )

    start = cpu_seconds()
    times: dict[str, float] = {}
    certificates: dict[str, Any] = {}
    with collector_paused():
        module, _, batch = import_for(path, options, load_machine_for(options))
        context = make_context()
        for step in load_pipeline(replace(options, batch=batch).pipeline().expand()):
            if step.name in spec.without:
                continue
            if step.name == "core-lower":
                certificates = plan_json(module)["certificates"]
            before = cpu_seconds()
            step.apply(context, module)
            times[step.name] = times.get(step.name, 0.0) + cpu_seconds() - before
        compiled = cpu_seconds()
        program = read_program(module)
        count = spec.requests or requests_for_steady_state(program)
        simulator = MachineSimulator(program, values=False, hazards=False, count_loads=spec.layers)
        run = simulator.run(count, spec.in_flight or None)
        report = make_report(program, run)
        weights, flops = (program.op.attributes.get(key) for key in (WEIGHT_BYTES_ATTRIBUTE, FLOPS_ATTRIBUTE))
        ports = [*program.inputs, *program.outputs]
        layers = [each.to_json() for each in layer_times(program, run.exposed_loads, count)] if spec.layers else []
        interface = sum(port.ring.bytes_of_slot(port.depth) // port.turns.every for port in ports)
    slowest = max(times, key=lambda name: times[name])
    return Run(
        cpu_s=compiled - start,
        clock_cpu_s=cpu_seconds() - compiled,
        peak_bytes=peak_bytes(),
        slowest=slowest,
        slowest_share=times[slowest] / (compiled - start),
        certificates=certificates,
        batch=options.batch_size or 1,
        weight_bytes=weights.value.data if isinstance(weights, IntegerAttr) else 0,
        flops=flops.value.data if isinstance(flops, IntegerAttr) else 0,
        interface_bytes=interface,
        report=report.to_json(),
        layers=layers,
    )


def peak_bytes() -> int:
    """Of this process: the most memory it had resident."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """What the process runs."""
    values: dict[str, Any] = json.loads(sys.argv[1])
    values["without"] = tuple(values["without"])
    spec = Spec(**values)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    print(json.dumps(asdict(run_here(spec, Path(sys.argv[2])))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
