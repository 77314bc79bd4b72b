"""`nn-rematerialize` over budgets: what it adds to the time of a request, estimated and simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast

from xdsl.dialects.builtin import ModuleOp

from benchmarks.tables import Result, cpu_of
from neuron_mlir.errors import NeuronError
from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.ir.machine_attr import record_machine
from neuron_mlir.machine import load_machine
from neuron_mlir.models.catalogue import make_model
from neuron_mlir.models.light import write_light
from neuron_mlir.passes.core.allocate import CoreAllocate
from neuron_mlir.passes.nn.rematerialize import NnRematerialize
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context, module_text, parse_module
from neuron_mlir.simulator.run import run_module
from neuron_mlir.tools._svg import Dot, scatter

BEFORE = "nn-fold-constants,nn-fold-batch-norm,canonicalize,cse,dce,nn-fuse,nn-cast,pipe-stage{cores=1}"
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

COLUMNS = (
    *("network", "budget %", "budget B", "mode"),
    *("spilled", "written directly", "reloaded", "read directly", "recomputed", "tile B"),
    *("extra us", "bound us", "gap %", "us per request", "over 100% %", "alive B", "needs B", "solver CPU s"),
)
DECIDED = ("spilled", "written-directly", "reloaded", "read-directly", "recomputed", "tile-bytes")
COLORS = {"allocator": "#9aa5b1", "both": "#1f6feb", "spill": "#d9822b", "recompute": "#2f855a"}

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


def simulate(module: ModuleOp) -> tuple[float, int, int]:
    """Microseconds per request in the steady state, how many buffers the allocator spilled, and the most bytes per
    partition of SBUF that are alive at once in a request, one slot for each buffer.
    """
    allocate = CoreAllocate()
    _apply(module, "core-lower")
    allocate.apply(make_context(), module)
    _apply(module, "core-schedule")
    report = run_module(module, REQUESTS, values=False, hazards=False).report()
    counted = allocate.statistics
    return 1e6 / report.throughput_per_s, cast(int, counted["spilled buffers"]), cast(int, counted["live peak"])


def rematerialization(networks: Sequence[str]) -> Result:
    """Networks with long skips on one core, clock only, with budgets from 100% to 50% of what their values take when
    all are kept, on a machine whose SBUF is the budget and 4 KiB per partition. `allocator` is the same
    machine without the pass: what does not fit is spilled buffer by buffer by `core-allocate`. `over 100%` is the
    simulated time against that of the allocator at 100%; a smaller machine also has less room for weights. `alive B`
    is what the program has alive at once, weights that stay apart, one slot for each buffer. `needs` is the smallest
    budget known where there is no schedule, or what the allocator needs.
    """
    result = Result("rematerialize", "Rematerialization over SBUF budgets", rematerialization, COLUMNS)
    gaps: dict[str, list[tuple[float, str]]] = {"spill": [], "both": []}
    never_worse = beats = halved = True
    # The default names are those of other benchmarks.
    for name in networks if networks and all(n in NETWORKS for n in networks) else NETWORKS:
        base = 0.0
        module = _on_machine(name, 96 * 1024)
        everything = NnRematerialize(percent=100)
        everything.apply(make_context(), module)
        peak = cast(int, everything.statistics["peak-before"])
        curves: dict[str, list[tuple[float, float]]] = {}
        for percent in PERCENT:
            budget = peak * percent // 100
            estimated: dict[str, float] = {}
            simulated: dict[str, float] = {}
            for mode, found in _rows(name, budget):
                base = base or found.us or 0.0
                over = 100 * (found.us / base - 1) if found.us is not None else None
                result.add(name, percent, budget, mode, *found.decided, *found.proof, found.us, over, *found.rest)
                if found.us is not None:
                    simulated[mode] = found.us
                    curves.setdefault(mode, []).append((percent, found.us / base))
                if found.proof[0] is not None:
                    estimated[mode] = found.proof[0]
                    if mode in gaps:
                        gaps[mode].append((found.proof[2] or 0.0, f"{name} at {percent}%"))
            alone = [estimated[m] for m in ("spill", "recompute") if m in estimated]
            never_worse = never_worse and (not alone or estimated["both"] <= min(alone) * (1 + 1e-6))
            late = simulated.get("allocator")
            beats = beats and (late is None or simulated["both"] <= late * 1.01)
            halved = halved and (percent > 50 or "both" in simulated)
        result.plots[f"rematerialize_{name}.svg"] = (f"{name}: time over budget", _plot(name, curves))
    result.limit("both is never worse than spills alone or recomputations alone, by the estimate", never_worse)
    result.limit("both is never more than 1% slower than the allocator's spills, simulated", beats)
    result.limit("both has a schedule at 50% for all", halved)
    alone = all(gap == 0 for gap, _ in gaps["spill"])
    result.limit("all schedules of spills alone are proven optimal for the estimate", alone)
    result.notes = _of_gaps(gaps["both"])
    return result


def _of_gaps(gaps: Sequence[tuple[float, str]]) -> str:
    """What is proven of schedules that may spill and recompute, and what not."""
    open_ones = [(gap, where) for gap, where in gaps if gap]
    text = f"Of {len(gaps)} schedules of both, {len(gaps) - len(open_ones)} are proven optimal for the estimate."
    if not open_ones:
        return text
    gap, where = max(open_ones)
    return (
        f"{text} The largest gap is {gap:.3g}% ({where}): the bound lets a value come back at the cheapest price there "
        "is, which may be a recomputation whose own inputs are away, and does not count those. Spills alone are a "
        "covering problem that is solved exactly."
    )


def _plot(name: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    dots = [
        Dot(x, y, f"{mode}: {x:g}% of the peak, {y:.3f} times", 4, COLORS[mode], mode if x == curve[-1][0] else "")
        for mode, curve in curves.items()
        for x, y in curve
    ]
    lines = [(COLORS[mode], curve) for mode, curve in curves.items()]
    title = f"{name}: simulated time over the SBUF budget"
    return scatter(title, "budget, % of the peak", "time, times that at 100%", dots, lines=lines)


@dataclass
class _Row:
    """What follows in a row: counts of decisions; extra us, bound us, gap; simulated us; alive, needs, solver CPU s."""

    decided: list[int | None] = field(default_factory=lambda: [None] * 6)
    proof: list[float | None] = field(default_factory=lambda: [None] * 3)
    us: float | None = None
    rest: list[int | float | None] = field(default_factory=lambda: [None] * 3)


def _rows(name: str, budget: int) -> Iterator[tuple[str, _Row]]:
    """For each mode its name and what was found."""
    known: dict[str, tuple[float, int, int]] = {}
    found = _Row()
    try:
        found.us, spills, alive = simulate(_on_machine(name, budget))
        found.decided, found.rest = [spills, 0, spills, 0, 0, None], [alive, None, None]
    except NeuronError as error:
        found.rest[1] = cast("int | None", error.needed)
    yield "allocator", found
    for mode in MODES:
        module = _on_machine(name, budget)
        step = NnRematerialize(budget=budget, mode=mode)
        found = _Row()
        try:
            seconds, _ = cpu_of(lambda step=step, module=module: step.apply(make_context(), module))
            counted = step.statistics
            found.decided = [cast(int, counted[key]) for key in DECIDED]
            extra, bound = (cast(int, counted[key]) / 1e6 for key in ("extra-ps", "lower-bound-ps"))
            found.proof = [extra, bound, cast(float, counted["gap-percent"])]
            found.rest[2] = round(seconds, 2)
            key = module_text(module)
            if key not in known:
                known[key] = simulate(module)
            found.us, _, found.rest[0] = known[key]
        except NeuronError as error:
            found.rest[1] = cast("int | None", error.needed)
        yield mode, found
