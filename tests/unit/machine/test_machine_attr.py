"""The machine recorded in a module survives print and parse; what is no machine is refused."""

from __future__ import annotations

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser

from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import machine_of, record_machine
from neuron_mlir.machine import load_machine


def parse(text: str) -> ModuleOp:
    ctx = Context()
    ctx.load_dialect(Builtin)
    return Parser(ctx, text).parse_module()


def test_recorded_machine_survives_the_text() -> None:
    wide = load_machine(overrides={"sbuf.bytes_per_partition": 131072, "dma.fixed_ps": 1})
    module = ModuleOp([ModuleOp([])])
    assert machine_of(module) == load_machine()
    record_machine(module, wide)
    again = parse(str(module))
    assert machine_of(again) == wide
    assert str(again) == str(module)
    # Any op finds it, through all modules around it.
    inner = again.body.block.first_op
    assert inner is not None and machine_of(inner) == wide
    record_machine(module, load_machine())
    assert "overrides" not in str(module)
    assert machine_of(module) == load_machine()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("core.machine = 3 : i64", "'core.machine' must be a string"),
        ('core.machine = "inferentia9"', "unknown machine 'inferentia9'"),
        ("core.machine_overrides = {}", "'core.machine' must be a string, got None"),
        ('core.machine = "inferentia1", core.machine_overrides = 3 : i64', "must be a dictionary"),
        ('core.machine = "inferentia1", core.machine_overrides = {sbuf.banks = 3 : i64}', "unknown key 'sbuf.banks'"),
        (
            'core.machine = "inferentia1", core.machine_overrides = {dma.fixed_ps = "a"}',
            "'dma.fixed_ps' must be an int",
        ),
        (
            'core.machine = "inferentia1", core.machine_overrides = {dma.fixed_ps = -1 : i64}',
            "must be positive, got -1",
        ),
    ],
)
def test_what_is_no_machine_is_refused(attributes: str, message: str) -> None:
    with pytest.raises(NeuronError) as caught:
        machine_of(parse(f"builtin.module attributes {{{attributes}}} {{ }}"))
    assert message in caught.value.line
