"""The new code: one `core.engine` per stream, with the loops it takes part in, its waits and its signals."""

from __future__ import annotations

from xdsl.dialects import affine
from xdsl.dialects.builtin import IndexType, UnknownLoc
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.ir.affine import AffineMap

from neuron_mlir.dialects.core.memory import EngineOp
from neuron_mlir.dialects.core.movement import SemaphoreOp, SignalOp, WaitOp
from neuron_mlir.passes.core._affine import Form, expression_of
from neuron_mlir.passes.core.scheduling.counts import Counts
from neuron_mlir.passes.core.scheduling.edges import Edges
from neuron_mlir.passes.core.scheduling.tree import REPLICA, REQUEST, Body, StageTree, Statement


class Emitter:
    """Writes the engine streams of one stage; counts what it writes."""

    def __init__(
        self, tree: StageTree, edges: dict[Body, Edges], counts: Counts, ring_semaphores: dict[object, SSAValue]
    ):
        self.tree = tree
        self.edges = edges
        self.counts = counts
        self.ring_semaphores = ring_semaphores
        self.semaphores: dict[str, SSAValue] = {}
        self.variables: dict[SSAValue, int] = {
            loop.op.body.block.args[0]: number for number, loop in tree.loops.items() if loop.op is not None
        }
        self.streams = 0
        self.waits = 0
        self.signals = 0

    def emit(self) -> None:
        """Replace the sequential code of the stage."""
        tree = self.tree
        for engine in self.counts.used():
            op = SemaphoreOp(engine)
            op.location = tree.stage.location
            op.result.name_hint = engine
            tree.stage.body.block.insert_op_before(op, tree.load_op)
            self.semaphores[engine] = op.result
        for body, holder in ((tree.load, tree.load_op), (tree.run, tree.run_op)):
            block = holder.body.block
            old = list(block.ops)
            new: list[Operation] = []
            for engine in tree.engines:
                if not any(engine in statement.engines for statement in body.statements):
                    continue
                stream = Block()
                values: dict[int, SSAValue] = {}
                if body is tree.run:
                    values[REQUEST] = tree.run_op.request
                    if tree.run_op.replica is not None:
                        values[REPLICA] = tree.run_op.replica
                self.body(body, engine, stream, values)
                op = EngineOp(engine, Region(stream))
                op.location = holder.location
                new.append(op)
            for op in reversed(old):
                if op.parent is block:
                    op.detach()
                    op.erase()
            block.add_ops(new)
            self.streams += len(new)

    def body(self, body: Body, engine: str, block: Block, values: dict[int, SSAValue]) -> None:
        """The part of a body that an engine runs."""
        for statement in body.statements:
            if engine not in statement.engines:
                continue
            self.before(statement, engine, block, values)
            if statement.inner is not None:
                self.loop(statement, engine, block, values)
            elif statement.op is not None:
                self.move(statement.op, block, values)
            if self.counts.signals(statement, engine):
                self.signal(self.semaphores[engine], statement, block)
            for key in statement.release:
                self.signal(self.ring_semaphores[key], statement, block)

    def before(self, statement: Statement, engine: str, block: Block, values: dict[int, SSAValue]) -> None:
        """The waits of an engine before a statement."""
        for wanted in statement.acquire.get(engine, []):
            semaphore = self.ring_semaphores[wanted.key]
            self.wait(semaphore, wanted.value, statement, block, values, wanted.signaller)
        sources = self.edges[statement.body].get((statement.position, engine), {})
        for other in self.tree.engines:
            if other in sources:
                value = self.counts.value(statement.body, other, sources[other])
                self.wait(self.semaphores[other], value, statement, block, values)

    def loop(self, statement: Statement, engine: str, block: Block, values: dict[int, SSAValue]) -> None:
        """The engine's copy of a loop."""
        old = statement.op
        assert isinstance(old, affine.ForOp) and statement.inner is not None
        inner = Block(arg_types=[IndexType()])
        inner.args[0].name_hint = old.body.block.args[0].name_hint
        loop = statement.inner.loops[-1]
        self.body(statement.inner, engine, inner, {**values, loop.number: inner.args[0]})
        inner.add_op(affine.YieldOp.get())
        new = affine.ForOp.from_region([], [], [], [], old.lowerBoundMap, old.upperBoundMap, Region(inner), loop.step)
        new.attributes.update(old.attributes)
        new.location = old.location
        block.add_op(new)

    def move(self, op: Operation, block: Block, values: dict[int, SSAValue]) -> None:
        """Take an instruction from the sequential code."""
        op.detach()
        op.operands = [
            values[self.variables[operand]] if operand in self.variables else operand for operand in op.operands
        ]
        block.add_op(op)

    def wait(
        self,
        semaphore: SSAValue,
        value: Form,
        statement: Statement,
        block: Block,
        values: dict[int, SSAValue],
        signaller: int = 0,
    ) -> None:
        """A wait with the location of what waits."""
        indices: list[SSAValue] = []
        expression = expression_of(value, values, indices)
        op = WaitOp(semaphore, AffineMap(len(indices), 0, (expression,)), indices, signaller)
        self.locate(op, statement)
        block.add_op(op)
        self.waits += 1

    def signal(self, semaphore: SSAValue, statement: Statement, block: Block) -> None:
        """A signal with the location of what it reports."""
        op = SignalOp(semaphore)
        self.locate(op, statement)
        block.add_op(op)
        self.signals += 1

    def locate(self, op: Operation, statement: Statement) -> None:
        """Give an op the location of a statement, or of what a hand-over follows."""
        position = statement.position
        while statement.op is None and position:
            position -= 1
            statement = statement.body.statements[position]
        op.location = UnknownLoc() if statement.op is None else statement.op.location
