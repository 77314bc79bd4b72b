"""Strings that are not closed are told before parsing."""

from __future__ import annotations

import pytest

from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.strings import check_strings


@pytest.mark.parametrize("text", ['a "b" c', r'a "b\"c" d', '// a "', 'a "b // c" d', 'a "b" // "', ""])
def test_closed(text: str) -> None:
    check_strings(text, "x.mlir")


@pytest.mark.parametrize(
    ("text", "place"), [('a\nb "c', "x.mlir:2:3"), (r'"a\"', "x.mlir:1:1"), ('"a" "b', "x.mlir:1:5")]
)
def test_not_closed(text: str, place: str) -> None:
    with pytest.raises(NeuronError, match=f"{place}: the string is not closed"):
        check_strings(text, "x.mlir")
