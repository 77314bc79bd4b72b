"""Keep, spill or recompute: how values share a memory that is too small for all of them, at the least extra time.

Nodes run in a given topological order; each makes one value. Between two uses a value may stay in memory, go to a
slower memory and come back (spill, reload), or be made again from its inputs (recompute), which have to be there then.
A node may also be able to read an input straight from the slower memory (direct), and to write its value there piece by
piece (stream), so that neither is whole in memory: as layers do that go through a feature map in tiles of rows.

**Which schedules are considered.** Stage `j` of a schedule ends with the first run of node `j`. Before it, in the same
stage, values of earlier nodes may be reloaded or made again, each at most once, in the order of the nodes. (The
stages of Jain et al., "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization", MLSys 2020.)
Spilling and recomputing in one model is what Patil et al., "POET: Training Neural Networks on Tiny Devices with
Integrated Rematerialization and Paging", ICML 2022, do. A spilled value is written once, when it is made: it does not
change. What the stage's node reads directly is not in memory at any other time of the stage.

**Time** is additive: what a recomputation, a spill and a reload add to the time of a run, as the caller estimates it.
A transfer that hides behind computation is charged for the part that does not. The objective is the sum, the extra time
over a run that keeps everything.

**Methods.** `neuron_mlir.solvers.rematerialize_sat` and `rematerialize_cover` have the models for CP-SAT,
`rematerialize_search` says which of them is solved when. Without recomputation the problem is to
cover each moment's excess with rests of values, and that is solved as such. With it, small problems are solved
over all schedules above. Larger ones are solved with chains of recomputations of bounded length, window after window
around the best schedule known. The lower bound is proven for all schedules above in either case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.certificate import Certificate, Progress

Mode = Literal["both", "spill", "recompute"]
Way = Literal["reload", "recompute", "direct", "stream"]
Choice = Mapping[tuple[int, int], Way]
"""`(node, stage)` to how the node's value comes back to memory in that stage; `direct`: it does not, the stage's node
reads it where it is. `stream`, of a node in its own stage: its value is not there either, but written to the slower
memory as it is made. Otherwise a value stays from one use to the next; so this is all there is to decide."""


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of work and the value it makes."""

    name: str
    inputs: tuple[int, ...]
    """Nodes whose values it reads, each once, all earlier in the order."""
    size: int
    """Bytes its value takes in memory."""
    working: int = 0
    """Bytes it takes besides its inputs and its value while it runs."""
    compute_ps: int = 0
    """What running it again adds."""
    spill_ps: int = 0
    """What writing its value to the slower memory adds."""
    reload_ps: int = 0
    """What reading it back adds."""
    replaces: int | None = None
    """The input whose bytes its value takes over in a first run not in pieces, when nobody reads that input there
    later; both are of one size."""
    is_stored: bool = False
    """An input of the graph: in the slower memory from the start, and never made again."""
    direct: tuple[int, ...] = ()
    """Inputs it can read from the slower memory in its first run."""
    direct_ps: tuple[int, ...] = ()
    """What each of these reads adds, in their order; left out: as much as the input's reload."""
    direct_bytes: int = 0
    """What each of these takes in memory then."""
    can_stream: bool = False
    """Whether its first run can write its value to the slower memory without ever holding it as a whole."""
    tiled_bytes: int = 0
    """What it takes besides in a first run that reads or writes the slower memory so; may be less than nothing."""
    tiled_ps: int = 0
    """What such a run takes longer, transfers apart."""
    can_spill: bool = True
    can_recompute: bool = True


@dataclass(frozen=True)
class Problem:
    """Nodes in the order in which they run."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        for j, node in enumerate(self.nodes):
            if len(set(node.inputs)) != len(node.inputs) or any(not 0 <= i < j for i in node.inputs):
                raise NeuronError(
                    f"inputs of node {j} ('{node.name}') are {list(node.inputs)}: each once, from 0 to {j - 1}"
                )
            if node.replaces is not None and (
                node.replaces not in node.inputs or self.nodes[node.replaces].size != node.size
            ):
                raise NeuronError(f"node {j} ('{node.name}') replaces what is no input of its size")
            if node.direct_ps and len(node.direct_ps) != len(node.direct):
                raise NeuronError(f"node {j} ('{node.name}') has {len(node.direct)} direct inputs and other prices")

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node those that read its value, in order."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for j, node in enumerate(self.nodes):
            for i in node.inputs:
                found[i].append(j)
        return tuple(tuple(users) for users in found)

    def may_reload(self, i: int, mode: Mode) -> bool:
        """Whether the value of a node may come back from the slower memory."""
        node = self.nodes[i]
        return node.is_stored or (node.can_spill and mode != "recompute")

    def may_recompute(self, i: int, mode: Mode) -> bool:
        """Whether a node may run again. One that takes as long as a spill and a reload together need not: these want
        no inputs and no more memory.
        """
        node = self.nodes[i]
        if node.is_stored or not node.can_recompute or mode == "spill":
            return False
        return not (mode == "both" and node.can_spill and node.compute_ps >= node.spill_ps + node.reload_ps)

    def may_read(self, i: int, j: int, mode: Mode) -> bool:
        """Whether node `j` may read the value of node `i` from the slower memory."""
        return self.saved(i, j) > 0 and self.may_reload(i, mode)

    def may_stream(self, j: int, mode: Mode) -> bool:
        """Whether node `j` may write its value to the slower memory as it makes it."""
        node = self.nodes[j]
        usable = node.can_stream and node.can_spill and not node.is_stored and mode != "recompute"
        return usable and node.size > 0

    def saved(self, i: int, j: int) -> int:
        """Bytes node `j` takes less when it reads the value of node `i` from the slower memory, or writes its own there
        (`i` is `j`); `tiled_bytes` apart.
        """
        node = self.nodes[j]
        if i == j:
            return node.size if node.can_stream else 0
        return self.nodes[i].size - node.direct_bytes if i in node.direct else 0

    def read_ps(self, i: int, j: int) -> int:
        """What it adds when node `j` reads the value of node `i` from the slower memory."""
        node = self.nodes[j]
        return node.direct_ps[node.direct.index(i)] if node.direct_ps else self.nodes[i].reload_ps

    def tiled(self, j: int, mode: Mode) -> list[int]:
        """What node `j` may read or write in pieces: inputs, and itself for its value."""
        found = [i for i in self.nodes[j].direct if self.may_read(i, j, mode)]
        return [*found, j] if self.may_stream(j, mode) else found

    def least(self, j: int) -> int:
        """Bytes node `j` takes with all its inputs and nothing else in memory."""
        node = self.nodes[j]
        return node.size + node.working + sum(self.nodes[i].size for i in node.inputs)

    def floor(self, mode: Mode) -> int:
        """A budget that no schedule is below: of the node that takes most with the inputs it needs in memory."""
        return max((self._least_of_all(j, mode) for j in range(len(self.nodes))), default=0)

    def _least_of_all(self, j: int, mode: Mode) -> int:
        node, least = self.nodes[j], self.least(j)
        whole = least - (node.size if node.replaces is not None else 0)
        pieces = self.tiled(j, mode)
        tiled = least + node.tiled_bytes - sum(self.saved(i, j) for i in pieces)
        return min(whole, tiled) if pieces else whole


@dataclass(frozen=True, slots=True)
class Event:
    """A step of a schedule. `compute` is a node's first run; `direct` says that the run that ends the stage reads this
    node's value from the slower memory, `stream` that it writes its own there; `free` gives its value's bytes back."""

    kind: Literal["compute", "recompute", "reload", "direct", "stream", "spill", "free"]
    node: int
    stage: int


@dataclass(frozen=True)
class Schedule:
    """Events in order, and what they take."""

    events: tuple[Event, ...]
    peak: int
    """Most bytes in memory at any time."""
    peak_stage: int
    extra_ps: int


@dataclass(frozen=True)
class Plan:
    """A solver's answer."""

    choice: Choice
    schedule: Schedule
    certificate: Certificate


def schedule_of(problem: Problem, choice: Choice) -> Schedule:
    """The schedule in which values come back as chosen and otherwise stay from one use to the next."""
    runs = list(_runs(problem, choice))
    last_read = list(range(len(runs)))
    current: dict[int, int] = {}
    for at, event in enumerate(runs):
        if event.kind in PIECES:
            continue
        if event.kind != "reload":
            for i in problem.nodes[event.node].inputs:
                if event.kind == "recompute" or choice.get((i, event.stage)) != "direct":
                    last_read[current[i]] = at
        if not _is_streamed(event, choice):
            current[event.node] = at
    dies: dict[int, list[int]] = {}
    for at, event in enumerate(runs):
        if event.kind not in PIECES and not _is_streamed(event, choice):
            dies.setdefault(last_read[at], []).append(event.node)
    spilled = {i for (i, _), way in choice.items() if way != "recompute" and not problem.nodes[i].is_stored}
    events: list[Event] = []
    live = peak = peak_stage = 0
    for at, event in enumerate(runs):
        if event.kind in PIECES:
            events.append(event)
            continue
        node = problem.nodes[event.node]
        streamed = _is_streamed(event, choice)
        live += 0 if streamed else node.size
        needs = live if event.kind == "reload" else live + node.working
        if event.kind == "compute":
            read = sum(choice.get((i, event.stage)) == "direct" for i in node.inputs)
            needs += node.direct_bytes * read + (node.tiled_bytes if read or streamed else 0)
            if not read and not streamed and node.replaces in dies.get(at, ()):
                needs -= node.size
        if needs > peak:
            peak, peak_stage = needs, event.stage
        events.append(event)
        if event.kind == "compute" and event.node in spilled and not streamed:
            events.append(Event("spill", event.node, event.stage))
        for i in sorted(dies.get(at, ())):
            live -= problem.nodes[i].size
            events.append(Event("free", i, event.stage))
    return Schedule(tuple(events), peak, peak_stage, extra_ps(problem, choice))


PIECES = ("direct", "stream")
"""Events that say how the run after them has a value: in pieces."""


def _is_streamed(event: Event, choice: Choice) -> bool:
    return event.kind == "compute" and choice.get((event.node, event.stage)) == "stream"


def _runs(problem: Problem, choice: Choice) -> Iterator[Event]:
    """What fills memory, in order."""
    back: dict[int, list[int]] = {}
    for i, j in sorted(choice):
        back.setdefault(j, []).append(i)
    for j in range(len(problem.nodes)):
        for i in back.get(j, ()):
            yield Event(choice[i, j], i, j)
        yield Event("compute", j, j)


def extra_ps(problem: Problem, choice: Choice) -> int:
    """What a choice adds to the time of a run."""
    nodes = problem.nodes
    total = sum(way_ps(problem, i, j, way) for (i, j), way in choice.items())
    tiled = {j for (_, j), way in choice.items() if way in PIECES}
    spilled = {i for (i, _), way in choice.items() if way != "recompute"}
    total += sum(nodes[j].tiled_ps for j in tiled)
    return total + sum(nodes[i].spill_ps for i in spilled if not nodes[i].is_stored)


def way_ps(problem: Problem, i: int, j: int, way: Way) -> int:
    """What one way for the value of node `i` to be in stage `j` adds, without its spill and what tiles take."""
    node = problem.nodes[i]
    if way == "stream":
        return 0
    if way == "direct":
        return problem.read_ps(i, j)
    return node.compute_ps if way == "recompute" else node.reload_ps


def check(problem: Problem, events: tuple[Event, ...], budget: int) -> int:
    """Play a schedule event by event, independently of how it was found; the extra time it takes.

    Raises:
        NeuronError: it reads what is not in memory, reloads what was not spilled, or takes more than the budget.
    """
    here: set[int] = set()
    stored = {i for i, node in enumerate(problem.nodes) if node.is_stored}
    done: set[int] = set()
    direct: set[int] = set()
    streams = False
    live = time = 0

    def need(holds: bool, text: str, event: Event) -> None:
        if not holds:
            raise NeuronError(f"bad schedule: {event.kind} of node {event.node} in stage {event.stage}: {text}")

    for at, event in enumerate(events):
        node = problem.nodes[event.node]
        if event.kind == "free":
            need(event.node in here, "it is not in memory", event)
            here.discard(event.node)
            live -= node.size
            continue
        if event.kind == "spill":
            need(event.node in here, "it is not in memory", event)
            stored.add(event.node)
            time += node.spill_ps
            continue
        if event.kind == "direct":
            need(event.node in stored, "it was not spilled", event)
            need(event.node in problem.nodes[event.stage].direct, "the stage's node cannot read it there", event)
            direct.add(event.node)
            time += problem.read_ps(event.node, event.stage)
            continue
        if event.kind == "stream":
            need(event.node == event.stage and node.can_stream, "its value cannot be written in pieces", event)
            streams = True
            continue
        need(event.node not in here, "it is in memory", event)
        need(event.kind == "compute" or not streams, "what is written in pieces is a first run's", event)
        needs = live + node.size
        if event.kind == "reload":
            need(event.node in stored, "it was not spilled", event)
            time += node.reload_ps
        else:
            there = here | direct if event.kind == "compute" else here
            need(all(i in there for i in node.inputs), "an input is not in memory", event)
            if event.kind == "compute":
                needs += node.direct_bytes * len(direct)
                if direct or streams:
                    needs += node.tiled_bytes
                    time += node.tiled_ps
                elif node.replaces is not None and _is_freed(events, at, node.replaces):
                    needs -= node.size
                direct = set()
            need((event.kind == "compute") != (event.node in done), "first runs are computes, others are not", event)
            needs += node.working
            if event.kind == "recompute":
                need(not node.is_stored, "graph inputs are not computed", event)
                time += node.compute_ps
            done.add(event.node)
        if streams:
            needs -= node.size
            stored.add(event.node)
            time += node.spill_ps
        need(needs <= budget, f"takes {needs} bytes, there are {budget}", event)
        if not streams:
            here.add(event.node)
            live += node.size
        streams = False
    if len(done) != len(problem.nodes):
        raise NeuronError(f"bad schedule: {len(problem.nodes) - len(done)} nodes never run")
    return time


def _is_freed(events: tuple[Event, ...], at: int, node: int) -> bool:
    """Whether a value is given back as soon as a run ends."""
    for event in events[at + 1 :]:
        if event.kind not in ("free", "spill"):
            return False
        if event.kind == "free" and event.node == node:
            return True
    return False


def rematerialize(
    problem: Problem, budget: int, mode: Mode = "both", work: float = 8.0, progress: Progress | None = None
) -> Plan:
    """The cheapest schedule found that takes at most `budget` bytes of memory.

    Args:
        problem: nodes in order.
        budget: bytes.
        mode: whether values may be spilled, recomputed, or both.
        work: deterministic time of all CP-SAT searches together.
        progress: told the best objective and the bound, picoseconds; may stop the search.

    Raises:
        NeuronError: no schedule fits; says the smallest budget for which one is known.
    """
    from neuron_mlir.solvers import rematerialize_search as search

    kept: Choice = {}
    schedule = schedule_of(problem, kept)
    if schedule.peak <= budget:
        return Plan(kept, schedule, Certificate(0, 0, "ps", "everything stays"))
    if problem.floor(mode) > budget:
        least = search.smallest(problem, mode)
        raise _too_small(problem, budget, least, "a layer alone, with its inputs, takes more")
    answer = search.solve(problem, budget, mode, work, progress)
    if answer.choice is None:
        how = {"recompute": "recomputing", "spill": "spilling", "both": "spilling and recomputing"}[mode]
        raise _too_small(problem, budget, answer.smallest, f"no schedule found by {how}")
    schedule = schedule_of(problem, answer.choice)
    objective = schedule.extra_ps
    return Plan(
        answer.choice, schedule, Certificate(objective, min(answer.lower_bound, objective), "ps", answer.method)
    )


def lower_bound(problem: Problem, budget: int, mode: Mode = "both", work: float = 1.0) -> int:
    """Picoseconds: no schedule within the budget adds less. Quicker to find than one."""
    from neuron_mlir.solvers.rematerialize_cover import cover

    if schedule_of(problem, {}).peak <= budget:
        return 0
    _, bound, _ = cover(problem, budget, mode, work)
    return bound


def _too_small(problem: Problem, budget: int, smallest: int, why: str) -> NeuronError:
    return NeuronError(
        f"values do not fit the budget: {why}",
        resource="bytes of memory",
        needed=smallest,
        available=budget,
        advice=f"a budget of {smallest} or more",
    )
