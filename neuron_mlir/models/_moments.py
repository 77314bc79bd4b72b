"""Mean and second moment of a tensor, carried from layer to layer so that weights can be scaled without running them.

Exact over the draw of the weights for what is linear, the half-normal formula for ReLU, rules of thumb for pooling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Moments:
    """Mean and mean square over all elements of a tensor."""

    mean: float
    square: float

    @property
    def var(self) -> float:
        """The variance, never quite 0."""
        return max(self.square - self.mean * self.mean, 1e-6)


def of(mean: float, var: float) -> Moments:
    """The moments for a mean and a variance."""
    return Moments(mean, var + mean * mean)


def relu(x: Moments) -> Moments:
    """Moments of max(0, y) for a normal y."""
    std = math.sqrt(x.var)
    ratio = x.mean / std
    density = math.exp(-0.5 * ratio * ratio) / math.sqrt(2.0 * math.pi)
    above = 0.5 * (1.0 + math.erf(ratio / math.sqrt(2.0)))
    mean = x.mean * above + std * density
    return Moments(mean, x.square * above + x.mean * std * density)


def leaky_relu(x: Moments, alpha: float) -> Moments:
    """Moments of max(0, y) + alpha * min(0, y) for a normal y."""
    above, below = relu(x), relu(Moments(-x.mean, x.square))
    return Moments(above.mean - alpha * below.mean, above.square + alpha * alpha * below.square)


def mish(x: Moments) -> Moments:
    """Moments of y * tanh(log(1 + exp(y))) for a normal y: sums over 8 standard deviations to either side."""
    std, step = math.sqrt(x.var), 1.0 / 16
    mean = square = 0.0
    for n in range(-128, 129):
        y = x.mean + std * n * step
        value = y * math.tanh(math.log1p(math.exp(min(y, 30.0))))
        weight = step * math.exp(-0.5 * (n * step) ** 2) / math.sqrt(2.0 * math.pi)
        mean += weight * value
        square += weight * value * value
    return Moments(mean, square)


def max_pool(x: Moments) -> Moments:
    """Of the maximum of a few neighbours."""
    return of(x.mean + 1.6 * math.sqrt(x.var), 1.1 * x.var)


def mean_pool(x: Moments) -> Moments:
    """Of the mean over a window or a whole map."""
    return of(x.mean, 0.5 * x.var)


def total(terms: Sequence[Moments]) -> Moments:
    """Of a sum of independent tensors."""
    return of(sum(term.mean for term in terms), sum(term.var for term in terms))


def joined(sizes: Sequence[int], parts: Sequence[Moments]) -> Moments:
    """Of a concatenation of parts of these sizes."""
    count = sum(sizes)
    return Moments(
        sum(size * part.mean for size, part in zip(sizes, parts, strict=True)) / count,
        sum(size * part.square for size, part in zip(sizes, parts, strict=True)) / count,
    )
