"""Lowering one stage: what goes where, then each unit (a fused group or a lone layer) in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.pipe.ops import StageOp
from neuron_mlir.passes.core.lowering import movement, normalise, roots, rows, transposed
from neuron_mlir.passes.core.lowering.context import Context, Padding, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.depth_first import DepthFirst
from neuron_mlir.passes.core.lowering.elementwise import (
    ELEMENTWISE,
    lower_elementwise,
)
from neuron_mlir.passes.core.lowering.layout import Factor, Home, fits
from neuron_mlir.passes.core.lowering.plan import VIEWS, Plan, group_root, is_layer
from neuron_mlir.passes.core.lowering.relayout import copy_to, row_axis
from neuron_mlir.passes.core.lowering.resize import lower_resize
from neuron_mlir.passes.core.lowering.unfold import lower_unfold
from neuron_mlir.passes.depth_first_rows import reduces_by_rows
from neuron_mlir.passes.unfolding import packing_before

NARROWS = ("f32", "bf16", "f16")
"""Types between which a cast is nothing but rounding."""


class StageLowering:
    """Lowers the layers of one stage, in order."""

    def __init__(self, context: Context, stage: StageOp):
        self.context = context
        self.stage = stage
        self.plan = Plan(context, stage)
        self.stored_as: dict[SSAValue, SSAValue] = {}
        self.preset: dict[SSAValue, Home] = {}
        self.joined: dict[nn.ConcatOp, Home] = {}
        """Results of concatenations of which parts are made in place."""

    def new_home(self, value: SSAValue, partition: Sequence[int] | None = None, *, all_rings: bool = False) -> Home:
        """Where a layer's result goes. A large one that only leaves the stage goes to its ring; with `all_rings` to
        the first of several, and the layer stores it to the others too.
        """
        context = self.context
        value = self.stored_as.get(value, value)
        if value in self.preset:
            context.define(value, self.preset[value])
            return self.preset[value]
        shape, element = shape_of(value), tensor_type(value).element_type
        padding = context.paddings.get(value)
        leaves = context.leaves.get(value, [])
        if value in context.in_dram and leaves and value not in context.read_here and (all_rings or len(leaves) == 1):
            home = leaves[0]
            context.left.append(home)
        elif value in context.in_dram:
            home = context.dram_home(context.label(value), shape, element, padding)
        else:
            chosen = context.partition_of[value] if partition is None else tuple(partition)
            home = movement.join_home(self, value, chosen) or context.sbuf_home(
                context.label(value), shape, element, chosen, padding
            )
        context.define(value, home)
        return home

    def want(
        self,
        value: SSAValue,
        partition: Sequence[int],
        layer: Operation,
        pads: dict[int, tuple[int, int]] | None = None,
        fill: float = 0.0,
    ) -> Home:
        """A place of a value in SBUF with these axes on the partitions (in that order) and at least this padding;
        copied there at need.
        """
        context = self.context
        if context.is_constant(value):
            return self.constant_home(value, partition, layer)
        pads = {} if pads is None else {a: p for a, p in pads.items() if any(p)}
        for home in context.places(value):
            if home.in_sbuf and fits(home, partition, pads, fill):
                return home
        padding = Padding(pads, fill) if pads else None
        known = context.paddings.get(value)
        if known is not None and (known.value == fill or not pads):
            padding = known
        source = next((h for h in context.places(value) if h.in_sbuf), context.places(value)[0])
        return copy_to(context, value, source, partition, padding, layer)

    def turn_rows_behind(self, value: SSAValue, axis: int, layer: Operation) -> None:
        """Bring a view (heads, taken apart) of rows in DRAM to SBUF with its `axis` on the partitions, if that is part
        of their last axis: the PE array turns whole rows, where a copy of the view would move single elements.
        """
        context = self.context
        views: list[nn.ReshapeOp | nn.TransposeOp] = []
        base = context.origin(value)
        while isinstance(base.owner, VIEWS):
            views.insert(0, base.owner)
            base = context.origin(base.owner.operands[0])
        shape = shape_of(base)
        last = len(shape) - 1
        if not views or base not in context.homes or row_axis(shape, last) is None:
            return
        if str(tensor_type(base).element_type) not in ("bf16", "f16"):
            return

        def seen(home: Home) -> Home | None:
            found: Home | None = home
            for op in views:
                if found is not None:
                    turned = isinstance(op, nn.TransposeOp)
                    found = found.transposed(op.perm) if turned else found.reshaped(shape_of(op.results[0]))
            return found

        axes = tuple((Factor(size, 0 if a == last else 2 + a),) if size > 1 else () for a, size in enumerate(shape))
        found = seen(replace(context.places(base)[0], axes=axes, slot=None))
        if found is None or not any(f.dim == 0 and f.stride == 1 for f in found.axes[axis]):
            return
        home = seen(self.want(base, (last,), layer))
        if home is not None:
            context.define(value, home)

    def in_rows(self, value: SSAValue, layer: Operation) -> Home:
        """The best place to store a value row-major from: one that does not have the innermost axis on the partitions
        (see `Context.rows_first`).
        """
        context = self.context
        shape = shape_of(value)
        inner = max((axis for axis, size in enumerate(shape) if size > 1), default=0)
        places = context.places(value)
        for home in places:
            if home.in_sbuf and inner not in home.partition_axes():
                return home
        axis = row_axis(shape, inner)
        source = next((home for home in places if home.in_sbuf), places[0])
        turns = (
            source.in_sbuf and source.partition_axes() == (inner,) and not any(len(f) > 1 for f in source.merged().axes)
        )
        if axis is None or not turns or str(source.element) not in ("bf16", "f16"):
            return source
        return self.want(value, (axis,), layer)

    def constant_home(self, value: SSAValue, partition: Sequence[int], layer: Operation) -> Home:
        """A constant as a whole tensor in SBUF."""
        context = self.context
        source = context.constant(value, context.label(value))
        shape = shape_of(value)
        source = replace(source, axes=tuple((Factor(s, a),) if s > 1 else () for a, s in enumerate(shape)))
        home = context.sbuf_home(context.label(value), shape, source.element, partition)
        copy_by_dma(context.code, source, home, layer, 0)
        return home

    def run(self) -> None:
        """Lower every layer of the stage."""
        self.plan.run()
        done: list[Operation] = []
        for op in self.stage.body.block.ops:
            if not is_layer(op) or op in done:
                continue
            self.context.code.location = op.location
            self.context.load.location = op.location
            self.context.count("layers")
            self.context.residency.begin(op)
            cast = self.cast_behind(op)
            if cast is None:
                self.layer(op)
                continue
            done.append(cast)
            if isinstance(op, ELEMENTWISE):
                self.context.local.clear()
                self.elementwise([op, cast], list(op.operands), [(cast.result, cast.result)], op)
            else:
                self.stored_as[op.results[0]] = cast.result
                self.layer(op)

    def cast_behind(self, op: Operation) -> nn.CastOp | None:
        """The cast that is all that becomes of a layer's result: it happens where the result is stored."""
        if not isinstance(op, (*ELEMENTWISE, nn.SoftmaxOp, nn.LayerNormOp, nn.ReduceOp, nn.AvgPoolOp)):
            return None
        uses = list(op.results[0].uses)
        cast = uses[0].operation if len(uses) == 1 else None
        if not isinstance(cast, nn.CastOp) or cast.parent_block() is not op.parent_block():
            return None
        if not all(str(tensor_type(value).element_type) in NARROWS for value in (op.results[0], cast.result)):
            return None
        kept = {op.results[0], cast.result, op.operands[0]}.isdisjoint(self.context.in_dram)
        return cast if kept or isinstance(op, ELEMENTWISE) else None

    def layer(self, op: Operation) -> None:
        """Lower one unit."""
        self.context.local.clear()
        if isinstance(op, nn.FusedOp) and op.tile is not None:
            DepthFirst.of(self, op).lower()
        elif isinstance(op, nn.FusedOp):
            self.group(op)
        elif isinstance(op, nn.ConvOp):
            roots.conv(self, op, op, [], [(op.result, op.result)])
        elif isinstance(op, nn.UnfoldOp):
            lower_unfold(self, op)
        elif isinstance(op, nn.ConvTransposeOp):
            transposed.conv_transpose(self, op, op, [], [(op.result, op.result)])
        elif isinstance(op, nn.ResizeOp):
            lower_resize(self, op)
        elif isinstance(op, nn.MatmulOp):
            roots.matmul(self, op, op, [], [(op.result, op.result)])
        elif isinstance(op, ELEMENTWISE):
            self.elementwise([op], list(op.operands), [(op.results[0], op.results[0])], op)
        elif isinstance(op, VIEWS):
            movement.lower_view(self, op)
        elif isinstance(op, (nn.MaxPoolOp, nn.AvgPoolOp)):
            roots.pool(self, op)
        elif isinstance(op, nn.LrnOp):
            rows.lrn_by_rows(self, op)
        elif isinstance(op, nn.ReduceOp):
            self.reduce(op)
        elif isinstance(op, nn.SoftmaxOp):
            x = self.want(op.x, self.row_partition(op.x, (op.axis,)), op)
            home = self.new_home(op.result, x.partition_axes() or self.row_partition(op.x, (op.axis,)))
            normalise.lower_softmax(self.context, op, x, home)
        elif isinstance(op, nn.LayerNormOp):
            self.layer_norm(op)
        else:
            movement.lower_movement(self, op)

    def row_partition(self, value: SSAValue, reduced: Sequence[int]) -> tuple[int, ...]:
        """The axis to put on the partitions when others are reduced: where the value is now if that is kept, else the
        largest kept axis.
        """
        shape = shape_of(value)
        if value in self.context.homes:
            for home in self.context.places(value):
                axes = home.partition_axes()
                if home.in_sbuf and axes and not set(axes) & set(reduced) and len(axes) == 1:
                    return axes
        kept = [a for a in range(len(shape)) if a not in reduced]
        if not kept:
            return ()
        return (max(kept, key=lambda a: (shape[a], a)),)

    def reduce(self, op: nn.ReduceOp) -> None:
        if op.x in self.context.in_dram and not self.context.is_in_sbuf(op.x) and reduces_by_rows(op):
            rows.reduce_by_rows(self, op)
            return
        partition = self.row_partition(op.x, op.axes)
        x = self.want(op.x, partition, op)
        kept = [a for a in range(len(shape_of(op.x))) if a not in op.axes]
        mapped = tuple(a if op.keepdims else kept.index(a) for a in partition)
        normalise.lower_reduce(self.context, op, x, self.new_home(op.result, mapped))

    def layer_norm(self, op: nn.LayerNormOp) -> None:
        rank = len(shape_of(op.x))
        axes = tuple(range(op.axis, rank))
        x = self.want(op.x, self.row_partition(op.x, axes), op)
        out = self.new_home(op.result, x.partition_axes() or self.row_partition(op.x, axes))
        constants = [value for value in (op.scale, op.bias) if value is not None]
        rows = [partial(self.context.constant_like, value, out, rank) for value in constants]
        normalise.lower_layer_norm(self.context, op, x, out, *rows)

    def group(self, op: nn.FusedOp) -> None:
        """A fused group: what feeds its root is lowered on its own, then the root, with the rest of the group on each
        finished tile.
        """
        root = group_root(op)
        inner = [o for o in op.body.block.ops if not isinstance(o, nn.YieldOp)]
        for argument, operand in zip(op.body.block.args, op.inputs, strict=True):
            self.bind(argument, operand)
        self.plan.plan_interior(op, inner, root)
        results = list(zip(op.yielded, op.outputs, strict=True))
        if root is None:
            self.elementwise(inner, list(op.body.block.args), results, op)
            return
        before = _before(root, inner)
        packing = packing_before(root)
        for o in before:
            if isinstance(o, (nn.WeightOp, nn.ConstOp)) or o in packing:
                continue
            self.layer(o)
        after = [o for o in inner if o is not root and o not in before]
        if isinstance(root, nn.ConvOp):
            roots.conv(self, root, op, after, results)
        elif isinstance(root, nn.ConvTransposeOp):
            transposed.conv_transpose(self, root, op, after, results)
        else:
            assert isinstance(root, nn.MatmulOp)
            roots.matmul(self, root, op, after, results)

    def bind(self, argument: SSAValue, operand: SSAValue) -> None:
        """Inside a group, its argument stands for the operand outside."""
        self.context.aliases[argument] = operand

    def elementwise(
        self,
        ops: Sequence[Operation],
        inputs: Sequence[SSAValue],
        results: Sequence[tuple[SSAValue, SSAValue]],
        layer: Operation,
    ) -> None:
        """A group without a root."""
        context = self.context
        inputs = [context.origin(v) for v in inputs]
        value = results[0][1]
        used = [v for v in inputs if not context.is_constant(v)]
        if value in context.in_dram or any(v in context.in_dram and not context.is_in_sbuf(v) for v in used):
            rows.elementwise_by_rows(self, ops, inputs, results, layer)
            return
        like = next((v for v in used if shape_of(v) == shape_of(value)), None)
        partition = context.partition_of[value]
        if like is not None:
            place = next((h for h in context.places(like) if h.in_sbuf), None)
            if place is not None and len(place.partition_factors()) == 1:
                partition = place.partition_axes()
        homes = [(inner, self.new_home(outer, partition)) for inner, outer in results]
        for v in used:
            if shape_of(v) == shape_of(value):
                self.want(v, partition, layer)
        lower_elementwise(context, ops, inputs, homes, layer)


def _before(root: Operation, inner: Sequence[Operation]) -> list[Operation]:
    """Ops of a group that its root depends on."""
    needed: set[Operation] = set()
    stack = [v.owner for v in root.operands]
    while stack:
        owner = stack.pop()
        if isinstance(owner, Operation) and owner in inner and owner not in needed:
            needed.add(owner)
            stack += [v.owner for v in owner.operands]
    return [op for op in inner if op in needed]
