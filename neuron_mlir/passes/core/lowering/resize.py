"""Nearest-neighbour resizing by whole numbers: every element is copied to the places of its block."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from xdsl.ir import Operation

from neuron_mlir.dialects import nn
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import STORE_QUEUE, Context, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.layout import Home
from neuron_mlir.passes.core.lowering.relayout import engine_copy, move
from neuron_mlir.passes.core.lowering.rows import row_bytes, row_source, row_tile, tile_bytes
from neuron_mlir.passes.unfolding import ROWS

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering


def lower_resize(stage: StageLowering, op: nn.ResizeOp) -> None:
    """Copies of the map, a scale apart in the result; maps too large for SBUF go by rows."""
    context = stage.context
    value = op.x
    if context.is_constant(value):
        scales = op.scales
        home = context.constant(value, context.label(value), lambda v, add: add(nn.ResizeOp(v, scales)))
        context.define(op.result, home)
        return
    if op.result in context.in_dram or (value in context.in_dram and not context.is_in_sbuf(value)):
        _by_rows(stage, op)
        return
    x = stage.want(value, (1,), op)
    repeat_into(context, x, stage.new_home(op.result, (1,)), op.scales, op)


def repeat_into(context: Context, source: Home, target: Home, scales: Sequence[int], layer: Operation) -> None:
    """Copy every element to its block of `scales`: a strided copy for each place in a block."""
    with ExitStack() as stack:
        part = target
        for axis, scale in enumerate(scales, 2):
            place = stack.enter_context(context.code.loop(scale))
            if scale > 1:
                found = part.part(axis, place, source.logical[axis], scale)
                assert found is not None  # a spatial axis is a dimension of its own
                part = found
        if not engine_copy(context, source, part):
            move(context, source, part, layer)


def _by_rows(stage: StageLowering, op: nn.ResizeOp) -> None:
    """Rows come in, are repeated along the other axes, and go out once for each row they become."""
    context = stage.context
    source = row_source(stage, op.x, {}, 0.0, op)
    target = stage.new_home(op.result, (1,))
    element = tensor_type(op.result).element_type
    shape, scale = shape_of(op.x), op.scales[0]
    wide = (*shape[: ROWS + 1], *shape_of(op.result)[ROWS + 1 :])
    rows = max(1, min(shape[ROWS], tile_bytes(op) // row_bytes(wide, element)))
    for segment in segments(shape[ROWS], rows):
        with context.code.tiles(segment) as start:
            x = row_tile(context, source, start, segment.size, op)
            out = [segment.size if a == ROWS else size for a, size in enumerate(wide)]
            tile = context.sbuf_home("rows", out, element, (1,))
            repeat_into(context, x, tile, (1, *op.scales[1:]), op)
            with context.code.loop(scale) as place:
                part = target.part(ROWS, start * scale + place, segment.size, scale)
                assert part is not None
                if part.in_sbuf:
                    move(context, tile, part, op)
                else:
                    copy_by_dma(context.code, tile, part, op, STORE_QUEUE)
