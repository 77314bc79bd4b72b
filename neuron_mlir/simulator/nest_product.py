"""The statements of a nest: one product of all its terms. See `nests`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from xdsl.ir.affine import AffineBinaryOpExpr, AffineDimExpr, AffineExpr

from neuron_mlir.simulator.fast import Scratch
from neuron_mlir.simulator.kernels import Name, view_shape
from neuron_mlir.simulator.nests import Nest, Plan
from neuron_mlir.simulator.program import Touch


class Packed:
    """Where a stream copies moving operands together: one block for all its nests, and what is in it."""

    def __init__(self) -> None:
        self.scratch = Scratch()
        self.holds: list[object] = [None]
        self.sites = 0

    def pieces(self, shape: tuple[int, ...], terms: int) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """An array of `[rows of all terms, columns]`, and the part of each term in the shape of its access."""
        rows, columns = shape[0], int(np.prod(shape[1:]))
        array = self.scratch.get((terms * rows, columns))
        return array, [array[n * rows : (n + 1) * rows].reshape(shape) for n in range(terms)]


def emit(nest: Nest, plan: Plan, packed: Packed, scratch: Scratch, name: Name) -> list[str]:
    """Statements that carry out a nest."""
    from neuron_mlir.simulator.codegen import index_text  # the two modules write one text together

    step = nest.step
    acc, stationary, moving = step.touches
    variables = step.variables
    rows, width, columns = stationary.sizes[0], acc.sizes[0], int(np.prod(moving.sizes[1:]))
    weights = _rows(stationary, nest.stationary, nest.terms, plan, variables)
    lines: list[str] = []
    if nest.packed:
        lines += _pack(nest, plan, packed, name)
        data = name(packed.pieces(view_shape(moving), nest.terms)[0])
    else:
        data = _rows(moving, nest.moving, nest.terms, plan, variables)
        if len(view_shape(moving)) > 2:
            data = f"{data}.reshape({nest.terms * rows}, {columns})"
    target = f"B{acc.storage.number}[{index_text(acc, variables)}]"
    if len(view_shape(acc)) > 2:
        target = f"{target}.reshape({width}, {columns})"
    product = name(np.matmul)
    if not nest.accumulates:
        return [*lines, f"{product}({weights}.T, {data}, {target})"]
    partial, add = name(scratch.get((width, columns))), name(np.add)
    return [*lines, f"{product}({weights}.T, {data}, {partial}); a = {target}; {add}(a, {partial}, a)"]


def _pack(nest: Nest, plan: Plan, packed: Packed, name: Name) -> list[str]:
    """Copy the terms of the moving operand together, unless the block holds them already."""
    from neuron_mlir.simulator.codegen import index_text  # the two modules write one text together

    moving, variables = nest.step.touches[2], nest.step.variables
    packed.sites += 1
    inner = {loop.variable for loop in nest.loops}
    used = dict.fromkeys(variables[n] for offset in moving.offsets for n in _positions(offset))
    outer = [variable for variable in used if variable not in inner]
    pieces = name(packed.pieces(view_shape(moving), nest.terms)[1])
    copy = ["j = 0"]
    for level, loop in enumerate(nest.loops):
        copy.append(" " * level + f"for {loop.variable} in range({loop.start}, {loop.stop}, {loop.step}):")
    source = f"B{moving.storage.number}[{index_text(moving, variables)}]"
    copy.append(" " * len(nest.loops) + f"{pieces}[j][...] = {source}; j += 1")
    holds = name(packed.holds)
    if moving.storage not in plan.versions:
        return [f"{holds}[0] = None", *copy]
    key = ", ".join([str(packed.sites), *outer, f"V{moving.storage.number}[0]"])
    return [f"k = ({key})", f"if {holds}[0] != k:", f" {holds}[0] = k", *(f" {line}" for line in copy)]


def _rows(
    touch: Touch, place: Sequence[tuple[AffineExpr, int]], terms: int, plan: Plan, variables: Sequence[str]
) -> str:
    """The rows of all terms of an operand that lies in order."""
    from neuron_mlir.simulator.codegen import expression, slice_text  # the two modules write one text together

    rows, last = touch.sizes[0], plan.partition_after[touch.storage]
    texts = [(expression(offset, variables), factor * rows) for offset, factor in place]
    constant = sum(int(text) * factor for text, factor in texts if text.isdigit())
    start = "+".join([*(f"{text}*{factor}" for text, factor in texts if not text.isdigit()), str(constant)])
    if start.isdigit():
        first = f"{start}:{int(start) + terms * rows}"
    else:
        first = f"{start}:{start}+{terms * rows}"
    extents = touch.storage.shape
    axes = range(last + 1, len(extents))
    kept = [axis for axis in axes if touch.sizes[axis] != 1] or [axes[-1]]
    parts = [first]
    for axis in axes:
        offset = expression(touch.offsets[axis], variables)
        if axis in kept:
            parts.append(slice_text(offset, touch.sizes[axis], touch.strides[axis], extents[axis]))
        else:
            parts.append(offset)
    return f"F{touch.storage.number}[{', '.join(parts)}]"


def _positions(expr: AffineExpr) -> list[int]:
    if isinstance(expr, AffineDimExpr):
        return [expr.position]
    if isinstance(expr, AffineBinaryOpExpr):
        return [*_positions(expr.lhs), *_positions(expr.rhs)]
    return []
