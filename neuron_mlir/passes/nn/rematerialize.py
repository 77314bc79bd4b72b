"""The pass `nn-rematerialize`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, Operation

from neuron_mlir.dialects import nn, pipe
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.functions import body_of
from neuron_mlir.ir.machine_attr import machine_of
from neuron_mlir.passes.base import NeuronPass, Relation, option

if TYPE_CHECKING:
    from xdsl.context import Context

    from neuron_mlir.passes.nn._values import ValueGraph
    from neuron_mlir.solvers.rematerialize import Mode, Plan, Problem

PLAN = "nn.rematerialized"
"""Attribute of a function or stage: the certificate of what was decided for it."""

COUNTED = {
    "spill": "spilled",
    "stream": "written-directly",
    "reload": "reloaded",
    "direct": "read-directly",
    "recompute": "recomputed",
}
"""The statistic of each kind of event."""


TILE_PARTS = (1, 2, 4, 8)
"""Tiles of rows take this part of what they take without a budget."""


@dataclass(frozen=True)
class NnRematerialize(NeuronPass):
    """Keep values in SBUF, spill them to DRAM or compute them again, so that they fit a budget at the least extra time.

    Every value that is alive between two uses takes part, graph inputs too; which of them stay is decided for all
    together, in a function or for each stage of a program. What is minimised is what recomputations add (the group's
    estimated time, and the DMA of streamed weights) and what spills and reloads add (85% of their DMA, as
    `pipe-stage` has it). `nn.spill` and `nn.reload` are identities that say when a value is in DRAM; a copy of a group
    that runs again carries `nn.recomputed`, its number, which keeps `cse` from merging it with the first. A
    concatenation may read a spilled value where it is. So may a layer over feature maps, in tiles of rows, and
    write its own result to DRAM as it makes it: then it carries `nn.tile_bytes`, what a tile takes per partition.
    Of weights counts what a layer has under way: the rest of SBUF is theirs. Feature maps that stay in DRAM anyway,
    because they are larger than 20 KiB per partition, take no part but for their tiles, whose size is decided for
    all. The certificate `nn.rematerialized` has the extra time found and the proven bound, in picoseconds;
    `docs/rematerialization.md` says of which schedules. A budget that no schedule keeps is an error; where none is
    given, and all of SBUF is too little, the function or stage stays as it is.

    Not done here: another order of the layers; tiles of a size of its own for each layer; layers in tiles that hand
    rows to each other (`nn-fuse-depth-first`).

    Before:

    ```mlir
    func.func @main(%x: tensor<1x64x16x16xbf16>) -> tensor<1x64x16x16xf32> {
      %w = nn.weight "w" seeded<1> : tensor<256x64x1x1xbf16>
      %v = nn.weight "v" seeded<2> : tensor<64x256x1x1xbf16>
      %a = nn.relu %x : tensor<1x64x16x16xbf16>
      %b = nn.conv %a, %w : (tensor<1x64x16x16xf32>, tensor<256x64x1x1xbf16>) -> tensor<1x256x16x16xf32>
      %c = nn.relu %b : tensor<1x256x16x16xf32>
      %d = nn.conv %c, %v : (tensor<1x256x16x16xf32>, tensor<64x256x1x1xbf16>) -> tensor<1x64x16x16xf32>
      %e = nn.add %a, %d : tensor<1x64x16x16xf32>, tensor<1x64x16x16xf32>
      func.return %e : tensor<1x64x16x16xf32>
    }
    ```

    After `nn-rematerialize{percent=92}`:

    ```mlir
    func.func @main(%x: tensor<1x64x16x16xbf16>) -> tensor<1x64x16x16xf32> attributes {
        nn.rematerialized = #pipe.certificate<316000.0, 316000.0, "ps", "CP-SAT, retention segments">} {
      %w = nn.weight "w" seeded<1> : tensor<256x64x1x1xbf16>
      %v = nn.weight "v" seeded<2> : tensor<64x256x1x1xbf16>
      %a = nn.relu %x : tensor<1x64x16x16xbf16>
      %b = nn.conv %a, %w : (tensor<1x64x16x16xf32>, tensor<256x64x1x1xbf16>) -> tensor<1x256x16x16xf32>
      %c = nn.relu %b : tensor<1x256x16x16xf32>
      %d = nn.conv %c, %v : (tensor<1x256x16x16xf32>, tensor<64x256x1x1xbf16>) -> tensor<1x64x16x16xf32>
      %a_1 = nn.relu %x {nn.recomputed = 1 : i64} : tensor<1x64x16x16xbf16>
      %e = nn.add %a_1, %d : tensor<1x64x16x16xf32>, tensor<1x64x16x16xf32>
      func.return %e : tensor<1x64x16x16xf32>
    }
    ```
    """

    name = "nn-rematerialize"
    summary: ClassVar[str] = "keep, spill or recompute values so that they fit an SBUF budget at the least extra time"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "values": "values that were decided on",
        "spilled": "values written to DRAM",
        "written-directly": "values that a layer writes to DRAM in tiles of rows as it makes them",
        "reloaded": "times a value is read back, graph inputs included",
        "read-directly": "times a layer reads a spilled value or an input in DRAM, part by part",
        "tile-bytes": "bytes per partition of a tile of rows; of the stage where that is least",
        "recomputed": "times a group runs again",
        "left": "functions or stages left as they are: by the estimate a layer alone takes more than all of SBUF",
        "budget": "bytes per partition that values may take; of the stage where that is least",
        "peak-before": "most bytes per partition of values when all are kept",
        "peak-after": "the same, as decided",
        "extra-ps": "what the decisions add to the time of a request, estimated, picoseconds",
        "lower-bound-ps": "proven: no schedule within the budget adds less, picoseconds",
        "gap-percent": "of the extra time, not proven necessary",
        "method": "how both were found",
    }

    budget: int | None = option(
        cast("int | None", None),
        "SBUF for values and temporaries, bytes per partition; default: all of it",
    )
    percent: int | None = option(
        cast("int | None", None), "the same as a part of the peak when all values are kept, percent (1 to 100)"
    )
    mode: Literal["both", "spill", "recompute"] = option(
        cast("Mode", "both"), "what may happen to a value that does not stay"
    )
    work: float = option(8.0, "limit of the search, CP-SAT's deterministic time (about seconds) per function or stage")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        from neuron_mlir.passes.nn._values import ValueGraph

        if self.budget is not None and self.percent is not None:
            raise NeuronError(f"pass '{self.name}' takes one of the options 'budget' and 'percent'")
        if self.percent is not None and not 1 <= self.percent <= 100:
            raise NeuronError(f"option 'percent' of pass '{self.name}' is 1 to 100, not {self.percent}")
        machine = machine_of(op)
        for owner, block in self._blocks(op):
            graph = ValueGraph.of(owner, block, machine)
            self._decide(owner, graph)

    def _blocks(self, module: ModuleOp) -> list[tuple[Operation, Block]]:
        """Functions and stages in value form."""
        found: list[tuple[Operation, Block]] = []
        for op in module.body.block.ops:
            if isinstance(op, FuncOp) and not op.is_declaration:
                found.append((op, body_of(op)))
            elif isinstance(op, pipe.ProgramOp):
                for stage in op.stages():
                    if stage.in_memory_form:
                        raise NeuronError(
                            f"{self.name} decides about values; the stage has buffers already",
                            op=stage,
                            advice="run it before core-lower",
                        )
                    found.append((stage, stage.body.block))
        for owner, block in found:
            if any(isinstance(inner, nn.PlaceOp) or "nn.recomputed" in inner.attributes for inner in block.ops):
                raise NeuronError(f"{self.name} has decided about these values already", op=owner)
        return found

    def _decide(self, owner: Operation, graph: ValueGraph) -> None:
        from neuron_mlir.solvers.rematerialize import Problem, check, schedule_of

        before = schedule_of(Problem(graph.nodes(0)), {}).peak
        budget = graph.machine.sbuf.bytes_per_partition if self.budget is None else self.budget
        if self.percent is not None:
            budget = before * self.percent // 100
        try:
            problem, plan, tile_bytes = self._plan(graph, budget)
        except NeuronError as error:
            if self.budget is None and self.percent is None:
                # Nobody asked for a budget: what no schedule of whole values fits is left to core-allocate.
                self.count("left")
                return
            raise NeuronError(
                error.message,
                op=owner,
                resource="SBUF bytes per partition for values",
                needed=error.needed,
                available=error.available,
                advice=error.advice,
            ) from None
        check(problem, plan.schedule.events, budget)
        graph.rewrite(plan.schedule, tile_bytes)
        certificate = plan.certificate
        owner.attributes[PLAN] = pipe.CertificateAttr.of(
            certificate.objective, certificate.lower_bound, certificate.unit, certificate.method
        )
        self._report(problem, plan, before, budget)
        least = cast(int, self.statistics["tile-bytes"])
        self.record("tile-bytes", min(least, tile_bytes) if least else tile_bytes)

    def _plan(self, graph: ValueGraph, budget: int) -> tuple[Problem, Plan, int]:
        """The problem, the cheapest plan over sizes of tiles, and that size; what tiles add for layers that go in tiles
        anyway counts. Plans without recomputations, which are quick to find, say which sizes are worth more.
        """
        from neuron_mlir.passes.estimate import TILE_BYTES
        from neuron_mlir.solvers.certificate import Certificate
        from neuron_mlir.solvers.rematerialize import Plan, Problem, lower_bound, rematerialize

        # Where no layer goes in tiles their size changes nothing: equal problems are solved once.
        solve = cache(rematerialize)
        refused: set[tuple[Problem, Mode]] = set()
        looked_at: set[Problem] = set()
        tried: list[tuple[int, int, int, Problem, Plan]] = []
        errors: list[NeuronError] = []
        modes: tuple[Mode, ...] = ("spill", "both") if self.mode == "both" else (self.mode,)
        share = self.work / (4 * len(TILE_PARTS))
        first: Mode = self.mode
        for mode, slots, part in product(modes, (2, 1), TILE_PARTS):
            if tried and (mode == "both" or not tried[-1][0]):
                break
            first = mode
            problem = Problem(graph.nodes(budget, TILE_BYTES // part, slots))
            if (problem, mode) in refused:
                continue
            try:
                plan = solve(problem, budget, mode, share)
            except NeuronError as error:
                errors.append(error)
                refused.add((problem, mode))
                continue
            overhead = graph.overhead_ps(budget, TILE_BYTES // part, slots)
            tried.append((plan.certificate.objective + overhead, part, overhead, problem, plan))
        if not tried:
            found = self._with_all_work(graph, budget) if self.mode == "recompute" else None
            if found is None:
                raise min(errors, key=lambda error: cast(int, error.needed))
            tried.append(found)
        best: tuple[int, int, Problem, Plan] | None = None
        bounds: list[int] = []
        for _, part, overhead, problem, known in sorted(tried, key=lambda item: item[:2]):
            if problem in looked_at:
                continue
            looked_at.add(problem)
            # Found in the mode asked for, a plan stands, but for the best one where it is not proven.
            plan, stands = known, first == self.mode and (best is not None or known.certificate.proven_optimal)
            least = known.certificate.lower_bound if stands else 0
            if not stands and best is not None:
                least = lower_bound(problem, budget, self.mode, share)
            least += overhead
            if not stands and (best is None or least < best[0]):
                plan = rematerialize(problem, budget, self.mode, self.work if best is None else share)
                least = max(least, plan.certificate.lower_bound + overhead)
            objective = plan.certificate.objective + overhead
            if best is None or objective < best[0]:
                best = objective, TILE_BYTES // part, problem, plan
            bounds.append(least)
        assert best is not None
        objective, tile_bytes, problem, plan = best
        certificate = Certificate(objective, min(*bounds, objective), plan.certificate.unit, plan.certificate.method)
        return problem, Plan(plan.choice, plan.schedule, certificate), tile_bytes

    def _with_all_work(self, graph: ValueGraph, budget: int) -> tuple[int, int, int, Problem, Plan] | None:
        """A plan of the largest tiles with which each layer alone fits, found with all the work there is: without
        spills the first schedule may be far.
        """
        from neuron_mlir.passes.estimate import TILE_BYTES
        from neuron_mlir.solvers.rematerialize import Problem, rematerialize

        for slots, part in product((2, 1), TILE_PARTS):
            problem = Problem(graph.nodes(budget, TILE_BYTES // part, slots))
            if problem.floor(self.mode) > budget:
                continue
            overhead = graph.overhead_ps(budget, TILE_BYTES // part, slots)
            try:
                plan = rematerialize(problem, budget, self.mode, self.work)
            except NeuronError:
                return None
            return plan.certificate.objective + overhead, part, overhead, problem, plan
        return None

    def _report(self, problem: Problem, plan: Plan, before: int, budget: int) -> None:
        recorded = self.statistics
        certificate = plan.certificate
        self.count("values", len(problem.nodes))
        for event in plan.schedule.events:
            if event.kind in COUNTED:
                self.count(COUNTED[event.kind])
        least = cast(int, recorded["budget"])
        self.record("budget", min(least, budget) if least else budget)
        self.record("peak-before", max(cast(int, recorded["peak-before"]), before))
        self.record("peak-after", max(cast(int, recorded["peak-after"]), plan.schedule.peak))
        self.count("extra-ps", certificate.objective)
        self.count("lower-bound-ps", certificate.lower_bound)
        extra, bound = cast(int, self.statistics["extra-ps"]), cast(int, self.statistics["lower-bound-ps"])
        self.record("gap-percent", round(100 * (extra - bound) / extra, 1) if extra else 0.0)
        if certificate.objective or not recorded["method"]:
            self.record("method", certificate.method)
