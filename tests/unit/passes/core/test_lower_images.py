"""Depth-first groups that take whole images, one or some at a time: the bits of the layers one by one (see `lowered`),
in maps that share SBUF.
"""

from __future__ import annotations

import pytest
from lowered import FINAL, LOWERED, PREPARE, Case, Net, apply, check, same
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.memory import AllocOp, buffer_bytes, space_name
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.dialects.pipe.ops import StageOp
from neuron_mlir.ir.machine_attr import machine_of
from neuron_mlir.machine import load_machine
from neuron_mlir.passes.estimate import is_constant, line_bytes
from neuron_mlir.passes.layouts import LARGE_BATCH_BYTES, LARGE_BYTES, is_large
from neuron_mlir.passes.nn.fuse_depth_first import make_group
from neuron_mlir.simulator.run import run_module


def _blocks(size: int, batch: int, count: int) -> Case:
    """Residual blocks behind a strided window, as in ResNet."""

    def build(net: Net) -> SSAValue:
        x = net(nn.MaxPoolOp(net.x(batch, 6, size, size), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1)))
        for _ in range(count):
            y = net(nn.ReluOp(net.conv(x, 4, 1, 1)))
            y = net(nn.ReluOp(net.conv(y, 4, 3, 3, pads=[1, 1, 1, 1])))
            x = net(nn.ReluOp(net(nn.AddOp(net.conv(y, 6, 1, 1), x))))
        return x

    return build


def _depthwise(net: Net) -> SSAValue:
    x = net.conv(net.x(3, 3, 11, 9), 8, 1, 1)
    x = net(nn.ReluOp(net.conv(x, 8, 3, 3, group=8, pads=[1, 1, 1, 1])))
    return net.conv(net(nn.ConcatOp([x, x], axis=1)), 4, 3, 3, pads=[1, 1, 1, 1])


CASES: dict[str, Case] = {
    "blocks": _blocks(13, 3, 2),
    "results in DRAM": _blocks(89, 9, 1),
    "depthwise": _depthwise,
}


def grouped(case: Case, images: int, parts: int = 1) -> tuple[Net, ModuleOp, nn.FusedOp]:
    """A net whose layers are one group, its tile a part of an image's rows."""
    net = Net()
    result = case(net)
    assert isinstance(result, SSAValue)
    module = net.module(result)
    apply(module, PREPARE.format(mode="all"))
    (stage,) = (op for op in module.walk() if isinstance(op, StageOp))
    layers = [op for op in list(stage.body.block.ops)[:-1] if not is_constant(op)]
    rows = type_of(layers[-1].results[0]).get_shape()[2]
    return net, module, make_group(layers, (images, -(-rows // parts)), False)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_whole_images_give_the_same_bits(name: str, images: int) -> None:
    net, module, _ = grouped(CASES[name], images)
    expected = run_module(module, net.inputs, weights=net).outputs
    apply(module, "core-lower")
    same(expected, run_module(module, net.inputs, weights=net).outputs)
    apply(module, "core-allocate,core-schedule")
    same(expected, run_module(module, net.inputs, weights=net, hazards=True).outputs)


def test_maps_of_an_image_share_bytes() -> None:
    """Kept for another step, every map has its line buffer; in one step, those that are not in use together share."""

    def sbuf(count: int, parts: int) -> int:
        _, module, _ = grouped(_blocks(61, 3, count), 1, parts)
        apply(module, "core-lower,core-allocate{depth=1}")
        allocs = [op for op in module.walk() if isinstance(op, AllocOp) and space_name(op.type.memory_space) == "sbuf"]
        return max((0 if op.address is None else op.address.value.data) + buffer_bytes(op.type) for op in allocs)

    assert sbuf(6, 1) < 1.5 * sbuf(2, 1)
    assert sbuf(6, 2) > 1.5 * sbuf(2, 2)


def test_the_estimate_counts_what_is_in_use_together() -> None:
    def counted(count: int, parts: int) -> int:
        _, module, group = grouped(_blocks(61, 3, count), 1, parts)
        return line_bytes(machine_of(module), group)

    assert counted(6, 1) == counted(3, 1)
    assert counted(6, 2) > 1.4 * counted(3, 2)


def test_a_batch_stays_in_sbuf_longer() -> None:
    machine = load_machine()
    net = Net()
    columns = (LARGE_BYTES + LARGE_BATCH_BYTES) // 2 // 8  # of which two rows of f32 are between the two
    alone, batch = net.x(1, 8, 2, columns), net.x(2, 8, 1, columns)
    assert is_large(machine, alone)
    assert not is_large(machine, batch)
    assert is_large(machine, net.x(4, 8, 1, columns))


def test_a_batch_whose_whole_maps_do_not_fit_goes_by_rows() -> None:
    """Three maps of 37 KiB meet in the sum, more than SBUF holds: they stay in DRAM, as those of one image would."""
    net = Net()
    x = net(nn.ReluOp(net.conv(net.x(6, 4, 56, 56), 6, 1, 1)))
    y = net(nn.ReluOp(net.conv(x, 6, 1, 1)))
    module = check(net, net(nn.AddOp(net.conv(y, 6, 1, 1), x)), forms=(LOWERED, FINAL))
    assert any(op.label.data == "rows" for op in module.walk() if isinstance(op, AllocOp))
