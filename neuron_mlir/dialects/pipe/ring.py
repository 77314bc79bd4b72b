"""`pipe.ring`: memory for a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from xdsl.dialects.builtin import (
    DenseArrayBase,
    IntegerAttr,
    MemRefType,
    StringAttr,
    i64,
)
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.parser import Parser
from xdsl.pattern_rewriter import RewritePattern
from xdsl.printer import Printer
from xdsl.traits import (
    HasCanonicalizationPatternsTrait,
)
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.core.access import integers
from neuron_mlir.dialects.core.memory import Buffer, DramAttr, SbufAttr, print_label, verify_buffer


class Canonical(HasCanonicalizationPatternsTrait):
    """The op has rewrites in `canonicalize`, loaded when a pass asks for them."""

    @classmethod
    def get_canonicalization_patterns(cls) -> tuple[RewritePattern, ...]:
        from neuron_mlir.dialects.pipe.canonicalize import EraseUnusedRing, NarrowStage

        return (EraseUnusedRing(), NarrowStage())


@irdl_op_definition
class RingOp(IRDLOperation):
    """Memory for a stream: `depth` slots, in the SBUF of a core or the DRAM of a chip; request `r` uses slot `r mod
    depth`.

    The slot dimension is the first in DRAM and the second, after the partitions, in SBUF. A ring between replicas has
    several *lanes*, each a memory of that type in its own place: lane `f` of `g` takes the requests `f`, `f + g`, .. in
    turn, and the replicas whose numbers are `f` modulo `g` use it.

    With `chunks`, a request is handed over in so many parts, one slot for each: part `c` of request `r` has slot
    `(r * chunks + c) mod depth`, and accesses are written so. Writer and reader go through the parts in order. The
    depth holds once there are semaphores that make the writer wait; in sequential code, where the writer has done a
    whole request before the reader begins, there are as many slots as that takes, whatever depth is written.

    ```mlir
    %h = pipe.ring "h" depth 2 on core 1 at 0 : memref<128x2x512xbf16, #core.sbuf>
    %x = pipe.ring "x" depth 2 on chip 0 : memref<2x128x512xf32, #core.dram>
    %y = pipe.ring "y" depth 2 on chips [0, 1] at [64, 0] : memref<2x128x512xf32, #core.dram>
    %z = pipe.ring "z" depth 6 chunks 45 on core 2 : memref<128x6x1x1x2x90xbf16, #core.sbuf>
    ```
    """

    name = "pipe.ring"
    label = prop_def(StringAttr)
    depth = prop_def(IntegerAttr)
    places = prop_def(DenseArrayBase)
    addresses = opt_prop_def(DenseArrayBase)
    chunks = opt_prop_def(IntegerAttr)
    result = result_def(MemRefType)
    traits = traits_def(Canonical())

    def __init__(
        self,
        label: str,
        depth: int,
        places: int | Sequence[int],
        type: Buffer,
        addresses: int | Sequence[int] | None = None,
        chunks: int = 1,
    ):
        super().__init__(
            properties={
                "label": StringAttr(label),
                "depth": IntegerAttr(depth, i64),
                "places": numbers(places),
                "addresses": None if addresses is None else numbers(addresses),
                "chunks": None if chunks == 1 else IntegerAttr(chunks, i64),
            },
            result_types=[type],
        )

    @property
    def type(self) -> Buffer:
        """Type of a lane, slots included."""
        return self.result.type

    @property
    def lanes(self) -> int:
        """How many memories it stands for."""
        return len(self.place_list())

    def place_list(self) -> tuple[int, ...]:
        """The core or chip of each lane."""
        return integers(self.places)

    def address_list(self) -> tuple[int, ...] | None:
        """The address of each lane; None before allocation."""
        return None if self.addresses is None else integers(self.addresses)

    @property
    def parts(self) -> int:
        """In how many slots a request is handed over."""
        return 1 if self.chunks is None else self.chunks.value.data

    @property
    def slot_axis(self) -> int:
        """Which dimension counts the slots."""
        return 0 if isinstance(self.type.memory_space, DramAttr) else 1

    def verify_(self) -> None:
        verify_buffer(self.type)
        if not isinstance(self.type.memory_space, (DramAttr, SbufAttr)):
            raise VerifyException("a ring lives in #core.sbuf or #core.dram")
        slots = self.type.get_shape()[self.slot_axis]
        if slots != self.depth.value.data:
            raise VerifyException(
                f"depth is {self.depth.value.data}, dimension {self.slot_axis} of {self.type} is {slots}"
            )
        if self.parts < 1 or (self.chunks is not None and self.slot_axis == 0):
            raise VerifyException("a request is at least one chunk; chunks are for rings in #core.sbuf")
        addresses = self.address_list()
        if not self.lanes or (addresses is not None and len(addresses) != self.lanes):
            raise VerifyException("needs a place for each lane, and an address for each place or for none")

    @classmethod
    def parse(cls, parser: Parser) -> RingOp:
        label = parser.parse_str_literal()
        parser.parse_keyword("depth")
        depth = parser.parse_integer()
        chunks = parser.parse_integer() if parser.parse_optional_keyword("chunks") else 1
        parser.parse_keyword("on")
        several = parser.parse_optional_keyword("cores") or parser.parse_optional_keyword("chips")
        if several is None and not parser.parse_optional_keyword("core"):
            parser.parse_keyword("chip")

        def given() -> list[int]:
            if several is None:
                return [parser.parse_integer()]
            return parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)

        places = given()
        addresses = given() if parser.parse_optional_keyword("at") else None
        parser.parse_punctuation(":")
        return cls(label, depth, places, cast(Buffer, parser.parse_type()), addresses, chunks)

    def print(self, printer: Printer) -> None:
        where = "chip" if isinstance(self.type.memory_space, DramAttr) else "core"
        places, addresses = self.place_list(), self.address_list()
        several = len(places) != 1
        print_label(printer, self.label)
        chunks = "" if self.chunks is None else f" chunks {self.parts}"
        printer.print_string(f" depth {self.depth.value.data}{chunks} on {where}{'s' if several else ''} ")
        printer.print_string(str(list(places) if several else places[0]))
        if addresses is not None:
            printer.print_string(f" at {list(addresses) if several else addresses[0]}")
        printer.print_string(" : ")
        printer.print_attribute(self.type)


def numbers(values: int | Sequence[int]) -> DenseArrayBase:
    """An array of one or more integers."""
    return DenseArrayBase.from_list(i64, (values,) if isinstance(values, int) else values)
