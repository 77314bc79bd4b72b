"""Weights that do not all fit: parts that stay, parts that are streamed, rows repeated by the PE array."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from lowered import PREPARE, Net, apply, same
from xdsl.dialects import affine
from xdsl.dialects.builtin import DictionaryAttr, IntegerAttr, ModuleOp, StringAttr, bf16, f32, i64
from xdsl.ir import Block, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.dialects.core.memory import AllocOp
from neuron_mlir.dialects.pipe.ops import CertificateAttr, RunOp, StageOp
from neuron_mlir.passes.core._affine import read_loop
from neuron_mlir.passes.core.allocation.buffers import Local
from neuron_mlir.passes.core.allocation.stream import place_streams
from neuron_mlir.passes.core.lower import CoreLower
from neuron_mlir.passes.core.lowering.builder import Code
from neuron_mlir.passes.core.lowering.contraction import alternate
from neuron_mlir.passes.core.lowering.residency import Residency
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.run import run_module

KIB = 1024


def with_sbuf(module: ModuleOp, size: int) -> ModuleOp:
    """The module for a machine with so many bytes of SBUF per partition."""
    module.attributes["core.machine"] = StringAttr("inferentia1")
    module.attributes["core.machine_overrides"] = DictionaryAttr({"sbuf.bytes_per_partition": IntegerAttr(size, i64)})
    return module


def encoder(net: Net, layers: int = 3, features: int = 256, hidden: int = 2048) -> SSAValue:
    """Two products, bias, residual and layer normalisation with scales that need all bits of f32, some times over."""
    x = net.x(1, 128, features)
    for _ in range(layers):
        y = net(nn.ReluOp(net(nn.AddOp(net.dense(x, hidden), net.w(hidden)))))
        y = net(nn.AddOp(net(nn.AddOp(net.dense(y, features), net.w(features))), x))
        scale, bias = net.w(features), net.w(features)
        for name in list(net.stored)[-2:]:
            sizes = 10.0 ** net.rng.integers(-12, 12, features)
            net.stored[name] = (net.rng.standard_normal(features) * sizes).astype(np.float32)
        normal = net(nn.LayerNormOp(y, scale, bias, axis=2, eps=1e-12))
        x = net(nn.ClipOp(net(nn.FloorOp(normal)), -8.0, 8.0))
    return x


def lowered(module: ModuleOp) -> dict[str, int | float | str]:
    lower = CoreLower()
    lower.apply(make_context(), module)
    module.verify()
    return dict(lower.statistics)


@pytest.mark.parametrize("size", [56 * KIB, 48 * KIB, 36 * KIB])
def test_several_requests_with_part_of_the_weights_streamed(size: int) -> None:
    """All bits agree with the value form, and no access is out of order with several requests in flight."""
    net = Net()
    module = with_sbuf(net.module(encoder(net)), size)
    apply(module, PREPARE.format(mode="all"))
    feeds = [{"x0": net.numbers((1, 128, 256), f32, -4, 4)} for _ in range(3)]
    expected = [run_module(module, feed, weights=net).outputs for feed in feeds]
    found = lowered(module)
    assert (found["resident weights"] == 6) == (size == 56 * KIB)
    assert ('core.alloc "rows"' in str(module)) == (size < 72 * KIB)
    apply(module, "core-allocate,core-schedule")
    run = run_module(module, feeds, weights=net, hazards=True)
    for outputs, wanted in zip(run.requests, expected, strict=True):
        same(wanted, outputs)


def test_parts_that_stay_and_parts_that_are_streamed_take_turns() -> None:
    """A loop around a matmul with a weight at the level of the stage and one with a weight made there."""
    net = Net()
    module = with_sbuf(net.module(encoder(net)), 48 * KIB)
    apply(module, PREPARE.format(mode="all"))
    lowered(module)
    turns = 0
    for loop in (op for op in module.walk() if isinstance(op, affine.ForOp)):
        weights = [op.buffers[1].owner for op in loop.walk() if isinstance(op, MatmulOp)]
        stay = [isinstance(cast(Operation, owner).parent_op(), StageOp) for owner in weights]
        turns += True in stay and False in stay and isinstance(loop.parent_op(), RunOp)
    assert turns >= 3


@pytest.mark.parametrize("here", range(9))
@pytest.mark.parametrize("away", range(9))
def test_every_part_has_its_turn(here: int, away: int) -> None:
    found: list[tuple[int, bool]] = []
    code = Code(Block())

    def emit(start: Linear, count: int, kept: bool) -> None:
        (turns, step) = (1, 0) if not start.terms else (loops(code), start.terms[0][1])
        found.extend((start.constant + turn * step + n, kept) for turn in range(turns) for n in range(count))

    alternate(code, here, away, emit)
    assert sorted(found) == sorted([(n, True) for n in range(here)] + [(n, False) for n in range(away)])


def loops(code: Code) -> int:
    """Iterations of the loop that is being written."""
    loop = code.block.parent_op()
    assert isinstance(loop, affine.ForOp)
    return read_loop(loop, 0).trips


def test_streams_have_a_region_of_their_own() -> None:
    net = Net()
    module = with_sbuf(net.module(encoder(net)), 48 * KIB)
    apply(module, PREPARE.format(mode="all") + ",core-lower,core-allocate")
    stage = next(op for op in module.walk() if isinstance(op, StageOp))
    plan = stage.attributes["core.sbuf_plan"]
    assert isinstance(plan, CertificateAttr)
    assert "bytes for streams" in plan.method.data


def streamed(size: int, count: int, lower: int, upper: int) -> Local:
    from neuron_mlir.dialects.core.memory import SBUF, buffer_type
    from neuron_mlir.passes.core._affine import Loop

    op = AllocOp("t", buffer_type((128, size // 2), bf16, SBUF))
    return Local(op, "sbuf", lower, upper, [Loop(1, count)])


def test_streams_follow_each_other_round() -> None:
    buffers = [streamed(512, 8, time, time) for time in range(5)]
    placed = place_streams(4096, buffers, 64)
    assert placed is not None
    depths, offsets = placed
    assert [depths[b] for b in buffers] == [2] * 5
    assert [offsets[b] for b in buffers] == [0, 1024, 2048, 3072, 0]


def test_streams_pass_by_what_is_in_use() -> None:
    long = streamed(512, 1, 0, 4)
    others = [streamed(512, 8, time, time) for time in range(1, 5)]
    placed = place_streams(2048, [long, *others], 64)
    assert placed is not None
    _, offsets = placed
    assert offsets[long] == 0
    assert [offsets[b] for b in others] == [512] * 4
    assert place_streams(1024, [long, *others], 64) is None


def test_residency_spreads_what_stays() -> None:
    first = Residency(100)
    assert [first.take(10, 4) for _ in range(4)] == [4, 4, 0, 0]
    again = Residency(80, first.asked)
    assert [again.take(10, 4) for _ in range(4)] == [2, 2, 2, 2]
    # By time: the second layer takes three quarters of it, and so much of what is streamed.
    layers = [nn.YieldOp(), nn.YieldOp()]
    timed = Residency(80, first.asked, {layers[0]: 1, layers[1]: 3})
    timed.begin(layers[0])
    assert timed.take(10, 8) == 6
    timed.begin(layers[1])
    assert timed.take(10, 8) == 2
    whole = Residency(80, first.asked)
    assert sum(whole.take(40) for _ in range(4)) == 2
    assert Residency(160, 160).take(40, 1) == 1
