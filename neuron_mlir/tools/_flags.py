"""AWS's documented flags of `neuron-cc compile`, and what they mean here.

Sources: the AWS Neuron SDK's "Neuron compiler CLI Reference Guide (neuron-cc)" and "Mixed precision and
performance-accuracy tuning (neuron-cc)" for the flags of the reference; the application note "Performance tuning" and
the ResNet-50 example of its first releases (2020) for `--batching_en`, `--rematerialization_en`, `--spill_dis`,
`--sb_size`, `--enable-replication`, `--static-weights` and `--num-neuroncores`, which they name without a definition.
Our reading of each is in `docs/compile-and-run.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from neuron_mlir.passes.pipelines import Fp32Cast

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
