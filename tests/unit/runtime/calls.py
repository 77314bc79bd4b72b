"""What tests of loaded models share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuron_mlir import NeuronRuntimeError, Status

Array = NDArray[np.float32]


def rows(count: int, seed: int = 0, width: int = 16) -> Array:
    """So many rows of a model's input."""
    return np.random.default_rng(seed).standard_normal((count, width), np.float32)


def failure(status: Status, call: Any, *arguments: Any, **named: Any) -> NeuronRuntimeError:
    """What a call fails with: this status, in one line."""
    with pytest.raises(NeuronRuntimeError) as caught:
        call(*arguments, **named)
    assert caught.value.status is status
    assert "\n" not in caught.value.line
    return caught.value
