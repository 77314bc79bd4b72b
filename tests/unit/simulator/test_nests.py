"""Nests of loops around a matmul as one product: the bits of the plain interpreter on whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_mlir.runtime.modules import parse_module
from neuron_mlir.simulator.nests import plan_nests
from neuron_mlir.simulator.program import read_program
from neuron_mlir.simulator.run import random_inputs, run_module

SIZE = 7


def program(tiles: int, taps: int, outputs: int, stride: int, order: str, rows: int, init: str) -> str:
    """Twice a convolution of `tiles` x `rows` channels with windows of `taps` x `taps`, the loops in some order.

    What it reads is scaled in between: a copy of windows from the first time would be wrong the second time.
    """
    bounds = {"k": tiles, "u": taps, "v": taps}
    if taps == 1:
        order = "k"
    count = (SIZE - taps) // stride + 1
    steps = f" [1, 1, {stride}, {stride}]" if stride > 1 else ""
    flat = "0"
    for name in order:
        flat = f"({flat}) * {bounds[name]} + %{name}"
    nest = (
        f"core.matmul %acc[0, %m, 0, 0] [64, 1, {count}, {count}], %w[0, %m, %k, %u * {taps} + %v, 0]"
        f" [{rows}, 1, 1, 1, 64], %x[0, %k, %u, %v] [{rows}, 1, {count}, {count}]{steps} init {init.format(flat=flat)}"
    )
    for name in reversed(order):
        nest = f"affine.for %{name} = 0 to {bounds[name]} {{\n{nest}\n}}"
    if taps == 1:
        nest = nest.replace("%u", "0").replace("%v", "0")
    twice = f"affine.for %m = 0 to {outputs} {{\n{nest}\n}}"
    shape = f"{rows}x{tiles}x{SIZE}x{SIZE}"
    weights = f"{rows}x{outputs}x{tiles}x{taps * taps}x64"
    y = f"64x{outputs}x{count}x{count}"
    return f"""
pipe.program @p {{
  %xr = pipe.ring "x" depth 1 on chip 0 : memref<1x{shape}xbf16, #core.dram>
  %wr = pipe.ring "w" depth 1 on chip 0 : memref<1x{weights}xbf16, #core.dram>
  pipe.input "x" to %xr
  pipe.input "w" to %wr
  %yr = pipe.ring "y" depth 1 on chip 0 : memref<1x{y}xf32, #core.dram>
  pipe.stage @s cores [0] (%xr, %wr, %yr) {{
  ^bb0(%xd: memref<1x{shape}xbf16, #core.dram>, %wd: memref<1x{weights}xbf16, #core.dram>,
       %yd: memref<1x{y}xf32, #core.dram>):
    %x = core.alloc "x" : memref<{shape}xbf16, #core.sbuf>
    %w = core.alloc "w" : memref<{weights}xbf16, #core.sbuf>
    %acc = core.alloc "acc" : memref<{y}xf32, #core.psum>
    %y = core.alloc "y" : memref<{y}xf32, #core.sbuf>
    pipe.load {{}}
    pipe.run (%r) {{
      core.dma %xd[0, 0, 0, 0, 0] [1, {rows}, {tiles}, {SIZE}, {SIZE}] -> %x
      core.dma %wd[0, 0, 0, 0, 0, 0] [1, {rows}, {outputs}, {tiles}, {taps * taps}, 64] -> %w
      core.memset %acc, 1.0
      {twice}
      core.copy %y, %acc
      core.activation copy %x, %x times 2.0
      {twice}
      core.tensor_tensor sub %y, %y, %acc
      core.dma %y -> %yd[0, 0, 0, 0, 0] [1, 64, {outputs}, {count}, {count}]
    }}
  }}
  pipe.output "y" from %yr
}}
"""


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.permutations("kuv"),
    st.sampled_from([32, 128]),
    st.sampled_from(["{flat}", "{flat} + 1", "%k + %u + %v"]),
)
def test_equal_on_whole_numbers(
    tiles: int, taps: int, outputs: int, stride: int, order: list[str], rows: int, init: str
) -> None:
    module = parse_module(program(tiles, taps, outputs, stride, "".join(order), rows, init), "nests")
    feeds = [random_inputs(module, seed, integer=True) for seed in range(2)]
    fast, plain = (run_module(module, feeds, plain=choice).requests for choice in (False, True))
    for a, b in zip(fast, plain, strict=True):
        assert np.array_equal(a["y"], b["y"])
        assert not np.isnan(b["y"]).any()


@pytest.mark.parametrize(
    ("order", "taps", "packed"), [("kuv", 3, True), ("kuv", 1, False), ("ukv", 3, None), ("kuv", 2, True)]
)
def test_what_becomes_one_product(order: str, taps: int, packed: bool | None) -> None:
    """Weights lie tile by tile, and in each tap by tap: in that order all terms are one product; in another, the inner
    loops are that belong together."""
    plan = plan_nests(read_program(parse_module(program(2, taps, 2, 1, order, 128, "%k + %u + %v"), "nests")))
    if packed is None:
        assert all(nest.terms == taps for nest in plan.nests.values())
        return
    assert [nest.terms for nest in plan.nests.values()] == [2 * taps * taps] * 2
    assert all(nest.packed is packed for nest in plan.nests.values())


def test_fractions_differ_by_the_order_of_the_sum_at_most() -> None:
    module = parse_module(program(3, 3, 2, 1, "kuv", 128, "%k + %u + %v"), "nests")
    feed = random_inputs(module, 1)
    fast, plain = (run_module(module, feed, plain=choice).outputs["y"] for choice in (False, True))
    terms = 3 * 9 * 128
    assert np.abs(fast - plain).max() <= terms * 2.0**-24 * np.abs(plain).max() * 4
