"""Ops of the `pipe` dialect: programs, stages, streams (value form) and rings (memory form)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from xdsl.dialects.builtin import (
    DenseArrayBase,
    IndexType,
    MemRefType,
    StringAttr,
    SymbolNameConstraint,
    UnitAttr,
    i64,
)
from xdsl.ir import Attribute, Block, Region, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import (
    IsolatedFromAbove,
    IsTerminator,
    NoTerminator,
    SymbolOpInterface,
)
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.core.access import integers, parse_defined
from neuron_mlir.dialects.core.memory import parse_body, print_label
from neuron_mlir.dialects.core.movement import SemaphoreType
from neuron_mlir.dialects.pipe.attributes import CertificateAttr as CertificateAttr
from neuron_mlir.dialects.pipe.attributes import RowsAttr as RowsAttr
from neuron_mlir.dialects.pipe.attributes import StreamType as StreamType
from neuron_mlir.dialects.pipe.ring import Canonical, numbers
from neuron_mlir.dialects.pipe.ring import RingOp as RingOp


@irdl_op_definition
class ProgramOp(IRDLOperation):
    """A network as stages joined by streams. Its attributes carry the certificate and the reason of the cut."""

    name = "pipe.program"
    sym_name = prop_def(SymbolNameConstraint())
    body = region_def("single_block")
    traits = traits_def(IsolatedFromAbove(), NoTerminator(), SymbolOpInterface())

    def __init__(self, name: str, body: Region | None = None, attributes: dict[str, Attribute] | None = None):
        super().__init__(
            properties={"sym_name": StringAttr(name)},
            attributes={} if attributes is None else attributes,
            regions=[Region(Block()) if body is None else body],
        )

    def stages(self) -> list[StageOp]:
        """The program's stages in order."""
        return [op for op in self.body.block.ops if isinstance(op, StageOp)]

    def verify_(self) -> None:
        seen: set[tuple[str, str]] = set()
        for op in self.body.block.ops:
            # In memory form an input has a ring for each stage that reads it.
            if isinstance(op, OutputOp) or (isinstance(op, InputOp) and op.ring is None):
                if (op.name, op.label.data) in seen:
                    raise VerifyException(f"has two of {op.name} with the name '{op.label.data}'")
                seen.add((op.name, op.label.data))

    @classmethod
    def parse(cls, parser: Parser) -> ProgramOp:
        name = parser.parse_symbol_name().data
        attributes = parser.parse_optional_attr_dict_with_keyword()
        return cls(name, parse_body(parser), {} if attributes is None else dict(attributes.data))

    def print(self, printer: Printer) -> None:
        printer.print_string(f" @{self.sym_name.data}")
        if self.attributes:
            printer.print_op_attributes(self.attributes, print_keyword=True)
        printer.print_string(" ")
        printer.print_region(self.body, print_empty_block=False)


@irdl_op_definition
class InputOp(IRDLOperation):
    """A graph input, by its ONNX name.

    Value form: makes a stream of tensors. Memory form: the host writes request `r` into slot `r mod depth` of
    `ring`, once `credit` allows it (`credit >= r + 1 - depth`), and signals `full`.

    ```mlir
    %x = pipe.input "data" : !pipe.stream<tensor<1x3xf32>>
    pipe.input "data" to %ring full %f credit %c
    ```
    """

    name = "pipe.input"
    label = prop_def(StringAttr)
    ring = opt_operand_def(MemRefType)
    full = opt_operand_def(SemaphoreType)
    credit = opt_operand_def(SemaphoreType)
    result = var_result_def(StreamType)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    def __init__(
        self,
        label: str,
        type: StreamType | None = None,
        ring: SSAValue | None = None,
        full: SSAValue | None = None,
        credit: SSAValue | None = None,
    ):
        super().__init__(
            operands=[ring, full, credit],
            properties={"label": StringAttr(label)},
            result_types=[[] if type is None else [type]],
        )

    def verify_(self) -> None:
        if (self.ring is None) != (len(self.result) == 1):
            raise VerifyException("needs either a stream result (value form) or a ring (memory form)")
        if (self.full is None) != (self.credit is None):
            raise VerifyException("full and credit come together")

    @classmethod
    def parse(cls, parser: Parser) -> InputOp:
        label = parser.parse_str_literal()
        if parser.parse_optional_punctuation(":") is not None:
            return cls(label, cast(StreamType, parser.parse_type()))
        parser.parse_keyword("to")
        return cls(label, None, *_parse_ring_end(parser))

    def print(self, printer: Printer) -> None:
        print_label(printer, self.label)
        if self.ring is None:
            printer.print_string(" : ")
            printer.print_attribute(self.result[0].type)
        else:
            printer.print_string(" to ")
            _print_ring_end(printer, self.ring, self.full, self.credit)


@irdl_op_definition
class OutputOp(IRDLOperation):
    """A graph output, by its ONNX name.

    Memory form: the host reads slot `r mod depth` of the ring once `full >= r + 1`, and signals `credit`.
    """

    name = "pipe.output"
    label = prop_def(StringAttr)
    source = operand_def(StreamType | MemRefType)
    full = opt_operand_def(SemaphoreType)
    credit = opt_operand_def(SemaphoreType)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    def __init__(self, label: str, source: SSAValue, full: SSAValue | None = None, credit: SSAValue | None = None):
        super().__init__(operands=[source, full, credit], properties={"label": StringAttr(label)})

    def verify_(self) -> None:
        if (self.full is None) != (self.credit is None):
            raise VerifyException("full and credit come together")

    @classmethod
    def parse(cls, parser: Parser) -> OutputOp:
        label = parser.parse_str_literal()
        if parser.parse_optional_punctuation(",") is not None:
            operand = parser.parse_unresolved_operand()
            parser.parse_punctuation(":")
            return cls(label, parser.resolve_operand(operand, parser.parse_type()))
        parser.parse_keyword("from")
        return cls(label, *_parse_ring_end(parser))

    def print(self, printer: Printer) -> None:
        print_label(printer, self.label)
        if isinstance(self.source.type, StreamType):
            printer.print_string(", ")
            printer.print_operand(self.source)
            printer.print_string(" : ")
            printer.print_attribute(self.source.type)
        else:
            printer.print_string(" from ")
            _print_ring_end(printer, self.source, self.full, self.credit)


def _parse_ring_end(parser: Parser) -> tuple[SSAValue, SSAValue | None, SSAValue | None]:
    ring = parse_defined(parser)
    full = parser.parse_operand(SemaphoreType()) if parser.parse_optional_keyword("full") else None
    credit = parser.parse_operand(SemaphoreType()) if parser.parse_optional_keyword("credit") else None
    return ring, full, credit


def _print_ring_end(printer: Printer, ring: SSAValue, full: SSAValue | None, credit: SSAValue | None) -> None:
    printer.print_operand(ring)
    for keyword, value in (("full", full), ("credit", credit)):
        if value is not None:
            printer.print_string(f" {keyword} ")
            printer.print_operand(value)


@irdl_op_definition
class StageOp(IRDLOperation):
    """Part of a network on its own core(s); isolated, so that stages can be read, checked and compiled one by one.

    Value form: block arguments are tensors of one request, `pipe.yield` hands on the results. Memory form: block
    arguments are rings and semaphores, the body declares buffers and holds one `pipe.load` (runs once) and one
    `pipe.run` (runs for every request).

    With several cores the stage is one of `replicas`: each core runs the same code, and they take the requests in turn.
    What the body declares, each has of its own; DRAM addresses in it are relative to `dram_base`, one for each replica.
    """

    name = "pipe.stage"
    sym_name = prop_def(SymbolNameConstraint())
    cores = prop_def(DenseArrayBase)
    replicas = opt_prop_def(UnitAttr)
    dram_base = opt_prop_def(DenseArrayBase)
    arguments = var_operand_def()
    results_ = var_result_def(StreamType)
    body = region_def("single_block")
    traits = traits_def(IsolatedFromAbove(), NoTerminator(), Canonical())

    def __init__(
        self,
        name: str,
        cores: Sequence[int],
        arguments: Sequence[SSAValue],
        body: Region,
        result_types: Sequence[Attribute] = (),
        replicas: bool = False,
        attributes: dict[str, Attribute] | None = None,
    ):
        super().__init__(
            operands=[arguments],
            properties={
                "sym_name": StringAttr(name),
                "cores": DenseArrayBase.from_list(i64, cores),
                "replicas": UnitAttr() if replicas else None,
            },
            attributes={} if attributes is None else attributes,
            regions=[body],
            result_types=[result_types],
        )

    def core_list(self) -> tuple[int, ...]:
        """Cores the stage runs on."""
        return integers(self.cores)

    @property
    def in_memory_form(self) -> bool:
        """Whether the body is code on buffers."""
        return any(isinstance(op, RunOp) for op in self.body.block.ops)

    def verify_(self) -> None:
        cores = self.core_list()
        if not cores:
            raise VerifyException("a stage needs at least one core")
        if len(set(cores)) < len(cores) or (len(cores) > 1 and self.replicas is None):
            raise VerifyException(f"cores {list(cores)}: a core for each replica, and `replicas` if there are several")
        if self.dram_base is not None and len(integers(self.dram_base)) != len(cores):
            raise VerifyException(f"dram_base has {len(integers(self.dram_base))} addresses for {len(cores)} cores")
        args = self.body.block.args
        if len(args) != len(self.arguments):
            raise VerifyException(f"{len(self.arguments)} operands, {len(args)} block arguments")
        for position, (operand, arg) in enumerate(zip(self.arguments, args, strict=True)):
            expected = operand.type.element if isinstance(operand.type, StreamType) else operand.type
            if arg.type != expected:
                raise VerifyException(f"block argument {position} is {arg.type}, its operand carries {expected}")
        if self.in_memory_form:
            loads = sum(isinstance(op, LoadOp) for op in self.body.block.ops)
            runs = sum(isinstance(op, RunOp) for op in self.body.block.ops)
            if loads != 1 or runs != 1 or self.results_:
                raise VerifyException(
                    f"memory form needs one pipe.load, one pipe.run and no results; has {loads} and {runs}"
                )
            run = next(op for op in self.body.block.ops if isinstance(op, RunOp))
            if run.replica is not None and self.replicas is None:
                raise VerifyException("pipe.run takes the number of the replica, and the stage is not replicated")
            return
        last = self.body.block.last_op
        if not isinstance(last, YieldOp):
            raise VerifyException("value form must end in pipe.yield")
        given = [StreamType(value.type) for value in last.operands]
        if given != [result.type for result in self.results_]:
            raise VerifyException(
                f"yields {', '.join(map(str, given))}; results are {', '.join(str(r.type) for r in self.results_)}"
            )

    @classmethod
    def parse(cls, parser: Parser) -> StageOp:
        name = parser.parse_symbol_name().data
        parser.parse_keyword("cores")
        cores = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
        replicas = parser.parse_optional_keyword("replicas") is not None
        dram_base: Sequence[int] | None = None
        if parser.parse_optional_keyword("dram"):
            dram_base = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
        arguments = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: parse_defined(parser))
        attributes = parser.parse_optional_attr_dict_with_keyword()
        body = parser.parse_region()
        results: list[Attribute] = []
        if parser.parse_optional_punctuation("->") is not None:
            results = list(parser.parse_comma_separated_list(parser.Delimiter.PAREN, parser.parse_type))
        given = {} if attributes is None else dict(attributes.data)
        stage = cls(name, cores, arguments, body, results, replicas, given)
        if dram_base is not None:
            stage.properties["dram_base"] = numbers(dram_base)
        return stage

    def print(self, printer: Printer) -> None:
        printer.print_string(f" @{self.sym_name.data} cores {list(self.core_list())}")
        if self.replicas is not None:
            printer.print_string(" replicas")
        if self.dram_base is not None:
            printer.print_string(f" dram {list(integers(self.dram_base))}")
        printer.print_string(" (")
        printer.print_list(self.arguments, printer.print_operand)
        printer.print_string(")")
        if self.attributes:
            printer.print_op_attributes(self.attributes, print_keyword=True)
        printer.print_string(" ")
        printer.print_region(self.body, print_empty_block=False)
        if self.results_:
            printer.print_string(" -> (")
            printer.print_list([result.type for result in self.results_], printer.print_attribute)
            printer.print_string(")")


@irdl_op_definition
class YieldOp(IRDLOperation):
    """Hands the results of one request to the streams of its stage."""

    name = "pipe.yield"
    values = var_operand_def()
    assembly_format = "($values^ `:` type($values))? attr-dict"
    traits = traits_def(IsTerminator())

    def __init__(self, values: Sequence[SSAValue]):
        super().__init__(operands=[values])


@irdl_op_definition
class LoadOp(IRDLOperation):
    """What a stage does once, before the first request: weights to SBUF, constants and borders set."""

    name = "pipe.load"
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(self, body: Region | None = None):
        super().__init__(regions=[Region(Block()) if body is None else body])

    @classmethod
    def parse(cls, parser: Parser) -> LoadOp:
        return cls(parse_body(parser))

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_region(self.body, print_empty_block=False)


@irdl_op_definition
class RunOp(IRDLOperation):
    """What a stage does for each request; the block argument is the request number, from 0.

    In a stage of `n` replicas it is the turn `q`, and a second argument is the number `i` of the replica: what runs is
    request `n * q + i`.

    ```mlir
    pipe.run (%r) { }
    pipe.run (%q, %i) { }
    ```
    """

    name = "pipe.run"
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(self, body: Region | None = None, replicas: bool = False):
        arguments = [IndexType()] * (2 if replicas else 1)
        super().__init__(regions=[Region(Block(arg_types=arguments)) if body is None else body])

    @property
    def request(self) -> SSAValue:
        """The request number; the turn of a replica."""
        return self.body.block.args[0]

    @property
    def replica(self) -> SSAValue | None:
        """The number of the replica, if the body has it."""
        args = self.body.block.args
        return args[1] if len(args) > 1 else None

    def verify_(self) -> None:
        types = [arg.type for arg in self.body.block.args]
        if types not in ([IndexType()], [IndexType()] * 2):
            raise VerifyException(
                "takes one block argument, the request number, of type index; a replica also its own number"
            )

    @classmethod
    def parse(cls, parser: Parser) -> RunOp:
        arguments = parser.parse_comma_separated_list(
            parser.Delimiter.PAREN, lambda: parser.parse_argument(expect_type=False).resolve(IndexType())
        )
        return cls(parser.parse_region(arguments))

    def print(self, printer: Printer) -> None:
        printer.print_string(" (")
        printer.print_list(self.body.block.args, printer.print_ssa_value)
        printer.print_string(") ")
        printer.print_region(self.body, print_entry_block_args=False, print_empty_block=False)
