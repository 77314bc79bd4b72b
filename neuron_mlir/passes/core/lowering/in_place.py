"""Results of layers that take the place of an operand that nobody needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.ir import Operation, SSAValue

from neuron_mlir.passes.core.lowering.context import Context, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.layout import Home

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering


def over_operand(
    stage: StageLowering, layer: Operation, after: Sequence[Operation], result: SSAValue, x: Home
) -> Home | None:
    """The place of an operand (a residual) that a group reads tile by tile where it stores its result, if the group is
    the last to read it: half of what a residual block keeps in SBUF. None when there is no such operand.

    A tile is read before it is stored: sums are f32 and elsewhere, only what is rounded to 16 bits goes to the result.
    """
    context = stage.context
    block = layer.parent_block()
    kept = result in stage.preset or result in stage.stored_as or result in context.leaves or result in context.paddings
    if kept or context.hold is not None or block is not stage.stage.body.block:
        return None
    element = tensor_type(result).element_type
    if str(element) not in ("bf16", "f16"):
        return None
    for inner in dict.fromkeys(v for op in after for v in op.operands):
        value = context.origin(inner)
        if value not in context.homes or value is result:
            continue
        if shape_of(value) != shape_of(result) or tensor_type(value).element_type != element:
            continue
        home = next((h for h in context.places(value) if h.in_sbuf), None)
        if home is None or home.buffer is x.buffer or home.lane0 or home.partition_axes() != (1,):
            continue
        if len(home.partition_factors()) == 1 and home.merged() == home and _is_last(context, value, home, layer):
            context.define(result, home)
            context.count("in place")
            return home
    return None


def _is_last(context: Context, value: SSAValue, home: Home, layer: Operation) -> bool:
    """Whether nothing after a layer reads what is in a buffer, nor the layer anything there but `value`."""
    for other, places in context.homes.items():
        if not any(place.buffer is home.buffer for place in places):
            continue
        for use in other.uses:
            user = _in_block(use.operation, layer)
            if user is None or (user is layer and other is not value):
                return False
            if user is not layer and not user.is_before_in_block(layer):
                return False
    return True


def _in_block(op: Operation, layer: Operation) -> Operation | None:
    """The op of the layer's block that `op` is or is inside of."""
    current: Operation | None = op
    while current is not None and current.parent_block() is not layer.parent_block():
        current = current.parent_op()
    return current
