"""Running several layers depth first, some rows at a time: which rows of which value are computed in which step, and
which are kept in a line buffer for later steps.

A step computes rows of the results from top to bottom; every other value is computed just far enough for what its
readers compute in the same step. Rows that a later step still needs (the overlap of windows, the slower branch of a
fork) stay: nothing is computed twice. With `recompute`, nothing stays: every step computes all rows it reads, so rows
under the overlap are computed again, and the steps are independent of each other. Both are the two ends that Alwani et
al. ("Fused-Layer CNN Accelerators", MICRO 2016) compare as reuse and recompute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


@dataclass(frozen=True)
class RowSchedule:
    """Steps by values.

    The last row in a buffer is always at the buffer's end, so that rows kept move by as much as a step adds.
    """

    parts: tuple[tuple[Part, ...], ...]
    """`parts[step][value]`."""
    runs: tuple[Run, ...]

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.parts)

    def buffer_rows(self, value: int) -> int:
        """Rows that the buffer of a value needs."""
        return max(step[value].top - step[value].base for step in self.parts)

    def computed_rows(self, value: int) -> int:
        """Rows computed or loaded over all steps; more than the height where rows are done again."""
        return sum(step[value].rows for step in self.parts)

    def kept_rows(self, value: int) -> int:
        """Rows that move to the front of the buffer, over all steps."""
        return sum(step[value].kept for step in self.parts)


def schedule_rows(values: Sequence[Rows], rows: int, *, recompute: bool = False) -> RowSchedule:
    """Steps of `rows` rows of the tallest result (others in proportion).

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
    parts: list[tuple[Part, ...]] = []
    done = [0] * len(values)
    for step in range(steps):
        targets = [-(-v.height * min(tallest, rows * (step + 1)) // tallest) if v.is_result else 0 for v in values]
        fresh = [-(-v.height * min(tallest, rows * step) // tallest) if v.is_result else v.height for v in values]
        parts.append(_step(values, readers, done, targets, fresh, recompute))
        done = [part.stop if part.rows else before for part, before in zip(parts[-1], done, strict=True)]
    return RowSchedule(tuple(parts), tuple(_runs(values, parts)))


def _step(
    values: Sequence[Rows],
    readers: Sequence[Sequence[tuple[int, Read]]],
    done: Sequence[int],
    targets: Sequence[int],
    fresh: Sequence[int],
    recompute: bool,
) -> tuple[Part, ...]:
    """One step. `done` rows of each value exist, results are wanted up to `targets`, from `fresh` on."""
    starts, stops = [0] * len(values), [0] * len(values)
    bases, tops = [0] * len(values), [0] * len(values)
    for position in reversed(range(len(values))):
        value = values[position]
        stop = max(targets[position], 0 if recompute else done[position])
        first = min(fresh[position], targets[position]) if value.is_result else value.height
        low, high = value.height, 0
        for reader, read in readers[position]:
            if stops[reader] > starts[reader]:
                low = min(low, read.first(starts[reader]))
                high = max(high, read.end(stops[reader]))
            elif not recompute and stops[reader] < values[reader].height:
                low = min(low, read.first(stops[reader]))  # read later
        needed = min(max(high, stop), value.height)
        needed = min(-(-needed // value.unit) * value.unit, value.height)
        if recompute:
            start = min(first, max(low, 0)) // value.unit * value.unit
            start = min(start, needed)
        else:
            start = done[position]
            needed = max(needed, start)
        starts[position], stops[position] = start, needed
        bases[position] = min(low, start)
        tops[position] = max(high, needed)
    found: list[Part] = []
    for position, value in enumerate(values):
        base = bases[position]
        kept = 0 if recompute or not value.reads else max(0, starts[position] - max(base, 0))
        start = starts[position]
        if not value.reads:  # from outside: loaded anew as far as it is read
            start = min(max(base, 0), stops[position])
        found.append(Part(start, stops[position], base, tops[position], kept))
    return tuple(found)


def _runs(values: Sequence[Rows], parts: Sequence[tuple[Part, ...]]) -> list[Run]:
    """Steps that differ only by a constant progress made one run each."""
    runs: list[Run] = []
    shapes = [_shape(parts, step) for step in range(len(parts))]
    for step in range(len(parts)):
        if runs:
            last = runs[-1]
            same = shapes[step] == shapes[last.first]
            if same and last.count > 1:
                same = _progress(parts, step) == _progress(parts, last.first + 1)
            if same:
                runs[-1] = Run(last.first, last.count + 1)
                continue
        runs.append(Run(step, 1))
    return runs


def _shape(parts: Sequence[tuple[Part, ...]], step: int) -> list[tuple[int, ...]]:
    """What code for a step depends on, besides where its rows begin."""
    shape: list[tuple[int, ...]] = []
    for position, part in enumerate(parts[step]):
        moved = part.top - parts[step - 1][position].top if part.kept else 0
        shape.append((part.rows, part.start - part.base, part.top - part.stop, part.kept, moved, max(0, -part.base)))
    return shape


def _progress(parts: Sequence[tuple[Part, ...]], step: int) -> list[int]:
    return [now.start - before.start for now, before in zip(parts[step], parts[step - 1], strict=True)]
