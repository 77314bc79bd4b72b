"""The profile as one HTML file: data, style and script inside, nothing loaded from anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = ("base.js", "charts.js", "roofline.js", "main.js")
"""In this order, one after the other in a function of their own."""


def page(data: Mapping[str, Any]) -> str:
    """The page of a profile.

    Args:
        data: as `profile_data` makes it.
    """
    script = "\n".join(_asset(name) for name in SCRIPTS)
    parts = {
        "title": html.escape(f"Profile of {data['report']['program']}"),
        "style": _asset("page.css"),
        "data": embedded(data),
        "script": f'"use strict";\n(() => {{\n{script}}})();',
    }
    text = _asset("page.html")
    # From the front to the back, so that what stands in one part is not taken for the place of another.
    done: list[str] = []
    for name, part in parts.items():
        before, text = text.split("{{" + name + "}}", 1)
        done += [before, part]
    return "".join([*done, text])


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("neuron_mlir.runtime.profile").joinpath("assets", name).read_text(encoding="utf-8")
