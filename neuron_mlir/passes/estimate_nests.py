"""The loop nests that lowering makes of a group, as the engine each instruction of a tile runs on.

What lowering decides from layouts is foreseen here from shapes alone: feature maps have channels on the partitions,
other values rows or features, whichever fills them better. Engines take instructions in order, so a nest repeats as
soon as each engine has finished what it does for one tile, from its first instruction to its last one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from xdsl.dialects.builtin import f32
from xdsl.ir import Block, BlockArgument, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn import Tensor
from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import (
    EngineName,
    LaneEngineName,
    Work,
    ceil_div,
    dma_bytes_charged,
    engine_ps,
    matmul_ps,
    moving_columns,
    semaphore_ps,
)
from neuron_mlir.passes.layouts import (
    ELEMENTWISE,
    TILE_BYTES,
    UNARY,
    channel_plane,
    element_bytes,
    is_feature_map,
    is_large,
    kept_rows,
    outside,
    partition_bytes,
    plane,
    shape_of,
    tensor_bytes,
    through,
    wants_rows,
)
from neuron_mlir.passes.phases import phases_of, transposed_pads
from neuron_mlir.passes.unfolding import Unfolding, packing_before

Contraction = nn.ConvOp | nn.ConvTransposeOp | nn.MatmulOp


@dataclass(frozen=True, slots=True)
class Nest:
    """A loop over tiles: `tiles` tiles, in each some instructions in program order, with how long each occupies its
    engine.
    """

    tiles: int
    steps: tuple[tuple[EngineName, int], ...]
    buffer_bytes: int = 0
    """What temporaries of a tile take in a partition, two tiles being under way."""
    follows: bool = False
    """Whether it goes on where the nest before it ends, with the last tiles of another size."""
    dma_bytes: int = 0
    """What it moves between partitions by DMA."""

    @property
    def work(self) -> Work:
        """How long each engine is busy."""
        busy = {"tensor": 0, "scalar": 0, "vector": 0}
        for engine, time in self.steps:
            busy[engine] += time * self.tiles
        return Work(busy["tensor"], busy["scalar"], busy["vector"], self.dma_bytes)

    def span_ps(self, machine: Machine) -> int:
        """From the first instruction to the last result.

        A tile follows the one before it when every engine is through with that: from its first instruction there to its
        last one, what it waits for between them included.
        """
        hop = semaphore_ps(machine)
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        time, before = 0, ""
        for engine, duration in self.steps:
            # The TensorEngine's result is there after its access time, the others' at once.
            time += 0 if engine == before or not before else hop
            time += matmul_ps(machine, 1).latency if before == "tensor" and engine != "tensor" else 0
            first.setdefault(engine, time)
            time += duration
            last[engine] = time
            before = engine
        period = max((last[engine] - first[engine] for engine in first), default=0)
        return self.tiles * period + (0 if self.follows else max(0, time - period))


def group_nests(machine: Machine, ops: Sequence[Operation]) -> list[Nest]:
    """The nests of the ops of a group, without constants and terminator, in order; or of one op outside groups.

    Raises `NeuronError` for an op that is not of the `nn` dialect.
    """
    root = next((op for op in ops if isinstance(op, nn.CONTRACTIONS)), None)
    if root is None:
        if all(isinstance(op, ELEMENTWISE) for op in ops):
            return _lane_nests(machine, ops, None)
        return [nest for op in ops for nest in _op_nests(machine, op)]
    needed: list[Operation] = []
    stack = [operand.owner for operand in root.operands]
    while stack:
        owner = stack.pop()
        if isinstance(owner, Operation) and owner in ops and owner not in needed:
            needed.append(owner)
            stack += [operand.owner for operand in owner.operands]
    before = [op for op in ops if op in needed]
    after = [op for op in ops if op is not root and op not in needed]
    packing = packing_before(root)
    found = [nest for op in before if op not in packing for nest in group_nests(machine, [op])]
    if packing:
        assert isinstance(root, nn.ConvOp)
        return [*found, *_unfold(machine, cast(nn.UnfoldOp, packing[-1]), root), *_lane_nests(machine, after, root)]
    found += _turns(machine, root)
    if isinstance(root, nn.ConvOp) and not is_large(machine, root.x):
        found += _borders(machine, root.x, root.pads)
    elif isinstance(root, nn.ConvTransposeOp) and not is_large(machine, root.x):
        found += _borders(
            machine, root.x, [low_high[side] for side in (0, 1) for low_high in transposed_pads(root).values()]
        )
    return [*found, *_lane_nests(machine, after, root)]


# Contractions and what follows them on every tile


def is_depthwise(op: nn.ConvOp) -> bool:
    """Whether every output channel has one input channel of its own: it runs on the lanes."""
    return shape_of(op.w)[1] == 1 and op.group == shape_of(op.x)[1] and op.group == shape_of(op.w)[0]


def _tiles(machine: Machine, op: nn.ConvOp | nn.MatmulOp) -> tuple[list[tuple[int, int]], int, int]:
    """Of a contraction: `(how many, columns)` of the tiles that PSUM holds, matmuls summed in each, and the axis on the
    partitions.
    """
    block, rows = machine.tensor_engine.columns, machine.tensor_engine.rows
    shape = shape_of(op.result)
    if isinstance(op, nn.ConvOp):
        # Groups are written out with zeros: all input channels are rows.
        sums = ceil_div(shape_of(op.x)[1], rows) * math.prod(shape_of(op.w)[2:])
        columns, moving, times, axis = shape[1], (shape[0], *shape[2:]), 1, 1
    else:
        sums = ceil_div(shape_of(op.lhs)[-1], rows)
        columns, moving, times, axis = shape[-1], shape[:-1], 1, len(shape) - 1
        if math.prod(shape_of(op.rhs)[:-2]) != 1:
            columns, moving, times = shape[-1], shape[-2:-1], math.prod(shape[:-2])
        if wants_rows(op):
            columns, moving, times, axis = shape[-2], (shape[-1],), math.prod(shape[:-2]), len(shape) - 2
    blocks = ceil_div(columns, block) * times
    return [(count * blocks, size) for count, size in moving_columns(machine, moving)], sums, axis


def _phase_tiles(machine: Machine, op: nn.ConvTransposeOp) -> list[tuple[list[tuple[int, int]], int, int]]:
    """As `_tiles`, of each phase of a transposed convolution."""
    shape = shape_of(op.result)
    blocks = ceil_div(shape[1], machine.tensor_engine.columns)
    rows = ceil_div(shape_of(op.x)[1], machine.tensor_engine.rows)
    found: list[tuple[list[tuple[int, int]], int, int]] = []
    for phase in itertools.product(*(phases_of(op, axis) for axis in range(len(op.strides)))):
        moving = (shape[0], *(part.count for part in phase))
        tiles = [(count * blocks, size) for count, size in moving_columns(machine, moving)]
        found.append((tiles, rows * math.prod(part.taps for part in phase), 1))
    return found


def _lane_nests(machine: Machine, ops: Sequence[Operation], root: Contraction | None) -> list[Nest]:
    """Element-wise ops over every tile of a contraction, or of their own result."""
    result = _last_result(ops, root)
    shape = shape_of(result)
    if isinstance(root, nn.ConvOp) and is_depthwise(root):
        # A multiply-add per tap after clearing the sum.
        taps = math.prod(shape_of(root.w)[2:])
        count, columns = channel_plane(machine, shape_of(root.result))
        vector = _engine(machine, "vector", columns)
        emitted = _Emitter(root, 1, columns).run(ops)
        steps = [vector] * (1 + taps) + [_engine(machine, e, columns) for e in emitted]
        return [Nest(count, tuple(steps), 2 * 4 * columns)]
    if root is not None:
        every = _phase_tiles(machine, root) if isinstance(root, nn.ConvTransposeOp) else [_tiles(machine, root)]
        found: list[Nest] = []
        for count, columns, sums, axis in ((*tile, sums, axis) for tiles, sums, axis in every for tile in tiles):
            engines = _Emitter(root, axis, columns).run(ops)
            steps = [("tensor", sums * matmul_ps(machine, columns).occupancy)]
            steps += [_engine(machine, engine, columns) for engine in engines]
            found.append(Nest(count, tuple(cast("list[tuple[EngineName, int]]", steps)), 2 * 4 * columns, bool(found)))
        return found
    count, columns = plane(machine, result)
    engines = _Emitter(None, 1 if is_feature_map(result) else max(0, len(shape) - 2), columns).run(ops)
    steps = tuple(_engine(machine, engine, columns) for engine in engines)
    return [Nest(count, steps, 2 * 4 * columns * (len(steps) > 1))] if steps else []


def _last_result(ops: Sequence[Operation], root: Operation | None) -> SSAValue:
    made = [op for op in ops if op.results] or ([root] if root is not None else [])
    return made[-1].results[0]


def _engine(machine: Machine, engine: LaneEngineName, columns: int) -> tuple[EngineName, int]:
    return engine, engine_ps(machine, engine, columns).occupancy


Kind = Literal["number", "column", "tensor", "biased"]


class _Emitter:
    """The lane instructions of one tile: a sum with one number per partition waits for an activation to take it along,
    results are rounded as they are stored.
    """

    def __init__(self, root: Operation | None, axis: int, columns: int):
        self.root, self.axis, self.columns = root, axis, columns
        self.steps: list[LaneEngineName] = []
        self.done: dict[SSAValue, Kind] = {}

    def run(self, ops: Sequence[Operation]) -> list[LaneEngineName]:
        """The engines, in order."""
        root = self.root
        if not ops:
            biased = isinstance(root, (nn.ConvOp, nn.ConvTransposeOp)) and root.bias is not None
            return ["scalar" if biased else "vector"]
        self.ops = list(ops)
        made = [result for op in ops for result in op.results]
        if root is not None:
            made.insert(0, root.results[0])
        leaving = [
            v for v in made if any(use.operation not in self.ops for use in v.uses) or not any(True for _ in v.uses)
        ]
        for value in leaving:
            before = len(self.steps)
            kind = self.value(value)
            stored = len(self.steps) > before and kind == "tensor" and not _is_free_cast(value)
            if not stored:
                self.steps.append("scalar" if kind == "biased" else "vector")
        return self.steps

    def value(self, value: SSAValue) -> Kind:
        """How a value is there, its instructions emitted."""
        if value not in self.done:
            self.done[value] = self.emit(value)
        return self.done[value]

    def emit(self, value: SSAValue) -> Kind:
        op = value.owner
        if op is self.root:
            return "biased" if isinstance(op, (nn.ConvOp, nn.ConvTransposeOp)) and op.bias is not None else "tensor"
        if not isinstance(op, Operation) or op not in self.ops:
            return self.leaf(value)
        if isinstance(op, nn.ExpandOp) or _is_free_cast(value):
            return self.value(op.operands[0])
        if isinstance(op, nn.CastOp):
            before = len(self.steps)
            kind = self.value(op.x)
            rides = len(self.steps) > before and kind == "tensor"
            if not rides:
                self.steps.append("scalar" if kind == "biased" else "vector")
            return "tensor"
        if isinstance(op, nn.BinaryOp):
            return self.binary(op)
        if isinstance(op, UNARY):
            if self.value(op.operands[0]) not in ("tensor", "biased"):
                self.steps.append("vector")
            self.steps.append("scalar")
            return "tensor"
        for operand in op.operands:
            self.tensor(operand)
        self.steps.append("vector")
        return "tensor"

    def tensor(self, value: SSAValue) -> None:
        kind = self.value(value)
        if kind == "column":
            self.steps.extend(("vector", "vector"))  # zeros, and the column added to them
        elif kind != "tensor":
            self.steps.append("scalar" if kind == "biased" else "vector")

    def binary(self, op: nn.BinaryOp) -> Kind:
        left, right = self.value(op.lhs), self.value(op.rhs)
        if left in ("number", "column"):
            left, right = right, left
        once = sum(1 for _ in op.result.uses) == 1
        if isinstance(op, nn.AddOp) and right == "column" and left == "tensor":
            if once:
                return "biased"
            self.steps.append("scalar")
            return "tensor"
        # The instruction takes along the sum that waits, of one operand.
        if left == right == "biased":
            self.steps.append("scalar")
        self.steps.append("vector")
        return "tensor"

    def leaf(self, value: SSAValue) -> Kind:
        """An operand from outside: one number, one per partition, or a whole tile."""
        shape = shape_of(value)
        rank = len(shape_of(self.ops[-1].results[0]))
        shape = (1,) * (rank - len(shape)) + shape
        if math.prod(shape) == 1 and self.columns > 1 and _is_number(value):
            return "number"
        varies = any(size > 1 for axis, size in enumerate(shape) if axis != self.axis)
        return "tensor" if varies or self.columns == 1 else "column"


def _is_number(value: SSAValue) -> bool:
    """Whether the IR says what number a constant of one element is."""
    owner = value.owner
    if isinstance(owner, Block):
        parent = owner.parent_op()
        owner = parent.inputs[cast(BlockArgument, value).index].owner if isinstance(parent, nn.FusedOp) else None
    if isinstance(owner, nn.ConstOp):
        ops = list(owner.body.block.ops)
        owner = None if any(isinstance(op, nn.CastOp) for op in ops) else ops[0]
    return isinstance(owner, nn.WeightOp) and isinstance(owner.source, nn.SplatAttr)


def _is_free_cast(value: SSAValue) -> bool:
    """A cast to f32 is no work: values in flight are f32."""
    return isinstance(value.owner, nn.CastOp) and cast(Tensor, value.type).element_type == f32


def _borders(machine: Machine, value: SSAValue, pads: Sequence[int]) -> list[Nest]:
    """Setting the padding that a window wants around a value in SBUF."""
    shape = shape_of(value)
    count = len(pads) // 2
    tiles, _ = channel_plane(machine, shape)
    full = [shape[0], *(size + pads[a] + pads[count + a] for a, size in enumerate(shape[2:]))]
    found: list[Nest] = []
    for axis in range(count):
        for width in (pads[axis], pads[count + axis]):
            if width:
                elements = math.prod(full) // full[1 + axis] * width
                found.append(Nest(tiles, (_engine(machine, "vector", elements),)))
    return found


def _turns(machine: Machine, root: Contraction) -> list[Nest]:
    """Swapping rows and columns on the PE array for a product of rows, which wants what it sums over on the
    partitions.
    """
    if not isinstance(root, nn.MatmulOp):
        return []
    source = through(root.lhs)
    if not isinstance(source, (nn.SoftmaxOp, nn.LayerNormOp)) and not (
        isinstance(source, nn.MatmulOp) and wants_rows(source)
    ):
        return []
    value = outside(root.lhs)
    users = {use.operation for use in value.uses}
    home = root if isinstance(root.lhs.owner, Operation) else root.parent_op()
    # The first user is not far behind what makes the value; a block may have thousands of ops before that.
    first = value.owner.next_op if isinstance(value.owner, Operation) else value.owner.first_op
    while first is not None and first not in users:
        first = first.next_op
    if first is not None and first is not home:
        return []  # an earlier product has turned it
    shape = shape_of(root.lhs)
    lanes, half = machine.tensor_engine.rows, machine.tensor_engine.columns
    rows = min(shape[-2], lanes)
    tiles = math.prod(shape[:-2]) * ceil_div(shape[-2], lanes) * ceil_div(shape[-1], half)
    turned = ("tensor", matmul_ps(machine, rows).occupancy)
    return [Nest(tiles, (cast("tuple[EngineName, int]", turned), _engine(machine, "vector", rows)))]


# Other layers


def _pool(machine: Machine, op: nn.PoolOp) -> list[Nest]:
    """Clearing, an instruction per tap, for a mean the division; of a map in DRAM, tiles of rows that are then copied
    into the result.
    """
    maximum = isinstance(op, nn.MaxPoolOp)
    large = is_large(machine, op.operands[0])
    passes = math.prod(op.kernel) + (1 if maximum else 2) + (1 if large else 0)
    tiles, columns = channel_plane(machine, shape_of(op.results[0]))
    nest = Nest(tiles, (_engine(machine, "vector", columns),) * passes, 0 if maximum else 8 * columns)
    return [nest] if large else [*_borders(machine, op.operands[0], op.pads), nest]


def _place(machine: Machine, op: nn.PlaceOp) -> list[Nest]:
    """A spill or a reload: its whole buffer."""
    size = partition_bytes(machine, op.x if isinstance(op, nn.SpillOp) else op.result)
    return [Nest(0, (), dma_bytes=machine.sbuf.partitions * size)]


def _unfold(machine: Machine, op: nn.UnfoldOp, user: nn.ConvOp | None = None) -> list[Nest]:
    """Of each tile of rows, a copy for every phase of columns; then DMA of every tap."""
    unfolding = Unfolding.of(op)
    images, packed, rows, columns = unfolding.shape
    result = shape_of((user or op).result)
    item = element_bytes(op.type.element_type)
    tile = unfolding.rows_per_tile(result, item, TILE_BYTES)
    halo, tiles = rows - result[2], ceil_div(result[2], tile)
    groups = tile + halo + unfolding.reach - 1
    turns = ceil_div(shape_of(unfolding.value)[1], max(1, machine.sbuf.partitions // groups))
    copied = op.strides[0] * unfolding.places
    steps = (_engine(machine, "vector", copied),) * unfolding.phases
    moved = dma_bytes_charged(machine, columns * item, images * packed * (result[2] + tiles * halo) * columns * item)
    return [Nest(images * tiles * turns, steps, copied * (4 + 2) * 2), Nest(0, (), dma_bytes=moved)]


def _concat(machine: Machine, op: nn.ConcatOp) -> list[Nest]:
    """A copy of what begins with a partition tile; the rest changes partitions, by DMA."""
    found: list[Nest] = []
    start = 0
    for value in op.operands:
        tiles, columns = plane(machine, value)
        if start % machine.sbuf.partitions:
            found.append(Nest(0, (), dma_bytes=tensor_bytes(value.type)))
        else:
            found.append(Nest(tiles, (_engine(machine, "vector", columns),)))
        start += shape_of(value)[1] if op.axis == 1 else 0
    return found


def _resize(machine: Machine, op: nn.ResizeOp) -> list[Nest]:
    """A strided copy for each place of a block; rows of a map in DRAM are stored as often as they are wanted."""
    scales = op.scales[1:] if is_large(machine, op.result) else op.scales
    tiles, columns = channel_plane(machine, shape_of(op.x))
    return [Nest(tiles, (_engine(machine, "vector", columns),) * math.prod(scales))]


def _softmax(machine: Machine, op: nn.SoftmaxOp) -> list[Nest]:
    tiles, row = kept_rows(machine, shape_of(op.x), (op.axis,))
    vector, scalar = _engine(machine, "vector", row), _engine(machine, "scalar", row)
    one, reciprocal = _engine(machine, "vector", 1), _engine(machine, "scalar", 1)
    # max, its negative, exp(x - max), sum, its reciprocal, product
    return [Nest(tiles, (vector, one, scalar, vector, reciprocal, vector), 8 * row)]


def _layer_norm(machine: Machine, op: nn.LayerNormOp) -> list[Nest]:
    tiles, row = kept_rows(machine, shape_of(op.x), range(op.axis, len(shape_of(op.x))))
    vector, scalar = _engine(machine, "vector", row), _engine(machine, "scalar", row)
    one, root = _engine(machine, "vector", 1), _engine(machine, "scalar", 1)
    # sum, mean, x - mean, square, sum, variance, its root, division, scale, bias
    steps = (vector, one, vector, scalar, vector, one, root, vector, vector, vector)
    return [Nest(tiles, steps[: None if op.bias is not None else -1], 16 * row)]


def _reduce(machine: Machine, op: nn.ReduceOp) -> list[Nest]:
    tiles, row = kept_rows(machine, shape_of(op.x), op.axes)
    vector = _engine(machine, "vector", row)
    mean = (_engine(machine, "vector", 1),) if isinstance(op, nn.ReduceMeanOp) else ()
    return [Nest(tiles, (vector, *mean))]


def _lrn(machine: Machine, op: nn.LrnOp) -> list[Nest]:
    tiles, columns = channel_plane(machine, shape_of(op.x))
    vector, scalar = _engine(machine, "vector", columns), _engine(machine, "scalar", columns)
    # square; a sum per further neighbour; scale, power, division
    return [Nest(tiles, (scalar, *(vector,) * (op.size - 1 + 3)))]


def _passes(engine: LaneEngineName, passes: int) -> Callable[[Machine, Operation], list[Nest]]:
    """Passes over the result."""

    def nests(machine: Machine, op: Operation) -> list[Nest]:
        tiles, columns = plane(machine, op.results[0])
        return [Nest(tiles, (_engine(machine, engine, columns),) * passes)]

    return nests


def _nothing(machine: Machine, op: Operation) -> list[Nest]:
    return []


def _op_nests(machine: Machine, op: Operation) -> list[Nest]:
    for kind, function in _NESTS:
        if isinstance(op, kind):
            return function(machine, op)
    raise NeuronError("no cost is known for this op", op=op, advice="lower or fold it before")


_NESTS: list[tuple[type[Operation], Callable[[Machine, Any], list[Nest]]]] = [
    (nn.PoolOp, _pool),
    (nn.TransposeOp, _nothing),  # Both relabel places in memory; where an element must move, its user moves it.
    (nn.ReshapeOp, _nothing),
    (nn.GatherOp, _nothing),  # These come by DMA, row by row.
    (nn.ConcatOp, _concat),
    (nn.ResizeOp, _resize),
    (nn.SliceOp, _nothing),
    (nn.UnfoldOp, _unfold),
    (nn.PlaceOp, _place),
    (nn.ArgMaxOp, _passes("vector", 2)),
    (nn.SoftmaxOp, _softmax),
    (nn.LayerNormOp, _layer_norm),
    (nn.BatchNormOp, _passes("scalar", 1)),
    (nn.LrnOp, _lrn),
    (nn.ReduceOp, _reduce),
    (nn.PadOp, _passes("vector", 1)),
]
