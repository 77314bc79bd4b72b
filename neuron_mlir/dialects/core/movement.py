"""DMA instructions and the semaphores that order streams."""

from __future__ import annotations

from collections.abc import Sequence
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


@irdl_op_definition
class SemaphoreOp(IRDLOperation):
    """A semaphore of a core. Exactly one stream signals it; streams of its own core wait for it.

    `on core N` places one declared outside a stage; inside a stage it is the stage's core's.
    """

    name = "core.semaphore"
    label = prop_def(StringAttr)
    core = opt_prop_def(IntegerAttr)
    result = result_def(SemaphoreType)
    traits = traits_def(ErasedWhenIdle())

    def __init__(self, label: str, core: int | None = None):
        super().__init__(
            properties={"label": StringAttr(label), "core": None if core is None else IntegerAttr(core, i64)},
            result_types=[SemaphoreType()],
        )

    @classmethod
    def parse(cls, parser: Parser) -> SemaphoreOp:
        label = parser.parse_str_literal()
        core = None
        if parser.parse_optional_keyword("on"):
            parser.parse_keyword("core")
            core = parser.parse_integer()
        return cls(label, core)

    def print(self, printer: Printer) -> None:
        print_label(printer, self.label)
        if self.core is not None:
            printer.print_string(f" on core {self.core.value.data}")


@irdl_op_definition
class WaitOp(IRDLOperation):
    """Blocks its stream until the semaphore has reached a value, affine in the request number and the loop indices.

    ```mlir
    core.wait %loaded >= %r * 4 + %i + 1
    ```
    """

    name = "core.wait"
    semaphore = operand_def(SemaphoreType)
    indices = var_operand_def(IndexType)
    value = prop_def(AffineMapAttr)
    traits = traits_def(ErasedWhenIdle())

    def __init__(self, semaphore: SSAValue, value: Linear | AffineMap | int, indices: Sequence[SSAValue] = ()):
        if not isinstance(value, AffineMap):
            found: list[SSAValue] = []
            expr = Linear.wrap(value).expression(found)
            value, indices = AffineMap(len(found), 0, (expr,)), found
        super().__init__(operands=[semaphore, indices], properties={"value": AffineMapAttr(value)})

    def verify_(self) -> None:
        affine = self.value.data
        if affine.num_dims != len(self.indices) or len(affine.results) != 1:
            raise VerifyException(f"needs one value over {len(self.indices)} indices, got {affine}")

    @classmethod
    def parse(cls, parser: Parser) -> WaitOp:
        semaphore = parser.parse_operand(SemaphoreType())
        parser.parse_punctuation(">")
        parser.parse_punctuation("=")
        indices: list[SSAValue] = []
        expr = parse_expression(parser, indices)
        return cls(semaphore, AffineMap(len(indices), 0, (expr,)), indices)

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_operand(self.semaphore)
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
