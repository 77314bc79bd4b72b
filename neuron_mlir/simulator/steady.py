"""Skipping a steady state of the clock: exactly, by comparing whole states of a run.

Without values, what happens next depends only on where each stream stands in its code, on times relative to now, on
what waits for the servers, and on signals that are still ahead of somebody. When all of that is as it was some requests
before (each stream as many of them on), the run repeats itself from there: so many periods are left out as leave the
end of the run as it is, and are put back into the times of the requests. Nothing is approximated: the times are
those of the whole run (`tests/unit/simulator/test_steady.py` compares them on random programs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from xdsl.ir.affine import AffineBinaryOpExpr, AffineBinaryOpKind, AffineConstantExpr, AffineDimExpr, AffineExpr

from neuron_mlir.simulator.clock import Clock, Task
from neuron_mlir.simulator.program import Limit, Program, Turns

MAX_STATES = 400
"""States that are kept and compared, a request each; then the rest is simulated."""
State = tuple[object, ...]


@dataclass(frozen=True)
class Mark:
    """A moment of a run: request and time, how much had been recorded, and how often loads had been exposed."""

    request: int
    now: int
    started: int
    finished: int
    loads: tuple[int, ...]


class Watcher:
    """Looks at a run whenever a request sets out, and shortens it once when a state comes back.

    Args:
        count: requests of the run.
        every: of each task, by number: it has one request in so many.
        moduli: see `keeps_pace`.
        limits: of each task, with its turns.
        started: recorded so far, as `(request, time)`; grows.
        finished: the same of outputs.
        loads: counters of exposed loads.
        keep: requests at the beginning that are to be run whatever repeats.
    """

    def __init__(
        self,
        count: int,
        every: dict[int, int],
        moduli: dict[int, int],
        limits: Sequence[tuple[Limit, Turns]],
        started: list[tuple[int, int]],
        finished: list[tuple[int, int]],
        loads: Sequence[list[int]] = (),
        keep: int = 0,
    ):
        self.count, self.every, self.moduli, self.limits = count, every, moduli, limits
        self.started, self.finished, self.loads, self.keep = started, finished, loads, keep
        self.seen: dict[State, Mark] = {}
        self.active = True
        self.first: Mark | None = None
        self.second: Mark | None = None
        self.times = 0
        """Periods left out."""

    @property
    def skipped(self) -> int:
        """Requests left out."""
        return (
            0 if self.first is None or self.second is None else self.times * (self.second.request - self.first.request)
        )

    def look(self, clock: Clock, tasks: Sequence[Task], marker: Task, now: int, left: int) -> None:
        """The request of `marker` sets out at `now`."""
        found = self._state(clock, tasks, marker, now, left)
        if found is None or len(self.seen) >= MAX_STATES:
            self.active = False
            return
        state, furthest, request = found
        loads = tuple(counter[0] for counter in self.loads)
        mark = Mark(request, now, len(self.started), len(self.finished), loads)
        before = self.seen.setdefault(state, mark)
        if before is mark:
            return
        self.active = False
        period = mark.request - before.request
        # Everybody has to have turns of every kind left, so that nobody sees the end sooner.
        run = max(furthest + 2 * period + max(self.every.values()), self.keep)
        self.times = max(0, (self.count - run) // period)
        if self.times:
            self.first, self.second = before, mark
            for limit, turns in self.limits:
                limit.last = turns.count(self.count - self.times * period)

    def _state(
        self, clock: Clock, tasks: Sequence[Task], marker: Task, now: int, left: int
    ) -> tuple[State, int, int] | None:
        if any(task.finished or not task.place for task in tasks):
            return None
        every = self.every[marker.number]
        request = position_of(marker.place, every, 1, now, 0)[1]
        found = [self._position(task, now, request) for task in tasks]
        oldest = min(time for _, _, time in found)
        waits = tuple(
            None
            if task.waits_for is None
            else (task.waits_for[0], task.waits_for[1] - len(clock.signals[task.waits_for[0]]))
            for task in tasks
        )
        ahead: list[tuple[int, ...]] = []
        for times in clock.signals:
            later: list[int] = []
            for time in reversed(times):
                if time <= oldest:
                    break
                later.append(time - now)
            ahead.append(tuple(later))
        queued = tuple(sorted((time - now, number, rest) for time, number, rest, _, _ in clock.waiting_transfers()))
        busy = tuple(max(0, free - now) for free in clock.free_at.values())
        state = (tuple(state for state, _, _ in found), waits, tuple(ahead), queued, busy, left)
        return state, max(own for _, own, _ in found), request

    def _position(self, task: Task, now: int, request: int) -> tuple[State, int, int]:
        number = task.number
        return position_of(task.place, self.every[number], self.moduli.get(number, 1), now, request)

    def restored(self, events: Sequence[tuple[int, int]], outputs: bool) -> Iterator[tuple[int, int]]:
        """The starts (or outputs) of the whole run, of those of the shortened one."""
        if self.first is None or self.second is None:
            yield from events
            return
        first, second = self.first, self.second
        before, after = (first.finished, second.finished) if outputs else (first.started, second.started)
        period, span = second.request - first.request, second.now - first.now
        for number, (request, time) in enumerate(events):
            if number < after:
                yield request, time
            if before <= number < after:
                for n in range(1, self.times + 1):
                    yield request + n * period, time + n * span
            elif number >= after:
                yield request + self.times * period, time + self.times * span

    def restore_loads(self) -> None:
        """Add what the periods left out would have counted."""
        if self.first is not None and self.second is not None:
            for counter, a, b in zip(self.loads, self.first.loads, self.second.loads, strict=True):
                counter[0] += self.times * (b - a)


def keeps_pace(program: Program) -> dict[int, int] | None:
    """Whether what streams wait for grows, from request to request, as what is signalled: then a state does not depend
    on the number of the request, but for the rest that a turn of a stream leaves by the number given here (1 for most).
    None when it does not, or nothing comes from the host.
    """
    moduli: dict[int, int] = {}
    rates: dict[int, Fraction] = {}
    for port in (*program.inputs, *program.outputs):
        signalled = port.full if port in program.inputs else port.credit
        if signalled is not None:
            rates[signalled.number] = Fraction(1, port.turns.every)
    for stream in program.streams:
        for step, times, is_load in stream.steps():
            if step.semaphore is not None and step.value is None and not is_load:
                number = step.semaphore.number
                rates[number] = rates.get(number, Fraction(0)) + Fraction(times, stream.turns.every)
    for stream in program.streams:
        for step, _, is_load in stream.steps():
            if step.semaphore is None or step.value is None or is_load:
                continue
            found = _slope(step.value, step.variables)
            if found is None or found[0] / stream.turns.every != rates.get(step.semaphore.number, 0):
                return None
            moduli[stream.number] = lcm(moduli.get(stream.number, 1), found[1])
    for port in (*program.inputs, *program.outputs):
        waited = port.credit if port in program.inputs else port.full
        if waited is not None and rates.get(waited.number) != Fraction(1, port.turns.every):
            return None
    return moduli if program.inputs else None


def _slope(expr: AffineExpr, variables: Sequence[str]) -> tuple[Fraction, int] | None:
    """By how much an expression grows from a turn to the next, on average over so many turns, after which it does so
    exactly; None when that is not known.
    """
    if isinstance(expr, AffineConstantExpr):
        return Fraction(0), 1
    if isinstance(expr, AffineDimExpr):
        return Fraction(int(variables[expr.position] == "r")), 1
    assert isinstance(expr, AffineBinaryOpExpr)
    left, right = _slope(expr.lhs, variables), _slope(expr.rhs, variables)
    if left is None or right is None:
        return None
    turns = lcm(left[1], right[1])
    if expr.kind == AffineBinaryOpKind.Add:
        return left[0] + right[0], turns
    if not left[0] and not right[0]:
        return Fraction(0), turns
    if not isinstance(expr.rhs, AffineConstantExpr) or left[0].denominator != 1 or left[1] != 1:
        return None
    match expr.kind:
        case AffineBinaryOpKind.Mul:
            return left[0] * expr.rhs.value, 1
        case AffineBinaryOpKind.FloorDiv:
            return left[0] / expr.rhs.value, expr.rhs.value
        case AffineBinaryOpKind.Mod:
            return Fraction(0), expr.rhs.value
        case _:
            return None


def position_of(place: list[int], every: int, modulus: int, now: int, request: int) -> tuple[State, int, int]:
    """Where a running stream or port stands (`Task.place`): its state, with requests and times relative; its request;
    its time.
    """
    stop, turn, time, done, *rest = place
    own = turn * every
    return (stop, own - request, turn % modulus, time - now, done - now, *rest), own, time
