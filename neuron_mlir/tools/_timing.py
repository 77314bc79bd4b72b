"""A tree of wall-clock times, printed as MLIR's `-mlir-timing` does."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Timer:
    """A node of the tree: seconds spent in it, children included."""

    name: str
    seconds: float = 0.0
    children: list[Timer] = field(default_factory=list["Timer"])

    def child(self, name: str) -> Timer:
        """The last child if it has that name, so that repeated work adds up; a new one otherwise."""
        if not self.children or self.children[-1].name != name:
            self.children.append(Timer(name))
        return self.children[-1]

    @contextmanager
    def measure(self) -> Generator[Timer]:
        """Add the time of the `with` block."""
        start = time.perf_counter()
        try:
            yield self
        finally:
            self.seconds += time.perf_counter() - start

    def add(self, name: str, seconds: float) -> Timer:
        """A new child with a time measured elsewhere."""
        self.children.append(Timer(name, seconds))
        return self.children[-1]

    def as_json(self) -> dict[str, Any]:
        """`{name, seconds, children}`, children left out when there are none."""
        node: dict[str, Any] = {"name": self.name, "seconds": round(self.seconds, 6)}
        if self.children:
            node["children"] = [child.as_json() for child in self.children]
        return node

    def render(self) -> str:
        """The report: seconds, share of the whole, and the tree of names."""
        rule = "===" + "-" * 73 + "==="
        lines = [rule, "... Execution time report ...".center(79).rstrip(), rule]
        lines += [f"  Total Execution Time: {self.seconds:.4f} seconds", "", "  ----Wall Time----  ----Name----"]
        self._render(lines, self.seconds or 1.0, -1)
        covered = sum(child.seconds for child in self.children)
        lines.append(_line(max(0.0, self.seconds - covered), self.seconds or 1.0, 0, "Rest"))
        lines.append(_line(self.seconds, self.seconds or 1.0, 0, "Total"))
        return "\n".join(lines)

    def _render(self, lines: list[str], total: float, depth: int) -> None:
        if depth >= 0:
            lines.append(_line(self.seconds, total, depth, self.name))
        for child in self.children:
            child._render(lines, total, depth + 1)


def _line(seconds: float, total: float, depth: int, name: str) -> str:
    return f"  {seconds:8.4f} ({100 * seconds / total:5.1f}%)  {'  ' * depth}{name}"
