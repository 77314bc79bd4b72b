"""Reductions, softmax and layer normalisation along free axes, on the vector and scalar engines."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from xdsl.dialects.builtin import f32

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.compute import (
    ActivationOp,
    TensorReduceOp,
    TensorScalarOp,
    TensorTensorOp,
)
from neuron_mlir.dialects.core.memory import SBUF
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import Context, shape_of
from neuron_mlir.passes.core.lowering.layout import LANES, Home, Offset

REDUCERS: dict[type[nn.ReduceOp], str] = {
    nn.ReduceSumOp: "add",
    nn.ReduceMeanOp: "add",
    nn.ReduceMaxOp: "max",
    nn.ReduceMinOp: "min",
    nn.ReduceProdOp: "mul",
}


RowBody = Callable[[dict[int, Linear], tuple[Offset, int], Linear], None]
"""Code for one row: kept axes, partitions, partition tile."""


def _rows(x: Home, reduced: Sequence[int]) -> tuple[list[int], list[int]]:
    """Free axes that are kept (each a loop) and those that are reduced."""
    partition = x.partition_axes()
    kept = [a for a in range(len(x.axes)) if a not in partition and a not in reduced and x.axes[a]]
    return kept, [a for a in reduced if x.axes[a]]


def _row_access(
    home: Home, kept: dict[int, Linear], axes: Sequence[int], lane: tuple[Offset, int], tile: Linear
) -> Access:
    offsets: dict[int, Offset] = {}
    sizes: dict[int, int] = {}
    strides: dict[int, int] = {}
    for axis, index in kept.items():
        for factor in home.axes[axis]:
            if len(home.axes[axis]) > 1:
                raise NeuronError("a row axis is spread over two dimensions")
            offsets[factor.dim] = index * factor.stride
    for axis in axes:
        for factor in home.axes[axis]:
            sizes[factor.dim], strides[factor.dim] = factor.size, factor.stride
    return home.access(offsets, sizes, strides, lane, tile)


def reciprocal(count: int) -> float:
    """1 / count rounded to f32: what means are multiplied by, here and at the `nn` level."""
    (value,) = struct.unpack("f", struct.pack("f", 1.0 / count))
    return float(value)


class Rows:
    """Loops over the rows of a tensor: partition tiles, then each kept free axis. `lane`, `tile` and `kept` say which
    row it is.
    """

    def __init__(self, context: Context, x: Home, reduced: Sequence[int]):
        self.context = context
        self.kept, self.reduced = _rows(x, reduced)
        self.x = x
        self.lanes = max(1, math.prod(f.size for _, f in x.partition_factors()))

    def each(self, body: RowBody) -> None:
        """Call `body(kept, lane, tile)` inside the loops."""
        code = self.context.code
        for segment in segments(self.lanes, LANES):
            with code.loop(segment.count) as index:
                self._nest(self.kept, {}, (0, segment.size), index + segment.start // LANES, body)

    def _nest(
        self, left: list[int], found: dict[int, Linear], lane: tuple[Offset, int], tile: Linear, body: RowBody
    ) -> None:
        if left:
            with self.context.code.loop(self.x.logical[left[0]]) as index:
                self._nest(left[1:], {**found, left[0]: index}, lane, tile, body)
            return
        body(found, lane, tile)

    def row(self, home: Home, kept: dict[int, Linear], lane: tuple[Offset, int], tile: Linear) -> Access:
        """The reduced axes of one row of each partition."""
        return _row_access(home, kept, self.reduced, lane, tile)

    def temporary(self, label: str, lane: tuple[Offset, int], wide: bool) -> Access:
        """An f32 tile: a whole row, or one element per partition."""
        sizes = [self.x.logical[a] for a in self.reduced] if wide else [1]
        return Access.of(self.context.code.alloc(label, [lane[1], *(sizes or [1])], f32, SBUF))


def lower_reduce(context: Context, op: nn.ReduceOp, x: Home, out: Home) -> None:
    """A reduction along free axes; `out` has the kept axes where `x` has them (reduced ones gone or of size 1)."""
    rows = Rows(context, x, op.axes)
    code = context.code
    size = math.prod(x.logical[a] for a in op.axes)
    if not op.keepdims:
        shape = [1 if a in op.axes else s for a, s in enumerate(x.logical)]
        reshaped = out.reshaped(shape)
        assert reshaped is not None
        out = reshaped

    def body(kept: dict[int, Linear], lane: tuple[Offset, int], tile: Linear) -> None:
        target = _row_access(out, kept, (), lane, tile)
        source = rows.row(x, kept, lane, tile)
        if isinstance(op, nn.ReduceMeanOp):
            total = rows.temporary("sum", lane, False)
            code.add(TensorReduceOp("add", total, source))
            code.add(TensorScalarOp(target, total, "mul", reciprocal(size)))
        else:
            code.add(TensorReduceOp(REDUCERS[type(op)], target, source))

    rows.each(body)


def lower_softmax(context: Context, op: nn.SoftmaxOp, x: Home, out: Home) -> None:
    """exp(x - max) / sum, row by row."""
    rows = Rows(context, x, (op.axis,))
    code = context.code

    def body(kept: dict[int, Linear], lane: tuple[Offset, int], tile: Linear) -> None:
        source = rows.row(x, kept, lane, tile)
        highest, total = rows.temporary("max", lane, False), rows.temporary("sum", lane, False)
        shifted = rows.temporary("exp", lane, True)
        code.add(TensorReduceOp("max", highest, source))
        code.add(TensorScalarOp(highest, highest, "mul", -1.0))
        code.add(ActivationOp("exp", shifted, source, bias=highest))
        code.add(TensorReduceOp("add", total, shifted))
        code.add(ActivationOp("reciprocal", total, total))
        code.add(TensorScalarOp(rows.row(out, kept, lane, tile), shifted, "mul", total))

    rows.each(body)


def lower_layer_norm(
    context: Context,
    op: nn.LayerNormOp,
    x: Home,
    out: Home,
    scale: Callable[[], Home],
    bias: Callable[[], Home] | None = None,
) -> None:
    """(x - mean) / sqrt(var + eps) * scale + bias, row by row.

    `scale` and `bias` write code that brings them, on every partition, along the row, if that is not yet done. Without
    loops this is when they are needed, as they may take as much SBUF as what is normalised.
    """
    axes = tuple(range(op.axis, len(shape_of(op.x))))
    rows = Rows(context, x, axes)
    code = context.code
    inverse = reciprocal(math.prod(x.logical[a] for a in axes))

    def body(kept: dict[int, Linear], lane: tuple[Offset, int], tile: Linear) -> None:
        source = rows.row(x, kept, lane, tile)
        mean, var = rows.temporary("mean", lane, False), rows.temporary("var", lane, False)
        centred, squares = rows.temporary("centred", lane, True), rows.temporary("squares", lane, True)
        code.add(TensorReduceOp("add", mean, source))
        code.add(TensorScalarOp(mean, mean, "mul", inverse))
        code.add(TensorScalarOp(centred, source, "sub", mean))
        code.add(ActivationOp("square", squares, centred))
        code.add(TensorReduceOp("add", var, squares))
        code.add(TensorScalarOp(var, var, "mul", inverse, "add", op.eps))
        code.add(ActivationOp("rsqrt", var, var))
        target = rows.row(out, kept, lane, tile)
        code.add(TensorScalarOp(centred, centred, "mul", var))
        for bring, name in ((scale, "mul"), (bias, "add")):
            if bring is None:
                continue
            home = bring()
            final = name == "add" or bias is None
            operand = _row_access(home, {a: i for a, i in kept.items() if home.axes[a]}, axes, lane, Linear())
            code.add(TensorTensorOp(name, target if final else centred, centred, operand))

    if rows.kept or rows.lanes > LANES:
        for bring in (scale, bias):
            if bring is not None:
                bring()
    rows.each(body)
