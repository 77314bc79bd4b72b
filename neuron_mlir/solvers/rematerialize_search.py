"""Which models of `rematerialize_sat` and `rematerialize_cover` are solved when, and what is known without them."""

from __future__ import annotations

from dataclasses import dataclass

from neuron_mlir.solvers.certificate import Progress
from neuron_mlir.solvers.rematerialize import Choice, Mode, Problem, Way, extra_ps, schedule_of
from neuron_mlir.solvers.rematerialize_cover import cover
from neuron_mlir.solvers.rematerialize_sat import Model, Space, trimmed

DEPTH = 6
"""Recomputations in a chain, in the first search."""
MODEL_TERMS = 60_000
"""Up to so many terms a model is solved as a whole before windows are."""
WINDOW_TERMS = 300_000
"""Up to so many terms all schedules are searched in windows when short chains are not enough."""
WINDOW = 24
"""Stages of a window."""


@dataclass
class Answer:
    """What was found."""

    choice: dict[tuple[int, int], Way] | None
    lower_bound: int
    method: str
    smallest: int = 0
    """The smallest peak of the schedules looked at, when there is no choice."""


def solve(problem: Problem, budget: int, mode: Mode, work: float, progress: Progress | None) -> Answer:
    """See `neuron_mlir.solvers.rematerialize.rematerialize`."""
    choice, bound, done = cover(problem, budget, mode, work / 4)
    if mode == "spill":
        least = smallest(problem, "spill") if choice is None else 0
        return Answer(choice, bound, "CP-SAT, rests that cover" + ("" if done else ", stopped"), least)
    start: dict[tuple[int, int], Way] | None = None
    if mode == "both":
        start, _, _ = cover(problem, budget, "spill", work / 8)
    if start is None:
        start = descend(problem, budget, mode)
    return _search(problem, budget, mode, start, bound, work, progress)


def _search(
    problem: Problem,
    budget: int,
    mode: Mode,
    best: dict[tuple[int, int], Way] | None,
    bound: int,
    work: float,
    progress: Progress | None,
) -> Answer:
    """First schedules with short chains, which are fewer; then all, if they are not too many; at last windows."""
    method = "CP-SAT, retention segments"
    few, every = Space.of(problem, mode, DEPTH), Space.of(problem, mode, None)
    model = Model.of(problem, mode, few, budget)
    known = best if best is not None and _representable(model, best) else None
    if few.terms <= MODEL_TERMS or known is None:
        best = model.solve(known, work / 4, floor=bound, progress=progress)[0] or best
    if every.terms <= MODEL_TERMS or best is None:
        model = Model.of(problem, mode, every, budget)
        found, proven, _ = model.solve(best, work / 2, floor=bound, progress=progress)
        best, bound = found or best, max(bound, proven)
        if best is None:
            return Answer(None, bound, method, smallest(problem, mode))
    else:
        method += f", chains of {DEPTH}"
    if not _representable(model, best) and every.terms <= WINDOW_TERMS:
        model = Model.of(problem, mode, every, budget)
    if bound < extra_ps(problem, best) and _representable(model, best):
        best = _windows(model, best, bound, work / 4, progress)
        method += ", windows"
    return Answer(best, bound, method)


def _windows(
    model: Model, best: dict[tuple[int, int], Way], bound: int, work: float, progress: Progress | None
) -> dict[tuple[int, int], Way]:
    """Improve a choice window by window until a whole round over all stages finds nothing or the work is done."""
    count = len(model.problem.nodes)
    starts = list(range(0, max(1, count - WINDOW // 2), WINDOW // 2))
    share = work / (2 * len(starts))
    for _ in range(2 if model.space.terms <= MODEL_TERMS else 1):
        before = extra_ps(model.problem, best)
        for first in starts:
            found, _, _ = model.solve(best, share, (first, first + WINDOW))
            best = found or best
            objective = extra_ps(model.problem, best)
            if progress is not None and not progress(objective, min(bound, objective)):
                return best
        if extra_ps(model.problem, best) == before:
            break
    return best


def _representable(model: Model, choice: Choice) -> bool:
    return all((i, j, way) in model.ways for (i, j), way in choice.items())


def descend(problem: Problem, budget: int, mode: Mode) -> dict[tuple[int, int], Way] | None:
    """A choice that fits, by taking values out of the worst moment one after the other; None where that gets stuck."""
    best, _ = _descend(problem, budget, mode)
    return best


def smallest(problem: Problem, mode: Mode) -> int:
    """The smallest budget for which a schedule is known."""
    if mode != "recompute" and all(node.can_spill or node.is_stored or not node.size for node in problem.nodes):
        # Each value goes to DRAM as soon as it is made.
        return problem.floor("spill")
    return _descend(problem, 0, mode)[1]


def _descend(problem: Problem, budget: int, mode: Mode) -> tuple[dict[tuple[int, int], Way] | None, int]:
    """Descent on (peak, bytes above the budget); also the smallest peak seen."""
    choice: dict[tuple[int, int], Way] = {}
    schedule = schedule_of(problem, choice)
    smallest = schedule.peak
    for _ in range(4 * len(problem.nodes)):
        if schedule.peak <= budget:
            return choice, smallest
        stage = schedule.peak_stage
        options: list[tuple[int, int, int, dict[tuple[int, int], Way]]] = []
        absences = [_absence(problem, choice, i, stage, mode) for i in range(stage + 1)]
        pieces = [found for i in problem.tiled(stage, mode) if (found := absences[i]) is not None]
        # All that the stage's node may read and write in pieces, at the price of one.
        together: dict[tuple[int, int], Way] = {}
        for found in pieces:
            together |= found
        for i, added in enumerate([*absences, together]):
            if not added:
                continue
            trial = trimmed(problem, {**choice, **added})
            found = schedule_of(problem, trial)
            if found.peak < schedule.peak or (found.peak == schedule.peak and found.peak_stage > stage):
                options.append((max(found.peak, budget), found.extra_ps - schedule.extra_ps, i, trial))
        if not options:
            return None, smallest
        choice = min(options, key=lambda o: (o[0], o[1], o[2]))[3]
        schedule = schedule_of(problem, choice)
        smallest = min(smallest, schedule.peak)
    return None, smallest


def _absence(problem: Problem, choice: Choice, i: int, stage: int, mode: Mode) -> dict[tuple[int, int], Way] | None:
    """What takes a value out of memory in a stage: how it comes back, and how the stage's node does without."""
    users = problem.consumers[i]
    if not (users or i == stage) or not problem.nodes[i].size or (i, stage) in choice:
        return None
    added: dict[tuple[int, int], Way] = {}
    if i == stage:
        if not problem.may_stream(i, mode):
            return None
        added = {(i, i): "stream"}
    elif stage in users and problem.nodes[stage].replaces != i:
        if not problem.may_read(i, stage, mode):
            return None
        added = {(i, stage): "direct"}
    after = [q for q in users if q > stage]
    if after and (i, after[0]) not in choice:
        back = _come_back(problem, choice, i, after[0], mode)
        return None if back is None else {**added, **back}
    return added


def _come_back(
    problem: Problem, choice: Choice, node: int, stage: int, mode: Mode
) -> dict[tuple[int, int], Way] | None:
    """What brings a value back in a stage: a reload, or runs from what is in memory there anyway."""
    added: dict[tuple[int, int], Way] = {}
    queue = [node]
    for i in queue:
        if problem.may_reload(i, mode):
            added[i, stage] = "reload"
        elif problem.may_recompute(i, mode):
            added[i, stage] = "recompute"
            for source in problem.nodes[i].inputs:
                users = problem.consumers[source]
                if users[-1] < stage and (source, stage) not in added and (source, stage) not in choice:
                    queue.append(source)
        elif i == node:
            return None
    return added
