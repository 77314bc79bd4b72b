"""How tools end: a user's mistake as one line, a bug as one line that says so, and never a traceback unless asked."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from xdsl.ir import Operation

EXIT_USER_ERROR = 1
EXIT_INTERNAL_ERROR = 70
"""`EX_SOFTWARE` of sysexits.h."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""


Locate = Callable[["Operation"], str | None]
"""Where in the source an op without a location stands, if that is known."""


def run_command(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None
) -> int:
    """Run a tool's body on the arguments `argv` (None: the command line's) as `run_tool` does. The parser has
    `--traceback`.
    """
    args = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    return run_tool(lambda: run(args), show_traceback=args.traceback)


def run_tool(
    body: Callable[[], int | None],
    *,
    show_traceback: bool,
    stage: Callable[[], str] = str,
    locate: Locate | None = None,
) -> int:
    """Run a tool's body and turn what it raises into a message on standard error and an exit code.

    Args:
        body: the tool; returns its exit code, None for 0.
        show_traceback: print the traceback as well (`--traceback`).
        stage: what was going on, such as `pass 'nn-fuse'`; asked only on an error; empty when nothing special.
        locate: finds ops in the source.

    Returns:
        0, or 1 for a user's mistake, 70 for a bug, 130 when interrupted.
    """
    try:
        return body() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`); stdout is replaced so that Python does not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USER_ERROR
    except BaseException as error:
        # BaseException, because xDSL's pipeline parse error is one.
        if isinstance(error, (SystemExit, GeneratorExit)):
            raise
        if show_traceback:
            traceback.print_exc()
        known = describe(error, stage(), locate)
        if known is not None:
            print(f"error: {known}", file=sys.stderr)
            return EXIT_USER_ERROR
        where = f" in {stage()}" if stage() else ""
        hint = "" if show_traceback else "; --traceback shows where"
        text = " ".join(str(error).split())[:300]
        print(f"internal error{where}: {type(error).__name__}: {text}; this is a bug{hint}", file=sys.stderr)
        return EXIT_INTERNAL_ERROR


def describe(error: BaseException, stage: str = "", locate: Locate | None = None) -> str | None:
    """A message for an error that a user can act on; None for any other, which is a bug.

    The first line says it all; further lines, indented, show the op or the source text.
    """
    if isinstance(error, NeuronError):
        return error.render()
    if isinstance(error, OSError):
        name = f"{os.fspath(error.filename)}: " if isinstance(error.filename, str) else ""
        return f"{name}{error.strerror or error}"
    if isinstance(error, UnicodeDecodeError):
        return "the input is not UTF-8 text; try: --frontend onnx for a model without the .onnx suffix"
    if isinstance(error, MemoryError):
        return "out of memory"
    from xdsl.utils.exceptions import ArgSpecParseError, DiagnosticException, ParseError, VerifyException

    if isinstance(error, ArgSpecParseError):
        return _pipeline_error(str(error))
    if isinstance(error, ParseError):
        where, _, context = str(error).rstrip().partition("\n")
        return f"{where}: {' '.join(error.msg.split())}\n  " + context.replace("\n", "\n  ")
    if isinstance(error, VerifyException):
        op = failing_op(error)
        prefix = f"invalid IR{f' after {stage}' if stage else ''}"
        problem = NeuronError(f"{prefix}: {' '.join(str(error).split())}", op=op)
        if op is not None and problem.location is None and locate is not None:
            problem.location = locate(op)
        return problem.render()
    if isinstance(error, DiagnosticException):
        return f"{f'{stage}: ' if stage else ''}{' '.join(str(error).split())}"
    return None


def _pipeline_error(text: str) -> str:
    """xDSL's message on a pipeline, whose lines are a title, `pass-pipeline:1:COLUMN`, the text, a caret, the cause."""
    _, where, pipeline, _, cause = [*text.rstrip().splitlines(), "", "", "", ""][:5]
    return f"pipeline '{pipeline.strip()}', column {where.rpartition(':')[2]}: {cause.strip()}"


def failing_op(error: BaseException) -> Operation | None:
    """The op whose verifier raised `error`.

    xDSL does not record it, but it is `self` of the innermost verifier on the error's traceback.
    """
    from xdsl.ir import Operation

    op: Operation | None = getattr(error, "op", None)
    if isinstance(op, Operation):
        return op
    frame = error.__traceback__
    while frame is not None:
        code, variables = frame.tb_frame.f_code, frame.tb_frame.f_locals
        if code.co_name in ("verify", "verify_") and isinstance(variables.get("self"), Operation):
            op = variables["self"]
        frame = frame.tb_next
    return op
