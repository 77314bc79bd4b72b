"""What lowering one stage keeps in hand: where code goes, where values are, and how constants reach the core."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.dialects.core.compute import MemsetOp
from neuron_mlir.dialects.core.memory import DRAM, SBUF, ConstOp, buffer_type, element_bytes
from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import Machine
from neuron_mlir.passes.core.lowering.builder import Code, segments
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home
from neuron_mlir.passes.core.lowering.residency import Residency
from neuron_mlir.passes.core.lowering.row_constants import SHORTEST, RowConstants

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.rings import RowStream

Tensor = TensorType[Attribute]
Transform = Callable[[SSAValue, Callable[[Operation], SSAValue]], SSAValue]
LOAD_QUEUE, STORE_QUEUE, WEIGHT_QUEUE, EXPORT_QUEUE = 0, 1, 2, 5
"""DMA queues: what comes in, what goes out, streamed weights, and what goes to another chip."""
SMALL_CONSTANT = 64
"""Constants of at most so many bytes per partition (a bias per channel) always stay in SBUF; larger ones only within
the budget.
"""


def tensor_type(value: SSAValue) -> Tensor:
    """The tensor type of an `nn` value."""
    return cast(Tensor, value.type)


def shape_of(value: SSAValue) -> tuple[int, ...]:
    """Its shape."""
    return tuple(tensor_type(value).get_shape())


@dataclass
class Padding:
    """What consumers want around a value: `(low, high)` for each axis, and the value there."""

    axes: dict[int, tuple[int, int]] = field(default_factory=dict)
    value: float = 0.0


@dataclass
class Hold:
    """Code that runs once before loops that are being written, and what it brings to SBUF for them."""

    block: Block
    weights: dict[tuple[object, ...], object] = field(default_factory=dict)
    constants: dict[tuple[object, ...], Home] = field(default_factory=dict)


@dataclass
class Context:
    """State of lowering one stage."""

    machine: Machine
    top: Block
    code: Code
    load: Code
    homes: dict[SSAValue, list[Home]] = field(default_factory=dict)
    paddings: dict[SSAValue, Padding] = field(default_factory=dict)
    leaves: dict[SSAValue, list[Home]] = field(default_factory=dict)
    """Where results of the stage go: the slots of their rings."""
    turned: set[SSAValue] = field(default_factory=set["SSAValue"])
    """What comes through rings whose slots are the transposed matrix."""
    row_inputs: dict[SSAValue, RowStream] = field(default_factory=dict["SSAValue", "RowStream"])
    """What comes by rows, and the rings it comes through."""
    row_outputs: dict[SSAValue, list[RowStream]] = field(default_factory=dict["SSAValue", "list[RowStream]"])
    """What goes by rows."""
    by_rows: list[RowStream] = field(default_factory=list["RowStream"])
    """Streams of rows that a layer has read or written."""
    read_here: set[SSAValue] = field(default_factory=lambda: set())
    """Those of them that the stage itself reads."""
    left: list[Home] = field(default_factory=list[Home])
    """Slots of rings that have their value already."""
    in_dram: set[SSAValue] = field(default_factory=lambda: set())
    partition_of: dict[SSAValue, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[tuple[object, ...], object] = field(default_factory=dict)
    local: dict[tuple[object, ...], Home] = field(default_factory=dict)
    residency: Residency = field(default_factory=lambda: Residency(0))
    rows: RowConstants | None = None
    """Rows that all partitions want are kept once, not on all of them; None where there is room for that."""
    counts: dict[str, int] = field(default_factory=dict)
    aliases: dict[SSAValue, SSAValue] = field(default_factory=dict)
    spilled: dict[SSAValue, Home] = field(default_factory=dict)
    """What `nn.spill` wrote: a buffer in DRAM, and how it lies in SBUF."""
    hold: Hold | None = None
    large_bytes: int | None = None
    """Maps of more bytes per partition stay in DRAM; None: as `layouts.large_bytes` says."""
    tile_slots: int = 2
    """Buffers of a depth-first group for each map that it loads or stores: one on its way, one in use."""

    # Names

    def origin(self, value: SSAValue) -> SSAValue:
        """What a group's argument stands for outside; other values are themselves."""
        while value in self.aliases:
            value = self.aliases[value]
        return value

    def label(self, value: SSAValue) -> str:
        """A name for a value's buffer: its SSA name, or the location of its op."""
        value = self.origin(value)
        owner = value.owner
        if isinstance(owner, nn.ConstOp):
            owner = next((o for o in owner.body.block.ops if isinstance(o, nn.WeightOp)), owner)
        if isinstance(owner, nn.WeightOp):
            return owner.key
        if value.name_hint:
            return value.name_hint
        if isinstance(owner, Operation):
            text = str(getattr(getattr(owner.location, "name", None), "data", "") or "")
            return text or owner.name.removeprefix("nn.")
        return "arg"

    # Buffers

    def sbuf_home(
        self,
        label: str,
        shape: Sequence[int],
        element: Attribute,
        partition: Sequence[int],
        padding: Padding | None = None,
        code: Code | None = None,
        slots: int = 1,
    ) -> Home:
        """A buffer in SBUF with the given axes (outermost first) on the partitions, the others free, in order; or so
        many of them in one, of which the home is the first.
        """
        lanes = math.prod(shape[axis] for axis in partition)
        sizes = [min(lanes, LANES), *([slots] if slots > 1 else []), -(-lanes // LANES)]
        low = [Linear()] * len(sizes)
        pads = [(0, 0)] * len(sizes)
        axes: list[tuple[Factor, ...]] = []
        for axis, size in enumerate(shape):
            if axis in partition:
                position = list(partition).index(axis)
                stride = math.prod(shape[a] for a in list(partition)[position + 1 :])
                axes.append((Factor(size, 0, stride),) if size > 1 else ())
                continue
            before, after = (0, 0) if padding is None else padding.axes.get(axis, (0, 0))
            if size == 1 and before == after == 0:
                axes.append(())
                continue
            axes.append((Factor(size, len(sizes)),))  # of size 1 too: windows step through its padding
            sizes.append(size + before + after)
            low.append(Linear.wrap(before))
            pads.append((before, after))
        buffer = (code or self.code).alloc(label, sizes, element, SBUF)
        slot = (Linear(), 1) if slots > 1 else None
        home = Home(buffer, tuple(sizes), element, tuple(axes), lanes, tuple(low), slot=slot, pad=tuple(pads))
        if any(before or after for before, after in pads):
            assert padding is not None
            home = replace(home, pad_value=padding.value)
            for number in range(slots):
                self.fill_border(home if slot is None else home.in_slot(Linear.wrap(number)), padding.value)
        return home

    def fill_border(self, home: Home, value: float) -> None:
        """Set the padding of an SBUF buffer."""
        for dim, (before, after) in enumerate(home.pad):
            for start, size in ((0, before), (home.shape[dim] - after, after)):
                if not size:
                    continue
                offsets: dict[int, int | SSAValue | Linear] = {
                    d: Linear() + self._raw(home, d, 0) for d in range(home.first_free, len(home.shape))
                }
                sizes = {d: home.shape[d] for d in range(home.first_free, len(home.shape))}
                offsets[dim] = self._raw(home, dim, start)
                sizes[dim] = size
                sizes[home.tile_dim] = 1
                for segment in segments(home.lanes, LANES):
                    with self.code.loop(segment.count) as tile:
                        access = home.access(offsets, sizes, None, (0, segment.size), tile + segment.start // LANES)
                        self.code.add(MemsetOp(access, value))

    @staticmethod
    def _raw(home: Home, dim: int, position: int) -> Linear:
        """A position in the buffer (not in its interior) as the offset `Home.access` wants."""
        return Linear.wrap(position) + home.low[dim] * -1

    def dram_home(self, label: str, shape: Sequence[int], element: Attribute, padding: Padding | None = None) -> Home:
        """A stage-level buffer in DRAM, row-major; its padding is set once, at load."""
        pads = [(0, 0) if padding is None else padding.axes.get(axis, (0, 0)) for axis in range(len(shape))]
        sizes = [size + before + after for size, (before, after) in zip(shape, pads, strict=True)] or [1]
        with self.code.at(self.top):
            buffer = self.code.alloc(label, sizes, element, DRAM)
        axes = tuple((Factor(size, axis),) if size > 1 else () for axis, size in enumerate(shape))
        low = tuple(Linear.wrap(before) for before, _ in pads) or (Linear(),)
        home = Home(buffer, tuple(sizes), element, axes, 0, low, pad=tuple(pads))
        if padding is not None and any(before or after for before, after in pads):
            home = replace(home, pad_value=padding.value)
            self.fill_dram_border(home, padding.value)
        return home

    def fill_dram_border(self, home: Home, value: float) -> None:
        """Set the padding of a DRAM buffer, once, by DMA from one constant row."""
        row = self.constant_buffer(f"border.{value}", [1], home.element, value)
        for dim, (before, after) in enumerate(home.pad):
            for start, size in ((0, before), (home.shape[dim] - after, after)):
                if not size:
                    continue
                sizes = list(home.shape)
                sizes[dim] = size
                whole = Home(
                    home.buffer,
                    home.shape,
                    home.element,
                    _axes_of(sizes),
                    0,
                    tuple(Linear.wrap(start if d == dim else 0) for d in range(len(sizes))),
                )
                point = Home(row, (1,) * 8, home.element, ((),) * len(sizes), 0, (Linear(),) * 8)
                copy_by_dma(self.load, point, whole, cast(Operation, home.buffer.owner), LOAD_QUEUE)

    def constant_buffer(self, label: str, shape: Sequence[int], element: Attribute, value: float) -> SSAValue:
        """A constant in DRAM that holds one number (8 equal dimensions of size 1 serve every rank)."""
        rank8 = (1,) * 8
        key = ("splat", str(element), value)
        if key not in self.constants:
            weight = nn.WeightOp(label, TensorType(element, rank8), nn.SplatAttr.get(value))
            body = Block([weight, nn.YieldOp(weight.result)])
            op = ConstOp(label, Region(body), buffer_type(rank8, element, DRAM))
            self.top.add_op(op)
            self.constants[key] = op.result
        return cast(SSAValue, self.constants[key])

    # Constants

    def is_constant(self, value: SSAValue) -> bool:
        """Whether the value follows from weights alone."""
        return isinstance(self.origin(value).owner, (nn.WeightOp, nn.ConstOp))

    def is_whole_constant(self, value: SSAValue) -> bool:
        """Whether the value is a constant of which no part is in place of the whole now (as a tile of rows may be)."""
        return self.is_constant(value) and self.origin(value) not in self.homes

    def number(self, value: SSAValue) -> float | None:
        """The number all elements of a constant equal, where the IR says so."""
        owner = self.origin(value).owner
        if isinstance(owner, nn.ConstOp):
            ops = list(owner.body.block.ops)
            if not all(isinstance(op, (nn.WeightOp, nn.ReshapeOp, nn.ExpandOp, nn.CastOp, nn.YieldOp)) for op in ops):
                return None
            if any(isinstance(op, nn.CastOp) for op in ops):
                return None
            owner = ops[0]
        if isinstance(owner, nn.WeightOp) and isinstance(owner.source, nn.SplatAttr):
            return float(owner.source.number)
        return None

    def constant(self, value: SSAValue, label: str, transform: Transform | None = None) -> Home:
        """A constant in DRAM, row-major, after `transform` (which adds `nn` ops over it)."""
        body = Block()
        owner = self.origin(value).owner
        assert isinstance(owner, Operation)

        def add(op: Operation) -> SSAValue:
            body.add_op(op)
            return op.results[0]

        if isinstance(owner, nn.ConstOp):
            mapping: dict[SSAValue, SSAValue] = {}
            result: SSAValue | None = None
            for op in owner.body.block.ops:
                if isinstance(op, nn.YieldOp):
                    result = mapping[op.values[0]]
                else:
                    copy = op.clone(mapping)
                    body.add_op(copy)
            assert result is not None
        else:
            result = add(owner.clone())
        if transform is not None:
            result = transform(result, add)
        body.add_op(nn.YieldOp(result))
        final = tensor_type(result)
        shape = tuple(final.get_shape()) or (1,)
        op = ConstOp(label, Region(body), buffer_type(shape, final.element_type, DRAM))
        op.location = owner.location
        self.top.add_op(op)
        return Home(op.result, shape, final.element_type, _axes_of(shape), 0, (Linear(),) * len(shape))

    def constant_like(self, value: SSAValue, target: Home, rank: int, as_shape: Sequence[int] | None = None) -> Home:
        """A constant as an operand of element-wise code over `target`: in SBUF, its partition axes where `target` has
        them, repeated on all partitions where it has none of them.

        `rank` is that of the result; the constant's shape is aligned to its end, as numpy does, unless `as_shape`
        says otherwise (-1: all elements).
        """
        value = self.origin(value)
        shape = (1,) * (rank - len(shape_of(value))) + shape_of(value)
        if as_shape is not None:
            shape = tuple(math.prod(shape_of(value)) if size == -1 else size for size in as_shape)
        partition = target.partition_factors()
        key = ("like", value, shape, tuple(partition), target.lane0)
        if key in self.constants:
            return cast(Home, self.constants[key])
        local = self.local if self.hold is None else self.hold.constants
        if key in local:
            return local[key]
        if self.rows is not None and self._is_row(value, shape, target):
            with self.code.at(self.code.block if self.hold is None else self.hold.block):
                home = self.operand_home(self.label(value), shape, tensor_type(value).element_type, target)
                self.rows.repeat(self, value, math.prod(shape), home, LOAD_QUEUE)
            local[key] = home
            return home
        source = self.constant(value, self.label(value), _reshape_to(shape))
        source = replace(source, axes=_axes_of(shape))
        size = math.prod(shape) * element_bytes(source.element)
        per_partition = size // max(1, math.prod(f.size for _, f in partition)) if self._covers(shape, target) else size
        row = self._is_row(value, shape, target)
        moved = per_partition * self.machine.sbuf.partitions
        resident = per_partition <= SMALL_CONSTANT or self.residency.take(per_partition, row=row, moved=moved) == 1
        if resident:
            home = self.operand_home(self.label(value), shape, source.element, target, self.top)
            copy_by_dma(self.load, source, self.spread(home, target), cast(Operation, value.owner), LOAD_QUEUE)
            self.constants[key] = home
            return home
        with self.code.at(self.code.block if self.hold is None else self.hold.block):
            home = self.operand_home(self.label(value), shape, source.element, target)
            copy_by_dma(self.code, source, self.spread(home, target), cast(Operation, value.owner), WEIGHT_QUEUE)
        local[key] = home
        return home

    @staticmethod
    def _is_row(value: SSAValue, shape: Sequence[int], target: Home) -> bool:
        """Whether every partition wants the same row of numbers, and not a short one."""
        varies = any(shape[axis] != 1 for axis in target.partition_axes())
        number = str(tensor_type(value).element_type) in ("f32", "bf16", "f16")
        return number and not varies and max(shape) == math.prod(shape) >= SHORTEST

    @staticmethod
    def _covers(shape: Sequence[int], target: Home) -> bool:
        return all(shape[axis] != 1 for axis in target.partition_axes())

    def operand_home(
        self, label: str, shape: Sequence[int], element: Attribute, target: Home, block: Block | None = None
    ) -> Home:
        """A buffer for an operand of `shape` (rank of the target) laid out as `target` on the partitions.

        When the operand varies along none of the target's partition axes, one row is kept on every partition (no
        factor on dimension 0).
        """
        partition = target.partition_factors()
        varies = any(shape[axis] != 1 for axis, _ in partition)
        lanes = target.lane0 + math.prod(f.size for _, f in partition)
        sizes = [min(lanes, LANES), -(-lanes // LANES) if varies else 1]
        axes: list[tuple[Factor, ...]] = []
        for axis, size in enumerate(shape):
            on_partition = tuple(f for a, f in partition if a == axis)
            if on_partition and size != 1:
                axes.append(on_partition)
            elif size == 1:
                axes.append(())
            else:
                axes.append((Factor(size, len(sizes)),))
                sizes.append(size)
        if len(sizes) == 2 and not varies:
            sizes.append(1)
        with self.code.at(self.code.block if block is None else block):
            buffer = self.code.alloc(label, sizes, element, SBUF)
        return Home(
            buffer,
            tuple(sizes),
            element,
            tuple(axes),
            lanes,
            (Linear(),) * len(sizes),
            lane0=target.lane0 if varies else 0,
            repeated=not varies,
        )

    @staticmethod
    def spread(home: Home, target: Home) -> Home:
        """The destination view of a copy into an operand buffer: where the operand does not vary along a partition
        axis of the target, that axis is a factor of the destination which the source lacks, so that the copy repeats
        it.
        """
        axes = list(home.axes)
        varies = {axis for axis, axis_factors in enumerate(home.axes) if any(f.dim == 0 for f in axis_factors)}
        if not varies:
            # Repeated on all partitions of one tile.
            lanes = home.shape[0]
            first = target.partition_axes()[0] if target.partition_axes() else 0
            axes[first] = (Factor(lanes, 0),) if lanes > 1 else ()
            return replace(home, axes=tuple(axes), lane0=0)
        for axis, factor in target.partition_factors():
            if axis not in varies:
                axes[axis] = (*axes[axis], factor)
        return replace(home, axes=tuple(axes))

    # Values

    def define(self, value: SSAValue, home: Home) -> None:
        """Record where a value is; the first place recorded is the one it was computed into."""
        self.homes.setdefault(self.origin(value), []).append(home)

    def is_in_sbuf(self, value: SSAValue) -> bool:
        """Whether the value has a place in SBUF."""
        return any(home.in_sbuf for home in self.homes.get(value, []))

    def places(self, value: SSAValue) -> list[Home]:
        """All places a value has now, views included. Raises `NeuronError` for a value without any."""
        found = self.homes.get(self.origin(value))
        if found is not None:
            return found
        owner = value.owner
        raise NeuronError("value is used before it is lowered", op=owner if isinstance(owner, Operation) else None)

    def count(self, name: str, n: int = 1) -> None:
        """Count towards the pass's statistics."""
        self.counts[name] = self.counts.get(name, 0) + n


def _axes_of(shape: Sequence[int]) -> tuple[tuple[Factor, ...], ...]:
    return tuple((Factor(size, axis),) if size > 1 else () for axis, size in enumerate(shape))


def _reshape_to(shape: Sequence[int]) -> Transform:
    def transform(value: SSAValue, add: Callable[[Operation], SSAValue]) -> SSAValue:
        return value if shape_of(value) == tuple(shape) else add(nn.ReshapeOp(value, shape))

    return transform
