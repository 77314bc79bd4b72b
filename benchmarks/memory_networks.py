"""Addresses of whole networks: how far each memory plan of a compile is from the best."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.models import MODELS, model_file
from benchmarks.networks import NAMES, network
from benchmarks.tables import Result
from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.compiler import Compiled, CompileOptions, compile_model

MEMORIES = ("sbuf", "psum")


def network_plans(names: Sequence[str]) -> Result:
    """The plans of SBUF and PSUM that `core-allocate` makes for every stage of every network, on one core and on
    several. Peak and bound are of the stage whose plan is furthest from its bound, then of the fullest, bytes per
    partition; `proven` counts the plans whose peak is proven to be the least there is, by the live bytes or by search.
    """
    columns = ["network", "cores", "memory", "plans", "proven", "peak, B", "bound, B", "method"]
    result = Result("memory_networks", "Memory plans of networks", network_plans, columns)
    count = proven = 0
    for name in [*names, *MODELS] if tuple(names) == NAMES else names:
        for cores in (1, MODELS[name].cores if name in MODELS else 4):
            compiled = compile_for(name, cores)
            if compiled is None:
                result.add(name, cores, None, None, None, None, None, "does not compile")
                continue
            for memory in MEMORIES:
                plans = certificates(compiled, memory)
                good = sum(peak == bound for peak, bound, _ in plans)
                peak, bound, method = max(plans, key=lambda plan: (plan[0] - plan[1], plan[0]))
                result.add(name, cores, memory, len(plans), good, int(peak), int(bound), method)
                count, proven = count + len(plans), proven + good
    result.limit(f"all plans are proven to be the best: {proven} of {count}", proven == count)
    return result


def compile_for(name: str, cores: int) -> Compiled | None:
    """A network compiled for some cores; None if it does not compile."""
    try:
        if name in MODELS:
            return compile_model(model_file(name), CompileOptions(cores=cores))
        net = network(name)
        return compile_model(net.path, net.options(cores))
    except NeuronError as error:
        print(f"  {name} on {cores}: {error}", flush=True)
        return None


def certificates(compiled: Compiled, memory: str) -> list[tuple[float, float, str]]:
    """Peak, bound and method of the plan of one memory, of each stage that has one."""
    from neuron_mlir.dialects.pipe.ops import CertificateAttr
    from neuron_mlir.simulator.interface import program_of

    program = program_of(compiled.module)
    assert program is not None
    found = [stage.attributes.get(f"core.{memory}_plan") for stage in program.stages()]
    return [
        (plan.objective.value.data, plan.lower_bound.value.data, plan.method.data)
        for plan in found
        if isinstance(plan, CertificateAttr)
    ]
