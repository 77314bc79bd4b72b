"""The pass `pipe-shard`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from xdsl.dialects.builtin import DenseArrayBase, IntegerAttr, ModuleOp, StringAttr, i64
from xdsl.ir import Block, BlockArgument, Region, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.dialects.pipe.ops import CertificateAttr, OutputOp, ProgramOp, StageOp, StreamType, YieldOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import machine_of, record_machine
from neuron_mlir.machine import Machine
from neuron_mlir.passes.base import NeuronPass, Relation, option
from neuron_mlir.passes.estimate import tensor_bytes
from neuron_mlir.passes.nn._constants import erase_unused
from neuron_mlir.passes.pipe._graph import Graph
from neuron_mlir.passes.pipe._slicing import Cut, Slicer, slice_of
from neuron_mlir.passes.pipe._streams import gather, gather_at_last, narrow
from neuron_mlir.passes.pipe._traffic import dram_times, slowest_link
from neuron_mlir.solvers.partition import HOST_PASSES

if TYPE_CHECKING:
    from xdsl.context import Context

    from neuron_mlir.solvers.partition import StageLoad

Axis = Literal["auto", "channel", "row", "head"]
AXES: tuple[Axis, ...] = ("channel", "row", "head")
BLOCKS = (64, 32, 16, 8, 4, 2, 1)
"""Channels are dealt out in blocks of as many as this, the largest of which there are enough: the PE array has 64
columns."""


@dataclass(frozen=True)
class PipeShard(NeuronPass):
    """Splits the work of a stage on each request over several cores.

    The stage becomes `ways` stages, each of which makes part of every result: some of the output channels (and so needs
    only their weights), some rows of a feature map or tokens of a sequence (with the rows around them that windows
    reach), or some heads of attention. What the parts have in common is computed in each. Stages that read a result
    take all parts and put them together (an all-gather over streams); a graph output is put together by the last shard.

    `axis=auto` takes the axis with the least estimated time of the slowest shard. Without `stage`, the stage that
    `pipe-stage` holds for the slowest is split. `cores=N` spends up to N cores: again and again the slowest stage is
    split one way further, as long as that helps; the program carries the certificate, which is exact for the ways that
    there are to split each stage alone. Cores are numbered anew, shards next to each other.

    Use it where a layer is too slow or its weights too large for one core. Copies (`pipe-replicate`) give as much
    throughput without any overlap; shards also shorten the latency. Not done here: splitting a contraction along what
    it sums over, for that would change the order of sums.

    Before:

    ```mlir
    pipe.program @net {
      %x = pipe.input "x" : !pipe.stream<tensor<4x8xf32>>
      %a = pipe.stage @s0 cores [0] (%x) {
      ^bb0(%v: tensor<4x8xf32>):
        %r = nn.relu %v : tensor<4x8xf32>
        pipe.yield %r : tensor<4x8xf32>
      } -> (!pipe.stream<tensor<4x8xf32>>)
      %b = pipe.stage @s1 cores [1] (%a) {
      ^bb0(%u: tensor<4x8xf32>):
        %t = nn.tanh %u : tensor<4x8xf32>
        pipe.yield %t : tensor<4x8xf32>
      } -> (!pipe.stream<tensor<4x8xf32>>)
      pipe.output "y", %b : !pipe.stream<tensor<4x8xf32>>
    }
    ```

    After `pipe-shard{stage=s0 axis=row}`:

    ```mlir
    builtin.module attributes {core.machine = "inferentia1"} {
      pipe.program @net attributes {
          sharding_reason = "s0 2 ways by rows: from 81920 to 75440 ps per request"} {
        %x = pipe.input "x" : !pipe.stream<tensor<4x8xf32>>
        %a = pipe.stage @s0.0 cores [0] (%x) attributes {
            compute_ps = 62000 : i64, cost_ps = 75440 : i64, dram_bytes = 640 : i64, weight_bytes = 0 : i64} {
        ^bb0(%v: tensor<4x8xf32>):
          %v_1 = nn.slice %v starts [0, 0] sizes [2, 8] : (tensor<4x8xf32>) -> tensor<2x8xf32>
          %r = nn.relu %v_1 : tensor<2x8xf32>
          pipe.yield %r : tensor<2x8xf32>
        } -> (!pipe.stream<tensor<2x8xf32>>)
        %a_1 = pipe.stage @s0.1 cores [1] (%x) attributes {
            compute_ps = 62000 : i64, cost_ps = 75440 : i64, dram_bytes = 640 : i64, weight_bytes = 0 : i64} {
        ^bb0(%v: tensor<4x8xf32>):
          %v_1 = nn.slice %v starts [2, 0] sizes [2, 8] : (tensor<4x8xf32>) -> tensor<2x8xf32>
          %r = nn.relu %v_1 : tensor<2x8xf32>
          pipe.yield %r : tensor<2x8xf32>
        } -> (!pipe.stream<tensor<2x8xf32>>)
        %b = pipe.stage @s1 cores [2] (%a, %a_1) attributes {
            compute_ps = 188000 : i64, cost_ps = 205920 : i64, dram_bytes = 1024 : i64, weight_bytes = 0 : i64} {
        ^bb0(%a_2: tensor<2x8xf32>, %a_3: tensor<2x8xf32>):
          %u = nn.concat %a_2, %a_3 axis 0 : (tensor<2x8xf32>, tensor<2x8xf32>) -> tensor<4x8xf32>
          %t = nn.tanh %u : tensor<4x8xf32>
          pipe.yield %t : tensor<4x8xf32>
        } -> (!pipe.stream<tensor<4x8xf32>>)
        pipe.output "y", %b : !pipe.stream<tensor<4x8xf32>>
      }
    }
    ```
    """

    name = "pipe-shard"
    summary: ClassVar[str] = "split the work of a stage on each request over several cores"
    relation: ClassVar[Relation] = Relation.REASSOCIATES
    statistics_help: ClassVar[dict[str, str]] = {
        "sharded": "stages that were split",
        "shards": "stages they became",
        "cores": "cores in use",
        "bottleneck-ps": "estimated time per request of the slowest stage, DRAM or link, picoseconds",
        "reason": "what was split how, with the estimates before and after",
    }

    ways: int = option(2, "shards of a stage")
    stage: str = option("", "the stage to split; none: the slowest by its estimate")
    axis: Literal["auto", "channel", "row", "head"] = option(
        cast("Axis", "auto"), "what is dealt out: output channels, rows (tokens), or attention heads"
    )
    cores: int = option(0, "split the slowest stages over up to this many cores in all; 0: as ways says")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        program = next((p for p in op.body.block.ops if isinstance(p, ProgramOp)), None)
        stages = [] if program is None else program.stages()
        if program is None or not stages:
            raise NeuronError("pipe-shard needs a pipe.program", op=program or op, advice="run pipe-stage first")
        if any(stage.in_memory_form for stage in stages):
            raise NeuronError("the stages are code on buffers already", op=program, advice="run it before core-lower")
        copied = next((stage for stage in stages if len(stage.core_list()) > 1), None)
        if copied is not None:
            raise NeuronError("a stage with replicas is not split", op=copied, advice="run pipe-replicate after it")
        if self.ways < 2 or self.cores < 0:
            raise NeuronError(f"pass '{self.name}' takes at least 2 ways, and a number of cores that is not negative")
        machine = machine_of(op)
        first = min(stage.core_list()[0] for stage in stages)
        chosen = self._spread(program, stages, machine) if self.cores else [self._one(stages, machine)]
        needed = len(stages) + sum(split.ways - 1 for split in chosen)
        if needed > machine.cores_max - first:
            raise NeuronError(
                "the shards need a core each",
                op=program,
                resource=f"cores of {machine.name} from core {first} on",
                needed=needed,
                available=machine.cores_max - first,
            )
        reasons = [split.reason() for split in chosen]
        for split in chosen:
            _replace(program, split)
            self.count("sharded")
            self.count("shards", split.ways)
        narrow(program)
        for number, stage in enumerate(program.stages(), first):
            stage.properties["cores"] = DenseArrayBase.from_list(i64, [number])
        record_machine(op, machine)
        self.record("cores", needed)
        for stage in program.stages():
            load = _load(stage, machine)
            inner = [
                result for result in stage.results_ if not any(isinstance(u.operation, OutputOp) for u in result.uses)
            ]
            rings = HOST_PASSES * sum(tensor_bytes(result.type.element) for result in inner)
            stage.attributes |= {
                "compute_ps": IntegerAttr(load.compute_ps, i64),
                "cost_ps": IntegerAttr(load.cost_ps, i64),
                "dram_bytes": IntegerAttr(max(0, load.dram_bytes - rings), i64),
                "weight_bytes": IntegerAttr(load.weight_bytes, i64),
            }
        known = program.attributes.get("sharding_reason")
        text = "; ".join([known.data, *reasons] if isinstance(known, StringAttr) else reasons)
        program.attributes["sharding_reason"] = StringAttr(text or "no stage is faster in parts")
        after = program.stages()
        cores = {stage: stage.core_list() for stage in after}
        times = [_time(stage, machine) for stage in after]
        self.record(
            "bottleneck-ps", max(*times, dram_times(after, cores, machine)[0], slowest_link(after, cores, machine))
        )
        self.record("reason", "; ".join(reasons))

    def _one(self, stages: Sequence[StageOp], machine: Machine) -> Split:
        """The split that the options ask for."""
        names = [stage.sym_name.data for stage in stages]
        if self.stage and self.stage not in names:
            raise NeuronError(
                f"there is no stage @{self.stage}",
                op=stages[0].parent_op(),
                needed=self.stage,
                available=", ".join(names),
            )
        if self.stage:
            stage = stages[names.index(self.stage)]
        else:
            stage = max(stages, key=lambda stage: _time(stage, machine))
        split = best_split(stage, self.ways, self.axis, machine)
        if split is None:
            raise NeuronError(
                f"stage @{stage.sym_name.data} cannot be split {self.ways} ways by {self.axis}",
                op=stage,
                advice="another axis, fewer ways, or another stage",
            )
        return split

    def _spread(self, program: ProgramOp, stages: Sequence[StageOp], machine: Machine) -> list[Split]:
        """Ways to split each stage so that the slowest is as fast as cores allow."""
        if self.cores < len(stages):
            raise NeuronError(
                "there are more stages than cores to spend",
                op=program,
                resource="cores",
                needed=len(stages),
                available=self.cores,
            )
        times = [_time(stage, machine) for stage in stages]
        splits: list[Split | None] = [None] * len(stages)
        left = self.cores - len(stages)
        while left > 0:
            slowest = max(range(len(stages)), key=lambda n: times[n])
            known = splits[slowest]
            have = 1 if known is None else known.ways
            better = (
                split
                for ways in range(have + 1, have + left + 1)
                for split in [best_split(stages[slowest], ways, self.axis, machine)]
                if split is not None and split.time_ps < times[slowest]
            )
            split = next(better, None)
            if split is None:
                break
            left -= split.ways - have
            splits[slowest], times[slowest] = split, split.time_ps
        objective = max(times)
        program.attributes["sharding"] = CertificateAttr.of(objective, objective, "ps", "greedy over single splits")
        return [split for split in splits if split is not None]


@dataclass(frozen=True)
class Split:
    """How to split a stage, and what that gives."""

    stage: StageOp
    axis: Axis
    ways: int
    before_ps: int
    time_ps: int
    """Of the slowest shard."""

    def reason(self) -> str:
        """In words."""
        unit = {"channel": "output channels", "row": "rows", "head": "heads", "auto": ""}[self.axis]
        return (
            f"{self.stage.sym_name.data} {self.ways} ways by {unit}: "
            f"from {self.before_ps} to {self.time_ps} ps per request"
        )


def best_split(stage: StageOp, ways: int, axis: Axis, machine: Machine) -> Split | None:
    """The fastest split of a stage by an axis, or by any; None when there is none."""
    before = _time(stage, machine)
    found: list[Split] = []
    for candidate in AXES if axis == "auto" else (axis,):
        cuts = _cuts(stage, ways, candidate)
        if cuts is None:
            continue
        worst = 0
        # The first and the last have a border on one side only; all between are alike.
        for number in dict.fromkeys((0, ways // 2, ways - 1)):
            part = _shard(stage, cuts, number)
            worst = max(worst, _time(part, machine))
            part.erase()
        found.append(Split(stage, candidate, ways, before, worst))
    return min(found, key=lambda split: split.time_ps, default=None)


def _cuts(stage: StageOp, ways: int, axis: Axis) -> list[list[Cut]] | None:
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


def _shard(stage: StageOp, cuts: Sequence[Sequence[Cut]], number: int) -> StageOp:
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


def _time(stage: StageOp, machine: Machine) -> int:
    """What a stage takes per request, by the estimates that cuts are made with."""
    return _load(stage, machine).cost_ps


def _load(stage: StageOp, machine: Machine) -> StageLoad:
    from neuron_mlir.solvers.partition import evaluate

    graph = Graph.of(stage, machine, depth_first=True)
    problem = graph.problem(machine, 1, machine.sbuf.bytes_per_partition, 0)
    return evaluate(problem, [0] * len(graph.nodes)).stages[0]


def _replace(program: ProgramOp, split: Split) -> None:
    """Put the shards in the place of the stage, and let its readers put its results together."""
    stage = split.stage
    cuts = _cuts(stage, split.ways, split.axis)
    assert cuts is not None
    parts = [_shard(stage, cuts, n) for n in range(split.ways)]
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
