"""The exact search and the joins: a plan wherever there is one, and a proof where there is none."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.memory_instances import cut_rectangle, refilled
from neuron_mlir.solvers.memory_plan import Buffer, Plan, check_plan, lower_bound, plan
from neuron_mlir.solvers.memory_plan.exact import pack
from neuron_mlir.solvers.memory_plan.joining import join
from neuron_mlir.solvers.memory_plan.matching import match
from neuron_mlir.solvers.memory_plan.search import Packing


@st.composite
def small(draw: st.DrawFn) -> list[Buffer]:
    """At most six buffers, some aligned, some that may not cross a boundary."""
    alignments = draw(st.sampled_from(((1,), (2,), (1, 2, 4))))
    found: list[Buffer] = []
    for number in range(draw(st.integers(1, 6))):
        lower = draw(st.integers(0, 5))
        boundary = draw(st.sampled_from((0, 0, 0, 4)))
        upper, size = lower + draw(st.integers(0, 3)), draw(st.integers(1, 4))
        found.append(Buffer(number, lower, upper, size, draw(st.sampled_from(alignments)), boundary))
    return found


def least_peak(buffers: list[Buffer]) -> int:
    """By trying every offset of every buffer, one buffer after the other."""
    for capacity in range(lower_bound(buffers), 100):
        if _fits(buffers, [], capacity):
            return capacity
    raise AssertionError("six buffers of four bytes take no more than a hundred")


def _fits(buffers: list[Buffer], offsets: list[int], capacity: int) -> bool:
    if len(offsets) == len(buffers):
        return True
    b = buffers[len(offsets)]
    for offset in range(capacity - b.size + 1):
        if offset % b.alignment:
            continue
        if b.boundary and offset // b.boundary != (offset + b.size - 1) // b.boundary and offset % b.boundary:
            continue
        free = all(
            o.upper < b.lower or b.upper < o.lower or offset >= at + o.size or at >= offset + b.size
            for o, at in zip(buffers, offsets, strict=False)
        )
        if free and _fits(buffers, [*offsets, offset], capacity):
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(small())
def test_optimum_against_brute_force(buffers: list[Buffer]) -> None:
    """The plan is as low as any, and says so."""
    answer = plan(buffers)
    check_plan(buffers, answer)
    assert answer.peak == least_peak(buffers)
    assert answer.lower_bound == answer.peak, "small enough to be proven"


@settings(max_examples=150, deadline=None)
@given(small())
def test_one_byte_less_is_proven_impossible(buffers: list[Buffer]) -> None:
    least = least_peak(buffers)
    assert pack(buffers, least).offsets is not None
    less = pack(buffers, least - 1)
    assert less.offsets is None
    assert less.complete


@pytest.mark.parametrize("pinwheels", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [40, 150])
def test_no_slack(count: int, pinwheels: float) -> None:
    """Rectangles cut to pieces: at all times the whole capacity is alive."""
    for seed in range(3):
        buffers = cut_rectangle(count, 100_000, 1 << 20, seed, pinwheels)
        found = pack(buffers, 1 << 20, work=20_000_000)
        assert found.offsets is not None
        check_plan(buffers, Plan(dict(enumerate(found.offsets)), 1 << 20, 1 << 20, ""), 1 << 20)


def test_no_slack_and_no_joins() -> None:
    """Pinwheels all through: nothing is stacked or chained, and the links do the work."""
    buffers = cut_rectangle(253, 1 << 20, 1 << 20, 1, 1.0)
    assert len(join(buffers).buffers) == len(buffers)
    found = Packing(buffers, 1 << 20)
    assert found.links
    assert plan(buffers).peak == 1 << 20


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 5))
def test_joins_keep_bytes_alive(instance: int, seed: int) -> None:
    """What is joined takes as much at each time; a plan of it is one of its parts."""
    random = Random(instance)
    buffers: list[Buffer] = []
    for n in range(random.randrange(1, 30)):
        lower = random.randrange(8)
        buffers.append(Buffer(n, lower, lower + random.randrange(4), random.randrange(1, 4), 1))
    joined = join(buffers, seed)
    assert lower_bound([*joined.buffers]) == lower_bound(buffers)
    assert sorted(p for parts in joined.parts for p, _ in parts) == list(range(len(buffers)))
    answer = plan(joined.buffers, work=20_000)
    offsets = joined.expand([answer.offsets[n] for n in range(len(joined.buffers))])
    peak = max(o + b.size for o, b in zip(offsets, buffers, strict=True))
    check_plan(buffers, Plan(dict(enumerate(offsets)), peak, 0, ""), answer.peak)


def test_joins_collapse_what_was_cut_straight() -> None:
    buffers = cut_rectangle(200, 1 << 20, 1 << 20, 3, 0.0)
    assert len(join(buffers).buffers) == 1


@pytest.mark.parametrize("pinwheels", [0.0, 0.3, 1.0])
def test_no_slack_over_few_moments(pinwheels: float) -> None:
    """Many begin and end together: sums of several sizes say what belongs together."""
    buffers = cut_rectangle(450, 60, 1 << 20, 0, pinwheels)
    found = pack(buffers, 1 << 20, work=10_000_000)
    assert found.offsets is not None
    check_plan(buffers, Plan(dict(enumerate(found.offsets)), 1 << 20, 1 << 20, ""), 1 << 20)


def test_no_slack_where_room_is_taken_by_others() -> None:
    """Nothing is a rectangle but the whole: what was matched leaves the rest to the search."""
    buffers = refilled(300, 20, 30, 1 << 20, 1)
    assert {
        sum(b.size for b in buffers if b.lower <= t <= b.upper) for t in range(max(b.upper for b in buffers) + 1)
    } == {1 << 20}
    found = pack(buffers, 1 << 20, work=10_000_000)
    assert found.offsets is not None
    check_plan(buffers, Plan(dict(enumerate(found.offsets)), 1 << 20, 1 << 20, ""), 1 << 20)


def test_matches_collapse_pinwheels() -> None:
    buffers = cut_rectangle(253, 1 << 20, 1 << 20, 1, 1.0)
    assert len(match(buffers, 1_000_000)[0].buffers) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 5), st.sampled_from([8, 64, 1024]))
def test_matches_keep_bytes_alive(instance: int, seed: int, capacity: int) -> None:
    """What is joined takes as much at each time, even where sums agree by chance; a plan of it is one of its parts."""
    buffers = cut_rectangle(5 + instance % 25, 8, capacity, instance, 0.5)
    joined, _ = match(buffers, 100_000, seed)
    assert lower_bound([*joined.buffers]) == capacity
    assert sorted(p for parts in joined.parts for p, _ in parts) == list(range(len(buffers)))
    answer = plan(joined.buffers, work=20_000)
    offsets = joined.expand([answer.offsets[n] for n in range(len(joined.buffers))])
    peak = max(o + b.size for o, b in zip(offsets, buffers, strict=True))
    check_plan(buffers, Plan(dict(enumerate(offsets)), peak, 0, ""), answer.peak)


def test_the_same_each_time() -> None:
    buffers = cut_rectangle(120, 60, 1024, 5, 0.5)
    first, second = (pack(buffers, 1024, work=3_000_000) for _ in range(2))
    assert first == second


def test_work_is_kept_to() -> None:
    """A hard one with little work: no answer, and not much more work than asked for."""
    buffers = cut_rectangle(450, 60, 1024, 0, 1.0)
    found = pack(buffers, 1024, work=500_000)
    assert found.offsets is None
    assert not found.complete
    assert found.work < 1_000_000
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return False

    stopped = pack(buffers, 1024, work=1_000_000_000, report=stop)
    assert stopped.offsets is None
    assert len(calls) == 1


def test_a_capacity_below_the_bound_is_refused_at_once() -> None:
    buffers = [Buffer(0, 0, 1, 3, 1), Buffer(1, 1, 2, 3, 1)]
    answer = plan(buffers, 5)
    assert answer.peak == 6
    assert answer.lower_bound == 6


def test_proven_above_the_live_bytes() -> None:
    """Bytes alive would allow less, no order of the buffers does."""
    shapes = [(0, 1, 2), (2, 3, 2), (4, 5, 2), (1, 2, 1), (3, 4, 1), (0, 0, 1), (5, 5, 1), (2, 4, 1), (1, 1, 1)]
    buffers = [Buffer(n, low, high, size, 1) for n, (low, high, size) in enumerate(shapes)]
    answer = plan(buffers)
    assert answer.peak == answer.lower_bound == least_peak(buffers)
