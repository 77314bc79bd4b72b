"""Finding good plans where the ideals are too many: orders cut exactly, then ideals around the cuts recombined.

A plan is its cuts, the ideals between devices. One round of improvement grows and shrinks every cut by walks of a few
groups, half of them greedy for few transfers, and recombines all ideals met so by a dynamic program over the devices:
the cuts of one plan may move all at once. What it minimises is the sum of a high power of the loads, so that a plan
with fewer or shorter longest devices counts as better before the longest is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from neuron_mlir.solvers.device_partition_graph import Contracted
from neuron_mlir.solvers.device_partition_lattice import Ideals, Work

if TYPE_CHECKING:
    from neuron_mlir.solvers.device_partition_lattice import Floats, Ints

SEED = 7
_POWER = 24
_STEP_WORK = 2.2e-6
"""About CPU seconds for one group that a walk looks at."""
_CHAIN_MAX = 3200
"""Orders of more groups are cut at this many places only."""


@dataclass(frozen=True)
class Cuts:
    """A plan of a graph of groups: its ideals from empty to full, one more than devices."""

    ideals: tuple[int, ...]
    objective: int
    power: float
    """The sum of powers of the loads, relative to some fixed load."""


class Walker:
    """Grows and shrinks an ideal group by group, knowing what crosses its border."""

    def __init__(self, graph: Contracted, work: Work) -> None:
        self.graph = graph
        self.work = work
        groups = range(len(graph.cost))
        self.makes: list[list[int]] = [[] for _ in groups]
        self.uses: list[list[int]] = [[] for _ in groups]
        for number, (maker, users, _) in enumerate(graph.handovers):
            self.makes[maker].append(number)
            for user in users:
                self.uses[user].append(number)
        self.transfer = [t for _, _, t in graph.handovers]
        self.fan = [len(u) for _, u, _ in graph.handovers]

    def at(self, ideal: int) -> Position:
        """A position to walk from."""
        graph = self.graph
        inside = [ideal >> n & 1 == 1 for n in range(len(graph.cost))]
        outside = [sum(not inside[u] for u in users) for _, users, _ in graph.handovers]
        missing = [sum(not inside[m] for m in makers) for makers in graph.makers]
        held = [sum(inside[u] for u in users) for users in graph.users]
        grow = [n for n, i in enumerate(inside) if not i and not missing[n]]
        shrink = [n for n, i in enumerate(inside) if i and not held[n]]
        self.work.spend(_STEP_WORK * 0.2 * (len(graph.cost) + len(graph.handovers) + len(graph.edges)))
        return Position(self, ideal, outside, missing, held, dict.fromkeys(grow), dict.fromkeys(shrink))


@dataclass
class Position:
    """An ideal on a walk."""

    walker: Walker
    ideal: int
    outside: list[int]
    """Per handover: users outside."""
    missing: list[int]
    """Per group: what it needs and is outside."""
    held: list[int]
    """Per group: users inside."""
    grow: dict[int, None]
    """Groups that may come in."""
    shrink: dict[int, None]
    """Groups that may go out."""

    def copy(self) -> Position:
        """The same place, for another walk."""
        return Position(
            self.walker,
            self.ideal,
            self.outside.copy(),
            self.missing.copy(),
            self.held.copy(),
            self.grow.copy(),
            self.shrink.copy(),
        )

    def more(self, group: int) -> int:
        """How much more crosses the border with `group` inside."""
        walker = self.walker
        change = sum(walker.transfer[h] for h in walker.makes[group])
        for handover in walker.uses[group]:
            if self.outside[handover] == 1:
                change -= walker.transfer[handover]
        return change

    def less(self, group: int) -> int:
        """How much more crosses the border with `group` outside."""
        walker = self.walker
        change = -sum(walker.transfer[h] for h in walker.makes[group])
        for handover in walker.uses[group]:
            if self.outside[handover] == 0:
                change += walker.transfer[handover]
        return change

    def add(self, group: int) -> None:
        """Take a group of `grow` in."""
        graph = self.walker.graph
        self.ideal |= 1 << group
        del self.grow[group]
        self.shrink[group] = None
        for handover in self.walker.uses[group]:
            self.outside[handover] -= 1
        for maker in graph.makers[group]:
            self.held[maker] += 1
            self.shrink.pop(maker, None)
        for user in graph.users[group]:
            self.missing[user] -= 1
            if not self.missing[user]:
                self.grow[user] = None

    def drop(self, group: int) -> None:
        """Put a group of `shrink` out."""
        graph = self.walker.graph
        self.ideal ^= 1 << group
        del self.shrink[group]
        self.grow[group] = None
        for handover in self.walker.uses[group]:
            self.outside[handover] += 1
        for maker in graph.makers[group]:
            self.held[maker] -= 1
            if not self.held[maker]:
                self.shrink[maker] = None
        for user in graph.users[group]:
            self.missing[user] += 1
            self.grow.pop(user, None)

    def walk(self, steps: int, grow: bool, greedy: float, rng: random.Random) -> list[int]:
        """The ideals met on `steps` steps, each greedy with this probability, else random."""
        met: list[int] = []
        for _ in range(steps):
            choices = self.grow if grow else self.shrink
            if not choices:
                break
            if greedy and rng.random() < greedy:
                weigh = self.more if grow else self.less
                chosen = min(choices, key=lambda g: (weigh(g), -g if grow else g))
                self.walker.work.spend(_STEP_WORK * len(choices))
            else:
                chosen = rng.choice(list(choices))
                self.walker.work.spend(_STEP_WORK)
            if grow:
                self.add(chosen)
            else:
                self.drop(chosen)
            met.append(self.ideal)
        return met


def orders(graph: Contracted, walker: Walker, rng: random.Random) -> list[Callable[[], list[int]]]:
    """Makers of topological orders, each as its ideals from empty to full."""
    count = len(graph.cost)

    def given() -> list[int]:
        return [(1 << n) - 1 for n in range(count + 1)]

    def upward(greedy: float) -> Callable[[], list[int]]:
        return lambda: [0, *walker.at(0).walk(count, True, greedy, rng)]

    def downward(greedy: float) -> Callable[[], list[int]]:
        full = (1 << count) - 1
        return lambda: [full, *walker.at(full).walk(count, False, greedy, rng)][::-1]

    def deep() -> list[int]:
        position, met = walker.at(0), [0]
        while position.grow:
            # What became ready last comes next.
            position.add(next(reversed(position.grow)))
            met.append(position.ideal)
        return met

    def broad() -> list[int]:
        position, met = walker.at(0), [0]
        while position.grow:
            position.add(next(iter(position.grow)))
            met.append(position.ideal)
        return met

    return [given, upward(1.0), downward(1.0), deep, broad, upward(0.9), downward(0.9)]


def cut_order(graph: Contracted, prefixes: Sequence[int], scale: int, work: Work) -> Cuts | None:
    """The best cut of one order; None if none keeps the capacity."""
    if len(prefixes) > _CHAIN_MAX:
        picked: Ints = np.linspace(0, len(prefixes) - 1, _CHAIN_MAX).round().astype(np.int64)
        prefixes = [prefixes[int(i)] for i in picked]
    ideals = Ideals.of(graph, prefixes)
    every = np.arange(len(ideals))
    load = np.full((len(ideals), len(ideals)), np.inf)
    for first in range(0, len(ideals), 256):
        rows = every[first : first + 256]
        load[first : first + 256, first:] = ideals.loads(rows, every[first:], work)
    # The longest so far, per ideal; a device may stay empty.
    np.fill_diagonal(load, 0)
    reached = load[0]
    history: list[Ints] = []
    for _ in range(graph.devices - 1):
        longest = np.maximum(reached[:, None], load)
        choice = longest.argmin(axis=0)
        work.spend(load.size * 6e-9)
        shorter = longest[choice, every]
        if (shorter == reached).all():
            # More devices stay empty.
            break
        history.append(choice)
        reached = shorter
    if not np.isfinite(reached[-1]):
        return None
    chain = [len(ideals) - 1]
    for choice in reversed(history):
        chain.append(int(choice[chain[-1]]))
    chain = [0] * (graph.devices + 1 - len(chain)) + chain[::-1]
    steps = [float(load[a, b]) for a, b in pairwise(chain)]
    return Cuts(tuple(ideals.set_of(i) for i in chain), int(max(steps)), _power(steps, scale))


def _power(steps: Sequence[float], scale: int) -> float:
    return float(sum((s / max(1, scale)) ** _POWER for s in steps))


def recombine(graph: Contracted, layers: Sequence[Sequence[int]], scale: int, work: Work) -> Cuts | None:
    """The best plan whose cut after each device is one of the ideals of a layer, by the power sum of its loads."""
    ideals = Ideals.of(graph, [ideal for layer in layers for ideal in layer])
    index = {ideals.set_of(i): i for i in range(len(ideals))}
    places = [np.array(sorted({index[i] for i in layer}), dtype=np.int64) for layer in layers]
    best: Floats = np.zeros(1)
    history: list[Ints] = []
    steps: list[Floats] = []
    for before, after in pairwise(places):
        load = ideals.loads(before, after, work)
        sums = best[:, None] + (load / max(1, scale)) ** _POWER
        choice = sums.argmin(axis=0)
        history.append(choice)
        steps.append(load)
        best = sums[choice, np.arange(len(after))]
    if not np.isfinite(best[0]):
        return None
    here, chain, loads = 0, [int(places[-1][0])], list[float]()
    for layer, (choice, load) in enumerate(zip(reversed(history), reversed(steps), strict=True)):
        before = int(choice[here])
        loads.append(float(load[before, here]))
        here = before
        chain.append(int(places[-2 - layer][here]))
    return Cuts(tuple(ideals.set_of(i) for i in reversed(chain)), int(max(loads)), float(best[0]))


def improve(graph: Contracted, cuts: Cuts, scale: int, reach: int, width: int, rng: random.Random, work: Work) -> Cuts:
    """One round: the best recombination of `width` or more ideals around every cut; never a worse plan."""
    walker = Walker(graph, work)
    layers: list[list[int]] = [[0]]
    for ideal in cuts.ideals[1:-1]:
        start, met = walker.at(ideal), dict.fromkeys([ideal])
        for _ in range(20 * width):
            if len(met) >= width:
                break
            position, grow = start.copy(), rng.random() < 0.5
            greedy = rng.choice((0.0, 0.5, 1.0))
            position.walk(rng.randint(0, reach // 2), not grow, rng.choice((0.0, 0.8)), rng)
            met.update(dict.fromkeys(position.walk(rng.randint(1, reach), grow, greedy, rng)))
        layers.append(list(met))
    layers.append([cuts.ideals[-1]])
    found = recombine(graph, layers, scale, work)
    if found is None or found.power >= cuts.power:
        return cuts
    return found
