"""`nn-rematerialize`: values stay the same, SBUF holds what it is given, and decisions hold down to instructions."""

from __future__ import annotations

from functools import cache
from typing import Literal, cast

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation

from neuron_mlir.dialects import core, nn, pipe
from neuron_mlir.errors import NeuronError
from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.ir.dominance import check_dominance
from neuron_mlir.ir.machine_attr import record_machine
from neuron_mlir.machine import load_machine
from neuron_mlir.machine.cost import core_dma_bytes_per_s, service_ps
from neuron_mlir.models.unet import build_unet
from neuron_mlir.passes.estimate import TILE_BYTES
from neuron_mlir.passes.nn._pieces import pieces_of
from neuron_mlir.passes.nn._values import ValueGraph
from neuron_mlir.passes.nn.rematerialize import PLAN, NnRematerialize
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context, module_text, parse_module
from neuron_mlir.simulator.run import random_inputs, run_module
from neuron_mlir.weights.onnx_store import OnnxStore

BEFORE = "nn-fold-constants,nn-fold-batch-norm,canonicalize,cse,dce,nn-fuse,nn-cast"
AFTER = "core-lower,core-allocate,core-schedule"
UNET = build_unet(size=96, width=0.0625)
"""Few channels, but maps as large in a partition as those of the full network."""


def apply(module: ModuleOp, passes: str) -> ModuleOp:
    for step in load_pipeline(passes):
        step.apply(make_context(), module)
    module.verify()
    check_dominance(module)
    return module


@cache
def unet_text() -> str:
    return module_text(apply(import_model(UNET), BEFORE))


def unet() -> ModuleOp:
    return parse_module(unet_text(), "unet")


def run(module: ModuleOp) -> dict[str, np.ndarray]:
    return dict(run_module(module, random_inputs(module, 3), weights=OnnxStore(UNET)).outputs)


def count(module: ModuleOp, kind: type[Operation]) -> int:
    return sum(isinstance(op, kind) for op in module.walk())


@cache
def unet_values() -> dict[str, np.ndarray]:
    return run(unet())


@pytest.mark.parametrize("mode", ["both", "spill"])
@pytest.mark.parametrize("percent", [85, 50])
def test_a_unet_gives_the_same_bits_with_less_sbuf(mode: Literal["both", "spill"], percent: int) -> None:
    module = unet()
    step = NnRematerialize(percent=percent, mode=mode)
    step.apply(make_context(), module)
    apply(module, "canonicalize,cse,dce")
    statistics = step.statistics
    written = cast(int, statistics["spilled"]) + cast(int, statistics["written-directly"])
    assert count(module, nn.SpillOp) >= written > 0
    assert cast(int, statistics["peak-after"]) <= cast(int, statistics["budget"])
    assert cast(int, statistics["peak-before"]) > cast(int, statistics["budget"])
    np.testing.assert_equal(run(module), unet_values())


def test_what_does_not_fit_a_small_machine_does() -> None:
    """Half of the peak is too little for the allocator and its own spills, but not for decided values."""
    peak = 56072
    kept, lean = unet(), unet()
    for module in (kept, lean):
        record_machine(module, load_machine(overrides={"sbuf.bytes_per_partition": peak // 2}))
    with pytest.raises(NeuronError, match="does not fit the SBUF"):
        apply(kept, f"pipe-stage{{cores=1}},{AFTER}")
    apply(lean, f"pipe-stage{{cores=1}},nn-rematerialize{{budget={peak // 2 - 2048}}},{AFTER}")
    (stage,) = [op for op in lean.walk() if isinstance(op, pipe.StageOp)]
    assert isinstance(stage.attributes[PLAN], pipe.CertificateAttr)
    expected, actual = unet_values(), run(lean)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=0.05, atol=0.05 * float(np.abs(value).max()))


SKIP = """
func.func @main(%x: tensor<1x64x24x24xbf16>) -> tensor<1x64x24x24xf32> {
  %w = nn.weight "w" seeded<1> : tensor<256x64x1x1xbf16>
  %v = nn.weight "v" seeded<2> : tensor<64x256x1x1xbf16>
  %a = nn.relu %x : tensor<1x64x24x24xbf16>
  %ac = nn.cast %a : (tensor<1x64x24x24xf32>) -> tensor<1x64x24x24xbf16>
  %s = nn.transpose %ac perm [0, 1, 3, 2] : (tensor<1x64x24x24xbf16>) -> tensor<1x64x24x24xbf16>
  %b = nn.conv %ac, %w : (tensor<1x64x24x24xbf16>, tensor<256x64x1x1xbf16>) -> tensor<1x256x24x24xf32>
  %c = nn.relu %b : tensor<1x256x24x24xf32>
  %cc = nn.cast %c : (tensor<1x256x24x24xf32>) -> tensor<1x256x24x24xbf16>
  %d = nn.conv %cc, %v : (tensor<1x256x24x24xbf16>, tensor<64x256x1x1xbf16>) -> tensor<1x64x24x24xf32>
  %e = nn.add %s, %d : tensor<1x64x24x24xbf16>, tensor<1x64x24x24xf32>
  func.return %e : tensor<1x64x24x24xf32>
}
"""


@pytest.mark.parametrize("mode", ["both", "spill", "recompute"])
def test_views_follow_what_they_are_of(mode: Literal["both", "spill", "recompute"]) -> None:
    """A transpose of a value that comes back is a transpose of the copy; lowered, all is where it should be."""
    module = parse_module(SKIP, "skip")
    inputs = random_inputs(module, 1)
    expected = run_module(module, inputs).outputs
    NnRematerialize(percent=94, mode=mode).apply(make_context(), module)
    apply(module, "canonicalize,cse,dce")
    recomputed = sum("nn.recomputed" in op.attributes for op in module.walk())
    assert (recomputed > 0) == (mode != "spill")
    assert (count(module, nn.SpillOp) > 0) == (mode == "spill")
    np.testing.assert_equal(run_module(module, inputs).outputs, expected)
    apply(module, f"pipe-stage{{cores=1}},{AFTER}")
    spills = [op for op in module.walk() if isinstance(op, core.AllocOp) and ".spill" in str(op.label)]
    assert bool(spills) == (mode == "spill")
    for name, value in run_module(module, inputs).outputs.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-3)


LAYERS = """
func.func @main(%x: tensor<1x16x40x40xbf16>) -> tensor<1x8x40x40xf32> {
  %w = nn.weight "w" seeded<1> : tensor<16x16x3x3xbf16>
  %v = nn.weight "v" seeded<2> : tensor<16x8x2x2xbf16>
  %u = nn.weight "u" seeded<3> : tensor<16x1x3x3xf32>
  %t = nn.weight "t" seeded<4> : tensor<8x40x3x3xbf16>
  %b = nn.conv %x, %w pads [1, 1, 1, 1] : (tensor<1x16x40x40xbf16>, tensor<16x16x3x3xbf16>) -> tensor<1x16x40x40xf32>
  %c = nn.cast %b : (tensor<1x16x40x40xf32>) -> tensor<1x16x40x40xbf16>
  %d = nn.add %x, %c : tensor<1x16x40x40xbf16>, tensor<1x16x40x40xbf16>
  %e = nn.max_pool %d kernel [2, 2] strides [2, 2] : (tensor<1x16x40x40xf32>) -> tensor<1x16x20x20xf32>
  %f = nn.conv %e, %u pads [1, 1, 1, 1] group 16
    : (tensor<1x16x20x20xf32>, tensor<16x1x3x3xf32>) -> tensor<1x16x20x20xf32>
  %g = nn.cast %f : (tensor<1x16x20x20xf32>) -> tensor<1x16x20x20xbf16>
  %h = nn.resize %g scales [2, 2] : (tensor<1x16x20x20xbf16>) -> tensor<1x16x40x40xbf16>
  %i = nn.conv_transpose %g, %v strides [2, 2]
    : (tensor<1x16x20x20xbf16>, tensor<16x8x2x2xbf16>) -> tensor<1x8x40x40xf32>
  %j = nn.cast %i : (tensor<1x8x40x40xf32>) -> tensor<1x8x40x40xbf16>
  %k = nn.concat %c, %h, %j axis 1
    : (tensor<1x16x40x40xbf16>, tensor<1x16x40x40xbf16>, tensor<1x8x40x40xbf16>) -> tensor<1x40x40x40xbf16>
  %l = nn.conv %k, %t pads [1, 1, 1, 1] : (tensor<1x40x40x40xbf16>, tensor<8x40x3x3xbf16>) -> tensor<1x8x40x40xf32>
  %m = nn.cast %l : (tensor<1x8x40x40xf32>) -> tensor<1x8x40x40xbf16>
  %n = nn.avg_pool %m kernel [3, 3] strides [1, 1] pads [1, 1, 1, 1]
    : (tensor<1x8x40x40xbf16>) -> tensor<1x8x40x40xf32>
  func.return %n : tensor<1x8x40x40xf32>
}
"""


@pytest.mark.parametrize("percent", [60, 45])
def test_layers_of_all_kinds_work_from_and_to_dram(percent: int) -> None:
    """As values, and as instructions on a machine with no more SBUF than that and a little for constants."""
    module = parse_module(LAYERS, "layers")
    inputs = random_inputs(module, 1)
    expected = run_module(module, inputs).outputs
    step = NnRematerialize(percent=percent)
    step.apply(make_context(), module)
    assert cast(int, step.statistics["written-directly"]) > 0 and cast(int, step.statistics["read-directly"]) > 0
    np.testing.assert_equal(run_module(module, inputs).outputs, expected)
    budget = cast(int, step.statistics["budget"])
    record_machine(module, load_machine(overrides={"sbuf.bytes_per_partition": budget + 2048}))
    apply(module, f"pipe-stage{{cores=1}},{AFTER}")
    for name, value in run_module(module, inputs).outputs.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-2, atol=1e-2 * float(np.abs(value).max()))


def test_a_spill_across_a_cut_is_a_stream() -> None:
    module = parse_module(SKIP, "skip")
    inputs = random_inputs(module, 1)
    expected = run_module(module, inputs).outputs
    apply(module, f"nn-rematerialize{{percent=94 mode=spill}},pipe-stage{{cores=2}},{AFTER}")
    for name, value in run_module(module, inputs).outputs.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-3)


def test_the_smallest_budget_is_named() -> None:
    with pytest.raises(NeuronError) as caught:
        NnRematerialize(budget=3000).apply(make_context(), unet())
    assert caught.value.available == 3000
    needed = caught.value.needed
    assert isinstance(needed, int) and needed > 3000
    NnRematerialize(budget=needed).apply(make_context(), unet())


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (NnRematerialize(budget=1000, percent=50), "one of the options"),
        (NnRematerialize(percent=0), "1 to 100"),
    ],
)
def test_options_are_checked(step: NnRematerialize, text: str) -> None:
    with pytest.raises(NeuronError, match=text):
        step.apply(make_context(), unet())


def test_it_runs_once_and_before_buffers() -> None:
    module = unet()
    NnRematerialize(percent=80).apply(make_context(), module)
    with pytest.raises(NeuronError, match="already"):
        NnRematerialize(percent=80).apply(make_context(), module)
    module = apply(unet(), "pipe-stage{cores=1},core-lower")
    with pytest.raises(NeuronError, match="buffers already"):
        NnRematerialize(percent=80).apply(make_context(), module)


def test_without_a_budget_what_does_not_fit_is_left_alone() -> None:
    module = unet()
    record_machine(module, load_machine(overrides={"sbuf.bytes_per_partition": 3000}))
    text = module_text(module)
    step = NnRematerialize()
    step.apply(make_context(), module)
    assert step.statistics["left"] == 1
    assert module_text(module) == text


@pytest.mark.parametrize(("channels", "again"), [(256, False), (1024, True)])
def test_smaller_tiles_read_a_weight_that_does_not_stay_again(channels: int, again: bool) -> None:
    x, w = f"tensor<1x{channels}x80x80xf32>", f"tensor<{channels}x{channels}x3x3xf32>"
    text = f"""
    func.func @f(%x: {x}) -> {x} {{
      %w = nn.weight "w" splat<0.5> : {w}
      %y = nn.conv %x, %w pads [1, 1, 1, 1] : ({x}, {w}) -> {x}
      func.return %y : {x}
    }}"""
    module = parse_module(text, "tiles")
    (function,) = (op for op in module.ops if isinstance(op, FuncOp))
    machine = load_machine()
    graph = ValueGraph.of(function, function.body.block, machine)
    item = next(item for item in graph.items if item.estimate is not None and graph.in_tiles(item))
    found, smaller = (pieces_of(item.ops[0], item.roots[0], size) for size in (TILE_BYTES, TILE_BYTES // 2))
    assert found is not None and smaller is not None and smaller.tiles > found.tiles
    weight = service_ps(channels * channels * 9 * 4 // 2, core_dma_bytes_per_s(machine))
    added = graph.overhead_ps(machine.sbuf.bytes_per_partition, TILE_BYTES // 2, 2)
    assert (added > (smaller.tiles - found.tiles) * weight // 2) == again
