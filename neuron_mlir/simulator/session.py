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

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine.cost import semaphore_ps
from neuron_mlir.simulator.clock import Clock, Task
from neuron_mlir.simulator.codegen import StreamRun
from neuron_mlir.simulator.costs import Server, StepCosts
from neuron_mlir.simulator.interface import Arrays
from neuron_mlir.simulator.machine_run import MachineSimulator, host_semaphores
from neuron_mlir.simulator.placement import check_bounded, requests_max
from neuron_mlir.simulator.program import HostPort, Program

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
    to_send: int = 0
    """Inputs that are still at the host."""
    to_come: int = 0
    """Outputs that are not there yet."""
    outputs: Arrays = field(default_factory=dict[str, Any])
    finished: int | None = None
    error: Exception | None = None
    """Why there is no answer."""
    _last: int = 0

    def answer(self, label: str, value: NDArray[Any] | None, time: int) -> None:
        """An output has reached the host."""
        if value is not None:
            self.outputs[label] = value
        self._last = max(self._last, time)
        self.to_come -= 1
        if not self.to_come:
            self.finished = self._last
            self._forget()

    def fail(self, error: Exception, time: int) -> None:
        """There will be no answer."""
        self.error, self.finished, self.to_send, self.feed = error, time, 0, None
        self.outputs.clear()

    def send(self) -> Arrays | None:
        """The data for one more input."""
        feed = self.feed
        self.to_send -= 1
        self._forget()
        return feed

    def _forget(self) -> None:
        if self.over:
            self.feed = None

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
        self._requests_max = requests_max(program, SIGNALS_KEPT)
        self._requests_idle = requests_max(program, SIGNALS_IDLE)
        self._tasks: list[Task] = []
        self._interrupted = False
        self._alone: Ticket | None = None
        """The request that is tried again, on its own, after one of several has failed."""

    @property
    def loading(self) -> bool:
        """Whether the weights are on their way."""
        return not self._tasks

    @property
    def idle(self) -> bool:
        """Whether all requests are answered."""
        self._drop_answered()
        return not self._tickets

    def start(self) -> None:
        """Load the weights, from the shared clock's time on; nothing of before is left. The clock goes on till then."""
        begin = self._shared.now
        self._interrupted = False
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
        if self._interrupted:
            self.start()
        ticket = Ticket(feed, self._shared.now)
        try:
            self._send(ticket)
        except Exception as error:
            self.recover(error)
        except BaseException:
            self.interrupt()
            raise
        return ticket

    def interrupt(self) -> None:
        """Give up what is under way, after Ctrl-C: a stream may have stopped anywhere. The next request starts anew."""
        for ticket in self._tickets:
            if ticket.finished is None:
                ticket.fail(NeuronError("the run was interrupted", advice="calling again"), self._shared.now)
        self._clear()
        self._interrupted = True

    def _send(self, ticket: Ticket) -> None:
        number = self._dropped + len(self._tickets)
        ticket.to_send, ticket.to_come = (
            sum(port.turns.turn(number) is not None for port in ports)
            for ports in (self.program.inputs, self.program.outputs)
        )
        ticket.outputs.clear()
        self._tickets.append(ticket)
        self._arrivals.append(self._shared.now)
        with np.errstate(all="ignore"):
            self.clock.signalled(self._host)

    def recover(self, error: Exception) -> None:
        """What to do when the data of a request has made the program fail, such as an index outside of a table.

        Which request it was is not known where several are under way. So the program is loaded again, and each is tried
        on its own: those that fail get the error, the others their answers, only later.
        """
        if self._alone is not None:
            self._alone.fail(error, self._shared.now)
            return
        pending = [ticket for ticket in self._tickets if ticket.finished is None]
        if len(pending) == 1:
            pending.pop().fail(error, self._shared.now)
        for ticket in pending:
            self.start()
            self._alone = ticket
            try:
                self._send(ticket)
                self._shared.run(lambda ticket=ticket: ticket.finished is not None, self)
            except Exception as again:
                ticket.fail(again, self._shared.now)
            finally:
                self._alone = None
            self._shared.now = max(self._shared.now, ticket.finished or 0)
        self.start()

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
            program: scheduled; see `placement.relocate`.
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
                found, head = self._next()
                if found is None or head is None:
                    if session is not None:
                        session.clock.report_deadlock([*session.stuck(), *(t for t in tasks if not t.finished)])
                    return
                if until is not None and head[0] > until:
                    return
                try:
                    found.clock.serve_next()
                except Exception as error:
                    if found.loading:
                        raise
                    found.recover(error)
                except BaseException:
                    found.interrupt()
                    raise

    def _next(self) -> tuple[Session | None, Head | None]:
        """The program whose transfer is first in line, and that transfer's time."""
        found: Session | None = None
        first: Head | None = None
        for session in self._sessions:
            head = session.clock.head
            if head is not None and (first is None or head < first):
                found, first = session, head
        return found, first


def _nothing() -> StreamRun:
    return (0, 0)
    yield
