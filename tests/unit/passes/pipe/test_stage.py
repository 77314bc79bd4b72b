"""`pipe-stage`: the program computes what the function did, and mistakes are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import parse, program_of
from xdsl.dialects.builtin import ModuleOp, StringAttr

from neuron_mlir.dialects import nn, pipe
from neuron_mlir.errors import NeuronError, location_text
from neuron_mlir.ir.dominance import check_dominance
from neuron_mlir.ir.machine_attr import machine_of, record_machine
from neuron_mlir.machine import load_machine
from neuron_mlir.machine.cost import core_dma_bytes_per_s, service_ps
from neuron_mlir.passes.base import NeuronPass, Relation
from neuron_mlir.passes.pipe.stage import PipeStage
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.run import random_inputs, run_module


def staged(text: str, cores: int | str = "auto", **options: int | bool) -> tuple[ModuleOp, PipeStage]:
    module = parse(text)
    a_pass = PipeStage(cores, **options)  # pyright: ignore[reportArgumentType]
    a_pass.apply(make_context(), module)
    module.verify()
    check_dominance(module)
    return module, a_pass


CHAIN = """
func.func @main(%x: tensor<8x8xf32>) -> tensor<8x8xf32> {
  %w = nn.weight "w" seeded<1> : tensor<8x8xf32>
  %0 = nn.matmul %x, %w : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32> loc("a")
  %1 = nn.relu %0 : tensor<8x8xf32> loc("b")
  %2 = nn.matmul %1, %w : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32> loc("c")
  func.return %2 : tensor<8x8xf32>
}
"""


@st.composite
def functions(draw: st.DrawFn) -> str:
    """Random graphs of matmuls with one of two weights, sums, reshapes, groups and constants."""
    matrix, flat = "tensor<4x4xf32>", "tensor<16xf32>"
    lines = [
        f'  %w0 = nn.weight "w0" seeded<1> : {matrix}',
        f'  %w1 = nn.const {{ %p = nn.weight "w1" seeded<2> : {matrix} %q = nn.neg %p : {matrix}',
        f"    nn.yield %q : {matrix} }} : {matrix}",
    ]
    values = ["%x", "%y"]
    for n in range(draw(st.integers(1, 7))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.sampled_from(["matmul", "add", "reshape", "fused"]))
        if kind == "matmul":
            weight = draw(st.sampled_from(["%w0", "%w1"]))
            lines.append(f"  %v{n} = nn.matmul {a}, {weight} : ({matrix}, {matrix}) -> {matrix}")
        elif kind == "add":
            lines.append(f"  %v{n} = nn.add {a}, {b} : {matrix}, {matrix}")
        elif kind == "reshape":
            lines.append(f"  %f{n} = nn.reshape {a} : ({matrix}) -> {flat}")
            lines.append(f"  %v{n} = nn.reshape %f{n} : ({flat}) -> {matrix}")
        else:
            lines.append(
                f'  %v{n} = nn.fused "elementwise" ({a}, %w1) {{ ^bb0(%i: {matrix}, %j: {matrix}): '
                f"%k = nn.sub %i, %j : {matrix}, {matrix} nn.yield %k : {matrix} }} : ({matrix}, {matrix}) -> {matrix}"
            )
        values.append(f"%v{n}")
    results = draw(st.lists(st.sampled_from([*values, "%w1"]), min_size=1, max_size=3))
    types = ", ".join([matrix] * len(results))
    body = "\n".join(lines)
    return (
        f"func.func @main(%x: {matrix}, %y: {matrix}) -> ({types}) {{\n{body}\n"
        f"  func.return {', '.join(results)} : {types}\n}}\n"
    )


@given(functions(), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_program_computes_what_the_function_did(text: str, cores: int) -> None:
    before = parse(text)
    groups = PipeStage(1)
    groups.apply(make_context(), parse(text))
    cores = min(cores, int(groups.statistics["groups"]))
    after, a_pass = staged(text, cores)
    again = parse(str(after))
    assert str(again) == str(after)
    assert a_pass.statistics["stages"] == cores
    inputs = random_inputs(before, 3)
    expected = run_module(before, inputs).outputs
    for module in (after, again):
        outputs = run_module(module, inputs).outputs
        assert list(outputs) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(outputs[name], value)


def test_stages_are_in_order_on_their_cores_and_ops_keep_locations() -> None:
    module, a_pass = staged(CHAIN, 3, first_core=2)
    stages = program_of(module).stages()
    assert [s.core_list() for s in stages] == [(2,), (3,), (4,)]
    assert [s.sym_name.data for s in stages] == ["s0", "s1", "s2"]
    located = [[location_text(op.location) for op in s.body.block.ops if isinstance(op, nn.NnOp)] for s in stages]
    assert located == [["a"], ["b"], ["c"]]
    assert a_pass.statistics["streams"] == 3
    assert a_pass.statistics["aws-formula-cores"] == 0


def test_certificate_and_reason_are_in_the_program() -> None:
    module, a_pass = staged(CHAIN)
    program = program_of(module)
    certificate = program.attributes["certificate"]
    assert isinstance(certificate, pipe.CertificateAttr)
    assert certificate.unit.data == "ps"
    assert certificate.gap == 0
    assert certificate.objective.value.data == a_pass.statistics["bottleneck-ps"]
    assert program.attributes["reason"] == StringAttr(str(a_pass.statistics["reason"]))
    assert "1 core: the fewest whose SBUF holds all weights" in str(a_pass.statistics["reason"])


def layers(count: int, size: int) -> str:
    """Square layers of f32 weights."""
    kind = f"tensor<{size}x{size}xf32>"
    lines = [f"func.func @main(%v0: tensor<1x{size}xf32>) -> tensor<1x{size}xf32> {{"]
    for n in range(count):
        lines.append(f'  %w{n} = nn.weight "w{n}" seeded<{n}> : {kind}')
        lines.append(f"  %v{n + 1} = nn.matmul %v{n}, %w{n} : (tensor<1x{size}xf32>, {kind}) -> tensor<1x{size}xf32>")
    return "\n".join([*lines, f"  func.return %v{count} : tensor<1x{size}xf32>", "}"])


def test_auto_takes_as_many_cores_as_the_weights_need() -> None:
    # 8 blocks of 128 rows, 1024 columns, 4 bytes: 32 KiB per partition each; two fit 72 KiB.
    module, a_pass = staged(layers(6, 1024), reserve_percent=25)
    assert a_pass.statistics["stages"] == 3
    assert a_pass.statistics["streamed-weight-bytes"] == 0
    reason = str(a_pass.statistics["reason"])
    assert "196608 bytes per partition, a core has 73728 for them and for activations" in reason
    assert len(program_of(module).stages()) == 3
    _, roomy = staged(layers(6, 1024), reserve_percent=0)
    # Three would fill SBUF to the last byte; values need some of it.
    assert roomy.statistics["stages"] == 3
    _, tight = staged(layers(6, 1024), reserve_percent=80, piece_percent=0)
    assert tight.statistics["stages"] == 6
    assert "alone takes 32768 bytes per partition" in str(tight.statistics["reason"])
    _, pieces = staged(layers(6, 1024), reserve_percent=80)
    assert pieces.statistics["stages"] == 11
    _, last = staged(layers(6, 1024), first_core=62)
    assert last.statistics["stages"] == 2
    assert "all there are to use; holding all weights would take 3 (it takes 3 at least" in str(
        last.statistics["reason"]
    )
    known = program_of(staged(layers(6, 1024), reserve_percent=0)[0]).attributes["fewest_cores"]
    assert isinstance(known, pipe.CertificateAttr)
    assert (known.objective.value.data, known.lower_bound.value.data) == (3, 3)


def test_over_several_chips_nothing_hides_streamed_weights() -> None:
    core_rate = core_dma_bytes_per_s(load_machine("inferentia1"))
    hidden: list[bool] = []
    for first_core in (0, 3):
        module, a_pass = staged(layers(8, 1024), 2, first_core=first_core, piece_percent=0)
        assert a_pass.statistics["streamed-weight-bytes"]
        found = program_of(module).stages()[1].attributes
        streamed, compute, total = (
            int(found[key].value.data)  # type: ignore[attr-defined]
            for key in ("streamed_bytes", "compute_ps", "cost_ps")
        )
        # The rate is rounded to whole picoseconds for a byte.
        hidden.append(total < compute + 0.95 * service_ps(streamed, core_rate))
    assert hidden == [True, False]


def test_stage_follows_the_recorded_machine() -> None:
    module = parse(layers(6, 1024))
    machine = load_machine(overrides={"sbuf.bytes_per_partition": 1 << 20})
    record_machine(module, machine)
    a_pass = PipeStage()
    a_pass.apply(make_context(), module)
    assert a_pass.statistics["stages"] == 1
    assert machine_of(program_of(module)) == machine
    assert machine_of(parse(str(module))) == machine


@pytest.mark.parametrize(
    ("text", "cores", "message"),
    [
        (CHAIN, 4, "cannot cut 3 groups into 4 stages"),
        (CHAIN, 0, "is 1 to 64 or auto, not 0"),
        (CHAIN, 65, "from core 0 on: needs 65, has 64"),
        ("builtin.module { }", 1, "pipe-stage cuts one function, the module has 0 (none)"),
        (CHAIN + CHAIN.replace("@main", "@other"), 1, "the module has 2 (@main, @other)"),
        ('pipe.program @p { pipe.input "x" : !pipe.stream<tensor<1xf32>> }', 1, "the module is staged already"),
        ("func.func @main() { func.return }", 1, "there is nothing to cut"),
        ('func.func @main() { "func.call"() {callee = @main} : () -> () func.return }', 1, "functions of nn ops only"),
    ],
)
def test_mistakes(text: str, cores: int, message: str) -> None:
    module = parse(text)
    before = str(module)
    with pytest.raises(NeuronError) as caught:
        PipeStage(cores).apply(make_context(), module)
    assert message in caught.value.line
    assert str(module) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reserve_percent": 100}, "'reserve-percent' of pass 'pipe-stage' is 0 to 99, not 100"),
        ({"piece_percent": 101}, "'piece-percent' of pass 'pipe-stage' is 0 to 100, not 101"),
        ({"first_core": 64}, "'first-core' of pass 'pipe-stage' is 0 to 63, not 64"),
        ({"first_core": 60, "cores": 5}, "'cores' of pass 'pipe-stage' is 1 to 4 or auto, not 5"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(NeuronError) as caught:
        PipeStage(**options).apply(make_context(), parse(CHAIN))
    assert message in caught.value.line


def test_what_is_made_of_inputs_alone_is_made_where_it_is_used() -> None:
    text = """
    func.func @main(%x: tensor<64x64xf32>, %m: tensor<1x64xi64>) -> tensor<64x64xf32> {
      %mask = nn.cast %m : (tensor<1x64xi64>) -> tensor<1x64xf32>
      %w0 = nn.weight "w0" seeded<0> : tensor<64x64xf32>
      %w1 = nn.weight "w1" seeded<1> : tensor<64x64xf32>
      %a = nn.matmul %x, %w0 : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
      %b = nn.add %a, %mask : tensor<64x64xf32>, tensor<1x64xf32>
      %c = nn.matmul %b, %w1 : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
      %d = nn.add %c, %mask : tensor<64x64xf32>, tensor<1x64xf32>
      func.return %d : tensor<64x64xf32>
    }
    """
    module, _ = staged(text, 2)
    stages = program_of(module).stages()
    casts = [sum(op.name == "nn.cast" for op in stage.walk()) for stage in stages]
    adds = [any(op.name == "nn.add" for op in stage.walk()) for stage in stages]
    assert casts == [int(used) for used in adds]
    assert [len(stage.results_) for stage in stages] == [1, 1]


PRODUCTS = """
func.func @main(%x: tensor<1x32x256xbf16>) -> tensor<1x32x256xf32> {
  %w = nn.weight "w" seeded<1> : tensor<256x1024xbf16>
  %b = nn.weight "b" seeded<2> : tensor<1024xf32>
  %v = nn.weight "v" seeded<3> : tensor<1024x256xbf16>
  %0 = nn.fused "matmul" (%x, %w, %b) {
  ^bb0(%i: tensor<1x32x256xbf16>, %j: tensor<256x1024xbf16>, %k: tensor<1024xf32>):
    %m = nn.matmul %i, %j : (tensor<1x32x256xbf16>, tensor<256x1024xbf16>) -> tensor<1x32x1024xf32>
    %n = nn.add %m, %k : tensor<1x32x1024xf32>, tensor<1024xf32>
    %o = nn.cast %n : (tensor<1x32x1024xf32>) -> tensor<1x32x1024xbf16>
    nn.yield %o : tensor<1x32x1024xbf16>
  } : (tensor<1x32x256xbf16>, tensor<256x1024xbf16>, tensor<1024xf32>) -> tensor<1x32x1024xbf16> loc("first")
  %1 = nn.fused "matmul" (%0, %v, %x) {
  ^bb0(%i: tensor<1x32x1024xbf16>, %j: tensor<1024x256xbf16>, %k: tensor<1x32x256xbf16>):
    %m = nn.matmul %i, %j : (tensor<1x32x1024xbf16>, tensor<1024x256xbf16>) -> tensor<1x32x256xf32>
    %n = nn.add %m, %k : tensor<1x32x256xf32>, tensor<1x32x256xbf16>
    nn.yield %n : tensor<1x32x256xf32>
  } : (tensor<1x32x1024xbf16>, tensor<1024x256xbf16>, tensor<1x32x256xbf16>) -> tensor<1x32x256xf32> loc("second")
  %2 = nn.softmax %1 axis 2 : (tensor<1x32x256xf32>) -> tensor<1x32x256xf32>
  func.return %2 : tensor<1x32x256xf32>
}
"""


@pytest.mark.parametrize("cores", [4, 5, 6])
def test_layers_are_divided_between_stages(cores: int) -> None:
    before = parse(PRODUCTS)
    inputs = random_inputs(before, 3)
    expected = run_module(before, inputs).outputs
    after, a_pass = staged(PRODUCTS, cores, piece_percent=1)
    assert str(parse(str(after))) == str(after)
    assert a_pass.statistics["stages"] == cores
    assert a_pass.statistics["divided"] and a_pass.relation is Relation.REASSOCIATES
    # One layer in two stages is in two ranges of channels, which are put together where they are read.
    joins = [op for op in after.walk() if isinstance(op, nn.ConcatOp)]
    assert joins and all(len(join.inputs) <= cores for join in joins)
    for module in (after, lowered(after)):
        for name, value in run_module(module, inputs).outputs.items():
            np.testing.assert_allclose(value, expected[name], rtol=2e-3, atol=1e-5)
    whole, other = staged(PRODUCTS, 2, piece_percent=0)
    assert not other.statistics["divided"] and other.relation is Relation.EXACT
    assert not any(isinstance(op, nn.ConcatOp) for op in whole.walk())


def lowered(module: ModuleOp) -> ModuleOp:
    for step in load_pipeline("core-lower,core-allocate,core-schedule"):
        step.apply(make_context(), module)
    module.verify()
    return module


def test_link_to_the_host_may_be_what_is_slowest() -> None:
    # Pooling is quick, and DRAM faster than PCIe even if it is passed twice.
    wide, narrow = "tensor<1x512x28x28xbf16>", "tensor<1x512x4x4xbf16>"
    module, a_pass = staged(
        f"""
func.func @main(%x: {wide}) -> {narrow} {{
  %0 = nn.max_pool %x kernel [7, 7] strides [7, 7] pads [0, 0, 0, 0] : ({wide}) -> {narrow}
  func.return %0 : {narrow}
}}
""",
        1,
    )
    program = program_of(module)
    assert program.attributes["bottleneck"] == StringAttr("host link in")
    expected = 512 * 28 * 28 * 2 / 15.75e-3
    assert (
        a_pass.statistics["bottleneck-ps"] == a_pass.statistics["lower-bound-ps"] == pytest.approx(expected, rel=0.01)
    )
    bound = run_module(lowered(module), 4, values=False, hazards=False).report().bound
    assert bound.resource == "host link in" and 1e12 / bound.throughput_per_s == pytest.approx(expected, rel=0.01)


def layers_of(*sizes: tuple[str, int, int, int], side: int) -> str:
    """Convolutions one after the other: name, kernel, channels in and out."""
    kind = "tensor<1x{}x{}x{}x{}>".format
    lines = [f"func.func @main(%v0: {kind(sizes[0][2], side, side, 'bf16')}) -> "]
    lines[0] += f"{kind(sizes[-1][3], side, side, 'bf16')} {{"
    for n, (name, size, channels, made) in enumerate(sizes):
        into, out, pad = kind(channels, side, side, "bf16"), kind(made, side, side, "bf16"), size // 2
        weight, sums = f"tensor<{made}x{channels}x{size}x{size}xbf16>", kind(made, side, side, "f32")
        lines += [
            f'  %w{n} = nn.weight "{name}" seeded<{n}> : {weight}',
            f"  %c{n} = nn.conv %v{n}, %w{n} strides [1, 1] pads [{pad}, {pad}, {pad}, {pad}] dilations [1, 1] group 1"
            f' : ({into}, {weight}) -> {sums} loc("{name}")',
            f'  %v{n + 1} = nn.cast %c{n} : ({sums}) -> {out} loc("{name}")',
        ]
    return "\n".join([*lines, f"  func.return %v{len(sizes)} : {lines[-1].split(' -> ')[1].split(' loc')[0]}", "}"])


def test_a_layer_that_bounds_all_stages_is_split() -> None:
    text = layers_of(("a", 1, 32, 32), ("large", 7, 32, 64), ("b", 1, 64, 16), ("c", 1, 16, 16), side=48)
    before = parse(text)
    inputs = random_inputs(before, 3)
    expected = run_module(before, inputs).outputs
    whole, plain = staged(text, 4)
    module, a_pass = staged(text, 4, split=True)
    assert str(parse(str(module))) == str(module)
    program = program_of(module)
    reason = program.attributes["sharding_reason"]
    assert isinstance(reason, StringAttr)
    assert reason.data.startswith("more stages do not help 'large'") and "2 ways by rows" in reason.data
    assert (a_pass.statistics["stages"], a_pass.statistics["split"]) == (4, 1)
    assert a_pass.relation is Relation.REASSOCIATES and plain.relation is Relation.EXACT
    assert isinstance(program.attributes["sharding"], pipe.CertificateAttr)
    rates: list[float] = []
    for found, counted in ((whole, plain), (module, a_pass)):
        found = lowered(found)
        for name, value in run_module(found, inputs).outputs.items():
            np.testing.assert_allclose(value, expected[name], rtol=2e-2, atol=1e-2)
        rates.append(run_module(found, 12, values=False, hazards=False).report().throughput_per_s)
        assert 1e12 / rates[-1] == pytest.approx(int(counted.statistics["bottleneck-ps"]), rel=0.15)
    assert rates[1] > 1.7 * rates[0]


def test_a_layer_is_left_whole_where_its_parts_would_not_be_faster() -> None:
    # The last core helps, or DRAM is what is slowest.
    _, even = staged(layers_of(("a", 7, 32, 32), ("b", 7, 32, 32), side=24), 2, split=True)
    assert (even.statistics["stages"], even.statistics["split"]) == (2, 0)
    module, busy = staged(layers_of(("a", 1, 64, 64), ("b", 3, 64, 64), side=56), 4, split=True)
    assert (busy.statistics["stages"], busy.statistics["split"]) == (4, 0)
    known = program_of(module).attributes.get("sharding_reason")
    assert known is None or "not be 10% faster" in str(known) or "no split wins" in str(known)


def test_more_cores_than_layers_divide_a_layer() -> None:
    text = """
func.func @main(%x: tensor<1x2048xbf16>) -> tensor<1x2048xf32> {
  %w = nn.weight "w" seeded<1> : tensor<2048x2048xbf16>
  %0 = nn.matmul %x, %w : (tensor<1x2048xbf16>, tensor<2048x2048xbf16>) -> tensor<1x2048xf32>
  %1 = nn.relu %0 : tensor<1x2048xf32>
  func.return %1 : tensor<1x2048xf32>
}
"""
    _, a_pass = staged(text, 4)
    assert (a_pass.statistics["stages"], a_pass.statistics["divided"]) == (4, 1)


def test_stages_of_large_maps_are_as_even_as_their_groups() -> None:
    kind, narrow = "tensor<1x16x400x400xbf16>", "tensor<1x16x400x400xf32>"
    lines = [f"func.func @main(%v0: {kind}) -> {kind} {{"]
    for n in range(6):
        lines += [
            f'  %w{n} = nn.weight "w{n}" seeded<{n}> : tensor<16x16x3x3xbf16>',
            f"  %c{n} = nn.conv %v{n}, %w{n} strides [1, 1] pads [1, 1, 1, 1] dilations [1, 1] group 1"
            f" : ({kind}, tensor<16x16x3x3xbf16>) -> {narrow}",
            f"  %v{n + 1} = nn.cast %c{n} : ({narrow}) -> {kind}",
        ]
    module, a_pass = staged("\n".join([*lines, f"  func.return %v6 : {kind}", "}"]), 2)
    program = program_of(module)
    certificate = program.attributes["certificate"]
    assert isinstance(certificate, pipe.CertificateAttr)
    assert certificate.method.data == "interval DP over the given order"
    (fuse,) = load_pipeline("nn-fuse-depth-first")
    assert isinstance(fuse, NeuronPass)
    expected = [int(stage.attributes["compute_ps"].value.data) for stage in program.stages()]  # type: ignore[attr-defined]
    fuse.apply(make_context(), module)
    layers = [[op for op in stage.walk() if isinstance(op, nn.ConvOp)] for stage in program.stages()]
    assert [len(found) for found in layers] == [3, 3]
    assert all(isinstance(op.parent_op(), nn.FusedOp) for found in layers for op in found)
    # Stages take what the groups do that are made in them, and DRAM that is less busy than when all cores use it.
    grouped = int(fuse.statistics["cost-ps"])
    assert 0.8 * grouped < sum(expected) <= 1.001 * grouped
    assert a_pass.statistics["streamed-weight-bytes"] == 0
