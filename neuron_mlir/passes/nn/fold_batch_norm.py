"""`nn-fold-batch-norm`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.builtin import LocationAttr, f32
from xdsl.ir import Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.ir.locations import fuse_locations, replace
from neuron_mlir.passes.base import NeuronPass, Relation
from neuron_mlir.passes.nn._constants import (
    ConstBuilder,
    erase_unused_constants,
    fold_operation,
    is_constant,
    nn_blocks,
)

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp


_Build = Callable[[ConstBuilder, "SSAValue | None", "SSAValue | None"], SSAValue]
"""Makes an expression from a scale and a shift."""


@dataclass
class _Chain:
    """Ops one after the other, each of which scales or shifts by channel: together y = x * scale + shift."""

    head: SSAValue
    axis: int
    ops: list[Operation] = field(default_factory=list[Operation])

    @property
    def scales(self) -> bool:
        return any(isinstance(op, (nn.BatchNormOp, nn.MulOp, nn.DivOp)) for op in self.ops)

    @property
    def locations(self) -> list[LocationAttr]:
        return [op.location for op in self.ops]


@dataclass(frozen=True)
class FoldBatchNormPass(NeuronPass):
    """Folds batch normalisation, and other scales and shifts by channel, into the convolution or product before it.

    After `nn.conv` with constant weights, or `nn.matmul` with a constant right side, a chain of `nn.batch_norm` and
    of `nn.mul`, `nn.div`, `nn.add`, `nn.sub` by per-channel constants (some exporters write the affine half of batch
    normalisation so) becomes part of weights and bias, which turn into constant expressions. A batch normalisation
    with no such layer before it becomes one multiplication and one addition. A layer whose result is used elsewhere
    too is left alone.

    Before:

    ```mlir
    func.func @main(%x: tensor<1x3x8x8xf32>) -> tensor<1x4x6x6xf32> {
      %w = nn.weight "w" : tensor<4x3x3x3xf32>
      %c = nn.weight "c" : tensor<4x1x1xf32>
      %0 = nn.conv %x, %w : (tensor<1x3x8x8xf32>, tensor<4x3x3x3xf32>) -> tensor<1x4x6x6xf32>
      %1 = nn.mul %0, %c : tensor<1x4x6x6xf32>, tensor<4x1x1xf32>
      func.return %1 : tensor<1x4x6x6xf32>
    }
    ```

    After:

    ```mlir
    func.func @main(%x: tensor<1x3x8x8xf32>) -> tensor<1x4x6x6xf32> {
      %0 = nn.const {
        %c = nn.weight "c" : tensor<4x1x1xf32>
        %s = nn.reshape %c : (tensor<4x1x1xf32>) -> tensor<4xf32>
        %w = nn.weight "w" : tensor<4x3x3x3xf32>
        %r = nn.reshape %s : (tensor<4xf32>) -> tensor<4x1x1x1xf32>
        %m = nn.mul %w, %r : tensor<4x3x3x3xf32>, tensor<4x1x1x1xf32>
        nn.yield %m : tensor<4x3x3x3xf32>
      } : tensor<4x3x3x3xf32>
      %1 = nn.conv %x, %0 : (tensor<1x3x8x8xf32>, tensor<4x3x3x3xf32>) -> tensor<1x4x6x6xf32>
      func.return %1 : tensor<1x4x6x6xf32>
    }
    ```
    """

    name = "nn-fold-batch-norm"
    summary = "fold batch normalisation and per-channel scales into weights and bias"
    relation: ClassVar[Relation] = Relation.REASSOCIATES
    statistics_help: ClassVar[dict[str, str]] = {
        "folded": "scales and shifts that became part of a convolution or product",
        "split": "batch normalisations that became a multiplication and an addition",
    }

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for block in list(nn_blocks(op)):
            for inner in list(block.ops):
                # A per-channel constant is often a reshaped weight.
                if isinstance(inner, nn.ReshapeOp) and (constant := fold_operation(inner)) is not None:
                    replace(inner, constant)
            self._roots(block)
            self._rest(block)
            erase_unused_constants(block)

    def _roots(self, block: Block) -> None:
        for op in list(block.ops):
            if isinstance(op, nn.ConvOp) and is_constant(op.w) and (op.bias is None or is_constant(op.bias)):
                chain = _follow(op.result, 1)
                if chain.ops:
                    _fold_conv(op, chain)
                    self.count("folded", len(chain.ops))
            elif isinstance(op, nn.MatmulOp) and is_constant(op.rhs) and type_of(op.rhs).get_num_dims() == 2:
                chain = _follow(op.result, type_of(op.result).get_num_dims() - 1)
                if chain.scales:
                    _fold_matmul(op, chain)
                    self.count("folded", len(chain.ops))

    def _rest(self, block: Block) -> None:
        done: set[Operation] = set()
        for op in list(block.ops):
            if op in done or not isinstance(op, nn.BatchNormOp):
                continue
            if not all(is_constant(operand) for operand in op.operands[1:]):
                continue
            chain = _follow(op.x, 1, op)
            done.update(chain.ops)
            self.count("split")
            _split(chain)


def _follow(head: SSAValue, axis: int, first: Operation | None = None) -> _Chain:
    """The longest chain of per-channel ops from a value that nothing else uses (or from `first`, which uses it)."""
    chain = _Chain(head, axis)
    value = head
    while True:
        user = first if first is not None and not chain.ops else value.get_user_of_unique_use()
        if user is None or not _per_channel(user, value, axis):
            return chain
        chain.ops.append(user)
        value = user.results[0]


def _per_channel(op: Operation, value: SSAValue, axis: int) -> bool:
    """Whether the op scales or shifts `value` by a constant per channel."""
    shape = type_of(value).get_shape()
    if isinstance(op, nn.BatchNormOp):
        return op.x is value and axis == 1 and all(is_constant(operand) for operand in op.operands[1:])
    if not isinstance(op, (nn.AddOp, nn.MulOp, nn.SubOp, nn.DivOp)) or op.type.get_shape() != shape:
        return False
    if op.lhs is op.rhs:
        return False
    other = op.rhs if op.lhs is value else op.lhs
    if isinstance(op, (nn.SubOp, nn.DivOp)) and op.lhs is not value:
        return False
    if not is_constant(other):
        return False
    dims = type_of(other).get_shape()
    offset = len(shape) - len(dims)
    return all(dim == 1 or offset + i == axis for i, dim in enumerate(dims))


def _affine(chain: _Chain, builder: ConstBuilder) -> tuple[SSAValue | None, SSAValue | None]:
    """Scale and shift of the whole chain, each of shape (channels) or None, as expressions."""
    channels = type_of(chain.head).get_shape()[chain.axis]
    scale: SSAValue | None = None
    shift: SSAValue | None = None
    value = chain.head
    for op in chain.ops:
        factor, term = _step(op, value, channels, builder)
        if factor is not None:
            scale = factor if scale is None else builder.add(nn.MulOp(scale, factor))
            shift = None if shift is None else builder.add(nn.MulOp(shift, factor))
        if term is not None:
            shift = term if shift is None else builder.add(nn.AddOp(shift, term))
        value = op.results[0]
    return scale, shift


def _step(
    op: Operation, value: SSAValue, channels: int, builder: ConstBuilder
) -> tuple[SSAValue | None, SSAValue | None]:
    if isinstance(op, nn.BatchNormOp):
        gain, bias, mean, var = (builder.take(operand) for operand in op.operands[1:])
        raised = builder.add(nn.AddOp(var, builder.number(op.eps, f32, "eps")))
        factor = builder.add(nn.DivOp(gain, builder.add(nn.SqrtOp(raised))))
        return factor, builder.add(nn.SubOp(bias, builder.add(nn.MulOp(mean, factor))))
    assert isinstance(op, nn.BinaryOp)
    constant = builder.take(op.rhs if op.lhs is value else op.lhs)
    if type_of(constant).get_shape() != (channels,):
        spread = type_of(constant).get_shape()
        flat = (channels,) if channels in spread else (1,)
        if spread != flat:
            constant = builder.add(nn.ReshapeOp(constant, flat))
        if flat != (channels,):
            constant = builder.add(nn.ExpandOp(constant, (channels,)))
    if isinstance(op, nn.MulOp):
        return constant, None
    if isinstance(op, nn.DivOp):
        return builder.add(nn.ReciprocalOp(constant)), None
    return None, constant if isinstance(op, nn.AddOp) else builder.add(nn.NegOp(constant))


def _constant(chain: _Chain, root: Operation | None, build: _Build) -> Operation:
    """A constant made from the chain's scale and shift."""
    builder = ConstBuilder()
    scale, shift = _affine(chain, builder)
    locations = [root.location, *chain.locations] if root is not None else chain.locations
    return builder.finish(build(builder, scale, shift), locations)


def _fold_conv(op: nn.ConvOp, chain: _Chain) -> None:
    new: list[Operation] = []
    weight, bias = op.w, op.bias
    rank = type_of(op.w).get_num_dims()

    def scaled_weight(builder: ConstBuilder, scale: SSAValue | None, shift: SSAValue | None) -> SSAValue:
        assert scale is not None
        taken = builder.take(op.w)
        column = builder.add(nn.ReshapeOp(scale, (type_of(scale).get_shape()[0], *(1,) * (rank - 1))))
        return builder.add(nn.MulOp(taken, column))

    def total_shift(builder: ConstBuilder, scale: SSAValue | None, shift: SSAValue | None) -> SSAValue:
        before = None if op.bias is None else builder.take(op.bias)
        if before is not None and scale is not None:
            before = builder.add(nn.MulOp(before, scale))
        if before is None or shift is None:
            kept = before if shift is None else shift
            assert kept is not None
            return kept
        return builder.add(nn.AddOp(before, shift))

    if chain.scales:
        new.append(_constant(chain, op, scaled_weight))
        weight = new[-1].results[0]
    if op.bias is not None or _shifts(chain):
        new.append(_constant(chain, op, total_shift))
        bias = new[-1].results[0]
    conv = nn.ConvOp(op.x, weight, bias, strides=op.strides, pads=op.pads, dilations=op.dilations, group=op.group)
    _replace_chain(op, chain, [*new, conv])


def _shifts(chain: _Chain) -> bool:
    return any(not isinstance(op, (nn.MulOp, nn.DivOp)) for op in chain.ops)


def _fold_matmul(op: nn.MatmulOp, chain: _Chain) -> None:
    def scaled_weight(builder: ConstBuilder, scale: SSAValue | None, shift: SSAValue | None) -> SSAValue:
        assert scale is not None
        return builder.add(nn.MulOp(builder.take(op.rhs), scale))

    new: list[Operation] = [_constant(chain, op, scaled_weight)]
    product = nn.MatmulOp(op.lhs, new[0].results[0])
    new.append(product)
    if _shifts(chain):
        new.append(_constant(chain, op, lambda builder, scale, shift: _not_none(shift)))
        new.append(nn.AddOp(product, new[-1]))
    _replace_chain(op, chain, new)


def _split(chain: _Chain) -> None:
    """Replace a chain without a layer before it by a multiplication and an addition."""
    rank = type_of(chain.head).get_num_dims()

    def column(builder: ConstBuilder, value: SSAValue | None) -> SSAValue:
        found = _not_none(value)
        if rank == 2:
            return found
        return builder.add(nn.ReshapeOp(found, (type_of(found).get_shape()[0], *(1,) * (rank - 2))))

    scale = _constant(chain, None, lambda builder, scale, shift: column(builder, scale))
    shift = _constant(chain, None, lambda builder, scale, shift: column(builder, shift))
    product = nn.MulOp(chain.head, scale)
    _replace_chain(None, chain, [scale, shift, product, nn.AddOp(product, shift)])


def _not_none(value: SSAValue | None) -> SSAValue:
    assert value is not None
    return value


def _replace_chain(root: Operation | None, chain: _Chain, new: list[Operation]) -> None:
    """Put the new ops where the chain ended; the last one's result takes the place of the chain's."""
    old = [root, *chain.ops] if root is not None else chain.ops
    location = fuse_locations([op.location for op in old])
    last = chain.ops[-1]
    for op in new:
        if not isinstance(op, (nn.ConstOp, nn.WeightOp)):
            op.location = location
    Rewriter.insert_op(tuple(new), InsertPoint.before(last))
    result = new[-1].results[0]
    result.name_hint = last.results[0].name_hint
    last.results[0].replace_all_uses_with(result)
    for op in reversed(old):
        Rewriter.erase_op(op)
