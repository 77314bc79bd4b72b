"""Streams between stages: for each ring, who hands its slots to whom, and the semaphores for that.

A slot goes from the producer to the stages that read it, one after the other, and back: `full` from the producer to
the first reader, `credit` from the last one to the producer. Each link is a semaphore on the receiver's core; the
host has no core.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from neuron_mlir.dialects.pipe.ops import InputOp, OutputOp, ProgramOp, RingOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.scheduling.tree import StageTree, Statement, Use


@dataclass(eq=False)
class Link:
    """A semaphore of a ring, on the core of whoever waits for it (None: the host)."""

    label: str
    ring: RingOp
    core: int | None


@dataclass(eq=False)
class RingPlan:
    """The way of a ring's slots. `links[i]` goes to party `i + 1` of producer, readers and producer again."""

    ring: RingOp
    producer: StageTree | InputOp
    readers: list[StageTree | OutputOp]
    links: list[Link] = field(default_factory=list[Link])

    @property
    def full(self) -> Link:
        """What the producer signals."""
        return self.links[0]

    @property
    def credit(self) -> Link:
        """What the producer waits for."""
        return self.links[-1]

    def arriving(self, reader: StageTree | OutputOp) -> Link:
        """What a reader waits for."""
        return self.links[self.readers.index(reader)]

    def leaving(self, reader: StageTree | OutputOp) -> Link:
        """What a reader signals."""
        return self.links[self.readers.index(reader) + 1]


def plan_rings(program: ProgramOp, stages: list[StageTree]) -> list[RingPlan]:
    """The plan of each ring that somebody fills.

    Raises `NeuronError` for a ring with two producers, or with readers and none.
    """
    plans: list[RingPlan] = []
    for ring in program.body.block.ops:
        if not isinstance(ring, RingOp):
            continue
        producers: list[StageTree | InputOp] = [
            op for op in program.body.block.ops if isinstance(op, InputOp) and op.ring is ring.result
        ]
        producers += [stage for stage in stages if ring_uses(stage, ring, write=True)]
        readers: list[StageTree | OutputOp] = [stage for stage in stages if ring_uses(stage, ring, write=False)]
        readers += [op for op in program.body.block.ops if isinstance(op, OutputOp) and op.source is ring.result]
        if len(producers) > 1 or (readers and not producers):
            raise NeuronError(
                f"ring '{ring.label.data}' needs one producer", op=ring, needed="1 producer", available=len(producers)
            )
        if not producers:
            continue
        if producers[0] in readers:
            raise NeuronError(f"a stage both writes and reads ring '{ring.label.data}'", op=ring)
        plans.append(RingPlan(ring, producers[0], readers, _links(ring, producers[0], readers)))
    return plans


def _links(ring: RingOp, producer: StageTree | InputOp, readers: list[StageTree | OutputOp]) -> list[Link]:
    label = ring.label.data
    if not readers:
        # Nobody reads: the producer's own signals let it go on.
        return [Link(f"{label}.full", ring, _core(producer))]
    links = [Link(f"{label}.full", ring, _core(readers[0]))]
    for number, reader in enumerate(readers[1:], 2):
        links.append(Link(f"{label}.full{number}", ring, _core(reader)))
    return [*links, Link(f"{label}.credit", ring, _core(producer))]


def _core(party: StageTree | InputOp | OutputOp) -> int | None:
    return party.core if isinstance(party, StageTree) else None


def ring_uses(stage: StageTree, ring: RingOp, write: bool) -> list[Use]:
    """The accesses of a stage to a ring for each request, in program order.

    Raises `NeuronError` for an access at load time: no request has come yet.
    """
    arguments = [
        argument
        for operand, argument in zip(stage.stage.arguments, stage.stage.body.block.args, strict=True)
        if operand is ring.result
    ]
    found: list[Use] = []
    for body in (stage.load, stage.run):
        for statement in body.statements:
            for use in statement.uses:
                if use.touch.storage.value in arguments and use.touch.write == write:
                    if body is stage.load:
                        raise NeuronError(f"ring '{ring.label.data}' is used at load time", op=use.statement.op)
                    found.append(use)
    return found


def attach(stage: StageTree, plans: list[RingPlan]) -> None:
    """Put the acquiring and the handing on of slots into the code of a stage.

    Every stream that uses a ring waits for the slot before its first use. The stream of the last use hands the slot
    on, after it has waited for the others.
    """
    for plan in plans:
        if plan.producer is stage:
            _attach(stage, plan.ring, True, plan.credit, plan.ring.depth.value.data, plan.full)
        if stage in plan.readers:
            _attach(stage, plan.ring, False, plan.arriving(stage), 0, plan.leaving(stage))
    stage.run.renumber()


def _attach(stage: StageTree, ring: RingOp, write: bool, acquired: Link, behind: int, released: Link) -> None:
    first: dict[str, Statement] = {}
    last: dict[str, Statement] = {}
    for use in ring_uses(stage, ring, write):
        top = use.statement
        while top.body is not stage.run:
            assert top.body.parent is not None
            top = top.body.parent
        first.setdefault(use.engine, top)
        last[use.engine] = top
    for engine, statement in first.items():
        statement.acquire.setdefault(engine, []).append((acquired, behind))
    body = stage.run
    order = {statement: position for position, statement in enumerate(body.statements)}
    final = max(last, key=lambda engine: order[last[engine]])
    others = [(engine, statement) for engine, statement in last.items() if engine != final]
    hand_on = Statement(body, 0, None, [final], release=[released], after=others)
    body.statements.insert(order[last[final]] + 1, hand_on)
