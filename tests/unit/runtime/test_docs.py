"""docs/artifact.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from neuron_mlir.runtime import artifact, package

PAGE = (Path(__file__).parents[3] / "docs" / "artifact.md").read_text(encoding="utf-8")


def test_numbers_on_the_page() -> None:
    assert " ".join(f"{byte:02X}" for byte in artifact.MAGIC) in PAGE
    assert f"version of the layout, {artifact.VERSION} " in PAGE
    assert f"| 56 | {package.TABLE_BYTES} | the table" in PAGE and artifact.FIXED.size == 56
    assert f"at most {artifact.TABLE_LIMIT:,}" in PAGE
    assert f"multiples of {artifact.ALIGNMENT} bytes" in PAGE
    first = artifact.aligned(artifact.FIXED.size + package.TABLE_BYTES)
    assert f"| {first} | | section `{artifact.SECTIONS[0]}`" in PAGE
    assert f"limits {artifact.PROGRAM_LIMIT >> 20} MiB and {artifact.METADATA_LIMIT >> 20} MiB" in PAGE
    places = [PAGE.index(f"| section `{name}`") for name in artifact.SECTIONS]
    assert places == sorted(places)
