"""Loaded models: calls, futures, the queue, time-outs and return codes, against runs from beginning to end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from calls import Array, failure, rows

import neuron_mlir
from neuron_mlir import Instance, Status
from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.artifact import read_artifact
from neuron_mlir.simulator.run import random_inputs, run_module


def test_import_is_light() -> None:
    code = "import sys, neuron_mlir; assert not {'numpy', 'onnx', 'xdsl'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"load", "compile"} <= set(dir(neuron_mlir))
    with pytest.raises(AttributeError, match="'lode'"):
        neuron_mlir.lode  # noqa: B018  # pyright: ignore


def test_times_and_values_are_those_of_a_run(pipeline: str) -> None:
    """Requests that are there from the start take what `run_module` says they take, to the picosecond."""
    artifact = read_artifact(pipeline)
    module = artifact.module()
    feeds = [random_inputs(module, seed) for seed in range(12)]
    whole = run_module(module, feeds, weights=artifact.weights)
    assert whole.machine is not None
    with Instance() as instance:
        model = neuron_mlir.load(pipeline, instance=instance, dynamic_batch_size=False, in_flight=len(feeds))
        assert model.load_ms == whole.machine.load_ps / 1e9
        calls = [model.submit(feed) for feed in feeds]
        for call, outputs in zip(calls, whole.requests, strict=True):
            np.testing.assert_array_equal(call.outputs()["y"], outputs["y"])
        assert [call.latency_ms for call in calls] == [time / 1e9 for time in whole.machine.finished]


def test_a_closed_loop_takes_as_long_as_one_of_a_run(pipeline: str) -> None:
    artifact = read_artifact(pipeline)
    module = artifact.module()
    feeds = [random_inputs(module, seed) for seed in range(10)]
    held = run_module(module, feeds, weights=artifact.weights, in_flight=3).machine
    assert held is not None
    with Instance() as instance:
        model = neuron_mlir.load(pipeline, instance=instance, dynamic_batch_size=False, in_flight=3)
        start = instance.now_ms
        for call in [model.submit(feed) for feed in feeds]:
            call.outputs()
        # The host of a run sees answers through a semaphore, which takes its time for each.
        assert instance.now_ms - start == pytest.approx(max(held.finished) / 1e9, rel=0.005)


def test_by_position_and_by_name(pair_model: onnx.ModelProto) -> None:
    a, b, scale = rows(2, 1, 8), rows(2, 2, 8), rows(1, 3, 8)[0]
    with Instance() as instance:
        model = neuron_mlir.compile(
            pair_model, (a, b, scale), compiler_args=["--fp32-cast", "matmult"], instance=instance
        )
        assert [port.name for port in model.inputs] == ["a", "b:0", "scale"]
        total, turned = cast("tuple[Array, Array]", model(a, b, scale))
        np.testing.assert_allclose(total, a * scale + b, rtol=1e-6)
        np.testing.assert_allclose(turned, (a * scale).T, rtol=1e-6)
        named = model({"scale": scale, "a": a, "b:0": b})
        assert list(named) == ["sum", "turned"]
        np.testing.assert_array_equal(named["sum"], total)
        again = model(**{"a": a, "b:0": b, "scale": scale})
        np.testing.assert_array_equal(cast("dict[str, Array]", again)["turned"], turned)


def test_rows_of_several_inputs_and_along_other_axes(pair_model: onnx.ModelProto) -> None:
    a, b, scale = rows(7, 1, 8), rows(7, 2, 8), rows(1, 3, 8)[0]
    with Instance() as instance:
        model = neuron_mlir.compile(
            pair_model,
            {"a": a[:3], "b:0": b[:3], "scale": scale},
            compiler_args="--fp32-cast matmult",
            dynamic_batch_size=True,
            instance=instance,
        )
        assert model.batch_size == 3
        assert [port.rows_axis for port in (*model.inputs, *model.outputs)] == [0, 0, None, 0, 1]
        call = model.submit(a, b, scale)
        assert call.requests == 3
        total, turned = cast("tuple[Array, Array]", call.result())
        np.testing.assert_allclose(total, a * scale + b, rtol=1e-6)
        np.testing.assert_allclose(turned, (a * scale).T, rtol=1e-6)
        error = failure(Status.NRT_EXEC_BAD_INPUT, model, a, b[:6], scale)
        assert "same number of rows" in error.message


def test_save_and_load(single: str, tmp_path: Path) -> None:
    with Instance() as instance:
        model = neuron_mlir.load(single, instance=instance)
        model.save(str(tmp_path / "again.neff"))
        again = neuron_mlir.load(tmp_path / "again.neff", instance=instance)
        np.testing.assert_array_equal(model(rows(1)), again(rows(1)))
    assert (tmp_path / "again.neff").read_bytes() == Path(single).read_bytes()


def test_inputs_are_checked(single: str) -> None:
    with Instance() as instance:
        model = neuron_mlir.load(single, instance=instance, check_nan=True)
        bad = {
            "there is no input 'z'": {"z": rows(1)},
            "input 'x' is missing": {},
            "input 'x' has the wrong shape": {"x": rows(2)},
            "input 'x' has the wrong element type": {"x": np.zeros((1, 16), np.int32)},
            "input 'x' does not hold numbers": {"x": np.zeros((1, 16), np.complex64)},
            "input 'x' is not an array": {"x": [[1.0], [2.0, 3.0]]},
            "input 'x' holds NaN": {"x": np.full((1, 16), np.nan, np.float32)},
        }
        for text, feed in bad.items():
            assert text in failure(Status.NRT_EXEC_BAD_INPUT, model, feed).line
        assert "wrong number of inputs" in failure(Status.NRT_EXEC_BAD_INPUT, model, rows(1), rows(1)).line
        assert "not both" in failure(Status.NRT_EXEC_BAD_INPUT, model, rows(1), x=rows(1)).line
        assert model.under_way == 0
        assert np.isfinite(cast("Array", model(rows(1).astype(np.float64)))).all()


def test_nan_among_outputs(tmp_path: Path) -> None:
    proto = two_dimensional([onnx.helper.make_node("Sub", ["x", "x"], ["y"], name="sub")], ["N", 4])
    infinite = np.full((1, 4), np.inf, np.float32)
    with Instance() as instance:
        model = neuron_mlir.compile(proto, infinite, instance=instance, check_nan=True)
        failure(Status.NRT_EXEC_COMPLETED_WITH_NUM_ERR, model, infinite)
        assert model.submit(infinite).status is Status.NRT_EXEC_COMPLETED_WITH_NUM_ERR
        assert model.submit(np.ones((1, 4), np.float32)).status is Status.NRT_SUCCESS
        careless = neuron_mlir.load(_saved(model, tmp_path), instance=instance)
        assert np.isnan(cast("Array", careless(infinite))).all()


def _saved(model: neuron_mlir.Model, folder: Path) -> Path:
    model.save(str(folder / "m.neff"))
    return folder / "m.neff"


def test_the_queue_takes_three_more_than_there_are_cores(
    pipeline: str, single: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Instance() as instance:
        model = neuron_mlir.load(pipeline, instance=instance)
        assert model.options.in_flight == 7
        calls = [model.submit(rows(1, seed), block=False) for seed in range(7)]
        assert model.under_way == 7 and not any(call.done() for call in calls)
        error = failure(Status.NRT_QUEUE_FULL, model.submit, rows(1), block=False)
        assert (error.needed, error.available) == (1, 0)
        before = instance.now_ms
        eighth = model.submit(rows(1, 7))  # waits until the first is answered
        assert instance.now_ms > before and calls[0].done() and not calls[1].done()
        eighth.result()
        assert model.under_way == 0 and all(call.done() for call in calls)
        monkeypatch.setenv("NEURON_MAX_NUM_INFERS", "2")
        assert neuron_mlir.load(single, instance=instance).options.in_flight == 2
        monkeypatch.setenv("NEURON_MAX_NUM_INFERS", "none")
        assert "NEURON_MAX_NUM_INFERS" in failure(Status.NRT_INVALID, neuron_mlir.load, single, instance=instance).line


def test_time_outs(pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Instance() as instance:
        first = neuron_mlir.load(pipeline, instance=instance)
        latency_s = first.submit(rows(1)).latency_ms / 1000
        model = neuron_mlir.load(pipeline, instance=instance, timeout_s=latency_s * 1.2)
        calls = [model.submit(rows(1)) for _ in range(7)]
        statuses = [call.status for call in calls]
        assert statuses[0] is Status.NRT_SUCCESS and statuses[-1] is Status.NRT_TIMEOUT
        assert failure(Status.NRT_TIMEOUT, calls[-1].result).available == f"{latency_s * 1.2:g}"
        # The host has given up; the machine goes on, and answers what comes next.
        assert model.submit(rows(1)).outputs()["y"].shape == (1, 16)
        patient = neuron_mlir.load(pipeline, instance=instance, timeout_s=float("inf"))
        assert patient.submit(rows(1)).status is Status.NRT_SUCCESS
        failure(Status.NRT_INVALID, instance.advance, -1)
        monkeypatch.setenv("NEURON_RT_EXEC_TIMEOUT", "0")
        impatient = neuron_mlir.load(pipeline, instance=instance)
        failure(Status.NRT_TIMEOUT, impatient, rows(1))


def test_await_and_map_keep_the_order(pipeline: str) -> None:
    batches = [rows(count, seed) for seed, count in enumerate((3, 9, 1, 4, 6))]
    with Instance() as instance:
        model = neuron_mlir.load(pipeline, instance=instance)
        one_by_one = [model(batch) for batch in batches]
        spent = instance.now_ms
        mapped = list(model.map(batches))

        async def together() -> list[Any]:
            async def ask(batch: Array) -> Any:
                return await model.submit(batch)

            return await asyncio.gather(*(ask(batch) for batch in batches))

        gathered = asyncio.run(together())
        for first, second, third in zip(one_by_one, mapped, gathered, strict=True):
            np.testing.assert_array_equal(first, second)
            np.testing.assert_array_equal(first, third)
        assert spent > 0


def test_together_is_sooner_than_one_by_one(pipeline: str) -> None:
    with Instance() as instance:
        model = neuron_mlir.load(pipeline, instance=instance)
        start = instance.now_ms
        for _ in range(6):
            model(rows(1))
        middle = instance.now_ms
        list(model.map([rows(1)] * 6))
        assert instance.now_ms - middle < 0.7 * (middle - start)


def test_threads_share_a_model(pipeline: str) -> None:
    batches = [rows(1 + seed % 7, seed) for seed in range(48)]
    with Instance() as instance:
        model = neuron_mlir.load(pipeline, instance=instance, replicas=2)
        wanted = [model(batch) for batch in batches]
        with ThreadPoolExecutor(6) as pool:
            for answer, want in zip(pool.map(model, batches), wanted, strict=True):
                np.testing.assert_array_equal(answer, want)
        assert model.under_way == 0


def test_copies_share_the_calls(pipeline: str) -> None:
    batches = [rows(4, seed) for seed in range(24)]
    with Instance() as instance:
        spent: list[float] = []
        for replicas in (1, 3):
            model = neuron_mlir.load(pipeline, instance=instance, replicas=replicas)
            assert len(model.cores) == replicas and model.options.in_flight == 4 * replicas + 3
            start = instance.now_ms
            answers = list(model.map(batches))
            spent.append(instance.now_ms - start)
            for answer, batch in zip(answers, batches, strict=True):
                np.testing.assert_array_equal(answer, model(batch))
        assert spent[1] < 0.6 * spent[0]


def test_an_index_outside_of_its_table_fails_alone(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", "ids"], ["y"], name="look", axis=0)],
        "net",
        [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [1, 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 8])],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with Instance() as instance:
        model = neuron_mlir.compile(proto, instance=instance, compiler_args="--fp32-cast matmult", in_flight=20)
        for bad in ({3}, {0}, {6, 7}, set(range(8))):
            feeds = [np.array([[i, 9 - i, 10 if i in bad else 0]], np.int64) for i in range(8)]
            calls = [model.submit(feed) for feed in feeds]
            for i, (feed, call) in enumerate(zip(feeds, calls, strict=True)):
                if i in bad:
                    assert "row 10" in failure(Status.NRT_EXEC_OOB, call.result).line
                else:
                    np.testing.assert_array_equal(cast("Array", call.result()), table[feed])
        assert "row -1" in failure(Status.NRT_EXEC_OOB, model, np.array([[0, -1, 0]], np.int64)).line
        np.testing.assert_array_equal(cast("Array", model(np.array([[1, 2, 3]]))), table[[[1, 2, 3]]])
        assert model.under_way == 0


def test_a_model_that_nobody_has_gives_back_its_cores(single: str) -> None:
    with Instance("inf1.xlarge") as instance:
        for _ in range(6):
            model = neuron_mlir.load(single, instance=instance, replicas=3)
            call = model.submit(rows(1))
            del model
            gc.collect()
            assert instance.free_cores == [3], "the call still needs it"
            call.result()
            del call
            gc.collect()
        assert instance.free_cores == [0, 1, 2, 3]


def test_a_model_that_was_unloaded(single: str) -> None:
    with Instance("inf1.xlarge") as instance:
        with neuron_mlir.load(single, instance=instance, replicas="all") as model:
            assert len(model.cores) == 4 and instance.free_cores == []
        failure(Status.NRT_INVALID_HANDLE, model, rows(1))
        assert instance.free_cores == [0, 1, 2, 3]
        open_one = neuron_mlir.load(single, instance=instance)
    failure(Status.NRT_CLOSED, open_one, rows(1))
    failure(Status.NRT_CLOSED, neuron_mlir.load, single, instance=instance)


def test_compile_arguments(chain_model: onnx.ModelProto, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with Instance() as instance:
        model = neuron_mlir.compile(
            chain_model.SerializeToString(),
            rows(2),
            compiler_args=["--neuroncore-pipeline-cores", "2", "--fast-math", "none", "--verbose", "ERROR"],
            compiler_workdir=work,
            instance=instance,
        )
        assert model.cores == [(0, 1)] and model.batch_size == 2 and model.rows is None
        assert sorted(path.name for path in work.iterdir()) == ["compile.json", "model.neff", "program.mlir"]
        assert model.artifact.metadata["options"]["fp32_cast"] == "matmult-bf16"
        failure(Status.NRT_EXEC_BAD_INPUT, model, rows(3))
    with pytest.raises(NeuronError, match="'--outpt' is not a flag"):
        neuron_mlir.compile(chain_model, rows(2), compiler_args=["--outpt", "x"])
    with pytest.raises(NeuronError, match="invalid choice"):
        neuron_mlir.compile(chain_model, rows(2), compiler_args="--fp32-cast never")
    with pytest.raises(NeuronError, match="'y'"):
        neuron_mlir.compile(chain_model, {"y": rows(2)})
    with pytest.raises(NeuronError, match="wrong shape"):
        neuron_mlir.compile(chain_model, rows(2, width=15))
    with pytest.raises(NeuronError, match="No closing quotation"):
        neuron_mlir.compile(chain_model, rows(2), compiler_args="'--fp32-cast")
    with pytest.raises(NeuronError, match="the model is not an ONNX file"):
        neuron_mlir.compile(b"nonsense")
    with pytest.raises(NeuronError, match="compiler_workdir"):
        neuron_mlir.compile(chain_model, rows(2), compiler_workdir=work / "model.neff" / "x")
    failure(Status.NRT_INVALID, neuron_mlir.compile, chain_model, rows(2), replicas=cast("Any", "many"))
    failure(Status.NRT_TIMEOUT, neuron_mlir.compile, chain_model, rows(2), compiler_timeout=0)
    with pytest.raises(NeuronError, match="not an ONNX model"):
        neuron_mlir.compile(cast("Any", 7))


def two_dimensional(nodes: list[onnx.NodeProto], shape: list[Any]) -> onnx.ModelProto:
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
        for name, dims in (("x", ["N", 4]), ("y", shape))
    ]
    graph = onnx.helper.make_graph(nodes, "net", values[:1], values[1:])
    made: onnx.ModelProto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    return made


def test_rows_do_not_see_each_other() -> None:
    across = two_dimensional([onnx.helper.make_node("Softmax", ["x"], ["y"], name="across", axis=0)], ["N", 4])
    ones = np.ones((5, 4), np.float32)
    with Instance() as instance:
        # The rows of one request may see each other; those of a dynamic batch are as if each were alone.
        model = neuron_mlir.compile(across, ones[:2], instance=instance)
        np.testing.assert_allclose(cast("Array", model(ones[:2])), 0.5, rtol=1e-2)
        for size in (1, 2):
            dynamic = neuron_mlir.compile(across, ones[:size], dynamic_batch_size=True, instance=instance)
            np.testing.assert_allclose(cast("Array", dynamic(ones)), 1, rtol=1e-2)
    mixing = two_dimensional(
        [
            onnx.helper.make_node("Transpose", ["x"], ["t"], name="turn", perm=[1, 0]),
            onnx.helper.make_node("MatMul", ["t", "x"], ["y"], name="mix"),
        ],
        [4, 4],
    )
    with pytest.raises(NeuronError) as caught:
        neuron_mlir.compile(mixing, ones[:2], dynamic_batch_size=True)
    assert caught.value.location == "mix"


def test_dynamic_batching_needs_an_artifact_that_allows_it(single: str) -> None:
    with Instance() as instance:
        error = failure(Status.NRT_INVALID, neuron_mlir.load, single, instance=instance, dynamic_batch_size=True)
        assert "dynamic_batch_size" in (error.advice or "")
