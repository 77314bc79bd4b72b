"""Which weights stay: against all choices there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.solvers.residency import Problem, Weight, choose, fits, request_ps, simple_bound


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    spans = tuple(draw(st.lists(st.integers(0, 12), min_size=1, max_size=5)))
    pieces = st.tuples(st.integers(0, len(spans) - 1), st.integers(1, 2), st.integers(1, 4), st.integers(0, 9))
    weights = tuple(Weight(*drawn) for drawn in sorted(draw(st.lists(pieces, max_size=4))))
    total = sum(w.size * w.pieces for w in weights)
    return Problem(spans, weights, draw(st.integers(0, total)), draw(st.integers(0, 15)))


@given(problems())
@settings(max_examples=150, deadline=None)
def test_it_is_as_good_as_the_best_of_all(problem: Problem):
    every = product(*(range(w.pieces + 1) for w in problem.weights))
    best = min(request_ps(problem, streamed) for streamed in every if fits(problem, streamed))
    found = choose(problem, [w.pieces for w in problem.weights])
    assert fits(problem, found.streamed)
    assert request_ps(problem, found.streamed) == found.certificate.objective == best
    assert simple_bound(problem) <= best
    assert found.certificate.lower_bound == best


@given(problems(), st.data())
@settings(max_examples=150, deadline=None)
def test_the_time_is_that_of_a_queue_played_for_many_requests(problem: Problem, data: st.DataObject):
    streamed = [data.draw(st.integers(0, w.pieces)) for w in problem.weights]
    moved = [0] * len(problem.spans)
    for weight, count in zip(problem.weights, streamed, strict=True):
        moved[weight.layer] += weight.moved_ps * count
    lead, ends = 0, [0]
    for _ in range(60):
        now = ends[-1]
        for span, coming in zip(problem.spans, moved, strict=True):
            now += max(span, coming - lead)
            lead = min(problem.region_ps, max(lead + span - coming, 0))
        ends.append(now)
    assert ends[-1] - ends[-2] == request_ps(problem, streamed)


def test_what_computes_long_hides_what_is_streamed():
    # The second layer hides the transfer of its own weight; that of the first would be waited for.
    problem = Problem((1, 100), (Weight(0, 1, 8, 50), Weight(1, 1, 8, 50)), 8, 0)
    found = choose(problem, [1, 0])
    assert found.streamed == (0, 1)
    assert found.certificate.objective == found.certificate.lower_bound == 101


def test_a_start_beyond_the_budget_is_refused():
    with pytest.raises(ValueError, match="budget"):
        choose(Problem((1,), (Weight(0, 1, 8, 50),), 0, 0), [0])
