"""Element-wise ops: unary functions, and binary ones with numpy broadcasting."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from xdsl.dialects.builtin import AnyFloat, FloatAttr, TensorType, f32, i1
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    BaseAttr,
    VarConstraint,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import Commutative, Pure
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import (
    ComputedFrom,
    F32Attr,
    NnOp,
    Number,
    Simplifies,
    Tensor,
    Value,
    broadcast_shapes,
    computed,
    f32_attr,
    is_float,
    need_float,
    tensor,
    type_of,
)

_T: TypeAlias = TensorType[Attribute]
_INPUT: VarConstraint[_T] = VarConstraint("T", BaseAttr(TensorType))
_LHS: VarConstraint[_T] = VarConstraint("L", BaseAttr(TensorType))
_RHS: VarConstraint[_T] = VarConstraint("R", BaseAttr(TensorType))


def unary_type(x: Tensor, op: str = "nn op") -> Tensor:
    """f32 for any float, an integer type stays."""
    return tensor(x.get_shape(), computed(x.element_type, op))


def float_unary_type(x: Tensor, op: str = "nn op") -> Tensor:
    """As `unary_type`, refusing integers."""
    need_float(x.element_type, op)
    return tensor(x.get_shape(), f32)


def logic_type(x: Tensor, op: str = "nn op") -> Tensor:
    """i1 to i1."""
    if x.element_type != i1:
        raise VerifyException(f"{op} needs elements of i1, got {x.element_type}")
    return tensor(x.get_shape(), i1)


def _same_kind(lhs: Tensor, rhs: Tensor, op: str) -> None:
    left, right = lhs.element_type, rhs.element_type
    if left != right and not (is_float(left) and is_float(right)):
        raise VerifyException(f"{op} needs two float operands or two of the same integer type, got {left} and {right}")


def binary_type(lhs: Tensor, rhs: Tensor, op: str = "nn op") -> Tensor:
    """The broadcast shape; f32 for floats of any width, an integer type stays."""
    _same_kind(lhs, rhs, op)
    return tensor(broadcast_shapes(op, lhs.get_shape(), rhs.get_shape()), computed(lhs.element_type, op))


def compare_type(lhs: Tensor, rhs: Tensor, op: str = "nn op") -> Tensor:
    """The broadcast shape of i1."""
    _same_kind(lhs, rhs, op)
    if lhs.element_type != i1:
        computed(lhs.element_type, op)
    return tensor(broadcast_shapes(op, lhs.get_shape(), rhs.get_shape()), i1)


def binary_logic_type(lhs: Tensor, rhs: Tensor, op: str = "nn op") -> Tensor:
    """The broadcast shape of i1, of two i1 operands."""
    for side in (lhs, rhs):
        logic_type(side, op)
    return tensor(broadcast_shapes(op, lhs.get_shape(), rhs.get_shape()), i1)


class UnaryOp(NnOp):
    """A function of one element; the shape stays. Integers stay what they are, every float becomes f32."""

    input = operand_def(_INPUT)
    result = result_def(ComputedFrom(("T",), unary_type))

    traits = traits_def(Pure())

    assembly_format = "$input attr-dict `:` type($input)"

    def __init__(self, input: Value):
        super().__init__(operands=[input], result_types=[self.infer_result_type(type_of(input))])

    @classmethod
    def infer_result_type(cls, x: Tensor) -> Tensor:
        """The result type for an operand type."""
        return unary_type(x, cls.name)

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.input))


class FloatUnaryOp(UnaryOp):
    """A unary function that is defined on floats only; computed in f32."""

    result = result_def(ComputedFrom(("T",), float_unary_type))

    @classmethod
    def infer_result_type(cls, x: Tensor) -> Tensor:
        return float_unary_type(x, cls.name)


@irdl_op_definition
class ReluOp(UnaryOp):
    """max(x, 0). NaN stays NaN."""

    name = "nn.relu"

    traits = traits_def(Pure(), Simplifies())


@irdl_op_definition
class LeakyReluOp(FloatUnaryOp):
    """x where x >= 0, alpha * x elsewhere."""

    name = "nn.leaky_relu"

    alpha_attr = prop_def(F32Attr, prop_name="alpha")

    custom_directives = (Number,)
    assembly_format = "$input `alpha` custom<Number>($alpha) attr-dict `:` type($input)"

    def __init__(self, input: Value, alpha: float = 0.01):
        super(UnaryOp, self).__init__(
            operands=[input],
            result_types=[self.infer_result_type(type_of(input))],
            properties={"alpha": f32_attr(alpha)},
        )

    @property
    def alpha(self) -> float:
        """The slope below 0."""
        return self.alpha_attr.value.data


@irdl_op_definition
class ClipOp(FloatUnaryOp):
    """min(max(x, lo), hi). A bound left out does not bind; NaN stays NaN."""

    name = "nn.clip"

    lo_attr = opt_prop_def(F32Attr, prop_name="lo")
    hi_attr = opt_prop_def(F32Attr, prop_name="hi")

    custom_directives = (Number,)
    assembly_format = "$input (`lo` custom<Number>($lo)^)? (`hi` custom<Number>($hi)^)? attr-dict `:` type($input)"

    def __init__(self, input: Value, lo: float | None = None, hi: float | None = None):
        super(UnaryOp, self).__init__(
            operands=[input],
            result_types=[self.infer_result_type(type_of(input))],
            properties={"lo": None if lo is None else f32_attr(lo), "hi": None if hi is None else f32_attr(hi)},
        )

    @property
    def lo(self) -> float | None:
        """The lower bound."""
        return _optional_float(self.lo_attr)

    @property
    def hi(self) -> float | None:
        """The upper bound."""
        return _optional_float(self.hi_attr)


def _optional_float(attr: FloatAttr[AnyFloat] | None) -> float | None:
    return None if attr is None else attr.value.data


@irdl_op_definition
class SigmoidOp(FloatUnaryOp):
    """1 / (1 + exp(-x))."""

    name = "nn.sigmoid"


@irdl_op_definition
class TanhOp(FloatUnaryOp):
    """Hyperbolic tangent."""

    name = "nn.tanh"


@irdl_op_definition
class ErfOp(FloatUnaryOp):
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""

    name = "nn.erf"


@irdl_op_definition
class GeluOp(FloatUnaryOp):
    """x * 0.5 * (1 + erf(x / sqrt(2))): the exact form, not the one with tanh."""

    name = "nn.gelu"


@irdl_op_definition
class GeluTanhOp(FloatUnaryOp):
    """x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))), an approximation of `nn.gelu`."""

    name = "nn.gelu_tanh"


@irdl_op_definition
class SiluOp(FloatUnaryOp):
    """x * sigmoid(x), also called swish."""

    name = "nn.silu"


@irdl_op_definition
class SoftplusOp(FloatUnaryOp):
    """log(1 + exp(x)), computed so that nothing overflows."""

    name = "nn.softplus"


@irdl_op_definition
class MishOp(FloatUnaryOp):
    """x * tanh(log(1 + exp(x))), computed so that nothing overflows (Misra, "Mish", BMVC 2020)."""

    name = "nn.mish"


@irdl_op_definition
class ExpOp(FloatUnaryOp):
    """e to the x."""

    name = "nn.exp"


@irdl_op_definition
class LogOp(FloatUnaryOp):
    """Natural logarithm; -inf at 0, NaN below."""

    name = "nn.log"


@irdl_op_definition
class SqrtOp(FloatUnaryOp):
    """Square root; NaN below 0."""

    name = "nn.sqrt"


@irdl_op_definition
class ReciprocalOp(FloatUnaryOp):
    """1 / x."""

    name = "nn.reciprocal"


@irdl_op_definition
class AbsOp(UnaryOp):
    """Absolute value."""

    name = "nn.abs"


@irdl_op_definition
class NegOp(UnaryOp):
    """-x; integers wrap around."""

    name = "nn.neg"


@irdl_op_definition
class FloorOp(FloatUnaryOp):
    """The greatest whole number not above x."""

    name = "nn.floor"


@irdl_op_definition
class NotOp(UnaryOp):
    """Logical negation of i1."""

    name = "nn.not"

    result = result_def(ComputedFrom(("T",), logic_type))

    @classmethod
    def infer_result_type(cls, x: Tensor) -> Tensor:
        return logic_type(x, cls.name)


class BinaryOp(NnOp):
    """A function of two elements under numpy broadcasting.

    Two floats of any width give f32, two integers of one type give that type.
    """

    lhs = operand_def(_LHS)
    rhs = operand_def(_RHS)
    result = result_def(ComputedFrom(("L", "R"), binary_type))

    traits = traits_def(Pure())

    assembly_format = "$lhs `,` $rhs attr-dict `:` type($lhs) `,` type($rhs)"

    COMMUTES: ClassVar[bool] = False

    def __init__(self, lhs: Value, rhs: Value):
        result = self.infer_result_type(type_of(lhs), type_of(rhs))
        super().__init__(operands=[SSAValue.get(lhs), SSAValue.get(rhs)], result_types=[result])

    @classmethod
    def infer_result_type(cls, lhs: Tensor, rhs: Tensor) -> Tensor:
        """The result type for two operand types."""
        return binary_type(lhs, rhs, cls.name)

    def infer(self) -> Tensor:
        return self.infer_result_type(type_of(self.lhs), type_of(self.rhs))


class CommutativeBinaryOp(BinaryOp):
    """A binary function whose operands may be swapped, to the bit."""

    traits = traits_def(Pure(), Commutative())


class CompareOp(BinaryOp):
    """A comparison under numpy broadcasting; gives i1. False where an operand is NaN."""

    result = result_def(ComputedFrom(("L", "R"), compare_type))

    @classmethod
    def infer_result_type(cls, lhs: Tensor, rhs: Tensor) -> Tensor:
        return compare_type(lhs, rhs, cls.name)


class LogicOp(CommutativeBinaryOp):
    """A logical function of two i1 under numpy broadcasting."""

    result = result_def(ComputedFrom(("L", "R"), binary_logic_type))

    @classmethod
    def infer_result_type(cls, lhs: Tensor, rhs: Tensor) -> Tensor:
        return binary_logic_type(lhs, rhs, cls.name)


@irdl_op_definition
class AddOp(CommutativeBinaryOp):
    """lhs + rhs."""

    name = "nn.add"

    traits = traits_def(Pure(), Commutative(), Simplifies())


@irdl_op_definition
class SubOp(BinaryOp):
    """lhs - rhs."""

    name = "nn.sub"

    traits = traits_def(Pure(), Simplifies())


@irdl_op_definition
class MulOp(CommutativeBinaryOp):
    """lhs * rhs."""

    name = "nn.mul"

    traits = traits_def(Pure(), Commutative(), Simplifies())


@irdl_op_definition
class DivOp(BinaryOp):
    """lhs / rhs; of integers truncated towards 0, as ONNX does."""

    name = "nn.div"

    traits = traits_def(Pure(), Simplifies())


@irdl_op_definition
class PowOp(BinaryOp):
    """lhs to the power of rhs."""

    name = "nn.pow"


@irdl_op_definition
class MaxOp(CommutativeBinaryOp):
    """The greater of two; NaN if either is."""

    name = "nn.max"


@irdl_op_definition
class MinOp(CommutativeBinaryOp):
    """The lesser of two; NaN if either is."""

    name = "nn.min"


@irdl_op_definition
class EqualOp(CompareOp):
    """lhs == rhs; also of two i1."""

    name = "nn.equal"


@irdl_op_definition
class LessOp(CompareOp):
    """lhs < rhs."""

    name = "nn.less"


@irdl_op_definition
class GreaterOp(CompareOp):
    """lhs > rhs."""

    name = "nn.greater"


@irdl_op_definition
class AndOp(LogicOp):
    """Logical and."""

    name = "nn.and"


@irdl_op_definition
class OrOp(LogicOp):
    """Logical or."""

    name = "nn.or"


FUNCTION_OPS = (
    SigmoidOp,
    TanhOp,
    ErfOp,
    GeluOp,
    GeluTanhOp,
    SiluOp,
    SoftplusOp,
    MishOp,
    ExpOp,
    LogOp,
    SqrtOp,
    ReciprocalOp,
    AbsOp,
    FloorOp,
)
"""Functions of one number without parameters; like `relu` and `leaky_relu`, one activation of the scalar engine."""
UNARY_OPS = (ReluOp, LeakyReluOp, ClipOp, *FUNCTION_OPS, NegOp, NotOp)
BINARY_OPS = (AddOp, SubOp, MulOp, DivOp, PowOp, MaxOp, MinOp, EqualOp, LessOp, GreaterOp, AndOp, OrOp)
