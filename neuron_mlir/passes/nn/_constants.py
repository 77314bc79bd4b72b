"""Constants as expressions: how passes on `nn` build `nn.const` over weights. No pass computes bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from xdsl.dialects.builtin import LocationAttr, ModuleOp, f32
from xdsl.ir import Attribute, Block, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import f32_text, tensor, type_of
from neuron_mlir.ir.locations import fuse_locations

_LAYERS = (nn.NnOp, nn.FusedOp, nn.WeightOp, nn.ConstOp)


def is_constant(value: SSAValue) -> bool:
    """Whether a value is a weight or derived from weights."""
    return isinstance(value.owner, (nn.WeightOp, nn.ConstOp))


def nn_blocks(module: ModuleOp) -> Iterator[Block]:
    """Every block that holds layers or constants: bodies of functions and stages, not the inside of groups."""
    for op in module.walk():
        if isinstance(op, (nn.FusedOp, nn.ConstOp)):
            continue
        for region in op.regions:
            for block in region.blocks:
                if any(isinstance(inner, _LAYERS) for inner in block.ops):
                    yield block


def elements(value: SSAValue) -> int:
    """How many elements a tensor has."""
    return math.prod(type_of(value).get_shape())


class ConstBuilder:
    """The body of an `nn.const` in the making.

    `take` brings a constant's expression in, `add` appends an op; equal expressions are there once. `finish` makes
    the op.
    """

    def __init__(self) -> None:
        self._block = Block()
        self._seen: dict[tuple[object, ...], Operation] = {}

    def take(self, value: SSAValue) -> SSAValue:
        """A constant of the graph, as a value inside."""
        op = value.owner
        if isinstance(op, nn.WeightOp):
            return self.add(op.clone())
        assert isinstance(op, nn.ConstOp), "only weights and constants can be taken"
        inside: dict[SSAValue, SSAValue] = {}
        for inner in op.body.block.ops:
            if isinstance(inner, nn.YieldOp):
                return inside[inner.values[0]]
            inside[inner.results[0]] = self.add(inner.clone(inside))
        raise AssertionError("nn.const ends in nn.yield")

    def add(self, op: Operation) -> SSAValue:
        """Append an op over values inside; its result, or that of an equal op that is there."""
        key = (
            op.name,
            tuple(op.operands),
            tuple(sorted(op.properties.items(), key=lambda item: item[0])),
            op.results[0].type,
        )
        known = self._seen.get(key)
        if known is None:
            known = self._seen[key] = op
            self._block.add_op(op)
        return known.results[0]

    def number(self, number: float, element_type: Attribute, name: str = "number") -> SSAValue:
        """A scalar constant inside; of f32, written with no more digits than tell it apart."""
        if element_type == f32:
            number = float(f32_text(number))
        return self.add(nn.WeightOp(name, tensor((), element_type), nn.SplatAttr.get(float(number))))

    def finish(self, value: SSAValue, locations: Sequence[LocationAttr]) -> Operation:
        """The op whose result is `value`: an `nn.const`, or the weight itself when that is all there is."""
        location = fuse_locations(locations)
        if isinstance(value.owner, nn.WeightOp):
            weight = value.owner.clone()
            weight.location = location
            return weight
        end = nn.YieldOp(value)
        end.location = location
        self._block.add_op(end)
        self._drop_unused()
        const = nn.ConstOp(self._block)
        const.location = location
        return const

    def _drop_unused(self) -> None:
        for op in reversed(list(self._block.ops)):
            if op.results and all(result.first_use is None for result in op.results):
                self._block.erase_op(op)


def fold_operation(op: Operation) -> Operation | None:
    """The constant that stands for an op over constants; None when an operand is none or there are no operands."""
    if not isinstance(op, nn.NnOp) or not op.operands or not all(is_constant(operand) for operand in op.operands):
        return None
    builder = ConstBuilder()
    inside = {operand: builder.take(operand) for operand in dict.fromkeys(op.operands)}
    return builder.finish(builder.add(op.clone(inside)), [op.location])


def erase_unused_constants(block: Block) -> None:
    """Erase constants nothing uses any more."""
    for op in reversed(list(block.ops)):
        if isinstance(op, (nn.WeightOp, nn.ConstOp)) and op.result.first_use is None:
            block.erase_op(op)


def erase_unused(block: Block) -> None:
    """Erase layers and constants nothing uses."""
    for op in reversed(list(block.ops)):
        if not isinstance(op, _LAYERS):
            continue
        if all(result.first_use is None for result in op.results):
            block.erase_op(op)
