"""What has to be known of a program before it stays loaded: where it can go, what it takes, when it stops by itself."""

from __future__ import annotations

from neuron_mlir.dialects.core.movement import WaitOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.program import Memory, Program, Step, walk


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


def requests_max(program: Program, signals: int) -> int:
    """How many requests a program can take with so many signals, and before a semaphore counts too far."""
    counts: dict[int, int] = {}
    for stream in program.streams:
        for step, times, is_load in stream.steps():
            if step.semaphore is not None and step.value is None and not is_load:
                counts[step.semaphore.number] = counts.get(step.semaphore.number, 0) + times
    most, total = max(counts.values(), default=0), sum(counts.values())
    return max(1, min(program.machine.chip.semaphore_max // (most + 1), signals // (total + 1)))
