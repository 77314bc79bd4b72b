"""Nests of loops around one matmul, as one product of all their terms.

A TensorEngine adds up a result term by term: a tile of the contraction, and a tap of the window, each. Where nothing
else happens in between, the terms are one product of `[rows of all terms, columns]`, which BLAS does in one call
without partial results to add. Stationary operands then have to lie with the rows of all terms one after the other,
which is a matter of the order of axes of the array behind a buffer (`Layouts`). Moving operands lie so as well, or are
copied together (windows); that copy serves all products of the same columns until something writes the buffer.

The sum of the same terms in another order: equal on whole numbers, else within what re-ordering may change. The plain
interpreter (`run_module(.., plain=True)`) goes term by term.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from xdsl.ir.affine import AffineBinaryOpExpr, AffineBinaryOpKind, AffineConstantExpr, AffineDimExpr, AffineExpr

from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.simulator.fast import mergeable
from neuron_mlir.simulator.program import Loop, Program, Step, Storage, Touch

_TERMS_MAX = 4096
"""Of a nest: each is looked at once when the code is made."""


@dataclass(eq=False)
class Nest:
    """Loops around one matmul that become one product.

    Attributes:
        loops: from the outermost in.
        step: the matmul.
        terms: how often it runs.
        accumulates: whether the first term is added to what is there.
        stationary: the row of the first term, in units of terms, over the variables outside.
        packed: whether the moving operand is copied together; else `moving` is as `stationary`.
    """

    loops: list[Loop]
    step: Step
    terms: int
    accumulates: bool
    stationary: list[tuple[AffineExpr, int]]
    moving: list[tuple[AffineExpr, int]]
    packed: bool


@dataclass
class Plan:
    """What is known of a program before its code is made."""

    nests: dict[Loop, Nest] = field(default_factory=dict[Loop, Nest])
    """By outermost loop."""
    partition_after: dict[Storage, int] = field(default_factory=dict[Storage, int])
    """Axis after which the partitions of a buffer come in memory; 0, before all others, when not here."""
    versions: dict[Storage, list[int]] = field(default_factory=dict[Storage, list[int]])
    """Of buffers that copies are made of: how often anything has written them."""
    resident: set[Step] = field(default_factory=set[Step])
    """Transfers of the load that bring what stays: their values are put in place before the run."""


def plan_nests(program: Program) -> Plan:
    """Find the nests of all streams, and the layouts that they want."""
    plan = Plan()
    given = {port.ring for port in program.inputs}
    for stream in program.streams:
        for body in (stream.load, stream.run):
            for loops, step in _matmul_loops(body):
                # As many of the loops, from the inside, as belong to one result.
                found = (_nest(loops[start:], step, plan) for start in range(len(loops)))
                nest = next((nest for nest in found if nest is not None), None)
                if nest is None:
                    continue
                plan.nests[nest.loops[0]] = nest
                source = step.touches[2].storage
                if nest.packed and source not in given:
                    plan.versions.setdefault(source, [0])
    plan.resident = _resident(program)
    return plan


def _resident(program: Program) -> set[Step]:
    """The transfers of constants, before all requests, into buffers that nothing else writes."""
    writers: dict[Storage, list[Step]] = {}
    loads: set[Step] = set()
    for stream in program.streams:
        for step, _, is_load in stream.steps():
            if is_load and isinstance(step.op, DmaOp) and step.touches[1].storage.constant is not None:
                loads.add(step)
            for touch in step.touches:
                if touch.write:
                    writers.setdefault(touch.storage, []).append(step)
    return {step for steps in writers.values() if loads.issuperset(steps) for step in steps}


def only(body: Sequence[Loop | Step], steps: set[Step]) -> list[Loop | Step]:
    """A body with all but these steps left out."""
    kept: list[Loop | Step] = []
    for item in body:
        if isinstance(item, Step):
            kept += [item] if item in steps else []
            continue
        inside = only(item.body, steps)
        if inside:
            kept.append(Loop(item.variable, item.start, item.stop, item.step, inside))
    return kept


def _matmul_loops(body: Sequence[Loop | Step]) -> Iterator[tuple[list[Loop], Step]]:
    """Loops, from the outermost in, that hold nothing but a matmul."""
    for item in body:
        if isinstance(item, Loop):
            loops: list[Loop] = [item]
            inside = item.body
            while len(inside) == 1 and isinstance(inside[0], Loop):
                loops.append(inside[0])
                inside = inside[0].body
            if len(inside) == 1 and isinstance(inside[0], Step) and isinstance(inside[0].op, MatmulOp):
                yield loops, inside[0]
            else:
                yield from _matmul_loops(item.body)


def _nest(loops: list[Loop], step: Step, plan: Plan) -> Nest | None:
    """These loops as one product; None when they have to stay as they are."""
    acc, stationary, moving = step.touches
    terms = prod(loop.trips for loop in loops)
    if not 2 <= terms <= _TERMS_MAX or 0 in stationary.strides or 0 in moving.strides or not mergeable(acc):
        return None
    if acc.sizes[0] == 1 or prod(moving.sizes[1:]) == 1 or acc.storage.memory.space != "psum":
        return None
    inner = {loop.variable for loop in loops}
    points = list(product(*(range(loop.start, loop.stop, loop.step) for loop in loops)))
    numbers = _Split(step, [loop.variable for loop in loops], points)
    if any(numbers.depends(offset, inner) for offset in acc.offsets):
        return None
    init = numbers.values(cast(MatmulOp, step.op).init.data.results[0])
    if init is None or not isinstance(init[0], AffineConstantExpr):
        return None
    constant, changes = init[0].value, init[1]
    if any(constant + change == 0 for change in changes[1:]):
        return None
    rows = _rows(stationary, len(stationary.sizes) - 2, numbers)
    if rows is None or not _claim(plan, stationary.storage, len(stationary.sizes) - 2):
        return None
    columns = _direct(moving, numbers, plan)
    accumulates = constant + changes[0] != 0
    return Nest(loops, step, terms, accumulates, rows, columns or [], columns is None)


class _Split:
    """Offsets as what depends on the loops outside of a nest, plus numbers for its terms."""

    def __init__(self, step: Step, inner: list[str], points: list[tuple[int, ...]]):
        self.variables, self.inner, self.points = step.variables, inner, points

    def depends(self, expr: AffineExpr, names: set[str]) -> bool:
        """Whether an expression has one of these variables."""
        if isinstance(expr, AffineDimExpr):
            return self.variables[expr.position] in names
        if isinstance(expr, AffineBinaryOpExpr):
            return self.depends(expr.lhs, names) or self.depends(expr.rhs, names)
        return False

    def values(self, expr: AffineExpr) -> tuple[AffineExpr, list[int]] | None:
        """The part outside, and the number each term adds; None when they do not come apart."""
        names = set(self.inner)
        rest: AffineExpr = AffineConstantExpr(0)
        changes = [0] * len(self.points)
        for part in _summands(expr):
            if not self.depends(part, names):
                if isinstance(rest, AffineConstantExpr) and isinstance(part, AffineConstantExpr):
                    rest = AffineConstantExpr(rest.value + part.value)
                else:
                    rest = rest + part
                continue
            if self.depends(part, set(self.variables) - names):
                return None
            for n, point in enumerate(self.points):
                values = dict(zip(self.inner, point, strict=True))
                changes[n] += part.eval([values.get(name, 0) for name in self.variables], [])
        return rest, changes


def _summands(expr: AffineExpr) -> Iterator[AffineExpr]:
    if isinstance(expr, AffineBinaryOpExpr) and expr.kind == AffineBinaryOpKind.Add:
        yield from _summands(expr.lhs)
        yield from _summands(expr.rhs)
    else:
        yield expr


def _rows(touch: Touch, last: int, numbers: _Split) -> list[tuple[AffineExpr, int]] | None:
    """Of an access whose axes 1 to `last` have one element each: `(offset, factor)` whose sum is the place of the first
    term among them; None when the terms do not follow one another, or do not take all partitions.
    """
    shape = touch.storage.shape
    first = touch.offsets[0]
    if not (isinstance(first, AffineConstantExpr) and first.value == 0) or touch.sizes[0] != shape[0]:
        return None
    if touch.storage.memory.space != "sbuf" or last < 1 or any(size != 1 for size in touch.sizes[1 : last + 1]):
        return None
    if touch.strides[0] != 1:
        return None
    places = [0] * len(numbers.points)
    rows: list[tuple[AffineExpr, int]] = []
    for axis, offset in enumerate(touch.offsets[1:], 1):
        split = numbers.values(offset)
        if split is None:
            return None
        factor = prod(shape[axis + 1 : last + 1])
        if axis > last:
            if any(split[1]):
                return None
            continue
        rows.append((split[0], factor))
        places = [place + factor * change for place, change in zip(places, split[1], strict=True)]
    if any(place != n + places[0] for n, place in enumerate(places)):
        return None
    if places[0]:
        rows.append((AffineConstantExpr(places[0]), 1))
    return rows


def _direct(touch: Touch, numbers: _Split, plan: Plan) -> list[tuple[AffineExpr, int]] | None:
    """A moving operand whose terms follow one another in some layout: the place of the first."""
    changing = [n for n, offset in enumerate(touch.offsets) if numbers.depends(offset, set(numbers.inner))]
    last = max(changing, default=0)
    rows = _rows(touch, last, numbers) if last and mergeable(touch) else None
    return rows if rows is not None and _claim(plan, touch.storage, last) else None


def _claim(plan: Plan, storage: Storage, after: int) -> bool:
    """Ask for the partitions of a buffer to come after an axis; whether they do."""
    return plan.partition_after.setdefault(storage, after) == after


# Arrays ---------------------------------------------------------------------------------------------------------------


def logical(physical: NDArray[Any], after: int) -> NDArray[Any]:
    """The array of a buffer with its partitions first, as a view of one in which they come after axis `after`."""
    return np.moveaxis(physical, after, 0)


def physical_shape(storage: Storage, after: int) -> tuple[int, ...]:
    """The shape of the array behind a buffer."""
    shape = list(storage.shape)
    shape.insert(after, shape.pop(0))
    return tuple(shape)


def rows_of(storage: Storage, array: NDArray[Any], after: int) -> NDArray[Any]:
    """A buffer as `[rows of all terms, the axes after them]`, a view."""
    physical = np.moveaxis(array, 0, after)
    return physical.reshape(-1, *storage.shape[after + 1 :])
