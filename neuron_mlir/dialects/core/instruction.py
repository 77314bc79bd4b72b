"""What all instructions of a NeuronCore share: accesses with roles, index operands, and a text form that shows both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self, cast

from xdsl.dialects.builtin import ArrayAttr, FloatAttr, IndexType, MemRefType, StringAttr, f64
from xdsl.ir import Attribute
from xdsl.irdl import AttrSizedOperandSegments, IRDLOperation, prop_def, var_operand_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.core.access import (
    Access,
    AccessAttr,
    join_indices,
    parse_access,
    print_access,
    verify_access,
)
from neuron_mlir.dialects.core.memory import Buffer, DramAttr, PsumAttr, SbufAttr, space_name, verify_buffer

Space = Literal["sbuf", "psum", "dram"]
QUADRANT = 32
"""Engines address partitions in quadrants of 32 (public guide of NeuronCore-v2; assumed for v1)."""


def free_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The free dimensions (all but the first) without those of size 1: what two operands of an instruction must
    agree on.
    """
    return tuple(size for size in shape[1:] if size != 1)


def squeeze(shape: Sequence[int]) -> tuple[int, ...]:
    """The dimensions that are not 1."""
    return tuple(size for size in shape if size != 1)


class Instruction(IRDLOperation):
    """Base of all instructions. `ROLES` are the accesses every instance has, in order; `OPTIONAL` those named by a
    keyword in the text; the first `WRITES` accesses are written, the others read; `SPACES` limits where an access
    may point.
    """

    buffers = var_operand_def(MemRefType)
    indices = var_operand_def(IndexType)
    accesses = prop_def(ArrayAttr[AccessAttr])
    roles = prop_def(ArrayAttr[StringAttr])

    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    ROLES: ClassVar[tuple[str, ...]] = ()
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    WRITES: ClassVar[int] = 1
    ENGINES: ClassVar[tuple[str, ...]] = ()
    SPACES: ClassVar[dict[str, tuple[Space, ...]]] = {}

    def _setup(
        self,
        accesses: Sequence[Access],
        optional: dict[str, Access] | None = None,
        properties: dict[str, Attribute | None] | None = None,
    ) -> None:
        """Build the op from accesses in the order of `ROLES`, then the optional ones that are present."""
        optional = {} if optional is None else optional
        every = [*accesses, *optional.values()]
        attributes, indices = join_indices(every)
        IRDLOperation.__init__(
            self,
            operands=[[access.buffer for access in every], indices],
            properties={
                "accesses": ArrayAttr(attributes),
                "roles": ArrayAttr([StringAttr(role) for role in (*self.ROLES, *optional)]),
                **({} if properties is None else properties),
            },
        )

    def role_names(self) -> tuple[str, ...]:
        """Role of each access, in order."""
        return tuple(role.data for role in self.roles)

    def operand_access(self, position: int) -> Access:
        """The access at `position`, with its buffer and the instruction's indices."""
        attribute = self.accesses.data[position]
        return Access(
            self.buffers[position],
            attribute.map.data.results,
            attribute.shape(),
            attribute.steps(),
            tuple(self.indices),
        )

    def access(self, role: str) -> Access | None:
        """The access of that role, or None when the instruction has none."""
        names = self.role_names()
        return self.operand_access(names.index(role)) if role in names else None

    def shape_of(self, role: str) -> tuple[int, ...]:
        """Sizes of the access of that role."""
        return self.accesses.data[self.role_names().index(role)].shape()

    @property
    def engine(self) -> str:
        """The engine that runs it; where several can, the first of `ENGINES` unless the op says otherwise."""
        return self.ENGINES[0]

    def verify_(self) -> None:
        names = self.role_names()
        if names[: len(self.ROLES)] != self.ROLES or any(n not in self.OPTIONAL for n in names[len(self.ROLES) :]):
            raise VerifyException(f"needs accesses {', '.join(self.ROLES)}, got {', '.join(names)}")
        if not len(names) == len(self.accesses.data) == len(self.buffers):
            raise VerifyException(
                f"{len(names)} roles, {len(self.accesses.data)} accesses and {len(self.buffers)} buffers must be as "
                "many"
            )
        for role, buffer, access in zip(names, self.buffers, self.accesses, strict=True):
            type = cast(Buffer, buffer.type)
            space = type.memory_space
            if not isinstance(space, (SbufAttr, PsumAttr, DramAttr)):
                raise VerifyException(f"{role} needs a buffer in #core.sbuf, #core.psum or #core.dram, got {type}")
            allowed = self.SPACES.get(role, ("sbuf", "psum"))
            if space_name(space) not in allowed:
                raise VerifyException(f"{role} must be in {' or '.join(allowed)}, got {space_name(space)}")
            verify_buffer(type)
            verify_access(access, type, len(self.indices))
            if "dram" not in allowed:
                _verify_quadrant(role, access)
        self.verify_shapes()

    def verify_shapes(self) -> None:
        """Raise `VerifyException` unless the shapes of the accesses fit each other. Elementwise by default."""
        first = self.accesses.data[0].shape()
        for role, access in zip(self.role_names()[1:], self.accesses.data[1:], strict=True):
            shape = access.shape()
            if role in PER_PARTITION:
                if shape[0] != first[0] or free_shape(shape):
                    raise VerifyException(
                        f"{role} needs one element in each of {first[0]} partitions, got {list(shape)}"
                    )
            elif shape[0] != first[0] or free_shape(shape) != free_shape(first):
                raise VerifyException(
                    f"{role} {list(shape)} does not match {self.role_names()[0]} {list(first)}: partitions and free "
                    "sizes must be equal"
                )

    # Text form: `core.op <head> access, access[, ...] [keyword access ...] <tail>`.

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        op = cls.__new__(cls)
        properties = cls.parse_head(parser)
        accesses: list[Access] = []
        for position in range(len(cls.ROLES)):
            if position:
                parser.parse_punctuation(",")
            accesses.append(parse_access(parser))
        optional: dict[str, Access] = {}
        for role in cls.OPTIONAL:
            if parser.parse_optional_keyword(role):
                optional[role] = parse_access(parser)
        properties.update(cls.parse_tail(parser, accesses))
        op._setup(accesses, optional, properties)
        return op

    def print(self, printer: Printer) -> None:
        self.print_head(printer)
        indices = tuple(self.indices)
        for position, (role, buffer, access) in enumerate(
            zip(self.role_names(), self.buffers, self.accesses, strict=True)
        ):
            if position >= len(self.ROLES):
                printer.print_string(f" {role} ")
            else:
                printer.print_string(" " if position == 0 else ", ")
            print_access(printer, buffer, access, indices)
        self.print_tail(printer)

    @classmethod
    def parse_head(cls, parser: Parser) -> dict[str, Attribute | None]:
        """Properties written before the accesses."""
        return {}

    @classmethod
    def parse_tail(cls, parser: Parser, accesses: list[Access]) -> dict[str, Attribute | None]:
        """Properties written after the accesses."""
        return {}

    def print_head(self, printer: Printer) -> None:
        """The inverse of `parse_head`."""

    def print_tail(self, printer: Printer) -> None:
        """The inverse of `parse_tail`."""


PER_PARTITION = ("scale", "bias", "operand0", "operand1")
"""Roles that are one element in each partition: a column applied to the whole row."""


def _verify_quadrant(role: str, access: AccessAttr) -> None:
    from xdsl.ir.affine import AffineConstantExpr

    start = access.map.data.results[0]
    size, step = access.shape()[0], access.steps()[0]
    if not isinstance(start, AffineConstantExpr):
        return  # the simulator checks each address it computes
    if start.value % QUADRANT or (step != 1 and size != 1):
        raise VerifyException(
            f"{role} starts at partition {start.value} with stride {step}: an engine starts at partition 0, 32, 64 or "
            "96 and takes neighbouring ones; move the data by DMA or a transpose"
        )


def float_property(value: float | None) -> FloatAttr | None:
    """A number as an attribute."""
    return None if value is None else FloatAttr(float(value), f64)


def parse_number(parser: Parser) -> float:
    """A number, `inf` or `nan`, with or without a sign."""
    number = parse_optional_number(parser)
    if number is None:
        parser.raise_error("needs a number")
    return number


def parse_optional_number(parser: Parser) -> float | None:
    """A number, `inf` or `nan`, with or without a sign; None if there is none."""
    for word in ("inf", "nan"):
        if parser.parse_optional_keyword(word):
            return float(word)
    if parser.parse_optional_punctuation("-"):
        return -parse_number(parser)
    number = parser.parse_optional_number()
    return None if number is None else float(number)


def number_text(value: float) -> str:
    """Shortest text that reads back as the same float; always has a point or an exponent."""
    text = repr(float(value))
    return text if "." in text or "inf" in text or "nan" in text else text.replace("e", ".0e")
