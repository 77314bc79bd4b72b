"""Which rows of feature maps layers read, for groups that run depth first (`nn.fused` with a `tile`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from xdsl.ir import BlockArgument, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.passes.layouts import ELEMENTWISE, is_constant
from neuron_mlir.passes.phases import phases_of, transposed_pads
from neuron_mlir.passes.unfolding import ROWS, unfolding_of
from neuron_mlir.solvers.row_schedule import Read, Rows


@dataclass(frozen=True)
class UnitRead:
    """An operand of a unit with rows, and how it is read. `fill` is what a window finds outside the map (None: it does
    not look there), `columns` how far it looks beyond the left and right edge.
    """

    operand: SSAValue
    read: Read
    fill: float | None = None
    columns: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Unit:
    """A layer or group inside a depth-first group, with the operands that have rows."""

    op: Operation
    reads: tuple[UnitRead, ...]

    @property
    def result(self) -> SSAValue:
        """What it makes."""
        return self.op.results[0]


@dataclass(frozen=True)
class GroupRows:
    """A depth-first group: its maps (those from outside first) and the units that make the others, in order."""

    maps: tuple[SSAValue, ...]
    rows: tuple[Rows, ...]
    units: tuple[Unit, ...]


def height(value: SSAValue) -> int:
    """Rows of a feature map."""
    return type_of(value).get_shape()[ROWS]


def is_map(value: SSAValue) -> bool:
    """Whether a value has the shape of a feature map `N x C x H x W`."""
    return len(type_of(value).get_shape()) == 4


def reduces_by_rows(op: Operation) -> bool:
    """Whether a layer reduces all rows and columns of a feature map together, which can go tile by tile."""
    return isinstance(op, nn.ReduceOp) and is_map(op.x) and op.axes == (ROWS, ROWS + 1)


def goes_by_rows(value: SSAValue) -> bool:
    """Whether who makes and reads a value can do with tiles of rows; others need it whole in SBUF."""
    whole = (nn.ReduceOp, nn.SoftmaxOp, nn.LayerNormOp, nn.MatmulOp)
    users = [use.operation for use in value.uses]
    return not isinstance(value.owner, whole) and all(
        reduces_by_rows(user) or not isinstance(user, whole) for user in users
    )


def why_not(op: Operation) -> str | None:
    """Why a layer or group cannot run some rows at a time; None when it can."""
    if len(op.results) != 1 or not is_map(op.results[0]):
        return "its result is not a feature map"
    reads = unit_reads(op)
    if isinstance(reads, str):
        return reads
    if not reads:
        return "it reads no feature map"
    batch = type_of(op.results[0]).get_shape()[0]
    if any(type_of(r.operand).get_shape()[0] != batch for r in reads):
        return "its operands differ in batch"
    fills = {r.fill for r in reads if r.fill is not None}
    return "its windows see different padding" if len(fills) > 1 else None


def unit_reads(op: Operation) -> tuple[UnitRead, ...] | str:
    """Operands of a layer or group that have rows; or why there is no telling."""
    if isinstance(op, nn.UnfoldOp):
        return "its convolution is not in a group with it"
    if not isinstance(op, nn.FusedOp):
        found = _layer_reads(op)
        return found if isinstance(found, str) else tuple(found)
    known: dict[SSAValue, list[UnitRead]] = {}
    outside = dict(zip(op.body.block.args, op.inputs, strict=True))
    for argument, value in outside.items():
        if not from_constant(value) and is_map(value):
            known[argument] = [UnitRead(value, Read(0))]
    for layer in op.body.block.ops:
        if isinstance(layer, nn.YieldOp):
            break
        if is_constant(layer):
            continue
        if isinstance(layer, nn.FusedOp):
            return "it holds a group in a group"
        if isinstance(layer, nn.ResizeOp):
            return "it resizes what other layers of its group read"
        own = _layer_reads(layer)
        if isinstance(own, str):
            return own
        through: list[UnitRead] = []
        for read in own:
            if read.operand not in known:
                continue
            if read.read == Read(0):
                through += known[read.operand]
                continue
            before = read.operand.owner
            if isinstance(before, nn.UnfoldOp) and read.read == Read(0, reach=read.read.reach):
                # Taps left of a window that is packed: they see the rows of as many windows one below the other.
                through += [_stacked(r, read.read.reach) for r in known[read.operand]]
                continue
            if any(r.read != Read(0) for r in known[read.operand]) or (
                isinstance(before, Operation) and not isinstance(before, nn.CastOp)
            ):
                return "it computes what its window reads"
            through += [UnitRead(r.operand, read.read, read.fill, read.columns) for r in known[read.operand]]
        known[layer.results[0]] = list(dict.fromkeys(through))
    last = op.body.block.last_op
    assert isinstance(last, nn.YieldOp)
    return tuple(known.get(last.values[0], ()))


def plain_reads(op: Operation) -> list[SSAValue]:
    """The operands with rows of a layer or group that it reads as they are: not what it packs, but what it adds."""
    reads = unit_reads(op)
    assert not isinstance(reads, str)
    unfolding = unfolding_of(op)
    return [r.operand for r in reads if unfolding is None or r.operand is not unfolding.value]


def _stacked(read: UnitRead, count: int) -> UnitRead:
    """What `count` rows, one below the other, read together of what each reads so."""
    rows = read.read
    stacked = Read(rows.value, rows.stride, rows.pad, (count - 1) * rows.stride + rows.reach)
    return UnitRead(read.operand, stacked, read.fill, read.columns)


def _layer_reads(op: Operation) -> list[UnitRead] | str:
    """The same of one layer."""
    if isinstance(op, nn.ConvOp):
        if len(type_of(op.x).get_shape()) != 4:
            return "it is not two-dimensional"
        return [_window(op.x, op, type_of(op.w).get_shape()[2], 0.0)]
    if isinstance(op, (nn.MaxPoolOp, nn.AvgPoolOp)):
        if isinstance(op, nn.AvgPoolOp) and any(op.pads) and not op.count_include_pad:
            return "its mean counts other elements at the border"
        if len(op.kernel) != 2:
            return "it is not two-dimensional"
        return [_window(op.x, op, op.kernel[0], float("-inf") if isinstance(op, nn.MaxPoolOp) else 0.0)]
    if isinstance(op, nn.UnfoldOp):
        if len(op.kernel) != 2:
            return "it is not two-dimensional"
        top, left, _, right = op.pads
        read = Read(0, op.strides[0], top, op.kernel[0])
        return [UnitRead(op.x, read, 0.0 if any(op.pads) else None, (left, right))]
    if isinstance(op, nn.ConvTransposeOp):
        if len(type_of(op.x).get_shape()) != 4:
            return "it is not two-dimensional"
        return [_transposed(op)]
    if isinstance(op, nn.ResizeOp):
        if len(op.scales) != 2:
            return "it is not two-dimensional"
        return [UnitRead(op.x, Read(0, repeat=op.scales[0]))]
    if isinstance(op, nn.ConcatOp):
        if op.axis != 1:
            return "it joins maps along another axis than channels"
        return [UnitRead(value, Read(0)) for value in op.inputs]
    if isinstance(op, (*ELEMENTWISE, nn.LrnOp)):
        shape = type_of(op.results[0]).get_shape()
        found: list[UnitRead] = []
        for value in op.operands:
            own = type_of(value).get_shape()
            if len(own) == 4 and tuple(own) == tuple(shape) and not from_constant(value):
                found.append(UnitRead(value, Read(0)))
            elif len(own) >= 2 and own[-2] != 1:
                return "it broadcasts an operand that has rows"
            elif len(own) == 4 and own[0] != 1:
                return "it broadcasts an operand that differs from image to image"
        return found
    return f"{op.name} does not go by rows"


def _window(value: SSAValue, op: nn.ConvOp | nn.PoolOp, kernel: int, fill: float) -> UnitRead:
    top, left, bottom, right = op.pads
    reach = (kernel - 1) * op.dilations[0] + 1
    padded = any((top, left, bottom, right))
    return UnitRead(value, Read(0, op.strides[0], top, reach), fill if padded else None, (left, right))


def _transposed(op: nn.ConvTransposeOp) -> UnitRead:
    """As many rows as the stride, from the first phase on, read the same ones."""
    phases = phases_of(op, 0)
    start = min(phase.start for phase in phases)
    reach = max(phase.end - phase.count for phase in phases) + 1 - start
    pads = transposed_pads(op)
    columns = pads[ROWS + 1]
    padded = any(pads[ROWS]) or any(columns)
    return UnitRead(op.x, Read(0, 1, -start, reach, op.strides[0]), 0.0 if padded else None, columns)


def from_constant(value: SSAValue) -> bool:
    """Whether a value, or what it stands for outside its groups, is a constant."""
    while isinstance(value, BlockArgument):
        parent = value.owner.parent_op()
        if not isinstance(parent, nn.FusedOp):
            return False
        value = parent.inputs[value.index]
    return is_constant(value.owner if isinstance(value.owner, Operation) else None)


def group_rows(
    maps: Sequence[SSAValue],
    layers: Sequence[Operation],
    results: Sequence[SSAValue],
    once: Collection[SSAValue] = (),
) -> GroupRows:
    """The rows of a depth-first group.

    Args:
        maps: feature maps from outside.
        layers: groups and layers in order, constants left out; each passes `why_not`.
        results: values made inside that are wanted whole.
        once: maps from outside whose rows come once and are kept while they are needed.
    """
    units: list[Unit] = []
    for op in layers:
        reads = unit_reads(op)
        assert not isinstance(reads, str)
        units.append(Unit(op, reads))
    return units_rows(maps, units, results, once)


def units_rows(
    maps: Sequence[SSAValue], units: Sequence[Unit], results: Sequence[SSAValue], once: Collection[SSAValue] = ()
) -> GroupRows:
    """`group_rows` of layers whose reads are known."""
    every: list[SSAValue] = list(maps)
    rows = [Rows(height(value), once=value in once) for value in maps]
    place = {value: index for index, value in enumerate(maps)}
    for unit in units:
        own = tuple(Read(place[r.operand], r.read.stride, r.read.pad, r.read.reach, r.read.repeat) for r in unit.reads)
        result = unit.op.results[0]
        place[result] = len(every)
        every.append(result)
        rows.append(Rows(height(result), own, result in results, max((read.repeat for read in own), default=1)))
    return GroupRows(tuple(every), tuple(rows), tuple(units))
