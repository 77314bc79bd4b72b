"""Streams of rows through rings in the reader's SBUF: the same bits as with whole requests, on every rung; and rings
that are too shallow, or waits that are too weak, are found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir.affine import AffineMap

from neuron_mlir.dialects.core.movement import SemaphoreOp, WaitOp
from neuron_mlir.dialects.pipe.ops import RingOp, StageOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.base import NeuronPass
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import parse_module
from neuron_mlir.simulator.run import run_module

Arrays = dict[str, NDArray[Any]]
HEIGHT, WIDTH, REQUESTS = 12, 5, 3


def group(name: str, tile: tuple[int, int], inputs: dict[str, str], layers: str, result: str, of: str) -> str:
    """A depth-first group over `inputs` (name outside and type), whose layers call them `<name>i`."""
    arguments = ", ".join(f"%{value}i: {type}" for value, type in inputs.items())
    values, types = ", ".join(f"%{value}" for value in inputs), ", ".join(inputs.values())
    return f"""%{name} = nn.fused "depth-first" ({values}) tile [{tile[0]}, {tile[1]}] {{
    ^bb1({arguments}):
      {layers}
      nn.yield {result} : {of}
    }} : ({types}) -> {of}"""


def network(tiles: list[tuple[int, int]], batch: int, copies: int = 1, height: int = HEIGHT) -> str:
    """Three stages: a pool; a window and a pool with a stride; and a join of that with what the first made, pooled."""
    x = f"tensor<{batch}x140x{height}x{WIDTH}xf32>"
    y = f"tensor<{batch}x4x{height}x{WIDTH}xbf16>"
    z = f"tensor<{batch}x140x{height}x{WIDTH}xbf16>"
    half = f"tensor<{batch}x4x{height // 2}x{WIDTH}xbf16>"
    w, v = "tensor<4x140x3x3xbf16>", "tensor<4x140x2x1xbf16>"
    window = "kernel [3, 3] pads [1, 1, 1, 1]"
    cores = [[copy * 3 + number for copy in range(copies)] for number in range(3)]
    kind = " replicas" if copies > 1 else ""
    first = group(
        "r",
        tiles[0],
        {"a": x},
        f"%p = nn.max_pool %ai {window} : ({x}) -> {x}\n      %q = nn.cast %p : ({x}) -> {z}",
        "%q",
        z,
    )
    second = group(
        "r",
        tiles[1],
        {"a": z, "w": w},
        f"%c = nn.conv %ai, %wi pads [1, 1, 1, 1] : ({z}, {w}) -> {y.replace('bf16', 'f32')}\n"
        f"      %d = nn.cast %c : ({y.replace('bf16', 'f32')}) -> {y}\n"
        f"      %p = nn.max_pool %d kernel [2, 1] strides [2, 1] : ({y}) -> {half}",
        "%p",
        half,
    )
    last = f"tensor<{batch}x4x{height // 2}x{WIDTH}xf32>"
    third = group(
        "r",
        tiles[2],
        {"b": half, "a": z, "v": v},
        f"%c = nn.conv %ai, %vi strides [2, 1] : ({z}, {v}) -> {last}\n"
        f"      %s = nn.add %c, %bi : {last}, {half}\n"
        f"      %p = nn.max_pool %s {window} : ({last}) -> {last}",
        "%p",
        last,
    )
    return f"""
pipe.program @net {{
  %x = pipe.input "x" : !pipe.stream<{x}>
  %as = pipe.stage @s0 cores {cores[0]}{kind} (%x) {{
  ^bb0(%a: {x}):
    {first}
    pipe.yield %r : {z}
  }} -> (!pipe.stream<{z}>)
  %bs = pipe.stage @s1 cores {cores[1]}{kind} (%as) {{
  ^bb0(%a: {z}):
    %w = nn.weight "w" : {w}
    {second}
    pipe.yield %r : {half}
  }} -> (!pipe.stream<{half}>)
  %cs = pipe.stage @s2 cores {cores[2]}{kind} (%bs, %as) {{
  ^bb0(%b: {half}, %a: {z}):
    %v = nn.weight "v" : {v}
    {third}
    pipe.yield %r : {last}
  }} -> (!pipe.stream<{last}>)
  pipe.output "y", %cs : !pipe.stream<{last}>
}}"""


class Weights:
    """Small whole numbers."""

    def get(self, name: str) -> NDArray[Any]:
        shape = {"w": (4, 140, 3, 3), "v": (4, 140, 2, 1)}[name]
        return np.random.default_rng(len(name)).integers(-2, 3, shape).astype(bfloat16)


def apply(module: ModuleOp, pipeline: str) -> dict[str, int]:
    """Run passes; the statistics of the last."""
    steps = load_pipeline(pipeline)
    ctx = None
    for step in steps:
        step.apply(ctx, module)  # pyright: ignore[reportArgumentType]
        module.verify()
    assert isinstance(steps[-1], NeuronPass)
    return {name: int(value or 0) for name, value in steps[-1].statistics.items()}


def feeds(batch: int, height: int = HEIGHT) -> list[Arrays]:
    rng = np.random.default_rng(batch)
    return [{"x": rng.integers(-4, 5, (batch, 140, height, WIDTH)).astype(np.float32)} for _ in range(REQUESTS)]


def outputs(module: ModuleOp, given: list[Arrays]) -> list[NDArray[Any]]:
    """Of the module as it is after printing and parsing, its hazards checked."""
    result = run_module(parse_module(str(module), "printed"), given, weights=Weights(), hazards=True)
    return [answer["y"] for answer in result.requests]


CASES = {
    "a row": ([(1, 1)] * 3, 1),
    "several rows": ([(1, 2), (1, 2), (1, 3)], 1),
    "whole slots": ([(1, 4), (1, 2), (1, 2)], 1),
    "images": ([(1, 3), (1, 2), (1, 6)], 3),
    "images together": ([(2, 5), (2, 3), (2, 2)], 4),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_on_every_rung(case: str) -> None:
    tiles, batch = CASES[case]
    given = feeds(batch)
    module = parse_module(network(tiles, batch), "net")
    wanted = outputs(module, given)
    found = apply(module, "pipe-stream-rows")
    assert (found["streams"], found["whole"]) == (3, 0)
    for step in ("core-lower", "core-allocate", "core-schedule"):
        apply(module, step)
        for got, value in zip(outputs(module, given), wanted, strict=True):
            np.testing.assert_array_equal(got, value)
    rings = [op for op in module.walk() if isinstance(op, RingOp) and op.parts > 1]
    assert [ring.place_list() for ring in rings] == [(1,), (2,), (2,)]
    assert any(ring.depth.value.data < ring.parts for ring in rings)


def test_copies_have_rings_of_their_own() -> None:
    given = feeds(1)
    module = parse_module(network([(1, 2)] * 3, 1, copies=2), "net")
    wanted = outputs(module, given)
    assert apply(module, "pipe-stream-rows")["streams"] == 3
    apply(module, "core-lower,core-allocate,core-schedule")
    for got, value in zip(outputs(module, given), wanted, strict=True):
        np.testing.assert_array_equal(got, value)


def final(change: Callable[[StageOp], None] | None = None) -> ModuleOp:
    """The final form, with the attributes of stages changed before."""
    module = parse_module(network([(1, 2), (1, 2), (1, 3)], 1), "net")
    apply(module, "pipe-stream-rows")
    for op in module.walk():
        if isinstance(op, StageOp) and change is not None:
            change(op)
    apply(module, "core-lower,core-allocate,core-schedule")
    return module


@pytest.mark.parametrize("name", ["full", "credit"])
def test_a_wait_that_asks_for_one_part_less_is_found(name: str) -> None:
    """Each wait for the ring between the first two stages in turn."""
    caught = tried = 0
    while True:
        module = final()
        semaphores = [
            op.result for op in module.walk() if isinstance(op, SemaphoreOp) and op.label.data == f"as.{name}"
        ][:1]
        inside = [
            use.operation.body.block.args[use.index] for use in semaphores[0].uses if isinstance(use.operation, StageOp)
        ]
        waits = [op for op in module.walk() if isinstance(op, WaitOp) and op.semaphore in inside]
        if tried == len(waits):
            break
        old = waits[tried].value.data
        changed = AffineMap(old.num_dims, 0, (old.results[0] - 1,))
        waits[tried].properties["value"] = type(waits[tried].value)(changed)
        tried += 1
        try:
            outputs(module, feeds(1))
        except NeuronError as error:
            caught += str(error).startswith(("race", "read of never-written memory"))
    assert caught >= 2  # of the others, waits between other stages say as much
