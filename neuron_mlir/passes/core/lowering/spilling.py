"""Values that `nn-rematerialize` sends to DRAM and back: their SBUF buffer as it is, padding included."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access
from neuron_mlir.dialects.core.memory import DRAM, SBUF
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import shape_of, tensor_type
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.layout import LANES, Home
from neuron_mlir.passes.core.lowering.plan import is_streamed

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.context import Context
    from neuron_mlir.passes.core.lowering.stage import StageLowering

SPILL_QUEUE, RELOAD_QUEUE = 3, 4
"""DMA queues: a reload that runs ahead must not wait behind a spill."""


def lower_place(stage: StageLowering, op: nn.PlaceOp) -> None:
    """A spill or a reload."""
    if isinstance(op, nn.SpillOp):
        lower_spill(stage, op)
    else:
        lower_reload(stage, op)


def lower_spill(stage: StageLowering, op: nn.PlaceOp) -> None:
    """Write a value's buffer to DRAM. What is there already (a ring, a map too large for SBUF) stays as it is."""
    context = stage.context
    value = op.x
    places = context.places(value)
    in_dram = [home for home in places if not home.in_sbuf]
    if in_dram:
        if value in context.in_dram and not is_streamed(op):
            context.in_dram.add(op.result)
        for home in in_dram:
            context.define(op.result, home)
        return
    source = next((home for home in places if _is_whole(home)), None)
    if source is None or not all(isinstance(use.operation, nn.ReloadOp) for use in op.result.uses):
        # Row-major, as any layer can read it.
        padding = context.paddings.get(op.result)
        home = context.dram_home(context.label(value), shape_of(value), tensor_type(value).element_type, padding)
        copy_by_dma(context.code, source or places[0], home, op, SPILL_QUEUE)
        context.define(op.result, home)
        return
    with context.code.at(context.top):
        buffer = context.code.alloc(f"{context.label(value)}.spill", source.shape, source.element, DRAM)
    _copy(context, source, source.buffer, buffer, SPILL_QUEUE)
    context.spilled[op.result] = replace(source, buffer=buffer)


def lower_reload(stage: StageLowering, op: nn.PlaceOp) -> None:
    """Read a spilled buffer into a new one in SBUF. What is row-major in DRAM is loaded when a layer wants it."""
    context = stage.context
    stored = context.spilled.get(op.x)
    if stored is not None:
        buffer = context.code.alloc(context.label(op.result), stored.shape, stored.element, SBUF)
        _copy(context, stored, stored.buffer, buffer, RELOAD_QUEUE)
        context.define(op.result, replace(stored, buffer=buffer))
        return
    places = context.places(op.x)
    spill = op.x.owner
    streamed = isinstance(spill, nn.SpillOp) and is_streamed(spill)
    if not streamed and (spill.x if isinstance(spill, nn.SpillOp) else op.x) in context.in_dram:
        context.in_dram.add(op.result)
    for home in [home for home in places if not home.in_sbuf] or places:
        context.define(op.result, home)


def _is_whole(home: Home) -> bool:
    """Whether a place is a buffer in SBUF of its own."""
    if not home.in_sbuf or home.lane0 or home.slot is not None or home.repeated:
        return False
    pad = home.pad or ((0, 0),) * len(home.shape)
    free = [size - sum(pad[dim]) for dim, size in enumerate(home.shape)][home.first_free :]
    tiles = home.shape[home.tile_dim]
    return -(-home.lanes // LANES) == tiles and home.lanes * math.prod(free) == math.prod(home.logical)


def _copy(context: Context, home: Home, source: SSAValue, target: SSAValue, queue: int) -> None:
    """Copy the lanes of a home from one buffer of its shape to another: whole tiles, and the rest."""
    for segment in segments(home.lanes, LANES):
        offsets = [0, segment.start // LANES, *(0 for _ in home.shape[2:])]
        sizes = [segment.size, segment.count, *home.shape[2:]]
        access = [Access.of(buffer, offsets, sizes) for buffer in (source, target)]
        context.code.add(DmaOp(access[0], access[1], queue=queue))
