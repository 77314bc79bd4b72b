"""Sequential code as a tree of statements, each with the engines it runs on and what it touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    buffer_bytes,
    element_bytes,
    space_name,
)
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.dialects.pipe.ops import LoadOp, RingOp, RunOp, StageOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core._affine import UNBOUNDED, Form, Loop, form_of, read_loop, statements

REQUEST = 0
"""Number of the request loop."""
REPLICA = -1
"""Stands for the number of the replica in the values that waits compare with."""


@dataclass(eq=False)
class Storage:
    """A buffer as the scheduler sees it: where it is, and what of it a byte offset means."""

    number: int
    value: SSAValue
    label: str
    memory: tuple[str, int]
    address: int | None
    bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Bytes along each dimension; 0 along the partitions."""
    constant: bool = False
    ring: bool = False
    parts: int = 1
    """Of a ring: the slots of a request."""


@dataclass(eq=False)
class Touch:
    """One access of an instruction."""

    storage: Storage
    offsets: tuple[Form, ...]
    extents: tuple[int, ...]
    """Elements from the first to the last taken along each dimension, both included."""
    write: bool
    variables: frozenset[int]
    bytes: tuple[int, int]
    """First byte and one past the last that any iteration touches (of each partition, in SBUF and PSUM)."""
    partitions: tuple[int, int]
    """First partition and one past the last; all in DRAM."""
    chunk: Form | None = None
    """Of a ring handed over in parts: which part of all requests it is, counted from the first."""


@dataclass(eq=False)
class Use:
    """An access with the instruction it belongs to."""

    touch: Touch
    engine: str
    statement: Statement
    guards: set[str] = field(default_factory=lambda: set())
    """Engines that a wait in a loop below the body being looked at has already brought up to this iteration."""


@dataclass(frozen=True)
class Acquisition:
    """A wait for another stage: the key of a ring's semaphore, which of its signallers, and the value it must have."""

    key: object
    signaller: int
    value: Form


@dataclass(eq=False)
class Statement:
    """An instruction, a loop as a whole, or (without an op) the point where a ring's slot is handed on."""

    body: Body
    position: int
    op: Operation | None
    engines: list[str]
    inner: Body | None = None
    uses: list[Use] = field(default_factory=list)
    """All accesses inside."""
    acquire: dict[str, list[Acquisition]] = field(default_factory=dict)
    """For an engine: what it waits for between stages."""
    release: list[object] = field(default_factory=list)
    """Keys of ring semaphores to signal."""
    after: list[tuple[str, Statement]] = field(default_factory=list)
    """Streams and their statements that a statement without op waits for."""


@dataclass(eq=False)
class Body:
    """Statements of the load, of the run, or of a loop. `loops` are those around, the outer one (the request loop)
    first.
    """

    loops: tuple[Loop, ...]
    parent: Statement | None
    statements: list[Statement] = field(default_factory=list)

    def renumber(self) -> None:
        """Set positions after statements were added."""
        for position, statement in enumerate(self.statements):
            statement.position = position


@dataclass(eq=False)
class StageTree:
    """A stage: both bodies, its engines in the order of first use, its loops by number and its buffers."""

    stage: StageOp
    load_op: LoadOp
    run_op: RunOp
    load: Body
    run: Body
    engines: list[str]
    loops: dict[int, Loop]
    storages: dict[SSAValue, Storage]

    @property
    def cores(self) -> tuple[int, ...]:
        """The core it runs on, or that of each replica."""
        return self.stage.core_list()


def engine_of(op: Instruction, storages: dict[SSAValue, Storage]) -> str:
    """The stream an instruction goes to. A DMA without a queue goes to queue 0, or to queue 1 when it writes DRAM or
    a ring.
    """
    if isinstance(op, DmaOp) and op.queue is None:
        target = storages[op.buffers[0]]
        return "dma1" if target.ring or target.memory[0] == "dram" else "dma0"
    return op.engine


def chunk_of(op: Instruction, storage: Storage, slot: AffineExpr, variables: Sequence[int]) -> Form:
    """The part of all requests that a slot of a ring handed over in parts holds: what it is before `mod`."""
    modulus = slot.rhs if isinstance(slot, AffineBinaryOpExpr) and slot.kind == AffineBinaryOpKind.Mod else None
    if isinstance(modulus, AffineConstantExpr) and modulus.value == storage.shape[1]:
        assert isinstance(slot, AffineBinaryOpExpr)
        chunk = form_of(slot.lhs, variables)
        if not chunk.atoms and dict(chunk.terms).get(REQUEST) == storage.parts and REPLICA not in chunk.variables():
            return chunk
    raise NeuronError(
        f"the slot of ring '{storage.label}' does not count the {storage.parts} chunks of each request",
        op=op,
        needed=f"(%r * {storage.parts} + ..) mod {storage.shape[1]}",
    )


def ancestor(statement: Statement, loops: int) -> Statement:
    """The statement around (or the same) whose body is inside exactly `loops` loops."""
    while len(statement.body.loops) > loops:
        assert statement.body.parent is not None
        statement = statement.body.parent
    return statement


class TreeReader:
    """Reads one stage."""

    def __init__(self, stage: StageOp, cores_per_chip: int):
        self.stage = stage
        self.chip = stage.core_list()[0] // cores_per_chip
        self.storages: dict[SSAValue, Storage] = {}
        self.engines: list[str] = []
        self.loops: dict[int, Loop] = {REQUEST: Loop(REQUEST, UNBOUNDED)}
        self.numbers: dict[SSAValue, int] = {}
        self.replica: SSAValue | None = None

    def read(self) -> StageTree:
        """The tree. Raises `NeuronError` for buffers without an address and for code that is scheduled already."""
        stage = self.stage
        ops = list(stage.body.block.ops)
        for operand, arg in zip(stage.arguments, stage.body.block.args, strict=True):
            owner = operand.owner
            if isinstance(owner, RingOp):
                # Replicas differ in their lanes only, and no lane shares bytes with anything else: the first stands for
                # all.
                address = owner.address_list()
                first = None if address is None else address[0]
                self.add(arg, owner.label.data, owner.type, owner.place_list()[0], first, owner, parts=owner.parts)
        for op in ops:
            if isinstance(op, AllocOp):
                place = self.chip if space_name(op.type.memory_space) == "dram" else None
                address = None if op.address is None else op.address.value.data
                if address is not None and place is not None and stage.dram_base is not None:
                    address += integers(stage.dram_base)[0]
                self.add(op.result, op.label.data, op.type, place, address, op)
            elif isinstance(op, ConstOp):
                self.add(op.result, op.label.data, op.type, self.chip, None, op, constant=True)
        load = next(op for op in ops if isinstance(op, LoadOp))
        run = next(op for op in ops if isinstance(op, RunOp))
        load_body = self.body(load.body.block, (), None)
        self.numbers[run.request] = REQUEST
        self.replica = run.replica
        run_body = self.body(run.body.block, (self.loops[REQUEST],), None)
        return StageTree(stage, load, run, load_body, run_body, self.engines, self.loops, self.storages)

    def add(
        self,
        value: SSAValue,
        label: str,
        type: Buffer,
        place: int | None,
        address: int | None,
        op: Operation,
        *,
        parts: int = 0,
        constant: bool = False,
    ) -> None:
        """Record a buffer."""
        space = space_name(type.memory_space)
        if address is None and not constant:
            raise NeuronError(f"buffer '{label}' has no address", op=op, advice="run core-allocate first")
        shape = tuple(type.get_shape())
        strides = [0] * len(shape)
        step = element_bytes(type.element_type)
        for axis in range(len(shape) - 1, -1 if space == "dram" else 0, -1):
            strides[axis] = step
            step *= shape[axis]
        self.storages[value] = Storage(
            len(self.storages),
            value,
            label,
            (space, self.stage.core_list()[0] if place is None else place),
            address,
            buffer_bytes(type),
            shape,
            tuple(strides),
            constant,
            parts > 0,
            max(parts, 1),
        )

    def body(self, block: Block, loops: tuple[Loop, ...], parent: Statement | None) -> Body:
        """The statements of a block."""
        body = Body(loops, parent)
        for op in statements(block):
            statement = Statement(body, len(body.statements), op, [])
            body.statements.append(statement)
            if isinstance(op, affine.ForOp):
                self.loop(op, statement, loops)
            elif isinstance(op, Instruction):
                self.instruction(op, statement)
            elif isinstance(op, EngineOp):
                raise NeuronError("the code is scheduled already", op=op)
            elif isinstance(op, AllocOp):
                raise NeuronError(f"buffer '{op.label.data}' has no address", op=op, advice="run core-allocate first")
            else:
                raise NeuronError(f"{op.name} is not an instruction", op=op, advice="lower it with core-lower")
        return body

    def loop(self, op: affine.ForOp, statement: Statement, loops: tuple[Loop, ...]) -> None:
        """Fill the statement of a loop."""
        loop = read_loop(op, len(self.loops))
        self.loops[loop.number] = loop
        self.numbers[op.body.block.args[0]] = loop.number
        inner = statement.inner = self.body(op.body.block, (*loops, loop), statement)
        for child in inner.statements:
            statement.uses += child.uses
            statement.engines += [engine for engine in child.engines if engine not in statement.engines]

    def instruction(self, op: Instruction, statement: Statement) -> None:
        """Fill the statement of an instruction."""
        engine = engine_of(op, self.storages)
        statement.engines = [engine]
        if engine not in self.engines:
            self.engines.append(engine)
        # The number of the replica only turns all accesses to a ring by the same number of slots: 0 tells as much.
        replacement = [
            AffineExpr.constant(0) if index is self.replica else AffineExpr.dimension(position)
            for position, index in enumerate(op.indices)
        ]
        variables = [REPLICA if index is self.replica else self.numbers[index] for index in op.indices]
        for position, (buffer, access) in enumerate(zip(op.buffers, op.accesses, strict=True)):
            storage = self.storages[buffer]
            if storage.constant:
                continue
            results = access.map.data.results
            if REPLICA in variables:
                results = tuple(expr.replace_dims_and_symbols(replacement, []) for expr in results)
            offsets = tuple(form_of(expr, variables) for expr in results)
            extents = tuple((n - 1) * s + 1 for n, s in zip(access.shape(), access.steps(), strict=True))
            touch = self.touch(storage, offsets, extents, position < op.WRITES)
            if storage.parts > 1:
                touch.chunk = chunk_of(op, storage, results[1], variables)
            statement.uses.append(Use(touch, engine, statement))

    def touch(self, storage: Storage, offsets: tuple[Form, ...], extents: tuple[int, ...], write: bool) -> Touch:
        """An access with the bytes and partitions that it can reach."""
        low = high = storage.address or 0
        partitions = 0, UNBOUNDED
        variables: set[int] = set()
        for axis, (offset, extent, stride) in enumerate(zip(offsets, extents, storage.strides, strict=True)):
            variables |= offset.variables()
            first, last = offset.range(self.loops)
            last += extent - 1
            if stride == 0 and axis == 0 and storage.memory[0] != "dram":
                partitions = first, last + 1
            low += first * stride
            high += min(last, storage.shape[axis] - 1) * stride
        item = storage.strides[-1]
        return Touch(storage, offsets, extents, write, frozenset(variables), (low, high + item), partitions)
