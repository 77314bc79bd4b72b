"""The rings that streams become: whole requests in DRAM, or rows in the SBUF of the core that reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from xdsl.dialects.builtin import ArrayAttr, IntegerAttr, i64
from xdsl.ir import Attribute, Block, Operation, SSAValue
from xdsl.rewriter import Rewriter

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.dialects.core.memory import DRAM, SBUF, buffer_bytes, buffer_type
from neuron_mlir.dialects.pipe.ops import InputOp, ProgramOp, RingOp, RowsAttr, RunOp, StageOp, StreamType, YieldOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import Machine
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home
from neuron_mlir.passes.core.lowering.turned import passes_turned, turned_axes
from neuron_mlir.passes.unfolding import ROWS

RING_DEPTH = 2
"""Slots of a ring between neighbouring stages: one being written while the other is read."""


class Rings:
    """The rings of a program: one for each stream and each output that reads it, and each chip with stages that do.

    A value that several stages of a chip read is written there once, and passed on from reader to reader; stages of
    replicas share a ring if they have a replica each on every lane. Where rows go from stage to stage, each reader has
    a ring of its own: waiting for each other in another way than through the rows, stages might stand still.
    """

    def __init__(self, program: ProgramOp, machine: Machine):
        self.program = program
        self.machine = machine
        self.rings: dict[tuple[SSAValue, Operation], RingOp] = {}
        self.turned: set[RingOp] = set()
        """Rings whose slots are the transposed matrix."""
        stages = program.stages()
        order = {stage: i for i, stage in enumerate(stages)}
        for op in list(program.body.block.ops):
            if isinstance(op, InputOp):
                for use in _readers(op.result[0]):
                    # The host fills a lane for each replica; what goes straight to an output passes one chip's DRAM.
                    cores = use.core_list() if isinstance(use, StageOp) else (0,)
                    ring = self.make(op.result[0], use, op.label.data, cores, RING_DEPTH)
                    new = InputOp(op.label.data, ring=ring.result)
                    new.location = op.location
                    program.body.block.add_op(new)
            elif isinstance(op, StageOp):
                for result in op.results_:
                    label = result.name_hint or op.sym_name.data
                    shared: dict[tuple[int, ...], RingOp] = {}
                    for use in _readers(result):
                        if not isinstance(use, StageOp):
                            self.make(result, use, label, op.core_list(), RING_DEPTH)
                            continue
                        lanes = math.gcd(len(op.core_list()), len(use.core_list()))
                        rows = rows_of(use, result)
                        if rows is not None:
                            self.make_rows(result, use, label, rows, len(op.core_list()))
                            continue
                        cores = use.core_list()[:lanes]
                        # A request in each replica on the way from the writer to the reader.
                        on_the_way = stages[order[op] : order[use] + 1]
                        depth = sum(-(-len(stage.core_list()) // lanes) for stage in on_the_way)
                        chips = tuple(core // machine.chip.cores for core in cores)
                        alone = lanes < len(use.core_list()) or any("pipe.streams" in s.attributes for s in on_the_way)
                        if alone or chips not in shared:
                            ring = self.make(result, use, label, cores, depth)
                            if not alone:
                                shared[chips] = ring
                        else:
                            self.rings[result, use] = _deepen(shared[chips], depth)
        for stage in stages:
            last = stage.body.block.last_op
            assert isinstance(last, YieldOp)
            for result, inside in zip(stage.results_, last.values, strict=True):
                self.turn(result, inside)

    def turn(self, value: SSAValue, inside: SSAValue) -> None:
        """Exchange the axes of those rings of a stream whose writer and readers all have them so."""
        axes = turned_axes(inside)
        if axes is None:
            return
        for ring in self.from_(value):
            readers = [reader for (source, reader), other in self.rings.items() if source is value and other is ring]
            stages = [reader for reader in readers if isinstance(reader, StageOp)]
            wanted = [(s, s.body.block.args[list(s.arguments).index(value)]) for s in stages]
            if ring.parts > 1 or len(stages) < len(readers) or not passes_turned(inside, wanted):
                continue
            self.turned.add(ring)
            Rewriter.replace_value_with_new_type(
                ring.result,
                buffer_type(_swapped(ring.type.get_shape(), axes), ring.type.element_type, DRAM),
            )

    def make(self, value: SSAValue, reader: Operation, label: str, cores: Sequence[int], depth: int) -> RingOp:
        """A ring of whole requests with a lane on the chip of each of the cores."""
        tensor = _tensor(value)
        shape = tuple(tensor.get_shape())
        chips = [core // self.machine.chip.cores for core in cores]
        return self.add(
            value, reader, RingOp(label, depth, chips, buffer_type((depth, *shape), tensor.element_type, DRAM))
        )

    def make_rows(self, value: SSAValue, reader: StageOp, label: str, rows: RowsAttr, writers: int) -> RingOp:
        """A ring of rows in the SBUF of each core of the reader.

        Raises `NeuronError` for another number of writers, or rows and images that do not divide the map's.
        """
        tensor = _tensor(value)
        shape = tuple(tensor.get_shape())
        depth, images, height = (n.data for n in (rows.depth, rows.images, rows.rows))
        if writers != len(reader.core_list()):
            raise NeuronError(
                "a stream of rows goes from each replica of a stage to one of the next",
                op=reader,
                needed=f"{writers} cores",
                available=len(reader.core_list()),
            )
        if len(shape) != 4 or shape[0] % images or shape[ROWS] % height:
            raise NeuronError(
                f"a map of shape {list(shape)} does not go by {images} images and {height} rows",
                op=reader,
                advice="numbers that divide it (pipe-stream-rows finds them)",
            )
        parts = shape[0] // images * (shape[ROWS] // height)
        sizes = (min(shape[1], LANES), depth, -(-shape[1] // LANES), images, height, shape[3])
        type = buffer_type(sizes, tensor.element_type, SBUF)
        return self.add(value, reader, RingOp(label, depth, reader.core_list(), type, chunks=parts))

    def add(self, value: SSAValue, reader: Operation, ring: RingOp) -> RingOp:
        """Keep a ring."""
        ring.result.name_hint = value.name_hint
        self.program.body.block.add_op(ring)
        self.rings[value, reader] = ring
        return ring

    def ring_to(self, value: SSAValue, reader: Operation) -> RingOp:
        """The ring through which `reader` gets a stream."""
        ring = self.rings.get((value, reader))
        if ring is None:
            raise NeuronError("a graph input goes straight to a graph output; nothing computes it", op=reader)
        return ring

    def from_(self, value: SSAValue) -> list[RingOp]:
        """All rings a stage's result goes to."""
        return list(dict.fromkeys(ring for (source, _), ring in self.rings.items() if source is value))

    def sbuf_bytes(self, stage: StageOp) -> int:
        """Bytes per partition that rings take on each core of a stage."""
        return sum(
            buffer_bytes(ring.type)
            for (_, reader), ring in self.rings.items()
            if reader is stage and ring.type.memory_space == SBUF
        )


def _deepen(ring: RingOp, depth: int) -> RingOp:
    """The ring, with at least so many slots."""
    if depth > ring.depth.value.data:
        shape = tuple(ring.type.get_shape())[1:]
        ring.properties["depth"] = IntegerAttr(depth, i64)
        Rewriter.replace_value_with_new_type(ring.result, buffer_type((depth, *shape), ring.type.element_type, DRAM))
    return ring


def rows_of(stage: StageOp, value: SSAValue) -> RowsAttr | None:
    """How a stage takes a stream by rows; None for whole requests.

    Raises `NeuronError` for another number of entries than the stage has operands.
    """
    streams = stage.attributes.get("pipe.streams")
    if not isinstance(streams, ArrayAttr):
        return None
    entries = list(cast("ArrayAttr[Attribute]", streams))
    if len(entries) != len(stage.arguments):
        raise NeuronError(
            "pipe.streams has an entry for each operand of a stage",
            op=stage,
            needed=len(stage.arguments),
            available=len(entries),
        )
    found = entries[list(stage.arguments).index(value)]
    return found if isinstance(found, RowsAttr) else None


def _swapped(shape: Sequence[int], axes: tuple[int, int]) -> tuple[int, ...]:
    """The shape of a ring with two axes of its slots exchanged."""
    sizes = list(shape)
    a, b = (1 + axis for axis in axes)
    sizes[a], sizes[b] = sizes[b], sizes[a]
    return tuple(sizes)


def _tensor(value: SSAValue) -> nn.Tensor:
    assert isinstance(value.type, StreamType)
    return cast(nn.Tensor, value.type.element)


def _readers(value: SSAValue) -> list[Operation]:
    found: list[Operation] = []
    for use in value.uses:
        if use.operation not in found:
            found.append(use.operation)
    return sorted(found, key=_position)


def _position(op: Operation) -> int:
    block = op.parent_block()
    assert isinstance(block, Block)
    return next(i for i, other in enumerate(block.ops) if other is op)


def ring_home(ring: RingOp, buffer: SSAValue, run: RunOp, replicas: int, turned: tuple[int, int] | None = None) -> Home:
    """The slot of a ring in DRAM that the current request of a stage of so many replicas uses; `turned` are the axes
    that change places there.
    """
    shape = tuple(ring.type.get_shape())
    axes = [(Factor(size, 1 + axis),) if size > 1 else () for axis, size in enumerate(shape[1:])]
    if turned is not None:
        a, b = turned
        axes[a], axes[b] = axes[b], axes[a]
    depth, lanes = ring.depth.value.data, ring.lanes
    if replicas == lanes:
        slot = Linear(((run.request, 1),), mod=depth)
    else:
        # Several replicas share a lane: the request is `replicas * q + i`, and each lane takes one of `lanes`.
        assert run.replica is not None
        request = ((run.request, replicas), (run.replica, 1))
        slot = Linear(request, floordiv=lanes if lanes > 1 else None, mod=depth)
    return Home(buffer, shape, ring.type.element_type, tuple(axes), 0, (Linear(),) * len(shape), slot=(slot, 0))


@dataclass(frozen=True)
class RowStream:
    """A ring of rows, as a stage sees it. Tiles are whole slots.

    Attributes:
        home: the first slot of the ring, some rows of some images of the map.
        ring: the ring.
        request: number of the request.
        height: rows of the whole map.
    """

    home: Home
    ring: RingOp
    request: SSAValue
    height: int

    @staticmethod
    def of(ring: RingOp, buffer: SSAValue, run: RunOp, shape: Sequence[int]) -> RowStream:
        """The ring of a map of a certain shape, in a stage's code."""
        sizes = tuple(ring.type.get_shape())
        axes = (
            (Factor(sizes[3], 3),) if sizes[3] > 1 else (),
            (Factor(shape[1], 0),) if shape[1] > 1 else (),
            (Factor(sizes[4], 4),),
            (Factor(sizes[5], 5),),
        )
        home = Home(buffer, sizes, ring.type.element_type, axes, shape[1], (Linear(),) * len(sizes), slot=(Linear(), 1))
        return RowStream(home, ring, run.request, shape[ROWS])

    @property
    def images(self) -> int:
        """Images of a slot."""
        return self.home.shape[3]

    @property
    def rows(self) -> int:
        """Rows of a slot."""
        return self.home.shape[4]

    def count(self, images: int, rows: int) -> int:
        """How many slots a tile of so many images and rows takes. Raises `NeuronError` when that is not even."""
        if images != self.images or rows % self.rows:
            raise self.out_of_step()
        return rows // self.rows

    def out_of_step(self) -> NeuronError:
        """For tiles that are not whole slots."""
        return NeuronError(
            f"the ring of stream '{self.ring.label.data}' has {self.images} images and {self.rows} rows in a slot, and "
            "a stage takes other tiles",
            op=self.ring,
            advice="fewer rows in a slot (pipe-stream-rows finds them)",
        )

    def slot(self, turn: Linear, row: Linear) -> Home:
        """The slot for the rows from `row` on of the `turn`-th images of the current request.

        Raises `NeuronError` for a row in which no slot begins.
        """
        if any(number % self.rows for number in (row.constant, *(factor for _, factor in row.terms))):
            raise self.out_of_step()
        down = Linear(tuple((v, f // self.rows) for v, f in row.terms), row.constant // self.rows)
        part = Linear(((self.request, self.ring.parts),)) + turn * (self.height // self.rows) + down
        return self.home.in_slot(Linear(part.terms, part.constant, mod=self.ring.depth.value.data))
