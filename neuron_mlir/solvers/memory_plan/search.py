"""An exact search for a plan within a capacity: pack from the bottom up, first where no byte may be lost.

Time is cut into *sections*, the maximal sets of buffers alive together. For each the search keeps a *floor*, the
lowest offset at which anything can still start there, and what remains to be placed. Floor + remaining > capacity:
give up. Only canonical plans are looked at, in which each buffer rests on another or on the ground, and buffers are
placed in the order of their offsets, so that a placed one is below all that are not. Floors, canonical plans and the
decomposition in time follow Moffitt, "MiniMalloc: A Lightweight Memory Allocator for Hardware-Accelerated Machine
Learning", ASPLOS 2023 (doi:10.1145/3623278.3624752).

Other than there, a branch chooses for a *place* and not for a buffer: the lowest floor, where least slack is left, of
those the section with fewest candidates. One of them lies there, or the place stays empty and the slack pays for it.
Of a section without slack the choice is thus among few, often one. Three more inferences:

- At a time when the live bytes before and after are both the capacity, what ends takes exactly the bytes of what
  starts. If one of the sides is a single buffer, the others lie inside its bytes (`_Link`): bounds on one bind all.
- States that failed are remembered: what is not placed yet and how low and high each can go says it all.
- When nothing left spans a moment, both sides are solved apart, and a failure goes back to where they came apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd

from neuron_mlir.solvers.memory_plan.model import Buffer, fit, round_up

_MEMORY = 6_000_000
"""Numbers in remembered states; then all are forgotten (some 100 MB)."""

REPORT_EACH = 2_000_000
"""Work between two reports: some 0.2 s."""

_LOW, _HIGH, _FLOOR, _PLACED = range(4)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Offsets by position, or None; then `complete` says that there are none. `work` in steps of the inner loops."""

    offsets: list[int] | None
    complete: bool
    work: int


@dataclass(frozen=True, slots=True)
class _Link:
    """At one time the parts fill the whole: they start as it ends, or end as it starts."""

    whole: int
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Component:
    """Sections `first` to `end` (not included), and what is to be placed there."""

    first: int
    end: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Goals:
    """A list of components to solve. A failure of this one goes back to frame `owner`; -1: there is no plan."""

    component: _Component
    owner: int
    rest: _Goals | None


@dataclass(slots=True)
class _Frame:
    """A choice: one of the candidates lies at `height` in `section`, or, where `empty`, none."""

    goals: _Goals
    section: int
    height: int
    candidates: list[int]
    empty: bool
    mark: int
    key: tuple[object, ...]
    next: int = 0


class Packing:
    """Buffers to place at or above `base` and within `capacity`. Keeps what failed from one search to the next."""

    def __init__(self, buffers: Sequence[Buffer], capacity: int, base: int = 0):
        self.buffers = buffers
        self.capacity = capacity
        self.base = base
        unit = gcd(*(b.alignment for b in buffers))
        self.sizes = [round_up(b.size, unit) for b in buffers]
        self.plain = all(b.alignment == unit and not b.boundary for b in buffers)
        """No offset needs rounding once the base is right: sizes are multiples of the one alignment."""
        # The padding of the topmost buffer may stick out.
        self.limit = capacity + max((z - b.size for z, b in zip(self.sizes, buffers, strict=True)), default=0)
        self._cut_time()
        self.links = self._find_links()
        self.links_of: list[list[_Link]] = [[] for _ in buffers]
        for link in self.links:
            for i in (link.whole, *link.parts):
                self.links_of[i].append(link)
        self.twin = self._find_twins()
        self.failed: set[tuple[object, ...]] = set()
        self.remembered = 0

    def _cut_time(self) -> None:
        """Sections, what is alive in each, in which sections each buffer is, and with which it is alive."""
        count = len(self.buffers)
        events = [(b.lower, 1, i) for i, b in enumerate(self.buffers)]
        events += [(b.upper + 1, 0, i) for i, b in enumerate(self.buffers)]
        self.sections: list[list[int]] = []
        self.first, self.end = [0] * count, [0] * count
        self.neighbours: list[list[int]] = [[] for _ in range(count)]
        live: dict[int, None] = {}
        grown = False
        for _, starts, i in sorted(events):
            if starts:
                self.first[i] = len(self.sections)
                for other in live:
                    self.neighbours[i].append(other)
                    self.neighbours[other].append(i)
                live[i] = None
                grown = True
                continue
            if grown:
                self.sections.append(list(live))
                grown = False
            del live[i]
            self.end[i] = len(self.sections)
        self.totals = [sum(self.sizes[i] for i in members) for members in self.sections]

    def _find_links(self) -> list[_Link]:
        starts: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        change: dict[int, int] = {}
        for i, b in enumerate(self.buffers):
            starts.setdefault(b.lower, []).append(i)
            ends.setdefault(b.upper + 1, []).append(i)
            change[b.lower] = change.get(b.lower, 0) + self.sizes[i]
            change[b.upper + 1] = change.get(b.upper + 1, 0) - self.sizes[i]
        found: list[_Link] = []
        live = self.base
        for time in sorted(change):
            before, live = live, live + change[time]
            old, new = ends.get(time, []), starts.get(time, [])
            if not before == self.limit == live or self.limit != self.capacity:
                continue
            if len(old) == 1:
                found.append(_Link(old[0], tuple(new)))
            elif len(new) == 1:
                found.append(_Link(new[0], tuple(old)))
        return found

    def _find_twins(self) -> list[int]:
        """For each the one before it that is exactly like it, -1 without: that one is placed first."""
        seen: dict[tuple[int, int, int, int, int], int] = {}
        twins: list[int] = []
        for i, b in enumerate(self.buffers):
            key = (b.lower, b.upper, b.size, b.alignment, b.boundary)
            twins.append(seen.get(key, -1))
            seen[key] = i
        # A link names one of them: they are not alike.
        for link in self.links:
            for i in (link.whole, *link.parts):
                twins[i] = -1
        return twins

    def search(self, order: Sequence[int], work: int, report: Callable[[], bool] | None = None) -> Outcome:
        """Look for a plan, trying candidates in `order` (positions of buffers, the first first).

        `report` is called now and then; when it returns False the search ends.
        """
        if not self.buffers:
            return Outcome([], True, 0)
        return _Search(self, order, report).run(work)


class _Search:
    """One search: the state, and how to go back."""

    def __init__(self, packing: Packing, order: Sequence[int], report: Callable[[], bool] | None):
        self.packing = packing
        self.report = report
        self.reported = 0
        rank = {i: number for number, i in enumerate(order)}
        self.members = [sorted(members, key=rank.__getitem__) for members in packing.sections]
        base = packing.base
        self.low = [fit(b, base) for b in packing.buffers]
        self.high = [packing.capacity - b.size for b in packing.buffers]
        self.placed = [False] * len(packing.buffers)
        self.floor = [min(self.low[i] for i in members) for members in packing.sections]
        self.remaining = list(packing.totals)
        self.spans = [0] * len(packing.sections)
        """How many to be placed are alive in this section and the one before."""
        for i in range(len(packing.buffers)):
            for s in range(packing.first[i] + 1, packing.end[i]):
                self.spans[s] += 1
        self.trail: list[tuple[int, int, int]] = []
        self.frames: list[_Frame] = []
        self.work = 0
        self.touched = (0, 0)
        """The sections whose floors may have risen."""

    def run(self, limit: int) -> Outcome:
        packing = self.packing
        for total, floor in zip(packing.totals, self.floor, strict=True):
            if floor + total > packing.limit:
                return Outcome(None, True, self.work)
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            return Outcome(None, True, self.work)
        whole = _Component(0, len(packing.sections), tuple(range(len(packing.buffers))))
        goals = self.parts_of(whole, -1, None)
        while goals is not None:
            if self.work > limit:
                return Outcome(None, False, self.work)
            if not self.push(goals):
                if goals.owner < 0:
                    return Outcome(None, True, self.work)
                del self.frames[goals.owner + 1 :]
            following = self.advance(limit)
            if isinstance(following, Outcome):
                return following
            goals = following
        return Outcome(self.low, True, self.work)

    def advance(self, limit: int) -> _Goals | Outcome | None:
        """Take the next choice that holds, and return what is to be solved then."""
        frames = self.frames
        while self.work <= limit:
            if self.report is not None and self.work > self.reported + REPORT_EACH:
                self.reported = self.work
                if not self.report():
                    break
            frame = frames[-1]
            self.undo(frame.mark)
            choice = frame.next
            frame.next += 1
            component = frame.goals.component
            if choice < len(frame.candidates):
                holds = self.place(frame.candidates[choice], frame.height)
            elif choice == len(frame.candidates) and frame.empty:
                holds = self.leave_empty(frame.section, frame.height)
            else:
                self.remember(frame.key, len(component.ids))
                owner = frame.goals.owner
                if owner < 0:
                    return Outcome(None, True, self.work)
                del frames[owner + 1 :]
                continue
            if holds:
                return self.parts_of(component, len(frames) - 1, frame.goals.rest)
        return Outcome(None, False, self.work)

    def remember(self, key: tuple[object, ...], size: int) -> None:
        packing = self.packing
        packing.remembered += 2 * size
        if packing.remembered > _MEMORY:
            packing.failed.clear()
            packing.remembered = 2 * size
        packing.failed.add(key)

    def parts_of(self, component: _Component, owner: int, rest: _Goals | None) -> _Goals | None:
        """What is left of a component, in parts that share no buffer."""
        spans, remaining = self.spans, self.remaining
        ranges: list[tuple[int, int]] = []
        start = -1
        for s in range(component.first, component.end):
            if start >= 0 and (not remaining[s] or not spans[s]):
                ranges.append((start, s))
                start = -1
            if remaining[s] and start < 0:
                start = s
        if start >= 0:
            ranges.append((start, component.end))
        placed, first = self.placed, self.packing.first
        ids = [i for i in component.ids if not placed[i]]
        self.work += len(ids) + component.end - component.first
        for low, high in reversed(ranges):
            inside = tuple(ids) if len(ranges) == 1 else tuple(i for i in ids if low <= first[i] < high)
            rest = _Goals(_Component(low, high, inside), owner, rest)
        return rest

    def push(self, goals: _Goals) -> bool:
        """Open the next choice of a component; False where it is known to fail."""
        ids = goals.component.ids
        key: tuple[object, ...] = (ids, tuple([self.low[i] for i in ids]))
        if self.packing.links:
            key = (*key, tuple([self.high[i] for i in ids]))
        if key in self.packing.failed:
            return False
        section, height, candidates, empty = self.choose(goals.component)
        self.frames.append(_Frame(goals, section, height, candidates, empty, len(self.trail), key))
        return True

    def choose(self, component: _Component) -> tuple[int, int, list[int], bool]:
        """Where to go on: section, height, candidates, and whether it may stay empty."""
        placed, low, high, members = self.placed, self.low, self.high, self.members
        floor, remaining, twin = self.floor, self.remaining, self.packing.twin
        height = min(floor[component.first : component.end])
        if self.packing.links:
            for i in component.ids:
                if high[i] == height:
                    return self.packing.first[i], height, [i], False
        at = [s for s in range(component.first, component.end) if floor[s] == height]
        most = max([remaining[s] for s in at])
        section, fewest = -1, [0] * (len(placed) + 1)
        for s in at:
            if remaining[s] != most:
                continue
            found = [i for i in members[s] if low[i] == height and not placed[i] and (twin[i] < 0 or placed[twin[i]])]
            self.work += len(members[s])
            if len(found) < len(fewest):
                section, fewest = s, found
                if len(found) == 1:
                    break
        return section, height, fewest, height + most < self.packing.limit

    def place(self, buffer: int, height: int) -> bool:
        """Put a buffer at a height, and see what follows. False: no plan comes of that."""
        packing, placed, low, high, trail = self.packing, self.placed, self.low, self.high, self.trail
        first, end, links_of = packing.first, packing.end, packing.links_of
        top = height + packing.sizes[buffer]
        placed[buffer] = True
        trail.append((_PLACED, buffer, 0))
        trail.append((_HIGH, buffer, high[buffer]))
        high[buffer] = height
        begin, stop = first[buffer], end[buffer]
        remaining, spans, size = self.remaining, self.spans, packing.sizes[buffer]
        for s in range(begin, stop):
            remaining[s] -= size
            spans[s] -= 1
        spans[begin] += 1
        changed = [buffer] if links_of[buffer] else []
        plain, buffers = packing.plain, packing.buffers
        neighbours = packing.neighbours[buffer]
        self.work += len(neighbours) + stop - begin
        for other in neighbours:
            if placed[other] or low[other] >= top:
                continue
            start = top if plain else fit(buffers[other], top)
            if start > high[other]:
                return False
            trail.append((_LOW, other, low[other]))
            low[other] = start
            if first[other] < begin:
                begin = first[other]
            if end[other] > stop:
                stop = end[other]
            if links_of[other]:
                changed.append(other)
        self.touched = (begin, stop)
        if changed and not self.propagate(changed):
            return False
        return self.raise_floors()

    def leave_empty(self, section: int, height: int) -> bool:
        """Nothing starts at the floor of a section: each candidate rests on something not placed yet, and so higher."""
        packing, placed, low, trail = self.packing, self.placed, self.low, self.trail
        begin, stop = len(packing.sections), 0
        changed: list[int] = []
        for i in self.members[section]:
            if placed[i] or low[i] != height:
                continue
            neighbours = packing.neighbours[i]
            self.work += len(neighbours)
            tops = [low[o] + packing.sizes[o] for o in neighbours if not placed[o]]
            start = fit(packing.buffers[i], min(tops)) if tops else packing.limit
            if start > self.high[i]:
                return False
            trail.append((_LOW, i, height))
            low[i] = start
            begin, stop = min(begin, packing.first[i]), max(stop, packing.end[i])
            if packing.links_of[i]:
                changed.append(i)
        self.touched = (begin, stop)
        if changed and not self.propagate(changed):
            return False
        return self.raise_floors()

    def propagate(self, changed: list[int]) -> bool:
        """Bounds through the links, until none moves."""
        low, high, sizes = self.low, self.high, self.packing.sizes
        while changed:
            for link in self.packing.links_of[changed.pop()]:
                whole, parts = link.whole, link.parts
                self.work += 4 * len(parts)
                size = sizes[whole]
                # The whole starts with its lowest part, and holds each.
                least = max(low[whole], min([low[p] for p in parts]), max([low[p] + sizes[p] for p in parts]) - size)
                most = min(high[whole], min([high[p] for p in parts]))
                if not self.bound(whole, least, most, changed):
                    return False
                for p in parts:
                    if not self.bound(p, least, most + size - sizes[p], changed):
                        return False
        return True

    def bound(self, buffer: int, least: int, most: int, changed: list[int]) -> bool:
        """Narrow where a buffer can start; note it when that moves something."""
        low, high, packing = self.low, self.high, self.packing
        moved = False
        if least > low[buffer]:
            if self.placed[buffer]:
                return False
            if not packing.plain:
                least = fit(packing.buffers[buffer], least)
            self.trail.append((_LOW, buffer, low[buffer]))
            low[buffer] = least
            begin, stop = self.touched
            self.touched = (min(begin, packing.first[buffer]), max(stop, packing.end[buffer]))
            moved = True
        if most < high[buffer]:
            self.trail.append((_HIGH, buffer, high[buffer]))
            high[buffer] = most
            moved = True
        if low[buffer] > high[buffer]:
            return False
        if moved:
            changed.append(buffer)
        return True

    def raise_floors(self) -> bool:
        """The floor of a section is the lowest offset of anything left there. False where too much remains above."""
        placed, low, floor, remaining, members = self.placed, self.low, self.floor, self.remaining, self.members
        limit = self.packing.limit
        begin, stop = self.touched
        work = 0
        for s in range(begin, stop):
            left = remaining[s]
            if not left:
                continue
            work += len(members[s])
            lowest = limit
            for i in members[s]:
                if not placed[i] and low[i] < lowest:
                    lowest = low[i]
            if lowest != floor[s]:
                self.trail.append((_FLOOR, s, floor[s]))
                floor[s] = lowest
                if lowest + left > limit:
                    self.work += work
                    return False
        self.work += work
        return True

    def undo(self, mark: int) -> None:
        """Back to how things were when the trail was `mark` long."""
        trail, packing = self.trail, self.packing
        low, high, floor = self.low, self.high, self.floor
        while len(trail) > mark:
            kind, index, value = trail.pop()
            if kind == _LOW:
                low[index] = value
            elif kind == _FLOOR:
                floor[index] = value
            elif kind == _HIGH:
                high[index] = value
            else:
                self.placed[index] = False
                remaining, spans, size = self.remaining, self.spans, packing.sizes[index]
                begin, stop = packing.first[index], packing.end[index]
                for s in range(begin, stop):
                    remaining[s] += size
                    spans[s] += 1
                spans[begin] -= 1
