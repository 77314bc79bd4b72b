"""Estimates of `nn` groups, against instruction counts worked out by hand (1 ns per cycle)."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp, bf16, f16, f32, f64, i1, i8, i64
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation
from xdsl.parser import Parser

from neuron_mlir.dialects.nn.base import tensor
from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import load_machine
from neuron_mlir.machine.cost import Work
from neuron_mlir.passes.estimate import GroupEstimate, element_bytes, estimate_group, is_constant, tensor_bytes
from neuron_mlir.passes.layouts import STREAM_BYTES
from neuron_mlir.runtime.modules import make_context

M = load_machine()


def groups(body: str, arguments: str) -> list[Operation]:
    ctx = make_context()
    module = Parser(ctx, f"func.func @main({arguments}) {{ {body} func.return }}").parse_module()
    module.verify()
    (function,) = (op for op in module.ops if isinstance(op, FuncOp))
    MODULES.append(module)
    return [op for op in function.body.block.ops if not is_constant(op) and op.name != "func.return"]


MODULES: list[ModuleOp] = []
"""What the ops of the tests belong to, kept alive."""


def estimate(body: str, arguments: str) -> GroupEstimate:
    return estimate_group(M, groups(body, arguments)[-1])


X = "tensor<1x64x56x56xbf16>"
Y = "tensor<1x64x56x56xf32>"
W = "tensor<64x64x3x3xbf16>"
CONV = f"%c = nn.conv %i, %j pads [1, 1, 1, 1] : ({X}, {W}) -> {Y}"


def fused(interior: str, result: str, extra: str = "", types: str = "") -> str:
    arguments = f"%i: {X}, %j: {W}" + (f", %k: {types}" if extra else "")
    return (
        f'%w = nn.weight "w" seeded<1> : {W} %b = nn.weight "b" seeded<2> : tensor<64x1x1xf32> '
        f'%f = nn.fused "conv" (%x, %w{extra}) {{ ^bb0({arguments}): {CONV} {interior} }} '
        f": ({X}, {W}{', ' + types if extra else ''}) -> {result}"
    )


# One half-tile of 64 channels, 7 tiles of 8 rows x 56 columns.
MATMULS = 9 * 7 * 448_000
DRAIN = 7 * (60 + 448) * 1000
# Four borders of 58 elements around the input.
BORDER = 4 * (60 + 58) * 1000


def test_conv_alone_and_with_what_rides_along() -> None:
    alone = estimate(fused(f"nn.yield %c : {Y}", Y), f"%x: {X}")
    # Nothing to add: a copy out of PSUM.
    assert alone.work == Work(MATMULS, 0, DRAIN + BORDER)
    assert alone.weight_bytes == 64 * 64 * 9 * 2
    assert alone.resident_bytes == 9 * 64 * 2
    assert alone.parameters == 64 * 64 * 9
    relu = estimate(fused(f"%r = nn.relu %c : {Y} nn.yield %r : {Y}", Y), f"%x: {X}")
    assert relu.work == Work(MATMULS, DRAIN, BORDER)
    bias = f"%s = nn.add %c, %k : {Y}, tensor<64x1x1xf32>"
    rides = f"{bias} %r = nn.relu %s : {Y} %d = nn.cast %r : ({Y}) -> {X} nn.yield %d : {X}"
    whole = estimate(fused(rides, X, ", %b", "tensor<64x1x1xf32>"), f"%x: {X}")
    assert whole.work == relu.work
    assert whole.parameters == alone.parameters + 64
    assert whole.resident_bytes == alone.resident_bytes + 4


def test_residual_and_second_activation_cost_an_instruction_each() -> None:
    more = f"%s = nn.add %c, %k : {Y}, {Y} %r = nn.relu %s : {Y} nn.yield %r : {Y}"
    group = estimate(fused(more, Y, ", %y", Y), f"%x: {X}, %y: {Y}")
    assert group.work == Work(MATMULS, DRAIN, DRAIN + BORDER)


def test_lone_conv_equals_its_group() -> None:
    lone = estimate(f'%w = nn.weight "w" seeded<1> : {W} ' + CONV.replace("%i", "%x").replace("%j", "%w"), f"%x: {X}")
    assert lone == estimate(fused(f"nn.yield %c : {Y}", Y), f"%x: {X}")


def test_thin_weight_blocks_all_partitions() -> None:
    thin = estimate(
        '%w = nn.weight "w" seeded<1> : tensor<64x3x7x7xbf16> %c = nn.conv %x, %w strides [2, 2] pads [3, 3, 3, 3] '
        ": (tensor<1x3x224x224xbf16>, tensor<64x3x7x7xbf16>) -> tensor<1x64x112x112xf32>",
        "%x: tensor<1x3x224x224xbf16>",
    )
    assert thin.weight_bytes == 64 * 3 * 49 * 2
    assert thin.resident_bytes == 49 * 64 * 2
    assert thin.work.tensor_ps == 49 * 112 * 112 * 1000


def test_grouped_and_depthwise() -> None:
    grouped = estimate(
        '%w = nn.weight "w" seeded<1> : tensor<128x64x1x1xbf16> %c = nn.conv %x, %w group 2 '
        ": (tensor<1x128x8x8xbf16>, tensor<128x64x1x1xbf16>) -> tensor<1x128x8x8xf32>",
        "%x: tensor<1x128x8x8xbf16>",
    )
    assert grouped.work == Work(2 * 64_000, 0, 2 * 124_000)
    assert grouped.resident_bytes == 2 * 64 * 2
    depthwise = estimate(
        '%w = nn.weight "w" seeded<1> : tensor<256x1x3x3xbf16> %c = nn.conv %x, %w pads [1, 1, 1, 1] group 256 '
        ": (tensor<1x256x8x8xbf16>, tensor<256x1x3x3xbf16>) -> tensor<1x256x8x8xf32>",
        "%x: tensor<1x256x8x8xbf16>",
    )
    assert depthwise.work == Work(0, 0, 2 * (9 + 1 + 1) * 124_000 + 4 * 2 * (60 + 10) * 1000)
    assert depthwise.resident_bytes == 2 * 9 * 4


def test_products() -> None:
    weight = "tensor<768x3072xbf16>"
    dense = estimate(
        f'%w = nn.weight "w" seeded<1> : {weight} '
        f"%m = nn.matmul %x, %w : (tensor<2x128x768xbf16>, {weight}) -> tensor<2x128x3072xf32>",
        "%x: tensor<2x128x768xbf16>",
    )
    assert dense.work == Work(6 * 48 * 256_000, 0, 48 * 316_000)
    assert dense.resident_bytes == 6 * 3072 * 2
    attention = estimate(
        "%m = nn.matmul %x, %y : (tensor<12x128x64xbf16>, tensor<12x64x128xbf16>) -> tensor<12x128x128xf32>",
        "%x: tensor<12x128x64xbf16>, %y: tensor<12x64x128xbf16>",
    )
    assert attention.work == Work(12 * 2 * 128_000, 0, 12 * 2 * 188_000)
    assert (attention.weight_bytes, attention.resident_bytes, attention.parameters) == (0, 0, 0)


def test_tables_stay_in_dram() -> None:
    table = "tensor<30522x768xbf16>"
    gather = estimate(
        f'%t = nn.weight "t" seeded<1> : {table} '
        f"%g = nn.gather %t, %i axis 0 : ({table}, tensor<128xi64>) -> tensor<128x768xbf16>",
        "%i: tensor<128xi64>",
    )
    assert gather == GroupEstimate(Work(), 0, 0, 128 * 768 * 2, 30522 * 768)


def test_rows_that_every_partition_wants_are_kept_once() -> None:
    """Of a layer normalisation the scale and bias come to every partition when the layer does."""
    row = "tensor<768xf32>"
    norm = estimate(
        f'%s = nn.weight "s" seeded<1> : {row} %b = nn.weight "b" seeded<2> : {row} '
        f"%n = nn.layer_norm %x, %s, %b axis 1 eps 1.0e-12 : "
        f"(tensor<256x768xf32>, {row}, {row}) -> tensor<256x768xf32>",
        "%x: tensor<256x768xf32>",
    )
    assert norm.resident_bytes == 2 * -(-768 * 4 // 20)
    assert norm.working_bytes >= 2 * 768 * 4 + 2 * 2 * 768 * 4


def test_a_weight_for_tiles_of_rows_streams_as_a_whole() -> None:
    conv = estimate(
        '%w = nn.weight "w" seeded<1> : tensor<64x64x3x3xbf16> %c = nn.conv %x, %w pads [1, 1, 1, 1] '
        ": (tensor<1x64x224x224xbf16>, tensor<64x64x3x3xbf16>) -> tensor<1x64x224x224xf32>",
        "%x: tensor<1x64x224x224xbf16>",
    )
    whole = 9 * 64 * 2
    assert conv.resident_bytes == whole
    assert conv.streaming_bytes == min(STREAM_BYTES, 2 * whole) + whole


def test_rows_on_the_lanes() -> None:
    softmax = estimate(
        "%s = nn.softmax %x axis 3 : (tensor<1x12x128x128xf32>) -> tensor<1x12x128x128xf32>",
        "%x: tensor<1x12x128x128xf32>",
    )
    assert softmax.work == Work(0, 12 * (188 + 61) * 1000, 12 * (3 * 188 + 61) * 1000)
    pool = estimate(
        "%p = nn.max_pool %x kernel [3, 3] strides [2, 2] pads [1, 1, 1, 1] : (tensor<1x64x112x112xbf16>) "
        "-> tensor<1x64x56x56xbf16>",
        "%x: tensor<1x64x112x112xbf16>",
    )
    # Too large for SBUF: computed by tiles of rows and copied into the result.
    assert pool.work == Work(0, 0, 11 * (60 + 3136) * 1000)
    free = estimate("%r = nn.reshape %x : (tensor<4x4xf32>) -> tensor<16xf32>", "%x: tensor<4x4xf32>")
    assert free.work == Work()


def test_sizes() -> None:
    sizes = {i1: 1, i8: 1, i64: 8, bf16: 2, f16: 2, f32: 4, f64: 8}
    assert {kind: element_bytes(kind) for kind in sizes} == sizes
    assert tensor_bytes(tensor((4, 4), f16)) == 32
    assert tensor_bytes(tensor((), f32)) == 4
    with pytest.raises(NeuronError, match="needs a tensor, got f32"):
        tensor_bytes(f32)


def test_op_without_a_cost() -> None:
    (op,) = groups('"test.op"() : () -> ()', "")
    with pytest.raises(NeuronError, match=r"no cost is known for this op \[at 'test.op'"):
        estimate_group(M, op)
