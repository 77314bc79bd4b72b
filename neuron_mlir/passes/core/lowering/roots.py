"""Layers around which groups form: convolutions, pooling and matrix products; where their input has to be and which
code they become.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering import attention, window
from neuron_mlir.passes.core.lowering.context import shape_of
from neuron_mlir.passes.core.lowering.contraction import (
    check_operands,
    conv_contraction,
    dense_weight,
    matmul_contraction,
    matmul_weight,
)
from neuron_mlir.passes.core.lowering.groups import choose_weight, contract, depthwise_conv, prepare
from neuron_mlir.passes.core.lowering.in_place import over_operand
from neuron_mlir.passes.core.lowering.layout import Home, has_padding
from neuron_mlir.passes.core.lowering.plan import pads_of
from neuron_mlir.passes.core.lowering.rows import Pads, conv_by_rows, goes_in_tiles, pool_by_rows, row_source
from neuron_mlir.passes.core.lowering.unfold import packed_conv
from neuron_mlir.passes.unfolding import packing_before

if TYPE_CHECKING:
    from neuron_mlir.passes.core.lowering.stage import StageLowering


def pool(stage: StageLowering, op: nn.MaxPoolOp | nn.AvgPoolOp) -> None:
    """A pooling layer."""
    context = stage.context
    pads, fill = pads_of(op), window.FILL[type(op)]
    scale = None
    if isinstance(op, nn.AvgPoolOp) and any(op.pads) and not op.count_include_pad:
        scale = window.window_scale(context, op)
    if op.result in context.in_dram or (op.x in context.in_dram and not context.is_in_sbuf(op.x)):
        pool_by_rows(stage, op, pads, fill, scale)
        return
    x = stage.want(op.x, (1,), op, pads, fill)
    here = None if scale is None else window.spread_scale(context, scale, True, op)
    window.lower_pool(context, op, x, stage.new_home(op.result, (1,)), here)


def conv(
    stage: StageLowering,
    op: nn.ConvOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
) -> None:
    """A convolution and what its group does with it."""
    context = stage.context
    if packing_before(op):
        check_operands(op)
        packed_conv(stage, op, layer, after, results)
        return
    value = context.origin(op.x)
    pads = pads_of(op)
    depthwise = op.group == shape_of(op.x)[1] == shape_of(op.w)[0] and op.group > 1
    if not depthwise:
        check_operands(op)
    if goes_in_tiles(context, layer, value, results):
        conv_by_rows(stage, op, layer, after, results, row_source(stage, value, pads, 0.0, layer), depthwise)
        return
    x = channels_of(stage, value, layer, pads)
    home = None if depthwise or len(results) > 1 else over_operand(stage, layer, after, results[0][1], x)
    homes = [stage.new_home(outer, (1,)) for _, outer in results] if home is None else [home]
    prepare(stage, after, layer, homes[0])
    if depthwise:
        depthwise_conv(stage, op, layer, after, results, homes, x)
        return
    contraction = conv_contraction(op, x)
    weight = choose_weight(stage, op.w, dense_weight(op, x), contraction, divide=True)
    extents = [shape_of(op.result)[0], *shape_of(op.result)[2:]]
    contract(stage, contraction, x, weight, extents, op, layer, after, results, homes)


def channels_of(stage: StageLowering, value: SSAValue, layer: Operation, pads: Pads) -> Home:
    """A feature map with all its channels on the partitions, in any order."""
    pads = {a: p for a, p in pads.items() if any(p)}
    places = [] if stage.context.is_constant(value) else stage.context.places(value)
    for home in places:
        if not home.in_sbuf or home.lane0 or (home.partition_axes() != (1,) and shape_of(value)[1] > 1):
            continue
        if any(f.dim != 0 for f in home.axes[1]):
            continue
        if all(home.is_plain(a) for a in range(len(home.axes)) if a != 1) and has_padding(home, pads, 0.0):
            return home
    return stage.want(value, (1,), layer, pads, 0.0)


def matmul(
    stage: StageLowering,
    op: nn.MatmulOp,
    layer: Operation,
    after: Sequence[Operation],
    results: Sequence[tuple[SSAValue, SSAValue]],
) -> None:
    """A product with a weight, or of two activations."""
    context = stage.context
    lhs, rhs = context.origin(op.lhs), context.origin(op.rhs)
    check_operands(op)
    if not context.is_constant(rhs) or len(shape_of(rhs)) != 2 or len(shape_of(lhs)) < 2:
        attention.lower_product(stage, op, layer, after, results)
        return
    rank = len(shape_of(results[0][1]))
    if context.partition_of[results[0][1]] != (rank - 1,):
        attention.lower_rows_product(stage, op, layer, after, results)
        return
    last = len(shape_of(lhs)) - 1
    places = [] if context.is_constant(lhs) else context.places(lhs)
    x = next((h for h in places if h.in_sbuf and not h.lane0 and matmul_contraction(op, h) is not None), None)
    if x is None:
        x = stage.want(lhs, (last,), layer)
    contraction = matmul_contraction(op, x)
    if contraction is None:
        raise NeuronError(
            "the left operand of a product cannot be laid out with its last axis on the partitions",
            op=op,
            available=shape_of(lhs),
            advice="reshape it to a matrix, or compute it on the host",
        )
    homes = [stage.new_home(outer, (rank - 1,)) for _, outer in results]
    prepare(stage, after, layer, homes[0])
    weight = choose_weight(stage, op.rhs, matmul_weight(x, last), contraction, divide=True)
    extents = [shape_of(op.result)[axis] for axis, *_ in contraction.pixel_axes]
    contract(stage, contraction, x, weight, extents, op, layer, after, results, homes)
