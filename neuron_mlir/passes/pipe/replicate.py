"""The pass `pipe-replicate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.builtin import DenseArrayBase, IntegerAttr, ModuleOp, StringAttr, UnitAttr, i64

from neuron_mlir.dialects.pipe.ops import CertificateAttr, ProgramOp, StageOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import machine_of, record_machine
from neuron_mlir.machine import Machine
from neuron_mlir.passes.base import NeuronPass, Relation, option
from neuron_mlir.passes.pipe._traffic import Cores, dram_times, host_times, slowest_link

if TYPE_CHECKING:
    from xdsl.context import Context


@dataclass(frozen=True)
class PipeReplicate(NeuronPass):
    """Copies stages over cores; the copies take requests in turn, and results keep their order.

    `copies=N` copies the whole program (data parallel): each copy has cores of its own, on as few chips as hold one,
    and its streams stay among them. `stage=s2 copies=N` copies one stage, for one that is slower than the others.
    `cores=N` spends up to N cores on whatever stage is the slowest, by the estimates that `pipe-stage` has left: that
    is the least possible bottleneck, unless DRAM of a chip or a link between chips then is slower. So all numbers of
    cores up to N and of whole copies that share them are tried, and the best is taken. The program carries the
    certificate.

    Cores are numbered anew: along the chain from the program's first core on, copy by copy, and within one in the order
    of stages. A copy has all weights of its stage, so that on each core they are as resident as before. The code of a
    copied stage stays one in the IR, however many cores run it.

    Not done here: splitting the work on one request (`pipe-shard`); latency stays what it is.

    Before:

    ```mlir
    pipe.program @net {
      %x = pipe.input "x" : !pipe.stream<tensor<4x8xf32>>
      %a = pipe.stage @s0 cores [0] (%x) attributes {cost_ps = 20000 : i64} {
      ^bb0(%v: tensor<4x8xf32>):
        %r = nn.relu %v : tensor<4x8xf32>
        pipe.yield %r : tensor<4x8xf32>
      } -> (!pipe.stream<tensor<4x8xf32>>)
      %b = pipe.stage @s1 cores [1] (%a) attributes {cost_ps = 40000 : i64} {
      ^bb0(%v: tensor<4x8xf32>):
        %r = nn.tanh %v : tensor<4x8xf32>
        pipe.yield %r : tensor<4x8xf32>
      } -> (!pipe.stream<tensor<4x8xf32>>)
      pipe.output "y", %b : !pipe.stream<tensor<4x8xf32>>
    }
    ```

    After `pipe-replicate{cores=3}`:

    ```mlir
    builtin.module attributes {core.machine = "inferentia1"} {
      pipe.program @net attributes {
          replication = #pipe.certificate<20000.0, 20000.0, "ps", "greedy, links and DRAM checked">,
          replication_reason = "s1 twice: 3 of 3 cores, from 40000 to 20000 ps per request"} {
        %x = pipe.input "x" : !pipe.stream<tensor<4x8xf32>>
        %a = pipe.stage @s0 cores [0] (%x) attributes {cost_ps = 20000 : i64} {
        ^bb0(%v: tensor<4x8xf32>):
          %r = nn.relu %v : tensor<4x8xf32>
          pipe.yield %r : tensor<4x8xf32>
        } -> (!pipe.stream<tensor<4x8xf32>>)
        %b = pipe.stage @s1 cores [1, 2] replicas (%a) attributes {cost_ps = 40000 : i64} {
        ^bb0(%v: tensor<4x8xf32>):
          %r = nn.tanh %v : tensor<4x8xf32>
          pipe.yield %r : tensor<4x8xf32>
        } -> (!pipe.stream<tensor<4x8xf32>>)
        pipe.output "y", %b : !pipe.stream<tensor<4x8xf32>>
      }
    }
    ```
    """

    name = "pipe-replicate"
    summary: ClassVar[str] = "copy stages, or the whole program, over cores that take requests in turn"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "stages": "stages in the program",
        "replicated": "stages with more than one copy",
        "cores": "cores in use",
        "bottleneck-ps": "estimated time per request of the slowest stage, DRAM or link, picoseconds; 0: not known",
    }

    copies: int = option(1, "copies of the program, or of the stage given; those it has already are multiplied")
    stage: str = option("", "copy only the stage of this name")
    cores: int = option(0, "spend up to this many cores on copies of the slowest stages; 0: as copies says")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        program = next((p for p in op.body.block.ops if isinstance(p, ProgramOp)), None)
        stages = [] if program is None else program.stages()
        if program is None or not stages:
            raise NeuronError("pipe-replicate needs a pipe.program", op=program or op, advice="run pipe-stage first")
        if any(stage.in_memory_form for stage in stages):
            raise NeuronError("the stages are code on buffers already", op=program, advice="run it before core-lower")
        machine = machine_of(op)
        self._check_options()
        before = [len(stage.core_list()) for stage in stages]
        times = _times(stages)
        first = min(core for stage in stages for core in stage.core_list())
        if self.cores:
            counts, certificate = self._spread(program, stages, before, first, machine)
        else:
            counts, certificate = self._copies(program, stages, before), None
        for stage, cores in place(program, stages, counts, first, machine).items():
            stage.properties["cores"] = DenseArrayBase.from_list(i64, cores)
            if len(cores) > 1:
                stage.properties["replicas"] = UnitAttr()
        record_machine(op, machine)
        self.record("stages", len(stages))
        self.record("replicated", sum(count > 1 for count in counts))
        self.record("cores", sum(counts))
        if times is None:
            return
        objective, _ = _bottleneck(program, times, {stage: stage.core_list() for stage in stages}, machine)
        self.record("bottleneck-ps", objective)
        if certificate is not None:
            program.attributes["replication"] = certificate
            was = max(-(-time // count) for time, count in zip(times, before, strict=True))
            program.attributes["replication_reason"] = StringAttr(
                f"{_names(stages, counts)}: {sum(counts)} of {self.cores} cores, "
                f"from {was} to {objective} ps per request"
            )

    def _check_options(self) -> None:
        if self.copies < 1:
            raise NeuronError(f"option 'copies' of pass '{self.name}' is at least 1, not {self.copies}")
        if self.cores < 0:
            raise NeuronError(f"option 'cores' of pass '{self.name}' is at least 0, not {self.cores}")
        if self.cores and (self.stage or self.copies > 1):
            raise NeuronError(f"pass '{self.name}' takes cores, or copies and stage, not both")

    def _copies(self, program: ProgramOp, stages: Sequence[StageOp], before: Sequence[int]) -> list[int]:
        """Copies of each stage as asked for."""
        names = [stage.sym_name.data for stage in stages]
        if self.stage and self.stage not in names:
            raise NeuronError(
                f"there is no stage @{self.stage}", op=program, needed=self.stage, available=", ".join(names)
            )
        return [
            count * self.copies if self.stage in ("", name) else count
            for name, count in zip(names, before, strict=True)
        ]

    def _spread(
        self, program: ProgramOp, stages: Sequence[StageOp], before: Sequence[int], first: int, machine: Machine
    ) -> tuple[list[int], CertificateAttr]:
        """Copies of each stage for the least bottleneck, DRAM and links counted in: more copies may mean more traffic
        between chips, so fewer cores may be better.
        """
        from neuron_mlir.solvers.replicate import spread

        times = _times(stages)
        if times is None:
            raise NeuronError(
                "the stages carry no estimate of their time",
                op=program,
                advice="let pipe-stage make them, or say which stage to copy: stage=.. copies=..",
            )
        best: tuple[int, list[int]] | None = None
        bound: int | None = None
        tried: set[tuple[int, ...]] = set()
        most = min(self.cores, machine.cores_max - first)
        # Whole copies keep their streams to themselves: so many copies, each with some cores to spend.
        for copies, cores in ((n, c) for n in range(1, most + 1) for c in range(sum(before), most // n + 1)):
            counts = tuple(copies * count for count in spread(times, cores, before).counts)
            if counts in tried:
                continue
            tried.add(counts)
            placed = place(program, stages, counts, first, machine)
            objective, least = _bottleneck(program, times, placed, machine)
            bound = least if bound is None else min(bound, least)
            if best is None or objective < best[0]:
                best = objective, list(counts)
        if best is None or bound is None:
            raise NeuronError(
                "there are more stages than cores to spend",
                op=program,
                resource=f"cores of {machine.name} from core {first} on",
                needed=sum(before),
                available=machine.cores_max - first,
            )
        objective, counts = best
        return counts, CertificateAttr.of(objective, bound, "ps", "greedy, links and DRAM checked")


def place(
    program: ProgramOp, stages: Sequence[StageOp], counts: Sequence[int], first: int, machine: Machine
) -> dict[StageOp, list[int]]:
    """A core for every copy of every stage. Raises `NeuronError` when there are not enough."""
    if sum(counts) > machine.cores_max - first:
        raise NeuronError(
            f"{sum(counts)} copies of {len(stages)} stages need a core each",
            op=program,
            resource=f"cores of {machine.name} from core {first} on",
            needed=sum(counts),
            available=machine.cores_max - first,
            advice="fewer copies, or fewer stages (pipe-stage{cores=..})",
        )
    together = gcd(*counts)
    starts = copy_starts(sum(counts) // together, together, first, machine)
    placed: dict[StageOp, list[int]] = {}
    offset = 0
    for stage, count in zip(stages, counts, strict=True):
        # Replica `i` belongs to copy `i mod together`, like all others with a share of the same requests.
        placed[stage] = [starts[i % together] + offset + i // together for i in range(count)]
        offset += count // together
    return placed


def copy_starts(size: int, copies: int, first: int, machine: Machine) -> list[int]:
    """The first core of each copy of `size` neighbouring cores: a copy begins on a new chip where it would otherwise be
    on one more than it needs, if there are cores enough.
    """
    per_chip = machine.chip.cores
    starts: list[int] = []
    at = first
    for _ in range(copies):
        chips = (at + size - 1) // per_chip - at // per_chip + 1
        if chips > -(-size // per_chip):
            at = -(-at // per_chip) * per_chip
        starts.append(at)
        at += size
    if at > machine.cores_max:
        return [first + copy * size for copy in range(copies)]
    return starts


def _times(stages: Sequence[StageOp]) -> list[int] | None:
    """What each stage takes for a request on one core; None when one does not say."""
    times = [stage.attributes.get("cost_ps") for stage in stages]
    found = [time.value.data for time in times if isinstance(time, IntegerAttr)]
    return found if len(found) == len(times) else None


def _bottleneck(program: ProgramOp, times: Sequence[int], cores: Cores, machine: Machine) -> tuple[int, int]:
    """Time per request of the slowest stage, DRAM or link; and the least it can be wherever these copies are on as many
    chips: that of the slowest stage, of DRAM that all chips share evenly, or of the link to the host, which all share.
    """
    stages = program.stages()
    slowest = max(-(-time // len(cores[stage])) for stage, time in zip(stages, times, strict=True))
    worst, even = dram_times(stages, cores, machine)
    host = max(host_times(program, machine).values())
    return max(slowest, worst, slowest_link(stages, cores, machine), host), max(slowest, even, host)


def _names(stages: Sequence[StageOp], counts: Sequence[int]) -> str:
    """Which stages have copies, in words."""
    words = {2: "twice", 3: "three times"}
    found = [
        f"{stage.sym_name.data} {words.get(count, f'{count} times')}"
        for stage, count in zip(stages, counts, strict=True)
        if count > 1
    ]
    return ", ".join(found) or "no stage copied"
