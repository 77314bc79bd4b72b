"""`neuron-bench`: how a compiled program serves: throughput, latency, utilisation and cost under load.

See `docs/serving.md`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neuron_mlir.errors import NeuronError
from neuron_mlir.tools._files import STANDARD_OUTPUT, check_writable, write_json, write_text
from neuron_mlir.tools._progress import progress_bar
from neuron_mlir.tools._report import run_command
from neuron_mlir.tools.neuron_run import busy, has_clock, load

if TYPE_CHECKING:
    from rich.table import Table
    from xdsl.dialects.builtin import ModuleOp

    from neuron_mlir.runtime.serving import Arrivals, Policy, Served

INFERENCES = 400
INFERENCES_MAX = 1_000_000
PS_PER_MS = 10**9


def make_parser() -> argparse.ArgumentParser:
    """The command line of the tool."""
    parser = argparse.ArgumentParser(
        prog="neuron-bench",
        description="Serve a compiled program on the simulated machine, and tell throughput, latency, use and cost.",
    )
    parser.add_argument("program", metavar="OUT.neff|FILE.mlir", help="what to serve, in its final form")
    loads = parser.add_argument_group("the load; several numbers are several runs (default: 1, 2, 4, .. clients)")
    kind = loads.add_mutually_exclusive_group()
    kind.add_argument("--clients", metavar="N,N,..", help="closed loop: clients that ask again when they are answered")
    kind.add_argument("--rate", metavar="R,R,..", help="open loop: inferences per second, in random (Poisson) arrivals")
    loads.add_argument(
        "--inferences", type=int, metavar="N", default=INFERENCES, help="to serve in each run (default %(default)s)"
    )
    loads.add_argument("--warm-up", type=int, metavar="N", help="the first that are not measured (default: a tenth)")
    loads.add_argument("--think-ms", type=float, metavar="T", default=0.0, help="a client waits before it asks again")
    loads.add_argument("--seed", type=int, metavar="S", default=0, help="of arrivals (default 0)")
    host = parser.add_argument_group("the host")
    host.add_argument("--in-flight", type=int, metavar="N", help="requests under way at most (default: cores + 3)")
    host.add_argument("--threads", type=int, metavar="N", help="threads of the host, each with one request at a time")
    host.add_argument(
        "--window-ms", type=float, metavar="T", default=0.0, help="how long an inference waits to fill a batch (0)"
    )
    host.add_argument("--timeout-ms", type=float, metavar="T", help="how long a client waits (default: for ever)")
    host.add_argument(
        "--batch", type=int, metavar="B", help="inferences in a request (default: the batch of the program)"
    )
    host.add_argument(
        "--copies", type=int, metavar="N", default=1, help="of the program, on cores of their own (default 1)"
    )
    reports = parser.add_argument_group("reports")
    reports.add_argument("--json", metavar="FILE", help="write all there is as JSON ('-': standard output, no table)")
    reports.add_argument("--plot", metavar="FILE.svg", help="draw latency over throughput")
    reports.add_argument("--log", metavar="FILE.csv", help="write when each inference arrived, was sent and left")
    reports.add_argument("--quiet", "-q", action="store_true", help="print nothing but errors")
    reports.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    return parser


@dataclass(frozen=True)
class Load:
    """A load to put the program under: so many clients, or so many inferences per second."""

    clients: int | None
    rate_per_s: float | None

    def __str__(self) -> str:
        if self.clients is not None:
            return f"{self.clients} client{'' if self.clients == 1 else 's'}"
        return f"{self.rate_per_s:g}/s"

    def arrivals(self, args: argparse.Namespace) -> Arrivals:
        """Who asks, and when."""
        from neuron_mlir.runtime.serving import Closed, Poisson

        if self.clients is not None:
            return Closed(self.clients, args.inferences, round(args.think_ms * PS_PER_MS))
        assert self.rate_per_s is not None
        return Poisson(self.rate_per_s, args.inferences, args.seed)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; the exit code."""
    from neuron_mlir.runtime.serving import Machine, serve
    from neuron_mlir.runtime.serving_report import report_load
    from neuron_mlir.simulator.program import read_program

    _check_arguments(args)
    with busy(f"reading {args.program}"):
        loaded = load(args.program)
        module = loaded.module
        if not has_clock(module):
            raise NeuronError(
                "only the final form has a clock; this program has values only",
                advice="neuron-cc compile, or core-schedule",
            )
    batch = args.batch or batch_of(module, loaded.metadata)
    warm_up = args.inferences // 10 if args.warm_up is None else args.warm_up
    runs: list[dict[str, Any]] = []
    logs: list[str] = ["load,inference,client,arrived_ps,sent_ps,ended_ps,state"]
    program = read_program(module)
    policy = make_policy(args, batch, len(program.cores) * args.copies)
    loads = make_loads(args, policy)
    with watching(args.quiet or args.json == STANDARD_OUTPUT) as watch:
        for number, each in enumerate(loads):
            watch(str(each), number, len(loads), 0, args.inferences)
            # A machine of its own for each load, so that none depends on which ones came before.
            machine = Machine([read_program(module) for _ in range(args.copies)])

            def progress(gone: int, name: str = str(each), place: int = number) -> None:
                watch(name, place, len(loads), gone, args.inferences)

            served = serve(machine, each.arrivals(args), policy, progress)
            report = report_load(served, machine, min(warm_up, args.inferences - 1))
            runs.append({"clients": each.clients, "rate_per_s": each.rate_per_s, **report.to_json()})
            logs += log_lines(str(each), served)
    result = {
        "file": args.program,
        "program": program.name,
        "machine": program.machine.name,
        "cores": len(program.cores) * args.copies,
        "copies": args.copies,
        "policy": {
            "batch": batch,
            "in_flight": policy.in_flight,
            "window_ms": args.window_ms,
            "timeout_ms": args.timeout_ms,
            "think_ms": args.think_ms,
            "seed": args.seed,
            "warm_up": warm_up,
        },
        "runs": runs,
    }
    _write(args, result, logs)
    return 0


def make_policy(args: argparse.Namespace, batch: int, cores: int) -> Policy:
    """What the host does. A thread waits for the answer to its request, so that no more are under way than threads."""
    from neuron_mlir.runtime.serving import Policy

    in_flight = cores + 3 if args.in_flight is None else args.in_flight
    return Policy(
        batch,
        in_flight if args.threads is None else min(in_flight, args.threads),
        round(args.window_ms * PS_PER_MS),
        None if args.timeout_ms is None else round(args.timeout_ms * PS_PER_MS),
    )


def make_loads(args: argparse.Namespace, policy: Policy) -> list[Load]:
    """The loads that were asked for; by default clients from one to twice as many as are under way at most."""
    if args.rate is not None:
        return [Load(None, rate) for rate in parse_rates(args.rate)]
    if args.clients is not None:
        return [Load(clients, None) for clients in parse_clients(args.clients)]
    most = 2 * policy.batch * policy.in_flight
    return [Load(2**power, None) for power in range(math.ceil(math.log2(most)) + 1)]


def parse_clients(text: str) -> list[int]:
    """`1,2,4`. Raises `NeuronError` for anything else."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1 or max(numbers) > INFERENCES_MAX:
        raise NeuronError(
            "--clients takes numbers of clients", needed=f"1 to {INFERENCES_MAX}, such as 1,2,4", available=text
        )
    return numbers


def parse_rates(text: str) -> list[float]:
    """`100,250.5`. Raises `NeuronError` for anything else."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [0.0]
    if not all(0 < rate < 1e12 for rate in rates):
        raise NeuronError("--rate takes inferences per second", needed="such as 100 or 50,100,200", available=text)
    return rates


def batch_of(module: ModuleOp, metadata: dict[str, Any] | None) -> int:
    """Inferences in a request: what the artifact records, else the first dimension of the inputs of a compiled model,
    where they have the same. A module from text does not say what its dimensions are: 1.
    """
    from neuron_mlir.runtime.batching import Rows
    from neuron_mlir.simulator.interface import input_types, output_types

    known = metadata or {}
    if known.get("dynamic_batch") is not None:
        inputs, outputs = ({port.name: port.shape for port in f(module)} for f in (input_types, output_types))
        return Rows.read(known["dynamic_batch"], inputs, outputs).size
    options = known.get("options")
    if not isinstance(options, dict):
        return 1
    size = cast("dict[str, Any]", options).get("batch_size")
    if isinstance(size, int) and size > 0:
        return size
    sizes = {port.shape[0] if port.shape else 1 for port in input_types(module)}
    return sizes.pop() if len(sizes) == 1 else 1


def log_lines(name: str, served: Served) -> list[str]:
    """A line for each inference; -1 for a time that never came."""
    return [f"{name},{i.number},{i.client},{i.arrived},{i.sent},{i.ended},{i.state}" for i in served.inferences]


def _check_arguments(args: argparse.Namespace) -> None:
    for flag, value in (
        ("--in-flight", args.in_flight),
        ("--threads", args.threads),
        ("--batch", args.batch),
        ("--copies", args.copies),
    ):
        if value is not None and value < 1:
            raise NeuronError(f"{flag} must be at least 1", needed="1 or more", available=value)
    if not 1 <= args.inferences <= INFERENCES_MAX:
        raise NeuronError(
            f"--inferences must be 1 to {INFERENCES_MAX}", needed=f"1 to {INFERENCES_MAX}", available=args.inferences
        )
    if args.warm_up is not None and not 0 <= args.warm_up < args.inferences:
        raise NeuronError(
            "--warm-up must leave something to measure",
            needed=f"0 to {args.inferences - 1}",
            available=args.warm_up,
        )
    for flag, value in (("--think-ms", args.think_ms), ("--window-ms", args.window_ms)):
        if not 0 <= value < 1e9:
            raise NeuronError(f"{flag} must be a time", needed="0 or more milliseconds", available=value)
    if args.timeout_ms is not None and not 0 < args.timeout_ms < 1e9:
        raise NeuronError("--timeout-ms must be positive", needed="milliseconds", available=args.timeout_ms)
    if args.clients is not None:
        parse_clients(args.clients)
    if args.rate is not None:
        parse_rates(args.rate)
    for path in (args.json, args.plot, args.log):
        if path is not None:
            check_writable(path)


Watch = Callable[[str, int, int, int, int], None]


@contextmanager
def watching(quiet: bool) -> Generator[Watch]:
    """Progress on standard error: a bar on a terminal, else a line as each run begins."""
    if quiet:

        def nothing(name: str, number: int, runs: int, gone: int, total: int) -> None:
            pass

        yield nothing
        return
    if not sys.stderr.isatty():
        seen: set[int] = set()

        def lines(name: str, number: int, runs: int, gone: int, total: int) -> None:
            if number not in seen:
                seen.add(number)
                print(f"run {number + 1} of {runs}: {name}, {total} inferences", file=sys.stderr)

        yield lines
        return
    with progress_bar("serving", 28) as update:

        def show(name: str, number: int, runs: int, gone: int, total: int) -> None:
            update(f"run {number + 1} of {runs}: {name}", gone, total)

        yield show


def _write(args: argparse.Namespace, result: dict[str, Any], logs: Sequence[str]) -> None:
    if args.json is not None:
        write_json(args.json, result)
    if args.plot is not None:
        write_text(args.plot, plot(result))
    if args.log is not None:
        write_text(args.log, "\n".join(logs) + "\n")
    if not args.quiet and args.json != STANDARD_OUTPUT:
        from neuron_mlir.tools._tables import print_tables

        print_tables([load_table(result), use_table(result)])


def load_table(result: dict[str, Any]) -> Table:
    """A row for each run."""
    from neuron_mlir.tools._tables import make_table, seconds

    policy = result["policy"]
    title = (
        f"@{result['program']} on {result['cores']} cores of {result['machine']}, batch {policy['batch']}, "
        f"{policy['in_flight']} in flight" + (f", window {policy['window_ms']:g} ms" if policy["window_ms"] else "")
    )
    columns = ("load", ">inf/s", ">p50", ">p90", ">p99", ">queue", ">in system", ">batch", ">timed out", ">$/million")
    table = make_table(title, columns)
    for run_ in result["runs"]:
        latency, cost = run_["latency_ms"], run_["cost"]
        million = None if cost is None else cost["dollars_per_million"]
        table.add_row(
            str(Load(run_["clients"], run_["rate_per_s"])),
            f"{run_['throughput_per_s']:,.1f}",
            *(seconds(latency[key]) for key in ("p50", "p90", "p99")),
            seconds(run_["queue_ms"]["mean"]) if run_["queue_ms"]["mean"] else "0",
            f"{run_['little']['system']['number']:.2f}",
            f"{run_['mean_batch']:.2f}",
            str(run_["given_up"] + run_["late"]) if run_["given_up"] or run_["late"] else "",
            "" if million is None else f"{million:.3g}",
        )
    rented = next((run_["cost"] for run_ in result["runs"] if run_["cost"]), None)
    if rented is not None:
        table.caption = f"on {rented['instance']} at ${rented['dollars_per_hour']:g} an hour, used for nothing else"
        table.caption_justify = "left"
    return table


def use_table(result: dict[str, Any]) -> Table:
    """Share of the time at work of engines and servers, in the run with the highest throughput."""
    from neuron_mlir.tools._tables import engine_table

    best = max(result["runs"], key=lambda run_: run_["throughput_per_s"])
    table = engine_table(best["engine_utilization"])
    table.title = f"Share of the time at work with {Load(best['clients'], best['rate_per_s'])}"
    shared = ", ".join(f"{name} {share:.1%}" for name, share in best["resource_utilization"].items())
    table.caption, table.caption_justify = shared, "left"
    return table


def plot(result: dict[str, Any]) -> str:
    """Latency over throughput as SVG: the median blue, the 99th percentile red."""
    from neuron_mlir.tools._svg import Dot, scatter

    dots: list[Dot] = []
    lines: list[tuple[str, list[tuple[float, float]]]] = []
    runs = [run_ for run_ in result["runs"] if run_["throughput_per_s"] > 0 and run_["latency_ms"]["p50"] > 0]
    if not runs:
        raise NeuronError("there is nothing to draw: no inference was answered", advice="a longer --timeout-ms")
    for key, name, colour in (("p50", "median", "#1f6feb"), ("p99", "99th percentile", "#d1242f")):
        points: list[tuple[float, float]] = []
        for run_ in runs:
            load_, point = (
                Load(run_["clients"], run_["rate_per_s"]),
                (run_["throughput_per_s"], run_["latency_ms"][key]),
            )
            points.append(point)
            label = str(load_) if key == "p99" else ""
            dots.append(Dot(*point, f"{load_}: {name} {point[1]:.4g} ms at {point[0]:.5g}/s", 4, colour, label))
        lines.append((colour, points))
    title = f"{Path(result['file']).name}: latency under load, median (blue) and 99th percentile (red)"
    return scatter(title, "inferences per second", "latency, ms", dots, lines=lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool on `argv` (default: the command line) and return its exit code."""
    return run_command(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
