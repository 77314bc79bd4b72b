"""Neuron MLIR: trained networks, lowered through three dialects to a simulated AWS Inferentia.

`neuron_mlir.load` and `neuron_mlir.compile` give models to call (docs/runtime.md). What is not used is not imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuron_mlir.runtime.api import compile, load
    from neuron_mlir.runtime.instance import Instance, default_instance
    from neuron_mlir.runtime.model import Inference, Model
    from neuron_mlir.runtime.status import NeuronRuntimeError, Status

__version__ = "0.1.0"

__all__ = ["Inference", "Instance", "Model", "NeuronRuntimeError", "Status", "compile", "default_instance", "load"]

_HOMES = {
    "Inference": "model",
    "Instance": "instance",
    "Model": "model",
    "NeuronRuntimeError": "status",
    "Status": "status",
    "compile": "api",
    "default_instance": "instance",
    "load": "api",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.runtime.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
