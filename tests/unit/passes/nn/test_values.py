"""The nn passes on random networks: what runs before runs after, to the bit where the pass says so."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp, bf16, f16, f32
from xdsl.dialects.func import Func, FuncOp, ReturnOp
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.parser import Parser

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import tensor, type_of
from neuron_mlir.ir.dominance import check_dominance
from neuron_mlir.passes.base import NeuronPass
from neuron_mlir.passes.nn.cast import MODES, CastPass
from neuron_mlir.passes.nn.fold_batch_norm import FoldBatchNormPass
from neuron_mlir.passes.nn.fold_constants import FoldConstantsPass
from neuron_mlir.passes.nn.fuse import FusePass
from neuron_mlir.simulator.nn_eval import evaluate_function

Array = NDArray[Any]
CHANNELS = 3
SHAPE = (1, CHANNELS, 4, 4)
LAYERS = (
    "conv",
    "depthwise",
    "matmul",
    "batch_norm",
    "channel_mul",
    "channel_add",
    "identity_mul",
    "relu",
    "sigmoid",
    "gelu_by_erf",
    "add",
    "mul",
    "max_pool",
    "softmax",
    "transpose_twice",
    "concat_slice",
    "const_chain",
)


class Network:
    """Layers added one after the other; every value has the same shape, so any may feed any."""

    def __init__(self) -> None:
        self.block = Block(arg_types=[tensor(SHAPE), tensor(SHAPE)])
        self.values: list[SSAValue] = list(self.block.args)
        self.weights = 0

    def op(self, op: Operation) -> SSAValue:
        self.block.add_op(op)
        return op.results[0]

    def weight(self, *shape: int) -> SSAValue:
        self.weights += 1
        return self.op(nn.WeightOp(f"w{self.weights}", tensor(shape), nn.SeededAttr.get(self.weights)))

    def number(self, value: float) -> SSAValue:
        return self.op(nn.WeightOp("number", tensor(()), nn.SplatAttr.get(value)))

    def layer(self, kind: str, x: SSAValue, y: SSAValue) -> SSAValue:
        return cast(SSAValue, getattr(self, kind)(x, y))

    def conv(self, x: SSAValue, y: SSAValue) -> SSAValue:
        bias = self.weight(CHANNELS) if self.weights % 2 else None
        return self.op(nn.ConvOp(x, self.weight(CHANNELS, CHANNELS, 3, 3), bias, pads=(1, 1, 1, 1)))

    def depthwise(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.ConvOp(x, self.weight(CHANNELS, 1, 1, 1), group=CHANNELS))

    def matmul(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.MatmulOp(x, y if self.weights % 2 else self.weight(4, 4)))

    def batch_norm(self, x: SSAValue, y: SSAValue) -> SSAValue:
        mean, scale = self.weight(CHANNELS), self.weight(CHANNELS)
        var = self.op(nn.AddOp(self.op(nn.AbsOp(self.weight(CHANNELS))), self.number(0.5)))
        return self.op(nn.BatchNormOp(x, scale, mean, mean, var))

    def channel_mul(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.MulOp(self.weight(CHANNELS, 1, 1), x))

    def channel_add(self, x: SSAValue, y: SSAValue) -> SSAValue:
        column = self.op(nn.ReshapeOp(self.weight(CHANNELS), (1, CHANNELS, 1, 1)))
        return self.op(nn.SubOp(x, column))

    def identity_mul(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.MulOp(x, self.number(1.0)))

    def relu(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.ReluOp(x))

    def sigmoid(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.SigmoidOp(x))

    def gelu_by_erf(self, x: SSAValue, y: SSAValue) -> SSAValue:
        inner = self.op(nn.ErfOp(self.op(nn.DivOp(x, self.number(2**0.5)))))
        gate = self.op(nn.AddOp(inner, self.number(1.0)))
        return self.op(nn.MulOp(self.op(nn.MulOp(x, gate)), self.number(0.5)))

    def add(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.AddOp(x, y))

    def mul(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.MulOp(x, self.op(nn.SigmoidOp(y))))

    def max_pool(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.MaxPoolOp(x, (3, 3), pads=(1, 1, 1, 1)))

    def softmax(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.SoftmaxOp(x, axis=1))

    def transpose_twice(self, x: SSAValue, y: SSAValue) -> SSAValue:
        return self.op(nn.TransposeOp(self.op(nn.TransposeOp(x, (0, 1, 3, 2))), (0, 1, 3, 2)))

    def concat_slice(self, x: SSAValue, y: SSAValue) -> SSAValue:
        both = self.op(nn.ConcatOp([x, y, self.weight(*SHAPE)], axis=1))
        return self.op(nn.SliceOp(both, (0, 2, 0, 0), SHAPE, (1, 2, 1, 1)))

    def const_chain(self, x: SSAValue, y: SSAValue) -> SSAValue:
        w = self.weight(4, 4)
        return self.op(nn.AddOp(x, self.op(nn.MulOp(self.op(nn.ExpOp(w)), w))))

    def module(self, outputs: list[SSAValue]) -> ModuleOp:
        self.block.add_op(ReturnOp(*outputs))
        types = [value.type for value in outputs]
        function = FuncOp("main", ([arg.type for arg in self.block.args], types), Region(self.block))
        return ModuleOp([function])


@st.composite
def networks(draw: st.DrawFn) -> str:
    """The text of a random network."""
    network = Network()
    for _ in range(draw(st.integers(1, 10))):
        recent = network.values[-3:]
        x, y = draw(st.sampled_from(recent)), draw(st.sampled_from(network.values))
        network.values.append(network.layer(draw(st.sampled_from(LAYERS)), x, y))
    outputs = [network.values[-1]]
    if draw(st.booleans()):
        outputs.append(draw(st.sampled_from(network.values)))
    return str(network.module(outputs))


def parse(text: str) -> ModuleOp:
    ctx = Context()
    for dialect in (Builtin, Func, nn.Nn):
        ctx.load_dialect(dialect)
    module = Parser(ctx, text).parse_module()
    module.verify()
    return module


def run(module: ModuleOp) -> list[Array]:
    rng = np.random.default_rng(0)
    function = next(op for op in module.walk() if isinstance(op, FuncOp))
    return evaluate_function(function, [rng.standard_normal(SHAPE).astype(np.float32) for _ in range(2)])


def after(text: str, *passes: NeuronPass) -> ModuleOp:
    """The module after the passes: verified, in order, and equal to what its text gives."""
    module = parse(text)
    for item in passes:
        item.apply(Context(), module)
        module.verify()
        check_dominance(module)
        assert parse(str(module)).is_structurally_equivalent(module)
    return module


def assert_close(got: list[Array], expected: list[Array], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


@settings(max_examples=35, deadline=None, derandomize=True)
@given(networks())
def test_exact_passes_change_no_bit(text: str) -> None:
    expected = run(parse(text))
    for passes in ([FoldConstantsPass()], [FusePass()], [FoldConstantsPass(), FusePass(max_layers=4)]):
        got = run(after(text, *passes))
        for a, b in zip(got, expected, strict=True):
            assert a.tobytes() == b.tobytes()


@settings(max_examples=35, deadline=None, derandomize=True)
@given(networks())
def test_folding_batch_norm_reassociates_only(text: str) -> None:
    expected = run(parse(text))
    module = after(text, FoldBatchNormPass())
    assert_close(run(module), expected, 2e-4)
    assert not any(
        isinstance(op, nn.BatchNormOp) for op in after(text, FoldConstantsPass(), FoldBatchNormPass()).walk()
    )


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(text=networks())
def test_cast_narrows_what_it_says(mode: str, text: str) -> None:
    expected = run(parse(text))
    item = CastPass(mode=mode)
    fused = str(after(text, FoldConstantsPass(), FusePass()))
    module = after(fused, item)
    narrow = f16 if mode.endswith("fp16") else bf16
    for op in module.walk():
        if isinstance(op, (nn.ConvOp, nn.MatmulOp)):
            assert [type_of(operand).element_type for operand in op.operands[:2]] == [narrow, narrow]
    function = next(op for op in module.walk() if isinstance(op, FuncOp))
    assert all(type_of(value).element_type == f32 for value in function.body.block.args)
    check_boundaries(function, narrow if mode.startswith("all") else f32)
    assert_close(run(module), expected, 0.2 if narrow == bf16 else 0.03)
    # A second run finds nothing to do.
    again = after(str(module), item)
    assert again.is_structurally_equivalent(module)


def check_boundaries(function: FuncOp, expected: object) -> None:
    """Every float value a layer takes from another layer has the expected type."""
    for op in function.body.block.ops:
        if isinstance(op, (nn.WeightOp, nn.ConstOp, nn.CastOp, ReturnOp)):
            continue
        for operand in op.operands:
            owner = operand.owner
            if isinstance(owner, Operation) and not isinstance(owner, (nn.WeightOp, nn.ConstOp)):
                assert type_of(operand).element_type == expected, (op, operand)


def test_a_group_carries_every_location() -> None:
    text = """
    func.func @main(%x: tensor<1x3x4x4xf32>, %y: tensor<1x3x4x4xf32>) -> tensor<1x3x4x4xf32> {
      %0 = nn.matmul %x, %y : (tensor<1x3x4x4xf32>, tensor<1x3x4x4xf32>) -> tensor<1x3x4x4xf32> loc("a")
      %1 = nn.relu %0 : tensor<1x3x4x4xf32> loc("b")
      func.return %1 : tensor<1x3x4x4xf32>
    }
    """
    module = after(text, FusePass(), CastPass())
    fused = next(op for op in module.walk() if isinstance(op, nn.FusedOp))
    assert str(fused.location) == 'loc(fused["a", "b"])'
    assert [str(op.location) for op in fused.body.block.ops if isinstance(op, (nn.MatmulOp, nn.ReluOp))] == [
        'loc("a")',
        'loc("b")',
    ]
    assert all("unknown" not in str(op.location) for op in fused.walk())


def test_an_infinite_mask_in_f16_still_masks() -> None:
    text = """
    func.func @main(%x: tensor<1x3x4x4xf32>, %y: tensor<1x3x4x4xf32>) -> tensor<1x3x4x4xf32> {
      %m = nn.weight "m" splat<-1000000000.0> : tensor<f32>
      %c = nn.less %x, %y : tensor<1x3x4x4xf32>, tensor<1x3x4x4xf32>
      %0 = nn.where %c, %x, %m : (tensor<1x3x4x4xi1>, tensor<1x3x4x4xf32>, tensor<f32>) -> tensor<1x3x4x4xf32>
      %1 = nn.exp %0 : tensor<1x3x4x4xf32>
      func.return %1 : tensor<1x3x4x4xf32>
    }
    """
    got = run(after(text, CastPass(mode="all-fp16")))
    assert_close(got, run(parse(text)), 0.01)


def test_statistics_count() -> None:
    network = Network()
    value = network.conv(network.values[0], network.values[0])
    value = network.relu(network.batch_norm(value, value), value)
    text = str(network.module([value]))
    counts: dict[str, object] = {}
    module = parse(text)
    for item in (FoldConstantsPass(), FoldBatchNormPass(), FusePass(), CastPass()):
        item.apply(Context(), module)
        counts.update({f"{item.name}.{key}": value for key, value in item.statistics.items()})
    assert counts == {
        "nn-fold-constants.folded": 2,
        "nn-fold-constants.simplified": 0,
        "nn-fold-batch-norm.folded": 1,
        "nn-fold-batch-norm.split": 0,
        "nn-fuse.contraction-groups": 1,
        "nn-fuse.elementwise-groups": 0,
        "nn-fuse.layers": 2,
        "nn-cast.casts": 1,
        "nn-cast.constants": 1,
    }
