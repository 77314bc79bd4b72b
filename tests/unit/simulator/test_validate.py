"""--validate-each: what agrees, what does not, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp, bf16
from xdsl.dialects.func import Func
from xdsl.parser import Parser

from neuron_mlir.dialects.nn import AddOp, CastOp, Nn, ReluOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.base import NeuronPass, Relation, Values, option
from neuron_mlir.simulator.validate import (
    ValidationError,
    Validator,
    casts_of,
    count_casts,
    deviation,
    first_difference,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class Exact(NeuronPass):
    """Does nothing."""

    name = "test-exact"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        pass


@dataclass(frozen=True)
class Reassociates(Exact):
    """Allowed to re-order sums."""

    name = "test-reassociates"
    relation = Relation.REASSOCIATES


@dataclass(frozen=True)
class Casts(Exact):
    """Allowed to round."""

    name = "test-casts"
    relation = Relation.CASTS
    to: Literal["bf16", "f16"] = option("bf16", "the type")

    def casts_to(self) -> tuple[str, ...]:
        return (self.to,)


def f(*values: float) -> Array:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("instance", "after", "agrees"),
    [
        (Exact(), f(1, 2, 4), True),
        (Exact(), np.nextafter(f(1, 2, 4), f(9, 9, 9)), False),
        (Reassociates(), f(1, 2 + 0.0009, 4), True),
        (Reassociates(), f(1, 2 + 0.001, 4), False),
        (Casts("bf16"), f(1.06, 2, 4), True),
        (Casts("bf16"), f(1.07, 2, 4), False),
        (Casts("f16"), f(1.007, 2, 4), True),
        (Casts("f16"), f(1.008, 2, 4), False),
        (Casts("bf16"), f(1, np.inf, 4), False),
        (Casts("bf16"), f(1, np.nan, 4), False),
    ],
)
def test_bounds(instance: NeuronPass, after: Array, agrees: bool) -> None:
    """Of outputs up to 4: 4 x 2^-12 = 0.00098; 4 x 4 x 2^-8 = 0.0625; 4 x 4 x 2^-11 = 0.0078."""
    assert (first_difference({"y": f(1, 2, 4)}, {"y": after}, instance) is None) == agrees


def test_the_bound_of_casts_grows_with_their_number() -> None:
    pair = ({"y": f(1, 2, 4)}, {"y": f(1.12, 2, 4)})
    assert first_difference(*pair, Casts("bf16")) is not None
    assert first_difference(*pair, Casts("bf16"), {"bf16": 4}) is None
    chain = TEXT.replace(
        "%0 = nn.relu %x : tensor<2x3xf32>",
        "%a = nn.cast %x : (tensor<2x3xf32>) -> tensor<2x3xbf16>\n"
        "%b = nn.cast %a : (tensor<2x3xbf16>) -> tensor<2x3xf16>\n"
        "%c = nn.cast %b : (tensor<2x3xf16>) -> tensor<2x3xbf16>\n"
        "%0 = nn.relu %c : tensor<2x3xbf16>",
    )
    assert casts_of(parse(chain), Casts("bf16")) == {"bf16": 2}
    assert casts_of(parse(chain), Exact()) == {}
    assert count_casts(parse(chain)) == {"bf16": 2, "f16": 1}


def test_exact_means_the_same_bits() -> None:
    assert first_difference({"y": f(np.nan, np.inf)}, {"y": f(np.nan, np.inf)}, Exact()) is None
    difference = first_difference({"y": f(0.0, 1)}, {"y": f(-0.0, 1)}, Exact())
    assert difference is not None and difference.index == (0,)
    assert first_difference({"y": np.array([1, 2])}, {"y": np.array([1, 3])}, Exact()) is not None
    assert first_difference({"y": np.array([1, 2])}, {"y": np.array([1, 3])}, Reassociates()) is not None
    assert first_difference({"y": np.array([1, 2])}, {"y": np.array([1, 3])}, Casts()) is None
    assert first_difference({"y": f(np.inf)}, {"y": f(np.inf)}, Reassociates()) is None


def test_the_first_difference_is_named() -> None:
    before = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 3), np.float32)}
    after = {"a": before["a"], "b": before["b"].copy()}
    after["b"][1, 1:] = 5
    assert str(first_difference(before, after, Exact())) == (
        "output 'b'[1, 1] is 5.0, was 0.0 (2 of 6 elements do not agree bit for bit)"
    )


def test_interfaces_must_agree() -> None:
    with pytest.raises(ValidationError, match="changed the outputs from a to b"):
        first_difference({"a": f(1)}, {"b": f(1)}, Exact())
    with pytest.raises(ValidationError, match=r"changed output 'a' from float32\[1\] to float32\[2\]"):
        first_difference({"a": f(1)}, {"a": f(1, 2)}, Exact())


TEXT = """
func.func @main(%x: tensor<2x3xf32> {nn.name = "x"}) -> (tensor<2x3xf32> {nn.name = "y"}) {
  %0 = nn.relu %x : tensor<2x3xf32>
  func.return %0 : tensor<2x3xf32>
}
"""


def parse(text: str = TEXT) -> ModuleOp:
    ctx = Context()
    for dialect in (Builtin, Func, Nn):
        ctx.load_dialect(dialect)
    return Parser(ctx, text).parse_module()


def relu_of(module: ModuleOp) -> ReluOp:
    return next(op for op in module.walk() if isinstance(op, ReluOp))


def validate(instance: NeuronPass, module: ModuleOp) -> None:
    validator = Validator(seed=3)
    validator.before(module, instance)
    instance.apply(Context(), module)
    validator.after(module, instance)


@dataclass(frozen=True)
class Double(Exact):
    """Wrong: the values double."""

    name = "test-double"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        relu = relu_of(op)
        block = relu.parent_block()
        assert block is not None
        double = AddOp(relu.result, relu.result)
        block.insert_op_after(double, relu)
        relu.result.replace_uses_with_if(double.result, lambda use: use.operation is not double)


def test_a_good_pass_passes() -> None:
    validate(Exact(), parse())


def test_a_wrong_pass_is_named() -> None:
    with pytest.raises(ValidationError, match=r"pass 'test-double', declared exact, changed the result: output 'y'\["):
        validate(Double(), parse())


def test_outputs_are_kept_from_pass_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuron_mlir.simulator import run

    runs: list[ModuleOp] = []
    original = run.run_module

    def counted(module: ModuleOp, inputs: Mapping[str, Array], *, plain: bool) -> run.RunResult:
        runs.append(module)
        return original(module, inputs, plain=plain)

    monkeypatch.setattr(run, "run_module", counted)
    module, validator = parse(), Validator()
    for _ in range(3):
        validator.before(module, Exact())
        validator.after(module, Exact())
    assert len(runs) == 4


def test_a_module_that_does_not_run_is_an_error() -> None:
    module = parse("builtin.module {}")
    with pytest.raises(NeuronError, match="the module does not run before pass 'test-exact': "):
        Validator().before(module, Exact())


@dataclass(frozen=True)
class Stack(NeuronPass):
    """Takes two requests at once: the batch goes from 2 to 4."""

    name = "test-stack"
    relation = Relation.RESHAPES_INTERFACE
    statistics_help: ClassVar[Mapping[str, str]] = {}
    wrong: bool = option(False, "square the values as well")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        body = TEXT.replace("2x3", "4x3")
        if self.wrong:
            body = body.replace("return %0", "return %1").replace(
                "  func.return", "  %1 = nn.mul %0, %0 : tensor<4x3xf32>, tensor<4x3xf32>\n  func.return"
            )
        new = parse(body)
        op.body.block.erase_op(next(iter(op.body.block.ops)))
        function = next(iter(new.body.block.ops))
        function.detach()
        op.body.block.add_op(function)

    def split_inputs(self, inputs: Values) -> list[Values]:
        return [{name: value[i : i + 2] for name, value in inputs.items()} for i in (0, 2)]

    def join_outputs(self, outputs: list[Values]) -> Values:
        return {name: np.concatenate([run[name] for run in outputs]) for name in outputs[0]}


def test_a_pass_that_reshapes_the_interface_maps_it() -> None:
    validate(Stack(), parse())
    with pytest.raises(ValidationError, match=r"reshapes-interface, changed the result: output 'y'"):
        validate(Stack(wrong=True), parse())


@pytest.mark.parametrize(("instance", "agrees"), [(Casts("bf16"), True), (Exact(), False)])
def test_rounding_is_for_passes_that_say_so(instance: NeuronPass, agrees: bool) -> None:
    """One rounding to bf16 is within 4 roundoffs of it, but does not keep the bits."""
    module, validator = parse(), Validator()
    validator.before(module, instance)
    relu = relu_of(module)
    block = relu.parent_block()
    assert block is not None
    cast = CastOp(relu.operands[0], bf16)
    block.insert_op_before(cast, relu)
    relu.operands[0] = cast.result
    if agrees:
        validator.after(module, instance)
        return
    with pytest.raises(ValidationError, match="do not agree"):
        validator.after(module, instance)


def test_deviation_is_relative_to_the_output() -> None:
    nan, inf = float("nan"), float("inf")
    assert deviation({"y": f(1, -4, nan)}, {"y": f(1, -4, nan)}) == 0
    assert deviation({"y": f(1, -4), "z": f(100)}, {"y": f(1, -3), "z": f(101)}) == 0.25
    assert deviation({"y": f(1, 2)}, {"y": f(nan, 2)}) == inf and deviation({"y": f(inf)}, {"y": f(inf)}) == 0
    assert deviation({"i": np.array([1, 2, 3, 4])}, {"i": np.array([1, 2, 3, 7])}) == 0.25
