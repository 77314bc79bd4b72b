"""A scatter plot on two logarithmic axes as SVG text: all that `neuron-explore` and `neuron-bench` have to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 480
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 44, 56
STEPS = ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(1 + part / 5 for part in range(45)))
"""Ticks at these times a power of ten: the coarsest that give three."""


@dataclass(frozen=True)
class Dot:
    """A point: where it is, what a pointer resting on it reads, and how it is drawn."""

    x: float
    y: float
    text: str
    radius: float = 3
    color: str = "#9aa5b1"
    label: str = ""
    """Written beside it."""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    """In pixels, of `low`."""
    end: float

    @staticmethod
    def over(values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        return _Axis(low / 1.15, high * 1.15, start, end)

    def place(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        found: list[float] = []
        for steps in STEPS:
            values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            found = [value for value in values if self.low <= value <= self.high]
            if len(found) >= 3:
                break
        return found


def scatter(
    title: str,
    x_name: str,
    y_name: str,
    dots: Sequence[Dot],
    line: Sequence[tuple[float, float]] = (),
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]] = (),
) -> str:
    """The plot, with a line through some of its points.

    Args:
        title: above it.
        x_name: below, with the unit; the same for `y_name`.
        dots: all positive; drawn in order.
        line: points to join, in order.
        lines: more of them, each with its colour.
    """
    x = _Axis.over([dot.x for dot in dots], LEFT, WIDTH - RIGHT)
    y = _Axis.over([dot.y for dot in dots], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for value in x.ticks():
        at = x.place(value)
        parts.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#e4e7eb"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for value in y.ticks():
        at = y.place(value)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#e4e7eb"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_name)}</text>'
    )
    parts.append(
        f'<text x="20" y="{middle}" text-anchor="middle" transform="rotate(-90 20 {middle})">{escape(y_name)}</text>'
    )
    for color, joined in (("#1f6feb", line), *lines):
        if len(joined) > 1:
            points = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in joined)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
    for dot in dots:
        a, b = x.place(dot.x), y.place(dot.y)
        parts.append(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{dot.radius:g}" fill="{dot.color}">'
            f"<title>{escape(dot.text)}</title></circle>"
        )
        if dot.label:
            parts.append(f'<text x="{a + 8:.1f}" y="{b + 14:.1f}" font-size="11">{escape(dot.label)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
