"""A block of `nn` ops as values that share SBUF: what `nn-rematerialize` hands to its solver, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from xdsl.dialects.builtin import IntegerAttr, i64
from xdsl.ir import Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.pipe.ops import StageOp
from neuron_mlir.errors import location_text
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import core_dma_bytes_per_s, service_ps
from neuron_mlir.passes.core.lowering.builder import Code
from neuron_mlir.passes.core.lowering.context import Context
from neuron_mlir.passes.core.lowering.plan import Plan
from neuron_mlir.passes.estimate import (
    TILE_BYTES,
    TILES_AT_ONCE,
    GroupEstimate,
    estimate_group,
    is_constant,
    is_large,
    stored_with_its_layer,
)

if TYPE_CHECKING:
    from neuron_mlir.solvers.rematerialize import Event, Node, Schedule

EXPOSED_PERCENT = 85
"""How much of a transfer computation does not hide, as `pipe-stage` has it."""
RECOMPUTED = "nn.recomputed"
"""Attribute of a copy of an op: which copy."""
VIEWS = (nn.ReshapeOp, nn.TransposeOp)


@dataclass(eq=False)
class Item:
    """A layer with its views and the cast it is stored by, or an argument of the block with its views."""

    ops: list[Operation]
    """In the order of the block; the layer first."""
    roots: list[SSAValue]
    """What is stored: results of the layer, or of the cast."""
    estimate: GroupEstimate | None = None
    inputs: list[int] = field(default_factory=list[int])
    spilled: dict[SSAValue, SSAValue] = field(default_factory=dict[SSAValue, SSAValue])
    copies: int = 0

    @property
    def is_argument(self) -> bool:
        """Whether it is an argument of the block."""
        return bool(self.roots) and isinstance(self.roots[0].owner, Block)

    @property
    def behind(self) -> list[Operation]:
        """Views of the roots."""
        layer = [] if self.is_argument else self.ops[:1]
        return [op for op in self.ops if op not in layer and not any(r in self.roots for r in op.results)]


@dataclass
class ValueGraph:
    """The items of a block in order: an argument before the first layer that reads it, at the end the terminator."""

    owner: Operation
    block: Block
    machine: Machine
    items: list[Item]
    size: dict[SSAValue, int]
    """Bytes per partition of each root, as `core-lower` will hold it; 0 for those that live in DRAM."""

    @staticmethod
    def of(owner: Operation, block: Block, machine: Machine) -> ValueGraph:
        """Raises `NeuronError` for an op that has no estimate."""
        context = Context(machine, Block(), Code(Block()), Code(Block()))
        # The plan of the lowering reads nothing of a stage but its block.
        plan = Plan(context, cast(StageOp, owner))
        plan.run()
        graph = ValueGraph(owner, block, machine, [], {})
        graph._group()
        for item in graph.items:
            for root in item.roots:
                graph.size[root] = 0 if root in context.in_dram else plan.bytes_per_partition(root)
        return graph

    def _group(self) -> None:
        home: dict[SSAValue, Item] = {}
        arguments = {argument: Item([], [argument]) for argument in self.block.args}
        for argument, item in arguments.items():
            home[argument] = item
        for op in self.block.ops:
            if is_constant(op):
                continue
            source = home.get(op.operands[0]) if op.operands else None
            if source is not None and isinstance(op, VIEWS):
                source.ops.append(op)
                home[op.results[0]] = source
                continue
            if source is not None and source.ops and isinstance(op, nn.CastOp) and stored_with_its_layer(op):
                source.ops.append(op)
                source.roots = [op.result]
                home[op.result] = source
                continue
            item = Item([op], list(op.results))
            read = [home[value] for value in dict.fromkeys(op.operands) if value in home]
            for other in read:
                if other not in self.items:
                    self.items.append(other)
            item.inputs = sorted({self._index(other) for other in read})
            if op is not self.block.last_op:
                item.estimate = estimate_group(self.machine, op)
            self.items.append(item)
            for result in op.results:
                home[result] = item

    def _index(self, item: Item) -> int:
        return next(i for i, other in enumerate(self.items) if other is item)

    def nodes(self, budget: int) -> tuple[Node, ...]:
        """The items as the solver takes them. A budget leaves the rest of SBUF to weights; of those that do not fit
        there, a recomputation reads its own again.
        """
        from neuron_mlir.solvers.rematerialize import Node

        resident = sum(item.estimate.resident_bytes for item in self.items if item.estimate)
        streamed = max(0, resident - max(0, self.machine.sbuf.bytes_per_partition - budget))
        found: list[Node] = []
        for item in self.items:
            size = sum(self.size[root] for root in item.roots)
            moved = self._exposed_ps(size * self.machine.sbuf.partitions)
            estimate = item.estimate
            if estimate is None:
                found.append(
                    Node(
                        self.label(item),
                        tuple(item.inputs),
                        size,
                        reload_ps=moved,
                        is_stored=item.is_argument,
                        can_spill=False,
                        can_recompute=False,
                    )
                )
                continue
            weights = estimate.weight_bytes * streamed // max(1, resident)
            traffic = self._exposed_ps(estimate.dram_bytes + estimate.work.dma_bytes + weights)
            found.append(
                Node(
                    self.label(item),
                    tuple(item.inputs),
                    size,
                    self._working(item, estimate),
                    estimate.span_ps + traffic,
                    moved,
                    moved,
                    direct=self._direct(item),
                )
            )
        return tuple(found)

    def _direct(self, item: Item) -> tuple[int, ...]:
        """Inputs of a concatenation: each is copied to its part of the result, from DRAM as well as from SBUF."""
        op = item.ops[0]
        if not isinstance(op, nn.ConcatOp):
            return ()
        found: list[int] = []
        for i in item.inputs:
            roots, views = self.items[i].roots, self.items[i].behind
            if len(roots) == 1 and self.size[roots[0]] and not any(value.owner in views for value in op.inputs):
                found.append(i)
        return tuple(found)

    def _working(self, item: Item, estimate: GroupEstimate) -> int:
        """Temporaries, and what is under way of the weight, with one slot each: `core-allocate` gives them a second
        where there is room. A map in DRAM has one tile, on the way in or on the way out.
        """
        op = item.ops[0]
        sides = [
            any(is_large(self.machine, value) for value in values if not _is_constant(value))
            for values in (op.operands, op.results)
        ]
        tiles = TILES_AT_ONCE * TILE_BYTES if any(sides) else 0
        twice = estimate.working_bytes - tiles + estimate.streaming_bytes
        return -(-twice // 2) + sum(sides) * TILE_BYTES

    def _exposed_ps(self, size_bytes: int) -> int:
        return service_ps(size_bytes, core_dma_bytes_per_s(self.machine)) * EXPOSED_PERCENT // 100

    @staticmethod
    def label(item: Item) -> str:
        """A name for messages."""
        if item.is_argument:
            return item.roots[0].name_hint or "argument"
        hint = item.roots[0].name_hint if item.roots else None
        return location_text(item.ops[0].location) or hint or item.ops[0].name

    # Back to IR -------------------------------------------------------------------------------------------------------

    def rewrite(self, schedule: Schedule) -> None:
        """Write spills, reloads and recomputed layers into the block."""
        writer = _Writer(self)
        for event in schedule.events:
            writer.event(event)
        writer.clean()


def _is_constant(value: SSAValue) -> bool:
    return isinstance(value.owner, Operation) and is_constant(value.owner)


class _Writer:
    """Writes events in order. `current` says where a value is now."""

    def __init__(self, graph: ValueGraph):
        self.graph = graph
        self.current: dict[SSAValue, SSAValue] = {}
        self.direct: dict[SSAValue, SSAValue] = {}
        self.operands = {op: tuple(op.operands) for item in graph.items for op in item.ops}
        self.views: list[Operation] = []
        self.anchors: list[Operation] = []
        anchor = cast(Operation, graph.block.last_op)
        for item in reversed(graph.items):
            if not item.is_argument:
                anchor = item.ops[0]
            self.anchors.insert(0, anchor)

    def event(self, event: Event) -> None:
        """One step of the schedule."""
        item = self.graph.items[event.node]
        if event.kind == "compute":
            for op in item.ops:
                op.operands = [self.direct.get(v, self.current.get(v, v)) for v in op.operands]
            self.direct = {}
        elif event.kind == "spill":
            self.spill(item)
        elif event.kind == "reload":
            self.reload(item, self.anchors[event.stage])
        elif event.kind == "direct":
            self.read(item, self.anchors[event.stage])
        elif event.kind == "recompute":
            self.recompute(item, self.anchors[event.stage])

    def spill(self, item: Item) -> None:
        for root in item.roots:
            owner = cast(Operation, root.owner)
            self._spill(item, root, owner, InsertPoint.after(owner))

    @staticmethod
    def _spill(item: Item, root: SSAValue, like: Operation, point: InsertPoint) -> None:
        op = nn.SpillOp(root)
        op.location = like.location
        op.result.name_hint = root.name_hint
        Rewriter.insert_op(op, point)
        item.spilled[root] = op.result

    def read(self, item: Item, anchor: Operation) -> None:
        """The next layer reads it in DRAM, where an argument is anyway."""
        for root in item.roots:
            if root not in item.spilled:
                self._spill(item, root, anchor, InsertPoint.before(anchor))
            self.direct[root] = item.spilled[root]

    def reload(self, item: Item, anchor: Operation) -> None:
        for root in item.roots:
            op = nn.ReloadOp(item.spilled.get(root, root))
            op.location = anchor.location if isinstance(root.owner, Block) else root.owner.location
            op.result.name_hint = root.name_hint
            Rewriter.insert_op(op, InsertPoint.before(anchor))
            self.current[root] = op.result
        self.copy(item, item.behind, anchor, None)

    def recompute(self, item: Item, anchor: Operation) -> None:
        item.copies += 1
        self.copy(item, item.ops, anchor, item.copies)

    def copy(self, item: Item, ops: Sequence[Operation], anchor: Operation, number: int | None) -> None:
        """Copies of ops in front of the anchor, on values as they are now."""
        for op in ops:
            again = op.clone()
            again.operands = [self.current.get(value, value) for value in self.operands[op]]
            for old, new in zip(op.walk(), again.walk(), strict=True):
                new.location = old.location
            if number is not None:
                again.attributes[RECOMPUTED] = IntegerAttr(number, i64)
            Rewriter.insert_op(again, InsertPoint.before(anchor))
            for old, new in zip(op.results, again.results, strict=True):
                new.name_hint = old.name_hint
                self.current[old] = new
            if op in item.behind:
                self.views.append(again)

    def clean(self) -> None:
        """Remove views that nobody reads where they are."""
        originals = [op for item in self.graph.items for op in item.ops if isinstance(op, VIEWS)]
        for op in [*reversed(self.views), *reversed(originals)]:
            if not any(any(result.uses) for result in op.results):
                Rewriter.erase_op(op)
