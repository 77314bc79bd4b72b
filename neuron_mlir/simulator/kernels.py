"""What each instruction computes, as numpy statements for generated code.

Values of every float type are float32 arrays; a store to bf16 or f16 rounds (`numerics`). All arithmetic is f32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import FloatAttr

from neuron_mlir.dialects.core.compute import (
    ActivationOp,
    CopyOp,
    MatmulOp,
    MemsetOp,
    ScalarTensorTensorOp,
    SelectOp,
    TensorReduceOp,
    TensorScalarOp,
    TensorTensorOp,
    TransposeOp,
)
from neuron_mlir.dialects.core.instruction import free_shape
from neuron_mlir.dialects.core.movement import DmaOp, GatherOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator import numerics
from neuron_mlir.simulator.functions import ALU_FUNCTIONS, UNARY_FUNCTIONS
from neuron_mlir.simulator.program import Step, Touch

Array = NDArray[np.float32]
Name = Callable[[object], str]


def emit(step: Step, views: dict[str, str], name: Name) -> list[str]:
    """Statements that carry out the instruction; `views` is the text of each access, `name` makes an object known
    to the code.

    Raises `NeuronError` for an op without semantics.
    """
    writer = _WRITERS.get(type(step.op))
    if writer is None:
        raise NeuronError(f"{step.op.name} has no simulation", op=step.op)
    return writer(step, views, name)


def touch_of(step: Step, role: str) -> Touch:
    """The access of that role."""
    return next(touch for touch in step.touches if touch.role == role)


def _store(step: Step, target: str, value: str, name: Name) -> str:
    """`target = value`, rounded to the type stored."""
    element = str(step.touches[0].storage.element)
    if element == "bf16":
        value = f"{name(numerics.round_bf16)}({value})"
    elif element == "f16":
        value = f"{name(numerics.round_f16)}({value})"
    return f"{target} = {value}"


def view_shape(touch: Touch) -> tuple[int, ...]:
    """The shape of the numpy view of an access of an engine: without dimensions of size 1, as `codegen.index_text`."""
    return (touch.sizes[0], *(free_shape(touch.sizes) or (1,)))


def rank(touch: Touch) -> int:
    """Dimensions of the numpy view of an access of an engine."""
    return 1 + max(1, len(free_shape(touch.sizes)))


def column(view: str, dims: int) -> str:
    """One element per partition, shaped to broadcast over an operand of that many dimensions."""
    return view if dims == 2 else f"{view}[:, :{', None' * (dims - 2)}]"


def _matmul(step: Step, views: dict[str, str], name: Name) -> list[str]:
    op = cast(MatmulOp, step.op)
    from neuron_mlir.simulator.codegen import expression  # the two modules write one text together

    stationary, moving = touch_of(step, "stationary"), touch_of(step, "moving")
    rows = stationary.sizes[0]
    columns = int(np.prod(moving.sizes[1:]))
    init = expression(op.init.data.results[0], step.variables)
    data = views["moving"]
    if 0 in moving.strides:
        data = f"{name(np.broadcast_to)}({data}, {view_shape(moving)})"
    weights = views["stationary"]
    if 0 in stationary.strides:
        weights = f"{name(np.broadcast_to)}({weights}, {view_shape(stationary)})"
    data = f"{data}.reshape({rows}, {columns})"
    # BLAS has other kernels for a vector that is not contiguous: the bits must not depend on where a buffer lies.
    if columns == 1:
        data = f"{data}.copy()"
    if step.touches[0].sizes[0] == 1:
        weights = f"{weights}.copy()"
    product = f"{weights}.T @ {data}"
    shape = view_shape(step.touches[0])
    lines = [f"p = ({product}).reshape({shape})"]
    if init == "0":
        return [*lines, f"{views['acc']} = p"]
    return [*lines, f"if {init}: {views['acc']} += p", f"else: {views['acc']} = p"]


def _transpose(step: Step, views: dict[str, str], name: Name) -> list[str]:
    rows = touch_of(step, "in").sizes[0]
    out = step.touches[0].sizes
    return [f"{views['out']} = {views['in']}.reshape({rows}, -1).T.reshape({out[0]}, -1)"]


def _activation(step: Step, views: dict[str, str], name: Name) -> list[str]:
    op = cast(ActivationOp, step.op)
    dims = rank(step.touches[0])
    value = views["in"]
    for role, number, sign in (("scale", op.scale_value, "*"), ("bias", op.bias_value, "+")):
        if role in views:
            value = f"({value} {sign} {column(views[role], dims)})"
        elif number is not None:
            value = f"({value} {sign} {name(np.float32(number.value.data))})"
    func = op.func.data
    if func == "leaky_relu":
        slope = name(np.float32(op.alpha.value.data if op.alpha is not None else 0.01))
        return [f"x = {value}", _store(step, views["out"], f"{name(np.where)}(x < 0, x * {slope}, x)", name)]
    if func != "copy":
        value = f"{name(UNARY_FUNCTIONS[func])}({value})"
    return [_store(step, views["out"], value, name)]


def _copy(step: Step, views: dict[str, str], name: Name) -> list[str]:
    assert isinstance(step.op, CopyOp)
    value = views["in"]
    source = str(step.touches[1].storage.element)
    if not source.startswith(("f", "bf")):
        value = f"{value}.astype({name(np.float32)})"
    return [_store(step, views["out"], value, name)]


def _memset(step: Step, views: dict[str, str], name: Name) -> list[str]:
    op = cast(MemsetOp, step.op)
    return [_store(step, views["out"], name(np.full((1, 1), op.value.value.data, np.float32)), name)]


def _tensor_tensor(step: Step, views: dict[str, str], name: Name) -> list[str]:
    op = cast(TensorTensorOp, step.op)
    return [_store(step, views["out"], f"{name(ALU_FUNCTIONS[op.op.data])}({views['a']}, {views['b']})", name)]


def operand(views: dict[str, str], role: str, number: FloatAttr | None, dims: int, name: Name) -> str:
    """Text of an operand that is a number or one element per partition."""
    if role in views:
        return column(views[role], dims)
    assert number is not None
    return name(np.float32(number.value.data))


def _tensor_scalar(step: Step, views: dict[str, str], name: Name) -> list[str]:
    op = cast(TensorScalarOp, step.op)
    dims = rank(step.touches[0])
    function = name(ALU_FUNCTIONS[op.op0.data])
    value = f"{function}({views['in']}, {operand(views, 'operand0', op.value0, dims, name)})"
    if op.op1 is not None:
        value = f"{name(ALU_FUNCTIONS[op.op1.data])}({value}, {operand(views, 'operand1', op.value1, dims, name)})"
    return [_store(step, views["out"], value, name)]


def _scalar_tensor_tensor(step: Step, views: dict[str, str], name: Name) -> list[str]:
    op = cast(ScalarTensorTensorOp, step.op)
    scale = column(views["operand0"], rank(step.touches[0]))
    inner = f"{name(ALU_FUNCTIONS[op.op0.data])}({views['a']}, {scale})"
    return [_store(step, views["out"], f"{name(ALU_FUNCTIONS[op.op1.data])}({inner}, {views['b']})", name)]


_REDUCERS: dict[str, Any] = {
    "add": np.add.reduce,
    "max": np.maximum.reduce,
    "min": np.minimum.reduce,
    "mul": np.multiply.reduce,
}


def _tensor_reduce(step: Step, views: dict[str, str], name: Name) -> list[str]:
    op = cast(TensorReduceOp, step.op)
    out, source = step.touches[0].sizes, step.touches[1].sizes
    kept = 1 + len(free_shape(out))
    axes = tuple(range(kept, 1 + max(1, len(free_shape(source)))))
    shape = (out[0], *(free_shape(out) or (1,)))
    value = f"{name(_REDUCERS[op.op.data])}({views['in']}, axis={axes}).reshape({shape})"
    return [_store(step, views["out"], value, name)]


def _select(step: Step, views: dict[str, str], name: Name) -> list[str]:
    assert isinstance(step.op, SelectOp)
    value = f"{name(np.where)}({views['cond']} != 0, {views['a']}, {views['b']})"
    return [_store(step, views["out"], value, name)]


def _dma(step: Step, views: dict[str, str], name: Name) -> list[str]:
    op = cast(DmaOp, step.op)
    dst, src = step.touches
    order = op.permutation()
    view, sizes, strides = views["src"], src.sizes, src.strides
    if order is not None:
        view = f"{view}.transpose({order})"
        sizes, strides = tuple(sizes[axis] for axis in order), tuple(strides[axis] for axis in order)
    # The two agree on the dimensions that are not 1; numpy has to be told where the others are.
    elements = iter(1 if step == 0 else size for size, step in zip(sizes, strides, strict=True) if size != 1)
    # A permuting DMA is given views of all dimensions.
    shape = tuple(next(elements) if size != 1 else 1 for size in (kept_sizes(dst) if order is None else dst.sizes))
    if order is None and shape == tuple(
        1 if src.strides[axis] == 0 else src.sizes[axis] for axis in kept_dimensions(src)
    ):
        return [f"{views['dst']} = {view}"]
    return [f"{views['dst']} = {view}.reshape({shape})"]


def kept_dimensions(touch: Touch) -> list[int]:
    """Dimensions that the numpy view of an access has: see `codegen.index_text`."""
    in_dram = touch.storage.memory.space == "dram"
    kept = {axis for axis, size in enumerate(touch.sizes) if size != 1 or (axis == 0 and not in_dram)}
    if len(kept) < (1 if in_dram else 2):
        kept.add(len(touch.sizes) - 1)
    return sorted(kept)


def kept_sizes(touch: Touch) -> list[int]:
    """Sizes of those dimensions."""
    return [touch.sizes[axis] for axis in kept_dimensions(touch)]


def _gather(step: Step, views: dict[str, str], name: Name) -> list[str]:
    assert isinstance(step.op, GatherOp)
    rows = step.touches[1].sizes[0]
    check = name(_check_rows)
    return [f"{views['dst']} = {views['table']}[{check}({views['index']}.reshape(-1), {rows}, {name(step.op)})]"]


def _check_rows(index: NDArray[Any], rows: int, op: GatherOp) -> NDArray[np.int64]:
    numbers = index.astype(np.int64)
    if numbers.size and (int(numbers.min()) < 0 or int(numbers.max()) >= rows):
        bad = int(numbers.max()) if int(numbers.max()) >= rows else int(numbers.min())
        raise NeuronError(
            f"out-of-range access: gather asks for row {bad}",
            op=op,
            resource="rows of the table",
            needed=bad,
            available=rows,
        )
    return numbers


_WRITERS: dict[type, Callable[[Step, dict[str, str], Name], list[str]]] = {
    MatmulOp: _matmul,
    TransposeOp: _transpose,
    ActivationOp: _activation,
    CopyOp: _copy,
    MemsetOp: _memset,
    TensorTensorOp: _tensor_tensor,
    TensorScalarOp: _tensor_scalar,
    ScalarTensorTensorOp: _scalar_tensor_tensor,
    TensorReduceOp: _tensor_reduce,
    SelectOp: _select,
    DmaOp: _dma,
    GatherOp: _gather,
}
