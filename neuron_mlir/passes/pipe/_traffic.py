"""What streams between stages ask of the links between chips, for given cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, gcd
from typing import cast

from xdsl.dialects.builtin import IntegerAttr

from neuron_mlir.dialects.nn.base import Tensor
from neuron_mlir.dialects.pipe.ops import StageOp
from neuron_mlir.machine import Machine, cost
from neuron_mlir.machine.topology import links_between
from neuron_mlir.passes.estimate import tensor_bytes

Cores = Mapping[StageOp, Sequence[int]]


def slowest_link(stages: Sequence[StageOp], cores: Cores, machine: Machine) -> int:
    """Time per request of the busiest link, picoseconds.

    A ring lies on the chip of its reader, one lane for each group of replicas that meet (as `core-lower` makes them):
    the writer's replicas, and those of the reader that are elsewhere, cross the links in between.
    """
    traffic: dict[str, Fraction] = {}

    def move(source: int, target: int, size: Fraction) -> None:
        for link in links_between(machine, source, target):
            traffic[link.name] = traffic.get(link.name, Fraction(0)) + size

    for writer in stages:
        for result in writer.results_:
            size = tensor_bytes(cast(Tensor, result.type.element))
            for reader in dict.fromkeys(use.operation for use in result.uses):
                if not isinstance(reader, StageOp) or reader not in cores:
                    continue
                lanes = gcd(len(cores[writer]), len(cores[reader]))
                homes = cores[reader][:lanes]
                for i, core in enumerate(cores[writer]):
                    move(core, homes[i % lanes], Fraction(size, len(cores[writer])))
                for i, core in enumerate(cores[reader]):
                    move(homes[i % lanes], core, Fraction(size, len(cores[reader])))
    rate = cost.chip_link_bytes_per_s(machine)
    return max((cost.service_ps(ceil(size), rate) for size in traffic.values()), default=0)


def dram_times(stages: Sequence[StageOp], cores: Cores, machine: Machine) -> tuple[int, int]:
    """Time per request of the busiest DRAM, picoseconds, and what it would be if the chips in use shared evenly."""
    traffic: dict[int, Fraction] = {}
    for stage in stages:
        moved = stage.attributes.get("dram_bytes")
        size = moved.value.data if isinstance(moved, IntegerAttr) else 0
        for core in cores[stage]:
            chip = core // machine.chip.cores
            traffic[chip] = traffic.get(chip, Fraction(0)) + Fraction(size, len(cores[stage]))
    rate = cost.dram_bytes_per_s(machine)
    worst = max(cost.service_ps(ceil(size), rate) for size in traffic.values())
    return worst, cost.service_ps(ceil(sum(traffic.values()) / len(traffic)), rate)
