"""Groups that run depth first compute what their layers compute one after the other, to the same bits on whole numbers:
see `lowered`. Maps of a few wide rows are large enough for DRAM, and quick to compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered import PREPARE, Case, Net, apply, same
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.dialects.pipe.ops import StageOp
from neuron_mlir.passes.depth_first_rows import why_not
from neuron_mlir.passes.estimate import is_constant
from neuron_mlir.passes.nn.fuse_depth_first import make_group
from neuron_mlir.runtime.modules import parse_module
from neuron_mlir.simulator.run import run_module

WIDE = 700
"""Columns with which 16 rows of one tile of channels take more than 20 KiB."""
PACK = "nn-replicate-inputs{gain=0},"


def pool(x: SSAValue, kernel: int = 3, stride: int = 1, pad: int = 1, mean: bool = False) -> nn.PoolOp:
    kind = nn.AvgPoolOp if mean else nn.MaxPoolOp
    return kind(x, [kernel, kernel], strides=[stride, stride], pads=[pad] * 4)


def _window(pad: int, stride: int = 1) -> dict[str, Any]:
    return {"pads": [pad] * 4, "strides": [stride, stride]}


def _chain(rows: int, columns: int, batch: int = 1) -> Case:
    def build(net: Net) -> SSAValue:
        x = net(nn.ReluOp(net.conv(net.x(batch, 4, rows, columns), 6, 3, 3, **_window(1))))
        return net.conv(net(pool(x)), 5, 1, 1)

    return build


def _strides(rows: int, columns: int) -> Case:
    def build(net: Net) -> SSAValue:
        x = net.conv(net.x(1, 3, rows, columns), 6, 3, 3, **_window(1, 2))
        return net.conv(net(pool(x, 3, 2, 1)), 4, 2, 2, strides=[2, 2])

    return build


def _residual(rows: int, columns: int, batch: int = 1) -> Case:
    def build(net: Net) -> SSAValue:
        x = net.x(batch, 4, rows, columns)
        y = net(nn.ReluOp(net.conv(x, 4, 1, 1)))
        y = net.conv(y, 4, 3, 3, **_window(1))
        y = net(nn.ReluOp(net(nn.AddOp(y, x))))
        z = net.conv(y, 4, 3, 3, **_window(1))
        return net(nn.AddOp(z, y))

    return build


def _branches(rows: int, columns: int) -> Case:
    """As in Inception: branches of several reaches joined along the channels."""

    def build(net: Net) -> SSAValue:
        x = net.x(1, 4, rows, columns)
        wide = net.conv(net.conv(x, 3, 1, 1), 5, 5, 5, **_window(2))
        return net(nn.ConcatOp([net.conv(x, 2, 1, 1), wide, net(pool(x))], axis=1))

    return build


def _depthwise(rows: int, columns: int) -> Case:
    def build(net: Net) -> SSAValue:
        x = net.conv(net.x(1, 3, rows, columns), 8, 1, 1)
        x = net(nn.ReluOp(net.conv(x, 8, 3, 3, group=8, **_window(1))))
        return net.conv(x, 4, 1, 1)

    return build


def _many_channels(net: Net) -> SSAValue:
    x = net.conv(net.x(1, 130, 7, 6), 150, 3, 3, **_window(1))
    return net.conv(net(nn.ReluOp(x)), 140, 3, 3, **_window(1))


def _two_results(net: Net) -> list[SSAValue]:
    x = net.conv(net.x(1, 4, 12, WIDE), 4, 3, 3, **_window(1))
    return [x, net(pool(x, 3, 2, 1))]


def _up(net: Net, x: SSAValue, outputs: int, *kernel: int, **keys: Any) -> SSAValue:
    weight = net.w(type_of(x).get_shape()[1], outputs, *kernel)
    return net(nn.ConvTransposeOp(x, weight, net.w(outputs), **keys))


def _transposed(*kernel: int, **keys: Any) -> Case:
    def build(net: Net) -> SSAValue:
        x = net(nn.ReluOp(net.conv(net.x(1, 4, 9, 6), 6, 3, 3, **_window(1))))
        y = net(nn.ReluOp(_up(net, x, 5, *kernel, **keys)))
        return net.conv(y, 4, 3, 3, **_window(1))

    return build


def _unet(rows: int, columns: int) -> Case:
    def build(net: Net) -> SSAValue:
        skip = net(nn.ReluOp(net.conv(net.x(1, 3, rows, columns), 4, 3, 3, **_window(1))))
        y = net(nn.ReluOp(net.conv(net(pool(skip, 2, 2, 0)), 6, 3, 3, **_window(1))))
        y = net(nn.ConcatOp([skip, _up(net, y, 4, 2, 2, strides=[2, 2])], axis=1))
        return net(nn.ReluOp(net.conv(y, 4, 3, 3, **_window(1))))

    return build


def _pyramid(rows: int, columns: int) -> Case:
    def build(net: Net) -> SSAValue:
        x = net.x(1, 6, rows, columns)
        y = net(nn.LeakyReluOp(net.conv(x, 8, 3, 3, **_window(1, 2)), 0.125))
        y = net(nn.ResizeOp(net.conv(y, 5, 1, 1), [2, 2]))
        return net.conv(net(nn.ConcatOp([y, x], axis=1)), 4, 3, 3, **_window(1))

    return build


CASES: dict[str, Case] = {
    "chain": _chain(11, 9),
    "chain, large": _chain(17, WIDE),
    "chain, batch": _chain(7, 6, batch=3),
    "strides": _strides(37, 16),
    "strides, large": _strides(24, WIDE),
    "residual": _residual(10, 8, batch=2),
    "residual, large": _residual(16, WIDE),
    "branches": _branches(11, 10),
    "branches, large": _branches(16, WIDE),
    "depthwise": _depthwise(13, 9),
    "depthwise, large": _depthwise(16, WIDE),
    "mean": lambda net: net(pool(net(nn.ReluOp(net(pool(net.x(1, 4, 9, 8))))), 2, 2, 0, mean=True)),
    "many channels": _many_channels,
    "two results": _two_results,
}
UPSAMPLING: dict[str, Case] = {
    "2x2 stride 2 transposed": _transposed(2, 2, strides=[2, 2]),
    "3x3 stride 2 transposed": _transposed(3, 3, **_window(1, 2), output_padding=[1, 1]),
    "3x3 stride 2 transposed, odd": _transposed(3, 3, **_window(1, 2)),
    "4x4 stride 2 transposed": _transposed(4, 4, **_window(1, 2)),
    "5x5 stride 3 transposed": _transposed(5, 5, strides=[3, 3], pads=[2, 0, 1, 3], output_padding=[2, 0]),
    "short kernel transposed": _transposed(1, 2, strides=[3, 3]),
    "3x2 stride 1 2 transposed": _transposed(3, 2, strides=[1, 2], pads=[0, 1, 2, 0]),
    "unet": _unet(12, 8),
    "unet, large": _unet(16, WIDE),
    "pyramid": _pyramid(12, 10),
    "pyramid, large": _pyramid(20, WIDE),
}


def group_all(module: ModuleOp, tile: tuple[int, int], recompute: bool) -> list[nn.FusedOp]:
    """Make one group of each longest run of layers that go by rows."""
    (stage,) = (op for op in module.walk() if isinstance(op, StageOp))
    runs: list[list[Operation]] = [[]]
    for op in list(stage.body.block.ops)[:-1]:
        if is_constant(op):
            continue
        if why_not(op) is None:
            runs[-1].append(op)
        else:
            runs.append([])
    return [make_group(run, tile, recompute) for run in runs if run]


def check(case: Case, tile: tuple[int, int], recompute: bool, *, before: str = "", final: bool = False) -> None:
    """Compare the layers one by one with the lowered group."""
    net = Net()
    found = case(net)
    results = [found] if isinstance(found, SSAValue) else list(found)
    module = net.module(*results)
    apply(module, before + PREPARE.format(mode="all"))
    expected = run_module(module, net.inputs, weights=net).outputs
    groups = group_all(module, tile, recompute)
    assert groups
    module.verify()
    module = parse_module(str(module), "again")
    same(expected, run_module(module, net.inputs, weights=net).outputs)
    apply(module, "core-lower,core-allocate,core-schedule" if final else "core-lower")
    same(expected, run_module(module, net.inputs, weights=net, hazards=True if final else "auto").outputs)


@pytest.mark.parametrize(("rows", "recompute"), [(1, True), (3, False)], ids=["recompute", "keep"])
@pytest.mark.parametrize("name", CASES)
def test_groups_give_the_same_bits(name: str, rows: int, recompute: bool) -> None:
    check(CASES[name], (1, rows), recompute)


@pytest.mark.parametrize(("rows", "recompute"), [(1, True), (3, False)], ids=["recompute", "keep"])
@pytest.mark.parametrize("name", UPSAMPLING)
def test_upsampling_gives_the_same_bits(name: str, rows: int, recompute: bool) -> None:
    check(UPSAMPLING[name], (1, rows), recompute)


@pytest.mark.parametrize("name", ["chain", "residual"])
def test_several_images_go_together(name: str) -> None:
    check(CASES[name], (2, 3), False)


@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("name", ["residual", "strides, large", "two results", "unet", "pyramid, large"])
def test_engines_keep_in_step(name: str, recompute: bool) -> None:
    check((CASES | UPSAMPLING)[name], (1, 3), recompute, final=True)


def _packed(rows: int, columns: int, batch: int = 1) -> Case:
    def build(net: Net) -> SSAValue:
        x = net(nn.ReluOp(net.conv(net.x(batch, 3, rows, columns), 8, 7, 7, **_window(3, 2))))
        return net.conv(net(pool(x, 3, 2, 1)), 4, 1, 1)

    return build


@pytest.mark.parametrize(("rows", "columns", "tile"), [(20, 16, 4), (33, 21, 1), (40, WIDE, 4), (300, 21, 20)])
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
def test_a_packed_convolution_begins_a_group(rows: int, columns: int, tile: int, recompute: bool) -> None:
    check(_packed(rows, columns), (1, tile), recompute, before=PACK)


def test_a_packed_convolution_adds_another_map() -> None:
    inner = """
        %u = nn.unfold %x kernel [1, 3] pads [1, 1, 1, 1] : (tensor<1x3x40x700xbf16>) -> tensor<1x9x42x700xbf16>
        %c = nn.conv %u, %w : (tensor<1x9x42x700xbf16>, tensor<6x9x3x1xbf16>) -> tensor<1x6x40x700xf32>
        %a = nn.add %c, %y : tensor<1x6x40x700xf32>, tensor<1x6x40x700xf32>
        nn.yield %a : tensor<1x6x40x700xf32>"""
    types = "(tensor<1x3x40x700xbf16>, tensor<6x9x3x1xbf16>, tensor<1x6x40x700xf32>) -> tensor<1x6x40x700xf32>"
    arguments = "%x: tensor<1x3x40x700xbf16>, %w: tensor<6x9x3x1xbf16>, %y: tensor<1x6x40x700xf32>"
    module = parse_module(
        f"""func.func @main(%p: tensor<1x3x40x700xbf16> {{nn.name = "x"}}, %q: tensor<1x6x40x700xf32> {{nn.name = "y"}})
          -> (tensor<1x6x40x700xf32> {{nn.name = "z"}}) {{
        %v = nn.weight "w" splat<0.5> : tensor<6x9x3x1xbf16>
        %z = nn.fused "depth-first" (%p, %v, %q) tile [1, 8] {{
        ^bb0({arguments.replace("%", "%o")}):
          %f = nn.fused "conv" (%ox, %ow, %oy) {{
          ^bb1({arguments}): {inner}
          }} : {types}
          nn.yield %f : tensor<1x6x40x700xf32>
        }} : {types}
        func.return %z : tensor<1x6x40x700xf32> }}""",
        "packed",
    )
    numbers = np.random.default_rng(0)
    shapes = {"x": (1, 3, 40, 700), "y": (1, 6, 40, 700)}
    inputs = {name: numbers.integers(-4, 5, shape).astype(np.float32) for name, shape in shapes.items()}
    expected = run_module(module, inputs).outputs
    apply(module, "pipe-stage{cores=1},core-lower")
    same(expected, run_module(module, inputs).outputs)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("rows", "columns", "tile"), [(33, 21, 2), (300, 21, 20)])
def test_packing_runs_ahead_over_images(rows: int, columns: int, tile: int, images: int) -> None:
    check(_packed(rows, columns, 3), (images, tile), False, before=PACK, final=True)


layer = st.sampled_from(
    ["conv1", "conv3", "conv5", "strided", "depthwise", "pool", "relu", "add", "concat", "resize", "up"]
)


@settings(max_examples=8, deadline=None)
@given(st.lists(layer, min_size=2, max_size=5), st.integers(5, 12), st.integers(1, 5), st.booleans(), st.data())
def test_random_networks(kinds: list[str], height: int, rows: int, recompute: bool, data: st.DataObject) -> None:
    def build(net: Net) -> SSAValue:
        known = [net.x(1, 3, height, 7, low=-1, high=1)]
        for kind in kinds:
            last = known[-1]
            shape = type_of(last).get_shape()
            if kind.startswith("conv"):
                size = int(kind[4:])
                made = net.conv(last, 3, size, size, **_window(size // 2))
            elif kind == "strided":
                made = net.conv(last, 4, 3, 3, **_window(1, 2))
            elif kind == "depthwise":
                made = net.conv(last, shape[1], 3, 3, group=shape[1], **_window(1))
            elif kind == "pool":
                made = net(pool(last))
            elif kind == "relu":
                made = net(nn.ReluOp(last))
            elif kind == "resize" and shape[2] < 20:
                made = net(nn.ResizeOp(last, [2, 1]))
            elif kind in ("up", "resize"):
                made = _up(net, last, 3, 3, 3, pads=[1] * 4, strides=[2 if shape[2] < 20 else 1, 1])
            elif kind == "add":
                same_shape = [v for v in known if type_of(v).get_shape() == shape]
                made = net(nn.AddOp(last, data.draw(st.sampled_from(same_shape))))
            else:
                near = [v for v in known if type_of(v).get_shape()[2:] == shape[2:]]
                made = net(nn.ConcatOp([last, data.draw(st.sampled_from(near))], axis=1))
            known.append(made)
        return known[-1]

    check(build, (1, rows), recompute)
