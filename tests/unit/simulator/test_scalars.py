"""Inputs and outputs without dimensions run at every level."""

from __future__ import annotations

import numpy as np
import pytest

from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context, parse_module
from neuron_mlir.simulator.run import run_module

TEXT = """
func.func @main(%x: tensor<f32> {nn.name = "x"}, %y: tensor<4xf32> {nn.name = "y"})
    -> (tensor<4xf32> {nn.name = "sum"}, tensor<f32> {nn.name = "twice"}) {
  %0 = nn.add %x, %y : tensor<f32>, tensor<4xf32>
  %1 = nn.add %x, %x : tensor<f32>, tensor<f32>
  func.return %0, %1 : tensor<4xf32>, tensor<f32>
}
"""


@pytest.mark.parametrize("lowered", ["", "core-lower", "core-lower,core-allocate,core-schedule"])
def test_scalars(lowered: str) -> None:
    module = parse_module(TEXT, "scalars")
    for step in load_pipeline("nn-fuse,pipe-stage{cores=1}" + (f",{lowered}" if lowered else "")):
        step.apply(make_context(), module)
    feeds = [{"x": np.array(k, np.float32), "y": np.arange(4, dtype=np.float32)} for k in (3, -5)]
    for feed, outputs in zip(feeds, run_module(module, feeds).requests, strict=True):
        np.testing.assert_array_equal(outputs["sum"], feed["x"] + feed["y"])
        np.testing.assert_array_equal(outputs["twice"], 2 * feed["x"])
        assert outputs["twice"].shape == ()
