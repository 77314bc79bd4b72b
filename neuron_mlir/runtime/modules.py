"""Modules as text and their interface as data: what artifacts, tools and benchmarks share."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp


def make_context() -> Context:
    """A context with every dialect of the environment (ours, xDSL's, installed plugins'), loaded when used."""
    from xdsl.context import Context
    from xdsl.universe import Universe

    context = Context()
    for name, factory in Universe.get_multiverse().all_dialects.items():
        context.register_dialect(name, factory)
    return context


def parse_module(text: str, name: str, *, places: bool = False) -> ModuleOp:
    """A module from its text, verified, SSA dominance included. With `places`, ops without a location get
    `file:line:column` for one.

    Raises:
        NeuronError: the text is not a module, or not a valid one; `name` says whose.
    """
    from xdsl.utils.exceptions import ParseError, VerifyException

    from neuron_mlir.ir.dominance import check_dominance
    from neuron_mlir.ir.source import SourceParser

    parser = SourceParser(make_context(), text, name)
    try:
        module = parser.parse_module()
    except ParseError as error:
        where = str(error).split("\n", 1)[0]
        raise NeuronError(f"{where}: {' '.join(error.msg.split())}") from error
    if places:
        parser.mark()
    try:
        module.verify()
    except VerifyException as error:
        raise NeuronError(f"{name}: invalid IR: {' '.join(str(error).split())}") from error
    check_dominance(module)
    return module


def read_module(path: str | Path, *, places: bool = False) -> ModuleOp:
    """The module of a `.mlir` file; `places` as in `parse_module`.

    Raises:
        NeuronError: the file cannot be read, or holds no valid module.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NeuronError(f"'{path}' is neither a compiled artifact (.neff) nor UTF-8 text (.mlir)") from error
    return parse_module(text, str(path), places=places)


def module_text(module: ModuleOp, *, locations: bool = False) -> str:
    """The text of a module, ending in a line end. With `locations`, ops carry theirs where it is known."""
    from xdsl.dialects.builtin import UnknownLoc
    from xdsl.ir import Attribute
    from xdsl.printer import Printer

    class KnownLocations(Printer):
        """Prints `loc(..)` only where it says something: a missing one reads back as unknown."""

        def print_attribute(self, attribute: Attribute) -> None:
            if self.printing_location or not isinstance(attribute, UnknownLoc):
                super().print_attribute(attribute)

    stream = StringIO()
    if not locations:
        Printer(stream=stream).print_op(module)
        return stream.getvalue() + "\n"
    KnownLocations(stream=stream, print_debuginfo=True).print_op(module)
    # The printer writes a space before a location, also before one that is left out.
    return stream.getvalue().replace(" \n", "\n").rstrip() + "\n"


def interface_json(module: ModuleOp) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs of a module, in order, each as `{name, dtype, shape}`."""
    from neuron_mlir.simulator.interface import input_types, output_types

    def ports(found: list[Any]) -> list[dict[str, Any]]:
        return [{"name": port.name, "dtype": port.element, "shape": list(port.shape)} for port in found]

    return ports(input_types(module)), ports(output_types(module))
