"""Dynamic batching: any number of rows as requests of the size that a program was compiled for.

A program that was compiled with `dynamic_batch_size` says along which axis of each input and output its rows lie; the
compiler has proved that they do not see each other (`compiler.batch_rows`). A call with n rows becomes ceil(n / B)
requests, the last one filled up with zeros, whose outputs are dropped. A row's place in its request is its number in
the call modulo B, whoever else calls at the same time: requests of different calls are never put together here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.errors import NeuronError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Rows:
    """Where the rows of a request are: how many it has, and the axis of each input and output that has rows."""

    size: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    @classmethod
    def read(
        cls,
        value: object,
        inputs: Mapping[str, tuple[int, ...]],
        outputs: Mapping[str, tuple[int, ...]],
    ) -> Rows:
        """From the metadata of an artifact, checked against the shapes of one request.

        Raises:
            NeuronError: it is broken, or does not fit the program.
        """
        problem = NeuronError("the record of dynamic batching is broken", advice="compiling the model again")
        if not isinstance(value, dict):
            raise problem
        record = cast("dict[str, object]", value)
        size = record.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise problem
        axes: list[dict[str, int]] = []
        for key, shapes in (("inputs", inputs), ("outputs", outputs)):
            listed = record.get(key)
            if not isinstance(listed, dict) or not listed:
                raise problem
            found: dict[str, int] = {}
            for name, axis in cast("dict[str, object]", listed).items():
                shape = shapes.get(name)
                if shape is None or not isinstance(axis, int) or isinstance(axis, bool) or not 0 <= axis < len(shape):
                    raise problem
                if shape[axis] % size or (key == "inputs" and (axis != 0 or shape[0] != size)):
                    raise problem
                found[name] = axis
            axes.append(found)
        return cls(size, axes[0], axes[1])

    def count(self, feed: Mapping[str, NDArray[Any]]) -> int:
        """Rows of a call's inputs.

        Raises:
            NeuronError: inputs do not agree on it, or there are none.
        """
        counts = {name: feed[name].shape[0] for name in self.inputs}
        if len(set(counts.values())) > 1:
            raise NeuronError(
                "the inputs do not have the same number of rows",
                needed="one batch size",
                available=", ".join(f"'{name}': {count}" for name, count in counts.items()),
            )
        rows = next(iter(counts.values()))
        if not rows:
            raise NeuronError("the batch is empty", needed="1 row or more", available="0 rows")
        return rows

    def split(self, feed: Arrays) -> list[Arrays]:
        """The requests that a call becomes; inputs without rows go to each."""
        rows = self.count(feed)
        requests: list[Arrays] = []
        for start in range(0, rows, self.size):
            part = dict(feed)
            for name in self.inputs:
                taken = feed[name][start : start + self.size]
                if len(taken) < self.size:
                    filled = np.zeros((self.size, *taken.shape[1:]), taken.dtype)
                    filled[: len(taken)] = taken
                    taken = filled
                part[name] = taken
            requests.append(part)
        return requests

    def join(self, answers: Sequence[Arrays], rows: int) -> Arrays:
        """The outputs of a call from those of its requests, without what was filled up."""
        joined: Arrays = {}
        for name, first in answers[0].items():
            axis = self.outputs.get(name)
            if axis is None:
                joined[name] = first
                continue
            each = first.shape[axis] // self.size
            whole = answers[0][name] if len(answers) == 1 else np.concatenate([a[name] for a in answers], axis=axis)
            taken = whole[(slice(None),) * axis + (slice(0, rows * each),)]
            joined[name] = np.ascontiguousarray(taken)
        return joined
