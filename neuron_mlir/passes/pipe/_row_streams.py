"""Which streams between stages can go by rows, and how deep their rings must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import Tensor, type_of
from neuron_mlir.dialects.pipe.ops import InputOp, OutputOp, ProgramOp, StageOp, YieldOp
from neuron_mlir.machine import Machine
from neuron_mlir.passes.depth_first_cost import (
    Facts,
    group_cost,
    group_in_dram,
    stays_in_dram,
    tile_cost,
    working_bytes,
)
from neuron_mlir.passes.depth_first_rows import from_constant, group_rows, is_map, plain_reads, unit_reads
from neuron_mlir.passes.estimate import estimate_group, is_constant, partition_bytes, tensor_bytes
from neuron_mlir.passes.layouts import element_bytes
from neuron_mlir.passes.unfolding import ROWS
from neuron_mlir.solvers.row_schedule import RowSchedule, schedule_rows
from neuron_mlir.solvers.stream_depths import Event, Stuck, least_depths

RESERVE_PERCENT = 5
"""Part of SBUF left for what is not known here: alignment, and gaps between buffers."""


@dataclass(eq=False)
class RowStream:
    """A stream that can go by rows.

    Attributes:
        value: the stream, a result of a stage.
        made: the writer's group and which of its results it is.
        reader: the stage that reads it.
        operand: which of its operands it is.
        group: the reader's group.
        images: images of a tile, the same on both sides.
        rows: of a slot.
        written: rows of each step of the writer, in slots.
        read: the same of the reader.
        slot_bytes: SBUF bytes per partition of a slot.
        depth: slots of its ring.
    """

    value: SSAValue
    made: tuple[nn.FusedOp, int]
    reader: StageOp
    operand: int
    group: nn.FusedOp
    images: int
    rows: int
    written: tuple[int, ...]
    read: tuple[int, ...]
    slot_bytes: int
    depth: int = 0

    @property
    def tensor(self) -> Tensor:
        """Type of the map."""
        return type_of(self.made[0].outputs[self.made[1]])

    @property
    def parts(self) -> int:
        """Slots of a request."""
        shape = self.tensor.get_shape()
        return shape[0] // self.images * (shape[ROWS] // self.rows)

    @property
    def saved_bytes(self) -> int:
        """DRAM traffic of a request that it spares: the whole map written and read."""
        return 2 * tensor_bytes(self.tensor)


@dataclass
class _Group:
    """A depth-first group with the schedule of its rows."""

    op: nn.FusedOp
    maps: tuple[SSAValue, ...]
    schedule: RowSchedule

    @staticmethod
    def of(op: nn.FusedOp, known: dict[nn.FusedOp, _Group | None]) -> _Group | None:
        """None for a group whose rows do not come and go once each."""
        if op not in known:
            known[op] = None
            if op.tile is not None and not op.recompute:
                layers = [o for o in op.body.block.ops if not isinstance(o, nn.YieldOp) and not is_constant(o)]
                reads = {layer: unit_reads(layer) for layer in layers}
                plain: list[SSAValue] = []
                every: list[SSAValue] = []
                for layer, found in reads.items():
                    assert not isinstance(found, str)
                    plain += plain_reads(layer)
                    every += [r.operand for r in found]
                outside = [a for a in op.body.block.args if is_map(a) and not from_constant(a) and a in every]
                group = group_rows(outside, layers, op.yielded, [a for a in outside if a in plain])
                known[op] = _Group(op, group.maps, schedule_rows(group.rows, op.tile[1]))
        return known[op]

    def steps(self, value: SSAValue) -> list[tuple[int, int]]:
        """First row and one past the last that each step makes or takes of a map."""
        index = self.maps.index(value)
        parts = (self.schedule.step(n)[index] for n in range(self.schedule.steps))
        return [(part.start, part.stop) for part in parts]

    def once(self, value: SSAValue) -> bool:
        """Whether the rows of a map from outside come once each."""
        return value in self.maps and self.schedule.values[self.maps.index(value)].once


def choose_streams(program: ProgramOp, machine: Machine, percent: int) -> tuple[list[RowStream], list[SSAValue]]:
    """Streams that go by rows, with the depths of their rings; and those of feature maps between stages that do not.

    Args:
        program: in value form.
        machine: it runs on.
        percent: most of a core's SBUF that rings may take.
    """
    known: dict[nn.FusedOp, _Group | None] = {}
    maps: list[SSAValue] = []
    streams: list[RowStream] = []
    for stage in program.stages():
        for operand, value in enumerate(stage.arguments):
            if isinstance(value.owner, StageOp) and is_map(stage.body.block.args[operand]):
                maps.append(value)
                stream = _stream(stage, operand, known)
                if stream is not None:
                    streams.append(stream)
    while streams:
        _start(streams)
        answer = least_depths(*_processes(program, streams, known))
        if isinstance(answer, Stuck):
            streams = _without_stuck(program, streams, answer, known)
            continue
        for stream, depth in zip(streams, answer, strict=False):
            stream.depth = depth
        over = _first_over(program, streams, machine, percent)
        if over is None:
            break
        streams.remove(over)
    _deepen(program, streams, machine, percent)
    taken = [stream.value for stream in streams]
    return streams, [value for value in maps if value not in taken]


def _stream(stage: StageOp, operand: int, known: dict[nn.FusedOp, _Group | None]) -> RowStream | None:
    """The stream of an operand, by rows; None where that cannot be."""
    value = stage.arguments[operand]
    writer = value.owner
    assert isinstance(writer, StageOp)
    last = writer.body.block.last_op
    if not isinstance(last, YieldOp) or len(writer.core_list()) != len(stage.core_list()):
        return None
    if list(stage.arguments).count(value) != 1:
        return None
    source = last.values[list[SSAValue](writer.results_).index(value)]
    argument = stage.body.block.args[operand]
    uses = list(argument.uses)
    target = uses[0].operation if len(uses) == 1 else None
    if not isinstance(source.owner, nn.FusedOp) or not isinstance(target, nn.FusedOp):
        return None
    makes, takes = _Group.of(source.owner, known), _Group.of(target, known)
    inner = target.body.block.args[list(target.inputs).index(argument)]
    if makes is None or takes is None or not takes.once(inner):
        return None
    number = list[SSAValue](source.owner.outputs).index(source)
    assert source.owner.tile is not None and target.tile is not None
    shape = type_of(source).get_shape()
    images = min(source.owner.tile[0], shape[0])
    if images != min(target.tile[0], shape[0]) or shape[0] % images:
        return None
    written, read = makes.steps(source.owner.yielded[number]), takes.steps(inner)
    rows = gcd(*(row for step in (*written, *read) for row in step))
    slot = images * rows * shape[3] * -(-shape[1] // 128) * element_bytes(type_of(source).element_type)
    made = source.owner, number
    stream = RowStream(
        value,
        made,
        stage,
        operand,
        target,
        images,
        rows,
        tuple((b - a) // rows for a, b in written),
        tuple((b - a) // rows for a, b in read),
        slot,
    )
    return stream if stream.parts > 1 else None


def _start(streams: Sequence[RowStream]) -> None:
    """Depths to start from: what the writer and the reader have in hand in most steps."""
    for stream in streams:
        stream.depth = min(
            stream.parts, max(stream.written[1:-1] or stream.written) + max(stream.read[1:-1] or stream.read)
        )


def _group_bytes(machine: Machine, op: nn.FusedOp, streams: Sequence[RowStream]) -> int:
    """What a depth-first group takes in every SBUF partition besides rings of rows: its weights, what the layer at work
    needs, line buffers and tiles.
    """
    assert op.tile is not None
    layers = [o for o in op.body.block.ops if not isinstance(o, nn.YieldOp) and not is_constant(o)]
    found = [estimate_group(machine, layer) for layer in layers]
    working = [working_bytes(machine, o, e.working_bytes) for o, e in zip(layers, found, strict=True)]
    outside = [a for a in op.body.block.args if is_map(a) and not from_constant(a)]
    group = group_rows(outside, layers, op.yielded, outside)
    by_rows: list[SSAValue] = [op.body.block.args[_input(op, s)] for s in streams if s.group is op]
    by_rows += [op.yielded[s.made[1]] for s in streams if s.made[0] is op]
    facts = Facts(machine)
    own = group_cost(facts, group, [0] * len(layers), group_in_dram(facts, group), 1, by_rows)
    cost = tile_cost(machine, own, min(op.tile[0], own.batch), op.tile[1], op.recompute)
    return sum(e.resident_bytes for e in found) + max(working) + cost.line_bytes - cost.ring_bytes


def _deepen(program: ProgramOp, streams: Sequence[RowStream], machine: Machine, percent: int) -> None:
    """Where a stage does more than the group that a stream comes from or goes to, its neighbour waits meanwhile, unless
    the ring holds what passes in that time. So rings get deeper where there is room; no stage waits longer for that.
    """
    stages = program.stages()
    spans: dict[Operation, int] = {op: estimate_group(machine, op).span_ps for s in stages for op in _layers(s)}
    totals = {stage: max(1, sum(spans[op] for op in _layers(stage))) for stage in stages}
    longest = max(totals.values())
    for stage in stages:
        mine = [stream for stream in streams if stream.reader is stage]
        if not mine:
            continue
        room = machine.sbuf.bytes_per_partition * (100 - RESERVE_PERCENT) // 100
        room = min(
            room - _peak_bytes(machine, stage, streams), machine.sbuf.bytes_per_partition * percent // 100
        ) - sum(stream.depth * stream.slot_bytes for stream in mine)
        for stream in mine:
            writer = stream.made[0].parent_op()
            assert isinstance(writer, StageOp)
            wanted = 0
            for op, own, other in ((stream.made[0], writer, stage), (stream.group, stage, writer)):
                # Of what one side does besides, the other one waits through what it has to spare.
                pause = totals[own] - spans[op] - (longest - totals[other])
                wanted = max(wanted, stream.parts * pause // totals[other])
            more = max(0, min(wanted, stream.parts - stream.depth, room // stream.slot_bytes))
            stream.depth += more
            room -= more * stream.slot_bytes


def _layers(stage: StageOp) -> list[Operation]:
    """The layers and groups of a stage, in order."""
    return [
        op
        for op in stage.body.block.ops
        if op.name.startswith("nn.") and not is_constant(op) and not isinstance(op, nn.YieldOp)
    ]


def _peak_bytes(machine: Machine, stage: StageOp, streams: Sequence[RowStream]) -> int:
    """Most bytes per partition that a stage needs at a time besides rings of rows: whole maps in SBUF, and what a group
    needs, or another layer; and, if it streams none, all weights.
    """
    layers = _layers(stage)
    place = {op: i for i, op in enumerate(layers)}
    alive = [0] * len(layers)
    by_rows = {stream.made[0].yielded[stream.made[1]] for stream in streams}
    for made, op in enumerate(layers):
        for number, value in enumerate(op.results):
            inner = op.yielded[number] if isinstance(op, nn.FusedOp) else value
            if inner in by_rows or stays_in_dram(machine, value):
                continue
            last = max((place.get(use.operation, len(layers) - 1) for use in value.uses), default=made)
            for at in range(made, last + 1):
                alive[at] += partition_bytes(machine, value)
    most = 0
    for op, size in zip(layers, alive, strict=True):
        if isinstance(op, nn.FusedOp) and op.tile is not None:
            size += _group_bytes(machine, op, streams)
        else:
            found = estimate_group(machine, op)
            size += found.working_bytes + found.streaming_bytes
        most = max(most, size)
    if "streamed_bytes" in stage.attributes:
        return most
    held = max(_weights(machine, op) for op in layers)
    return most + sum(_weights(machine, op) for op in layers) - held


def _weights(machine: Machine, op: Operation) -> int:
    return estimate_group(machine, op).resident_bytes


def _first_over(program: ProgramOp, streams: Sequence[RowStream], machine: Machine, percent: int) -> RowStream | None:
    """Of the rings that do not fit beside the other buffers of their core, the one that spares least for its bytes."""
    capacity = machine.sbuf.bytes_per_partition
    for stage in program.stages():
        mine = [stream for stream in streams if stream.reader is stage]
        if not mine:
            continue
        total = sum(stream.depth * stream.slot_bytes for stream in mine)
        groups = [op for op in stage.body.block.ops if isinstance(op, nn.FusedOp) and op.tile is not None]
        used = max(_group_bytes(machine, op, streams) for op in groups)
        if (total + used) * 100 > capacity * (100 - RESERVE_PERCENT) or total * 100 > capacity * percent:
            return min(mine, key=lambda s: s.saved_bytes // (s.depth * s.slot_bytes))
    return None


@dataclass
class _Buffers:
    """The rings as the solver sees them: counters of what is full and what is free again, two for each."""

    start: list[int] = field(default_factory=list[int])
    most: list[int] = field(default_factory=list[int])
    sizes: list[int] = field(default_factory=list[int])

    def add(self, start: int, most: int, size: int) -> int:
        """Another ring; its number."""
        self.start.append(start)
        self.most.append(most)
        self.sizes.append(size)
        return len(self.start) - 1


def _processes(
    program: ProgramOp, streams: Sequence[RowStream], known: dict[nn.FusedOp, _Group | None]
) -> tuple[list[list[Event]], list[int], list[int], list[int]]:
    """What stages and host do, in order, for as many requests as it takes for the pipeline to fill, and two more.

    Streams by rows come first among the buffers. Whole requests are taken from the beginning of a stage's turn to its
    end, which is longer than they are: what gets through so, does.
    """
    buffers = _Buffers()
    for stream in streams:
        buffers.add(stream.depth, stream.parts, stream.slot_bytes)
    stages = program.stages()
    order: dict[Operation, int] = {stage: i for i, stage in enumerate(stages)}
    by_rows = {(stream.value, stream.reader): number for number, stream in enumerate(streams)}
    whole: dict[tuple[SSAValue, Operation], int] = {}
    for op in program.body.block.ops:
        for value in (*op.results,) if isinstance(op, (StageOp, InputOp)) else ():
            for reader in dict.fromkeys(use.operation for use in value.uses):
                if (value, reader) not in by_rows:
                    slots = order[reader] - order[op] + 1 if op in order and reader in order else 2
                    whole[value, reader] = buffers.add(slots, slots, 1)
    requests = len(stages) + 2
    processes: list[list[Event]] = []
    for op in program.body.block.ops:
        if not isinstance(op, (StageOp, InputOp, OutputOp)):
            continue
        turns = [_turn(op, whole, streams, known)] * requests
        processes.append(_numbered(turns))
    return processes, buffers.start, buffers.most, buffers.sizes


_Step = tuple[str, int, int]
"""What is done, to which ring, and with how many slots."""


def _turn(
    op: StageOp | InputOp | OutputOp,
    whole: dict[tuple[SSAValue, Operation], int],
    streams: Sequence[RowStream],
    known: dict[nn.FusedOp, _Group | None],
) -> list[_Step]:
    """What one of them does for a request."""
    inputs = [ring for (_, reader), ring in whole.items() if reader is op]
    outputs = [ring for (value, _), ring in whole.items() if value.owner is op]
    found: list[_Step] = [("take", ring, 1) for ring in inputs] + [("reserve", ring, 1) for ring in outputs]
    layers = op.body.block.ops if isinstance(op, StageOp) else ()
    for layer in layers:
        if not isinstance(layer, nn.FusedOp):
            continue
        comes = [(n, s) for n, s in enumerate(streams) if s.group is layer and s.reader is op]
        goes = [(n, s) for n, s in enumerate(streams) if s.made[0] is layer]
        if comes or goes:
            found += _group_turn(layer, comes, goes, known)
    found += [("free", ring, 1) for ring in inputs] + [("fill", ring, 1) for ring in outputs]
    return found


def _group_turn(
    layer: nn.FusedOp,
    comes: Sequence[tuple[int, RowStream]],
    goes: Sequence[tuple[int, RowStream]],
    known: dict[nn.FusedOp, _Group | None],
) -> list[_Step]:
    """What a group does with streams of rows for a request: in each step it takes rows, then gives some."""
    group = known[layer]
    assert group is not None
    turns = max(s.tensor.get_shape()[0] // s.images for _, s in (*comes, *goes))
    place = {value: i for i, value in enumerate(group.maps)}
    comes = sorted(comes, key=lambda item: place[layer.body.block.args[_input(layer, item[1])]])
    goes = sorted(goes, key=lambda item: place[layer.yielded[item[1].made[1]]])
    found: list[_Step] = []
    for step in range(group.schedule.steps):
        in_place: list[_Step] = []
        for number, stream in comes:
            count = stream.read[step]
            found += [("take", number, 1), ("free", number, 1)] * (count - 1)
            if count:
                found.append(("take", number, 1))
                in_place.append(("free", number, 1))
        for number, stream in goes:
            found += [("reserve", number, 1), ("fill", number, 1)] * stream.written[step]
        found += in_place  # a slot that is read in place is free only after the step
    return found * turns


def _input(layer: nn.FusedOp, stream: RowStream) -> int:
    return list(layer.inputs).index(stream.reader.body.block.args[stream.operand])


def _numbered(turns: Sequence[Sequence[_Step]]) -> list[Event]:
    """The events, with the values that counters must have: ring `n` has counters `2 n` (full) and `2 n + 1` (free)."""
    counts: dict[tuple[str, int], int] = {}
    found: list[Event] = []
    for turn in turns:
        for kind, ring, count in turn:
            for _ in range(count):
                done = counts[kind, ring] = counts.get((kind, ring), 0) + 1
                if kind == "take":
                    found.append(Event(2 * ring, done))
                elif kind == "reserve":
                    found.append(Event(2 * ring + 1, done, ring))
                else:
                    found.append(Event(2 * ring + (kind == "free")))
    return found


def _without_stuck(
    program: ProgramOp, streams: list[RowStream], stuck: Stuck, known: dict[nn.FusedOp, _Group | None]
) -> list[RowStream]:
    """The streams without those whose full rings hold stages up for ever; without all that stages wait at, if there is
    none.
    """
    processes = _processes(program, streams, known)[0]
    events = [processes[p][at] for p, at in stuck.waiting]
    for waits in ({event.buffer for event in events}, {event.counter // 2 for event in events}):
        left = [stream for number, stream in enumerate(streams) if number not in waits]
        if len(left) < len(streams):
            return left
    return []
