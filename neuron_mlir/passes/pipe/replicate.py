"""The pass `pipe-replicate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, gcd
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.builtin import DenseArrayBase, IntegerAttr, ModuleOp, StringAttr, UnitAttr, i64

from neuron_mlir.dialects.pipe.ops import CertificateAttr, ProgramOp, StageOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import machine_of, record_machine
from neuron_mlir.machine import Machine, cost
from neuron_mlir.passes.base import NeuronPass, Relation, option

if TYPE_CHECKING:
    from xdsl.context import Context


@dataclass(frozen=True)
class PipeReplicate(NeuronPass):
    """Copies stages over cores; the copies take requests in turn, and results keep their order.

    `copies=N` copies the whole program (data parallel): each copy has cores of its own, on as few chips as hold one,
    and its streams stay among them. `stage=s2 copies=N` copies one stage, for one that is slower than the others.
    `cores=N` spends up to N cores on whatever stage is the slowest, by the estimates that `pipe-stage` has left: that
    is the least possible bottleneck, and the program carries the certificate, with DRAM of each chip counted in.

    Cores are numbered anew: along the chain from the program's first core on, copy by copy, and within one in the order
    of stages. A copy has all weights of its stage, so that on each core they are as resident as before. The code of a
    copied stage stays one in the IR, however many cores run it.

    Not done here: splitting the work on one request (`pipe-shard`); latency stays what it is.

    Before:

    ```mlir
    pipe.program @net {
      %x = pipe.input "x" : !pipe.stream<tensor<4x8xf32>>
      %a = pipe.stage @s0 cores [0] (%x) attributes {cost_ps = 1000 : i64} {
      ^bb0(%v: tensor<4x8xf32>):
        %r = nn.relu %v : tensor<4x8xf32>
        pipe.yield %r : tensor<4x8xf32>
      } -> (!pipe.stream<tensor<4x8xf32>>)
      %b = pipe.stage @s1 cores [1] (%a) attributes {cost_ps = 2000 : i64} {
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
          replication = #pipe.certificate<1000.0, 1000.0, "ps", "greedy, exact">,
          replication_reason = "s1 twice: 3 of 3 cores, from 2000 to 1000 ps per request"} {
        %x = pipe.input "x" : !pipe.stream<tensor<4x8xf32>>
        %a = pipe.stage @s0 cores [0] (%x) attributes {cost_ps = 1000 : i64} {
        ^bb0(%v: tensor<4x8xf32>):
          %r = nn.relu %v : tensor<4x8xf32>
          pipe.yield %r : tensor<4x8xf32>
        } -> (!pipe.stream<tensor<4x8xf32>>)
        %b = pipe.stage @s1 cores [1, 2] replicas (%a) attributes {cost_ps = 2000 : i64} {
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
        "bottleneck-ps": "estimated time per request of the slowest stage or chip's DRAM, picoseconds; 0: not known",
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
        counts = self._counts(program, stages, before, machine)
        first = min(core for stage in stages for core in stage.core_list())
        self._place(program, stages, counts, first, machine)
        record_machine(op, machine)
        times = _times(stages)
        self.record("stages", len(stages))
        self.record("replicated", sum(count > 1 for count in counts))
        self.record("cores", sum(counts))
        if times is None:
            return
        objective, bound = _bottleneck(stages, times, machine)
        self.record("bottleneck-ps", objective)
        if self.cores:
            from neuron_mlir.solvers.replicate import spread

            least = max(bound, spread(times, self.cores, before).certificate.lower_bound)
            program.attributes["replication"] = CertificateAttr.of(objective, least, "ps", "greedy, exact")
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

    def _counts(
        self, program: ProgramOp, stages: Sequence[StageOp], before: Sequence[int], machine: Machine
    ) -> list[int]:
        """Copies of each stage."""
        if self.cores:
            from neuron_mlir.solvers.replicate import spread

            times = _times(stages)
            if times is None:
                raise NeuronError(
                    "the stages carry no estimate of their time",
                    op=program,
                    advice="let pipe-stage make them, or say which stage to copy: stage=.. copies=..",
                )
            return list(spread(times, self.cores, before).counts)
        names = [stage.sym_name.data for stage in stages]
        if self.stage and self.stage not in names:
            raise NeuronError(
                f"there is no stage @{self.stage}", op=program, needed=self.stage, available=", ".join(names)
            )
        return [
            count * self.copies if self.stage in ("", name) else count
            for name, count in zip(names, before, strict=True)
        ]

    def _place(
        self, program: ProgramOp, stages: Sequence[StageOp], counts: Sequence[int], first: int, machine: Machine
    ) -> None:
        """Give every copy its core."""
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
        offset = 0
        for stage, count in zip(stages, counts, strict=True):
            each = count // together
            # Replica `i` belongs to copy `i mod together`, like all others with a share of the same requests.
            cores = [starts[i % together] + offset + i // together for i in range(count)]
            offset += each
            stage.properties["cores"] = DenseArrayBase.from_list(i64, cores)
            if count > 1:
                stage.properties["replicas"] = UnitAttr()


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


def _bottleneck(stages: Sequence[StageOp], times: Sequence[int], machine: Machine) -> tuple[int, int]:
    """Time per request of the slowest stage or DRAM, and what DRAM takes at least if chips share it evenly."""
    slowest = 0
    traffic: dict[int, Fraction] = {}
    for stage, time in zip(stages, times, strict=True):
        cores = stage.core_list()
        slowest = max(slowest, -(-time // len(cores)))
        moved = stage.attributes.get("dram_bytes")
        for core in cores:
            chip = core // machine.chip.cores
            share = Fraction(moved.value.data, len(cores)) if isinstance(moved, IntegerAttr) else Fraction(0)
            traffic[chip] = traffic.get(chip, Fraction(0)) + share
    rate = cost.dram_bytes_per_s(machine)
    worst = max(cost.service_ps(ceil(size), rate) for size in traffic.values())
    even = cost.service_ps(ceil(sum(traffic.values()) / len(traffic)), rate)
    return max(slowest, worst), even


def _names(stages: Sequence[StageOp], counts: Sequence[int]) -> str:
    """Which stages have copies, in words."""
    words = {2: "twice", 3: "three times"}
    found = [
        f"{stage.sym_name.data} {words.get(count, f'{count} times')}"
        for stage, count in zip(stages, counts, strict=True)
        if count > 1
    ]
    return ", ".join(found) or "no stage copied"
