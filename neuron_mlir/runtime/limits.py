"""What a program may ask of the host that simulates it: checked before memory is taken and time is spent.

An artifact is made by whoever made it. Its text can declare buffers of terabytes and loops of years; both are a line in
a small file. These are refused by their numbers, which follow from the program without running it.
"""

from __future__ import annotations

import resource
from pathlib import Path

from neuron_mlir.runtime.status import NeuronRuntimeError, Status
from neuron_mlir.simulator.machine_run import held_as
from neuron_mlir.simulator.program import Program

STEPS_MAX = 1 << 27
"""Instructions, waits and signals of one request: ten times what the largest networks of the tests have, and more."""
SIGNALS_MAX = 1 << 23
"""Signals of one request; the simulator keeps the time of each."""
MEMORY_SHARE = 0.9
"""Of the memory that is free, what the buffers of a program may take."""


def check_limits(program: Program) -> None:
    """Raise NeuronRuntimeError for a program whose buffers the host cannot hold (NRT_FAIL_HOST_MEM_ALLOC), or whose
    requests take longer than anyone waits (NRT_INVALID).
    """
    steps = signals = 0
    for stream in program.streams:
        for step, times, _ in stream.steps():
            steps += times
            if step.semaphore is not None and step.value is None:
                signals += times
    for what, count, limit in (("steps", steps, STEPS_MAX), ("signals", signals, SIGNALS_MAX)):
        if count > limit:
            raise NeuronRuntimeError(
                Status.NRT_INVALID,
                f"program '{program.name}' takes too many {what} to load and answer a request",
                op=program.op,
                resource=what,
                needed=count,
                available=limit,
                advice="checking the bounds of its loops",
            )
    needed, free = host_bytes(program), free_memory()
    if free is not None and needed > free * MEMORY_SHARE:
        raise NeuronRuntimeError(
            Status.NRT_FAIL_HOST_MEM_ALLOC,
            f"the host cannot hold the buffers of program '{program.name}'",
            op=program.op,
            resource="bytes of the host's memory",
            needed=needed,
            available=int(free * MEMORY_SHARE),
            advice="a smaller batch, or a host with more memory",
        )


def host_bytes(program: Program) -> int:
    """Bytes that the values of all buffers take while they are simulated; a constant counts once."""
    total, seen = 0, set[object]()
    for storage in program.storages:
        if storage.constant is not None:
            if storage.constant in seen:
                continue
            seen.add(storage.constant)
        size = held_as(storage).itemsize
        for extent in storage.shape:
            size *= extent
        total += size
    return total


def free_memory() -> int | None:
    """Bytes that this process can still take, of the system's memory and of its own limit; None where neither is
    known.
    """
    known: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        try:
            taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        except (OSError, ValueError, IndexError):
            taken = 0
        known.append(max(0, limit - taken))
    return min(known, default=None)
