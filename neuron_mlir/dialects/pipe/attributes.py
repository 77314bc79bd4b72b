"""Attributes and types of the `pipe` dialect: streams, and what a search proved."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import (
    FloatAttr,
    IntAttr,
    StringAttr,
    f64,
)
from xdsl.ir import Attribute, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import (
    irdl_attr_definition,
    param_def,
)
from xdsl.parser import AttrParser
from xdsl.printer import Printer


@irdl_attr_definition
class StreamType(ParametrizedAttribute, TypeAttribute):
    """One value of the element type per request, in order of requests."""

    name = "pipe.stream"
    element: Attribute = param_def()


@irdl_attr_definition
class CertificateAttr(ParametrizedAttribute):
    """What a search proved: the objective it reached, a lower bound that nothing can beat, the unit of both, and
    the method.

    The relative gap is `(objective - lower_bound) / objective`.
    """

    name = "pipe.certificate"
    objective: FloatAttr
    lower_bound: FloatAttr
    unit: StringAttr
    method: StringAttr

    @staticmethod
    def of(objective: float, lower_bound: float, unit: str, method: str) -> CertificateAttr:
        """From plain values."""
        return CertificateAttr(
            FloatAttr(objective, f64), FloatAttr(lower_bound, f64), StringAttr(unit), StringAttr(method)
        )

    @property
    def gap(self) -> float:
        """Relative gap, 0 when proven optimal."""
        objective = self.objective.value.data
        return 0.0 if objective == 0 else (objective - self.lower_bound.value.data) / objective

    def to_json(self) -> dict[str, float | str]:
        """As plain values, the gap among them."""
        return {
            "objective": self.objective.value.data,
            "lower_bound": self.lower_bound.value.data,
            "gap": self.gap,
            "unit": self.unit.data,
            "method": self.method.data,
        }

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            objective = float(parser.parse_number())
            parser.parse_punctuation(",")
            bound = float(parser.parse_number())
            parser.parse_punctuation(",")
            unit = parser.parse_str_literal()
            parser.parse_punctuation(",")
            method = parser.parse_str_literal()
        return [FloatAttr(objective, f64), FloatAttr(bound, f64), StringAttr(unit), StringAttr(method)]

    def print_parameters(self, printer: Printer) -> None:
        values = ", ".join(_number(v.value.data) for v in (self.objective, self.lower_bound))
        printer.print_string(f"<{values}, ")
        printer.print_string_literal(self.unit.data)
        printer.print_string(", ")
        printer.print_string_literal(self.method.data)
        printer.print_string(">")


@irdl_attr_definition
class RowsAttr(ParametrizedAttribute):
    """How a stage takes a stream of feature maps by rows: its ring has `depth` slots, each of so many `rows` of so many
    `images`, in the SBUF of the core that reads. As an entry of `pipe.streams`, which has one for each operand of a
    stage (`unit` for whole requests): `#pipe.rows<depth 6, images 1, rows 2>`.
    """

    name = "pipe.rows"
    depth: IntAttr
    images: IntAttr
    rows: IntAttr

    @staticmethod
    def of(depth: int, images: int, rows: int) -> RowsAttr:
        """From plain values."""
        return RowsAttr(IntAttr(depth), IntAttr(images), IntAttr(rows))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        found: list[Attribute] = []
        with parser.in_angle_brackets():
            for word in ("depth", "images", "rows"):
                if found:
                    parser.parse_punctuation(",")
                parser.parse_keyword(word)
                found.append(IntAttr(parser.parse_integer(allow_boolean=False, allow_negative=False)))
        return found

    def print_parameters(self, printer: Printer) -> None:
        printer.print_string(f"<depth {self.depth.data}, images {self.images.data}, rows {self.rows.data}>")


def _number(value: float) -> str:
    text = repr(float(value))
    return text if "." in text else text.replace("e", ".0e")
