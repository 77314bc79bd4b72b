"""Element-wise code over one tile: the interior of a fused group after its root, and groups of element-wise layers
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from xdsl.dialects.builtin import f32
from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.compute import (
    ActivationOp,
    CopyOp,
    MemsetOp,
    ScalarTensorTensorOp,
    SelectOp,
    TensorScalarOp,
    TensorTensorOp,
)
from neuron_mlir.dialects.core.memory import SBUF
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import Context, shape_of
from neuron_mlir.passes.core.lowering.layout import LANES, Home, Offset
from neuron_mlir.passes.core.lowering.relayout import move

BINARY: dict[type[Operation], tuple[str, str]] = {
    nn.AddOp: ("add", "add"),
    nn.SubOp: ("sub", "rsub"),
    nn.MulOp: ("mul", "mul"),
    nn.DivOp: ("div", "rdiv"),
    nn.PowOp: ("pow", "rpow"),
    nn.MaxOp: ("max", "max"),
    nn.MinOp: ("min", "min"),
    nn.EqualOp: ("equal", "equal"),
    nn.LessOp: ("less", "rless"),
    nn.GreaterOp: ("greater", "rgreater"),
    nn.AndOp: ("and", "and"),
    nn.OrOp: ("or", "or"),
}
"""Each `nn` op as the vector engine's function of (a, b), and of (b, a)."""

UNARY: dict[type[Operation], str] = {
    kind: kind.name.removeprefix("nn.") for kind in (nn.ReluOp, nn.LeakyReluOp, *nn.FUNCTION_OPS)
}
"""`nn` ops that are one activation of the scalar engine."""

ELEMENTWISE = (*BINARY, *UNARY, nn.NegOp, nn.NotOp, nn.ClipOp, nn.WhereOp, nn.CastOp, nn.ExpandOp)
"""Every op this file can lower."""


@dataclass
class Tile:
    """Part of a tensor that instructions work on at once.

    `axes` gives `(offset, size)` of each free axis; `lane` the partitions and `tile` the partition tile, in the
    layout `home` of the result.
    """

    home: Home
    axes: dict[int, tuple[Linear, int]]
    lane: tuple[Offset, int]
    tile: Linear

    @property
    def free_sizes(self) -> list[int]:
        """Elements per partition along each free axis."""
        return [size for _, size in self.axes.values()]


@dataclass
class Source:
    """An operand over a tile: a number, one element per partition, or an access; `bias` is a column still to be
    added.
    """

    number: float | None = None
    column: Access | None = None
    access: Access | None = None
    bias: Access | None = None


Leaf = Callable[[SSAValue], Source]


def tile_access(home: Home, tile: Tile) -> Source | None:
    """A placement over a tile, or None when it cannot be used in place (other partitions, another order, partly
    broadcast).
    """
    offsets: dict[int, Offset] = {}
    sizes: dict[int, int] = {}
    strides: dict[int, int] = {}
    if not home.in_sbuf:
        return None
    target = tile.home.merged().partition_factors()
    own = home.merged().partition_factors()
    rows_everywhere = home.repeated or (not own and not target)
    if own != target and not rows_everywhere:
        return None
    if own and home.lane0 != tile.home.lane0:
        return None
    order: list[int] = []
    broadcast = 0
    for axis, (offset, size) in tile.axes.items():
        factors = home.axes[axis]
        if not factors:
            broadcast += size > 1
            continue
        if len(factors) == 1:
            dim = factors[0].dim
            offsets[dim] = offset * factors[0].stride
            sizes[dim], strides[dim] = size, factors[0].stride
            if size > 1:
                order.append(dim)
        elif size == math.prod(f.size for f in factors) and len(tile.home.axes[axis]) == len(factors):
            for factor in factors:
                sizes[factor.dim], strides[factor.dim] = factor.size, factor.stride
                order.append(factor.dim)
        else:
            return None
    if order != sorted(set(order)):
        return None
    access = home.access(offsets, sizes, strides, tile.lane, tile.tile if own else 0)
    if broadcast == 0:
        return Source(access=access)
    return Source(column=access) if not order else None


@dataclass
class Emitter:
    """Writes a list of element-wise ops over one tile. Values inside are f32 in SBUF; only what is asked for is
    stored.
    """

    context: Context
    tile: Tile
    leaf: Leaf
    uses: dict[SSAValue, int] = field(default_factory=dict)
    done: dict[SSAValue, Source] = field(default_factory=dict)
    inside: set[Operation] = field(default_factory=lambda: set())

    def run(self, ops: Sequence[Operation], outputs: Sequence[tuple[SSAValue, Access]]) -> None:
        """Emit what is needed for `outputs`, in order."""
        self.inside.update(ops)
        for op in ops:
            for operand in op.operands:
                self.uses[operand] = self.uses.get(operand, 0) + 1
        for value, _ in outputs:
            self.uses[value] = self.uses.get(value, 0) + 1
        for value, access in outputs:
            self.store(value, access)

    def store(self, value: SSAValue, target: Access) -> None:
        """Compute `value` into `target`, rounding to its type."""
        found = self.value(value, target)
        if found.access is target:
            return
        self.copy(found, target)

    def copy(self, source: Source, target: Access) -> None:
        """Copy a source to an access."""
        code = self.context.code
        if source.number is not None:
            code.add(MemsetOp(target, source.number))
        elif source.column is not None:
            code.add(TensorScalarOp(target, self.zeros(), "add", source.column))
        elif source.bias is not None:
            assert source.access is not None
            code.add(ActivationOp("copy", target, source.access, bias=source.bias))
        else:
            assert source.access is not None
            code.add(CopyOp(target, source.access))

    def zeros(self) -> Access:
        """A tile of zeros."""
        temporary = self.temporary()
        self.context.code.add(MemsetOp(temporary, 0.0))
        return temporary

    def temporary(self) -> Access:
        """An f32 tile in SBUF."""
        sizes = [self.tile.lane[1], *(self.tile.free_sizes or [1])]
        return Access.of(self.context.code.alloc("tmp", sizes, f32, SBUF))

    def value(self, value: SSAValue, target: Access | None = None) -> Source:
        """The source of a value, computed now if it is not yet; into `target` where that is given and nothing else
        uses the value.
        """
        if value in self.done:
            return self.done[value]
        owner = value.owner
        if not isinstance(owner, ELEMENTWISE) or owner not in self.inside:
            source = self.leaf(value)
            self.done[value] = source
            return source
        if self.uses.get(value, 0) > 1:
            target = None
        source = self.emit(owner, target)
        self.done[value] = source
        return source

    def tensor(self, source: Source) -> Access:
        """A source as an access over the whole tile."""
        if source.access is not None and source.bias is None:
            return source.access
        temporary = self.temporary()
        self.copy(source, temporary)
        return temporary

    def emit(self, op: Operation, target: Access | None) -> Source:
        """Emit one op; returns where its result is."""
        if isinstance(op, nn.ExpandOp):
            return self.value(op.x)
        if isinstance(op, nn.CastOp):
            return self.cast(op, target)
        if isinstance(op, nn.BinaryOp):
            return self.binary(op, target)
        if isinstance(op, nn.WhereOp):
            condition, a, b = (self.tensor(self.value(v)) for v in op.operands)
            out = target or self.temporary()
            self.context.code.add(SelectOp(out, condition, a, b))
            return Source(access=out)
        source = self.value(op.operands[0])
        out = target or self.temporary()
        code = self.context.code
        if isinstance(op, nn.ClipOp):
            low, high = (None if a is None else float(a.value.data) for a in (op.lo_attr, op.hi_attr))
            steps = [(name, bound) for name, bound in (("max", low), ("min", high)) if bound is not None]
            if not steps:
                return source
            if len(steps) == 1 and source.bias is not None and source.access is not None:
                code.add(TensorScalarOp(out, source.access, "add", source.bias, *steps[0]))
                return Source(access=out)
            rest = steps[1] if len(steps) > 1 else (None, None)
            code.add(TensorScalarOp(out, self.tensor(source), steps[0][0], steps[0][1], rest[0], rest[1]))
        elif isinstance(op, nn.NegOp):
            code.add(TensorScalarOp(out, self.tensor(source), "mul", -1.0))
        elif isinstance(op, nn.NotOp):
            code.add(TensorScalarOp(out, self.tensor(source), "equal", 0.0))
        else:
            alpha = float(op.alpha_attr.value.data) if isinstance(op, nn.LeakyReluOp) else None
            if source.access is None:
                source = Source(access=self.tensor(source))
            assert source.access is not None
            code.add(ActivationOp(UNARY[type(op)], out, source.access, bias=source.bias, alpha=alpha))
        return Source(access=out)

    def cast(self, op: nn.CastOp, target: Access | None) -> Source:
        """A cast is a store to a buffer of its type; a cast to f32 is no work at all."""
        element = str(op.result.type.element_type)  # type: ignore[attr-defined]
        if element == "f32":
            return self.value(op.x)
        if target is not None and str(target.buffer.type.element_type) == element:  # type: ignore[attr-defined]
            self.store(op.x, target)
            return Source(access=target)
        sizes = [self.tile.lane[1], *(self.tile.free_sizes or [1])]
        rounded = Access.of(self.context.code.alloc("cast", sizes, op.result.type.element_type, SBUF))  # type: ignore[attr-defined]
        self.store(op.x, rounded)
        return Source(access=rounded)

    def binary(self, op: nn.BinaryOp, target: Access | None) -> Source:
        """Two operands: numbers and columns go to `tensor_scalar`. A sum with a column waits for the next instruction,
        which takes it along as its first step.
        """
        name, swapped = BINARY[type(op)]
        a, b = self.value(op.lhs), self.value(op.rhs)
        code = self.context.code
        if a.access is None and b.access is not None:
            a, b, name, swapped = b, a, swapped, name
        if a.access is None:
            a = Source(access=self.tensor(a))
        assert a.access is not None
        if name == "add" and b.column is not None and a.bias is None:
            if self.uses.get(op.result, 0) == 1:
                return Source(access=a.access, bias=b.column)
            out = target or self.temporary()
            code.add(ActivationOp("copy", out, a.access, bias=b.column))
            return Source(access=out)
        out = target or self.temporary()
        if a.bias is None and b.bias is not None:
            a, b, name = b, a, swapped
        assert a.access is not None
        operand = b.number if b.number is not None else b.column
        if a.bias is not None and operand is not None:
            code.add(TensorScalarOp(out, a.access, "add", a.bias, name, operand))
            return Source(access=out)
        if a.bias is not None:
            code.add(ScalarTensorTensorOp("add", name, out, a.access, a.bias, self.tensor(b)))
            return Source(access=out)
        left = a.access
        if b.number is not None:
            code.add(TensorScalarOp(out, left, name, b.number))
        elif b.column is not None:
            code.add(TensorScalarOp(out, left, name, b.column))
        else:
            code.add(TensorTensorOp(name, out, left, self.tensor(b)))
        return Source(access=out)


def operand_source(context: Context, value: SSAValue, tile: Tile, layer: Operation) -> Source:
    """A group's operand over a tile: a number, or a place that `prepare_operand` has seen to."""
    number = context.number(value)
    if number is not None:
        return Source(number=number)
    rank = len(tile.home.axes)
    if context.is_whole_constant(value):
        places = [context.constant_like(value, tile.home, rank)]
    else:
        places = [_aligned(home, rank) for home in context.places(value)]
    for home in places:
        source = tile_access(home, tile)
        if source is not None:
            return source
    raise NeuronError(
        f"operand {list(shape_of(value))} cannot be broadcast over a tile of {list(tile.home.logical)} on the device",
        op=layer,
        advice="expand it first, or compute the layer on the host",
    )


def _aligned(home: Home, rank: int) -> Home:
    """The home with leading axes of size 1, as numpy broadcasts."""
    return replace(home, axes=((),) * (rank - len(home.axes)) + home.axes)


def prepare_operand(context: Context, value: SSAValue, target: Home, layer: Operation) -> None:
    """Before the loops: make sure that an operand has a place usable over tiles of `target`."""
    rank = len(target.axes)
    if context.is_whole_constant(value):
        if context.number(value) is None:
            context.constant_like(value, target, rank)
        return
    places = [_aligned(home, rank) for home in context.places(value)]
    for home in places:
        if tile_access(home, _whole_tile(target, home.logical)) is not None:
            return
    source = next((home for home in places if home.in_sbuf), places[0])
    shape = source.logical
    wanted = target.merged().partition_factors()
    copy = context.operand_home(context.label(value), shape, source.element, target)
    if wanted and all(shape[axis] != 1 for axis, _ in wanted):
        move(context, source, copy, layer)
    else:
        if source.in_sbuf:
            middle = context.dram_home("broadcast", shape, source.element)
            move(context, source, middle, layer)
            source = middle
        move(context, source, context.spread(copy, target), layer)
    context.define(value, replace(copy, axes=copy.axes[rank - len(shape_of(value)) :]))
    context.count("re-layouts")


def _whole_tile(target: Home, shape: Sequence[int]) -> Tile:
    """The first partition tile of `target` with all its free axes (one element of those that an operand of `shape`
    does not have).
    """
    partition = target.partition_axes()
    free = [axis for axis in range(len(shape)) if axis not in partition]
    varies = any(shape[axis] > 1 for axis in free)
    axes = {
        axis: (Linear(), shape[axis] if varies else size) for axis, size in enumerate(target.logical) if axis in free
    }
    return Tile(target, axes, (0, max(1, min(target.lanes, LANES))), Linear())


def lower_elementwise(
    context: Context,
    ops: Sequence[Operation],
    inputs: Sequence[SSAValue],
    outputs: Sequence[tuple[SSAValue, Home]],
    layer: Operation,
) -> None:
    """A group of element-wise ops: one nest over partition tiles, with a loop for each axis along which an operand is
    partly broadcast.
    """
    target = outputs[0][1]
    shape = target.logical
    rank = len(shape)
    for value in inputs:
        prepare_operand(context, value, target, layer)
    partition = target.partition_axes()
    free = [axis for axis in range(rank) if axis not in partition]
    looped = _partly_broadcast(context, inputs, shape, free)
    lanes = max(1, math.prod(f.size for _, f in target.partition_factors()))
    if target.lane0 % LANES:
        raise NeuronError("element-wise code on a part of the partitions", op=layer)
    for segment in segments(lanes, LANES):
        with context.code.loop(segment.count) as index:
            tile_index = index + (segment.start + target.lane0) // LANES
            _nest(context, ops, inputs, outputs, looped, {}, free, shape, (0, segment.size), tile_index, layer, rank)


def _partly_broadcast(
    context: Context, inputs: Sequence[SSAValue], shape: Sequence[int], free: Sequence[int]
) -> list[int]:
    looped: list[int] = []
    rank = len(shape)
    for value in inputs:
        own = (1,) * (rank - len(shape_of(value))) + shape_of(value)
        missing = [axis for axis in free if own[axis] == 1 and shape[axis] > 1]
        if any(own[axis] > 1 for axis in free) and context.number(value) is None:
            looped += [axis for axis in missing if axis not in looped]
    return looped


def _nest(
    context: Context,
    ops: Sequence[Operation],
    inputs: Sequence[SSAValue],
    outputs: Sequence[tuple[SSAValue, Home]],
    looped: Sequence[int],
    fixed: dict[int, Linear],
    free: Sequence[int],
    shape: Sequence[int],
    lane: tuple[Offset, int],
    tile_index: Linear,
    layer: Operation,
    rank: int,
) -> None:
    if looped:
        with context.code.loop(shape[looped[0]]) as index:
            _nest(
                context,
                ops,
                inputs,
                outputs,
                looped[1:],
                {**fixed, looped[0]: index},
                free,
                shape,
                lane,
                tile_index,
                layer,
                rank,
            )
        return
    axes = {axis: (fixed[axis], 1) if axis in fixed else (Linear(), shape[axis]) for axis in free}
    tile = Tile(outputs[0][1], axes, lane, tile_index)

    def leaf(value: SSAValue) -> Source:
        return operand_source(context, value, tile, layer)

    targets: list[tuple[SSAValue, Access]] = []
    for value, home in outputs:
        source = tile_access(home, tile)
        if source is None or source.access is None:
            raise NeuronError("result does not fit its own tile", op=layer)
        targets.append((value, source.access))
    Emitter(context, tile, leaf).run(ops, targets)
