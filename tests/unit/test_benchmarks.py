"""The tables of benchmarks/ name passes, networks and options that exist; nothing is measured here."""

from __future__ import annotations

import json
import string
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from benchmarks import runs
from benchmarks.bounds import CLAIMS
from benchmarks.explore import SEARCHES, Search, explore_here
from benchmarks.inf1 import PUBLISHED, READING, reading
from benchmarks.measures import MEASURES
from benchmarks.models import MODELS, OTHERS
from benchmarks.passes import variants
from benchmarks.runs import Run, Spec
from benchmarks.tables import Result
from benchmarks.validate import Checked, check_here, plans
from benchmarks.zigzag import macs
from neuron_mlir.models.catalogue import write_network
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.compiler import CompileOptions


def specs() -> list[Spec]:
    """Of all tables."""
    found = [spec for name in MODELS for _, spec in variants(name)] + [each.spec for each in PUBLISHED]
    found += [spec for name in MODELS for _, spec in plans(name)]
    return found + [Spec(claim.model, dict(plan)) for claim in CLAIMS for plan in claim.plans.values()]


def test_what_is_measured_exists() -> None:
    for spec in specs():
        assert spec.model in {**MODELS, **OTHERS}
        options = CompileOptions(**spec.options)
        names = [step.name for step in load_pipeline(options.pipeline().expand())]
        assert set(spec.without) <= set(names)


@pytest.mark.parametrize("name", MODELS)
def test_every_switch_changes_the_pipeline(name: str) -> None:
    (_, base), *others = variants(name)
    keys = [json.dumps(asdict(spec), sort_keys=True) for _, spec in [("", base), *others]]
    assert len(set(keys)) == len(keys)
    everything = CompileOptions(**base.options).pipeline().expand()
    for words, spec in others:
        if words.startswith("without ") and not spec.without:
            assert words.split()[1] in everything
            assert words.split()[1] not in CompileOptions(**spec.options).pipeline().expand().replace("=", "")


def test_every_table_says_what_it_shows() -> None:
    for name, measure in MEASURES.items():
        assert len((measure.__doc__ or "").split()) > 10, name


def report() -> dict[str, object]:
    """A report as the simulator gives it, of round numbers."""
    return {
        "throughput_per_s": 50.0,
        "dram_bytes_per_inference": 10**8,
        "cores": 16,
        "chips": 4,
        "engine_utilization": {"core 0": {"tensor": 0.5}},
        "bound": {"throughput_per_s": 100.0, "resource": "dma of core 0", "binding": "dma"},
        "model_bound": {"throughput_per_s": 200.0},
    }


def test_shares_and_traffic_are_per_inference() -> None:
    run = Run(batch=4, report=report(), weight_bytes=6 * 10**7, interface_bytes=2 * 10**7)
    assert run.throughput == 200 and run.dram_bytes == 2.5e7 and run.compulsory_bytes == 2e7
    assert run.share("bound") == 0.5 and run.share("model_bound") == 0.25


def test_the_reading_has_all_its_numbers() -> None:
    names = {name for _, name, _, _ in string.Formatter().parse(READING.read_text(encoding="utf-8")) if name}
    text = reading([Run(report=report()) for _ in PUBLISHED])
    assert len(names) > 10 and "{" not in text and "16 SBUFs" in text


def test_notes_come_below_the_table() -> None:
    result = Result("x", "X", MEASURES["inf1"], ["a"], rows=[[1]], limits=[("holds", True)], notes="Read it so.")
    assert result.markdown().endswith("- holds: yes\n\nRead it so.\n")


def test_a_run_and_its_error(tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.onnx", "dlrm", rows=4, tables=2, dimension=8)
    run = runs.run_here(Spec("dlrm", {"cores": 1}, requests=3, layers=True), path)
    assert not run.error and run.throughput > 0 and run.flops > 0 and run.layers
    assert run.report["requests"] == 3 and run.peak_bytes > 10**6
    assert json.loads(json.dumps(asdict(run))).keys() == {field.name for field in fields(Run)}
    refused = runs.run_here(Spec("dlrm", {"cores": 1000}), path)
    assert "cores" in refused.error and not refused.report


def test_passes_are_checked_one_by_one(tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.onnx", "dlrm", rows=4, tables=2, dimension=8)
    found: list[Checked] = []
    check_here(Spec("dlrm", {"cores": 2}), path, found.append)
    names = [each.name for each in found]
    assert names == [str(step) for step in load_pipeline(CompileOptions(cores=2).pipeline().expand())]
    assert not any(each.error for each in found) and all(each.ops for each in found)
    rounded = next(each for each in found if each.name == "nn-cast")
    assert 0 < rounded.deviation < 0.1 and rounded.relation == "casts"
    found.clear()
    check_here(Spec("dlrm", {"cores": 1000}), path, found.append)
    assert found[-1].error and "core-schedule" not in [each.name for each in found]


def test_the_best_plan_and_the_one_nearest_to_its_bound(tmp_path: Path) -> None:
    assert list(SEARCHES) == list(MODELS)
    path = write_network(tmp_path / "net.onnx", "dlrm", rows=4, tables=2, dimension=8)
    found = explore_here(Search((1, 2), (1, 8), 3), path)
    assert found["simulated"] == len(found["all"]) <= 3 < found["estimated"]
    assert found["nearest"]["model_share"] == max(each["model_share"] for each in found["all"]) <= 1
    assert found["best"]["dollars_per_million"] == min(each["dollars_per_million"] for each in found["all"])
    assert "cores" in explore_here(Search((70, 80), (1,)), path)["error"]


def test_multiply_adds_of_a_network(tmp_path: Path) -> None:
    """As torchvision's documentation has them of ResNet-18."""
    path = write_network(tmp_path / "net.onnx", "resnet18", external_data=True)
    assert round(macs(path) / 1e9, 2) == 1.81
