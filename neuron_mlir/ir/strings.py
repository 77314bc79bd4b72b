"""A look at string literals before parsing: the lexer takes exponential time on one that is not closed."""

from __future__ import annotations

import re

from neuron_mlir.errors import NeuronError

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def check_strings(text: str, name: str) -> None:
    """Raise `NeuronError` for the first string of MLIR text that does not end on its line; `name` says whose it is."""
    for number, line in enumerate(text.split("\n"), 1):
        if '"' not in line:
            continue
        rest = _STRING.sub(lambda match: " " * len(match[0]), line).split("//", 1)[0]
        column = rest.find('"')
        if column >= 0:
            raise NeuronError(
                f"{name}:{number}:{column + 1}: the string is not closed on its line", advice="add a quote"
            )
