"""The pass `core-schedule`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from neuron_mlir.dialects.core.movement import SemaphoreOp, SemaphoreType
from neuron_mlir.dialects.pipe.ops import InputOp, OutputOp, ProgramOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.locations import replace
from neuron_mlir.ir.machine_attr import machine_of
from neuron_mlir.machine import Machine
from neuron_mlir.passes.base import NeuronPass, Relation

if TYPE_CHECKING:
    from xdsl.context import Context

    from neuron_mlir.passes.core.scheduling.edges import Edges
    from neuron_mlir.passes.core.scheduling.rings import Link, RingPlan
    from neuron_mlir.passes.core.scheduling.tree import Body, StageTree


@dataclass(frozen=True)
class CoreSchedule(NeuronPass):
    """Turn sequential code with addresses into one instruction stream per engine, ordered by semaphores.

    Each engine (`tensor`, `scalar`, `vector`, every DMA queue) gets the loops it takes part in, with its instructions
    in program order. Where two engines touch the same bytes and one of them writes, the later one waits for the
    earlier: the earlier signals its semaphore, and the later waits for the value that it then has, affine in the
    request and the loop indices (`docs/scheduling.md` says how). Accesses that are provably apart, in the same
    iteration or in different ones, do not wait; nor does what another wait already implies.

    Rings get two semaphores: `full` from the producer, `credit` back from the last reader. A ring with several
    readers is handed from one to the next. Where a core has too few semaphores, rings between the same stages share
    theirs, and are handed over together. The load ends before the first request begins.

    Not done here: changing the order of instructions of one engine.

    Before:

    ```mlir
    pipe.program @p {
      %x = pipe.ring "x" depth 2 on core 0 at 0 : memref<64x2x4x512xf32, #core.sbuf>
      pipe.input "x" to %x
      pipe.stage @s0 cores [0] (%x) {
      ^bb0(%xr: memref<64x2x4x512xf32, #core.sbuf>):
        %t = core.alloc "t" at 16384 : memref<64x2x512xf32, #core.sbuf>
        %d = core.alloc "d" at 0 : memref<4x64x512xf32, #core.dram>
        pipe.load {
        }
        pipe.run (%r) {
          affine.for %i = 0 to 4 {
            core.activation relu %t[0, %i mod 2, 0] [64, 1, 512], %xr[0, %r mod 2, %i, 0] [64, 1, 1, 512]
            core.dma %t[0, %i mod 2, 0] [64, 1, 512] -> %d[%i, 0, 0] [1, 64, 512]
          }
        }
      }
    }
    ```

    After:

    ```mlir
    pipe.program @p {
      %x = pipe.ring "x" depth 2 on core 0 at 0 : memref<64x2x4x512xf32, #core.sbuf>
      %x_full = core.semaphore "x.full" on core 0
      %x_credit = core.semaphore "x.credit"
      pipe.input "x" to %x full %x_full credit %x_credit
      pipe.stage @s0 cores [0] (%x, %x_full, %x_credit) {
      ^bb0(%xr: memref<64x2x4x512xf32, #core.sbuf>, %full: !core.semaphore, %credit: !core.semaphore):
        %t = core.alloc "t" at 16384 : memref<64x2x512xf32, #core.sbuf>
        %d = core.alloc "d" at 0 : memref<4x64x512xf32, #core.dram>
        %scalar = core.semaphore "scalar"
        %dma1 = core.semaphore "dma1"
        pipe.load {
        }
        pipe.run (%r) {
          core.engine scalar {
            core.wait %full >= %r + 1
            affine.for %i = 0 to 4 {
              core.wait %dma1 >= %r * 4 + %i - 1
              core.activation relu %t[0, %i mod 2, 0] [64, 1, 512], %xr[0, %r mod 2, %i, 0] [64, 1, 1, 512]
              core.signal %scalar
            }
            core.signal %credit
          }
          core.engine dma1 {
            affine.for %i = 0 to 4 {
              core.wait %scalar >= %r * 4 + %i + 1
              core.dma %t[0, %i mod 2, 0] [64, 1, 512] -> %d[%i, 0, 0] [1, 64, 512]
              core.signal %dma1
            }
          }
        }
      }
    }
    ```
    """

    name = "core-schedule"
    summary: ClassVar[str] = "one instruction stream per engine, synchronised by semaphores"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "streams": "engine streams, of load and run",
        "semaphores": "semaphores, those between stages and to the host included",
        "rings sharing": "rings that have the semaphores of another, since a core has too few",
        "waits": "wait instructions",
        "signals": "signal instructions",
        "waits dropped": "waits that others imply",
    }

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        from neuron_mlir.passes.core.scheduling.rings import attach, plan_rings, share
        from neuron_mlir.passes.core.scheduling.tree import TreeReader

        program = next((o for o in op.body.block.ops if isinstance(o, ProgramOp)), None)
        stages = [] if program is None else [stage for stage in program.stages() if stage.in_memory_form]
        if program is None or not stages:
            raise NeuronError("there is no core code to schedule", op=program or op, advice="run core-lower first")
        machine = machine_of(op)
        trees = [TreeReader(stage, machine.chip.cores).read() for stage in stages]
        plans = plan_rings(program, trees)
        self.count("rings sharing", share(plans, trees, machine.chip.semaphores_per_core))
        links = self._declare(program, plans)
        for tree in trees:
            attach(tree, plans)
            self._stage(tree, links)
        self._ends(program, plans, links)
        self._check_semaphores(program, trees, machine)

    def _declare(self, program: ProgramOp, plans: list[RingPlan]) -> dict[Link, SSAValue]:
        """The semaphores of the rings, below each ring."""
        links: dict[Link, SSAValue] = {}
        for plan in plans:
            at = plan.ring
            hint = plan.ring.result.name_hint
            for link in plan.links:
                if link in links:
                    continue
                op = SemaphoreOp(link.label, link.cores, link.waiters, link.signallers)
                op.location = plan.ring.location
                if hint is not None:
                    op.result.name_hint = hint + link.label.removeprefix(plan.ring.label.data).replace(".", "_")
                program.body.block.insert_op_after(op, at)
                at = op
                links[link] = op.result
                self.count("semaphores")
        return links

    def _stage(self, tree: StageTree, links: dict[Link, SSAValue]) -> None:
        """Schedule one stage."""
        from neuron_mlir.passes.core.scheduling.conflicts import Conflicts
        from neuron_mlir.passes.core.scheduling.counts import Counts
        from neuron_mlir.passes.core.scheduling.dependences import Analysis
        from neuron_mlir.passes.core.scheduling.emit import Emitter

        edges: dict[Body, Edges] = {}
        conflicts = Conflicts(tree.loops)
        for body, request_first in ((tree.load, False), (tree.run, True)):
            analysis = Analysis(conflicts, request_first)
            analysis.body(body)
            edges |= analysis.result.edges
            self.count("waits dropped", analysis.result.dropped)
        counts = Counts(tree, edges)
        emitter = Emitter(tree, edges, counts, self._arguments(tree, links))
        emitter.emit()
        self.count("semaphores", len(emitter.semaphores))
        self.count("streams", emitter.streams)
        self.count("waits", emitter.waits)
        self.count("signals", emitter.signals)

    def _arguments(self, tree: StageTree, links: dict[Link, SSAValue]) -> dict[object, SSAValue]:
        """Hand the semaphores that the stage uses to it; what each is called inside."""
        used: dict[object, None] = {}
        bodies = [tree.run]
        for body in bodies:
            for statement in body.statements:
                for acquired in statement.acquire.values():
                    used.update((wanted.key, None) for wanted in acquired)
                used.update((key, None) for key in statement.release)
                if statement.inner is not None:
                    bodies.append(statement.inner)
        found: dict[object, SSAValue] = {}
        block = tree.stage.body.block
        for link, value in links.items():
            if link not in used:
                continue
            argument = block.insert_arg(SemaphoreType(), len(block.args))
            argument.name_hint = value.name_hint
            found[link] = argument
            tree.stage.operands = [*tree.stage.operands, value]
        return found

    def _ends(self, program: ProgramOp, plans: list[RingPlan], links: dict[Link, SSAValue]) -> None:
        """Give the host its semaphores."""
        for plan in plans:
            ring = plan.ring.result
            if isinstance(plan.producer, InputOp):
                replace(
                    plan.producer,
                    InputOp(plan.producer.label.data, None, ring, links[plan.full], links[plan.credit]),
                )
            for reader in plan.readers:
                if isinstance(reader, OutputOp):
                    arriving, leaving = links[plan.arriving(reader)], links[plan.leaving(reader)]
                    replace(reader, OutputOp(reader.label.data, ring, arriving, leaving))

    def _check_semaphores(self, program: ProgramOp, trees: list[StageTree], machine: Machine) -> None:
        """Raise `NeuronError` when a core has fewer semaphores than its streams need."""
        needed: dict[int, int] = {}
        for op in program.body.block.ops:
            if isinstance(op, SemaphoreOp):
                for _, waiter in op.counters():
                    core = op.places[waiter]
                    if core is not None:
                        needed[core] = needed.get(core, 0) + 1
        for tree in trees:
            inside = sum(isinstance(op, SemaphoreOp) for op in tree.stage.body.block.ops)
            for core in tree.cores:
                needed[core] = needed.get(core, 0) + inside
        limit = machine.chip.semaphores_per_core
        for tree in trees:
            core = max(tree.cores, key=lambda core: needed[core])
            if needed[core] > limit:
                raise NeuronError(
                    f"stage @{tree.stage.sym_name.data} needs too many semaphores on core {core}",
                    op=tree.stage,
                    resource="semaphores per core",
                    needed=needed[core],
                    available=limit,
                    advice="fewer streams into and out of the stage, fewer replicas, or fewer DMA queues",
                )
