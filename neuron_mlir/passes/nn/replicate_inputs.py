"""`nn-replicate-inputs`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.ir import SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.ir.locations import replace
from neuron_mlir.ir.machine_attr import machine_of
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import core_dma_bytes_per_s, dma_bytes_charged, gemm_work, service_ps
from neuron_mlir.passes.base import NeuronPass, Relation, option
from neuron_mlir.passes.nn._constants import ConstBuilder, erase_unused_constants, is_constant, nn_blocks

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp

ITEM_BYTES = 2
"""Of an element as the PE array takes it: bf16 or f16, whatever it is before `nn-cast`."""


@dataclass(frozen=True)
class Packing:
    """How a convolution is packed; of each pair, rows and columns.

    Attributes:
        kernel: the part of the window that becomes channels.
        taps: what is left of the window, in steps of `dilations`.
        pads: of the unfolding, ONNX order.
        cost_ps: the longer of the TensorEngine's and the DMA engines' time.
    """

    kernel: tuple[int, int]
    taps: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    cost_ps: int


@dataclass(frozen=True)
class ReplicateInputsPass(NeuronPass):
    """Packs shallow convolutions with their taps, so that the rows of the PE array fill.

    A convolution sums over its input channels on the 128 rows of the PE array, one tap of its window after the other.
    With 3 channels (the first layer of a network on images) 125 rows are empty, and the 49 taps of a 7x7 window take 49
    passes. Here copies of the input, shifted by one tap each, become further channels (`nn.unfold`): some rows and
    columns of the window, as many as are cheapest. What is left is a convolution with the others as taps, its weight
    re-ordered and filled up with zeros. The copies are made by DMA within SBUF, so the cost of a
    choice is the longer of the TensorEngine's time and that of the DMA engines, from the machine's cost functions.

    A convolution is packed when that is at least `gain` times as fast as its taps one by one. Not packed: groups,
    dilations, weights that are computed, windows of other than two axes, and what would need more rows than there are.

    Runs before `nn-fuse`, which takes the unfolding into the convolution's group, and `nn-cast`, which rounds before
    it.

    Before:

    ```mlir
    func.func @main(%x: tensor<1x3x224x224xf32>) -> tensor<1x64x112x112xf32> {
      %w = nn.weight "w" : tensor<64x3x7x7xf32>
      %0 = nn.conv %x, %w strides [2, 2] pads [3, 3, 3, 3]
        : (tensor<1x3x224x224xf32>, tensor<64x3x7x7xf32>) -> tensor<1x64x112x112xf32>
      func.return %0 : tensor<1x64x112x112xf32>
    }
    ```

    After:

    ```mlir
    func.func @main(%x: tensor<1x3x224x224xf32>) -> tensor<1x64x112x112xf32> {
      %w = nn.const {
        %1 = nn.weight "w" : tensor<64x3x7x7xf32>
        %2 = nn.pad %1 low [0, 0, 0, 0] high [0, 0, 0, 1] value 0.0 : (tensor<64x3x7x7xf32>) -> tensor<64x3x7x8xf32>
        %3 = nn.reshape %2 : (tensor<64x3x7x8xf32>) -> tensor<64x3x7x4x2xf32>
        %4 = nn.transpose %3 perm [0, 1, 2, 4, 3] : (tensor<64x3x7x4x2xf32>) -> tensor<64x3x7x2x4xf32>
        %5 = nn.reshape %4 : (tensor<64x3x7x2x4xf32>) -> tensor<64x42x1x4xf32>
        nn.yield %5 : tensor<64x42x1x4xf32>
      } : tensor<64x42x1x4xf32>
      %u = nn.unfold %x kernel [7, 2] strides [2, 2] pads [3, 3, 2, 3]
        : (tensor<1x3x224x224xf32>) -> tensor<1x42x112x115xf32>
      %0 = nn.conv %u, %w : (tensor<1x42x112x115xf32>, tensor<64x42x1x4xf32>) -> tensor<1x64x112x112xf32>
      func.return %0 : tensor<1x64x112x112xf32>
    }
    ```
    """

    name = "nn-replicate-inputs"
    summary: ClassVar[str] = "pack shallow convolutions with their taps to fill the rows of the PE array"
    relation: ClassVar[Relation] = Relation.REASSOCIATES
    statistics_help: ClassVar[dict[str, str]] = {
        "packed": "convolutions packed",
        "passes-before": "passes over the output pixels of these convolutions, taps one by one",
        "passes-after": "passes that are left",
    }

    gain: float | int = option(2, "pack what becomes at least so many times as fast")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        machine = machine_of(op)
        for block in list(nn_blocks(op)):
            for inner in list(block.ops):
                if not isinstance(inner, nn.ConvOp):
                    continue
                packing = best_packing(machine, inner)
                if packing is not None and packing.cost_ps * self.gain <= _plain_ps(machine, inner):
                    self._pack(inner, packing)
            erase_unused_constants(block)

    def _pack(self, op: nn.ConvOp, packing: Packing) -> None:
        self.count("packed")
        self.count("passes-before", math.prod(_shape(op.w)[2:]))
        self.count("passes-after", math.prod(packing.taps))
        weight = _packed_weight(op.w, packing)
        unfold = nn.UnfoldOp(op.x, packing.kernel, strides=op.strides, pads=packing.pads)
        unfold.location = op.location
        unfold.result.name_hint = op.x.name_hint
        Rewriter.insert_op(unfold, InsertPoint.before(op))
        new = nn.ConvOp(unfold.result, weight, op.bias, dilations=packing.dilations)
        assert new.type == op.type
        new.result.name_hint = op.result.name_hint
        replace(op, new)


def best_packing(machine: Machine, op: nn.ConvOp) -> Packing | None:
    """The cheapest way to pack a convolution; None when there is none."""
    x, w, out = _shape(op.x), _shape(op.w), _shape(op.result)
    if len(w) != 4 or op.group != 1 or any(d != 1 for d in op.dilations) or not is_constant(op.w):
        return None
    found: list[Packing] = []
    for rows, columns in itertools.product(_parts(op, 0), _parts(op, 1)):
        packed = x[1] * rows.packed * columns.packed
        if packed > machine.tensor_engine.rows or packed == x[1]:
            continue
        run = columns.size * ITEM_BYTES
        moved = dma_bytes_charged(machine, run, x[0] * packed * rows.size * run)
        taps = rows.taps * columns.taps
        cost = max(
            gemm_work(machine, packed, out[1], (out[0], *out[2:]), taps).tensor_ps,
            service_ps(moved, core_dma_bytes_per_s(machine)),
        )
        pads = (op.pads[0], op.pads[1], rows.after, columns.after)
        left, dilations = (rows.taps, columns.taps), (rows.dilation, columns.dilation)
        found.append(Packing((rows.packed, columns.packed), left, dilations, pads, cost))
    return min(found, key=lambda packing: (packing.cost_ps, packing.kernel), default=None)


@dataclass(frozen=True)
class _Part:
    """A choice along one axis: elements of the window that become channels, taps left, in steps of `dilation`, padding
    behind the map, and elements of the unfolded map.
    """

    packed: int
    taps: int
    dilation: int
    after: int
    size: int


def _parts(op: nn.ConvOp, axis: int) -> list[_Part]:
    """The choices along a spatial axis. Elements become channels in steps of the stride, so that the taps that are
    left move by whole elements of the unfolded map; or all of them do.
    """
    kernel, stride = _shape(op.w)[2 + axis], op.strides[axis]
    extent, before, windows = _shape(op.x)[2 + axis], op.pads[axis], _shape(op.result)[2 + axis]
    found: list[_Part] = []
    for packed in range(1, kernel + 1):
        if packed != kernel and packed % stride:
            continue
        taps = -(-kernel // packed)
        dilation = packed // stride if taps > 1 else 1
        # As much of the unfolded map as the taps reach, and no more.
        size = windows + (taps - 1) * dilation
        after = stride * (size - 1) + packed - extent - before
        if after + stride > 0:
            found.append(_Part(packed, taps, dilation, max(0, after), size))
    return found


def _plain_ps(machine: Machine, op: nn.ConvOp) -> int:
    """TensorEngine time of a convolution tap by tap."""
    out = _shape(op.result)
    taps = math.prod(_shape(op.w)[2:])
    return gemm_work(machine, _shape(op.x)[1], out[1], (out[0], *out[2:]), taps).tensor_ps


def _packed_weight(w: SSAValue, packing: Packing) -> SSAValue:
    """(outputs, channels, rows, columns) to (outputs, channels x rows x columns packed, rows x columns left)."""
    source = w.owner
    assert isinstance(source, (nn.WeightOp, nn.ConstOp))
    outputs, channels, *window = _shape(w)
    (rows, columns), (down, across) = packing.kernel, packing.taps
    builder = ConstBuilder()
    value = builder.take(w)
    missing = (down * rows - window[0], across * columns - window[1])
    if any(missing):
        value = builder.add(nn.PadOp(value, (0, 0, 0, 0), (0, 0, *missing)))
    if down > 1:
        value = builder.add(nn.ReshapeOp(value, (outputs, channels, down, rows, across, columns)))
        value = builder.add(nn.TransposeOp(value, (0, 1, 3, 5, 2, 4)))
    elif across > 1:
        value = builder.add(nn.ReshapeOp(value, (outputs, channels, rows, across, columns)))
        value = builder.add(nn.TransposeOp(value, (0, 1, 2, 4, 3)))
    value = builder.add(nn.ReshapeOp(value, (outputs, channels * rows * columns, down, across)))
    const = builder.finish(value, [source.location])
    const.results[0].name_hint = w.name_hint
    Rewriter.insert_op(const, InsertPoint.after(source))
    return const.results[0]


def _shape(value: SSAValue) -> tuple[int, ...]:
    return tuple(type_of(value).get_shape())
