"""Rests that cover what does not fit: a bound for all schedules, and the problem itself without recomputation.

A value that is used in a later stage and does not stay in memory while node `j` first runs has to come back before its
next use: at least its reload (and its spill, once), or one run of its node. So the rests chosen must cover what node
`j`'s stage has too much of. That bounds every schedule of `neuron_mlir.solvers.rematerialize` from below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuron_mlir.solvers.rematerialize import Mode, Problem, Way
from neuron_mlir.solvers.rematerialize_sat import SEED, add_pieces, add_replaced, costs

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


def cover(
    problem: Problem, budget: int, mode: Mode, work: float
) -> tuple[dict[tuple[int, int], Way] | None, int, bool]:
    """The cheapest rests that cover what each first run has too much of, the proven bound, and whether the search was
    completed. The choice is one where recomputation is excluded.
    """
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    nodes = problem.nodes
    ways: dict[tuple[int, int, Way], cp_model.IntVar] = {}
    spilled: dict[int, cp_model.IntVar] = {}
    tiled: dict[int, cp_model.IntVar] = {}
    over: list[list[tuple[int, cp_model.LinearExprT]]] = [[] for _ in nodes]
    stays = [0] * len(nodes)
    add_pieces(model, problem, mode, ways, tiled)
    replaced: dict[int, cp_model.IntVar] = {}
    add_replaced(model, problem, ways, replaced)
    for i, users in enumerate(problem.consumers):
        reload, again = problem.may_reload(i, mode), problem.may_recompute(i, mode)
        direct = [q for q in users if problem.may_read(i, q, mode)]
        if reload and not nodes[i].is_stored:
            spilled[i] = model.new_bool_var(f"s{i}")
        # What is written to the slower memory as it is made is not here.
        streamed = ways.get((i, i, "stream"))
        absent: cp_model.LinearExprT = 0 if streamed is None else streamed
        if streamed is not None:
            over[i].append((problem.saved(i, i), streamed))
            model.add_implication(streamed, spilled[i])
        for p, q in zip((i, *users[:-1]), users, strict=True) if users else ():
            options: list[Way] = ["reload"] if reload else []
            if again:
                options.append("recompute")
            taken = replaced[p] if p in replaced and nodes[p].replaces == i else None
            if not (direct or p + 1 < q or (streamed is not None and p == i) or taken is not None):
                continue
            if not nodes[i].size:
                continue
            for way in options:
                ways[i, q, way] = model.new_bool_var(f"{way}{i}.{q}")
            if q in direct:
                options.append("direct")
            for way in options:
                if way != "recompute" and i in spilled:
                    model.add_implication(ways[i, q, way], spilled[i])
            back = [ways[i, q, way] for way in options]
            for j in range(p + 1, q):
                stays[j] += nodes[i].size
                if back:
                    over[j].append((nodes[i].size, sum(back)))
            if len(back) > 1:
                model.add_at_most_one(back)
            if taken is not None:
                model.add(taken <= sum(back))
            if not isinstance(absent, int):
                model.add(absent <= sum(back))  # what was read elsewhere is not here
            absent = 0
            if q in direct:
                absent = ways[i, q, "direct"]
                over[q].append((problem.saved(i, q), absent))
    for j in range(len(nodes)):
        excess = stays[j] + problem.least(j) - budget
        if j in tiled:
            over[j].append((-nodes[j].tiled_bytes, tiled[j]))
        if j in replaced:
            over[j].append((nodes[j].size, replaced[j]))
        if excess > 0:
            model.add(sum(size * rests for size, rests in over[j]) >= excess)
    model.minimize(sum(costs(problem, ways, spilled, tiled)))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    solver.parameters.max_deterministic_time = work
    # Sums that have to reach an amount: the linear relaxation of all of them is nearly the answer.
    solver.parameters.linearization_level = 2
    status = solver.solve(model)
    done = status in (cp_model.OPTIMAL, cp_model.INFEASIBLE)
    bound = max(0, -int(-solver.best_objective_bound // 1))
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, bound, done
    return {(i, j): way for (i, j, way), v in ways.items() if solver.boolean_value(v)}, bound, done
