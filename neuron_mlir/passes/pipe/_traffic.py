"""What streams ask of the links between chips and to the host, and what stages ask of DRAM, for given cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, gcd
from typing import cast

from xdsl.dialects.builtin import IntegerAttr

from neuron_mlir.dialects.nn.base import Tensor
from neuron_mlir.dialects.pipe.ops import InputOp, OutputOp, ProgramOp, StageOp, StreamType, YieldOp
from neuron_mlir.machine import Machine, cost
from neuron_mlir.machine.topology import links_between
from neuron_mlir.passes.estimate import charged_bytes, tensor_bytes
from neuron_mlir.passes.pipe._graph import EXPOSED_PERCENT

Cores = Mapping[StageOp, Sequence[int]]


def slowest_link(stages: Sequence[StageOp], cores: Cores, machine: Machine) -> int:
    """Time per request of the busiest link, picoseconds."""
    return max(link_times(stages, cores, machine).values(), default=0)


def link_times(stages: Sequence[StageOp], cores: Cores, machine: Machine) -> dict[str, int]:
    """Time per request of each link between chips that is used, picoseconds, by its name.

    A ring lies on the chip of its reader, one lane for each group of replicas that meet (as `core-lower` makes them):
    the writer's replicas, and those of the reader that are elsewhere, cross the links in between.
    """
    traffic: dict[str, Fraction] = {}

    def move(source: int, target: int, size: Fraction) -> None:
        for link in links_between(machine, source, target):
            traffic[link.name] = traffic.get(link.name, Fraction(0)) + size

    for writer in stages:
        for result, size in zip(writer.results_, _stream_bytes(writer, machine), strict=True):
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
    return {name: cost.service_ps(ceil(size), rate) for name, size in traffic.items()}


def host_times(program: ProgramOp, machine: Machine) -> dict[str, int]:
    """Time per request of either direction of the link to the host, picoseconds: every stage that reads an input gets a
    copy of its own.
    """
    sizes = {"host link in": 0, "host link out": 0}
    for op in program.body.block.ops:
        if isinstance(op, InputOp):
            readers = dict.fromkeys(use.operation for use in op.result[0].uses)
            sizes["host link in"] += len(readers) * tensor_bytes(cast(Tensor, op.result[0].type.element))
        elif isinstance(op, OutputOp):
            sizes["host link out"] += tensor_bytes(cast(Tensor, cast(StreamType, op.source.type).element))
    rate = cost.host_link_bytes_per_s(machine)
    return {name: cost.service_ps(size, rate) for name, size in sizes.items()}


def dram_times(stages: Sequence[StageOp], cores: Cores, machine: Machine) -> tuple[int, int]:
    """Time per request of the busiest DRAM, picoseconds, and what it would be if the chips in use shared evenly."""
    traffic = _dram_traffic(stages, cores, machine)
    even = cost.service_ps(ceil(sum(traffic.values()) / len(traffic)), cost.dram_bytes_per_s(machine))
    return max(dram_by_chip(stages, cores, machine).values()), even


def dram_by_chip(stages: Sequence[StageOp], cores: Cores, machine: Machine) -> dict[int, int]:
    """Time per request of the DRAM of each chip in use, picoseconds."""
    rate = cost.dram_bytes_per_s(machine)
    return {chip: cost.service_ps(ceil(size), rate) for chip, size in _dram_traffic(stages, cores, machine).items()}


def dram_bytes(stage: StageOp) -> int:
    """What passes DRAM for a stage and request, as the stage says."""
    moved = stage.attributes.get("dram_bytes")
    return moved.value.data if isinstance(moved, IntegerAttr) else 0


def crossing_times(stages: Sequence[StageOp], times: Sequence[int], machine: Machine) -> list[int]:
    """For each stage but the first, what takes longest per request with a border of chips before it: the link there, or
    a writer of what crosses it; picoseconds.

    Who writes over a link waits for it as long as anybody uses it, since in a steady state all writers come to it at
    once; what of its DMA a stage's compute does not hide it pays at that rate then. (Measured on ResNet-50 with its
    stages split: 213 us by the clock, where the link is busy for 135 us and the writer for 125 us when alone.)

    Args:
        stages: in the order of their cores, of which each has one.
        times: what each takes when everything it writes stays on the chip.
        machine: what they run on.
    """
    order = {stage: number for number, stage in enumerate(stages)}
    link, core = cost.chip_link_bytes_per_s(machine), cost.core_dma_bytes_per_s(machine)
    crossing: list[dict[int, int]] = [{} for _ in stages]
    for number, writer in enumerate(stages):
        for result, size in zip(writer.results_, _stream_bytes(writer, machine), strict=True):
            for reader in dict.fromkeys(use.operation for use in result.uses):
                for border in range(number + 1, order.get(cast(StageOp, reader), -1) + 1):
                    crossing[border][number] = crossing[border].get(number, 0) + size
    found: list[int] = []
    for sizes in crossing:
        busy = cost.service_ps(sum(sizes.values()), link)
        waiting = [
            times[writer] + max(0, EXPOSED_PERCENT * (busy - cost.service_ps(size, core)) // 100)
            for writer, size in sizes.items()
        ]
        found.append(max([busy, *waiting]))
    return found


def _stream_bytes(writer: StageOp, machine: Machine) -> list[int]:
    """What writing each result for a request is charged for."""
    last = writer.body.block.last_op
    assert isinstance(last, YieldOp)
    return [charged_bytes(machine, value) for value in last.values]


def _dram_traffic(stages: Sequence[StageOp], cores: Cores, machine: Machine) -> dict[int, Fraction]:
    """Bytes per request at the DRAM of each chip."""
    traffic: dict[int, Fraction] = {}
    for stage in stages:
        size = dram_bytes(stage)
        for core in cores[stage]:
            chip = core // machine.chip.cores
            traffic[chip] = traffic.get(chip, Fraction(0)) + Fraction(size, len(cores[stage]))
    return traffic
