"""Random small networks with as little SBUF for values as there is a schedule for: the same bits, without hazards."""

from __future__ import annotations

from typing import Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lowered import PREPARE, Net, apply, same
from test_lower_random import networks

from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.nn.rematerialize import NnRematerialize
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.run import run_module


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks(24, 40), st.sampled_from(("both", "spill")))
def test_the_least_sbuf_gives_the_same_bits(net: Net, mode: Literal["both", "spill"]) -> None:
    module = net.module(*net.results)
    apply(module, PREPARE.format(mode="all"))
    outputs = run_module(module, net.inputs, weights=net).outputs
    try:
        NnRematerialize(budget=1, mode=mode, work=1.0).apply(make_context(), module)
    except NeuronError as error:
        apply(module, f"nn-rematerialize{{budget={error.needed} mode={mode}}}")
    same(outputs, run_module(module, net.inputs, weights=net).outputs)
    apply(module, "core-lower,core-allocate,core-schedule")
    same(outputs, run_module(module, net.inputs, weights=net, hazards=True).outputs)
