"""Inferentia as data: the machine's description, its cost model and its topology. Imports nothing heavy, and no IR."""

from __future__ import annotations

from neuron_mlir.machine.description import Fact, Machine, load_machine, machine_names

__all__ = ["Fact", "Machine", "load_machine", "machine_names"]
