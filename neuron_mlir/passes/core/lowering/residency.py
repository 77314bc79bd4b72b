"""Which weights stay in SBUF for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from xdsl.dialects.builtin import IntegerAttr
from xdsl.ir import Operation

from neuron_mlir.dialects.pipe.ops import ProgramOp, StageOp
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import core_dma_bytes_per_s, dram_bytes_per_s, service_ps
from neuron_mlir.solvers.certificate import Certificate

GOOD_ENOUGH = 0.02
"""How much longer than need be a request may take, by the estimate, for weights to stay as they are: less is lost in
what the estimate leaves out.
"""


@dataclass(frozen=True)
class Ask:
    """A constant that may stay: `kept` of so many pieces do, each of `size` bytes per partition and `moved` bytes of a
    transfer.
    """

    layer: Operation | None
    pieces: int
    size: int
    moved: int
    kept: int


@dataclass
class Residency:
    """Shares SBUF out to the constants of a stage, in the order of their layers.

    The first time a stage is lowered nobody knows how much there is: who comes first is served, while there is room. If
    that is too much in all, the stage is lowered again with the `total` known. What is streamed then is spread over the
    time of a request: transfers go on, at an even rate, while layers without weights, or with weights that stay,
    compute. A region of SBUF that constants pass through evens out what is left. Where a solver knows of a better
    choice (`cheapest`), the stage is lowered once more with what it has `chosen`.
    """

    budget: int
    """Bytes per partition to share out."""
    total: int | None = None
    """What is asked for in all, if known."""
    spans: Mapping[Operation, int] = field(default_factory=dict[Operation, int])
    """How long layers take, ps."""
    asked: int = 0
    kept: int = 0
    rows: int = 0
    """What rows that every partition wants ask for; kept once, not on each, they take next to nothing."""
    held: int = 0
    """What depth-first groups ask for. A group holds all its weights while it runs: if SBUF is fullest there, keeping
    them for good takes no more."""
    only_held: bool = False
    """Whether that alone stays."""
    elapsed: int = 0
    chosen: Sequence[Ask] = ()
    """What is asked for, in order, and how much of it is to stay."""
    asks: list[Ask] = field(default_factory=list[Ask])
    layer: Operation | None = None

    def begin(self, layer: Operation) -> None:
        """What is asked for next is of this layer."""
        self.layer = layer
        self.elapsed += self.spans.get(layer, 0)

    def take(self, size: int, pieces: int = 1, row: bool = False, held: bool = False, moved: int = 0) -> int:
        """How many of so many pieces of a constant, each of `size` bytes per partition, stay; the transfer of one is of
        `moved` bytes.
        """
        room = self.budget - self.kept
        known = self.chosen[len(self.asks)] if len(self.asks) < len(self.chosen) else None
        if known is not None and (known.size, known.pieces) == (size, pieces):
            count = min(known.kept, room // size) if size else pieces
        elif self.only_held:
            count = pieces if held and size * pieces <= room else 0
        elif self.total is None or self.total <= self.budget:
            count = pieces if size * pieces <= room else 0
        else:
            streamed = self.asked - self.kept
            due = self._due(size * pieces) - streamed
            # The nearest number of pieces; what is over or short is left to those that follow.
            count = pieces - max(0, min(pieces, (2 * due + size) // (2 * size)))
            count = min(count, room // size)
        self.asked += size * pieces
        self.rows += size * pieces if row else 0
        self.held += size * pieces if held else 0
        self.kept += count * size
        self.asks.append(Ask(self.layer, pieces, size, moved, count))
        return count

    def _due(self, size: int) -> int:
        """What should have been streamed when the next constant, of `size` bytes, has been used."""
        assert self.total is not None
        time = sum(self.spans.values())
        if time:
            return (self.total - self.budget) * self.elapsed // time
        return (self.total - self.budget) * (self.asked + size) // self.total


def dram_traffic(machine: Machine, stage: StageOp) -> tuple[int, list[int]]:
    """DRAM bytes of a request in a stage, and those of the other cores of its chip that the program uses, as
    `pipe-stage` counts them.
    """
    program = stage.parent_op()
    others = program.stages() if isinstance(program, ProgramOp) else ()
    chips = {core // machine.chip.cores for core in stage.core_list()}
    return _moved(stage), [
        _moved(other)
        for other in others
        if not other.in_memory_form and other is not stage
        for core in other.core_list()
        if core // machine.chip.cores in chips
    ]


def _moved(stage: StageOp) -> int:
    found = stage.attributes.get("dram_bytes")
    return found.value.data if isinstance(found, IntegerAttr) else 0


def streaming_rate(machine: Machine, moved: int, beside: Sequence[int]) -> int:
    """Bytes per second that a stage can count on which moves so many for a request, where others of its chip move those
    of `beside`: DRAM is shared by what each has to move, if all are to be done at the same time.
    """
    total = moved + sum(beside)
    dram = dram_bytes_per_s(machine)
    share = dram * moved // total if total else dram // (1 + len(beside))
    return max(1, min(core_dma_bytes_per_s(machine), max(share, dram // (1 + len(beside)))))


@dataclass(frozen=True)
class Cheapest:
    """What should stay in place of what does: `asks`, None where nothing is enough better; and certificates."""

    asks: list[Ask] | None
    before: Certificate
    after: Certificate


def cheapest(
    residency: Residency, budget: int, spans: Mapping[Operation, int], region: int, rate: int
) -> Cheapest | None:
    """What should stay for a request to be shortest by the estimate; None where all that was asked for stays.

    Args:
        residency: of a stage that was lowered with it.
        budget: bytes per partition for what stays.
        spans: how long its layers take, ps, in order.
        region: bytes that wait for their layers at most, in all partitions.
        rate: bytes per second that weights are read with.
    """
    from neuron_mlir.solvers.residency import Problem, Weight, choose, request_ps

    number = {layer: index for index, layer in enumerate(spans)}
    asks = residency.asks
    if all(ask.kept == ask.pieces for ask in asks) or any(ask.layer not in number for ask in asks):
        return None
    weights = tuple(
        Weight(number[ask.layer], ask.pieces, ask.size, service_ps(ask.moved, rate))
        for ask in asks
        if ask.layer is not None
    )
    problem = Problem(tuple(spans.values()), weights, budget, service_ps(region, rate))
    start = [ask.pieces - ask.kept for ask in asks]
    choice = choose(problem, start, GOOD_ENOUGH / 4)
    found = choice.certificate
    before = Certificate(request_ps(problem, start), found.lower_bound, found.unit, found.method)
    stays = [replace(a, kept=a.pieces - count) for a, count in zip(asks, choice.streamed, strict=True)]
    worth = found.objective < (1 - GOOD_ENOUGH) * before.objective
    return Cheapest(stays if worth else None, before, found if worth else before)
