"""A simulated instance: its cores and chips, which program is where, and the clock that they share.

What AWS documents for its runtime's cores holds here (Neuron Runtime Configuration, NEURON_RT_VISIBLE_CORES and
NEURON_RT_NUM_CORES): a process sees some cores and counts them from 0; a program takes as many neighbouring cores as it
was compiled for. Beyond that, a program is placed so that its cores share chips as they did when it was compiled.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import Machine, load_machine
from neuron_mlir.runtime.limits import check_limits
from neuron_mlir.runtime.status import NeuronRuntimeError, Status
from neuron_mlir.simulator.placement import dram_bytes, relocate
from neuron_mlir.simulator.session import Session, SharedClock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neuron_mlir.dialects.core.memory import ConstOp
    from neuron_mlir.simulator.program import Program

VISIBLE_CORES, NUM_CORES = "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES"
INSTANCE_TYPE = "NEURON_MLIR_INSTANCE"
"""Our own: the size of the instance that a process loads into unless it makes one."""

PS_PER_MS = 10**9


@dataclass(eq=False)
class Group:
    """A program on its cores."""

    session: Session
    cores: tuple[int, ...]
    dram: dict[int, int]
    """Bytes by chip."""
    active: bool = False
    """Whether its weights are in the cores; not while another program has them."""


class Instance:
    """A simulated Inf1 instance, or the part of it that a process sees.

    Args:
        kind: its size, such as `inf1.xlarge`; by default that of NEURON_MLIR_INSTANCE, else `inf1.24xlarge`.
        visible_cores: `"0-3"`, `"4,6-7"`, or numbers; by default what NEURON_RT_VISIBLE_CORES says, else as many as
            NEURON_RT_NUM_CORES says, else all.
        machine: what it is made of; by default the machine of the first program that is loaded.

    Raises:
        NeuronRuntimeError: no such instance, or no such cores (NRT_INVALID).
    """

    def __init__(
        self,
        kind: str | None = None,
        *,
        visible_cores: str | Sequence[int] | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.machine = machine
        described = load_machine() if machine is None else machine
        self.kind = kind or os.environ.get(INSTANCE_TYPE) or "inf1.24xlarge"
        chips = {size.name: size.chips for size in described.instances}
        if self.kind not in chips:
            raise NeuronRuntimeError(
                Status.NRT_INVALID, f"there is no instance '{self.kind}'", needed=", ".join(chips), available=self.kind
            )
        self._visible = visible_cores
        self.cores_per_chip = described.chip.cores
        self.cores = _visible(chips[self.kind] * self.cores_per_chip, visible_cores)
        """The cores that the process sees, by their numbers on the instance; users count them from 0."""
        self.clock = SharedClock()
        self.lock = threading.RLock()
        self.closed = False
        self._groups: list[Group] = []
        self._left: list[Group] = []
        """Programs of models that nobody has any more."""

    @property
    def now_ms(self) -> float:
        """Simulated milliseconds since the instance was made."""
        return self.clock.now / PS_PER_MS

    def advance(self, milliseconds: float) -> None:
        """Let simulated time pass, as a host does that has other work. Requests that are under way go on."""
        if not 0 <= milliseconds < float("inf"):
            raise NeuronRuntimeError(
                Status.NRT_INVALID, "time goes forward only", needed="0 ms or more", available=f"{milliseconds} ms"
            )
        with self.lock:
            self.check_open()
            self.clock.run_until(self.clock.now + round(milliseconds * PS_PER_MS))

    @property
    def free_cores(self) -> list[int]:
        """Cores without a program, as the process counts them."""
        self._collect()
        taken = {core for group in self._groups for core in group.cores}
        return [number for number, core in enumerate(self.cores) if core not in taken]

    def dram_free(self, chip: int) -> int:
        """Bytes of a chip's DRAM that no program has."""
        self._collect()
        capacity = (self.machine or load_machine()).dram.bytes_per_chip
        return capacity - sum(group.dram.get(chip, 0) for group in self._groups)

    def close(self) -> None:
        """Unload everything; models of this instance answer NRT_CLOSED from now on."""
        with self.lock:
            for group in list(self._groups):
                self.unload(group)
            self.closed = True

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_open(self) -> None:
        """Raises NeuronRuntimeError (NRT_CLOSED) when the instance was closed."""
        if self.closed:
            raise NeuronRuntimeError(Status.NRT_CLOSED, "the instance was closed", advice="a new Instance")

    # Programs -------------------------------------------------------------------------------------------------------

    def load(
        self,
        program: Program,
        weights: Any,
        *,
        first_core: int | None = None,
        constants: dict[ConstOp, NDArray[Any]] | None = None,
    ) -> Group:
        """Place a program and load its weights, which takes simulated time.

        Args:
            program: as read from its module; it is moved to its cores here.
            weights: the values of its constants.
            first_core: where to put it, counted as the process does; by default on the first cores that are free. Cores
                that another program has are shared in turns: a request for one waits until the other is idle, and for
                its own weights to be loaded again.
            constants: values that copies of the program share.

        Raises:
            NeuronRuntimeError: too few cores (NRT_LOAD_NOT_ENOUGH_NC), too little DRAM (NRT_RESOURCE), a program for
                another machine (NRT_INVALID), and what `check_limits` raises.
        """
        with self.lock:
            self.check_open()
            self._collect()
            self._check_machine(program.machine)
            if self.machine is None:
                self._adopt(program.machine)
            first = self._place(program, first_core)
            try:
                relocate(program, first)
            except NeuronError as error:
                raise NeuronRuntimeError.of(error, Status.NRT_LOAD_NOT_ENOUGH_NC) from None
            dram = dram_bytes(program)
            for chip, needed in dram.items():
                if needed > self.dram_free(chip):
                    raise NeuronRuntimeError(
                        Status.NRT_RESOURCE,
                        f"program '{program.name}' does not fit the DRAM of chip {chip}",
                        resource=f"bytes of DRAM of chip {chip}",
                        needed=needed,
                        available=self.dram_free(chip),
                        advice="unloading a model, other cores, or a smaller batch",
                    )
            check_limits(program)
            session = self.clock.load(program, weights, constants=constants)
            group = Group(session, tuple(program.cores), dram)
            self._groups.append(group)
            try:
                self.activate(group)
            except BaseException:
                self.unload(group)
                raise
            return group

    def unload(self, group: Group) -> None:
        """Free the cores and the DRAM of a program. What it has not answered is lost."""
        with self.lock:
            if group in self._groups:
                self._groups.remove(group)
                self.clock.unload(group.session)

    def leave(self, groups: Sequence[Group]) -> None:
        """Unload programs when the instance is next asked for room: safe at any moment, as when Python collects."""
        self._left.extend(groups)

    def _collect(self) -> None:
        while self._left:
            self.unload(self._left.pop())

    def activate(self, group: Group) -> None:
        """Bring a program's weights into its cores, unless they are there; others that share cores finish before."""
        if group.active:
            return
        for other in self._groups:
            if other.active and set(other.cores) & set(group.cores):
                other.session.drain()
                other.session.stop()
                other.active = False
        group.session.start()
        group.active = True

    def _adopt(self, machine: Machine) -> None:
        """Become an instance of the machine that the first program was compiled for."""
        chips = next((size.chips for size in machine.instances if size.name == self.kind), 0)
        if not chips:
            raise NeuronRuntimeError(
                Status.NRT_INVALID,
                f"the program's machine has no instance '{self.kind}'",
                needed=self.kind,
                available=", ".join(size.name for size in machine.instances),
            )
        self.cores = _visible(chips * machine.chip.cores, self._visible)
        self.cores_per_chip = machine.chip.cores
        self.machine = machine

    def _check_machine(self, machine: Machine) -> None:
        if self.machine is None:
            return
        for name in ("chip", "clock", "dram", "dma", "chip_link", "host_link"):
            if getattr(machine, name) != getattr(self.machine, name):
                raise NeuronRuntimeError(
                    Status.NRT_INVALID,
                    f"the program is compiled for a machine with another '{name}' than this instance has",
                    needed=getattr(machine, name),
                    available=getattr(self.machine, name),
                    advice="an Instance of its own",
                )

    def _place(self, program: Program, first_core: int | None) -> int:
        """The first core, by its number on the instance."""
        span = max(program.cores) - min(program.cores) + 1
        base = min(program.cores) % self.cores_per_chip
        free = {self.cores[number] for number in self.free_cores}
        if first_core is not None:
            chosen = list(self.cores[first_core : first_core + span]) if first_core >= 0 else []
            if len(chosen) < span or chosen[-1] - chosen[0] != span - 1:
                raise NeuronRuntimeError(
                    Status.NRT_LOAD_NOT_ENOUGH_NC,
                    f"there are no {span} neighbouring cores from core {first_core} on",
                    resource="visible cores",
                    needed=f"{first_core} to {first_core + span - 1}",
                    available=_ranges(range(len(self.cores))),
                )
            return chosen[0]
        across = base + span > self.cores_per_chip
        for core in self.cores:
            inside = core % self.cores_per_chip + span <= self.cores_per_chip
            if (core % self.cores_per_chip == base if across else inside) and all(
                core + i in free for i in range(span)
            ):
                return core
        raise NeuronRuntimeError(
            Status.NRT_LOAD_NOT_ENOUGH_NC,
            f"no {span} neighbouring cores are free for program '{program.name}'"
            + ("" if across else " on one chip" if span > 1 else ""),
            resource="free cores",
            needed=span,
            available=f"{len(free)} of {len(self.cores)} ({self._where(free)})",
            advice="unloading a model, a larger instance, or first_core=, to share cores in turns",
        )

    def _where(self, cores: set[int]) -> str:
        """Cores as the process counts them, and by their numbers on the instance where these are others."""
        numbers = [number for number, core in enumerate(self.cores) if core in cores]
        seen, there = _ranges(numbers), _ranges(sorted(cores))
        return (seen or "none") + ("" if seen == there else f", on the instance {there}")


_default: Instance | None = None
_default_lock = threading.Lock()


def default_instance() -> Instance:
    """The instance of this process, made on first use from the environment; a new one once that was closed."""
    global _default
    with _default_lock:
        if _default is None or _default.closed:
            _default = Instance()
        return _default


def environment_number(name: str, *, least: int, environment: Mapping[str, str] | None = None) -> int | None:
    """A whole number from the environment; None when it is not set.

    Raises:
        NeuronRuntimeError: it is set to something else (NRT_INVALID).
    """
    text = (os.environ if environment is None else environment).get(name)
    if text is None or not text.strip():
        return None
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise NeuronRuntimeError(
            Status.NRT_INVALID, f"{name} is not a whole number of {least} or more", needed=f"{least}..", available=text
        )
    return number


def _visible(cores: int, chosen: str | Sequence[int] | None) -> tuple[int, ...]:
    where = "visible_cores"
    if chosen is None:
        chosen = os.environ.get(VISIBLE_CORES, "").strip() or None
        where = VISIBLE_CORES
    if chosen is None:
        count = environment_number(NUM_CORES, least=0)
        if not count:
            return tuple(range(cores))
        if count > cores:
            raise NeuronRuntimeError(
                Status.NRT_LOAD_NOT_ENOUGH_NC,
                f"{NUM_CORES} asks for more cores than there are",
                needed=count,
                available=cores,
            )
        return tuple(range(count))
    numbers = _numbers(chosen, where) if isinstance(chosen, str) else list(chosen)
    wrong = [number for number in numbers if not 0 <= number < cores]
    if wrong or not numbers or len(set(numbers)) < len(numbers):
        raise NeuronRuntimeError(
            Status.NRT_INVALID,
            f"{where} names cores that there are not" if wrong else f"{where} names no core, or one twice",
            needed=f"0 to {cores - 1}",
            available=chosen,
        )
    return tuple(sorted(numbers))


def _numbers(text: str, where: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None:
            raise NeuronRuntimeError(
                Status.NRT_INVALID, f"{where} is no list of cores", needed="such as 0-3 or 1,4-7", available=text
            )
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1)
    return found


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 6` for 0, 1, 2, 3, 6."""
    parts: list[str] = []
    start = previous = None
    for number in [*numbers, None]:
        if previous is not None and number == previous + 1:
            previous = number
            continue
        if start is not None:
            parts.append(f"{start}" if start == previous else f"{start}-{previous}")
        start = previous = number
    return ", ".join(parts)
