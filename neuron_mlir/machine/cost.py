"""The cost model: what each instruction takes, in integer picoseconds, as pure functions of a `Machine`.

Passes estimate with these functions and the simulator charges by them, so a decision made on `nn` holds on `core`.

Two kinds of function: *instructions* (`matmul_ps`, `engine_ps`, `dma_*`), which the simulator's clock calls, and *work*
(`gemm_work`, `drain_work`, `elementwise_work`), closed forms of the instruction streams that lowering makes of a whole
layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine.description import LaneEngine, Machine

PS_PER_S = 1_000_000_000_000

EngineName = Literal["tensor", "scalar", "vector"]
LaneEngineName = Literal["scalar", "vector"]


class Issue(NamedTuple):
    """Time of one instruction. The engine takes its next one `occupancy` ps after it took this one; the result is
    there for others `occupancy + latency` ps after."""

    occupancy: int
    latency: int


def service_ps(size_bytes: int, bytes_per_s: int) -> int:
    """Time in which a server of the given rate serves `size_bytes`, rounded up."""
    return -(-size_bytes * PS_PER_S // bytes_per_s)


def bytes_within(time_ps: int, bytes_per_s: int) -> int:
    """The most bytes a server of the given rate serves within `time_ps`: the inverse of `service_ps`."""
    return time_ps * bytes_per_s // PS_PER_S


def matmul_ps(machine: Machine, columns: int) -> Issue:
    """One matmul instruction that moves `columns` columns (1 to `moving_columns_max`) past a loaded stationary operand.

    The load of the next stationary operand hides behind this one, whose occupancy is at least as long; see
    `stationary_load_ps`.
    """
    tensor, cycle = machine.tensor_engine, machine.clock.cycle_ps
    return Issue(max(columns, tensor.matmul_cycles_min) * cycle, tensor.access_cycles * cycle)


def stationary_load_ps(machine: Machine) -> int:
    """Load of a stationary operand; exposed only when the TensorEngine was idle before."""
    return machine.tensor_engine.stationary_load_cycles * machine.clock.cycle_ps


def stationary_exposed_ps(machine: Machine, previous_occupancy_ps: int) -> int:
    """What of a stationary load does not hide behind a previous matmul of the given occupancy (0: there was none)."""
    return max(0, stationary_load_ps(machine) - previous_occupancy_ps)


def lane_engine(machine: Machine, engine: LaneEngineName) -> LaneEngine:
    """The ScalarEngine or the VectorEngine of a machine, by name."""
    return machine.scalar_engine if engine == "scalar" else machine.vector_engine


def engine_ps(machine: Machine, engine: LaneEngineName, elements_per_partition: int) -> Issue:
    """One ScalarEngine or VectorEngine instruction over `elements_per_partition` elements in each of at most `lanes`
    partitions.

    Its access time is part of the occupancy: an instruction begins when the one before it has written its result, so
    program order alone orders instructions of one engine.
    """
    unit = lane_engine(machine, engine)
    cycles = unit.access_cycles + -(-elements_per_partition // unit.elements_per_lane_per_cycle)
    return Issue(cycles * machine.clock.cycle_ps, 0)


def semaphore_ps(machine: Machine) -> int:
    """From a signal to the wait it ends, on another engine."""
    return machine.clock.semaphore_cycles * machine.clock.cycle_ps


def dma_fixed_ps(machine: Machine) -> int:
    """From the issue of a DMA to its first byte. Transfers of one queue overlap this time, and arrive in order."""
    return machine.dma.fixed_ps


def dma_quantum_bytes(machine: Machine) -> int:
    """Transfers that share a server take turns of this many bytes."""
    return machine.dma.quantum_bytes


def dma_bytes_charged(machine: Machine, contiguous_run_bytes: int, total_bytes: int) -> int:
    """Bytes a transfer is charged for: each contiguous run is rounded up to whole bursts.

    Raises `NeuronError` if the run is not positive.
    """
    if contiguous_run_bytes <= 0:
        raise NeuronError(f"a DMA's contiguous run must be positive, got {contiguous_run_bytes} bytes")
    burst = machine.dma.burst_bytes
    runs, rest = divmod(total_bytes, contiguous_run_bytes)
    return runs * _round_up(contiguous_run_bytes, burst) + _round_up(rest, burst)


def core_dma_bytes_per_s(machine: Machine) -> int:
    """What one core's DMA engines move together."""
    return machine.dma.bytes_per_s_per_core


def dram_bytes_per_s(machine: Machine) -> int:
    """What one chip's DRAM delivers to all its cores together."""
    return machine.dram.effective_bytes_per_s


def chip_link_bytes_per_s(machine: Machine) -> int:
    """One direction of the link between neighbouring chips."""
    return machine.chip_link.bytes_per_s


def host_link_bytes_per_s(machine: Machine) -> int:
    """One direction of the link to the host."""
    return machine.host_link.bytes_per_s


def dma_alone_ps(machine: Machine, charged_bytes: int) -> int:
    """A DMA between DRAM and SBUF, or between two SBUFs of a chip, with nothing else going on: issue to last byte."""
    rate = min(core_dma_bytes_per_s(machine), dram_bytes_per_s(machine))
    return dma_fixed_ps(machine) + service_ps(charged_bytes, rate)


# Work of whole layers


@dataclass(frozen=True, slots=True)
class Work:
    """How long each engine of one core is busy, picoseconds, and what its DMA moves, bytes (charged in bursts)."""

    tensor_ps: int = 0
    scalar_ps: int = 0
    vector_ps: int = 0
    dma_bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tensor_ps + other.tensor_ps,
            self.scalar_ps + other.scalar_ps,
            self.vector_ps + other.vector_ps,
            self.dma_bytes + other.dma_bytes,
        )

    def times(self, count: int) -> Work:
        """This work `count` times over."""
        return Work(self.tensor_ps * count, self.scalar_ps * count, self.vector_ps * count, self.dma_bytes * count)

    @property
    def bottleneck_ps(self) -> int:
        """Time of the busiest compute engine: what a long, well overlapped stream of this work takes. DMA is not in
        it.
        """
        return max(self.tensor_ps, self.scalar_ps, self.vector_ps)


def moving_tiles(machine: Machine, extents: Sequence[int]) -> list[int]:
    """How much of each moving axis (outermost first) one matmul takes: whole inner axes, then as many rows as fill it
    evenly.
    """
    taken = [1] * len(extents)
    room = machine.tensor_engine.moving_columns_max
    for axis in reversed(range(len(extents))):
        if extents[axis] > room:
            taken[axis] = ceil_div(extents[axis], ceil_div(extents[axis], room))
            break
        taken[axis] = extents[axis]
        room //= extents[axis]
    return taken


def moving_columns(machine: Machine, extents: Sequence[int]) -> list[tuple[int, int]]:
    """The matmuls that move a block of these extents once: `(how many, columns of each)`."""
    tiles = [(1, 1)]
    for extent, taken in zip(extents, moving_tiles(machine, extents), strict=True):
        full, rest = divmod(extent, taken)
        pieces = [(full, taken)] + ([(1, rest)] if rest else [])
        tiles = [(count * n, columns * size) for count, columns in tiles for n, size in pieces]
    return tiles


def moving_ps(machine: Machine, extents: Sequence[int]) -> int:
    """TensorEngine time to move a block of these extents past one stationary operand."""
    return sum(n * matmul_ps(machine, columns).occupancy for n, columns in moving_columns(machine, extents))


def gemm_work(
    machine: Machine, contraction: int, stationary_columns: int, moving: Sequence[int], taps: int = 1
) -> Work:
    """A product: `contraction` in tiles of 128 rows for each of `taps`, `stationary_columns` in tiles of 64, `moving`
    as `moving_tiles` says.

    A convolution is one: its output channels stand still, its output positions (batch, height, width) move, once per
    tap. The result has `stationary_columns` partitions; taking it out of PSUM is not in this (`drain_work`).
    """
    tensor = machine.tensor_engine
    tiles = ceil_div(contraction, tensor.rows) * taps * ceil_div(stationary_columns, tensor.columns)
    return Work(tensor_ps=tiles * moving_ps(machine, moving))


def drain_work(machine: Machine, engine: LaneEngineName, stationary_columns: int, moving: Sequence[int]) -> Work:
    """One instruction over each tile of `gemm_work`'s result, as PSUM holds them."""
    time = sum(n * engine_ps(machine, engine, columns).occupancy for n, columns in moving_columns(machine, moving))
    return lane_work(engine, ceil_div(stationary_columns, machine.tensor_engine.columns) * time)


def elementwise_work(machine: Machine, engine: LaneEngineName, rows: int, columns: int, passes: int = 1) -> Work:
    """`passes` instructions over each tile of 128 partitions by `columns` elements of SBUF data of `rows` partitions in
    all.
    """
    tiles = ceil_div(rows, lane_engine(machine, engine).lanes)
    return lane_work(engine, tiles * passes * engine_ps(machine, engine, columns).occupancy)


def lane_work(engine: LaneEngineName, time_ps: int) -> Work:
    """`time_ps` of one lane engine."""
    return Work(scalar_ps=time_ps) if engine == "scalar" else Work(vector_ps=time_ps)


def ceil_div(a: int, b: int) -> int:
    """`a / b` rounded up."""
    return -(-a // b)


def _round_up(a: int, unit: int) -> int:
    return -(-a // unit) * unit
