"""What every registered pass owes its users: summary, help, a running example, statistics, a lit file of its name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from reading import parse
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.universe import Universe
from xdsl.utils.arg_spec import parse_spec

from neuron_mlir.ir.dominance import check_dominance
from neuron_mlir.passes import PASS_MODULES, PIPELINE_MODULES, get_all_passes, load_pass
from neuron_mlir.passes.base import NeuronPass, NeuronPipeline, Relation, format_spec, option
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.tools._passes import parse_steps

ROOT = Path(__file__).parents[3]
EXAMPLE = re.compile(
    r"^Before[^\n]*:\n+```mlir\n(?P<before>.*?)^```.*?"
    r"^After(?: `(?P<spec>[^`\n]+)`)?[^\n]*:\n+```mlir\n(?P<after>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


def source_of(pass_type: type[NeuronPass]) -> Path:
    return Path(inspect.getfile(pass_type)).resolve()


def violations(pass_type: type[NeuronPass]) -> Iterator[str]:
    """Everything the pass lacks."""
    yield from text_violations(pass_type)
    if not pass_type.statistics_help:
        yield "no statistics"
    source = source_of(pass_type)
    expected = f"{source.parent.name}-{source.stem.replace('_', '-')}"
    if pass_type.name != expected:
        yield f"is in {source.parent.name}/{source.name}, which is for '{expected}'"
    lit = ROOT / "tests" / "lit" / "passes" / source.parent.name / f"{source.stem}.mlir"
    if not lit.is_file():
        yield f"no lit file {lit.relative_to(ROOT)}"
    elif not re.search(rf"^// RUN: neuron-opt .*{pass_type.name}\b", lit.read_text(encoding="utf-8"), re.MULTILINE):
        yield f"{lit.relative_to(ROOT)} does not run the pass"
    yield from example_violations(pass_type)


def text_violations(pass_type: type[NeuronPass]) -> Iterator[str]:
    """What both passes and pipelines lack in words."""
    if not pass_type.summary or "\n" in pass_type.summary or len(pass_type.summary) > 100:
        yield "no summary of one line, up to 100 characters"
    for info in pass_type.options():
        if not info.help:
            yield f"option '{info.name}' has no help"
    for name, text in pass_type.statistics_help.items():
        if not text:
            yield f"statistic '{name}' has no help"
    if not isinstance(pass_type.relation, Relation):  # pyright: ignore[reportUnnecessaryIsInstance]
        yield "its relation is not a Relation"


def example_violations(pass_type: type[NeuronPass]) -> Iterator[str]:
    """Runs the example of the docstring."""
    match = EXAMPLE.search(inspect.cleandoc(pass_type.__doc__ or ""))
    if match is None:
        yield "no IR before and after in the docstring"
        return
    spec = parse_spec(match["spec"] or pass_type.name)
    if spec.name != pass_type.name:
        yield f"the example runs '{spec.name}'"
        return
    ctx = make_context()
    module, expected = parse(match["before"]), parse(match["after"])
    pass_type.from_spec(spec).apply(ctx, module)
    module.verify()
    check_dominance(module)
    if not module.is_structurally_equivalent(expected):
        yield f"the example gives\n{module}\nnot\n{expected}"


@pytest.mark.parametrize("name", PASS_MODULES)
def test_pass(name: str) -> None:
    assert list(violations(load_pass(name, PASS_MODULES[name]))) == []


@pytest.mark.parametrize("name", PASS_MODULES)
def test_one_pass_per_file(name: str) -> None:
    source = source_of(load_pass(name, PASS_MODULES[name]))
    assert [other for other, module in PASS_MODULES.items() if module == PASS_MODULES[name]] == [name]
    assert len(re.findall(r"^class \w+\(NeuronPass\)", source.read_text(encoding="utf-8"), re.MULTILINE)) == 1


@pytest.mark.parametrize("name", {**PASS_MODULES, **PIPELINE_MODULES})
def test_options_print_as_they_parse(name: str) -> None:
    pass_type = get_all_passes()[name]()
    instance = pass_type()
    for include_default in (False, True):
        spec = instance.spec(include_default=include_default)
        assert pass_type.from_spec(parse_spec(format_spec(spec))) == instance


@pytest.mark.parametrize("name", PIPELINE_MODULES)
def test_pipeline(name: str) -> None:
    pass_type = load_pass(name, PIPELINE_MODULES[name])
    assert issubclass(pass_type, NeuronPipeline)
    assert list(text_violations(pass_type)) == []
    # Named pipelines run passes of xDSL as well.
    assert parse_steps(Universe.get_multiverse().all_passes, name)


def test_every_file_of_a_pass_is_registered() -> None:
    """A class derived from NeuronPass in passes/<dialect>/ that the table forgets cannot be run."""
    folder = ROOT / "neuron_mlir" / "passes"
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(folder.glob("*/*.py"))
        if re.search(r"^class \w+\(NeuronPass\)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == set(PASS_MODULES.values())


@dataclass(frozen=True)
class _Careless(NeuronPass):
    """Does nothing."""

    name = "careless"
    depth: int = option(1, "")
    undeclared: ClassVar[int] = 3

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        pass


def test_the_contract_can_fail() -> None:
    found = "\n".join(violations(_Careless))
    for lacking in ("no summary", "option 'depth'", "no statistics", "no lit file", "no IR before", "which is for"):
        assert lacking in found


def test_a_wrong_example_is_found() -> None:
    class Wrong(_Careless):
        __doc__ = "Before:\n\n```mlir\nfunc.func private @a()\n```\n\nAfter:\n\n```mlir\nfunc.func private @b()\n```\n"

    assert "the example gives" in next(example_violations(Wrong))
