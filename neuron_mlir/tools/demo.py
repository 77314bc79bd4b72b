"""The demonstration behind `make demo`: ResNet-50 from an ONNX file to four simulated NeuronCores.

Every step is a command of the tools and is printed as such, so that it can be repeated by hand.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neuron_mlir.errors import NeuronError
from neuron_mlir.tools._report import run_tool

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

    Array = NDArray[Any]

COSINE_NEEDED = 0.999
"""Of the logits of the compiled program to ONNX Runtime's in float32."""

TOP = 5


def make_parser() -> argparse.ArgumentParser:
    """The command line of the demonstration."""
    parser = argparse.ArgumentParser(
        prog="python -m neuron_mlir.tools.demo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default="resnet50", help="a network of the onnx package (default resnet50)")
    parser.add_argument("--cores", default="4", metavar="N|auto", help="pipeline stages (default 4)")
    parser.add_argument("--dir", type=Path, default=Path("build/demo"), help="where files go (default build/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the image (default 0)")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    return parser


def run(args: argparse.Namespace) -> int:
    """The whole demonstration; 0 when the compiled program agrees with ONNX Runtime."""
    from neuron_mlir.models.light import light_inputs, light_model
    from neuron_mlir.runtime.files import write_npz
    from neuron_mlir.tools import neuron_cc, neuron_run

    start = time.perf_counter()
    folder: Path = args.dir
    folder.mkdir(parents=True, exist_ok=True)
    model_path, program, report = folder / f"{args.model}.onnx", folder / f"{args.model}.neff", folder / "report.json"
    inputs_path, outputs_path = folder / "inputs.npz", folder / "outputs.npz"

    heading(f"1. The model: {args.model} as the onnx package ships it")
    model = light_model(args.model, seed=args.seed)
    model_path.write_bytes(model.SerializeToString())
    inputs = light_inputs(model, seed=args.seed)
    write_npz(str(inputs_path), inputs)
    parameters = sum(_elements(tensor.dims) for tensor in model.graph.initializer)
    print(
        f"{len(model.graph.node)} ONNX nodes, {parameters / 1e6:.1f} M parameters. The package leaves most weights out,"
        " so they are\nfilled with seeded values by role. The input is one random image."
    )

    heading("2. Compile: nn -> pipe and core -> engine streams")
    logits = logits_name(model)
    outputs = [*([logits] if logits else []), *(value.name for value in model.graph.output)]
    command(
        neuron_cc.main,
        "neuron-cc",
        [
            *("compile", str(model_path), "--output", str(program), "--neuroncore-pipeline-cores", args.cores),
            *("--io-config", json.dumps({"outputs": outputs}), "--json", str(folder / "compile.json")),
        ],
    )

    heading("3. Run: one image with values, then the clock alone until it settles")
    command(
        neuron_run.main,
        "neuron-run",
        [str(program), "--inputs", str(inputs_path), "--outputs", str(outputs_path), "--json", str(report)],
    )

    heading("4. Compare with ONNX Runtime, which computes in float32")
    good = compare(model_path, inputs, outputs_path, logits)
    summarize(args, report, good, time.perf_counter() - start)
    return 0 if good else 1


def heading(text: str) -> None:
    """A line that says what comes."""
    from rich.console import Console

    Console(highlight=False).print(f"\n[bold cyan]{text}[/bold cyan]")


def command(main: Any, name: str, arguments: list[str]) -> None:
    """Run a tool in this process, after printing the command line that does the same.

    Raises:
        SystemExit: the tool failed; it has said why.
    """
    print(f"$ {shlex.join([name, *arguments])}\n", flush=True)
    code = main(arguments)
    if code:
        raise SystemExit(code)


def _elements(dims: Sequence[int]) -> int:
    total = 1
    for dim in dims:
        total *= dim
    return total


def logits_name(model: ModelProto) -> str | None:
    """What goes into the softmax at the end of a classifier; None when there is no softmax."""
    ends = {value.name for value in model.graph.output}
    return next((n.input[0] for n in model.graph.node if n.op_type == "Softmax" and n.output[0] in ends), None)


def reference(path: Path, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """What ONNX Runtime computes for these tensors of a model, in float32 and one thread.

    Args:
        path: the model; external data stays where it is.
        inputs: by name.
        names: outputs, or any other tensors.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options: Any = onnxruntime.SessionOptions()  # pyright: ignore[reportUnknownVariableType]
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # External data is looked for beside the model, so that the copy has to be there, too.
    copy = path.with_name(f".{path.name}.reference")
    try:
        copy.write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"])
    finally:
        copy.unlink(missing_ok=True)
    return dict(zip(names, cast("list[Array]", session.run(list(names), dict(inputs))), strict=True))


def cosine(a: Array, b: Array) -> float:
    """The cosine of the angle between two tensors as vectors; 1 for two that point the same way."""
    import numpy as np

    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def compare(model_path: Path, inputs: Mapping[str, Array], outputs_path: Path, logits: str | None) -> bool:
    """Print how far the outputs are from ONNX Runtime's; whether the logits are near enough."""
    import numpy as np

    from neuron_mlir.runtime.files import read_npz
    from neuron_mlir.tools._tables import make_table, print_tables

    simulated = read_npz(str(outputs_path))
    expected = reference(model_path, inputs, list(simulated))
    table = make_table("", ("tensor", ">cosine", ">largest difference", ">largest value", f"first {TOP} classes"))
    first = logits or next(iter(simulated))
    good = False
    for name, values in simulated.items():
        truth = expected[name]
        near = cosine(values, truth)
        if name == first:
            good = near >= COSINE_NEEDED
        difference = float(np.abs(values - truth).max())
        table.add_row(
            f"{name}{' (logits)' if name == logits else ''}",
            f"{near:.6f}",
            f"{difference:.2g}",
            f"{np.abs(truth).max():.3g}",
            classes(values, truth),
        )
    print_tables([table])
    print(f"Needed: a cosine of {COSINE_NEEDED} for '{first}'. {'It agrees.' if good else 'IT DOES NOT AGREE.'}")
    return good


def classes(values: Array, truth: Array) -> str:
    """The classes with the highest scores, and whether ONNX Runtime ranks the same ones first."""
    import numpy as np

    ours, theirs = (np.argsort(-array.reshape(-1), kind="stable")[:TOP].tolist() for array in (values, truth))
    ranked = ", ".join(map(str, ours))
    return f"{ranked}; the same" if ours == theirs else f"{ranked}; not {', '.join(map(str, theirs))}"


def summarize(args: argparse.Namespace, report_path: Path, good: bool, seconds: float) -> None:
    """What happened, in plain words, and what to try next."""
    report: dict[str, Any] = json.loads(report_path.read_text())
    folder: Path = args.dir
    model, program = folder / f"{args.model}.onnx", folder / f"{args.model}.neff"
    throughput, bound = report["throughput_per_s"], report["bound"]
    busiest = max(
        (
            (share, f"{engine} engine of {core}")
            for core, e in report["engine_utilization"].items()
            for engine, share in e.items()
        ),
        default=(0.0, "none"),
    )
    heading("What happened")
    print(
        f"{args.model} was cut into stages on {report['cores']} NeuronCores. Images stream through them, several at a"
        f" time:\none leaves every {1000 / throughput:.3g} ms ({throughput:,.0f}/s), and each takes"
        f" {report['latency_ms']['p50']:.3g} ms from the host and back (p50).\n"
        f"This program could reach {bound['throughput_per_s']:,.0f}/s at most, limited by {bound['resource']};"
        f" it reaches {throughput / bound['throughput_per_s']:.0%} of that.\n"
        f"The busiest engine is the {busiest[1]}, at work {busiest[0]:.0%} of the time.\n"
        f"Its answers {'agree' if good else 'do not agree'} with ONNX Runtime's; values were rounded to bf16 on the"
        f" way, as neuron-cc does by default.\nAll of it took {seconds:.0f} s. Files: {folder}/"
    )
    heading("Next")
    for line, comment in (
        (f"neuron-opt {model} -p nn-fold-constants,nn-fold-batch-norm,nn-fuse", "read the IR, layer by layer"),
        (f"neuron-opt {model} -p 'neuron{{cores={args.cores}}}' --timing -o final.mlir", "all passes, one by one"),
        (f"neuron-run {program} --clock-only --requests 1000", "times alone"),
        (f"neuron-cc compile {model} --neuroncore-pipeline-cores auto", "as many cores as the weights need"),
        ("neuron-opt --list-passes", "and docs/write-a-pass.md for one of your own"),
    ):
        print(f"{line:82} # {comment}")
    tools = Path(sys.executable).parent
    print(f"The tools are in {tools.relative_to(Path.cwd()) if tools.is_relative_to(Path.cwd()) else tools}/.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration on `argv` (default: the command line) and return its exit code."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        try:
            return run(args)
        except ImportError as error:
            raise NeuronError(f"{error.name} is not installed", advice="pip install 'neuron-mlir[demo]'") from error

    return run_tool(body, show_traceback=args.traceback)


if __name__ == "__main__":
    sys.exit(main())
