"""Which weights stay: shares by order, and what depth-first groups hold anyway."""

from __future__ import annotations

from neuron_mlir.passes.core.lowering.residency import Residency


def test_first_come_first_served() -> None:
    shares = Residency(100)
    assert [shares.take(60), shares.take(60), shares.take(10, 4)] == [1, 0, 4]
    assert (shares.kept, shares.asked) == (100, 160)


def test_the_same_part_everywhere() -> None:
    shares = Residency(50, 100)
    assert [shares.take(10, 4), shares.take(10, 4), shares.take(10, 2)] == [2, 2, 1]


def test_only_what_groups_hold() -> None:
    first = Residency(0)
    sizes = [(30, False), (20, True), (40, False), (25, True)]
    assert [first.take(size, held=held) for size, held in sizes] == [0, 0, 0, 0]
    assert first.held == 45
    again = Residency(first.held, first.asked, only_held=True)
    assert [again.take(size, held=held) for size, held in sizes] == [0, 1, 0, 1]
    assert again.kept == first.held
