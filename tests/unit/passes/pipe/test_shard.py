"""`pipe-shard`: parts compute what the whole did, on every axis, at every level; mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
from reading import parse, program_of
from xdsl.dialects.builtin import ModuleOp, StringAttr

from neuron_mlir.dialects import nn, pipe
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.dominance import check_dominance
from neuron_mlir.machine import cost, load_machine
from neuron_mlir.passes.pipe._sharding import Planner
from neuron_mlir.passes.pipe._shards import Split
from neuron_mlir.passes.pipe._traffic import crossing_times
from neuron_mlir.passes.pipe.shard import PipeShard
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.run import random_inputs, run_module


def staged(function: str, cores: int) -> ModuleOp:
    """A function cut into stages."""
    module = parse(function)
    for step in load_pipeline(f"nn-fuse,pipe-stage{{cores={cores}}}"):
        step.apply(make_context(), module)
    return module


def check(module: ModuleOp, a_pass: PipeShard, exact: bool = True) -> ModuleOp:
    """The module after the pass, parsed again; it computes the same."""
    feeds = [random_inputs(module, seed=seed, integer=exact) for seed in range(2)]
    wanted = run_module(module, feeds).requests
    a_pass.apply(make_context(), module)
    module.verify()
    check_dominance(module)
    again = parse(str(module))
    assert str(again) == str(module)
    for expected, actual in zip(wanted, run_module(again, feeds).requests, strict=True):
        assert sorted(actual) == sorted(expected)
        for name, value in expected.items():
            if exact:
                np.testing.assert_array_equal(actual[name], value)
            else:
                np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-5)
    return again


def weight(name: str, shape: str) -> str:
    return f'%{name} = nn.weight "{name}" splat<2.0> : tensor<{shape}xf32>'


RESIDUAL = f"""
func.func @main(%x: tensor<1x4x20x10xf32> {{nn.name = "x"}}) -> (tensor<1x8x5x3xf32> {{nn.name = "y"}}) {{
  {weight("w", "8x4x3x3")}
  {weight("v", "8x8x3x3")}
  {weight("u", "8x8x1x1")}
  {weight("d", "8x1x3x3")}
  {weight("b", "8")}
  %0 = nn.conv %x, %w, %b pads [1, 1, 1, 1] : (tensor<1x4x20x10xf32>, tensor<8x4x3x3xf32>, tensor<8xf32>)
      -> tensor<1x8x20x10xf32>
  %1 = nn.max_pool %0 kernel [3, 3] strides [2, 2] pads [1, 1, 1, 1] : (tensor<1x8x20x10xf32>) -> tensor<1x8x10x5xf32>
  %2 = nn.conv %1, %v pads [1, 1, 1, 1] : (tensor<1x8x10x5xf32>, tensor<8x8x3x3xf32>) -> tensor<1x8x10x5xf32>
  %3 = nn.relu %2 : tensor<1x8x10x5xf32>
  %4 = nn.conv %3, %u : (tensor<1x8x10x5xf32>, tensor<8x8x1x1xf32>) -> tensor<1x8x10x5xf32>
  %5 = nn.add %4, %1 : tensor<1x8x10x5xf32>, tensor<1x8x10x5xf32>
  %6 = nn.conv %5, %d strides [2, 2] pads [1, 1, 1, 1] group 8 : (tensor<1x8x10x5xf32>, tensor<8x1x3x3xf32>)
      -> tensor<1x8x5x3xf32>
  func.return %6 : tensor<1x8x5x3xf32>
}}
"""

ATTENTION = f"""
func.func @main(%x: tensor<1x6x32xf32> {{nn.name = "x"}}) -> (tensor<1x6x32xf32> {{nn.name = "y"}}) {{
  {weight("q", "32x32")}
  {weight("k", "32x32")}
  {weight("v", "32x32")}
  %g = nn.weight "g" seeded<3> : tensor<32xf32>
  %ln = nn.layer_norm %x, %g axis 2 eps 1.0e-5 : (tensor<1x6x32xf32>, tensor<32xf32>) -> tensor<1x6x32xf32>
  %0 = nn.matmul %ln, %q : (tensor<1x6x32xf32>, tensor<32x32xf32>) -> tensor<1x6x32xf32>
  %1 = nn.reshape %0 : (tensor<1x6x32xf32>) -> tensor<1x6x4x8xf32>
  %2 = nn.transpose %1 perm [0, 2, 1, 3] : (tensor<1x6x4x8xf32>) -> tensor<1x4x6x8xf32>
  %3 = nn.matmul %ln, %k : (tensor<1x6x32xf32>, tensor<32x32xf32>) -> tensor<1x6x32xf32>
  %4 = nn.reshape %3 : (tensor<1x6x32xf32>) -> tensor<1x6x4x8xf32>
  %5 = nn.transpose %4 perm [0, 2, 3, 1] : (tensor<1x6x4x8xf32>) -> tensor<1x4x8x6xf32>
  %6 = nn.matmul %ln, %v : (tensor<1x6x32xf32>, tensor<32x32xf32>) -> tensor<1x6x32xf32>
  %7 = nn.reshape %6 : (tensor<1x6x32xf32>) -> tensor<1x6x4x8xf32>
  %8 = nn.transpose %7 perm [0, 2, 1, 3] : (tensor<1x6x4x8xf32>) -> tensor<1x4x6x8xf32>
  %9 = nn.matmul %2, %5 : (tensor<1x4x6x8xf32>, tensor<1x4x8x6xf32>) -> tensor<1x4x6x6xf32>
  %10 = nn.softmax %9 axis 3 : (tensor<1x4x6x6xf32>) -> tensor<1x4x6x6xf32>
  %11 = nn.matmul %10, %8 : (tensor<1x4x6x6xf32>, tensor<1x4x6x8xf32>) -> tensor<1x4x6x8xf32>
  %12 = nn.transpose %11 perm [0, 2, 1, 3] : (tensor<1x4x6x8xf32>) -> tensor<1x6x4x8xf32>
  %13 = nn.reshape %12 : (tensor<1x6x4x8xf32>) -> tensor<1x6x32xf32>
  func.return %13 : tensor<1x6x32xf32>
}}
"""


@pytest.mark.parametrize("axis", ["channel", "row", "auto"])
@pytest.mark.parametrize("ways", [2, 3, 4])
def test_forks_windows_and_groups(axis: str, ways: int) -> None:
    """Whole numbers: the same bits, whatever is dealt out."""
    module = check(staged(RESIDUAL, 1), PipeShard(ways, "s0", axis))  # pyright: ignore[reportArgumentType]
    stages = program_of(module).stages()
    assert [stage.core_list() for stage in stages] == [(n,) for n in range(ways)]


def test_each_row_once_and_its_neighbours() -> None:
    """A value that a fork wants in two sizes is computed once, in the larger."""
    module = check(staged(RESIDUAL, 1), PipeShard(2, "s0", "row"))
    for stage in program_of(module).stages():
        convs = [op for op in stage.walk() if isinstance(op, nn.ConvOp)]
        assert len(convs) == 4
    rows = [op.type.get_shape()[2] for op in program_of(module).stages()[0].walk() if isinstance(op, nn.ConvOp)]
    assert rows == [10, 4, 4, 2]


@pytest.mark.parametrize("axis", ["channel", "row", "head"])
def test_attention(axis: str) -> None:
    module = check(staged(ATTENTION, 1), PipeShard(2, "s0", axis), exact=False)  # pyright: ignore[reportArgumentType]
    first = program_of(module).stages()[0]
    scores = [op.type.get_shape() for op in first.walk() if isinstance(op, nn.SoftmaxOp)]
    assert scores == [{"row": (1, 4, 3, 6)}.get(axis, (1, 2, 6, 6))]


def test_heads_stay_whole() -> None:
    """Four heads do not go three ways evenly, but whole."""
    module = check(staged(ATTENTION, 1), PipeShard(3, "s0", "head"), exact=False)
    sizes = [
        op.type.get_shape()[1] for s in program_of(module).stages() for op in s.walk() if isinstance(op, nn.SoftmaxOp)
    ]
    assert sorted(sizes) == [1, 1, 2]


def test_shards_of_neighbours() -> None:
    """A shard of a stage that reads shards takes only the parts it needs."""
    module = staged(RESIDUAL, 2)
    check(module, PipeShard(2, "s0", "row"))
    check(module, PipeShard(2, "s1", "row"))
    program = program_of(module)
    assert [stage.sym_name.data for stage in program.stages()] == ["s0.0", "s0.1", "s1.0", "s1.1"]
    reason = program.attributes["sharding_reason"]
    assert isinstance(reason, StringAttr) and "s0 2 ways by rows" in reason.data and "s1 2 ways by rows" in reason.data


def test_final_form_computes_the_same() -> None:
    module = parse(RESIDUAL)
    for step in load_pipeline("nn-fuse,nn-cast,pipe-stage{cores=2},pipe-shard{stage=s0 axis=row}"):
        step.apply(make_context(), module)
    feeds = [random_inputs(module, seed=seed, integer=True) for seed in range(6)]
    wanted = run_module(module, feeds).requests
    for step in load_pipeline("pipe-replicate{copies=2},core-lower,core-allocate,core-schedule"):
        step.apply(make_context(), module)
    found = run_module(module, feeds, hazards=True).requests
    for expected, actual in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(actual["y"], expected["y"])


def test_cores_go_to_the_slowest() -> None:
    module = staged(RESIDUAL, 2)
    before = PipeShard(cores=2)
    check(module, before)
    assert before.statistics["sharded"] == 0
    after = PipeShard(cores=6)
    check(module, after)
    assert 2 < int(after.statistics["cores"]) <= 6
    assert int(after.statistics["bottleneck-ps"]) < int(before.statistics["bottleneck-ps"])
    certificate = program_of(module).attributes["sharding"]
    assert isinstance(certificate, pipe.CertificateAttr) and 0 <= certificate.gap < 0.1


def stack(tokens: int, size: int, layers: int) -> str:
    """Layers with square weights."""
    kind, square = f"tensor<{tokens}x{size}xf32>", f"tensor<{size}x{size}xbf16>"
    rounded = f"tensor<{tokens}x{size}xbf16>"
    lines = [f'func.func @main(%v0: {kind} {{nn.name = "x"}}) -> ({kind} {{nn.name = "y"}}) {{']
    for n in range(layers):
        lines += [
            f"%c{n} = nn.cast %v{n} : ({kind}) -> {rounded}",
            f'%w{n} = nn.weight "w{n}" splat<1.0> : {square}',
            f"%p{n} = nn.matmul %c{n}, %w{n} : ({rounded}, {square}) -> {kind}",
            f"%v{n + 1} = nn.relu %p{n} : {kind}",
        ]
    return "\n".join([*lines, f"func.return %v{layers} : {kind}", "}"])


def test_what_does_not_win_is_left_whole() -> None:
    """Shards that each read nearly all weights from one DRAM are no faster than one core, and the program says so."""
    module = staged(stack(64, 2048, 4), 1)
    a_pass = PipeShard(cores=4)
    a_pass.apply(make_context(), module)
    assert a_pass.statistics["sharded"] == 0 and len(program_of(module).stages()) == 1
    reason = program_of(module).attributes["sharding_reason"]
    assert isinstance(reason, StringAttr)
    assert "no split wins: s0 " in reason.data and "but DRAM of chip 0 would take" in reason.data
    certificate = program_of(module).attributes["sharding"]
    assert isinstance(certificate, pipe.CertificateAttr)
    assert (
        certificate.objective.value.data
        == int(a_pass.statistics["bottleneck-before-ps"])
        >= certificate.lower_bound.value.data
    )


def test_links_count() -> None:
    """Three stages and a fourth that is split: on cores 3 and 4 the parts lie on two chips, and a slow link
    decides what that is worth."""
    module = staged(stack(512, 512, 4), 4)
    planner = Planner(program_of(module), load_machine(), "auto")
    two = {3: Split("row", 2)}
    near, far = planner.estimate(two, 5), planner.estimate(two, 8)
    assert near.cores == (0, 1, 2, 3, 4)
    assert far.objective_ps <= near.objective_ps
    slow = load_machine(overrides={"chip_link.bytes_per_s": 100_000_000})
    crossing = Planner(program_of(module), slow, "auto").estimate(two, 5)
    assert crossing.slowest.startswith("link 0->1") and crossing.objective_ps > 5 * near.objective_ps
    free = Planner(program_of(module), slow, "auto").estimate({}, 4)
    assert "link" not in free.slowest and free.objective_ps < crossing.objective_ps
    first = crossing_times(program_of(module).stages(), [0] * 4, slow)
    size = 512 * 512 * 2
    assert first[0] == 0 and min(first[1:]) >= cost.service_ps(size, cost.chip_link_bytes_per_s(slow))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1}, "at least 2 ways"),
        ({"stage": "nobody"}, "there is no stage @nobody.*has s0, s1"),
        ({"ways": 9, "stage": "s1", "axis": "row"}, "@s1 cannot be split 9 ways by row"),
        ({"stage": "s0", "axis": "head"}, "@s0 cannot be split 2 ways by head"),
        ({"cores": 1}, "more stages than cores to spend"),
    ],
)
def test_mistakes(options: dict[str, int | str], message: str) -> None:
    with pytest.raises(NeuronError, match=message):
        PipeShard(**options).apply(make_context(), staged(RESIDUAL, 2))  # pyright: ignore[reportArgumentType]


def test_order_of_passes() -> None:
    module = staged(RESIDUAL, 2)
    for step in load_pipeline("pipe-replicate{copies=2}"):
        step.apply(make_context(), module)
    with pytest.raises(NeuronError, match=r"a stage with replicas is not split.*run pipe-replicate after it"):
        PipeShard(2).apply(make_context(), module)
    with pytest.raises(NeuronError, match=r"needs a pipe\.program"):
        PipeShard(2).apply(make_context(), ModuleOp([]))
