"""`nn-rematerialize` over budgets: what it adds to the time of a request, estimated and simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, cast

from xdsl.dialects.builtin import ArrayAttr, ModuleOp

from benchmarks.tables import Result, cpu_of
from neuron_mlir.dialects import pipe
from neuron_mlir.errors import NeuronError
from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.ir.machine_attr import record_machine
from neuron_mlir.machine import load_machine
from neuron_mlir.models.catalogue import make_model
from neuron_mlir.models.light import write_light
from neuron_mlir.passes.nn.rematerialize import NnRematerialize
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context, module_text, parse_module
from neuron_mlir.simulator.run import run_module

BEFORE = "nn-fold-constants,nn-fold-batch-norm,canonicalize,cse,dce,nn-fuse,nn-cast,pipe-stage{cores=1}"
AFTER = "core-lower,core-allocate,core-schedule"
NETWORKS: dict[str, dict[str, Any]] = {
    "unet-192": {"name": "unet", "size": 192},
    "unet-256": {"name": "unet", "size": 256},
    "yolov3-416": {"name": "yolov3", "size": 416},
    "densenet121": {},
}
PERCENT = (100, 90, 80, 70, 60, 50)
ROOM = 4 * 1024
"""SBUF beside the budget, bytes per partition: for small constants and alignment where values take all of theirs."""
REQUESTS = 3

Mode = Literal["both", "spill", "recompute"]
MODES: tuple[Mode, ...] = ("both", "spill", "recompute")


@cache
def staged(name: str) -> str:
    """A network as one stage, before decisions about its values."""
    if NETWORKS[name]:
        module = import_model(make_model(**NETWORKS[name]))
    else:
        from benchmarks.networks import WORK

        WORK.mkdir(parents=True, exist_ok=True)
        path = WORK / f"{name}.onnx"
        if not path.exists():
            write_light(path, name)
        module = import_model(path)
    return module_text(_apply(module, BEFORE))


def _apply(module: ModuleOp, passes: str) -> ModuleOp:
    for step in load_pipeline(passes):
        step.apply(make_context(), module)
    return module


def _on_machine(name: str, budget: int) -> ModuleOp:
    module = parse_module(staged(name), name)
    record_machine(module, load_machine(overrides={"sbuf.bytes_per_partition": budget + ROOM}))
    return module


def simulate(module: ModuleOp) -> tuple[float, int]:
    """Microseconds per request in the steady state, and how many buffers the allocator spilled."""
    _apply(module, AFTER)
    (stage,) = [op for op in module.walk() if isinstance(op, pipe.StageOp)]
    spills = len(cast("ArrayAttr[Any]", stage.attributes.get("core.spills", ArrayAttr([]))).data)
    report = run_module(module, REQUESTS, values=False, hazards=False).report()
    return 1e6 / report.throughput_per_s, spills


def rematerialization(networks: Sequence[str]) -> Result:
    """Networks with long skips on one core, clock only, with budgets from 100% to 50% of what their values take when
    all are kept, on a machine whose SBUF is the budget and 4 KiB per partition. `allocator` is the same
    machine without the pass: what does not fit is spilled buffer by buffer by `core-allocate`. `over 100%` is the
    simulated time against that of the allocator at 100%; a smaller machine also has less room for weights. `needs` is
    the smallest budget known where there is no schedule, or what the allocator needs.
    """
    result = Result(
        "rematerialize",
        "Rematerialization over SBUF budgets",
        rematerialization,
        (
            "network",
            "budget %",
            "budget B",
            "mode",
            "spilled",
            "reloaded",
            "read directly",
            "recomputed",
            "extra us",
            "bound us",
            "gap %",
            "us per request",
            "over 100% %",
            "needs B",
            "solver CPU s",
        ),
    )
    gaps: list[float] = []
    never_worse = True
    for name in NETWORKS:
        base = 0.0
        module = _on_machine(name, 96 * 1024)
        everything = NnRematerialize(percent=100)
        everything.apply(make_context(), module)
        peak = cast(int, everything.statistics["peak-before"])
        for percent in PERCENT:
            budget = peak * percent // 100
            best: dict[str, int] = {}
            times: dict[str, float] = {}
            for row in _rows(name, budget, times):
                mode, cells = row
                time = cast("float | None", cells[7])
                base = time if time is not None and not base else base
                over = 100 * (time / base - 1) if time is not None else None
                result.add(name, percent, budget, mode, *cells[:8], over, *cells[8:])
                if mode != "allocator" and cells[4] is not None:
                    best[mode] = round(cast(float, cells[4]) * 1e6)
                    gaps += [cast(float, cells[6])] if mode == "both" else []
            alone = [best[m] for m in ("spill", "recompute") if m in best]
            never_worse = never_worse and (not alone or best["both"] <= min(alone))
    result.limit("both is never worse than spills alone or recomputations alone, by the estimate", never_worse)
    result.limit("all schedules of both are proven optimal for the estimate", all(gap == 0 for gap in gaps))
    return result


def _rows(name: str, budget: int, times: dict[str, float]) -> Iterator[tuple[str, list[Any]]]:
    """For each mode its name and what follows in its row; `times` holds simulations by the text of the module."""
    try:
        time, spills = simulate(_on_machine(name, budget))
        yield "allocator", [spills, spills, 0, 0, None, None, None, time, None, None]
    except NeuronError as error:
        yield "allocator", [*(None,) * 8, error.needed, None]
    for mode in MODES:
        module = _on_machine(name, budget)
        step = NnRematerialize(budget=budget, mode=mode)
        try:
            seconds, _ = cpu_of(lambda step=step, module=module: step.apply(make_context(), module))
        except NeuronError as error:
            yield mode, [*(None,) * 8, error.needed, None]
            continue
        found = step.statistics
        decided = [found[key] for key in ("spilled", "reloaded", "read-directly", "recomputed")]
        proof = [cast(int, found["extra-ps"]) / 1e6, cast(int, found["lower-bound-ps"]) / 1e6, found["gap-percent"]]
        key = module_text(module)
        try:
            if key not in times:
                times[key] = simulate(module)[0]
            yield mode, [*decided, *proof, times[key], None, round(seconds, 2)]
        except NeuronError as error:
            yield mode, [*decided, *proof, None, error.needed, round(seconds, 2)]
