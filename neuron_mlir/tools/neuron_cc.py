"""`neuron-cc`: compile an ONNX model to an artifact. The command line is AWS's, as far as it applies.

See `docs/compile-and-run.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.flags import (
    add_options,
    add_verbose,
    check_framework,
    compile_options,
    fast_math,
    flag_notes,
    join_words,
)
from neuron_mlir.tools._files import STANDARD_OUTPUT, check_writable, write_json
from neuron_mlir.tools._progress import progress_bar
from neuron_mlir.tools._report import run_tool

if TYPE_CHECKING:
    from neuron_mlir.runtime.batch_size import Tried
    from neuron_mlir.runtime.compiler import Compiled, CompileOptions, Phase, Watcher
    from neuron_mlir.runtime.package import Packaged


def make_parser() -> argparse.ArgumentParser:
    """The command line of the tool."""
    parser = argparse.ArgumentParser(prog="neuron-cc", description="Compile models for the simulated Inferentia.")
    add_verbose(parser, default="WARN")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_compile(commands.add_parser("compile", help="compile a model to an artifact (.neff)"))
    operators = commands.add_parser("list-operators", help="list the operators that models may have")
    operators.add_argument("--framework", required=True, help="whose operators; ONNX")
    operators.add_argument("--json", metavar="FILE", help="write the list as JSON ('-': standard output, no list)")
    operators.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    return parser


def add_compile(parser: argparse.ArgumentParser) -> None:
    """The arguments of `neuron-cc compile`."""
    parser.add_argument("model", metavar="MODEL.onnx", help="the model")
    parser.add_argument("--framework", default="ONNX", help="what the model is; ONNX")
    parser.add_argument("--output", "-o", metavar="OUT.neff", help="the artifact (default: MODEL.neff, here)")
    add_options(parser)
    reports = parser.add_argument_group("reports")
    reports.add_argument(
        "--json",
        metavar="FILE",
        help="write stages, certificates, sizes and times as JSON ('-': standard output, and no table)",
    )
    reports.add_argument("--print-pipeline", action="store_true", help="print the passes for neuron-opt -p, and stop")
    reports.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    # What is not given behind the command must not hide what was given before it.
    add_verbose(parser, default=argparse.SUPPRESS)
    for flags, level, text in (
        (("-v",), "INFO", "the same as --verbose INFO"),
        (("--quiet", "-q"), "ERROR", "the same as --verbose ERROR"),
    ):
        parser.add_argument(
            *flags, dest="verbose", action="store_const", const=level, default=argparse.SUPPRESS, help=text
        )


def run_compile(args: argparse.Namespace) -> int:
    """Do what `neuron-cc compile` says; the exit code."""
    from neuron_mlir.runtime.compiler import compile_model, save
    from neuron_mlir.runtime.files import check_output

    check_framework(args.framework)
    options = compile_options(args)
    if args.print_pipeline and args.batch_size != "auto":
        print(print_pipeline(args.model, options))
        return 0
    notes = flag_notes(args, fast_math(args.fast_math, args.fp32_cast))
    if args.verbose != "ERROR":
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    tried: Sequence[Tried] = ()
    output = args.output or f"{Path(args.model).stem}.neff"
    if Path(output).exists() and Path(args.model).exists() and Path(output).samefile(args.model):
        raise NeuronError(f"the output '{output}' is the model itself", advice="--output OUT.neff")
    check_output(output)
    if args.json is not None:
        check_writable(args.json)
    with watching(args) as watch:

        def say(what: str) -> None:
            if watch is not None:
                watch(what, 0, 1)
            elif args.verbose != "ERROR":
                print(f"{what} ..", file=sys.stderr)

        if args.batch_size == "auto":
            from neuron_mlir.runtime.batch_size import choose_batch

            batch, tried = choose_batch(args.model, options, say)
            options = replace(options, batch_size=batch)
        if args.print_pipeline:
            print(print_pipeline(args.model, options))
            return 0
        try:
            compiled = compile_model(args.model, options, watch)
        except NeuronError as error:
            from neuron_mlir.runtime.batch_size import refuse_batch

            raise refuse_batch(error, args.model, options, say) from None
        _print_phases(compiled.phases, args.verbose)
        packaged = save(compiled, output, watch)
        _print_phases(compiled.phases[-1:], args.verbose)
    summary = summarize(compiled, packaged, output, notes)
    if tried:
        summary["batch_search"] = [asdict(each) for each in tried]
    if args.json is not None:
        write_json(args.json, summary)
    if args.verbose != "ERROR" and args.json != STANDARD_OUTPUT:
        print_summary(summary)
    return 0


def print_pipeline(model: str, options: CompileOptions) -> str:
    """The passes with these options. What `--batch-size` needs of them depends on the batch the model has."""
    from neuron_mlir.runtime.compiler import import_for, load_machine_for

    if options.batch_size is not None:
        options = replace(options, batch=import_for(Path(model), options, load_machine_for(options))[2])
    return options.pipeline().expand()


def _print_phases(phases: Sequence[Phase], level: str) -> None:
    if level not in ("DEBUG", "INFO"):
        return
    for phase in phases:
        print(f"{phase.name:20} {phase.seconds:8.2f} s", file=sys.stderr)
        for name, value in phase.statistics.items() if level == "DEBUG" else ():
            print(f"  {name}: {value}", file=sys.stderr)


@contextmanager
def watching(args: argparse.Namespace) -> Generator[Watcher | None]:
    """What to call as phases begin: a progress bar when standard error is a terminal, else nothing."""
    if args.verbose != "WARN" or not sys.stderr.isatty():
        yield None
        return
    with progress_bar("import", 20, counts=False) as watch:
        yield watch


def summarize(compiled: Compiled, packaged: Packaged, output: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What `--json` writes: the plan, sizes in bytes, and times in seconds."""
    from neuron_mlir.runtime.compiler import count_ops
    from neuron_mlir.runtime.modules import interface_json

    inputs, outputs = interface_json(compiled.module)
    return {
        "output": output,
        "options": compiled.options.to_json(),
        "flags_without_effect": list(notes),
        "inputs": inputs,
        "outputs": outputs,
        **compiled.plan,
        "bytes": {"file": packaged.file_bytes, "program": packaged.program_bytes, "weights": packaged.weight_bytes},
        "ops": count_ops(compiled.module),
        "weights": packaged.weights,
        "seconds": sum(phase.seconds for phase in compiled.phases),
        "cpu_seconds": sum(phase.cpu_seconds for phase in compiled.phases),
        "phases": [
            {
                "name": phase.name,
                "seconds": phase.seconds,
                "cpu_seconds": phase.cpu_seconds,
                "statistics": phase.statistics,
            }
            for phase in compiled.phases
        ],
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The summary for a person."""
    from neuron_mlir.tools._tables import batch_table, print_tables, si, stage_table

    tables = [stage_table(summary)] if summary["stages"] else []
    print_tables([*([batch_table(summary["batch_search"])] if "batch_search" in summary else []), *tables])
    for name, certificate in summary["certificates"].items():
        print(f"{name}: {certificate_text(certificate)}")
    for name, note in summary["notes"].items():
        print(f"{name}: {note}")
    size = summary["bytes"]
    print(
        f"{summary['output']}: {si(size['file'], 'B')} ({summary['ops']} ops in {si(size['program'], 'B')} of text,"
        f" {summary['weights']} weights in {si(size['weights'], 'B')}), {summary['seconds']:.1f} s"
    )


def certificate_text(certificate: dict[str, Any]) -> str:
    """A certificate in a line. Times are those of the cost model, which a pass decides by; the simulator has the last
    word on them.
    """
    from neuron_mlir.tools._tables import seconds

    def value(number: float) -> str:
        return seconds(number / 1e9) if certificate["unit"] == "ps" else f"{number:g} {certificate['unit']}"

    gap = certificate["gap"]
    proof = "proven optimal" if gap == 0 else f"at most {gap:.2%} above the optimum"
    if certificate["unit"] == "ps":
        proof += " of the estimate" if gap else " for the estimate"
    objective, bound = value(certificate["objective"]), value(certificate["lower_bound"])
    return f"{objective}, lower bound {bound}: {proof} ({certificate['method']})"


def run_list_operators(args: argparse.Namespace) -> int:
    """Print the operators, what each becomes, and limits."""
    from neuron_mlir.frontends.onnx import list_operators

    check_framework(args.framework)
    rows = list_operators()
    if args.json is not None:
        check_writable(args.json)
        write_json(
            args.json,
            [{"domain": row.domain, "name": row.name, "becomes": row.becomes, "notes": row.notes} for row in rows],
        )
        if args.json == STANDARD_OUTPUT:
            return 0
    width = max(len(row.name) for row in rows)
    for row in rows:
        notes = f" ({row.notes})" if row.notes else ""
        domain = "" if row.domain == "ai.onnx" else f"{row.domain}::"
        print(f"{domain + row.name:{width}}  {row.becomes}{notes}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool on `argv` (default: the command line) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(join_words(arguments))
    body = run_compile if args.command == "compile" else run_list_operators
    return run_tool(lambda: body(args), show_traceback=args.traceback)


if __name__ == "__main__":
    sys.exit(main())
