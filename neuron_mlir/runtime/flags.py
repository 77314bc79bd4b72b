"""AWS's documented flags of `neuron-cc compile`, and what they mean here.

Sources: the AWS Neuron SDK's "Neuron compiler CLI Reference Guide (neuron-cc)" and "Mixed precision and
performance-accuracy tuning (neuron-cc)" for the flags of the reference; the application note "Performance tuning" and
the ResNet-50 example of its first releases (2020) for `--batching_en`, `--rematerialization_en`, `--spill_dis`,
`--sb_size`, `--enable-replication`, `--static-weights` and `--num-neuroncores`, which they name without a definition.
Our reading of each is in `docs/compile-and-run.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from neuron_mlir.passes.pipelines import Fp32Cast
    from neuron_mlir.runtime.compiler import CompileOptions

CASTS = ("all", "all-fp16", "matmult", "matmult-bf16", "matmult-fp16")
"""Values of `--fp32-cast`."""
RELAYOUTS = ("fast-relayout", "no-fast-relayout")
FAST_MATH = ("all", "none", *RELAYOUTS, *(f"fp32-cast-{cast}" for cast in CASTS))
"""Words of `--fast-math`."""
LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")
"""Values of `--verbose`."""
FRAMEWORKS = ("ONNX", "TENSORFLOW", "MXNET", "XLA")
SB_SIZE_UNIT = 1024
"""Bytes per SBUF partition that one of `--sb_size` stands for."""


def join_words(arguments: Sequence[str]) -> list[str]:
    """The command line with every flag in one argument with its words: `--fast-math all no-fast-relayout` takes as many
    as there are, and `--verbose` may come without, so that neither swallows the model's name.
    """
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--fast-math":
            taken = [rest.pop(0)] if rest and not rest[0].startswith("-") else []
            while rest and rest[0] in FAST_MATH:
                taken.append(rest.pop(0))
            word = f"--fast-math={' '.join(taken)}"
        elif word == "--verbose":
            level = rest.pop(0) if rest and rest[0].upper() in LEVELS else "INFO"
            word = f"--verbose={level}"
        joined.append(word)
    return joined


def add_verbose(parser: argparse.ArgumentParser, *, default: str | object) -> None:
    """`--verbose [LEVEL]`, which AWS documents before the command, and older releases took behind it."""
    parser.add_argument(
        "--verbose",
        metavar="LEVEL",
        type=_level,
        default=default,
        help="DEBUG: phases and what passes count; INFO, or no level: phases; WARN (default); ERROR: errors only",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """All that says what to compile for: AWS's flags and our own. `compile_options` reads them."""
    parser.add_argument(
        "--neuroncore-pipeline-cores",
        metavar="N|auto",
        help="pipeline stages, a core each; auto: the fewest cores that hold all weights (default 1)",
    )
    parser.add_argument(
        "--shard-cores",
        type=int,
        metavar="N",
        default=0,
        help="spread the slowest stages over up to so many cores in all, each request split (default: none)",
    )
    parser.add_argument(
        "--replicas", type=int, metavar="R", default=1, help="copies of these stages on further cores (default 1)"
    )
    parser.add_argument(
        "--batch-size",
        metavar="B|auto",
        help="inferences in one request; auto: as many as serve most per second (default: the model's)",
    )
    parser.add_argument(
        "--dynamic_batch_size",
        choices=("True", "False"),
        default="False",
        help="let callers of the loaded model send any number of rows, split and padded to the batch (default False)",
    )
    parser.add_argument(
        "--machine", metavar="NAME|FILE.toml", default="inferentia1", help="what to compile for (default inferentia1)"
    )
    parser.add_argument(
        "--io-config", metavar="FILE|JSON", help='shapes of inputs, {"inputs": {"NAME": [[1, 128], "int32"]}}'
    )
    add_flags(parser)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """AWS's flags that are about the compilation."""
    precision = parser.add_argument_group("precision")
    precision.add_argument(
        "--fast-math",
        metavar="WORD",
        help=f"one or more of {', '.join(FAST_MATH)} (default all)",
    )
    precision.add_argument(
        "--fp32-cast",
        choices=CASTS,
        help="what becomes 16 bits wide: all values or those of matrix products, as bf16 or fp16; "
        "comes before what --fast-math says (default all)",
    )
    precision.add_argument(
        "--enable-saturate-infinity", action="store_true", help="accepted; no effect here, a note says why"
    )
    memory = parser.add_argument_group("batches and memory, as AWS's first releases had it")
    memory.add_argument("--batching_en", action="store_true", help="accepted; a weight always serves the whole batch")
    memory.add_argument(
        "--rematerialization_en", action="store_true", help="keep, spill or recompute long-lived values by cost"
    )
    memory.add_argument("--spill_dis", action="store_true", help="fail rather than move a value to DRAM and back")
    memory.add_argument(
        "--sb_size", type=_positive, metavar="N", help="size of the SBUF, in KiB per partition (default: the machine's)"
    )
    memory.add_argument(
        "--enable-replication",
        choices=("True", "False"),
        default="True",
        help="pack shallow convolutions with their taps, to fill the PE array (default True)",
    )
    memory.add_argument(
        "--static-weights", action="store_true", help="fail unless all weights stay in SBUF between requests"
    )
    memory.add_argument("--num-neuroncores", metavar="N", help="older name of --neuroncore-pipeline-cores")
    loading = parser.add_argument_group("loading")
    loading.add_argument(
        "--enable-fast-loading-neuron-binaries", action="store_true", help="accepted; artifacts are not compressed"
    )
    loading.add_argument("--enable-fast-context-switch", action="store_true", help="accepted; no effect here")


def _level(text: str) -> str:
    if text.upper() not in LEVELS:
        raise argparse.ArgumentTypeError(f"'{text}' is not one of {', '.join(LEVELS)}")
    return text.upper()


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return number


@dataclass(frozen=True)
class FastMath:
    """What `--fast-math` and `--fp32-cast` come to: a mode of `nn-cast`, and whether transposes may lose bits."""

    cast: Fp32Cast
    fast_relayout: bool


def fast_math(words: str | None, fp32_cast: str | None) -> FastMath:
    """The documented rules: `all` is `fp32-cast-all fast-relayout`, `none` is `fp32-cast-matmult-bf16
    no-fast-relayout`; single words come before either; `--fp32-cast`, if given, before the casting words.

    Args:
        words: of `--fast-math`, separated by spaces or commas; None when it is not given.
        fp32_cast: the value of `--fp32-cast`; None when it is not given.

    Raises:
        NeuronError: a word that is not one, none at all, or two that exclude each other.
    """
    given = ["all"] if words is None else words.replace(",", " ").split()
    unknown = [word for word in given if word not in FAST_MATH]
    if unknown or not given:
        raise NeuronError(
            f"--fast-math has no option '{unknown[0]}'" if unknown else "--fast-math needs at least one option",
            advice=f"one of {', '.join(FAST_MATH)}",
        )
    for group in (("all", "none"), RELAYOUTS, tuple(word for word in FAST_MATH if word.startswith("fp32-cast-"))):
        chosen = list(dict.fromkeys(word for word in given if word in group))
        if len(chosen) > 1:
            raise NeuronError(f"--fast-math takes one of {' and '.join(chosen)}: they exclude each other")
    exact = "none" in given
    mode = "matmult-bf16" if exact else "all"
    relayout = not exact
    for word in given:
        if word.startswith("fp32-cast-"):
            mode = word.removeprefix("fp32-cast-")
        elif word in RELAYOUTS:
            relayout = word == "fast-relayout"
    return FastMath(cast("Fp32Cast", fp32_cast or mode), relayout)


def check_framework(name: str) -> None:
    """Raises `NeuronError` for frameworks whose models this compiler does not read."""
    if name.upper() != "ONNX":
        known = name.upper() in FRAMEWORKS
        raise NeuronError(
            f"--framework {name}: this compiler reads ONNX models" + ("" if known else ", and knows no such framework"),
            needed="ONNX",
            available=name,
            advice="export the model to ONNX" if known else "--framework ONNX",
        )


def flag_notes(args: argparse.Namespace, precision: FastMath) -> list[str]:
    """What to say of flags that are accepted and change nothing."""
    notes: list[str] = []
    if args.batching_en:
        notes.append(
            "--batching_en: nothing to switch on: a weight that is read serves the whole batch anyway; "
            "--batch-size sets the batch"
        )
    if args.enable_saturate_infinity:
        notes.append(
            "--enable-saturate-infinity has no effect: the importer refuses infinite constants, and what overflows in "
            "the model's own arithmetic stays what it is there"
        )
    if args.enable_fast_loading_neuron_binaries:
        notes.append("--enable-fast-loading-neuron-binaries has no effect: artifacts are never compressed")
    if args.enable_fast_context_switch:
        notes.append(
            "--enable-fast-context-switch has no effect: a simulated machine holds one program, loaded before its "
            "first request"
        )
    if args.fast_math is not None and any(word in args.fast_math.split() for word in RELAYOUTS):
        choice = "fast-relayout" if precision.fast_relayout else "no-fast-relayout"
        notes.append(
            f"--fast-math {choice} chooses nothing: transposes move bits unchanged here on every engine, values are "
            "rounded at casts only"
        )
    return notes


def compile_options(args: argparse.Namespace) -> CompileOptions:
    """The options of the command line. Raises NeuronError for values out of range and flags that exclude each other."""
    from neuron_mlir.runtime.compiler import CompileOptions

    if args.replicas < 1:
        raise NeuronError("--replicas must be at least 1", needed="1 or more", available=args.replicas)
    if args.shard_cores < 0:
        raise NeuronError("--shard-cores must not be negative", needed="0 or more", available=args.shard_cores)
    cores = _cores("--neuroncore-pipeline-cores", args.neuroncore_pipeline_cores)
    older = _cores("--num-neuroncores", args.num_neuroncores)
    if cores is not None and older is not None and cores != older:
        raise NeuronError(
            f"--neuroncore-pipeline-cores {cores} and --num-neuroncores {older} say different things",
            advice="one of them: --num-neuroncores is the older name",
        )
    return CompileOptions(
        cores=cores or older or 1,
        shard_cores=args.shard_cores,
        replicas=args.replicas,
        batch_size=None if args.batch_size in (None, "auto") else _batch(args.batch_size),
        dynamic_batch_size=args.dynamic_batch_size == "True",
        fp32_cast=fast_math(args.fast_math, args.fp32_cast).cast,
        machine=args.machine,
        sbuf_bytes_per_partition=None if args.sb_size is None else args.sb_size * SB_SIZE_UNIT,
        io_config=None if args.io_config is None else read_io_config(args.io_config),
        replicate_inputs=args.enable_replication == "True",
        rematerialize=args.rematerialization_en,
        spill=not args.spill_dis,
        static_weights=args.static_weights,
    )


def _batch(text: str) -> int:
    try:
        batch = int(text)
    except ValueError:
        batch = 0
    if batch < 1:
        raise NeuronError("--batch-size must be at least 1, or auto", needed="1 or more, or auto", available=text)
    return batch


def _cores(flag: str, text: str | None) -> int | Literal["auto"] | None:
    if text is None or text == "auto":
        return text
    try:
        cores = int(text)
    except ValueError:
        cores = 0
    if cores < 1:
        raise NeuronError(f"{flag} takes a number of cores or auto", needed="1 or more, or auto", available=text)
    return cores


class _Arguments(argparse.ArgumentParser):
    """A parser whose complaints are errors to catch, not the end of the process."""

    def error(self, message: str) -> NoReturn:
        raise NeuronError(f"compiler_args: {message}")


def parse_compiler_args(words: Sequence[str]) -> argparse.Namespace:
    """The flags of `neuron-cc compile` as a list, as AWS's Python calls take them in `compiler_args`.

    Raises:
        NeuronError: a flag that `neuron-cc compile` does not have, or one that only makes sense on its command line.
    """
    parser = _Arguments(prog="compiler_args", add_help=False, allow_abbrev=False)
    add_options(parser)
    parser.add_argument("--framework", default="ONNX")
    add_verbose(parser, default="WARN")
    args, rest = parser.parse_known_args(join_words(words))
    if rest:
        raise NeuronError(
            f"compiler_args: '{rest[0]}' is not a flag of neuron-cc compile that a call can have",
            advice="neuron-cc compile --help; outputs and reports are arguments of the call",
        )
    check_framework(args.framework)
    return args


def read_io_config(text: str) -> dict[str, Any]:
    """The value of `--io-config`: JSON, or the name of a JSON file, such as `{"inputs": {"x": [[1, 8], "int32"]}}`.

    Raises:
        NeuronError: it is neither, or not a JSON object.
    """
    source = "--io-config"
    if not text.lstrip().startswith("{"):
        source = f"--io-config file '{text}'"
        try:
            text = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise NeuronError(f"{source} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise NeuronError(f"{source} is not UTF-8 text") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise NeuronError(f"{source} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(value, dict):
        raise NeuronError(f"{source} is not a JSON object")
    return cast("dict[str, Any]", value)
