"""What each step of a stream costs: the machine's cost model applied to resolved instructions."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuron_mlir.dialects.core.movement import DmaOp, GatherOp
from neuron_mlir.machine import Machine, cost
from neuron_mlir.machine.topology import links_between
from neuron_mlir.simulator.program import Memory, Program, Semaphore, Step, Stream, Touch


@dataclass(frozen=True, eq=False)
class Server:
    """Something shared that moves bytes at a rate: a core's DMA engines, a chip's DRAM, a link, the host link.

    One object each (`StepCosts.server`), compared as such.
    """

    name: str
    bytes_per_s: int


@dataclass(frozen=True)
class Transfer:
    """A DMA: bytes charged (bursts counted), the servers it passes with how often it passes each, and its fixed
    time.
    """

    charged_bytes: int
    servers: tuple[tuple[Server, int], ...]
    fixed_ps: int
    dram_bytes: int
    quantum_bytes: int
    times: dict[int, tuple[tuple[Server, int], ...]] = field(
        default_factory=dict[int, "tuple[tuple[Server, int], ...]"], compare=False, repr=False
    )
    """By number of bytes, how long each server takes for them; filled by `times_of`."""

    def times_of(self, size: int) -> tuple[tuple[Server, int], ...]:
        """How long each server takes for so many bytes of the transfer, ps."""
        found = tuple((server, cost.service_ps(size * passes, server.bytes_per_s)) for server, passes in self.servers)
        self.times[size] = found
        return found

    def busy_ps(self) -> list[tuple[str, int]]:
        """How long each server is at work for it, quantum by quantum, by name."""
        full, rest = divmod(self.charged_bytes, self.quantum_bytes)
        found: list[tuple[str, int]] = []
        for server, passes in self.servers:
            time = full * cost.service_ps(self.quantum_bytes * passes, server.bytes_per_s)
            found.append((server.name, time + (cost.service_ps(rest * passes, server.bytes_per_s) if rest else 0)))
        return found


def contiguous_run(touch: Touch) -> int:
    """Bytes of the longest run of neighbouring elements an access takes, per partition in SBUF."""
    run = touch.storage.item_bytes
    expected = 1
    first = 0 if touch.storage.memory.space == "dram" else 1
    for axis in range(len(touch.sizes) - 1, first - 1, -1):
        size, step, extent = touch.sizes[axis], touch.strides[axis], touch.storage.shape[axis]
        if size == 1:
            if extent != 1:
                break
            continue
        if step != 1 or expected != 1:
            break
        run *= size
        expected = 1 if size == extent else 0
    return run


class StepCosts:
    """Costs of a program's steps, in picoseconds.

    Args:
        program: whose steps.
        servers: by name, those of other programs on the same machine, to be shared; new ones are added.
    """

    def __init__(self, program: Program, servers: dict[str, Server] | None = None):
        self.program = program
        self.machine: Machine = program.machine
        self.servers: dict[str, Server] = {} if servers is None else servers

    def server(self, name: str, rate: int) -> Server:
        """The server of that name, made on first use."""
        if name not in self.servers:
            self.servers[name] = Server(name, rate)
        return self.servers[name]

    def issue(self, step: Step, stream: Stream) -> tuple[int, int]:
        """Occupancy and latency of a compute instruction."""
        op = step.op
        if op.name == "core.matmul":
            moving = step.touches[2].sizes
            return cost.matmul_ps(self.machine, _count(moving[1:]))
        if op.name == "core.transpose":
            return cost.matmul_ps(self.machine, step.touches[1].sizes[0])
        # Inside an engine's stream that engine runs it; `on` of the instruction only says which one it prefers.
        engine = stream.engine
        assert engine in ("scalar", "vector"), f"{op.name} in stream {stream.name}"
        elements = max(_count(touch.sizes[1:]) for touch in step.touches)
        return cost.engine_ps(self.machine, engine, elements)

    def semaphore(self, semaphore: Semaphore, stream: Stream) -> int:
        """From a signal to the end of the wait, the way to another chip included."""
        delay = cost.semaphore_ps(self.machine)
        if semaphore.core is not None and semaphore.core != stream.core:
            delay += len(links_between(self.machine, stream.core, semaphore.core)) * self.machine.chip_link.fixed_ps
        return delay

    def transfer(self, step: Step, stream: Stream) -> Transfer | None:
        """The transfer of a DMA instruction; None for the others."""
        if isinstance(step.op, GatherOp):
            dst, table = step.touches[0], step.touches[1]
            total = _count(dst.sizes) * dst.storage.item_bytes
            charged = cost.dma_bytes_charged(self.machine, contiguous_run(table), total)
            return self.route(stream.core, table.storage.memory, dst.storage.memory, charged)
        if not isinstance(step.op, DmaOp):
            return None
        dst, src = step.touches
        total = _count(dst.sizes) * dst.storage.item_bytes
        run = min(contiguous_run(dst), contiguous_run(src))
        order = step.op.permutation()
        if order is not None:
            # Only a run along the innermost dimension, if that stays innermost, survives the reordering.
            inner = max((axis for axis, size in enumerate(src.sizes) if size > 1), default=0)
            stays = next((axis for axis in reversed(order) if src.sizes[axis] > 1), inner) == inner
            run = min(run, src.sizes[inner] * src.storage.item_bytes) if stays else src.storage.item_bytes
        charged = cost.dma_bytes_charged(self.machine, run, total)
        return self.route(stream.core, src.storage.memory, dst.storage.memory, charged)

    def route(self, core: int, source: Memory, target: Memory, charged: int) -> Transfer:
        """The servers between two memories."""
        machine = self.machine
        passes: dict[Server, int] = {}

        def use(server: Server) -> None:
            passes[server] = passes.get(server, 0) + 1

        use(self.server(f"dma of core {core}", cost.core_dma_bytes_per_s(machine)))
        dram = 0
        for memory in (source, target):
            if memory.space == "dram":
                use(self.server(f"dram of chip {memory.place}", cost.dram_bytes_per_s(machine)))
                dram += charged
        ends = [
            memory.place * machine.chip.cores if memory.space == "dram" else memory.place for memory in (source, target)
        ]
        fixed = cost.dma_fixed_ps(machine)
        for link in links_between(machine, ends[0], ends[1]):
            use(self.server(link.name, cost.chip_link_bytes_per_s(machine)))
            fixed += machine.chip_link.fixed_ps
        return Transfer(charged, tuple(passes.items()), fixed, dram, cost.dma_quantum_bytes(machine))

    def host_transfer(self, memory: Memory, size_bytes: int, direction: str) -> Transfer:
        """Between the host and a ring: the host link, and the chip's DRAM where the ring is in DRAM."""
        passes = [(self.server(f"host link {direction}", cost.host_link_bytes_per_s(self.machine)), 1)]
        dram = 0
        if memory.space == "dram":
            passes.append((self.server(f"dram of chip {memory.place}", cost.dram_bytes_per_s(self.machine)), 1))
            dram = size_bytes
        return Transfer(
            size_bytes, tuple(passes), cost.dma_fixed_ps(self.machine), dram, cost.dma_quantum_bytes(self.machine)
        )


def _count(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
