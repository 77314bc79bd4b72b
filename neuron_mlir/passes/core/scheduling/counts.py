"""How often a stream has signalled by a point of the program: what waits compare with.

Each stream has one semaphore in its stage and signals it at fixed places of its loop nest. Trip counts are constants,
so the number of signals before a point is a sum over the loop indices; where a distance reaches back across the
border of a loop, a `floordiv` by its trip count says how many borders.
"""

from __future__ import annotations

from neuron_mlir.passes.core._affine import Form, iteration_form
from neuron_mlir.passes.core.scheduling.edges import Edge, Edges
from neuron_mlir.passes.core.scheduling.tree import Body, StageTree, Statement


class Counts:
    """Signals of all streams of a stage: one after each statement that some edge refers to."""

    def __init__(self, tree: StageTree, edges: dict[Body, Edges]):
        self.tree = tree
        self.sites: dict[tuple[Statement, str], None] = {}
        # Inner bodies come first: what ends with a signal inside needs none after it.
        for body, table in edges.items():
            for sources in table.values():
                for engine, edge in sources.items():
                    if not self._ends_in_signal(body.statements[edge.position], engine):
                        self.sites[body.statements[edge.position], engine] = None
        self._prefix: dict[tuple[Body, str], list[int]] = {}

    def _ends_in_signal(self, statement: Statement, engine: str) -> bool:
        """Whether the last thing a stream does for a loop is to signal."""
        while statement.inner is not None:
            statement = next(s for s in reversed(statement.inner.statements) if engine in s.engines)
            if (statement, engine) in self.sites:
                return True
        return False

    def signals(self, statement: Statement, engine: str) -> bool:
        """Whether the stream signals after the statement."""
        return (statement, engine) in self.sites

    def prefix(self, body: Body, engine: str) -> list[int]:
        """Signals of one iteration of a body before each of its statements; the last entry is the total."""
        key = body, engine
        if key not in self._prefix:
            totals = [0]
            for statement in body.statements:
                count = int(self.signals(statement, engine))
                if statement.inner is not None and engine in statement.engines:
                    count += self.prefix(statement.inner, engine)[-1] * statement.inner.loops[-1].trips
                totals.append(totals[-1] + count)
            self._prefix[key] = totals
        return self._prefix[key]

    def used(self) -> list[str]:
        """Streams that signal at all, in the order of the stage's engines."""
        found = {engine for _, engine in self.sites}
        return [engine for engine in self.tree.engines if engine in found]

    def value(self, body: Body, engine: str, edge: Edge) -> Form:
        """The semaphore's value once the stream has done its part of the statement, `edge.distance` iterations before
        the current one.
        """
        constant = self.prefix(body, engine)[edge.position + 1]
        factors: list[int] = []  # signals per iteration of each loop around, the inner one first
        at: Body = body
        while at.parent is not None:
            factors.append(self.prefix(at, engine)[-1])
            at = at.parent.body
            constant += self.prefix(at, engine)[_child(at, body)]
        if at is self.tree.run:
            factors.append(self.prefix(at, engine)[-1])
            constant += self.prefix(self.tree.load, engine)[-1]
        return self._back(body, factors, edge.distance) + Form(constant)

    def _back(self, body: Body, factors: list[int], distance: int) -> Form:
        """Sum of factor times iteration, `distance` iterations of the nest ago."""
        nest: list[tuple[int, int, Form]] = []  # trips, factor, iteration; neighbours that count as one loop are joined
        for loop, factor in zip(reversed(body.loops), factors, strict=True):
            number = iteration_form(loop)
            if nest and factor == nest[-1][1] * nest[-1][0]:
                trips, inner, below = nest[-1]
                nest[-1] = trips * loop.trips, inner, number.times(trips) + below
            else:
                nest.append((loop.trips, factor, number))
        total = Form(0)
        carry = Form(-distance)
        for position, (trips, factor, number) in enumerate(nest):
            here = number + carry
            total = total + here.times(factor)
            if position + 1 < len(nest):
                # `here` below 0 is a later iteration of the execution before: that many borders back.
                carry = here.floordiv(trips) if distance else Form(0)
                total = total + carry.times(-factor * trips)
        return total


def _child(outer: Body, inner: Body) -> int:
    """Position in `outer` of the statement that holds `inner`."""
    at = inner.parent
    assert at is not None
    while at.body is not outer:
        at = at.body.parent
        assert at is not None
    return at.position
