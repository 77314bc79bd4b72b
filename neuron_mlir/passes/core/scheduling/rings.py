"""Streams between stages: for each ring, who hands its slots to whom, and the semaphores for that.

A slot goes from the producer to the stages that read it, one after the other, and back: `full` from the producer to
the first reader, `credit` from the last one to the producer. Each link is a semaphore on the receiver's core; the
host has no core.

Stages of replicas take requests in turn, and so a link between them is a counter for each pair that has requests in
common. A ring has lanes, each for every so many requests; within a lane, the writer's replicas take turns, and so do
the reader's. `RingPlan.acquire` says what a stage waits for.

A core has few semaphores. Where they would not do, rings with the same way share theirs (`share`): their slots are then
handed on together, once the last of them may be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import gcd

from neuron_mlir.dialects.pipe.ops import InputOp, OutputOp, ProgramOp, RingOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core._affine import Form
from neuron_mlir.passes.core.scheduling.chunks import attach_chunks
from neuron_mlir.passes.core.scheduling.tree import REPLICA, REQUEST, Acquisition, StageTree, Statement, Use


@dataclass(eq=False)
class Link:
    """A semaphore of a ring: on the cores of those who wait for it, or for so many lanes of the host, signalled by so
    many replicas or lanes.
    """

    label: str
    ring: RingOp
    cores: tuple[int, ...] | None
    waiters: int
    signallers: int


Member = StageTree | InputOp | OutputOp


@dataclass(eq=False)
class RingPlan:
    """The way of a ring's slots. `links[i]` goes to party `i + 1` of producer, readers and producer again."""

    ring: RingOp
    producer: StageTree | InputOp
    readers: list[StageTree | OutputOp]
    links: list[Link] = field(default_factory=list[Link])

    @property
    def depth(self) -> int:
        """How many slots there are."""
        return self.ring.depth.value.data

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

    def acquire(self, link: Link, behind: int) -> list[Acquisition]:
        """What a replica that has a link to it waits for, `behind` requests of its lane before the current one.

        In a lane of `n` signallers and `m` waiters it is the `m * q + t`-th request for the waiter's turn `q`, `t` its
        number in the lane; of the requests up to `k`, signaller `s` does `(k - s) floordiv n + 1`. So a waiter may wait
        for more than its own request when both `n` and `m` are more than 1, but never for a later one.
        """
        lanes = self.ring.lanes
        signallers, waiters = link.signallers // lanes, link.waiters // lanes
        request = Form(0, ((REQUEST, 1),))
        if waiters > 1:
            request = Form(0, ((REPLICA, 1), (REQUEST, link.waiters)))
            request = request.floordiv(lanes) if lanes > 1 else request
        return [
            Acquisition(link, s, (request + Form(-behind - s)).floordiv(signallers) + Form(1))
            for s in range(signallers)
        ]


def plan_rings(program: ProgramOp, stages: list[StageTree]) -> list[RingPlan]:
    """The plan of each ring that somebody fills.

    Raises `NeuronError` for a ring with two producers, or with readers and none, and for lanes that replicas do not
    share evenly.
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
        _check_lanes(ring, [producers[0], *readers])
        _check_chunks(ring, [producers[0], *readers])
        plans.append(RingPlan(ring, producers[0], readers, _links(ring, producers[0], readers)))
    return plans


def _check_lanes(ring: RingOp, parties: list[Member]) -> None:
    """The numbers of replicas of two neighbours have as many lanes in common as the ring has; the host serves as many
    as there are replicas.
    """
    for first, second in zip(parties, [*parties[1:], parties[0]], strict=True):
        counts = [len(party.cores) for party in (first, second) if isinstance(party, StageTree)]
        if counts and gcd(*counts) != ring.lanes:
            raise NeuronError(
                f"ring '{ring.label.data}' has {ring.lanes} lanes between "
                f"{' and '.join(map(str, counts))} replicas{' and the host' if len(counts) == 1 else ''}",
                op=ring,
                needed=f"{gcd(*counts)} lanes",
                available=ring.lanes,
                advice="a lane for each remainder that a request's number has for both",
            )


def _check_chunks(ring: RingOp, parties: list[Member]) -> None:
    """A ring handed over in parts has one reader, and a lane for each replica of it and of the writer."""
    alike = len(parties) == 2 and all(isinstance(p, StageTree) and len(p.cores) == ring.lanes for p in parties)
    if ring.parts > 1 and not alike:
        raise NeuronError(
            f"ring '{ring.label.data}' is handed over in chunks, and not from one stage to one other with as many "
            "replicas",
            op=ring,
            advice="hand over whole requests there",
        )


def _links(ring: RingOp, producer: StageTree | InputOp, readers: list[StageTree | OutputOp]) -> list[Link]:
    label = ring.label.data
    parties: list[Member] = [producer, *readers, producer]
    if not readers:
        # Nobody reads: the producer's own signals let it go on.
        parties = [producer, producer]
    links: list[Link] = []
    for number, (source, target) in enumerate(pairwise(parties), 1):
        name = "full" if number == 1 else "credit" if number == len(parties) - 1 else f"full{number}"
        links.append(Link(f"{label}.{name}", ring, _cores(target), _count(target, ring), _count(source, ring)))
    return links


def _cores(party: Member) -> tuple[int, ...] | None:
    return party.cores if isinstance(party, StageTree) else None


def _count(party: Member, ring: RingOp) -> int:
    """Replicas of a stage; the host serves each lane on its own."""
    return len(party.cores) if isinstance(party, StageTree) else ring.lanes


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


def share(plans: list[RingPlan], stages: list[StageTree], limit: int) -> int:
    """Let rings with the same way have the same links, until no core needs more than `limit` semaphores or none are
    left to share; those with the most rings go first. Returns the number of rings that gave up their own.

    Only stages share: the host serves each of its rings by itself. A stage is counted with a semaphore for each of its
    streams, which is what it needs at most.
    """
    needed = {core: len(tree.engines) for tree in stages for core in tree.cores}
    ways: dict[tuple[object, ...], list[RingPlan]] = {}
    for plan in plans:
        for link in plan.links:
            for core in link.cores or ():
                needed[core] = needed.get(core, 0) + link.signallers // plan.ring.lanes
        parties = plan.producer, *plan.readers
        if plan.ring.parts == 1 and all(isinstance(party, StageTree) for party in parties):
            ways.setdefault((parties, plan.ring.depth.value.data, plan.ring.lanes), []).append(plan)
    shared = 0
    for group in sorted(ways.values(), key=len, reverse=True):
        first, *others = group
        cores = [core for link in first.links for core in link.cores or ()]
        if not others or all(needed[core] <= limit for core in cores):
            continue
        for plan in others:
            for link in plan.links:
                for core in link.cores or ():
                    needed[core] -= link.signallers // plan.ring.lanes
            plan.links = first.links
            shared += 1
    return shared


def attach(stage: StageTree, plans: list[RingPlan]) -> None:
    """Put the acquiring and the handing on of slots into the code of a stage.

    Every stream that uses a ring waits for the slot before its first use. The stream of the last use hands the slot
    on, after it has waited for the others. Rings that share their links are one in this.
    """
    groups: dict[Link, list[RingPlan]] = {}
    for plan in plans:
        if plan.ring.parts > 1:
            if plan.producer is stage:
                attach_chunks(ring_uses(stage, plan.ring, write=True), plan.credit, plan.full, plan.depth)
            if stage in plan.readers:
                uses = ring_uses(stage, plan.ring, write=False)
                attach_chunks(uses, plan.arriving(stage), plan.leaving(stage), 0)
            continue
        groups.setdefault(plan.full, []).append(plan)
    for plan, *others in groups.values():
        rings = [plan.ring, *(other.ring for other in others)]
        if plan.producer is stage:
            behind = plan.ring.depth.value.data
            _attach(stage, rings, True, plan.acquire(plan.credit, behind), plan.full)
        if stage in plan.readers:
            _attach(stage, rings, False, plan.acquire(plan.arriving(stage), 0), plan.leaving(stage))
    stage.run.renumber()


def _attach(stage: StageTree, rings: list[RingOp], write: bool, acquired: list[Acquisition], released: Link) -> None:
    body = stage.run
    order = {statement: position for position, statement in enumerate(body.statements)}
    first: dict[str, Statement] = {}
    last: dict[str, Statement] = {}
    for use in (use for ring in rings for use in ring_uses(stage, ring, write)):
        top = use.statement
        while top.body is not body:
            assert top.body.parent is not None
            top = top.body.parent
        first[use.engine] = min(first.get(use.engine, top), top, key=lambda statement: order[statement])
        last[use.engine] = max(last.get(use.engine, top), top, key=lambda statement: order[statement])
    for engine, statement in first.items():
        statement.acquire.setdefault(engine, []).extend(acquired)
    final = max(last, key=lambda engine: order[last[engine]])
    others = [(engine, statement) for engine, statement in last.items() if engine != final]
    hand_on = Statement(body, 0, None, [final], release=[released], after=others)
    body.statements.insert(order[last[final]] + 1, hand_on)
