"""Throughput and latency of a network on more and more cores: `python examples/sweep_cores.py [MODEL.onnx] [CORES ..]`.

Without a model it takes SqueezeNet as the onnx package ships it, with seeded weights.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from neuron_mlir.models.light import write_light
from neuron_mlir.runtime.compiler import CompileOptions, compile_model
from neuron_mlir.simulator.run import run_module

REQUESTS = 48


def sweep(model: Path, counts: list[int]) -> list[tuple[int, float, float, str]]:
    """Cores, requests per second, milliseconds from host to host, and what limits the program."""
    rows: list[tuple[int, float, float, str]] = []
    for cores in counts:
        compiled = compile_model(model, CompileOptions(cores=cores))
        report = run_module(compiled.module, REQUESTS, values=False).report()
        rows.append((cores, report.throughput_per_s, report.latency_ms.p50, report.bound.resource))
    return rows


def main(arguments: list[str]) -> None:
    """Print the sweep."""
    with tempfile.TemporaryDirectory() as folder:
        named = bool(arguments) and arguments[0].endswith(".onnx")
        model = Path(arguments[0]) if named else write_light(Path(folder) / "squeezenet.onnx", "squeezenet")
        counts = [int(text) for text in arguments[1 if named else 0 :]] or [1, 2, 4, 8]
        print("cores  requests/s  latency ms  limited by")
        for cores, throughput, latency, limit in sweep(model, counts):
            print(f"{cores:5}  {throughput:10,.0f}  {latency:10.2f}  {limit}")


if __name__ == "__main__":
    main(sys.argv[1:])
