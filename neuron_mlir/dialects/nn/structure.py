"""Ops that hold other ops: fused groups, and the terminator of regions."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import StringAttr, UnitAttr
from xdsl.ir import Attribute, Block, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    opt_prop_def,
    region_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.irdl.declarative_assembly_format import (
    AttributeVariable,
    CustomDirective,
    ParsingState,
    PrintingState,
    irdl_custom_directive,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import IsolatedFromAbove, IsTerminator, Pure
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import I64Array, Simplifies, Value, check_tensors, ints


@irdl_op_definition
class YieldOp(IRDLOperation):
    """Ends the region of `nn.fused` or `nn.const` and gives its results."""

    name = "nn.yield"

    values = var_operand_def()

    traits = traits_def(IsTerminator(), Pure())

    assembly_format = "($values^ `:` type($values))? attr-dict"

    def __init__(self, *values: Value):
        super().__init__(operands=[[SSAValue.get(value) for value in values]])


@irdl_custom_directive
class Kind(CustomDirective):
    """A string, or nothing. (As a plain attribute, the parenthesis behind it would be taken for a type.)"""

    kind: AttributeVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        kind = parser.parse_optional_str_literal()
        if kind is not None:
            self.kind.set(state, StringAttr(kind))

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        kind = self.kind.get(op)
        if not isinstance(kind, StringAttr):
            return
        state.print_whitespace(printer)
        printer.print_string_literal(kind.data)
        state.should_emit_space = True
        state.last_was_punctuation = False


@irdl_op_definition
class FusedOp(IRDLOperation):
    """A group of layers that runs as one: what is computed inside never leaves the core's SBUF and PSUM.

    The region sees its operands as block arguments, in order and with the same types, and nothing else; `nn.yield`
    gives the results. `kind` names the pattern (`conv`, `matmul`, `elementwise`) for people and for the lowering.

    A group with `tile [images, rows]` holds groups and layers on feature maps, and runs depth first: for so many images
    of the batch and so many rows of its tallest result at a time, one layer after the other; whole maps of inner values
    never exist. `recompute` computes rows under overlapping windows again instead of keeping them in line buffers.
    One of kind `attention` holds groups and layers, too: from the scores to the product with the values.
    """

    name = "nn.fused"

    inputs = var_operand_def()
    kind_attr = opt_prop_def(StringAttr, prop_name="kind")
    tile_attr = opt_prop_def(I64Array, prop_name="tile")
    recompute_attr = opt_prop_def(UnitAttr, prop_name="recompute")
    body = region_def("single_block")
    outputs = var_result_def()

    traits = traits_def(Pure(), IsolatedFromAbove(), Simplifies())

    custom_directives = (Kind,)
    assembly_format = (
        "custom<Kind>($kind) ` ` `(` $inputs `)` (`tile` $tile^)? (`recompute` $recompute^)? attr-dict-with-keyword "
        "$body `:` functional-type(operands, results)"
    )

    def __init__(
        self,
        inputs: Sequence[Value],
        result_types: Sequence[Attribute],
        body: Region | Block,
        kind: str | None = None,
        tile: Sequence[int] | None = None,
        recompute: bool = False,
    ):
        super().__init__(
            operands=[[SSAValue.get(value) for value in inputs]],
            result_types=[result_types],
            regions=[body if isinstance(body, Region) else Region(body)],
            properties={
                "kind": None if kind is None else StringAttr(kind),
                "tile": None if tile is None else ints(tile),
                "recompute": UnitAttr() if recompute else None,
            },
        )

    @property
    def kind(self) -> str | None:
        """The pattern's name."""
        return None if self.kind_attr is None else self.kind_attr.data

    @property
    def tile(self) -> tuple[int, int] | None:
        """Images and rows at a time of a group that runs depth first, else None."""
        if self.tile_attr is None:
            return None
        images, rows = self.tile_attr.iter_values()
        return images, rows

    @property
    def holds_groups(self) -> bool:
        """Whether groups may be inside: in one that runs depth first, and around attention."""
        return self.tile_attr is not None or self.kind == "attention"

    @property
    def recompute(self) -> bool:
        """Whether rows that overlapping windows share are computed anew in each step."""
        return self.recompute_attr is not None

    @property
    def yielded(self) -> tuple[SSAValue, ...]:
        """The values inside the region that are its results."""
        last = self.body.block.last_op
        assert isinstance(last, YieldOp)
        return tuple(last.values)

    def verify_(self) -> None:
        check_tensors(self)
        arguments = [argument.type for argument in self.body.block.args]
        operands = [operand.type for operand in self.inputs]
        if arguments != operands:
            raise VerifyException(
                f"{self.name} needs block arguments of its operands' types ({_types(operands)}), "
                f"got ({_types(arguments)})"
            )
        verify_yield(self)
        if self.tile_attr is not None and (len(self.tile_attr) != 2 or min(self.tile_attr.iter_values()) < 1):
            raise VerifyException(f"{self.name} needs tile [images, rows], both at least 1, got {self.tile_attr}")
        for op in self.body.block.ops:
            if not op.name.startswith("nn."):
                raise VerifyException(f"{self.name} needs only nn ops inside, got {op.name}")
            if isinstance(op, FusedOp) and (not self.holds_groups or op.holds_groups):
                raise VerifyException(
                    f'{self.name} holds other groups only with tile [..] or as "attention", and those hold none'
                )


def verify_yield(op: FusedOp | IRDLOperation) -> None:
    """The region's one block ends in `nn.yield` of values of the op's result types."""
    last = op.regions[0].block.last_op
    if not isinstance(last, YieldOp):
        raise VerifyException(f"{op.name} needs a region that ends in nn.yield, got {last.name if last else 'no op'}")
    yielded = [value.type for value in last.values]
    results = [result.type for result in op.results]
    if yielded != results:
        raise VerifyException(
            f"{op.name} needs nn.yield of its result types ({_types(results)}), got ({_types(yielded)})"
        )


def _types(types: Sequence[Attribute]) -> str:
    return ", ".join(str(found) for found in types)
