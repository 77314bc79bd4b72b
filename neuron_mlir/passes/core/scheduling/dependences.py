"""What must wait for what: for each statement and engine, how far the other streams must have come.

Iterations of a body are counted over all the loops around it, in the order of execution: body iteration `n` follows
`n - 1`. An *edge* `(statement, engine) <- (other engine, distance, position)` says: before this statement of
iteration `n`, the other stream has completed its part of the statement at `position` of iteration `n - distance`, and
thereby everything it did before. So of two edges from the same stream the one with the smaller distance, and among
those the later position, implies the other.

Every edge points backwards in the sequential order of the code; so there is no cycle of waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from neuron_mlir.passes.core._affine import Loop
from neuron_mlir.passes.core.scheduling.conflicts import CAP, Conflicts
from neuron_mlir.passes.core.scheduling.edges import Edge, Edges, add_edge
from neuron_mlir.passes.core.scheduling.sweep import Sweep
from neuron_mlir.passes.core.scheduling.tree import Body, Use, ancestor

Pair = tuple[Use, int, Use, int]
"""An earlier access and its position in a body, a later one and its position."""


@dataclass
class Dependences:
    """The edges of all bodies of a stage, and how many were implied by others."""

    edges: dict[Body, Edges] = field(default_factory=dict[Body, Edges])
    dropped: int = 0


class Analysis:
    """Finds the edges of one body tree, innermost bodies first."""

    def __init__(self, conflicts: Conflicts, request_first: bool):
        self.conflicts = conflicts
        self.request_first = request_first
        self.result = Dependences()
        self.pending: dict[Body, list[tuple[Use, Use]]] = {}
        """Pairs inside one loop that must be ordered by waits around it."""

    def body(self, body: Body) -> None:
        """Find the edges of a body and of all below it."""
        for statement in body.statements:
            if statement.inner is not None:
                self.body(statement.inner)
        edges = self.result.edges[body] = {}
        for statement in body.statements:
            for engine, other in statement.after:
                add_edge(edges, statement.position, statement.engines[0], engine, Edge(0, other.position))
        pairs = self._pending(body)
        if body.parent is None:
            self._own_level(body, edges, pairs)
            Sweep(self.conflicts, body, edges).run()
        else:
            far = self._own_level(body, edges, self._pairs(body) + pairs)
            self._outer_levels(body, edges, far)
        knowledge = _Knowledge(body, edges)
        knowledge.follow()
        self.result.dropped += knowledge.reduce()
        knowledge.guard()

    def _pending(self, body: Body) -> list[Pair]:
        """Pairs inside one statement that are to be ordered here."""
        level = len(body.loops)
        return [
            (x, ancestor(x.statement, level).position, y, ancestor(y.statement, level).position)
            for x, y in self.pending.get(body, [])
        ]

    def _pairs(self, body: Body) -> list[Pair]:
        """Conflicting accesses of two engines, with their positions in the body, in either order."""
        found: list[Pair] = []
        by_memory: dict[tuple[str, int], list[tuple[Use, int]]] = {}
        for statement in body.statements:
            for use in statement.uses:
                by_memory.setdefault(use.touch.storage.memory, []).append((use, statement.position))
        for uses in by_memory.values():
            uses.sort(key=lambda item: item[0].touch.bytes[0])
            for index, (x, i) in enumerate(uses):
                end = x.touch.bytes[1]
                for y, j in uses[index + 1 :]:
                    if y.touch.bytes[0] >= end:
                        break
                    if i != j and self.conflicts.conflicting(x, y):
                        found.append((x, i, y, j))
                        found.append((y, j, x, i))
        return found

    def _own_level(self, body: Body, edges: Edges, pairs: list[Pair]) -> list[Pair]:
        """Edges within an iteration and between iterations of the innermost loop around. Returns what outer loops may
        still carry.
        """
        far: list[Pair] = []
        loops = body.loops
        # Later sources first: an edge that implies the pair at hand saves the search.
        pairs.sort(key=lambda p: (p[3], -p[1] if p[1] < p[3] else 1, -p[1]))
        for x, i, y, j in pairs:
            if x.engine in y.guards:
                continue
            known = edges.get((j, y.engine), {}).get(x.engine)
            if i < j:
                if known is not None and known.key >= (0, i):
                    continue
                if self.conflicts.same_iteration(x, y, loops):
                    add_edge(edges, j, y.engine, x.engine, Edge(0, i))
                    continue
            if not loops or (known is not None and known.key >= (-1, i)):
                continue
            distance = self.conflicts.carried(x, y, loops, len(loops) - 1)
            if distance is not None:
                add_edge(edges, j, y.engine, x.engine, Edge(distance, i))
            if len(loops) > 1 and distance != 1:
                far.append((x, i, y, j))
        return far

    def _outer_levels(self, body: Body, edges: Edges, far: list[Pair]) -> None:
        """Pairs that an outer loop carries: implied by the edges here, or ordered by a tighter edge here, or by a
        wait around the loop. Where slots take turns, they are as far apart as there are slots, whatever the loop.
        """
        strongest = _strongest(body, edges)
        for x, i, y, j in far:
            edge = strongest.get((j, y.engine), {}).get(x.engine)
            reach = _reach(edge, i)
            slots = self.conflicts.slots(x, y, body.loops)
            if slots is not None:
                if reach > slots:
                    add_edge(edges, j, y.engine, x.engine, Edge(slots, i))
                    strongest = _strongest(body, edges)
                continue
            for level in range(len(body.loops) - 2, -1, -1):
                if reach <= 1:
                    break
                if self.conflicts.carried(x, y, body.loops, level) is None:
                    continue
                inside = _trips(body.loops[level + 1 :])
                if self.conflicts.later_meets(x, y, body.loops, level):
                    least = self.conflicts.wrapped(x, y, body.loops, level, min(reach, CAP))
                else:
                    least = inside
                if reach <= least and reach <= inside:
                    continue
                # Over the border of a request a wait around the loop costs little, unless the loop is all there is.
                tile_by_tile = least == inside
                if tile_by_tile or (1 < least < inside and not (level == 0 and self.request_first)):
                    add_edge(edges, j, y.engine, x.engine, Edge(least, i))
                    strongest = _strongest(body, edges)
                    reach = least
                    continue
                outside = ancestor(y.statement, level + 1)
                self.pending.setdefault(outside.body, []).append((x, y))
                break


def _trips(loops: tuple[Loop, ...]) -> int:
    total = 1
    for loop in loops:
        total *= loop.trips
    return total


def _reach(edge: Edge | None, position: int) -> int:
    """The least distance at which an access of the other stream at `position` is known to be complete."""
    if edge is None:
        return 1 << 60
    return edge.distance + (position > edge.position)


def _strongest(body: Body, edges: Edges) -> Edges:
    """What each engine knows of each other one at each of its statements, from the edges up to it in the body."""
    found: Edges = {}
    known: dict[str, dict[str, Edge]] = {}
    for statement in body.statements:
        for engine in statement.engines:
            mine = known.setdefault(engine, {})
            for other, edge in edges.get((statement.position, engine), {}).items():
                if other not in mine or mine[other].key < edge.key:
                    mine[other] = edge
            found[statement.position, engine] = dict(mine)
    return found


@dataclass
class _Knowledge:
    """How far each engine knows the others to be, at each statement of a body.

    A position in the endless sequence of iterations is a time: statement `p` of the iteration `d` before is `p - d *
    stride`.
    """

    body: Body
    edges: Edges
    arriving: dict[tuple[int, str], dict[str, int]] = field(default_factory=dict[tuple[int, str], dict[str, int]])
    """What an engine knows when it comes to a statement."""
    waited: dict[tuple[int, str], dict[str, int]] = field(default_factory=dict[tuple[int, str], dict[str, int]])
    """What it knows once it has waited there."""
    leaving: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    """What it knows at the end of an iteration."""

    @property
    def stride(self) -> int:
        """Times from one iteration to the next."""
        return len(self.body.statements) + 1

    def follow(self) -> None:
        """Go through iterations, with all edges in force, until nothing new is learnt (or three times: less is known
        then, all of it true).
        """
        for _ in range(3):
            if not self.iteration():
                return

    def iteration(self) -> bool:
        """One iteration; whether anything changed."""
        changed = False
        now = {
            engine: {other: time - self.stride for other, time in mine.items()} for engine, mine in self.leaving.items()
        }
        for statement in self.body.statements:
            position = statement.position
            for engine in statement.engines:
                mine = now.setdefault(engine, {})
                changed |= _record(self.arriving, (position, engine), mine)
                for other, edge in self.edges.get((position, engine), {}).items():
                    shift = edge.distance * self.stride
                    _know(mine, other, edge.position - shift)
                    for third, time in self.waited.get((edge.position, other), {}).items():
                        if third != engine:
                            _know(mine, third, time - shift)
                changed |= _record(self.waited, (position, engine), mine)
            if statement.inner is not None:
                # A wait inside for the same iteration of a stream: that stream has come to this statement.
                for use in statement.uses:
                    for other in use.guards:
                        _know(now[use.engine], other, position - 1)
        self.leaving = now
        return changed

    def reduce(self) -> int:
        """Drop edges that others imply, through any streams; returns how many.

        All edges point backwards in one sequence, so all that have another way round may go at once.
        """
        dropped = 0
        for (position, engine), sources in self.edges.items():
            start = self.arriving.get((position, engine), {})
            implied: list[str] = []
            for other, edge in sources.items():
                time = edge.position - edge.distance * self.stride
                ways = [start.get(other)]
                for via, way in sources.items():
                    seen = None if via == other else self.waited.get((way.position, via), {}).get(other)
                    ways.append(None if seen is None else seen - way.distance * self.stride)
                if any(way is not None and way >= time for way in ways):
                    implied.append(other)
            for other in implied:
                del sources[other]
            dropped += len(implied)
        return dropped

    def guard(self) -> None:
        """Tell the accesses of the body which streams are known to have begun the iteration they are in."""
        for statement in self.body.statements:
            for use in statement.uses:
                mine = self.waited[statement.position, use.engine]
                use.guards.update(other for other, time in mine.items() if time >= 0)


def _record(table: dict[tuple[int, str], dict[str, int]], key: tuple[int, str], mine: dict[str, int]) -> bool:
    if table.get(key) == mine:
        return False
    table[key] = dict(mine)
    return True


def _know(mine: dict[str, int], other: str, time: int) -> None:
    if mine.get(other, time - 1) < time:
        mine[other] = time
