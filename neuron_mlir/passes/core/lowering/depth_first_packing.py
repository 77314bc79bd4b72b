"""Packed convolutions in a depth-first group: what they read in a step is packed in the step before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Block, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import Context, shape_of
from neuron_mlir.passes.core.lowering.depth_first_maps import copy_rows, cut
from neuron_mlir.passes.core.lowering.layout import LANES, Home
from neuron_mlir.passes.core.lowering.unfold import Phases, phases_home, prepare, ring_home, slot_of, unfold_rows
from neuron_mlir.passes.depth_first_rows import GroupRows, Unit
from neuron_mlir.passes.unfolding import ROWS, Unfolding, unfolding_of
from neuron_mlir.solvers.row_schedule import RowSchedule, Run


@dataclass(frozen=True)
class Packed:
    """A packed convolution: its position among the maps of the group, and where what it unfolds is."""

    index: int
    unit: Unit
    unfolding: Unfolding
    source: Home

    @property
    def halo(self) -> int:
        """Rows of what it reads besides those it makes."""
        return self.unfolding.shape[ROWS] - shape_of(self.unit.result)[ROWS]


@dataclass(frozen=True)
class Step:
    """Some steps in a loop, or one.

    Attributes:
        run: which.
        index: which of them, as an index of the loop.
        number: of all steps of all images.
        image: the first image.
        images: how many.
        follows: whether other images follow.
    """

    run: Run
    index: Linear
    number: Linear
    image: Linear
    images: int
    follows: bool


@dataclass
class Packer:
    """Packs for the convolutions of a group."""

    context: Context
    schedule: RowSchedule
    convolutions: list[Packed] = field(default_factory=list[Packed])
    ready: dict[nn.UnfoldOp, Phases] = field(default_factory=dict[nn.UnfoldOp, Phases])
    rings: dict[nn.UnfoldOp, Home] = field(default_factory=dict[nn.UnfoldOp, Home])

    def runs(self) -> list[Run]:
        """The steps that share a loop. A packed convolution cannot be in one where it looks beyond the map; and as each
        step packs for the next one, the last step of a loop, whose next is not like the others, is apart.
        """
        schedule = self.schedule
        if not self.convolutions:
            return list(schedule.runs)
        found: list[Run] = []
        for run in schedule.runs:
            last = schedule.step(run.first + run.count - 1)
            inside = all(
                c.unfolding.inside(last[c.index].start, last[c.index].rows + c.halo)
                for c in self.convolutions
                if c.unfolding.op not in self.ready
            )
            if run.count > 1 and inside:
                found.append(replace(run, count=run.count - 1))
            count = 1 if inside else run.count
            found += [_alone(schedule, run.first + step) for step in range(run.count - count, run.count)]
        return found

    def begin(self, image: Linear, images: int, number: Linear, before: Block) -> None:
        """Make room, in `before`, for two tiles and the rows of two turns of `images` images, and pack what the first
        step of those from `image` on reads.
        """
        context = self.context
        self.ready = {}
        for conv in self.convolutions:
            unfolding = conv.unfolding
            with context.code.at(before):
                phases = phases_home(context, unfolding, conv.source, images, slots=2)
                if phases is not None:
                    self.ready[unfolding.op] = phases
                if unfolding.op not in self.rings:
                    rows = max(run.parts[conv.index].rows for run in self.schedule.runs) + conv.halo
                    self.rings[unfolding.op] = ring_home(context, unfolding, images, rows)
        self.first(image, images, number)

    def first(self, image: Linear, images: int, number: Linear) -> None:
        """Pack what the first step of some images reads."""
        for conv in self.convolutions:
            phases = self.ready.get(conv.unfolding.op)
            if phases is not None:
                here = phases.in_slot(_turn(image, images))
                prepare(self.context, conv.unfolding, conv.source, image, images, here)
            part = self.schedule.step(0)[conv.index]
            self.pack(
                conv, number, Linear.wrap(part.start), (0, part.rows + conv.halo if part.rows else 0), image, images
            )

    def ahead(self, step: Step) -> None:
        """Pack what the next step reads, so that neither engines nor DMA wait for it there: before the layers of this
        step, whose results the vector engine waits for.
        """
        run, schedule = step.run, self.schedule
        if run.first + run.count == schedule.steps:
            if step.follows:
                self.first(step.image + step.images, step.images, step.number + 1)
            return
        for conv in self.convolutions:
            now, part = run.parts[conv.index], schedule.step(run.first + 1)[conv.index]
            if not part.rows:
                continue
            progress = schedule.step(run.first + 2)[conv.index].start - part.start if run.count > 1 else 0
            kept = conv.halo if now.rows and part.start == now.stop else 0
            start = step.index * progress + part.start
            self.pack(conv, step.number + 1, start, (kept, part.rows + conv.halo), step.image, step.images)
            if kept:
                # After the engine's part of the packing: else each step's would wait for the DMA of the step before.
                here, there = (slot_of(self.rings[conv.unfolding.op], step.number + n) for n in (0, 1))
                copy_rows(self.context, here, now.rows, there, 0, kept)

    def pack(
        self, conv: Packed, number: Linear, start: Linear, rows: tuple[int, int], image: Linear, images: int
    ) -> None:
        """Pack what a convolution reads for its rows from `start` on, in the buffer of step `number`: of the unfolded
        rows there, those from the first to before the last of `rows`.
        """
        first, last = rows
        if first == last:
            return
        context, unfolding = self.context, conv.unfolding
        context.code.location = context.load.location = conv.unit.op.location
        start, count = start + first, last - first
        tile = cut(slot_of(self.rings[unfolding.op], number), Linear(), images, Linear.wrap(first), count)
        phases = self.ready.get(unfolding.op)
        if phases is not None:
            here = phases.in_slot(_turn(image, images))
            unfold_rows(context, unfolding, here, tile, start, count, Linear())
            return
        for part in segments(count, LANES + 1 - unfolding.reach):
            with context.code.tiles(part) as row:
                place = cut(tile, Linear(), images, row, part.size)
                unfold_rows(context, unfolding, conv.source, place, start + row, part.size, image)

    def value(self, unit: Unit, step: Step, block: Block, rows: int) -> SSAValue | None:
        """The unfolded map behind so many rows of a unit in this step, as an argument of `block`; None for a unit that
        unfolds nothing.
        """
        conv = next((c for c in self.convolutions if c.unit is unit), None)
        if conv is None:
            return None
        rows += conv.halo
        tile = cut(slot_of(self.rings[conv.unfolding.op], step.number), Linear(), step.images, Linear(), rows)
        shape = (step.images, conv.unfolding.shape[1], rows, conv.unfolding.shape[3])
        made = block.insert_arg(TensorType(tile.element, shape), len(block.args))
        made.name_hint = "packed"
        self.context.define(made, tile)
        self.context.partition_of[made] = (1,)
        return made


def packed_of(group: GroupRows) -> list[tuple[int, Unit, Unfolding]]:
    """The packed convolutions of a group, with their positions among its maps."""
    outside = len(group.maps) - len(group.units)
    found = [(index, unit, unfolding_of(unit.op)) for index, unit in enumerate(group.units, outside)]
    return [(index, unit, unfolding) for index, unit, unfolding in found if unfolding is not None]


def _turn(image: Linear, images: int) -> Linear:
    """The slot that `images` images from `image` on have of two."""
    return Linear(tuple((v, f // images) for v, f in image.terms), image.constant // images, mod=2)


def _alone(schedule: RowSchedule, step: int) -> Run:
    """One step as a run."""
    return Run(step, 1, schedule.step(step), (0,) * len(schedule.values))
