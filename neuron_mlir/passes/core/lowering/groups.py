"""A root's finished tiles: the rest of its group, element by element, and the weights it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Access, Linear
from neuron_mlir.dialects.core.memory import element_bytes
from neuron_mlir.passes.core.lowering import window
from neuron_mlir.passes.core.lowering.context import Transform, shape_of
from neuron_mlir.passes.core.lowering.contraction import (
    Contraction,
    Weight,
    emit_contraction,
    keep_for_layer,
    place_weight,
)
from neuron_mlir.passes.core.lowering.elementwise import (
    Emitter,
    Source,
    Tile,
    operand_source,
    prepare_operand,
    tile_access,
)
from neuron_mlir.passes.core.lowering.layout import Home, Offset

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering


DIVIDED_BYTES = 4096
"""Weights of fewer bytes per partition stay in SBUF or are streamed as a whole."""


def operands_of(stage: StageLowering, after: Sequence[Operation]) -> list[SSAValue]:
    """What the rest of a group reads besides its root's result, each once, in order."""
    made = {result for op in after for result in op.results}
    found: list[SSAValue] = []
    for op in after:
        for operand in op.operands:
            outer = stage.context.origin(operand)
            root = isinstance(operand.owner, nn.CONTRACTIONS)
            if operand not in made and not root and outer not in found:
                found.append(outer)
    return found


def prepare(
    stage: StageLowering,
    after: Sequence[Operation],
    layer: Operation,
    target: Home,
) -> None:
    """Bring a group's other operands into reach before its loops begin."""
    for value in operands_of(stage, after):
        prepare_operand(stage.context, value, target, layer)


def choose_weight(
    stage: StageLowering,
    value: SSAValue,
    transform: Transform,
    contraction: Contraction,
    divide: bool = False,
    part: object = None,
) -> Weight:
    """Re-lay a weight and decide where it stays; for loops over tiles of several layers, once for all of them.

    With `divide`, some of its blocks may stay and others not. `part` tells parts of one value (phases) apart.
    """
    context = stage.context
    if context.hold is None:
        return _choose_weight(stage, value, transform, contraction, divide)
    key = context.origin(value), contraction.weight_shape, part
    found = context.hold.weights.get(key)
    if found is None:
        found = _choose_weight(stage, value, transform, contraction, False)
        if found.kept is None:
            with context.code.at(context.hold.block):
                found = keep_for_layer(context, found, contraction)
        context.hold.weights[key] = found
    assert isinstance(found, Weight)
    return found


def _choose_weight(
    stage: StageLowering, value: SSAValue, transform: Transform, contraction: Contraction, divide: bool
) -> Weight:
    context = stage.context
    outer = context.origin(value)
    stored = context.constant(outer, context.label(outer), transform)
    pieces = contraction.whole_tiles if divide and contraction.weight_bytes >= DIVIDED_BYTES else 1
    moved = math.prod(stored.shape) * element_bytes(stored.element)
    size = contraction.weight_bytes // pieces
    kept = context.residency.take(size, pieces, held=context.hold is not None, moved=moved // pieces)
    return place_weight(context, stored, contraction, kept * contraction.blocks // pieces, context.label(outer))


def contract(
    stage: StageLowering,
    contraction: Contraction,
    x: Home,
    weight: Weight,
    extents: Sequence[int],
    op: nn.ConvOp | nn.MatmulOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
    homes: Sequence[Home],
) -> None:
    """Emit a contraction with its group's element-wise rest on every finished tile."""
    bias = op.bias if isinstance(op, nn.ConvOp) else None

    def epilogue(
        acc: Access, lane: tuple[Linear | int, int], tile: Linear, ranges: dict[int, tuple[Linear, int]]
    ) -> None:
        place = Tile(homes[0], ranges, lane, tile)
        finish(stage, Source(access=acc), place, op, bias, layer, after, results, homes)

    emit_contraction(stage.context, contraction, x, weight, extents, epilogue)


def finish(
    stage: StageLowering,
    root: Source,
    tile: Tile,
    op: Operation,
    bias: SSAValue | None,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
    homes: Sequence[Home],
) -> None:
    """The rest of a group over one finished tile of its root."""
    context = stage.context
    rank = len(shape_of(results[0][1]))

    def leaf(value: SSAValue) -> Source:
        if value.owner is op:
            if bias is None:
                return root
            outer = context.origin(bias)
            channel = context.constant_like(outer, tile.home, rank, (1, -1, *(1,) * (rank - 2)))
            column = tile_access(channel, tile)
            assert column is not None
            return Source(access=root.access, bias=column.column or column.access)
        return operand_source(context, context.origin(value), tile, layer)

    targets: list[tuple[SSAValue, Access]] = []
    for (inner, _), home in zip(results, homes, strict=True):
        source = tile_access(home, tile)
        assert source is not None
        target = source.access if source.access is not None else source.column
        assert target is not None
        targets.append((inner, target))
    Emitter(context, tile, leaf).run(after, targets)


def depthwise_conv(
    stage: StageLowering,
    op: nn.ConvOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
    homes: Sequence[Home],
    x: Home,
) -> None:
    """A depthwise convolution keeps the order its input's channels have on the partitions."""
    axes = tuple(x.axes[1] if a == 1 else axis for a, axis in enumerate(homes[0].axes))
    moved = [replace(home, axes=axes) for home in homes]
    for (_, outer), old, new in zip(results, homes, moved, strict=True):
        known = stage.context.homes[outer]
        if old in known:
            known[known.index(old)] = new
    extents = [moved[0].logical[0], *moved[0].logical[2:]]
    free = {0: (Linear(), extents[0])} | {2 + a: (Linear(), size) for a, size in enumerate(extents[1:])}

    def each_tile(acc: Access, lane: tuple[Offset, int], tile: Linear) -> None:
        place = Tile(moved[0], free, lane, tile)
        finish(stage, Source(access=acc), place, op, op.bias, layer, after, results, moved)

    if moved[0].axes[1] != homes[0].axes[1]:
        prepare(stage, after, layer, moved[0])
    window.lower_depthwise(stage.context, op, x, moved[0], each_tile)
