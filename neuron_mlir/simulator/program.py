"""A memory-form module as plain data: memories, buffers, semaphores and instruction streams.

Everything the simulator needs of the IR is read here once; the clock, the values and the hazard checker work on this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Attribute, Operation
from xdsl.ir.affine import AffineExpr

from neuron_mlir.dialects.core.memory import (
    Buffer,
    ConstOp,
    buffer_bytes,
    element_bytes,
)
from neuron_mlir.dialects.pipe.ops import ProgramOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import machine_of
from neuron_mlir.machine import Machine


@dataclass(frozen=True)
class Memory:
    """One physical memory: `sbuf` or `psum` of a core, `dram` of a chip."""

    space: str
    place: int

    def __str__(self) -> str:
        return f"{self.space} of {'chip' if self.space == 'dram' else 'core'} {self.place}"


@dataclass(eq=False)
class Storage:
    """A buffer: name, type, where it is, and its address in bytes (None before allocation)."""

    number: int
    label: str
    type: Buffer
    memory: Memory
    address: int | None
    op: Operation
    constant: ConstOp | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Elements along each dimension."""
        return tuple(self.type.get_shape())

    @property
    def element(self) -> Attribute:
        """Element type."""
        return self.type.element_type

    @cached_property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return element_bytes(self.type.element_type)

    @cached_property
    def bytes(self) -> int:
        """Bytes in each partition (SBUF, PSUM) or in all (DRAM)."""
        return buffer_bytes(self.type)

    def bytes_of_slot(self, depth: int) -> int:
        """Of a ring of that depth: all bytes of one slot, those of all partitions together."""
        total = self.item_bytes
        for size in self.shape:
            total *= size
        return total // depth

    def byte_strides(self) -> tuple[int, ...]:
        """Bytes from one index to the next along each dimension; 0 for the partition dimension of SBUF and PSUM."""
        strides = [0] * len(self.shape)
        step = self.item_bytes
        first = 0 if self.memory.space == "dram" else 1
        for axis in range(len(self.shape) - 1, first - 1, -1):
            strides[axis] = step
            step *= self.shape[axis]
        return tuple(strides)


@dataclass(eq=False)
class Semaphore:
    """A counter; `core` is where it lives, None for one the host waits for."""

    number: int
    label: str
    core: int | None
    op: Operation


@dataclass(eq=False)
class Touch:
    """One access of an instruction, resolved: offsets are affine over the stream's loop variables."""

    role: str
    storage: Storage
    offsets: tuple[AffineExpr, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    write: bool


@dataclass(eq=False)
class Step:
    """An instruction, a wait or a signal of a stream. `variables` are the loop variables its expressions are over."""

    op: Operation
    variables: tuple[str, ...]
    touches: tuple[Touch, ...] = ()
    semaphore: Semaphore | None = None
    value: AffineExpr | None = None


@dataclass(eq=False)
class Loop:
    """`for variable in range(start, stop, step)` over a body."""

    variable: str
    start: int
    stop: int
    step: int
    body: list[Loop | Step] = field(default_factory=list)

    @property
    def trips(self) -> int:
        """How often the body runs each time the loop is reached."""
        return max(0, -(-(self.stop - self.start) // self.step))


@dataclass(frozen=True)
class Turns:
    """Which requests a replica, or a lane of a ring, has: `first`, `first + every`, .. as its turns 0, 1, .."""

    first: int = 0
    every: int = 1

    def count(self, requests: int) -> int:
        """Turns that so many requests take."""
        return max(0, -(-(requests - self.first) // self.every))

    def request(self, turn: int) -> int:
        """The request that is a turn."""
        return self.first + turn * self.every

    def turn(self, request: int) -> int | None:
        """The turn that a request is; None when another has it."""
        turn, rest = divmod(request - self.first, self.every)
        return None if rest else turn


class Limit:
    """Turns of a stream or port: `for r in limit.turns(first)`, up to a number that may come down meanwhile."""

    def __init__(self) -> None:
        self.last = 0

    def turns(self, first: int, stop: int | None = None) -> Iterator[int]:
        """Numbers from `first`, as long as they are below `last` and `stop`."""
        while first < self.last and (stop is None or first < stop):
            yield first
            first += 1


@dataclass(eq=False)
class Stream:
    """The steps of one engine: what it does once (`load`) and for each request (`run`, over the variable `r`; of a
    replica that is the turn).
    """

    number: int
    name: str
    engine: str
    core: int
    stage: str
    turns: Turns = Turns()
    load: list[Loop | Step] = field(default_factory=list)
    run: list[Loop | Step] = field(default_factory=list)

    def signals(self) -> tuple[int, ...]:
        """Numbers of the semaphores it signals."""
        found = {step.semaphore.number: None for step, _, _ in self.steps() if step.semaphore and step.value is None}
        return tuple(found)

    def steps(self) -> Iterator[tuple[Step, int, bool]]:
        """All steps with the number of times each runs (per load, or per request) and whether it belongs to the
        load.
        """
        for body, is_load in ((self.load, True), (self.run, False)):
            for step, times in walk(body):
                yield step, times, is_load


def walk(body: Sequence[Loop | Step], times: int = 1) -> Iterator[tuple[Step, int]]:
    """The steps of a body with how often each runs."""
    for item in body:
        if isinstance(item, Loop):
            yield from walk(item.body, times * item.trips)
        else:
            yield item, times


@dataclass(eq=False)
class HostPort:
    """A graph input or output: the lane of a ring the host writes or reads, its requests, and its semaphores (None in
    sequential code).
    """

    label: str
    ring: Storage
    depth: int
    full: Semaphore | None
    credit: Semaphore | None
    turns: Turns = Turns()


@dataclass(eq=False)
class Program:
    """A whole memory-form program."""

    name: str
    machine: Machine
    op: ProgramOp
    storages: list[Storage] = field(default_factory=list)
    semaphores: list[Semaphore] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    inputs: list[HostPort] = field(default_factory=list)
    outputs: list[HostPort] = field(default_factory=list)
    cores: list[int] = field(default_factory=list)
    scheduled: bool = False
    """Whether engines are streams ordered by semaphores; else each stage is one sequential stream."""

    def chip(self, core: int) -> int:
        """The chip a core is on."""
        return core // self.machine.chip.cores


def find_program(module: ModuleOp) -> ProgramOp | None:
    """The module's `pipe.program`, or None."""
    return next((op for op in module.body.block.ops if isinstance(op, ProgramOp)), None)


def is_memory_form(program: ProgramOp) -> bool:
    """Whether the stages are code on buffers."""
    return any(stage.in_memory_form for stage in program.stages())


def read_program(module: ModuleOp) -> Program:
    """Read a memory-form module.

    Raises `NeuronError` for a module without a program, a semaphore with two producing streams or none, waits on
    another core's semaphore, and memory or semaphore counts beyond the machine's.
    """
    op = find_program(module)
    if op is None:
        raise NeuronError("the module holds no pipe.program", advice="run pipe-stage and core-lower first")
    from neuron_mlir.simulator.program_reader import ProgramReader  # reads into what this module defines

    return ProgramReader(Program(op.sym_name.data, machine_of(module), op)).read()
