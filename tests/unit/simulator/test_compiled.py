"""What the compiler makes of a small network: its levels agree, and any one wrong wait or address in it is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.dialects.builtin import AffineMapAttr, IntegerAttr, ModuleOp, i64
from xdsl.ir.affine import AffineMap
from xdsl.parser import Parser
from xdsl.rewriter import Rewriter

from neuron_mlir.dialects.core.memory import AllocOp
from neuron_mlir.dialects.core.movement import WaitOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.run import random_inputs, run_module

CONVOLUTIONS = """
func.func @main(%x: tensor<1x8x12x12xf32> {nn.name = "x"}) -> (tensor<1x24x12x12xf32> {nn.name = "y"}) {
  %w0 = nn.weight "w0" seeded<1> : tensor<16x8x3x3xf32>
  %b0 = nn.weight "b0" seeded<2> : tensor<16xf32>
  %w1 = nn.weight "w1" seeded<3> : tensor<24x16x1x1xf32>
  %0 = nn.conv %x, %w0, %b0 pads [1, 1, 1, 1]
    : (tensor<1x8x12x12xf32>, tensor<16x8x3x3xf32>, tensor<16xf32>) -> tensor<1x16x12x12xf32>
  %1 = nn.relu %0 : tensor<1x16x12x12xf32>
  %2 = nn.conv %1, %w1 : (tensor<1x16x12x12xf32>, tensor<24x16x1x1xf32>) -> tensor<1x24x12x12xf32>
  func.return %2 : tensor<1x24x12x12xf32>
}
"""
PASSES = ["nn-fuse", "nn-cast", "pipe-stage{cores=2}", "core-lower", "core-allocate", "core-schedule"]


def compiled(passes: list[str]) -> ModuleOp:
    ctx = make_context()
    module = Parser(ctx, CONVOLUTIONS).parse_module()
    for step in load_pipeline(",".join(passes)):
        step.apply(ctx, module)
    module.verify()
    return module


@pytest.fixture(scope="module")
def final() -> ModuleOp:
    return compiled(PASSES)


def check(module: ModuleOp) -> None:
    run_module(module, 8, values=False, hazards=True)


def test_levels_agree() -> None:
    """Past nn-cast no pass changes more than the order of float32 sums, which here is a rounding of bf16 at most."""
    feeds = [random_inputs(compiled([]), seed) for seed in range(3)]
    reference = run_module(compiled(PASSES[:2]), feeds).requests
    for count in range(3, len(PASSES) + 1):
        for expected, actual in zip(reference, run_module(compiled(PASSES[:count]), feeds).requests, strict=True):
            assert np.allclose(actual["y"], expected["y"], rtol=2**-6, atol=2**-6)
    sequential, scheduled = (run_module(compiled(PASSES[:n]), feeds).requests for n in (4, 6))
    assert all(np.array_equal(a["y"], b["y"]) for a, b in zip(sequential, scheduled, strict=True))


def test_fast_and_plain_code_agree_on_a_network(final: ModuleOp) -> None:
    feed = random_inputs(final, 4)
    assert np.array_equal(run_module(final, feed).outputs["y"], run_module(final, feed, plain=True).outputs["y"])


def test_the_program_is_free_of_hazards(final: ModuleOp) -> None:
    check(final)


def waits(module: ModuleOp) -> list[WaitOp]:
    return [op for op in module.walk() if isinstance(op, WaitOp)]


def test_any_wait_that_is_missing_is_noticed(final: ModuleOp) -> None:
    assert len(waits(final)) >= 12
    for position in range(len(waits(final))):
        module = final.clone()
        Rewriter.erase_op(waits(module)[position])
        with pytest.raises(NeuronError, match=r"^(race: |read of |deadlock: )"):
            check(module)


def test_any_wait_for_one_signal_too_few_is_noticed(final: ModuleOp) -> None:
    for position in range(len(waits(final))):
        module = final.clone()
        wait = waits(module)[position]
        value = wait.value.data
        wait.properties["value"] = AffineMapAttr(AffineMap(value.num_dims, 0, (value.results[0] - 1,)))
        with pytest.raises(NeuronError, match=r"^(race: |read of |deadlock: )"):
            check(module)


def test_any_buffer_on_top_of_another_is_noticed(final: ModuleOp) -> None:
    """Each buffer in turn is moved to the address of the next one in its memory, both being used in every request."""
    allocs = [op for op in final.walk() if isinstance(op, AllocOp) and op.address is not None]
    pairs = [
        (i, j)
        for i, first in enumerate(allocs)
        for j, second in enumerate(allocs)
        if i != j and first.parent_op() is second.parent_op() and first.type.memory_space == second.type.memory_space
    ]
    assert len(pairs) >= 4
    for i, j in pairs:
        module = final.clone()
        moved = [op for op in module.walk() if isinstance(op, AllocOp) and op.address is not None]
        target = moved[j].address
        assert target is not None
        moved[i].properties["address"] = IntegerAttr(target.value.data, i64)
        with pytest.raises(NeuronError, match=r"^(race: |read of |capacity overflow)"):
            check(module)
