"""Memory spaces of a NeuronCore and the ops that name storage in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import ClassVar, cast

from xdsl.dialects.builtin import IntegerAttr, MemRefType, StringAttr, i64
from xdsl.ir import Attribute, Block, ParametrizedAttribute, Region
from xdsl.irdl import (
    IRDLOperation,
    irdl_attr_definition,
    irdl_op_definition,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
)
from xdsl.parser import Parser
from xdsl.pattern_rewriter import RewritePattern
from xdsl.printer import Printer
from xdsl.traits import HasCanonicalizationPatternsTrait, IsolatedFromAbove, NoTerminator
from xdsl.utils.exceptions import VerifyException

ELEMENT_BYTES: dict[str, int] = {
    "f32": 4,
    "bf16": 2,
    "f16": 2,
    "f64": 8,
    "i64": 8,
    "i32": 4,
    "i16": 2,
    "i8": 1,
    "ui8": 1,
    "i1": 1,
}
"""Bytes an element of each type takes in SBUF, PSUM and DRAM."""


@irdl_attr_definition
class SbufAttr(ParametrizedAttribute):
    """The state buffer: 128 partitions, partition dimension first."""

    name = "core.sbuf"


@irdl_attr_definition
class PsumAttr(ParametrizedAttribute):
    """The partial-sum buffer: 64 partitions of 8 banks, partition dimension first; the tensor engine writes only
    here.
    """

    name = "core.psum"


@irdl_attr_definition
class DramAttr(ParametrizedAttribute):
    """The chip's DRAM: linear, row-major."""

    name = "core.dram"


SBUF, PSUM, DRAM = SbufAttr(), PsumAttr(), DramAttr()
Buffer = MemRefType[Attribute]


def buffer_type(shape: Sequence[int], element: Attribute, space: Attribute) -> Buffer:
    """The memref type of a buffer; `space` is `SBUF`, `PSUM` or `DRAM`."""
    return MemRefType(element, shape, memory_space=space)


def space_name(space: Attribute) -> str:
    """`sbuf`, `psum` or `dram`."""
    return space.name.removeprefix("core.") if isinstance(space, (SbufAttr, PsumAttr, DramAttr)) else str(space)


@cache
def element_bytes(element: Attribute) -> int:
    """Bytes of one element of the given type. Raises `VerifyException` for a type the machine does not store."""
    size = ELEMENT_BYTES.get(str(element))
    if size is None:
        raise VerifyException(f"no storage format for element type {element}; allowed: {', '.join(ELEMENT_BYTES)}")
    return size


def buffer_bytes(type: Buffer) -> int:
    """Bytes the buffer takes: per partition in SBUF and PSUM (the partition dimension is not counted), in all in
    DRAM.
    """
    shape = type.get_shape()
    if not isinstance(type.memory_space, DramAttr):
        shape = shape[1:]
    total = element_bytes(type.element_type)
    for size in shape:
        total *= size
    return total


def verify_buffer(type: Buffer) -> None:
    """Raise `VerifyException` unless `type` is a static memref in one of the three spaces."""
    if not isinstance(type.memory_space, (SbufAttr, PsumAttr, DramAttr)):
        raise VerifyException(f"needs a memory space #core.sbuf, #core.psum or #core.dram, got {type}")
    if any(size < 1 for size in type.get_shape()):
        raise VerifyException(f"needs static, non-empty dimensions, got {type}")
    if type.get_num_dims() < (1 if isinstance(type.memory_space, DramAttr) else 2):
        raise VerifyException(f"needs a partition dimension and at least one more in {space_name(type.memory_space)}")
    element_bytes(type.element_type)


def print_label(printer: Printer, label: StringAttr) -> None:
    """A name in quotes, after a space."""
    printer.print_string(" ")
    printer.print_string_literal(label.data)


class ErasedWhenIdle(HasCanonicalizationPatternsTrait):
    """`canonicalize` drops the op where it does nothing; the pattern is loaded when a pass asks for it."""

    @classmethod
    def get_canonicalization_patterns(cls) -> tuple[RewritePattern, ...]:
        from neuron_mlir.dialects.core.canonicalize import EraseIdle

        return (EraseIdle(),)


@irdl_op_definition
class AllocOp(IRDLOperation):
    """Storage in a memory of the stage's core (SBUF, PSUM) or chip (DRAM).

    Without an address it is a fresh buffer each time it is reached (rung 1); with one it is the bytes from that
    address on, in every partition it covers (rungs 2 and 3). Addresses are bytes: per partition in SBUF and PSUM,
    of the chip's DRAM otherwise.

    ```mlir
    %acc = core.alloc "acc" at 2048 : memref<64x512xf32, #core.psum>
    ```
    """

    name = "core.alloc"
    label = prop_def(StringAttr)
    address = opt_prop_def(IntegerAttr)
    result = result_def(MemRefType)
    traits = traits_def(ErasedWhenIdle())

    def __init__(self, label: str, type: Buffer, address: int | None = None):
        super().__init__(
            properties={
                "label": StringAttr(label),
                "address": None if address is None else IntegerAttr(address, i64),
            },
            result_types=[type],
        )

    @property
    def type(self) -> Buffer:
        """The buffer's type."""
        return self.result.type

    def verify_(self) -> None:
        verify_buffer(self.type)
        if self.address is not None and self.address.value.data < 0:
            raise VerifyException(f"address must not be negative, got {self.address.value.data}")

    @classmethod
    def parse(cls, parser: Parser) -> AllocOp:
        label = parser.parse_str_literal()
        address = parser.parse_integer(allow_boolean=False) if parser.parse_optional_keyword("at") else None
        parser.parse_punctuation(":")
        return cls(label, cast(Buffer, parser.parse_type()), address)

    def print(self, printer: Printer) -> None:
        print_label(printer, self.label)
        if self.address is not None:
            printer.print_string(f" at {self.address.value.data}")
        printer.print_string(" : ")
        printer.print_attribute(self.type)


@irdl_op_definition
class ConstOp(IRDLOperation):
    """A constant in the chip's DRAM, written there once when the program is loaded.

    Its value is the region: `nn` ops over `nn.weight`, ending in `nn.yield`. The tensor yielded is stored row-major
    and has the buffer's number of elements; its shape may be a reshape of it.

    ```mlir
    %w = core.const "conv1.w" {
      %0 = nn.weight "conv1.w" : tensor<64x3xf32>
      %1 = nn.transpose %0 perm [1, 0] : (tensor<64x3xf32>) -> tensor<3x64xf32>
      nn.yield %1 : tensor<3x64xf32>
    } : memref<3x64xf32, #core.dram>
    ```
    """

    name = "core.const"
    label = prop_def(StringAttr)
    body = region_def("single_block")
    result = result_def(MemRefType)
    traits = traits_def(IsolatedFromAbove(), ErasedWhenIdle())

    def __init__(self, label: str, body: Region, type: Buffer):
        super().__init__(properties={"label": StringAttr(label)}, regions=[body], result_types=[type])

    @property
    def type(self) -> Buffer:
        """The buffer's type."""
        return self.result.type

    def verify_(self) -> None:
        verify_buffer(self.type)
        if not isinstance(self.type.memory_space, DramAttr):
            raise VerifyException("a constant lives in #core.dram")
        last = self.body.block.last_op
        if last is None or last.name != "nn.yield" or len(last.operands) != 1:
            raise VerifyException("its region must end in nn.yield of one tensor")
        value = cast(Buffer, last.operands[0].type)  # a tensor: the same two questions
        if value.element_type != self.type.element_type:
            raise VerifyException(f"yields elements of {value.element_type}, stores {self.type.element_type}")
        if prod(value.get_shape()) != prod(self.type.get_shape()):
            raise VerifyException(
                f"yields {prod(value.get_shape())} elements, the buffer has {prod(self.type.get_shape())}"
            )

    @classmethod
    def parse(cls, parser: Parser) -> ConstOp:
        label = parser.parse_str_literal()
        body = parser.parse_region()
        parser.parse_punctuation(":")
        return cls(label, body, cast(Buffer, parser.parse_type()))

    def print(self, printer: Printer) -> None:
        print_label(printer, self.label)
        printer.print_string(" ")
        printer.print_region(self.body, print_empty_block=False)
        printer.print_string(" : ")
        printer.print_attribute(self.type)


def parse_body(parser: Parser) -> Region:
    """A region of one block, which may be empty."""
    region = parser.parse_region()
    if not region.blocks:
        region.add_block(Block())
    return region


@irdl_op_definition
class EngineOp(IRDLOperation):
    """The instruction stream of one engine: `tensor`, `scalar`, `vector`, or a DMA queue `dma0`, `dma1`, ...

    Instructions start in the order written. Only `core.wait` and `core.signal` order one stream against another.
    """

    name = "core.engine"
    engine = prop_def(StringAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    COMPUTE: ClassVar[tuple[str, ...]] = ("tensor", "scalar", "vector")

    def __init__(self, engine: str, body: Region | None = None):
        super().__init__(
            properties={"engine": StringAttr(engine)},
            regions=[Region(Block()) if body is None else body],
        )

    def verify_(self) -> None:
        name = self.engine.data
        if name not in self.COMPUTE and not (name.startswith("dma") and name[3:].isdigit()):
            raise VerifyException(f"no engine {name!r}: allowed are {', '.join(self.COMPUTE)} and dma0, dma1, ...")

    @classmethod
    def parse(cls, parser: Parser) -> EngineOp:
        return cls(parser.parse_identifier(), parse_body(parser))

    def print(self, printer: Printer) -> None:
        printer.print_string(f" {self.engine.data} ")
        printer.print_region(self.body, print_empty_block=False)
