"""Each pass on and off: throughput, latency, DRAM traffic, and how near the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.models import MODELS
from benchmarks.runs import Run, Spec, measure
from benchmarks.tables import Cell, Result

FUSION_OF_LAYERS = "nn-fuse"
SWITCHES: dict[str, dict[str, Any]] = {
    "nn-replicate-inputs": {"replicate_inputs": False},
    "nn-fuse-depth-first": {"depth_first": False},
    "nn-rematerialize": {"rematerialize": False},
}
"""Passes that run on one core, and the options that switch them off."""
ALL_ON = {"cores": 1, "rematerialize": True}
OFF = SWITCHES["nn-rematerialize"]
ALL_OFF = {"cores": 1, "replicate_inputs": False, "depth_first": False, "rematerialize": False}


def variants(name: str) -> list[tuple[str, Spec]]:
    """What is compared, in words; the first is what the others are held against."""
    model = MODELS[name]
    cores, batch = model.cores, model.batch
    found = [("one core, all on", Spec(name, ALL_ON)), ("all off", Spec(name, ALL_OFF))]
    found.append((f"without {FUSION_OF_LAYERS}", Spec(name, ALL_ON, without=(FUSION_OF_LAYERS,))))
    found += [(f"without {key}", Spec(name, {**ALL_ON, **off})) for key, off in SWITCHES.items()]
    found += [
        (f"nn-batch {batch}", Spec(name, {**ALL_ON, "batch_size": batch})),
        (f"pipe-stage {cores}", Spec(name, {**ALL_ON, "cores": cores})),
        (f"pipe-replicate {cores}", Spec(name, {**ALL_ON, "replicas": cores})),
        (f"pipe-shard {cores}", Spec(name, {**ALL_ON, "shard_cores": cores})),
        (f"nn-batch {batch}, pipe-stage {cores}", Spec(name, {**ALL_ON, "cores": cores, "batch_size": batch})),
        (f"nn-batch {batch}, pipe-replicate {cores}", Spec(name, {**ALL_ON, "replicas": cores, "batch_size": batch})),
    ]
    return found


def cells(run: Run) -> list[Cell]:
    """What the tables of runs have in common, from throughput on."""
    report = run.report
    latency = report["latency_ms"]
    return [
        run.throughput,
        latency["p50"],
        latency["first"],
        run.dram_bytes / 1e6,
        f"{run.share('bound'):.0%}",
        report["bound"]["resource"],
        f"{run.share('model_bound'):.0%}",
    ]


COLUMNS = ["inferences/s", "p50, ms", "first, ms", "DRAM, MB", "of program bound", "bound by", "of model bound"]


def passes(names: Sequence[str]) -> Result:
    """The first row of a network has every pass of `neuron` on that one core can have, `nn-rematerialize` included, at
    batch 1. Each further row changes one thing: a pass left out; or another pass, on more cores or more inferences to a
    request. `all off` leaves `nn-fuse` with its pointwise patterns, and nothing else of the fast passes. Throughput and
    DRAM bytes are per inference; `times` is throughput over the first row's. Latency is of a saturated program (p50),
    and of a request that finds the machine empty (`first`). Bounds: docs/simulator.md. Simulated by the clock alone;
    compile times, with files and imports, are in `compile_set`. ONNX Runtime has no counterpart."""
    result = Result(
        "passes", "Each pass on and off", passes, ["network", "passes", *COLUMNS, "times", "compile, CPU s"]
    )
    above: list[str] = []
    peaks: list[int] = []
    failed: list[str] = []
    chosen = [name for name in MODELS if name in names or not set(names) & set(MODELS)]
    if len(chosen) < len(MODELS):
        result.notes = f"Made with `--networks {' '.join(chosen)}`: not all of {', '.join(MODELS)}."
    for name in chosen:
        base = 0.0
        waiting = variants(name)
        while waiting:
            words, spec = waiting.pop(0)
            run = measure(spec)
            if run.error and spec.options.get("rematerialize"):
                # What the other passes do is worth a row as well.
                waiting.insert(
                    0, (f"{words}, without nn-rematerialize", replace(spec, options={**spec.options, **OFF}))
                )
            if run.error:
                result.add(name, words, *(None,) * (len(COLUMNS) + 1), run.cpu_s)
                failed.append(f"{name}, {words}: {run.error}")
                print(f"    {run.error}", flush=True)
                continue
            base = base or run.throughput
            if "shard_cores" in spec.options and run.report["cores"] <= spec.options["cores"]:
                words += ", no split wins"
            peaks.append(run.peak_bytes)
            result.add(name, words, *cells(run), run.throughput / base, run.cpu_s)
            if max(run.share("bound"), run.share("model_bound")) > 1:
                above.append(f"{name}, {words}")
    result.limit(
        f"memory of compiling and timing {max(peaks, default=0) / 1e9:.2f} GB, at most 4", max(peaks, default=0) <= 4e9
    )
    result.limit("no run is above either of its bounds" + "".join(f"; {each}" for each in above), not above)
    for failure in failed:
        result.limit(f"runs: {failure}", False)
    if not failed:
        result.limit("every combination compiles and runs", True)
    return result
