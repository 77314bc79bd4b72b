"""Whether two accesses can meet in the same bytes, in iterations that stand in a given relation.

All answers are safe: "may overlap" when nothing else is proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuron_mlir.passes.core._affine import Atom, Form, Loop, atom_range
from neuron_mlir.passes.core.scheduling.tree import Touch, Use

CAP = 8
"""Distances beyond this count as this: more than any buffer has slots."""


@dataclass(frozen=True, slots=True)
class Shift:
    """The first access is `low` to `high` (of the variable) before the second."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """The values of the variable at the first and at the second access."""

    first: int
    second: int


Relation = dict[int, Shift | Fixed]
"""By loop; the variables of a loop that is missing here are independent of each other."""
SAME = Shift(0, 0)


def overlap(x: Touch, y: Touch, relation: Relation, loops: dict[int, Loop]) -> bool:
    """Whether `x` and `y` may touch the same bytes in iterations so related."""
    if x.storage is not y.storage:
        return near(x, y)
    for fx, fy, ex, ey in zip(x.offsets, y.offsets, x.extents, y.extents, strict=True):
        if _apart(fx, fy, ex, ey, relation, loops):
            return False
    return True


def near(x: Touch, y: Touch) -> bool:
    """Whether the bytes that any iterations of both touch meet: addresses and partitions."""
    return (
        x.storage.memory == y.storage.memory
        and x.bytes[0] < y.bytes[1]
        and y.bytes[0] < x.bytes[1]
        and x.partitions[0] < y.partitions[1]
        and y.partitions[0] < x.partitions[1]
    )


def _apart(fx: Form, fy: Form, ex: int, ey: int, relation: Relation, loops: dict[int, Loop]) -> bool:
    """Whether `[fx, fx + ex)` and `[fy, fy + ey)` never meet."""
    low = high = fy.constant - fx.constant
    if fx.terms or fy.terms:
        factors: dict[int, tuple[int, int]] = {v: (f, 0) for v, f in fx.terms}
        for variable, factor in fy.terms:
            factors[variable] = (factors.get(variable, (0, 0))[0], factor)
        for variable, (cx, cy) in factors.items():
            ends = _difference(cx, cy, relation.get(variable), loops[variable])
            low, high = low + ends[0], high + ends[1]
    if not fx.atoms and not fy.atoms:
        return low >= ex or high <= -ey
    options = [(low, high)]
    rest = list(fy.atoms)
    for atom in fx.atoms:
        match = next((a for a in rest if (a.factor, a.kind, a.by) == (atom.factor, atom.kind, atom.by)), None)
        change = None if match is None else _atom_difference(atom, match, relation)
        if change is None:
            options = _spread(options, _negated(atom_range(atom, loops)))
            continue
        assert match is not None
        rest.remove(match)
        options = [(a + c, b + c) for a, b in options for c in change]
    for atom in rest:
        options = _spread(options, atom_range(atom, loops))
    return all(a >= ex or b <= -ey for a, b in options)


def _difference(cx: int, cy: int, how: Shift | Fixed | None, loop: Loop) -> tuple[int, int]:
    """Ends of `cy * (variable at y) - cx * (variable at x)`."""
    if isinstance(how, Fixed):
        value = cy * how.second - cx * how.first
        return value, value
    if how is None:
        a, b = cy * loop.start, cy * loop.last
        c, d = cx * loop.start, cx * loop.last
        return min(a, b) - max(c, d), max(a, b) - min(c, d)
    common = cy - cx
    ends = (common * loop.start, common * loop.last) if common else (0, 0)
    shifts = cx * how.low, cx * how.high
    return min(ends) + min(shifts), max(ends) + max(shifts)


def _atom_difference(x: Atom, y: Atom, relation: Relation) -> tuple[int, ...] | None:
    """The values that `y - x` can have; None when they are not known to be few."""
    if x.inner.atoms or y.inner.atoms:
        return None
    total = y.inner.constant - x.inner.constant
    factors: dict[int, tuple[int, int]] = {v: (f, 0) for v, f in x.inner.terms}
    for variable, factor in y.inner.terms:
        factors[variable] = (factors.get(variable, (0, 0))[0], factor)
    for variable, (cx, cy) in factors.items():
        how = relation.get(variable)
        if isinstance(how, Fixed):
            total += cy * how.second - cx * how.first
        elif how is not None and how.low == how.high and cx == cy:
            total += cx * how.low
        else:
            return None
    if x.kind == "floordiv":
        return (0,) if total == 0 else (x.factor * (total // x.by), x.factor * (-(-total // x.by)))
    total %= x.by
    return (0,) if total == 0 else (x.factor * total, x.factor * (total - x.by))


def _spread(options: list[tuple[int, int]], ends: tuple[int, int]) -> list[tuple[int, int]]:
    return [(a + min(ends), b + max(ends)) for a, b in options]


def _negated(ends: tuple[int, int]) -> tuple[int, int]:
    return -ends[1], -ends[0]


class Conflicts:
    """Distances between conflicting accesses, with the answers kept."""

    def __init__(self, loops: dict[int, Loop]):
        self.loops = loops
        self._carried: dict[tuple[int, int, int, int], int | None] = {}

    def conflicting(self, x: Use, y: Use) -> bool:
        """Whether two engines are involved, one of them writes, and the bytes can meet at all."""
        return x.engine != y.engine and (x.touch.write or y.touch.write) and near(x.touch, y.touch)

    def same_iteration(self, x: Use, y: Use, around: Sequence[Loop]) -> bool:
        """Whether they may meet in one iteration of all the loops around both."""
        return overlap(x.touch, y.touch, {loop.number: SAME for loop in around}, self.loops)

    def carried(self, x: Use, y: Use, around: Sequence[Loop], level: int) -> int | None:
        """The least distance in iterations of `around[level]` at which `y` may meet an earlier `x`; None for never.

        Loops outside that level are at the same iteration, those inside at any.
        """
        key = id(x.touch), id(y.touch), around[level].number, level
        if key not in self._carried:
            self._carried[key] = self._carried_distance(x.touch, y.touch, around, level)
        return self._carried[key]

    def _carried_distance(self, x: Touch, y: Touch, around: Sequence[Loop], level: int) -> int | None:
        loop = around[level]
        most = loop.trips - 1
        if most < 1:
            return None
        relation: Relation = {outer.number: SAME for outer in around[:level]}
        if loop.number not in x.variables and loop.number not in y.variables:
            return 1 if overlap(x, y, relation, self.loops) else None
        for distance in range(1, min(most, CAP) + 1):
            relation[loop.number] = Shift(distance * loop.step, distance * loop.step)
            if overlap(x, y, relation, self.loops):
                return distance
        if most > CAP:
            relation[loop.number] = Shift((CAP + 1) * loop.step, most * loop.step)
            if overlap(x, y, relation, self.loops):
                return CAP
        return None

    def slots(self, x: Use, y: Use, around: Sequence[Loop]) -> int | None:
        """The least distance, counted in iterations of all of `around`, at which the two may meet, where one slot after
        the other is theirs as iterations go by; None where that is not so.
        """
        if x.touch.storage is not y.touch.storage:
            return None
        both = zip(x.touch.offsets, y.touch.offsets, x.touch.extents, y.touch.extents, strict=True)
        for fx, fy, ex, ey in both:
            if fx != fy or fx.terms or len(fx.atoms) != 1 or (ex, ey) != (1, 1):
                continue
            atom = fx.atoms[0]
            if atom.kind != "mod" or atom.inner.atoms or atom.factor == 0:
                continue
            factors = dict(atom.inner.terms)
            iterations = 1
            counts = True
            for loop in reversed(around):
                counts &= (factors.pop(loop.number, 0) * loop.step - iterations) % atom.by == 0
                iterations *= loop.trips
            if counts and not factors:
                return atom.by
        return None

    def later_meets(self, x: Use, y: Use, around: Sequence[Loop], level: int) -> bool:
        """Whether `y` may meet an `x` of the iteration before of `around[level]` that is further on in the loops
        inside.

        If not, `y` need only be one whole iteration of that loop behind: tile by tile.
        """
        relation: Relation = {outer.number: SAME for outer in around[:level]}
        relation[around[level].number] = Shift(around[level].step, around[level].step)
        for loop in around[level + 1 :]:
            if loop.trips > 1:
                relation[loop.number] = Shift((1 - loop.trips) * loop.step, -loop.step)
                if overlap(x.touch, y.touch, relation, self.loops):
                    return True
            relation[loop.number] = SAME
        return False

    def wrapped(self, x: Use, y: Use, around: Sequence[Loop], level: int, limit: int) -> int:
        """The least distance, counted in iterations of the innermost of `around`, at which `y` may meet an `x` of the
        iteration before of `around[level]`; `limit` when there is none below it.
        """
        inner = around[level + 1 :]
        total = 1
        for loop in inner:
            total *= loop.trips
        relation: Relation = {outer.number: SAME for outer in around[:level]}
        relation[around[level].number] = Shift(around[level].step, around[level].step)
        for distance in range(1, limit):
            for back in range(1, min(distance, total) + 1):
                ahead = distance - back
                if ahead >= total:
                    continue
                first, second = _decode(total - back, inner), _decode(ahead, inner)
                for loop, a, b in zip(inner, first, second, strict=True):
                    relation[loop.number] = Fixed(a, b)
                if overlap(x.touch, y.touch, relation, self.loops):
                    return distance
        return limit


def _decode(number: int, loops: Sequence[Loop]) -> list[int]:
    """The values of the variables of a nest in its iteration `number`."""
    values: list[int] = []
    for loop in reversed(loops):
        number, iteration = divmod(number, loop.trips)
        values.append(loop.start + iteration * loop.step)
    return values[::-1]
