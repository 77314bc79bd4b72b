"""What lives when: the buffers of a stage's sequential code with their live ranges over its statements."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from xdsl.dialects import affine
from xdsl.ir import Block, Operation

from neuron_mlir.dialects.core.instruction import Instruction
from neuron_mlir.dialects.core.memory import AllocOp, Buffer, EngineOp, buffer_bytes, space_name
from neuron_mlir.dialects.pipe.ops import LoadOp, RunOp, StageOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core._affine import Loop, loops_around, read_loop, statements

LARGE_LOOP = 6
"""A loop that makes more buffers than this is several statements: those that are not in use together share bytes."""


@dataclass(eq=False)
class Local:
    """A `core.alloc` of a stage. Times number the statements of load and run, both ends included; those of large loops
    one by one.
    """

    op: AllocOp
    space: str
    lower: int
    upper: int
    loops: list[Loop] = field(default_factory=list)
    """Loops around the alloc, the outer one first."""
    resident: bool = False
    """Declared by the stage itself: alive always, across requests."""
    per_request: bool = False
    """Made at the top level of `run`: once for each request."""
    dma_filled: bool = False
    """Whether a DMA writes it: its latency is worth hiding."""
    dma_used: bool = False
    """Whether a DMA writes or reads it."""

    @cached_property
    def type(self) -> Buffer:
        """Type as written in the code, without slots."""
        return self.op.type

    @cached_property
    def bytes(self) -> int:
        """Bytes of one slot: per partition in SBUF and PSUM, in all in DRAM."""
        return buffer_bytes(self.type)

    @property
    def label(self) -> str:
        """Its name."""
        return self.op.label.data

    @cached_property
    def instances(self) -> int:
        """How many fresh buffers the alloc stands for in one request."""
        total = 1
        for loop in self.loops:
            total *= loop.trips
        return total


@dataclass(eq=False)
class StageCode:
    """A stage as allocation sees it: statements on one time line, load first, and its buffers."""

    stage: StageOp
    load: LoadOp
    run: RunOp
    statements: list[Operation] = field(default_factory=list)
    load_end: int = 0
    """Time of the first statement of `run`."""
    locals: list[Local] = field(default_factory=list)
    spans: dict[Operation, tuple[int, int]] = field(default_factory=dict)
    """First and last time of each top-level statement."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.sym_name.data

    @property
    def end(self) -> int:
        """The last time."""
        return max(0, len(self.statements) - 1)

    def of_space(self, space: str) -> list[Local]:
        """The buffers in `sbuf`, `psum` or `dram`, in program order."""
        return [local for local in self.locals if local.space == space]


def read_stage(stage: StageOp) -> StageCode:
    """The buffers and times of a stage in memory form; an alloc without uses is dropped.

    Raises `NeuronError` for code that is scheduled already.
    """
    ops = list(stage.body.block.ops)
    load = next(op for op in ops if isinstance(op, LoadOp))
    run = next(op for op in ops if isinstance(op, RunOp))
    code = StageCode(stage, load, run)
    known: dict[Operation, Local] = {}
    for op in ops:
        if isinstance(op, AllocOp):
            known[op] = Local(op, _space(op), 0, 0, resident=True)
    loops: dict[Operation, Loop] = {}
    for block in (load.body.block, run.body.block):
        _read_block(code, block, known, loops)
        if block is load.body.block:
            code.load_end = len(code.statements)
    for local in known.values():
        if local.resident:
            local.lower, local.upper = 0, code.end
        elif not local.op.result.uses:
            local.op.detach()
            local.op.erase()
            continue
        code.locals.append(local)
    return code


def _read_block(code: StageCode, block: Block, known: dict[Operation, Local], loops: dict[Operation, Loop]) -> None:
    for top in statements(block):
        if isinstance(top, EngineOp):
            raise NeuronError(
                "the code is scheduled already", op=top, advice="core-allocate comes before core-schedule"
            )
        if isinstance(top, AllocOp):
            known[top] = Local(top, _space(top), -1, -1, per_request=block is code.run.body.block)
            continue
        first = len(code.statements)
        _Reader(code, block, known, loops).statement(top)
        code.spans[top] = first, len(code.statements) - 1


@dataclass
class _Reader:
    """Puts statements on the time line. `inside` are the large loops around, with the buffers from outside each that it
    touches: they are alive all through it, as its iterations follow each other.
    """

    code: StageCode
    block: Block
    known: dict[Operation, Local]
    loops: dict[Operation, Loop]
    inside: list[tuple[Operation, dict[Local, None]]] = field(default_factory=list)

    def statement(self, op: Operation) -> None:
        """A loop, an instruction or, in a large loop, an alloc."""
        if isinstance(op, affine.ForOp) and sum(isinstance(o, AllocOp) for o in op.walk()) > LARGE_LOOP:
            self.large_loop(op)
            return
        if isinstance(op, AllocOp):
            self.alloc(op)
            return
        time = len(self.code.statements)
        self.code.statements.append(op)
        for inner in op.walk():
            if isinstance(inner, AllocOp):
                self.alloc(inner)
            elif isinstance(inner, Instruction):
                self.touch(inner, time)

    def alloc(self, op: AllocOp) -> None:
        around = loops_around(op, self.block)
        self.known[op] = Local(op, _space(op), -1, -1, [_loop(loop, self.loops) for loop in around])

    def large_loop(self, op: affine.ForOp) -> None:
        first = len(self.code.statements)
        touched: dict[Local, None] = {}
        self.inside.append((op, touched))
        for child in statements(op.body.block):
            self.statement(child)
        self.inside.pop()
        for local in touched:
            local.lower = first if local.lower < 0 else min(local.lower, first)
            local.upper = max(local.upper, len(self.code.statements) - 1)

    def touch(self, op: Instruction, time: int) -> None:
        is_dma = op.ENGINES[0].startswith("dma")
        for position, buffer in enumerate(op.buffers):
            local = self.known.get(cast(Operation, buffer.owner))
            if local is None:
                continue
            local.dma_used |= is_dma
            local.dma_filled |= is_dma and position < op.WRITES
            around = {loop.op for loop in local.loops}
            outer = next((touched for loop, touched in self.inside if loop not in around), None)
            if outer is not None:
                outer[local] = None
            else:
                local.lower = time if local.lower < 0 else local.lower
                local.upper = max(local.upper, time)


def _loop(op: affine.ForOp, loops: dict[Operation, Loop]) -> Loop:
    if op not in loops:
        loops[op] = read_loop(op, len(loops) + 1)
    return loops[op]


def _space(op: AllocOp) -> str:
    return space_name(op.type.memory_space)
