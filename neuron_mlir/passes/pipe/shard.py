"""The pass `pipe-shard`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from xdsl.dialects.builtin import DenseArrayBase, ModuleOp, StringAttr, i64

from neuron_mlir.dialects.pipe.ops import CertificateAttr, ProgramOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import machine_of, record_machine
from neuron_mlir.passes.base import NeuronPass, Relation, option
from neuron_mlir.passes.pipe._sharding import Estimate, Planner, annotate, apply, load_of

if TYPE_CHECKING:
    from xdsl.context import Context

    from neuron_mlir.passes.pipe._shards import Axis


@dataclass(frozen=True)
class PipeShard(NeuronPass):
    """Splits the work of a stage on each request over several cores.

    The stage becomes `ways` stages, each of which makes part of every result: some of the output channels (and so needs
    only their weights), some rows of a feature map or tokens of a sequence (with the rows around them that windows
    reach), or some heads of attention. What the parts have in common is computed in each. Stages that read a result
    take all parts and put them together (an all-gather over streams); a graph output is put together by the last shard.

    `axis=auto` takes the axis that gives the fastest program by the estimates: of the stages, of each chip's DRAM, of
    the links between chips and of the one to the host. Without `stage`, the slowest stage is split. `cores=N` spends up
    to N cores: again and again the slowest stage is split one way further, and of all that come by the fastest is
    taken, which may be the program as it is: shards that each read all weights from the DRAM of one chip are slower
    than one core. The program says what was split, or why nothing was, and carries the certificate; its bound is what
    stages alone would allow. Cores are numbered anew, shards next to each other, and on one chip where links would
    otherwise be too slow and cores are left for that.

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
        "lower-bound-ps": "what splits would give if DRAM and links cost nothing; 0 for a split asked for",
        "bottleneck-before-ps": "the same before any split",
        "bottleneck": "which that is",
        "reason": "what was split how, with the estimates before and after",
    }

    ways: int = option(2, "shards of a stage")
    stage: str = option("", "the stage to split; none: the slowest by its estimate")
    axis: Literal["auto", "channel", "row", "head"] = option(
        cast("Axis", "auto"), "what is dealt out: output channels, rows (tokens), or attention heads"
    )
    cores: int = option(0, "split the slowest stages over up to this many cores in all, if that wins; 0: as ways says")

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
        planner = Planner(program, machine, self.axis)
        least = self.cores or len(stages) + self.ways - 1
        if least > machine.cores_max - planner.first and not self.cores:
            raise NeuronError(
                "the shards need a core each",
                op=program,
                resource=f"cores of {machine.name} from core {planner.first} on",
                needed=least,
                available=machine.cores_max - planner.first,
            )
        room = min(least, machine.cores_max - planner.first)
        before, chosen, reason = self._spread(planner, room) if self.cores else self._one(planner, room)
        for number, stage in enumerate(stages):
            stage.properties["cores"] = DenseArrayBase.from_list(i64, [planner.first + number])
        for split in chosen.splits.values():
            self.count("sharded")
            self.count("shards", split.ways)
        parts = [stage for part in apply(program, chosen.splits) for stage in part]
        for stage, core in zip(parts, chosen.cores, strict=True):
            stage.properties["cores"] = DenseArrayBase.from_list(i64, [core])
            annotate(stage, load_of(stage, machine))
        record_machine(op, machine)
        known = program.attributes.get("sharding_reason")
        text = "; ".join([known.data, reason] if isinstance(known, StringAttr) else [reason])
        program.attributes["sharding_reason"] = StringAttr(text)
        self.record("cores", len(parts))
        self.record("bottleneck-ps", chosen.objective_ps)
        self.record("bottleneck-before-ps", before.objective_ps)
        bound = program.attributes.get("sharding") if self.cores else None
        self.record("lower-bound-ps", int(bound.lower_bound.value.data) if isinstance(bound, CertificateAttr) else 0)
        self.record("bottleneck", chosen.slowest)
        self.record("reason", reason)

    def _one(self, planner: Planner, room: int) -> tuple[Estimate, Estimate, str]:
        """The split that the options ask for; before it, after it, and in words."""
        if self.stage and self.stage not in planner.names:
            raise NeuronError(
                f"there is no stage @{self.stage}",
                op=planner.program,
                needed=self.stage,
                available=", ".join(planner.names),
            )
        before = planner.estimate({}, len(planner.names))
        slowest = max(range(len(planner.names)), key=lambda n: before.stage_ps[n])
        number = planner.names.index(self.stage) if self.stage else slowest
        found = planner.ways(number, self.ways, {}, room)
        if not found:
            raise NeuronError(
                f"stage @{planner.names[number]} cannot be split {self.ways} ways by {self.axis}",
                op=planner.stages[number],
                advice="another axis, fewer ways, or another stage",
            )
        chosen = min(found, key=lambda each: (each.objective_ps, each.stage_ps[number]))
        return before, chosen, _words(planner, before, chosen)

    def _spread(self, planner: Planner, room: int) -> tuple[Estimate, Estimate, str]:
        """Ways to split each stage so that the program is as fast as cores allow; before, after, and in words."""
        if self.cores < len(planner.stages):
            raise NeuronError(
                "there are more stages than cores to spend",
                op=planner.program,
                resource="cores",
                needed=len(planner.stages),
                available=self.cores,
            )
        before, chosen, bound, tried = planner.spread(room)
        planner.program.attributes["sharding"] = CertificateAttr.of(
            chosen.objective_ps, bound, "ps", "greedy, links and DRAM checked"
        )
        if chosen.splits:
            return before, chosen, _words(planner, before, chosen)
        if chosen.cores != before.cores:
            return (
                before,
                chosen,
                (
                    f"no stage split, cores skipped between chips: from {before.objective_ps} to "
                    f"{chosen.objective_ps} ps per request"
                ),
            )
        if tried is None:
            return before, chosen, "no stage is faster in parts"
        return (
            before,
            chosen,
            (
                f"no split wins: {_words(planner, before, tried)}, but {tried.slowest} would take "
                f"{tried.objective_ps} ps where {before.slowest} takes {before.objective_ps} ps"
            ),
        )


def _words(planner: Planner, before: Estimate, after: Estimate) -> str:
    """What is split how, with the estimates of the slowest shards."""
    return "; ".join(
        f"{planner.names[number]} {split}: from {before.stage_ps[number]} to {after.stage_ps[number]} ps per request"
        for number, split in after.splits.items()
    )
