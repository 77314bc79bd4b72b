"""Edges of an outermost body, which may be long: for each statement, back to what is known already and no further.

The same edges could be found by looking at all pairs of accesses, as is done inside loops, but their number grows
with the square of the program's length. Here each stream's accesses are searched from the latest backwards, and the
search ends where the waiting stream is known to be ordered by the waits found so far, which is seldom far away.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from neuron_mlir.passes.core.scheduling.conflicts import CAP, Conflicts
from neuron_mlir.passes.core.scheduling.edges import Edge, Edges, add_edge
from neuron_mlir.passes.core.scheduling.tree import Body, Use

NEVER = -(1 << 60)


@dataclass
class _Accesses:
    """The accesses of one stream to one memory, in the order of statements."""

    positions: list[int] = field(default_factory=list[int])
    uses: list[Use] = field(default_factory=list[Use])


class Sweep:
    """Adds the edges of one body to `edges`, statement by statement.

    Times are positions; those of the iteration before are less by `stride`, as in `Knowledge`.
    """

    def __init__(self, conflicts: Conflicts, body: Body, edges: Edges):
        self.conflicts = conflicts
        self.body = body
        self.edges = edges
        self.stride = len(body.statements) + 1
        self.accesses: dict[tuple[tuple[str, int], str], _Accesses] = {}
        self.engines: list[str] = []
        self.known: dict[str, dict[str, int]] = {}
        self.waited: dict[tuple[int, str], dict[str, int]] = {}

    def run(self) -> None:
        """Add all edges."""
        for statement in self.body.statements:
            for use in statement.uses:
                table = self.accesses.setdefault((use.touch.storage.memory, use.engine), _Accesses())
                table.positions.append(statement.position)
                table.uses.append(use)
                if use.engine not in self.engines:
                    self.engines.append(use.engine)
        for statement in self.body.statements:
            position = statement.position
            for engine in statement.engines:
                mine = self.known.setdefault(engine, {})
                for other, edge in self.edges.get((position, engine), {}).items():
                    self._learn(mine, engine, other, edge)
                uses = [use for use in statement.uses if use.engine == engine]
                for other in self.engines:
                    if other != engine:
                        self._search(uses, position, engine, other, mine)
                self.waited[position, engine] = dict(mine)
            for use in statement.uses if statement.inner is not None else ():
                for other in use.guards:
                    mine = self.known[use.engine]
                    mine[other] = max(mine.get(other, NEVER), position - 1)

    def _search(self, uses: list[Use], position: int, engine: str, other: str, mine: dict[str, int]) -> None:
        """The latest conflict of a statement's accesses with another stream, if it is later than what is known."""
        floor = best = mine.get(other, NEVER)
        edge: Edge | None = None
        pending = [use for use in uses if other not in use.guards]
        for use in pending:
            table = self.accesses.get((use.touch.storage.memory, other))
            if table is None:
                continue
            for index in range(bisect_left(table.positions, position) - 1, -1, -1):
                if table.positions[index] <= best:
                    break
                earlier = table.uses[index]
                if self.conflicts.conflicting(earlier, use) and self.conflicts.same_iteration(
                    earlier, use, self.body.loops
                ):
                    best = table.positions[index]
                    edge = Edge(0, best)
                    break
        if edge is None and self.body.loops and floor < 0:
            edge = self._search_before(pending, position, other, best)
        if edge is not None:
            add_edge(self.edges, position, engine, other, edge)
            self._learn(mine, engine, other, edge)

    def _search_before(self, uses: list[Use], position: int, other: str, best: int) -> Edge | None:
        """The latest conflict with another stream in iterations before."""
        edge: Edge | None = None
        for use in uses:
            table = self.accesses.get((use.touch.storage.memory, other))
            if table is None:
                continue
            for index in range(len(table.uses) - 1, -1, -1):
                at = table.positions[index]
                if at - self.stride <= best:
                    break
                if at == position or not self.conflicts.conflicting(table.uses[index], use):
                    # Pairs inside one statement have been looked at in its own body.
                    continue
                distance = self.conflicts.carried(table.uses[index], use, self.body.loops, len(self.body.loops) - 1)
                if distance is not None and at - distance * self.stride > best:
                    best = at - distance * self.stride
                    edge = Edge(distance, at)
        assert edge is None or edge.distance <= CAP
        return edge

    def _learn(self, mine: dict[str, int], engine: str, other: str, edge: Edge) -> None:
        """What a stream knows once it has waited."""
        time = edge.position - edge.distance * self.stride
        mine[other] = max(mine.get(other, NEVER), time)
        if edge.distance == 0:
            for third, seen in self.waited.get((edge.position, other), {}).items():
                if third != engine:
                    mine[third] = max(mine.get(third, NEVER), seen)
