"""Runs a model in ONNX Runtime and as `nn`, and compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func, FuncOp
from xdsl.parser import Parser

from neuron_mlir.dialects.nn import Nn
from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.simulator.nn_eval import evaluate_function
from neuron_mlir.weights import OnnxStore

Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"
Compare: TypeAlias = "Callable[..., ModuleOp]"


def _reparsed(module: ModuleOp) -> ModuleOp:
    context = Context()
    for dialect in (Builtin, Func, Nn):
        context.load_dialect(dialect)
    copy = Parser(context, str(module)).parse_module()
    copy.verify()
    assert str(copy) == str(module)
    return copy


def _run_onnxruntime(source: onnx.ModelProto | Path, inputs: Arrays) -> list[NDArray[Any]]:
    import onnxruntime

    ort = cast(Any, onnxruntime)
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = str(source) if isinstance(source, Path) else source.SerializeToString()
    session: Any = ort.InferenceSession(model, options)
    return cast("list[NDArray[Any]]", session.run(None, dict(inputs)))


def _compare(source: onnx.ModelProto | Path, inputs: Arrays, *, tolerance: float = 1e-5, **options: Any) -> ModuleOp:
    """Imports the model, prints and parses it, and runs both; outputs may differ by `tolerance` of their scale."""
    module = import_model(source, **options)
    main = _reparsed(module).body.block.first_op
    assert isinstance(main, FuncOp)
    expected = _run_onnxruntime(source, inputs)
    found = evaluate_function(main, list(inputs.values()), OnnxStore(source))
    assert len(found) == len(expected)
    for want, got in zip(expected, found, strict=True):
        if want.dtype == np.float16:  # held as float32 by the simulator
            want = want.astype(np.float32)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(got, want)
            continue
        finite = np.isfinite(want)
        np.testing.assert_array_equal(np.isfinite(got), finite)
        np.testing.assert_array_equal(got[~finite], want[~finite])
        scale = float(np.abs(want[finite]).max(initial=0.0))
        np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=max(tolerance * scale, 1e-7))
    return module


@pytest.fixture(scope="session")
def compare() -> Compare:
    """`compare(model or path, inputs, tolerance=1e-5, **import options)`; gives the imported module."""
    return _compare
