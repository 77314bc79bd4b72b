"""Reading a memory-form module: rings, semaphores and stages, each replica of a stage for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from xdsl.dialects import affine
from xdsl.ir import Block, Operation, SSAValue
from xdsl.ir.affine import AffineBinaryOpExpr, AffineBinaryOpKind, AffineConstantExpr, AffineExpr

from neuron_mlir.dialects.core.access import integers
from neuron_mlir.dialects.core.instruction import Instruction
from neuron_mlir.dialects.core.memory import (
    AllocOp,
    Buffer,
    ConstOp,
    EngineOp,
    buffer_type,
    space_name,
)
from neuron_mlir.dialects.core.movement import SemaphoreOp, SignalOp, WaitOp
from neuron_mlir.dialects.pipe.ops import InputOp, LoadOp, OutputOp, RingOp, RunOp, StageOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.program import (
    HostPort,
    Loop,
    Memory,
    Program,
    Semaphore,
    Step,
    Storage,
    Stream,
    Touch,
    Turns,
)


class ProgramReader:
    """Reads one program; see `read_program`."""

    def __init__(self, program: Program):
        self.program = program
        self.storage_of: dict[SSAValue, Storage] = {}
        self.lanes_of: dict[SSAValue, list[Storage]] = {}
        self.constants: dict[tuple[ConstOp, Memory], Storage] = {}
        """What replicas on one chip have in common."""
        self.counters_of: dict[SSAValue, _Counters] = {}
        self.ring_depth: dict[Storage, int] = {}
        self.widened: dict[Storage, tuple[int, int]] = {}
        """Rings with more slots than their depth says (that is, and how many): those handed over in parts, in code
        without semaphores.
        """
        self.loops = 0
        self.replica, self.replicas, self.dram_base = 0, 1, 0
        """Of the stage being read."""
        self.variables: dict[SSAValue, str] = {}

    def read(self) -> Program:
        program = self.program
        program.scheduled = any(isinstance(op, EngineOp) for op in program.op.walk())
        for op in program.op.body.block.ops:
            if isinstance(op, RingOp):
                self.read_ring(op)
            elif isinstance(op, SemaphoreOp):
                self.add_semaphores(op, op.places)
            elif isinstance(op, InputOp) and op.ring is not None:
                program.inputs += self.ports(op, op.ring, op.full, op.credit, writes=True)
            elif isinstance(op, OutputOp):
                program.outputs += self.ports(op, op.source, op.full, op.credit, writes=False)
            elif isinstance(op, StageOp):
                for replica in range(len(op.core_list())):
                    self.read_stage(op, replica)
        self.check_semaphores()
        return program

    def read_ring(self, op: RingOp) -> None:
        space = space_name(op.type.memory_space)
        addresses = op.address_list() or (None,) * op.lanes
        lanes: list[Storage] = []
        for number, (place, address) in enumerate(zip(op.place_list(), addresses, strict=True)):
            label = op.label.data if op.lanes == 1 else f"{op.label.data}[{number}]"
            depth = op.depth.value.data
            if op.parts > 1 and not self.program.scheduled:
                storage = self.widen(op, label, Memory(space, place))
                self.widened[storage] = depth, op.parts
            else:
                storage = self.add_storage(op.result, label, Memory(space, place), address)
            self.ring_depth[storage] = depth
            lanes.append(storage)
        self.lanes_of[op.result] = lanes

    def ports(
        self, op: InputOp | OutputOp, ring: SSAValue, full: SSAValue | None, credit: SSAValue | None, *, writes: bool
    ) -> list[HostPort]:
        """One for each lane of the ring."""
        if isinstance(ring.owner, RingOp) and ring.owner.parts > 1:
            raise NeuronError(
                f"the host hands over whole requests, and the ring of '{op.label.data}' has chunks", op=op
            )
        lanes = self.lanes_of[ring]
        found: list[HostPort] = []
        for lane, storage in enumerate(lanes):
            arriving, leaving = (full, credit) if writes else (credit, full)
            signalled = None if arriving is None else self.counters_of[arriving].of_signaller(lane, len(lanes), op)
            waited = None if leaving is None else self.counters_of[leaving].of_waiter(lane, len(lanes), op)
            if any(counters is not None and len(counters) != 1 for counters in (signalled, waited)):
                raise NeuronError(
                    f"'{op.label.data}' meets several replicas in one lane of its ring",
                    op=op,
                    advice="give the ring a lane for each replica",
                )
            gives = None if signalled is None else signalled[0]
            takes = None if waited is None else waited[0]
            pair = (gives, takes) if writes else (takes, gives)
            turns = Turns(lane, len(lanes))
            found.append(HostPort(op.label.data, storage, self.ring_depth[storage], *pair, turns))
        return found

    def widen(self, op: RingOp, label: str, memory: Memory) -> Storage:
        """A ring with a slot for each part of a request, for code in which nothing makes the writer wait."""
        shape = list(op.type.get_shape())
        shape[op.slot_axis] = op.parts
        type = buffer_type(shape, op.type.element_type, op.type.memory_space)
        storage = Storage(len(self.program.storages), label, type, memory, None, op)
        self.program.storages.append(storage)
        return storage

    def add_storage(self, value: SSAValue, label: str, memory: Memory, address: int | None) -> Storage:
        owner = cast(Operation, value.owner)
        storage = Storage(len(self.program.storages), label, cast(Buffer, value.type), memory, address, owner)
        self.program.storages.append(storage)
        self.storage_of[value] = storage
        self.check_capacity(storage)
        return storage

    def check_capacity(self, storage: Storage) -> None:
        machine = self.program.machine
        space = storage.memory.space
        if space == "dram":
            partitions, capacity = None, machine.dram.bytes_per_chip
        elif space == "sbuf":
            partitions, capacity = machine.sbuf.partitions, machine.sbuf.bytes_per_partition
        else:
            partitions, capacity = machine.psum.partitions, machine.psum.bytes_per_partition
        if partitions is not None and storage.shape[0] > partitions:
            raise NeuronError(
                f"buffer '{storage.label}' does not fit {storage.memory}",
                op=storage.op,
                resource="partitions",
                needed=storage.shape[0],
                available=partitions,
            )
        end = (storage.address or 0) + storage.bytes
        if end > capacity:
            raise NeuronError(
                f"capacity overflow: buffer '{storage.label}' does not fit {storage.memory}",
                op=storage.op,
                resource="bytes" if space == "dram" else "bytes per partition",
                needed=end,
                available=capacity,
                advice="smaller tiles, fewer resident weights, or more cores",
            )

    def add_semaphores(self, op: SemaphoreOp, places: Sequence[int | None]) -> None:
        counters = self.counters_of[op.result] = _Counters(op.by, len(places), {})
        for signaller, waiter in op.counters():
            label = op.label.data
            if counters.signallers > 1 or counters.waiters > 1:
                label += f"[{signaller}->{waiter}]"
            semaphore = Semaphore(len(self.program.semaphores), label, places[waiter], op)
            self.program.semaphores.append(semaphore)
            counters.table[signaller, waiter] = semaphore

    def read_stage(self, stage: StageOp, replica: int) -> None:
        program = self.program
        cores = stage.core_list()
        core, self.replica, self.replicas = cores[replica], replica, len(cores)
        self.dram_base = 0 if stage.dram_base is None else integers(stage.dram_base)[replica]
        if core not in program.cores:
            program.cores.append(core)
        for operand, arg in zip(stage.arguments, stage.body.block.args, strict=True):
            if operand in self.lanes_of:
                lanes = self.lanes_of[operand]
                self.storage_of[arg] = lanes[replica % len(lanes)]
            elif operand in self.counters_of:
                self.counters_of[arg] = self.counters_of[operand]
        streams: dict[str, Stream] = {}
        for op in stage.body.block.ops:
            if isinstance(op, AllocOp):
                self.alloc(op, core)
            elif isinstance(op, ConstOp):
                memory = Memory("dram", program.chip(core))
                storage = self.constants.get((op, memory))
                if storage is None:
                    storage = self.constants[op, memory] = self.add_storage(op.result, op.label.data, memory, None)
                    storage.constant = op
                self.storage_of[op.result] = storage
            elif isinstance(op, SemaphoreOp):
                self.add_semaphores(op, (core,))
            elif isinstance(op, LoadOp):
                self.read_streams(stage, op.body.block, core, streams, load=True)
            elif isinstance(op, RunOp):
                self.variables[op.request] = "r"
                if op.replica is not None:
                    self.variables[op.replica] = str(replica)
                self.read_streams(stage, op.body.block, core, streams, load=False)

    def alloc(self, op: AllocOp, core: int) -> None:
        space = space_name(op.type.memory_space)
        place = self.program.chip(core) if space == "dram" else core
        address = None if op.address is None else op.address.value.data
        if address is not None and space == "dram":
            address += self.dram_base
        self.add_storage(op.result, op.label.data, Memory(space, place), address)

    def read_streams(self, stage: StageOp, block: Block, core: int, streams: dict[str, Stream], load: bool) -> None:
        engines = [op for op in block.ops if isinstance(op, EngineOp)]
        if not engines:
            body = self.read_body(block, core, None)
            if body:
                stream = self.stream(stage, "sequential", core, streams)
                (stream.load if load else stream.run).extend(body)
            return
        others = [op for op in block.ops if not isinstance(op, EngineOp)]
        if others:
            raise NeuronError("instructions stand beside engine streams; all must be inside core.engine", op=others[0])
        for op in engines:
            name = op.engine.data
            stream = self.stream(stage, name, core, streams)
            target = stream.load if load else stream.run
            if target:
                raise NeuronError(f"two streams for engine {name} in stage @{stage.sym_name.data}", op=op)
            target.extend(self.read_body(op.body.block, core, name))

    def stream(self, stage: StageOp, engine: str, core: int, streams: dict[str, Stream]) -> Stream:
        if engine not in streams:
            name = stage.sym_name.data
            instance = name if self.replicas == 1 else f"{name}[{self.replica}]"
            turns = Turns(self.replica, self.replicas)
            stream = Stream(len(self.program.streams), f"@{instance} {engine}", engine, core, instance, turns)
            streams[engine] = stream
            self.program.streams.append(stream)
        return streams[engine]

    def read_body(self, block: Block, core: int, engine: str | None) -> list[Loop | Step]:
        body: list[Loop | Step] = []
        for op in block.ops:
            if isinstance(op, affine.ForOp):
                body.append(self.read_loop(op, core, engine))
            elif isinstance(op, Instruction):
                if engine is not None and not _runs_on(op, engine):
                    raise NeuronError(f"{op.name} cannot run on engine {engine}", op=op, needed=op.engine)
                body.append(self.read_instruction(op))
            elif isinstance(op, AllocOp):
                self.alloc(op, core)
            elif isinstance(op, WaitOp):
                semaphore = self.waited(op)
                if semaphore.core != core:
                    raise NeuronError(
                        f"stage on core {core} waits for semaphore '{semaphore.label}' of core {semaphore.core}",
                        op=op,
                        advice="a stream waits for semaphores of its own core only; signals may cross",
                    )
                names = tuple(self.variables[value] for value in op.indices)
                body.append(Step(op, names, semaphore=semaphore, value=op.value.data.results[0]))
            elif isinstance(op, SignalOp):
                counters = self.own(op.semaphore).of_signaller(self.replica, self.replicas, op)
                body += [Step(op, (), semaphore=semaphore) for semaphore in counters]
            elif not isinstance(op, affine.YieldOp):
                raise NeuronError(f"{op.name} is not an instruction", op=op, advice="lower it with core-lower")
        return body

    def own(self, value: SSAValue) -> _Counters:
        """The counters of a semaphore; one of the stage itself is this replica's."""
        counters = self.counters_of[value]
        if isinstance(value.owner, SemaphoreOp):
            return _Counters(1, 1, {(0, 0): counters.table[0, 0]}, local=True)
        return counters

    def waited(self, op: WaitOp) -> Semaphore:
        found = self.own(op.semaphore).of_waiter(self.replica, self.replicas, op)
        number = 0 if op.signaller is None else op.signaller.value.data
        if not 0 <= number < len(found):
            raise NeuronError(
                "a wait for a replica that does not signal", op=op, needed=f"signaller {number}", available=len(found)
            )
        return found[number]

    def read_loop(self, op: affine.ForOp, core: int, engine: str | None) -> Loop:
        lower, upper = op.lowerBoundMap.data, op.upperBoundMap.data
        if lower.num_dims or upper.num_dims or len(lower.results) != 1 or len(upper.results) != 1:
            raise NeuronError("loop bounds must be constants", op=op)
        # Replicas read the same loops again, with names of their own.
        self.loops += 1
        variable = f"i{self.loops}"
        self.variables[op.body.block.args[0]] = variable
        start, stop = lower.eval([], [])[0], upper.eval([], [])[0]
        loop = Loop(variable, start, stop, op.step.value.data)
        loop.body = self.read_body(op.body.block, core, engine)
        return loop

    def read_instruction(self, op: Instruction) -> Step:
        names = tuple(self.variables[value] for value in op.indices)
        touches = tuple(
            Touch(
                role,
                self.storage_of[buffer],
                self.offsets(op, self.storage_of[buffer], access.map.data.results),
                access.shape(),
                access.steps(),
                position < op.WRITES,
            )
            for position, (role, buffer, access) in enumerate(
                zip(op.role_names(), op.buffers, op.accesses, strict=True)
            )
        )
        return Step(op, names, touches)

    def offsets(self, op: Instruction, storage: Storage, offsets: tuple[AffineExpr, ...]) -> tuple[AffineExpr, ...]:
        """Of an access, in a ring with more slots than its depth as if that were its depth."""
        if storage not in self.widened:
            return offsets
        depth, slots = self.widened[storage]
        slot = offsets[1]
        modulus = slot.rhs if isinstance(slot, AffineBinaryOpExpr) and slot.kind == AffineBinaryOpKind.Mod else None
        if not isinstance(modulus, AffineConstantExpr) or modulus.value != depth:
            raise NeuronError(
                f"the slot of ring '{storage.label}', whose requests are handed over in chunks, is not a number modulo "
                "its depth",
                op=op,
                needed=f"mod {depth}",
            )
        assert isinstance(slot, AffineBinaryOpExpr)
        return (offsets[0], slot.lhs % slots, *offsets[2:])

    def check_semaphores(self) -> None:
        program = self.program
        producers: dict[Semaphore, Stream | str] = {}
        for stream in program.streams:
            for step, _, _ in stream.steps():
                if not isinstance(step.op, SignalOp):
                    continue
                assert step.semaphore is not None
                known = producers.setdefault(step.semaphore, stream)
                if known is not stream:
                    raise NeuronError(
                        f"semaphore '{step.semaphore.label}' is signalled by two streams, {_name(known)} and "
                        f"{stream.name}",
                        op=step.op,
                        advice="one semaphore per producing stream",
                    )
        per_core: dict[int, int] = {}
        for semaphore in program.semaphores:
            if semaphore.core is not None:
                per_core[semaphore.core] = per_core.get(semaphore.core, 0) + 1
        limit = program.machine.chip.semaphores_per_core
        for core, count in sorted(per_core.items()):
            if count > limit:
                raise NeuronError(
                    f"too many semaphores on core {core}",
                    op=program.op,
                    resource="semaphores per core",
                    needed=count,
                    available=limit,
                    advice="fewer streams into and out of the stage",
                )


@dataclass(frozen=True)
class _Counters:
    """The semaphores that a `core.semaphore` stands for, by signaller and waiter."""

    signallers: int
    waiters: int
    table: dict[tuple[int, int], Semaphore]
    local: bool = False
    """Of the stage that uses it, one for each replica."""

    def of_signaller(self, number: int, count: int, op: Operation) -> list[Semaphore]:
        """Those that signaller `number` of `count` signals. Raises `NeuronError` when there are not so many."""
        self.check(self.signallers, count, "signallers", op)
        return [s for (i, _), s in self.table.items() if self.local or i == number]

    def of_waiter(self, number: int, count: int, op: Operation) -> list[Semaphore]:
        """Those that waiter `number` of `count` waits for. Raises `NeuronError` when there are not so many."""
        self.check(self.waiters, count, "waiters", op)
        return [s for (_, j), s in self.table.items() if self.local or j == number]

    def check(self, known: int, count: int, what: str, op: Operation) -> None:
        if known != count and not self.local:
            raise NeuronError(f"the semaphore is for {known} {what}, and there are {count}", op=op)


def _name(producer: Stream | str) -> str:
    return producer if isinstance(producer, str) else producer.name


def _runs_on(op: Instruction, engine: str) -> bool:
    if engine.startswith("dma"):
        return op.ENGINES[0].startswith("dma")
    return engine in op.ENGINES
