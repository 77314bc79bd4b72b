"""Programs of the compiler with one thing wrong: what some legal timing breaks, the hazard checker refuses.

`python -m benchmarks hazards` tries thousands; here are a few of each kind.
"""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.hazards import Judge, sample
from benchmarks.mutants import PROGRAMS, Small
from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.modules import parse_module
from neuron_mlir.simulator.program import read_program
from neuron_mlir.simulator.run import run_module
from neuron_mlir.simulator.timings import TimedRunner, Timing, same_outputs

QUICK = ("pipeline", "shards", "replicas", "depth first")


@cache
def judge(name: str) -> Judge:
    return Judge(PROGRAMS[name]())


@pytest.mark.parametrize("name", QUICK)
def test_a_correct_program_is_the_same_under_all_timings(name: str) -> None:
    """On bytes, with other streams' instructions between what one reads and writes, as the simulator computes it."""
    found = judge(name)
    assert not found.says(found.small.module)
    assert not found.broken(found.small.module, 8)
    expected = run_module(found.small.module, found.feeds, plain=True).requests
    assert same_outputs(found.expected, expected)


@pytest.mark.parametrize("name", QUICK)
def test_what_a_timing_breaks_is_found(name: str) -> None:
    found = judge(name)
    broken = 0
    for mutation in sample(found.small, 22, seed=3):
        verdict = found.judge(mutation, 4)
        broken += verdict.broken
        assert verdict.says or not verdict.broken, f"{mutation.kind}, operation {mutation.where}"
    assert broken >= 11


def stage(body: str, allocs: str, machine: str = "") -> Small:
    """A stage on one core; `%in` and `%out` are what the tensor engine takes, `%v` a semaphore of the vector engine."""
    attributes = (
        f'attributes {{core.machine = "inferentia1", core.machine_overrides = {{{machine}}}}} ' if machine else ""
    )
    text = f"""
builtin.module {attributes}{{
  pipe.program @p {{
    pipe.stage @s cores [0] () {{
      {allocs}
      %v = core.semaphore "v"
      pipe.load {{}}
      pipe.run (%r) {{
        {body}
      }}
    }}
  }}
}}"""
    return Small(parse_module(text, "a program"))


SET = "core.engine vector {\ncore.memset %in, 1.0\ncore.signal %v\n}"
IN = '%in = core.alloc "in" at 0 : memref<64x512xbf16, #core.sbuf>'


def product(columns: int, address: int) -> Small:
    """A product of so many columns, its result at an address of PSUM."""
    return stage(
        f"""{SET}
        core.engine tensor {{
          core.wait %v >= %r + 1
          core.matmul %acc[0, 0] [64, {columns}], %in[0, 0] [64, 64], %in[0, 0] [64, {columns}]
        }}""",
        f'{IN}\n%acc = core.alloc "acc" at {address} : memref<64x512xf32, #core.psum>',
    )


@pytest.mark.parametrize(("columns", "address", "fits"), [(512, 2048, True), (256, 1024, True), (512, 1024, False)])
def test_a_result_lies_in_one_bank(columns: int, address: int, fits: bool) -> None:
    module = product(columns, address).module
    if fits:
        run_module(module, 1, values=False)
        return
    with pytest.raises(NeuronError, match=r"bank conflict: .*'acc' in banks 0 to 1 of psum of core 0; .*needs 2048"):
        run_module(module, 1, values=False)


def test_semaphores_count_to_what_the_machine_counts_to() -> None:
    small = stage(SET, IN, "chip.semaphore_max = 5 : i64")
    run_module(small.module, 5, values=False)
    with pytest.raises(NeuronError, match=r"semaphore overflow: 'v' is signalled 6 times in 6 requests.*has 5"):
        run_module(small.module, 6, values=False)


def test_sequential_code_has_one_timing() -> None:
    module = parse_module(
        "pipe.program @p { pipe.stage @s cores [0] () { pipe.load {} pipe.run (%r) {} } }", "sequential"
    )
    with pytest.raises(NeuronError, match="one order only"):
        TimedRunner(read_program(module))


def test_deadlock_under_a_timing_is_named() -> None:
    module = stage("core.engine vector {\ncore.wait %v >= %r + 1\ncore.signal %v\n}", "").module
    with pytest.raises(NeuronError, match=r"deadlock: @s vector waits for 'v' >= 1, which is at 0"):
        TimedRunner(read_program(module)).run([{}], Timing(1))
