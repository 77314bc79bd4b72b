"""Making shards of a stage: what part of each result each shard makes, and the stages that make it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from xdsl.ir import Block, BlockArgument, Region, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.dialects.pipe.ops import OutputOp, ProgramOp, StageOp, StreamType, YieldOp
from neuron_mlir.passes.nn._constants import erase_unused
from neuron_mlir.passes.pipe._slicing import Cut, Slicer, slice_of
from neuron_mlir.passes.pipe._streams import gather, gather_at_last

Axis = Literal["auto", "channel", "row", "head"]
AXES: tuple[Axis, ...] = ("channel", "row", "head")
UNITS = {"channel": "output channels", "row": "rows", "head": "heads"}
BLOCKS = (64, 32, 16, 8, 4, 2, 1)
"""Channels are dealt out in blocks of as many as this, the largest of which there are enough: the PE array has 64
columns."""


@dataclass(frozen=True)
class Split:
    """How to split a stage."""

    axis: Axis
    ways: int

    def __str__(self) -> str:
        return f"{self.ways} ways by {UNITS[self.axis]}"


def cuts_of(stage: StageOp, ways: int, axis: Axis) -> list[list[Cut]] | None:
    """The part of each result that each shard makes: an empty list where the first makes all; None when nothing is
    split.
    """
    last = stage.body.block.last_op
    assert isinstance(last, YieldOp)
    cuts: list[list[Cut]] = []
    for value in last.values:
        shape = type_of(value).get_shape()
        size = _heads(stage) if axis == "head" else None
        at = _axis_of(shape, axis)
        if at is None or (axis == "head" and (size is None or shape[at] % size)):
            cuts.append([])
            continue
        if size is None:
            blocks = BLOCKS if axis == "channel" else (1,)
            size = next((b for b in blocks if shape[at] % b == 0 and shape[at] // b >= ways), None)
        count = 0 if size is None else shape[at] // size
        if size is None or count < ways:
            cuts.append([])
            continue
        borders = [count * n // ways * size for n in range(ways + 1)]
        cuts.append([Cut(at, a, b - a) for a, b in pairwise(borders)])
    return cuts if any(cuts) else None


def _axis_of(shape: Sequence[int], axis: Axis) -> int | None:
    """Which axis of a result has channels (or heads), or rows."""
    if len(shape) == 4:
        return 2 if axis == "row" else 1
    if axis == "row":
        return len(shape) - 2 if len(shape) > 1 and shape[-2] > 1 else None
    return len(shape) - 1 if shape else None


def _heads(stage: StageOp) -> int | None:
    """How many channels a head has: what a stage that joins heads takes together."""
    for op in stage.body.block.ops:
        if isinstance(op, nn.ReshapeOp):
            x, to = type_of(op.x).get_shape(), type_of(op.result).get_shape()
            if len(x) == len(to) + 1 and x[-1] < to[-1] and to[-1] % x[-1] == 0:
                return x[-1]
    return None


def shard_of(stage: StageOp, cuts: Sequence[Sequence[Cut]], number: int) -> StageOp:
    """The shard that makes part of each result. A result that is not cut is made, whole, by the first shard."""
    block = Block()
    arguments: list[SSAValue] = []
    taken: dict[BlockArgument, SSAValue] = {}

    def argument(old: BlockArgument, want: Cut | None) -> SSAValue:
        if old not in taken:
            arguments.append(stage.arguments[old.index])
            taken[old] = block.insert_arg(old.type, len(block.args))
            taken[old].name_hint = old.name_hint
        if want is None:
            return taken[old]
        part = slice_of(taken[old], want)
        part.location = stage.location
        block.add_op(part)
        return part.result

    last = stage.body.block.last_op
    assert isinstance(last, YieldOp)
    wanted = [
        (value, cut[number] if cut else None) for value, cut in zip(last.values, cuts, strict=True) if cut or not number
    ]
    slicer = Slicer(block, argument, wanted)
    slicer.prepare()
    values = [slicer.get(value, part) for value, part in wanted]
    end = YieldOp(values)
    end.location = last.location
    block.add_op(end)
    erase_unused(block)
    for old in [arg for arg in block.args if not arg.uses]:
        del arguments[old.index]
        block.erase_arg(old)
    types = [StreamType(value.type) for value in values]
    part = StageOp(f"{stage.sym_name.data}.{number}", stage.core_list(), arguments, Region(block), types)
    part.location = stage.location
    return part


def replace_by_shards(program: ProgramOp, stage: StageOp, split: Split) -> list[StageOp]:
    """Put the shards in the place of the stage, and let its readers put its results together. Returns the shards."""
    cuts = cuts_of(stage, split.ways, split.axis)
    assert cuts is not None
    parts = [shard_of(stage, cuts, n) for n in range(split.ways)]
    for part in parts:
        program.body.block.insert_op_before(part, stage)
    # The number of each result among those of each shard that makes it.
    counts = [0] * split.ways
    wanted: list[tuple[OutputOp, list[int], int]] = []
    for result, cut in zip(stage.results_, cuts, strict=True):
        made: list[int] = []
        for n in range(split.ways if cut else 1):
            made.append(counts[n])
            if result.name_hint is not None:
                parts[n].results_[counts[n]].name_hint = f"{result.name_hint}_{n}" if cut else result.name_hint
            counts[n] += 1
        if not cut:
            result.replace_all_uses_with(parts[0].results_[made[0]])
            continue
        streams = [part.results_[i] for part, i in zip(parts, made, strict=True)]
        for reader in dict.fromkeys(use.operation for use in result.uses):
            if isinstance(reader, StageOp):
                gather(reader, result, streams, cut[0].axis)
            else:
                assert isinstance(reader, OutputOp)
                wanted.append((reader, made, cut[0].axis))
    for output, made, axis in wanted:
        output.operands = [gather_at_last(program, parts, made, axis)]
    stage.detach()
    stage.erase()
    return parts
