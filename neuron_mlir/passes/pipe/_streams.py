"""Rewiring the streams of a program whose stages were split."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import Region, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.dialects.pipe.ops import ProgramOp, StageOp, StreamType, YieldOp


def gather(reader: StageOp, result: SSAValue, parts: Sequence[SSAValue], axis: int) -> None:
    """A stage takes the parts of a stream and puts them together."""
    positions = [n for n, operand in enumerate(reader.arguments) if operand is result]
    body = reader.body.block
    block_args = list(body.args)
    new: list[SSAValue] = []
    for part in parts:
        assert isinstance(part.type, StreamType)
        argument = body.insert_arg(part.type.element, len(body.args))
        argument.name_hint = part.name_hint
        new.append(argument)
    joined = nn.ConcatOp(new, axis=axis)
    joined.location = reader.location
    first = body.first_op
    assert first is not None
    body.insert_op_before(joined, first)
    kept = [operand for n, operand in enumerate(reader.arguments) if n not in positions]
    for n in reversed(positions):
        joined.result.name_hint = block_args[n].name_hint
        block_args[n].replace_all_uses_with(joined.result)
        body.erase_arg(block_args[n])
    reader.operands = [*kept, *parts]


def gather_at_last(program: ProgramOp, parts: list[StageOp], numbers: Sequence[int], axis: int) -> SSAValue:
    """The last shard takes the parts of the others and hands on all; `numbers` are those of the result in each."""
    old = parts[-1]
    body = old.body.block
    last = body.last_op
    assert isinstance(last, YieldOp)
    streams = [part.results_[i] for part, i in zip(parts[:-1], numbers, strict=False)]
    new: list[SSAValue] = []
    for stream in streams:
        argument = body.insert_arg(stream.type.element, len(body.args))
        argument.name_hint = stream.name_hint
        new.append(argument)
    joined = nn.ConcatOp([*new, last.values[numbers[-1]]], axis=axis)
    joined.location = last.location
    body.insert_op_before(joined, last)
    last.operands = [*last.operands, joined.result]
    parts[-1] = _rebuilt(program, old, [*old.arguments, *streams])
    return parts[-1].results_[-1]


def _rebuilt(program: ProgramOp, old: StageOp, operands: Sequence[SSAValue]) -> StageOp:
    """The stage in its place again, with other operands, and with a result more than before for what was added to its
    yield.
    """
    last = old.body.block.last_op
    assert isinstance(last, YieldOp)
    types = [StreamType(value.type) for value in last.values]
    region = Region()
    old.body.move_blocks(region)
    new = StageOp(old.sym_name.data, old.core_list(), operands, region, types, attributes=dict(old.attributes))
    new.location = old.location
    program.body.block.insert_op_before(new, old)
    for before, after in zip(old.results_, new.results_, strict=False):
        after.name_hint = before.name_hint
        before.replace_all_uses_with(after)
    old.detach()
    old.erase()
    return new


def narrow(program: ProgramOp) -> None:
    """Where a stage wants only part of what another makes, that is what goes between them."""
    for number in range(len(program.stages())):
        reader = program.stages()[number]
        for position in range(len(reader.arguments)):
            argument, stream = reader.body.block.args[position], reader.arguments[position]
            users = [use.operation for use in argument.uses]
            maker = stream.owner
            if len(users) != 1 or not isinstance(users[0], nn.SliceOp) or not isinstance(maker, StageOp):
                continue
            part = users[0]
            last = maker.body.block.last_op
            assert isinstance(last, YieldOp)
            value = last.values[next(n for n, result in enumerate(maker.results_) if result is stream)]
            narrow = nn.SliceOp(value, part.starts, type_of(part.result).get_shape(), part.strides)
            narrow.location = part.location
            maker.body.block.insert_op_before(narrow, last)
            last.operands = [*last.operands, narrow.result]
            made = _rebuilt(program, maker, list(maker.arguments)).results_[-1]
            made.name_hint = stream.name_hint
            replacement = reader.body.block.insert_arg(narrow.result.type, position)
            replacement.name_hint = part.result.name_hint
            part.result.replace_all_uses_with(replacement)
            part.detach()
            part.erase()
            reader.body.block.erase_arg(argument)
            operands = list(reader.arguments)
            operands[position] = made
            reader.operands = operands
    for stage in program.stages():
        _drop_unread(program, stage)


def _drop_unread(program: ProgramOp, stage: StageOp) -> None:
    """Drop results that nobody reads any more."""
    kept = [n for n, result in enumerate(stage.results_) if result.uses]
    if len(kept) == len(stage.results_):
        return
    last = stage.body.block.last_op
    assert isinstance(last, YieldOp)
    read = [stage.results_[n] for n in kept]
    last.operands = [last.values[n] for n in kept]
    types = [result.type for result in read]
    region = Region()
    stage.body.move_blocks(region)
    new = StageOp(
        stage.sym_name.data, stage.core_list(), stage.arguments, region, types, attributes=dict(stage.attributes)
    )
    new.location = stage.location
    program.body.block.insert_op_before(new, stage)
    for before, after in zip(read, new.results_, strict=True):
        after.name_hint = before.name_hint
        before.replace_all_uses_with(after)
    stage.detach()
    stage.erase()
