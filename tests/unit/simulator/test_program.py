"""What is wrong with a program before it runs: capacity, ranges, semaphores, engines."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import parse
from xdsl.ir.affine import AffineExpr, AffineMap

from neuron_mlir.dialects.core.access import expression_range
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.ranges import Range, common_factor
from neuron_mlir.simulator.run import run_module


def program(allocs: str, engines: str, more: str = "") -> str:
    return f"""
pipe.program @p {{
  {more}
  pipe.stage @s cores [0] () {{
    {allocs}
    pipe.load {{}}
    pipe.run (%r) {{
      {engines}
    }}
  }}
}}
"""


ALLOC = '%a = core.alloc "a" at 0 : memref<128x64xf32, #core.sbuf>'
CASES = {
    "SBUF overflow": (
        program('%a = core.alloc "a" at 98000 : memref<128x512xbf16, #core.sbuf>', ""),
        r"capacity overflow: buffer 'a' does not fit sbuf of core 0.*bytes per partition: needs 99024, has 98304",
    ),
    "PSUM overflow": (
        program('%a = core.alloc "a" at 16000 : memref<64x512xf32, #core.psum>', ""),
        r"capacity overflow: buffer 'a' does not fit psum of core 0.*needs 18048, has 16384",
    ),
    "too many partitions": (
        program('%a = core.alloc "a" at 0 : memref<65x512xf32, #core.psum>', ""),
        r"'a' does not fit psum of core 0.*partitions: needs 65, has 64",
    ),
    "out of range in a loop": (
        program(
            ALLOC,
            "core.engine vector { affine.for %i = 0 to 9 { core.memset %a[0, %i * 8] [128, 8], 0.0 } }",
        ),
        r"out-of-range access: 'out' of core.memset takes element 0 to 71 of dimension 1 of 'a'.*needs 72, has 64",
    ),
    "out of range below": (
        program(
            ALLOC,
            "core.engine vector { affine.for %i = 0 to 4 { core.memset %a[0, %i * 8 - 1] [128, 8], 0.0 } }",
        ),
        r"takes element -1 to 30 of dimension 1",
    ),
    "out of range by the request": (
        program(ALLOC, "core.engine vector { core.memset %a[0, %r] [128, 1], 0.0 }"),
        r"out-of-range access.*dimension 1 of 'a'",
    ),
    "partition between quadrants": (
        program(
            ALLOC,
            "core.engine vector { affine.for %i = 0 to 4 { core.memset %a[%i * 16, 0] [16, 8], 0.0 } }",
        ),
        r"'out' of core.memset may start at a partition that is no multiple of 32",
    ),
    "two producers": (
        program(
            '%s = core.semaphore "s"',
            "core.engine vector { core.signal %s }\ncore.engine scalar { core.signal %s }",
        ),
        r"semaphore 's' is signalled by two streams, @s vector and @s scalar",
    ),
    "wrong engine": (
        program(ALLOC, "core.engine tensor { core.memset %a, 0.0 }"),
        r"core.memset cannot run on engine tensor",
    ),
    "one engine twice": (
        program(ALLOC, "core.engine vector { core.memset %a, 0.0 }\ncore.engine vector { core.memset %a, 0.0 }"),
        r"two streams for engine vector in stage @s",
    ),
    "beside the engines": (
        program(ALLOC, "core.engine vector { core.memset %a, 0.0 }\ncore.memset %a, 0.0"),
        r"instructions stand beside engine streams",
    ),
    "waits for nobody": (
        program('%s = core.semaphore "s"', "core.engine vector { core.wait %s >= 1 }"),
        r"deadlock: @s vector waits for 's' >= 1, which is at 0",
    ),
    "waits in a ring": (
        program(
            '%s = core.semaphore "s"\n%t = core.semaphore "t"',
            "core.engine vector {\ncore.wait %s >= 1\ncore.signal %t\n}\n"
            "core.engine scalar {\ncore.wait %t >= 1\ncore.signal %s\n}",
        ),
        r"deadlock: @s vector waits for 's' >= 1, which is at 0; @s scalar waits for 't' >= 1, which is at 0",
    ),
    "too many semaphores": (
        program("\n".join(f'%s{i} = core.semaphore "s{i}"' for i in range(33)), "core.engine vector {}"),
        r"too many semaphores on core 0.*needs 33, has 32",
    ),
    "reads a buffer nothing wrote": (
        program(ALLOC, "core.engine vector { core.copy %a[0, 0] [128, 8], %a[0, 8] [128, 8] }"),
        r"read of never-written memory: @s vector reads 'a'.*at byte 32 of partition 0, sbuf of core 0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_is_named(name: str) -> None:
    text, message = CASES[name]
    module = parse(text)
    with pytest.raises(NeuronError) as caught:
        run_module(module, 3, values=False, hazards=True)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_a_core_waits_only_for_its_own_semaphores() -> None:
    text = """
    pipe.program @p {
      %s = core.semaphore "s" on core 1
      pipe.stage @a cores [0] (%s) {
      ^bb0(%t: !core.semaphore):
        pipe.load {}
        pipe.run (%r) {
          core.engine vector {
            core.wait %t >= 1
          }
        }
      }
    }"""
    with pytest.raises(NeuronError, match="stage on core 0 waits for semaphore 's' of core 1"):
        run_module(parse(text), 1, values=False)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> AffineExpr:
    if depth == 0 or draw(st.booleans()):
        if draw(st.booleans()):
            return AffineExpr.dimension(draw(st.integers(0, 1)))
        return AffineExpr.constant(draw(st.integers(-40, 40)))
    left = draw(expressions(depth - 1))
    kind = draw(st.sampled_from(["+", "*", "mod", "floordiv"]))
    if kind == "+":
        return left + draw(expressions(depth - 1))
    number = draw(st.integers(1, 33))
    return left * number if kind == "*" else left % number if kind == "mod" else left // number


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    first, step = draw(st.integers(-8, 40)), draw(st.integers(1, 32))
    return Range(first, first + step * draw(st.integers(0, 5)), step)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(expressions(), ranges(), ranges())
def test_ranges_and_factors_hold_for_every_index(expr: AffineExpr, first: Range, second: Range) -> None:
    values = [range(r.first, r.last + 1, r.step) for r in (first, second)]
    affine = AffineMap(2, 0, (expr,))
    results = [affine.eval(list(point), [])[0] for point in product(*values)]
    low, high = expression_range(expr, [(r.first, r.last) for r in (first, second)])
    assert low <= min(results) and max(results) <= high
    factor = common_factor(expr, (first, second))
    assert all(result == 0 if factor == 0 else result % factor == 0 for result in results)


def test_a_division_by_zero_has_no_range() -> None:
    with pytest.raises(NeuronError, match="division by 0"):
        expression_range(AffineExpr.dimension(0) % 0, [(0, 3)])
