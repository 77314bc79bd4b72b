"""Results as tables: printed, and written as Markdown and JSON with the machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from neuron_mlir.runtime.compiler import cpu_seconds

RESULTS = Path(os.environ.get("NEURON_RESULTS_DIR", "docs/results"))
PACKAGES = ("numpy", "onnxruntime", "onnx", "ortools", "xdsl")

Measure: TypeAlias = "Callable[[Sequence[str]], Result]"
"""Measures the networks of these names."""

Cell = str | int | float | bool | None


@dataclass
class Result:
    """A table with what it shows. `limits` are the claims it is held to: text and whether it holds."""

    name: str
    title: str
    measure: Measure
    """The function that makes it; its docstring says what the table shows."""
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list[list[Cell]])
    limits: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    notes: str = ""
    """Markdown below the table: how to read it."""
    plots: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Plots written beside the table: by file name, what they show and the SVG text."""

    def add(self, *cells: Cell) -> None:
        """A row; it is printed at once, so that a long run shows where it is."""
        assert len(cells) == len(self.columns)
        self.rows.append(list(cells))
        print("  " + "  ".join(text(cell) for cell in cells), flush=True)

    def limit(self, claim: str, holds: bool) -> None:
        """A claim, and whether this run bears it out."""
        self.limits.append((claim, holds))

    @property
    def good(self) -> bool:
        """Whether all claims hold."""
        return all(holds for _, holds in self.limits)

    def markdown(self) -> str:
        """The page."""
        about = " ".join((self.measure.__doc__ or "").split())
        lines = [f"# {self.title}", "", about, "", f"`python -m benchmarks {self.name}` on {environment()}.", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        numbers = [
            all(isinstance(row[i], int | float) and not isinstance(row[i], bool) for row in self.rows)
            for i in range(len(self.columns))
        ]
        lines.append("|" + "|".join("--:" if number else "---" for number in numbers) + "|")
        lines += ["| " + " | ".join(text(cell) for cell in row) + " |" for row in self.rows]
        lines.append("")
        lines += [f"- {claim}: {'yes' if holds else '**no**'}" for claim, holds in self.limits]
        page = "\n".join(lines).rstrip() + "\n"
        if self.plots:
            page += "\n" + "\n".join(f"![{shown}]({name})" for name, (shown, _) in self.plots.items()) + "\n"
        return f"{page}\n{self.notes.strip()}\n" if self.notes else page

    def write(self) -> None:
        """Write `NAME.md` and `NAME.json` to the results."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        for name, (_, svg) in self.plots.items():
            (RESULTS / name).write_text(svg, encoding="utf-8")
        data = {
            "name": self.name,
            "environment": environment(),
            "columns": list(self.columns),
            "rows": self.rows,
            "limits": [{"claim": claim, "holds": holds} for claim, holds in self.limits],
        }
        (RESULTS / f"{self.name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def text(cell: Cell) -> str:
    """A cell as it is printed: floats with three digits."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if cell is None:
        return ""
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        if 0 < abs(cell) < 1e-3 or abs(cell) >= 1e6:
            return f"{cell:.2e}"
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return cell


def environment() -> str:
    """Processor and versions, in a line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{model}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {packages}"


def cpu_of(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it returns."""
    start = cpu_seconds()
    value = function()
    return cpu_seconds() - start, value


def best_of(function: Callable[[], Any], times: int = 3) -> float:
    """Least CPU seconds of a few calls: other work on the machine only adds."""
    return min(cpu_of(function)[0] for _ in range(times))
