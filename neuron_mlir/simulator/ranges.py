"""Static checks of accesses, for every loop index and request: inside their buffers, and where engines can start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from xdsl.ir.affine import AffineBinaryOpExpr, AffineBinaryOpKind, AffineConstantExpr, AffineDimExpr, AffineExpr

from neuron_mlir.dialects.core.access import expression_range
from neuron_mlir.dialects.core.movement import DmaOp, GatherOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.program import Loop, Program, Step, Touch


@dataclass(frozen=True)
class Range:
    """What a loop variable runs over: `first`, `first + step`, ... up to `last`."""

    first: int
    last: int
    step: int


def check_ranges(program: Program, requests: int = 1 << 20) -> None:
    """Raise `NeuronError` for the first access that can leave its buffer, or that an engine cannot start, with the loop
    indices taken over their whole range.
    """
    quadrant = program.machine.sbuf.quadrant_partitions
    for stream in program.streams:
        for body in (stream.load, stream.run):
            _check_body(body, {"r": Range(0, max(0, requests - 1), 1)}, quadrant)


def _check_body(body: Sequence[Loop | Step], ranges: dict[str, Range], quadrant: int) -> None:
    for item in body:
        if isinstance(item, Loop):
            if item.trips:
                last = item.start + (item.trips - 1) * item.step
                _check_body(item.body, {**ranges, item.variable: Range(item.start, last, item.step)}, quadrant)
            continue
        # The number of a replica is written out.
        variables = [Range(int(v), int(v), 1) if v.isdigit() else ranges[v] for v in item.variables]
        for touch in item.touches:
            _check_inside(item, touch, variables)
            if not isinstance(item.op, (DmaOp, GatherOp)):
                _check_start(item, touch, variables, quadrant)


def _check_inside(step: Step, touch: Touch, variables: Sequence[Range]) -> None:
    limits = [(variable.first, variable.last) for variable in variables]
    # Most offsets are constants: those go without a call.
    for axis, (offset, size, stride, extent) in enumerate(
        zip(touch.offsets, touch.sizes, touch.strides, touch.storage.shape, strict=True)
    ):
        if type(offset) is AffineConstantExpr:
            low = high = offset.value
        else:
            low, high = expression_range(offset, limits)
        end = high + (size - 1) * stride
        if low < 0 or end >= extent:
            raise NeuronError(
                f"out-of-range access: '{touch.role}' of {step.op.name} takes element {low} to {end} of dimension "
                f"{axis} of '{touch.storage.label}'",
                op=step.op,
                resource=f"elements of dimension {axis}",
                needed=end + 1,
                available=extent,
                advice="check the offset and the bounds of the loops around it",
            )


def _check_start(step: Step, touch: Touch, variables: Sequence[Range], quadrant: int) -> None:
    # Offsets that are constants are the verifier's.
    start = touch.offsets[0]
    if type(start) is AffineConstantExpr or common_factor(start, variables) % quadrant == 0:
        return
    raise NeuronError(
        f"'{touch.role}' of {step.op.name} may start at a partition that is no multiple of {quadrant}",
        op=step.op,
        advice="move the data by DMA, or through the PE array",
    )


def common_factor(expr: AffineExpr, variables: Sequence[Range]) -> int:
    """A number that divides every value of the expression; 0 when it is always 0."""
    if isinstance(expr, AffineConstantExpr):
        return abs(expr.value)
    if isinstance(expr, AffineDimExpr):
        variable = variables[expr.position]
        return abs(variable.first) if variable.first == variable.last else gcd(variable.first, variable.step)
    assert isinstance(expr, AffineBinaryOpExpr)
    left, right = common_factor(expr.lhs, variables), common_factor(expr.rhs, variables)
    match expr.kind:
        case AffineBinaryOpKind.Add | AffineBinaryOpKind.Mod:
            return gcd(left, right)
        case AffineBinaryOpKind.Mul:
            return left * right
        case _:
            return left // right if right and left % right == 0 else 1
