"""`neuron-profile`: where the time and the memory of a compiled program go, as a page and as a Perfetto trace.

See `docs/profile.md`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_mlir.errors import NeuronError
from neuron_mlir.tools._files import STANDARD_OUTPUT, check_writable, write_text
from neuron_mlir.tools._report import run_command
from neuron_mlir.tools.neuron_run import busy, has_clock, load

if TYPE_CHECKING:
    from rich.table import Table

    from neuron_mlir.runtime.profile.capture import Capture

LAYERS_SHOWN = 10
STALLS_SHOWN = 6


def make_parser() -> argparse.ArgumentParser:
    """The command line of the tool."""
    parser = argparse.ArgumentParser(
        prog="neuron-profile",
        description="Show where the time and memory of a compiled program go: an HTML page, a Perfetto trace, JSON.",
    )
    parser.add_argument("program", metavar="OUT.neff|FILE.mlir", help="what to profile, in its final form")
    outputs = parser.add_argument_group(
        "outputs; without any of them, FILE.html and FILE.trace.json beside the program"
    )
    outputs.add_argument("--html", metavar="FILE.html", help="write the report as one page that loads nothing")
    outputs.add_argument(
        "--trace", metavar="FILE.json[.gz]", help="write a trace for ui.perfetto.dev or chrome://tracing"
    )
    outputs.add_argument("--json", metavar="FILE", help="write what the page is made from ('-': standard output)")
    run = parser.add_argument_group("the run")
    run.add_argument("--requests", type=int, metavar="R", help="requests to run (default: enough to settle)")
    run.add_argument(
        "--first", type=int, metavar="R", help="request to show from (default: in the steady state; 0: the first)"
    )
    run.add_argument("--show", type=int, metavar="N", help="requests to show (default 4, in whole turns of copies)")
    run.add_argument(
        "--in-flight",
        type=int,
        metavar="N",
        help="requests that the host has under way at most; default: as many as the program takes in",
    )
    run.add_argument(
        "--max-events", type=int, metavar="N", help="slices in the trace, about (default 100000); beyond, less is shown"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="print nothing but errors")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    return parser


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; the exit code."""
    from neuron_mlir.runtime.profile.capture import capture
    from neuron_mlir.runtime.profile.data import profile_data
    from neuron_mlir.simulator.program import read_program

    _check_arguments(args)
    with busy(f"reading {args.program}"):
        loaded = load(args.program)
        if not has_clock(loaded.module):
            raise NeuronError(
                "only the final form has a clock; this program has values only",
                advice="neuron-cc compile, or core-schedule",
            )
        program = read_program(loaded.module)
    with busy("running the program, and writing down the requests to show"):
        found = capture(program, args.requests, args.first, args.show, args.in_flight)
    with busy("adding up"):
        data = profile_data(found, args.program, loaded.metadata)
    written = _write(args, found, data)
    if not args.quiet and args.json != STANDARD_OUTPUT:
        _print(data, written)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.html is None and args.trace is None and args.json is None:
        stem = Path(args.program).with_suffix("")
        args.html, args.trace = f"{stem}.html", f"{stem}.trace.json"
    for flag, value, least in (
        ("--requests", args.requests, 1),
        ("--first", args.first, 0),
        ("--show", args.show, 1),
        ("--in-flight", args.in_flight, 1),
        ("--max-events", args.max_events, 1),
    ):
        if value is not None and value < least:
            raise NeuronError(f"{flag} must be at least {least}", needed=f"{least} or more", available=value)
    if args.requests is not None and args.first is not None and args.first >= args.requests:
        raise NeuronError(
            "--first must be one of the requests", needed=f"less than {args.requests}", available=args.first
        )
    for path in (args.html, args.trace, args.json):
        if path is not None:
            check_writable(path)


def _write(args: argparse.Namespace, found: Capture, data: dict[str, Any]) -> list[str]:
    """Write what was asked for; the files."""
    written: list[str] = []
    if args.html is not None:
        from neuron_mlir.runtime.profile.page import page

        write_text(args.html, page(data))
        written.append(args.html)
    if args.trace is not None:
        with busy(f"writing {args.trace}"):
            _write_trace(args.trace, found, args.max_events)
        written.append(args.trace)
    if args.json is not None:
        text = json.dumps(data, separators=(",", ":")) + "\n"
        if args.json == STANDARD_OUTPUT:
            sys.stdout.write(text)
        else:
            write_text(args.json, text)
            written.append(args.json)
    return written


def _write_trace(path: str, found: Capture, limit: int | None) -> None:
    from neuron_mlir.runtime.files import replacing
    from neuron_mlir.runtime.profile.perfetto import EVENTS_MAX, trace_events

    events = trace_events(found, EVENTS_MAX if limit is None else limit)
    text = json.dumps(events, separators=(",", ":"))
    if not path.endswith(".gz"):
        write_text(path, text)
        return
    with replacing(path) as stream:
        # Without a time, so that the same trace gives the same bytes.
        stream.write(gzip.compress(text.encode(), mtime=0))


def _print(data: dict[str, Any], written: Sequence[str]) -> None:
    from neuron_mlir.tools._tables import print_tables, run_tables

    print_tables([run_tables(data["report"])[0], _layer_table(data["layers"]), _stall_table(data)])
    for path in written:
        print(f"wrote {path}")


def _layer_table(layers: Sequence[dict[str, Any]]) -> Table:
    from neuron_mlir.tools._tables import make_table, seconds, si

    longest = sorted(layers, key=lambda layer: -layer["time_ps"])[:LAYERS_SHOWN]
    columns = ("layer", "stage", ">time", ">share", "bound by", ">rate", ">of its roof")
    table = make_table(f"Layers that take longest ({len(longest)} of {len(layers)})", columns)
    for layer in longest:
        roof = layer["roof_ops_per_s"]
        table.add_row(
            layer["name"],
            ", ".join(layer["stages"]),
            seconds(layer["time_ps"] / 1e9),
            f"{layer['share']:.1%}",
            layer["binding"],
            si(layer["ops_per_s"], "op/s"),
            f"{layer['ops_per_s'] / roof:.0%}" if roof else "",
        )
    return table


def _stall_table(data: dict[str, Any]) -> Table:
    from neuron_mlir.tools._tables import make_table, seconds

    length = data["window"]["end_ps"] - data["window"]["start_ps"]
    table = make_table(
        f"Engines that stood still, in {seconds(length / 1e9)}", ("engine", "waiting for", ">time", ">share")
    )
    engines = [stall for stall in data["stalls"] if not stall["stream"].split(" ")[-1].startswith("dma")]
    for stall in engines[:STALLS_SHOWN]:
        table.add_row(
            stall["stream"], stall["for"], seconds(stall["time_ps"] / 1e9), f"{stall['time_ps'] / length:.1%}"
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool on `argv` (default: the command line) and return its exit code."""
    return run_command(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
