"""The event loop: engines as concurrent in-order streams, transfers that share servers, the host at both ends.

Engines run ahead as far as their waits allow: a wait needs only the time of a signal, so no global order is kept for them. Transfers share servers
(DMA engines, DRAM, links, host link) and are served in order of request time, a quantum at a time, ties by stream number. Time is integer
picoseconds, so runs repeat exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine.cost import service_ps
from neuron_mlir.simulator.codegen import DMA, WAIT, Yielded
from neuron_mlir.simulator.costs import Server, Transfer


@dataclass(eq=False)
class Task:
    """A running stream: its generator, and what it waits for."""

    number: int
    name: str
    generator: Iterator[Yielded]
    waits_for: tuple[int, int] | None = None
    finished: bool = False
    result: tuple[int, int] = (0, 0)


class Clock:
    """Runs tasks to completion. `signals[s]` is the list of times at which semaphore `s` was signalled."""

    def __init__(self, signals: list[list[int]], names: list[str]):
        self.signals = signals
        self.names = names
        self.free_at: dict[Server, int] = {}
        self._service: dict[tuple[Server, int], int] = {}

    def run(self, tasks: list[Task]) -> None:
        """Run all tasks. Raises `NeuronError` on deadlock, saying who waits for what."""
        waiting: dict[int, list[Task]] = {}
        heap: list[tuple[int, int, int, int, Task, Transfer]] = []
        ready: list[Task] = list(reversed(tasks))
        order = 0

        def advance(task: Task, sent: int | None) -> None:
            """Run a task until it waits, asks for a transfer, or ends."""
            nonlocal order
            generator = task.generator
            while True:
                try:
                    kind, first, second = next(generator) if sent is None else generator.send(sent)  # type: ignore[attr-defined]
                except StopIteration as stop:
                    task.finished = True
                    task.result = stop.value
                    return
                if kind == WAIT:
                    if len(self.signals[first]) >= second:
                        sent = None
                        continue
                    task.waits_for = (first, second)
                    waiting.setdefault(first, []).append(task)
                    return
                assert kind == DMA
                order += 1
                heapq.heappush(heap, (first, task.number, order, second.charged_bytes, task, second))
                return

        def wake() -> None:
            """Move tasks whose semaphore has reached its value to the ready list."""
            for number in list(waiting):
                count = len(self.signals[number])
                still: list[Task] = []
                for task in waiting[number]:
                    assert task.waits_for is not None
                    if count >= task.waits_for[1]:
                        task.waits_for = None
                        ready.append(task)
                    else:
                        still.append(task)
                if still:
                    waiting[number] = still
                else:
                    del waiting[number]

        while True:
            while ready:
                advance(ready.pop(), None)
                if not ready:
                    wake()
            if not heap:
                break
            time, _, _, left, task, transfer = heapq.heappop(heap)
            taken = min(left, transfer.quantum_bytes)
            end = self.serve(transfer, time, taken)
            if left > taken:
                order += 1
                heapq.heappush(heap, (end, task.number, order, left - taken, task, transfer))
            else:
                advance(task, end)
                wake()
        stuck = [task for task in tasks if not task.finished]
        if stuck:
            self.report_deadlock(stuck)

    def serve(self, transfer: Transfer, time: int, size: int) -> int:
        """Take `size` bytes through all servers of a transfer at or after `time`; the time the last byte has left them."""
        free_at = self.free_at
        start = time
        for server, _ in transfer.servers:
            free = free_at.get(server, 0)
            if free > start:
                start = free
        end = start
        for server, passes in transfer.servers:
            key = (server, size * passes)
            duration = self._service.get(key)
            if duration is None:
                duration = self._service[key] = service_ps(size * passes, server.bytes_per_s)
            free_at[server] = start + duration
            if start + duration > end:
                end = start + duration
        return end

    def report_deadlock(self, stuck: list[Task]) -> None:
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
