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
    conv_work,
    drain_work,
    elementwise_work,
    gemm_work,
    moving_ps,
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
        return _with_weights(machine, op, work, [(operand, op, operand) for operand in op.operands])
    work = Work()
    after_contraction = _Drain()
    uses: list[tuple[SSAValue, Operation, SSAValue]] = []
    for inner in op.body.block.ops:
        if isinstance(inner, nn.YieldOp) or is_constant(inner):
            continue
        if not after_contraction.takes(inner):
            work += _op_work(machine, inner)
        for operand in inner.operands:
            outer = op.inputs[operand.index] if isinstance(operand, BlockArgument) else operand
            uses.append((outer, inner, operand))
    return _with_weights(machine, op, work, uses)


class _Drain:
    """What the instruction that takes a result out of PSUM does on the way: `func(scale * x + bias)`, and a cast.

    A contraction's own work includes one such instruction; the bias, then the activation, then the cast ride along.
    """

    def __init__(self) -> None:
        self.value: SSAValue | None = None
        self.step = 0

    def takes(self, op: Operation) -> bool:
        """Whether the op costs nothing, being part of the drain."""
        if isinstance(op, (nn.ConvOp, nn.MatmulOp)):
            self.value, self.step = op.results[0], 0
            return False
        if self.value is None or self.value not in op.operands:
            return False
        step = self._step(op)
        if step <= self.step:
            self.value = None
            return False
        self.value, self.step = op.results[0], step
        return True

    def _step(self, op: Operation) -> int:
        if isinstance(op, nn.AddOp):
            other = op.operands[1] if op.operands[0] is self.value else op.operands[0]
            # A vector of one number per row or column, not a residual of the same size.
            return 1 if _count(other) < _count(op.results[0]) else 0
        if isinstance(op, nn.CastOp):
            return 3
        return 2 if isinstance(op, nn.UnaryOp) else 0


def _op_work(machine: Machine, op: Operation) -> Work:
    for kind, function in _WORK:
        if isinstance(op, kind):
            return function(machine, op)
    raise NeuronError("no cost is known for this op", op=op, advice="lower or fold it before")


def _conv(machine: Machine, op: nn.ConvOp) -> Work:
    xs, ws, ys = _shape(op.x), _shape(op.w), _shape(op.result)
    spatial, kernel = ys[2:], ws[2:]
    height, width = math.prod(spatial[:-1]), spatial[-1]
    if ws[1] == 1 and op.group == xs[1]:
        # A depthwise convolution has one row per group: it runs on the lanes, a multiply and an add per tap.
        taps = 2 * math.prod(kernel)
        return elementwise_work(machine, "vector", ys[1], ys[0] * math.prod(spatial), taps)
    contract = conv_work(
        machine,
        input_channels=xs[1],
        output_channels=ws[0],
        kernel=(math.prod(kernel[:-1]), kernel[-1]),
        output=(height, width),
        batch=xs[0],
        groups=op.group,
    )
    return contract + drain_work(machine, "scalar", ws[0] // op.group, ys[0] * math.prod(spatial)).times(op.group)


def _matmul(machine: Machine, op: nn.MatmulOp) -> Work:
    left, right, out = _shape(op.lhs), _shape(op.rhs), _shape(op.result)
    batches, rows = math.prod(out[:-2]), out[-2]
    if math.prod(right[:-2]) == 1:
        # One right-hand side for all: the batch is more rows.
        batches, rows = 1, batches * rows
    contraction, columns = left[-1], right[-1]
    # Either operand may stand still; the cheaper way.
    rows_move = gemm_work(machine, contraction, columns, rows) + drain_work(machine, "scalar", columns, rows)
    columns_move = gemm_work(machine, contraction, rows, columns) + drain_work(machine, "scalar", rows, columns)
    return min(rows_move, columns_move, key=lambda w: w.bottleneck_ps).times(batches)


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
    return _plane(machine, "vector", _shape(op.results[0]), math.prod(op.kernel))


def _transpose(machine: Machine, op: nn.TransposeOp) -> Work:
    """Through the PE array, in blocks of 128 x 64, if the last dimension moves; otherwise only addresses change."""
    shape = _shape(op.results[0])
    if op.perm[-1] == len(shape) - 1:
        return _plane(machine, "vector", shape, 1)
    blocks = -(-math.prod(shape) // (machine.tensor_engine.rows * machine.tensor_engine.columns))
    each = Work(tensor_ps=moving_ps(machine, machine.tensor_engine.rows))
    drain = drain_work(machine, "vector", machine.tensor_engine.columns, machine.tensor_engine.rows)
    return (each + drain).times(blocks)


def _nothing(machine: Machine, op: Operation) -> Work:
    return Work()


_WORK: list[tuple[type[Operation], Callable[[Machine, Any], Work]]] = [
    (nn.ConvOp, _conv),
    (nn.MatmulOp, _matmul),
    (nn.PoolOp, _pool),
    (nn.TransposeOp, _transpose),
    # Rows come by DMA, see GroupEstimate.dram_bytes.
    (nn.GatherOp, _nothing),
    (nn.ReshapeOp, _nothing),
    (nn.ArgMaxOp, _lanes("vector", 2)),
    # max, x - max; exp; sum, times 1 / sum
    (nn.SoftmaxOp, _lanes("vector", 4, 1)),
    # sum, x - mean, sum of squares, times 1 / deviation, times scale; square, plus bias
    (nn.LayerNormOp, _lanes("vector", 5, 2)),
    # scale * x + bias
    (nn.BatchNormOp, _lanes("scalar", 1)),
    # squares, window sum, product; power
    (nn.LrnOp, _lanes("vector", 7, 2)),
    (nn.DivOp, _lanes("vector", 2)),
    (nn.PowOp, _lanes("scalar", 2)),
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
    if isinstance(user, nn.ConvOp) and value is user.w:
        taps = math.prod(shape[2:])
        if shape[1] == 1 and user.group == _shape(user.x)[1]:
            return -(-shape[0] // rows) * taps * item
        return -(-shape[1] // rows) * taps * shape[0] * item
    if isinstance(user, nn.MatmulOp):
        contraction = shape[-2] if value is user.rhs else shape[-1]
        return -(-contraction // rows) * (math.prod(shape) // contraction) * item
    if isinstance(user, nn.LayerNormOp):
        # The normalised dimension runs along each partition, so every partition needs all of it.
        return math.prod(shape) * item
    # Channels, or whatever comes first, on partitions.
    return -(-math.prod(shape) // rows) * item


def _owner(value: SSAValue) -> Operation | None:
    return value.owner if isinstance(value.owner, Operation) else None


def _shape(value: SSAValue) -> tuple[int, ...]:
    return cast(Tensor, value.type).get_shape()


def _count(value: SSAValue) -> int:
    return math.prod(_shape(value))
