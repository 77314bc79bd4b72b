"""Writes docs/reference/: a page per dialect and one for the passes, from their definitions and docstrings.

`python -m neuron_mlir.tools.reference_docs [DIR]`, or `make docs`; a test fails when the pages are stale.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xdsl.ir import Attribute, Dialect, Operation, ParametrizedAttribute
from xdsl.irdl import (
    AllOf,
    AnyOf,
    AttrConstraint,
    BaseAttr,
    EqAttrConstraint,
    IRDLOperation,
    MessageConstraint,
    OpDef,
    OptOperandDef,
    OptRegionDef,
    OptResultDef,
    ParamAttrConstraint,
    RangeConstraint,
    RangeLengthConstraint,
    RangeOf,
    VarConstraint,
    VarOperandDef,
    VarRegionDef,
    VarResultDef,
)

from neuron_mlir.passes import PASS_MODULES, PIPELINE_MODULES, get_all_passes
from neuron_mlir.passes.base import NeuronPass, NeuronPipeline

NOTE = "<!-- Written by `make docs` from the definitions; do not edit. -->"


def pages() -> dict[str, str]:
    """File name to text of every page of the reference."""
    from neuron_mlir.dialects.core import Core
    from neuron_mlir.dialects.nn import Nn
    from neuron_mlir.dialects.pipe import Pipe

    return {
        "nn.md": dialect_page(Nn, "neuron_mlir.dialects.nn"),
        "core.md": dialect_page(Core, "neuron_mlir.dialects.core"),
        "pipe.md": dialect_page(Pipe, "neuron_mlir.dialects.pipe"),
        "passes.md": passes_page(),
    }


# Dialects -------------------------------------------------------------------------------------------------------------


def dialect_page(dialect: Dialect, module: str) -> str:
    """The page of a dialect: its ops and its types and attributes, each in the order of registration."""
    operations = sorted(dialect.operations, key=lambda op: op.name)
    attributes = sorted(dialect.attributes, key=lambda attribute: attribute.name)
    lines = [f"# `{dialect.name}`", "", NOTE, "", doc_of(sys.modules[module]), ""]
    lines += ["Ops: " + ", ".join(f"[`{op.name}`](#{_anchor(op.name)})" for op in operations) + ".", ""]
    if attributes:
        links = ", ".join(f"[`{_sigil(a)}{a.name}`](#{_anchor(_sigil(a) + a.name)})" for a in attributes)
        lines += [f"Types and attributes: {links}.", ""]
    for op in operations:
        lines += op_section(op)
    for attribute in attributes:
        lines += attribute_section(attribute)
    return "\n".join(lines).rstrip() + "\n"


def op_section(op: type[Operation]) -> Iterator[str]:
    """The section of an op."""
    yield from (f"## `{op.name}`", "", doc_of(op), "")
    if not issubclass(op, IRDLOperation):
        return
    definition = op.get_irdl_definition()
    if definition.assembly_format is not None:
        yield from ("Syntax:", "", "```text", f"{op.name} {definition.assembly_format}", "```", "")
    rows = list(_parts(definition))
    if rows:
        yield from ("| | name | type |", "|---|---|---|")
        yield from (f"| {kind} | `{name}` | {type_text} |" for kind, name, type_text in rows)
        yield ""
    traits = sorted({type(trait).__name__ for trait in definition.traits.traits})
    if traits:
        yield from ("Traits: " + ", ".join(traits) + ".", "")


def attribute_section(attribute: type[Attribute]) -> Iterator[str]:
    """The section of a type or attribute."""
    yield from (f"## `{_sigil(attribute)}{attribute.name}`", "", doc_of(attribute), "")
    if not issubclass(attribute, ParametrizedAttribute):
        return
    parameters = attribute.get_irdl_definition().parameters
    if parameters:
        yield from ("| parameter | type |", "|---|---|")
        yield from (f"| `{name}` | {constraint_text(part.constr)} |" for name, part in parameters)
        yield ""


def _parts(definition: OpDef) -> Iterator[tuple[str, str, str]]:
    """Kind, name and type of everything an op is made of."""
    for name, operand in definition.operands:
        yield "operand" + _count(operand, VarOperandDef, OptOperandDef), name, constraint_text(operand.constr)
    for name, part in {**definition.properties, **definition.attributes}.items():
        if name in ("operandSegmentSizes", "resultSegmentSizes"):
            # How xDSL remembers which operand is which; nothing a reader writes.
            continue
        optional = type(part).__name__.startswith("Opt")
        yield "property" + (", optional" if optional else ""), name, constraint_text(part.constr)
    for name, region in definition.regions:
        yield "region" + _count(region, VarRegionDef, OptRegionDef), name, ""
    for name, result in definition.results:
        yield "result" + _count(result, VarResultDef, OptResultDef), name, constraint_text(result.constr)


def _count(part: object, many: type[Any], optional: type[Any]) -> str:
    # An optional part is a variadic one in xDSL's class hierarchy.
    if isinstance(part, optional):
        return ", optional"
    return ", any number" if isinstance(part, many) else ""


def constraint_text(constraint: AttrConstraint | RangeConstraint) -> str:
    """What a constraint allows, in the words of a reader; `any` where it does not say it in a few."""
    match constraint:
        case RangeLengthConstraint():
            return constraint_text(constraint.constraint)
        case RangeOf():
            return constraint_text(constraint.constr)
        case VarConstraint():
            return constraint_text(constraint.constraint)
        case MessageConstraint():
            return constraint_text(constraint.constr)
        case BaseAttr():
            return f"`{constraint.attr.name}`"
        case ParamAttrConstraint():
            return f"`{constraint.base_attr.name}`"
        case EqAttrConstraint():
            return f"`{constraint.attr}`"
        case AnyOf():
            return _joined((constraint_text(part) for part in constraint.attr_constrs), " or ")
        case AllOf():
            return _joined((constraint_text(part) for part in constraint.attr_constrs), ", ")
        case _:
            return "any"


def _joined(texts: Iterable[str], separator: str) -> str:
    return separator.join(dict.fromkeys(text for text in texts if text != "any")) or "any"


def _sigil(attribute: type[Attribute]) -> str:
    from xdsl.ir import TypeAttribute

    return "!" if issubclass(attribute, TypeAttribute) else "#"


def _anchor(heading: str) -> str:
    """A heading's anchor, as GitHub makes it: lower case, punctuation dropped."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


# Passes ---------------------------------------------------------------------------------------------------------------


def passes_page() -> str:
    """The page of the passes and named pipelines, in the order a network goes through them."""
    table = get_all_passes()
    lines = ["# Passes", "", NOTE, "", "| pass | what it does | values |", "|---|---|---|"]
    for name in PASS_MODULES:
        pass_type = table[name]()
        lines.append(f"| [`{name}`](#{_anchor(name)}) | {pass_type.summary} | {pass_type.relation} |")
    lines += ["", "| pipeline | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#{_anchor(name)}) | {table[name]().summary} |" for name in PIPELINE_MODULES]
    lines.append("")
    for name in (*PASS_MODULES, *PIPELINE_MODULES):
        lines += pass_section(table[name]())
    return "\n".join(lines).rstrip() + "\n"


def pass_section(pass_type: type[NeuronPass]) -> Iterator[str]:
    """The section of a pass or pipeline."""
    yield from (f"## `{pass_type.name}`", "", doc_of(pass_type), "")
    options = pass_type.options()
    if options:
        yield from ("| option | type | default | |", "|---|---|---|---|")
        for info in options:
            kind = info.type if info.choices is None else " or ".join(str(choice) for choice in info.choices)
            default = "" if info.default is None else f"`{str(info.default).lower()}`"
            yield f"| `{info.name}` | {kind} | {default} | {info.help} |"
        yield ""
    if pass_type.statistics_help:
        yield from ("| statistic | |", "|---|---|")
        yield from (f"| `{name}` | {text} |" for name, text in pass_type.statistics_help.items())
        yield ""
    if issubclass(pass_type, NeuronPipeline):
        yield from ("Stands for:", "", "```text", pass_type().expand().replace(",", ",\n"), "```", "")


def doc_of(thing: object) -> str:
    """A docstring as Markdown; headings inside it go below those of the page."""
    return re.sub(r"^(#+) ", r"##\1 ", inspect.cleandoc(thing.__doc__ or ""), flags=re.MULTILINE)


def main(argv: list[str] | None = None) -> int:
    """Write the pages to the directory given, by default docs/reference of this repository."""
    arguments = sys.argv[1:] if argv is None else argv
    folder = Path(arguments[0]) if arguments else Path(__file__).parents[2] / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
