"""What intervals of the layers of a stage cost as depth-first groups: what `nn-fuse-depth-first` minimises."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial

from xdsl.dialects.builtin import IntegerAttr
from xdsl.ir import Block, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.dialects.pipe.ops import InputOp, ProgramOp, StageOp, YieldOp
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import PS_PER_S, core_dma_bytes_per_s, dram_bytes_per_s, service_ps
from neuron_mlir.passes.depth_first_cost import (
    STEP_PS,
    Facts,
    GroupCost,
    TileCost,
    choose_tile,
    group_cost,
    group_in_dram,
    stays_in_dram,
    working_bytes,
)
from neuron_mlir.passes.depth_first_rows import GroupRows, Unit, is_map, unit_reads, units_rows, why_not
from neuron_mlir.passes.estimate import (
    TILE_BYTES,
    GroupEstimate,
    charged_bytes,
    estimate_group,
    is_constant,
    partition_bytes,
)
from neuron_mlir.passes.unfolding import unfolding_of

RESERVE_PERCENT = 10
"""Part of SBUF left for what is not known here: constants, PSUM's way out, alignment."""
STREAMED_RESERVE_PERCENT = 5
"""The same where maps come or go by rows: as much as `pipe-stream-rows` leaves."""
NEVER = 10**15
"""Time of what does not fit SBUF, ps."""
WEIGHT_SHARE = 3
"""A weight stays in SBUF for a layer done in tiles of rows if it takes at most one part of it in so many."""
LONGEST = 48
"""Most layers in a group: longer ones gain nothing, and take long to try."""


class Grouping:
    """The layers of a block, and what intervals of them cost."""

    def __init__(self, machine: Machine, block: Block, ends: Ends, rows: int = 0, recompute: bool = False):
        self.rows, self.recompute = rows, recompute
        self.machine = machine
        # Asked for every interval that holds the layer or the value.
        self.facts = Facts(machine)
        self.in_dram = self.facts.in_dram
        self.size = cache(partial(partition_bytes, machine))
        self.alone_bytes, self.again_bytes = cache(self._alone_bytes), cache(self._again_bytes)
        self.group, self._unit = cache(self._group), cache(self._unit_of)
        self.layers = [
            op
            for op in block.ops
            if op.name.startswith("nn.") and not is_constant(op) and not isinstance(op, nn.YieldOp)
        ]
        self.position: dict[Operation, int] = {op: i for i, op in enumerate(self.layers)}
        self.estimates: list[GroupEstimate] = [estimate_group(machine, op) for op in self.layers]
        self.working = [
            working_bytes(machine, op, e.working_bytes) for op, e in zip(self.layers, self.estimates, strict=True)
        ]
        self.able = [
            why_not(op) is None and not (isinstance(op, nn.FusedOp) and op.tile is not None) for op in self.layers
        ]
        # What is packed comes from outside the group: the position of the layer that makes it.
        unfoldings = [unfolding_of(op) for op in self.layers]
        self.packed = [-1 if u is None else self._made_at(u.value) for u in unfoldings]
        self.last_use = [self._last_use(op) for op in self.layers]
        spans = [e.span_ps for e in self.estimates]
        self.spans = list(itertools.accumulate(spans, initial=0))
        self.rate = dram_share(machine, block)
        self._begin(ends)

    def _begin(self, ends: Ends) -> None:
        """What depends on how maps come and go."""
        self.ends = ends
        self._alone: dict[tuple[int, int], int] = {}
        self.tiles: dict[tuple[int, int], TileCost | None] = {}
        self.chosen: dict[tuple[GroupCost, int], TileCost | None] = {}
        self.moves = [any(v in ends.by_rows or self.in_dram(v) for v in _maps(op)) for op in self.layers]
        """Whether a layer has maps that are not whole in SBUF."""
        self.streamed = {v: self._positions(v) for v in ends.by_rows}
        reserve = STREAMED_RESERVE_PERCENT if self.streamed else RESERVE_PERCENT
        self.capacity = self.machine.sbuf.bytes_per_partition * (100 - reserve) // 100

    def with_ends(self, ends: Ends) -> Grouping:
        """The same layers, where maps come and go otherwise."""
        other = copy(self)
        other._begin(ends)
        return other

    def _positions(self, value: SSAValue) -> list[int]:
        """The layers that make and use a value, in order."""
        found = {self.position[use.operation] for use in value.uses if use.operation in self.position}
        owner = _owner(value)
        if owner is not None and owner in self.position:
            found.add(self.position[owner])
        return sorted(found)

    def _made_at(self, value: SSAValue) -> int:
        """The layer that makes a value; -1 for what comes from outside the block."""
        owner = _owner(value)
        return -1 if owner is None else self.position.get(owner, -1)

    def _last_use(self, op: Operation) -> int:
        """The last layer that uses a result; one past the end for what leaves the block."""
        found = self.position[op]
        for result in op.results:
            for use in result.uses:
                found = max(found, self.position.get(use.operation, len(self.layers)))
        return found

    def is_group(self, start: int, stop: int) -> bool:
        """Whether an interval becomes a group: a single layer does when that costs less than tiles of its own."""
        tile = self.tiles.get((start, stop))
        return tile is not None and (stop - start > 1 or tile.time_ps <= self.alone(start))

    def as_one(self) -> TileCost | None:
        """The tile of all layers as one group that works in step with other stages: none of its maps passes DRAM then,
        and none of its neighbours waits for more than rows.
        """
        count = len(self.layers)
        if not self.streamed or not self.able_together(0, count):
            return None
        return self.tile(0, count)

    def has_room(self, intervals: Sequence[tuple[int, int]]) -> bool:
        """Whether maps between intervals that need not pass DRAM have room for that in SBUF beside all weights."""
        weights = sum(e.resident_bytes for e in self.estimates)
        return all(
            weights + self.live(start, stop) + max(self.working[start:stop]) <= self.capacity
            for start, stop in intervals
        )

    def alone(self, position: int) -> int:
        """Time of a layer without a group, ps: its large maps come from DRAM and go there."""
        key = position, self.rate
        if key not in self._alone:
            self._alone[key] = self._time_alone(position)
        return self._alone[key]

    def _time_alone(self, position: int) -> int:
        op = self.layers[position]
        beside = self.estimates[position].work.dma_bytes + self.again_bytes(position)
        moving = service_ps(self.alone_bytes(position) + beside, self.rate)
        span = self.estimates[position].span_ps
        if any(self.in_dram(v) for v in op.results) or not moving:
            return span + moving if self.streamed else max(span, moving)
        # Its operands come whole.
        whole = sum(self.size(v) for v in op.operands if not is_constant(_owner(v)) and self.in_dram(v))
        short = whole + self.live(position, position + 1) > self.capacity
        return NEVER if short else span + moving

    def cost(self, start: int, stop: int) -> int | None:
        """Time of an interval, ps; None when it cannot be a group."""
        able = self.able_together(start, stop)
        # Layers at an end that have all their maps in SBUF only take room there from the others.
        able = able and self.moves[start]
        if stop - start == 1:
            tile = self.tile(start, stop) if able and self.alone_bytes(start) else None
            return self.alone(start) if tile is None else min(tile.time_ps, self.alone(start))
        if not able:
            return None
        if not self.moves[stop - 1]:
            return NEVER
        tile = self.tile(start, stop)
        return None if tile is None else tile.time_ps

    def able_together(self, start: int, stop: int) -> bool:
        """Whether an interval can go by rows."""
        one_batch = len({_batch(op) for op in self.layers[start:stop]}) == 1
        return all(self.able[start:stop]) and one_batch and all(first < start for first in self.packed[start:stop])

    def least(self, start: int, stop: int) -> int:
        """No group of these layers costs less, ps."""
        return 0 if stop - start == 1 else self.spans[stop] - self.spans[start] + STEP_PS * (stop - start - 1)

    def results(self, start: int, stop: int) -> list[SSAValue]:
        """Values of an interval that are used after it."""
        return [op.results[0] for op in self.layers[start:stop] if self.last_use[self.position[op]] >= stop]

    def _group(self, start: int, stop: int) -> GroupRows:
        """An interval as a depth-first group."""
        units = [self._unit(op) for op in self.layers[start:stop]]
        inside = {unit.op.results[0] for unit in units}
        outside = dict.fromkeys(r.operand for unit in units for r in unit.reads if r.operand not in inside)
        packed = [u.value for unit in units if (u := self.facts.unfolding(unit.op)) is not None]
        once = [value for value in outside if value not in packed and self.in_dram(value)]
        return units_rows(list(outside), units, self.results(start, stop), once)

    def _unit_of(self, op: Operation) -> Unit:
        """What a layer that is `able` reads."""
        reads = unit_reads(op)
        assert not isinstance(reads, str)
        return Unit(op, reads)

    def by_rows(self, start: int, stop: int) -> list[SSAValue]:
        """Maps that can come to an interval from another stage by rows, or go there: no other layer uses them."""
        if self.ends.alone:
            return [
                v
                for v, users in self.streamed.items()
                if users[0] < stop and users[-1] >= start and (users[0] < start or users[-1] >= stop)
            ]
        return [value for value, users in self.streamed.items() if users[0] >= start and users[-1] < stop]

    def tile(self, start: int, stop: int) -> TileCost | None:
        """The tile of an interval; None when it does not fit SBUF."""
        key = start, stop
        if key not in self.tiles:
            weights = sum(e.resident_bytes for e in self.estimates[start:stop])
            room = self.capacity - weights - self.live(start, stop) - max(self.working[start:stop])
            self.tiles[key] = self.choose(start, stop, room) if room > 0 else None
        return self.tiles[key]

    def choose(self, start: int, stop: int, room: int) -> TileCost | None:
        """The tile of an interval with so much room for buffers; equal groups are looked at once."""
        group = self.group(start, stop)
        spans = [e.span_ps for e in self.estimates[start:stop]]
        in_dram, by_rows = group_in_dram(self.facts, group), self.by_rows(start, stop)
        in_step = bool(self.streamed)
        own = group_cost(self.facts, group, spans, in_dram, self.rate, by_rows, in_step, self.ends.hosted)
        if (own, room) not in self.chosen:
            self.chosen[own, room] = choose_tile(self.machine, own, room, self.rows, self.recompute)
        return self.chosen[own, room]

    def live(self, start: int, stop: int) -> int:
        """Bytes per partition of whole maps in SBUF while an interval runs: made before or in it, used in it or
        later.
        """
        total = 0
        by_rows = set(self.by_rows(start, stop))
        for position in range(start if self.ends.alone else 0, stop):
            last = self.last_use[position]
            needed = last >= start if position < start else last >= stop
            if needed:
                for result in self.layers[position].results:
                    if result not in by_rows and not self.in_dram(result):
                        total += self.size(result)
        return total

    def _alone_bytes(self, position: int) -> int:
        """DRAM traffic of a layer's large maps."""
        op = self.layers[position]
        return sum(charged_bytes(self.machine, v) for v in dict.fromkeys(_maps(op)) if self.in_dram(v))

    def _again_bytes(self, position: int) -> int:
        """Weights that a layer on its own reads again for every tile of rows, as they are too much to stay for it."""
        estimate = self.estimates[position]
        maps = [v for v in _maps(self.layers[position]) if self.in_dram(v)]
        if not maps or estimate.resident_bytes * WEIGHT_SHARE <= self.machine.sbuf.bytes_per_partition:
            return 0
        tiles = max(-(-self.size(v) // TILE_BYTES) for v in maps)
        return estimate.weight_bytes * (tiles - 1)


@dataclass(frozen=True)
class Ends:
    """How maps come to a block and leave it.

    Attributes:
        by_rows: maps that may come from other stages by rows, or go there.
        hosted: inputs and outputs of the network.
        alone: whether each interval is looked at as a stage of its own; `by_rows` are then maps that may go by rows
            wherever the network is cut.
    """

    by_rows: dict[SSAValue, None] = field(default_factory=dict[SSAValue, None])
    hosted: frozenset[SSAValue] = frozenset()
    alone: bool = False

    @staticmethod
    def of_stage(machine: Machine, block: Block, stream_rows: bool) -> Ends:
        """Those of a stage; of another block there is nothing to say."""
        stage = block.parent_op()
        last = block.last_op
        if not stream_rows or not isinstance(stage, StageOp) or not isinstance(last, YieldOp):
            return Ends()
        found: list[SSAValue] = [a for i, a in enumerate(block.args) if may_go_by_rows(machine, stage, i)]
        hosted: list[SSAValue] = [
            a for a, v in zip(block.args, stage.arguments, strict=True) if isinstance(v.owner, InputOp)
        ]
        for value, result in zip(last.values, stage.results_, strict=True):
            readers = [(use.operation, use.index) for use in result.uses]
            if readers and all(isinstance(op, StageOp) and may_go_by_rows(machine, op, index) for op, index in readers):
                found.append(value)
            if not any(isinstance(op, StageOp) for op, _ in readers):
                hosted.append(value)
        return Ends(dict.fromkeys(found), frozenset(hosted))

    @staticmethod
    def of_any_stage(block: Block) -> Ends:
        """Those of any run of a block's layers."""
        last = block.last_op
        leaves: list[SSAValue] = [] if last is None else list(last.operands)
        found: list[SSAValue] = []
        for op in block.ops:
            found += [
                r
                for r in op.results
                if not is_constant(op) and is_map(r) and r not in leaves and _by_rows(op, [u.operation for u in r.uses])
            ]
        return Ends(dict.fromkeys(found), frozenset([*block.args, *leaves]), alone=True)


def may_go_by_rows(machine: Machine, stage: StageOp, operand: int) -> bool:
    """Whether a stream from another stage may go by rows, once there are depth-first groups: who makes it and all who
    read it can, and both stages have maps too large for SBUF.
    """
    value = stage.arguments[operand]
    writer = value.owner
    if not isinstance(writer, StageOp) or len(writer.core_list()) != len(stage.core_list()):
        return False
    last = writer.body.block.last_op
    if not isinstance(last, YieldOp) or list(stage.arguments).count(value) != 1:
        return False
    source = last.values[list[SSAValue](writer.results_).index(value)].owner
    argument = stage.body.block.args[operand]
    if not isinstance(source, Operation) or not _by_rows(source, [use.operation for use in argument.uses]):
        return False
    return is_map(argument) and all(_has_large(machine, s.body.block) for s in (writer, stage))


def _by_rows(source: Operation, users: Sequence[Operation]) -> bool:
    """Whether who makes a map and who reads it can go by rows."""
    return all(
        (isinstance(op, nn.FusedOp) and op.tile is not None) or (why_not(op) is None and unfolding_of(op) is None)
        for op in users
    ) and ((isinstance(source, nn.FusedOp) and source.tile is not None) or why_not(source) is None)


def _has_large(machine: Machine, block: Block) -> bool:
    """Whether a stage has maps that do not fit SBUF."""
    values = [*block.args, *(r for op in block.ops if not is_constant(op) for r in op.results)]
    return any(is_map(v) and stays_in_dram(machine, v) for v in values)


def dram_share(machine: Machine, block: Block) -> int:
    """Bytes per second of DRAM that a stage can count on for maps: a chip's are shared by all of its cores that the
    program uses, and by the weights that the stage reads for each request, by `pipe-stage`. Those run ahead, and so
    make room where maps move; at most half of the rate is taken to be theirs.
    """
    stage = block.parent_op()
    program = stage.parent_op() if isinstance(stage, StageOp) else None
    if not isinstance(stage, StageOp) or not isinstance(program, ProgramOp):
        return core_dma_bytes_per_s(machine)
    chips = [core // machine.chip.cores for other in program.stages() for core in other.core_list()]
    sharing = max(chips.count(core // machine.chip.cores) for core in stage.core_list())
    rate = min(core_dma_bytes_per_s(machine), dram_bytes_per_s(machine) // sharing)
    streamed, moved, time = (_number(stage, name) for name in ("streamed_bytes", "dram_bytes", "cost_ps"))
    request_ps = max(time, service_ps(moved, rate), 1)
    return rate - min(rate // 2, streamed * PS_PER_S // request_ps)


def _number(stage: StageOp, name: str) -> int:
    """What `pipe-stage` says of a stage; 0 if it does not."""
    found = stage.attributes.get(name)
    return found.value.data if isinstance(found, IntegerAttr) else 0


def _maps(op: Operation) -> list[SSAValue]:
    """What a layer reads and makes besides constants."""
    return [v for v in (*op.operands, *op.results) if not is_constant(_owner(v))]


def _batch(op: Operation) -> int:
    """Images of a layer's result."""
    return type_of(op.results[0]).get_shape()[0]


def _owner(value: SSAValue) -> Operation | None:
    return value.owner if isinstance(value.owner, Operation) else None
