"""`nn-replicate-inputs`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.memory import element_bytes
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
WORTH_PERCENT = 10
"""How much faster another choice must be for a layer in a stage of its own."""
UNEVEN = 2
"""How many times its even share of the TensorEngine's time a stage may take: stages are not even, engines not always at
work.
"""


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
    choice is the longer of the TensorEngine's time and that of the DMA engines, from the machine's cost functions. In a
    network that is cut over many `cores`, the convolution has a stage nearly for itself: then its DMA engines also
    bring the input and send what leaves the stage, and fewer copies may be cheaper.

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
    cores: int = option(
        1,
        "cores that the network will be cut over: with more, what enters and leaves a stage is DMA as well as packing",
    )

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        machine = machine_of(op)
        for block in list(nn_blocks(op)):
            convolutions = [inner for inner in block.ops if isinstance(inner, nn.ConvOp)]
            share = 0
            if self.cores > 1 and any(_packings(machine, inner) for inner in convolutions):
                share = UNEVEN * sum(_least_ps(machine, inner) for inner in block.ops) // self.cores
            for inner in convolutions:
                packing = best_packing(machine, inner)
                if packing is None or packing.cost_ps * self.gain > _tensor_ps(machine, inner):
                    continue
                self._pack(inner, _for_stage(machine, inner, packing, share) if share else packing)
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
    return min(_choices(machine, op), key=lambda packing: (packing.cost_ps, packing.kernel), default=None)


def _for_stage(machine: Machine, op: nn.ConvOp, alone: Packing, share: int) -> Packing:
    """The way to pack a convolution whose stage takes about `share` ps: `alone`, the best without a stage, unless
    another one is better by `WORTH_PERCENT`.
    """
    choices = _choices(machine, op, _stage_bytes(machine, op, share))
    best = min(choices, key=lambda packing: (packing.cost_ps, packing.kernel))
    same = next(packing for packing in choices if packing.kernel == alone.kernel)
    return best if best.cost_ps * 100 <= same.cost_ps * (100 - WORTH_PERCENT) else same


def _choices(machine: Machine, op: nn.ConvOp, beside: int = 0) -> list[Packing]:
    """All ways to pack a convolution, for which DMA moves `beside` bytes, too."""
    x, out = _shape(op.x), _shape(op.result)
    found: list[Packing] = []
    for rows, columns in _packings(machine, op):
        packed = x[1] * rows.packed * columns.packed
        run = columns.size * ITEM_BYTES
        moved = dma_bytes_charged(machine, run, x[0] * packed * rows.size * run)
        taps = rows.taps * columns.taps
        cost = max(
            gemm_work(machine, packed, out[1], (out[0], *out[2:]), taps).tensor_ps,
            service_ps(moved + beside, core_dma_bytes_per_s(machine)),
        )
        pads = (op.pads[0], op.pads[1], rows.after, columns.after)
        left, dilations = (rows.taps, columns.taps), (rows.dilation, columns.dilation)
        found.append(Packing((rows.packed, columns.packed), left, dilations, pads, cost))
    return found


def _packings(machine: Machine, op: nn.ConvOp) -> list[tuple[_Part, _Part]]:
    """The ways to pack a convolution, along rows and along columns."""
    x, w = _shape(op.x), _shape(op.w)
    if len(w) != 4 or op.group != 1 or any(d != 1 for d in op.dilations) or not is_constant(op.w):
        return []
    ways = itertools.product(_parts(op, 0), _parts(op, 1))
    return [(a, b) for a, b in ways if x[1] < x[1] * a.packed * b.packed <= machine.tensor_engine.rows]


def _stage_bytes(machine: Machine, op: nn.ConvOp, share: int) -> int:
    """What DMA moves of the maps of a stage that begins with a convolution and takes about `share` ps: what it reads,
    and the least that leaves a stage of it and layers behind it.
    """
    block = op.parent_block()
    assert block is not None
    spent, least = _least_ps(machine, op), _map_bytes(op.result)
    alive: list[SSAValue] = [op.result]
    seen: set[Operation] = {op}
    for layer in block.ops:
        if layer is op or not any(operand in alive for operand in layer.operands):
            continue
        spent += _least_ps(machine, layer)
        if spent > share or not layer.results:
            break
        seen.add(layer)
        alive = [v for v in (*alive, *layer.results) if any(use.operation not in seen for use in v.uses)]
        least = min(least, sum(map(_map_bytes, alive)))
    return _map_bytes(op.x) + least


def _map_bytes(value: SSAValue) -> int:
    """Bytes of a map as it goes from core to core; an input of the network has the type it has."""
    entering = not isinstance(value.owner, Operation)
    return math.prod(_shape(value)) * (element_bytes(type_of(value).element_type) if entering else ITEM_BYTES)


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


def _least_ps(machine: Machine, op: Operation) -> int:
    """Time of a layer, packed if that is faster."""
    plain = _tensor_ps(machine, op)
    packing = best_packing(machine, op) if isinstance(op, nn.ConvOp) else None
    return plain if packing is None else min(plain, packing.cost_ps)


def _tensor_ps(machine: Machine, op: Operation) -> int:
    """TensorEngine time of a convolution, tap by tap, or a product; 0 for other layers."""
    if isinstance(op, nn.ConvOp):
        x, w, out = _shape(op.x), _shape(op.w), _shape(op.result)
        return gemm_work(machine, x[1], out[1], (out[0], *out[2:]), math.prod(w[2:])).tensor_ps
    if isinstance(op, nn.MatmulOp):
        left, out = _shape(op.lhs), _shape(op.result)
        return gemm_work(machine, left[-1], out[-1], out[:-1]).tensor_ps
    return 0


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
