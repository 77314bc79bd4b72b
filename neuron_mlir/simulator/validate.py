"""Check a pass by running the module before and after it on the same inputs (`neuron-opt --validate-each`).

What has to agree is what the pass declares (`NeuronPass.relation`); a pass of xDSL itself declares nothing and is held
to the same bits. Errors are measured against the largest magnitude of the output before the pass:

- `exact`: the same bits (a NaN matches a NaN).
- `reassociates`: at most 2^-12 of that magnitude. Re-ordering a sum of K float32 terms changes it by at most K 2^-24 of
  the sum of their magnitudes: room for K = 4096 where terms do not cancel. Where the module rounds to 16 bits on the
  way, a sum that is a little different may round the other way: then what `casts` allows for these casts.
- `casts`: at most 4 sqrt(n) unit roundoffs of the narrowest type the pass rounds to (bf16: 2^-8, f16: 2^-11), where n
  counts the casts to such types in the module after the pass. Each cast adds an error of up to one roundoff; the errors
  are independent, so they add as a random walk; 4 is for the worst element of many. A convention, not a proof.
- `reshapes-interface`: the pass maps inputs and outputs; then the same bits, or what `reassociates` allows where the
  pass declares that (a matrix product with more rows may add up in another order).

Integer outputs agree exactly, unless the pass casts: an index such as an arg-max may then tip over, and is not
compared.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.base import NeuronPass, Relation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from xdsl.dialects.builtin import ModuleOp, TensorType
    from xdsl.ir import Attribute
    from xdsl.passes import ModulePass

    from neuron_mlir.passes.base import Values

UNIT_ROUNDOFF = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 2.0**-24, "f64": 2.0**-53}
"""Largest relative error of rounding to nearest, half the distance of neighbours (normal numbers)."""

CAST_ROUNDOFFS = 4
REASSOCIATION_BOUND = 2.0**-12


class ValidationError(NeuronError):
    """A pass has changed a value that it must not change."""


@dataclass(frozen=True)
class Difference:
    """The first element of an output that disagrees."""

    output: str
    index: tuple[int, ...]
    before: object
    after: object
    count: int
    """How many elements disagree."""
    size: int
    bound: float
    """Absolute; 0 for the same bits."""

    def __str__(self) -> str:
        where = f"[{', '.join(str(i) for i in self.index)}]"
        how = "bit for bit" if self.bound == 0 else f"within {self.bound:.3g}"
        return (
            f"output '{self.output}'{where} is {self.after}, was {self.before}"
            f" ({self.count} of {self.size} elements do not agree {how})"
        )


class Validator:
    """Runs a module around each pass of a pipeline; keeps outputs from one pass to the next.

    Args:
        seed: of the random inputs.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._inputs: Values | None = None
        self._outputs: Values | None = None
        self._module: ModuleOp | None = None
        self._casts: dict[str, int] = {}
        self.deviation = 0.0
        """Of the last pass: see `deviation`."""

    def before(self, module: ModuleOp, following: ModulePass) -> None:
        """Run the module that `following` is about to change.

        Raises:
            NeuronError: the module does not run.
        """
        self._casts = count_casts(module)
        if _relation(following) is Relation.RESHAPES_INTERFACE:
            # The inputs are drawn for the module after the pass, so the one before it must be kept.
            self._module = module.clone()
            return
        if self._outputs is None:
            context = f"before pass '{following.name}'"
            self._inputs = _random_inputs(module, self.seed, context)
            self._outputs = _run(module, self._inputs, context)

    def after(self, module: ModuleOp, previous: ModulePass) -> None:
        """Run the module that `previous` has changed and compare.

        Raises:
            ValidationError: the outputs are not related as the pass declares; names the first element.
            NeuronError: the module does not run any more.
        """
        context = f"after pass '{previous.name}'"
        expected = self._outputs
        if self._module is not None and isinstance(previous, NeuronPass):
            self._inputs = _random_inputs(module, self.seed, context)
            runs = [_run(self._module, run, context) for run in previous.split_inputs(self._inputs)]
            expected = previous.join_outputs(runs)
            self._module = None
        assert self._inputs is not None and expected is not None, "after() without before()"
        outputs = _run(module, self._inputs, context)
        self._outputs = outputs
        casts = self._casts if _bounded_by(previous) is Relation.REASSOCIATES else casts_of(module, previous)
        difference = first_difference(expected, outputs, previous, casts)
        self.deviation = deviation(expected, outputs)
        if difference is not None:
            raise ValidationError(
                f"pass '{previous.name}', declared {_relation(previous)}, changed the result: {difference}",
                advice="--print-ir-before and --print-ir-after this pass",
            )


def deviation(before: Values, after: Values) -> float:
    """The largest difference over the largest magnitude of its output before; of integer outputs the share of elements
    that differ. What agrees bit for bit, and pairs of NaN, do not count.
    """
    worst = 0.0
    for name, expected in before.items():
        wrong = _beyond(expected, after[name], 0.0)
        if not wrong.any():
            continue
        if expected.dtype.kind != "f":
            worst = max(worst, float(np.count_nonzero(wrong)) / wrong.size)
            continue
        with np.errstate(invalid="ignore"):
            apart = np.abs(after[name].astype(np.float64) - expected.astype(np.float64))
        apart = np.where(np.isnan(apart) & wrong, np.inf, apart)
        worst = max(worst, float(apart[wrong].max()) / (_magnitude(expected) or 1.0))
    return worst


def count_casts(module: ModuleOp) -> dict[str, int]:
    """How many values the module rounds to each 16-bit type while it runs; casts of constants do not count."""
    found: dict[str, int] = {}
    for op in module.walk():
        if op.name != "nn.cast" or getattr(op.parent_op(), "name", "") in ("nn.const", "core.const"):
            continue
        element = str(cast("TensorType[Attribute]", op.results[0].type).element_type)
        if element in ("bf16", "f16"):
            found[element] = found.get(element, 0) + 1
    return found


def casts_of(module: ModuleOp, instance: ModulePass) -> dict[str, int]:
    """Casts of the module, those of constants included, to the types a `casts` pass rounds to; at least 1 of each."""
    types = instance.casts_to() if isinstance(instance, NeuronPass) else ()
    found = dict.fromkeys(types, 0)
    for op in module.walk() if types else ():
        if op.name == "nn.cast":
            element = str(cast("TensorType[Attribute]", op.results[0].type).element_type)
            if element in found:
                found[element] += 1
    return {element: max(1, sum(found.values())) for element in types}


def first_difference(
    before: Values, after: Values, instance: ModulePass, casts: dict[str, int] | None = None
) -> Difference | None:
    """The first element, by name of output in order and then in row-major order, that breaks the pass's relation.

    Args:
        before: outputs of the module before the pass.
        after: outputs of the module after it.
        instance: the pass.
        casts: how many values are rounded to each 16-bit type on the way.

    Raises:
        ValidationError: the outputs differ in name, shape or element type.
    """
    if list(before) != list(after):
        raise ValidationError(
            f"pass '{instance.name}' changed the outputs from {', '.join(before)} to {', '.join(after)}"
        )
    for name, expected in before.items():
        actual = after[name]
        if expected.shape != actual.shape or expected.dtype != actual.dtype:
            raise ValidationError(
                f"pass '{instance.name}' changed output '{name}' from {expected.dtype}{list(expected.shape)}"
                f" to {actual.dtype}{list(actual.shape)}"
            )
        difference = _compare(name, expected, actual, instance, casts or {})
        if difference is not None:
            return difference
    return None


def _compare(
    name: str, expected: NDArray[Any], actual: NDArray[Any], instance: ModulePass, casts: dict[str, int]
) -> Difference | None:
    relation = _relation(instance)
    floating = expected.dtype.kind == "f"
    if relation is Relation.CASTS and not floating:
        return None
    bound = _relative_bound(instance, casts) * _magnitude(expected) if floating else 0.0
    wrong = _beyond(expected, actual, bound)
    if not wrong.any():
        return None
    position = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    return Difference(
        name, position, expected[position], actual[position], int(np.count_nonzero(wrong)), wrong.size, bound
    )


def _beyond(expected: NDArray[Any], actual: NDArray[Any], bound: float) -> NDArray[np.bool_]:
    """Where the arrays do not agree. A bound of 0 asks for the same bits, so that -0 is not +0."""
    if expected.dtype.kind != "f":
        return np.asarray(expected != actual)
    both_nan = np.isnan(expected) & np.isnan(actual)
    if bound == 0:
        bits = f"u{expected.dtype.itemsize}"
        same = np.ascontiguousarray(expected).view(bits) == np.ascontiguousarray(actual).view(bits)
        return np.asarray(~(same | both_nan))
    with np.errstate(invalid="ignore"):
        # Infinities subtract to NaN, which is not within any bound; equal ones agree.
        near = np.abs(actual.astype(np.float64) - expected.astype(np.float64)) <= bound
    return np.asarray(~(near | both_nan | (expected == actual)))


def _relative_bound(instance: ModulePass, casts: dict[str, int]) -> float:
    relation = _bounded_by(instance)
    rounded = max(
        (CAST_ROUNDOFFS * sqrt(count) * UNIT_ROUNDOFF[element] for element, count in casts.items()), default=0.0
    )
    if relation is Relation.REASSOCIATES:
        return max(REASSOCIATION_BOUND, rounded)
    if relation is Relation.CASTS and isinstance(instance, NeuronPass):
        known = casts or dict.fromkeys(instance.casts_to(), 1)
        return max((CAST_ROUNDOFFS * sqrt(n) * UNIT_ROUNDOFF[element] for element, n in known.items()), default=0.0)
    return 0.0


def _magnitude(values: NDArray[Any]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.max(np.abs(finite))) if finite.size else 0.0


def _relation(instance: ModulePass) -> Relation:
    return instance.relation if isinstance(instance, NeuronPass) else Relation.EXACT


def _bounded_by(instance: ModulePass) -> Relation:
    """The relation of the values: of a pass that changes the interface, once inputs and outputs are mapped."""
    if isinstance(instance, NeuronPass) and instance.relation is Relation.RESHAPES_INTERFACE:
        return instance.interface_relation
    return _relation(instance)


def _random_inputs(module: ModuleOp, seed: int, context: str) -> Values:
    from neuron_mlir.simulator.run import random_inputs

    with _running(context):
        return random_inputs(module, seed)


def _run(module: ModuleOp, inputs: Values, context: str) -> Values:
    from neuron_mlir.simulator.run import run_module

    # Term by term: the faster way adds up what it finds side by side at a level, which differs between levels.
    with _running(context):
        return run_module(module, inputs, plain=True).outputs


@contextmanager
def _running(context: str) -> Generator[None]:
    """Put before an error of the `with` block between which passes it happened."""
    try:
        yield
    except NeuronError as error:
        error.message = f"the module does not run {context}: {error.message}"
        raise
