"""Reads an ONNX model and puts it in order: inputs pinned, nodes sorted, types inferred. Makes no IR."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_mlir.errors import NeuronError
from neuron_mlir.frontends.onnx_io_config import IoConfig, parse_io_config
from neuron_mlir.weights import OnnxFile
from neuron_mlir.weights.onnx_store import dtype_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

MIN_OPSET = 7
"""Before opset 7, Add and the like broadcast by attributes."""

_SMALL_BYTES = 1024
_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Input:
    """An input of the model: name, static shape, NumPy type."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Inferred:
    """What ONNX's shape inference says of a value: its `TensorProto.DataType`, and its shape if it is static."""

    type_number: int
    shape: tuple[int, ...] | None


@dataclass
class Graph:
    """A model that is ready to be imported.

    Attributes:
        nodes: those that the outputs need, each with its name, producers before consumers.
        inputs: all inputs, pinned.
        outputs: names.
        batch: (old, new) where a batch size was asked for that is not the model's.
        declared: the static shapes that the model declares for its outputs, before any change of the batch.
    """

    file: OnnxFile
    opset: int
    nodes: list[tuple[str, NodeProto]]
    inputs: list[Input]
    outputs: list[str]
    batch: tuple[int, int] | None
    inferred: dict[str, Inferred] = field(default_factory=dict[str, Inferred])
    declared: dict[str, tuple[int | None, ...]] = field(default_factory=dict[str, "tuple[int | None, ...]"])


def prepare(
    source: str | Path | ModelProto,
    io_config: IoConfig | Mapping[str, Any] | str | Path | None,
    batch_size: int | None,
    check_node: Callable[[str, NodeProto], None],
) -> Graph:
    """Reads, checks, pins and sorts a model.

    `check_node` may refuse a node, given its name, before ONNX's checker does.

    Raises:
        NeuronError: see `neuron_mlir.frontends.onnx.import_model`.
    """
    file = OnnxFile(source)
    _check_text(file.model.graph)
    model = _inline_functions(file.model)
    graph = model.graph
    if graph.sparse_initializer:
        raise NeuronError(
            "sparse weights are not supported",
            location=graph.sparse_initializer[0].values.name,
            advice="exporting the model with dense weights",
        )
    opset = _opset(model)
    config = parse_io_config(io_config)
    outputs = _outputs(graph, config)
    inputs, batch = _pin_inputs(graph, file, config, batch_size)
    nodes = _sort(_needed(_name_nodes(graph, file), outputs), {i.name for i in inputs} | set(file.tensors))
    for name, node in nodes:
        check_node(name, node)
    result = Graph(file, opset, nodes, inputs, outputs, batch)
    result.declared = {
        value.name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in shape.dim)
        for value in graph.output
        if value.type.tensor_type.HasField("shape")
        for shape in [value.type.tensor_type.shape]
    }
    result.inferred = _infer(model, result)
    return result


def _check_text(graph: GraphProto) -> None:
    """Text that is no UTF-8 comes as bytes: a sign of a corrupt file."""
    texts: list[object] = [graph.name]
    for value in (*graph.input, *graph.output, *graph.initializer):
        texts.append(value.name)
    for node in graph.node:
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
        texts += [attribute.name for attribute in node.attribute]
    for text in texts:
        if isinstance(text, bytes):
            raise NeuronError(f"the model is corrupt: the name {text!r} is no text", advice="exporting the model again")


def _inline_functions(model: ModelProto) -> ModelProto:
    if not model.functions:
        return model
    from onnx import inliner

    return inliner.inline_local_functions(model)


def _opset(model: ModelProto) -> int:
    from onnx import defs

    versions = [entry.version for entry in model.opset_import if entry.domain in _DOMAINS]
    if not versions:
        raise NeuronError("the model does not say which opset it uses", advice="exporting the model again")
    opset = max(versions)
    newest = defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise NeuronError(
            f"opset {opset} is not supported",
            needed=f"opset {MIN_OPSET} to {newest}",
            advice="onnx.version_converter"
            if opset < MIN_OPSET
            else "a newer onnx package, or exporting to an older opset",
        )
    return opset


def _name_nodes(graph: GraphProto, file: OnnxFile) -> list[tuple[str, NodeProto]]:
    """Every node with a name: its own, else its first output's. Constants that the store holds are left out."""
    defined: set[str] = set(file.tensors)
    named: list[tuple[str, NodeProto]] = []
    for node in graph.node:
        outputs = [output for output in node.output if output]
        name = node.name or (outputs[0] if outputs else node.op_type)
        if node.op_type == "Constant" and outputs and outputs[0] in file.tensors:
            continue
        for output in outputs:
            if output in defined:
                raise NeuronError(
                    f"the value '{output}' is defined twice",
                    op=node.op_type,
                    location=name,
                    advice="exporting it again",
                )
            defined.add(output)
        named.append((name, node))
    return named


def _needed(nodes: Sequence[tuple[str, NodeProto]], outputs: Sequence[str]) -> list[tuple[str, NodeProto]]:
    """The nodes that the outputs depend on, in the order of the file."""
    producers = {output: index for index, (_, node) in enumerate(nodes) for output in node.output if output}
    needed: set[int] = set()
    work = list(outputs)
    while work:
        index = producers.get(work.pop())
        if index is not None and index not in needed:
            needed.add(index)
            work.extend(nodes[index][1].input)
    return [item for index, item in enumerate(nodes) if index in needed]


def _sort(nodes: Sequence[tuple[str, NodeProto]], known: set[str]) -> list[tuple[str, NodeProto]]:
    """Producers before consumers, otherwise in the order of the file.

    Raises:
        NeuronError: a cycle, or an input that nothing produces.
    """
    producers = {output: index for index, (_, node) in enumerate(nodes) for output in node.output if output}
    waits: list[int] = []
    readers: dict[int, list[int]] = {}
    for index, (name, node) in enumerate(nodes):
        sources: set[int] = set()
        for operand in node.input:
            if not operand or operand in known:
                continue
            if operand not in producers:
                raise NeuronError(
                    f"{node.op_type}: its input '{operand}' is produced by no node and is no input of the model",
                    op=node.op_type,
                    location=name,
                    advice="exporting the model again",
                )
            sources.add(producers[operand])
        waits.append(len(sources))
        for source in sorted(sources):
            readers.setdefault(source, []).append(index)
    import heapq

    ready = [index for index, count in enumerate(waits) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers.get(index, []):
            waits[reader] -= 1
            if waits[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        raise _cycle(nodes, producers, {index for index, count in enumerate(waits) if count > 0})
    return [nodes[index] for index in order]


def _cycle(nodes: Sequence[tuple[str, NodeProto]], producers: Mapping[str, int], stuck: set[int]) -> NeuronError:
    """Every stuck node waits for a stuck one: following those ends in the cycle."""
    path: list[int] = [min(stuck)]
    while True:
        following = next(producers[name] for name in nodes[path[-1]][1].input if producers.get(name) in stuck)
        if following in path:
            loop = path[path.index(following) :][::-1]
            break
        path.append(following)
    first = loop.index(min(loop))
    loop = loop[first:] + loop[:first]
    names = [nodes[index][0] for index in [*loop[:6], loop[0]]]
    return NeuronError(
        f"the graph has a cycle of {len(loop)} nodes: {' -> '.join(names)}",
        location=nodes[loop[0]][0],
        advice="exporting the model again: ONNX graphs have no cycles",
    )


def _pin_inputs(
    graph: GraphProto, file: OnnxFile, config: IoConfig, batch_size: int | None
) -> tuple[list[Input], tuple[int, int] | None]:
    found = [value for value in graph.input if value.name not in file.tensors]
    names = [value.name for value in found]
    for name in config.inputs:
        if name not in names:
            raise NeuronError(
                f"io-config names the input '{name}', which the model does not have",
                available=f"inputs {', '.join(names)}",
                advice="the model's own input names",
            )
    types = {value.name: _tensor_type(value) for value in found}
    old = _old_batch(found, types) if batch_size is not None else None
    batch: tuple[int, int] | None = None
    inputs: list[Input] = []
    dynamic: list[str] = []
    for value in found:
        dtype, dims = types[value.name]
        shape = _pin(value.name, dtype, dims, config)
        if batch_size is not None and dims and dims[0] == old and value.name not in config.inputs:
            shape = [batch_size, *shape[1:]]
            if isinstance(old, int) and old != batch_size:
                batch = (old, batch_size)
        dynamic += [
            f"axis {axis} of input '{value.name}'" + (f" ('{dim}')" if dim else "")
            for axis, dim in enumerate(shape)
            if not isinstance(dim, int)
        ]
        inputs.append(Input(value.name, tuple(dim if isinstance(dim, int) else 1 for dim in shape), dtype))
    if dynamic:
        raise _dynamic_error(dynamic, inputs)
    return inputs, batch


def _dynamic_error(dynamic: Sequence[str], inputs: Sequence[Input]) -> NeuronError:
    import json

    example = {"inputs": {i.name: [list(i.shape), i.dtype.name] for i in inputs}}
    return NeuronError(
        f"the model's shapes are dynamic: {', '.join(dynamic)}",
        needed="a fixed size for every axis",
        advice=f"--io-config '{json.dumps(example)}' with the sizes you want",
    )


def _old_batch(found: Sequence[ValueInfoProto], types: Mapping[str, tuple[Any, list[int | str]]]) -> int | str:
    for value in found:
        _, dims = types[value.name]
        if dims:
            return dims[0]
    raise NeuronError("the model has no input with a batch dimension", advice="no batch size")


def _tensor_type(value: ValueInfoProto) -> tuple[np.dtype[Any], list[int | str]]:
    """The NumPy type and the dimensions of an input; a dynamic one as its name, perhaps empty."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise NeuronError(
            f"input '{value.name}' is a {str(kind).removesuffix('_type')}, not a tensor",
            location=value.name,
            advice="a model whose inputs are tensors",
        )
    tensor_type = value.type.tensor_type
    dtype = dtype_of(tensor_type.elem_type, f"input '{value.name}'")
    if not tensor_type.HasField("shape"):
        return dtype, ["", "", ""]
    dims: list[int | str] = []
    for dim in tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(int(dim.dim_value))
        elif dim.HasField("dim_value") and dim.dim_value == 0:
            raise NeuronError(
                f"input '{value.name}' has a dimension of size 0", location=value.name, needed="at least 1"
            )
        else:
            dims.append(dim.dim_param)
    return dtype, dims


def _pin(name: str, dtype: np.dtype[Any], dims: list[int | str], config: IoConfig) -> list[int | str]:
    pinned = config.inputs.get(name)
    if pinned is None:
        return list(dims)
    if pinned.dtype is not None and pinned.dtype != dtype.name:
        raise NeuronError(
            f"io-config gives input '{name}' another data type than the model",
            needed=dtype.name,
            available=pinned.dtype,
            advice="the model's data type",
        )
    unranked = dims == ["", "", ""]
    if len(pinned.shape) != len(dims) and not unranked:
        raise NeuronError(
            f"io-config gives input '{name}' another rank than the model",
            needed=f"{len(dims)} dimensions",
            available=f"{list(pinned.shape)}",
        )
    for axis, (given, dim) in enumerate(zip(pinned.shape, dims, strict=False)):
        if isinstance(dim, int) and dim != given and not unranked:
            raise NeuronError(
                f"io-config changes axis {axis} of input '{name}', which the model fixes",
                needed=dim,
                available=given,
                advice="the model's size, or --batch-size for the batch",
            )
    return list(pinned.shape)


def _outputs(graph: GraphProto, config: IoConfig) -> list[str]:
    if config.outputs is None:
        if not graph.output:
            raise NeuronError("the model has no outputs", advice="exporting the model again")
        return [value.name for value in graph.output]
    produced = {output for node in graph.node for output in node.output if output}
    for name in config.outputs:
        if name not in produced:
            raise NeuronError(
                f"io-config names the output '{name}', which no node of the model produces",
                available=f"outputs {', '.join(value.name for value in graph.output)}",
                advice="the name of a tensor that a node produces",
            )
    return list(config.outputs)


def _infer(model: ModelProto, graph: Graph) -> dict[str, Inferred]:
    """ONNX's checker and shape inference, on the model with its large weights as inputs."""
    import onnx
    from onnx import checker, helper, shape_inference

    kept: list[onnx.TensorProto] = []
    inputs = [
        helper.make_tensor_value_info(i.name, helper.np_dtype_to_tensor_dtype(i.dtype), i.shape) for i in graph.inputs
    ]
    used = {name for _, node in graph.nodes for name in node.input} | set(graph.outputs)
    for tensor in graph.file.tensors.values():
        if tensor.name not in used:
            continue
        if tensor.is_inline and tensor.proto.ByteSize() <= _SMALL_BYTES:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor.proto)
            copy.name = tensor.name
            kept.append(copy)
        else:
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.type_number, tensor.shape))
    outputs = [onnx.ValueInfoProto(name=name) for name in graph.outputs]
    small = helper.make_model(
        helper.make_graph([node for _, node in graph.nodes], model.graph.name or "graph", inputs, outputs, kept),
        opset_imports=list(model.opset_import),
        ir_version=onnx.IR_VERSION,
    )
    for output in small.graph.output:
        output.type.tensor_type.elem_type = 0
    try:
        checker.check_model(_with_output_types(small))
        final = shape_inference.infer_shapes(small, data_prop=True).graph
    except (checker.ValidationError, shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise _checker_error(str(error)) from error
    result: dict[str, Inferred] = {}
    for value in (*final.input, *final.value_info, *final.output):
        tensor_type = value.type.tensor_type
        static = tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor_type.shape.dim)
        shape = tuple(int(dim.dim_value) for dim in tensor_type.shape.dim) if static else None
        result[value.name] = Inferred(tensor_type.elem_type, shape)
    return result


def _with_output_types(model: ModelProto) -> ModelProto:
    """A copy for the checker, which wants a type for each output, though it does not look whether it is right."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    for output in copy.graph.output:
        output.type.tensor_type.elem_type = 1
        output.type.tensor_type.shape.SetInParent()
    return copy


def _checker_error(text: str) -> NeuronError:
    """One line of what the checker says, with the node it names as the location."""
    node = re.search(r"[Nn]ode ?(?:with )?\(?[Nn]ame: ?'?([^\s),']+)|node name: ([^\s),]+)", text)
    line = next((part.strip() for part in text.splitlines() if part.strip()), "unknown")
    return NeuronError(
        f"the ONNX checker refuses the model: {line}",
        location=(node.group(1) or node.group(2)) if node else None,
        advice="exporting the model again",
    )
