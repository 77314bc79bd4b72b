"""What a caller hands to a model, as arrays by name: bound, checked, converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.interface import Port, check_inputs

if TYPE_CHECKING:
    from neuron_mlir.runtime.batching import Rows

Arrays = dict[str, NDArray[Any]]


def bind(ports: Sequence[Port], positional: Sequence[Any], named: Mapping[str, Any]) -> tuple[Arrays, bool]:
    """The arguments of a call by the names of the inputs, as arrays, and whether they came by name: as arrays in the
    order of the inputs, as one mapping, or as keywords.

    Raises:
        NeuronError: too many or too few, both ways at once, or something that is no array.
    """
    names = [port.name for port in ports]
    if len(positional) == 1 and isinstance(positional[0], Mapping):
        if named:
            raise NeuronError("give inputs as one mapping or as keywords, not both", needed=", ".join(names))
        named, positional = {str(name): value for name, value in cast("Mapping[Any, Any]", positional[0]).items()}, ()
    elif positional and named:
        raise NeuronError("give inputs by position or by name, not both", needed=", ".join(names))
    if not positional:
        return {name: _array(name, value) for name, value in named.items()}, True
    if len(positional) != len(names):
        raise NeuronError(
            "wrong number of inputs", needed=f"{len(names)} ({', '.join(names)})", available=len(positional)
        )
    return {name: _array(name, value) for name, value in zip(names, positional, strict=True)}, False


def check(ports: Sequence[Port], feed: Arrays, rows: Rows | None, *, nan: bool) -> Arrays:
    """The inputs of a call as the simulator wants them.

    Args:
        ports: the inputs of one request.
        feed: by name.
        rows: with dynamic batching; then inputs that have rows may have any number of them, the same for all.
        nan: refuse NaN.

    Raises:
        NeuronError: an input is missing or unknown, has the wrong shape or kind of element, or holds NaN.
    """
    if rows is not None and all(name in feed and feed[name].ndim > 0 for name in rows.inputs):
        count = rows.count(feed)
        ports = [replace(port, shape=(count, *port.shape[1:])) if port.name in rows.inputs else port for port in ports]
    checked = check_inputs(ports, feed)
    if nan:
        for name, array in checked.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise NeuronError(
                    f"input '{name}' holds NaN", available=f"{int(np.isnan(array).sum())} of {array.size}"
                )
    return checked


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise NeuronError(f"input '{name}' is not an array: {error}") from error
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise NeuronError(f"input '{name}' does not hold numbers", needed="real numbers", available=array.dtype.name)
    return array
