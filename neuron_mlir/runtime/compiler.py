"""From a model file to an artifact: import, the passes of the named pipeline `neuron`, packaging; each timed."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.pipelines import Fp32Cast, Neuron, load_pipeline

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp
    from xdsl.passes import ModulePass

    from neuron_mlir.machine import Machine
    from neuron_mlir.runtime.package import Packaged
    from neuron_mlir.weights import WeightStore


@dataclass(frozen=True)
class CompileOptions:
    """What a user chooses: the flags of `neuron-cc compile`."""

    cores: int | Literal["auto"] = 1
    shard_cores: int = 0
    """Cores that the slowest stages are spread over, each request split; 0: no stage is split."""
    replicas: int = 1
    """Copies of the stages, each on cores of its own; requests go to them in turn."""
    batch_size: int | None = None
    """Inferences in one request; the model's batch when None."""
    dynamic_batch_size: bool = False
    """Prove that the rows of a request do not see each other, and record where they are, so that a caller may send any
    number of them: `neuron_mlir.runtime.batching`."""
    fp32_cast: Fp32Cast = "all"
    machine: str = "inferentia1"
    sbuf_bytes_per_partition: int | None = None
    """Another size of the SBUF than the machine's."""
    io_config: Mapping[str, Any] | None = None
    replicate_inputs: bool = True
    depth_first: bool = True
    rematerialize: bool = False
    spill: bool = True
    """Whether values may go to DRAM and come back where SBUF is full; if not, that is an error."""
    static_weights: bool = False
    """Fail unless all weights stay in SBUF between requests."""

    batch: int = 1
    """What `nn-batch` multiplies the batch of the imported module by; `compile_model` sets it from `batch_size`."""

    def pipeline(self) -> Neuron:
        """The named pipeline with these options."""
        return Neuron(
            cores=self.cores,
            batch=self.batch,
            shard_cores=self.shard_cores,
            replicas=self.replicas,
            fp32_cast=self.fp32_cast,
            replicate_inputs=self.replicate_inputs,
            depth_first=self.depth_first,
            spill=self.spill,
            rematerialize=self.rematerialize,
        )

    def to_json(self) -> dict[str, Any]:
        """For the metadata of an artifact. The machine is in the module, by value."""
        return {
            "neuroncore_pipeline_cores": self.cores,
            "shard_cores": self.shard_cores,
            "replicas": self.replicas,
            "batch_size": self.batch_size,
            "dynamic_batch_size": self.dynamic_batch_size,
            "fp32_cast": self.fp32_cast,
            "static_weights": self.static_weights,
            "io_config": None if self.io_config is None else dict(self.io_config),
            "pipeline": self.pipeline().expand(),
        }


@dataclass(frozen=True)
class Phase:
    """A step of a compilation: wall-clock and CPU seconds, and what a pass counted."""

    name: str
    seconds: float
    cpu_seconds: float
    statistics: dict[str, Any]


@dataclass
class Compiled:
    """A module in its final form with the weights behind it, and how it came about."""

    module: ModuleOp
    weights: WeightStore
    options: CompileOptions
    phases: list[Phase] = field(default_factory=list["Phase"])
    plan: dict[str, Any] = field(default_factory=dict[str, Any])
    """Stages and certificate of `pipe-stage`; see `plan_json`."""

    def metadata(self) -> dict[str, Any]:
        """What an artifact records beside the program. Nothing in it depends on the day or the place."""
        counted = [{"pass": phase.name, "statistics": phase.statistics} for phase in self.phases if phase.statistics]
        return {
            "options": self.options.to_json(),
            "machine": machine_json(self.module),
            "statistics": counted,
            **self.plan,
        }


Watcher = Callable[[str, int, int], None]
"""Told the name of a phase that begins, its number from 0, and how many there are."""


def compile_model(model: str | Path, options: CompileOptions, watch: Watcher | None = None) -> Compiled:
    """Import a model and bring it to its final form.

    Args:
        model: an ONNX file.
        options: what to compile for.
        watch: told about progress.

    Raises:
        NeuronError: the model, an option or the machine is wrong, or the program does not fit the machine.
    """
    from xdsl.utils.exceptions import VerifyException

    from neuron_mlir.ir.dominance import check_dominance
    from neuron_mlir.runtime.modules import make_context

    machine = load_machine_for(options)
    total = len(load_pipeline(options.pipeline().expand())) + 2 + (options.batch_size is not None)
    phases: list[Phase] = []
    with collector_paused():
        with _phase("import", phases, watch, total):
            module, weights, batch = import_for(Path(model), options, machine)
        options = replace(options, batch=batch)
        steps = load_pipeline(options.pipeline().expand())
        context = make_context()
        rows = batch_rows(module, options.batch) if options.dynamic_batch_size else None
        plan: dict[str, Any] = {}
        for step in steps:
            if step.name == "core-lower":
                plan = plan_json(module)
                if options.static_weights:
                    check_static_weights(plan["stages"])
            with _phase(step.name, phases, watch, total, step):
                step.apply(context, module)
        with _phase("verify", phases, watch, total):
            try:
                module.verify()
                check_dominance(module)
            except VerifyException as error:
                # Not the user's fault, but the user has to know which compilation to distrust.
                raise NeuronError(f"the compiled program is invalid, which is a bug of a pass: {error}") from error
    if rows is not None:
        plan["dynamic_batch"] = rows
    return Compiled(module, weights, options, phases, plan)


def batch_rows(module: ModuleOp, size: int) -> dict[str, Any]:
    """Where the rows of a request are once `nn-batch{size=..}` has made `size` of the one that `module` takes.

    The pass does not let a layer mix what belongs to different requests, so that its success is the proof that a row's
    result does not depend on the others. For `size` 1 it is tried with 2.

    Returns:
        `{"size": B, "inputs": {name: axis}, "outputs": {name: axis}}`; what is not listed has no rows.

    Raises:
        NeuronError: the module takes more rows than one, or a layer mixes rows; names it.
    """
    from neuron_mlir.passes.nn.batch import BatchPass
    from neuron_mlir.runtime.modules import make_context
    from neuron_mlir.simulator.interface import input_types, output_types

    first = next((port for port in input_types(module) if port.shape), None)
    if first is None or first.shape[0] != 1:
        raise NeuronError(
            "dynamic batching needs a model that takes a batch of 1",
            needed="1 row in the first input",
            available="no rows" if first is None else f"{first.shape[0]} rows",
            advice="a model exported with batch 1, or with an open batch",
        )
    trial = BatchPass(size=max(size, 2))
    try:
        trial.apply(make_context(), module.clone())
    except NeuronError as error:
        error.advice = "dynamic_batch_size=False"
        raise
    inputs, outputs = trial.batch_axes
    missing = [port.name for port in output_types(module) if port.name not in outputs]
    if len(missing) == len(output_types(module)):
        raise NeuronError(
            "dynamic batching: no output depends on the batch", available=", ".join(missing), advice="no dynamic batch"
        )
    return {"size": size, "inputs": inputs, "outputs": outputs}


def check_static_weights(stages: list[dict[str, Any]]) -> None:
    """Raises `NeuronError` when a stage reads weights from DRAM for every request."""
    for stage in stages:
        streamed = stage.get("streamed_bytes", 0)
        if streamed:
            raise NeuronError(
                f"stage @{stage['name']} cannot keep its weights in SBUF between requests",
                resource=f"SBUF bytes for weights on core {stage['cores'][0]}",
                needed=stage["weight_bytes"],
                available=stage["weight_bytes"] - streamed,
                advice="more cores, --neuroncore-pipeline-cores auto, or without --static-weights",
            )


@contextmanager
def collector_paused() -> Generator[None]:
    """Leave out Python's cyclic garbage collector in a block that makes many objects and drops few.

    IR is one large cycle: each full collection walks all of it, and collections come again and again as it grows, so
    that a third of the time of a large network goes there. What is dropped meanwhile is freed after.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def save(compiled: Compiled, path: str, watch: Watcher | None = None) -> Packaged:
    """Write the artifact; adds the phase `package`. The module holds stored weights afterwards.

    Raises:
        NeuronError: a constant cannot be evaluated, or the file cannot be written.
    """
    from neuron_mlir.runtime.package import write_artifact

    with _phase("package", compiled.phases, watch, len(compiled.phases) + 1):
        return write_artifact(path, compiled.module, compiled.weights, compiled.metadata())


def load_machine_for(options: CompileOptions) -> Machine:
    """The machine to compile for. Raises `NeuronError` for one that cannot be read, or has too few cores."""
    from neuron_mlir.machine import load_machine

    size = options.sbuf_bytes_per_partition
    machine = load_machine(options.machine, overrides=None if size is None else {"sbuf.bytes_per_partition": size})
    cores = options.cores
    if cores != "auto" and not 1 <= cores <= machine.cores_max:
        raise NeuronError(
            f"the machine {machine.name} has {machine.cores_max} cores",
            resource="cores",
            needed=cores,
            available=machine.cores_max,
            advice=f"--neuroncore-pipeline-cores of 1 to {machine.cores_max}, or auto",
        )
    return machine


def import_for(model: Path, options: CompileOptions, machine: Machine) -> tuple[ModuleOp, WeightStore, int]:
    """A model as a module, with its weights, and what `nn-batch` has to multiply its batch by for `batch_size`.

    A model with a batch of its own is imported with that, and `nn-batch` does the rest. Where the batch is open, or
    does not divide `batch_size`, the importer sets it.

    Raises:
        NeuronError: the model is wrong, or cannot have that batch.
    """
    from neuron_mlir.frontends.onnx import import_model
    from neuron_mlir.ir.machine_attr import record_machine
    from neuron_mlir.simulator.interface import input_types
    from neuron_mlir.weights import open_weights

    size, factor = options.batch_size, 1
    if options.dynamic_batch_size:
        # One row at first, so that `nn-batch` makes all the others and can tell whether they stay apart.
        try:
            module = import_model(model, io_config=options.io_config)
        except NeuronError:
            module = None
        rows = None if module is None else next((port.shape[0] for port in input_types(module) if port.shape), 1)
        if module is None or rows != 1:
            module = import_model(model, io_config=options.io_config, batch_size=1)
        record_machine(module, machine)
        return module, open_weights(module), size or rows or 1
    try:
        module = import_model(model, io_config=options.io_config)
    except NeuronError:
        if size is None:
            raise
        module = import_model(model, io_config=options.io_config, batch_size=size)
    else:
        rows = next((port.shape[0] for port in input_types(module) if port.shape), 1)
        if size is not None and size % rows == 0:
            factor = size // rows
        elif size is not None:
            module = import_model(model, io_config=options.io_config, batch_size=size)
    record_machine(module, machine)
    return module, open_weights(module), factor


@contextmanager
def _phase(
    name: str, phases: list[Phase], watch: Watcher | None, total: int, step: ModulePass | None = None
) -> Generator[None]:
    from neuron_mlir.passes.base import NeuronPass

    if watch is not None:
        watch(name, len(phases), total)
    wall, cpu = time.perf_counter(), cpu_seconds()
    yield
    statistics = dict(step.statistics) if isinstance(step, NeuronPass) else {}
    phases.append(Phase(name, time.perf_counter() - wall, cpu_seconds() - cpu, statistics))


def cpu_seconds() -> float:
    """CPU time of this process so far, all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# What to tell of a module ---------------------------------------------------------------------------------------------


def plan_json(module: ModuleOp) -> dict[str, Any]:
    """Stages, certificates and reasons of a staged module, read from the attributes of its program.

    `{"stages": [{name, cores}], "certificates": {name: {objective, lower_bound, gap, unit, method}}, "notes": {..}}`
    """
    from xdsl.dialects.builtin import IntegerAttr, StringAttr

    from neuron_mlir.dialects.pipe.ops import CertificateAttr
    from neuron_mlir.simulator.interface import program_of

    program = program_of(module)
    if program is None:
        return {"stages": [], "certificates": {}, "notes": {}}
    stages: list[dict[str, Any]] = []
    for stage in program.stages():
        entry: dict[str, Any] = {"name": stage.sym_name.data, "cores": list(stage.core_list())}
        for key, value in stage.attributes.items():
            if isinstance(value, IntegerAttr):
                entry[key] = value.value.data
            elif isinstance(value, StringAttr):
                entry[key] = value.data
        stages.append(entry)
    certificates: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    for key, value in program.attributes.items():
        if isinstance(value, CertificateAttr):
            certificates[key] = value.to_json()
        elif isinstance(value, StringAttr):
            notes[key] = value.data
        elif isinstance(value, IntegerAttr):
            notes[key] = value.value.data
    return {"stages": stages, "certificates": certificates, "notes": notes}


def machine_json(module: ModuleOp) -> dict[str, Any]:
    """The machine of a module: its name, and every number of it."""
    from neuron_mlir.ir.machine_attr import machine_of

    machine = machine_of(module)
    return {"name": machine.name, "values": {fact.key: fact.value for fact in machine.facts}}


def count_ops(module: ModuleOp) -> int:
    """How many ops a module holds, itself included."""
    return sum(1 for _ in module.walk())
