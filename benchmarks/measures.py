"""What is measured, a function per table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.batching import batching
from benchmarks.bounds import bounds
from benchmarks.clock import clock
from benchmarks.compile_set import compile_set
from benchmarks.explore import exploration
from benchmarks.fuzz import fuzz
from benchmarks.hazards import hazards
from benchmarks.inf1 import inf1
from benchmarks.kills import kills
from benchmarks.layers import layer_costs
from benchmarks.memory_networks import network_plans
from benchmarks.networks import SEQUENCE, WORK, Network, network, session
from benchmarks.partition import device_partition
from benchmarks.passes import passes
from benchmarks.rematerialize import rematerialization
from benchmarks.sensitivity import sensitivity
from benchmarks.sharding import sharding
from benchmarks.simulate import simulation
from benchmarks.stages import stage_proofs
from benchmarks.tables import Measure, Result, cpu_of
from benchmarks.validate import validation
from benchmarks.zigzag import zigzag
from neuron_mlir.runtime.compiler import CompileOptions, compile_model, count_ops, save

CORES = 4
OPS_LIMIT, TEXT_LIMIT = 15_000, 2_000_000
COMPILE_LIMIT_S = 15.0
LAYERS = (6, 12, 24, 48)
EXPONENT_LIMIT = 1.15
FP32_LIMIT, COSINE_LIMIT, CASTS_APART = 1e-5, 0.999, 2.0


def warm_up() -> None:
    """Import everything and compile something small, so that start-up is in no measurement."""
    net = network("squeezenet")
    save(compile_model(net.path, net.options(2)), str(WORK / "warm-up.neff"))


def compile_times(names: Sequence[str]) -> Result:
    """Each network compiled for 4 NeuronCores, from the ONNX file to the artifact on disk. Ops and text are those of
    the final form. Beside it, what ONNX Runtime takes to load and optimise the same file. CPU seconds of one process,
    one thread, start-up apart."""
    result = Result(
        "compile",
        "Compiling: sizes and CPU time",
        compile_times,
        [
            "network",
            "ONNX nodes",
            "final ops",
            "final text, B",
            "weights, B",
            "compile, s",
            "of it package",
            "slowest pass",
            "its share",
            "ONNX Runtime load, s",
        ],
    )
    warm_up()
    import onnx

    for name in names:
        net = network(name)
        seconds, compiled = cpu_of(lambda net=net: compile_model(net.path, net.options(CORES)))
        package, packaged = cpu_of(lambda c=compiled, n=name: save(c, str(WORK / f"{n}.{CORES}.neff")))
        total = seconds + package
        slowest = max(compiled.phases[:-1], key=lambda phase: phase.cpu_seconds)
        ops = count_ops(compiled.module)
        load, _ = cpu_of(lambda net=net: session(net.path))
        nodes = len(onnx.load(net.path, load_external_data=False).graph.node)
        result.add(
            name,
            nodes,
            ops,
            packaged.program_bytes,
            packaged.weight_bytes,
            total,
            package,
            slowest.name,
            f"{slowest.cpu_seconds / total:.0%}",
            load,
        )
        if name == "resnet50":
            result.limit(f"ResNet-50: final form of at most {OPS_LIMIT:,} ops", ops <= OPS_LIMIT)
            result.limit(f"ResNet-50: at most {TEXT_LIMIT:,} bytes of text", packaged.program_bytes <= TEXT_LIMIT)
        if name in ("resnet50", "bert-base"):
            result.limit(f"{name}: compiled in at most {COMPILE_LIMIT_S:g} CPU s", total <= COMPILE_LIMIT_S)
    return result


def bert_layers(names: Sequence[str]) -> Result:
    """BERT-base (sequence 128) with fewer and more layers, compiled for 4 NeuronCores. The exponent is the slope of a
    line through the logarithms (least squares); 1 is linear. Beside it, what ONNX Runtime takes to load the same file.
    CPU seconds, one thread, start-up apart."""
    from neuron_mlir.models.bert import CONFIGS, write_bert

    result = Result(
        "bert_layers",
        "Compile time and depth",
        bert_layers,
        ["layers", "compile, s", "without package, s", "final ops", "ONNX Runtime load, s"],
    )
    warm_up()
    points: list[tuple[float, float]] = []
    for layers in LAYERS:
        path = WORK / f"bert-{layers}.onnx"
        data = Path(f"{path}.data")
        try:
            write_bert(path, CONFIGS["bert-base"], layers=layers, seq=SEQUENCE, external_data=True)
            seconds, compiled = cpu_of(lambda p=path: compile_model(p, CompileOptions(cores=CORES)))
            ops = count_ops(compiled.module)
            package, _ = cpu_of(lambda c=compiled: save(c, str(WORK / "bert-layers.neff")))
            load, _ = cpu_of(lambda p=path: session(p))
        finally:
            # Gigabytes, and made again in seconds.
            for file in (path, data, WORK / "bert-layers.neff"):
                file.unlink(missing_ok=True)
        result.add(layers, seconds + package, seconds, ops, load)
        points.append((math.log(layers), math.log(seconds + package)))
    exponent = slope(points)
    result.limit(
        f"time grows as layers^{exponent:.2f}, no faster than layers^{EXPONENT_LIMIT}", exponent <= EXPONENT_LIMIT
    )
    return result


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line with the least squared distances."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def import_only(net: Network, outputs: Sequence[str] = ()) -> Any:
    """The imported module; `outputs` names tensors to give instead of the model's outputs."""
    from neuron_mlir.frontends.onnx import import_model
    from neuron_mlir.ir.machine_attr import record_machine
    from neuron_mlir.machine import load_machine

    config = {**(net.io_config or {}), **({"outputs": list(outputs)} if outputs else {})}
    module = import_model(net.path, io_config=config)
    record_machine(module, load_machine())
    return module


def agreement(names: Sequence[str]) -> Result:
    """Logits of the classifiers (where a softmax ends the network, what goes into it), first output of the others.
    `fp32, largest`: of the imported `nn` module, the largest difference to ONNX Runtime, relative to the largest value.
    All others are Euclidean distances, relative to the length of ONNX Runtime's output. `cast`: after `nn-cast` (mode
    `all`; magika `matmult`). `final`: the compiled program. `final to cast`: between these two, which differ in the
    order of float32 sums, and so in some roundings to bf16; two roundings of one network may be twice as far apart as
    each is from it. `1 - cosine`: of the final program's output to ONNX Runtime's."""
    import onnx

    from neuron_mlir.passes.pipelines import load_pipeline
    from neuron_mlir.runtime.modules import make_context
    from neuron_mlir.simulator.run import output_types, run_module
    from neuron_mlir.tools.demo import cosine, logits_name, reference

    result = Result(
        "agreement",
        "Agreement with ONNX Runtime",
        agreement,
        ["network", "tensor", "fp32, largest", "cast", "final", "final to cast", "1 - cosine", "same first class"],
    )
    for name in names:
        net = network(name)
        logits = logits_name(onnx.load(net.path, load_external_data=False))
        module = import_only(net, [logits] if logits else [])
        tensor = output_types(module)[0].name
        expected = reference(net.path, net.inputs, [tensor])[tensor].astype(np.float64)
        length = float(np.linalg.norm(expected))

        def distance(a: Any, b: Any, length: float = length) -> float:
            return float(np.linalg.norm(a.astype(np.float64) - b)) / length

        exact = run_module(module, net.inputs).outputs[tensor]
        largest = float(np.abs(exact - expected).max() / np.abs(expected).max())
        cast = exact
        mode = "matmult" if name == "magika" else "all"
        for step in load_pipeline(CompileOptions(cores=CORES, fp32_cast=mode).pipeline().expand()):
            if step.name == "pipe-stage":
                cast = run_module(module, net.inputs).outputs[tensor]
            step.apply(make_context(), module)
        final = run_module(module, net.inputs, hazards=False).outputs[tensor]
        casts, moved, near = distance(cast, exact), distance(final, cast), cosine(final, expected)
        first = bool(np.argmax(final) == np.argmax(expected))
        result.add(name, tensor, largest, distance(cast, expected), distance(final, expected), moved, 1 - near, first)
        result.limit(f"{name}: fp32 within {FP32_LIMIT:g}", largest <= FP32_LIMIT)
        result.limit(f"{name}: final within twice the casts of cast", moved <= CASTS_APART * casts + 1e-6)
        result.limit(f"{name}: cosine at least {COSINE_LIMIT}", near >= COSINE_LIMIT)
    return result


MEASURES: dict[str, Measure] = {
    "compile": compile_times,
    "simulate": simulation,
    "hazards": hazards,
    "clock": clock,
    "sensitivity": sensitivity,
    "stages": stage_proofs,
    "agreement": agreement,
    "bert_layers": bert_layers,
    "memory_networks": network_plans,
    "partition": device_partition,
    "rematerialize": rematerialization,
    "sharding": sharding,
    "passes": passes,
    "bounds": bounds,
    "layers": layer_costs,
    "inf1": inf1,
    "compile_set": compile_set,
    "explore": exploration,
    "validate": validation,
    "batching": batching,
    "fuzz": fuzz,
    "kills": kills,
    "zigzag": zigzag,
}
"""The tables, by name, in the order they are made."""
