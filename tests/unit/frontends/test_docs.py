"""docs/frontend.md lists the operators there are."""

from __future__ import annotations

from pathlib import Path

from neuron_mlir.frontends.onnx import list_operators, operator_table

PAGE = Path(__file__).parents[3] / "docs" / "frontend.md"


def test_the_operator_table_is_fresh() -> None:
    text = PAGE.read_text()
    table = text.split("<!-- operators -->\n")[1].split("<!-- end of operators -->")[0]
    assert table == operator_table(), "paste operator_table() between the marks"


def test_operators_are_sorted_and_say_what_they_become() -> None:
    rows = list_operators()
    assert [row.name for row in rows] == sorted(row.name for row in rows)
    assert all(row.becomes for row in rows)
