"""Giving a buffer slots: its type gets a slot dimension, and each access to it the slot of its iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from xdsl.dialects.builtin import AffineMapAttr, ArrayAttr, DenseArrayBase, i32, i64
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.ir.affine import AffineMap

from neuron_mlir.dialects.core.access import AccessAttr
from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.dialects.core.instruction import Instruction
from neuron_mlir.dialects.core.memory import AllocOp, Buffer, buffer_type
from neuron_mlir.passes.core._affine import Form, Loop, expression_of, linear_number


def slot_axis(space: str) -> int:
    """Where the slot dimension goes: after the partitions in SBUF and PSUM, first in DRAM."""
    return 0 if space == "dram" else 1


def with_slots(type: Buffer, depth: int, space: str, padded: Sequence[int] | None = None) -> Buffer:
    """The type of `depth` buffers; `padded` replaces the shape of each. One slot needs no dimension."""
    shape = list(type.get_shape() if padded is None else padded)
    if depth > 1:
        shape.insert(slot_axis(space), depth)
    return buffer_type(shape, type.element_type, cast(Attribute, type.memory_space))


def hoist(op: AllocOp, type: Buffer, address: int, loops: Sequence[Loop], depth: int, space: str) -> AllocOp:
    """The addressed buffer that stands for `op`, with all accesses moved to it: slot `iteration mod depth` when `depth > 1`.

    Iterations of all loops around the alloc are counted, so that neighbouring instances never share a slot. The new op is not inserted
    anywhere yet; the old one is erased.
    """
    new = AllocOp(op.label.data, type, address)
    new.location = op.location
    new.result.name_hint = op.result.name_hint
    slot = linear_number(loops).mod(depth) if depth > 1 else None
    values = {loop.number: loop.op.body.block.args[0] for loop in loops if loop.op is not None}
    users: dict[Operation, None] = {use.operation: None for use in op.result.uses}
    for user in users:
        move_access(cast(Instruction, user), op.result, new.result, slot, values, slot_axis(space))
    op.detach()
    op.erase()
    return new


def move_access(
    op: Instruction,
    old: SSAValue,
    new: SSAValue,
    slot: Form | None = None,
    values: dict[int, SSAValue] | None = None,
    axis: int = 0,
) -> None:
    """Point an instruction's accesses to `old` at `new`, with an offset `slot` of size 1 added at `axis`."""
    indices = list(op.indices)
    maps: list[list[object]] = []
    for buffer, access in zip(op.buffers, op.accesses, strict=True):
        offsets: list[object] = list(access.map.data.results)
        if buffer is old and slot is not None:
            offsets.insert(axis, expression_of(slot, values or {}, indices))
        maps.append(offsets)
    accesses: list[AccessAttr] = []
    for buffer, access, offsets in zip(op.buffers, op.accesses, maps, strict=True):
        sizes, steps = list(access.shape()), list(access.steps())
        if buffer is old and slot is not None:
            sizes.insert(axis, 1)
            steps.insert(axis, 1)
        accesses.append(
            AccessAttr(
                AffineMapAttr(AffineMap(len(indices), 0, cast("tuple[object, ...]", tuple(offsets)))),  # type: ignore[arg-type]
                DenseArrayBase.from_list(i64, sizes),
                DenseArrayBase.from_list(i64, steps),
            )
        )
    buffers = [new if buffer is old else buffer for buffer in op.buffers]
    op.operands = [*buffers, *indices]
    op.properties["operandSegmentSizes"] = DenseArrayBase.from_list(i32, [len(buffers), len(indices)])
    op.properties["accesses"] = ArrayAttr(accesses)
    if isinstance(op, MatmulOp):
        op.properties["init"] = AffineMapAttr(AffineMap(len(indices), 0, op.init.data.results))
