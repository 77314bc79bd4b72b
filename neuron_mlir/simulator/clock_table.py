"""Instruction streams as tables that one loop runs: the clock and nothing else.

Python takes far longer to compile a statement than to run it, and a network has tens of thousands of instructions. So
without values streams are not compiled: what a stream does for a request is one flat list of rows, its loops unrolled,
and what is known beforehand is worked out beforehand. The time `t` at which the engine is free is added up between
waits, transfers and signals; the time `d` of the latest result is `t` and a number almost everywhere; what a wait waits
for is a number of the row and one of the request. The times are those of `codegen`, which has the streams that have no
table (`tests/unit/simulator/test_clock_table.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from math import gcd
from operator import length_hint
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from xdsl.ir.affine import AffineBinaryOpExpr, AffineBinaryOpKind, AffineConstantExpr, AffineDimExpr, AffineExpr

from neuron_mlir.dialects.core.movement import DmaOp, GatherOp, SignalOp, WaitOp
from neuron_mlir.machine.cost import stationary_load_ps
from neuron_mlir.simulator.codegen import StreamRun
from neuron_mlir.simulator.costs import StepCosts, Transfer
from neuron_mlir.simulator.program import Limit, Loop, Step, Stream, walk

_LONGEST = 2_000_000
"""Rows of a stream that has a table."""
_LONGEST_PERIOD = 4
"""Requests after which rows are the same again."""
_WAIT, _SIGNAL, _MOVE, _SIGNAL_LATEST, _LATEST, _LATER, _BUSY = range(7)

Row: TypeAlias = "tuple[int, Any, int, int, int]"
"""What is done, what with, and a number for it; of a wait, which of the stream's; ps that the engine is busy next.

- `_WAIT`: until these signals are more than the number, and what the request adds to it;
- `_SIGNAL`: so long after the engine is free;
- `_MOVE`: this transfer;
- `_SIGNAL_LATEST`: so long after the latest result;
- `_LATEST`: the latest result is there so long after the engine is free;
- `_LATER`: that is when it is there, if not later;
- `_BUSY`: nothing.
"""
Value = int | NDArray[np.int64]
"""A number, or one for each turn of the loops around."""


@dataclass
class Table:
    """What a stream does in its load, or for each request."""

    rows: list[list[Row]]
    """Of requests 0, 1, .. up to the one from which on they are the same again."""
    waited: list[tuple[int, int]]
    """Semaphores it waits for: number, and by how much what it waits for has grown by then."""
    late: int
    """What is added when the engine had to wait, ps."""

    def run(self, limit: Limit | None, place: list[int] | None, first: int, last: int, t: int) -> StreamRun:
        """The stream, as a generator like those of `codegen`.

        Args:
            limit: where its turns end, or None to run once.
            place: where to write down where it stands, or None.
            first: turn.
            last: turn to stop before.
            t: when the engine is free, ps.
        """
        all_rows, waited, late = self.rows, self.waited, self.late
        d = t
        if limit is not None:
            limit.last = last
        for r in (0,) if limit is None else limit.turns(first):
            times, kind_of_turn = divmod(r, len(all_rows))
            grown = [times * growth for _, growth in waited]
            left = iter(all_rows[kind_of_turn])
            for kind, what, number, which, busy in left:
                if kind == _WAIT:
                    v = number + grown[which]
                    if v >= 0:
                        if len(what) <= v:
                            if place is not None:
                                # Whether `d` is a time before `t` or `t` itself makes no difference to anybody.
                                place[:] = length_hint(left), r, t, max(d, t)
                            yield waited[which][0], v + 1, None
                        if (w := what[v]) > t:
                            t = w + late
                elif kind == _SIGNAL:
                    what(t + number)
                elif kind == _MOVE:
                    if place is not None:
                        place[:] = length_hint(left), r, t, max(d, t)
                    t = yield 0, t, what
                elif kind == _SIGNAL_LATEST:
                    what((d if d > t else t) + number)
                elif kind == _LATEST:
                    d = t + number
                elif kind == _LATER:
                    d = max(d, t + number)
                t += busy
        return t, d


@dataclass
class _Part:
    """Rows of a body that follow one another, before they are rows: one, or those of a loop (`flat`)."""

    kind: int = _BUSY
    what: Any = None
    number: Value = 0
    which: int = 0
    busy: int = 0
    flat: list[Row] = field(default_factory=list[Row])

    def rows(self, times: int) -> tuple[list[Row], int]:
        """Those of all turns of the loops around, and how many there are in each."""
        if self.kind < 0:
            return self.flat, len(self.flat) // times
        if isinstance(self.number, int):
            return [(self.kind, self.what, self.number, self.which, self.busy)] * times, 1
        numbers: list[int] = self.number.tolist()
        return list(zip(repeat(self.kind), repeat(self.what), numbers, repeat(self.which), repeat(self.busy))), 1


def make_table(stream: Stream, costs: StepCosts, signals: Sequence[list[int]], load: bool) -> Table | None:
    """The table of a stream's load, or of its requests.

    Args:
        signals: the times at which each semaphore is signalled.
        load: whether it is the load's.

    Returns:
        None when what a wait waits for does not grow evenly from every fourth request to the next, or for a list too
        long.
    """
    body = stream.load if load else stream.run
    rows = sum(times for step, times in walk(body) if not step.touches or isinstance(step.op, (DmaOp, GatherOp)))
    period = 1
    while period <= _LONGEST_PERIOD and period * rows <= _LONGEST:
        maker = _TableMaker(stream, costs, signals, period)
        try:
            turns = [maker.make(body, turn) for turn in range(period)]
        except _UnevenError as error:
            period *= error.factor
            continue
        late = stationary_load_ps(costs.machine) if stream.engine == "tensor" else 0
        return Table(turns, list(maker.waited), late)
    return None


class _UnevenError(Exception):
    """A wait for a number that does not grow evenly with the request; it may with every `factor`-th."""

    def __init__(self, factor: int) -> None:
        super().__init__(factor)
        self.factor = factor


class _TableMaker:
    """Makes the table of one stream's load or requests."""

    def __init__(self, stream: Stream, costs: StepCosts, signals: Sequence[list[int]], period: int):
        self.stream, self.costs, self.signals, self.period = stream, costs, signals, period
        self.turn = 0
        self.waited: dict[tuple[int, int], int] = {}
        self.loops: list[Loop] = []
        """Those around what is being made."""
        self.frames: list[tuple[Sequence[Loop | Step], int]] = []
        """The bodies being made, from the outside in, with the number of the item that comes next."""
        self.parts: list[_Part] = []
        """Of the innermost of them, so far."""
        self.latest: int | None = 0
        """How long after the engine is free its latest result is there, ps; None: see the variable `d`, if that is
        asked for at all before it is set again.
        """
        self.transfers: dict[Step, Transfer | None] = {}
        self.spans: dict[Loop, tuple[int, int | None] | None] = {}
        self._longest: int | None = None

    def make(self, body: Sequence[Loop | Step], turn: int) -> list[Row]:
        """The rows of a turn, of as many as there are kinds."""
        self.latest, self.turn = None, turn
        return self._body(body, 1, at_end=True)

    def _body(self, items: Sequence[Loop | Step], times: int, at_end: bool = False) -> list[Row]:
        """The rows of a body, of all so many turns of the loops around it."""
        outer, self.parts = self.parts, []
        for position, item in enumerate(items, 1):
            self.frames.append((items, position))
            if isinstance(item, Loop):
                self._loop(item, times)
            elif isinstance(item.op, WaitOp):
                self._wait(item, times)
            elif isinstance(item.op, SignalOp):
                self._signal(item)
            else:
                self._instruction(item)
            self.frames.pop()
        self.frames.append((items, len(items)))
        self._settle(at_end or self._is_read())
        self.frames.pop()
        rows = interleave([part.rows(times) for part in self.parts], times)
        self.parts = outer
        return rows

    def _loop(self, loop: Loop, times: int) -> None:
        span = self._span(loop)
        if span is not None:
            self._busy(span[0])
            self.latest = self.latest if span[1] is None else span[1]
            return
        first = self._first_use(loop.body, 0)
        self._settle(self._is_read() if first is None else first)
        self.loops.append(loop)
        self.parts.append(_Part(-1, flat=self._body(loop.body, times * loop.trips)))
        self.loops.pop()

    def _wait(self, step: Step, times: int) -> None:
        assert step.semaphore is not None and step.value is not None
        self._settle(self._is_read())
        growth, value = self._value(step.value, step.variables)
        if isinstance(value, np.ndarray):
            value = np.broadcast_to(value, tuple(loop.trips for loop in self.loops)).reshape(times)
        number = step.semaphore.number
        which = self.waited.setdefault((number, growth), len(self.waited))
        self.parts.append(_Part(_WAIT, self.signals[number], value - 1, which))

    def _signal(self, step: Step) -> None:
        assert step.semaphore is not None
        delay = self.costs.semaphore(step.semaphore, self.stream)
        append = self.signals[step.semaphore.number].append
        if self.latest is None:
            self.parts.append(_Part(_SIGNAL_LATEST, append, delay))
        else:
            self.parts.append(_Part(_SIGNAL, append, self.latest + delay))

    def _instruction(self, step: Step) -> None:
        transfer = self._transfer(step)
        if transfer is None:
            occupancy, self.latest = self.costs.issue(step, self.stream)
            self._busy(occupancy)
            return
        # Time goes on: what was there `latest` after the engine was free is there before the end of this one, if that
        # takes as long.
        if transfer.fixed_ps >= (self._longest_fixed() if self.latest is None else self.latest):
            self.parts.append(_Part(_MOVE, transfer))
            self.latest = transfer.fixed_ps
            return
        self._settle(True)
        self.parts += [_Part(_MOVE, transfer), _Part(_LATER, None, transfer.fixed_ps)]

    def _busy(self, time: int) -> None:
        """The engine has so much to do behind what came last."""
        if not self.parts or self.parts[-1].kind < 0:
            self.parts.append(_Part())
        self.parts[-1].busy += time

    def _settle(self, read: bool) -> None:
        """From here on `d` says when the latest result is there, if it is asked."""
        if self.latest is not None and read:
            self.parts.append(_Part(_LATEST, None, self.latest))
        self.latest = None

    def _value(self, expr: AffineExpr, variables: Sequence[str]) -> tuple[int, Value]:
        """By how much an expression grows with the request, and what it is for the first."""
        if type(expr) is AffineConstantExpr:
            return 0, expr.value
        if type(expr) is AffineDimExpr:
            return self._variable(variables[expr.position])
        assert type(expr) is AffineBinaryOpExpr
        growth, left = self._value(expr.lhs, variables)
        other, right = self._value(expr.rhs, variables)
        if expr.kind == AffineBinaryOpKind.Add:
            return growth + other, left + right
        if other or not isinstance(right, int):
            raise _UnevenError(_LONGEST_PERIOD + 1)
        if expr.kind == AffineBinaryOpKind.Mul:
            return growth * right, left * right
        if growth % right:
            raise _UnevenError(right // gcd(growth, right))
        if expr.kind == AffineBinaryOpKind.FloorDiv:
            return growth // right, left // right
        if expr.kind == AffineBinaryOpKind.Mod:
            return 0, left % right
        raise _UnevenError(_LONGEST_PERIOD + 1)

    def _variable(self, name: str) -> tuple[int, Value]:
        if name == "r":
            return self.period, self.turn
        if name.isdigit():  # the number of a replica is written out
            return 0, int(name)
        level = next(n for n, loop in enumerate(self.loops) if loop.variable == name)
        loop = self.loops[level]
        shape = [1] * len(self.loops)
        shape[level] = loop.trips
        return 0, np.arange(loop.start, loop.stop, loop.step, dtype=np.int64).reshape(shape)

    # The time of the latest result

    def _is_read(self) -> bool:
        """Whether `d`, as it is at this point, may be asked for."""
        for items, position in reversed(self.frames):
            found = self._first_use(items, position)
            if found is not None:
                return found
            # Behind the end of a loop's body comes its beginning, or what follows the loop.
            if self._first_use(items, 0):
                return True
        return True  # the stream returns it

    def _first_use(self, items: Sequence[Loop | Step], position: int) -> bool | None:
        """Whether the first that these have to do with `d` is to ask for it (or to set it); None: nothing."""
        for n in range(position, len(items)):
            item = items[n]
            if isinstance(item, Loop):
                found = self._first_use(item.body, 0) if item.trips else None
                if found is not None:
                    return found
            elif isinstance(item.op, SignalOp):
                return True
            elif not isinstance(item.op, WaitOp):
                transfer = self._transfer(item)
                return transfer is not None and transfer.fixed_ps < self._longest_fixed()
        return None

    def _transfer(self, step: Step) -> Transfer | None:
        if step not in self.transfers:
            self.transfers[step] = self.costs.transfer(step, self.stream)
        return self.transfers[step]

    def _longest_fixed(self) -> int:
        """No result of this stream is there later than this after the engine is free."""
        if self._longest is None:
            self._longest = 0
            for step, _, _ in self.stream.steps():
                if step.touches:
                    transfer = self._transfer(step)
                    latency = self.costs.issue(step, self.stream)[1] if transfer is None else transfer.fixed_ps
                    self._longest = max(self._longest, latency)
        return self._longest

    def _span(self, loop: Loop) -> tuple[int, int | None] | None:
        """How long the engine is busy with a loop that neither waits nor signals nor moves data, and the latency of its
        last instruction; None for other loops.
        """
        if loop not in self.spans:
            self.spans[loop] = self._measure(loop)
        return self.spans[loop]

    def _measure(self, loop: Loop) -> tuple[int, int | None] | None:
        busy, last = 0, None
        for item in loop.body if loop.trips else []:
            if isinstance(item, Loop):
                inner = self._span(item)
                if inner is None:
                    return None
                busy += inner[0]
                last = last if inner[1] is None else inner[1]
            elif not item.touches or self._transfer(item) is not None:
                return None
            else:
                occupancy, last = self.costs.issue(item, self.stream)
                busy += occupancy
        return busy * loop.trips, last


def interleave(parts: Sequence[tuple[list[Row], int]], times: int) -> list[Row]:
    """Rows of the parts of a body in the order they are run: each part's for the first turn, for the second, and so on.

    Args:
        parts: the rows of each, and how many of them belong to a turn.
        times: turns.
    """
    if times == 1:
        return list(chain.from_iterable(rows for rows, _ in parts))
    if sum(each for _, each in parts) <= times * len(parts):
        columns = [rows[n::each] for rows, each in parts for n in range(each)]
        return list(chain.from_iterable(zip(*columns, strict=True)))
    return [row for n in range(times) for rows, each in parts for row in rows[n * each : (n + 1) * each]]
