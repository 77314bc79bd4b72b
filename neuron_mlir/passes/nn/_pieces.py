"""Layers that can go through their maps in tiles of rows, from and to DRAM: what `nn-rematerialize` may decide so, and
what a tile then takes. `core-lower` cuts the same tiles (`neuron_mlir.passes.core.lowering.rows`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from xdsl.ir import BlockArgument, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.machine import Machine
from neuron_mlir.passes.core.lowering.context import shape_of, tensor_type
from neuron_mlir.passes.core.lowering.plan import pads_of
from neuron_mlir.passes.core.lowering.rows import row_bytes, rows_per_tile
from neuron_mlir.passes.core.lowering.transposed import rows_per_phase
from neuron_mlir.passes.depth_first_rows import UnitRead, from_constant, is_map, unit_reads, why_not
from neuron_mlir.passes.estimate_nests import group_nests, is_depthwise
from neuron_mlir.passes.layouts import ELEMENTWISE, element_bytes, is_constant
from neuron_mlir.passes.phases import phases_of, transposed_pads
from neuron_mlir.passes.unfolding import ROWS, packing_before
from neuron_mlir.solvers.row_schedule import Read


@dataclass(frozen=True)
class Pieces:
    """A layer in tiles of rows.

    Attributes:
        reads: operands that may come from DRAM so, with the bytes per partition of a tile of each.
        result_bytes: of a tile of the result.
        tiles: how many.
        padded: operands that a window reads with padding around them.
        weight: of a contraction.
        whole: whether temporaries are as large as what is computed at once: those of a tile are smaller.
    """

    reads: dict[SSAValue, int]
    result_bytes: int
    tiles: int
    padded: tuple[SSAValue, ...] = ()
    weight: SSAValue | None = None
    whole: bool = False


def pieces_of(op: Operation, result: SSAValue, tile_bytes: int) -> Pieces | None:
    """How a layer goes in tiles of rows of about `tile_bytes` per partition; None for one that does not. `result` is
    what is stored: the layer's result, or that of the cast behind it.
    """
    if isinstance(op, nn.FusedOp) and op.tile is not None:
        return None
    if len(op.results) != 1 or not is_map(result):
        return None
    inner = [o for o in op.body.block.ops if not is_constant(o)] if isinstance(op, nn.FusedOp) else [op]
    roots = [o for o in inner if isinstance(o, (*nn.CONTRACTIONS, nn.PoolOp, nn.LrnOp, nn.ResizeOp, nn.ConcatOp))]
    if len(roots) > 1 or any(packing_before(root) for root in roots):
        return None
    root = roots[0] if roots else None
    inside = interior(op, root)
    if inside is not None and not isinstance(inside.owner, nn.CastOp):
        return None
    if isinstance(root, (nn.ConvTransposeOp, nn.ResizeOp)):
        return _widened(op, root, result, tile_bytes)
    others = (nn.YieldOp, *ELEMENTWISE)
    if isinstance(root, nn.ConcatOp) or not all(o is root or isinstance(o, others) for o in inner):
        return None
    reads = _reads(op, root, result)
    if reads is None:
        return None
    out = _row(result)
    if isinstance(root, (nn.ConvOp, nn.PoolOp)):
        read = next(r.read for r in reads if r.fill is not None or r.operand is _outer(op, root.operands[0]))
        rows = rows_per_tile(root.operands[0], result, read.stride, read.reach, tile_bytes)
    elif isinstance(root, nn.LrnOp):
        rows = max(1, min(shape_of(result)[ROWS], tile_bytes // 8 // out))
        out *= 8
    else:
        widest = max(row_bytes(shape_of(v), tensor_type(v).element_type) for v in (*op.operands, result) if is_map(v))
        rows = max(1, min(shape_of(result)[ROWS], tile_bytes // widest))
    found: dict[SSAValue, int] = {}
    for r in reads:
        height = (rows - 1) * r.read.stride + r.read.reach
        found[r.operand] = max(found.get(r.operand, 0), height * _row(r.operand, sum(r.columns)))
    made = rows * out
    if inside is not None:
        # First the map is rounded, to DRAM; then it is read from there.
        source = next(r.operand for r in reads if r.operand is _outer(op, inside))
        columns = max(sum(r.columns) for r in reads)
        rounded = max(1, tile_bytes // max(_row(source), _row(inside)))
        loaded = found[source] // _row(source, columns) * _row(inside, columns)
        found[source] = rounded * _row(source)
        made = max(made + loaded - found[source], rounded * _row(inside))
    weight = _outer(op, root.w) if isinstance(root, nn.ConvOp) else None
    padded = tuple(r.operand for r in reads if r.fill is not None)
    tiles = -(-shape_of(result)[ROWS] // rows)
    return Pieces(found, made, tiles, padded, weight, not isinstance(root, nn.ConvOp))


def _reads(op: Operation, root: Operation | None, result: SSAValue) -> tuple[UnitRead, ...] | None:
    """Operands that have rows; None where lowering cannot take rows of them."""
    if isinstance(root, nn.PoolOp):
        # Unlike in a depth-first group, a mean may leave out what is beyond the border.
        if root is not op or result is not op.results[0] or len(root.kernel) != 2:
            return None
        top, left, _, right = root.pads
        reach = (root.kernel[0] - 1) * root.dilations[0] + 1
        return (UnitRead(root.x, Read(0, root.strides[0], top, reach), 0.0 if any(root.pads) else None, (left, right)),)
    if isinstance(root, nn.LrnOp) and (root is not op or result is not op.results[0]):
        return None
    reads = unit_reads(op) if why_not(op) is None else ()
    return None if isinstance(reads, str) or not reads else reads


def interior(op: Operation, root: Operation | None) -> SSAValue | None:
    """What a group computes for its convolution to read: it is stored as a whole first."""
    if not isinstance(root, (nn.ConvOp, nn.ConvTransposeOp)) or not isinstance(op, nn.FusedOp) or packing_before(root):
        return None
    return None if isinstance(root.x, BlockArgument) else root.x


def interior_bytes(op: Operation) -> int:
    """Bytes per partition of that, with the padding around it."""
    inner = op.body.block.ops if isinstance(op, nn.FusedOp) and op.tile is None else ()
    root = next((o for o in inner if isinstance(o, nn.CONTRACTIONS)), None)
    value = interior(op, root)
    if value is None or root is None or not is_map(value):
        return 0
    pads = transposed_pads(root) if isinstance(root, nn.ConvTransposeOp) else pads_of(cast(nn.ConvOp, root))
    return _row(value, sum(pads.get(ROWS + 1, (0, 0)))) * (shape_of(value)[ROWS] + sum(pads.get(ROWS, (0, 0))))


def _widened(op: Operation, root: nn.ConvTransposeOp | nn.ResizeOp, result: SSAValue, tile_bytes: int) -> Pieces | None:
    """A layer that makes several rows of one: a transposed convolution, a resizing."""
    value = _outer(op, root.operands[0])
    if value is None or from_constant(value) or not is_map(value) or interior(op, root) is not None:
        return None
    shape, out = shape_of(result), _row(result)
    if isinstance(root, nn.ResizeOp):
        if root is not op:
            return None
        rows = max(1, min(shape_of(value)[ROWS], tile_bytes // out))
        return Pieces({value: rows * _row(value)}, rows * out, -(-shape_of(value)[ROWS] // rows))
    rows, reach = rows_per_phase(root, result, tile_bytes)
    stride = root.strides[0]
    pads = transposed_pads(root)
    found = {value: (rows + reach) * _row(value, sum(pads.get(ROWS + 1, (0, 0))))}
    for operand in op.operands:
        if operand is value or from_constant(operand):
            continue
        if shape_of(operand) != shape:
            return None
        found[operand] = rows * stride * _row(operand)
    padded = (value,) if any(any(p) for p in pads.values()) else ()
    tiles = -(-shape[ROWS] // (rows * stride))
    return Pieces(found, rows * stride * out, tiles, padded, _outer(op, root.w))


def _row(value: SSAValue, columns: int = 0) -> int:
    """Bytes per partition of a row of a map, with columns of padding."""
    shape = list(shape_of(value))
    shape[-1] += columns
    return row_bytes(shape, tensor_type(value).element_type)


def _outer(op: Operation, value: SSAValue) -> SSAValue | None:
    """What an operand inside a group is outside."""
    if not isinstance(op, nn.FusedOp):
        return value
    arguments = cast("list[SSAValue]", list(op.body.block.args))
    if value in arguments:
        return op.inputs[arguments.index(value)]
    owner = value.owner
    if isinstance(owner, nn.CastOp):
        return _outer(op, owner.x)
    return value if isinstance(owner, Operation) and is_constant(owner) else None


def weight_block_bytes(machine: Machine, op: Operation) -> int | None:
    """Bytes per partition of the block of its weight that a convolution reads at once: all inputs and taps of as many
    outputs as the PE array has columns. None for other layers, and where the weight is not loaded by blocks.
    """
    root = _root(op)
    if root is None or isinstance(root, nn.MatmulOp) or packing_before(root) or from_constant(root.x):
        return None
    if isinstance(root, nn.ConvOp):
        if is_depthwise(root):
            return None
        taps = math.prod(shape_of(root.w)[2:])
    else:
        taps = math.prod(max(phase.taps for phase in phases_of(root, axis)) for axis in range(len(root.strides)))
    tiles = -(-shape_of(root.x)[1] // machine.tensor_engine.rows)
    return tiles * taps * machine.tensor_engine.columns * element_bytes(tensor_type(root.w).element_type)


def unused_bytes(machine: Machine, op: Operation) -> int:
    """What an estimate counts as temporaries of a contraction, two slots each, and is not there: none where one
    instruction takes every sum to where it is stored. Less than nothing where tiles of several sizes have their own.
    """
    if _root(op) is None or (isinstance(op, nn.FusedOp) and op.tile is not None):
        return 0
    inner = [op]
    if isinstance(op, nn.FusedOp):
        inner = [o for o in op.body.block.ops if not isinstance(o, nn.YieldOp) and not is_constant(o)]
    nests = group_nests(machine, inner)
    made = [nest for nest in nests if nest.buffer_bytes]
    if any(nest.steps[0][0] != "tensor" for nest in made):
        return 0
    counted = max((nest.buffer_bytes // (2 if nest.tiles == 1 else 1) for nest in made), default=0)
    return counted - sum(nest.buffer_bytes for nest in made if len(nest.steps) > 2)


def _root(op: Operation) -> nn.ConvOp | nn.ConvTransposeOp | nn.MatmulOp | None:
    """The contraction of a layer."""
    inner = op.body.block.ops if isinstance(op, nn.FusedOp) else (op,)
    return next((o for o in inner if isinstance(o, nn.CONTRACTIONS)), None)
