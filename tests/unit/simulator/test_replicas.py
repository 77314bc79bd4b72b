"""Replicas of stages: requests in turn, results in order, the same at every level."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.parser import Parser

from neuron_mlir.dialects.core.movement import SemaphoreOp, WaitOp
from neuron_mlir.dialects.pipe.ops import RingOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.program import read_program
from neuron_mlir.simulator.run import RunResult, random_inputs, run_module

TENSOR = "tensor<16x64xbf16>"
WORK = 12
"""Products of the stage in the middle; the others have one."""


def stage(name: str, cores: list[int], inputs: list[str], work: int) -> str:
    """A stage that adds its inputs and multiplies by its weight so many times."""
    arguments = ", ".join(f"%x{i}: {TENSOR}" for i in range(len(inputs)))
    lines = [f'%w = nn.weight "{name}" seeded<{len(name)}> : tensor<64x64xbf16>']
    value = "%x0"
    if len(inputs) > 1:
        lines += [
            f"%sum = nn.add %x0, %x1 : {TENSOR}, {TENSOR}",
            f"%rounded = nn.cast %sum : (tensor<16x64xf32>) -> {TENSOR}",
        ]
        value = "%rounded"
    for n in range(work):
        lines += [
            f"%p{n} = nn.matmul {value}, %w : ({TENSOR}, tensor<64x64xbf16>) -> tensor<16x64xf32>",
            f"%c{n} = nn.cast %p{n} : (tensor<16x64xf32>) -> {TENSOR}",
        ]
        value = f"%c{n}"
    body = "\n".join(lines)
    replicas = " replicas" if len(cores) > 1 else ""
    return (
        f"%{name} = pipe.stage @{name} cores {cores}{replicas} ({', '.join(inputs)}) {{\n^bb0({arguments}):\n{body}\n"
        f"pipe.yield {value} : {TENSOR}\n}} -> (!pipe.stream<{TENSOR}>)"
    )


def network(counts: tuple[int, int, int], work: int = WORK, apart: int = 1) -> str:
    """Three stages of so many replicas; the last also reads what the first makes. Stages begin at multiples of so many
    cores: those of a chip that read the same value share a ring.
    """
    placed: list[list[int]] = []
    first = 0
    for count in counts:
        placed.append(list(range(first, first + count)))
        first += -(-count // apart) * apart
    return f"""
pipe.program @net {{
  %x = pipe.input "x" : !pipe.stream<{TENSOR}>
  {stage("a", placed[0], ["%x"], 1)}
  {stage("bb", placed[1], ["%a"], work)}
  {stage("ccc", placed[2], ["%bb", "%a"], 1)}
  pipe.output "y", %ccc : !pipe.stream<{TENSOR}>
  pipe.output "z", %bb : !pipe.stream<{TENSOR}>
}}
"""


@cache
def lowered(text: str, passes: tuple[str, ...]) -> ModuleOp:
    """The network after some passes; not to be changed."""
    if not passes:
        return Parser(make_context(), text).parse_module()
    module = lowered(text, passes[:-1]).clone()
    for step in load_pipeline(passes[-1]):
        step.apply(make_context(), module)
    module.verify()
    return module


def compiled(text: str, passes: str = "core-lower,core-allocate,core-schedule") -> ModuleOp:
    return lowered(text, tuple(passes.split(","))).clone()


def timed(counts: tuple[int, int, int], requests: int = 120, apart: int = 1) -> RunResult:
    text = network(counts, apart=apart).replace("16x64x", "16x256x").replace("64x64x", "256x256x")
    return run_module(compiled(text), requests, values=False, hazards=False)


COUNTS = [(1, 2, 1), (2, 2, 2), (2, 1, 2), (1, 3, 2), (2, 4, 1), (4, 2, 3)]


@pytest.mark.parametrize("counts", COUNTS)
def test_same_results_in_order(counts: tuple[int, int, int]) -> None:
    """Whole numbers, so that the order of sums does not matter; all accesses of all requests checked."""
    value_form = Parser(make_context(), network(counts, work=1)).parse_module()
    feeds = [random_inputs(value_form, seed=seed, integer=True) for seed in range(13)]
    wanted = run_module(value_form, feeds).requests
    for passes in ("core-lower", "core-lower,core-allocate", "core-lower,core-allocate,core-schedule"):
        module = compiled(network(counts, work=1), passes)
        again = Parser(make_context(), str(module)).parse_module()
        assert str(again) == str(module)
        found = run_module(again, feeds, hazards=True)
        for expected, actual in zip(wanted, found.requests, strict=True):
            assert sorted(actual) == ["y", "z"]
            for name in expected:
                np.testing.assert_array_equal(actual[name], expected[name])


def test_a_missing_wait_between_replicas_is_a_hazard() -> None:
    """Each wait for another stage is needed: without it the checker finds a race, or what is read is not there."""
    text = network((1, 2, 1), work=1)
    module = compiled(text)
    names = ("full", "credit")
    count = sum(_is_between_stages(op, names) for op in module.walk() if isinstance(op, WaitOp))
    assert count >= 8
    feeds = [random_inputs(module, seed=seed) for seed in range(13)]
    found = 0
    for number in range(count):
        broken = compiled(text)
        wait = [op for op in broken.walk() if isinstance(op, WaitOp) and _is_between_stages(op, names)][number]
        wait.detach()
        wait.erase()
        try:
            run_module(broken, feeds, hazards=True)
        except NeuronError as error:
            found += "race" in error.message or "read of" in error.message
    assert found >= count - 2  # a wait for one replica may be implied by others


def _is_between_stages(op: WaitOp, names: tuple[str, ...]) -> bool:
    hint = op.semaphore.name_hint or ""
    return any(name in hint for name in names)


def test_a_doubled_bottleneck_doubles_throughput() -> None:
    single, double = (timed(counts).report() for counts in ((1, 1, 1), (1, 2, 1)))
    assert double.throughput_per_s > 1.6 * single.throughput_per_s
    assert double.throughput_per_s <= double.bound.throughput_per_s
    assert double.bound.throughput_per_s > 1.6 * single.bound.throughput_per_s


def test_whole_copies_multiply_throughput() -> None:
    single, four = (timed(counts, apart=4).report() for counts in ((1, 1, 1), (4, 4, 4)))
    # Copies meet on links at other moments than a copy alone meets itself: a little more than four times is possible.
    assert 3.5 * single.throughput_per_s < four.throughput_per_s < 4.02 * single.throughput_per_s
    assert four.cores == 12 and four.chips == 3
    assert four.dram_bytes_per_inference == single.dram_bytes_per_inference
    assert four.throughput_per_s <= four.bound.throughput_per_s


def test_requests_in_flight_over_replicas() -> None:
    """What the host waits for is the answer of the right replica."""
    module = compiled(network((2, 2, 2)))
    one, two, many = (run_module(module, 40, values=False, hazards=False, in_flight=n).machine for n in (1, 2, 40))
    assert one is not None and two is not None and many is not None
    for run, count in ((one, 1), (two, 2)):
        assert all(run.started[r] >= run.finished[r - count] for r in range(count, 40))
    assert one.finished[-1] > two.finished[-1] > many.finished[-1]


def test_lanes_are_where_their_readers_are() -> None:
    module = compiled(network((4, 4, 4)))
    places = {op.label.data: op.place_list() for op in module.walk() if isinstance(op, RingOp)}
    assert places == {"x": (0,) * 4, "a": (2,) * 4, "bb": (1,) * 4, "ccc": (2,) * 4}
    addresses = [op.address_list() for op in module.walk() if isinstance(op, RingOp)]
    assert all(found is not None and len(set(found)) == 4 for found in addresses)


def test_more_replicas_do_not_make_more_code() -> None:
    sizes = [sum(1 for _ in compiled(network(counts, apart=4)).walk()) for counts in ((1, 1, 1), (3, 3, 3))]
    assert sizes[0] == sizes[1]


def test_semaphores_between_replicas_that_share_requests() -> None:
    op = SemaphoreOp("s", [4, 5, 6, 7, 8, 9], signallers=4)
    assert op.counters() == [
        (0, 0),
        (0, 2),
        (0, 4),
        (1, 1),
        (1, 3),
        (1, 5),
        (2, 0),
        (2, 2),
        (2, 4),
        (3, 1),
        (3, 3),
        (3, 5),
    ]


def test_constants_are_on_each_chip_once() -> None:
    program = read_program(compiled(network((1, 8, 1), work=1)))
    chips = [s.memory.place for s in program.storages if s.constant is not None and s.label == "bb"]
    assert sorted(chips) == [0, 1, 2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("core.wait %x_full_1", "core.wait %x_full_1 from 1", "a wait for a replica that does not signal"),
        ("on cores [1, 2]", "on cores [1, 2, 3]", "the semaphore is for 3 waiters, and there are 2"),
        ("on core 0 by 2", "on core 0 by 3", "the semaphore is for 3 signallers, and there are 2"),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str) -> None:
    text = str(compiled(network((1, 2, 1))))
    assert old in text
    with pytest.raises(NeuronError, match=message):
        read_program(Parser(make_context(), text.replace(old, new, 1)).parse_module())


def test_lanes_must_fit_the_replicas() -> None:
    text = str(compiled(network((2, 2, 2)), "core-lower,core-allocate"))
    wrong = text.replace("on chips [0, 0] at [0, 4096]", "on chip 0 at 0", 1)
    assert wrong != text
    module = Parser(make_context(), wrong).parse_module()
    with pytest.raises(NeuronError, match="has 1 lanes between 2 replicas and the host"):
        for step in load_pipeline("core-schedule"):
            step.apply(make_context(), module)
