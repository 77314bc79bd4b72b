"""The generated reference is complete and fresh."""

from __future__ import annotations

from pathlib import Path

import pytest
from xdsl.dialects.builtin import BFloat16Type, Float32Type, StringAttr, f32
from xdsl.irdl import AnyAttr, AnyOf, BaseAttr, EqAttrConstraint, RangeOf

from neuron_mlir.dialects.core import Core
from neuron_mlir.dialects.nn import Nn
from neuron_mlir.dialects.pipe import Pipe
from neuron_mlir.passes import PASS_MODULES, PIPELINE_MODULES
from neuron_mlir.tools.reference_docs import constraint_text, main, pages

FOLDER = Path(__file__).parents[3] / "docs" / "reference"


def test_fresh() -> None:
    """`make docs` writes them."""
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
    stale = [name for name, text in pages().items() if on_disk.get(name) != text]
    assert stale == [], "run `make docs`"
    assert sorted(on_disk) == sorted(pages())


def test_complete() -> None:
    text = pages()
    for dialect in (Nn, Core, Pipe):
        for definition in (*dialect.operations, *dialect.attributes):
            assert f"{definition.name}`\n" in text[f"{dialect.name}.md"]
            assert definition.__doc__, f"{definition.name} has no docstring"
    for name in (*PASS_MODULES, *PIPELINE_MODULES):
        assert f"## `{name}`\n" in text["passes.md"]


def test_main_writes_the_directory_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "new")]) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new").iterdir()} == pages()
    assert "passes.md" in capsys.readouterr().out


def test_constraints_in_words() -> None:
    assert constraint_text(BaseAttr(StringAttr)) == "`string`"
    assert constraint_text(EqAttrConstraint(f32)) == "`f32`"
    assert constraint_text(AnyAttr()) == "any"
    assert (
        constraint_text(RangeOf(AnyOf((BaseAttr(Float32Type), BaseAttr(BFloat16Type)))).of_length(1))
        == "`f32` or `bf16`"
    )
