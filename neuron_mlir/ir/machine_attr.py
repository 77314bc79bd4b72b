"""The machine a module is compiled for, recorded in the module.

`core.machine = "inferentia1"` names the base; `core.machine_overrides = {sbuf.bytes_per_partition = 131072}` holds
what a user's description changes. So a printed module needs no other file.
"""

from __future__ import annotations

from xdsl.dialects.builtin import DictionaryAttr, IntegerAttr, ModuleOp, StringAttr, i64
from xdsl.ir import Attribute, Operation

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import Machine, load_machine, machine_names

MACHINE = "core.machine"
OVERRIDES = "core.machine_overrides"


def machine_of(op: Operation) -> Machine:
    """The machine recorded in the module `op` is in (or is); `inferentia1` when none is recorded.

    Raises `NeuronError` when what is recorded is not a machine.
    """
    module = _module_of(op)
    if module is None:
        return load_machine()
    name, values = module.attributes.get(MACHINE), module.attributes.get(OVERRIDES)
    if name is None and values is None:
        return load_machine()
    if not isinstance(name, StringAttr):
        raise NeuronError(f"'{MACHINE}' must be a string, got {name}", op=module, advice=f'{MACHINE} = "inferentia1"')
    if name.data not in machine_names():
        # Not the path of a file: what a module says must not depend on what is where it is read.
        raise NeuronError(f"unknown machine '{name.data}'", op=module, advice=f"one of {', '.join(machine_names())}")
    if values is None:
        return load_machine(name.data)
    if not isinstance(values, DictionaryAttr):
        raise NeuronError(
            f"'{OVERRIDES}' must be a dictionary, got {values}",
            op=module,
            advice=f"{OVERRIDES} = {{sbuf.bytes_per_partition = 131072}}",
        )
    return load_machine(name.data, overrides={key: _number(key, value, module) for key, value in values.data.items()})


def record_machine(module: ModuleOp, machine: Machine) -> None:
    """Record `machine` in `module`, in place of any machine recorded before."""
    module.attributes[MACHINE] = StringAttr(machine.name)
    module.attributes.pop(OVERRIDES, None)
    if machine.overrides:
        module.attributes[OVERRIDES] = DictionaryAttr({key: IntegerAttr(v, i64) for key, v in machine.overrides})


def _module_of(op: Operation) -> ModuleOp | None:
    module: ModuleOp | None = None
    at: Operation | None = op
    while at is not None:
        if isinstance(at, ModuleOp):
            module = at
        at = at.parent_op()
    return module


def _number(key: str, value: Attribute, module: ModuleOp) -> int:
    if not isinstance(value, IntegerAttr):
        raise NeuronError(f"'{OVERRIDES}': '{key}' must be an integer, got {value}", op=module)
    return value.value.data
