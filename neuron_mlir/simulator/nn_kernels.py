"""numpy kernels of the window ops of `nn`: convolution, pooling, local response normalisation. float32 in and out.

Convolution gathers the taps of a block of output rows into a buffer and multiplies by the weight once per block, so
that the sum over channels and taps is one BLAS call and the buffer stays in the cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
F32 = NDArray[np.float32]

_BUFFER_ELEMENTS = 1 << 19
"""Size of the tap buffer: 2 MiB, about a second-level cache."""
_LEAST_COLUMNS = 256
"""A block is no smaller than this, or sgemm starves."""


def pad_spatial(x: Array, pads: Sequence[int], value: float) -> Array:
    """x (N, C, spatial..) with pads in ONNX order around its spatial axes; x itself when there are none."""
    if not any(pads):
        return x
    rank = x.ndim - 2
    shape = (*x.shape[:2], *(x.shape[2 + i] + pads[i] + pads[rank + i] for i in range(rank)))
    out = np.full(shape, value, x.dtype)
    out[(..., *(slice(pads[i], pads[i] + x.shape[2 + i]) for i in range(rank)))] = x
    return out


def _tap_slices(
    tap: Sequence[int], counts: Sequence[int], strides: Sequence[int], dilations: Sequence[int], first: int = 0
) -> tuple[slice, ...]:
    """The elements of a padded input one tap of the window meets; the first axis begins at output row `first`."""
    result: list[slice] = []
    for axis, (k, count, stride, dilation) in enumerate(zip(tap, counts, strides, dilations, strict=True)):
        start = k * dilation + (first * stride if axis == 0 else 0)
        result.append(slice(start, start + (count - 1) * stride + 1, stride))
    return tuple(result)


def conv(
    x: F32,
    w: F32,
    bias: F32 | None,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
    out_spatial: Sequence[int],
) -> F32:
    """Convolution as `nn.conv`: x (N, C, spatial..), w (M, C / group, kernel..) -> (N, M, out_spatial..)."""
    x = pad_spatial(x, pads, 0.0)
    n, m = x.shape[0], w.shape[0]
    out = np.empty((n, m, *out_spatial), np.float32)
    if w.shape[1] == 1 and group > 1:
        _depthwise(x, w, strides, dilations, out)
    elif all(k == 1 for k in w.shape[2:]):
        _pointwise(x, w, strides, group, out)
    else:
        _by_blocks(x, w, strides, dilations, group, out)
    if bias is not None:
        out += bias.reshape(1, m, *(1 for _ in out_spatial))
    return out


def _pointwise(x: F32, w: F32, strides: Sequence[int], group: int, out: F32) -> None:
    """A kernel of one tap: a matrix product per group."""
    n, m = out.shape[:2]
    if any(stride > 1 for stride in strides):
        x = x[(..., *_tap_slices((0,) * len(strides), out.shape[2:], strides, strides))]
    columns = np.ascontiguousarray(x).reshape(n, group, x.shape[1] // group, -1)
    np.matmul(w.reshape(1, group, m // group, -1), columns, out=out.reshape(n, group, m // group, -1))


def _depthwise(x: F32, w: F32, strides: Sequence[int], dilations: Sequence[int], out: F32) -> None:
    """One input channel per group: a multiply-add per tap over whole planes."""
    m, channels = w.shape[0], x.shape[1]
    if m != channels:
        x = np.repeat(x, m // channels, axis=1)
    product = np.empty_like(out)
    ones = (1,) * (out.ndim - 2)
    for i, tap in enumerate(itertools.product(*(range(k) for k in w.shape[2:]))):
        taps = w[(slice(None), 0, *tap)].reshape(1, m, *ones)
        view = x[(..., *_tap_slices(tap, out.shape[2:], strides, dilations))]
        if i == 0:
            np.multiply(view, taps, out=out)
            continue
        np.multiply(view, taps, out=product)
        out += product


def _by_blocks(x: F32, w: F32, strides: Sequence[int], dilations: Sequence[int], group: int, out: F32) -> None:
    """Blocks of output rows: taps side by side in a buffer, then a matrix product per group."""
    n, m = out.shape[:2]
    kernel, spatial = w.shape[2:], out.shape[2:]
    taps = list(itertools.product(*(range(k) for k in kernel)))
    per_group = w.shape[1]
    depth = per_group * len(taps)
    row = math.prod(spatial[1:])
    rows = max(_BUFFER_ELEMENTS // (depth * group * row), -(-_LEAST_COLUMNS // row), 1)
    rows = min(rows, spatial[0])
    weights = w.reshape(group, m // group, depth)
    buffer = np.empty(group * depth * rows * row, np.float32)
    for request in range(n):
        source = x[request].reshape(group, per_group, *x.shape[2:])
        target = out[request].reshape(group, m // group, -1)
        for first in range(0, spatial[0], rows):
            count = min(rows, spatial[0] - first)
            block = buffer[: group * depth * count * row].reshape(group, per_group, len(taps), count, *spatial[1:])
            for i, tap in enumerate(taps):
                block[:, :, i] = source[(..., *_tap_slices(tap, (count, *spatial[1:]), strides, dilations, first))]
            np.matmul(
                weights,
                block.reshape(group, depth, count * row),
                out=target[:, :, first * row : (first + count) * row],
            )


def conv_transpose(
    x: F32, w: F32, bias: F32 | None, strides: Sequence[int], pads: Sequence[int], out_spatial: Sequence[int]
) -> F32:
    """Transposed convolution as `nn.conv_transpose`: x (N, C, spatial..), w (C, M, kernel..) -> (N, M, out_spatial..).

    Outputs that lie a stride apart see the same taps: each such phase is a convolution with every stride-th tap, in
    reverse, so that its sum is one BLAS call as that of `conv` is.
    """
    rank = len(strides)
    out = np.zeros((x.shape[0], w.shape[1], *out_spatial), np.float32)
    for phase in itertools.product(*(range(min(s, o)) for s, o in zip(strides, out_spatial, strict=True))):
        firsts = [(phase[a] + pads[a]) % strides[a] for a in range(rank)]
        if any(first >= w.shape[2 + a] for a, first in enumerate(firsts)):
            continue  # no tap meets these outputs
        taps = w[(..., *(slice(first, None, stride) for first, stride in zip(firsts, strides, strict=True)))]
        taps = np.flip(taps, axis=tuple(range(2, 2 + rank))).swapaxes(0, 1)
        counts = [len(range(phase[a], out_spatial[a], strides[a])) for a in range(rank)]
        # Of the first output of the phase: the input element that its last tap meets.
        starts = [(phase[a] + pads[a]) // strides[a] - taps.shape[2 + a] + 1 for a in range(rank)]
        ends = [start + count + k - 1 for start, count, k in zip(starts, counts, taps.shape[2:], strict=True)]
        seen = x[(..., *(slice(max(0, start), max(0, end)) for start, end in zip(starts, ends, strict=True)))]
        before = [min(max(0, -start), end - start) for start, end in zip(starts, ends, strict=True)]
        around = [
            end - start - n - seen.shape[2 + a]
            for a, (start, end, n) in enumerate(zip(starts, ends, before, strict=True))
        ]
        found = conv(seen, np.ascontiguousarray(taps), None, (1,) * rank, [*before, *around], (1,) * rank, 1, counts)
        out[(..., *(slice(p, None, s) for p, s in zip(phase, strides, strict=True)))] = found
    if bias is not None:
        out += bias.reshape(1, -1, *(1 for _ in out_spatial))
    return out


def _fold_windows(
    combine: Any,
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    out_spatial: Sequence[int],
) -> Array:
    """Windows of a padded x folded by a binary ufunc, one spatial axis after the other."""
    for axis, (k, stride, dilation, count) in enumerate(zip(kernel, strides, dilations, out_spatial, strict=True)):
        lead = (slice(None),) * (2 + axis)
        span = (count - 1) * stride + 1
        out = x[(*lead, slice(0, span, stride))].copy()
        for i in range(1, k):
            combine(out, x[(*lead, slice(i * dilation, i * dilation + span, stride))], out=out)
        x = out
    return x


def max_pool(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    out_spatial: Sequence[int],
) -> Array:
    """`nn.max_pool`; padding is the least value of the type."""
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return _fold_windows(np.maximum, pad_spatial(x, pads, least), kernel, strides, dilations, out_spatial)


def avg_pool(
    x: F32,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    out_spatial: Sequence[int],
    count_include_pad: bool,
) -> F32:
    """`nn.avg_pool`: the sum of each window times the f32 reciprocal of its count."""
    out = _fold_windows(np.add, pad_spatial(x, pads, 0.0), kernel, strides, dilations, out_spatial)
    out *= window_scale(x.shape[2:], kernel, strides, pads, dilations, out_spatial, count_include_pad)
    return out


def window_scale(
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    out_spatial: Sequence[int],
    count_include_pad: bool,
) -> F32:
    """What `nn.avg_pool` multiplies sums by: the f32 reciprocal of each window's count, () or of shape out_spatial."""
    if count_include_pad or not any(pads):
        return np.asarray(np.float32(1) / np.float32(math.prod(kernel)))
    counts: Array = np.ones((), np.int64)
    for i, dim in enumerate(spatial):
        starts = np.arange(out_spatial[i])[:, None] * strides[i] - pads[i]
        positions = starts + np.arange(kernel[i])[None, :] * dilations[i]
        counts = counts[..., None] * ((positions >= 0) & (positions < dim)).sum(axis=1)
    # A window of padding only (possible behind a stride and a dilation) sums to 0 whatever its count.
    return np.float32(1) / np.maximum(counts, 1).astype(np.float32)


def unfold(x: F32, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], shape: Sequence[int]) -> F32:
    """`nn.unfold`: x (N, C, spatial..) to `shape`, (N, C * kernel.., windows..)."""
    padded = pad_spatial(x, pads, 0.0)
    out = np.empty((*x.shape[:2], math.prod(kernel), *shape[2:]), x.dtype)
    for i, tap in enumerate(itertools.product(*(range(k) for k in kernel))):
        out[:, :, i] = padded[(..., *_tap_slices(tap, shape[2:], strides, (1,) * len(kernel)))]
    return out.reshape(shape)


def lrn(x: F32, size: int, alpha: float, beta: float, bias: float) -> F32:
    """`nn.lrn`: x / (bias + alpha / size * sum of squares of neighbouring channels) ^ beta."""
    channels = x.shape[1]
    square = np.square(x)
    low, high = (size - 1) // 2, size - 1 - (size - 1) // 2
    total = square.copy()
    for shift in range(-low, high + 1):
        if shift == 0 or abs(shift) >= channels:
            continue
        inside = slice(max(0, -shift), channels - max(0, shift))
        total[:, inside] += square[:, max(0, shift) : channels + min(0, shift)]
    total *= np.float32(alpha / size)
    total += np.float32(bias)
    np.power(total, np.float32(-beta), out=total)
    total *= x
    return total
