"""What the PE array's shape costs each network, and what binds its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.models import MODELS
from benchmarks.runs import Spec, measure
from benchmarks.tables import Result

PARTS = ("useful", "rows", "columns", "short", "moves", "loads")
BINDING = ("tensor", "scalar", "vector", "dma", "dram", "link")


def layer_costs(names: Sequence[str]) -> Result:
    """One core, all passes of `neuron-cc` on, batch 1 and the batch that `nn-batch` is shown with; what `neuron-run
    --layers` tells of each layer, added up over the network. `TensorEngine`: its time at work for an inference, and the
    shares of it in which the whole PE array multiplies (`useful`), has empty `rows` or `columns`, has too few columns
    to move (`short`), transposes (`moves`), or waits for weights that did not load behind another product (`loads`).
    `of useful, asked for`: multiply-adds of the network over those of the program, whose rest are padding and rows of
    tiles that are computed twice. Then the shares of the time of all layers, each alone on the core, by what binds
    them. Formulas: docs/simulator.md, Layers."""
    result = Result(
        "layers",
        "Layers: what binds them, and what the PE array's shape costs",
        layer_costs,
        [
            "network",
            "batch",
            "TensorEngine, us",
            *PARTS,
            "of useful, asked for",
            *(f"by {name}" for name in BINDING),
            "costliest layer",
            "its share",
            "bound by",
        ],
    )
    for name in [name for name in MODELS if name in names or not set(names) & set(MODELS)]:
        for batch in (1, MODELS[name].batch):
            options = {"cores": 1, **({"batch_size": batch} if batch > 1 else {})}
            run = measure(Spec(name, options, layers=True))
            if run.error:
                result.add(name, batch, *(None,) * (len(result.columns) - 2))
                result.limit(f"{name}, batch {batch}: runs: {run.error}", False)
                continue
            parts = {part: sum(layer["array_ps"][part] for layer in run.layers) for part in PARTS}
            tensor = sum(parts.values())
            macs = sum(layer["macs"] for layer in run.layers)
            total = sum(layer["time_ps"] for layer in run.layers)
            worst: dict[str, Any] = max(run.layers, key=lambda layer: layer["time_ps"])
            bound = [sum(each["time_ps"] for each in run.layers if each["binding"] == kind) for kind in BINDING]
            result.add(
                name,
                batch,
                tensor / batch / 1e6,
                *(f"{time / tensor:.0%}" for time in parts.values()),
                f"{run.flops / (2 * macs):.0%}",
                *(f"{time / total:.0%}" for time in bound),
                worst["name"],
                f"{worst['share']:.0%}",
                worst["binding"],
            )
            busy = run.report["engine_utilization"]["core 0"]["tensor"] / run.report["throughput_per_s"] * 1e12
            result.limit(
                f"{name}, batch {batch}: the parts add up to the TensorEngine's time",
                abs(tensor - parts["loads"] - busy) <= 0.001 * busy,
            )
    return result
