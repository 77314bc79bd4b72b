"""Constants: weights by name, and expressions over them. Bytes stay out of the IR."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

from xdsl.dialects.builtin import DenseArrayBase, IntAttr, IntegerType, StringAttr, TensorType, f64, i64
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
from xdsl.irdl.declarative_assembly_format import (
    AttributeVariable,
    CustomDirective,
    ParsingState,
    PrintingState,
    irdl_custom_directive,
)
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.traits import IsolatedFromAbove, Pure
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import (
    Simplifies,
    Tensor,
    check_tensor,
    check_tensors,
    number_text,
    parse_number,
    shape_text,
)
from neuron_mlir.dialects.nn.structure import FusedOp, YieldOp, verify_yield


@irdl_attr_definition
class SeededAttr(ParametrizedAttribute):
    """`seeded<7>`: pseudo-random values that follow from the seed, 0 or more, and the type alone."""

    name = "nn.seeded"

    seed: IntAttr

    @classmethod
    def get(cls, seed: int) -> SeededAttr:
        """The attribute for a seed."""
        return cls(IntAttr(seed))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            seed = parser.parse_integer(allow_boolean=False)
            if seed < 0:
                parser.raise_error("needs a seed of 0 or more")
            return (IntAttr(seed),)

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(str(self.seed.data))


class NumbersAttr(ParametrizedAttribute):
    """Numbers written in the IR: i64 for tensors of integers and i1, f64 for floats."""

    values: DenseArrayBase

    @property
    def numbers(self) -> tuple[int, ...] | tuple[float, ...]:
        """The numbers, in row-major order."""
        return cast("tuple[float, ...]", tuple(cast("DenseArrayBase[Any]", self.values).iter_values()))

    @staticmethod
    def pack(numbers: Iterable[float]) -> DenseArrayBase:
        """Integers as i64 when all are, else f64."""
        listed = list(numbers)
        if all(isinstance(number, int) for number in listed):
            return DenseArrayBase.from_list(i64, [int(number) for number in listed])
        return DenseArrayBase.from_list(f64, [float(number) for number in listed])


@irdl_attr_definition
class SplatAttr(NumbersAttr):
    """`splat<0.5>`: every element is this number."""

    name = "nn.splat"

    @classmethod
    def get(cls, number: float) -> SplatAttr:
        """The attribute for a number."""
        return cls.new((NumbersAttr.pack([number]),))

    @property
    def number(self) -> float:
        """The number."""
        return self.numbers[0]

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            return (NumbersAttr.pack([parse_number(parser)]),)

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(number_text(self.number))


@irdl_attr_definition
class DenseAttr(NumbersAttr):
    """`dense<[1.0, 2.0]>`: a short list of elements in row-major order; nested lists parse, a flat one prints."""

    name = "nn.dense"

    @classmethod
    def get(cls, numbers: Iterable[float]) -> DenseAttr:
        """The attribute for a list of numbers, row-major."""
        return cls.new((NumbersAttr.pack(numbers),))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            return (NumbersAttr.pack(_parse_list(parser)[0]),)

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets(), printer.in_square_brackets():
            printer.print_string(", ".join(number_text(number) for number in self.numbers))


def _parse_list(parser: AttrParser) -> tuple[list[float], tuple[int, ...]]:
    """A possibly nested list as its numbers and shape; ragged nesting is an error."""

    def item() -> tuple[list[float], tuple[int, ...]]:
        opened = parser.pos
        inner = parser.parse_optional_comma_separated_list(parser.Delimiter.SQUARE, item)
        if inner is None:
            return [parse_number(parser)], ()
        shapes = {shape for _, shape in inner}
        if len(shapes) > 1:
            parser.raise_error("needs nested lists of one shape", opened, parser.pos)
        return [number for numbers, _ in inner for number in numbers], (len(inner), *(shapes.pop() if shapes else ()))

    return item()


SOURCES: dict[str, type[SeededAttr | SplatAttr | DenseAttr]] = {
    "seeded": SeededAttr,
    "splat": SplatAttr,
    "dense": DenseAttr,
}


@irdl_custom_directive
class WeightSource(CustomDirective):
    """`seeded<..>`, `splat<..>`, `dense<..>` or nothing."""

    source: AttributeVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        for word, attribute in SOURCES.items():
            if parser.parse_optional_keyword(word):
                self.source.set(state, attribute.new(attribute.parse_parameters(parser)))
                return

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        attribute = self.source.get(op)
        if attribute is None:
            return
        assert isinstance(attribute, (SeededAttr, SplatAttr, DenseAttr))
        state.print_whitespace(printer)
        printer.print_string(attribute.name.removeprefix("nn."))
        attribute.print_parameters(printer)
        state.should_emit_space = True
        state.last_was_punctuation = False


@irdl_op_definition
class WeightOp(IRDLOperation):
    """A trained constant: a name, a type, and where its value comes from.

    Without a source the value is read from the weight store of the module by its name, and the optional digest says
    which bytes are meant. With one it follows from the text: `seeded<7>` (pseudo-random), `splat<0.5>` or `dense<[..]>`
    (a short list).
    """

    name = "nn.weight"

    weight_name = prop_def(StringAttr, prop_name="sym")
    source = opt_prop_def(Attribute)
    digest_attr = opt_prop_def(StringAttr, prop_name="digest")
    result = result_def(TensorType)

    traits = traits_def(Pure())

    custom_directives = (WeightSource,)
    assembly_format = "$sym custom<WeightSource>($source) (`digest` $digest^)? attr-dict `:` type($result)"

    def __init__(
        self,
        name: str,
        result_type: Tensor,
        source: SeededAttr | SplatAttr | DenseAttr | None = None,
        digest: str | None = None,
    ):
        super().__init__(
            result_types=[result_type],
            properties={
                "sym": StringAttr(name),
                "source": source,
                "digest": None if digest is None else StringAttr(digest),
            },
        )

    @property
    def key(self) -> str:
        """The name in the weight store."""
        return self.weight_name.data

    @property
    def digest(self) -> str | None:
        """The digest of its bytes, if recorded."""
        return None if self.digest_attr is None else self.digest_attr.data

    @property
    def type(self) -> Tensor:
        """Its type."""
        return self.result.type

    def verify_(self) -> None:
        check_tensors(self)
        source = self.source
        if source is None:
            return
        if not isinstance(source, (SeededAttr, SplatAttr, DenseAttr)):
            raise VerifyException(f"{self.name} needs a source of seeded, splat or dense, got {source}")
        if isinstance(source, SeededAttr):
            return
        if isinstance(self.type.element_type, IntegerType) and source.values.elt_type != i64:
            raise VerifyException(f"{self.name} needs whole numbers for elements of {self.type.element_type}")
        count = math.prod(self.type.get_shape())
        if isinstance(source, DenseAttr) and len(source.numbers) != count:
            raise VerifyException(
                f"{self.name} needs {count} numbers for {shape_text(self.type.get_shape())}, got {len(source.numbers)}"
            )


@irdl_op_definition
class ConstOp(IRDLOperation):
    """A constant derived from weights: a region of `nn` ops over `nn.weight`s, without operands.

    Its value is computed once, when an artifact is packaged or a level is run; passes only write the expression.
    """

    name = "nn.const"

    body = region_def("single_block")
    result = result_def(TensorType)

    traits = traits_def(Pure(), IsolatedFromAbove(), Simplifies())

    assembly_format = "$body `:` type($result) attr-dict"

    def __init__(self, body: Region | Block, result_type: Tensor | None = None):
        region = body if isinstance(body, Region) else Region(body)
        if result_type is None:
            last = region.block.last_op
            assert isinstance(last, YieldOp) and len(last.values) == 1
            result_type = cast(Tensor, last.values[0].type)
        super().__init__(regions=[region], result_types=[result_type])

    @property
    def type(self) -> Tensor:
        """Its type."""
        return self.result.type

    def verify_(self) -> None:
        check_tensor(self.name, self.result.type)
        if self.body.block.args:
            raise VerifyException(f"{self.name} needs a region without arguments, got {len(self.body.block.args)}")
        verify_yield(self)
        for op in self.body.block.ops:
            if not op.name.startswith("nn.") or isinstance(op, (FusedOp, ConstOp)):
                raise VerifyException(f"{self.name} needs only nn ops over nn.weight inside, got {op.name}")
