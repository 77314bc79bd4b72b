"""One entry to run a module of any level on the same inputs.

An `nn` function, a value-form `pipe.program`, sequential `core` code and the final engine streams all run through
`run_module`; the final form also has a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from neuron_mlir.dialects.pipe.ops import InputOp, OutputOp, ProgramOp, StageOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.interface import (
    Arrays,
    Port,
    check_inputs,
    function_of,
    input_types,
    output_types,
    program_of,
    random_inputs,
)
from neuron_mlir.simulator.machine_run import MachineRun, MachineSimulator
from neuron_mlir.simulator.program import Program, is_memory_form, read_program

if TYPE_CHECKING:
    from neuron_mlir.simulator.layers import LayerTime
    from neuron_mlir.simulator.nn_eval import ConstantCache
    from neuron_mlir.simulator.report import Report

__all__ = ["Port", "RunResult", "Weights", "input_types", "output_types", "random_inputs", "run_module"]

Array = NDArray[Any]
Hazards = Literal["auto"] | bool


class Weights(Protocol):
    """Where stored weights come from: any store of `neuron_mlir.weights`."""

    def get(self, name: str) -> Array:
        """The weight of that name."""
        ...


@dataclass
class RunResult:
    """What a run gives."""

    requests: list[Arrays]
    """Outputs of each request, by name; empty dictionaries when run without values."""
    program: Program | None = None
    """The program as the simulator read it; None above the memory form."""
    machine: MachineRun | None = None
    """Times of the requests; None for levels without a clock."""

    def report(self) -> Report:
        """Throughput, latency, utilisation and bounds.

        Raises:
            NeuronError: the level has no clock.
        """
        from neuron_mlir.simulator.report import make_report

        if self.program is None or self.machine is None:
            raise NeuronError("only the final form has a clock", advice="lower the module with core-schedule")
        return make_report(self.program, self.machine)

    def layers(self) -> list[LayerTime]:
        """Time, binding engine and use of the PE array of each layer; loads that were not hidden if the run counted.

        Raises:
            NeuronError: the level has no clock.
        """
        from neuron_mlir.simulator.layers import layer_times

        if self.program is None or self.machine is None:
            raise NeuronError("only the final form has a clock", advice="lower the module with core-schedule")
        return layer_times(self.program, self.machine.exposed_loads, len(self.machine.finished))

    @property
    def outputs(self) -> Arrays:
        """Outputs of the first request, by name."""
        return self.requests[0] if self.requests else {}


def run_module(
    module: ModuleOp,
    inputs: Mapping[str, Array] | Sequence[Mapping[str, Array]] | int,
    *,
    weights: Weights | None = None,
    values: bool = True,
    hazards: Hazards = "auto",
    plain: bool = False,
    in_flight: int | None = None,
    count_loads: bool = False,
) -> RunResult:
    """Run a module of any level.

    Args:
        module: holds a `pipe.program`, or else a function `@main`.
        inputs: of one request by name, of several, or a number of requests (then `values` must be False).
        weights: stored weights; by default the file that the module's `nn.weights` attribute names.
        values: compute values. Without, only the final form runs: its clock.
        hazards: check what engines touch against the order that semaphores give. `"auto"` checks the first
            requests, enough for every ring to
            have gone round; True checks all.
        plain: run instructions in the simplest way, one NumPy expression each: the reference for the faster one.
        in_flight: requests (1 or more) that the host has under way at most; None: as many as the program takes in.
        count_loads: count the loads of stationary operands that are not hidden, for `RunResult.layers`.

    Raises:
        NeuronError: the module does not run, or a hazard.
    """
    requests = inputs if isinstance(inputs, int) else [inputs] if isinstance(inputs, Mapping) else list(inputs)
    program = program_of(module)
    memory = program is not None and is_memory_form(program)
    if isinstance(requests, int) and values:
        raise NeuronError("values need inputs", needed="arrays by name", available=f"{requests} requests without data")
    if not values and not memory:
        raise NeuronError(
            "only the final form has a clock; this level has values only", advice="core-schedule, or values"
        )
    if isinstance(requests, list):
        ports = input_types(module)
        requests = [check_inputs(ports, feed, None if len(requests) == 1 else i) for i, feed in enumerate(requests)]
    if values and weights is None:
        from neuron_mlir.weights import open_weights

        weights = open_weights(module)
    if memory:
        return _run_machine(module, requests, weights, values, hazards, plain, in_flight, count_loads)
    assert isinstance(requests, list)
    cache: ConstantCache = {}
    if program is not None:
        return RunResult([_run_stages(program, feed, weights, cache) for feed in requests])
    return RunResult([_run_function(module, feed, weights, cache) for feed in requests])


def _run_function(module: ModuleOp, feed: Arrays, weights: Weights | None, cache: ConstantCache) -> Arrays:
    from neuron_mlir.simulator.nn_eval import evaluate_function

    results = evaluate_function(function_of(module), list(feed.values()), weights, cache=cache)
    return {port.name: value for port, value in zip(output_types(module), results, strict=True)}


def _run_stages(program: ProgramOp, feed: Arrays, weights: Weights | None, cache: ConstantCache) -> Arrays:
    """One request through the stages of a value-form program, in order; a stream is dropped after its last use."""
    from neuron_mlir.simulator.nn_eval import evaluate_block

    left: dict[SSAValue, int] = {}
    values: dict[SSAValue, Array] = {}
    outputs: Arrays = {}

    def define(stream: SSAValue, value: Array) -> None:
        left[stream] = len(tuple(stream.uses))
        if left[stream]:
            values[stream] = value

    def take(stream: SSAValue) -> Array:
        value = values[stream]
        left[stream] -= 1
        if not left[stream]:
            del values[stream]
        return value

    for op in program.body.block.ops:
        if isinstance(op, InputOp):
            define(op.result[0], feed[op.label.data])
        elif isinstance(op, StageOp):
            arguments = [take(stream) for stream in op.arguments]
            results = evaluate_block(op.body.block, arguments, weights, cache=cache)
            for stream, value in zip(op.results_, results, strict=True):
                define(stream, value)
        elif isinstance(op, OutputOp):
            outputs[op.label.data] = take(op.source)
        else:
            raise NeuronError(f"{op.name} does not run at the top of a program of streams", op=op)
    return outputs


def _run_machine(
    module: ModuleOp,
    requests: list[Arrays] | int,
    weights: Weights | None,
    values: bool,
    hazards: Hazards,
    plain: bool,
    in_flight: int | None,
    count_loads: bool,
) -> RunResult:
    program = read_program(module)
    if not program.scheduled and not values:
        raise NeuronError("sequential code has no clock", op=program.op, advice="run core-schedule first")
    simulator = MachineSimulator(program, weights, values=values, hazards=hazards, plain=plain, count_loads=count_loads)
    run = simulator.run(requests, in_flight)
    # In the order of the program, whichever the host had first.
    order = [port.label for port in program.outputs]
    answers = [{label: arrays[label] for label in order if label in arrays} for arrays in run.outputs]
    return RunResult(answers, program, run if program.scheduled else None)
