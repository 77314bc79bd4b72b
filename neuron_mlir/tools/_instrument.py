"""What happens between passes: verification, dumps of the IR, timing, statistics, validation, reproducers."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from io import StringIO
from typing import TYPE_CHECKING, Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass, PassPipelineCallbackType
from xdsl.printer import Printer

from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.dominance import check_dominance
from neuron_mlir.passes.base import NeuronPass
from neuron_mlir.tools._files import write_text
from neuron_mlir.tools._passes import Step, format_steps, pass_text
from neuron_mlir.tools._timing import Timer

if TYPE_CHECKING:
    from neuron_mlir.simulator.validate import Validator

CONFIGURATION = "// configuration: "
"""Begins the line of a reproducer that holds the arguments of the failed run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line arguments of this module."""
    dumps = parser.add_argument_group("IR between passes, on standard error or in files")
    for when in ("before", "after"):
        dumps.add_argument(
            f"--print-ir-{when}",
            metavar="PASS[,PASS..]",
            action="append",
            default=[],
            help=f"print the IR {when} these passes",
        )
        dumps.add_argument(f"--print-ir-{when}-all", action="store_true", help=f"print the IR {when} every pass")
    dumps.add_argument("--print-ir-after-change", action="store_true", help="print the IR after passes that change it")
    dumps.add_argument("--print-ir-after-failure", action="store_true", help="print the IR a failed pass has left")
    dumps.add_argument("--print-ir-dir", metavar="DIR", help="write these dumps to files in DIR, numbered in order")

    reports = parser.add_argument_group("reports, on standard error")
    reports.add_argument("--timing", action="store_true", help="time parsing, each pass, verification and printing")
    reports.add_argument("--statistics", action="store_true", help="print what each pass has counted")
    reports.add_argument(
        "--json",
        metavar="FILE",
        help="write timing and statistics, or --list-passes, as JSON ('-': standard output)",
    )

    checks = parser.add_argument_group("checks")
    checks.add_argument(
        "--validate-each",
        action="store_true",
        help="run the module before and after every pass on the same random inputs and compare the outputs",
    )
    checks.add_argument("--seed", type=int, default=0, help="of the random inputs of --validate-each (default 0)")
    checks.add_argument(
        "--crash-reproducer",
        metavar="FILE",
        help="when a pass fails, write the IR before it and the passes from it on to FILE",
    )
    checks.add_argument(
        "--run-reproducer", action="store_true", help="take the passes from the reproducer that is read"
    )
    checks.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")


class Instrumentation:
    """Called between passes; see `callback`."""

    def __init__(
        self, args: argparse.Namespace, steps: list[Step], verify: PassPipelineCallbackType, timer: Timer
    ) -> None:
        self.args = args
        self.steps = steps
        self.timer = timer
        self.position = 0
        """Index in `steps` of the pass that runs, or is about to."""
        self.running: ModulePass | None = None
        self._verify = verify
        self._started = 0.0
        self._dumps = 0
        self._text: str | None = None
        self._snapshot: ModuleOp | None = None
        self._validator: Validator | None = None
        self._print_before = _pass_names(args.print_ir_before, steps, "before")
        self._print_after = _pass_names(args.print_ir_after, steps, "after")

    def callback(self, previous: ModulePass | None, module: ModuleOp, following: ModulePass | None) -> None:
        """Called by the pipeline before the first pass, between passes, and after the last."""
        if previous is None:
            self.position = 0
        else:
            self._timed_pass(previous, time.perf_counter() - self._started)
        self._timed_verify(previous, module, following)
        if previous is not None:
            self._after(previous, module)
            self.position += 1
        self.running = following
        if following is not None:
            self._before(following, module)
        self._started = time.perf_counter()

    def failed(self, module: ModuleOp, error: BaseException, message: str) -> None:
        """Called when a pass, or the verifier after it, has raised `error`."""
        if self.running is None:
            return
        name = self.running.name
        if self.args.print_ir_after_failure:
            self._dump(module, f"After {name} Failed", f"after_{name}_failed")
        if self.args.crash_reproducer is None or self._snapshot is None:
            return
        arguments = ["-p", format_steps(self.steps[self.position :])]
        if self.args.allow_unregistered_dialect:
            arguments.append("--allow-unregistered-dialect")
        if self.args.validate_each:
            arguments += ["--validate-each", "--seed", str(self.args.seed)]
        header = f"// neuron-opt failed in pass '{name}': {message.splitlines()[0]}\n"
        header += f"{CONFIGURATION}{shlex.join(arguments)}\n"
        write_text(self.args.crash_reproducer, header + ir_text(self._snapshot, debuginfo=True) + "\n")
        print(f"note: reproducer written to {self.args.crash_reproducer}", file=sys.stderr)

    # Steps of the callback --------------------------------------------------------------------------------------------

    def _timed_pass(self, instance: ModulePass, seconds: float) -> None:
        self._group(seconds).add(pass_text(instance), seconds)

    def _timed_verify(self, previous: ModulePass | None, module: ModuleOp, following: ModulePass | None) -> None:
        start = time.perf_counter()
        self._verify(previous, module, following)
        if self.args.disable_verify:
            return
        check_dominance(module)
        seconds = time.perf_counter() - start
        group = self.timer if previous is None else self._group(seconds)
        group.add("(verify)", seconds)

    def _group(self, seconds: float) -> Timer:
        """The timer of the named pipeline of the current pass, `seconds` added to it and those around it."""
        node = self.timer
        for name in self.steps[self.position].path:
            node = node.child(name)
            node.seconds += seconds
        return node

    def _before(self, following: ModulePass, module: ModuleOp) -> None:
        name = following.name
        if self.args.print_ir_before_all or name in self._print_before:
            self._dump(module, f"Before {name}", f"before_{name}")
        if self.args.print_ir_after_change and self._text is None:
            self._text = ir_text(module, debuginfo=True)
        if self.args.crash_reproducer is not None:
            self._snapshot = module.clone()
        if self.args.validate_each:
            if self._validator is None:
                from neuron_mlir.simulator.validate import Validator

                self._validator = Validator(self.args.seed)
            start = time.perf_counter()
            self._validator.before(module, following)
            seconds = time.perf_counter() - start
            self._group(seconds).child("(validate)").seconds += seconds

    def _after(self, previous: ModulePass, module: ModuleOp) -> None:
        name = previous.name
        show = self.args.print_ir_after_all or name in self._print_after
        if self.args.print_ir_after_change:
            text = ir_text(module, debuginfo=True)
            show = show or text != self._text
            self._text = text
        if show:
            self._dump(module, f"After {name}", f"after_{name}")
        if self._validator is not None:
            start = time.perf_counter()
            self._validator.after(module, previous)
            seconds = time.perf_counter() - start
            self._group(seconds).child("(validate)").seconds += seconds

    def start_module(self) -> None:
        """Forget what was kept of the module before: another chunk of the input begins."""
        self._text = self._snapshot = self._validator = self.running = None

    def _dump(self, module: ModuleOp, title: str, file_name: str) -> None:
        text = ir_text(module, generic=self.args.print_op_generic, debuginfo=self.args.print_debuginfo)
        text = f"// -----// IR Dump {title} //----- //\n{text}\n"
        if self.args.print_ir_dir is None:
            print(text, file=sys.stderr, flush=True)
            return
        os.makedirs(self.args.print_ir_dir, exist_ok=True)
        write_text(os.path.join(self.args.print_ir_dir, f"{self._dumps:03}_{file_name}.mlir"), text)
        self._dumps += 1

    # Statistics -------------------------------------------------------------------------------------------------------

    def statistics(self) -> list[dict[str, Any]]:
        """The statistics of each pass that declares some, in the order of the pipeline."""
        return [
            {"pass": pass_text(step.instance), "statistics": step.instance.statistics}
            for step in self.steps
            if isinstance(step.instance, NeuronPass) and step.instance.statistics_help
        ]

    def render_statistics(self) -> str:
        """The report, as MLIR prints it."""
        rule = "===" + "-" * 73 + "==="
        lines = [rule, "... Pass statistics report ...".center(79).rstrip(), rule]
        for step in self.steps:
            instance = step.instance
            if not isinstance(instance, NeuronPass) or not instance.statistics_help:
                continue
            lines.append(f"'{pass_text(instance)}'")
            for name, value in instance.statistics.items():
                lines.append(f"  (S) {value} {name} - {instance.statistics_help[name]}")
        return "\n".join(lines)


def ir_text(module: ModuleOp, *, generic: bool = False, debuginfo: bool = False) -> str:
    """The text of a module. One that does not print in its own syntax, being broken, is printed generically."""
    stream = StringIO()
    try:
        Printer(stream=stream, print_generic_format=generic, print_debuginfo=debuginfo).print_op(module)
    except Exception:
        if generic:
            raise
        return ir_text(module, generic=True, debuginfo=debuginfo)
    return stream.getvalue()


def reproducer_arguments(path: str) -> list[str]:
    """The arguments recorded in a reproducer.

    Raises:
        NeuronError: the file has no configuration line.
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith(CONFIGURATION):
                return shlex.split(line[len(CONFIGURATION) :])
            if not line.startswith("//"):
                break
    raise NeuronError(
        f"'{path}' is not a reproducer: it does not begin with a line '{CONFIGURATION.strip()} ..'",
        advice="a file that --crash-reproducer has written",
    )


def _pass_names(texts: list[str], steps: list[Step], when: str) -> frozenset[str]:
    names = [name.strip() for text in texts for name in text.split(",")]
    known = {step.instance.name for step in steps}
    for name in names:
        if name not in known:
            raise NeuronError(
                f"--print-ir-{when}: pass '{name}' is not in the pipeline",
                advice="one of " + ", ".join(dict.fromkeys(step.instance.name for step in steps)) if steps else None,
            )
    return frozenset(names)
