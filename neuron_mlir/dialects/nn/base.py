"""What every op of `nn` shares: static tensor types, shape arithmetic, parameter lists, and the op base class."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from xdsl.dialects.builtin import (
    BFloat16Type,
    DenseArrayBase,
    Float16Type,
    Float32Type,
    Float64Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    Signedness,
    TensorType,
    f32,
    i1,
    i8,
    i32,
    i64,
)
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.irdl import AttrConstraint, IRDLOperation, OpResult, VerificationContext, opt_prop_def
from xdsl.irdl.constraints import InferenceContext
from xdsl.irdl.declarative_assembly_format import (
    AttributeVariable,
    CustomDirective,
    ParsingState,
    PrintingState,
    irdl_custom_directive,
)
from xdsl.parser import AttrParser, Parser
from xdsl.pattern_rewriter import RewritePattern
from xdsl.printer import Printer
from xdsl.traits import HasCanonicalizationPatternsTrait
from xdsl.utils.exceptions import VerifyException

Tensor: TypeAlias = TensorType[Attribute]
"""A ranked tensor type; in `nn` every dimension is static and at least 1."""
Value: TypeAlias = "SSAValue | Operation"
"""What op constructors take as an operand."""

ui8 = IntegerType(8, Signedness.UNSIGNED)
"""The one unsigned element type."""

I64Array = DenseArrayBase.constr(i64)
F32Attr = FloatAttr.constr(f32)
I64Attr = IntegerAttr.constr(i64)

COMPUTE_FLOATS = (Float32Type, BFloat16Type, Float16Type)
"""Element types arithmetic takes; it produces f32 from any of them."""


def is_float(element_type: Attribute) -> bool:
    """f32, bf16 or f16: what arithmetic computes on. f64 is for constants only and has to be cast."""
    return isinstance(element_type, COMPUTE_FLOATS)


def is_integer(element_type: Attribute) -> bool:
    """i64, i32, i8 or ui8; not i1."""
    return isinstance(element_type, IntegerType) and element_type != i1


def is_element_type(element_type: Attribute) -> bool:
    """Whether `nn` tensors may hold this type."""
    if isinstance(element_type, IntegerType):
        return element_type in (i1, i8, ui8, i32, i64)
    return isinstance(element_type, (*COMPUTE_FLOATS, Float64Type))


def tensor(shape: Iterable[int], element_type: Attribute = f32) -> Tensor:
    """A tensor type."""
    return TensorType(element_type, list(shape))


def type_of(value: Value) -> Tensor:
    """The tensor type of a value.

    Raises:
        VerifyException: when it is no tensor.
    """
    found = SSAValue.get(value).type
    if not isinstance(found, TensorType):
        raise VerifyException(f"needs a tensor, got {found}")
    return cast(Tensor, found)


def computed(element_type: Attribute, op: str) -> Attribute:
    """The element type arithmetic makes of an operand's: f32 of any float, an integer of itself."""
    if is_float(element_type):
        return f32
    if is_integer(element_type):
        return element_type
    raise VerifyException(f"{op} needs elements of f32, bf16, f16 or an integer type, got {element_type}")


def need_float(element_type: Attribute, op: str, what: str = "operand") -> None:
    """Refuse anything but f32, bf16 and f16."""
    if not is_float(element_type):
        raise VerifyException(f"{op} needs elements of f32, bf16 or f16 in its {what}, got {element_type}")


def shape_text(shape: Sequence[int]) -> str:
    """`2x3x4`, `scalar` for rank 0."""
    return "x".join(str(dim) for dim in shape) or "scalar"


def broadcast_shapes(op: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape numpy broadcasting makes of these.

    Raises:
        VerifyException: when two dimensions differ and neither is 1.
    """
    rank = max(len(shape) for shape in shapes)
    result: list[int] = []
    for axis in range(-rank, 0):
        dims = {shape[axis] for shape in shapes if len(shape) >= -axis}
        wide = dims - {1}
        if len(wide) > 1:
            got = " and ".join(shape_text(shape) for shape in shapes)
            raise VerifyException(f"{op} needs shapes that broadcast, got {got}")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def check_axis(op: str, axis: int, rank: int) -> int:
    """An axis, which `nn` writes non-negative and below the rank.

    Raises:
        VerifyException: when it is not.
    """
    if not 0 <= axis < rank:
        raise VerifyException(f"{op} needs 0 <= axis < {rank}, the rank of its operand, got {axis}")
    return axis


def check_length(op: str, what: str, values: Sequence[int], length: int, least: int | None = None) -> None:
    """A parameter list must have one entry per dimension, each at least `least`."""
    if len(values) != length:
        raise VerifyException(f"{op} needs {length} {what}, got {len(values)}")
    if least is not None and any(value < least for value in values):
        raise VerifyException(f"{op} needs {what} of at least {least}, got {list(values)}")


def window_shape(
    op: str,
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    """The spatial result shape of a sliding window: floor((in + pads - dilation * (kernel - 1) - 1) / stride) + 1.

    Pads are in ONNX order: all beginnings, then all ends.
    """
    rank = len(spatial)
    check_length(op, "kernel sizes", kernel, rank, 1)
    check_length(op, "strides", strides, rank, 1)
    check_length(op, "dilations", dilations, rank, 1)
    check_length(op, "pads", pads, 2 * rank, 0)
    result: list[int] = []
    for axis in range(rank):
        padded = spatial[axis] + pads[axis] + pads[rank + axis]
        span = dilations[axis] * (kernel[axis] - 1) + 1
        if span > padded:
            raise VerifyException(f"{op} needs at least {span} padded elements along spatial axis {axis}, got {padded}")
        result.append((padded - span) // strides[axis] + 1)
    return tuple(result)


def ints(values: Iterable[int]) -> DenseArrayBase[IntegerType]:
    """A list of integers as an attribute."""
    return DenseArrayBase.from_list(i64, list(values))


def get_ints(attr: DenseArrayBase[IntegerType] | None) -> tuple[int, ...] | None:
    """The integers of an attribute; None when absent."""
    return None if attr is None else tuple(attr.iter_values())


def optional_ints(values: Sequence[int] | None, default: int) -> DenseArrayBase[IntegerType] | None:
    """The attribute for a list that is left out of the text when every entry is the default."""
    if values is None or all(value == default for value in values):
        return None
    return ints(values)


def f32_attr(value: float) -> FloatAttr[Float32Type]:
    """A parameter as an f32 attribute, rounded to f32 so that it prints and parses to itself."""
    if math.isfinite(value):
        value = f32.unpack(f32.pack((value,)), 1)[0]
    return FloatAttr(value, f32)


def i64_attr(value: int) -> IntegerAttr[IntegerType]:
    """An integer parameter as an attribute."""
    return IntegerAttr(value, i64)


def number_text(number: float) -> str:
    """A number as short as it re-parses to itself: `3`, `0.5`, `1.0e-05`, `inf`."""
    if isinstance(number, int):
        return str(number)
    if math.isnan(number):
        return "nan"
    if math.isinf(number):
        return "-inf" if number < 0 else "inf"
    text = repr(number)
    if "e" in text and "." not in text:
        return text.replace("e", ".0e")
    return text


def parse_number(parser: AttrParser) -> float:
    """A number, `inf` or `nan`, with or without a sign."""
    for word, number in (("inf", math.inf), ("nan", math.nan)):
        if parser.parse_optional_keyword(word):
            return number
    if parser.parse_optional_punctuation("-"):
        return -parse_number(parser)
    found = parser.parse_optional_number()
    if found is None:
        parser.raise_error("needs a number")
    return found


def f32_text(number: float) -> str:
    """As `number_text` for a number that is an f32: as few digits as give that f32 again."""
    if not math.isfinite(number):
        return number_text(number)
    packed = f32.pack((number,))
    for digits in range(6, 9):
        short = float(f"{number:.{digits}g}")
        if f32.pack((short,)) == packed:
            return number_text(short)
    return number_text(float(f"{number:.9g}"))


@irdl_custom_directive
class Number(CustomDirective):
    """An f32 parameter, written as short as it re-parses to itself."""

    number: AttributeVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        self.number.set(state, f32_attr(parse_number(parser)))

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        attribute = self.number.get(op)
        if attribute is None:
            return
        state.print_whitespace(printer)
        printer.print_string(f32_text(cast("FloatAttr[Float32Type]", attribute).value.data))
        state.should_emit_space = True
        state.last_was_punctuation = False

    def is_anchorable(self) -> bool:
        return self.number.is_anchorable()

    def is_present(self, op: IRDLOperation) -> bool:
        return self.number.is_present(op)


@dataclass(frozen=True)
class ComputedFrom(AttrConstraint[Tensor]):
    """A result type that follows from operand types, so that the text need not repeat it.

    The verifier of the op checks the type itself; here it is only inferred. Where the operands do not fit, the first
    operand's type stands in, so that the verifier reports the misfit.
    """

    names: tuple[str, ...]
    function: Callable[..., Tensor]

    def verify(self, attr: Attribute, constraint_context: VerificationContext) -> None:
        if not isinstance(attr, TensorType):
            raise VerifyException(f"needs a tensor, got {attr}")

    def can_infer(self, var_constraint_names: AbstractSet[str]) -> bool:
        return set(self.names) <= var_constraint_names

    def infer(self, context: InferenceContext) -> Tensor:
        types = [cast(Tensor, context.get_variable(name)) for name in self.names]
        try:
            return self.function(*types)
        except VerifyException:
            return types[0]

    def get_bases(self) -> set[type[Attribute]]:
        return {TensorType}

    def mapping_type_vars(self, type_var_mapping: Any) -> ComputedFrom:
        return self


class Simplifies(HasCanonicalizationPatternsTrait):
    """The op has rewrites in `canonicalize`, loaded when a pass asks for them."""

    @classmethod
    def get_canonicalization_patterns(cls) -> tuple[RewritePattern, ...]:
        from neuron_mlir.dialects.nn.canonicalize import Simplify

        return (Simplify(),)


class NnOp(IRDLOperation, ABC):
    """An op on static tensors with results whose types follow from its operands and parameters."""

    @abstractmethod
    def infer(self) -> Tensor:
        """The type its result must have.

        Raises:
            VerifyException: when operands and parameters do not fit together: what, needed, got.
        """

    @property
    def value(self) -> OpResult[Tensor]:
        """The one result."""
        return cast("OpResult[Tensor]", self.results[0])

    @property
    def type(self) -> Tensor:
        """The type of the one result."""
        return cast(Tensor, self.results[0].type)

    def verify_(self) -> None:
        check_tensors(self)
        expected = self.infer()
        if expected != self.results[0].type:
            raise VerifyException(f"{self.name} needs a result of {expected}, got {self.results[0].type}")


class WindowOp(NnOp):
    """An op with a window that slides over the spatial axes of its first operand, (N, C, spatial..).

    Parameters that are left out have their default on every axis.
    """

    strides_attr = opt_prop_def(I64Array, prop_name="strides")
    pads_attr = opt_prop_def(I64Array, prop_name="pads")

    @property
    def spatial_rank(self) -> int:
        """How many axes the window slides along."""
        return cast(Tensor, self.operands[0].type).get_num_dims() - 2

    def per_axis(self, attr: DenseArrayBase[IntegerType] | None, default: int) -> tuple[int, ...]:
        """A parameter with an entry for each spatial axis."""
        return get_ints(attr) or (default,) * self.spatial_rank

    @property
    def strides(self) -> tuple[int, ...]:
        """One per spatial axis."""
        return self.per_axis(self.strides_attr, 1)

    @property
    def pads(self) -> tuple[int, ...]:
        """All beginnings, then all ends."""
        return get_ints(self.pads_attr) or (0,) * (2 * self.spatial_rank)


def check_tensors(op: Operation) -> None:
    """Every operand and result is a tensor with static dimensions of at least 1 and an element type of `nn`."""
    for value in (*op.operands, *op.results):
        check_tensor(op.name, value.type)


def check_tensor(op: str, found: Attribute) -> None:
    """See `check_tensors`."""
    if not isinstance(found, TensorType):
        raise VerifyException(f"{op} needs tensors, got {found}")
    found = cast(Tensor, found)
    if any(dim < 1 for dim in found.get_shape()):
        raise VerifyException(f"{op} needs static dimensions of at least 1, got {found}")
    if not is_element_type(found.element_type):
        raise VerifyException(
            f"{op} needs elements of f32, bf16, f16, f64, i64, i32, i8, ui8 or i1, got {found.element_type}"
        )
