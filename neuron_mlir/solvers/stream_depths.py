"""How deep the buffers between processes must be so that none waits for ever.

Processes go through fixed sequences of events: they wait for counters, and add to counters. A buffer of `depth` slots
between two of them is two counters, of what is full and of what is free again; its writer waits until at most `depth`
slots have not been freed. What is written, read, and in which order does not depend on time (such networks are
determinate: Kahn 1974), so if one way of taking turns gets to the end, every way does; one simulation is a proof. Where
it gets stuck, some processes wait for each other in a circle; a full buffer whose writer waits there is made one slot
deeper, and it goes on (Parks, "Bounded scheduling of process networks", 1995; those who only wait for the circle are
left alone, as Geilen and Basten, "Requirements on the execution of Kahn process networks", 2003, have it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """A wait until a counter is at least `value`, or (without a value) an addition of 1 to it.

    Attributes:
        buffer: with one, the wait is for a free slot of it: `value` is less by its depth. -1 for none.
    """

    counter: int
    value: int | None = None
    buffer: int = -1


@dataclass(frozen=True)
class Stuck:
    """Processes that wait for each other in a circle, each with the number of the event it waits at; or a single one
    that waits for what nobody does.
    """

    waiting: tuple[tuple[int, int], ...]


def run(processes: Sequence[Sequence[Event]], depths: Sequence[int] = ()) -> Stuck | None:
    """Let all processes go as far as they get; None when all come to their ends.

    Args:
        processes: the events of each, in order.
        depths: slots of each buffer.
    """
    return _Run(processes, list(depths)).go()


def least_depths(
    processes: Sequence[Sequence[Event]], start: Sequence[int], most: Sequence[int], sizes: Sequence[int]
) -> tuple[int, ...] | Stuck:
    """Depths with which all processes come to their ends, from `start` on, made deeper only where that is needed.

    Args:
        processes: the events of each, in order.
        start: slots of each buffer at least.
        most: slots of each buffer at most.
        sizes: what a slot of each takes. Of several buffers that hold a process up, that with the smallest grows.

    Gives `Stuck` where deeper buffers do not help, or would take more slots than `most`.
    """
    state = _Run(processes, list(start))
    while (stuck := state.go()) is not None:
        full = {processes[p][at].buffer for p, at in stuck.waiting}
        able = [b for b in sorted(full) if b >= 0 and state.depths[b] < most[b]]
        if not able:
            return stuck
        state.depths[min(able, key=lambda b: (sizes[b] * state.depths[b], b))] += 1
    return tuple(state.depths)


class _Run:
    """How far processes have come."""

    def __init__(self, processes: Sequence[Sequence[Event]], depths: list[int]):
        self.processes = processes
        self.depths = depths
        self.at = [0] * len(processes)
        count = max((event.counter for events in processes for event in events), default=-1) + 1
        self.counters = [0] * count
        self.owner: dict[int, int] = {
            event.counter: number for number, events in enumerate(processes) for event in events if event.value is None
        }
        """Which process adds to a counter."""

    def go(self) -> Stuck | None:
        moved = True
        while moved:
            moved = False
            for process in range(len(self.processes)):
                moved |= self._advance(process)
        process = next((p for p, at in enumerate(self.at) if at < len(self.processes[p])), None)
        if process is None:
            return None
        way: list[int] = []
        while process not in way:
            way.append(process)
            owner = self.owner.get(self.processes[process][self.at[process]].counter)
            if owner is None or self.at[owner] == len(self.processes[owner]):
                return Stuck(((process, self.at[process]),))
            process = owner
        return Stuck(tuple((p, self.at[p]) for p in way[way.index(process) :]))

    def _advance(self, process: int) -> bool:
        events, counters = self.processes[process], self.counters
        first = at = self.at[process]
        while at < len(events):
            event = events[at]
            if event.value is None:
                counters[event.counter] += 1
            else:
                free = self.depths[event.buffer] if event.buffer >= 0 else 0
                if counters[event.counter] < event.value - free:
                    break
            at += 1
        self.at[process] = at
        return at > first
