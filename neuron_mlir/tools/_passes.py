"""Pipelines as text: naming what is wrong with them, expanding named pipelines, listing and explaining passes."""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from xdsl.passes import ModulePass, get_pass_option_infos
from xdsl.utils.arg_spec import ArgSpec, parse_pipeline

from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.base import NeuronPass, NeuronPipeline, format_spec

PassTable = Mapping[str, Callable[[], type[ModulePass]]]


@dataclass(frozen=True)
class Step:
    """One pass to run, and the named pipelines it came from, outermost first."""

    instance: ModulePass
    path: tuple[str, ...] = ()


def parse_steps(table: PassTable, text: str, path: tuple[str, ...] = ()) -> list[Step]:
    """The passes of a pipeline, named pipelines expanded.

    Raises:
        NeuronError: for an unknown pass or a bad option.
        ArgSpecParseError: for text that is no pipeline.
    """
    steps: list[Step] = []
    for spec in parse_pipeline(_squeeze(text)):
        instance = make_pass(table, spec)
        if isinstance(instance, NeuronPipeline):
            steps += parse_steps(table, instance.expand(), (*path, str(instance)))
        else:
            steps.append(Step(instance, path))
    return steps


def make_pass(table: PassTable, spec: ArgSpec) -> ModulePass:
    """The pass of a spec.

    Raises:
        NeuronError: for an unknown pass or a bad option.
    """
    pass_type = find_pass(table, spec.name)
    try:
        return pass_type.from_spec(spec)
    except (ValueError, TypeError) as error:
        # Passes of xDSL itself and of third parties, whose options are checked by xDSL.
        raise NeuronError(f"pass '{spec.name}': {error}", advice=f"neuron-opt --help-pass {spec.name}") from error


def find_pass(table: PassTable, name: str) -> type[ModulePass]:
    """The class of a pass.

    Raises:
        NeuronError: there is none of that name; the nearest names are in the advice.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.5)
        advice = f"{' or '.join(near)}" if near else "neuron-opt --list-passes"
        raise NeuronError(f"there is no pass named '{name}'", advice=advice)
    try:
        return table[name]()
    except ImportError as error:
        raise NeuronError(f"pass '{name}' cannot be loaded: {error}") from error


def format_steps(steps: list[Step]) -> str:
    """The plain pass list that `-p` accepts."""
    return ",".join(pass_text(step.instance) for step in steps)


def pass_text(instance: ModulePass) -> str:
    """A pass with its options, as it is typed."""
    return format_spec(instance.spec())


def _squeeze(text: str) -> str:
    """Pipeline text without space around commas and at the ends, which xDSL's syntax refuses; strings are kept."""
    parts = text.strip().split('"')
    for i in range(0, len(parts), 2):
        parts[i] = ",".join(part.strip() for part in parts[i].split(",")) if "," in parts[i] else parts[i]
    return '"'.join(parts)


# Listing --------------------------------------------------------------------------------------------------------------


def summary_of(pass_type: type[ModulePass]) -> str:
    """One line on a pass: its declared summary, or the first sentence of its docstring."""
    if issubclass(pass_type, NeuronPass):
        return pass_type.summary
    text = inspect.cleandoc(pass_type.__doc__ or "")
    if text.startswith(f"{pass_type.__name__}("):
        # The signature that @dataclass writes when there is no docstring.
        return ""
    return " ".join(text.split("\n\n", 1)[0].split()).split(". ", 1)[0].rstrip(".")


def describe_pass(name: str, pass_type: type[ModulePass]) -> dict[str, Any]:
    """What `--list-passes --json` says of a pass."""
    info: dict[str, Any] = {"name": name, "summary": summary_of(pass_type)}
    if issubclass(pass_type, NeuronPass):
        info["relation"] = str(pass_type.relation)
        info["pipeline"] = issubclass(pass_type, NeuronPipeline)
        info["options"] = [
            {"name": o.name, "type": o.type, "default": o.default, "help": o.help, "choices": o.choices}
            for o in pass_type.options()
        ]
        info["statistics"] = dict(pass_type.statistics_help)
        return info
    info["options"] = [
        {"name": o.name.replace("_", "-"), "type": o.expected_type, "default": o.default_value}
        for o in get_pass_option_infos(pass_type)
    ]
    return info


def list_passes(table: PassTable) -> tuple[str, list[dict[str, Any]]]:
    """Every pass with its summary, ours and third parties' first, xDSL's own after: as text and as data."""
    ours: list[dict[str, Any]] = []
    upstream: list[dict[str, Any]] = []
    for name in sorted(table):
        try:
            pass_type = table[name]()
        except ImportError:
            # Some of xDSL's passes need packages that are not installed.
            continue
        (upstream if pass_type.__module__.startswith("xdsl.") else ours).append(describe_pass(name, pass_type))
    width = max(len(info["name"]) for info in ours + upstream)
    lines: list[str] = []
    for title, group in (("Passes", ours), ("Passes of xDSL", upstream)):
        lines += [f"{title}:", *(f"  {info['name']:{width}}  {info['summary']}".rstrip() for info in group), ""]
    return "\n".join(lines).rstrip(), ours + upstream


def help_pass(name: str, pass_type: type[ModulePass]) -> str:
    """All that is known of a pass: summary, what it promises, options, statistics, documentation."""
    info = describe_pass(name, pass_type)
    lines = [f"{name}: {info['summary']}" if info["summary"] else name, ""]
    if "relation" in info and not info["pipeline"]:
        lines += [f"Values before and after: {info['relation']}", ""]
    if info["options"]:
        lines.append("Options:")
        for o in info["options"]:
            choices = f", one of {', '.join(str(c) for c in o['choices'])}" if o.get("choices") else ""
            default = "" if o["default"] is None else f", default {_default_text(o['default'])}"
            lines.append(f"  {o['name']} ({o['type']}{choices}{default})")
            if o.get("help"):
                lines += textwrap.wrap(o["help"], 100, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    if info.get("statistics"):
        lines += ["Statistics:", *(f"  {name}: {text}" for name, text in info["statistics"].items()), ""]
    if info.get("pipeline") and issubclass(pass_type, NeuronPipeline):
        lines += ["Stands for:", f"  {pass_type().expand()}", ""]
    doc = inspect.cleandoc(pass_type.__doc__ or "")
    if doc and not doc.startswith(f"{pass_type.__name__}("):
        lines.append(doc)
    return "\n".join(lines).rstrip()


def _default_text(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(str(item) for item in cast("tuple[object, ...]", default))
    return str(default)
