"""What a layer costs before it is lowered: work of each engine and memory of its weights, from the machine's cost
functions.

A *group* is an `nn.fused`, or any other `nn` op that is not a constant: what stays on one core. The estimate assumes
the tiling that lowering uses (contraction in 128 rows, 64 stationary and 512 moving columns) and that the engines of a
group overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from xdsl.dialects.builtin import IntegerType, TensorType
from xdsl.ir import Attribute, BlockArgument, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn import Tensor
from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import (
    LaneEngineName,
    Work,
    drain_work,
    elementwise_work,
    gemm_work,
)


@dataclass(frozen=True, slots=True)
class GroupEstimate:
    """What one group takes of its core, per request."""

    work: Work
    weight_bytes: int
    """Bytes of its constant operands."""
    resident_bytes: int
    """What these block in every SBUF partition when they stay there; 0 for tables that stay in DRAM."""
    dram_bytes: int
    """Read from DRAM for every request in any case: rows gathered from a table."""
    parameters: int
    """How many numbers its constant operands hold."""


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


def estimate_group(machine: Machine, op: Operation) -> GroupEstimate:
    """The estimate of a group. Raises `NeuronError` for an op that is not of the `nn` dialect."""
    if not isinstance(op, nn.FusedOp):
        work = _op_work(machine, op)
        if _drained(op) is not None:
            work += _drain(machine, op, "scalar")
        return _with_weights(machine, op, work, [(operand, op, operand) for operand in op.operands])
    work = Work()
    root: Operation | None = None
    pending: SSAValue | None = None
    uses: list[tuple[SSAValue, Operation, SSAValue]] = []
    for inner in op.body.block.ops:
        if isinstance(inner, nn.YieldOp) or is_constant(inner):
            continue
        for operand in inner.operands:
            outer = op.inputs[operand.index] if isinstance(operand, BlockArgument) else operand
            uses.append((outer, inner, operand))
        if _drained(inner) is not None:
            work += _op_work(machine, inner)
            root, pending = inner, inner.results[0]
        elif root is None or _count(inner.results[0]) != _count(root.results[0]):
            work += _op_work(machine, inner)
        elif isinstance(inner, nn.AddOp) and _is_bias(inner, pending):
            # A bias waits for the activation that follows it: one instruction does func(x + bias).
            pending = inner.results[0]
        elif isinstance(inner, (nn.CastOp, nn.ReshapeOp)):
            # Results are rounded as they are stored.
            pending = inner.results[0] if pending in inner.operands else pending
        else:
            work += _drain(machine, root, "scalar" if isinstance(inner, nn.UnaryOp) else "vector")
            pending = None if pending in inner.operands else pending
    if root is not None and pending is not None:
        work += _drain(machine, root, "scalar")
    return _with_weights(machine, op, work, uses)


def _is_bias(op: nn.AddOp, value: SSAValue | None) -> bool:
    """Whether an op adds one number per channel to `value`."""
    return value in op.operands and min(_count(operand) for operand in op.operands) < _count(op.results[0])


def _drained(op: Operation) -> tuple[int, tuple[int, ...], int] | None:
    """Of a contraction: (stationary columns, moving extents, how many times over) of the result that PSUM holds; None
    of others.
    """
    if isinstance(op, nn.ConvOp):
        shape = _shape(op.result)
        return None if _is_depthwise(op) else (shape[1], (shape[0], *shape[2:]), 1)
    if not isinstance(op, nn.MatmulOp):
        return None
    right, out = _shape(op.rhs), _shape(op.result)
    if math.prod(right[:-2]) == 1:
        # One right-hand side for all: the batch is more rows to move.
        return out[-1], out[:-1], 1
    return out[-1], (out[-2],), math.prod(out[:-2])


def _drain(machine: Machine, root: Operation, engine: LaneEngineName) -> Work:
    """One instruction over each tile of a contraction's result."""
    found = _drained(root)
    assert found is not None
    columns, moving, times = found
    return drain_work(machine, engine, columns, moving).times(times)


def _is_depthwise(op: nn.ConvOp) -> bool:
    return _shape(op.w)[1] == 1 and op.group == _shape(op.x)[1] and op.group == _shape(op.w)[0]


def _op_work(machine: Machine, op: Operation) -> Work:
    for kind, function in _WORK:
        if isinstance(op, kind):
            return function(machine, op)
    raise NeuronError("no cost is known for this op", op=op, advice="lower or fold it before")


def _contraction(machine: Machine, op: nn.ConvOp | nn.MatmulOp) -> Work:
    found = _drained(op)
    if found is None:
        # A depthwise convolution has one row per group: it runs on the lanes, a multiply-add per tap after clearing the
        # sum.
        shape = _shape(op.result)
        taps = math.prod(_shape(op.operands[1])[2:])
        return elementwise_work(machine, "vector", shape[1], math.prod(shape) // shape[1], 1 + taps)
    columns, moving, times = found
    if isinstance(op, nn.ConvOp):
        # Groups are written out with zeros: all input channels are rows.
        return gemm_work(machine, _shape(op.x)[1], columns, moving, math.prod(_shape(op.w)[2:]))
    return gemm_work(machine, _shape(op.lhs)[-1], columns, moving).times(times)


def _lanes(engine: LaneEngineName, passes: int, scalar_passes: int = 0) -> Callable[[Machine, Operation], Work]:
    """Passes over the largest of operands and result."""

    def work(machine: Machine, op: Operation) -> Work:
        values = (*op.operands, *op.results)
        largest = max((_shape(v) for v in values), key=math.prod)
        result = _plane(machine, engine, largest, passes)
        return result + _plane(machine, "scalar", largest, scalar_passes) if scalar_passes else result

    return work


def _plane(machine: Machine, engine: LaneEngineName, shape: tuple[int, ...], passes: int) -> Work:
    """Passes over a tensor laid out as the cheaper of channels x positions and rows x last dimension."""
    total = math.prod(shape)
    rows = {math.prod(shape[:-1])}
    if len(shape) >= 3:
        rows.add(shape[1])
    return min(
        (elementwise_work(machine, engine, r, total // r, passes) for r in sorted(rows)), key=lambda w: w.bottleneck_ps
    )


def _pool(machine: Machine, op: nn.PoolOp) -> Work:
    """Clearing, an instruction per tap, for a mean the division."""
    shape = _shape(op.results[0])
    passes = math.prod(op.kernel) + (1 if isinstance(op, nn.MaxPoolOp) else 2)
    return elementwise_work(machine, "vector", shape[1], math.prod(shape) // shape[1], passes)


def _nothing(machine: Machine, op: Operation) -> Work:
    return Work()


_WORK: list[tuple[type[Operation], Callable[[Machine, Any], Work]]] = [
    (nn.ConvOp, _contraction),
    (nn.MatmulOp, _contraction),
    (nn.PoolOp, _pool),
    # Both relabel places in memory; where an element must move, its user moves it.
    (nn.TransposeOp, _nothing),
    (nn.ReshapeOp, _nothing),
    # Rows come by DMA, see GroupEstimate.dram_bytes.
    (nn.GatherOp, _nothing),
    (nn.ArgMaxOp, _lanes("vector", 2)),
    # max, x - max, sum, division; exp
    (nn.SoftmaxOp, _lanes("vector", 4, 1)),
    # sum, x - mean, sum of squares, division by the deviation, scale, bias; square
    (nn.LayerNormOp, _lanes("vector", 6, 1)),
    # scale * x + bias
    (nn.BatchNormOp, _lanes("scalar", 1)),
    # a sum per neighbour (of 5), scale, power, division; square
    (nn.LrnOp, _lanes("vector", 7, 1)),
    (nn.BinaryOp, _lanes("vector", 1)),
    (nn.ClipOp, _lanes("vector", 1)),
    (nn.NotOp, _lanes("vector", 1)),
    (nn.UnaryOp, _lanes("scalar", 1)),
    (nn.CastOp, _lanes("scalar", 1)),
    (nn.WhereOp, _lanes("vector", 2)),
    (nn.ReduceOp, _lanes("vector", 1)),
    (nn.ConcatOp, _lanes("vector", 1)),
    (nn.SliceOp, _lanes("vector", 1)),
    (nn.PadOp, _lanes("vector", 1)),
    (nn.ExpandOp, _lanes("vector", 1)),
]


def _with_weights(
    machine: Machine, op: Operation, work: Work, uses: list[tuple[SSAValue, Operation, SSAValue]]
) -> GroupEstimate:
    """Add up what constants the group uses. `uses` holds (value outside, op that uses it, value inside)."""
    weight_bytes = resident_bytes = dram_bytes = parameters = 0
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
        weight_bytes += tensor_bytes(outer.type)
        resident_bytes += _resident_bytes(machine, user, inner)
    return GroupEstimate(work, weight_bytes, resident_bytes, dram_bytes, parameters)


def _resident_bytes(machine: Machine, user: Operation, value: SSAValue) -> int:
    """Bytes per partition that a weight blocks: it lies in blocks of up to 128 rows, and a thin block blocks 128 all
    the same.
    """
    shape = _shape(value)
    rows = machine.tensor_engine.rows
    item = element_bytes(cast(Tensor, value.type).element_type)
    columns = machine.tensor_engine.columns
    if isinstance(user, nn.ConvOp) and value is user.w:
        taps = math.prod(shape[2:])
        if _is_depthwise(user):
            return _ceil_div(shape[0], rows) * taps * 4
        return _ceil_div(shape[1] * user.group, rows) * taps * _ceil_div(shape[0], columns) * columns * item
    if isinstance(user, nn.MatmulOp) and value is user.rhs:
        blocks = _ceil_div(shape[-1], columns)
        return math.prod(shape[:-2]) * _ceil_div(shape[-2], rows) * blocks * columns * item
    if isinstance(user, nn.LayerNormOp):
        # The normalised dimension runs along each partition, so every partition needs all of it.
        return math.prod(shape) * item
    # Channels, or whatever comes first, on partitions.
    return _ceil_div(math.prod(shape), rows) * item


def _owner(value: SSAValue) -> Operation | None:
    return value.owner if isinstance(value.owner, Operation) else None


def _shape(value: SSAValue) -> tuple[int, ...]:
    return cast(Tensor, value.type).get_shape()


def _count(value: SSAValue) -> int:
    return math.prod(_shape(value))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
