"""What a layer costs before it is lowered: work of each engine and memory of its weights, from the machine's cost
functions.

A *group* is an `nn.fused`, or any other `nn` op that is not a constant: what stays on one core. The estimate follows
the loop nests that lowering makes (`neuron_mlir.passes.estimate_nests`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from xdsl.ir import BlockArgument, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn import Tensor
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import Work, ceil_div, dma_bytes_charged
from neuron_mlir.passes.depth_first_rows import group_rows, unit_reads
from neuron_mlir.passes.estimate_nests import Nest, group_nests, is_depthwise
from neuron_mlir.passes.layouts import (
    STREAM_BYTES,
    TILE_BYTES,
    element_bytes,
    is_constant,
    is_feature_map,
    is_large,
    partition_bytes,
    tensor_bytes,
    wants_rows,
)
from neuron_mlir.passes.phases import transposed_pads
from neuron_mlir.passes.unfolding import packing_before
from neuron_mlir.solvers.row_schedule import most_alive, schedule_rows

__all__ = [
    "TILE_BYTES",
    "GroupEstimate",
    "charged_bytes",
    "element_bytes",
    "estimate_group",
    "is_constant",
    "is_large",
    "partition_bytes",
    "tensor_bytes",
]

REPEATED_ROWS = 20
"""Rows of f32 that take as much SBUF together as one on every partition: 40 share the partitions, in three times 16
bits."""
TILES_AT_ONCE = 4
"""Such tiles in SBUF: input and output, two of each."""


@dataclass(frozen=True, slots=True)
class GroupEstimate:
    """What one group takes of its core, per request."""

    work: Work
    weight_bytes: int
    """Bytes of its constant operands as they are loaded, filled up to whole tiles."""
    resident_bytes: int
    """What these block in every SBUF partition when they stay there; 0 for tables that stay in DRAM."""
    dram_bytes: int
    """Moved between DRAM and SBUF for every request in any case: rows gathered from a table, feature maps that do not
    fit SBUF."""
    parameters: int
    """How many numbers its constant operands hold."""
    span_ps: int = 0
    """Time it takes alone, its operands in SBUF: the busiest engine, and what engines wait for each other."""
    working_bytes: int = 0
    """What its temporaries take in every SBUF partition while it runs."""
    streaming_bytes: int = 0
    """What a stage that streams weights needs besides: the region they pass through, at most twice what the layer has
    of weights, and all of the weight of a layer done in tiles of rows.
    """
    map_bytes: int = 0
    """What of `dram_bytes` are feature maps that do not fit SBUF: layers that run depth first do not move them."""


def estimate_group(machine: Machine, op: Operation) -> GroupEstimate:
    """The estimate of a group. Raises `NeuronError` for an op that is not of the `nn` dialect."""
    if isinstance(op, nn.CastOp) and stored_with_its_layer(op):
        return _with_weights(machine, op, [], [])
    if isinstance(op, nn.FusedOp) and op.tile is not None:
        return _depth_first(machine, op)
    if not isinstance(op, nn.FusedOp):
        nests = group_nests(machine, [op])
        return _with_weights(machine, op, nests, [(operand, op, operand) for operand in op.operands])
    inner = [o for o in op.body.block.ops if not isinstance(o, nn.YieldOp) and not is_constant(o)]
    uses = [
        (op.inputs[operand.index] if isinstance(operand, BlockArgument) else operand, o, operand)
        for o in inner
        for operand in o.operands
    ]
    return _with_weights(machine, op, group_nests(machine, inner), uses)


def _depth_first(machine: Machine, op: nn.FusedOp) -> GroupEstimate:
    """Layers one after the other; of their maps only what enters and leaves the group passes DRAM."""
    parts = [
        estimate_group(machine, o) for o in op.body.block.ops if not isinstance(o, nn.YieldOp) and not is_constant(o)
    ]
    outer = [v for v in (*op.inputs, *op.outputs) if not is_constant(_owner(v)) and is_large(machine, v)]
    return GroupEstimate(
        sum((part.work for part in parts), Work()),
        sum(part.weight_bytes for part in parts),
        sum(part.resident_bytes for part in parts),
        sum(charged_bytes(machine, v) for v in outer if isinstance(v.owner, Operation)),
        sum(part.parameters for part in parts),
        sum(part.span_ps for part in parts),
        max((part.working_bytes for part in parts), default=0) + line_bytes(machine, op),
        sum(part.resident_bytes for part in parts),
    )


def line_bytes(machine: Machine, op: nn.FusedOp) -> int:
    """What the line buffers of a depth-first group take in every SBUF partition, tiles from DRAM counted twice."""
    assert op.tile is not None
    images, rows = op.tile
    layers = [o for o in op.body.block.ops if not isinstance(o, nn.YieldOp) and not is_constant(o)]
    reads = [r.operand for layer in layers for r in unit_reads(layer) if not isinstance(r, str)]
    outside = [a for a in op.body.block.args if a in reads]
    group = group_rows(outside, layers, op.yielded)
    schedule = schedule_rows(group.rows, rows, recompute=op.recompute)
    apart = [
        (index < len(outside) or group.rows[index].is_result) and is_large(machine, value)
        for index, value in enumerate(group.maps)
    ]
    steps = schedule.steps * ceil_div(_shape(group.units[-1].result)[0], images)
    total = 0
    anew = [0] * len(group.maps)
    for index, value in enumerate(group.maps):
        size = images * schedule.buffer_rows(index) * row_bytes(machine, value)
        twice = 2 if (index < len(outside) or apart[index]) and steps > 1 else 1
        if index < len(outside) or apart[index] or schedule.steps > 1:
            total += twice * size
        elif not group.rows[index].is_result:
            anew[index] = size
    # In a single step maps are made anew for each image: those that are not in use together share SBUF.
    return total + most_alive(group.rows, anew)


def row_bytes(machine: Machine, value: SSAValue) -> int:
    """Bytes per partition of one row of one image of a map, with a border of a column on both sides."""
    shape = _shape(value)
    element = element_bytes(cast(Tensor, value.type).element_type)
    return ceil_div(shape[1], machine.sbuf.partitions) * (shape[3] + 2) * element


def stored_with_its_layer(op: nn.CastOp) -> bool:
    """Whether lowering rounds where the layer before stores its result: the cast is all that becomes of it."""
    layer = op.x.owner
    stores = (nn.SoftmaxOp, nn.LayerNormOp, nn.ReduceOp, nn.AvgPoolOp, nn.UnaryOp, nn.BinaryOp)
    return isinstance(layer, stores) and sum(1 for _ in op.x.uses) == 1


def _large_map_bytes(machine: Machine, op: Operation) -> int:
    """Loads and stores of feature maps that do not fit SBUF; the first passage of what comes from outside the graph is
    not in it.
    """
    inner = list(op.body.block.ops) if isinstance(op, nn.FusedOp) else [op]
    total = 0
    for layer in inner:
        windows = (nn.ConvOp, nn.PoolOp, nn.ConvTransposeOp, nn.ResizeOp)
        if packing_before(layer):
            continue  # packed in tiles, of which none is stored
        if not isinstance(layer, windows) or not is_large(machine, layer.operands[0]):
            continue
        value = layer.operands[0]
        size = charged_bytes(machine, value)
        inside = layer is not op and not isinstance(value, BlockArgument)
        argument = op.operands[value.index] if layer is not op and isinstance(value, BlockArgument) else value
        if inside:
            total += size  # stored before the window reads it
        if isinstance(layer, (nn.ConvTransposeOp, nn.ResizeOp)):
            total += size if isinstance(argument.owner, Operation) else 0
        elif isinstance(argument.owner, Operation) or any(layer.pads):
            total += _with_halo(layer, size)
    if op.results and is_large(machine, op.results[0]):
        total += charged_bytes(machine, op.results[0])
    return total


def _with_halo(window: nn.ConvOp | nn.PoolOp, size: int) -> int:
    """Bytes read when tiles of rows overlap by what the window reaches beyond its stride."""
    shape = _shape(window.operands[0])
    kernel = _shape(window.w)[2] if isinstance(window, nn.ConvOp) else window.kernel[0]
    reach, stride = (kernel - 1) * window.dilations[0] + 1, window.strides[0]
    row = ceil_div(shape[1], 128) * shape[0] * math.prod(shape[3:]) * 2
    rows = max(1, (TILE_BYTES // row - reach) // stride + 1)
    return size * ((rows - 1) * stride + reach) // (rows * stride)


def charged_bytes(machine: Machine, value: SSAValue) -> int:
    """Bytes that a DMA of a value is charged for: whole bursts, row by row where a window wants padding around it."""
    shape = _shape(value)
    item = element_bytes(cast(Tensor, value.type).element_type)
    run = math.prod(shape[-1:]) * item
    if is_feature_map(value) and not any(_pads(use.operation, value) for use in value.uses):
        run = math.prod(shape[2:]) * item
    return dma_bytes_charged(machine, max(run, 1), tensor_bytes(value.type))


def _pads(user: Operation, value: SSAValue) -> bool:
    """Whether a layer, or the contraction of a group, wants padding around a value it reads."""
    if isinstance(user, nn.FusedOp):
        arguments = [a for a, v in zip(user.body.block.args, user.inputs, strict=True) if v is value]
        return any(_pads(use.operation, argument) for argument in arguments for use in argument.uses)
    if isinstance(user, nn.ConvTransposeOp) and value is user.x:
        return any(any(pads) for pads in transposed_pads(user).values())
    return isinstance(user, (nn.ConvOp, nn.PoolOp)) and value is user.operands[0] and any(user.pads)


def _with_weights(
    machine: Machine, op: Operation, nests: list[Nest], uses: list[tuple[SSAValue, Operation, SSAValue]]
) -> GroupEstimate:
    """Add up what constants the group uses. `uses` holds (value outside, op that uses it, value inside)."""
    weight_bytes = resident_bytes = parameters = rows = streamed = held = 0
    by_rows = any(is_large(machine, v) for v in (*op.operands, *op.results) if not is_constant(_owner(v)))
    dram_bytes = map_bytes = _large_map_bytes(machine, op)
    seen: list[SSAValue] = []
    for outer, user, inner in uses:
        if isinstance(user, nn.GatherOp) and inner is user.data:
            dram_bytes += tensor_bytes(user.results[0].type)
            if is_constant(_owner(outer)) and outer not in seen:
                parameters += _count(outer)
                seen.append(outer)
            continue
        if not is_constant(_owner(outer)) or outer in seen:
            continue
        seen.append(outer)
        parameters += _count(outer)
        moved, blocked = _laid_out(machine, user, inner)
        if isinstance(user, nn.CONTRACTIONS) and inner is user.operands[1]:
            streamed += blocked
            held += blocked if by_rows else 0  # all of it is in SBUF while its layer runs
        if _is_row(user, inner):
            rows += blocked * REPEATED_ROWS
        weight_bytes += moved
        resident_bytes += blocked
    work = sum((nest.work for nest in nests), Work())
    span = sum(nest.span_ps(machine) for nest in nests)
    working = max((nest.buffer_bytes // (2 if nest.tiles == 1 else 1) for nest in nests), default=0) + rows
    if by_rows:
        working += TILES_AT_ONCE * TILE_BYTES
    streaming = min(STREAM_BYTES, 2 * streamed) + held
    return GroupEstimate(
        work, weight_bytes, resident_bytes, dram_bytes, parameters, span, working, streaming, map_bytes
    )


def repeated_bytes(machine: Machine, op: Operation) -> tuple[int, int]:
    """What rows that every partition wants take in each of them while a layer or group runs, and what the buffer takes
    at least in which they are kept once.
    """
    layers = list(op.body.block.ops) if isinstance(op, nn.FusedOp) else [op]
    rows: dict[SSAValue, int] = {}
    for layer in layers:
        for value in layer.operands:
            if is_constant(_owner(value)) and not isinstance(layer, nn.GatherOp) and _is_row(layer, value):
                rows[value] = _laid_out(machine, layer, value)[1] * REPEATED_ROWS
    return sum(rows.values()), max((2 * _count(value) for value in rows), default=0)


def _laid_out(machine: Machine, user: Operation, value: SSAValue) -> tuple[int, int]:
    """What is moved to load a weight, and what it blocks in every partition: it lies in blocks of up to 128 rows and 64
    columns, filled up with zeros, and a thin block blocks 128 partitions all the same.
    """
    shape = _shape(value)
    rows = machine.tensor_engine.rows
    item = element_bytes(cast(Tensor, value.type).element_type)
    columns = machine.tensor_engine.columns
    if isinstance(user, nn.ConvOp) and value is user.w:
        taps = math.prod(shape[2:])
        if is_depthwise(user):
            blocked = ceil_div(shape[0], rows) * taps * 4
            return min(shape[0], rows) * blocked, blocked
        contraction = shape[1] * user.group
        blocked = ceil_div(contraction, rows) * taps * ceil_div(shape[0], columns) * columns * item
        return min(contraction, rows) * blocked, blocked
    if isinstance(user, nn.ConvTransposeOp) and value is user.w:
        taps = math.prod(max(k, s) for k, s in zip(shape[2:], user.strides, strict=True))
        blocked = ceil_div(shape[0], rows) * taps * ceil_div(shape[1], columns) * columns * item
        return min(shape[0], rows) * blocked, blocked
    if isinstance(user, nn.MatmulOp) and value is user.rhs:
        blocks = ceil_div(shape[-1], columns)
        blocked = math.prod(shape[:-2]) * ceil_div(shape[-2], rows) * blocks * columns * item
        return min(shape[-2], rows) * blocked, blocked
    size = math.prod(shape) * item
    if _is_row(user, value):
        return size, ceil_div(size, REPEATED_ROWS)
    # Channels, or whatever comes first, on partitions.
    return size, ceil_div(math.prod(shape), rows) * item


def _is_row(user: Operation, value: SSAValue) -> bool:
    """Whether a constant runs along each partition, so that every partition needs all of it: where SBUF is short, it is
    kept once and repeated by the PE array when its layer comes.
    """
    if isinstance(user, nn.CONTRACTIONS) and value is user.operands[1]:
        return False
    rows = any(isinstance(op, nn.MatmulOp) and wants_rows(op) for op in _group(user))
    return _count(value) > 1 and (isinstance(user, nn.LayerNormOp) or rows)


def _group(op: Operation) -> list[Operation]:
    """The ops of the group that an op is in; none for an op outside groups."""
    parent = op.parent_op()
    return list(parent.body.block.ops) if isinstance(parent, nn.FusedOp) else []


def _owner(value: SSAValue) -> Operation | None:
    """The op that makes a value, or what an argument of a group stands for."""
    while isinstance(value, BlockArgument) and isinstance(value.owner.parent_op(), nn.FusedOp):
        value = cast(nn.FusedOp, value.owner.parent_op()).inputs[value.index]
    return value.owner if isinstance(value.owner, Operation) else None


def _shape(value: SSAValue) -> tuple[int, ...]:
    return cast(Tensor, value.type).get_shape()


def _count(value: SSAValue) -> int:
    return math.prod(_shape(value))
