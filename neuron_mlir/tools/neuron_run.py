"""`neuron-run`: run a compiled artifact, or a module of any level, on the simulated machine.

See `docs/compile-and-run.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neuron_mlir.errors import NeuronError
from neuron_mlir.tools._files import check_writable, write_text
from neuron_mlir.tools._report import run_command

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from xdsl.dialects.builtin import ModuleOp

    from neuron_mlir.simulator.interface import Port
    from neuron_mlir.simulator.run import RunResult
    from neuron_mlir.weights import WeightStore

    Array = NDArray[Any]
    Arrays = dict[str, Array]

REQUESTS_MAX = 1_000_000


def make_parser() -> argparse.ArgumentParser:
    """The command line of the tool."""
    parser = argparse.ArgumentParser(
        prog="neuron-run",
        description="Run a compiled artifact (.neff), or a module of any level (.mlir), on the simulated machine.",
    )
    parser.add_argument("program", metavar="OUT.neff|FILE.mlir", help="what to run")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--inputs",
        metavar="IN.npz",
        help="arrays by the names of the inputs; with one dimension more in front, one request each; default: random",
    )
    data.add_argument("--outputs", metavar="OUT.npz", help="write the outputs, by their names")
    data.add_argument("--seed", type=int, default=0, metavar="S", help="of random inputs (default 0)")
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--requests",
        type=int,
        metavar="R",
        help="requests to run; default: values for those of --inputs (else one), the clock for enough to settle",
    )
    run.add_argument(
        "--in-flight",
        type=int,
        metavar="N",
        help="requests that the host has under way at most; default: as many as the program takes in",
    )
    run.add_argument("--clock-only", action="store_true", help="simulate times, not values")
    run.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="check all requests for races and unwritten reads; default: the first, until every ring has gone round",
    )
    run.add_argument(
        "--layers", action="store_true", help="also tell of each layer what binds it, and how it uses the PE array"
    )
    run.add_argument("--show", action="store_true", help="print inputs, outputs and origin of the program, and stop")
    run.add_argument("--json", metavar="FILE", help="write the report as JSON ('-': standard output, and no table)")
    run.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    return parser


class Loaded:
    """A program to run: its module, its weights, and for an artifact what it was made with."""

    def __init__(self, module: ModuleOp, weights: WeightStore | None, metadata: dict[str, Any] | None) -> None:
        self.module = module
        self.weights = weights
        self.metadata = metadata


def load(path: str) -> Loaded:
    """Read an artifact, or a module from text.

    Raises:
        NeuronError: the file is neither, or is broken.
    """
    from neuron_mlir.runtime.artifact import is_artifact, read_artifact
    from neuron_mlir.runtime.modules import read_module
    from neuron_mlir.weights import WEIGHTS_ATTRIBUTE, open_weights

    if is_artifact(path):
        artifact = read_artifact(path)
        return Loaded(artifact.module(), artifact.weights, artifact.metadata)
    if path.endswith(".onnx"):
        raise NeuronError(f"'{path}' is a model, not a program", advice=f"neuron-cc compile {path} --output OUT.neff")
    module = read_module(path, places=True)
    stored = WEIGHTS_ATTRIBUTE in module.attributes
    return Loaded(module, open_weights(module, os.path.dirname(path)) if stored else None, None)


# Inputs and outputs ---------------------------------------------------------------------------------------------------


def split_requests(arrays: Mapping[str, Array], ports: Sequence[Port]) -> list[Arrays]:
    """The requests in an `--inputs` file: one, or as many as the arrays' extra first dimension says.

    Raises:
        NeuronError: some arrays have the extra dimension and others do not agree with it.
    """
    shapes = {port.name: port.shape for port in ports}
    stacked = {
        name: len(array)
        for name, array in arrays.items()
        if name in shapes and array.ndim == len(shapes[name]) + 1 and array.shape[1:] == shapes[name]
    }
    if not stacked:
        return [dict(arrays)]
    counts = sorted(set(stacked.values()))
    single = [name for name in arrays if name not in stacked]
    if len(counts) > 1 or single or counts[0] == 0:
        text = ", ".join(f"'{name}': {stacked.get(name, 'one')}" for name in arrays)
        raise NeuronError("the arrays do not hold the same number of requests", needed="one number", available=text)
    return [{name: array[i] for name, array in arrays.items()} for i in range(counts[0])]


def make_requests(args: argparse.Namespace, module: ModuleOp) -> tuple[list[Arrays], bool]:
    """The inputs of the requests to compute values for, checked, and whether outputs are to be stacked."""
    from neuron_mlir.runtime.files import read_npz
    from neuron_mlir.simulator.interface import check_inputs, input_types, random_inputs

    ports = input_types(module)
    if args.inputs is None:
        return [random_inputs(module, args.seed + r) for r in range(args.requests or 1)], args.requests is not None
    arrays = read_npz(args.inputs)
    given = split_requests(arrays, ports)
    stacked = any(arrays[port.name].ndim > len(port.shape) for port in ports if port.name in arrays)
    given = [check_inputs(ports, feed, i if len(given) > 1 else None) for i, feed in enumerate(given)]
    if args.requests is None:
        return given, stacked
    # Fewer inputs than requests go round, as a load generator does.
    return [given[r % len(given)] for r in range(args.requests)], True


def stack_outputs(requests: Sequence[Arrays], stacked: bool) -> Arrays:
    """What `--outputs` writes: the arrays of the only request, or those of all with one dimension more in front."""
    import numpy as np

    if not stacked:
        return dict(requests[0])
    return {name: np.stack([outputs[name] for outputs in requests]) for name in requests[0]}


# The run --------------------------------------------------------------------------------------------------------------


def has_clock(module: ModuleOp) -> bool:
    """Whether a module is in the final form: memory form, with one instruction stream per engine."""
    from neuron_mlir.dialects.core.memory import EngineOp
    from neuron_mlir.dialects.pipe.ops import RunOp
    from neuron_mlir.simulator.interface import program_of

    program = program_of(module)
    if program is None:
        return False
    bodies = [op.body.block for stage in program.stages() for op in stage.body.block.ops if isinstance(op, RunOp)]
    return any(isinstance(op, EngineOp) for body in bodies for op in body.ops)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; the exit code."""
    from neuron_mlir.simulator.program import read_program
    from neuron_mlir.simulator.report import requests_for_steady_state
    from neuron_mlir.simulator.run import run_module

    _check_arguments(args)
    with busy(f"reading {args.program}"):
        loaded = load(args.program)
    module = loaded.module
    if args.show:
        _show(loaded)
        return 0
    clock = has_clock(module)
    if clock and loaded.metadata is not None:
        from neuron_mlir.runtime.limits import check_limits

        check_limits(read_program(module))
    if args.layers and not clock:
        raise NeuronError("only the final form has times of layers; this program has values only")
    if args.clock_only and not clock:
        raise NeuronError(
            "only the final form has a clock; this program has values only", advice="neuron-run without --clock-only"
        )
    hazards = "auto" if args.check is None else bool(args.check)
    outputs: list[Arrays] = []
    timed: RunResult | None = None
    if clock and (args.clock_only or args.requests is None):
        # Times do not depend on values, so that many requests are timed where few are computed.
        count = args.requests or requests_for_steady_state(read_program(module))
        with busy(f"timing {count} requests" + (", checking the first for hazards" if hazards else "")):
            timed = run_module(
                module,
                count,
                weights=loaded.weights,
                values=False,
                hazards=hazards,
                in_flight=args.in_flight,
                count_loads=args.layers,
            )
    if not args.clock_only:
        requests, stacked = make_requests(args, module)
        checked = hazards if timed is None else False
        with busy(f"computing {len(requests)} requests"):
            result = run_module(
                module,
                requests,
                weights=loaded.weights,
                hazards=checked,
                in_flight=args.in_flight,
                count_loads=args.layers,
            )
        outputs = result.requests
        timed = timed or result
        if args.outputs is not None:
            _write_outputs(args.outputs, stack_outputs(outputs, stacked))
    report: dict[str, Any] = {"file": args.program, "values": not args.clock_only}
    if timed is not None and timed.machine is not None:
        report.update(timed.report().to_json())
        if args.layers:
            report["layers"] = [layer.to_json() for layer in timed.layers()]
    else:
        report["requests"] = len(outputs)
    if args.json == "-":
        print(json.dumps(report, indent=2))
        return 0
    if args.json is not None:
        write_text(args.json, json.dumps(report, indent=2) + "\n")
    _print(report, outputs)
    return 0


@contextmanager
def busy(what: str) -> Generator[None]:
    """Say what is going on while the block runs, where a person looks on: on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _check_arguments(args: argparse.Namespace) -> None:
    if args.requests is not None and not 1 <= args.requests <= REQUESTS_MAX:
        raise NeuronError(
            f"--requests must be 1 to {REQUESTS_MAX}", needed=f"1 to {REQUESTS_MAX}", available=args.requests
        )
    if args.in_flight is not None and args.in_flight < 1:
        raise NeuronError("--in-flight must be at least 1", needed="1 or more", available=args.in_flight)
    if args.seed < 0:
        raise NeuronError("--seed must not be negative", available=args.seed)
    if args.clock_only and (args.inputs is not None or args.outputs is not None):
        raise NeuronError("--clock-only computes no values, so it takes no --inputs and no --outputs")
    if args.outputs is not None:
        from neuron_mlir.runtime.files import check_output

        check_output(args.outputs)
    if args.json not in (None, "-"):
        check_writable(args.json)


def _write_outputs(path: str, arrays: Arrays) -> None:
    from neuron_mlir.runtime.files import write_npz

    write_npz(path, arrays)


def _show(loaded: Loaded) -> None:
    from neuron_mlir.simulator.interface import input_types, output_types

    for title, ports in (("inputs", input_types(loaded.module)), ("outputs", output_types(loaded.module))):
        print(f"{title}:")
        for port in ports:
            print(f"  {port}")
    if loaded.metadata is not None:
        rest = {key: value for key, value in loaded.metadata.items() if key not in ("inputs", "outputs")}
        print(json.dumps(rest, indent=2))


def _print(report: dict[str, Any], outputs: Sequence[Arrays]) -> None:
    from neuron_mlir.tools._tables import layer_table, output_table, print_tables, run_tables

    tables = run_tables(report) if "throughput_per_s" in report else []
    if "layers" in report:
        tables.append(layer_table(report["layers"]))
    if outputs:
        tables.append(output_table(outputs[0], len(outputs)))
    print_tables(tables)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool on `argv` (default: the command line) and return its exit code."""
    return run_command(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
