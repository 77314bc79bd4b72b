"""Rings whose requests are handed over in parts: the waits and signals are inside the loops that go through the parts.

All accesses to one part, one after the other in one body, are its use: each engine waits before its first of them, and
the engine of the last hands the part on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core._affine import Form
from neuron_mlir.passes.core.scheduling.tree import Acquisition, Body, Statement, Use, ancestor


@dataclass(eq=False)
class _Part:
    """A use of a part: its statements in a body, by engine."""

    body: Body
    chunk: Form
    first: dict[str, Statement] = field(default_factory=dict[str, Statement])
    last: dict[str, Statement] = field(default_factory=dict[str, Statement])

    @property
    def span(self) -> tuple[int, int]:
        """Positions of its first and last statement."""
        return min(s.position for s in self.first.values()), max(s.position for s in self.last.values())


def attach_chunks(uses: Sequence[Use], arriving: object, leaving: object, depth: int) -> None:
    """Put waits for the parts of a ring, and their handing on, into the code of a stage.

    Args:
        uses: all accesses to the ring, in program order.
        arriving: key of the semaphore that says how many parts may be used: those written, or with `depth` those read.
        leaving: key of the semaphore to signal after each part.
        depth: slots of the ring for its writer; 0 for its reader.

    Raises `NeuronError` where uses of two parts cross each other.
    """
    for part in _parts(uses):
        wanted = Acquisition(arriving, 0, part.chunk + Form(1 - depth))
        for engine, statement in part.first.items():
            statement.acquire.setdefault(engine, []).append(wanted)
        final = max(part.last, key=lambda engine: part.last[engine].position)
        others = [(engine, statement) for engine, statement in part.last.items() if engine != final]
        hand_on = Statement(part.body, 0, None, [final], release=[leaving], after=others)
        part.body.statements.insert(part.last[final].position + 1, hand_on)
        part.body.renumber()


def _parts(uses: Sequence[Use]) -> list[_Part]:
    found: list[_Part] = []
    for use in uses:
        chunk = use.touch.chunk
        assert chunk is not None
        # The innermost loop that goes from part to part; loops inside it go through one part.
        inside = chunk.variables()
        depth = max(i for i, loop in enumerate(use.statement.body.loops, 1) if loop.number in inside)
        statement = ancestor(use.statement, depth)
        part = next((p for p in found if p.body is statement.body and p.chunk == chunk), None)
        if part is None:
            part = _Part(statement.body, chunk)
            found.append(part)
        part.first.setdefault(use.engine, statement)
        part.last[use.engine] = statement
    _check_order(found)
    return found


def _check_order(parts: Sequence[_Part]) -> None:
    """Raise `NeuronError` unless parts of a body follow each other."""
    last: dict[Body, int] = {}
    for part in parts:
        begin, end = part.span
        if begin <= last.get(part.body, -1):
            statement = part.body.statements[begin]
            raise NeuronError("parts of a ring are used across each other", op=statement.op)
        last[part.body] = end
