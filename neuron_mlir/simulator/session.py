"""Programs that stay loaded: requests arrive one by one, at times of their own, and programs share a machine.

`run_module` runs a fixed number of requests from the load to the end. A `SharedClock` goes on instead: programs are
loaded onto it, each on cores of its own, requests are submitted at the clock's time, and time goes on no further than
it takes to answer what the caller waits for. So whatever is submitted later still meets everything that is under way,
on engines, queues, DRAM, links and the host link, exactly as the clock of `run_module` would have it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_mlir.dialects.core.movement import WaitOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.machine.cost import semaphore_ps
from neuron_mlir.simulator.clock import Clock, Task
from neuron_mlir.simulator.codegen import StreamRun
from neuron_mlir.simulator.costs import Server, StepCosts
from neuron_mlir.simulator.interface import Arrays
from neuron_mlir.simulator.machine_run import MachineSimulator, host_semaphores
from neuron_mlir.simulator.program import HostPort, Memory, Program, Step, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuron_mlir.dialects.core.memory import ConstOp

SIGNALS_IDLE = 2_000_000
"""Signals of a program after which its semaphores start again from 0 when no request is under way. Their times are kept
until then.
"""
SIGNALS_KEPT = 12_000_000
"""Signals after which they start again in any case, when all requests are answered: what bounds the memory of a program
that is never idle. 40 bytes each.
"""

Head = tuple[int, int]
"""Time of a transfer that waits to be served, and the number of the task that asked for it."""


@dataclass(eq=False)
class Ticket:
    """One request of a program. Times in picoseconds of the shared clock; `finished` is None until it is known."""

    feed: Arrays | None
    submitted: int
    to_send: int
    """Inputs that are still at the host."""
    to_come: int
    """Outputs that are not there yet."""
    outputs: Arrays = field(default_factory=dict[str, Any])
    finished: int | None = None
    _last: int = 0

    def answer(self, label: str, value: NDArray[Any] | None, time: int) -> None:
        """An output has reached the host."""
        if value is not None:
            self.outputs[label] = value
        self._last = max(self._last, time)
        self.to_come -= 1
        if not self.to_come:
            self.finished = self._last

    def send(self) -> Arrays | None:
        """The data for one more input."""
        feed = self.feed
        self.to_send -= 1
        if not self.to_send:
            self.feed = None
        return feed

    @property
    def over(self) -> bool:
        """Whether the program will not ask for this request again."""
        return self.finished is not None and not self.to_send


class _ProgramClock(Clock):
    """The clock of one program, one quantum at a time."""

    def __init__(self, signals: list[list[int]], names: list[str], free_at: dict[Server, int]) -> None:
        super().__init__(signals, names)
        self.free_at = free_at

    @property
    def head(self) -> Head | None:
        return self._heap[0][:2] if self._heap else None

    def settle(self, tasks: Sequence[Task]) -> None:
        """Run tasks, and those that they wake, until all wait."""
        ready = list(reversed(tasks))
        while ready:
            task = ready.pop()
            self._advance(task, None)
            self._wake(task, ready)

    def signalled(self, task: Task) -> None:
        """Run those who wait for the signals of a task that is not on this clock."""
        ready: list[Task] = []
        self._wake(task, ready)
        self.settle(ready)

    def serve_next(self) -> None:
        """Serve a quantum of the first transfer in line."""
        heap = self._heap
        time, number, left, task, transfer = heap[0]
        taken = min(left, transfer.quantum_bytes)
        time = self.serve(transfer, time, taken)
        if left > taken:
            heapq.heapreplace(heap, (time, number, left - taken, task, transfer))
            return
        heapq.heappop(heap)
        self._advance(task, time)
        ready: list[Task] = []
        self._wake(task, ready)
        self.settle(ready)


class Session:
    """A program that is loaded on a shared clock; made by `SharedClock.load`."""

    def __init__(self, clock: SharedClock, simulator: MachineSimulator, first_task: int) -> None:
        program = simulator.program
        if not program.scheduled:
            raise NeuronError("sequential code has no clock", op=program.op, advice="run core-schedule first")
        check_bounded(program)
        self.program = program
        self.load_ps = 0
        """How long the program took to have its weights where they stay; zero before it is loaded."""
        self._shared = clock
        self._simulator = simulator
        self._first_task = first_task
        self._arrivals: list[int] = []
        self._signals = [*simulator.signals, self._arrivals]
        names = [semaphore.label for semaphore in program.semaphores]
        self.clock = _ProgramClock(self._signals, [*names, "arrival of a request"], clock.free_at)
        self._host = Task(-1, "host", _nothing(), (len(names),))
        self._tickets: deque[Ticket] = deque()
        self._dropped = 0
        """Requests since the counters started that are answered and have left `_tickets`."""
        self._last_answer = 0
        self._requests_max = _requests_max(program, SIGNALS_KEPT)
        self._requests_idle = _requests_max(program, SIGNALS_IDLE)
        self._tasks: list[Task] = []

    @property
    def idle(self) -> bool:
        """Whether all requests are answered."""
        self._drop_answered()
        return not self._tickets

    def start(self) -> None:
        """Load the weights, from the shared clock's time on; nothing of before is left. The clock goes on till then."""
        begin = self._shared.now
        self._clear()
        streams = [stream for stream in self.program.streams if stream.load]
        tasks = [
            Task(
                self._first_task + stream.number,
                stream.name,
                self._simulator.functions[stream.number, True](0, 1, begin),
                stream.signals(),
            )
            for stream in streams
        ]
        with np.errstate(all="ignore"):
            self.clock.settle(tasks)
        self._shared.run(lambda: all(task.finished for task in tasks), self, tasks)
        end = max((max(task.result) for task in tasks), default=begin)
        self.load_ps = end - begin
        self._shared.run_until(end)
        self._begin()

    def drain(self) -> None:
        """Go on until all requests are answered."""
        self._shared.run(lambda: self.idle, self)
        self._shared.run_until(max(self._shared.now, self._last_answer))

    def stop(self) -> None:
        """Leave the cores."""
        self._clear()

    def submit(self, feed: Arrays | None) -> Ticket:
        """Send a request now; without data where only times are computed.

        Semaphores count to a limit. Before one would pass it, the program finishes all requests and starts again.
        """
        idle = self.idle
        if len(self._arrivals) >= (self._requests_idle if idle else self._requests_max):
            self.drain()
            self._clear()
            self._begin()
        number = self._dropped + len(self._tickets)
        inputs, outputs = (
            sum(port.turns.turn(number) is not None for port in ports)
            for ports in (self.program.inputs, self.program.outputs)
        )
        ticket = Ticket(feed, self._shared.now, inputs, outputs)
        self._tickets.append(ticket)
        self._arrivals.append(ticket.submitted)
        with np.errstate(all="ignore"):
            self.clock.signalled(self._host)
        return ticket

    def stuck(self) -> list[Task]:
        """Tasks that wait for something else than a request."""
        arrivals = len(self._signals) - 1
        return [t for t in self._tasks if t.waits_for is not None and t.waits_for[0] != arrivals]

    def _drop_answered(self) -> None:
        while self._tickets and self._tickets[0].over:
            self._last_answer = max(self._last_answer, self._tickets.popleft().finished or 0)
            self._dropped += 1

    def _clear(self) -> None:
        for times in self._signals:
            times.clear()
        self._tickets.clear()
        self._dropped = 0
        self._tasks = []
        self.clock = _ProgramClock(self._signals, self.clock.names, self._shared.free_at)

    def _begin(self) -> None:
        """All streams wait for request 0."""
        start = self._shared.now
        endless = 1 << 62
        self._tasks = [
            Task(
                self._first_task + stream.number,
                stream.name,
                self._simulator.functions[stream.number, False](0, stream.turns.count(endless), start),
                stream.signals(),
            )
            for stream in self.program.streams
            if stream.run
        ]
        number = self._first_task + len(self.program.streams)
        for port in self.program.inputs:
            full, _ = host_semaphores(port, self.program)
            task = Task(number, f"host input '{port.label}'", self._input(port, start), (full.number,))
            self._tasks.append(task)
            number += 1
        for port in self.program.outputs:
            _, credit = host_semaphores(port, self.program)
            task = Task(number, f"host output '{port.label}'", self._output(port, start), (credit.number,))
            self._tasks.append(task)
            number += 1
        with np.errstate(all="ignore"):
            self.clock.settle(self._tasks)

    def _ticket(self, request: int) -> Ticket:
        return self._tickets[request - self._dropped]

    def _input(self, port: HostPort, start: int) -> StreamRun:
        full, credit = host_semaphores(port, self.program)
        transfer = self._simulator.host_transfer(port, "in")
        delay = semaphore_ps(self.program.machine)
        filled, credits, arrivals = self._signals[full.number], self._signals[credit.number], self._arrivals
        time = done = start
        for turn in itertools.count():
            request = port.turns.first + turn * port.turns.every
            if len(arrivals) <= request:
                yield (len(self._signals) - 1, request + 1, None)
            time = max(time, arrivals[request])
            needed = turn + 1 - port.depth
            if needed > 0:
                if len(credits) < needed:
                    yield (credit.number, needed, None)
                time = max(time, credits[needed - 1])
            feed = self._ticket(request).send()
            if feed is not None:
                self._simulator.write_input(port, turn, feed)
            time = yield (0, time, transfer)
            done = max(done, time + transfer.fixed_ps)
            filled.append(done + delay)
        return (time, done)

    def _output(self, port: HostPort, start: int) -> StreamRun:
        full, credit = host_semaphores(port, self.program)
        transfer = self._simulator.host_transfer(port, "out")
        delay = semaphore_ps(self.program.machine)
        filled, credits = self._signals[full.number], self._signals[credit.number]
        time = done = start
        for turn in itertools.count():
            if len(filled) < turn + 1:
                yield (full.number, turn + 1, None)
            time = max(time, filled[turn])
            value = self._simulator.read_output(port, turn) if self._simulator.options.values else None
            time = yield (0, time, transfer)
            done = max(done, time + transfer.fixed_ps)
            self._ticket(port.turns.first + turn * port.turns.every).answer(port.label, value, done)
            credits.append(done + delay)
        return (time, done)


class SharedClock:
    """The time of a simulated machine, and what its programs have in common."""

    def __init__(self) -> None:
        self.now = 0
        """Picoseconds. Everything before is settled, nothing after has been decided."""
        self.free_at: dict[Server, int] = {}
        self.servers: dict[str, Server] = {}
        self._sessions: list[Session] = []
        self._tasks = 0

    def load(
        self,
        program: Program,
        weights: Any = None,
        *,
        values: bool = True,
        constants: dict[ConstOp, NDArray[Any]] | None = None,
    ) -> Session:
        """Make a program ready, on the cores that it names. It is not started yet: `Session.start`.

        Args:
            program: scheduled; see `relocate`.
            weights: anything with `get(name)`; needed with values.
            values: compute values; else only time passes.
            constants: values of constants by op, shared by copies of one program; filled here.

        Raises:
            NeuronError: an access out of range, sequential code, or streams that do not wait (`check_bounded`).
        """
        costs = StepCosts(program, self.servers)
        simulator = MachineSimulator(program, weights, values=values, hazards=False, costs=costs, constants=constants)
        session = Session(self, simulator, self._tasks)
        self._tasks += len(program.streams) + len(program.inputs) + len(program.outputs)
        self._sessions.append(session)
        return session

    def unload(self, session: Session) -> None:
        """Forget a program."""
        session.stop()
        self._sessions.remove(session)

    def wait(self, ticket: Ticket, session: Session, until: int | None = None) -> bool:
        """Go on until a request is answered, but not beyond `until`; whether it is.

        Raises:
            NeuronError: it can never be: deadlock.
        """
        self.run(lambda: ticket.finished is not None, session, (), until)
        if ticket.finished is None or (until is not None and ticket.finished > until):
            assert until is not None
            self.now = max(self.now, until)
            return False
        self.now = max(self.now, ticket.finished)
        return True

    def wait_for_any(self, tickets: Sequence[Ticket], session: Session) -> None:
        """Go on until one of some requests, of which none is answered yet, is."""

        def first() -> int | None:
            return min((t.finished for t in tickets if t.finished is not None), default=None)

        self.run(lambda: first() is not None, session)
        finished = first()
        assert finished is not None
        self.now = max(self.now, finished)

    def run_until(self, time: int) -> None:
        """Go on to a time."""
        self.run(lambda: False, None, (), time)
        self.now = max(self.now, time)

    def run(
        self, done: Callable[[], bool], session: Session | None, tasks: Sequence[Task] = (), until: int | None = None
    ) -> None:
        """Serve transfers in the order of their times until `done()`; none that begins after `until`.

        Raises:
            NeuronError: nothing is left to serve, and `done()` is false though it is about a session: deadlock.
        """
        with np.errstate(all="ignore"):
            while not done():
                clock = self._next()
                if clock is None:
                    if session is not None:
                        session.clock.report_deadlock([*session.stuck(), *(t for t in tasks if not t.finished)])
                    return
                if until is not None and clock.head is not None and clock.head[0] > until:
                    return
                clock.serve_next()

    def _next(self) -> _ProgramClock | None:
        """The clock whose transfer is first in line."""
        found: _ProgramClock | None = None
        first: Head | None = None
        for session in self._sessions:
            head = session.clock.head
            if head is not None and (first is None or head < first):
                found, first = session.clock, head
        return found


def check_bounded(program: Program) -> None:
    """Raise NeuronError for a stream that would run ahead of the host's requests forever.

    Each has to wait for more with every request: from the host, or from a stream of which that is known already. Then
    it stops when no more requests come, as what it waits for does.
    """
    if not program.inputs:
        raise NeuronError("the program takes no inputs, so that nothing tells it when to run", op=program.op)
    sources = {port.full.number for port in program.inputs if port.full is not None}
    waiting = [stream for stream in program.streams if stream.run]
    found = True
    while found:
        found = False
        for stream in list(waiting):
            if any(
                isinstance(step.op, WaitOp)
                and step.semaphore is not None
                and step.semaphore.number in sources
                and times
                and _grows(step)
                for step, times in walk(stream.run)
            ):
                waiting.remove(stream)
                sources.update(stream.signals())
                found = True
    if waiting:
        raise NeuronError(
            f"stream '{waiting[0].name}' does not wait for the host's requests, directly or through other streams: it "
            "would run ahead forever",
            op=program.op,
        )


def _grows(step: Step) -> bool:
    """Whether a wait asks for more and more as requests go on."""
    if step.value is None:
        return False
    far = 1 << 20
    first, last = (
        step.value.eval([request if name == "r" else int(name) if name.isdigit() else 0 for name in step.variables], [])
        for request in (0, far)
    )
    return last - first >= 1 << 10


def relocate(program: Program, first_core: int) -> None:
    """Move a program, as read for cores from some core on, to cores from `first_core` on: its streams, semaphores and
    memories, with those of the chips. What is on one chip stays on one chip.

    Raises:
        NeuronError: it would lie across chips in another way than it was compiled for.
    """
    cores = program.machine.chip.cores
    lowest, highest = min(program.cores), max(program.cores)
    shift = first_core - lowest
    chips = first_core // cores - lowest // cores
    if any((core + shift) // cores != core // cores + chips for core in (lowest, highest)) or (
        shift % cores and lowest // cores != highest // cores
    ):
        raise NeuronError(
            f"a program for cores {lowest} to {highest} cannot begin at core {first_core}: other cores would share a "
            "chip than it was compiled for",
            resource="first core",
            needed=f"{lowest % cores} plus a multiple of {cores}",
            available=first_core,
        )
    for storage in program.storages:
        memory = storage.memory
        storage.memory = Memory(memory.space, memory.place + (chips if memory.space == "dram" else shift))
    for semaphore in program.semaphores:
        if semaphore.core is not None:
            semaphore.core += shift
    for stream in program.streams:
        stream.core += shift
    program.cores = [core + shift for core in program.cores]


def dram_bytes(program: Program) -> dict[int, int]:
    """Bytes of DRAM that a program takes on each chip: its buffers up to the highest address, and its constants."""
    fixed: dict[int, int] = {}
    beside: dict[int, int] = {}
    for storage in program.storages:
        if storage.memory.space != "dram":
            continue
        chip = storage.memory.place
        if storage.address is None:
            beside[chip] = beside.get(chip, 0) + storage.bytes
        else:
            fixed[chip] = max(fixed.get(chip, 0), storage.address + storage.bytes)
    return {chip: fixed.get(chip, 0) + beside.get(chip, 0) for chip in sorted({*fixed, *beside})}


def _requests_max(program: Program, signals: int) -> int:
    """How many requests a program can take with so many signals, and before a semaphore counts too far."""
    counts: dict[int, int] = {}
    for stream in program.streams:
        for step, times, is_load in stream.steps():
            if step.semaphore is not None and step.value is None and not is_load:
                counts[step.semaphore.number] = counts.get(step.semaphore.number, 0) + times
    most, total = max(counts.values(), default=0), sum(counts.values())
    return max(1, min(program.machine.chip.semaphore_max // (most + 1), signals // (total + 1)))


def _nothing() -> StreamRun:
    return (0, 0)
    yield
