"""Stopping after any pass, printing, parsing and going on gives the same bytes as not stopping."""

from __future__ import annotations

from functools import cache

import pytest
from reading import parse
from xdsl.passes import ModulePass
from xdsl.universe import Universe

from neuron_mlir.ir.dominance import check_dominance
from neuron_mlir.passes.pipelines import Neuron
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.tools._instrument import ir_text
from neuron_mlir.tools._passes import parse_steps

PIPELINE = Neuron(cores=2).expand()
NETWORK = """
func.func @main(%x: tensor<1x3x16x16xf32> {nn.name = "data"}) -> (tensor<1x10xf32> {nn.name = "prob"}) {
  %w1 = nn.weight "w1" seeded<1> : tensor<16x3x3x3xf32> loc("conv1")
  %b1 = nn.weight "b1" splat<0.5> : tensor<16xf32> loc("conv1")
  %c1 = nn.conv %x, %w1, %b1 pads [1, 1, 1, 1] : (tensor<1x3x16x16xf32>, tensor<16x3x3x3xf32>, tensor<16xf32>) -> tensor<1x16x16x16xf32> loc("conv1")
  %r1 = nn.relu %c1 : tensor<1x16x16x16xf32> loc("relu1")
  %w2 = nn.weight "w2" seeded<2> : tensor<16x16x3x3xf32> loc("conv2")
  %c2 = nn.conv %r1, %w2 pads [1, 1, 1, 1] : (tensor<1x16x16x16xf32>, tensor<16x16x3x3xf32>) -> tensor<1x16x16x16xf32> loc("conv2")
  %scale = nn.weight "scale" splat<1.5> : tensor<16xf32> loc("bn2")
  %shift = nn.weight "shift" splat<0.1> : tensor<16xf32> loc("bn2")
  %n2 = nn.batch_norm %c2, %scale, %shift, %shift, %scale eps 1.0e-05 : (tensor<1x16x16x16xf32>, tensor<16xf32>, tensor<16xf32>, tensor<16xf32>, tensor<16xf32>) -> tensor<1x16x16x16xf32> loc("bn2")
  %s2 = nn.add %n2, %r1 : tensor<1x16x16x16xf32>, tensor<1x16x16x16xf32> loc("add2")
  %r2 = nn.relu %s2 : tensor<1x16x16x16xf32> loc("relu2")
  %p3 = nn.reduce_mean %r2 axes [2, 3] : (tensor<1x16x16x16xf32>) -> tensor<1x16xf32> loc("pool3")
  %w3 = nn.weight "w3" seeded<3> : tensor<16x10xf32> loc("fc3")
  %m3 = nn.matmul %p3, %w3 : (tensor<1x16xf32>, tensor<16x10xf32>) -> tensor<1x10xf32> loc("fc3")
  %y = nn.softmax %m3 axis 1 : (tensor<1x10xf32>) -> tensor<1x10xf32> loc("prob")
  func.return %y : tensor<1x10xf32>
}
"""  # noqa: E501


def passes() -> list[ModulePass]:
    return [step.instance for step in parse_steps(Universe.get_multiverse().all_passes, PIPELINE)]


@cache
def texts() -> list[str]:
    """The module before the first pass and after each."""
    module, ctx = parse(NETWORK), make_context()
    found = [ir_text(module, debuginfo=True)]
    for instance in passes():
        instance.apply(ctx, module)
        module.verify()
        check_dominance(module)
        found.append(ir_text(module, debuginfo=True))
    return found


@pytest.mark.parametrize("stop", range(PIPELINE.count(",") + 1))
def test_going_on_from_text(stop: int) -> None:
    module, ctx = parse(texts()[stop]), make_context()
    assert ir_text(module, debuginfo=True) == texts()[stop], "printed text does not parse to itself"
    for position, instance in enumerate(passes()[stop:], stop + 1):
        instance.apply(ctx, module)
        assert ir_text(module, debuginfo=True) == texts()[position], f"after {instance.name}"


def test_names_of_nodes_reach_the_last_instruction() -> None:
    final = texts()[-1]
    for name in ("conv1", "conv2", "fc3", "prob"):
        assert f'"{name}"' in final.replace("fused[", ""), name
