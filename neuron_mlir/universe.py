"""What this package offers to xDSL, found by `xdsl-opt`, `neuron-opt` and other tools through `xdsl.universe`."""

from __future__ import annotations

from xdsl.ir import Dialect
from xdsl.universe import Universe

from neuron_mlir.passes import get_all_passes


def _nn() -> Dialect:
    from neuron_mlir.dialects.nn import Nn

    return Nn


def _core() -> Dialect:
    from neuron_mlir.dialects.core import Core

    return Core


def _pipe() -> Dialect:
    from neuron_mlir.dialects.pipe import Pipe

    return Pipe


NEURON_UNIVERSE = Universe(
    all_dialects={"nn": _nn, "core": _core, "pipe": _pipe},
    # dict() because upstream's type is invariant in the pass class.
    all_passes=dict(get_all_passes()),
)
