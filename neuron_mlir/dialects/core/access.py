"""Accesses: which part of a buffer an instruction reads or writes.

Written in place, in the order of `memref.subview`: `%buf[offsets] [sizes] [strides]`. Offsets are affine in loop
indices and the request number (`%i * 64 + 2`, `%r mod 2`), sizes and strides are integers. `%buf` alone is the
whole buffer; strides may be left out when all are 1; a stride of 0 repeats one element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from xdsl.dialects.builtin import AffineMapAttr, DenseArrayBase, IndexType, MemRefType, i64
from xdsl.ir import ParametrizedAttribute, SSAValue
from xdsl.ir.affine import (
    AffineBinaryOpExpr,
    AffineBinaryOpKind,
    AffineConstantExpr,
    AffineDimExpr,
    AffineExpr,
    AffineMap,
)
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.core.memory import Buffer
from neuron_mlir.errors import NeuronError


def integers(array: DenseArrayBase) -> tuple[int, ...]:
    """The numbers of an array of integers."""
    return tuple(cast("DenseArrayBase[Any]", array).iter_values())


@irdl_attr_definition
class AccessAttr(ParametrizedAttribute):
    """Offsets (a map over the instruction's index operands), sizes and strides, one of each per dimension of the
    buffer.
    """

    name = "core.access"
    map: AffineMapAttr
    sizes: DenseArrayBase
    strides: DenseArrayBase

    def shape(self) -> tuple[int, ...]:
        """Elements taken along each dimension."""
        return integers(self.sizes)

    def steps(self) -> tuple[int, ...]:
        """Elements from one taken to the next, along each dimension."""
        return integers(self.strides)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[AffineMapAttr | DenseArrayBase]:
        with parser.in_angle_brackets():
            offsets = AffineMapAttr(parser.parse_affine_map())
            sizes = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
            strides = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
        return [offsets, DenseArrayBase.from_list(i64, sizes), DenseArrayBase.from_list(i64, strides)]

    def print_parameters(self, printer: Printer) -> None:
        printer.print_string(f"<{self.map.data} {list(self.shape())} {list(self.steps())}>")


@dataclass(frozen=True)
class Access:
    """An access being built: a buffer, offsets over `indices` (dimension `i` of an expression is `indices[i]`),
    sizes, strides.
    """

    buffer: SSAValue
    offsets: tuple[AffineExpr, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    indices: tuple[SSAValue, ...] = ()

    @staticmethod
    def of(
        buffer: SSAValue,
        offsets: Sequence[int | SSAValue | Linear] | None = None,
        sizes: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> Access:
        """An access from plain offsets: integers, index values, or `Linear` sums of them. The whole buffer when
        only `buffer` is given.
        """
        shape = cast(Buffer, buffer.type).get_shape()
        offsets = [0] * len(shape) if offsets is None else offsets
        sizes = tuple(shape) if sizes is None else tuple(sizes)
        steps = (1,) * len(shape) if strides is None else tuple(strides)
        indices: list[SSAValue] = []
        exprs = tuple(Linear.wrap(offset).expression(indices) for offset in offsets)
        return Access(buffer, exprs, sizes, steps, tuple(indices))


@dataclass(frozen=True)
class Linear:
    """A sum `constant + sum(factor * index)`, optionally `floordiv` then `mod` a number: what offsets are made of."""

    terms: tuple[tuple[SSAValue, int], ...] = ()
    constant: int = 0
    floordiv: int | None = None
    mod: int | None = None

    @staticmethod
    def wrap(value: int | SSAValue | Linear) -> Linear:
        """`value` as a `Linear`."""
        if isinstance(value, Linear):
            return value
        return Linear((), value) if isinstance(value, int) else Linear(((value, 1),))

    def __add__(self, other: int | SSAValue | Linear) -> Linear:
        other = Linear.wrap(other)
        assert self.mod is None and other.mod is None and self.floordiv is None and other.floordiv is None
        return Linear(self.terms + other.terms, self.constant + other.constant)

    def __mul__(self, factor: int) -> Linear:
        assert self.mod is None and self.floordiv is None
        return Linear(tuple((value, scale * factor) for value, scale in self.terms), self.constant * factor)

    def expression(self, indices: list[SSAValue]) -> AffineExpr:
        """As an affine expression; index values not yet in `indices` are appended to it."""
        total: AffineExpr = AffineExpr.constant(0)
        for value, factor in self.terms:
            if factor == 0:
                continue
            if value not in indices:
                indices.append(value)
            total = total + AffineExpr.dimension(indices.index(value)) * factor
        total = total + self.constant
        if self.floordiv is not None:
            total = total // self.floordiv
        return total if self.mod is None else total % self.mod


def join_indices(accesses: Sequence[Access]) -> tuple[list[AccessAttr], list[SSAValue]]:
    """Attributes of several accesses over one common list of index operands."""
    common: list[SSAValue] = []
    attributes: list[AccessAttr] = []
    for access in accesses:
        for index in access.indices:
            if index not in common:
                common.append(index)
    dims = len(common)
    for access in accesses:
        replacement = [AffineExpr.dimension(common.index(index)) for index in access.indices]
        exprs = tuple(e.replace_dims_and_symbols(replacement, []) for e in access.offsets)
        attributes.append(
            AccessAttr(
                AffineMapAttr(AffineMap(dims, 0, exprs)),
                DenseArrayBase.from_list(i64, access.sizes),
                DenseArrayBase.from_list(i64, access.strides),
            )
        )
    return attributes, common


def expression_range(expr: AffineExpr, ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Smallest and largest value of `expr` when dimension `i` runs over the inclusive `ranges[i]` (exact for sums,
    safe for mod).

    Raises:
        NeuronError: a division by what is not positive.
    """
    # The kinds of expressions are abstract base classes' children, for which isinstance is slow.
    if type(expr) is AffineConstantExpr:
        return expr.value, expr.value
    if type(expr) is AffineDimExpr:
        return ranges[expr.position]
    assert type(expr) is AffineBinaryOpExpr
    low, high = expression_range(expr.lhs, ranges)
    other_low, other_high = expression_range(expr.rhs, ranges)
    if other_low <= 0 and expr.kind not in (AffineBinaryOpKind.Add, AffineBinaryOpKind.Mul):
        raise NeuronError(f"division by {other_low} in '{expr}'", advice="mod and floordiv take positive numbers")
    match expr.kind:
        case AffineBinaryOpKind.Add:
            return low + other_low, high + other_high
        case AffineBinaryOpKind.Mul:
            corners = (low * other_low, low * other_high, high * other_low, high * other_high)
            return min(corners), max(corners)
        case AffineBinaryOpKind.Mod:
            if low // other_high == high // other_high:
                return low % other_high, high % other_high
            return 0, other_high - 1
        case AffineBinaryOpKind.FloorDiv:
            return low // other_high, high // other_high
        case AffineBinaryOpKind.CeilDiv:
            return -(-low // other_high), -(-high // other_high)


def verify_access(access: AccessAttr, type: Buffer, num_indices: int) -> None:
    """Raise `VerifyException` unless the access has the buffer's rank and stays inside it wherever its offsets are
    constants.
    """
    rank = type.get_num_dims()
    shape = type.get_shape()
    sizes, steps = access.shape(), access.steps()
    affine = access.map.data
    if not len(affine.results) == len(sizes) == len(steps) == rank:
        raise VerifyException(
            f"an access to {type} needs {rank} offsets, sizes and strides, got {len(affine.results)}, {len(sizes)} "
            f"and {len(steps)}"
        )
    if affine.num_dims != num_indices or affine.num_symbols:
        raise VerifyException(f"the access map takes {affine.num_dims} indices, the instruction has {num_indices}")
    for axis, (offset, size, step, limit) in enumerate(zip(affine.results, sizes, steps, shape, strict=True)):
        if size < 1 or step < 0:
            raise VerifyException(
                f"dimension {axis} of an access needs size >= 1 and stride >= 0, got {size} and {step}"
            )
        start = offset.value if isinstance(offset, AffineConstantExpr) else 0
        if start < 0 or start + (size - 1) * step >= limit:
            raise VerifyException(
                f"out of range: dimension {axis} of {type} has {limit} elements, the access takes element "
                f"{start} to {start + (size - 1) * step}"
            )


def parse_defined(parser: Parser) -> SSAValue:
    """An operand without its type: the value must be defined above."""
    operand = parser.parse_unresolved_operand()
    values = parser.ssa_values.get(operand.operand_name)
    if values is None or operand.index >= len(values):
        parser.raise_error(f"%{operand.operand_name} is not defined above", operand.span)
    return values[operand.index]


def parse_access(parser: Parser) -> Access:
    """`%buf`, or `%buf[offsets] [sizes]`, or `%buf[offsets] [sizes] [strides]`."""
    buffer = parse_defined(parser)
    if not isinstance(buffer.type, MemRefType):
        parser.raise_error(f"an access needs a memref, got {buffer.type}")
    if parser.parse_optional_punctuation("[") is None:
        return Access.of(buffer)
    indices: list[SSAValue] = []
    offsets: list[AffineExpr] = []
    if parser.parse_optional_punctuation("]") is None:
        while True:
            offsets.append(parse_expression(parser, indices))
            if parser.parse_optional_punctuation(",") is None:
                break
        parser.parse_punctuation("]")
    sizes = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
    strides = parser.parse_optional_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
    return Access(
        buffer,
        tuple(offsets),
        tuple(sizes),
        tuple(strides) if strides is not None else (1,) * len(sizes),
        tuple(indices),
    )


_OPERATORS = {"mod": AffineBinaryOpKind.Mod, "floordiv": AffineBinaryOpKind.FloorDiv}


def parse_expression(parser: Parser, indices: list[SSAValue]) -> AffineExpr:
    """An affine expression over SSA values: sums, products with an integer, `mod`, `floordiv`, parentheses.

    Index values met for the first time are appended to `indices`.
    """
    total = _parse_term(parser, indices)
    while True:
        if parser.parse_optional_punctuation("+") is not None:
            total = total + _parse_term(parser, indices)
        elif parser.parse_optional_punctuation("-") is not None:
            total = total - _parse_term(parser, indices)
        else:
            return total


def _parse_term(parser: Parser, indices: list[SSAValue]) -> AffineExpr:
    value = _parse_factor(parser, indices)
    while True:
        if parser.parse_optional_punctuation("*") is not None:
            value = value * _parse_factor(parser, indices)
        elif parser.parse_optional_keyword("mod"):
            value = value % _parse_factor(parser, indices)
        elif parser.parse_optional_keyword("floordiv"):
            value = value // _parse_factor(parser, indices)
        else:
            return value


def _parse_factor(parser: Parser, indices: list[SSAValue]) -> AffineExpr:
    if parser.parse_optional_punctuation("(") is not None:
        value = parse_expression(parser, indices)
        parser.parse_punctuation(")")
        return value
    number = parser.parse_optional_integer(allow_boolean=False)
    if number is not None:
        return AffineExpr.constant(number)
    operand = parse_defined(parser)
    if not isinstance(operand.type, IndexType):
        parser.raise_error(f"an offset needs index values, got {operand.type}")
    if operand not in indices:
        indices.append(operand)
    return AffineExpr.dimension(indices.index(operand))


def print_expression(printer: Printer, expr: AffineExpr, indices: Sequence[SSAValue], nested: bool = False) -> None:
    """The inverse of `parse_expression`."""
    if isinstance(expr, AffineConstantExpr):
        printer.print_string(str(expr.value))
        return
    if isinstance(expr, AffineDimExpr):
        printer.print_operand(indices[expr.position])
        return
    assert isinstance(expr, AffineBinaryOpExpr)
    tokens = {
        AffineBinaryOpKind.Add: "+",
        AffineBinaryOpKind.Mul: "*",
        AffineBinaryOpKind.Mod: "mod",
        AffineBinaryOpKind.FloorDiv: "floordiv",
        AffineBinaryOpKind.CeilDiv: "ceildiv",
    }
    add = expr.kind == AffineBinaryOpKind.Add
    if add and isinstance(expr.rhs, AffineConstantExpr) and expr.rhs.value < 0:
        if nested:
            printer.print_string("(")
        print_expression(printer, expr.lhs, indices)
        printer.print_string(f" - {-expr.rhs.value}" + (")" if nested else ""))
        return
    if nested:
        printer.print_string("(")
    print_expression(printer, expr.lhs, indices, nested=not add and isinstance(expr.lhs, AffineBinaryOpExpr))
    printer.print_string(f" {tokens[expr.kind]} ")
    print_expression(
        printer, expr.rhs, indices, nested=isinstance(expr.rhs, AffineBinaryOpExpr) and not _is_product(expr)
    )
    if nested:
        printer.print_string(")")


def _is_product(expr: AffineBinaryOpExpr) -> bool:
    """Whether `a + b` may print `b` without parentheses: products bind tighter than the sum around them."""
    rhs = expr.rhs
    return (
        expr.kind == AffineBinaryOpKind.Add
        and isinstance(rhs, AffineBinaryOpExpr)
        and rhs.kind != AffineBinaryOpKind.Add
    )


def print_access(printer: Printer, buffer: SSAValue, access: AccessAttr, indices: Sequence[SSAValue]) -> None:
    """The inverse of `parse_access`."""
    printer.print_operand(buffer)
    offsets = access.map.data.results
    plain = all(step == 1 for step in access.steps())
    whole = access.shape() == tuple(cast(Buffer, buffer.type).get_shape())
    if plain and whole and all(isinstance(e, AffineConstantExpr) and e.value == 0 for e in offsets):
        return
    printer.print_string("[")
    printer.print_list(offsets, lambda e: print_expression(printer, e, indices))
    printer.print_string(f"] {list(access.shape())}")
    if not plain:
        printer.print_string(f" {list(access.steps())}")
