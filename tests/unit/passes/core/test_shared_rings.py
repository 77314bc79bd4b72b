"""Rings that stages on a chip share, and rings that share their semaphores, where a core has too few of them."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.parser import Parser

from neuron_mlir.dialects.core.movement import SemaphoreOp
from neuron_mlir.dialects.pipe.ops import RingOp
from neuron_mlir.passes.base import NeuronPass
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.run import RunResult, random_inputs, run_module

STREAMS = 7
TENSOR = "tensor<16x64xf32>"
REQUESTS = 12


def network(first: list[int], second: list[int], third: int = 8) -> str:
    """A stage that hands seven streams to the next, two of which a third, on another chip, reads as well."""

    def stage(name: str, cores: list[int], inputs: list[str], results: list[str], body: list[str]) -> str:
        arguments = ", ".join(f"%x{i}: {TENSOR}" for i in range(len(inputs)))
        many = ", ".join(TENSOR for _ in results)
        streams = ", ".join(f"!pipe.stream<{TENSOR}>" for _ in results)
        names = ", ".join(f"%{name}{n}" for n in range(len(results)))
        return (
            f"{names} = pipe.stage @{name} cores {cores}{' replicas' if len(cores) > 1 else ''} ({', '.join(inputs)}) "
            f"{{\n^bb0({arguments}):\n{chr(10).join(body)}\npipe.yield {', '.join(results)} : {many}\n}} -> ({streams})"
        )

    def total(count: int) -> list[str]:
        """Ops that add up so many arguments."""
        binary = f": {TENSOR}, {TENSOR}"
        start = f"%t0 = nn.mul %x0, %x0 {binary}"
        return [start, *(f"%t{n} = nn.add %t{n - 1}, %x{n} {binary}" for n in range(1, count))]

    fan = [f"%r{n} = nn.{op} %x0 : {TENSOR}" for n, op in enumerate(["relu", "abs", "neg", "floor"] * 2)][:STREAMS]
    made = [f"%a{n}" for n in range(STREAMS)]
    return f"""
pipe.program @net {{
  %x = pipe.input "x" : !pipe.stream<{TENSOR}>
  {stage("a", first, ["%x"], [f"%r{n}" for n in range(STREAMS)], fan)}
  {stage("b", second, made, [f"%t{STREAMS - 1}"], total(STREAMS))}
  {stage("c", [third], ["%b0", *made[:2]], ["%t2"], total(3))}
  pipe.output "y", %c0 : !pipe.stream<{TENSOR}>
}}
"""


def run(text: str, limit: int) -> tuple[ModuleOp, NeuronPass, RunResult]:
    """Compiled for a machine with so many semaphores to a core, printed, parsed, and run with its hazards checked."""
    ctx = make_context()
    limits = f"core.machine_overrides = {{chip.semaphores_per_core = {limit} : i64}}"
    module = Parser(
        ctx, f'builtin.module attributes {{core.machine = "inferentia1", {limits}}} {{{text}}}'
    ).parse_module()
    steps = load_pipeline("core-lower,core-allocate,core-schedule")
    for step in steps:
        step.apply(ctx, module)
        module.verify()
    module = Parser(ctx, str(module)).parse_module()
    feeds = [random_inputs(module, seed) for seed in range(REQUESTS)]
    assert isinstance(steps[-1], NeuronPass)
    return module, steps[-1], run_module(module, feeds, hazards=True)


PLACES = [([0], [1]), ([0], [1, 2]), ([0, 1], [2]), ([0, 1], [2, 3]), ([0, 1], [2, 3, 4])]


@pytest.mark.parametrize(("first", "second"), PLACES)
def test_the_same_values_with_fewer(first: list[int], second: list[int]) -> None:
    text = network(first, second)
    plenty, free, wanted = run(text, 200)
    few, tight, got = run(text, 12)
    shared = int(tight.statistics["rings sharing"] or 0)
    assert free.statistics["rings sharing"] == 0 and shared >= 6
    for before, after in zip(wanted.requests, got.requests, strict=True):
        assert np.array_equal(before["y"], after["y"])

    def counted(module: ModuleOp) -> int:
        return sum(isinstance(op, SemaphoreOp) for op in module.walk())

    assert counted(few) == counted(plenty) - 2 * shared
    assert sum(isinstance(op, RingOp) for op in few.walk()) == sum(isinstance(op, RingOp) for op in plenty.walk())


def test_only_as_far_as_needed() -> None:
    """The seven to the second stage share first; the two to the third keep their own as long as that is enough."""
    text = network([0], [1])
    for limit, shared in ((200, 0), (12, 6), (7, 7)):
        module, owner, _ = run(text, limit)
        assert owner.statistics["rings sharing"] == shared
        # Seven rings lead to the second stage, two to the third, one from the second to that, and two are the host's.
        labels = [op.label.data for op in module.walk() if isinstance(op, SemaphoreOp) and "." in op.label.data]
        assert len(labels) == 2 * (7 + 2 + 1 + 2 - shared)


@pytest.mark.parametrize(("first", "second", "rings"), [([0], [1], 7), ([0, 1], [2], 7), ([0], [1, 2], 9)])
def test_readers_on_a_chip_share_a_ring(first: list[int], second: list[int], rings: int) -> None:
    """Two streams go to both readers: through one ring each, where the readers have as many lanes of it as replicas."""
    apart, _, wanted = run(network(first, second), 200)
    together, _, got = run(network(first, second, third=3), 200)
    for before, after in zip(wanted.requests, got.requests, strict=True):
        assert np.array_equal(before["y"], after["y"])

    def from_first(module: ModuleOp) -> int:
        return sum(isinstance(op, RingOp) and op.label.data.startswith(("a", "r")) for op in module.walk())

    assert (from_first(apart), from_first(together)) == (9, rings)
