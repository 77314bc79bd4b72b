"""The event loop: engines as concurrent in-order streams, transfers that share servers, the host at both ends.

Engines run ahead as far as their waits allow: a wait needs only the time of a signal, so no global order is kept
for them. Transfers share servers (DMA engines, DRAM, links, host link) and are served in order of request time, a
quantum at a time, ties by stream number. Time is integer picoseconds, so runs repeat exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.codegen import StreamRun
from neuron_mlir.simulator.costs import Server, Transfer

Look: TypeAlias = "Callable[[int, int], None]"
"""Is told the time and the bytes of a transfer."""


@dataclass(eq=False)
class Task:
    """A running stream: its generator, the semaphores it signals, and what it waits for."""

    number: int
    name: str
    generator: StreamRun
    signals: tuple[int, ...]
    place: list[int] = field(default_factory=list[int])
    """Where it stands, if it writes that down: a number for the statement, its turn, the time, the time of its latest
    result, and what else what comes next depends on.
    """
    waits_for: tuple[int, int] | None = None
    finished: bool = False
    result: tuple[int, int] = (0, 0)
    """Time the task ended issuing, and time its last result was there."""


class Clock:
    """Runs tasks to completion. `signals[s]` is the list of times at which semaphore `s` was signalled."""

    def __init__(self, signals: list[list[int]], names: list[str]):
        self.signals = signals
        self.names = names
        self.free_at: dict[Server, int] = {}
        self._waiting: dict[int, list[Task]] = {}
        self._heap: list[tuple[int, int, int, Task, Transfer]] = []
        """Transfers by time of request and task number: (time, number, bytes left, task, transfer)."""

    def waiting_transfers(self) -> Sequence[tuple[int, int, int, Task, Transfer]]:
        """What waits for the servers: time of request, number of the task, bytes left, the task, the transfer."""
        return self._heap

    def run(self, tasks: Sequence[Task], marker: Task | None = None, look: Look | None = None) -> None:
        """Run all tasks; `look` is told whenever a transfer of `marker` begins.

        Raises:
            NeuronError: a deadlock; it says who waits for what.
        """
        heap = self._heap
        ready = list(reversed(tasks))
        while True:
            while ready:
                task = ready.pop()
                self._advance(task, None)
                self._wake(task, ready)
            if not heap:
                break
            time, number, left, task, transfer = heapq.heappop(heap)
            while True:
                if task is marker and look is not None and left == transfer.charged_bytes:
                    look(time, left)
                taken = min(left, transfer.quantum_bytes)
                time = self.serve(transfer, time, taken)
                left -= taken
                if not left:
                    break
                # Quanta go on while nobody else comes first.
                if heap and heap[0] < (time, number):
                    time, number, left, task, transfer = heapq.heapreplace(heap, (time, number, left, task, transfer))
            self._advance(task, time)
            self._wake(task, ready)
        stuck = [task for task in tasks if not task.finished]
        if stuck:
            self.report_deadlock(stuck)

    def _advance(self, task: Task, sent: int | None) -> None:
        """Run a task until it waits, asks for a transfer, or ends; `sent` is the end of the transfer it asked for."""
        generator = task.generator
        try:
            first, second, transfer = next(generator) if sent is None else generator.send(sent)
        except StopIteration as stop:
            task.finished = True
            task.result = stop.value
            return
        if transfer is None:
            # A task yields only when the semaphore is too low, and no other task runs meanwhile.
            task.waits_for = (first, second)
            self._waiting.setdefault(first, []).append(task)
            return
        heapq.heappush(self._heap, (second, task.number, transfer.charged_bytes, task, transfer))

    def _wake(self, task: Task, ready: list[Task]) -> None:
        """Move the tasks that wait for what this one has signalled to the ready list."""
        for number in task.signals:
            waiting = self._waiting.get(number)
            if not waiting:
                continue
            count = len(self.signals[number])
            for other in tuple(waiting):
                if other.waits_for is not None and count >= other.waits_for[1]:
                    other.waits_for = None
                    waiting.remove(other)
                    ready.append(other)

    def serve(self, transfer: Transfer, time: int, size: int) -> int:
        """Take `size` bytes through all servers of a transfer at or after `time`; the time the last byte has left
        them.
        """
        free_at = self.free_at
        servers = transfer.times.get(size) or transfer.times_of(size)
        start = time
        for server, _ in servers:
            free = free_at.get(server, 0)
            if free > start:
                start = free
        end = start
        for server, duration in servers:
            done = free_at[server] = start + duration
            if done > end:
                end = done
        return end

    def report_deadlock(self, stuck: Sequence[Task]) -> None:
        """Raise the error that names every blocked stream."""
        lines: list[str] = []
        for task in stuck:
            assert task.waits_for is not None
            number, value = task.waits_for
            lines.append(
                f"{task.name} waits for '{self.names[number]}' >= {value}, which is at {len(self.signals[number])}"
            )
        raise NeuronError(
            "deadlock: " + "; ".join(lines),
            resource="signals",
            advice="check the waits: each must be satisfied by signals that come before it",
        )
