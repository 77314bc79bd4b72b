"""Groups that run depth first: for some images and rows at a time, one layer after the other.

Each layer is lowered as any other, on a copy of its op whose types are those of the tile; what it reads and writes are
parts of line buffers. Steps that differ only in where their rows are share one loop; the first and the last ones, which
meet the border of the map, are written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Block, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering.builder import Segment, segments
from neuron_mlir.passes.core.lowering.context import STORE_QUEUE, Hold, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.depth_first_maps import GroupMap, advance, anew, buffer, cut
from neuron_mlir.passes.core.lowering.depth_first_packing import Packed, Packer, Step, packed_of
from neuron_mlir.passes.core.lowering.depth_first_units import specialise
from neuron_mlir.passes.core.lowering.layout import Home
from neuron_mlir.passes.core.lowering.relayout import move
from neuron_mlir.passes.core.lowering.rows import row_source
from neuron_mlir.passes.depth_first_rows import (
    GroupRows,
    Unit,
    UnitRead,
    group_rows,
    is_map,
    plain_reads,
    unit_reads,
    why_not,
)
from neuron_mlir.passes.unfolding import ROWS, Unfolding, unfolding_of
from neuron_mlir.solvers.row_schedule import Part, RowSchedule, schedule_rows

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering


@dataclass
class DepthFirst:
    """Lowers one group."""

    stage: StageLowering
    op: nn.FusedOp
    group: GroupRows
    maps: list[GroupMap] = field(default_factory=list)
    packed: set[SSAValue] = field(default_factory=set[SSAValue])
    """Maps from outside that only packed convolutions read: these bring what they need themselves."""
    packer: Packer = field(init=False)

    @staticmethod
    def of(stage: StageLowering, op: nn.FusedOp) -> DepthFirst:
        """Raises `NeuronError` for a layer inside that does not go by rows."""
        context = stage.context
        for argument, operand in zip(op.body.block.args, op.inputs, strict=True):
            context.aliases[argument] = operand
        layers = [o for o in op.body.block.ops if not isinstance(o, (nn.YieldOp, nn.WeightOp, nn.ConstOp))]
        for layer in layers:
            reason = why_not(layer)
            if reason is not None:
                raise NeuronError(
                    f"{layer.name} cannot run some rows at a time: {reason}",
                    op=layer,
                    advice="leave it out of the group with tile [..]",
                )
            unfolding = unfolding_of(layer)
            if unfolding is not None and isinstance(unfolding.value.owner, Operation):
                raise NeuronError(
                    "what is packed with its taps must come from outside the group that runs depth first",
                    op=layer,
                    advice="begin the group with it, or leave out nn-replicate-inputs",
                )
        outside = [a for a in op.body.block.args if is_map(a) and not context.is_constant(a)]
        read = {r.operand for layer in layers for r in _reads(layer)}
        maps = [a for a in outside if a in read]
        plain = {value for layer in layers for value in plain_reads(layer)}
        once = [a for a in maps if a in plain and not context.is_in_sbuf(context.origin(a))]
        return DepthFirst(stage, op, group_rows(maps, layers, op.yielded, once))

    def lower(self) -> None:
        """Write the group's code."""
        context, code = self.stage.context, self.stage.context.code
        assert self.op.tile is not None
        images, rows = self.op.tile
        schedule = schedule_rows(self.group.rows, rows, recompute=self.op.recompute)
        block, anchor = code.block, code.block.last_op
        before = Block()
        context.hold = Hold(before)
        batch = shape_of(self.group.units[-1].result)[0]
        self.place(schedule, min(images, batch), before)
        packed = [Packed(*found, self.packed_source(found[2])) for found in packed_of(self.group)]
        self.packer = Packer(context, schedule, packed)
        for part in segments(batch, min(images, batch)):
            self.turns(schedule, part, before)
        context.hold = None
        self.hoist(before, block, anchor)

    def turns(self, schedule: RowSchedule, part: Segment, before: Block) -> None:
        """All steps, turn by turn of some images. Where something is packed ahead, the last turn is apart."""
        code, size = self.stage.context.code, part.size
        pieces = [part]
        if self.packer.convolutions:
            first = part.start // size * schedule.steps
            self.packer.begin(Linear.wrap(part.start), size, Linear.wrap(first), before)
            last = Segment(part.start + (part.count - 1) * size, 1, size)
            pieces = [replace(part, count=part.count - 1), last] if part.count > 1 else [last]
        for piece in pieces:
            with code.tiles(piece) as image:
                for run in self.packer.runs():
                    with code.loop(run.count) as index:
                        turn = Linear(tuple((v, f // size) for v, f in image.terms), image.constant // size)
                        number = turn * schedule.steps + index + run.first
                        self.step(schedule, Step(run, index, number, image, size, piece is not pieces[-1]))

    @staticmethod
    def hoist(before: Block, block: Block, anchor: Operation | None) -> None:
        """Put what was held back in front of the loops."""
        ops = list(before.ops)
        for op in ops:
            op.detach()
        if not ops:
            return
        if anchor is None:
            first = block.first_op
            assert first is not None
            block.insert_ops_before(ops, first)
        else:
            block.insert_ops_after(ops, anchor)

    # Buffers

    def place(self, schedule: RowSchedule, images: int, before: Block) -> None:
        """Where each map is: whole, in a line buffer, or in tiles made anew."""
        context = self.stage.context
        outer = dict(zip(self.op.yielded, self.op.outputs, strict=True))
        alone = schedule.steps == 1 and images == shape_of(self.group.units[-1].result)[0]
        slots = 1 if alone else context.tile_slots
        readers: dict[SSAValue, list[UnitRead]] = {}
        for unit in self.group.units:
            for read in unit.reads:
                readers.setdefault(read.operand, []).append(read)
        others = {value for unit in self.group.units for value in plain_reads(unit.op)}
        self.packed = {v for v in self.group.maps if not isinstance(v.owner, Operation) and v not in others}
        for index, value in enumerate(self.group.maps):
            reads = readers.get(value, [])
            filling = next((r.fill for r in reads if r.fill is not None), None)
            left = max((r.columns[0] for r in reads), default=0)
            right = max((r.columns[1] for r in reads), default=0)
            entry = GroupMap(value, filling, (left, right))
            self.maps.append(entry)
            inside = isinstance(value.owner, Operation)
            if not inside:
                entry.comes = context.row_inputs.get(context.origin(value))
                if entry.comes is not None:
                    context.by_rows.append(entry.comes)
                    # One engine frees the slots, whatever the step; so all are read in place, or none.
                    entry.in_place = entry.fill is None and all(
                        run.parts[index].rows == run.parts[index].top - run.parts[index].base == entry.comes.rows
                        for run in schedule.runs
                    )
                else:
                    entry.whole = self.source(entry, reads)
                in_place = entry.in_place if entry.whole is None else entry.whole.in_sbuf
                single = entry.comes is None and context.tile_slots == 1 and not schedule.totals.kept[index]
                if not in_place and value not in self.packed and not single:
                    with context.code.at(before):
                        count = slots if entry.comes is None else 1
                        entry.line = buffer(context, entry, schedule.buffer_rows(index), images, count)
                continue
            if value in outer:
                entry.goes = context.row_outputs.get(outer[value], [])
                context.by_rows += entry.goes
                if not entry.goes or outer[value] in context.leaves or outer[value] in context.read_here:
                    entry.whole = self.stage.new_home(outer[value], (1,), all_rings=True)
                    context.homes.setdefault(value, []).append(entry.whole)
                    if entry.whole.in_sbuf:
                        continue  # computed in place
                    entry.rings = [h for h in context.leaves.get(outer[value], []) if h is not entry.whole]
                    context.left += entry.rings
            if not schedule.totals.kept[index] and (value not in outer or context.tile_slots == 1):
                continue  # nothing is kept for another step: made anew, so that maps not in use together share
            # What is stored has bytes of its own, so that its store overlaps with what follows.
            with context.code.at(before):
                entry.line = buffer(context, entry, schedule.buffer_rows(index), images, slots if value in outer else 1)

    def source(self, entry: GroupMap, reads: Sequence[UnitRead]) -> Home:
        """A place of a map from outside: in SBUF with the padding its readers want, else in DRAM."""
        context = self.stage.context
        value = context.origin(entry.value)
        if not context.is_in_sbuf(value) or entry.value in self.packed:
            return row_source(self.stage, value, {}, 0.0, self.op)
        pads: dict[int, tuple[int, int]] = {}
        for read in reads:
            if read.fill is not None:
                top = max(0, -read.read.first(0))
                bottom = max(0, read.read.end(_rows_of(read, shape_of(value)[ROWS])) - shape_of(value)[ROWS])
                known = pads.get(ROWS, (0, 0))
                pads[ROWS] = max(known[0], top), max(known[1], bottom)
        pads[ROWS + 1] = entry.columns
        return self.stage.want(value, (1,), self.op, pads, entry.fill or 0.0)

    # Steps

    def step(self, schedule: RowSchedule, at: Step) -> None:
        """One step of a run."""
        context = self.stage.context
        run, step, image, images = at.run, at.index, at.image, at.images
        now = run.parts
        after = schedule.step(run.first + 1) if run.count > 1 else now
        starts = [step * (b.start - a.start) + a.start for a, b in zip(now, after, strict=True)]
        bases = [step * (b.base - a.base) + a.base for a, b in zip(now, after, strict=True)]
        tallest = [0] * len(now)
        if run.first:
            tallest = [a.top - b.top for a, b in zip(now, schedule.step(run.first - 1), strict=True)]
        outside = len(self.group.maps) - len(self.group.units)
        for index in range(outside):
            if self.maps[index].value in self.packed:
                continue
            if self.maps[index].comes is not None:
                self.take(self.maps[index], now[index], starts[index], tallest[index], at)
                continue
            self.load(self.maps[index], now[index], bases[index], tallest[index], at)
        self.packer.ahead(at)
        for index, unit in enumerate(self.group.units, outside):
            entry, part = self.maps[index], now[index]
            if entry.line is not None:
                entry.tile = advance(context, entry, part, tallest[index], images, at.number)
            if not part.rows:
                continue
            if entry.whole is not None and entry.whole.in_sbuf:
                target = cut(entry.whole, image, images, starts[index], part.rows)
            elif entry.line is not None:
                assert entry.tile is not None
                target = cut(entry.tile, Linear(), images, Linear.wrap(part.start - part.base), part.rows)
            else:
                entry.tile = anew(context, entry, part, images)
                target = cut(entry.tile, Linear(), images, Linear.wrap(part.start - part.base), part.rows)
            self.unit(unit, entry, target, at, after[index])
            if entry.whole is not None and not entry.whole.in_sbuf:
                for whole in (entry.whole, *entry.rings):
                    place = cut(whole, image, images, starts[index], part.rows)
                    copy_by_dma(context.code, target, place, unit.op, STORE_QUEUE)
            for stream in entry.goes:
                with context.code.loop(stream.count(images, part.rows)) as chunk:
                    source = cut(target, Linear(), images, chunk * stream.rows, stream.rows)
                    place = stream.slot(_turn(at), starts[index] + chunk * stream.rows)
                    copy_by_dma(context.code, source, place, unit.op, STORE_QUEUE)

    def load(self, entry: GroupMap, part: Part, base: Linear, moved: int, at: Step) -> None:
        """Bring the rows of a map from outside that this step reads, but for those kept from the step before; the
        buffer's last row is `moved` rows further on than then.
        """
        assert entry.whole is not None
        if entry.whole.in_sbuf or part.top <= part.base:
            return
        context, image, images = self.stage.context, at.image, at.images
        above, below = max(0, -part.base), max(0, part.top - shape_of(entry.value)[ROWS])
        if entry.line is None:
            entry.tile = tile = anew(context, entry, part, images)
        else:
            entry.tile = tile = advance(context, entry, part, moved, images, at.number)
        first = above + part.kept
        rows = part.top - part.base - first - below
        if not rows:
            return
        source = cut(entry.whole, image, images, base + first, rows)
        target = cut(tile, Linear(), images, Linear.wrap(first), rows)
        move(context, source, replace(target, pad=(), pad_value=None), self.op)

    def take(self, entry: GroupMap, part: Part, start: Linear, moved: int, at: Step) -> None:
        """Take the rows of a map that are new in this step from the ring through which they come."""
        context, stream, images = self.stage.context, entry.comes, at.images
        assert stream is not None
        if part.top <= part.base:
            return
        if entry.in_place:
            entry.tile = stream.slot(_turn(at), start)
            return
        entry.tile = advance(context, entry, part, moved, images, at.number)
        if not part.rows:
            return
        first = part.start - part.base
        with context.code.loop(stream.count(images, part.rows)) as chunk:
            place = cut(entry.tile, Linear(), images, chunk * stream.rows + first, stream.rows)
            source = stream.slot(_turn(at), start + chunk * stream.rows)
            move(context, source, replace(place, pad=(), pad_value=None), self.op)

    # Layers

    def unit(self, unit: Unit, entry: GroupMap, target: Home, at: Step, after: Part) -> None:
        """Lower one layer for the rows of a step; `after` is what the next step has of it."""
        context = self.stage.context
        image, images, step, now = at.image, at.images, at.index, at.run.parts
        part = now[self.group.maps.index(unit.result)]
        block = Block()
        tiles: dict[tuple[SSAValue, int, int], SSAValue] = {}

        def tile_of(value: SSAValue, read: UnitRead) -> SSAValue:
            """The rows of an operand that this step reads, as a value of its own."""
            first = read.read.first(part.start)
            count = read.read.end(part.stop) - first
            key = value, first, count
            if key not in tiles:
                shape = list(shape_of(value))
                shape[0], shape[ROWS] = images, count
                made = block.insert_arg(TensorType(tensor_type(value).element_type, shape), len(block.args))
                made.name_hint = context.origin(value).name_hint or value.name_hint
                index = self.group.maps.index(value)
                source = self.maps[index]
                if source.whole is not None and source.whole.in_sbuf:
                    begin = step * (read.read.first(after.start) - first) + first
                    home = cut(source.whole, image, images, begin, count)
                else:
                    assert source.tile is not None
                    home = cut(source.tile, Linear(), images, Linear.wrap(first - now[index].base), count)
                context.define(made, home)
                context.partition_of[made] = (1,)
                tiles[key] = made
            return tiles[key]

        packed = self.packer.value(unit, at, block, part.rows)
        copy = specialise(unit, tile_of, images, part.rows, packed)
        block.add_op(copy)
        context.partition_of[copy.results[0]] = (1,)
        self.stage.preset[copy.results[0]] = target
        copy.location = unit.op.location
        context.code.location = context.load.location = unit.op.location
        self.stage.layer(copy)
        # A depthwise convolution leaves channels in the order of its input.
        made = context.homes[copy.results[0]][0]
        if made.axes[1] != target.axes[1]:
            for name in ("whole", "line", "tile"):
                home = getattr(entry, name)
                if home is not None:
                    setattr(entry, name, replace(home, axes=(home.axes[0], made.axes[1], *home.axes[2:])))

    def packed_source(self, unfolding: Unfolding) -> Home:
        """Where the map is that is packed."""
        context = self.stage.context
        outer = next(m for m in self.maps if context.origin(m.value) is context.origin(unfolding.value))
        assert outer.whole is not None
        return outer.whole


def _turn(at: Step) -> Linear:
    """How many images have gone before, in tiles."""
    return Linear(tuple((v, f // at.images) for v, f in at.image.terms), at.image.constant // at.images)


def _reads(layer: Operation) -> tuple[UnitRead, ...]:
    reads = unit_reads(layer)
    assert not isinstance(reads, str)
    return reads


def _rows_of(read: UnitRead, rows: int) -> int:
    """Rows that a reader makes of a map of `rows` rows, at most."""
    return ((rows + 2 * read.read.pad - read.read.reach) // read.read.stride + 1) * read.read.repeat
