"""The cost model: what each instruction takes, in integer picoseconds, as pure functions of a `Machine`.

Passes estimate with these functions and the simulator charges by them, so a decision made on `nn` holds on `core`.

Two kinds of function: *instructions* (`matmul_ps`, `engine_ps`, `dma_*`), which the simulator's clock calls, and *work*
(`gemm_work`, `conv_work`, `elementwise_work`), closed forms of the instruction streams that lowering makes of a whole
layer.
"""

from __future__ import annotations

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


def moving_ps(machine: Machine, columns: int) -> int:
    """TensorEngine time to move `columns` columns past one stationary operand, in matmuls of at most
    `moving_columns_max`.
    """
    limit = machine.tensor_engine.moving_columns_max
    full, rest = divmod(columns, limit)
    time = full * matmul_ps(machine, limit).occupancy
    return time + (matmul_ps(machine, rest).occupancy if rest else 0)


def gemm_work(machine: Machine, contraction: int, stationary_columns: int, moving_columns: int) -> Work:
    """A product: `contraction` in tiles of 128 rows, `stationary_columns` in tiles of 64, `moving_columns` in tiles of
    512.

    The result has `stationary_columns` partitions of `moving_columns` elements; taking it out of PSUM is not in this
    (`drain_work`).
    """
    tensor = machine.tensor_engine
    tiles = _ceil_div(contraction, tensor.rows) * _ceil_div(stationary_columns, tensor.columns)
    return Work(tensor_ps=tiles * moving_ps(machine, moving_columns))


def conv_work(
    machine: Machine,
    *,
    input_channels: int,
    output_channels: int,
    kernel: tuple[int, int],
    output: tuple[int, int],
    batch: int = 1,
    groups: int = 1,
) -> Work:
    """A convolution as one matmul per tap, channel tile and block of whole output rows.

    `input_channels` and `output_channels` are of all groups together, `kernel` and `output` are (height, width).
    Channels in groups of fewer than 128 rows are not packed.
    """
    height, width = output
    limit = machine.tensor_engine.moving_columns_max
    if width > limit:
        image = height * moving_ps(machine, width)
    else:
        rows = max(1, limit // width)
        full, rest = divmod(height, rows)
        image = full * matmul_ps(machine, rows * width).occupancy
        image += matmul_ps(machine, rest * width).occupancy if rest else 0
    tensor = machine.tensor_engine
    tiles = _ceil_div(input_channels // groups, tensor.rows) * _ceil_div(output_channels // groups, tensor.columns)
    return Work(tensor_ps=batch * groups * tiles * kernel[0] * kernel[1] * image)


def drain_work(machine: Machine, engine: LaneEngineName, rows: int, columns: int, passes: int = 1) -> Work:
    """Taking a result of `rows` partitions by `columns` elements out of PSUM, in tiles of 64 x 512, `passes` times
    over.
    """
    tensor = machine.tensor_engine
    full, rest = divmod(columns, tensor.moving_columns_max)
    time = full * engine_ps(machine, engine, tensor.moving_columns_max).occupancy
    time += engine_ps(machine, engine, rest).occupancy if rest else 0
    return lane_work(engine, _ceil_div(rows, tensor.columns) * time * passes)


def elementwise_work(
    machine: Machine, engine: LaneEngineName, rows: int, columns: int, passes: int = 1, chunk: int = 2048
) -> Work:
    """`passes` instructions over SBUF data of `rows` partitions (in tiles of 128) by `columns` elements (in pieces of
    `chunk`).
    """
    unit = lane_engine(machine, engine)
    full, rest = divmod(columns, chunk)
    time = full * engine_ps(machine, engine, chunk).occupancy
    time += engine_ps(machine, engine, rest).occupancy if rest else 0
    return lane_work(engine, _ceil_div(rows, unit.lanes) * time * passes)


def lane_work(engine: LaneEngineName, time_ps: int) -> Work:
    """`time_ps` of one lane engine."""
    return Work(scalar_ps=time_ps) if engine == "scalar" else Work(vector_ps=time_ps)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(a: int, unit: int) -> int:
    return -(-a // unit) * unit
