"""Giving a buffer slots: its type gets a slot dimension, and each access to it the slot of its iteration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from xdsl.dialects.builtin import AffineMapAttr, ArrayAttr, DenseArrayBase, i32, i64
from xdsl.ir import Operation, SSAValue
from xdsl.ir.affine import AffineBinaryOpExpr, AffineDimExpr, AffineExpr, AffineMap

from neuron_mlir.dialects.core.access import AccessAttr
from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.dialects.core.instruction import Instruction
from neuron_mlir.dialects.core.memory import AllocOp, Buffer, buffer_type
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.passes.core._affine import UNBOUNDED, Form, Loop, expression_of, linear_number


def slot_axis(space: str) -> int:
    """Where the slot dimension goes: after the partitions in SBUF and PSUM, first in DRAM."""
    return 0 if space == "dram" else 1


def with_slots(type: Buffer, depth: int, space: str, padded: Sequence[int] | None = None) -> Buffer:
    """The type of `depth` buffers; `padded` replaces the shape of each. One slot needs no dimension."""
    shape = list(type.get_shape() if padded is None else padded)
    if depth > 1:
        shape.insert(slot_axis(space), depth)
    return buffer_type(shape, type.element_type, type.memory_space)


def hoist(
    op: AllocOp,
    type: Buffer,
    address: int,
    loops: Sequence[Loop],
    depth: int,
    space: str,
    request: SSAValue,
) -> AllocOp:
    """The addressed buffer that stands for `op`, with all accesses moved to it: slot `iteration mod depth` when
    `depth > 1`.

    Iterations of all loops around the alloc are counted, so that neighbouring instances never share a slot; without
    loops, requests. The new op is not inserted anywhere yet; the old one is erased.
    """
    new = AllocOp(op.label.data, type, address)
    new.location = op.location
    new.result.name_hint = op.result.name_hint
    slot = linear_number(loops or [Loop(0, UNBOUNDED)]).mod(depth) if depth > 1 else None
    values = {0: request} | {loop.number: loop.op.body.block.args[0] for loop in loops if loop.op is not None}
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
    values: Mapping[int, SSAValue] | None = None,
    axis: int = 0,
) -> None:
    """Point an instruction's accesses to `old` at `new`, with an offset `slot` of size 1 added at `axis`."""
    indices = list(op.indices)
    parts: list[tuple[list[AffineExpr], list[int], list[int]]] = []
    for role, buffer, access in zip(op.role_names(), op.buffers, op.accesses, strict=True):
        offsets, sizes, steps = list(access.map.data.results), list(access.shape()), list(access.steps())
        if buffer is old and slot is not None:
            offsets.insert(axis, expression_of(slot, values or {}, indices))
            sizes.insert(axis, 1)
            steps.insert(axis, 1)
            order_of = op.permutation() if role == "src" and isinstance(op, DmaOp) else None
            if order_of is not None:
                # The order of the source's dimensions names one more, which comes first: it has one element.
                moved = [axis, *(d + (d >= axis) for d in order_of)]
                op.properties["permute"] = DenseArrayBase.from_list(i64, moved)
        parts.append((offsets, sizes, steps))
    init = list(op.init.data.results) if isinstance(op, MatmulOp) else []
    # Index operands stand in the order in which the text names them, so that what is printed parses to the same op.
    order = list(dict.fromkeys(d for exprs in (*(part[0] for part in parts), init) for e in exprs for d in _dims(e)))
    renamed = [AffineExpr.dimension(order.index(d) if d in order else 0) for d in range(len(indices))]

    def as_map(exprs: Sequence[AffineExpr]) -> AffineMapAttr:
        return AffineMapAttr(
            AffineMap(len(order), 0, tuple(e.replace_dims_and_symbols(renamed, []) for e in exprs)),
        )

    buffers = [new if buffer is old else buffer for buffer in op.buffers]
    op.operands = [*buffers, *(indices[d] for d in order)]
    op.properties["operandSegmentSizes"] = DenseArrayBase.from_list(i32, [len(buffers), len(order)])
    op.properties["accesses"] = ArrayAttr(
        [
            AccessAttr(as_map(exprs), DenseArrayBase.from_list(i64, sizes), DenseArrayBase.from_list(i64, steps))
            for exprs, sizes, steps in parts
        ]
    )
    if init:
        op.properties["init"] = as_map(init)


def _dims(expr: AffineExpr) -> Iterator[int]:
    """Dimensions of an expression from left to right."""
    if isinstance(expr, AffineDimExpr):
        yield expr.position
    elif isinstance(expr, AffineBinaryOpExpr):
        yield from _dims(expr.lhs)
        yield from _dims(expr.rhs)
