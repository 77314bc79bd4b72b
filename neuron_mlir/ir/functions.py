"""Functions that stand for a network: the names of their inputs and outputs, and their one block."""

from __future__ import annotations

from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, StringAttr
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block

from neuron_mlir.errors import NeuronError

NAME_ATTRIBUTE = "nn.name"
"""The argument and result attribute with the ONNX name."""


def input_names(function: FuncOp) -> list[str]:
    """The name of each argument: what `nn.name` says, or else `arg0`, `arg1`, and so on.

    Raises:
        NeuronError: two have the same name.
    """
    return _names(function, function.arg_attrs, len(function.function_type.inputs), "input", "arg")


def output_names(function: FuncOp) -> list[str]:
    """The name of each result: what `nn.name` says, or else `out0`, `out1`, and so on.

    Raises:
        NeuronError: two have the same name.
    """
    return _names(function, function.res_attrs, len(function.function_type.outputs), "output", "out")


def _names(
    function: FuncOp, attributes: ArrayAttr[DictionaryAttr] | None, count: int, what: str, default: str
) -> list[str]:
    given = [None] * count if attributes is None else [entry.data.get(NAME_ATTRIBUTE) for entry in attributes]
    names = [name.data if isinstance(name, StringAttr) else f"{default}{i}" for i, name in enumerate(given)]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise NeuronError(
                f"{what}s {names.index(name)} and {index} of @{function.sym_name.data} are both named '{name}'",
                op=function,
                advice=f"another {NAME_ATTRIBUTE} for one of them",
            )
    return names


def body_of(function: FuncOp) -> Block:
    """The one block of a function.

    Raises:
        NeuronError: it has more, so there is control flow; or none, so it is a declaration.
    """
    if len(function.body.blocks) == 1:
        return function.body.block
    raise NeuronError(
        f"@{function.sym_name.data} has control flow, which a network has not",
        op=function,
        needed="one block",
        available=f"{len(function.body.blocks)} blocks",
    )
