"""`place`: the largest load of a weighted DAG on devices as small as possible, with a proven bound."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

from neuron_mlir.solvers.certificate import Certificate
from neuron_mlir.solvers.device_partition import (
    DevicePlan,
    DeviceProblem,
    GridProblem,
    NoPlan,
    device_loads,
    to_grid,
)
from neuron_mlir.solvers.device_partition_graph import Contracted, better_than, contract
from neuron_mlir.solvers.device_partition_lattice import Ideals, OutOfWork, Work
from neuron_mlir.solvers.device_partition_relax import relaxed_bound
from neuron_mlir.solvers.device_partition_search import SEED, Cuts, Walker, cut_order, improve, orders, recombine

DEFAULT_WORK = 25.0
_IDEALS_MAX = 1_000_000
_CELLS_MAX = 250_000_000
"""Numbers of two bytes that the states of all ideals may take: half a gigabyte."""
_IDEAL_WORK = 2.5e-9
"""About CPU seconds per ideal and number that is kept for it."""
_RELAX_SHARE = 0.5
"""Of the work left, for the bound of a graph with too many ideals."""
_CLOSE = 0.004
"""From this relative gap on every second look is just below the best plan: none there proves it best."""

Report = Callable[[float, float], None]
"""Called with the best objective and the bound whenever one of them is better."""


@dataclass
class _Search:
    """The best plan and bound so far, on the grid."""

    grid: GridProblem
    work: Work
    report: Report | None
    low: int = 0
    high: int | None = None
    device_of: list[int] = field(default_factory=list[int])
    found_by: str = ""
    proven_by: str = "average and largest loads"

    def plan(self, graph: Contracted, ideals: Sequence[int], objective: int, method: str) -> None:
        """Keep a plan, given as its cuts, if it is the best."""
        if self.high is not None and objective >= self.high:
            return
        self.device_of = [0] * len(self.grid.costs)
        for device, (start, end) in enumerate(pairwise(ideals)):
            inside = end & ~start
            for group, members in enumerate(graph.members):
                if inside >> group & 1:
                    for node in members:
                        self.device_of[node] = device
        self.high, self.found_by = objective, method
        self._tell()

    def bound(self, low: int, method: str) -> None:
        """Keep a bound if it is the best."""
        if low > self.low:
            self.low, self.proven_by = low, method
            self._tell()

    def _tell(self) -> None:
        if self.report is not None and self.high is not None:
            self.report(float(self.high * self.grid.scale), float(min(self.low, self.high) * self.grid.scale))

    @property
    def done(self) -> bool:
        return self.high is not None and self.low >= self.high


def place(problem: DeviceProblem, *, work: float = DEFAULT_WORK, report: Report | None = None) -> DevicePlan:
    """The best plan that can be found, and the best bound that can be proven, with about `work` CPU seconds.

    Exact where the ideals of the contracted graph are no more than about a million and near the middle of the cuts few
    (`device_partition_lattice`); else a search around the cuts (`device_partition_search`) with the bound that remains.
    The work is counted, not measured: the same problem has the same answer. On Ctrl-C the best so far is returned.

    Raises `NoPlan` if nothing keeps the capacity, or nothing that does was found; `NeuronError` for a senseless
    problem.
    """
    grid = to_grid(problem)
    search = _Search(grid, Work(work), report)
    interrupted = False
    try:
        _run(search, problem)
    except OutOfWork:
        pass
    except KeyboardInterrupt:
        if search.high is None:
            raise
        interrupted = True
    if search.high is None:
        raise NoPlan(
            f"found no plan of {len(grid.costs)} nodes that keeps the capacity; there may be one",
            resource="bytes of all devices",
            needed=sum(grid.at_most_bytes),
            available=grid.devices * grid.capacity,
            advice="more work, more devices or a larger capacity",
        )
    low = min(search.low, search.high)
    objective = max(device_loads(problem, search.device_of))
    bound = min(low * grid.scale, objective)
    method = search.found_by
    if search.proven_by != search.found_by:
        method += f"; bound by {search.proven_by}"
    if interrupted:
        method += "; interrupted"
    certificate = Certificate(search.high, low, "grid", method)
    return DevicePlan(tuple(search.device_of), float(objective), _at_most(bound), certificate, interrupted)


def _at_most(value: Fraction) -> float:
    """The float next to a number that is no larger, or the one it is written as."""
    near = float(value)
    return near if Fraction(near) <= value or Fraction(repr(near)) == value else math.nextafter(near, 0)


def _run(search: _Search, problem: DeviceProblem) -> None:
    grid = search.grid
    graph = contract(grid)
    _check_capacity(problem, graph)
    if graph.devices == 1 or len(graph.cost) <= 1:
        full = (1 << len(graph.cost)) - 1
        search.bound(graph.total, "one device for all")
        search.plan(graph, [0, full], graph.total, "one device for all")
        return
    search.bound(graph.simple_bound(), search.proven_by)
    if sum(graph.room) <= graph.capacity:
        full = (1 << len(graph.cost)) - 1
        search.plan(graph, [0] + [full] * graph.devices, graph.total, "one device for all")
    rng = random.Random(SEED)
    cuts = _start(search, graph, rng)
    if cuts is None and graph.room != graph.least_room:
        graph = contract(grid, move_bytes=False)
        cuts = _start(search, graph, rng)
    if cuts is None:
        # A small graph is proven to have no plan, or all is found; else look for any plan first.
        _exact(search, graph)
        cuts = None if search.done else _fitting(search, graph, rng)
        if cuts is None:
            return
    for reach in (2, 4, 8, 4, 2):
        cuts = _round(search, graph, cuts, reach, 40, rng)
    tried = _exact(search, graph)
    if not search.done and graph.room != graph.least_room:
        # Bytes that the contraction moved may be what keeps plans from being better.
        graph = contract(grid, move_bytes=False)
        tried = _exact(search, graph)
        cuts = _best_cuts(search, graph)
    _relax(search, graph)
    idle, width = 0, 60
    while not search.done:
        before = search.high or 0
        reach = (2, 4, 8, 16, 32, 64)[rng.randrange(6)]
        power = cuts.power
        cuts = _round(search, graph, cuts, reach, width, rng)
        idle = 0 if cuts.power < power else idle + 1
        if idle == 8:
            idle, width = 0, min(2 * width, 480)
        if (search.high or 0) < before and tried is not None and not tried:
            tried = _exact(search, graph, only_below=tried)


def _round(search: _Search, graph: Contracted, cuts: Cuts, reach: int, width: int, rng: random.Random) -> Cuts:
    scale = max(1, search.low)
    found = improve(graph, cuts, scale, reach, width, rng, search.work)
    search.plan(graph, found.ideals, found.objective, "recombined cuts")
    return found


def _best_cuts(search: _Search, graph: Contracted) -> Cuts:
    """The best plan as cuts of a graph, which must not tear a group of it apart."""
    ideals = [0] * (graph.devices + 1)
    for group, members in enumerate(graph.members):
        for device in range(search.device_of[members[0]], graph.devices):
            ideals[device + 1] |= 1 << group
    cuts = recombine(graph, [[ideal] for ideal in ideals], max(1, search.low), search.work)
    assert cuts is not None, "the plan keeps the capacity"
    return cuts


def _start(search: _Search, graph: Contracted, rng: random.Random) -> Cuts | None:
    """The best of some orders, each cut exactly."""
    best: Cuts | None = None
    for make in orders(graph, Walker(graph, search.work), rng):
        cuts = cut_order(graph, make(), max(1, search.low), search.work)
        if cuts is not None and (best is None or cuts.power < best.power):
            best = cuts
            search.plan(graph, cuts.ideals, cuts.objective, "interval DP over orders")
    return best


def _fitting(search: _Search, graph: Contracted, rng: random.Random) -> Cuts | None:
    """Any plan that keeps the capacity, found with bytes in the place of costs."""
    bytes_only = replace(graph, cost=graph.room, handovers=(), capacity=sum(graph.room))
    scale = max(1, graph.capacity)
    cuts: Cuts | None = None
    for make in orders(bytes_only, Walker(bytes_only, search.work), rng):
        found = cut_order(bytes_only, make(), scale, search.work)
        if found is not None and (cuts is None or found.power < cuts.power):
            cuts = found
    allowed = search.work.done + search.work.left / 3
    while cuts is not None and cuts.objective > graph.capacity and search.work.done < allowed:
        cuts = improve(bytes_only, cuts, scale, (2, 4, 8, 16, 32)[rng.randrange(5)], 120, rng, search.work)
    if cuts is None or cuts.objective > graph.capacity:
        return None
    found = improve(graph, replace(cuts, power=math.inf), max(1, search.low), 2, 20, rng, search.work)
    search.plan(graph, found.ideals, found.objective, "recombined cuts")
    return found


def _exact(search: _Search, graph: Contracted, only_below: int = 1 << 60) -> int | None:
    """Search all ideals, if they are few enough. Returns how many groups there were, None if it could be done."""
    tight = graph if search.high is None else better_than(graph, search.high)
    groups = len(tight.cost)
    if groups <= 1:
        assert search.high is not None
        # Better plans would be on one device.
        search.bound(min(search.high, tight.total), "contraction")
        return None
    if groups >= only_below:
        return only_below
    cells = min(_CELLS_MAX, int(search.work.left / 3 / _IDEAL_WORK))
    ideals = Ideals.enumerate(tight, _IDEALS_MAX, cells)
    search.work.spend(_IDEAL_WORK * (cells if ideals is None else ideals.state.size))
    if ideals is None:
        return groups
    method = f"interval DP over {len(ideals)} ideals"
    if search.high is None:
        # Any plan at all first.
        everything = tight.total + 2 * sum(t for _, _, t in tight.handovers)
        chain = ideals.chain_within(everything, search.work)
        if chain is None:
            if graph.room == graph.least_room:
                raise NoPlan("no plan keeps the capacity: all ways to cut the graph were looked at")
            return None
        _keep(search, tight, ideals, chain, method)
    _bisect(search, tight, ideals, method, plans=True, bounds=tight.room == tight.least_room)
    if not search.done and tight.room != tight.least_room:
        _bisect(search, tight, ideals.relaxed(), method, plans=False, bounds=True)
    return None


def _relax(search: _Search, graph: Contracted) -> None:
    """Bound a graph with too many ideals."""
    if search.done or search.high is None:
        return
    part = Work(search.work.left * _RELAX_SHARE)
    low = relaxed_bound(better_than(graph, search.high), search.low, search.high, part)
    search.bound(min(low, search.high), "interval DP with some nodes loosened")
    search.work.spend(min(part.done, part.allowed))


def _keep(search: _Search, graph: Contracted, ideals: Ideals, chain: list[int], method: str) -> None:
    objective = max(int(ideals.loads(*_ends(a, b), search.work)[0, 0]) for a, b in pairwise(chain))
    search.plan(graph, [ideals.set_of(i) for i in chain], objective, method)


def _ends(start: int, end: int):
    import numpy as np

    return np.array([start]), np.array([end])


def _bisect(search: _Search, graph: Contracted, ideals: Ideals, method: str, *, plans: bool, bounds: bool) -> None:
    """Narrow down the least load that a chain of ideals keeps within."""
    assert search.high is not None
    low, high, tight = search.low, search.high, False
    while low < high:
        tight = not tight and high - low <= _CLOSE * high
        load = high - 1 if tight else low + (high - low) // 3
        chain = ideals.chain_within(load, search.work)
        if chain is None:
            low = load + 1
            if bounds:
                search.bound(low, method)
        elif plans:
            _keep(search, graph, ideals, chain, method)
            high = search.high
        else:
            high = load


def _check_capacity(problem: DeviceProblem, graph: Contracted) -> None:
    """Raise `NoPlan` where no search is needed to see it."""
    if problem.capacity is None:
        return
    total = sum(graph.least_room)
    for members, room in zip(graph.members, graph.least_room, strict=True):
        if room > graph.capacity:
            names = ", ".join(str(problem.nodes[n].id) for n in members[:4]) + (", .." if len(members) > 4 else "")
            what = f"node {names} does" if len(members) == 1 else f"nodes {names} stay together and do"
            raise NoPlan(f"{what} not fit a device", resource="bytes", needed=room, available=graph.capacity)
    if total > graph.devices * graph.capacity:
        raise NoPlan(
            f"the nodes do not fit {graph.devices} devices",
            resource="bytes",
            needed=total,
            available=graph.devices * graph.capacity,
            advice=f"at least {-(-total // max(1, graph.capacity))} devices",
        )
