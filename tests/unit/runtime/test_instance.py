"""Cores, chips and DRAM of a simulated instance: who is placed where, what is refused, and what is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from calls import Array, failure, rows

import neuron_mlir
from neuron_mlir import Instance, Status, default_instance
from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.artifact import read_artifact
from neuron_mlir.simulator import session
from neuron_mlir.simulator.machine_run import MachineSimulator
from neuron_mlir.simulator.placement import relocate
from neuron_mlir.simulator.program import read_program


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({}, range(16)),
        ({"NEURON_RT_VISIBLE_CORES": "3"}, [3]),
        ({"NEURON_RT_VISIBLE_CORES": "4-7"}, range(4, 8)),
        ({"NEURON_RT_VISIBLE_CORES": " 0, 6-7 "}, [0, 6, 7]),
        ({"NEURON_RT_NUM_CORES": "5"}, range(5)),
        ({"NEURON_RT_NUM_CORES": "0"}, range(16)),
        ({"NEURON_RT_VISIBLE_CORES": "1-2", "NEURON_RT_NUM_CORES": "5"}, [1, 2]),
    ],
)
def test_visible_cores(variables: dict[str, str], cores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    instance = Instance("inf1.6xlarge")
    assert list(instance.cores) == list(cores)
    assert instance.free_cores == list(range(len(instance.cores)))


@pytest.mark.parametrize("text", ["16", "3-1", "a", "1,1", "1--2", "-1", "0x2", "1,", "٣x"])
def test_cores_that_there_are_not(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", text)
    assert "NEURON_RT_VISIBLE_CORES" in failure(Status.NRT_INVALID, Instance, "inf1.6xlarge").line


def test_bad_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "inf1.24xlarge" in failure(Status.NRT_INVALID, Instance, "inf2.xlarge").line
    monkeypatch.setenv("NEURON_RT_NUM_CORES", "17")
    error = failure(Status.NRT_LOAD_NOT_ENOUGH_NC, Instance, "inf1.6xlarge")
    assert (error.needed, error.available) == (17, 16)
    monkeypatch.setenv("NEURON_RT_NUM_CORES", "-1")
    failure(Status.NRT_INVALID, Instance, "inf1.6xlarge")


def test_the_instance_of_the_process(single: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default_instance().close()
    monkeypatch.setenv("NEURON_MLIR_INSTANCE", "inf1.xlarge")
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "2-3")
    first, second = neuron_mlir.load(single), neuron_mlir.load(single)
    assert (first.cores, second.cores) == ([(2,)], [(3,)])
    assert first.instance is second.instance is default_instance()
    error = failure(Status.NRT_LOAD_NOT_ENOUGH_NC, neuron_mlir.load, single)
    assert error.needed == 1 and "0 of 2" in str(error.available)
    default_instance().close()


def test_placement(pipeline: str, single: str) -> None:
    with Instance("inf1.6xlarge") as instance:
        one = neuron_mlir.load(single, instance=instance)
        four = neuron_mlir.load(pipeline, instance=instance)
        others = neuron_mlir.load(single, instance=instance, replicas=4)
        assert one.cores == [(0,)]
        assert four.cores == [(4, 5, 6, 7)], "four cores of one chip, as it was compiled"
        assert others.cores == [(1,), (2,), (3,), (8,)]
        assert instance.free_cores == [9, 10, 11, 12, 13, 14, 15]
        fixed = neuron_mlir.load(pipeline, instance=instance, first_core=12)
        assert fixed.cores == [(12, 13, 14, 15)]
        error = failure(Status.NRT_LOAD_NOT_ENOUGH_NC, neuron_mlir.load, pipeline, instance=instance)
        assert error.needed == 4 and "9-11" in str(error.available)
        failure(Status.NRT_LOAD_NOT_ENOUGH_NC, neuron_mlir.load, pipeline, instance=instance, first_core=13)
        failure(Status.NRT_LOAD_NOT_ENOUGH_NC, neuron_mlir.load, pipeline, instance=instance, first_core=10)
        failure(Status.NRT_LOAD_NOT_ENOUGH_NC, neuron_mlir.load, single, instance=instance, first_core=-1)
        x = rows(4)
        np.testing.assert_array_equal(four(x), fixed(x))
        four.close()
        assert neuron_mlir.load(pipeline, instance=instance).cores == [(4, 5, 6, 7)]
        # A failure half way leaves nothing behind.
        free = instance.free_cores
        failure(Status.NRT_LOAD_NOT_ENOUGH_NC, neuron_mlir.load, single, instance=instance, replicas=64)
        assert instance.free_cores == free
        assert len(neuron_mlir.load(single, instance=instance, replicas="all").cores) == len(free)


def test_cores_that_are_not_neighbours(pipeline: str) -> None:
    with Instance("inf1.6xlarge", visible_cores="0-2,4-5,7") as instance:
        failure(Status.NRT_LOAD_NOT_ENOUGH_NC, neuron_mlir.load, pipeline, instance=instance)
        failure(Status.NRT_LOAD_NOT_ENOUGH_NC, neuron_mlir.load, pipeline, instance=instance, first_core=1)


def test_a_program_over_chips(chain_model: onnx.ModelProto) -> None:
    x = rows(1)
    with Instance("inf1.24xlarge") as instance:
        eight = neuron_mlir.compile(chain_model, x, compiler_args="--replicas 8", instance=instance)
        assert eight.cores == [tuple(range(8))]
        moved = neuron_mlir.load(_saved(eight), instance=instance, first_core=40)
        calls = [[m.submit(x) for _ in range(8)] for m in (eight, moved)]
        for here, there in zip(*calls, strict=True):
            np.testing.assert_array_equal(here.outputs()["y"], there.outputs()["y"])
        failure(Status.NRT_LOAD_NOT_ENOUGH_NC, neuron_mlir.load, _saved(eight), instance=instance, first_core=9)


def _saved(model: neuron_mlir.Model) -> str:
    import tempfile

    folder = tempfile.mkdtemp()
    model.save(f"{folder}/m.neff")
    return f"{folder}/m.neff"


def test_relocation_moves_all_that_is_on_a_core(pipeline: str) -> None:
    module = read_artifact(pipeline).module()
    program, moved = read_program(module), read_program(module)
    relocate(moved, 8)
    assert moved.cores == [8, 9, 10, 11]
    for before, after in zip(program.storages, moved.storages, strict=True):
        shift = 2 if before.memory.space == "dram" else 8
        assert (after.memory.space, after.memory.place) == (before.memory.space, before.memory.place + shift)
    assert [s.core for s in moved.streams] == [s.core + 8 for s in program.streams]
    assert {s.core for s in moved.semaphores if s.core is not None} == {8, 9, 10, 11}
    with pytest.raises(NeuronError, match="cannot begin at core 2"):
        relocate(read_program(module), 2)


@pytest.fixture(scope="module")
def small_dram(tmp_path_factory: pytest.TempPathFactory, chain_model: onnx.ModelProto) -> str:
    """A machine whose chips have little DRAM, and that is slow, and a program for it."""
    folder = tmp_path_factory.mktemp("dram")
    machine = folder / "small.toml"
    machine.write_text('base = "inferentia1"\n[dram]\nbytes_per_chip = 40000\nbytes_per_s = 50_000_000\n')
    with Instance() as instance:
        model = neuron_mlir.compile(chain_model, rows(16), compiler_args=["--machine", str(machine)], instance=instance)
        model.save(str(folder / "m.neff"))
    return str(folder / "m.neff")


def test_dram_is_shared_and_runs_out(small_dram: str, single: str) -> None:
    with Instance("inf1.6xlarge") as instance:
        models = [neuron_mlir.load(small_dram, instance=instance, first_core=0)]
        needed = 40000 - instance.dram_free(0)
        assert 4 * 16 * 16 * 2 < needed < 20000
        while instance.dram_free(0) >= needed:
            models.append(neuron_mlir.load(small_dram, instance=instance, first_core=len(models)))
        error = failure(Status.NRT_RESOURCE, neuron_mlir.load, small_dram, instance=instance, first_core=3)
        assert error.needed == needed and error.available == instance.dram_free(0) < needed
        # The same clock for all: who shares a chip's DRAM waits longer than who has one alone.
        x = rows(16)
        own = neuron_mlir.load(small_dram, instance=instance, first_core=4)
        lone = own.submit(x).latency_ms
        calls = [model.submit(x) for model in models]
        assert max(call.latency_ms for call in calls) > 1.5 * lone
        apart = [neuron_mlir.load(small_dram, instance=instance, first_core=core) for core in (8, 12)]
        calls = [model.submit(x) for model in apart]
        assert max(call.latency_ms for call in calls) < 1.2 * lone
        # Another machine's program has no place here.
        assert "'dram'" in failure(Status.NRT_INVALID, neuron_mlir.load, single, instance=instance).line


def test_chips_with_fewer_cores(chain_model: onnx.ModelProto, tmp_path: Path) -> None:
    machine = tmp_path / "two.toml"
    machine.write_text('base = "inferentia1"\n[chip]\ncores = 2\n')
    with Instance("inf1.6xlarge") as instance:
        arguments = ["--machine", str(machine), "--neuroncore-pipeline-cores", "2"]
        model = neuron_mlir.compile(chain_model, rows(1), compiler_args=arguments, instance=instance, replicas="all")
        assert model.cores == [(0, 1), (2, 3), (4, 5), (6, 7)]
        model(rows(1))


def test_ctrl_c(pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(1)
    with Instance() as instance:
        model = neuron_mlir.load(pipeline, instance=instance)
        wanted = cast("Array", model(x))
        for method in ("write_input", "read_output"):
            before = model.submit(x)

            def stop(*_: Any) -> None:
                raise KeyboardInterrupt

            with monkeypatch.context() as patched:
                patched.setattr(MachineSimulator, method, stop)
                with pytest.raises(KeyboardInterrupt):
                    model(x)
            assert "interrupted" in failure(Status.NRT_EXEC_COMPLETED_WITH_ERR, before.result).line
            np.testing.assert_array_equal(model(x), wanted)


def test_programs_that_take_turns_on_cores(pipeline: str, single: str) -> None:
    x = rows(1)
    with Instance("inf1.xlarge") as instance:
        first = neuron_mlir.load(pipeline, instance=instance)
        wanted = cast("Array", first(x))
        second = neuron_mlir.load(single, instance=instance, first_core=1)
        other = cast("Array", second(x))
        np.testing.assert_array_equal(second(x), other)
        steady = second.submit(x).latency_ms
        # Five calls of the one, then the other needs the cores: the five are answered before.
        np.testing.assert_array_equal(first(x), wanted)
        calls = [first.submit(x) for _ in range(5)]
        switched = second.submit(x)
        assert all(call.done() for call in calls)
        assert switched.latency_ms > steady + second.load_ms
        np.testing.assert_array_equal(switched.result(), other)
        for call in calls:
            np.testing.assert_array_equal(call.result(), wanted)


def test_semaphores_start_again(pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [rows(4, seed) for seed in range(40)]
    with Instance() as instance:
        plain = neuron_mlir.load(pipeline, instance=instance)
        wanted = list(plain.map(batches))
        for name in ("SIGNALS_KEPT", "SIGNALS_IDLE"):
            monkeypatch.setattr(session, name, 500)
        short = neuron_mlir.load(pipeline, instance=instance)
        start = instance.now_ms
        for answer, want in zip(short.map(batches), wanted, strict=True):
            np.testing.assert_array_equal(answer, want)
        interrupted = instance.now_ms - start
        start = instance.now_ms
        list(plain.map(batches))
        assert interrupted > 1.1 * (instance.now_ms - start), "the pipeline ran dry several times"


def test_time_passes_while_the_host_is_away(pipeline: str, tmp_path: Path) -> None:
    with Instance() as instance:
        model = neuron_mlir.load(pipeline, instance=instance)
        call = model.submit(rows(1))
        latency = model.submit(rows(1)).latency_ms
        assert call.done()
        later = model.submit(rows(1))
        now = instance.now_ms
        instance.advance(10 * latency)
        assert instance.now_ms == pytest.approx(now + 10 * latency) and later.done()
        assert later.latency_ms < 2 * latency
