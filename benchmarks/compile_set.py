"""Compile time and memory of the whole set with all passes on, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.models import MODELS
from benchmarks.runs import Spec, measure
from benchmarks.tables import Result

MEDIAN_S, WORST_S, MEMORY = 15.0, 60.0, 4_000_000_000


def compile_set(names: Sequence[str]) -> Result:
    """From the ONNX file to the artifact, as `neuron-cc compile` does it, with `nn-rematerialize` on as well: on one
    core, on several (the first number of cores), and batched on these. CPU seconds of one process and thread, start-up
    apart; memory is the most it had resident, start-up and the model's mapped file included. ONNX Runtime has no
    counterpart (what it takes to load a model is in `compile`)."""
    result = Result(
        "compile_set",
        "Compiling the whole set with all passes on",
        compile_set,
        ["network", "cores", "batch", "compile, CPU s", "slowest pass", "its share", "peak memory, MB", "error"],
    )
    times: list[float] = []
    most = 0
    for name in [name for name in MODELS if name in names or not set(names) & set(MODELS)]:
        model = MODELS[name]
        for cores, batch in ((1, 1), (model.cores, 1), (model.cores, model.batch)):
            options = {"cores": cores, "rematerialize": True, **({"batch_size": batch} if batch > 1 else {})}
            run = measure(Spec(name, options, save=True))
            result.add(
                name, cores, batch, run.cpu_s, run.slowest, f"{run.slowest_share:.0%}", run.peak_bytes / 1e6, run.error
            )
            most = max(most, run.peak_bytes)
            if not run.error:
                times.append(run.cpu_s)
            else:
                result.limit(f"{name} on {cores}, batch {batch}, compiles", False)
    if times:
        middle, worst = median(times), max(times)
        result.limit(f"median {middle:.1f} CPU s, at most {MEDIAN_S:g}", middle <= MEDIAN_S)
        result.limit(f"worst {worst:.1f} CPU s, at most {WORST_S:g}", worst <= WORST_S)
    result.limit(f"memory {most / 1e9:.2f} GB, at most {MEMORY / 1e9:g}", most <= MEMORY)
    return result
