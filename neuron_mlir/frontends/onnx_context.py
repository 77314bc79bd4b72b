"""What a handler of an ONNX operator sees: its operands, its attributes, and where to emit.

A value of the ONNX graph is one of three things while the importer runs: a constant that is known here (shapes, axes,
small tables), a weight in the store (known by name, read only if a handler needs its numbers), or an SSA value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import (
    BFloat16Type,
    Float16Type,
    Float32Type,
    Float64Type,
    IntegerType,
    LocationAttr,
    Signedness,
    UnknownLoc,
    i1,
)
from xdsl.ir import Attribute, Block, SSAValue
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn import DenseAttr, ExpandOp, NnOp, SplatAttr, WeightOp
from neuron_mlir.dialects.nn.base import Tensor, tensor, type_of
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.locations import name_location
from neuron_mlir.weights import OnnxStore, element_name

if TYPE_CHECKING:
    from onnx import NodeProto

Array: TypeAlias = NDArray[Any]

DENSE_LIMIT = 4096
"""Elements of a computed constant that may be written out in the IR."""

READ_LIMIT = 1 << 16
"""Elements of a stored tensor that the importer reads as a parameter (a shape, axes, pads) or folds."""

ELEMENT_TYPES: dict[str, Attribute] = {
    "f32": Float32Type(),
    "bf16": BFloat16Type(),
    "f16": Float16Type(),
    "f64": Float64Type(),
    "i64": IntegerType(64),
    "i32": IntegerType(32),
    "i8": IntegerType(8),
    "ui8": IntegerType(8, Signedness.UNSIGNED),
    "i1": i1,
}


@dataclass
class Value:
    """A value of the ONNX graph.

    Attributes:
        name: its ONNX name.
        shape: static.
        dtype: its NumPy type.
        constant: its value, if it is known here.
        stored: whether the weight store has it under `name`.
        literal: whether it stands in the file as such, and was not computed from shapes.
        ssa: the IR value, once there is one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    constant: Array | None = None
    stored: bool = False
    literal: bool = False
    ssa: SSAValue | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_constant(self) -> bool:
        """Known before the program runs."""
        return self.constant is not None or self.stored


Emitted: TypeAlias = "SSAValue | Array"
Handler: TypeAlias = "Callable[[Context], Emitted | Sequence[Emitted]]"


@dataclass(frozen=True)
class Operator:
    """An entry of the operator table.

    Attributes:
        name: the ONNX operator type.
        handler: makes its `nn` ops.
        attributes: the attributes it understands; any other is an error.
        becomes: what it is in `nn`, for the support table.
        notes: limits, for the support table.
        domain: the operator set; empty for ONNX's own.
    """

    name: str
    handler: Handler
    attributes: tuple[str, ...]
    becomes: str
    notes: str = ""
    domain: str = ""


OPERATORS: dict[tuple[str, str], Operator] = {}
"""The operator table, by domain and name; filled when the `onnx_ops_*` modules are imported."""


def operator(
    name: str, *attributes: str, becomes: str, notes: str = "", domain: str = ""
) -> Callable[[Handler], Handler]:
    """Enters a handler into the operator table."""

    def enter(handler: Handler) -> Handler:
        OPERATORS[(domain, name)] = Operator(name, handler, attributes, becomes, notes, domain)
        return handler

    return enter


@dataclass
class Module:
    """What the handlers of one import share."""

    block: Block
    store: OnnxStore
    values: dict[str, Value]
    opset: int
    batch: tuple[int, int] | None = None
    """(old, new), when the batch was changed."""
    weights: dict[str, SSAValue] = field(default_factory=dict[str, SSAValue])

    def known(self, value: Value) -> Array | None:
        """The numbers of a constant that is small enough to be a parameter."""
        if value.constant is None and value.stored and value.size <= READ_LIMIT:
            value.constant = self.store.get(value.name)
        return value.constant

    def materialize(self, value: Value) -> SSAValue:
        """The IR value of an ONNX value: a constant becomes an `nn.weight` the first time."""
        if value.ssa is None:
            value.ssa = self._weight(value)
        return value.ssa

    def _weight(self, value: Value) -> SSAValue:
        check_weight(value, self.store)
        element_type = ELEMENT_TYPES[element_name(value.dtype)]
        result = tensor(value.shape, element_type)
        if value.constant is None or (value.stored and value.size > 1):
            return self._append(WeightOp(value.name, result, digest=self.store.describe(value.name).digest), value.name)
        # A table that repeats along some axes is written once and expanded.
        short = _squash(value.constant)
        if short.size == 1:
            return self._append(WeightOp(value.name, result, SplatAttr.get(_numbers(short)[0])), value.name)
        if short.size > DENSE_LIMIT:
            raise NeuronError(
                f"the constant '{value.name}' is computed from shapes and too large to write into the IR",
                location=value.name,
                needed=f"{short.size} elements",
                available=f"{DENSE_LIMIT}",
                advice="storing it as an initializer (constant folding in the exporter does)",
            )
        source = DenseAttr.get(_numbers(short))
        weight = self._append(WeightOp(value.name, tensor(short.shape, element_type), source), value.name)
        if short.shape == value.shape:
            return weight
        return self._append(ExpandOp(weight, value.shape), value.name)

    def _append(self, op: WeightOp | ExpandOp, name: str) -> SSAValue:
        op.location = location(name)
        self.block.add_op(op)
        return op.result


def _distinct(array: Array) -> Array:
    """The array with every axis that is broadcast (stride 0) cut to 1."""
    return array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]


def _squash(array: Array) -> Array:
    """The array with every axis along which it repeats cut to 1."""
    array = _distinct(array)
    for axis in range(array.ndim):
        first = array.take([0], axis=axis)
        if array.shape[axis] > 1 and bool((array == first).all()):
            array = first
    return array


def _numbers(array: Array) -> list[float]:
    """Elements as Python ints (also of i1) or floats, row-major; a float32 as its shortest text reads."""
    flat = array.reshape(-1)
    if flat.dtype.kind in "iub":
        return [int(number) for number in flat]
    if flat.dtype == np.float32:
        return [float(str(number)) for number in flat]
    return [float(number) for number in flat]


def check_weight(value: Value, store: OnnxStore) -> None:
    """Refuses a weight that has no elements, or holds a NaN or an infinity."""
    if value.size == 0:
        raise NeuronError(
            f"tensor '{value.name}' has no elements (shape {list(value.shape)})",
            location=value.name,
            advice="removing the branch that it feeds",
        )
    array = value.constant if value.constant is not None else store.get(value.name)
    array = _distinct(array)
    if array.dtype.kind not in "fV" or _finite(array):
        return
    values = np.asarray(array, np.float32)
    what = "NaN" if bool(np.isnan(values).any()) else "an infinity"
    advice = "training or exporting the model again"
    if what != "NaN":
        advice = (
            "a large finite number, such as -1e9 in a mask: the machine transposes by multiplying, and 0 * inf is NaN"
        )
    raise NeuronError(f"weight '{value.name}' holds {what}", location=value.name, advice=advice)


def _finite(array: Array) -> bool:
    """Whether all elements are finite. For float32 by dot products with zeros, which run at the speed of memory."""
    flat = array.reshape(-1)
    if flat.dtype != np.float32 or not flat.flags.c_contiguous:
        return bool(np.isfinite(flat.astype(np.float32)).all())
    step = 1 << 18
    zeros = np.zeros(min(step, flat.size), np.float32)
    with np.errstate(invalid="ignore"):
        return all(
            float(np.dot(chunk, zeros[: chunk.size])) == 0.0
            for chunk in (flat[start : start + step] for start in range(0, flat.size, step))
        )


def location(name: str) -> LocationAttr:
    """An ONNX name as a location."""
    return name_location(name) if name else UnknownLoc()


class Context:
    """One ONNX node, as its handler sees it."""

    def __init__(self, module: Module, node: NodeProto, name: str, values: Sequence[Value | None]) -> None:
        from onnx import helper

        self.module = module
        self.node = node
        self.name = name
        self.operands = list(values)
        self.opset = module.opset
        self._attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    @property
    def op_type(self) -> str:
        return self.node.op_type

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute's value; text as str."""
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has_attribute(self, name: str) -> bool:
        return name in self._attributes

    def ints(self, name: str) -> list[int] | None:
        """A list attribute, or None when it is absent or empty."""
        value = self._attributes.get(name)
        return [int(number) for number in value] if value else None

    def operand(self, index: int) -> Value:
        """An operand that must be there."""
        value = self.operands[index] if index < len(self.operands) else None
        if value is None:
            raise self.error(f"input {index} is missing")
        return value

    def has(self, index: int) -> bool:
        """Whether an optional operand is given."""
        return index < len(self.operands) and self.operands[index] is not None

    def value(self, index: int) -> SSAValue:
        """An operand as an IR value."""
        return self.module.materialize(self.operand(index))

    def optional(self, index: int) -> SSAValue | None:
        """An optional operand as an IR value."""
        return self.value(index) if self.has(index) else None

    def values(self) -> list[SSAValue]:
        """All operands as IR values."""
        return [self.value(index) for index in range(len(self.operands))]

    def shape(self, index: int) -> tuple[int, ...]:
        return self.operand(index).shape

    def rank(self, index: int) -> int:
        return len(self.operand(index).shape)

    def dtype(self, index: int) -> np.dtype[Any]:
        return self.operand(index).dtype

    def constant(self, index: int, what: str) -> Array:
        """An operand that must be known when compiling: `what` names it in the error."""
        value = self.operand(index)
        array = self.module.known(value)
        if array is None:
            raise self.error(
                f"its {what} (input {index}, '{value.name}') is computed while the model runs",
                advice="a model whose shapes and parameters are fixed; simplifying it with a constant folder may do",
            )
        return array

    def constant_ints(self, index: int, what: str) -> list[int]:
        """A constant operand as a list of integers."""
        return [int(number) for number in self.constant(index, what).reshape(-1)]

    def constant_number(self, index: int, what: str) -> float | None:
        """An optional constant scalar operand."""
        if not self.has(index):
            return None
        array = self.constant(index, what)
        if array.size != 1:
            raise self.error(f"its {what} must be one number", needed="1 element", available=f"{array.size}")
        return float(array.reshape(-1)[0])

    def axis(self, axis: int, rank: int, *, inclusive: bool = False) -> int:
        """An axis as a non-negative one. `inclusive`: may be the rank itself."""
        limit = rank + 1 if inclusive else rank
        if not -rank <= axis < limit:
            raise self.error(f"axis {axis} is out of range", needed=f"{-rank} to {limit - 1}")
        return axis + rank if axis < 0 else axis

    def axes(self, axes: Sequence[int], rank: int) -> list[int]:
        """Axes as non-negative ones, ascending; a repeated one is an error."""
        found = sorted(self.axis(axis, rank) for axis in axes)
        if len(set(found)) != len(found):
            raise self.error(f"axes {list(axes)} repeat")
        return found

    def axes_operand(self, index: int, since: int) -> list[int] | None:
        """Axes given by input `index` from opset `since` on, by the attribute `axes` before; None when not given."""
        if self.opset >= since:
            return self.constant_ints(index, "axes") if self.has(index) else None
        return self.ints("axes")

    def emit(self, op: NnOp) -> SSAValue:
        """Appends an op, located at this node."""
        op.location = location(self.name)
        self.module.block.add_op(op)
        return op.value

    def type(self, value: SSAValue) -> Tensor:
        return type_of(value)

    def scalar(self, number: float, element_type: Attribute) -> SSAValue:
        """A constant number that the node implies."""
        op = WeightOp(f"{self.name}/{number:g}", tensor((), element_type), SplatAttr.get(number))
        op.location = location(self.name)
        self.module.block.add_op(op)
        return op.result

    def table(self, name: str, values: Array) -> SSAValue:
        """A small constant, written out in the IR under `name`.

        Raises:
            NeuronError: more than `DENSE_LIMIT` elements.
        """
        if values.size > DENSE_LIMIT:
            raise self.error(f"a table of {values.size} elements is too long", needed=f"at most {DENSE_LIMIT}")
        element_type = ELEMENT_TYPES[element_name(values.dtype)]
        op = WeightOp(name, tensor(values.shape, element_type), DenseAttr.get(_numbers(values)))
        op.location = location(self.name)
        self.module.block.add_op(op)
        return op.result

    def error(
        self, message: str, *, needed: object = None, available: object = None, advice: str | None = None
    ) -> NeuronError:
        """An error at this node."""
        if advice is None and needed is None:
            advice = "checking the model: this node cannot run as it stands"
        return NeuronError(
            f"{self.op_type}: {message}",
            op=self.op_type,
            location=self.name,
            needed=needed,
            available=available,
            advice=advice,
        )

    def misfit(self, error: VerifyException) -> NeuronError:
        """An op that refused its operands."""
        shapes = ", ".join(str(list(value.shape)) for value in self.operands if value is not None)
        advice = "checking the model's shapes"
        if self.module.batch is not None:
            advice = "compiling with the model's own batch size: some of its constants seem to depend on it"
        return NeuronError(
            f"{self.op_type}: {error.args[0]}",
            op=self.op_type,
            location=self.name,
            available=f"inputs of shape {shapes}",
            advice=advice,
        )
