"""How an `nn.unfold` goes: in tiles of rows, rows on the partitions first. Shared by estimate and lowering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.memory import element_bytes
from neuron_mlir.dialects.nn.base import type_of

LANES = 128
MOVING = 512
"""Pixels of one matmul."""
ROWS = 2
"""The axis of rows of a feature map."""
FLOATS = ("f32", "bf16", "f16")
"""Types between which a cast is rounding that an engine does on the way."""


@dataclass(frozen=True)
class Unfolding:
    """An `nn.unfold` over two spatial axes, with the cast in front of it.

    Attributes:
        value: what is unfolded, before it is rounded.
        before: the ops it stands for.
    """

    op: nn.UnfoldOp
    value: SSAValue
    before: tuple[Operation, ...]

    @staticmethod
    def of(op: nn.UnfoldOp) -> Unfolding:
        """The unfolding that an op makes: a cast that only it reads is part of it."""
        cast = op.x.owner
        if not isinstance(cast, nn.CastOp) or sum(1 for _ in cast.result.uses) > 1:
            return Unfolding(op, op.x, (op,))
        if any(str(type_of(value).element_type) not in FLOATS for value in (cast.x, cast.result)):
            return Unfolding(op, op.x, (op,))
        return Unfolding(op, cast.x, (cast, op))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the result: images, channels, rows, columns."""
        images, channels, rows, columns = _shape(self.op.result)
        return images, channels, rows, columns

    @property
    def first(self) -> int:
        """The group of rows that the first tap of output row 0 is in (negative in padding)."""
        return -self.op.pads[0] // self.op.strides[0]

    @property
    def reach(self) -> int:
        """Groups of rows behind one output row."""
        return (self.op.kernel[0] - 1 - self.op.pads[0]) // self.op.strides[0] - self.first + 1

    @property
    def phases(self) -> int:
        """Columns of the map that lie side by side within one stride, as far as the window has them."""
        return min(self.op.strides[1], self.op.kernel[1])

    @property
    def places(self) -> int:
        """Columns of a phase that the taps read."""
        return self.shape[3] + (self.op.kernel[1] - 1) // self.op.strides[1]

    def rows_per_tile(self, result: Sequence[int], item_bytes: int, tile_bytes: int) -> int:
        """Rows of a convolution's result (N, C, H, W) such that neither they nor the packed rows behind them exceed
        their share of SBUF, and the rows of all channels fit the partitions at once where that is possible.
        """
        channels, total = _shape(self.value)[1], result[2]
        halo = self.shape[2] - total
        out = -(-result[1] // LANES) * result[3] * item_bytes
        rows = min(tile_bytes // (self.shape[3] * 2) - halo, tile_bytes // out, LANES - self.reach + 1 - halo)
        together = LANES // channels - self.reach + 1 - halo
        rows = max(1, min(rows, total, together if together >= self.reach + halo else rows))
        # Whole products of pixels in each tile, where a tile has more than one.
        unit = max(1, MOVING // result[3])
        if rows < unit:
            return -(-total // -(-total // rows))
        tiles = -(-total // rows)
        while _up(-(-total // tiles), unit) > rows:
            tiles += 1
        return min(total, _up(-(-total // tiles), unit))

    def buffer_bytes(self) -> int:
        """Bytes per partition of what is on its way: a group of rows as it comes, and parted by phase, two of each."""
        width, items = _shape(self.value)[3], [element_bytes(type_of(v).element_type) for v in (self.value, self.op.x)]
        return 2 * self.op.strides[0] * (width * items[0] + self.phases * self.places * items[1])

    def inside(self, start: int, rows: int) -> bool:
        """Whether the groups of rows behind output rows from `start` on are all in the map."""
        begin = start + self.first
        return begin >= 0 and (begin + rows + self.reach - 1) * self.op.strides[0] <= _shape(self.value)[ROWS]

    def tiles(self, total: int, rows: int) -> list[tuple[int, int, int]]:
        """`total` rows of a convolution's result in runs of tiles, `(start, tiles, rows of each)`: a run of several
        tiles reads what lies inside the map, those at its border are runs of their own.
        """
        found: list[tuple[int, int, int]] = []
        halo = self.shape[2] - total
        for start in range(0, total, rows):
            size = min(rows, total - start)
            first, count, same = found[-1] if found else (0, 0, 0)
            if same == size and self.inside(start, size + halo) and self.inside(first, size + halo):
                found[-1] = first, count + 1, size
            else:
                found.append((start, 1, size))
        return found


def packing_before(root: Operation) -> tuple[Operation, ...]:
    """What stands in front of a convolution of its group and is lowered with it: its unfolding, and its cast."""
    unfold = root.x.owner if isinstance(root, nn.ConvOp) else None
    if not isinstance(unfold, nn.UnfoldOp) or not isinstance(root.parent_op(), nn.FusedOp):
        return ()
    return Unfolding.of(unfold).before


def unfolding_of(op: Operation) -> Unfolding | None:
    """The unfolding in front of a group's convolution, its value as an operand of the group."""
    if not isinstance(op, nn.FusedOp) or op.tile is not None:
        return None
    root = next((o for o in op.body.block.ops if isinstance(o, nn.ConvOp)), None)
    if root is None or not packing_before(root):
        return None
    unfold = root.x.owner
    assert isinstance(unfold, nn.UnfoldOp)
    found = Unfolding.of(unfold)
    arguments: list[SSAValue] = list(op.body.block.args)
    return replace(found, value=op.inputs[arguments.index(found.value)]) if found.value in arguments else found


def _shape(value: SSAValue) -> tuple[int, ...]:
    return tuple(type_of(value).get_shape())


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
