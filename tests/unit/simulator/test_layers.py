"""Times of layers: by hand, and adding up to what the program as a whole is charged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading import parse
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import record_machine
from neuron_mlir.machine import load_machine
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import module_text
from neuron_mlir.simulator.layers import UNNAMED, LayerTime, layer_times
from neuron_mlir.simulator.program import read_program
from neuron_mlir.simulator.report import request_load
from neuron_mlir.simulator.run import random_inputs, run_module

GOLDEN = Path(__file__).parents[2] / "lit" / "golden" / "two_stage_final.mlir"
NS = 1000
LINES = (
    ("core.matmul %acc[0, %r mod 2, 0] [64,", "first"),
    ("core.activation relu %hs[", "first"),
    ("core.dma %xr", "first"),
    ("core.matmul %acc[0, %r mod 2, 0] [32,", "second"),
    ("core.activation relu %ys[", "second"),
)

NETWORK = """
func.func @main(%x: tensor<1x8x12x12xf32> {nn.name = "x"}) -> (tensor<1x48x6x6xf32> {nn.name = "y"}) {
  %w1 = nn.weight "w1" seeded<1> : tensor<32x8x3x3xf32>
  %w2 = nn.weight "w2" seeded<2> : tensor<48x32x1x1xf32>
  %0 = nn.conv %x, %w1 pads [1, 1, 1, 1]
    : (tensor<1x8x12x12xf32>, tensor<32x8x3x3xf32>) -> tensor<1x32x12x12xf32> loc("a")
  %1 = nn.relu %0 : tensor<1x32x12x12xf32> loc("a.relu")
  %2 = nn.max_pool %1 kernel [2, 2] strides [2, 2]
    : (tensor<1x32x12x12xf32>) -> tensor<1x32x6x6xf32> loc("pool")
  %3 = nn.conv %2, %w2 : (tensor<1x32x6x6xf32>, tensor<48x32x1x1xf32>) -> tensor<1x48x6x6xf32> loc("b")
  func.return %3 : tensor<1x48x6x6xf32>
}
"""


def golden(columns: int = 512) -> ModuleOp:
    """The golden program with names on some of its instructions; so many columns move in the second product."""
    text = GOLDEN.read_text(encoding="utf-8")
    product = next(
        line for line in text.splitlines() if line.strip().startswith("core.matmul %acc[0, %r mod 2, 0] [32")
    )
    lines = text.replace(product, product.replace("512", str(columns))).splitlines()
    for start, name in LINES:
        (number,) = (n for n, line in enumerate(lines) if line.strip().startswith(start))
        lines[number] += f' loc("{name}")'
    return parse("\n".join(lines))


def network(passes: str) -> ModuleOp:
    """The network in its final form, read again from its text."""
    module = parse(NETWORK)
    record_machine(module, load_machine())
    for step in load_pipeline(passes):
        step.apply(Context(), module)
    return parse(module_text(module, locations=True))


def by_name(layers: list[LayerTime]) -> dict[str, LayerTime]:
    return {layer.name: layer for layer in layers}


def test_by_hand() -> None:
    """128 x 64 and 64 x 32 of the array, 512 columns each."""
    layers = layer_times(read_program(golden()))
    assert [layer.name for layer in layers] == ["first", UNNAMED, "second"]
    first, rest, second = layers
    assert (first.pe_rows, first.pe_columns, first.mac_utilization, first.macs) == (128, 64, 1, 128 * 64 * 512)
    assert (second.pe_rows, second.pe_columns, second.mac_utilization) == (64, 32, 0.25)
    assert first.array_ps.useful == first.array_ps.total == 512 * NS
    assert second.array_ps.rows == 256 * NS, "half of the rows are empty"
    assert second.array_ps.columns == second.array_ps.useful == 128 * NS, "and half of the columns of the others"
    assert first.busy_ps["scalar"] == second.busy_ps["scalar"] == (60 + 512) * NS
    assert first.dram_bytes == 128 * 512 * 2
    assert first.binding == "dma" and "dram" in first.busy_ps
    assert second.binding == "scalar" and second.time_ps == 572 * NS
    assert rest.mac_utilization == rest.pe_rows == 0
    assert first.cores == (0,) and second.cores == (1,)
    assert sum(layer.share for layer in layers) == pytest.approx(1, abs=1e-5)


def test_short_products() -> None:
    """16 columns take as long as 64."""
    second = by_name(layer_times(read_program(golden(columns=16))))["second"]
    assert second.array_ps.total == second.busy_ps["tensor"] == 64 * NS
    assert second.array_ps.short == 48 * NS and second.array_ps.useful == 4 * NS
    assert second.pe_rows == 64, "the rows of what moves"


@pytest.mark.parametrize("requests", [1, 7])
def test_loads_that_are_not_hidden(requests: int) -> None:
    """A TensorEngine waits before every request here, and loads its operand then: 32 cycles, once for two waits."""
    result = run_module(golden(), requests, values=False, count_loads=True)
    layers = by_name(result.layers())
    assert layers["first"].array_ps.loads == layers["second"].array_ps.loads == 32 * NS
    assert layers["second"].busy_ps["tensor"] == (512 + 32) * NS
    uncounted = by_name(run_module(golden(), requests, values=False).layers())
    assert uncounted["first"].array_ps.loads == 0


PIPELINES = ["neuron", "neuron{cores=2}", "neuron{replicas=3}", "neuron{cores=2 replicas=2}", "neuron{batch=3}"]


@pytest.mark.parametrize("passes", PIPELINES)
def test_layers_add_up_to_the_program(passes: str) -> None:
    program = read_program(network(passes))
    layers = layer_times(program)
    names = [layer.name for layer in layers]
    assert names.index("a") < names.index("b") and UNNAMED not in names
    load = request_load(program)
    copies = {"neuron{replicas=3}": 3, "neuron{cores=2 replicas=2}": 2}.get(passes, 1)
    for engine in ("tensor", "scalar", "vector"):
        charged = sum(time for name, time in load.busy_ps.items() if name.startswith(engine))
        # A layer is on one core here, and its replicas are alike.
        assert sum(layer.busy_ps.get(engine, 0) for layer in layers) == pytest.approx(charged, abs=copies)
    assert sum(2 * layer.macs for layer in layers) == pytest.approx(load.flops, abs=copies)
    for layer in layers:
        assert layer.array_ps.total == pytest.approx(layer.busy_ps.get("tensor", 0), abs=10)
        assert layer.time_ps == layer.busy_ps[layer.binding] == max(layer.busy_ps.values())
        assert layer.pe_rows <= 128 and layer.pe_columns <= 64 and layer.mac_utilization <= 1
        assert all(value >= 0 for value in (layer.array_ps.rows, layer.array_ps.columns, layer.array_ps.short))


def test_counting_loads_changes_no_time() -> None:
    module = network("neuron{cores=2}")
    runs = [run_module(module, 9, values=False, count_loads=count).machine for count in (False, True)]
    assert runs[0] is not None and runs[1] is not None
    assert runs[0].finished == runs[1].finished and not runs[0].exposed_loads
    assert any(runs[1].exposed_loads.values())


def test_as_json() -> None:
    layer = layer_times(read_program(network("neuron")))[0].to_json()
    assert json.loads(json.dumps(layer))["array_ps"].keys() == {"useful", "rows", "columns", "short", "moves", "loads"}
    assert layer["nodes"][0] == layer["name"] == "a"


def test_levels_without_a_clock_have_no_layers() -> None:
    module = parse(NETWORK)
    with pytest.raises(NeuronError, match="only the final form has a clock"):
        run_module(module, random_inputs(module, seed=0)).layers()
