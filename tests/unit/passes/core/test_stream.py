"""Weights that do not all fit: parts that stay, parts that are streamed, rows repeated by the PE array."""

from __future__ import annotations

import numpy as np
import pytest
from lowered import PREPARE, Net, apply, same
from xdsl.dialects.builtin import DictionaryAttr, IntegerAttr, ModuleOp, StringAttr, bf16, f32, i64
from xdsl.ir import SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.memory import AllocOp
from neuron_mlir.dialects.pipe.ops import CertificateAttr, StageOp
from neuron_mlir.passes.core.allocation.buffers import Local
from neuron_mlir.passes.core.allocation.stream import place_streams
from neuron_mlir.passes.core.lower import CoreLower
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


@pytest.mark.parametrize("size", [72 * KIB, 56 * KIB, 48 * KIB, 36 * KIB])
def test_several_requests_with_part_of_the_weights_streamed(size: int) -> None:
    """All bits agree with the value form, and no access is out of order with several requests in flight."""
    net = Net()
    module = with_sbuf(net.module(encoder(net)), size)
    apply(module, PREPARE.format(mode="all"))
    feeds = [{"x0": net.numbers((1, 128, 256), f32, -4, 4)} for _ in range(3)]
    expected = [run_module(module, feed, weights=net).outputs for feed in feeds]
    found = lowered(module)
    assert (found["resident weights"] == 6) == (size == 72 * KIB)
    assert ('core.alloc "rows"' in str(module)) == (size < 72 * KIB)
    apply(module, "core-allocate,core-schedule")
    run = run_module(module, feeds, weights=net, hazards=True)
    for outputs, wanted in zip(run.requests, expected, strict=True):
        same(wanted, outputs)


def test_the_same_part_of_every_weight_stays() -> None:
    net = Net()
    module = with_sbuf(net.module(encoder(net)), 48 * KIB)
    apply(module, PREPARE.format(mode="all"))
    lowered(module)
    kept = [op for op in module.walk() if isinstance(op, AllocOp) and isinstance(op.parent_op(), StageOp)]
    blocks = [tuple(op.type.get_shape()) for op in kept if op.label.data.startswith("w")]
    whole = {5: 32, 4: 256}  # blocks of 64 columns; columns of a product by rows
    parts = [shape[1 if len(shape) == 5 else 3] / whole[len(shape)] for shape in blocks if len(shape) in whole]
    assert len(parts) >= 3 and max(parts) < 1 and max(parts) - min(parts) <= 0.5


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
    whole = Residency(80, first.asked)
    assert sum(whole.take(40) for _ in range(4)) == 2
    assert Residency(160, 160).take(40, 1) == 1
