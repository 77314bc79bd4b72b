"""The pass `pipe-stream-rows`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.builtin import ArrayAttr, ModuleOp, UnitAttr

from neuron_mlir.dialects.pipe.ops import ProgramOp, RowsAttr
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import machine_of
from neuron_mlir.passes.base import NeuronPass, Relation, option

if TYPE_CHECKING:
    from xdsl.context import Context


@dataclass(frozen=True)
class PipeStreamRows(NeuronPass):
    """Lets feature maps go from stage to stage by rows, so that whole maps between stages never exist.

    Where a depth-first group makes a map that another stage's depth-first group reads, rows can go straight to the SBUF
    of the core that reads them, through a ring of some rows; both stages then work on the same request, one a few rows
    behind the other. Without this pass a stream is a ring of whole requests in DRAM, which costs its bytes twice.

    A slot of a ring holds as many rows as the steps of both groups have as a common divisor. The depth is what writer
    and reader take in a step, and more where that would stop some stage for ever (branches that pass other stages): the
    stages' events are gone through until nothing moves, and a ring that holds them up gets another slot. Streams whose
    rings do not fit SBUF stay whole. Where a stage does more than the group at one end of a stream, and its neighbour
    has no time to wait for that, the ring is deeper by what passes meanwhile, as far as there is room.

    Not done here: the tiles (`nn-fuse-depth-first`). Groups that compute rows again, and stages with different
    numbers of replicas, keep their streams whole. It runs last before `core-lower`.

    Before:

    ```mlir
    pipe.program @net {
      %a = pipe.input "x" : !pipe.stream<tensor<1x4x8x8xf32>>
      %b = pipe.stage @s0 cores [0] (%a) {
      ^bb0(%x: tensor<1x4x8x8xf32>):
        %y = nn.fused "depth-first" (%x) tile [1, 2] {
        ^bb1(%z: tensor<1x4x8x8xf32>):
          %r = nn.relu %z : tensor<1x4x8x8xf32>
          nn.yield %r : tensor<1x4x8x8xf32>
        } : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
        pipe.yield %y : tensor<1x4x8x8xf32>
      } -> (!pipe.stream<tensor<1x4x8x8xf32>>)
      %c = pipe.stage @s1 cores [1] (%b) {
      ^bb0(%x: tensor<1x4x8x8xf32>):
        %y = nn.fused "depth-first" (%x) tile [1, 4] {
        ^bb1(%z: tensor<1x4x8x8xf32>):
          %r = nn.abs %z : tensor<1x4x8x8xf32>
          nn.yield %r : tensor<1x4x8x8xf32>
        } : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
        pipe.yield %y : tensor<1x4x8x8xf32>
      } -> (!pipe.stream<tensor<1x4x8x8xf32>>)
      pipe.output "y", %c : !pipe.stream<tensor<1x4x8x8xf32>>
    }
    ```

    After:

    ```mlir
    pipe.program @net {
      %a = pipe.input "x" : !pipe.stream<tensor<1x4x8x8xf32>>
      %b = pipe.stage @s0 cores [0] (%a) {
      ^bb0(%x: tensor<1x4x8x8xf32>):
        %y = nn.fused "depth-first" (%x) tile [1, 2] {
        ^bb1(%z: tensor<1x4x8x8xf32>):
          %r = nn.relu %z : tensor<1x4x8x8xf32>
          nn.yield %r : tensor<1x4x8x8xf32>
        } : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
        pipe.yield %y : tensor<1x4x8x8xf32>
      } -> (!pipe.stream<tensor<1x4x8x8xf32>>)
      %c = pipe.stage @s1 cores [1] (%b) attributes {pipe.streams = [#pipe.rows<depth 3, images 1, rows 2>]} {
      ^bb0(%x: tensor<1x4x8x8xf32>):
        %y = nn.fused "depth-first" (%x) tile [1, 4] {
        ^bb1(%z: tensor<1x4x8x8xf32>):
          %r = nn.abs %z : tensor<1x4x8x8xf32>
          nn.yield %r : tensor<1x4x8x8xf32>
        } : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
        pipe.yield %y : tensor<1x4x8x8xf32>
      } -> (!pipe.stream<tensor<1x4x8x8xf32>>)
      pipe.output "y", %c : !pipe.stream<tensor<1x4x8x8xf32>>
    }
    ```
    """

    name = "pipe-stream-rows"
    summary: ClassVar[str] = "let feature maps go from stage to stage by rows, through the SBUF of the reader"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "streams": "streams that go by rows",
        "whole": "streams of feature maps between stages that stay whole requests in DRAM",
        "ring-bytes": "SBUF bytes per partition of all rings of rows",
        "saved-bytes": "DRAM traffic per request that is gone",
    }

    sbuf_percent: int = option(50, "most of a core's SBUF that its rings may take, percent")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        from neuron_mlir.passes.pipe._row_streams import choose_streams

        programs = [p for p in op.body.block.ops if isinstance(p, ProgramOp)]
        if not programs:
            raise NeuronError("pipe-stream-rows needs a pipe.program", op=op, advice="run pipe-stage{cores=2} first")
        machine = machine_of(op)
        for program in programs:
            if any(stage.in_memory_form for stage in program.stages()):
                continue
            chosen, whole = choose_streams(program, machine, self.sbuf_percent)
            self.count("whole", len(whole))
            for stage in program.stages():
                mine = {stream.operand: stream for stream in chosen if stream.reader is stage}
                if not mine:
                    stage.attributes.pop("pipe.streams", None)
                    continue
                entries = [
                    RowsAttr.of(mine[i].depth, mine[i].images, mine[i].rows) if i in mine else UnitAttr()
                    for i in range(len(stage.arguments))
                ]
                stage.attributes["pipe.streams"] = ArrayAttr(entries)
                self.count("streams", len(mine))
                self.count("ring-bytes", sum(stream.slot_bytes * stream.depth for stream in mine.values()))
                self.count("saved-bytes", sum(stream.saved_bytes for stream in mine.values()))
