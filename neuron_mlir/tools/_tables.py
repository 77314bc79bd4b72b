"""Tables that tools print for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.table import Table

OUTPUTS_SHOWN = 12


def make_table(title: str, columns: Sequence[str]) -> Table:
    """An empty table; columns whose heading begins with `>` are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return table


def print_tables(tables: Sequence[Table]) -> None:
    """Print to standard output; wide enough for a line when that is a file."""
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for table in tables:
        console.print(table)


def si(value: float, unit: str = "") -> str:
    """A number with three digits and a decimal prefix: `12.3 MB`, `1.25 k`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def seconds(ms: float) -> str:
    """A time given in milliseconds, in the unit that suits it."""
    if ms >= 1000:
        return f"{ms / 1000:.3g} s"
    return f"{ms:.3g} ms" if ms >= 1 else f"{ms * 1000:.3g} us"


def run_tables(report: dict[str, Any]) -> list[Table]:
    """What `neuron-run` says of times: the run and its bounds, then who was at work."""
    table = make_table(f"@{report['program']} on {report['machine']}, {report['requests']} requests", ("", ""))
    table.show_header = False
    throughput = report["throughput_per_s"]
    table.add_row("throughput", f"{throughput:,.1f} requests/s ({report['steady_state']})")
    latency = ", ".join(f"{name} {seconds(value)}" for name, value in report["latency_ms"].items())
    table.add_row("latency", latency)
    table.add_row("cores", f"{report['cores']} on {_plural(report['chips'], 'chip')}")
    table.add_row("loading the weights", seconds(report["load_ms"]))
    table.add_row("DRAM per request", si(report["dram_bytes_per_inference"], "B"))
    for key, title in (("bound", "bound of this program"), ("model_bound", "bound of the model")):
        bound = report[key]
        most = bound["throughput_per_s"]
        reached = f"; reached {throughput / most:.1%}" if most else ""
        table.add_row(title, f"{most:,.1f} requests/s by {bound['resource']} ({bound['binding']}){reached}")
    checked = report["hazards_checked_requests"]
    table.add_row("checked for hazards", _plural(checked, "request") if checked else "no")
    shared = make_table("Shared resources, share of the time at work", ("resource", ">share"))
    for name, share in report["resource_utilization"].items():
        shared.add_row(name, f"{share:.1%}")
    return [table, engine_table(report["engine_utilization"]), shared]


def engine_table(utilization: dict[str, dict[str, float]]) -> Table:
    """Share of the time each engine of each core is at work."""
    engines = sorted({engine for shares in utilization.values() for engine in shares}, key=_engine_order)
    table = make_table("Engines, share of the time at work", ("core", *(f">{engine}" for engine in engines)))
    for core, shares in utilization.items():
        table.add_row(core, *(f"{shares[engine]:.1%}" if engine in shares else "" for engine in engines))
    return table


LOSSES = ("rows", "columns", "short", "moves", "loads")
"""Where the TensorEngine's time goes that multiplies nothing of use; see `ArrayTime`."""


def layer_table(layers: Sequence[dict[str, Any]]) -> Table:
    """Each layer: how long it takes, what binds it, the PE rows and columns it uses, and what its shape costs."""
    table = make_table(
        "Layers; of the TensorEngine's time: multiply-adds, and what is lost to",
        ("layer", "core", ">time", ">share", "bound by", ">rows", ">columns", ">MACs", *(f">{n}" for n in LOSSES)),
    )
    for layer in layers:
        rest = len(layer["nodes"]) - 1
        table.add_row(
            layer["name"] + (f" +{rest}" if rest else ""),
            ", ".join(map(str, layer["cores"])),
            seconds(layer["time_ps"] / 1e9),
            f"{layer['share']:.1%}",
            layer["binding"],
            *(f"{layer[key]:.0f}" if layer[key] else "" for key in ("pe_rows", "pe_columns")),
            *_array_cells(layer["array_ps"]),
        )
    whole = {part: sum(layer["array_ps"][part] for layer in layers) for part in ("useful", *LOSSES)}
    table.add_section()
    table.add_row("all", "", seconds(sum(layer["time_ps"] for layer in layers) / 1e9), *[""] * 4, *_array_cells(whole))
    return table


def _array_cells(array: dict[str, int]) -> list[str]:
    """Shares of the TensorEngine's time; empty where there is nothing of a part."""
    total = sum(array.values())
    return [f"{array[part] / total:.0%}" if total and array[part] else "" for part in ("useful", *LOSSES)]


def _engine_order(name: str) -> tuple[int, str]:
    order = ("tensor", "scalar", "vector")
    return (order.index(name) if name in order else len(order), name)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def output_table(outputs: dict[str, NDArray[Any]], requests: int) -> Table:
    """A glance at the outputs of a request."""
    import numpy as np

    what = "Outputs" if requests == 1 else f"Outputs of the first of {requests} requests"
    table = make_table(what, ("name", "shape", "type", ">least", ">mean", ">greatest", ">index of it"))
    for name, array in list(outputs.items())[:OUTPUTS_SHOWN]:
        shape = "x".join(map(str, array.shape)) or "scalar"
        if array.size == 0 or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            note = "empty" if array.size == 0 else "not all finite"
            table.add_row(name, shape, str(array.dtype), note, "", "", "")
            continue
        numbers = array.astype(np.float64)
        place = np.unravel_index(int(np.argmax(numbers)), array.shape) if array.shape else ()
        table.add_row(
            name,
            shape,
            str(array.dtype),
            f"{numbers.min():.4g}",
            f"{numbers.mean():.4g}",
            f"{numbers.max():.4g}",
            ", ".join(str(int(i)) for i in place),
        )
    if len(outputs) > OUTPUTS_SHOWN:
        table.add_row(f".. {len(outputs) - OUTPUTS_SHOWN} more", "", "", "", "", "", "")
    return table


def stage_table(summary: dict[str, Any]) -> Table:
    """The stages of a compiled program with what the cut was decided on."""
    table = make_table("Stages", ("stage", "core", ">engines, estimate", ">bottleneck, estimate", ">weights"))
    for stage in summary["stages"]:
        table.add_row(
            stage["name"],
            ", ".join(map(str, stage["cores"])),
            seconds(stage["compute_ps"] / 1e9) if "compute_ps" in stage else "",
            seconds(stage["cost_ps"] / 1e9) if "cost_ps" in stage else "",
            si(stage["weight_bytes"], "B") if "weight_bytes" in stage else "",
        )
    return table


def batch_table(tried: Sequence[dict[str, Any]]) -> Table:
    """What `--batch-size auto` has tried."""
    table = make_table("Batches tried, inferences/s", (">batch", ">estimate", ">simulated", ""))
    for each in tried:
        measured = "" if each["simulated"] is None else f"{each['simulated']:,.0f}"
        table.add_row(str(each["batch"]), f"{each['estimated']:,.0f}", measured, each["refused"] or "")
    return table
