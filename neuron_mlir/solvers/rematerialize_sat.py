"""The CP-SAT model of all schedules for `neuron_mlir.solvers.rematerialize`.

**Retention segments.** A value is retained from one stage that may use it to the next, or not: one Boolean for each
such segment. A maximal run of retained segments is a retention interval in the sense of Bartan et al., "Moccasin:
Efficient Tensor Rematerialization for Neural Networks", ICML 2023; what there is an optional interval variable with
integer ends and a cumulative constraint is here a run of Booleans and one sum for each node that runs, which gives a
better linear relaxation when values are few and sums long. Other Booleans say in which stages a value is reloaded or
recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from neuron_mlir.solvers.certificate import Progress
from neuron_mlir.solvers.rematerialize import PIECES, Choice, Mode, Problem, Way, extra_ps, way_ps

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

SEED = 7


@dataclass(frozen=True)
class Space:
    """The schedules of a model: where each value may be used, and come back."""

    uses: tuple[tuple[int, ...], ...]
    """For each node the stages in which its value may be read, in order."""
    back: tuple[tuple[int, ...], ...]
    """For each stage the nodes whose value may be reloaded in it, in order."""
    again: tuple[tuple[int, ...], ...]
    """For each stage the nodes that may run again in it, in order."""
    complete: bool
    """Whether these are all schedules."""

    @staticmethod
    def of(problem: Problem, mode: Mode, depth: int | None) -> Space:
        """All schedules, or with `depth` those in which values come back when they are used, by at most so many
        recomputations one from another.
        """
        count = len(problem.nodes)
        if depth is None:
            return Space._all(problem, mode)
        found: list[set[int]] = [set(users) for users in problem.consumers]
        returns: list[list[int]] = []
        runs: list[list[int]] = []
        for j in range(count):
            level = {i: 0 for i in problem.nodes[j].inputs if i < j - 1 or problem.may_stream(i, mode)}
            queue = list(level)
            mine: list[int] = []
            again: list[int] = []
            for i in queue:
                found[i].add(j)
                if problem.may_reload(i, mode):
                    mine.append(i)
                if not problem.may_recompute(i, mode) or level[i] >= depth:
                    continue
                again.append(i)
                for source in problem.nodes[i].inputs:
                    if source not in level:
                        level[source] = level[i] + 1
                        queue.append(source)
            returns.append(sorted(mine))
            runs.append(sorted(again))
        return Space(tuple(tuple(sorted(s)) for s in found), _frozen(returns), _frozen(runs), False)

    @staticmethod
    def _all(problem: Problem, mode: Mode) -> Space:
        """All schedules. A reload waits for the stage that uses the value: that costs the same and takes less memory. A
        recomputation may come early, while its inputs are still there.
        """
        count = len(problem.nodes)
        again = [problem.may_recompute(i, mode) for i in range(count)]
        last = [0] * count
        uses: list[tuple[int, ...]] = [()] * count
        for i in reversed(range(count)):
            users = problem.consumers[i]
            last[i] = max((max(v, last[v]) if again[v] else v for v in users), default=i)
            stages = set(users)
            if again[i] and users:
                stages.update(range(i + 1, last[i] + 1))
            for v in users:
                if again[v]:
                    stages.update(range(v + 1, last[v] + 1))
            uses[i] = tuple(sorted(stages))
        back: list[list[int]] = [[] for _ in range(count)]
        runs: list[list[int]] = [[] for _ in range(count)]
        for i in range(count):
            for j in uses[i]:
                if problem.may_reload(i, mode):
                    back[j].append(i)
                if again[i]:
                    runs[j].append(i)
        return Space(tuple(uses), _frozen(back), _frozen(runs), True)

    @property
    def terms(self) -> int:
        """About how large the model gets."""
        width = sum(len(s) for s in self.uses) // max(1, len(self.uses)) + 1
        return sum(1 + len(b) + len(a) for b, a in zip(self.back, self.again, strict=True)) * width


def _frozen(lists: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(numbers) for numbers in lists)


@dataclass
class Model:
    """Retention segments. Where `fixed` says so, things are as in a known choice."""

    problem: Problem
    mode: Mode
    space: Space
    budget: int
    model: cp_model.CpModel
    kept: dict[tuple[int, int], cp_model.IntVar] = field(default_factory=dict)
    """`(node, stage)`: its value stays from that use (or its first run) to the next stage that may use it."""
    ways: dict[tuple[int, int, Way], cp_model.IntVar] = field(default_factory=dict)
    spilled: dict[int, cp_model.IntVar] = field(default_factory=dict)
    tiled: dict[int, cp_model.IntVar] = field(default_factory=dict)
    """Nodes whose first run reads or writes the slower memory in pieces."""
    over: dict[int, cp_model.IntVar] = field(default_factory=dict)
    """Nodes whose value takes over the bytes of an input."""

    @staticmethod
    def of(problem: Problem, mode: Mode, space: Space, budget: int) -> Model:
        from ortools.sat.python import cp_model

        made = Model(problem, mode, space, budget, cp_model.CpModel())
        made._variables()
        for j in range(len(problem.nodes)):
            made._stage(j)
        made.model.minimize(sum(costs(problem, made.ways, made.spilled, made.tiled)))
        return made

    def _variables(self) -> None:
        problem, model = self.problem, self.model
        for i, stages in enumerate(self.space.uses):
            for p in (i, *stages[:-1]) if stages else ():
                self.kept[i, p] = model.new_bool_var(f"k{i}.{p}")
        for j in range(len(problem.nodes)):
            for i in self.space.back[j]:
                self.ways[i, j, "reload"] = model.new_bool_var(f"r{i}.{j}")
            for i in self.space.again[j]:
                self.ways[i, j, "recompute"] = model.new_bool_var(f"c{i}.{j}")
        add_pieces(model, problem, self.mode, self.ways, self.tiled)
        for j in range(len(problem.nodes)):
            if (j, j, "stream") in self.ways and (j, j) in self.kept:
                model.add_at_most_one([self.ways[j, j, "stream"], self.kept[j, j]])
        add_replaced(model, problem, self.ways, self.over)
        for j, over in self.over.items():
            kept = self.across(cast(int, problem.nodes[j].replaces), j)
            if kept is not None:
                model.add_at_most_one([over, kept])
        for i in sorted({i for i, _, way in self.ways if way != "recompute" and not problem.nodes[i].is_stored}):
            self.spilled[i] = model.new_bool_var(f"s{i}")
        for (i, _, way), variable in self.ways.items():
            if way != "recompute" and i in self.spilled:
                model.add_implication(variable, self.spilled[i])
        for i, stages in enumerate(self.space.uses):
            for p in stages:
                if (i, p) in self.kept:
                    model.add(self.kept[i, p] <= sum(self.held(i, p)))
                ways = self.read(i, p)
                if len(ways) > 1:
                    model.add_at_most_one(ways)

    def held(self, i: int, j: int) -> list[cp_model.IntVar]:
        """Of which one holds when the value of `i` is in memory in stage `j`, which may use it."""
        found = [self.ways[i, j, way] for way in ("reload", "recompute") if (i, j, way) in self.ways]
        return [self.kept[i, self._before(i, j)], *found]

    def read(self, i: int, j: int) -> list[cp_model.IntVar]:
        """Of which one holds when the first run of `j` has the value of `i`."""
        direct = self.ways.get((i, j, "direct"))
        return self.held(i, j) if direct is None else [*self.held(i, j), direct]

    def _before(self, i: int, j: int) -> int:
        """The last stage before `j` that may use the value of `i`, or makes it."""
        from bisect import bisect_left

        stages = self.space.uses[i]
        at = bisect_left(stages, j)
        return stages[at - 1] if at else i

    def across(self, i: int, j: int) -> cp_model.IntVar | None:
        """Whether the value of `i < j` is kept beyond stage `j`; None when no later stage may use it."""
        stages = self.space.uses[i]
        if not stages or stages[-1] <= j:
            return None
        return self.kept[i, self._before(i, j + 1)]

    def into(self, i: int, j: int) -> cp_model.IntVar | None:
        """Whether the value of `i < j` is kept into stage `j`."""
        stages = self.space.uses[i]
        return None if not stages or stages[-1] < j else self.kept[i, self._before(i, j)]

    def _stage(self, j: int) -> None:
        problem, model = self.problem, self.model
        nodes = problem.nodes
        for i in nodes[j].inputs:
            model.add_bool_or(self.read(i, j))
        reads = set(nodes[j].inputs)
        terms: list[cp_model.LinearExprT] = [
            nodes[i].size * kept
            for i in range(j)
            if i not in reads and nodes[i].size and (kept := self.across(i, j)) is not None
        ]
        terms += [
            -problem.saved(i, j) * self.ways[i, j, "stream" if i == j else "direct"]
            for i in problem.tiled(j, self.mode)
        ]
        if j in self.tiled:
            terms.append(nodes[j].tiled_bytes * self.tiled[j])
        if j in self.over:
            terms.append(-nodes[j].size * self.over[j])
        model.add(sum(terms) <= self.budget - problem.least(j))
        again = self.space.again[j]
        for k in again:
            self._recompute(j, k, again)

    def _recompute(self, j: int, k: int, again: Sequence[int]) -> None:
        """Node `k` runs again in stage `j`: its inputs are there, and all fits."""
        problem, model = self.problem, self.model
        nodes = problem.nodes
        runs = self.ways[k, j, "recompute"]
        for i in nodes[k].inputs:
            model.add_bool_or([*self.held(i, j), runs.negated()])
        reads, last = set(nodes[k].inputs), set(nodes[j].inputs)
        fixed = problem.least(k)
        terms: list[cp_model.LinearExprT] = []
        later = [other for other in again if other > k]
        for i in range(j):
            size = nodes[i].size
            if not size or i == k or i in reads:
                continue
            kept: cp_model.LinearExprT | None
            if i > k:
                kept = self.into(i, j)
            elif i in last and (i, j, "direct") not in self.ways:
                fixed += size
                continue
            elif i in last:
                kept = 1 - self.ways[i, j, "direct"]
            else:
                beyond = kept = self.across(i, j)
                readers = [self.ways[other, j, "recompute"] for other in later if i in nodes[other].inputs]
                if readers:
                    alive = model.new_bool_var(f"a{i}.{j}.{k}")
                    for reader in readers if beyond is None else (*readers, beyond):
                        model.add_implication(reader, alive)
                    kept = alive
            if kept is not None:
                terms.append(size * kept)
        if fixed > self.budget:
            model.add(runs == 0)
        elif terms:
            model.add(sum(terms) <= self.budget - fixed).only_enforce_if(runs)

    def assignment(self, choice: Choice) -> dict[int, int]:
        """The values of variables (by index) in a choice."""
        kept = dict.fromkeys(self.kept, 0)
        here: dict[int, list[int]] = {}
        for (i, j), way in choice.items():
            if way == "recompute":
                here.setdefault(j, []).append(i)
        needed: list[set[int]] = [set(users) for users in self.problem.consumers]
        for j, again in here.items():
            for k in again:
                for i in self.problem.nodes[k].inputs:
                    needed[i].add(j)
        for i, stages in enumerate(needed):
            for j in sorted(stages):
                at = j
                if choice.get((i, at)) == "direct":
                    continue
                while at > i and choice.get((i, at), "direct") == "direct":
                    at = self._before(i, at)
                    if (i, at) in kept:
                        kept[i, at] = 1
        values = {self.kept[key].index: value for key, value in kept.items()}
        for (i, j, way), variable in self.ways.items():
            values[variable.index] = int(choice.get((i, j)) == way)
        for j, variable in self.tiled.items():
            values[variable.index] = int(any(at == j and way in PIECES for (_, at), way in choice.items()))
        for j, variable in self.over.items():
            i = cast(int, self.problem.nodes[j].replaces)
            across = self.across(i, j)
            beyond = across is not None and values[across.index]
            pieces = any(at == j and way in PIECES for (_, at), way in choice.items())
            values[variable.index] = int(not beyond and not pieces)
        for i, variable in self.spilled.items():
            values[variable.index] = int(any(n == i and way != "recompute" for (n, _), way in choice.items()))
        return values

    def solve(
        self,
        start: Choice | None,
        work: float,
        window: tuple[int, int] | None = None,
        floor: int = 0,
        progress: Progress | None = None,
    ) -> tuple[dict[tuple[int, int], Way] | None, int, bool]:
        """The best choice found (at least as good as `start`), a lower bound, and whether the search was completed.

        In a `window` of stages only what happens there may differ from `start`.
        """
        from ortools.sat.python import cp_model

        model = self.model
        if start is not None:
            values = self.assignment(start)
            model = self.model.clone() if window is not None else self.model
            model.clear_hints()
            for index, value in values.items():
                model.add_hint(model.get_bool_var_from_proto_index(index), value)
            if window is not None:
                for index in self._outside(window):
                    model.add(model.get_bool_var_from_proto_index(index) == values[index])
        best = None if start is None else extra_ps(self.problem, start)

        class Watch(cp_model.CpSolverSolutionCallback):
            def on_solution_callback(self) -> None:
                if progress is not None:
                    objective = int(self.objective_value)
                    if not progress(objective, min(objective, max(floor, int(self.best_objective_bound)))):
                        self.stop_search()

        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = SEED
        solver.parameters.max_deterministic_time = work
        status = solver.solve(model, Watch())
        bound = max(0, -int(-solver.best_objective_bound // 1)) if status != cp_model.MODEL_INVALID else 0
        done = status in (cp_model.OPTIMAL, cp_model.INFEASIBLE)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, bound, done
        choice: dict[tuple[int, int], Way] = {
            (i, j): way for (i, j, way), variable in self.ways.items() if solver.boolean_value(variable)
        }
        choice = trimmed(self.problem, choice)
        if best is not None and extra_ps(self.problem, choice) >= best:
            return dict(start or {}), bound, done
        return choice, bound, done

    def _outside(self, window: tuple[int, int]) -> list[int]:
        """Variables (by index) of what happens outside a window."""
        first, end = window
        found: list[int] = []
        for i, stages in enumerate(self.space.uses):
            for p, q in zip((i, *stages[:-1]), stages, strict=bool(stages)) if stages else ():
                if q < first or p >= end:
                    found.append(self.kept[i, p].index)
        found += [v.index for (_, j, _), v in self.ways.items() if not first <= j < end]
        return found


def add_pieces(
    model: cp_model.CpModel,
    problem: Problem,
    mode: Mode,
    ways: dict[tuple[int, int, Way], cp_model.IntVar],
    tiled: dict[int, cp_model.IntVar],
) -> None:
    """Variables for what first runs read or write in pieces, and for the runs that do."""
    for j, node in enumerate(problem.nodes):
        found: list[cp_model.IntVar] = []
        for i in problem.tiled(j, mode):
            way: Way = "stream" if i == j else "direct"
            ways[i, j, way] = model.new_bool_var(f"{way[0]}{i}.{j}")
            found.append(ways[i, j, way])
        if found and (node.tiled_bytes or node.tiled_ps):
            tiled[j] = model.new_bool_var(f"t{j}")
            for variable in found:
                model.add_implication(variable, tiled[j])
            model.add_bool_or([*found, tiled[j].negated()])


def add_replaced(
    model: cp_model.CpModel,
    problem: Problem,
    ways: dict[tuple[int, int, Way], cp_model.IntVar],
    over: dict[int, cp_model.IntVar],
) -> None:
    """Variables for values that take over the bytes of an input, which a run in pieces does not do."""
    for j, node in enumerate(problem.nodes):
        if node.replaces is None or not node.size:
            continue
        over[j] = model.new_bool_var(f"o{j}")
        for i, way in [*((i, "direct") for i in node.direct), (j, "stream")]:
            variable = ways.get((i, j, cast(Way, way)))
            if variable is not None:
                model.add_at_most_one([over[j], variable])


def costs(
    problem: Problem,
    ways: dict[tuple[int, int, Way], cp_model.IntVar],
    spilled: dict[int, cp_model.IntVar],
    tiled: dict[int, cp_model.IntVar],
) -> list[cp_model.LinearExprT]:
    """What the ways chosen add to the time of a run."""
    nodes = problem.nodes
    found: list[cp_model.LinearExprT] = [way_ps(problem, i, j, way) * v for (i, j, way), v in ways.items()]
    found += [nodes[i].spill_ps * v for i, v in spilled.items()]
    return found + [nodes[j].tiled_ps * v for j, v in tiled.items()]


def trimmed(problem: Problem, choice: Choice) -> dict[tuple[int, int], Way]:
    """The choice without what nobody reads before it comes back again."""
    left = dict(choice)
    while True:
        read: set[tuple[int, int]] = set()
        where = dict.fromkeys(range(len(problem.nodes)), -1)
        back: dict[int, list[int]] = {}
        for i, j in sorted(left):
            back.setdefault(j, []).append(i)
        for j, node in enumerate(problem.nodes):
            for i in back.get(j, ()):
                if left[i, j] == "recompute":
                    read.update((n, where[n]) for n in problem.nodes[i].inputs)
                if left[i, j] not in PIECES:
                    where[i] = j
            read.update((n, where[n]) for n in node.inputs if left.get((n, j)) != "direct")
        useless = [key for key, way in left.items() if way not in PIECES and key not in read]
        if not useless:
            return left
        for key in useless:
            del left[key]
