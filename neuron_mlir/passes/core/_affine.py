"""Loops with constant bounds, and offsets as sums over their variables: what allocation and scheduling reason with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from xdsl.dialects import affine
from xdsl.ir import Block, Operation, SSAValue
from xdsl.ir.affine import AffineBinaryOpExpr, AffineBinaryOpKind, AffineConstantExpr, AffineDimExpr, AffineExpr

from neuron_mlir.errors import NeuronError

UNBOUNDED = 1 << 40
"""Trips of the request loop: more than anyone runs."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop: its variable takes `start + k * step` for `k` in `range(trips)`. The request loop has no op."""

    number: int
    trips: int
    start: int = 0
    step: int = 1
    op: affine.ForOp | None = None

    @property
    def last(self) -> int:
        """The largest value of the variable."""
        return self.start + (self.trips - 1) * self.step


def read_loop(op: affine.ForOp, number: int) -> Loop:
    """The loop's constant bounds. Raises `NeuronError` when they are not, or when it carries values or never runs."""
    lower, upper = op.lowerBoundMap.data, op.upperBoundMap.data
    constant = not op.operands and len(lower.results) == len(upper.results) == 1
    if not constant or op.res or not isinstance(lower.results[0], AffineConstantExpr):
        raise NeuronError("a loop of engine code needs constant bounds and carries no values", op=op)
    start, stop, step = lower.eval([], [])[0], upper.eval([], [])[0], op.step.value.data
    if step < 1 or stop <= start:
        raise NeuronError("a loop of engine code runs at least once, with a positive step", op=op)
    return Loop(number, -(-(stop - start) // step), start, step, op)


def statements(block: Block) -> list[Operation]:
    """The ops of a block without its terminator."""
    return [op for op in block.ops if not isinstance(op, affine.YieldOp)]


def loops_around(op: Operation, outermost: Block) -> list[affine.ForOp]:
    """The loops around `op` inside `outermost`, the outer one first."""
    found: list[affine.ForOp] = []
    block = op.parent
    while block is not None and block is not outermost:
        parent = block.parent_op()
        if not isinstance(parent, affine.ForOp):
            raise NeuronError("only affine.for may hold instructions", op=parent)
        found.append(parent)
        block = parent.parent
    return found[::-1]


@dataclass(frozen=True, slots=True)
class Atom:
    """`inner mod by` or `inner floordiv by`, times `factor`."""

    factor: int
    kind: Literal["mod", "floordiv"]
    inner: Form
    by: int


@dataclass(frozen=True, slots=True)
class Form:
    """`constant + sum(factor * variable) + sum(atoms)`; terms are sorted by the number of the loop."""

    constant: int
    terms: tuple[tuple[int, int], ...] = ()
    atoms: tuple[Atom, ...] = ()

    def __add__(self, other: Form) -> Form:
        if not other.terms and not other.atoms:
            return Form(self.constant + other.constant, self.terms, self.atoms)
        total = dict(self.terms)
        for variable, factor in other.terms:
            total[variable] = total.get(variable, 0) + factor
        terms = tuple(sorted((v, f) for v, f in total.items() if f))
        return Form(self.constant + other.constant, terms, _joined(self.atoms + other.atoms))

    def times(self, factor: int) -> Form:
        """The form multiplied by a number."""
        if factor == 0:
            return Form(0)
        return Form(
            self.constant * factor,
            tuple((v, f * factor) for v, f in self.terms),
            tuple(Atom(a.factor * factor, a.kind, a.inner, a.by) for a in self.atoms),
        )

    def mod(self, by: int) -> Form:
        """The form modulo a number; factors are reduced, so that `4 * i + j mod 2` is `j mod 2`."""
        if self.atoms:
            return Form(0, (), (Atom(1, "mod", self, by),))
        inner = Form(self.constant % by, tuple((v, f % by) for v, f in self.terms if f % by))
        return Form(0, (), (Atom(1, "mod", inner, by),)) if inner.terms else Form(inner.constant)

    def floordiv(self, by: int) -> Form:
        """The form divided by a number, rounded down; without remainder where all variables are multiples of it."""
        if by == 1:
            return self
        if not self.atoms and all(factor % by == 0 for _, factor in self.terms):
            return Form(self.constant // by, tuple((v, factor // by) for v, factor in self.terms))
        return Form(0, (), (Atom(1, "floordiv", self, by),))

    def variables(self) -> set[int]:
        """Numbers of the loops it depends on."""
        found = {variable for variable, _ in self.terms}
        for atom in self.atoms:
            found |= atom.inner.variables()
        return found

    def range(self, loops: dict[int, Loop]) -> tuple[int, int]:
        """Smallest and largest value over all iterations; exact without atoms, safe with them."""
        low = high = self.constant
        for variable, factor in self.terms:
            loop = loops[variable]
            ends = factor * loop.start, factor * loop.last
            low, high = low + min(ends), high + max(ends)
        for atom in self.atoms:
            ends = atom_range(atom, loops)
            low, high = low + min(ends), high + max(ends)
        return low, high


def _joined(atoms: tuple[Atom, ...]) -> tuple[Atom, ...]:
    """Equal atoms as one, with the sum of their factors."""
    factors: dict[Atom, int] = {}
    for atom in atoms:
        plain = Atom(1, atom.kind, atom.inner, atom.by)
        factors[plain] = factors.get(plain, 0) + atom.factor
    return tuple(Atom(factor, a.kind, a.inner, a.by) for a, factor in factors.items() if factor)


def atom_range(atom: Atom, loops: dict[int, Loop]) -> tuple[int, int]:
    """Ends of the values of an atom, its factor included."""
    low, high = atom.inner.range(loops)
    if atom.kind == "floordiv":
        low, high = low // atom.by, high // atom.by
    elif low // atom.by == high // atom.by:
        low, high = low % atom.by, high % atom.by
    else:
        low, high = 0, atom.by - 1
    return low * atom.factor, high * atom.factor


def form_of(expr: AffineExpr, variables: Sequence[int]) -> Form:
    """An affine expression over the loops with the given numbers."""
    if isinstance(expr, AffineConstantExpr):
        return Form(expr.value)
    if isinstance(expr, AffineDimExpr):
        return Form(0, ((variables[expr.position], 1),))
    assert isinstance(expr, AffineBinaryOpExpr)
    left, right = form_of(expr.lhs, variables), form_of(expr.rhs, variables)
    if expr.kind == AffineBinaryOpKind.Add:
        return left + right
    if expr.kind == AffineBinaryOpKind.Mul:
        return left.times(right.constant) if not right.terms and not right.atoms else right.times(left.constant)
    if expr.kind == AffineBinaryOpKind.Mod:
        return left.mod(right.constant)
    if expr.kind == AffineBinaryOpKind.FloorDiv:
        return left.floordiv(right.constant)
    return left.times(-1).floordiv(right.constant).times(-1)


def expression_of(form: Form, values: Mapping[int, SSAValue], indices: list[SSAValue]) -> AffineExpr:
    """The form as an affine expression; index values not yet in `indices` are appended to it."""
    total: AffineExpr | None = None
    for variable, factor in form.terms:
        value = values[variable]
        if value not in indices:
            indices.append(value)
        total = _plus(total, AffineExpr.dimension(indices.index(value)), factor)
    for atom in form.atoms:
        inner = expression_of(atom.inner, values, indices)
        total = _plus(total, inner % atom.by if atom.kind == "mod" else inner // atom.by, atom.factor)
    if total is None:
        return AffineExpr.constant(form.constant)
    return total + form.constant if form.constant else total


def _plus(total: AffineExpr | None, expr: AffineExpr, factor: int) -> AffineExpr:
    term = expr if factor == 1 else expr * factor
    return term if total is None else total + term


def iteration_form(loop: Loop) -> Form:
    """Which iteration of the loop it is, from 0."""
    form = Form(-loop.start, ((loop.number, 1),))
    return form if loop.step == 1 else form.floordiv(loop.step)


def linear_number(loops: Sequence[Loop]) -> Form:
    """The number of the iteration of a nest, counted in the order of execution; 0 for no loop."""
    total = Form(0)
    for loop in loops:
        total = total.times(loop.trips) + iteration_form(loop)
    return total
