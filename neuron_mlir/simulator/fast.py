"""The common instructions again, without temporaries: same values as `kernels`, bit for bit, in about the time of
the arithmetic.

Results go straight into the target or into a scratch array shared by all steps of a shape; rounding to bf16 works
on the bits, in place. What has no fast form here runs as `kernels` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.dialects.core.compute import (
    ActivationOp,
    CopyOp,
    MatmulOp,
    ScalarTensorTensorOp,
    TensorScalarOp,
    TensorTensorOp,
)
from neuron_mlir.simulator.kernels import Name, column, operand, rank, view_shape
from neuron_mlir.simulator.program import Step, Touch

U16, ONE, HALF, MASK = (np.uint32(n) for n in (16, 1, 0x7FFF, 0xFFFF0000))
FLOATS = ("f32", "bf16", "i1")
"""Element types whose values are float32 and that need at most rounding to bf16."""


class Scratch:
    """One block of memory under the scratch arrays of every shape: steps run one at a time, so they may share it."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[int, tuple[int, ...]], NDArray[np.float32]] = {}
        self._bits: dict[tuple[int, tuple[int, ...]], NDArray[np.uint32]] = {}
        self._blocks: dict[int, NDArray[np.float32]] = {}

    def bits(self, shape: tuple[int, ...], number: int = 0) -> NDArray[np.uint32]:
        """The same array as `get`, its values as bits."""
        key = (number, shape)
        if key not in self._bits:
            self._bits[key] = self.get(shape, number).view(np.uint32)
        return self._bits[key]

    def get(self, shape: tuple[int, ...], number: int = 0) -> NDArray[np.float32]:
        """A float32 array of that shape; arrays of different `number` do not overlap."""
        key = (number, shape)
        if key not in self.arrays:
            size = int(np.prod(shape))
            block = self._blocks.get(number)
            if block is None or block.size < size:
                # Arrays made before keep the smaller block: correct, only less compact.
                block = self._blocks[number] = np.empty(max(size, 1 << 16), np.float32)
            self.arrays[key] = block[:size].reshape(shape)
        return self.arrays[key]


def emit(step: Step, views: dict[str, str], bits: str, scratch: Scratch, name: Name) -> list[str] | None:
    """Statements that carry out the instruction, or None when only `kernels` knows it.

    `views` is the text of each access, `bits` that of the written one as uint32.
    """
    writer = _WRITERS.get(type(step.op))
    return None if writer is None else writer(_Step(step, views, bits, scratch, name))


class _Step:
    """What a writer needs."""

    def __init__(self, step: Step, views: dict[str, str], bits: str, scratch: Scratch, name: Name):
        self.step, self.views, self.bits, self.scratch, self.name = step, views, bits, scratch, name
        self.out = step.touches[0]
        self.element = str(self.out.storage.element)

    def float_operands(self) -> bool:
        """Whether every access holds float32 values of a type that is rounded at most to bf16, and what is read
        after the first result has been stored is not in the buffer written."""
        later = self.step.touches[2:]
        return all(str(touch.storage.element) in FLOATS for touch in self.step.touches) and all(
            touch.storage is not self.out.storage for touch in later
        )

    def temporary(self, number: int = 0) -> str:
        """A scratch array of the written access's shape."""
        return self.name(self.scratch.get(view_shape(self.out), number))

    def target(self) -> str:
        """Where the last operation but rounding goes: the buffer itself, or scratch when it is to be rounded."""
        return self.temporary() if self.element == "bf16" else self.views[self.step.touches[0].role]

    def finish(self, source: str | None = None) -> list[str]:
        """Round what is in scratch (or in `source`) into the buffer, if it needs rounding."""
        if self.element != "bf16":
            return []
        if source is None:
            source = self.name(self.scratch.bits(view_shape(self.out)))
        second = self.name(self.scratch.bits(view_shape(self.out), 1))
        shift, both, add = self.name(np.right_shift), self.name(np.bitwise_and), self.name(np.add)
        one, sixteen, half, mask = (self.name(value) for value in (ONE, U16, HALF, MASK))
        return [
            f"u = {source}",
            f"{shift}(u, {sixteen}, {second}); {both}({second}, {one}, {second}); {add}({second}, {half}, {second})",
            f"{add}({second}, u, {second}); {both}({second}, {mask}, {self.bits})",
        ]


def mergeable(touch: Touch) -> bool:
    """Whether the free dimensions of an access are one evenly spaced run, so that they reshape to one without a
    copy.
    """
    expected: int | None = None
    strides = touch.storage.byte_strides()
    for size, step, stride in reversed(list(zip(touch.sizes[1:], touch.strides[1:], strides[1:], strict=True))):
        if size == 1:
            continue
        if step == 0 or (expected is not None and step * stride != expected):
            return False
        expected = size * step * stride
    return True


def _matmul(s: _Step) -> list[str] | None:
    from neuron_mlir.simulator.codegen import expression  # the two modules write one text together

    op = cast(MatmulOp, s.step.op)
    acc, stationary, moving = s.step.touches
    if 0 in stationary.strides or 0 in moving.strides or not mergeable(acc):
        return None
    rows, width = stationary.sizes[0], acc.sizes[0]
    columns = int(np.prod(moving.sizes[1:]))
    lines: list[str] = []
    weights = s.views["stationary"]
    data = s.views["moving"]
    if len(view_shape(moving)) > 2:
        if mergeable(moving):
            data = f"{data}.reshape({rows}, {columns})"
        else:
            packed = s.scratch.get(view_shape(moving), 2)
            lines.append(f"{s.name(packed)}[...] = {data}")
            data = s.name(packed.reshape(rows, columns))
    # BLAS has other kernels for a vector that is not contiguous: the bits must not depend on where a buffer lies.
    if columns == 1:
        data = f"{data}.copy()"
    if width == 1:
        weights = f"{weights}.copy()"
    target = s.views["acc"]
    if len(view_shape(acc)) > 2:
        target = f"{target}.reshape({width}, {columns})"
    product, add = s.name(np.matmul), s.name(np.add)
    partial = s.name(s.scratch.get((width, columns)))
    init = expression(op.init.data.results[0], s.step.variables)
    fresh = f"{product}({weights}.T, {data}, {target})"
    more = f"{product}({weights}.T, {data}, {partial}); a = {target}; {add}(a, {partial}, a)"
    if init == "0":
        return [*lines, fresh]
    if init.isdigit():
        return [*lines, more]
    return [*lines, f"if {init}: {more}", f"else: {fresh}"]


_UNARY: dict[str, np.ufunc] = {
    "tanh": np.tanh,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "square": np.square,
    "abs": np.abs,
    "floor": np.floor,
}


def _activation(s: _Step) -> list[str] | None:
    op = cast(ActivationOp, s.step.op)
    func = op.func.data
    if not s.float_operands() or not (func in ("copy", "relu") or func in _UNARY):
        return None
    value, lines, width = s.views["in"], list[str](), rank(s.out)
    target = s.target()
    for role, number, function in (("scale", op.scale_value, np.multiply), ("bias", op.bias_value, np.add)):
        other = ""
        if role in s.views:
            other = column(s.views[role], width)
        elif number is not None:
            other = s.name(np.float32(number.value.data))
        if other:
            lines.append(f"x = {s.name(function)}({value}, {other}, {target})")
            value = "x"
    if func == "relu":
        lines.append(f"{s.name(np.maximum)}({value}, {s.name(np.float32(0))}, out={target})")
    elif func in _UNARY:
        lines.append(f"{s.name(_UNARY[func])}({value}, {target})")
    elif value != "x":
        return _copied(s, value)
    return lines + s.finish()


def _copied(s: _Step, value: str) -> list[str]:
    """`out = value`: a copy, or a rounding of the bits of what is read."""
    if s.element != "bf16" or str(s.step.touches[1].storage.element) == "bf16":
        return [f"{s.views['out']} = {value}"]
    source = s.step.touches[1].storage.number
    return s.finish(value.replace(f"B{source}[", f"U{source}[", 1))


def _copy(s: _Step) -> list[str] | None:
    return _copied(s, s.views["in"]) if s.float_operands() else None


_ALU: dict[str, tuple[np.ufunc, bool]] = {
    "add": (np.add, False),
    "sub": (np.subtract, False),
    "rsub": (np.subtract, True),
    "mul": (np.multiply, False),
    "div": (np.divide, False),
    "rdiv": (np.divide, True),
    "max": (np.maximum, False),
    "min": (np.minimum, False),
}
"""Functions with an output argument, and whether their operands are swapped."""


def _apply(s: _Step, function: str, a: str, b: str, target: str) -> str:
    ufunc, swapped = _ALU[function]
    first, second = (b, a) if swapped else (a, b)
    return f"x = {s.name(ufunc)}({first}, {second}, out={target})"


def _tensor_tensor(s: _Step) -> list[str] | None:
    function = cast(TensorTensorOp, s.step.op).op.data
    if not s.float_operands() or function not in _ALU:
        return None
    return [_apply(s, function, s.views["a"], s.views["b"], s.target()), *s.finish()]


def _tensor_scalar(s: _Step) -> list[str] | None:
    op = cast(TensorScalarOp, s.step.op)
    second = None if op.op1 is None else op.op1.data
    if not s.float_operands() or op.op0.data not in _ALU or not (second is None or second in _ALU):
        return None
    width, target = rank(s.out), s.target()
    lines = [_apply(s, op.op0.data, s.views["in"], operand(s.views, "operand0", op.value0, width, s.name), target)]
    if second is not None:
        lines.append(_apply(s, second, "x", operand(s.views, "operand1", op.value1, width, s.name), target))
    return lines + s.finish()


def _scalar_tensor_tensor(s: _Step) -> list[str] | None:
    op = cast(ScalarTensorTensorOp, s.step.op)
    if not s.float_operands() or op.op0.data not in _ALU or op.op1.data not in _ALU:
        return None
    width = rank(s.out)
    # The inner value must not overwrite `b`, which may be the target: always through scratch.
    inner = _apply(s, op.op0.data, s.views["a"], column(s.views["operand0"], width), s.temporary())
    return [inner, _apply(s, op.op1.data, "x", s.views["b"], s.target()), *s.finish()]


_WRITERS: dict[type, Callable[[_Step], list[str] | None]] = {
    MatmulOp: _matmul,
    ActivationOp: _activation,
    CopyOp: _copy,
    TensorTensorOp: _tensor_tensor,
    TensorScalarOp: _tensor_scalar,
    ScalarTensorTensorOp: _scalar_tensor_tensor,
}


def canonical(array: NDArray[Any]) -> NDArray[Any]:
    """The array with one kind of NaN only: rounding on bits would carry a NaN whose payload is all ones into an
    infinity or a zero.
    """
    if array.dtype != np.float32:
        return array
    nan = np.isnan(array)
    if not nan.any():
        return array
    array = array.copy()
    array[nan] = np.nan
    return array
