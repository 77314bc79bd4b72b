"""`neuron-explore`: find the batch, the pipeline and the number of copies to run a model with.

See `docs/explore.md`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.flags import CASTS, read_io_config
from neuron_mlir.tools._files import STANDARD_OUTPUT, check_writable, write_json, write_text
from neuron_mlir.tools._progress import progress_bar
from neuron_mlir.tools._report import run_command

if TYPE_CHECKING:
    from rich.table import Table

    from neuron_mlir.runtime.compiler import CompileOptions
    from neuron_mlir.runtime.explore import Exploration, Simulated, Watcher
    from neuron_mlir.runtime.plans import Plan

BATCHES = (1, 2, 4, 6, 8)
PREFER = ("cost", "throughput", "latency")


def make_parser() -> argparse.ArgumentParser:
    """The command line of the tool."""
    parser = argparse.ArgumentParser(
        prog="neuron-explore",
        description="Find how to run a model: batch, stages, shards, copies; what to rent for it, and what it costs.",
    )
    parser.add_argument("model", metavar="MODEL.onnx", help="the model")
    search = parser.add_argument_group("the search")
    search.add_argument("--cores", metavar="N|N-M", default="1-16", help="how many cores may work (default 1-16)")
    search.add_argument(
        "--batches",
        metavar="B,B,..",
        default=",".join(map(str, BATCHES)),
        help="inferences per request to try (default %(default)s)",
    )
    search.add_argument(
        "--shards",
        metavar="S,S,..",
        default="1,2",
        help="cores per stage to spread the slowest stages over (default %(default)s; 1: no stage is split)",
    )
    search.add_argument("--latency-ms", type=float, metavar="L", help="plans that answer later than this do not count")
    search.add_argument("--prefer", choices=PREFER, default="cost", help="what to choose a plan by (default cost)")
    search.add_argument(
        "--simulate", type=int, metavar="N", default=8, help="how many of the best plans to simulate (default 8)"
    )
    compilation = parser.add_argument_group("compilation, as for neuron-cc")
    compilation.add_argument("--fp32-cast", choices=CASTS, default="all", help="what becomes 16 bits wide")
    compilation.add_argument("--machine", metavar="NAME|FILE.toml", default="inferentia1", help="the machine")
    compilation.add_argument("--io-config", metavar="FILE|JSON", help="shapes of inputs that the model leaves open")
    where = parser.add_argument_group("where it runs")
    where.add_argument("--jobs", type=int, metavar="N", help="processes on this machine (default: one per core)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster instead, such as tcp://host:8786")
    reports = parser.add_argument_group("reports")
    reports.add_argument("--plot", metavar="FILE.svg", help="draw throughput over latency")
    reports.add_argument("--script", metavar="FILE.sh", help="write the command that compiles the chosen plan")
    reports.add_argument("--json", metavar="FILE", help="write all there is as JSON ('-': standard output, no table)")
    reports.add_argument("--quiet", "-q", action="store_true", help="print nothing but errors")
    reports.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    return parser


def parse_cores(text: str) -> tuple[int, int]:
    """`4` or `1-16`. Raises `NeuronError` for anything else."""
    first, dash, last = text.partition("-")
    try:
        low = int(first)
        high = int(last) if dash else low
    except ValueError:
        low = high = 0
    if not 1 <= low <= high:
        raise NeuronError("--cores takes a number or a range of numbers", needed="such as 4 or 1-16", available=text)
    return low, high


def parse_numbers(flag: str, text: str) -> tuple[int, ...]:
    """`1,2,4`. Raises `NeuronError` for anything else."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise NeuronError(f"{flag} takes numbers of at least 1", needed="such as 1,2,4", available=text)
    return numbers


def explore_options(args: argparse.Namespace) -> CompileOptions:
    """What every compilation of the search has in common. Raises `NeuronError` for values out of range."""
    from neuron_mlir.runtime.compiler import CompileOptions

    for name, value in (("--simulate", args.simulate), ("--jobs", args.jobs)):
        if value is not None and value < 1:
            raise NeuronError(f"{name} must be at least 1", needed="1 or more", available=value)
    if args.latency_ms is not None and not args.latency_ms > 0:
        raise NeuronError("--latency-ms must be positive", available=args.latency_ms)
    return CompileOptions(
        fp32_cast=args.fp32_cast,
        machine=args.machine,
        io_config=None if args.io_config is None else read_io_config(args.io_config),
    )


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; the exit code."""
    from neuron_mlir.runtime.explore import compile_command, explore, to_json
    from neuron_mlir.runtime.workers import open_workers

    options, cores = explore_options(args), parse_cores(args.cores)
    batches, shards = parse_numbers("--batches", args.batches), parse_numbers("--shards", args.shards)
    for path in (args.plot, args.script, args.json):
        if path is not None:
            check_writable(path)
    # A cluster's workers have other working directories.
    model = str(Path(args.model).resolve()) if args.scheduler else args.model
    with open_workers(args.jobs, args.scheduler) as workers, watching(args.quiet) as watch:
        found = explore(
            model,
            options,
            batches,
            cores,
            workers,
            shards=shards,
            latency_ms=args.latency_ms,
            simulations=args.simulate,
            watch=watch,
        )
    late: NeuronError | None = None
    best = None
    try:
        best = found.best(args.prefer)
    except NeuronError as error:
        late = error
    command = None if best is None else shlex.join(compile_command(args.model, best.plan, options))
    if args.json is not None:
        write_json(args.json, {**to_json(found, best), "command": command})
    if args.plot is not None and found.estimates:
        write_text(args.plot, plot(found, best))
    if not args.quiet and args.json != STANDARD_OUTPUT:
        report(found, best, args.prefer, command)
    if late is not None:
        raise late
    if args.script is not None:
        write_text(args.script, f"#!/bin/sh\n{command}\n")
    return 0


@contextmanager
def watching(quiet: bool) -> Generator[Watcher | None]:
    """Progress on standard error: a bar on a terminal, else a line as each step begins and ends."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():

        def lines(phase: str, done: int, total: int, last: str) -> None:
            if done in (0, total):
                print(f"{phase}: {done} of {total}", file=sys.stderr)

        yield lines
        return
    with progress_bar("import", 40) as update:

        def show(phase: str, done: int, total: int, last: str) -> None:
            update(f"{phase} {last}".strip(), done, total)

        yield show


# What it says ---------------------------------------------------------------------------------------------------------


def report(found: Exploration, best: Simulated | None, prefer: str, command: str | None) -> None:
    """The front, the choice, and the command, for a person."""
    from neuron_mlir.tools._tables import print_tables

    if found.simulated:
        print_tables([front_table(found, best)])
    for reason, plans in refusals(found).items():
        shown = ", ".join(plans[:4]) + (f" and {len(plans) - 4} more" if len(plans) > 4 else "")
        print(f"not possible ({shown}): {reason}")
    if best is None:
        return
    rating, plan = best.rating, best.plan
    print(
        f"best by {prefer}: {plan}: {rating.throughput_per_s:,.0f} inferences/s, ${rating.dollars_per_million:.3g} per"
        f" million on {rating.instance} ({len(found.estimates)} plans estimated, {len(found.simulated)} simulated)"
    )
    if "flops" in best.report and "weight_bytes" in best.report:
        from neuron_mlir.runtime.plans import aws_batch

        rule = aws_batch(found.machine, best.report["flops"] // plan.batch, best.report["weight_bytes"])
        print(f"AWS's rule of thumb for the batch: {rule}")
    print(command)


def refusals(found: Exploration) -> dict[str, list[str]]:
    """Reasons, and the plans that each keeps from running."""
    by_reason: dict[str, list[str]] = {}
    for each in found.refused:
        if each.width is not None and each.copies is None:
            continue  # a split that gains nothing, or cannot be: the stages whole are in the table
        what = f"batch {each.batch}" + ("" if each.stages is None else f" on {each.stages}")
        by_reason.setdefault(each.reason, []).append(what)
    return by_reason


def front_table(found: Exploration, best: Simulated | None) -> Table:
    """The simulated plans, the front among them marked."""
    from neuron_mlir.tools._tables import make_table, seconds

    table = make_table(
        f"Plans for {Path(found.model).name} on {found.machine.name}: those that no estimate beats, simulated",
        ("", ">batch", ">stages", ">cores", ">copies", ">inf/s", ">estimate", ">p99", ">$/million", "rent", "bound"),
    )
    front = {each.plan for each in found.front}
    for each in found.simulated:
        rating, plan = each.rating, each.plan
        mark = "best" if best is not None and plan == best.plan else "front" if plan in front else ""
        reached = rating.throughput_per_s / plan.batch / each.report["bound"]["throughput_per_s"]
        table.add_row(
            mark,
            str(plan.batch),
            str(plan.stages),
            str(plan.width),
            str(plan.copies),
            f"{rating.throughput_per_s:,.0f}",
            f"{each.estimate.throughput_per_s:,.0f}",
            seconds(rating.latency_ms),
            f"{rating.dollars_per_million:.3g}",
            rating.instance,
            f"{each.report['bound']['binding']} {reached:.0%}",
        )
    return table


def plot(found: Exploration, best: Simulated | None) -> str:
    """Throughput over latency as SVG: estimates small and grey, simulated plans blue, the choice red."""
    from neuron_mlir.tools._svg import Dot, scatter

    dots = [
        Dot(
            rating.latency_ms,
            rating.throughput_per_s,
            f"{plan}: ${rating.dollars_per_million:.3g} per million, estimate",
        )
        for plan, rating in found.estimates
    ]
    for each in found.simulated:
        chosen = best is not None and each.plan == best.plan
        rating = each.rating
        dots.append(
            Dot(
                rating.latency_ms,
                rating.throughput_per_s,
                f"{each.plan}: ${rating.dollars_per_million:.3g} per million on {rating.instance}",
                radius=6 if chosen else 4.5,
                color="#d1242f" if chosen else "#1f6feb",
                label=f"{_short(each.plan)}, ${rating.dollars_per_million:.3g}",
            )
        )
    line = [(each.rating.latency_ms, each.rating.throughput_per_s) for each in found.front]
    title = f"{Path(found.model).name}: batch x stages (cores) x copies, dollars per million inferences"
    return scatter(title, "latency when saturated, ms", "inferences per second", dots, line)


def _short(plan: Plan) -> str:
    split = f" ({plan.width})" if plan.width > plan.stages else ""
    return f"{plan.batch} x {plan.stages}{split} x {plan.copies}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool on `argv` (default: the command line) and return its exit code."""
    return run_command(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
