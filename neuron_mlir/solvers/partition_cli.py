"""`python -m neuron_mlir.solvers.partition GRAPH.json --devices K`: place a weighted DAG on devices.

Exit codes: 0 a plan, printed as JSON; 1 no plan keeps the capacity, or none was found; 2 the input makes no sense;
130 interrupted, with the best plan so far printed if there was one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NoReturn

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.device_partition import NoPlan, device_loads, read_graph

_QUIET_S = 2.0
"""A search that is done sooner says nothing on its way."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read a graph, place it, print the plan. Returns the exit code."""
    # Blocks are small: more BLAS threads cost more than they give. Read when numpy is first imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    args = _parser().parse_args(arguments)
    started = time.perf_counter()
    try:
        from neuron_mlir.solvers.device_partition_place import DEFAULT_WORK, place

        problem = read_graph(_load(args.graph), args.devices, args.capacity)
        if args.output is not None and not Path(args.output).absolute().parent.is_dir():
            raise NeuronError(f"cannot write {args.output}: there is no such directory")
        watch = Watch(started)
        plan = place(problem, work=args.work or DEFAULT_WORK, report=watch)
    except NoPlan as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    except NeuronError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no plan yet", file=sys.stderr)
        return 130
    answer = {
        "assignment": {str(n.id): device for n, device in zip(problem.nodes, plan.device_of, strict=True)},
        "objective": plan.objective,
        "lower_bound": plan.lower_bound,
        "gap": plan.gap,
        "optimal": plan.optimal,
        "method": plan.certificate.method,
        "seconds": round(time.perf_counter() - started, 3),
        "loads": [float(load) for load in device_loads(problem, plan.device_of)],
    }
    watch.end()
    text = json.dumps(answer, indent=1) + "\n"
    if args.output is None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has left; nothing more is written, at exit neither.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        try:
            Path(args.output).write_text(text, encoding="utf-8")
        except OSError as error:
            print(f"error: cannot write {args.output}: {error.strerror}", file=sys.stderr)
            return 2
    return 130 if plan.interrupted else 0


class Watch:
    """Tells of a long search on standard error."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.told = 0.0
        self.last: tuple[float, float] | None = None

    def __call__(self, best: float, bound: float) -> None:
        self.last = best, bound
        passed = time.perf_counter() - self.started
        if passed >= _QUIET_S and passed - self.told >= 0.5:
            self._tell(passed)

    def end(self) -> None:
        """Tell where a search that was told of ended."""
        if self.told:
            self._tell(time.perf_counter() - self.started)

    def _tell(self, passed: float) -> None:
        self.told = passed
        if self.last is not None:
            best, bound = self.last
            gap = (best - bound) / best if best else 0.0
            print(f"{passed:6.1f} s  best {best:.6g}  bound {bound:.6g}  gap {gap:.2%}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m neuron_mlir.solvers.partition",
        description="Place the nodes of a weighted DAG on devices so that the largest load is as small as possible.",
        epilog='GRAPH.json: {"nodes": [{"id": 0, "cost": 1.5, "bytes": 4096, "transfer": 0.2, "color": null}], '
        '"edges": [[0, 1]]}. See docs/solvers.md.',
    )
    parser.add_argument("graph", metavar="GRAPH.json", help="the graph; - reads standard input")
    parser.add_argument("--devices", type=_count, required=True, metavar="K", help="how many devices")
    parser.add_argument("--capacity", type=_amount, metavar="BYTES", help="what a device holds (default: no limit)")
    parser.add_argument(
        "--work", type=_work, metavar="N", help="how long to search, in about CPU seconds, counted (default: 25)"
    )
    parser.add_argument("-o", dest="output", metavar="FILE", help="write the plan there (default: standard output)")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least one device is needed")
    return value


def _amount(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None
    if not value.is_finite() or value < 0 or value.adjusted() > 60:
        raise argparse.ArgumentTypeError("a capacity is a number of at least 0")
    return value


def _work(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("work is a number above 0")
    return value


def _load(path: str) -> object:
    """The file's JSON, numbers as they are written. Raises `NeuronError`."""
    where = "standard input" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        return json.loads(text.removeprefix("\ufeff"), parse_float=Decimal, parse_constant=_no_constant)
    except OSError as error:
        raise NeuronError(f"cannot read {where}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise NeuronError(f"{where} is no text in UTF-8") from None
    except RecursionError:
        raise NeuronError(f"{where} is nested too deep") from None
    except ValueError as error:
        raise NeuronError(f"{where} is no JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
