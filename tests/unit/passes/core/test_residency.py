"""Which weights stay: shares by order, and what depth-first groups hold anyway."""

from __future__ import annotations

from xdsl.dialects import test as op
from xdsl.ir import Operation

from neuron_mlir.machine import load_machine
from neuron_mlir.passes.core.lowering.residency import Residency, cheapest, streaming_rate


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


def test_room_that_even_shares_leave_is_filled() -> None:
    layers: list[Operation] = [op.TestOp(), op.TestOp(), op.TestOp()]
    spans = dict.fromkeys(layers, 1_000_000)
    sizes = (40, 60, 50)

    def asked(shares: Residency) -> list[int]:
        found: list[int] = []
        for layer, size in zip(layers, sizes, strict=True):
            shares.begin(layer)
            found.append(shares.take(size, moved=size * 128))
        return found

    even = Residency(100, 150, spans)
    assert asked(even) == [1, 0, 1]
    found = cheapest(even, 100, spans, 0, 1_000_000_000)
    assert found is not None
    assert found.asks is not None
    assert found.after.objective < found.before.objective
    again = Residency(100, 150, spans, chosen=found.asks)
    assert asked(again) == [1, 1, 0]
    stays = cheapest(again, 100, spans, 0, 1_000_000_000)
    assert stays is not None
    assert stays.asks is None


def test_dram_is_shared_by_what_stages_move() -> None:
    machine = load_machine("inferentia1")
    alone = streaming_rate(machine, 5, [])
    assert streaming_rate(machine, 5, [0]) == alone
    assert streaming_rate(machine, 1, [1, 1, 1]) * 4 <= 39_000_000_000
    assert streaming_rate(machine, 3, [1, 1, 1]) > streaming_rate(machine, 1, [1, 1, 1])
