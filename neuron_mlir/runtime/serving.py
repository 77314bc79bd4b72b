"""Serving a compiled program: requests that arrive over time, a queue, batches, and what comes of latency and cost.

The program runs on the simulator's clock (`SharedClock`), without values. Around it is a host that costs no time: it
puts inferences into a queue as they arrive, makes requests of the compiled batch of them, and sends a request when the
machine has fewer under way than it is to have. So whatever waits for an engine, a queue or DRAM waits as long as it
does in `neuron-run`, and what waits for the host's decisions is here. Times are integer picoseconds from the moment at
which all weights are loaded.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from neuron_mlir.simulator.program import Program
    from neuron_mlir.simulator.session import Session, SharedClock, Ticket

PS_PER_S = 10**12
PS_PER_MS = 10**9

WAITING, SENT, ANSWERED, LATE, GIVEN_UP = "waiting", "sent", "answered", "late", "given up"
"""States of an inference. `LATE`: answered after its client has gone; `GIVEN_UP`: its client went while it waited."""


@dataclass(eq=False, slots=True)
class Inference:
    """One inference that a client wants. `ended` is when its client has the answer, or stops waiting for it."""

    number: int
    client: int
    arrived: int
    sent: int = -1
    ended: int = -1
    state: str = WAITING


class Arrivals(Protocol):
    """Who asks for inferences, and when."""

    def first(self) -> Iterator[tuple[int, int]]:
        """Time and client of arrivals that do not depend on answers, in order of time."""
        ...

    def after(self, client: int, time: int) -> int | None:
        """When a client asks again that was answered, or gave up, at a time; None: never."""
        ...


@dataclass
class Closed:
    """Clients that ask again as soon as they have their answer.

    Args:
        clients: how many; all ask at time 0.
        inferences: how many they ask for together.
        think_ps: what a client waits before it asks again.
    """

    clients: int
    inferences: int
    think_ps: int = 0
    asked: int = 0

    def first(self) -> Iterator[tuple[int, int]]:
        """One for each client."""
        self.asked = min(self.clients, self.inferences)
        return iter([(0, client) for client in range(self.asked)])

    def after(self, client: int, time: int) -> int | None:
        """The next one, unless all have been asked for."""
        if self.asked >= self.inferences:
            return None
        self.asked += 1
        return time + self.think_ps


@dataclass
class Poisson:
    """Clients that come one by one, at random times, whatever the answers take.

    Args:
        rate_per_s: arrivals per second in the mean.
        inferences: how many in all.
        seed: of the times between arrivals.
    """

    rate_per_s: float
    inferences: int
    seed: int = 0

    def first(self) -> Iterator[tuple[int, int]]:
        """Times between arrivals are exponential and independent."""
        numbers = random.Random(self.seed)
        time = 0.0
        for client in range(self.inferences):
            time += numbers.expovariate(self.rate_per_s) * PS_PER_S
            yield round(time), client

    def after(self, client: int, time: int) -> int | None:
        """A client comes once."""
        return None


@dataclass(frozen=True)
class Policy:
    """What the host does.

    Attributes:
        batch: inferences in a request of the program.
        in_flight: requests under way at most.
        window_ps: how long an inference waits for others to fill its request, at most.
        timeout_ps: how long a client waits for its answer; None: for ever.
    """

    batch: int = 1
    in_flight: int = 4
    window_ps: int = 0
    timeout_ps: int | None = None


@dataclass
class Served:
    """What happened: every inference in order of arrival, and every request that was sent.

    `requests`: when it was sent, when its answer was there, which copy of the program had it, and inferences in it.
    """

    inferences: list[Inference]
    requests: list[tuple[int, int, int, int]]
    area_ps: int = 0
    """Clients that were there, added up over time while they came and went."""


Watcher = Callable[[int], None]
"""Told how many inferences have left."""


class Machine:
    """Copies of a program on a shared clock, side by side from its first core on.

    Args:
        programs: the same program read once for each copy; they are moved to their cores here.

    Raises:
        NeuronError: there are not so many cores, or a program that has no clock.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        from neuron_mlir.simulator.placement import relocate
        from neuron_mlir.simulator.session import SharedClock

        self.clock: SharedClock = SharedClock()
        self.sessions: list[Session] = []
        cores = programs[0].machine.chip.cores
        core = 0
        for program in programs:
            span = max(program.cores) - min(program.cores) + 1
            # As it was compiled: on one chip if it fits one, else from the first core of a chip on.
            if core % cores and core % cores + span > cores:
                core = (core // cores + 1) * cores
            if core + span > program.machine.cores_max:
                raise NeuronError(
                    f"{len(programs)} copies of the program do not fit the machine '{program.machine.name}'",
                    resource="cores",
                    needed=core + span,
                    available=program.machine.cores_max,
                )
            relocate(program, core)
            core += span
            self.sessions.append(self.clock.load(program, values=False))
        self.last_core = core - 1
        for session in self.sessions:
            session.start()
        self.start = self.clock.now

    @property
    def cores(self) -> int:
        """Cores that work."""
        return sum(len(session.program.cores) for session in self.sessions)


@dataclass(eq=False)
class _Flying:
    ticket: Ticket
    copy: int
    batch: list[Inference]
    sent: int


@dataclass(eq=False)
class _Server:
    """One run."""

    machine: Machine
    arrivals: Arrivals
    policy: Policy
    watch: Watcher | None
    queue: deque[Inference] = field(default_factory=deque[Inference])
    flying: list[_Flying] = field(default_factory=list[_Flying])
    served: Served = field(default_factory=lambda: Served([], []))
    coming: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """Time, order and client of arrivals that depend on answers."""
    deadlines: deque[tuple[int, Inference]] = field(default_factory=deque[tuple[int, Inference]])
    gone: int = 0

    def __post_init__(self) -> None:
        self.known = self.arrivals.first()
        self.next = next(self.known, None)
        """Time and client of the next arrival that does not depend on answers."""

    def run(self) -> Served:
        """Until everyone has left."""
        last = 0
        while True:
            time = self._look_ahead()
            if time is None:
                return self.served
            self.served.area_ps += (len(self.served.inferences) - self.gone) * (time - last)
            last = time
            self._land(time)
            self._arrive(time)
            self._give_up(time)
            self._send(time)
            if self.watch is not None:
                self.watch(self.gone)

    # What comes next

    def _look_ahead(self) -> int | None:
        """The time of the next event. The clock goes on till there, but not beyond an answer that it finds."""
        clock, zero = self.machine.clock, self.machine.start
        while True:
            time = self._next_event()
            open_ = [flying for flying in self.flying if flying.ticket.finished is None]
            if not open_:
                break

            def found(waiting: Sequence[_Flying] = open_) -> bool:
                return any(flying.ticket.finished is not None for flying in waiting)

            if time is None:
                # Only an answer can come next; without one the program is stuck, and the clock says how.
                clock.run(found, self.machine.sessions[open_[0].copy])
            else:
                clock.run(found, None, (), time + zero)
            if not found():
                break
        if time is not None:
            clock.run_until(time + zero)
        return time

    def _next_event(self) -> int | None:
        zero = self.machine.start
        times = [flying.ticket.finished - zero for flying in self.flying if flying.ticket.finished is not None]
        if self.next is not None:
            times.append(self.next[0])
        if self.coming:
            times.append(self.coming[0][0])
        if self.queue and len(self.flying) < self.policy.in_flight:
            times.append(max(self._ready(), self.machine.clock.now - zero))
        while self.deadlines and self.deadlines[0][1].ended >= 0:
            self.deadlines.popleft()
        if self.deadlines:
            times.append(self.deadlines[0][0])
        return min(times, default=None)

    def _ready(self) -> int:
        """From when on the first inferences of the queue may be sent."""
        batch = self.policy.batch
        full = self.queue[batch - 1].arrived if len(self.queue) >= batch else None
        waited = self.queue[0].arrived + self.policy.window_ps
        return waited if full is None else min(full, waited)

    # What happens at a time

    def _land(self, time: int) -> None:
        zero = self.machine.start
        done = [f for f in self.flying if f.ticket.finished is not None and f.ticket.finished - zero <= time]
        if not done:
            return
        self.flying = [flying for flying in self.flying if flying not in done]
        for flying in sorted(done, key=lambda f: f.ticket.finished or 0):
            end = (flying.ticket.finished or 0) - zero
            self.served.requests.append((flying.sent, end, flying.copy, len(flying.batch)))
            for inference in flying.batch:
                if inference.state == SENT:
                    self._leave(inference, ANSWERED, end)

    def _arrive(self, time: int) -> None:
        while True:
            first = self.next is not None and (not self.coming or self.next[0] <= self.coming[0][0])
            if first and self.next is not None and self.next[0] <= time:
                when, client = self.next
                self.next = next(self.known, None)
            elif not first and self.coming and self.coming[0][0] <= time:
                when, _, client = heapq.heappop(self.coming)
            else:
                return
            inference = Inference(len(self.served.inferences), client, when)
            self.served.inferences.append(inference)
            self.queue.append(inference)
            if self.policy.timeout_ps is not None:
                self.deadlines.append((when + self.policy.timeout_ps, inference))

    def _give_up(self, time: int) -> None:
        while self.deadlines and self.deadlines[0][0] <= time:
            when, inference = self.deadlines.popleft()
            if inference.ended >= 0:
                continue
            if inference.state == WAITING:
                self.queue.remove(inference)
                self._leave(inference, GIVEN_UP, when)
            else:
                self._leave(inference, LATE, when)

    def _leave(self, inference: Inference, state: str, time: int) -> None:
        inference.state, inference.ended = state, time
        self.gone += 1
        again = self.arrivals.after(inference.client, time)
        if again is not None:
            heapq.heappush(self.coming, (again, inference.number, inference.client))

    def _send(self, time: int) -> None:
        policy, clock, zero = self.policy, self.machine.clock, self.machine.start
        while self.queue and len(self.flying) < policy.in_flight and self._ready() <= time:
            if clock.now - zero > time:
                return  # The machine was not to be had meanwhile; `_next_event` comes back to it.
            batch = [self.queue.popleft() for _ in range(min(policy.batch, len(self.queue)))]
            busy = [sum(flying.copy == copy for flying in self.flying) for copy in range(len(self.machine.sessions))]
            copy = busy.index(min(busy))
            ticket = self.machine.sessions[copy].submit(None)
            sent = ticket.submitted - zero
            for inference in batch:
                inference.state, inference.sent = SENT, sent
            self.flying.append(_Flying(ticket, copy, batch, sent))


def serve(machine: Machine, arrivals: Arrivals, policy: Policy, watch: Watcher | None = None) -> Served:
    """Let inferences arrive until all have left, and tell what happened to each.

    Args:
        machine: with the program loaded and nothing under way.
        arrivals: who asks, and when.
        policy: what the host does.
        watch: told how many have left.

    Raises:
        NeuronError: the program is stuck.
    """
    return _Server(machine, arrivals, policy, watch).run()


# What comes of it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Little:
    """Both sides of Little's law, for a part of the system, over a whole run.

    `area_ps` is the number in it, added up over time as it changes; `stays_ps` the times that each stayed in it, added
    up. They are counted apart, and equal; so L = area / length is lambda = count / length times W = stays / count.
    """

    count: int
    length_ps: int
    area_ps: int
    stays_ps: int

    @property
    def number(self) -> float:
        """L: how many are there in the mean."""
        return self.area_ps / self.length_ps if self.length_ps else 0.0

    @property
    def rate_per_s(self) -> float:
        """lambda: how many come, and go, per second."""
        return self.count * PS_PER_S / self.length_ps if self.length_ps else 0.0

    @property
    def stay_ps(self) -> float:
        """W: how long each stays in the mean."""
        return self.stays_ps / self.count if self.count else 0.0


def little(stays: Sequence[tuple[int, int]], length_ps: int) -> Little:
    """Little's law of a part of the system.

    Args:
        stays: when each came and when it went.
        length_ps: of the run, which begins and ends empty.
    """
    changes: dict[int, int] = {}
    for start, end in stays:
        changes[start] = changes.get(start, 0) + 1
        changes[end] = changes.get(end, 0) - 1
    times = sorted(changes)
    area = inside = 0
    for time, after in pairwise(times):
        inside += changes[time]
        area += inside * (after - time)
    return Little(len(stays), length_ps, area, sum(end - start for start, end in stays))


def percentile(values: Sequence[int], percent: float) -> int:
    """Nearest rank: the least value that so many per cent do not exceed; 0 of none."""
    if not values:
        return 0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
