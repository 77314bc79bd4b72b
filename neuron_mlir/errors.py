"""The one error of this package that a user sees.

A user's mistake (a bad model, option, machine or program) raises `NeuronError`: what is wrong, where, the numbers
behind it, and what to try. Tools print it in one line plus the op and exit with a code that is not 0; a traceback is
for bugs.
This module imports nothing, so that the solvers and the machine can use it without loading the IR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xdsl.ir import Operation

MAX_OP_TEXT = 300
"""How many characters of an op's text an error shows."""

MAX_LINE = 2000
"""How many characters of the line are shown: names come from files, and may be of any length."""


class NeuronError(Exception):
    """A user's mistake, with what is needed to mend it.

    Args:
        message: what is wrong, one line, no full stop, beginning in lower case.
        op: the offending op, or its name. Of an op the name, the location and a short print are kept, not the op:
            an error outlives the IR it is about.
        location: where: an ONNX node name, `file:line`. Taken from `op` when left out.
        resource: what ran out or does not fit, such as `SBUF bytes per partition of core 0`.
        needed: how much of it is needed, a number or text with its unit.
        available: how much of it there is.
        advice: what to try, an imperative.
    """

    def __init__(
        self,
        message: str,
        *,
        op: Operation | str | None = None,
        location: str | object | None = None,
        resource: str | None = None,
        needed: object | None = None,
        available: object | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.op: str | None = op if op is None or isinstance(op, str) else op.name
        self.op_text: str | None = None if op is None or isinstance(op, str) else short_op(op)
        if location is None and op is not None and not isinstance(op, str):
            location = op.location
        self.location: str | None = location_text(location)
        self.resource = resource
        self.needed = needed
        self.available = available
        self.advice = advice

    @property
    def line(self) -> str:
        """The error in one line: `message [at op, location] (resource: needs X, has Y); try: advice`."""
        where = ", ".join(part for part in (self.op and f"'{self.op}'", self.location and f'"{self.location}"') if part)
        text = f"{self.message} [at {where}]" if where else self.message
        numbers: list[str] = []
        if self.needed is not None:
            numbers.append(f"needs {self.needed}")
        if self.available is not None:
            numbers.append(f"has {self.available}")
        if self.resource and numbers:
            text += f" ({self.resource}: {', '.join(numbers)})"
        elif self.resource or numbers:
            text += f" ({self.resource or ', '.join(numbers)})"
        if self.advice:
            text += f"; try: {self.advice}"
        text = " ".join(text.split())
        return text if len(text) <= MAX_LINE else text[: MAX_LINE - 4] + " ..."

    def render(self) -> str:
        """The line, and below it, indented, the op in short print where there is one."""
        return f"{self.line}\n  {self.op_text}" if self.op_text else self.line

    def __str__(self) -> str:
        return self.line


def location_text(location: object | None) -> str | None:
    """A location as plain text: `conv1`, `model.mlir:3:7`; None for an unknown one.

    Takes text or an xDSL location attribute (named, file, fused or call-site).
    """
    if location is None or isinstance(location, str):
        return location or None
    text = str(location).removeprefix("loc(").removesuffix(")")
    if text == "unknown":
        return None
    return text.replace('"', "")


def short_op(op: Operation) -> str:
    """An op's text for a message: its first line without regions, cut at `MAX_OP_TEXT` characters."""
    try:
        text = str(op)
    except Exception:
        # A broken op may not print in its own syntax; its name is better than a second error.
        return op.name
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= MAX_OP_TEXT else line[: MAX_OP_TEXT - 4] + " ..."
