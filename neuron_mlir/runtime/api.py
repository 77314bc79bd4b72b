"""`neuron_mlir.load` and `neuron_mlir.compile`: from a file to a callable on NumPy arrays.

`compile` mirrors what AWS documents for Inf1: `torch.neuron.trace(model, example_inputs, compiler_args=..,
compiler_timeout=.., compiler_workdir=.., dynamic_batch_size=..)`, and TensorFlow's `trace` and `saved_model.compile`;
their `compiler_args` are the flags of `neuron-cc`. docs/runtime.md has what each argument means here.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.instance import Instance, default_instance, environment_number
from neuron_mlir.runtime.model import LoadOptions, Model
from neuron_mlir.runtime.status import NeuronRuntimeError, Status

if TYPE_CHECKING:
    from onnx import ModelProto
    from xdsl.dialects.builtin import ModuleOp

    from neuron_mlir.runtime.artifact import Artifact
    from neuron_mlir.runtime.batching import Rows
    from neuron_mlir.runtime.compiler import CompileOptions
    from neuron_mlir.runtime.instance import Group

MAX_NUM_INFERS, EXEC_TIMEOUT = "NEURON_MAX_NUM_INFERS", "NEURON_RT_EXEC_TIMEOUT"
TIMEOUT_S = 30
"""Seconds that a request may take unless NEURON_RT_EXEC_TIMEOUT says otherwise: AWS's default on inf1."""
QUEUE_BEYOND_CORES = 3
"""AWS's frameworks keep as many requests outstanding as there are cores, and three more."""

Copies = int | Literal["all"]


def load(
    path: str | os.PathLike[str],
    *,
    instance: Instance | None = None,
    first_core: int | None = None,
    replicas: Copies = 1,
    dynamic_batch_size: bool | None = None,
    in_flight: int | None = None,
    timeout_s: float | None = None,
    check_nan: bool = False,
) -> Model:
    """Load an artifact onto a simulated instance.

    Args:
        path: what `neuron-cc compile` or `Model.save` wrote.
        instance: where to; by default the one of this process (`neuron_mlir.default_instance()`).
        first_core: the first core to use, counted from 0 among those that the process sees; by default free ones. Cores
            that are taken are shared in turns.
        replicas: copies on further cores, each with weights of its own, that share the calls; `"all"`: as many as there
            are free cores for.
        dynamic_batch_size: let a call have any number of rows; by default what the artifact was compiled for.
        in_flight: requests under way at most; by default NEURON_MAX_NUM_INFERS, else as many as the model has
            cores, and three.
        timeout_s: simulated seconds that a request may take; by default NEURON_RT_EXEC_TIMEOUT, else 30.
        check_nan: refuse inputs with NaN, and report NaN among outputs.

    Raises:
        NeuronRuntimeError: the artifact is broken (NRT_INVALID), of another version (NRT_UNSUPPORTED_NEFF_VERSION),
            or does not fit: NRT_LOAD_NOT_ENOUGH_NC, NRT_RESOURCE, NRT_FAIL_HOST_MEM_ALLOC.
        OSError: the file cannot be read.
    """
    from neuron_mlir.runtime.artifact import read_artifact

    try:
        artifact = read_artifact(os.fspath(path))
    except NeuronError as error:
        version = "is an artifact of version" in error.message
        status = Status.NRT_UNSUPPORTED_NEFF_VERSION if version else Status.NRT_INVALID
        raise NeuronRuntimeError.of(error, status) from None
    return load_artifact(
        artifact,
        instance=instance,
        first_core=first_core,
        replicas=replicas,
        dynamic_batch_size=dynamic_batch_size,
        in_flight=in_flight,
        timeout_s=timeout_s,
        check_nan=check_nan,
    )


def load_artifact(
    artifact: Artifact,
    *,
    instance: Instance | None = None,
    first_core: int | None = None,
    replicas: Copies = 1,
    dynamic_batch_size: bool | None = None,
    in_flight: int | None = None,
    timeout_s: float | None = None,
    check_nan: bool = False,
) -> Model:
    """`load` for an artifact that has been read."""
    from neuron_mlir.simulator.interface import input_types, output_types

    if not (replicas == "all" or _whole(replicas)) or not (first_core is None or _whole(first_core)):
        raise NeuronRuntimeError(
            Status.NRT_INVALID,
            "replicas is a number or 'all', first_core a number",
            available=f"{replicas}, {first_core}",
        )
    if replicas != "all" and replicas < 1:
        raise NeuronRuntimeError(Status.NRT_INVALID, "replicas must be at least 1", needed="1..", available=replicas)
    queue = in_flight if in_flight is not None else environment_number(MAX_NUM_INFERS, least=1)
    if queue is not None and queue < 1:
        raise NeuronRuntimeError(Status.NRT_INVALID, "in_flight must be at least 1", needed="1..", available=queue)
    limit = timeout_s if timeout_s is not None else environment_number(EXEC_TIMEOUT, least=0)
    limit = TIMEOUT_S if limit is None else limit
    if not limit >= 0:
        raise NeuronRuntimeError(Status.NRT_INVALID, "timeout_s must not be negative", needed="0..", available=limit)
    instance = default_instance() if instance is None else instance
    try:
        module = artifact.module()
        ports = (input_types(module), output_types(module))
        rows = _rows(artifact, module, dynamic_batch_size)
    except NeuronError as error:
        raise NeuronRuntimeError.of(error, Status.NRT_INVALID) from None
    with instance.lock:
        groups = _place(artifact, module, instance, first_core, replicas)
        cores = sum(len(group.cores) for group in groups)
        options = LoadOptions(queue or cores + QUEUE_BEYOND_CORES, float(limit), check_nan)
        return Model(artifact, instance, groups, ports, rows, options)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rows(artifact: Artifact, module: ModuleOp, wanted: bool | None) -> Rows | None:
    from neuron_mlir.runtime.batching import Rows
    from neuron_mlir.simulator.interface import input_types, output_types

    recorded = artifact.metadata.get("dynamic_batch")
    if wanted is False or (recorded is None and not wanted):
        return None
    if recorded is None:
        raise NeuronError(
            "the artifact was not compiled for dynamic batching", advice="neuron-cc compile --dynamic_batch_size=True"
        )
    inputs, outputs = ({port.name: port.shape for port in f(module)} for f in (input_types, output_types))
    return Rows.read(recorded, inputs, outputs)


def _place(
    artifact: Artifact, module: ModuleOp, instance: Instance, first_core: int | None, replicas: Copies
) -> list[Group]:
    """The program's copies on their cores. On an error none stays."""
    from neuron_mlir.runtime.compiler import collector_paused
    from neuron_mlir.simulator.program import read_program

    constants: dict[Any, Any] = {}
    groups: list[Group] = []
    try:
        while replicas == "all" or len(groups) < replicas:
            try:
                with collector_paused():
                    program = read_program(module)
                    if not program.scheduled:
                        raise NeuronError("the program is not in its final form", advice="neuron-cc compile MODEL.onnx")
                    groups.append(instance.load(program, artifact.weights, first_core=first_core, constants=constants))
            except NeuronRuntimeError as error:
                if replicas == "all" and groups and error.status is Status.NRT_LOAD_NOT_ENOUGH_NC:
                    return groups
                raise
            if first_core is not None:
                first_core += len(groups[-1].cores)
    except BaseException as error:
        for group in groups:
            instance.unload(group)
        if isinstance(error, NeuronError):
            raise NeuronRuntimeError.of(error, Status.NRT_INVALID) from None
        raise
    return groups


# Compiling ------------------------------------------------------------------------------------------------------------


def compile(
    model: str | os.PathLike[str] | bytes | ModelProto,
    example_inputs: Any = None,
    *,
    compiler_args: Sequence[str] | str | None = None,
    compiler_timeout: float | None = None,
    compiler_workdir: str | os.PathLike[str] | None = None,
    dynamic_batch_size: bool = False,
    batch_size: int | Literal["auto"] | None = None,
    instance: Instance | None = None,
    first_core: int | None = None,
    replicas: Copies = 1,
    in_flight: int | None = None,
    timeout_s: float | None = None,
    check_nan: bool = False,
) -> Model:
    """Compile an ONNX model and load it.

    Args:
        model: the file, its bytes, or a `ModelProto`.
        example_inputs: an array, a tuple in the order of the inputs, or a mapping by name. Only shapes matter: they
            say what the model leaves open, and the batch.
        compiler_args: flags of `neuron-cc compile`, as a list of words or one text.
        compiler_timeout: seconds after which the compiler gives up, at the next pass that begins.
        compiler_workdir: a directory for what the compiler makes: `model.neff`, `program.mlir`, `compile.json`.
        dynamic_batch_size: let a call have any number of rows. The compiler proves that rows do not see each other.
        batch_size: rows of one request; by default those of the examples, or the model's. `"auto"`: as many as
            serve most.
        instance, first_core, replicas, in_flight, timeout_s, check_nan: as of `load`.

    Raises:
        NeuronError: the model, the examples or a flag is wrong, or the program does not fit the machine.
        NeuronRuntimeError: the compiler took too long (NRT_TIMEOUT), and what `load` raises.
    """
    from neuron_mlir.runtime.artifact import read_artifact
    from neuron_mlir.runtime.compiler import compile_model, save
    from neuron_mlir.runtime.flags import compile_options, parse_compiler_args

    flags = parse_compiler_args(_words(compiler_args))
    options = compile_options(flags)
    options = replace(options, dynamic_batch_size=dynamic_batch_size or options.dynamic_batch_size)
    auto = batch_size == "auto" or (batch_size is None and flags.batch_size == "auto")
    if batch_size is not None and batch_size != "auto":
        if batch_size < 1:
            raise NeuronError("batch_size must be at least 1, or 'auto'", needed="1..", available=batch_size)
        options = replace(options, batch_size=batch_size)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="neuron-mlir-")))
        file = _model_file(model, folder)
        watch = _deadline(compiler_timeout)
        try:
            if example_inputs is not None:
                options = _with_examples(file, example_inputs, options)
            if auto:
                from neuron_mlir.runtime.batch_size import choose_batch

                batch, _ = choose_batch(str(file), options, lambda what: watch(what, 0, 1))
                options = replace(options, batch_size=batch)
            compiled = compile_model(file, options, watch)
        except NeuronError as error:
            # A model in memory has no name.
            error.message = error.message.replace(f"'{folder / 'model.onnx'}'", "the model")
            raise
        target = folder / "model.neff"
        save(compiled, str(target), watch)
        if compiler_workdir is not None:
            _keep(compiled.plan, options, target, Path(compiler_workdir))
        artifact = read_artifact(target)  # a map of the file, which stays when the file goes
    return load_artifact(
        artifact,
        instance=instance,
        first_core=first_core,
        replicas=replicas,
        in_flight=in_flight,
        timeout_s=timeout_s,
        check_nan=check_nan,
    )


def _words(arguments: Sequence[str] | str | None) -> list[str]:
    if not isinstance(arguments, str):
        return [str(word) for word in arguments or ()]
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise NeuronError(f"compiler_args: {error}", available=arguments) from error


def _deadline(seconds: float | None) -> Any:
    end = None if seconds is None else time.monotonic() + seconds

    def watch(name: str, number: int, total: int) -> None:
        if end is not None and time.monotonic() > end:
            raise NeuronRuntimeError(
                Status.NRT_TIMEOUT,
                f"the compiler took longer than compiler_timeout, before '{name}'",
                resource="seconds",
                needed="more",
                available=seconds,
            )

    return watch


def _model_file(model: Any, folder: Path) -> Path:
    if isinstance(model, (str, os.PathLike)):
        return Path(cast("str | os.PathLike[str]", model))
    file = folder / "model.onnx"
    if isinstance(model, bytes):
        file.write_bytes(model)
        return file
    from google.protobuf.message import Message

    if not isinstance(model, Message):
        raise NeuronError(
            "the model is not an ONNX model", needed="a path, bytes, or a ModelProto", available=type(model).__name__
        )
    file.write_bytes(model.SerializeToString())
    return file


def _with_examples(file: Path, examples: Any, options: CompileOptions) -> CompileOptions:
    """The options with the shapes that examples have where the model leaves them open, and with their batch."""
    import numpy as np
    import onnx

    from neuron_mlir.frontends.onnx_io_config import parse_io_config

    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except Exception as error:  # whatever is wrong with the file, the importer says it better
        from neuron_mlir.frontends.onnx import import_model

        import_model(file)
        raise NeuronError(f"'{file}' cannot be read: {error}") from error
    constants = {initializer.name for initializer in graph.initializer}
    ports = {value.name: value.type.tensor_type for value in graph.input if value.name not in constants}
    if isinstance(examples, Mapping):
        given = {str(name): np.asarray(value) for name, value in cast("Mapping[Any, Any]", examples).items()}
    else:
        listed = cast("Sequence[Any]", examples) if isinstance(examples, (tuple, list)) else (examples,)
        if len(listed) != len(ports):
            raise NeuronError(
                "wrong number of example_inputs", needed=f"{len(ports)} ({', '.join(ports)})", available=len(listed)
            )
        given = {name: np.asarray(value) for name, value in zip(ports, listed, strict=True)}
    unknown = [name for name in given if name not in ports]
    if unknown:
        raise NeuronError(f"example_inputs: there is no input '{unknown[0]}'", needed=", ".join(ports))
    config = parse_io_config(options.io_config)
    shapes: dict[str, Any] = {}
    batches: dict[str, int] = {}
    for name, array in given.items():
        type_ = ports[name]
        dims = [d.dim_value if d.HasField("dim_value") else None for d in type_.shape.dim]
        if (type_.HasField("shape") and len(dims) != array.ndim) or array.size == 0:
            raise NeuronError(
                f"example input '{name}' has the wrong shape",
                needed="x".join("?" if d is None else str(d) for d in dims),
                available=list(array.shape),
            )
        for axis, (dim, size) in enumerate(zip(dims, array.shape, strict=False)):
            if dim is not None and dim != size and axis:
                raise NeuronError(
                    f"example input '{name}' has the wrong shape",
                    needed=f"{dim} along axis {axis}",
                    available=list(array.shape),
                )
        if array.ndim and (not dims or dims[0] != array.shape[0]):
            batches[name] = array.shape[0]
        if (not dims or None in dims) and name not in config.inputs:
            first = [1] if options.dynamic_batch_size and dims[:1] == [None] else list(array.shape[:1])
            if dims and dims[0] is not None:
                first = [dims[0]]
            shapes[name] = [[*first, *array.shape[1:]]] if array.ndim else [[]]
    if len(set(batches.values())) > 1:
        text = ", ".join(f"'{name}': {size}" for name, size in batches.items())
        raise NeuronError("example_inputs do not have the same batch size", needed="one batch size", available=text)
    if shapes:
        explicit = dict(options.io_config or {})
        inputs = dict(explicit["inputs"]) if "inputs" in explicit else {} if "outputs" in explicit else explicit
        merged: dict[str, Any] = {"inputs": {**shapes, **inputs}}
        if "outputs" in explicit:
            merged["outputs"] = explicit["outputs"]
        options = replace(options, io_config=merged)
    fixed = any(ports[name].shape.dim[0].HasField("dim_value") for name in batches if ports[name].shape.dim)
    if options.batch_size is None and batches and (fixed or options.dynamic_batch_size):
        options = replace(options, batch_size=next(iter(batches.values())))
    return options


def _keep(plan: Mapping[str, Any], options: CompileOptions, artifact: Path, folder: Path) -> None:
    """Fill `compiler_workdir`."""
    import json

    from neuron_mlir.runtime.artifact import read_artifact
    from neuron_mlir.runtime.files import replacing

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NeuronError(f"compiler_workdir '{folder}' cannot be made: {error.strerror}") from error
    made = read_artifact(artifact)
    report = json.dumps({"options": options.to_json(), **plan}, indent=2) + "\n"
    for name, data in (
        ("model.neff", made.data),
        ("program.mlir", made.program.encode()),
        ("compile.json", report.encode()),
    ):
        with replacing(str(folder / name)) as stream:
            stream.write(data)
