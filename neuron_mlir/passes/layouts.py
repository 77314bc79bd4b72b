"""How values lie in SBUF, foreseen from shapes: what is on the partitions, whole or in tiles of rows, and how large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from xdsl.dialects.builtin import IntegerType, TensorType
from xdsl.ir import Attribute, Block, BlockArgument, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn import Tensor
from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import (
    ceil_div,
)

LARGE_BYTES = 20 * 1024
"""A feature map that takes more in a partition than this stays in DRAM and passes through SBUF in tiles of rows;
`core-lower` decides by it too."""
LARGE_BATCH_BYTES = 40 * 1024
"""The same for a batch of several images: its layers read each weight once for all of them, which tiles would not."""
STREAM_BYTES = 12 * 1024
"""Bytes per partition that constants pass through when a stage streams some: so far the DMA queue is ahead of engines.
`core-lower` leaves them free, `core-allocate` takes what else is free besides."""
TILE_BYTES = 10 * 1024
"""What a tile of rows of a feature map in DRAM takes in a partition; `core-lower` cuts them so."""

UNARY = (nn.ReluOp, nn.LeakyReluOp, *nn.FUNCTION_OPS)
"""What the ScalarEngine does in one instruction."""
ELEMENTWISE = (*UNARY, nn.BinaryOp, nn.NegOp, nn.NotOp, nn.ClipOp, nn.WhereOp, nn.CastOp, nn.ExpandOp)
"""What goes over a tile an instruction each."""


def element_bytes(element_type: Attribute) -> int:
    """Bytes of one element in memory; i1 takes one."""
    if isinstance(element_type, IntegerType):
        return max(1, cast(int, element_type.width.data) // 8)
    return {"f64": 8, "f32": 4, "bf16": 2, "f16": 2}[str(element_type)]


def tensor_bytes(type: Attribute) -> int:
    """Bytes of a tensor. Raises `NeuronError` for anything else."""
    if not isinstance(type, TensorType):
        raise NeuronError(f"needs a tensor, got {type}")
    tensor = cast(Tensor, type)
    return math.prod(tensor.get_shape()) * element_bytes(tensor.element_type)


def is_constant(op: Operation | None) -> bool:
    """Whether the op is a weight or an expression over weights."""
    return isinstance(op, (nn.WeightOp, nn.ConstOp))


def is_feature_map(value: SSAValue) -> bool:
    """Whether channels are on the partitions: rank 4 or more, and neither made by a product nor wanted by rows."""
    return len(shape_of(value)) >= 4 and not _near_rows(value)


def partition_bytes(machine: Machine, value: SSAValue) -> int:
    """What a value takes in every SBUF partition; nothing when it is spilled."""
    if isinstance(value.owner, nn.SpillOp):
        return 0
    tiles, columns = plane(machine, value)
    return tiles * columns * element_bytes(cast(Tensor, value.type).element_type)


def is_large(machine: Machine, value: SSAValue) -> bool:
    """Whether a feature map stays in DRAM and passes through SBUF in tiles of rows."""
    return is_feature_map(value) and partition_bytes(machine, value) > large_bytes(shape_of(value)[0])


def large_bytes(images: int) -> int:
    """Most bytes per partition of a map of so many images that stays in SBUF."""
    return LARGE_BYTES if images == 1 else LARGE_BATCH_BYTES


def _near_rows(value: SSAValue) -> bool:
    source = through(value)
    if isinstance(source, nn.SoftmaxOp):
        return source.axis == len(shape_of(source.x)) - 1
    products = any(isinstance(use.operation, nn.MatmulOp) for use in value.uses)
    return isinstance(source, (nn.MatmulOp, nn.LayerNormOp)) or products or _read_by_rows(value)


def _read_by_rows(value: SSAValue) -> bool:
    """Whether a layer reads it along its last axis."""
    last = len(shape_of(value)) - 1
    users = [use.operation for use in value.uses]
    return any(isinstance(user, (nn.SoftmaxOp, nn.LayerNormOp)) and user.axis == last for user in users)


def through(value: SSAValue) -> Operation | None:
    """The op behind a value that is not element-wise and not a view: the root of a group."""
    for _ in range(32):
        owner = value.owner
        if isinstance(owner, Block):
            parent = owner.parent_op()
            if not isinstance(parent, nn.FusedOp):
                return None
            value = parent.inputs[cast(BlockArgument, value).index]
            continue
        if isinstance(owner, nn.FusedOp):
            value = owner.yielded[list(owner.outputs).index(value)]  # pyright: ignore[reportArgumentType]
            continue
        if isinstance(owner, (*ELEMENTWISE, nn.ReshapeOp, nn.TransposeOp, nn.PlaceOp)):
            shaped = [v for v in owner.operands if count_of(v) == count_of(owner.results[0])]
            if not shaped:
                return owner
            value = shaped[0]
            continue
        return owner
    return None


def outside(value: SSAValue) -> SSAValue:
    """What an argument of a group stands for."""
    parent = value.owner.parent_op() if isinstance(value, BlockArgument) else None
    return parent.inputs[cast(BlockArgument, value).index] if isinstance(parent, nn.FusedOp) else value


def wants_rows(op: nn.MatmulOp) -> bool:
    """Whether a product's result is read by rows, so that they, not features, are on the partitions."""
    value: SSAValue = op.result
    for _ in range(32):
        users = [use.operation for use in value.uses]
        if any(isinstance(user, (nn.LayerNormOp, nn.SoftmaxOp)) for user in users):
            return True
        after = next((u for u in users if isinstance(u, (*ELEMENTWISE, nn.FusedOp, nn.YieldOp))), None)
        if after is None:
            return False
        if isinstance(after, nn.YieldOp):
            parent = after.parent_op()
            if not isinstance(parent, nn.FusedOp):
                return False
            value = parent.outputs[list(after.values).index(value)]  # pyright: ignore[reportArgumentType]
        elif isinstance(after, nn.FusedOp):
            if any(isinstance(o, (nn.MatmulOp, nn.ConvOp)) and value in after.inputs for o in after.body.block.ops):
                return False
            value = after.body.block.args[list(after.inputs).index(value)]  # pyright: ignore[reportArgumentType]
        else:
            value = after.results[0]
    return False


def plane(machine: Machine, value: SSAValue) -> tuple[int, int]:
    """`(tiles, elements of a partition in each)` of a value in SBUF."""
    shape = shape_of(value)
    if is_feature_map(value):
        return channel_plane(machine, shape)
    if len(shape) < 2:
        return 1, max(1, math.prod(shape))
    outer = math.prod(shape[:-2])
    rows = outer * ceil_div(shape[-2], machine.sbuf.partitions), shape[-1]
    features = ceil_div(shape[-1], machine.sbuf.partitions), math.prod(shape[:-1])
    source = through(value)
    by_features = isinstance(source, nn.MatmulOp) and not wants_rows(source)
    if _read_by_rows(value):
        return rows
    return features if by_features else min(rows, features, key=lambda t: t[0] * (t[1] + 60))


def channel_plane(machine: Machine, shape: Sequence[int]) -> tuple[int, int]:
    channels = shape[1] if len(shape) > 1 else 1
    return ceil_div(channels, machine.sbuf.partitions), math.prod(shape) // channels


def kept_rows(machine: Machine, shape: Sequence[int], reduced: Sequence[int]) -> tuple[int, int]:
    """`(tiles, elements of a row)` when the largest axis that is kept is on the partitions, the others loops."""
    kept = sorted((size for axis, size in enumerate(shape) if axis not in reduced), reverse=True) or [1]
    row = math.prod(shape[axis] for axis in reduced)
    return ceil_div(kept[0], machine.sbuf.partitions) * math.prod(kept[1:]), row


def shape_of(value: SSAValue) -> tuple[int, ...]:
    return cast(Tensor, value.type).get_shape()


def count_of(value: SSAValue) -> int:
    return math.prod(shape_of(value))
