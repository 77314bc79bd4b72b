"""Instructions of the tensor, scalar and vector engines. The vocabulary is that of the public Neuron Kernel
Interface.
"""

from __future__ import annotations

from typing import ClassVar, cast

from xdsl.dialects.builtin import AffineMapAttr, FloatAttr, StringAttr
from xdsl.ir import Attribute, SSAValue
from xdsl.ir.affine import AffineConstantExpr, AffineExpr, AffineMap
from xdsl.irdl import irdl_op_definition, opt_prop_def, prop_def, traits_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.core.access import Access, Linear, parse_expression, print_expression
from neuron_mlir.dialects.core.instruction import (
    Instruction,
    Space,
    float_property,
    free_shape,
    number_text,
    parse_number,
    parse_optional_number,
)
from neuron_mlir.dialects.core.memory import Buffer, ErasedWhenIdle

ACTIVATIONS = (
    "copy",
    "relu",
    "leaky_relu",
    "sigmoid",
    "tanh",
    "gelu",
    "gelu_tanh",
    "silu",
    "softplus",
    "mish",
    "erf",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "square",
    "reciprocal",
    "abs",
    "floor",
)
"""Functions of the scalar engine's activation instruction: each one instruction, and none dearer than another, as the
public guide of NKI says of the next generation ("Supported Activation Functions", nki.isa.activation). That of
Inferentia-1 is not published; AWS's compiler for it took mish and gelu.
"""

ALU = (
    "add",
    "sub",
    "rsub",
    "mul",
    "div",
    "rdiv",
    "max",
    "min",
    "pow",
    "rpow",
    "equal",
    "less",
    "greater",
    "rless",
    "rgreater",
    "and",
    "or",
)
"""Two-operand functions of the vector engine; `rsub` is `b - a`, and so on."""


def _check_name(kind: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise VerifyException(f"no {kind} {name!r}; allowed: {', '.join(allowed)}")


def _engine_or_default(op: Instruction, on: StringAttr | None) -> str:
    if on is None:
        return op.ENGINES[0]
    if on.data not in op.ENGINES:
        raise VerifyException(f"cannot run on {on.data}; allowed: {', '.join(op.ENGINES)}")
    return on.data


@irdl_op_definition
class MatmulOp(Instruction):
    """`acc[m, n] (+)= sum over k of stationary[k, m] * moving[k, n]`, in f32, `k` in ascending order of the PE
    array's rows.

    `stationary` is at most 128 x 64 and sits in the PE array while the columns of `moving` (at most 512, over any
    number of free dimensions) stream through it. The sum overwrites `acc` when the expression after `init` is 0 (or
    `init` is left out) and is added to it otherwise. Operands are bf16 or f16: the hardware has no f32 product.

    ```mlir
    core.matmul %acc[0, 0] [64, 512], %w[0, %k, 0] [128, 1, 64], %x[0, %k, 0] [128, 1, 512] init %k
    ```
    """

    name = "core.matmul"
    init = prop_def(AffineMapAttr)
    ROLES: ClassVar[tuple[str, ...]] = ("acc", "stationary", "moving")
    ENGINES: ClassVar[tuple[str, ...]] = ("tensor",)
    SPACES: ClassVar[dict[str, tuple[Space, ...]]] = {"acc": ("psum",), "stationary": ("sbuf",), "moving": ("sbuf",)}

    def __init__(self, acc: Access, stationary: Access, moving: Access, init: Linear | int = 0):
        linear = Linear.wrap(init)
        accesses = _with_indices([acc, stationary, moving], [value for value, _ in linear.terms])
        self._setup(accesses)
        expr = linear.expression(list(self.indices))
        self.properties["init"] = AffineMapAttr(AffineMap(len(self.indices), 0, (expr,)))

    def verify_shapes(self) -> None:
        acc, stationary, moving = (access.shape() for access in self.accesses)
        rows, columns = stationary[0], free_shape(stationary)
        width = columns[0] if columns else 1
        if len(columns) > 1 or rows > 128 or width > 64:
            raise VerifyException(f"stationary must be [<=128, <=64], got {list(stationary)}")
        if moving[0] != rows:
            raise VerifyException(f"stationary has {rows} rows, moving has {moving[0]}")
        if acc[0] != width or free_shape(acc) != free_shape(moving):
            raise VerifyException(f"acc must be [{width}, {list(free_shape(moving))}], got {list(acc)}")
        total = 1
        for size in moving[1:]:
            total *= size
        if total > 512:
            raise VerifyException(f"moving has {total} columns, at most 512 fit one PSUM bank")
        for role, buffer in zip(("stationary", "moving"), self.buffers[1:], strict=False):
            element = str(cast(Buffer, buffer.type).element_type)
            if element not in ("bf16", "f16"):
                raise VerifyException(f"{role} must be bf16 or f16 (no f32 product in hardware), got {element}")
        if str(cast(Buffer, self.buffers[0].type).element_type) != "f32":
            raise VerifyException("acc must be f32")
        if self.init.data.num_dims != len(self.indices):
            raise VerifyException("init must be over the instruction's indices")

    @classmethod
    def parse_tail(cls, parser: Parser, accesses: list[Access]) -> dict[str, Attribute | None]:
        indices: list[SSAValue] = []
        if not parser.parse_optional_keyword("init"):
            expr = AffineExpr.constant(0)
        else:
            expr = parse_expression(parser, indices)
        accesses[:] = _with_indices(accesses, indices)
        common: list[SSAValue] = []
        for access in accesses:
            common.extend(index for index in access.indices if index not in common)
        remapped = expr.replace_dims_and_symbols([AffineExpr.dimension(common.index(i)) for i in indices], [])
        return {"init": AffineMapAttr(AffineMap(len(common), 0, (remapped,)))}

    def print_tail(self, printer: Printer) -> None:
        expr = self.init.data.results[0]
        if isinstance(expr, AffineConstantExpr) and expr.value == 0:
            return
        printer.print_string(" init ")
        print_expression(printer, expr, tuple(self.indices))


def _with_indices(accesses: list[Access], extra: list[SSAValue]) -> list[Access]:
    """Make sure that `extra` index values are among the indices of the accesses (an access may list indices it does
    not use).
    """
    known = [index for access in accesses for index in access.indices]
    missing = tuple(value for value in extra if value not in known)
    if not missing:
        return accesses
    last = accesses[-1]
    return [*accesses[:-1], Access(last.buffer, last.offsets, last.sizes, last.strides, last.indices + missing)]


@irdl_op_definition
class TransposeOp(Instruction):
    """`out[j, i] = in[i, j]` through the PE array (a product with the identity): at most 128 x 64 of bf16 or f16,
    exact for finite values.

    The result in PSUM is f32 and holds the same values.
    """

    name = "core.transpose"
    ROLES: ClassVar[tuple[str, ...]] = ("out", "in")
    ENGINES: ClassVar[tuple[str, ...]] = ("tensor",)
    SPACES: ClassVar[dict[str, tuple[Space, ...]]] = {"out": ("psum",), "in": ("sbuf",)}

    def __init__(self, out: Access, source: Access):
        self._setup([out, source])

    def verify_shapes(self) -> None:
        out, source = (access.shape() for access in self.accesses)
        columns = free_shape(source)
        width = columns[0] if columns else 1
        if len(columns) > 1 or source[0] > 128 or width > 64:
            raise VerifyException(f"in must be [<=128, <=64], got {list(source)}")
        rows = (source[0],) if source[0] != 1 else ()
        if out[0] != width or free_shape(out) != rows:
            raise VerifyException(f"out must be [{width}, {source[0]}], got {list(out)}")
        if str(cast(Buffer, self.buffers[1].type).element_type) not in ("bf16", "f16"):
            raise VerifyException("in must be bf16 or f16: the PE array has no f32 product")


@irdl_op_definition
class ActivationOp(Instruction):
    """`out = func(in * scale + bias)` on the scalar engine, computed in f32, rounded to `out`'s type.

    `scale` and `bias` are numbers or one element per partition. `alpha` is the slope of `leaky_relu` below zero.

    ```mlir
    core.activation relu %y[0, 0] [64, 512], %acc[0, 0] [64, 512] bias %b[0, 0] [64, 1]
    ```
    """

    name = "core.activation"
    func = prop_def(StringAttr)
    scale_value = opt_prop_def(FloatAttr)
    bias_value = opt_prop_def(FloatAttr)
    alpha = opt_prop_def(FloatAttr)
    ROLES: ClassVar[tuple[str, ...]] = ("out", "in")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("scale", "bias")
    ENGINES: ClassVar[tuple[str, ...]] = ("scalar",)

    def __init__(
        self,
        func: str,
        out: Access,
        source: Access,
        *,
        scale: Access | float | None = None,
        bias: Access | float | None = None,
        alpha: float | None = None,
    ):
        optional = {k: v for k, v in (("scale", scale), ("bias", bias)) if isinstance(v, Access)}
        self._setup(
            [out, source],
            optional,
            {
                "func": StringAttr(func),
                "scale_value": None if isinstance(scale, Access) else float_property(scale),
                "bias_value": None if isinstance(bias, Access) else float_property(bias),
                "alpha": float_property(alpha),
            },
        )

    def verify_shapes(self) -> None:
        _check_name("activation", self.func.data, ACTIVATIONS)
        for role, number in (("scale", self.scale_value), ("bias", self.bias_value)):
            if role in self.role_names() and number is not None:
                raise VerifyException(f"{role} must be either a number or an access")
        if self.alpha is not None and self.func.data != "leaky_relu":
            raise VerifyException(f"alpha is the slope of leaky_relu, not of {self.func.data}")
        super().verify_shapes()

    @classmethod
    def parse_head(cls, parser: Parser) -> dict[str, Attribute | None]:
        return {"func": StringAttr(parser.parse_identifier())}

    @classmethod
    def parse_tail(cls, parser: Parser, accesses: list[Access]) -> dict[str, Attribute | None]:
        found: dict[str, Attribute | None] = {}
        for keyword, name in (("times", "scale_value"), ("plus", "bias_value"), ("alpha", "alpha")):
            if parser.parse_optional_keyword(keyword):
                found[name] = float_property(parse_number(parser))
        return found

    def print_head(self, printer: Printer) -> None:
        printer.print_string(f" {self.func.data}")

    def print_tail(self, printer: Printer) -> None:
        for keyword, value in (("times", self.scale_value), ("plus", self.bias_value), ("alpha", self.alpha)):
            if value is not None:
                printer.print_string(f" {keyword} {number_text(value.value.data)}")


class _Placed(Instruction):
    """An instruction that more than one engine can run: `on scalar` after the operands picks one."""

    on = opt_prop_def(StringAttr)

    @property
    def engine(self) -> str:
        return _engine_or_default(self, self.on)

    def verify_shapes(self) -> None:
        _engine_or_default(self, self.on)
        super().verify_shapes()

    @classmethod
    def parse_tail(cls, parser: Parser, accesses: list[Access]) -> dict[str, Attribute | None]:
        return {"on": StringAttr(parser.parse_identifier())} if parser.parse_optional_keyword("on") else {}

    def print_tail(self, printer: Printer) -> None:
        if self.on is not None:
            printer.print_string(f" on {self.on.data}")


def _on(engine: str | None) -> StringAttr | None:
    return None if engine is None else StringAttr(engine)


@irdl_op_definition
class CopyOp(_Placed):
    """`out = in`, rounded to `out`'s type, on the vector (or scalar) engine. The lowered form of a cast."""

    name = "core.copy"
    traits = traits_def(ErasedWhenIdle())
    ROLES: ClassVar[tuple[str, ...]] = ("out", "in")
    ENGINES: ClassVar[tuple[str, ...]] = ("vector", "scalar")

    def __init__(self, out: Access, source: Access, on: str | None = None):
        self._setup([out, source], None, {"on": _on(on)})


@irdl_op_definition
class MemsetOp(Instruction):
    """`out = value` on the vector engine."""

    name = "core.memset"
    value = prop_def(FloatAttr)
    ROLES: ClassVar[tuple[str, ...]] = ("out",)
    ENGINES: ClassVar[tuple[str, ...]] = ("vector",)

    def __init__(self, out: Access, value: float):
        self._setup([out], None, {"value": float_property(value)})

    @classmethod
    def parse_tail(cls, parser: Parser, accesses: list[Access]) -> dict[str, Attribute | None]:
        parser.parse_punctuation(",")
        return {"value": float_property(parse_number(parser))}

    def print_tail(self, printer: Printer) -> None:
        printer.print_string(f", {number_text(self.value.value.data)}")


@irdl_op_definition
class TensorTensorOp(Instruction):
    """`out = op(a, b)`, element by element on the vector engine, computed in f32, rounded to `out`'s type.
    Comparisons give 1 or 0.
    """

    name = "core.tensor_tensor"
    op = prop_def(StringAttr)
    ROLES: ClassVar[tuple[str, ...]] = ("out", "a", "b")
    ENGINES: ClassVar[tuple[str, ...]] = ("vector",)

    def __init__(self, op: str, out: Access, a: Access, b: Access):
        self._setup([out, a, b], None, {"op": StringAttr(op)})

    def verify_shapes(self) -> None:
        _check_name("operation", self.op.data, ALU)
        super().verify_shapes()

    @classmethod
    def parse_head(cls, parser: Parser) -> dict[str, Attribute | None]:
        return {"op": StringAttr(parser.parse_identifier())}

    def print_head(self, printer: Printer) -> None:
        printer.print_string(f" {self.op.data}")


@irdl_op_definition
class TensorScalarOp(Instruction):
    """`out = op1(op0(in, operand0), operand1)` on the vector engine; each operand is a number or one element per
    partition.

    ```mlir
    core.tensor_scalar %y[0, 0] [64, 512], %x[0, 0] [64, 512] operand0 %s[0, 0] [64, 1] op0 mul op1 max 0.0
    ```
    """

    name = "core.tensor_scalar"
    op0 = prop_def(StringAttr)
    value0 = opt_prop_def(FloatAttr)
    op1 = opt_prop_def(StringAttr)
    value1 = opt_prop_def(FloatAttr)
    ROLES: ClassVar[tuple[str, ...]] = ("out", "in")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("operand0", "operand1")
    ENGINES: ClassVar[tuple[str, ...]] = ("vector",)

    def __init__(
        self,
        out: Access,
        source: Access,
        op0: str,
        operand0: Access | float,
        op1: str | None = None,
        operand1: Access | float | None = None,
    ):
        optional = {k: v for k, v in (("operand0", operand0), ("operand1", operand1)) if isinstance(v, Access)}
        self._setup(
            [out, source],
            optional,
            {
                "op0": StringAttr(op0),
                "value0": None if isinstance(operand0, Access) else float_property(operand0),
                "op1": None if op1 is None else StringAttr(op1),
                "value1": None if isinstance(operand1, Access) else float_property(operand1),
            },
        )

    def verify_shapes(self) -> None:
        _check_name("operation", self.op0.data, ALU)
        if ("operand0" in self.role_names()) == (self.value0 is not None):
            raise VerifyException("operand0 must be either a number or an access")
        if self.op1 is not None:
            _check_name("operation", self.op1.data, ALU)
            if ("operand1" in self.role_names()) == (self.value1 is not None):
                raise VerifyException("operand1 must be either a number or an access")
        super().verify_shapes()

    @classmethod
    def parse_tail(cls, parser: Parser, accesses: list[Access]) -> dict[str, Attribute | None]:
        found: dict[str, Attribute | None] = {}
        for keyword, value in (("op0", "value0"), ("op1", "value1")):
            if parser.parse_optional_keyword(keyword):
                found[keyword] = StringAttr(parser.parse_identifier())
                number = parse_optional_number(parser)
                found[value] = None if number is None else float_property(number)
        return found

    def print_tail(self, printer: Printer) -> None:
        for keyword, op, value in (("op0", self.op0, self.value0), ("op1", self.op1, self.value1)):
            if op is not None:
                number = "" if value is None else f" {number_text(value.value.data)}"
                printer.print_string(f" {keyword} {op.data}{number}")


@irdl_op_definition
class ScalarTensorTensorOp(Instruction):
    """`out = op1(op0(a, operand0), b)` on the vector engine, `operand0` one element per partition: a multiply-add
    of a depthwise tap.

    Each step is rounded to f32, as two instructions would.
    """

    name = "core.scalar_tensor_tensor"
    op0 = prop_def(StringAttr)
    op1 = prop_def(StringAttr)
    ROLES: ClassVar[tuple[str, ...]] = ("out", "a", "operand0", "b")
    ENGINES: ClassVar[tuple[str, ...]] = ("vector",)

    def __init__(self, op0: str, op1: str, out: Access, a: Access, operand0: Access, b: Access):
        self._setup([out, a, operand0, b], None, {"op0": StringAttr(op0), "op1": StringAttr(op1)})

    def verify_shapes(self) -> None:
        _check_name("operation", self.op0.data, ALU)
        _check_name("operation", self.op1.data, ALU)
        super().verify_shapes()

    @classmethod
    def parse_head(cls, parser: Parser) -> dict[str, Attribute | None]:
        op0 = StringAttr(parser.parse_identifier())
        return {"op0": op0, "op1": StringAttr(parser.parse_identifier())}

    def print_head(self, printer: Printer) -> None:
        printer.print_string(f" {self.op0.data} {self.op1.data}")


@irdl_op_definition
class TensorReduceOp(Instruction):
    """Reduces the last `axes` dimensions of `in` on the vector engine: `add`, `max`, `min` or `mul`, in f32.

    `out` has the partitions and the leading free dimensions of `in`. Dimensions of size 1 count.
    """

    name = "core.tensor_reduce"
    op = prop_def(StringAttr)
    ROLES: ClassVar[tuple[str, ...]] = ("out", "in")
    ENGINES: ClassVar[tuple[str, ...]] = ("vector",)

    def __init__(self, op: str, out: Access, source: Access):
        self._setup([out, source], None, {"op": StringAttr(op)})

    def verify_shapes(self) -> None:
        _check_name("reduction", self.op.data, ("add", "max", "min", "mul"))
        out, source = (access.shape() for access in self.accesses)
        kept = free_shape(out)
        if out[0] != source[0] or free_shape(source)[: len(kept)] != kept:
            raise VerifyException(f"out {list(out)} must be the partitions and leading free sizes of in {list(source)}")

    @classmethod
    def parse_head(cls, parser: Parser) -> dict[str, Attribute | None]:
        return {"op": StringAttr(parser.parse_identifier())}

    def print_head(self, printer: Printer) -> None:
        printer.print_string(f" {self.op.data}")


@irdl_op_definition
class SelectOp(Instruction):
    """`out = a where cond is not 0, else b`, element by element on the vector engine."""

    name = "core.select"
    ROLES: ClassVar[tuple[str, ...]] = ("out", "cond", "a", "b")
    ENGINES: ClassVar[tuple[str, ...]] = ("vector",)

    def __init__(self, out: Access, cond: Access, a: Access, b: Access):
        self._setup([out, cond, a, b])
