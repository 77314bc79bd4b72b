"""Where things are: cores on chips, chips on a chain, and what a route between two cores passes through."""

from __future__ import annotations

from dataclasses import dataclass

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine.description import Machine


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of the link between neighbouring chips."""

    source_chip: int
    target_chip: int

    @property
    def name(self) -> str:
        return f"link {self.source_chip}->{self.target_chip}"


def chip_of(machine: Machine, core: int) -> int:
    """The chip that core number `core` is on. Cores are numbered along the chain. Raises `NeuronError` out of range."""
    if not 0 <= core < machine.cores_max:
        raise NeuronError(
            f"core {core} is not on the machine '{machine.name}'",
            resource="cores",
            needed=core + 1,
            available=machine.cores_max,
        )
    return core // machine.chip.cores


def chips_used(machine: Machine, cores: list[int]) -> list[int]:
    """The chips of the given cores, each once, in order."""
    return sorted({chip_of(machine, core) for core in cores})


def links_between(machine: Machine, source_core: int, target_core: int) -> list[Link]:
    """The links a transfer passes, in order; none within a chip."""
    source, target = chip_of(machine, source_core), chip_of(machine, target_core)
    step = 1 if target >= source else -1
    return [Link(chip, chip + step) for chip in range(source, target, step)]


def smallest_instance(machine: Machine, cores: int) -> str:
    """Name of the cheapest instance that has `cores` cores. Raises `NeuronError` if none has."""
    fitting = [i for i in machine.instances if i.chips * machine.chip.cores >= cores]
    if not fitting:
        raise NeuronError(
            f"no instance of '{machine.name}' has {cores} cores",
            resource="cores",
            needed=cores,
            available=max(i.chips for i in machine.instances) * machine.chip.cores,
        )
    return min(fitting, key=lambda i: (i.microdollars_per_hour, i.name)).name
