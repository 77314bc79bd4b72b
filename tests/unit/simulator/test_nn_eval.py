"""Every op of the nn interpreter against ONNX Runtime on a one-node model, and the evaluation of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from xdsl.dialects.builtin import bf16, f16, f32, i1, i32, i64
from xdsl.ir import Attribute, Block, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import tensor
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.nn_eval import evaluate_block, evaluate_const, evaluate_op
from neuron_mlir.simulator.numerics import round_bf16

Array = NDArray[Any]
ELEMENTS: dict[str, Attribute] = {"float32": f32, "int64": i64, "int32": i32, "bool": i1}
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}


@dataclass
class Case:
    """One op: its ONNX node, inputs, and how `nn` says it."""

    name: str
    onnx: str
    inputs: list[Array]
    build: Callable[[list[SSAValue]], Operation]
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    constants: list[Any] = field(default_factory=list[Any])
    """Inputs of the ONNX node that are parameters of the `nn` op."""


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def whole(*shape: int, low: int = -5, high: int = 6) -> Array:
    return np.random.default_rng(7).integers(low, high, shape, dtype=np.int64)


def conv_case(name: str, x: Array, w: Array, bias: bool, **options: Any) -> Case:
    inputs = [x, w, normal(w.shape[0])] if bias else [x, w]
    return Case(name, "Conv", inputs, lambda v: nn.ConvOp(*v, **options), options)


def transposed_case(name: str, x: Array, w: Array, **options: Any) -> Case:
    inputs = [x, w, normal(w.shape[1])]
    return Case(name, "ConvTranspose", inputs, lambda v: nn.ConvTransposeOp(*v, **options), options)


def pool_attributes(kernel: list[int], options: dict[str, Any]) -> dict[str, Any]:
    renamed = {key: int(value) if isinstance(value, bool) else value for key, value in options.items()}
    return {"kernel_shape": kernel, **renamed}


def max_pool_case(name: str, x: Array, kernel: list[int], **options: Any) -> Case:
    return Case(name, "MaxPool", [x], lambda v: nn.MaxPoolOp(v[0], kernel, **options), pool_attributes(kernel, options))


def avg_pool_case(name: str, x: Array, kernel: list[int], **options: Any) -> Case:
    return Case(
        name, "AveragePool", [x], lambda v: nn.AvgPoolOp(v[0], kernel, **options), pool_attributes(kernel, options)
    )


def reduce_case(name: str, op: type[nn.ReduceOp], x: Array, axes: list[int], keepdims: bool) -> Case:
    return Case(
        f"{name} {x.dtype} {axes} {keepdims}",
        name,
        [x],
        lambda v: op(v[0], axes, keepdims=keepdims),
        {"keepdims": int(keepdims)},
        [np.array(axes, np.int64)],
    )


def unary_case(name: str, op: type[nn.UnaryOp], x: Array) -> Case:
    return Case(f"{name} {x.dtype}", name, [x], lambda v: op(v[0]))


def binary_case(name: str, op: type[nn.BinaryOp], a: Array, b: Array) -> Case:
    return Case(f"{name} {a.dtype} {a.shape} {b.shape}", name, [a, b], lambda v: op(v[0], v[1]))


SPECIAL = np.array([0.0, -0.0, 1e-30, -1e-30, 1.0, -1.0, 5.0, -5.0, 90.0, -90.0], np.float32)
WIDE = np.concatenate([normal(500) * 3, SPECIAL]).astype(np.float32)
POSITIVE = np.abs(WIDE) + np.float32(0.1)
BOOLS = whole(3, 4) > 0

CASES = [
    conv_case("plain", normal(2, 3, 9, 8), normal(4, 3, 3, 3), True),
    conv_case("stride pad", normal(1, 3, 9, 8), normal(4, 3, 3, 2), False, strides=[2, 1], pads=[1, 0, 2, 1]),
    conv_case("dilated", normal(1, 2, 11, 11), normal(3, 2, 3, 3), True, dilations=[2, 3], pads=[2, 2, 2, 2]),
    conv_case("grouped", normal(2, 6, 7, 7), normal(9, 2, 3, 3), True, group=3, pads=[1, 1, 1, 1]),
    conv_case("depthwise", normal(2, 6, 7, 7), normal(6, 1, 3, 3), True, group=6, strides=[2, 2]),
    conv_case("depth multiplier", normal(1, 4, 7, 7), normal(8, 1, 3, 3), False, group=4, dilations=[2, 1]),
    conv_case("pointwise", normal(2, 6, 5, 7), normal(4, 6, 1, 1), True),
    conv_case("pointwise stride", normal(2, 6, 5, 7), normal(4, 3, 1, 1), True, group=2, strides=[2, 3]),
    conv_case("one axis", normal(2, 3, 20), normal(4, 3, 5), True, strides=[2], pads=[2, 1]),
    conv_case("three axes", normal(1, 2, 5, 6, 7), normal(3, 2, 2, 3, 2), True),
    conv_case("many blocks", normal(1, 64, 40, 150), normal(5, 64, 3, 3), False, pads=[1, 1, 1, 1]),
    transposed_case("transposed", normal(2, 3, 5, 4), normal(3, 4, 2, 2), strides=[2, 2]),
    transposed_case(
        "transposed overlap",
        normal(1, 3, 5, 6),
        normal(3, 2, 3, 4),
        strides=[2, 1],
        pads=[1, 2, 0, 1],
        output_padding=[1, 0],
    ),
    Case(
        "resize",
        "Resize",
        [normal(2, 3, 4, 5)],
        lambda v: nn.ResizeOp(v[0], [2, 3]),
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        [np.zeros(0, np.float32), np.array([1, 1, 2, 3], np.float32)],
    ),
    Case("matmul", "MatMul", [normal(5, 7), normal(7, 3)], lambda v: nn.MatmulOp(*v)),
    Case("matmul rows", "MatMul", [normal(2, 3, 5, 7), normal(7, 3)], lambda v: nn.MatmulOp(*v)),
    Case("matmul batch", "MatMul", [normal(2, 1, 5, 7), normal(4, 7, 3)], lambda v: nn.MatmulOp(*v)),
    max_pool_case("max", normal(2, 3, 8, 9), [3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    max_pool_case("max dilated", normal(1, 2, 9, 9), [2, 3], dilations=[3, 2]),
    max_pool_case("max 1d", normal(1, 2, 9), [3], pads=[2, 2]),
    avg_pool_case("avg", normal(2, 3, 8, 9), [3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    avg_pool_case("avg with pads", normal(2, 3, 8, 9), [3, 3], pads=[1, 1, 1, 1], count_include_pad=True),
    avg_pool_case("avg plain", normal(2, 3, 7, 7), [7, 7]),
    *(
        Case(
            f"lrn {size}",
            "LRN",
            [normal(2, 7, 3, 3) * 20],
            lambda v, size=size: nn.LrnOp(v[0], size, alpha=0.1, beta=0.75, bias=2.0),
            {"size": size, "alpha": 0.1, "beta": 0.75, "bias": 2.0},
        )
        for size in (3, 5, 9)
    ),
    Case(
        "batch norm",
        "BatchNormalization",
        [normal(2, 4, 3, 3), normal(4), normal(4, seed=1), normal(4, seed=2), np.abs(normal(4, seed=3))],
        lambda v: nn.BatchNormOp(*v, eps=1e-3),
        {"epsilon": 1e-3},
    ),
    *(
        Case(
            f"layer norm {axis}",
            "LayerNormalization",
            [normal(2, 3, 8), *(normal(*(2, 3, 8)[axis:], seed=i) for i in range(1 + bias))],
            lambda v, axis=axis: nn.LayerNormOp(*v, axis=axis, eps=1e-12),
            {"axis": axis, "epsilon": 1e-12},
        )
        for axis, bias in ((2, True), (1, True), (2, False))
    ),
    *(
        Case(
            f"softmax {axis}",
            "Softmax",
            [normal(2, 5, 4) * 9],
            lambda v, axis=axis: nn.SoftmaxOp(v[0], axis=axis),
            {"axis": axis},
        )
        for axis in range(3)
    ),
    *(
        reduce_case(name, op, x, axes, keepdims)
        for name, op in (
            ("ReduceSum", nn.ReduceSumOp),
            ("ReduceMean", nn.ReduceMeanOp),
            ("ReduceMax", nn.ReduceMaxOp),
            ("ReduceMin", nn.ReduceMinOp),
            ("ReduceProd", nn.ReduceProdOp),
        )
        for x in (normal(2, 3, 4), whole(2, 3, 4))
        if name != "ReduceMean" or x.dtype == np.float32
        for axes, keepdims in (([1], True), ([0, 2], False))
    ),
    *(
        Case(
            f"arg max {keepdims}",
            "ArgMax",
            [whole(4, 9).astype(np.float32)],
            lambda v, keepdims=keepdims: nn.ArgMaxOp(v[0], axis=1, keepdims=keepdims),
            {"axis": 1, "keepdims": int(keepdims)},
        )
        for keepdims in (True, False)
    ),
    unary_case("Relu", nn.ReluOp, WIDE),
    Case("leaky", "LeakyRelu", [WIDE], lambda v: nn.LeakyReluOp(v[0], 0.1), {"alpha": 0.1}),
    Case("gelu tanh", "Gelu", [WIDE], lambda v: nn.GeluTanhOp(v[0]), {"approximate": "tanh"}),
    Case("clip", "Clip", [WIDE], lambda v: nn.ClipOp(v[0], 0.0, 6.0), {}, [np.float32(0), np.float32(6)]),
    *(
        unary_case(name, op, WIDE)
        for name, op in (
            ("Sigmoid", nn.SigmoidOp),
            ("Tanh", nn.TanhOp),
            ("Erf", nn.ErfOp),
            ("Gelu", nn.GeluOp),
            ("Softplus", nn.SoftplusOp),
            ("Mish", nn.MishOp),
            ("Exp", nn.ExpOp),
            ("Abs", nn.AbsOp),
            ("Neg", nn.NegOp),
            ("Floor", nn.FloorOp),
        )
    ),
    *(
        unary_case(name, op, POSITIVE)
        for name, op in (("Log", nn.LogOp), ("Sqrt", nn.SqrtOp), ("Reciprocal", nn.ReciprocalOp))
    ),
    unary_case("Not", nn.NotOp, BOOLS),
    unary_case("Neg", nn.NegOp, whole(9)),
    *(
        binary_case(name, op, a, b)
        for name, op in (
            ("Add", nn.AddOp),
            ("Sub", nn.SubOp),
            ("Mul", nn.MulOp),
            ("Div", nn.DivOp),
            ("Max", nn.MaxOp),
            ("Min", nn.MinOp),
            ("Equal", nn.EqualOp),
            ("Less", nn.LessOp),
            ("Greater", nn.GreaterOp),
        )
        for a, b in (
            (normal(3, 1, 4), normal(5, 1)),
            (whole(3, 4, low=-30, high=30), whole(3, 4, low=1)),
            (whole(3, 4, low=-30, high=30), -whole(4, low=1)),
        )
    ),
    binary_case("Pow", nn.PowOp, np.abs(normal(3, 4)), normal(4)),
    binary_case("And", nn.AndOp, BOOLS, BOOLS[0]),
    binary_case("Or", nn.OrOp, BOOLS, BOOLS[0]),
    Case("transpose", "Transpose", [normal(2, 3, 4)], lambda v: nn.TransposeOp(v[0], [2, 0, 1]), {"perm": [2, 0, 1]}),
    Case("reshape", "Reshape", [normal(2, 3, 4)], lambda v: nn.ReshapeOp(v[0], [4, 6]), {}, [np.array([4, 6])]),
    Case(
        "slice",
        "Slice",
        [normal(7, 8)],
        lambda v: nn.SliceOp(v[0], [1, 7], [3, 4], [2, -2]),
        {},
        [np.array([1, 7]), np.array([6, -100]), np.array([0, 1]), np.array([2, -2])],
    ),
    Case("concat", "Concat", [whole(2, 3), whole(2, 1)], lambda v: nn.ConcatOp(v, axis=1), {"axis": 1}),
    Case(
        "gather", "Gather", [normal(4, 5), whole(2, 3, low=-5, high=5)], lambda v: nn.GatherOp(*v, axis=1), {"axis": 1}
    ),
    Case(
        "pad",
        "Pad",
        [normal(2, 3)],
        lambda v: nn.PadOp(v[0], [1, 0], [0, 2], value=-1.5),
        {},
        [np.array([1, 0, 0, 2]), np.float32(-1.5)],
    ),
    Case("expand", "Expand", [normal(3, 1)], lambda v: nn.ExpandOp(v[0], [2, 3, 4]), {}, [np.array([2, 3, 4])]),
    Case("where", "Where", [BOOLS, normal(4), normal(3, 1)], lambda v: nn.WhereOp(*v)),
    Case("cast", "Cast", [WIDE], lambda v: nn.CastOp(v[0], i32), {"to": TensorProto.INT32}),
    Case("cast bool", "Cast", [SPECIAL], lambda v: nn.CastOp(v[0], i1), {"to": TensorProto.BOOL}),
]


def reference(case: Case) -> Array:
    """What ONNX Runtime makes of the node."""
    import onnxruntime

    ort = cast(Any, onnxruntime)

    arrays = [np.asarray(array) for array in (*case.inputs, *case.constants)]
    names = [f"i{i}" for i in range(len(arrays))]
    node = helper.make_node(case.onnx, names, ["y"], **case.attributes)
    inputs = [
        helper.make_tensor_value_info(name, ONNX_TYPES[str(array.dtype)], array.shape)
        for name, array in zip(names, arrays, strict=True)
    ]
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return cast(Array, session.run(None, dict(zip(names, arrays, strict=True)))[0])


def element(array: Array) -> Attribute:
    return ELEMENTS[str(array.dtype)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_onnx_runtime(case: Case) -> None:
    block = Block(arg_types=[tensor(array.shape, element(array)) for array in case.inputs])
    op = case.build(list(block.args))
    block.add_op(op)
    op.verify()
    expected = reference(case)
    (got,) = evaluate_op(op, case.inputs)
    assert tensor(expected.shape, element(expected)) == op.results[0].type
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if expected.dtype.kind == "f":
        scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max()))
        np.testing.assert_allclose(got, expected, rtol=4e-6, atol=2e-6 * scale if "conv" in op.name else 2e-6)
    else:
        np.testing.assert_array_equal(got, expected)


def test_every_op_of_the_dialect_is_compared() -> None:
    covered: set[type[Operation]] = set()
    for case in CASES:
        block = Block(arg_types=[tensor(array.shape, element(array)) for array in case.inputs])
        covered.add(type(case.build(list(block.args))))
    # ONNX has none of these, or ONNX Runtime has not; test_lower_unfold.py compares an unfolding with its definition.
    ours = {nn.WeightOp, nn.ConstOp, nn.FusedOp, nn.YieldOp, nn.SpillOp, nn.ReloadOp, nn.UnfoldOp, nn.SiluOp}
    missing = set(nn.Nn.operations) - covered - ours
    assert sorted(op.name for op in missing) == []


def test_gates_are_accurate_and_do_not_overflow() -> None:
    x = np.concatenate([np.linspace(-100, 100, 20_001), [-3e38, -1e30, 1e30, 3e38]]).astype(np.float32)
    wide = x.astype(np.float64)
    block = Block(arg_types=[tensor(x.shape)])
    soft = np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))
    for kind, exact in (
        (nn.SoftplusOp, soft),
        (nn.MishOp, wide * np.tanh(soft)),
        (nn.SiluOp, wide / (1 + np.exp(np.minimum(-wide, 700)))),
    ):
        (got,) = evaluate_op(kind(block.args[0]), [x])
        np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-30, err_msg=kind.name)


def test_erf_is_accurate_to_two_units_in_the_last_place() -> None:
    x = np.linspace(-5, 5, 100_001).astype(np.float32)
    block = Block(arg_types=[tensor(x.shape)])
    (got,) = evaluate_op(nn.ErfOp(block.args[0]), [x])
    exact = np.array([math.erf(value) for value in x.tolist()])
    unit = np.spacing(np.abs(exact.astype(np.float32)))
    assert np.max(np.abs(got - exact) / unit) < 2


def test_lrn_of_even_size_reaches_one_channel_further_up() -> None:
    # ONNX Runtime refuses even sizes; the ONNX specification does not.
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1)
    block = Block(arg_types=[tensor(x.shape)])
    (got,) = evaluate_op(nn.LrnOp(block.args[0], 4, alpha=4.0, beta=1.0, bias=0.0), [x])
    sums = [1 + 4 + 9, 1 + 4 + 9 + 16, 4 + 9 + 16 + 25, 9 + 16 + 25, 16 + 25]
    np.testing.assert_allclose(got.ravel(), np.arange(1, 6) / sums, rtol=1e-6)


def test_narrow_operands_compute_in_f32() -> None:
    x = round_bf16(normal(4, 5))
    block = Block(arg_types=[tensor((4, 5), bf16)])
    op = nn.MulOp(block.args[0], block.args[0])
    (got,) = evaluate_op(op, [x, x])
    np.testing.assert_array_equal(got, x * x)
    assert op.type == tensor((4, 5), f32)


def test_cast_rounds_and_wraps() -> None:
    block = Block(arg_types=[tensor((3,)), tensor((3,), i32)])
    x = np.array([1.00390625, 70000.0, -2.7], np.float32)
    assert evaluate_op(nn.CastOp(block.args[0], bf16), [x])[0].tolist() == [1.0, 70144.0, -2.703125]
    assert evaluate_op(nn.CastOp(block.args[0], f16), [x])[0].tolist() == [1.00390625, math.inf, -2.69921875]
    assert evaluate_op(nn.CastOp(block.args[0], i64), [x])[0].tolist() == [1, 70000, -2]


def test_pad_value_is_rounded_to_the_element_type() -> None:
    block = Block(arg_types=[tensor((1,), bf16)])
    (got,) = evaluate_op(nn.PadOp(block.args[0], [0], [1], value=0.1), [np.ones(1, np.float32)])
    assert got.tolist() == [1.0, 0.10009765625]


def test_gather_out_of_range_is_named() -> None:
    block = Block(arg_types=[tensor((4, 5)), tensor((1,), i64)])
    op = nn.GatherOp(*block.args)
    with pytest.raises(NeuronError, match=r"needs -4 to 3, has 4"):
        evaluate_op(op, [normal(4, 5), np.array([4])])


def test_division_of_integers_by_zero_is_named() -> None:
    block = Block(arg_types=[tensor((1,), i64)] * 2)
    with pytest.raises(NeuronError, match="by 0"):
        evaluate_op(nn.DivOp(*block.args), [np.array([4]), np.array([0])])


def test_negative_power_of_integers_is_named() -> None:
    block = Block(arg_types=[tensor((1,), i64)] * 2)
    with pytest.raises(NeuronError, match="negative power"):
        evaluate_op(nn.PowOp(*block.args), [np.array([4]), np.array([-1])])


def test_a_missing_store_is_named() -> None:
    with pytest.raises(NeuronError, match="weight 'w' is not in the text"):
        evaluate_const(nn.WeightOp("w", tensor((3,))))


def test_constants_are_kept_in_the_cache() -> None:
    inner = nn.WeightOp("w", tensor((2,)), nn.SplatAttr.get(0.5))
    cube = nn.MulOp(inner, inner)
    const = nn.ConstOp(Block([inner, cube, nn.YieldOp(cube)]))
    cache: dict[Operation, Array] = {}
    (first,) = evaluate_block(Block([const, nn.YieldOp(const)]), [], None, cache=cache)
    assert first.tolist() == [0.25, 0.25]
    assert cache[const] is evaluate_const(const, cache=cache)


def test_a_long_chain_frees_its_values() -> None:
    import tracemalloc

    size = 1 << 18
    block = Block(arg_types=[tensor((size,))])
    value: SSAValue = block.args[0]
    for _ in range(1500):
        op = nn.ReluOp(value)
        block.add_op(op)
        value = op.result
    block.add_op(nn.YieldOp(value))
    x = np.ones(size, np.float32)
    tracemalloc.start()
    evaluate_block(block, [x])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * x.nbytes


def test_weights_at_odd_addresses_are_aligned_once() -> None:
    raw = np.zeros(4 * 6 + 1, np.uint8)
    odd = raw[1:].view(np.float32)
    assert not odd.flags.aligned

    class Store:
        def get(self, name: str) -> Array:
            return odd

    assert evaluate_const(nn.WeightOp("w", tensor((6,))), Store()).flags.aligned


def test_transposed_weights_round_where_they_lie() -> None:
    x = normal(3, 5).T
    got = round_bf16(x)
    assert got.flags.f_contiguous
    np.testing.assert_array_equal(got, round_bf16(np.ascontiguousarray(x)))
