"""One network at every level of the IR gives one answer; inputs are checked; random inputs fit."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reading import parse

from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.run import input_types, output_types, random_inputs, run_module
from neuron_mlir.weights import DictStore

Arrays = dict[str, NDArray[Any]]

NN = """
func.func @main(%x: tensor<128x96xf32> {nn.name = "data"}) -> (tensor<64x96xf32> {nn.name = "score"}) {
  %w = nn.weight "w" : tensor<64x128xbf16>
  %xb = nn.cast %x : (tensor<128x96xf32>) -> tensor<128x96xbf16>
  %y = nn.matmul %w, %xb : (tensor<64x128xbf16>, tensor<128x96xbf16>) -> tensor<64x96xf32>
  %z = nn.relu %y : tensor<64x96xf32>
  func.return %z : tensor<64x96xf32>
}
"""

STAGED = """
pipe.program @p {
  %a = pipe.input "data" : !pipe.stream<tensor<128x96xf32>>
  %b = pipe.stage @s0 cores [0] (%a) {
  ^bb0(%x: tensor<128x96xf32>):
    %xb = nn.cast %x : (tensor<128x96xf32>) -> tensor<128x96xbf16>
    pipe.yield %xb : tensor<128x96xbf16>
  } -> (!pipe.stream<tensor<128x96xbf16>>)
  %c = pipe.stage @s1 cores [1] (%b) {
  ^bb0(%x: tensor<128x96xbf16>):
    %w = nn.weight "w" : tensor<64x128xbf16>
    %y = nn.matmul %w, %x : (tensor<64x128xbf16>, tensor<128x96xbf16>) -> tensor<64x96xf32>
    %z = nn.relu %y : tensor<64x96xf32>
    pipe.yield %z : tensor<64x96xf32>
  } -> (!pipe.stream<tensor<64x96xf32>>)
  pipe.output "score", %c : !pipe.stream<tensor<64x96xf32>>
}
"""

SEQUENTIAL = """
pipe.program @p {
  %x = pipe.ring "x" depth 2 on chip 0 : memref<2x128x96xf32, #core.dram>
  %y = pipe.ring "y" depth 2 on chip 0 : memref<2x64x96xf32, #core.dram>
  pipe.input "data" to %x
  pipe.stage @s cores [0] (%x, %y) {
  ^bb0(%xr: memref<2x128x96xf32, #core.dram>, %yr: memref<2x64x96xf32, #core.dram>):
    %wd = core.const "w" {
      %0 = nn.weight "w" : tensor<64x128xbf16>
      %1 = nn.transpose %0 perm [1, 0] : (tensor<64x128xbf16>) -> tensor<128x64xbf16>
      nn.yield %1 : tensor<128x64xbf16>
    } : memref<128x64xbf16, #core.dram>
    %w = core.alloc "w" : memref<128x64xbf16, #core.sbuf>
    pipe.load {
      core.dma %wd -> %w
    }
    pipe.run (%r) {
      %xs = core.alloc "xs" : memref<128x96xf32, #core.sbuf>
      %xb = core.alloc "xb" : memref<128x96xbf16, #core.sbuf>
      %acc = core.alloc "acc" : memref<64x96xf32, #core.psum>
      %ys = core.alloc "ys" : memref<64x96xf32, #core.sbuf>
      core.dma %xr[%r mod 2, 0, 0] [1, 128, 96] -> %xs
      core.copy %xb, %xs
      affine.for %j = 0 to 96 step 32 {
        core.matmul %acc[0, %j] [64, 32], %w, %xb[0, %j] [128, 32]
      }
      core.activation relu %ys, %acc
      core.dma %ys -> %yr[%r mod 2, 0, 0] [1, 64, 96]
    }
  }
  pipe.output "score" from %y
}
"""
LEVELS = {"nn": NN, "staged": STAGED, "sequential": SEQUENTIAL}


@pytest.fixture
def weights() -> DictStore:
    import ml_dtypes

    generator = np.random.default_rng(3)
    return DictStore({"w": generator.integers(-3, 4, (64, 128)).astype(ml_dtypes.bfloat16)})


@pytest.mark.parametrize("level", LEVELS)
def test_levels_agree_bit_for_bit(level: str, weights: DictStore) -> None:
    module = parse(LEVELS[level])
    feeds = [random_inputs(module, seed, integer=True) for seed in range(3)]
    result = run_module(module, feeds, weights=weights)
    reference = weights.get("w").astype(np.float32)
    for feed, outputs in zip(feeds, result.requests, strict=True):
        assert list(outputs) == ["score"] and outputs["score"].dtype == np.float32
        assert np.array_equal(outputs["score"], np.maximum(reference @ feed["data"], 0))


@pytest.mark.parametrize("level", LEVELS)
def test_ports(level: str) -> None:
    module = parse(LEVELS[level])
    (given,), (made,) = input_types(module), output_types(module)
    assert (given.name, given.element, given.shape) == ("data", "f32", (128, 96))
    assert (made.name, made.element, made.shape) == ("score", "f32", (64, 96))


def test_random_inputs_are_the_same_at_every_level() -> None:
    drawn = [random_inputs(parse(text), 5)["data"] for text in LEVELS.values()]
    assert all(np.array_equal(drawn[0], other) for other in drawn)
    assert not np.array_equal(drawn[0], random_inputs(parse(NN), 6)["data"])


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, r"input 'data' is missing"),
        ({"dada": np.zeros((128, 96), np.float32)}, r"there is no input 'dada'.*needs data"),
        ({"data": np.zeros((96, 128), np.float32)}, r"wrong shape.*needs \[128, 96\], has \[96, 128\]"),
        ({"data": np.zeros((128, 96), np.int64)}, r"wrong element type.*needs f32, has int64"),
    ],
)
@pytest.mark.parametrize("level", LEVELS)
def test_bad_inputs(level: str, feed: Arrays, message: str, weights: DictStore) -> None:
    with pytest.raises(NeuronError) as caught:
        run_module(parse(LEVELS[level]), feed, weights=weights)
    assert re.search(message, str(caught.value))


def test_a_missing_weight_is_named() -> None:
    module = parse(NN)
    with pytest.raises(NeuronError, match="'w'"):
        run_module(module, random_inputs(module), weights=DictStore({}))


@pytest.mark.parametrize("level", LEVELS)
def test_only_the_final_form_has_a_clock(level: str) -> None:
    with pytest.raises(NeuronError, match="clock"):
        run_module(parse(LEVELS[level]), 3, values=False)


def test_an_empty_module_does_not_run() -> None:
    with pytest.raises(NeuronError, match="nothing to run"):
        run_module(parse("builtin.module {}"), {})


def test_integers_index_the_tables_they_reach() -> None:
    text = """
    func.func @main(%ids: tensor<1x64xi64> {nn.name = "ids"}, %mask: tensor<1x64xi64> {nn.name = "mask"},
                    %flag: tensor<4xi1> {nn.name = "flag"}) -> tensor<64x8xf32> {
      %t = nn.weight "t" seeded<1> : tensor<50x8xf32>
      %0 = nn.reshape %ids : (tensor<1x64xi64>) -> tensor<64xi64>
      %1 = nn.gather %t, %0 axis 0 : (tensor<50x8xf32>, tensor<64xi64>) -> tensor<64x8xf32>
      func.return %1 : tensor<64x8xf32>
    }"""
    module = parse(text)
    drawn = random_inputs(module, 1)
    assert 2 < drawn["ids"].max() < 50 and drawn["ids"].min() >= 0
    assert set(np.unique(drawn["mask"])) == {0, 1}
    assert drawn["flag"].dtype == np.bool_
    assert run_module(module, drawn).outputs["out0"].shape == (64, 8)


def test_integers_are_traced_through_stages() -> None:
    text = """
    pipe.program @p {
      %a = pipe.input "ids" : !pipe.stream<tensor<32xi64>>
      %b = pipe.stage @s0 cores [0] (%a) {
      ^bb0(%x: tensor<32xi64>):
        %y = nn.cast %x : (tensor<32xi64>) -> tensor<32xi32>
        pipe.yield %y : tensor<32xi32>
      } -> (!pipe.stream<tensor<32xi32>>)
      %c = pipe.stage @s1 cores [1] (%b) {
      ^bb0(%x: tensor<32xi32>):
        %t = nn.weight "t" seeded<1> : tensor<9x8xf32>
        %y = nn.gather %t, %x axis 0 : (tensor<9x8xf32>, tensor<32xi32>) -> tensor<32x8xf32>
        pipe.yield %y : tensor<32x8xf32>
      } -> (!pipe.stream<tensor<32x8xf32>>)
      pipe.output "y", %c : !pipe.stream<tensor<32x8xf32>>
    }"""
    module = parse(text)
    ids = random_inputs(module, 0)["ids"]
    assert 1 < ids.max() < 9
    assert run_module(module, {"ids": ids}).outputs["y"].shape == (32, 8)


@pytest.mark.parametrize("element", ["bf16", "f16"])
def test_narrow_inputs_hold_narrow_values(element: str) -> None:
    text = f"""
    func.func @main(%x: tensor<100x{element}>) -> tensor<100x{element}> {{
      func.return %x : tensor<100x{element}>
    }}"""
    module = parse(text)
    drawn = random_inputs(module, 0)["arg0"]
    assert drawn.dtype == np.float32
    assert np.array_equal(run_module(module, {"arg0": drawn}).outputs["out0"], drawn)
    fine = np.full(100, 1 + 2.0**-20, np.float32)
    assert np.all(run_module(module, {"arg0": fine}).outputs["out0"] == 1)
