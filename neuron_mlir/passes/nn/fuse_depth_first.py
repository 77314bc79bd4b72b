"""`nn-fuse-depth-first`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.ir import Block, Operation

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.pipe.attributes import CertificateAttr
from neuron_mlir.dialects.pipe.ops import StageOp
from neuron_mlir.ir.machine_attr import machine_of
from neuron_mlir.passes.base import NeuronPass, Relation, option
from neuron_mlir.passes.depth_first_grouping import LONGEST, NEVER, Ends, Grouping
from neuron_mlir.passes.nn._constants import nn_blocks
from neuron_mlir.passes.nn._groups import enclose
from neuron_mlir.solvers.fusion import group_intervals

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp


@dataclass(frozen=True)
class FuseDepthFirst(NeuronPass):
    """Groups layers on feature maps so that some rows (or images) at a time go through all of them, one layer after
    the other, and whole maps of what is inside never exist.

    A map too large for SBUF costs DRAM traffic at each layer that writes or reads it. In a depth-first group only what
    enters and leaves passes DRAM. Rows that overlapping windows share are kept in line buffers, or computed again
    (`recompute`), whichever adds less time. Groups are intervals of the program's order, over forks, joins and
    concatenations, found by dynamic programming on estimated time: the layers' own, what steps add, and DMA at the
    ends. Tiles are as tall as line buffers and the group's weights leave room for in SBUF. Where maps fit SBUF, nothing
    is gained and nothing grouped; a batch whose maps do not fit goes image by image.

    Run it where layers are groups already (after `nn-fuse` and `nn-cast`), best in stages (after `pipe-stage`).
    Layers that need whole maps (reductions, products, reshapes) end a group.

    Before:

    ```mlir
    func.func @main(%x: tensor<1x64x360x360xf32>) -> tensor<1x64x360x360xf32> {
      %0 = nn.max_pool %x kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x64x360x360xf32>) -> tensor<1x64x360x360xf32>
      %1 = nn.max_pool %0 kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x64x360x360xf32>) -> tensor<1x64x360x360xf32>
      func.return %1 : tensor<1x64x360x360xf32>
    }
    ```

    After `nn-fuse-depth-first{rows=8}`:

    ```mlir
    func.func @main(%x: tensor<1x64x360x360xf32>) -> tensor<1x64x360x360xf32> {
      %0 = nn.fused "depth-first" (%x) tile [1, 8] {
      ^bb0(%y: tensor<1x64x360x360xf32>):
        %1 = nn.max_pool %y kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x64x360x360xf32>) -> tensor<1x64x360x360xf32>
        %2 = nn.max_pool %1 kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x64x360x360xf32>) -> tensor<1x64x360x360xf32>
        nn.yield %2 : tensor<1x64x360x360xf32>
      } : (tensor<1x64x360x360xf32>) -> tensor<1x64x360x360xf32>
      func.return %0 : tensor<1x64x360x360xf32>
    }
    ```
    """

    name = "nn-fuse-depth-first"
    summary: ClassVar[str] = "run several layers depth first, some rows or images at a time"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "groups": "depth-first groups made",
        "layers": "layers and groups in them",
        "saved-bytes": "DRAM traffic per request that is gone, by estimate",
        "cost-ps": "estimated time of all layers, the objective of the grouping, picoseconds",
        "lower-bound-ps": "proven: no grouping of this order into intervals costs less by the same estimate, but for "
        "groups whose first layers alone do not fit, and longer ones",
    }

    rows: int = option(0, "rows of the tallest result of each group at a time; 0: as many as fit")
    recompute: bool = option(False, "compute shared rows again in every group, instead of where that costs less")
    stream_rows: bool = option(
        True, "count on maps going from stage to stage by rows where they can (pipe-stream-rows)"
    )
    longest: int = option(LONGEST, "most layers in a group")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        machine = machine_of(op)
        cost = bound = 0
        for block in list(nn_blocks(op)):
            grouping = Grouping(
                machine, block, Ends.of_stage(machine, block, self.stream_rows), self.rows, self.recompute
            )
            time, least, groups = self.choose(grouping, slowest_ps(block))
            cost, bound = cost + time, bound + least
            for start, stop in groups:
                self.outline(grouping, start, stop)
        self.record("cost-ps", cost)
        self.record("lower-bound-ps", bound)

    def choose(self, grouping: Grouping, limit: int) -> tuple[int, int, list[tuple[int, int]]]:
        """Time, bound on it and groups of a block: all layers as one if that takes no longer than `limit` or than the
        best intervals, or if maps between those have no room.
        """
        whole = grouping.as_one()
        one = [(0, len(grouping.layers))]
        if whole is not None and whole.time_ps <= limit:
            return whole.time_ps, whole.time_ps, one
        answer = group_intervals(len(grouping.layers), grouping.cost, longest=self.longest, least=grouping.least)
        time = answer.certificate.objective
        if whole is not None and whole.time_ps <= (time if grouping.has_room(answer.intervals) else NEVER):
            return whole.time_ps, whole.time_ps, one
        return time, answer.certificate.lower_bound, [i for i in answer.intervals if grouping.is_group(*i)]

    def outline(self, grouping: Grouping, start: int, stop: int) -> None:
        """Move layers `start` to `stop - 1` into a group."""
        tile = grouping.tiles[start, stop]
        assert tile is not None
        self.count("groups")
        self.count("layers", stop - start)
        self.count("saved-bytes", sum(map(grouping.alone_bytes, range(start, stop))) - tile.dram_bytes)
        make_group(grouping.layers[start:stop], (tile.images, tile.rows), tile.recompute)


def slowest_ps(block: Block) -> int:
    """What the slowest resource of the program that a stage is part of takes for a request, by `pipe-stage`; 0 when
    that is not known.
    """
    stage = block.parent_op()
    program = stage.parent_op() if isinstance(stage, StageOp) else None
    certificate = None if program is None else program.attributes.get("certificate")
    return int(certificate.objective.value.data) if isinstance(certificate, CertificateAttr) else 0


def make_group(layers: Sequence[Operation], tile: tuple[int, int], recompute: bool) -> nn.FusedOp:
    """Move layers into a depth-first group at the place of the last."""
    return enclose(layers, "depth-first", tile, recompute)
