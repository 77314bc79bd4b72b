"""ONNX -> `nn`.

`import_model` makes one `func.func @main` of `nn` ops. Weights stay in the file: an `nn.weight` names one, and the
module attribute `nn.weights` names the file. The operator table is in the `onnx_ops_*` modules, a handler per operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Region, SSAValue
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn import CastOp
from neuron_mlir.dialects.nn.base import tensor, type_of
from neuron_mlir.errors import NeuronError
from neuron_mlir.frontends import (
    onnx_ops_elementwise,
    onnx_ops_layers,
    onnx_ops_movement,
    onnx_ops_resample,
    onnx_ops_shape,
)
from neuron_mlir.frontends.onnx_context import (
    ELEMENT_TYPES,
    OPERATORS,
    Context,
    Emitted,
    Module,
    Operator,
    Value,
    check_weight,
    location,
)
from neuron_mlir.frontends.onnx_fold import fold
from neuron_mlir.frontends.onnx_graph import Graph, prepare
from neuron_mlir.frontends.onnx_io_config import IoConfig
from neuron_mlir.ir.functions import NAME_ATTRIBUTE
from neuron_mlir.weights import WEIGHTS_ATTRIBUTE, OnnxStore, element_name
from neuron_mlir.weights.onnx_store import dtype_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Importing these modules fills the operator table.
_OPERATOR_MODULES = (onnx_ops_elementwise, onnx_ops_layers, onnx_ops_movement, onnx_ops_resample, onnx_ops_shape)

MAX_HINT = 24
"""ONNX names up to this length also name the SSA value."""


@dataclass(frozen=True)
class OperatorSupport:
    """A row of the operator table: what an ONNX operator becomes, and its limits."""

    domain: str
    name: str
    becomes: str
    notes: str


def list_operators() -> list[OperatorSupport]:
    """The ONNX operators the importer knows, sorted by name."""
    rows = [OperatorSupport(op.domain or "ai.onnx", op.name, op.becomes, op.notes) for op in OPERATORS.values()]
    return sorted(rows, key=lambda row: (row.domain, row.name))


def operator_table() -> str:
    """The operator table in Markdown."""
    lines = ["| ONNX operator | becomes | limits |", "|---|---|---|"]
    for row in list_operators():
        name = row.name if row.domain == "ai.onnx" else f"{row.domain}.{row.name}"
        lines.append(f"| {name} | {row.becomes} | {row.notes} |")
    return "\n".join(lines) + "\n"


def import_model(
    source: str | Path | ModelProto,
    *,
    io_config: IoConfig | Mapping[str, Any] | str | Path | None = None,
    batch_size: int | None = None,
) -> ModuleOp:
    """Imports an ONNX model.

    Args:
        source: the path of a model, or a model in memory. The module of a path has the attribute `nn.weights` with that
            path as given; that of a model in memory has none, and runs with `OnnxStore(model)`.
        io_config: fixes dynamic axes of inputs and picks outputs; see `neuron_mlir.frontends.onnx_io_config`.
        batch_size: a new size for dimension 0 of every input that has the model's batch there. Literal shapes of
            Reshape and Expand that begin with the old batch follow.

    Returns:
        A verified module with one function `@main`. Its arguments and results are the model's inputs and outputs, with
        their names in `nn.name`. Each op's location is the name of its ONNX node.

    Raises:
        NeuronError: the file is missing, truncated, corrupt or no ONNX model; external data is missing or outside the
            model's directory; a cycle; an operator, attribute or element type that is not supported; control flow;
            dynamic shapes; shapes that do not fit; weights with NaN or infinities; tensors without elements; an
            io-config that does not fit the model; a batch size that the model cannot take.
    """
    if batch_size is not None and batch_size < 1:
        raise NeuronError("the batch size must be at least 1", available=batch_size)
    from google.protobuf.message import Error as ProtobufError

    try:
        return _Importer(prepare(source, io_config, batch_size, _check_node)).run()
    except (UnicodeDecodeError, ProtobufError) as error:  # strings are decoded when they are first looked at
        raise NeuronError(
            f"'{source if isinstance(source, str | Path) else 'the model'}' is corrupt: {error}",
            advice="exporting the model again",
        ) from error


class _Importer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        arguments = [tensor(i.shape, ELEMENT_TYPES[element_name(i.dtype)]) for i in graph.inputs]
        self.block = Block(arg_types=arguments)
        self.values: dict[str, Value] = {}
        for source, argument in zip(graph.inputs, self.block.args, strict=True):
            argument.location = location(source.name)
            _hint(argument, source.name)
            self.values[source.name] = Value(source.name, source.shape, source.dtype, ssa=argument)
        self.module = Module(self.block, OnnxStore(graph.file), self.values, graph.opset, graph.batch)
        self.used = {name for _, node in graph.nodes for name in node.input} | set(graph.outputs)

    def run(self) -> ModuleOp:
        for name, node in self.graph.nodes:
            self.convert(name, node)
        results = [self.module.materialize(self.value(name)) for name in self.graph.outputs]
        self.check_outputs(results)
        self.block.add_op(ReturnOp(*results))
        main = FuncOp(
            "main",
            ([argument.type for argument in self.block.args], [result.type for result in results]),
            Region(self.block),
            arg_attrs=_names([i.name for i in self.graph.inputs]),
            res_attrs=_names(self.graph.outputs),
        )
        module = ModuleOp([main])
        if self.graph.file.path is not None:
            module.attributes[WEIGHTS_ATTRIBUTE] = StringAttr(str(self.graph.file.path))
        module.verify()
        return module

    def value(self, name: str) -> Value:
        """A value by name; a tensor of the store the first time it is asked for."""
        if name not in self.values:
            stored = self.graph.file.tensors[name]
            value = Value(name, stored.shape, stored.dtype, stored=True, literal=True)
            if value.size == 0 and len(value.shape) != 1:
                check_weight(value, self.module.store)
            self.values[name] = value
            if value.size <= 1:
                value.constant = self.module.store.get(name)
        return self.values[name]

    def convert(self, name: str, node: NodeProto) -> None:
        ctx = Context(self.module, node, name, [self.value(x) if x else None for x in node.input])
        folded = fold(ctx, [self.graph.inferred.get(output) for output in node.output])
        if folded is not None:
            self.bind(ctx, folded)
            return
        entry = _lookup(node)
        if entry is None:
            raise _unknown_operator(name, node)
        try:
            results = entry.handler(ctx)
            self.bind(ctx, [results] if isinstance(results, SSAValue | np.ndarray) else results)
        except VerifyException as error:
            raise ctx.misfit(error) from error

    def bind(self, ctx: Context, results: Sequence[Emitted]) -> None:
        """Gives the node's outputs their values, in the types that ONNX says they have."""
        for index, output in enumerate(ctx.node.output):
            if not output:
                continue
            if index >= len(results):
                if output in self.used:
                    raise ctx.error(
                        f"its output {index} ('{output}') is not supported", advice="a model that does not use it"
                    )
                continue
            result = results[index]
            inferred = self.graph.inferred.get(output)
            shape = _shape(result)
            # With another batch, what ONNX infers still has the old one in literal shapes.
            fixed = None if inferred is None or self.graph.batch is not None else inferred.shape
            if fixed is not None and fixed != shape:
                raise ctx.error(
                    f"its result '{output}' is of another shape than ONNX infers",
                    needed=list(fixed),
                    available=list(shape),
                    advice="exporting the model again",
                )
            if not isinstance(result, SSAValue):
                self.values[output] = Value(output, shape, result.dtype, constant=result)
                continue
            if inferred is not None and inferred.type_number:
                dtype = dtype_of(inferred.type_number, f"'{output}', the result of {ctx.op_type} '{ctx.name}',")
            else:
                dtype = ctx.dtype(0)
            element_type = ELEMENT_TYPES[element_name(dtype)]
            # nn arithmetic gives f32; ONNX rounds to the operands' type.
            if type_of(result).element_type != element_type:
                result = ctx.emit(CastOp(result, element_type))
            if not any(value.ssa is result for value in ctx.operands if value is not None):
                _hint(result, output)
            self.values[output] = Value(output, shape, dtype, ssa=result)

    def check_outputs(self, results: Sequence[SSAValue]) -> None:
        """The outputs have the shapes the model declares; with another batch, that batch first."""
        batch = self.graph.batch
        for name, result in zip(self.graph.outputs, results, strict=True):
            declared = self.graph.declared.get(name)
            found = tuple(type_of(result).get_shape())
            if declared is None:
                continue
            if batch is not None and declared and declared[0] == batch[0]:
                declared = (batch[1], *declared[1:])
            if len(declared) == len(found) and all(d in (None, f) for d, f in zip(declared, found, strict=True)):
                continue
            needed = ["?" if dim is None else dim for dim in declared]
            if batch is not None:
                raise NeuronError(
                    f"the batch size cannot be changed from {batch[0]} to {batch[1]}: output '{name}' does not follow",
                    location=name,
                    needed=needed,
                    available=list(found),
                    advice="exporting the model with that batch size, or a dynamic one",
                )
            raise NeuronError(
                f"output '{name}' is of another shape than the model declares",
                location=name,
                needed=needed,
                available=list(found),
                advice="exporting the model again",
            )


def _shape(result: Emitted) -> tuple[int, ...]:
    if isinstance(result, SSAValue):
        return tuple(type_of(result).get_shape())
    return result.shape


def _names(names: Sequence[str]) -> ArrayAttr[DictionaryAttr]:
    return ArrayAttr([DictionaryAttr({NAME_ATTRIBUTE: StringAttr(name)}) for name in names])


def _hint(value: SSAValue, name: str) -> None:
    if len(name) <= MAX_HINT and SSAValue.is_valid_name(name):
        value.name_hint = name


def _check_node(name: str, node: NodeProto) -> None:
    """Refuses control flow, operators that exist nowhere, and attributes that a handler does not know."""
    from onnx import defs

    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise NeuronError(
                f"{node.op_type}: control flow (attribute '{attribute.name}' is a graph) is not supported",
                op=node.op_type,
                location=name,
                advice="exporting the model without it: traced, with loops unrolled",
            )
    entry = _lookup(node)
    if entry is None:
        # ONNX operators without a handler may still fold, if all they see are shapes.
        if node.domain in ("", "ai.onnx") and defs.has(node.op_type):
            return
        raise _unknown_operator(name, node)
    for attribute in node.attribute:
        if attribute.name not in entry.attributes:
            raise NeuronError(
                f"{node.op_type}: its attribute '{attribute.name}' is not supported",
                op=node.op_type,
                location=name,
                advice=f"one with {', '.join(entry.attributes) or 'no attributes'} only",
            )


def _lookup(node: NodeProto) -> Operator | None:
    return OPERATORS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def _unknown_operator(name: str, node: NodeProto) -> NeuronError:
    import difflib

    domain = "" if node.domain == "ai.onnx" else node.domain
    known = sorted(op for space, op in OPERATORS if space == domain)
    near = difflib.get_close_matches(node.op_type, known, n=2, cutoff=0.7)
    advice = f"{' or '.join(near)}, or " if near else ""
    return NeuronError(
        f"the operator '{node.op_type}' of domain '{domain or 'ai.onnx'}' is not supported",
        op=node.op_type,
        location=name,
        advice=f"{advice}exporting to operators that `neuron-cc list-operators --framework ONNX` lists",
    )
