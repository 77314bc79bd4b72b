"""The memory plan: valid on anything, optimal against brute force on tiny instances, bounded by what is alive."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.solvers.memory_plan import Buffer, Plan, check_plan, lower_bound, plan, plan_without_sharing


@st.composite
def instances(draw: st.DrawFn, most: int = 24, alignments: tuple[int, ...] = (1, 4, 64)) -> list[Buffer]:
    """Buffers with random ranges; some may not cross a boundary."""
    alignment = draw(st.sampled_from(alignments))
    found: list[Buffer] = []
    for number in range(draw(st.integers(0, most))):
        lower = draw(st.integers(0, 12))
        upper = lower + draw(st.integers(0, 6))
        boundary = draw(st.sampled_from((0, 0, 4 * alignment)))
        found.append(Buffer(number, lower, upper, draw(st.integers(1, 6 * alignment)), alignment, boundary))
    return found


@settings(deadline=None)
@given(instances())
def test_plans_are_valid(buffers: list[Buffer]) -> None:
    answer = plan(buffers, work=50_000)
    check_plan(buffers, answer)
    check_plan(buffers, answer, capacity=answer.peak)
    assert answer.certificate().lower_bound <= answer.peak


@settings(deadline=None)
@given(instances())
def test_without_sharing_no_bytes_are_used_twice(buffers: list[Buffer]) -> None:
    answer = plan_without_sharing(buffers)
    check_plan([Buffer(b.id, 0, 0, b.size, b.alignment, b.boundary) for b in buffers], answer)


@settings(max_examples=60, deadline=None)
@given(instances(most=4, alignments=(1,)))
def test_bound_and_plan_against_brute_force(buffers: list[Buffer]) -> None:
    """No assignment beats the bound or the plan."""
    answer = plan(buffers)
    best = brute_force(buffers, answer.peak)
    assert lower_bound(buffers) <= answer.lower_bound <= best == answer.peak


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 14), st.sampled_from((1, 2, 8))), max_size=3
    )
)
def test_mixed_alignments_against_brute_force(shapes: list[tuple[int, int, int, int]]) -> None:
    buffers = [Buffer(n, low, low + more, size, unit) for n, (low, more, size, unit) in enumerate(shapes)]
    answer = plan(buffers)
    assert answer.lower_bound <= brute_force(buffers, answer.peak) == answer.peak


def test_padding_above_what_is_always_alive() -> None:
    """The one alive all the time lies on top: below, its size would cost the other padding."""
    answer = plan([Buffer(0, 0, 1, 456, 64), Buffer(1, 1, 1, 464, 64)])
    assert answer.peak == answer.lower_bound == 512 + 456


def test_padding_that_what_is_always_alive_may_fill() -> None:
    """Two that are alive all the time lie between others and end where these are aligned: 0, 4, 9 and 14 to 21."""
    sizes = [(0, 0, 1, 6), (0, 1, 5, 1), (1, 1, 4, 6), (0, 1, 7, 2), (1, 1, 4, 3)]
    answer = plan([Buffer(n, lower, upper, size, unit) for n, (lower, upper, size, unit) in enumerate(sizes)])
    assert answer.peak == answer.lower_bound == 21


def brute_force(buffers: list[Buffer], limit: int) -> int:
    """The least peak of all assignments of offsets up to `limit`."""
    best = limit
    spaces = [range(max(1, limit - b.size + 1)) for b in buffers]
    for offsets in product(*spaces):
        peak = max((o + b.size for o, b in zip(offsets, buffers, strict=True)), default=0)
        if peak >= best:
            continue
        candidate = Plan(dict(enumerate(offsets)), peak, 0, "")
        try:
            check_plan(buffers, candidate)
        except ValueError:
            continue
        best = peak
    return best


def test_reaches_the_bound_where_buffers_nest() -> None:
    """Ranges inside each other: the greedy orders are optimal."""
    buffers = [Buffer(n, n, 20 - n, 100 + n, 4) for n in range(8)]
    answer = plan(buffers)
    padded = [100, 104, 104, 104, 104, 108, 108, 108]
    assert answer.peak == answer.lower_bound == sum(padded) - 3, "the top one, of 101 bytes, is not padded"
    assert answer.certificate("bytes per partition").proven_optimal


def test_what_stands_at_the_peak_goes_first() -> None:
    """An instance on which no single order is optimal, and the improvement is."""
    shapes = [(0, 1, 5), (0, 3, 1), (2, 2, 4), (3, 5, 4), (4, 5, 2), (1, 4, 2)]
    buffers = [Buffer(n, low, high, size, 1) for n, (low, high, size) in enumerate(shapes)]
    greedy, improved = plan(buffers, effort=0), plan(buffers)
    check_plan(buffers, improved)
    assert improved.peak <= greedy.peak
    assert improved.peak == brute_force(buffers, greedy.peak)


def test_stops_at_the_capacity() -> None:
    buffers = [Buffer(0, 0, 1, 3, 1), Buffer(1, 1, 2, 3, 1)]
    assert plan(buffers, 100).peak <= 100
    assert plan(buffers, 1).peak == 6, "what does not fit is planned all the same"


def test_boundary() -> None:
    """Two buffers of three quarters of a bank: the second begins in the next bank. A larger one starts at a bank."""
    buffers = [Buffer(0, 0, 0, 1536, 64, 2048), Buffer(1, 0, 0, 1536, 64, 2048), Buffer(2, 0, 0, 4096, 64, 2048)]
    answer = plan(buffers)
    check_plan(buffers, answer)
    assert sorted(answer.offsets[n] // 2048 for n in (0, 1)) != [0, 0]
    assert answer.offsets[2] % 2048 == 0


@pytest.mark.parametrize(
    "offsets, words",
    [
        ({0: 0}, "name each buffer"),
        ({0: 0, 1: 0}, "overlap"),
        ({0: 0, 1: 3}, "not aligned"),
        ({0: 0, 1: -4}, "not aligned"),
        ({0: 0, 1: 8}, "the peak is 12"),
        ({0: 0, 1: 4}, "above the capacity"),
    ],
)
def test_check_finds_mistakes(offsets: dict[int, int], words: str) -> None:
    buffers = [Buffer(0, 0, 2, 4, 4), Buffer(1, 2, 3, 4, 4)]
    with pytest.raises(ValueError, match=words):
        check_plan(buffers, Plan(offsets, 8, 8, "by hand"), capacity=7)


def test_check_finds_a_false_bound() -> None:
    with pytest.raises(ValueError, match="lower bound"):
        check_plan([Buffer(0, 0, 0, 4, 4)], Plan({0: 0}, 4, 5, "by hand"))


@pytest.mark.parametrize(
    "buffer", [Buffer(0, 0, 0, 0), Buffer(0, 1, 0, 8), Buffer(0, 0, 0, 8, 0), Buffer(0, 0, 0, 8, 64, 100)]
)
def test_refuses_what_is_no_buffer(buffer: Buffer) -> None:
    with pytest.raises(ValueError, match=r"buffer|boundary"):
        plan([buffer])


def test_small_buffers_that_always_live_do_not_push_others_up() -> None:
    # At the bottom 20 bytes would cost those above, in lines of 64, another 44.
    lines = [Buffer(n, n, n + 2, 128, 64) for n in range(8)]
    small = [Buffer(10 + n, 0, 9, 4, 4) for n in range(5)]
    for capacity in (None, 3 * 128 + 20):
        answer = plan([*small, *lines], capacity)
        check_plan([*small, *lines], answer, capacity)
        assert answer.peak == answer.lower_bound == 3 * 128 + 20
