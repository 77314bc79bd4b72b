"""What `core-lower` keeps and says besides values: locations, statistics, errors."""

from __future__ import annotations

from io import StringIO

import pytest
from lowered import Net, apply, check
from xdsl.dialects.builtin import ModuleOp, i32
from xdsl.ir import Operation, SSAValue
from xdsl.printer import Printer

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.instruction import Instruction
from neuron_mlir.dialects.core.memory import AllocOp
from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.locations import has_location, name_location
from neuron_mlir.passes.core.lower import CoreLower
from neuron_mlir.runtime.modules import make_context

STAGED = "nn-fuse,nn-cast{mode=all},pipe-stage{cores=1}"


def named(op: Operation, name: str) -> Operation:
    op.location = name_location(name)
    return op


def resnet() -> ModuleOp:
    """Two convolutions with a shortcut, pooling, and a dense layer; each op named as an ONNX node would be."""
    net = Net()
    x = net.x(1, 3, 16, 16)

    def conv(value: SSAValue, outputs: int, name: str) -> SSAValue:
        weight = net.w(outputs, type_of(value).get_shape()[1], 3, 3)
        return net(named(nn.ConvOp(value, weight, net.w(outputs), pads=[1, 1, 1, 1]), name))

    a = net(named(nn.ReluOp(conv(x, 40, "conv1")), "relu1"))
    b = conv(a, 40, "conv2")
    c = net(named(nn.ReluOp(net(named(nn.AddOp(b, a), "shortcut"))), "relu2"))
    p = net(named(nn.ReduceMeanOp(c, [2, 3]), "mean"))
    d = net(named(nn.MatmulOp(p, net.w(40, 10)), "dense"))
    return net.module(net(named(nn.SoftmaxOp(d, axis=1), "softmax")))


@pytest.mark.parametrize("passes", ["core-lower", "core-lower,core-allocate,core-schedule"])
def test_locations(passes: str) -> None:
    """Every instruction says which layers it is part of, and no layer is lost."""
    module = resnet()
    apply(module, f"{STAGED},{passes}")
    instructions = [op for op in module.walk() if isinstance(op, Instruction)]
    assert instructions
    assert [op for op in instructions if not has_location(op)] == []
    stream = StringIO()
    Printer(stream, print_debuginfo=True).print_op(module)
    for name in ("conv1", "conv2", "relu1", "shortcut", "relu2", "mean", "dense", "softmax"):
        assert f'"{name}"' in stream.getvalue()


def lowered(module: ModuleOp) -> CoreLower:
    apply(module, STAGED)
    lower = CoreLower()
    lower.apply(make_context(), module)
    module.verify()
    return lower


def test_statistics() -> None:
    net = Net()
    x = net.dense(net.x(1, 25088), 4096)
    found = lowered(net.module(net.dense(net(nn.ReluOp(x)), 10))).statistics
    assert found["layers"] == 2
    assert found["streamed weights"] == 1 and found["resident weights"] == 1


def test_a_layer_takes_few_instructions_whatever_its_size() -> None:
    """Tiles are loops: a larger map does not make a longer program."""

    def size(rows: int, channels: int) -> int:
        net = Net()
        module = net.module(net.conv(net.x(1, channels, rows, rows), channels, 3, 3, pads=[1, 1, 1, 1]))
        lowered(module)
        return sum(isinstance(op, Instruction) for op in module.walk())

    assert size(256, 128) <= 60
    assert size(40, 1024) <= 20


def test_a_table_stays_in_dram() -> None:
    net = Net()
    module = net.module(net(nn.GatherOp(net.w(30000, 768), net.x(1, 8, element=i32, low=0, high=9))))
    apply(module, "pipe-stage{cores=1}")
    CoreLower().apply(make_context(), module)
    assert all("30000" not in str(op.result.type) for op in module.walk() if isinstance(op, AllocOp))


def error_of(op: Operation, net: Net, passes: str = STAGED) -> str:
    module = net.module(net(named(op, "here")))
    apply(module, passes)
    with pytest.raises(NeuronError) as caught:
        CoreLower().apply(make_context(), module)
    return str(caught.value)


def test_no_code_for_a_layer() -> None:
    net = Net()
    text = error_of(nn.ArgMaxOp(net.x(3, 40), axis=1), net)
    assert "nn.arg_max" in text and "here" in text and "host" in text


def test_gather_from_a_computed_table() -> None:
    net = Net()
    table = net(nn.ReluOp(net.x(30, 8)))
    text = error_of(nn.GatherOp(table, net.x(2, element=i32, low=0, high=3)), net)
    assert "constant" in text and "here" in text


def test_products_of_f32() -> None:
    net = Net()
    text = error_of(nn.MatmulOp(net.x(3, 40), net.w(40, 20)), net, "pipe-stage{cores=1}")
    assert "nn-cast" in text and "here" in text and "f32" in text


def test_needs_a_program() -> None:
    net = Net()
    with pytest.raises(NeuronError, match="pipe-stage"):
        CoreLower().apply(make_context(), net.module(net(nn.ReluOp(net.x(4)))))


def test_an_input_that_is_an_output() -> None:
    net = Net()
    x = net.x(4)
    check(net, x, net(nn.ReluOp(x)))
