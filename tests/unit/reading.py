"""What tests share that begin with a module's text."""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp
from xdsl.parser import Parser

from neuron_mlir.dialects import pipe
from neuron_mlir.ir.dominance import check_dominance
from neuron_mlir.runtime.modules import make_context


def parse(text: str) -> ModuleOp:
    """The module, verified."""
    module = Parser(make_context(), text).parse_module()
    module.verify()
    check_dominance(module)
    return module


def program_of(module: ModuleOp) -> pipe.ProgramOp:
    """The one program of a module."""
    (program,) = (op for op in module.ops if isinstance(op, pipe.ProgramOp))
    return program
