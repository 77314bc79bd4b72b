"""For the tests of `core-lower`: it computes what the value form computes, bit for bit.

Sums of whole numbers do not depend on their order.

Each case is a small graph; inputs and weights are whole numbers small enough that every partial sum is exact in f32.
The graph runs after `pipe-stage`, and after `core-lower` or in its final form. Dense layers, pooling and so on give
bits that do not depend on the order of sums; elementary functions are the same at all levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, ModuleOp, StringAttr, f32, i1, i32
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue
from xdsl.utils.arg_spec import parse_pipeline

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import tensor, type_of
from neuron_mlir.passes import get_all_passes
from neuron_mlir.runtime.modules import make_context, parse_module
from neuron_mlir.simulator.run import run_module

Array = NDArray[Any]
LOWERED, FINAL = "core-lower", "core-allocate,core-schedule"
PREPARE = "nn-fold-constants,nn-fuse,nn-cast{{mode={mode}}},pipe-stage{{cores=1}}"


class Net:
    """A graph being written, with its inputs and weights."""

    def __init__(self, seed: int = 0) -> None:
        self.block = Block()
        self.rng = np.random.default_rng(seed)
        self.inputs: dict[str, Array] = {}
        self.stored: dict[str, Array] = {}
        self.results: list[SSAValue] = []

    def get(self, name: str) -> Array:
        """The value of a weight (the net is its own store)."""
        return self.stored[name]

    def numbers(self, shape: Sequence[int], element: Attribute, low: int, high: int) -> Array:
        values = self.rng.integers(low, high + 1, tuple(shape))
        return values.astype(bool) if element == i1 else values.astype(np.int32 if element == i32 else np.float32)

    def x(self, *shape: int, element: Attribute = f32, low: int = -4, high: int = 4) -> SSAValue:
        """A graph input of whole numbers."""
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.numbers(shape, element, low, high)
        return self.block.insert_arg(tensor(shape, element), len(self.block.args))

    def w(self, *shape: int, element: Attribute = f32, low: int = -2, high: int = 2) -> SSAValue:
        """A weight of whole numbers."""
        name = f"w{len(self.stored)}"
        self.stored[name] = self.numbers(shape, element, low, high)
        return self(nn.WeightOp(name, tensor(shape, element)))

    def splat(self, number: float, *shape: int) -> SSAValue:
        return self(nn.WeightOp(f"splat{number}", tensor(shape, f32), nn.SplatAttr.get(number)))

    def __call__(self, op: Operation) -> SSAValue:
        self.block.add_op(op)
        return op.results[0]

    def conv(self, x: SSAValue, outputs: int, *kernel: int, group: int = 1, bias: bool = True, **keys: Any) -> SSAValue:
        """A convolution with new weights."""
        weight = self.w(outputs, type_of(x).get_shape()[1] // group, *kernel)
        return self(nn.ConvOp(x, weight, self.w(outputs) if bias else None, group=group, **keys))

    def dense(self, x: SSAValue, outputs: int) -> SSAValue:
        """A product with a new weight."""
        return self(nn.MatmulOp(x, self.w(type_of(x).get_shape()[-1], outputs)))

    def module(self, *results: SSAValue) -> ModuleOp:
        self.block.add_op(ReturnOp(*results))
        types = ([a.type for a in self.block.args], [r.type for r in results])
        names = [DictionaryAttr({"nn.name": StringAttr(name)}) for name in self.inputs]
        main = FuncOp("main", types, Region(self.block), arg_attrs=ArrayAttr(names))
        return ModuleOp([main])


def apply(module: ModuleOp, pipeline: str) -> None:
    ctx = make_context()
    for spec in parse_pipeline(pipeline):
        get_all_passes()[spec.name]().from_spec(spec).apply(ctx, module)
    module.verify()


def same(a: Mapping[str, Array], b: Mapping[str, Array]) -> None:
    assert a.keys() == b.keys()
    for name, expected in a.items():
        assert not np.isnan(expected.astype(np.float64)).any()
        wrong = np.argwhere(expected != b[name])
        assert b[name].dtype == expected.dtype and not len(wrong), (
            f"{name}: {len(wrong)} of {expected.size} differ, first at {wrong[:1].tolist()}:"
            f" {b[name][tuple(wrong[0])] if len(wrong) else ''} for {expected[tuple(wrong[0])] if len(wrong) else ''}"
        )


def check(net: Net, *results: SSAValue, mode: str = "all", forms: Sequence[str] = (LOWERED,)) -> ModuleOp:
    """Compare the value form with others, each going on from the one before; returns the last, which is also printed
    and parsed."""
    module = net.module(*results)
    apply(module, PREPARE.format(mode=mode))
    outputs = run_module(module, net.inputs, weights=net).outputs
    for form in forms:
        apply(module, form)
        final = form.endswith(FINAL)
        same(outputs, run_module(module, net.inputs, weights=net, hazards=True if final else "auto").outputs)
    text = str(module)
    assert str(parse_module(text, "again")) == text
    return module


Case = Callable[[Net], "SSAValue | Sequence[SSAValue]"]


class Cases(dict[str, Case]):
    """Graphs by name."""

    def add(self, name: str) -> Callable[[Case], Case]:
        """Registers the function it decorates."""

        def register(function: Case) -> Case:
            assert name not in self
            self[name] = function
            return function

        return register

    def run(self, name: str, mode: str = "all", forms: Sequence[str] = (LOWERED,)) -> ModuleOp:
        """Check one; returns what it became."""
        net = Net()
        found = self[name](net)
        return check(net, *([found] if isinstance(found, SSAValue) else found), mode=mode, forms=forms)
