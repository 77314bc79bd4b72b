"""Groups: how passes on `nn` move layers into `nn.fused`."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import Block, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects import nn
from neuron_mlir.ir.locations import fuse_locations


def outline(group: Sequence[Operation], kind: str) -> nn.FusedOp:
    """Move ops into an `nn.fused` at the place of the last; its result takes the place of the last's."""
    members = set(group)
    operands = dict.fromkeys(operand for op in group for operand in op.operands if operand.owner not in members)
    body = Block(arg_types=[operand.type for operand in operands])
    for operand, argument in zip(operands, body.args, strict=True):
        argument.name_hint = operand.name_hint
    inside: dict[SSAValue, SSAValue] = dict(zip(operands, body.args, strict=True))
    last = group[-1]
    location = fuse_locations([op.location for op in group])
    for op in group:
        copy = op.clone(inside)
        body.add_op(copy)
        for before, after in zip(op.results, copy.results, strict=True):
            inside[before] = after
    end = nn.YieldOp(inside[last.results[0]])
    end.location = location
    body.add_op(end)
    fused = nn.FusedOp(list(operands), [last.results[0].type], body, kind)
    fused.location = location
    fused.results[0].name_hint = last.results[0].name_hint
    Rewriter.insert_op(fused, InsertPoint.before(last))
    last.results[0].replace_all_uses_with(fused.results[0])
    for op in reversed(group):
        Rewriter.erase_op(op)
    return fused


def packing_of(root: Operation) -> list[Operation]:
    """The unfolding in front of a convolution that nothing else reads, which belongs to its group; else nothing."""
    source = root.operands[0].owner if isinstance(root, nn.ConvOp) else None
    if not isinstance(source, nn.UnfoldOp) or source.result.first_use is None:
        return []
    uses = list(source.result.uses)
    return [source] if len(uses) == 1 and source.parent_block() is root.parent_block() else []


def enclose(
    layers: Sequence[Operation], kind: str, tile: tuple[int, int] | None = None, recompute: bool = False
) -> nn.FusedOp:
    """Move layers and groups, as they are, into an `nn.fused` behind the last of them."""
    members = set(layers)
    results = [r for op in layers for r in op.results if any(use.operation not in members for use in r.uses)]
    operands = dict.fromkeys(v for op in layers for v in op.operands if v.owner not in members)
    body = Block(arg_types=[v.type for v in operands])
    inside: dict[SSAValue, SSAValue] = dict(zip(operands, body.args, strict=True))
    for outer, argument in inside.items():
        argument.name_hint = outer.name_hint
    fused = nn.FusedOp(list(operands), [r.type for r in results], body, kind, tile, recompute)
    fused.location = fuse_locations([op.location for op in layers])
    Rewriter.insert_op(fused, InsertPoint.after(layers[-1]))
    for result, new in zip(results, fused.results, strict=True):
        new.name_hint = result.name_hint
        result.replace_uses_with_if(new, lambda use: use.operation not in members)
    for op in layers:
        op.detach()
        body.add_op(op)
        for index, operand in enumerate(op.operands):
            if operand in inside:
                op.operands[index] = inside[operand]
    end = nn.YieldOp(*results)
    end.location = fused.location
    body.add_op(end)
    return fused


def attention_groups(block: Block) -> list[nn.FusedOp]:
    """Groups that `nn-fuse-attention` made."""
    return [op for op in block.ops if isinstance(op, nn.FusedOp) and op.kind == "attention"]


def dissolve(group: nn.FusedOp) -> list[Operation]:
    """Put what a group holds in its place."""
    end = group.body.block.last_op
    assert isinstance(end, nn.YieldOp)
    for argument, operand in zip(group.body.block.args, group.inputs, strict=True):
        argument.replace_all_uses_with(operand)
    for result, value in zip(group.outputs, end.values, strict=True):
        value.name_hint = value.name_hint or result.name_hint
        result.replace_all_uses_with(value)
    layers = [op for op in group.body.block.ops if op is not end]
    for op in layers:
        op.detach()
        Rewriter.insert_op(op, InsertPoint.before(group))
    Rewriter.erase_op(group)
    return layers
