"""`pipe-stage` on whole networks: the best cut, proven, in little time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from neuron_mlir.frontends.onnx import import_model
from neuron_mlir.models.bert import CONFIGS, write_bert
from neuron_mlir.models.light import light_model
from neuron_mlir.passes import PASS_MODULES, load_pass
from neuron_mlir.passes.pipe.stage import PipeStage

BEFORE = ("nn-fold-constants", "nn-fold-batch-norm", "nn-fuse", "nn-cast")


@cache
def network(name: str, directory: Path) -> ModuleOp:
    """A network as it is before staging."""
    if name == "bert-base":
        write_bert(directory / "bert.onnx", CONFIGS[name], batch=1, seq=128)
        module = import_model(directory / "bert.onnx")
    else:
        module = import_model(light_model(name))
    for pass_name in BEFORE:
        load_pass(pass_name, PASS_MODULES[pass_name])().apply(Context(), module)
    return module


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("networks")
    yield made
    # pytest keeps directories of earlier runs; 440 MB of weights are not worth keeping.
    for file in made.iterdir():
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("cores", [2, 4, 8, 16])
@pytest.mark.parametrize("name", ["resnet50", "bert-base"])
def test_cut_is_proven(name: str, cores: int, directory: Path) -> None:
    module = network(name, directory).clone()
    a_pass = PipeStage(cores)
    start = time.process_time()
    a_pass.apply(Context(), module)
    assert time.process_time() - start < 10
    module.verify()
    best, bound = a_pass.statistics["bottleneck-ps"], a_pass.statistics["lower-bound-ps"]
    assert isinstance(best, int) and isinstance(bound, int)
    assert a_pass.statistics["stages"] == cores
    assert best - bound <= 0.01 * best


@pytest.mark.slow
def test_auto_takes_the_cores_the_weights_need(directory: Path) -> None:
    module = network("resnet50", directory).clone()
    a_pass = PipeStage()
    a_pass.apply(Context(), module)
    # 25.6 million bf16 weights are 48.8 MiB; a core keeps 9 MiB for them.
    assert a_pass.statistics["stages"] in (6, 7, 8)
    assert a_pass.statistics["aws-formula-cores"] == 4
