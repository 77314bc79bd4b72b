"""Scheduling: rings, distances, what waits and what does not, overlap, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reading import parse
from xdsl.dialects.builtin import ModuleOp

from neuron_mlir.dialects.core.memory import EngineOp
from neuron_mlir.dialects.core.movement import SemaphoreOp, SignalOp, WaitOp
from neuron_mlir.dialects.pipe.ops import InputOp, OutputOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.allocate import CoreAllocate
from neuron_mlir.passes.core.schedule import CoreSchedule
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.machine_run import MachineRun
from neuron_mlir.simulator.run import input_types, run_module

REQUESTS = 6


def schedule(text: str, **options: Any) -> tuple[ModuleOp, CoreSchedule]:
    """The program through both passes, printed and parsed again."""
    module = parse(text)
    CoreAllocate(**options).apply(make_context(), module)
    owner = CoreSchedule()
    owner.apply(make_context(), module)
    again = parse(str(module))
    assert again.is_structurally_equivalent(module)
    return again, owner


def check(text: str, **options: Any) -> tuple[ModuleOp, MachineRun]:
    """Sequential and scheduled code give the same bits for several requests, and the checker finds nothing."""
    module, _ = schedule(text, **options)
    values = np.random.default_rng(1)
    feeds = [
        {port.name: values.integers(-4, 5, port.shape).astype(np.float32) for port in input_types(module)}
        for _ in range(REQUESTS)
    ]
    wanted = run_module(parse(text), feeds).requests
    got = run_module(module, feeds, hazards=True)
    assert got.machine is not None
    for a, b in zip(wanted, got.requests, strict=True):
        for name, value in a.items():
            assert not np.isnan(value).any()
            assert np.array_equal(value, b[name])
    return module, got.machine


def waits(module: ModuleOp) -> list[str]:
    """The text of all waits, without the names of values."""
    return [str(op).split(" ", 1)[1] for op in module.walk() if isinstance(op, WaitOp)]


def engine(module: ModuleOp, name: str) -> EngineOp:
    """The last stream of that name (the one of the run)."""
    return [op for op in module.walk() if isinstance(op, EngineOp) and op.engine.data == name][-1]


def labels(module: ModuleOp) -> list[str]:
    return [op.label.data for op in module.walk() if isinstance(op, SemaphoreOp)]


def one_stage(body: str, tiles: int = 4, load: str = "", extra: str = "") -> str:
    """A stage between an input and an output of `tiles` tiles of 64 x 512."""
    return f"""
    pipe.program @p {{
      %x = pipe.ring "x" depth 2 on chip 0 : memref<2x64x{tiles}x512xf32, #core.dram>
      %y = pipe.ring "y" depth 2 on chip 0 : memref<2x64x{tiles}x512xf32, #core.dram>
      pipe.input "x" to %x
      pipe.stage @s0 cores [0] (%x, %y) {{
      ^bb0(%xr: memref<2x64x{tiles}x512xf32, #core.dram>, %yr: memref<2x64x{tiles}x512xf32, #core.dram>):
        {extra}
        pipe.load {{ {load} }}
        pipe.run (%r) {{ {body} }}
      }}
      pipe.output "y" from %y
    }}"""


PIPELINE = """
  affine.for %i = 0 to 16 {
    %a = core.alloc "a" : memref<64x512xf32, #core.sbuf>
    %b = core.alloc "b" : memref<64x512xf32, #core.sbuf>
    %c = core.alloc "c" : memref<64x512xf32, #core.sbuf>
    core.dma %xr[%r mod 2, 0, %i, 0] [1, 64, 1, 512] -> %a
    core.tensor_scalar %b, %a op0 add 1.0
    core.activation relu %c, %b
    core.dma %c -> %yr[%r mod 2, 0, %i, 0] [1, 64, 1, 512]
  }"""


THREE_ENGINES = """
pipe.program @p {
  %x = pipe.ring "x" depth 2 on core 0 : memref<64x2x512xf32, #core.sbuf>
  %y = pipe.ring "y" depth 2 on chip 0 : memref<2x64x512xf32, #core.dram>
  pipe.input "x" to %x
  pipe.stage @s0 cores [0] (%x, %y) {
  ^bb0(%xr: memref<64x2x512xf32, #core.sbuf>, %yr: memref<2x64x512xf32, #core.dram>):
    %w = core.alloc "w" : memref<64x64xbf16, #core.sbuf>
    pipe.load { core.memset %w, 1.0 }
    pipe.run (%r) {
      %sum = core.alloc "sum" : memref<64x512xf32, #core.sbuf>
      core.memset %sum, 0.0
      affine.for %i = 0 to 16 {
        %a = core.alloc "a" : memref<64x512xbf16, #core.sbuf>
        core.activation relu %a, %xr[0, %r mod 2, 0] [64, 1, 512]
        %acc = core.alloc "acc" : memref<64x512xf32, #core.psum>
        core.matmul %acc, %w, %a
        core.tensor_tensor max %sum, %sum, %acc
      }
      core.dma %sum -> %yr[%r mod 2, 0, 0] [1, 64, 512]
    }
  }
  pipe.output "y" from %y
}
"""


def test_engines_overlap() -> None:
    """Sixteen tiles through three engines take little longer than the slowest; with one slot each, about the sum."""
    _, run = check(THREE_ENGINES)
    _, alone = check(THREE_ENGINES, depth=1, psum_depth=1)

    def interval(machine: MachineRun) -> float:
        return (machine.finished[-1] - machine.finished[1]) / (REQUESTS - 2)

    slowest = 17 * 572_000  # one element a cycle and 60 cycles of access, for 512 elements of 16 tiles and the memset
    assert slowest <= interval(run) < 1.2 * slowest
    assert interval(run) < 0.55 * interval(alone)


def test_every_wait_of_a_plain_pipeline_is_needed() -> None:
    module, _ = schedule(one_stage(PIPELINE, 16))
    text = str(module)
    feeds = [{"x": np.ones((64, 16, 512), np.float32)} for _ in range(REQUESTS)]
    for number in range(len(waits(module))):
        broken = parse(text)
        wait = [op for op in broken.walk() if isinstance(op, WaitOp)][number]
        wait.detach()
        wait.erase()
        with pytest.raises(NeuronError):
            run_module(broken, feeds, hazards=True)


def test_a_transfer_runs_ahead_by_its_slots() -> None:
    """Distance 2 behind the reader, counted on over the border of a request."""
    module, _ = schedule(one_stage(PIPELINE.replace("16", "4")))
    vector = [str(op).split(">= ")[1] for op in engine(module, "vector").walk() if isinstance(op, WaitOp)]
    assert vector == ["%r * 4 + %i + 1", "%r * 4 + %i - 1"]


TWO_STAGES = """
pipe.program @p {
  %x = pipe.ring "x" depth 2 on chip 0 : memref<2x64x512xf32, #core.dram>
  %h = pipe.ring "h" depth 2 on core 1 : memref<64x2x512xf32, #core.sbuf>
  %y = pipe.ring "y" depth 2 on chip 0 : memref<2x64x512xf32, #core.dram>
  pipe.input "x" to %x
  pipe.stage @s0 cores [0] (%x, %h) {
  ^bb0(%xr: memref<2x64x512xf32, #core.dram>, %hr: memref<64x2x512xf32, #core.sbuf>):
    pipe.load { }
    pipe.run (%r) {
      %a = core.alloc "a" : memref<64x512xf32, #core.sbuf>
      core.dma %xr[%r mod 2, 0, 0] [1, 64, 512] -> %a
      core.activation relu %a, %a
      core.dma %a[0, 0] [64, 256] -> %hr[0, %r mod 2, 0] [64, 1, 256] queue 1
      core.dma %a[0, 256] [64, 256] -> %hr[0, %r mod 2, 256] [64, 1, 256] queue 2
    }
  }
  pipe.stage @s1 cores [1] (%h, %y, %x) {
  ^bb0(%hr: memref<64x2x512xf32, #core.sbuf>, %yr: memref<2x64x512xf32, #core.dram>,
       %xr: memref<2x64x512xf32, #core.dram>):
    pipe.load { }
    pipe.run (%r) {
      %a = core.alloc "a" : memref<64x512xf32, #core.sbuf>
      core.dma %xr[%r mod 2, 0, 0] [1, 64, 512] -> %a
      %b = core.alloc "b" : memref<64x512xf32, #core.sbuf>
      core.tensor_tensor add %b, %a, %hr[0, %r mod 2, 0] [64, 1, 512]
      %c = core.alloc "c" : memref<64x512xf32, #core.sbuf>
      core.activation relu %c, %hr[0, %r mod 2, 0] [64, 1, 512]
      core.tensor_tensor add %c, %b, %c
      core.dma %c -> %yr[%r mod 2, 0, 0] [1, 64, 512]
    }
  }
  pipe.output "y" from %y
}
"""


def test_rings() -> None:
    """A ring that two queues fill, one that two engines read, and an input that two stages read in turn."""
    module, _ = check(TWO_STAGES)
    assert labels(module)[:7] == ["x.full", "x.full2", "x.credit", "h.full", "h.credit", "y.full", "y.credit"]
    cores = {op.label.data: op.places for op in module.walk() if isinstance(op, SemaphoreOp)}
    placed = {name: places[0] for name, places in cores.items() if "." in name}
    assert placed == {
        "x.full": 0,
        "x.full2": 1,
        "x.credit": None,
        "h.full": 1,
        "h.credit": 0,
        "y.full": None,
        "y.credit": 1,
    }


def test_a_ring_that_is_an_output_too() -> None:
    """The host reads last, and gives the credit."""
    text = TWO_STAGES.replace('pipe.output "y" from %y', 'pipe.output "y" from %y\n pipe.output "h" from %h')
    module, _ = check(text)
    output = [op for op in module.walk() if isinstance(op, OutputOp)][1]
    assert output.full is not None and output.credit is not None
    assert output.full.name_hint == "h_full2" and output.credit.name_hint == "h_credit"


def test_an_input_that_nobody_reads() -> None:
    """The host's own signals let it go on."""
    body = PIPELINE.replace("16", "4")
    text = one_stage(body).replace(
        'pipe.input "x" to %x',
        '%z = pipe.ring "z" depth 2 on chip 0 : memref<2x4xf32, #core.dram>\n'
        'pipe.input "x" to %x\n pipe.input "z" to %z',
    )
    module, _ = check(text)
    unread = [op for op in module.walk() if isinstance(op, InputOp)][1]
    assert unread.full is unread.credit


def test_loops_with_steps() -> None:
    body = """
      affine.for %i = 2 to 11 step 3 {
        %a = core.alloc "a" : memref<64x512xf32, #core.sbuf>
        core.dma %xr[%r mod 2, 0, %i, 0] [1, 64, 1, 512] -> %a
        core.activation relu %a, %a
        core.dma %a -> %yr[%r mod 2, 0, %i, 0] [1, 64, 1, 512]
      }
      affine.for %j = 0 to 12 {
        %b = core.alloc "b" : memref<64x512xf32, #core.sbuf>
        core.dma %xr[%r mod 2, 0, %j, 0] [1, 64, 1, 512] -> %b
        core.dma %b -> %yr[%r mod 2, 0, %j, 0] [1, 64, 1, 512]
      }"""
    module, _ = check(one_stage(body, 12))
    assert any("(%i - 2) floordiv 3" in str(op) for op in module.walk() if isinstance(op, WaitOp))


def test_the_load_is_ordered_too() -> None:
    """Transfers, a memset and an activation before the first request, over three streams and a loop."""
    load = """
      %t = core.alloc "t" : memref<64x512xf32, #core.sbuf>
      core.memset %t, 2.0
      affine.for %i = 0 to 4 {
        core.activation relu %w[0, %i, 0] [64, 1, 512], %t
        core.dma %w[0, %i, 0] [64, 1, 512] -> %d[0, %i, 0] [64, 1, 512] queue 1
      }
      core.dma %d -> %v queue 0"""
    extra = """
      %w = core.alloc "w" : memref<64x4x512xf32, #core.sbuf>
      %v = core.alloc "v" : memref<64x4x512xf32, #core.sbuf>
      %d = core.alloc "d" : memref<64x4x512xf32, #core.dram>"""
    body = """
      affine.for %i = 0 to 4 {
        %a = core.alloc "a" : memref<64x512xf32, #core.sbuf>
        core.dma %xr[%r mod 2, 0, %i, 0] [1, 64, 1, 512] -> %a
        core.tensor_tensor add %a, %a, %v[0, %i, 0] [64, 1, 512]
        core.dma %a -> %yr[%r mod 2, 0, %i, 0] [1, 64, 1, 512]
      }"""
    module, _ = check(one_stage(body, load=load, extra=extra))
    first = next(op for op in module.walk() if isinstance(op, EngineOp) and op.engine.data == "dma0")
    assert [str(op).split(" ", 1)[1] for op in first.walk() if isinstance(op, WaitOp)] == ["%dma1 >= 1"]


def test_a_queue_orders_its_own_transfers() -> None:
    """To DRAM and back on one queue: no semaphore. On two: one each way."""
    body = """
      %a = core.alloc "a" : memref<64x4x512xf32, #core.sbuf>
      core.dma %xr[%r mod 2, 0, 0, 0] [1, 64, 4, 512] -> %a queue 1
      core.dma %a -> %d queue 1
      %b = core.alloc "b" : memref<64x4x512xf32, #core.sbuf>
      core.dma %d -> %b queue {queue}
      core.dma %b -> %yr[%r mod 2, 0, 0, 0] [1, 64, 4, 512] queue 1"""
    extra = '%d = core.alloc "d" : memref<64x4x512xf32, #core.dram>'
    module, _ = check(one_stage(body.replace("{queue}", "1"), extra=extra))
    assert {w.split()[0] for w in waits(module)} == {"%x_full", "%y_credit"}
    module, _ = check(one_stage(body.replace("{queue}", "0"), extra=extra))
    assert {w.split()[0] for w in waits(module)} == {"%x_full", "%y_credit", "%dma0", "%dma1"}


def test_signals_nobody_waits_for_are_not_there() -> None:
    body = PIPELINE.replace("16", "4")
    module, owner = schedule(one_stage(body))
    waited = {op.semaphore for op in module.walk() if isinstance(op, WaitOp)}
    host = {
        value for op in module.walk() if isinstance(op, (InputOp, OutputOp)) for value in (op.full, op.credit) if value
    }
    local = [op for op in module.walk() if isinstance(op, SignalOp) and isinstance(op.semaphore.owner, SemaphoreOp)]
    assert local and all(op.semaphore in waited for op in local)
    assert len(host) == 4
    assert owner.statistics["signals"] == sum(isinstance(op, SignalOp) for op in module.walk())
    assert owner.statistics["semaphores"] == len(labels(module))


@pytest.mark.parametrize(
    "text, words",
    [
        ("pipe.program @p { }", "no core code"),
        (
            "pipe.program @p { pipe.stage @s cores [0] () { pipe.load { } pipe.run (%r) {"
            ' %a = core.alloc "a" : memref<64x4xf32, #core.sbuf> core.memset %a, 0.0 } } }',
            "'a' has no address",
        ),
        (
            'pipe.program @p { pipe.stage @s cores [0] () { %a = core.alloc "a" : memref<64x4xf32, #core.sbuf>'
            " pipe.load { } pipe.run (%r) { core.memset %a, 0.0 } } }",
            "'a' has no address",
        ),
        (
            "pipe.program @p { pipe.stage @s cores [0] () {"
            ' %a = core.alloc "a" at 0 : memref<64x4xf32, #core.sbuf>'
            " pipe.load { } pipe.run (%r) { core.engine vector { core.memset %a, 0.0 } } } }",
            "scheduled already",
        ),
        (
            'pipe.program @p { %x = pipe.ring "x" depth 1 on core 0 at 0 : memref<64x1x4xf32, #core.sbuf>'
            " pipe.stage @s cores [0] (%x) { ^bb0(%xr: memref<64x1x4xf32, #core.sbuf>):"
            ' %a = core.alloc "a" at 64 : memref<64x4xf32, #core.sbuf>'
            " pipe.load { } pipe.run (%r) { core.copy %a, %xr[0, 0, 0] [64, 1, 4] } } }",
            "ring 'x' needs one producer",
        ),
        (
            'pipe.program @p { %x = pipe.ring "x" depth 1 on core 0 at 0 : memref<64x1x4xf32, #core.sbuf>'
            ' pipe.input "x" to %x'
            " pipe.stage @s cores [0] (%x) { ^bb0(%xr: memref<64x1x4xf32, #core.sbuf>):"
            ' %a = core.alloc "a" at 64 : memref<64x4xf32, #core.sbuf>'
            " pipe.load { core.copy %a, %xr[0, 0, 0] [64, 1, 4] } pipe.run (%r) { } } }",
            "used at load time",
        ),
    ],
)
def test_errors(text: str, words: str) -> None:
    with pytest.raises(NeuronError, match=words) as caught:
        CoreSchedule().apply(make_context(), parse(text))
    assert caught.value.op is not None


def test_too_many_semaphores() -> None:
    """A machine with four semaphores a core does not run a stage of four streams and two rings."""
    text = one_stage(PIPELINE.replace("16", "4"))
    limits = "core.machine_overrides = {chip.semaphores_per_core = 4 : i64}"
    text = f'builtin.module attributes {{core.machine = "inferentia1", {limits}}} {{ {text} }}'
    with pytest.raises(NeuronError, match="too many semaphores on core 0") as caught:
        schedule(text)
    assert (caught.value.needed, caught.value.available) == (6, 4)
