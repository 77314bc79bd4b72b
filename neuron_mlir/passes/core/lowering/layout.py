"""Where the elements of a logical tensor are in a buffer.

A tensor's axes are split into *factors*, each with a place: a dimension of the buffer and a stride in it. Transposes
and most reshapes only relabel factors, so they cost nothing. In SBUF the first two dimensions of a buffer (after a
ring's slot: partition, tile) are one coordinate, `tile * 128 + partition`; a factor with `dim` 0 lives on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from xdsl.ir import Attribute, SSAValue

from neuron_mlir.dialects.core.access import Access, Linear

LANES = 128
Offset = int | SSAValue | Linear


@dataclass(frozen=True)
class Factor:
    """`size` steps of an axis, `stride` apart in buffer dimension `dim`."""

    size: int
    dim: int
    stride: int = 1


Axes = tuple[tuple[Factor, ...], ...]


@dataclass(frozen=True)
class Home:
    """A value in memory.

    Attributes:
        buffer: the memref.
        shape: shape of the buffer, padding included.
        axes: factors of each logical axis; axes of size 1 have none.
        lanes: elements on the partition coordinate (SBUF); 0 in DRAM.
        low: offset of the interior along each buffer dimension (leading padding, or where a part begins).
        lane0: first partition coordinate in use.
        slot: index of the ring slot and its dimension, or None.
        pad: leading and trailing padding along each buffer dimension.
        pad_value: what the padding holds; None where it is not set.
        repeated: every partition holds the same row (an operand that does not vary along the partitions).
    """

    buffer: SSAValue
    shape: tuple[int, ...]
    element: Attribute
    axes: Axes
    lanes: int
    low: tuple[Linear, ...]
    lane0: int = 0
    slot: tuple[Linear, int] | None = None
    pad: tuple[tuple[int, int], ...] = ()
    pad_value: float | None = None
    repeated: bool = False

    @property
    def in_sbuf(self) -> bool:
        """In SBUF (else DRAM)."""
        return self.lanes > 0

    @property
    def logical(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(math.prod(factor.size for factor in axis) for axis in self.axes)

    @property
    def tile_dim(self) -> int:
        """Which buffer dimension counts partition tiles (SBUF)."""
        return 1 if self.slot is None else 2

    @property
    def first_free(self) -> int:
        """The first buffer dimension that is neither partition, tile nor slot."""
        if self.in_sbuf:
            return self.tile_dim + 1
        return 0 if self.slot is None else 1

    def in_slot(self, slot: Linear) -> Home:
        """The same place in another slot of its buffer."""
        assert self.slot is not None
        return replace(self, slot=(slot, self.slot[1]))

    def transposed(self, perm: Sequence[int]) -> Home:
        """The same elements with the axes reordered."""
        return replace(self, axes=tuple(self.axes[axis] for axis in perm))

    def reshaped(self, shape: Sequence[int]) -> Home | None:
        """The same elements under another shape, or None when a factor would have to be cut unevenly."""
        factors = [factor for axis in self.axes for factor in axis if factor.size > 1]
        axes: list[tuple[Factor, ...]] = []
        for size in shape:
            axis: list[Factor] = []
            while size > 1:
                if not factors:
                    return None
                factor = factors.pop(0)
                if size % factor.size == 0:
                    axis.append(factor)
                    size //= factor.size
                elif factor.size % size == 0:
                    inner = factor.size // size
                    axis.append(Factor(size, factor.dim, factor.stride * inner))
                    factors.insert(0, Factor(inner, factor.dim, factor.stride))
                    size = 1
                else:
                    return None
            axes.append(tuple(axis))
        return None if factors else replace(self, axes=tuple(axes)).merged()

    def merged(self) -> Home:
        """Neighbouring factors of an axis that are one run in the buffer made one factor; none of size 1."""
        axes: list[tuple[Factor, ...]] = []
        for axis in self.axes:
            out: list[Factor] = []
            for factor in axis:
                if factor.size == 1:
                    continue
                last = out[-1] if out else None
                if last is not None and last.dim == factor.dim and last.stride == factor.stride * factor.size:
                    out[-1] = Factor(last.size * factor.size, factor.dim, factor.stride)
                else:
                    out.append(factor)
            axes.append(tuple(out))
        return replace(self, axes=tuple(axes))

    def part(self, axis: int, start: Offset, size: int, stride: int = 1) -> Home | None:
        """Elements `start`, `start + stride`, ... of an axis, or None when the axis is not one factor.

        A part of the partition axis must begin at a constant.
        """
        if not self.axes[axis]:
            return self
        if len(self.axes[axis]) != 1:
            return None
        factor = self.axes[axis][0]
        begin = Linear.wrap(start) * factor.stride
        taken = (Factor(size, factor.dim, factor.stride * stride),) if size > 1 else ()
        axes = (*self.axes[:axis], taken, *self.axes[axis + 1 :])
        if self.in_sbuf and factor.dim == 0:
            if begin.terms or factor.stride * stride != 1:
                return None
            tiles, lane0 = divmod(self.lane0 + begin.constant, LANES)
            first = tuple(o + tiles if dim == self.tile_dim else o for dim, o in enumerate(self.low))
            whole = not lane0 and len(self.partition_factors()) == 1
            return replace(self, axes=axes, low=first, lane0=lane0, lanes=size if whole else self.lanes)
        low = tuple(offset + begin if dim == factor.dim else offset for dim, offset in enumerate(self.low))
        return replace(self, axes=axes, low=low)

    def partition_factors(self) -> tuple[tuple[int, Factor], ...]:
        """`(axis, factor)` of each factor on the partitions, outermost (largest stride) first."""
        if not self.in_sbuf:
            return ()
        found = [(i, f) for i, axis in enumerate(self.axes) for f in axis if f.dim == 0]
        return tuple(sorted(found, key=lambda item: -item[1].stride))

    def partition_axes(self) -> tuple[int, ...]:
        """Axes with a factor on the partitions."""
        return tuple(sorted({axis for axis, _ in self.partition_factors()}))

    def free_dim(self, axis: int) -> int | None:
        """The free buffer dimension that holds exactly this axis, or None (also for an axis of size 1)."""
        factors = self.axes[axis]
        if len(factors) != 1 or (self.in_sbuf and factors[0].dim == 0):
            return None
        return factors[0].dim

    def is_plain(self, axis: int) -> bool:
        """Whether the axis has size 1 or is one free dimension with stride 1."""
        factors = self.axes[axis]
        return not factors or (self.free_dim(axis) is not None and factors[0].stride == 1)

    def access(
        self,
        offsets: dict[int, Offset],
        sizes: dict[int, int],
        strides: dict[int, int] | None = None,
        lane: tuple[Offset, int] = (0, 1),
        tile: Offset = 0,
    ) -> Access:
        """Part of the buffer by buffer dimension (size 1 where not named), offsets relative to the interior.

        `lane` is the first partition and how many (SBUF), `tile` the partition tile.
        """
        rank = len(self.shape)
        all_offsets: list[Offset] = [Linear.wrap(offsets.get(d, 0)) + self.low[d] for d in range(rank)]
        all_sizes = [sizes.get(d, 1) for d in range(rank)]
        all_strides = [1 if strides is None else strides.get(d, 1) for d in range(rank)]
        if self.in_sbuf:
            all_offsets[0], all_sizes[0] = lane
            all_offsets[self.tile_dim] = self.low[self.tile_dim] + tile
        if self.slot is not None:
            all_offsets[self.slot[1]] = self.slot[0]
        return Access.of(self.buffer, all_offsets, all_sizes, all_strides)


def refine(a: Axes, b: Axes) -> list[tuple[Factor | None, Factor | None]] | None:
    """The factors of two placements of one logical shape, cut so that they correspond one to one, in logical order.

    An axis of size 1 on one side broadcasts: its factor is None. None when two factors do not divide each other.
    """
    pairs: list[tuple[Factor | None, Factor | None]] = []
    for left, right in zip(a, b, strict=True):
        lefts, rights = list(left), list(right)
        if not lefts or not rights:
            pairs += [(factor, None) for factor in lefts] + [(None, factor) for factor in rights]
            continue
        while lefts and rights:
            x, y = lefts.pop(), rights.pop()  # innermost first
            if x.size == y.size:
                pairs.append((x, y))
            elif x.size % y.size == 0:
                pairs.append((Factor(y.size, x.dim, x.stride), y))
                lefts.append(Factor(x.size // y.size, x.dim, x.stride * y.size))
            elif y.size % x.size == 0:
                pairs.append((x, Factor(x.size, y.dim, y.stride)))
                rights.append(Factor(y.size // x.size, y.dim, y.stride * x.size))
            else:
                return None
        if lefts or rights:
            return None
    return pairs


def fits(home: Home, partition: Sequence[int], pads: dict[int, tuple[int, int]], fill: float) -> bool:
    """Whether a place has exactly these axes on the partitions, the others as plain dimensions in order, and the
    padding.
    """
    if home.lane0:
        return False
    merged = home.merged()
    shape = home.logical
    wanted: list[tuple[int, Factor]] = []
    stride = 1
    for axis in reversed(partition):
        if shape[axis] > 1:
            wanted.insert(0, (axis, Factor(shape[axis], 0, stride)))
        stride *= shape[axis]
    if list(merged.partition_factors()) != wanted:
        return False
    dims: list[int] = []
    for axis in range(len(shape)):
        if axis in partition:
            continue
        if not merged.is_plain(axis):
            return False
        dim = merged.free_dim(axis)
        if dim is not None:
            dims.append(dim)
    return dims == sorted(dims) and has_padding(home, pads, fill)


def has_padding(home: Home, pads: dict[int, tuple[int, int]], fill: float) -> bool:
    if not pads:
        return True
    if home.pad_value != fill or not home.pad:
        return False
    for axis, (low, high) in pads.items():
        dim = home.free_dim(axis)
        if dim is None or home.pad[dim][0] < low or home.pad[dim][1] < high:
            return False
    return True
