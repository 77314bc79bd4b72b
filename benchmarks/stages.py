"""Proofs of `pipe-stage`'s cuts, on all networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.models import MODELS, model_file
from benchmarks.networks import NAMES, network
from benchmarks.tables import Result, cpu_of
from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.compiler import CompileOptions, plan_json
from neuron_mlir.runtime.modules import make_context, module_text, parse_module

PROOF_CORES = (2, 4, 8, 16)
GAP_LIMIT, PROOF_LIMIT_S = 0.01, 30.0


def stage_proofs(names: Sequence[str]) -> Result:
    """`pipe-stage` on the fused groups of every network: the time per request of the slowest resource, what is proven
    of it, and CPU seconds of the pass. The gap is relative to the objective. Networks with fewer groups than cores have
    no such cut. ONNX Runtime has no counterpart."""
    result = Result(
        "stages",
        "Cutting into stages: proofs",
        stage_proofs,
        ["network", "cores", "slowest, us", "lower bound, us", "gap", "bottleneck", "method", "CPU s"],
    )
    worst_gap = worst_s = 0.0
    for name in [*names, *MODELS] if tuple(names) == NAMES else names:
        text = fused(name)
        for cores in PROOF_CORES:
            seconds, plan = cut(name, text, cores)
            if plan is None:
                result.add(name, cores, None, None, None, None, "fewer groups than cores", seconds)
                continue
            certificate = plan["certificates"]["certificate"]
            result.add(
                name,
                cores,
                certificate["objective"] / 1e6,
                certificate["lower_bound"] / 1e6,
                f"{certificate['gap']:.2%}",
                plan["notes"]["bottleneck"],
                certificate["method"],
                seconds,
            )
            worst_gap, worst_s = max(worst_gap, certificate["gap"]), max(worst_s, seconds)
    result.limit(f"all proven within {GAP_LIMIT:.0%}, the worst {worst_gap:.2%}", worst_gap <= GAP_LIMIT)
    result.limit(f"each in {PROOF_LIMIT_S:g} CPU s, the longest {worst_s:.3g}", worst_s <= PROOF_LIMIT_S)
    return result


def fused(name: str) -> str:
    """The text of a network as it is cut: all passes of the named pipeline before `pipe-stage` have run."""
    from neuron_mlir.frontends.onnx import import_model
    from neuron_mlir.ir.machine_attr import record_machine
    from neuron_mlir.machine import load_machine
    from neuron_mlir.passes.pipelines import load_pipeline

    if name in MODELS:
        module = import_model(model_file(name))
    else:
        net = network(name)
        module = import_model(net.path, io_config=net.io_config)
    record_machine(module, load_machine())
    for step in load_pipeline(CompileOptions(cores=1).pipeline().expand()):
        if step.name == "pipe-stage":
            break
        step.apply(make_context(), module)
    return module_text(module)


def cut(name: str, text: str, cores: int) -> tuple[float, dict[str, Any] | None]:
    """CPU seconds of `pipe-stage`, and the plan; None where there are fewer groups than cores."""
    from neuron_mlir.passes.pipelines import load_pipeline

    module = parse_module(text, name)
    (stage,) = load_pipeline(f"pipe-stage{{cores={cores}}}")

    def apply() -> bool:
        try:
            stage.apply(make_context(), module)
        except NeuronError as error:
            if error.resource != "groups":
                raise
            return False
        return True

    seconds, done = cpu_of(apply)
    return seconds, plan_json(module) if done else None
