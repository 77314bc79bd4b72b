"""A block of `nn` ops as values that share SBUF: what `nn-rematerialize` hands to its solver, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from xdsl.dialects.builtin import IntegerAttr, i64
from xdsl.dialects.func import ReturnOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects import nn, pipe
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.dialects.pipe.ops import StageOp
from neuron_mlir.errors import location_text
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import core_dma_bytes_per_s, service_ps
from neuron_mlir.passes.core.lowering.builder import Code
from neuron_mlir.passes.core.lowering.context import Context
from neuron_mlir.passes.core.lowering.plan import TILED, Plan, group_root
from neuron_mlir.passes.depth_first_rows import goes_by_rows, is_map
from neuron_mlir.passes.estimate import (
    TILE_BYTES,
    TILES_AT_ONCE,
    GroupEstimate,
    charged_bytes,
    element_bytes,
    estimate_group,
    is_constant,
    is_large,
    partition_bytes,
    stored_with_its_layer,
)
from neuron_mlir.passes.estimate_nests import is_depthwise
from neuron_mlir.passes.layouts import STREAM_BYTES, large_bytes
from neuron_mlir.passes.nn._pieces import interior_bytes, pieces_of, unused_bytes, weight_block_bytes
from neuron_mlir.passes.unfolding import packing_before

if TYPE_CHECKING:
    from neuron_mlir.solvers.rematerialize import Event, Node, Schedule

EXPOSED_PERCENT = 85
"""How much of a transfer computation does not hide, as `pipe-stage` has it."""
TILE_PS = 600_000
"""What one more tile of rows adds to a layer, transfers apart: measured on YOLOv3 and U-Net, 0.3 to 0.8 us."""
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


@dataclass(frozen=True)
class _Tiled:
    """A layer that goes in tiles of rows: which items it may read in DRAM, with what each adds (ps), bytes of a tile of
    one, whether its result may go to DRAM, and what it takes more then, bytes and ps.
    """

    reads: dict[int, int] = field(default_factory=dict[int, int])
    operand_bytes: int = 0
    writes: bool = False
    working: int = 0
    extra_ps: int = 0


@dataclass
class ValueGraph:
    """The items of a block in order: an argument before the first layer that reads it, at the end the terminator."""

    owner: Operation
    block: Block
    machine: Machine
    items: list[Item]
    size: dict[SSAValue, int]
    """Bytes per partition of each root, as `core-lower` will hold it; 0 for those that live in DRAM."""
    partition: dict[SSAValue, tuple[int, ...]]
    """The axes of each root that are on the partitions."""

    @staticmethod
    def of(owner: Operation, block: Block, machine: Machine) -> ValueGraph:
        """Raises `NeuronError` for an op that has no estimate."""
        context = Context(machine, Block(), Code(Block()), Code(Block()))
        # The plan of the lowering reads nothing of a stage but its block.
        plan = Plan(context, cast(StageOp, owner))
        plan.run()
        graph = ValueGraph(owner, block, machine, [], {}, {})
        graph._group()
        for item in graph.items:
            for root in item.roots:
                graph.partition[root] = context.partition_of[root]
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

    def nodes(self, budget: int, tile_bytes: int = TILE_BYTES, slots: int = 1) -> tuple[Node, ...]:
        """The items as the solver takes them. A budget leaves the rest of SBUF to weights; of those that do not fit
        there, a recomputation reads its own again. Tiles of rows take `tile_bytes` per partition, `slots` times.
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
                        direct=self._whole(item),
                        can_spill=False,
                        can_recompute=False,
                    )
                )
                continue
            weights = estimate.weight_bytes * streamed // max(1, resident)
            traffic = self._exposed_ps(estimate.dram_bytes + estimate.work.dma_bytes + weights)
            tiled = self._tiled(item, estimate, tile_bytes, slots, streamed > 0)
            found.append(
                Node(
                    self.label(item),
                    tuple(item.inputs),
                    size,
                    self._working(item, estimate, tile_bytes, slots),
                    estimate.span_ps + traffic,
                    moved,
                    moved,
                    replaces=self._replaced(item),
                    direct=tuple(tiled.reads),
                    direct_ps=tuple(tiled.reads.values()),
                    direct_bytes=tiled.operand_bytes,
                    can_stream=tiled.writes,
                    tiled_bytes=tiled.working,
                    tiled_ps=tiled.extra_ps,
                )
            )
        return tuple(found)

    def overhead_ps(self, budget: int, tile_bytes: int, slots: int) -> int:
        """What tiles of this size add for layers whose maps are in DRAM anyway: by their number, by half of what their
        rows read again take; with one slot by a quarter of the traffic, or by three quarters where the budget has no
        room for two (measured on YOLOv3 and U-Net).
        """
        total = 0
        for item in self.items:
            if item.estimate is None or not self.in_tiles(item):
                continue
            total += max(0, self._tiles_ps(item, tile_bytes) - self._tiles_ps(item, TILE_BYTES))
            if slots == 1:
                quarters = 3 if self._working(item, item.estimate, tile_bytes, 2) > budget else 1
                total += self._exposed_ps(item.estimate.map_bytes) * quarters // 4
        return total

    def _tiles_ps(self, item: Item, tile_bytes: int) -> int:
        """What the tiles of a layer whose maps are in DRAM take by their number: to begin, and half of what rows and
        weights that do not stay take to be read again; of one that is packed, about.
        """
        found = pieces_of(item.ops[0], item.roots[0], tile_bytes)
        if found is not None:
            loaded = sum(size for value, size in found.reads.items() if is_large(self.machine, value))
            again = loaded * self.machine.sbuf.partitions
            if item.estimate is not None and not self._held(item.estimate):
                again += item.estimate.weight_bytes
            return found.tiles * (TILE_PS + self._exposed_ps(again) // 2)
        values = (*item.ops[0].operands, *item.ops[0].results)
        most = max(partition_bytes(self.machine, v) for v in values if not _is_constant(v))
        return -(-most // tile_bytes) * TILE_PS

    def in_tiles(self, item: Item) -> bool:
        """Whether a layer goes in tiles of rows in any case, since a map is too large for SBUF."""
        op = item.ops[0]
        depth_first = isinstance(op, nn.FusedOp) and op.tile is not None
        return not depth_first and any(
            is_large(self.machine, v) for v in (*op.operands, *op.results) if not _is_constant(v)
        )

    def _plain(self, i: int) -> SSAValue | None:
        """The one value an item makes, when it takes bytes and no layer reads a view of it."""
        item = self.items[i]
        if len(item.roots) != 1 or not self.size[item.roots[0]] or item.behind:
            return None
        return item.roots[0]

    def _tiled(self, item: Item, estimate: GroupEstimate, tile_bytes: int, slots: int, streams: bool) -> _Tiled:
        """What a layer may read and write in DRAM. `streams`: not all weights stay in SBUF."""
        op = item.ops[0]
        if isinstance(op, nn.ConcatOp):
            direct = self._direct(item)
            prices = {i: self._exposed_ps(self._moved_bytes(self.items[i].roots[0])) for i in direct}
            return _Tiled(prices, writes=self._writes(item))
        found = pieces_of(op, item.roots[0], tile_bytes) if item.roots else None
        if found is None:
            return _Tiled()
        maps: dict[SSAValue, int] = {}
        for i in item.inputs:
            value = self._plain(i)
            if value is not None and value in found.reads and self._has_channels(value):
                maps[value] = i
        prices: dict[int, int] = {}
        for value, i in maps.items():
            size = self._moved_bytes(value) * found.tiles * found.reads[value] // max(1, self.size[value])
            if self.items[i].is_argument and value in found.padded:
                size += 2 * self._moved_bytes(value)  # to a copy in DRAM that has the padding
            prices[i] = self._exposed_ps(max(size, self._moved_bytes(value)))
        most = slots * max((found.reads[value] for value in maps), default=0)
        inside = self._interior(item)
        if self.in_tiles(item) and not inside:
            return _Tiled(prices, most, self._writes(item))
        working, extra = slots * found.result_bytes - inside, TILE_PS * found.tiles
        if found.whole:
            working -= estimate.working_bytes // 2 * (found.tiles - 1) // found.tiles
        if inside:
            extra += 2 * self._exposed_ps(inside * self.machine.sbuf.partitions)
        if found.weight is not None and streams:
            if estimate.resident_bytes > self.machine.sbuf.bytes_per_partition // 3:
                extra += self._exposed_ps(estimate.weight_bytes * (found.tiles - 1))  # read again for each tile
            else:
                working += max(0, estimate.resident_bytes - self._passing(item, estimate))
        return _Tiled(prices, most, self._writes(item), working, extra)

    def _replaced(self, item: Item) -> int | None:
        """The residual whose place the result of a convolution's group takes if nobody reads that later (see
        `neuron_mlir.passes.core.lowering.in_place`).
        """
        op = item.ops[0]
        if not isinstance(op, nn.FusedOp) or len(item.roots) != 1 or self._plain_width(item.roots[0]) is None:
            return None
        root = group_root(op)
        if not isinstance(root, nn.ConvOp) or is_depthwise(root) or packing_before(root):
            return None
        if any(isinstance(use.operation, (pipe.YieldOp, ReturnOp)) for use in op.results[0].uses):
            return None
        arguments = list(op.body.block.args)
        for i in item.inputs:
            value = self._plain(i)
            inner = [a for a, v in zip(arguments, op.inputs, strict=True) if v is value]
            read = any(use.operation is not root for a in inner for use in a.uses)
            if value is None or not read or any(use.operation is root for a in inner for use in a.uses):
                continue
            if value.type == item.roots[0].type and self._plain_width(value) is not None:
                return i
        return None

    def _plain_width(self, value: SSAValue) -> int | None:
        """Bytes of a 16-bit feature map that has no padding around it; None for any other value."""
        size = self.size[value]
        if not self._has_channels(value) or not size or element_bytes(type_of(value).element_type) != 2:
            return None
        return size if size == partition_bytes(self.machine, value) else None

    def _writes(self, item: Item) -> bool:
        """Whether a layer that goes in tiles, or a concatenation, can have its result in DRAM."""
        root = item.roots[0] if len(item.roots) == 1 else None
        plain = root is not None and self.size[root] > 0 and not item.behind and goes_by_rows(root)
        return plain and self._has_channels(root)

    def _has_channels(self, value: SSAValue | None) -> bool:
        """Whether a value is a feature map with its channels on the partitions, as tiles of rows have them."""
        return value is not None and is_map(value) and self.partition[value] == (1,)

    def _moved_bytes(self, value: SSAValue) -> int:
        """Bytes that a DMA of a value is charged for, as it lies in SBUF or row by row."""
        return max(self.size[value] * self.machine.sbuf.partitions, charged_bytes(self.machine, value))

    def _whole(self, item: Item) -> tuple[int, ...]:
        """Results that leave the block: they are copied to where they go, from DRAM as well as from SBUF."""
        return () if item.is_argument else tuple(i for i in item.inputs if self._plain(i) is not None)

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

    def _interior(self, item: Item) -> int:
        """Bytes per partition of what a group stores whole in SBUF for its convolution to read."""
        found = interior_bytes(item.ops[0])
        return found if found and found <= large_bytes(type_of(item.ops[0].results[0]).get_shape()[0]) else 0

    def _working(self, item: Item, estimate: GroupEstimate, tile_bytes: int, slots: int) -> int:
        """Temporaries, and what is under way of the weight, with one slot each: `core-allocate` gives them a second
        where there is room. A map in DRAM has one tile, on the way in or on the way out.
        """
        op = item.ops[0]
        sides = [
            any(is_large(self.machine, value) for value in values if not _is_constant(value))
            for values in (op.operands, op.results)
        ]
        tiles = TILES_AT_ONCE * TILE_BYTES if any(sides) else 0
        inside = self._interior(item)
        unused = 0 if inside else unused_bytes(self.machine, op)
        working = -(-(estimate.working_bytes - tiles - unused) // 2) + inside
        if isinstance(op, nn.ConcatOp) and sides[1]:
            return working  # Its parts are moved to DRAM, or within it, without a buffer in between.
        found = pieces_of(op, item.roots[0], tile_bytes) if self.in_tiles(item) and not inside else None
        if found is None:
            tiles = slots * sum(sides) * (TILE_BYTES if inside else tile_bytes)
            return working + self._passing(item, estimate) + tiles
        if found.weight is not None:
            # It stays for the layer, where it is not too large for that.
            held = self._held(estimate)
            working += min(estimate.resident_bytes, estimate.resident_bytes if held else STREAM_BYTES // 2)
        loaded = [size for value, size in found.reads.items() if is_large(self.machine, value)]
        return working + slots * (sum(loaded) + found.result_bytes)

    def _held(self, estimate: GroupEstimate) -> bool:
        """Whether the weight of a layer in tiles stays for it; if not, each tile reads it again."""
        return estimate.resident_bytes <= self.machine.sbuf.bytes_per_partition // 3

    def _passing(self, item: Item, estimate: GroupEstimate) -> int:
        """Bytes per partition of what a layer has under way of a weight that does not stay."""
        block = weight_block_bytes(self.machine, item.ops[0]) if not self.in_tiles(item) else None
        return -(-estimate.streaming_bytes // 2) if block is None else block

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

    def rewrite(self, schedule: Schedule, tile_bytes: int = TILE_BYTES) -> None:
        """Write spills, reloads and recomputed layers into the block, and the size of tiles where it was decided."""
        if tile_bytes != TILE_BYTES:
            for item in self.items:
                if item.estimate is not None and self.in_tiles(item) and not self._interior(item):
                    item.ops[0].attributes[TILED] = IntegerAttr(tile_bytes, i64)
        writer = _Writer(self, tile_bytes)
        for event in schedule.events:
            writer.event(event)
        writer.clean()


def _is_constant(value: SSAValue) -> bool:
    return isinstance(value.owner, Operation) and is_constant(value.owner)


class _Writer:
    """Writes events in order. `current` says where a value is now."""

    def __init__(self, graph: ValueGraph, tile_bytes: int):
        self.graph = graph
        self.tile_bytes = tile_bytes
        self.streams = False
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
            if item.estimate is not None and (self.direct or self.streams):
                item.ops[0].attributes[TILED] = IntegerAttr(self.tile_bytes, i64)
            if self.streams:
                self.spill(item)
            self.direct, self.streams = {}, False
        elif event.kind == "stream":
            self.streams = True
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
                if not self.graph.in_tiles(item):
                    again.attributes.pop(TILED, None)
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
