"""Which weights of a stage stay in memory, and which are read anew for every request, where not all have room.

Layers run one after the other, and a queue brings what is streamed in the order of use. It runs ahead of them: what it
brings waits in a region of memory of its own, so it is ahead by what fills that at most. A layer waits for what has not
come. So streaming costs nothing as long as it goes on beside layers that compute long enough, before or while its
weights are used, and time where much of it comes together; what is streamed in all costs at least its transfers.

The time of a request, in a steady state, where `c` is what a layer takes, `d` what its streamed weights take to come
and `lead` how far the queue is ahead when it begins: it takes `t >= c`, and `lead' <= min(region, lead + t - d)`, never
negative, and the lead at the end of a request is that at the beginning of the next. (Two curves, of bytes wanted and
bytes delivered, within a buffer of each other, as in network calculus: Le Boudec and Thiran, 2001.) This is linear in
what is streamed: CP-SAT, whose relaxation it is, gives the choice and a proven bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuron_mlir.solvers.certificate import Certificate

SEED = 7
GRID = 1 << 20
"""Times are rounded to a part of the whole in so many where CP-SAT adds them up."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight, in pieces that are alike."""

    layer: int
    """That uses it."""
    pieces: int
    size: int
    """Bytes of memory of a piece that stays, in whatever unit the budget has."""
    moved_ps: int
    """What a transfer of a piece takes."""


@dataclass(frozen=True)
class Problem:
    """Layers in order, and their weights."""

    spans: tuple[int, ...]
    """What each layer takes, its weights at hand, ps."""
    weights: tuple[Weight, ...]
    budget: int
    """Bytes for those that stay."""
    region_ps: int
    """How far the queue can be ahead, as the time of the transfers."""


@dataclass(frozen=True)
class Choice:
    """How many pieces of each weight are streamed, and what that takes."""

    streamed: tuple[int, ...]
    certificate: Certificate


def request_ps(problem: Problem, streamed: Sequence[int]) -> int:
    """The time of a request in a steady state, if so many pieces of each weight are streamed."""
    moved = [0] * len(problem.spans)
    for weight, count in zip(problem.weights, streamed, strict=True):
        moved[weight.layer] += weight.moved_ps * count
    lead = total = 0
    while True:
        before, total = lead, 0
        for span, coming in zip(problem.spans, moved, strict=True):
            time = max(span, coming - lead)
            lead = min(problem.region_ps, lead + time - coming)
            total += time
        # The lead only grows from one request to the next: less of it is never better.
        if lead <= before or total == sum(problem.spans):
            return total


def fits(problem: Problem, streamed: Sequence[int]) -> bool:
    """Whether what stays is within the budget."""
    stays = sum(w.size * (w.pieces - count) for w, count in zip(problem.weights, streamed, strict=True))
    return stays <= problem.budget


def simple_bound(problem: Problem) -> int:
    """No choice takes less, ps: all layers, or the transfers of what has no room, the cheapest for its bytes."""
    excess = sum(w.size * w.pieces for w in problem.weights) - problem.budget
    moved = 0
    for weight in sorted((w for w in problem.weights if w.size), key=lambda w: w.moved_ps / w.size):
        taken = max(0, min(excess, weight.size * weight.pieces))
        moved += taken * weight.moved_ps // weight.size
        excess -= taken
    return max(sum(problem.spans), moved)


def choose(problem: Problem, start: Sequence[int], good_enough: float = 0.0, work: float = 1.0) -> Choice:
    """The pieces to stream that make a request shortest.

    Args:
        problem: layers and weights.
        start: a choice within the budget: another one is taken only if it is better.
        good_enough: a relative gap at which the search ends.
        work: CP-SAT's deterministic time (about seconds).

    Raises `ValueError` for a start that takes more than the budget.
    """
    if not fits(problem, start):
        raise ValueError("the choice to begin with does not fit the budget")
    objective, bound = request_ps(problem, start), simple_bound(problem)
    if objective - bound <= good_enough * objective:
        return Choice(tuple(start), Certificate(objective, min(bound, objective), "ps", "transfers, layers"))
    found, proven = _search(problem, start, objective, good_enough, work)
    best = tuple(start)
    if found is not None and fits(problem, found) and (time := request_ps(problem, found)) < objective:
        best, objective = found, time
    return Choice(best, Certificate(objective, min(max(bound, proven), objective), "ps", "CP-SAT, lead of the queue"))


def _search(
    problem: Problem, start: Sequence[int], objective: int, good_enough: float, work: float
) -> tuple[tuple[int, ...] | None, int]:
    """The best choice found, and a bound: times are rounded down, what the region holds is rounded up."""
    from ortools.sat.python import cp_model

    grid = max(1, objective // GRID)
    most = -(-objective // grid)
    region = -(-problem.region_ps // grid)
    model = cp_model.CpModel()
    counts = [model.new_int_var(0, w.pieces, f"x{n}") for n, w in enumerate(problem.weights)]
    coming: list[list[cp_model.LinearExprT]] = [[] for _ in problem.spans]
    for weight, count in zip(problem.weights, counts, strict=True):
        coming[weight.layer].append(weight.moved_ps // grid * count)
    first = model.new_int_var(0, region, "lead")
    lead, times = first, list[cp_model.IntVar]()
    for n, (span, moved) in enumerate(zip(problem.spans, coming, strict=True)):
        time = model.new_int_var(span // grid, most, f"t{n}")
        after = first if n + 1 == len(problem.spans) else model.new_int_var(0, region, f"lead{n}")
        model.add(sum([after, *moved]) <= lead + time)
        times.append(time)
        lead = after
    stays = [w.size * (w.pieces - count) for w, count in zip(problem.weights, counts, strict=True)]
    model.add(sum(stays) <= problem.budget)
    for count, known in zip(counts, start, strict=True):
        model.add_hint(count, known)
    model.minimize(sum(times))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    solver.parameters.max_deterministic_time = work
    solver.parameters.relative_gap_limit = good_enough
    solver.parameters.linearization_level = 2
    status = solver.solve(model)
    bound = max(0, int(solver.best_objective_bound)) * grid
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, bound if status == cp_model.UNKNOWN else 0
    return tuple(solver.value(count) for count in counts), bound
