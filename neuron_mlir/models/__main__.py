"""Writes a network with seeded weights to a file: `python -m neuron_mlir.models resnet50 --size 1440 -o big.onnx`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuron_mlir.errors import NeuronError
from neuron_mlir.models.bert import CONFIGS, SEQ, write_bert
from neuron_mlir.models.catalogue import GENERATORS, write_network
from neuron_mlir.models.light import LIGHT_MODELS, write_light


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m neuron_mlir.models", description=__doc__)
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    for name, generator in GENERATORS.items():
        network = models.add_parser(name, help=generator.summary)
        for option, (default, text) in generator.options.items():
            if isinstance(default, bool):
                network.add_argument(f"--{option}", action="store_true", help=text)
            else:
                network.add_argument(f"--{option}", type=type(default), default=default, help=f"{text} ({default})")
        network.add_argument("--batch", type=int, default=1, help="batch size (1)")
    for name, config in CONFIGS.items():
        bert = models.add_parser(name, help=f"{name}, op by op")
        bert.add_argument("--layers", type=int, help="number of encoder layers")
        seq = min(SEQ, config.positions)
        bert.add_argument("--seq", type=int, default=seq, help=f"sequence length ({seq})")
        bert.add_argument("--batch", type=int, default=1, help="batch size (1)")
    light = models.add_parser("light", help="a network of the onnx package")
    light.add_argument("name", help=", ".join(LIGHT_MODELS))
    for sub in models.choices.values():
        sub.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file to write")
        sub.add_argument("--external-data", action="store_true", help="weights in OUT.data; needed above 2 GB")
        sub.add_argument("--seed", type=int, default=0, help="seed of the weights (0)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 if the file was written."""
    options = _parser().parse_args(arguments)
    output: Path = options.output
    try:
        if options.model == "light":
            write_light(output, options.name, seed=options.seed, external_data=options.external_data)
        elif options.model in GENERATORS:
            own = {option: getattr(options, option) for option in GENERATORS[options.model].options}
            own |= {"batch": options.batch, "seed": options.seed}
            write_network(output, options.model, external_data=options.external_data, **own)
        else:
            write_bert(
                output,
                CONFIGS[options.model],
                layers=options.layers,
                batch=options.batch,
                seq=options.seq,
                seed=options.seed,
                external_data=options.external_data,
            )
    except NeuronError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write '{output}': {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
