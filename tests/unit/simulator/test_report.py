"""Throughput, latency and utilisation against hand arithmetic; no run beats its bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading import parse

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import cost, load_machine
from neuron_mlir.simulator.program import read_program
from neuron_mlir.simulator.report import Report, make_report, request_load, requests_for_steady_state
from neuron_mlir.simulator.run import run_module

GOLDEN = Path(__file__).parents[2] / "lit" / "golden" / "two_stage_final.mlir"
TEXT = GOLDEN.read_text(encoding="utf-8")
MACHINE = load_machine()


def report_of(text: str, requests: int = 30) -> Report:
    return run_module(parse(text), requests, values=False).report()


def repeated(instruction: str, times: int) -> str:
    """The golden program with one of its instructions given several times over."""
    line = next(line for line in TEXT.splitlines() if instruction in line and not line.startswith("//"))
    return TEXT.replace(line, "\n".join([line] * times))


VARIANTS = {
    "as it is": TEXT,
    "tensor bound": repeated("core.matmul %acc[0, %r mod 2, 0] [32", 100),
    "scalar bound": repeated("core.activation relu %ys", 100),
    "dma bound": repeated("core.dma %hs", 40),
    "dram bound": repeated("core.dma %xr", 40),
}


@pytest.mark.parametrize("text", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("requests", [2, 3, 5, 13, 40])
def test_no_run_beats_its_bounds(text: str, requests: int) -> None:
    report = report_of(text, requests)
    assert 0 < report.throughput_per_s <= report.bound.throughput_per_s * (1 + 1e-12)
    assert report.throughput_per_s <= report.model_bound.throughput_per_s
    for engines in report.engine_utilization.values():
        assert all(0 <= value <= 1 for value in engines.values())
    assert all(0 <= value <= 1 for value in report.resource_utilization.values())


@pytest.mark.parametrize(
    ("variant", "binding", "resource"),
    [
        ("as it is", "dram", "dram of chip 0"),
        ("tensor bound", "compute", "tensor of core 1"),
        ("scalar bound", "compute", "scalar of core 1"),
        ("dma bound", "dma", "dma of core 0"),
        ("dram bound", "dma", "dma of core 0"),
    ],
)
def test_binding_resource(variant: str, binding: str, resource: str) -> None:
    bound = report_of(VARIANTS[variant]).bound
    assert (bound.binding, bound.resource) == (binding, resource)


@pytest.mark.parametrize("variant", ["tensor bound", "scalar bound", "dma bound"])
def test_a_saturated_resource_reaches_the_bound(variant: str) -> None:
    report = report_of(VARIANTS[variant], 40)
    assert report.throughput_per_s >= 0.97 * report.bound.throughput_per_s
    assert report.steady_state.startswith("exact")


def test_load_by_hand() -> None:
    """Bytes and cycles of one request of the golden program, counted by hand."""
    load = request_load(read_program(parse(TEXT)))
    x, y = 128 * 512 * 2, 32 * 512 * 4
    assert load.dram_bytes == 2 * x + 2 * y, "in: host to ring to SBUF; out: SBUF to ring to host"
    assert load.flops == 2 * 512 * (128 * 64 + 64 * 32)
    assert load.busy_ps["tensor of core 0"] == load.busy_ps["tensor of core 1"] == 512 * 1000
    assert load.busy_ps["scalar of core 0"] == (60 + 512) * 1000
    assert load.busy_ps["host link in"] == (x // 32768) * cost.service_ps(32768, cost.host_link_bytes_per_s(MACHINE))


def test_model_bound_from_attributes() -> None:
    flops, weights = 10**12, 10**9
    attributes = f"attributes {{pipe.model_flops = {flops} : i64, pipe.model_weight_bytes = {weights} : i64}} "
    text = TEXT.replace("pipe.program @two_stage {", f"pipe.program @two_stage {attributes}{{")
    bound = report_of(text).model_bound
    assert bound.basis == "the network"
    beyond = weights - 2 * MACHINE.sbuf.size_bytes + 128 * 512 * 2 + 32 * 512 * 4
    seconds = max(flops / 32e12, beyond / cost.dram_bytes_per_s(MACHINE))
    assert bound.throughput_per_s == pytest.approx(1 / seconds, rel=1e-12)
    assert bound.binding == "compute"


def test_model_bound_says_when_it_had_to_guess() -> None:
    assert "does not record" in report_of(TEXT).model_bound.basis


def test_json_has_the_documented_keys() -> None:
    data = json.loads(json.dumps(report_of(TEXT).to_json()))
    assert {"throughput_per_s", "latency_ms", "cores", "engine_utilization", "dram_bytes_per_inference"} <= set(data)
    assert {"p50", "p90", "p99", "first"} <= set(data["latency_ms"])
    assert data["bound"]["binding"] == "dram" and data["model_bound"]["throughput_per_s"] > 0
    assert data["latency_ms"]["first"] <= data["latency_ms"]["p50"] <= data["latency_ms"]["p99"]


def test_one_request_gives_its_latency() -> None:
    report = report_of(TEXT, 1)
    assert report.throughput_per_s == pytest.approx(1e3 / report.latency_ms.first, rel=1e-9)


def test_runs_repeat_exactly() -> None:
    assert report_of(TEXT).to_json() == report_of(TEXT).to_json()


def test_default_requests_show_a_steady_state() -> None:
    module = parse(TEXT)
    program = read_program(module)
    run = run_module(module, requests_for_steady_state(program), values=False).machine
    assert run is not None
    assert make_report(program, run).steady_state.startswith("exact")


def test_requests_in_flight() -> None:
    """One at a time each finds the machine empty; more give more, until there are as many as the program takes in."""
    reports = [run_module(parse(TEXT), 60, values=False, in_flight=n).report() for n in (1, 2, 3, 60)]
    alone = reports[0]
    assert alone.latency_ms.p50 == pytest.approx(alone.latency_ms.first, rel=0.02)
    assert alone.throughput_per_s == pytest.approx(1e3 / alone.latency_ms.p50, rel=0.02)
    assert reports[0].throughput_per_s < reports[1].throughput_per_s
    assert [r.latency_ms.p50 for r in reports] == sorted(r.latency_ms.p50 for r in reports)
    assert reports[-1] == report_of(TEXT, 60)
    for count, report in zip((1, 2, 3), reports, strict=False):
        # Little's law: what is under way is what arrives in the time that it stays.
        assert report.throughput_per_s * report.latency_ms.p50 / 1e3 <= count * 1.001


def test_levels_without_a_clock_have_no_report() -> None:
    text = """
      func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {
        %y = nn.relu %x : tensor<2xf32>
        func.return %y : tensor<2xf32>
      }"""
    with pytest.raises(NeuronError, match="clock"):
        run_module(parse(text), 3, values=False)
