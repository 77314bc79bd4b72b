"""Which taps outputs of a transposed convolution see: those a stride apart see the same ones.

Along an axis with stride s, kernel k and leading pad p, output `r + s * t` sums `x[t + b - j] * w[q + s * j]` over j,
where `q = (r + p) mod s` and `b = (r + p) div s`: a convolution with every s-th tap in reverse.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of


@dataclass(frozen=True)
class Phase:
    """Outputs `first`, `first + stride`, .. of an axis.

    Attributes:
        first: the first of them.
        count: how many there are.
        tap: the first kernel element they see.
        taps: how many they see, a stride apart (one of zero weight where the kernel is shorter than the stride).
        start: which input element the last of these meets for the first output; negative in padding.
    """

    first: int
    count: int
    tap: int
    taps: int
    start: int

    @property
    def end(self) -> int:
        """One past the last input element in use."""
        return self.start + self.count + self.taps - 1


def phases_of(op: nn.ConvTransposeOp, axis: int) -> list[Phase]:
    """The phases along a spatial axis."""
    stride, pad, size = op.strides[axis], op.pads[axis], type_of(op.result).get_shape()[2 + axis]
    kernel = max(stride, type_of(op.w).get_shape()[2 + axis])
    found: list[Phase] = []
    for first in range(min(stride, size)):
        tap, taken = (first + pad) % stride, (first + pad) // stride
        taps = len(range(tap, kernel, stride))
        found.append(Phase(first, len(range(first, size, stride)), tap, taps, taken - taps + 1))
    return found


def transposed_pads(op: nn.ConvTransposeOp) -> dict[int, tuple[int, int]]:
    """The padding its input needs along each spatial axis."""
    pads: dict[int, tuple[int, int]] = {}
    for axis, size in enumerate(type_of(op.x).get_shape()[2:]):
        found = phases_of(op, axis)
        low, high = max(-phase.start for phase in found), max(phase.end for phase in found) - size
        pads[2 + axis] = (max(0, low), max(0, high))
    return pads


def transposed_flops(op: nn.ConvTransposeOp) -> int:
    """Multiplications and additions, those with padding included as for a convolution."""
    batch, outputs = type_of(op.result).get_shape()[:2]
    every = itertools.product(*(phases_of(op, axis) for axis in range(len(op.strides))))
    sums = sum(math.prod(part.count * part.taps for part in phase) for phase in every)
    return 2 * batch * outputs * type_of(op.x).get_shape()[1] * sums
