"""Every operator against ONNX Runtime: one node, random shapes, parameters and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from neuron_mlir.frontends.onnx import list_operators

Array: TypeAlias = NDArray[Any]
Compare: TypeAlias = Callable[..., Any]

OPSET = 17
COVERED: set[str] = set()

# Examples are small as they come: shrinking them costs more than it tells.
common = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
dims = st.integers(1, 5)
seeds = st.integers(0, 1000)


def shapes(low: int = 0, high: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(dims, min_size=low, max_size=high).map(tuple)


def floats(seed: int, shape: Sequence[int]) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32))


def check(
    compare: Compare,
    op: str,
    inputs: dict[str, Array],
    constants: dict[str, Array] | None = None,
    *,
    opset: int = OPSET,
    order: Sequence[str] | None = None,
    outputs: int = 1,
    **attributes: Any,
) -> Any:
    """One node: `inputs` come at run time, `constants` are initializers, `order` names the operands ("": left out)."""
    COVERED.add(op)
    inputs = {name: np.asarray(array) for name, array in inputs.items()}  # arithmetic on scalars leaves no array
    constants = constants or {}
    names = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op, list(order or (*inputs, *constants)), names, name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in names],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return compare(onnx.shape_inference.infer_shapes(model), inputs)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


UNARY = ["Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Reciprocal", "Abs", "Neg", "Floor", "Ceil", "HardSwish", "Softplus"]


@pytest.mark.parametrize("op", UNARY)
@common
@given(shape=shapes(), seed=seeds)
def test_unary(compare: Compare, op: str, shape: tuple[int, ...], seed: int) -> None:
    check(compare, op, {"x": 3 * floats(seed, shape)})


@pytest.mark.parametrize("op", ["Log", "Sqrt"])
@common
@given(shape=shapes(), seed=seeds)
def test_unary_of_positive(compare: Compare, op: str, shape: tuple[int, ...], seed: int) -> None:
    check(compare, op, {"x": np.asarray(np.abs(3 * floats(seed, shape)) + np.float32(0.01), np.float32)})


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("LeakyRelu", {"alpha": 0.2}),
        ("LeakyRelu", {}),
        ("Elu", {"alpha": 0.7}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("Clip", {}),
    ],
)
@common
@given(shape=shapes(), seed=seeds)
def test_unary_with_attributes(
    compare: Compare, op: str, attributes: dict[str, Any], shape: tuple[int, ...], seed: int
) -> None:
    check(compare, op, {"x": 3 * floats(seed, shape)}, **attributes)


@common
@given(shape=shapes(1), seed=seeds, tanh=st.booleans())
def test_gelu(compare: Compare, shape: tuple[int, ...], seed: int, tanh: bool) -> None:
    check(compare, "Gelu", {"x": floats(seed, shape)}, opset=20, approximate="tanh" if tanh else "none")


@common
@given(shape=shapes(1), seed=seeds)
def test_mish(compare: Compare, shape: tuple[int, ...], seed: int) -> None:
    check(compare, "Mish", {"x": 30 * floats(seed, shape)}, opset=18)


def test_swish_is_x_times_sigmoid() -> None:
    # ONNX Runtime may not have this operator yet: against the definition.
    from xdsl.dialects.func import FuncOp

    from neuron_mlir.frontends.onnx import import_model
    from neuron_mlir.simulator.nn_eval import evaluate_function

    COVERED.add("Swish")
    x = floats(3, (4, 5))
    node = helper.make_node("Swish", ["x"], ["y"], alpha=1.5)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 5])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 5])])
    main = import_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])).body.block.first_op
    assert isinstance(main, FuncOp)
    (y,) = evaluate_function(main, [x])
    np.testing.assert_allclose(y, x / (1 + np.exp(-1.5 * x.astype(np.float64))), atol=1e-6)


@common
@given(
    shape=shapes(1), seed=seeds, low=st.none() | st.floats(-1, 0, width=32), high=st.none() | st.floats(0, 1, width=32)
)
def test_clip(compare: Compare, shape: tuple[int, ...], seed: int, low: float | None, high: float | None) -> None:
    x = {"x": floats(seed, shape)}
    bounds = {k: np.array(v, np.float32) for k, v in (("lo", low), ("hi", high)) if v is not None}
    order = ["x", "lo" if low is not None else "", "hi" if high is not None else ""]
    check(compare, "Clip", x, bounds, order=order)
    old: dict[str, Any] = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
    check(compare, "Clip", x, opset=9, **old)


@common
@given(seed=seeds, low=st.integers(-3, 0), high=st.integers(0, 3))
def test_clip_of_integers(compare: Compare, seed: int, low: int, high: int) -> None:
    x = np.random.default_rng(seed).integers(-9, 9, (3, 4)).astype(np.int32)
    check(compare, "Clip", {"x": x}, {"lo": np.array(low, np.int32), "hi": np.array(high, np.int32)})


@st.composite
def broadcastable(draw: st.DrawFn, count: int) -> list[tuple[int, ...]]:
    full = draw(shapes(1))
    return [
        tuple(1 if draw(st.booleans()) else dim for dim in full)[draw(st.integers(0, len(full))) :]
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "op", ["Add", "Sub", "Mul", "Div", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "PRelu"]
)
@common
@given(pair=broadcastable(2), seed=seeds)
def test_binary(compare: Compare, op: str, pair: list[tuple[int, ...]], seed: int) -> None:
    x, y = floats(seed, pair[0]), floats(seed + 1, pair[1])
    if op == "PRelu":  # its slope must broadcast to x
        x = np.ascontiguousarray(np.broadcast_to(x, np.broadcast_shapes(x.shape, y.shape)))
    check(compare, op, {"x": x, "y": y})


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Equal", "Less", "Greater"])
@common
@given(pair=broadcastable(2), seed=seeds, dtype=st.sampled_from(["int32", "int64"]))
def test_binary_of_integers(compare: Compare, op: str, pair: list[tuple[int, ...]], seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-9, 9, pair[0]).astype(dtype), rng.integers(1, 9, pair[1]).astype(dtype)
    check(compare, op, {"x": np.asarray(x), "y": np.asarray(y)})


@pytest.mark.parametrize("op", ["And", "Or", "Xor", "Equal"])
@common
@given(pair=broadcastable(2), seed=seeds)
def test_logic(compare: Compare, op: str, pair: list[tuple[int, ...]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    check(compare, op, {"x": np.asarray(rng.random(pair[0]) < 0.5), "y": np.asarray(rng.random(pair[1]) < 0.5)})


@common
@given(shape=shapes(), seed=seeds)
def test_not(compare: Compare, shape: tuple[int, ...], seed: int) -> None:
    check(compare, "Not", {"x": np.asarray(np.random.default_rng(seed).random(shape) < 0.5)})


@common
@given(pair=broadcastable(2), seed=seeds, kind=st.sampled_from(["float32", "int64"]))
def test_pow(compare: Compare, pair: list[tuple[int, ...]], seed: int, kind: str) -> None:
    exponent = np.random.default_rng(seed).integers(-2, 4, pair[1]).astype(kind)
    base = np.asarray(np.abs(floats(seed, pair[0])) + np.float32(0.5), np.float32)
    check(compare, "Pow", {"x": base, "y": np.asarray(exponent)})


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
@common
@given(several=st.integers(1, 4).flatmap(broadcastable), seed=seeds)
def test_variadic(compare: Compare, op: str, several: list[tuple[int, ...]], seed: int) -> None:
    check(compare, op, {f"x{i}": floats(seed + i, shape) for i, shape in enumerate(several)})


@common
@given(shape=shapes(1), seed=seeds)
def test_an_infinity_that_never_wins_is_dropped(compare: Compare, shape: tuple[int, ...], seed: int) -> None:
    infinity = np.array(np.inf, np.float32)
    module = check(compare, "Max", {"x": floats(seed, shape)}, {"c": -infinity})
    assert "nn.max" not in str(module)
    module = check(compare, "Min", {"x": floats(seed, shape)}, {"c": infinity})
    assert "nn.min" not in str(module)


@common
@given(three=broadcastable(3), seed=seeds)
def test_where(compare: Compare, three: list[tuple[int, ...]], seed: int) -> None:
    condition = np.asarray(np.random.default_rng(seed).random(three[0]) < 0.5)
    check(compare, "Where", {"c": condition, "x": floats(seed, three[1]), "y": floats(seed + 1, three[2])})


@st.composite
def windows(draw: st.DrawFn, rank: int) -> dict[str, Any]:
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    result: dict[str, Any] = {"kernel_shape": kernel}
    if draw(st.booleans()):
        result["strides"] = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    if draw(st.booleans()):
        result["dilations"] = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    kind = draw(st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if kind == "pads":
        # Less than the kernel, or a window could hold padding alone.
        result["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    elif kind != "none":
        result["auto_pad"] = kind
        if kind != "VALID":  # ONNX Runtime combines it neither with dilations nor with gaps between windows
            result.pop("dilations", None)
            if "strides" in result:
                result["strides"] = [min(s, k) for s, k in zip(result["strides"], kernel, strict=True)]
    return result


@common
@given(data=st.data(), seed=seeds, rank=st.integers(1, 2), group=st.integers(1, 3), bias=st.booleans())
def test_conv(compare: Compare, data: st.DataObject, seed: int, rank: int, group: int, bias: bool) -> None:
    window = data.draw(windows(rank))
    per_group, outputs = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)) * group
    x = floats(seed, (data.draw(st.integers(1, 2)), per_group * group, *(7 + i for i in range(rank))))
    constants = {"w": floats(seed + 1, (outputs, per_group, *window["kernel_shape"]))}
    if bias:
        constants["b"] = floats(seed + 2, (outputs,))
    check(compare, "Conv", {"x": x}, constants, group=group, **window)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@settings(common, max_examples=30)
@given(data=st.data(), seed=seeds, rank=st.integers(1, 2))
def test_pool(compare: Compare, op: str, data: st.DataObject, seed: int, rank: int) -> None:
    window = data.draw(windows(rank))
    if op == "AveragePool":
        window.pop("dilations", None)  # not before opset 19
        window["count_include_pad"] = data.draw(st.integers(0, 1))
    if "auto_pad" not in window and not window.get("count_include_pad"):
        window["ceil_mode"] = data.draw(st.integers(0, 1))
    x = floats(seed, (2, 3, *(data.draw(st.integers(5, 8)) for _ in range(rank))))
    check(compare, op, {"x": x}, **window)


@common
@given(data=st.data(), seed=seeds, rank=st.integers(1, 2), bias=st.booleans())
def test_conv_transpose(compare: Compare, data: st.DataObject, seed: int, rank: int, bias: bool) -> None:
    kernel, strides = (data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank)) for _ in range(2))
    window: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    kind = data.draw(st.sampled_from(["none", "pads", "output_shape", "SAME_UPPER"]))
    if kind == "pads":
        window["pads"] = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
        window["output_padding"] = [data.draw(st.integers(0, s - 1)) for s in strides]
    elif kind == "output_shape":
        window["output_shape"] = [(4 + i) * s + k - 1 for i, (s, k) in enumerate(zip(strides, kernel, strict=True))]
    elif kind == "SAME_UPPER":
        window["auto_pad"] = kind
        window["strides"] = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
    x = floats(seed, (data.draw(st.integers(1, 2)), 3, *(5 + i for i in range(rank))))
    constants = {"w": floats(seed + 1, (3, 4, *kernel))}
    if bias:
        constants["b"] = floats(seed + 2, (4,))
    check(compare, "ConvTranspose", {"x": x}, constants, **window)


RESIZE_MODES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]


@settings(common, max_examples=40)
@given(
    seed=seeds,
    spatial=st.lists(st.tuples(dims, st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])), min_size=1, max_size=2),
    where=st.sampled_from(RESIZE_MODES),
    rule=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    mode=st.sampled_from(["nearest", "nearest", "linear"]),
    opset=st.sampled_from([10, 11, 13, 18]),
)
def test_resize(
    compare: Compare, seed: int, spatial: list[tuple[int, float]], where: str, rule: str, mode: str, opset: int
) -> None:
    x = floats(seed, (2, 3, *(size + 1 for size, _ in spatial)))
    scales = np.array([1.0, 1.0, *(scale for _, scale in spatial)], np.float32)
    if opset == 10:
        check(compare, "Resize", {"x": x}, {"scales": scales}, opset=opset, mode=mode)
        return
    attributes: dict[str, Any] = {"coordinate_transformation_mode": where, "mode": mode}
    if mode == "nearest":
        attributes["nearest_mode"] = rule
    # Before opset 13 the region of interest, of use to another mode only, could not be left out.
    roi = {"roi": np.zeros(0, np.float32)} if opset == 11 else {}
    order = ["x", "roi" if roi else "", "scales"]
    check(compare, "Resize", {"x": x}, {**roi, "scales": scales}, opset=opset, order=order, **attributes)


@common
@given(seed=seeds, height=st.integers(1, 9), width=st.integers(1, 9), axes=st.booleans())
def test_resize_to_sizes(compare: Compare, seed: int, height: int, width: int, axes: bool) -> None:
    sizes = ints(height, width) if axes else ints(2, 3, height, width)
    attributes: dict[str, Any] = {"axes": [2, 3]} if axes else {}
    module = check(
        compare,
        "Resize",
        {"x": floats(seed, (2, 3, 3, 4))},
        {"sizes": sizes},
        opset=18,
        order=["x", "", "", "sizes"],
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        **attributes,
    )
    assert ("nn.resize" in str(module)) == (height in (6, 9) or width == 8)


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(compare: Compare, opset: int) -> None:
    x, scales = floats(1, (1, 2, 3, 4)), np.array([1, 1, 2, 3], np.float32)
    if opset == 7:
        check(compare, "Upsample", {"x": x}, opset=7, scales=scales.tolist())
    else:
        check(compare, "Upsample", {"x": x}, {"scales": scales}, opset=9)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@common
@given(shape=shapes(3, 4), seed=seeds)
def test_global_pool(compare: Compare, op: str, shape: tuple[int, ...], seed: int) -> None:
    check(compare, op, {"x": floats(seed, shape)})


@common
@given(seed=seeds, channels=st.integers(1, 7), size=st.sampled_from([1, 3, 5]))
def test_lrn(compare: Compare, seed: int, channels: int, size: int) -> None:
    x = 3 * floats(seed, (2, channels, 3, 4))
    check(compare, "LRN", {"x": x}, size=size, alpha=0.3, beta=0.6, bias=1.5)


@common
@given(shape=shapes(2), seed=seeds, opset=st.sampled_from([9, 15]))
def test_batch_norm(compare: Compare, shape: tuple[int, ...], seed: int, opset: int) -> None:
    vectors = {name: floats(seed + i, shape[1:2]) for i, name in enumerate(("scale", "bias", "mean", "var"))}
    vectors["var"] = np.abs(vectors["var"]) + np.float32(0.1)
    check(compare, "BatchNormalization", {"x": floats(seed, shape)}, vectors, opset=opset, epsilon=1e-3)


@common
@given(shape=shapes(2), seed=seeds, data=st.data(), bias=st.booleans())
def test_layer_norm(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject, bias: bool) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    constants = {"scale": floats(seed + 1, shape[axis % len(shape) :])}
    if bias:
        constants["bias"] = floats(seed + 2, shape[axis % len(shape) :])
    check(compare, "LayerNormalization", {"x": floats(seed, shape)}, constants, axis=axis, epsilon=1e-3)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@common
@given(shape=shapes(1), seed=seeds, data=st.data(), opset=st.sampled_from([9, 11, 13, 17]))
def test_softmax_of_both_meanings(
    compare: Compare, op: str, shape: tuple[int, ...], seed: int, data: st.DataObject, opset: int
) -> None:
    low = -len(shape) if opset >= 11 else 0
    axis = data.draw(st.integers(low, len(shape) - 1))
    check(compare, op, {"x": 4 * floats(seed, shape)}, opset=opset, axis=axis)


@common
@given(seed=seeds, data=st.data())
def test_matmul(compare: Compare, seed: int, data: st.DataObject) -> None:
    m, k, n = (data.draw(dims) for _ in range(3))
    left, right = data.draw(broadcastable(2))
    x = floats(seed, data.draw(st.sampled_from([(k,), (m, k), (*left, m, k)])))
    y = floats(seed + 1, data.draw(st.sampled_from([(k,), (k, n), (*right, k, n)])))
    if data.draw(st.booleans()):
        check(compare, "MatMul", {"x": x, "y": y})
    else:
        check(compare, "MatMul", {"x": x}, {"y": y})


@common
@given(seed=seeds, sizes=st.tuples(dims, dims, dims), trans=st.tuples(st.booleans(), st.booleans()), data=st.data())
def test_gemm(
    compare: Compare, seed: int, sizes: tuple[int, int, int], trans: tuple[bool, bool], data: st.DataObject
) -> None:
    m, k, n = sizes
    a = floats(seed, (k, m) if trans[0] else (m, k))
    constants = {"b": floats(seed + 1, (n, k) if trans[1] else (k, n))}
    shape = data.draw(st.sampled_from([None, (n,), (1, n), (m, 1), (m, n), (1,)]))
    if shape is not None:
        constants["c"] = floats(seed + 2, shape)
    scales: dict[str, Any] = {name: data.draw(st.sampled_from([1.0, 0.5])) for name in ("alpha", "beta")}
    check(compare, "Gemm", {"a": a}, constants, transA=int(trans[0]), transB=int(trans[1]), **scales)


def some_axes(data: st.DataObject, rank: int) -> list[int]:
    axes = data.draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=1, max_size=rank))
    return [axis - rank if data.draw(st.booleans()) else axis for axis in axes]


@pytest.mark.parametrize(
    "op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceL2"]
)
@common
@given(shape=shapes(1), seed=seeds, data=st.data(), keepdims=st.integers(0, 1), opset=st.sampled_from([11, 13, 18]))
def test_reduce(
    compare: Compare, op: str, shape: tuple[int, ...], seed: int, data: st.DataObject, keepdims: int, opset: int
) -> None:
    x = {"x": floats(seed, shape)}
    if data.draw(st.booleans()):
        check(compare, op, x, opset=opset, keepdims=keepdims)
        return
    axes = some_axes(data, len(shape))
    if opset >= (13 if op == "ReduceSum" else 18):
        check(compare, op, x, {"axes": ints(*axes)}, opset=opset, keepdims=keepdims)
        check(compare, op, x, {"axes": ints()}, opset=opset, keepdims=keepdims, noop_with_empty_axes=1)
    else:
        check(compare, op, x, opset=opset, keepdims=keepdims, axes=axes)


@common
@given(shape=shapes(1), seed=seeds, data=st.data(), keepdims=st.integers(0, 1))
def test_arg_max(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject, keepdims: int) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    check(compare, "ArgMax", {"x": floats(seed, shape)}, axis=axis, keepdims=keepdims)


def factors(data: st.DataObject, count: int) -> list[int]:
    result: list[int] = []
    while count > 1:
        divisor = data.draw(st.sampled_from([d for d in range(2, count + 1) if count % d == 0]))
        result.append(divisor)
        count //= divisor
    return [*result, 1] if data.draw(st.booleans()) else result


@common
@given(shape=shapes(1), seed=seeds, data=st.data())
def test_reshape(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    target = factors(data, int(np.prod(shape)))
    if target and data.draw(st.booleans()):
        target[data.draw(st.integers(0, len(target) - 1))] = -1
    check(compare, "Reshape", {"x": floats(seed, shape)}, {"shape": ints(*target)})


def test_reshape_copies_dimensions_and_allows_a_literal_zero(compare: Compare) -> None:
    check(compare, "Reshape", {"x": floats(0, (2, 3, 4))}, {"shape": ints(0, -1)})
    check(compare, "Reshape", {"x": floats(0, (2, 3, 4))}, {"shape": ints(0, 0, 2, 2)})
    check(compare, "Reshape", {"x": floats(0, (2, 3, 4))}, {"shape": ints(4, 6)}, allowzero=1)


@common
@given(shape=shapes(1), seed=seeds, data=st.data())
def test_flatten(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    check(compare, "Flatten", {"x": floats(seed, shape)}, axis=data.draw(st.integers(-len(shape), len(shape))))


@common
@given(shape=shapes(0, 3), seed=seeds, data=st.data())
def test_squeeze_and_unsqueeze(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 2))
    axes = data.draw(st.lists(st.integers(0, len(shape) + count - 1), unique=True, min_size=count, max_size=count))
    x = floats(seed, shape)
    check(compare, "Unsqueeze", {"x": x}, {"axes": ints(*axes)})
    check(compare, "Unsqueeze", {"x": x}, opset=11, axes=axes)
    wide = np.expand_dims(x, tuple(axes))
    check(compare, "Squeeze", {"x": wide}, {"axes": ints(*axes)})
    check(compare, "Squeeze", {"x": wide}, opset=11, axes=axes)
    check(compare, "Squeeze", {"x": wide})


@common
@given(shape=shapes(1), seed=seeds, data=st.data())
def test_transpose(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    check(compare, "Transpose", {"x": floats(seed, shape)}, perm=data.draw(st.permutations(range(len(shape)))))
    check(compare, "Transpose", {"x": floats(seed, shape)})


@settings(common, max_examples=40)
@given(seed=seeds, data=st.data(), rank=st.integers(1, 3))
def test_slice(compare: Compare, seed: int, data: st.DataObject, rank: int) -> None:
    x = floats(seed, [data.draw(st.integers(2, 6)) for _ in range(rank)])
    axes: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    steps: list[int] = []
    for axis in data.draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=1, max_size=rank)):
        step = data.draw(st.sampled_from([1, 1, 2, -1, -2]))
        low, high = sorted((data.draw(st.integers(0, x.shape[axis] - 1)), data.draw(st.integers(0, x.shape[axis] - 1))))
        far = data.draw(st.booleans())
        start, end = (
            (low, 2**31 if far else high + 1) if step > 0 else (high, -(2**31) if far else low - x.shape[axis] - 1)
        )
        axes.append(axis - rank if data.draw(st.booleans()) else axis)
        starts.append(start)
        ends.append(end)
        steps.append(step)
    named = {"starts": ints(*starts), "ends": ints(*ends), "axes": ints(*axes), "steps": ints(*steps)}
    check(compare, "Slice", {"x": x}, named)
    if all(step == 1 for step in steps) and all(axis >= 0 for axis in axes):
        check(compare, "Slice", {"x": x}, opset=9, starts=starts, ends=ends, axes=axes)


@common
@given(shape=shapes(1), seed=seeds, data=st.data(), count=st.integers(1, 4))
def test_concat_and_split(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject, count: int) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = [data.draw(dims) for _ in range(count)]
    parts: list[Array] = []
    for index, size in enumerate(sizes):
        part = list(shape)
        part[axis] = size
        parts.append(floats(seed + index, part))
    check(compare, "Concat", {f"x{i}": part for i, part in enumerate(parts)}, axis=axis)
    whole = np.concatenate(parts, axis=axis)
    check(compare, "Split", {"x": whole}, {"sizes": ints(*sizes)}, outputs=count, axis=axis)
    check(compare, "Split", {"x": whole}, opset=11, outputs=count, axis=axis, split=sizes)
    check(compare, "Split", {"x": np.concatenate([whole] * 2, axis)}, outputs=2, axis=axis)
    check(compare, "Split", {"x": whole}, opset=18, outputs=1, axis=axis, num_outputs=1)


@common
@given(shape=shapes(1, 3), seed=seeds, data=st.data(), indices=shapes(0, 2), constant=st.booleans())
def test_gather(
    compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject, indices: tuple[int, ...], constant: bool
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    dim = shape[axis]
    picked = np.asarray(np.random.default_rng(seed).integers(-dim, dim, indices))
    x = {"x": floats(seed, shape)}
    if constant:
        check(compare, "Gather", x, {"i": picked}, axis=axis)
    else:
        check(compare, "Gather", {**x, "i": picked}, axis=axis)


@common
@given(shape=shapes(1, 3), seed=seeds, data=st.data(), value=st.none() | st.floats(-2, 2, width=32))
def test_pad(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject, value: float | None) -> None:
    pads = [data.draw(st.integers(0, 3)) for _ in range(2 * len(shape))]
    for axis, dim in enumerate(shape):  # a negative pad crops
        if dim > 2 and data.draw(st.booleans()):
            pads[axis] = -1
    constants = {"pads": ints(*pads)}
    if value is not None:
        constants["value"] = np.array(value, np.float32)
    check(compare, "Pad", {"x": floats(seed, shape)}, constants)
    check(compare, "Pad", {"x": floats(seed, shape)}, opset=9, pads=pads, value=value or 0.0)


@common
@given(pair=broadcastable(2), seed=seeds)
def test_expand(compare: Compare, pair: list[tuple[int, ...]], seed: int) -> None:
    check(compare, "Expand", {"x": floats(seed, pair[0])}, {"shape": ints(*pair[1])})


@common
@given(shape=shapes(1, 3), seed=seeds, data=st.data())
def test_tile(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    repeats = [data.draw(st.integers(1, 3)) for _ in shape]
    check(compare, "Tile", {"x": floats(seed, shape)}, {"repeats": ints(*repeats)})


TYPES = ["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]


@settings(common, max_examples=40)
@given(seed=seeds, source=st.sampled_from(TYPES), target=st.sampled_from(TYPES))
def test_cast(compare: Compare, seed: int, source: str, target: str) -> None:
    # Non-negative values: a negative float to an unsigned integer is undefined.
    x = np.asarray(np.abs(3 * floats(seed, (3, 4)))).astype(source)
    check(compare, "Cast", {"x": x}, to=helper.np_dtype_to_tensor_dtype(np.dtype(target)))
    check(compare, "CastLike", {"x": x, "like": np.zeros(1, target)})


@common
@given(seed=seeds, block=st.integers(1, 3), c=dims, h=dims, w=dims, mode=st.sampled_from(["DCR", "CRD"]))
def test_depth_and_space(compare: Compare, seed: int, block: int, c: int, h: int, w: int, mode: str) -> None:
    check(compare, "DepthToSpace", {"x": floats(seed, (2, c * block * block, h, w))}, blocksize=block, mode=mode)
    check(compare, "SpaceToDepth", {"x": floats(seed, (2, c, h * block, w * block))}, blocksize=block)


@common
@given(shape=shapes(), seed=seeds)
def test_identity_and_dropout(compare: Compare, shape: tuple[int, ...], seed: int) -> None:
    check(compare, "Identity", {"x": floats(seed, shape)})
    check(compare, "Dropout", {"x": floats(seed, shape)})
    check(compare, "Dropout", {"x": floats(seed, shape)}, opset=9, ratio=0.3)


@common
@given(shape=shapes(1), seed=seeds, data=st.data())
def test_shape_operators_fold(compare: Compare, shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(shape) - 1))
    module = check(compare, "Shape", {"x": floats(seed, shape)}, start=start)
    assert "nn.shape" not in str(module)
    check(compare, "Size", {"x": floats(seed, shape)})
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [2.5])
    check(compare, "ConstantOfShape", {}, {"shape": ints(*shape)}, value=value)
    check(compare, "Range", {}, {"a": np.array(2), "b": np.array(11), "c": np.array(3)})
    check(compare, "Constant", {}, value_floats=[1.0, 2.5])
    check(compare, "Constant", {}, value_int=7)
    check(compare, "Constant", {}, value=numpy_helper.from_array(floats(seed, shape)))


@common
@given(shape=shapes(1, 3), seed=seeds)
def test_half_precision_rounds_after_every_operator(compare: Compare, shape: tuple[int, ...], seed: int) -> None:
    x, y = (floats(seed + i, shape).astype(np.float16) for i in range(2))
    for op in ("Add", "Mul", "Div"):
        check(compare, op, {"x": x, "y": y})


def test_every_operator_is_covered() -> None:
    """Runs last in this file: each row of the operator table was compared above."""
    rows = {row.name for row in list_operators()}
    assert rows - COVERED == set()
