"""Spending cores on copies: never worse than any other way, and no core spent for nothing."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.replicate import fewest_cores, spread


def slowest(times: list[int], counts: tuple[int, ...]) -> int:
    return max(-(-time // count) for time, count in zip(times, counts, strict=True))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_best_of_all(times: list[int], more: int) -> None:
    cores = len(times) + more
    found = spread(times, cores)
    everything = [counts for counts in product(range(1, more + 2), repeat=len(times)) if sum(counts) <= cores]
    best = min(slowest(times, counts) for counts in everything)
    assert found.certificate.objective == found.certificate.lower_bound == best == slowest(times, found.counts)
    assert sum(found.counts) == min(sum(c) for c in everything if slowest(times, c) == best)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(1, 1000))
def test_fewest_cores_are_enough(times: list[int], bottleneck: int) -> None:
    cores = fewest_cores(times, bottleneck)
    assert spread(times, cores).certificate.objective <= bottleneck
    if cores > len(times):
        assert spread(times, cores - 1).certificate.objective > bottleneck


def test_what_is_there_stays() -> None:
    assert spread([10, 30], 6, [3, 1]).counts == (3, 3)
    with pytest.raises(NeuronError, match="more stages than cores"):
        spread([1, 1, 1], 2)
