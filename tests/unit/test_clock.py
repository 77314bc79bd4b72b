"""The clock gives the closed forms of docs/simulator.md."""

from __future__ import annotations

import pytest

from benchmarks.clock import Check, checks
from benchmarks.sensitivity import VARIED, machine_with
from neuron_mlir.machine import load_machine

MACHINE = load_machine()


@pytest.mark.parametrize("check", checks(MACHINE), ids=lambda check: check.what)
def test_simulated_is_expected(check: Check) -> None:
    """To 10 parts in a million: a quantum takes whole picoseconds."""
    assert check.simulated == pytest.approx(check.expected, rel=1e-5)


def test_what_is_varied_is_read(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.sensitivity.WORK", tmp_path)
    for values in VARIED.values():
        for _, overrides in values:
            machine = load_machine(machine_with(overrides))
            for key, value in overrides.items():
                assert machine.value(key) == value
    assert machine_with({"dma.fixed_ps": 1}).endswith("dma.fixed_ps=1.toml")
