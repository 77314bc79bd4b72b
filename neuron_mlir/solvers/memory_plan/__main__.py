"""`python -m neuron_mlir.solvers.memory_plan FILE.csv --capacity N`: offsets for an instance in the public CSV form.

Exit codes: 0 a plan within the capacity, on stdout or in the file of `-o`; 1 none was found, and stderr says whether
there is none or the work was up; 2 the input makes no sense; 130 interrupted, after the best plan so far.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.memory_plan.csv_form import Instance, read_instance, write_plan
from neuron_mlir.solvers.memory_plan.exact import DEFAULT_WORK
from neuron_mlir.solvers.memory_plan.model import Plan
from neuron_mlir.solvers.memory_plan.planner import plan

_QUIET_S = 2.0
"""A search that is done sooner says nothing on its way."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read an instance, plan it, print the plan. Returns the exit code."""
    args = _parser().parse_args(arguments)
    started = time.perf_counter()
    try:
        if args.capacity is not None and args.capacity < 0:
            raise NeuronError(f"--capacity {args.capacity} is negative")
        if args.work < 1:
            raise NeuronError(f"--work {args.work} is less than 1")
        instance = read_instance(_load(args.file), args.file)
        if args.output and not Path(args.output).resolve().parent.is_dir():
            raise NeuronError("the directory of the output does not exist", location=args.output)
        watch = _Watch(started)
        with watch.until_interrupted():
            answer = plan(instance.buffers, args.capacity, work=args.work * 1_000_000, report=watch)
        watch.end()
        found = args.capacity is None or answer.peak <= args.capacity
        text = (
            _as_json(instance, answer, args.capacity, time.perf_counter() - started)
            if args.json
            else write_plan(instance, answer.offsets)
        )
        if found and args.output:
            _save(Path(args.output), text)
        elif found or args.json:
            # Without a plan, the JSON says so.
            sys.stdout.write(text)
            sys.stdout.flush()
    except NeuronError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of stdout has left; nothing more is written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted: no plan", file=sys.stderr)
        return 130
    if watch.interrupted:
        print(f"interrupted: {_so_far(answer, args.capacity)}", file=sys.stderr)
        return 130
    if args.capacity is not None and not found:
        print(f"error: {_why_not(answer, args.capacity, args.work)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m neuron_mlir.solvers.memory_plan",
        description="Offsets for buffers with live ranges, so that none alive together overlap.",
        epilog="Exit code 1: no plan, and stderr says whether there is none or the work was up. "
        "Check a plan with python -m neuron_mlir.solvers.memory_check.",
    )
    parser.add_argument("file", help="CSV with the columns id,lower,upper,size (upper not included); - is stdin")
    parser.add_argument("--capacity", type=int, help="bytes there are; without it, the peak is minimised")
    parser.add_argument("-o", "--output", help="write the plan there; nothing is written without one")
    parser.add_argument("--json", action="store_true", help="peak, bound, method and offsets as JSON")
    parser.add_argument(
        "--work",
        type=int,
        default=DEFAULT_WORK // 1_000_000,
        help="million steps of the exact search, some 10 a second (default: %(default)s)",
    )
    return parser


def _load(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise NeuronError(f"cannot read the file: {error.strerror}", location=name) from None
    except UnicodeDecodeError:
        raise NeuronError("the file is not text", location=name) from None


def _save(path: Path, text: str) -> None:
    """Write all of it or nothing. What is no regular file, such as `/dev/null` or a pipe, is written and stays."""
    temporary: str | None = None
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        path = path.resolve()
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            temporary = file.name
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise NeuronError(f"cannot write the plan: {error.strerror}", location=str(path)) from None
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _as_json(instance: Instance, answer: Plan, capacity: int | None, seconds: float) -> str:
    found = capacity is None or answer.peak <= capacity
    certificate = None if answer.lower_bound > answer.peak else answer.certificate()
    table = {
        "capacity": capacity,
        "feasible": True if found else False if capacity is not None and answer.lower_bound > capacity else None,
        "peak": answer.peak,
        "lower_bound": answer.lower_bound,
        "gap": certificate.gap if certificate else 0.0,
        "optimal": certificate.proven_optimal if certificate else False,
        "method": answer.method,
        "seconds": round(seconds, 3),
        "offsets": {name: answer.offsets.get(n, 0) for n, name in enumerate(instance.names)} if found else None,
    }
    return json.dumps(table, indent=1) + "\n"


def _why_not(answer: Plan, capacity: int, work: int) -> str:
    if answer.lower_bound > capacity:
        return (
            f"no plan within {capacity} bytes: proven infeasible, at least {answer.lower_bound} are needed; "
            f"the best plan found takes {answer.peak}"
        )
    return (
        f"no plan within {capacity} bytes found: the work limit of {work} million steps was reached, so there may be "
        f"one; the best plan found takes {answer.peak}, the lower bound is {answer.lower_bound}; try: a larger --work"
    )


def _so_far(answer: Plan, capacity: int | None) -> str:
    if capacity is not None and answer.peak > capacity:
        return (
            f"no plan within {capacity} bytes so far; the best takes {answer.peak}, the bound is {answer.lower_bound}"
        )
    return f"the best plan so far takes {answer.peak} bytes, the lower bound is {answer.lower_bound}"


class _Watch:
    """Tells on stderr how a long search goes, and ends it when the user has interrupted it."""

    def __init__(self, started: float):
        self.told = started
        self.started = started
        self.any = False
        self.interrupted = False

    @contextmanager
    def until_interrupted(self) -> Generator[None, None, None]:
        """Inside, an interrupt ends the search at its next report; a second one ends the program as usual."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def __call__(self, best: int, bound: int) -> bool:
        if self.interrupted:
            return False
        now = time.perf_counter()
        if now - self.told >= _QUIET_S:
            self.told = now
            self.any = True
            end = "\r" if sys.stderr.isatty() else "\n"
            text = f"searching for {now - self.started:.0f} s: best peak {best}, lower bound {bound}"
            print(text, end=end, file=sys.stderr, flush=True)
        return True

    def end(self) -> None:
        """Leave the line."""
        if self.any and sys.stderr.isatty():
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
