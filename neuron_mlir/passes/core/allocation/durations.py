"""How long statements take, roughly: what "ahead" and "rest" are measured in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from math import prod
from typing import cast

from xdsl.dialects import affine
from xdsl.ir import Operation

from neuron_mlir.dialects.core.compute import MatmulOp, TransposeOp
from neuron_mlir.dialects.core.instruction import Instruction
from neuron_mlir.dialects.core.memory import Buffer, element_bytes
from neuron_mlir.machine import Machine, cost
from neuron_mlir.passes.core._affine import read_loop, statements


def busy_ps(op: Operation, machine: Machine) -> dict[str, int]:
    """How long each engine is busy with a statement, by the machine's cost functions; transfers at full rate."""
    if isinstance(op, affine.ForOp):
        trips = read_loop(op, 0).trips
        total: dict[str, int] = {}
        for child in statements(op.body.block):
            for engine, time in busy_ps(child, machine).items():
                total[engine] = total.get(engine, 0) + time * trips
        return total
    if not isinstance(op, Instruction):
        return {}
    shapes = [access.shape() for access in op.accesses]
    if isinstance(op, MatmulOp):
        return {"tensor": cost.matmul_ps(machine, prod(shapes[2][1:])).occupancy}
    if isinstance(op, TransposeOp):
        return {"tensor": cost.matmul_ps(machine, shapes[1][0]).occupancy}
    if op.ENGINES[0].startswith("dma"):
        moved = prod(shapes[0]) * element_bytes(cast(Buffer, op.buffers[0].type).element_type)
        return {"dma": cost.service_ps(moved, cost.core_dma_bytes_per_s(machine))}
    elements = max(prod(shape[1:]) for shape in shapes)
    engine = "scalar" if op.engine == "scalar" else "vector"
    return {engine: cost.engine_ps(machine, engine, elements).occupancy}


class TimeLine:
    """When top-level statements begin, if each takes as long as its busiest engine and none overlap."""

    def __init__(self, ops: list[Operation], machine: Machine):
        durations = [max(busy_ps(op, machine).values(), default=0) for op in ops]
        self.begin = [0, *accumulate(durations)]
        """`begin[i]` of statement `i`; the last entry is the end."""

    @property
    def total(self) -> int:
        """Time of all statements."""
        return self.begin[-1]

    def earlier(self, statement: int, time: int) -> int:
        """The statement that runs `time` ps before one begins."""
        return max(0, bisect_right(self.begin, self.begin[statement] - time) - 1)

    def later(self, statement: int, time: int) -> int:
        """The last statement that begins less than `time` ps after one ends."""
        return min(len(self.begin) - 2, max(statement, bisect_left(self.begin, self.begin[statement + 1] + time) - 1))
