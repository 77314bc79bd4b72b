"""Running several layers depth first, some rows at a time: which rows of which value are computed in which step, and
which are kept in a line buffer for later steps.

A step computes rows of the results from top to bottom; every other value is computed just far enough for what its
readers compute in the same step. Rows that a later step still needs (the overlap of windows, the slower branch of a
fork) stay: nothing is computed twice. With `recompute`, nothing stays: every step computes all rows it reads, so rows
under the overlap are computed again, and the steps are independent of each other. Both are the two ends that Alwani et
al. ("Fused-Layer CNN Accelerators", MICRO 2016) compare as reuse and recompute.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Read:
    """How rows come from those of another value: row `o` reads `reach` rows from `o // repeat * stride - pad` on."""

    value: int
    """Position of the value read."""
    stride: int = 1
    pad: int = 0
    reach: int = 1
    repeat: int = 1
    """Rows that read the same ones (an upsampling by this factor)."""

    def first(self, row: int) -> int:
        """The first row read by `row`; negative in padding."""
        return row // self.repeat * self.stride - self.pad

    def end(self, stop: int) -> int:
        """One past the last row that rows before `stop` read."""
        return (stop - 1) // self.repeat * self.stride - self.pad + self.reach


@dataclass(frozen=True, slots=True)
class Rows:
    """A value: its height, and what it reads (nothing: it comes from outside)."""

    height: int
    reads: tuple[Read, ...] = ()
    is_result: bool = False
    unit: int = 1
    """Rows are computed in multiples of this (an upsampling's factor)."""
    once: bool = False
    """Rows of a value from outside come once, all of them, and are kept for later steps, where others come anew in
    each step that reads them. With `recompute` they come anew all the same.
    """


@dataclass(frozen=True, slots=True)
class Part:
    """One value in one step."""

    start: int
    """First row computed (or loaded) now."""
    stop: int
    """One past the last."""
    base: int
    """First row that is in the buffer: from an earlier step, or padding (negative)."""
    top: int
    """One past the last row in the buffer, padding below included."""
    kept: int
    """Rows from `base` on that were computed before and kept."""

    @property
    def rows(self) -> int:
        """Rows computed now."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Run:
    """Steps `first` to `first + count - 1`: the same but for where rows are."""

    first: int
    count: int
    parts: tuple[Part, ...]
    """Of the first step, by value."""
    progress: tuple[int, ...]
    """How far each value is on in the next step; zeros for a single step."""


@dataclass(frozen=True)
class RowTotals:
    """Sums over all steps, by value."""

    buffer: tuple[int, ...]
    """Rows that the buffer of a value needs."""
    computed: tuple[int, ...]
    """Rows computed or loaded; more than the height where rows are done again."""
    kept: tuple[int, ...]
    """Rows that move to the front of the buffer."""


@dataclass(frozen=True)
class RowSchedule:
    """Steps in runs of like ones.

    The last row in a buffer is always at the buffer's end, so that rows kept move by as much as a step adds.
    """

    values: tuple[Rows, ...]
    runs: tuple[Run, ...]

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return self.runs[-1].first + self.runs[-1].count

    def step(self, number: int) -> tuple[Part, ...]:
        """What a step does with each value."""
        run = self.runs[bisect_right(self.runs, number, key=lambda run: run.first) - 1]
        return _moved(run.parts, run.progress, number - run.first)

    @cached_property
    def totals(self) -> RowTotals:
        """Sums over all steps."""
        buffer, computed, kept = ([0] * len(self.values) for _ in range(3))
        for run in self.runs:
            for i, part in enumerate(run.parts):
                buffer[i] = max(buffer[i], part.top - part.base)
                computed[i] += part.rows * run.count
                kept[i] += part.kept * run.count
        return RowTotals(tuple(buffer), tuple(computed), tuple(kept))

    def buffer_rows(self, value: int) -> int:
        """Rows that the buffer of a value needs."""
        return self.totals.buffer[value]


def schedule_rows(values: Sequence[Rows], rows: int, *, recompute: bool = False) -> RowSchedule:
    """Steps of `rows` rows of the tallest result (others in proportion).

    Most steps are like the one before, moved down. So the work is that of the first and last steps, however many there
    are between them.

    Args:
        values: in topological order: reads are of earlier ones.
        rows: at least 1.
        recompute: keep nothing between steps.

    Raises `ValueError` without a result.
    """
    results = [v for v in values if v.is_result]
    if not results or rows < 1:
        raise ValueError("needs a result, and at least one row a step")
    tallest = max(v.height for v in results)
    steps = -(-tallest // rows)
    readers: list[list[tuple[int, Read]]] = [[] for _ in values]
    for position, value in enumerate(values):
        for read in value.reads:
            readers[read.value].append((position, read))
    runs: list[Run] = []
    before: tuple[Part, ...] = ()
    done = [0] * len(values)
    step = 0
    while step < steps:
        targets = [-(-v.height * min(tallest, rows * (step + 1)) // tallest) if v.is_result else 0 for v in values]
        fresh = [-(-v.height * min(tallest, rows * step) // tallest) if v.is_result else v.height for v in values]
        now = _step(values, readers, done, targets, fresh, recompute, step == steps - 1)
        _append(values, runs, step, before, now)
        step += 1
        done = [part.stop if part.rows else old for part, old in zip(now, done, strict=True)]
        more = _repeats(values, rows, tallest, before, now) if runs[-1].count > 1 else 0
        more = min(more, steps - 1 - step)
        if more > 0:
            last = runs[-1]
            runs[-1] = Run(last.first, last.count + more, last.parts, last.progress)
            step += more
            now = _moved(now, last.progress, more)
            done = [old + p * more for old, p in zip(done, last.progress, strict=True)]
        before = now
    return RowSchedule(tuple(values), tuple(runs))


def most_alive(values: Sequence[Rows], sizes: Sequence[int]) -> int:
    """The most that values take together while one of them is computed, each there until its last reader is done."""
    until = list(range(len(values)))
    for position, value in enumerate(values):
        for read in value.reads:
            until[read.value] = position
    return max(sum(sizes[n] for n in range(at + 1) if at <= until[n]) for at in range(len(values)))


def _moved(parts: tuple[Part, ...], progress: Sequence[int], times: int) -> tuple[Part, ...]:
    """Parts of a step so many steps later."""
    if not times:
        return parts
    return tuple(
        Part(p.start + d * times, p.stop + d * times, p.base + d * times, p.top + d * times, p.kept) if d else p
        for p, d in zip(parts, progress, strict=True)
    )


def _append(
    values: Sequence[Rows], runs: list[Run], step: int, before: tuple[Part, ...], now: tuple[Part, ...]
) -> None:
    """Add a step: to the last run when it goes on like that."""
    progress = tuple(b.start - a.start for a, b in zip(before, now, strict=False))
    if runs:
        last = runs[-1]
        first_moved = _tops(before, now)
        same = all(map(_like, before, now)) and (last.count == 1 or progress == last.progress)
        same = same and _places(values, before) == _places(values, now)
        # Of the first step of a run, too, rows have moved as far as of the others.
        if same and last.count == 1:
            kept = [i for i, part in enumerate(now) if part.kept]
            previous = _moves(runs, kept)
            same = all(previous.get(i) == first_moved[i] for i in kept)
        if same:
            runs[-1] = Run(last.first, last.count + 1, last.parts, progress)
            return
    runs.append(Run(step, 1, now, (0,) * len(now)))


def _tops(before: tuple[Part, ...], now: tuple[Part, ...]) -> list[int]:
    return [b.top - a.top for a, b in zip(before, now, strict=True)]


def _moves(runs: Sequence[Run], kept: Sequence[int]) -> dict[int, int]:
    """How far the buffers' last rows moved in the last step, which is a run of its own."""
    if len(runs) < 2:
        return {}
    earlier = runs[-2]
    parts = _moved(earlier.parts, earlier.progress, earlier.count - 1)
    return {i: runs[-1].parts[i].top - parts[i].top for i in kept}


def _like(a: Part, b: Part) -> bool:
    """Whether code for the two differs only in where their rows begin."""
    return (
        a.stop - a.start == b.stop - b.start
        and a.start - a.base == b.start - b.base
        and a.top - a.stop == b.top - b.stop
        and a.kept == b.kept
        and max(0, -a.base) == max(0, -b.base)
    )


def _places(values: Sequence[Rows], parts: Sequence[Part]) -> list[int]:
    """Where in its operands' buffers each value that is computed reads: units that are computed whole may begin before
    what is read of them.
    """
    return [
        read.first(part.start) - parts[read.value].base
        for value, part in zip(values, parts, strict=True)
        for read in value.reads
        if part.rows
    ]


def _repeats(values: Sequence[Rows], rows: int, tallest: int, before: tuple[Part, ...], now: tuple[Part, ...]) -> int:
    """How many steps at least go on from `now` as it does from `before`: as long as what moves does so in proportion,
    and does not come to the end of its map.
    """
    progress = [b.stop - a.stop for a, b in zip(before, now, strict=True)]
    found = tallest
    for value, part, moved in zip(values, now, progress, strict=True):
        if value.is_result and moved * tallest != value.height * rows:
            return 0
        for read in value.reads:
            ahead = progress[read.value]
            if moved and (moved % read.repeat or moved // read.repeat * read.stride != ahead):
                return 0
        if not moved:
            if part.rows or (part.stop < value.height and part.kept):
                return 0
            continue
        if part.base < 0 or moved % value.unit:
            return 0
        found = min(found, (value.height - 1 - part.top) // moved)
    return max(0, found)


def _step(
    values: Sequence[Rows],
    readers: Sequence[Sequence[tuple[int, Read]]],
    done: Sequence[int],
    targets: Sequence[int],
    fresh: Sequence[int],
    recompute: bool,
    last: bool,
) -> tuple[Part, ...]:
    """One step. `done` rows of each value exist, results are wanted up to `targets`, from `fresh` on."""
    starts, stops = [0] * len(values), [0] * len(values)
    bases, tops = [0] * len(values), [0] * len(values)
    for position in range(len(values) - 1, -1, -1):
        value = values[position]
        height, unit = value.height, value.unit
        stop = targets[position] if recompute else max(targets[position], done[position])
        low, high = height, 0
        # As `Read.first` and `Read.end` say; this is the innermost of all loops that look for a tile.
        for reader, read in readers[position]:
            begin, end = starts[reader], stops[reader]
            if end > begin:
                low = min(low, begin // read.repeat * read.stride - read.pad)
                high = max(high, (end - 1) // read.repeat * read.stride - read.pad + read.reach)
            elif not recompute and end < values[reader].height:
                low = min(low, end // read.repeat * read.stride - read.pad)  # read later
        needed = min(max(high, stop), height)
        if unit > 1:
            needed = min(-(-needed // unit) * unit, height)
        if recompute:
            first = min(fresh[position], targets[position]) if value.is_result else height
            start = min(first, max(low, 0)) // unit * unit
            start = min(start, needed)
        else:
            start = done[position]
            needed = height if last and value.once else max(needed, start)
        starts[position], stops[position] = start, needed
        bases[position] = min(low, start)
        tops[position] = max(high, needed)
    found: list[Part] = []
    for position, value in enumerate(values):
        base = bases[position]
        anew = not value.reads and (recompute or not value.once)
        kept = 0 if recompute or anew else max(0, starts[position] - max(base, 0))
        start = starts[position]
        if anew:  # from outside: loaded again as far as it is read
            start = min(max(base, 0), stops[position])
        found.append(Part(start, stops[position], base, tops[position], kept))
    return tuple(found)
