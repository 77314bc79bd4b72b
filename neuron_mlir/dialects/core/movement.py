"""DMA instructions and the semaphores that order streams."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import ClassVar, cast

from xdsl.dialects.builtin import AffineMapAttr, DenseArrayBase, IndexType, IntegerAttr, StringAttr, i64
from xdsl.ir import Attribute, ParametrizedAttribute, SSAValue, TypeAttribute
from xdsl.ir.affine import AffineMap
from xdsl.irdl import (
    IRDLOperation,
    irdl_attr_definition,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.core.access import (
    Access,
    Linear,
    integers,
    parse_access,
    parse_expression,
    print_access,
    print_expression,
)
from neuron_mlir.dialects.core.instruction import Instruction, Space, squeeze
from neuron_mlir.dialects.core.memory import Buffer, ErasedWhenIdle, print_label

EVERYWHERE: tuple[Space, ...] = ("sbuf", "dram")


@irdl_op_definition
class DmaOp(Instruction):
    """Copies `src` to `dst` between any two of DRAM and SBUF, of this core or (through a ring) another one.

    Element types are equal; shapes are equal once dimensions of size 1 are dropped. `permute` reorders the
    dimensions of `src` first (element by element: slow, as bursts are 64 bytes). A `src` stride of 0 broadcasts.

    ```mlir
    core.dma %x[0, %i * 8, 0] [3, 8, 224] -> %tile[0, 0, 0] [3, 8, 224]
    ```
    """

    name = "core.dma"
    permute = opt_prop_def(DenseArrayBase)
    queue = opt_prop_def(IntegerAttr)
    traits = traits_def(ErasedWhenIdle())
    ROLES: ClassVar[tuple[str, ...]] = ("dst", "src")
    ENGINES: ClassVar[tuple[str, ...]] = ("dma0",)
    SPACES: ClassVar[dict[str, tuple[Space, ...]]] = {"dst": EVERYWHERE, "src": EVERYWHERE}

    def __init__(self, src: Access, dst: Access, permute: Sequence[int] | None = None, queue: int | None = None):
        self._setup(
            [dst, src],
            None,
            {
                "permute": None if permute is None else DenseArrayBase.from_list(i64, permute),
                "queue": None if queue is None else IntegerAttr(queue, i64),
            },
        )

    @property
    def engine(self) -> str:
        return f"dma{0 if self.queue is None else self.queue.value.data}"

    def permutation(self) -> tuple[int, ...] | None:
        """Order in which the dimensions of `src` are taken, or None."""
        return None if self.permute is None else integers(self.permute)

    def verify_shapes(self) -> None:
        dst, src = (access.shape() for access in self.accesses)
        order = self.permutation()
        if order is not None:
            if sorted(order) != list(range(len(src))):
                raise VerifyException(f"permute must reorder the {len(src)} dimensions of src, got {list(order)}")
            src = tuple(src[axis] for axis in order)
        if squeeze(dst) != squeeze(src):
            raise VerifyException(f"src {list(src)} and dst {list(dst)} differ")
        types = [cast(Buffer, buffer.type).element_type for buffer in self.buffers]
        if types[0] != types[1]:
            raise VerifyException(f"a DMA does not convert: src is {types[1]}, dst is {types[0]}")

    @classmethod
    def parse(cls, parser: Parser) -> DmaOp:
        src = parse_access(parser)
        parser.parse_punctuation("->")
        dst = parse_access(parser)
        permute = None
        if parser.parse_optional_keyword("permute"):
            permute = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
        queue = parser.parse_integer() if parser.parse_optional_keyword("queue") else None
        return cls(src, dst, permute, queue)

    def print(self, printer: Printer) -> None:
        indices = tuple(self.indices)
        printer.print_string(" ")
        print_access(printer, self.buffers[1], self.accesses.data[1], indices)
        printer.print_string(" -> ")
        print_access(printer, self.buffers[0], self.accesses.data[0], indices)
        order = self.permutation()
        if order is not None:
            printer.print_string(f" permute {list(order)}")
        if self.queue is not None:
            printer.print_string(f" queue {self.queue.value.data}")


@irdl_op_definition
class GatherOp(Instruction):
    """Indirect DMA: row `i` of `dst` becomes row `index[i]` of `table`.

    `table` is `[rows, width]` in DRAM, `index` one integer per partition (`[n, 1]` in SBUF), `dst` is `[n, width]`
    in SBUF.
    """

    name = "core.gather"
    queue = opt_prop_def(IntegerAttr)
    ROLES: ClassVar[tuple[str, ...]] = ("dst", "table", "index")
    ENGINES: ClassVar[tuple[str, ...]] = ("dma0",)
    SPACES: ClassVar[dict[str, tuple[Space, ...]]] = {"dst": ("sbuf",), "table": ("dram",), "index": ("sbuf",)}

    def __init__(self, dst: Access, table: Access, index: Access, queue: int | None = None):
        self._setup([dst, table, index], None, {"queue": None if queue is None else IntegerAttr(queue, i64)})

    @property
    def engine(self) -> str:
        return f"dma{0 if self.queue is None else self.queue.value.data}"

    def verify_shapes(self) -> None:
        dst, table, index = (access.shape() for access in self.accesses)
        if squeeze(dst[1:]) != squeeze(table[1:]) or index[0] != dst[0] or squeeze(index[1:]):
            raise VerifyException(
                f"needs dst [n, width], table [rows, width], index [n, 1]; got {list(dst)}, {list(table)}, "
                f"{list(index)}"
            )
        if not str(cast(Buffer, self.buffers[2].type).element_type).startswith("i"):
            raise VerifyException("index must hold integers")

    @classmethod
    def parse_tail(cls, parser: Parser, accesses: list[Access]) -> dict[str, Attribute | None]:
        return {"queue": IntegerAttr(parser.parse_integer(), i64)} if parser.parse_optional_keyword("queue") else {}

    def print_tail(self, printer: Printer) -> None:
        if self.queue is not None:
            printer.print_string(f" queue {self.queue.value.data}")


@irdl_attr_definition
class SemaphoreType(ParametrizedAttribute, TypeAttribute):
    """A monotonic counter of one core; starts at 0."""

    name = "core.semaphore"


PARTNERS_MAX = 256
"""Replicas, or rings of the host, at either end of a semaphore: four times the cores of the largest instance."""


@irdl_op_definition
class SemaphoreOp(IRDLOperation):
    """A semaphore of a core. Exactly one stream signals it; streams of its own core wait for it.

    `on core N` places one declared outside a stage, without it the host waits; inside a stage it is the stage's core's.
    Between stages of several replicas it stands for several counters: one for each pair of a signaller (`by` so many)
    and a waiter (on each of the `cores`, or `on host` so many rings) whose numbers are equal modulo the greatest common
    divisor of both counts, as these have requests in common. A signal reaches all waiters of the replica that gives it.

    ```mlir
    %a = core.semaphore "a" on core 0
    %b = core.semaphore "b" on cores [1, 2] by 4
    %c = core.semaphore "c" on host 2 by 2
    ```
    """

    name = "core.semaphore"
    label = prop_def(StringAttr)
    cores = opt_prop_def(DenseArrayBase)
    waiters = opt_prop_def(IntegerAttr)
    signallers = opt_prop_def(IntegerAttr)
    result = result_def(SemaphoreType)
    traits = traits_def(ErasedWhenIdle())

    def __init__(self, label: str, cores: int | Sequence[int] | None = None, waiters: int = 1, signallers: int = 1):
        if isinstance(cores, int):
            cores = (cores,)
        super().__init__(
            properties={
                "label": StringAttr(label),
                "cores": None if cores is None else DenseArrayBase.from_list(i64, cores),
                "waiters": None if waiters == 1 or cores is not None else IntegerAttr(waiters, i64),
                "signallers": None if signallers == 1 else IntegerAttr(signallers, i64),
            },
            result_types=[SemaphoreType()],
        )

    @property
    def places(self) -> tuple[int | None, ...]:
        """The core of each waiter; None for the host, and for the core of the stage it is declared in."""
        if self.cores is not None:
            return integers(self.cores)
        return (None,) * (1 if self.waiters is None else self.waiters.value.data)

    @property
    def by(self) -> int:
        """How many replicas (or rings of the host) signal."""
        return 1 if self.signallers is None else self.signallers.value.data

    def counters(self) -> list[tuple[int, int]]:
        """Signaller and waiter of each counter it stands for."""
        waiters = len(self.places)
        step = gcd(self.by, waiters)
        return [(i, j) for i in range(self.by) for j in range(i % step, waiters, step)]

    def verify_(self) -> None:
        if max(self.by, 0 if self.waiters is None else self.waiters.value.data) > PARTNERS_MAX:
            raise VerifyException(f"has more than {PARTNERS_MAX} signallers or waiters")
        if self.by < 1 or not self.places:
            raise VerifyException("needs at least one signaller and one waiter")
        if self.cores is not None and self.waiters is not None:
            raise VerifyException("is on cores or on the host, not both")

    @classmethod
    def parse(cls, parser: Parser) -> SemaphoreOp:
        label = parser.parse_str_literal()
        cores: Sequence[int] | None = None
        waiters = 1
        if parser.parse_optional_keyword("on"):
            if parser.parse_optional_keyword("host"):
                waiters = parser.parse_integer()
            elif parser.parse_optional_keyword("cores"):
                cores = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
            else:
                parser.parse_keyword("core")
                cores = (parser.parse_integer(),)
        signallers = parser.parse_integer() if parser.parse_optional_keyword("by") else 1
        return cls(label, cores, waiters, signallers)

    def print(self, printer: Printer) -> None:
        print_label(printer, self.label)
        places = self.places
        if len(places) > 1:
            printer.print_string(f" on host {len(places)}" if self.cores is None else f" on cores {list(places)}")
        elif self.cores is not None:
            printer.print_string(f" on core {integers(self.cores)[0]}")
        if self.by != 1:
            printer.print_string(f" by {self.by}")


@irdl_op_definition
class WaitOp(IRDLOperation):
    """Blocks its stream until the semaphore has reached a value, affine in the request number and the loop indices.

    Where several replicas signal, `from n` waits for the counter of the `n`-th that has requests in common with the one
    that waits.

    ```mlir
    core.wait %loaded >= %r * 4 + %i + 1
    core.wait %full from 1 >= (%q - 1) floordiv 2 + 1
    ```
    """

    name = "core.wait"
    semaphore = operand_def(SemaphoreType)
    indices = var_operand_def(IndexType)
    value = prop_def(AffineMapAttr)
    signaller = opt_prop_def(IntegerAttr)
    traits = traits_def(ErasedWhenIdle())

    def __init__(
        self,
        semaphore: SSAValue,
        value: Linear | AffineMap | int,
        indices: Sequence[SSAValue] = (),
        signaller: int = 0,
    ):
        if not isinstance(value, AffineMap):
            found: list[SSAValue] = []
            expr = Linear.wrap(value).expression(found)
            value, indices = AffineMap(len(found), 0, (expr,)), found
        super().__init__(
            operands=[semaphore, indices],
            properties={
                "value": AffineMapAttr(value),
                "signaller": IntegerAttr(signaller, i64) if signaller else None,
            },
        )

    def verify_(self) -> None:
        affine = self.value.data
        if affine.num_dims != len(self.indices) or len(affine.results) != 1:
            raise VerifyException(f"needs one value over {len(self.indices)} indices, got {affine}")

    @classmethod
    def parse(cls, parser: Parser) -> WaitOp:
        semaphore = parser.parse_operand(SemaphoreType())
        signaller = parser.parse_integer() if parser.parse_optional_keyword("from") else 0
        parser.parse_punctuation(">")
        parser.parse_punctuation("=")
        indices: list[SSAValue] = []
        expr = parse_expression(parser, indices)
        return cls(semaphore, AffineMap(len(indices), 0, (expr,)), indices, signaller)

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_operand(self.semaphore)
        if self.signaller is not None:
            printer.print_string(f" from {self.signaller.value.data}")
        printer.print_string(" >= ")
        print_expression(printer, self.value.data.results[0], tuple(self.indices))


@irdl_op_definition
class SignalOp(IRDLOperation):
    """Adds 1 to the semaphore when everything issued before it on its stream has completed."""

    name = "core.signal"
    semaphore = operand_def(SemaphoreType)
    assembly_format = "$semaphore attr-dict"

    def __init__(self, semaphore: SSAValue):
        super().__init__(operands=[semaphore])
