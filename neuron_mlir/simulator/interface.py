"""What a module of any level takes and gives: names, element types and shapes, and random inputs that fit."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects import func
from xdsl.dialects.builtin import MemRefType, ModuleOp, TensorType
from xdsl.ir import Attribute, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.movement import DmaOp, GatherOp
from neuron_mlir.dialects.pipe.ops import InputOp, OutputOp, ProgramOp, RingOp, StageOp, StreamType, YieldOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.functions import body_of, input_names, output_names

Array = NDArray[Any]
Arrays = dict[str, Array]

NUMPY_TYPES: dict[str, str] = {
    "f32": "float32",
    "bf16": "float32",
    "f16": "float32",
    "f64": "float64",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "ui8": "uint8",
    "i1": "bool",
}
"""The NumPy type of an array that holds values of each element type at the interface; bf16 and f16 values are
float32.
"""


@dataclass(frozen=True)
class Port:
    """An input or output of a module: its name, element type (`bf16`, `i64`, ...) and shape of one request."""

    name: str
    element: str
    shape: tuple[int, ...]
    value: SSAValue | None = None
    """Of an input: the block argument, stream or ring it becomes."""

    def __str__(self) -> str:
        return f"'{self.name}': {'x'.join(map(str, self.shape)) or 'scalar'} of {self.element}"


def program_of(module: ModuleOp) -> ProgramOp | None:
    """The module's `pipe.program`, or None."""
    return next((op for op in module.body.block.ops if isinstance(op, ProgramOp)), None)


def function_of(module: ModuleOp) -> func.FuncOp:
    """The function `@main`, or the only function.

    Raises:
        NeuronError: there is nothing to run, or the function has several blocks.
    """
    functions = [op for op in module.body.block.ops if isinstance(op, func.FuncOp) and op.body.blocks]
    for found in functions:
        if found.sym_name.data != "main" and len(functions) > 1:
            continue
        body_of(found)
        return found
    raise NeuronError(
        "the module holds nothing to run",
        needed="a pipe.program, or a func.func @main",
        available=", ".join(f"@{found.sym_name.data}" for found in functions) or "no function with a body",
    )


def input_types(module: ModuleOp) -> list[Port]:
    """The inputs of a module of any level, in order."""
    program = program_of(module)
    if program is None:
        main = function_of(module)
        return [_port(name, arg.type, arg) for name, arg in zip(input_names(main), main.args, strict=True)]
    ports: dict[str, Port] = {}
    for op in program.body.block.ops:
        # One input has a ring for each stage that reads it.
        if isinstance(op, InputOp) and op.label.data not in ports:
            value = op.result[0] if op.ring is None else op.ring
            ports[op.label.data] = _port(op.label.data, value.type, value)
    return list(ports.values())


def output_types(module: ModuleOp) -> list[Port]:
    """The outputs of a module of any level, in order."""
    program = program_of(module)
    if program is None:
        main = function_of(module)
        return [_port(name, type) for name, type in zip(output_names(main), main.function_type.outputs, strict=True)]
    return [
        _port(op.label.data, op.source.type, op.source) for op in program.body.block.ops if isinstance(op, OutputOp)
    ]


def _port(name: str, type: Attribute, value: SSAValue | None = None) -> Port:
    if isinstance(type, StreamType):
        type = type.element
    if isinstance(type, MemRefType):
        memref = cast("MemRefType[Attribute]", type)
        owner = None if value is None else value.owner
        axis = owner.slot_axis if isinstance(owner, RingOp) else 0
        shape = memref.get_shape()
        return Port(name, str(memref.element_type), (*shape[:axis], *shape[axis + 1 :]), value)
    if not isinstance(type, TensorType):
        raise NeuronError(f"'{name}' is not a tensor", needed="a tensor with a static shape", available=type)
    tensor = cast("TensorType[Attribute]", type)
    return Port(name, str(tensor.element_type), tuple(tensor.get_shape()), value)


def check_inputs(ports: Sequence[Port], feed: Mapping[str, Array], request: int | None = None) -> Arrays:
    """The inputs of one request as the interpreter wants them: every port there, right shape, right kind of number.

    Floats of other widths are converted; what goes into a bf16 or f16 input is rounded.

    Raises:
        NeuronError: an input is missing, unknown, or has the wrong shape or kind of element.
    """
    where = "" if request is None else f" of request {request}"
    known = [port.name for port in ports]
    for name in feed:
        if name not in known:
            raise NeuronError(
                f"there is no input '{name}'{where}", needed=", ".join(known) or "no inputs", available=name
            )
    return {port.name: _check(port, feed.get(port.name), where, feed) for port in ports}


def _check(port: Port, value: Array | None, where: str, feed: Mapping[str, Array]) -> Array:
    if value is None:
        raise NeuronError(
            f"input '{port.name}'{where} is missing", needed=port, available=", ".join(feed) or "no inputs"
        )
    value = np.asarray(value)
    if value.shape != port.shape:
        raise NeuronError(
            f"input '{port.name}'{where} has the wrong shape", needed=list(port.shape), available=list(value.shape)
        )
    dtype = np.dtype(NUMPY_TYPES[port.element])
    if (dtype.kind == "f") != (value.dtype.kind == "f" or value.dtype.name == "bfloat16"):
        raise NeuronError(
            f"input '{port.name}'{where} has the wrong element type", needed=port.element, available=value.dtype.name
        )
    if dtype.kind in "iu" and value.dtype != dtype and value.size:
        limits = np.iinfo(dtype)
        if int(value.min()) < limits.min or int(value.max()) > limits.max:
            raise NeuronError(
                f"input '{port.name}'{where} does not fit its element type",
                needed=f"{limits.min} to {limits.max}",
                available=f"{value.min()} to {value.max()}",
            )
    return rounded(np.ascontiguousarray(value, dtype), port.element).reshape(port.shape)


def rounded(values: Array, element: str) -> Array:
    """`values` rounded to the element type where that is narrower than float32."""
    from neuron_mlir.simulator import numerics

    if element == "bf16":
        return numerics.round_bf16(values)
    return numerics.round_f16(values) if element == "f16" else values


def random_inputs(module: ModuleOp, seed: int = 0, integer: bool = False) -> Arrays:
    """Inputs for one request, the same for the same seed and names.

    Floats are normal with variance 1, or with `integer` whole numbers from -3 to 3, so that float32 sums are exact.
    Integers are below the number of rows of the tables they select from, as far as that can be traced through
    reshapes and the like; otherwise 0 or 1.
    """
    made: Arrays = {}
    for port in input_types(module):
        generator = np.random.default_rng([seed, zlib.crc32(port.name.encode())])
        dtype = np.dtype(NUMPY_TYPES[port.element])
        if dtype.kind == "f":
            if integer:
                values = generator.integers(-3, 4, port.shape).astype(dtype)
            else:
                values = generator.standard_normal(port.shape, np.float32).astype(dtype)
            made[port.name] = rounded(values, port.element)
            continue
        bound = None if port.value is None else _index_bound(port.value)
        limit = 2 if bound is None or dtype.kind == "b" else max(1, min(bound, int(np.iinfo(dtype).max)))
        made[port.name] = generator.integers(0, limit, port.shape).astype(dtype)
    return made


_PASSES_ON = (
    nn.ReshapeOp,
    nn.TransposeOp,
    nn.SliceOp,
    nn.CastOp,
    nn.ExpandOp,
    nn.ConcatOp,
)
"""Ops whose results hold values of their operands, as numbers."""


def _index_bound(value: SSAValue) -> int | None:
    """The fewest rows among the tables that `value` selects from; None when it selects from none."""
    bounds: list[int] = []
    seen: set[SSAValue] = set()
    work = [value]
    while work:
        current = work.pop()
        if current in seen:
            continue
        seen.add(current)
        for use in current.uses:
            op = use.operation
            if isinstance(op, nn.GatherOp):
                if use.index == 1:
                    bounds.append(cast("TensorType[Attribute]", op.data.type).get_shape()[op.axis])
                else:
                    work.append(op.result)
            elif isinstance(op, GatherOp):
                names = op.role_names()
                if use.index < len(names) and names[use.index] == "index":
                    bounds.append(op.shape_of("table")[0])
            else:
                work.extend(_targets(op, use.index))
    return min(bounds) if bounds else None


def _targets(op: Operation, operand: int) -> list[SSAValue]:
    """Values that hold what operand number `operand` of `op` holds."""
    if isinstance(op, _PASSES_ON):
        return list(op.results)
    if isinstance(op, (nn.FusedOp, StageOp)):
        return [op.regions[0].block.args[operand]]
    if isinstance(op, (nn.YieldOp, YieldOp)):
        parent = op.parent_op()
        return [parent.results[operand]] if isinstance(parent, (nn.FusedOp, StageOp)) else []
    if isinstance(op, DmaOp) and operand == 1:
        return [op.buffers[0]]
    return []
