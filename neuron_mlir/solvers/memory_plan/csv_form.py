"""The public form of instances: a CSV file with the columns `id,lower,upper,size`, and `offset` once planned.

A buffer is alive from `lower` up to, not including, `upper`. Ids are any text. The form and its optional column
`alignment` are those of MiniMalloc (github.com/google/minimalloc).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.memory_plan.model import Buffer

COLUMNS = ("id", "lower", "upper", "size")


@dataclass(frozen=True, slots=True)
class Instance:
    """A file: its rows as they are, and the buffers of those that take bytes, numbered by row."""

    header: list[str]
    rows: list[list[str]]
    names: list[str]
    buffers: list[Buffer]


def read_instance(text: str, name: str) -> Instance:
    """Read a file's text; `name` is for messages.

    A column `alignment` counts, `offset` is what the plan replaces, others are kept. Raises `NeuronError` with the line
    for anything that is not an instance.
    """
    try:
        lines = [(n, row) for n, row in _rows(text) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise NeuronError(f"not a CSV file: {error}", location=name) from None
    if not lines:
        raise NeuronError("the file is empty", location=name, advice=f"a header {','.join(COLUMNS)} and one row each")
    header = [cell.strip() for cell in lines[0][1]]
    if missing := [c for c in COLUMNS if c not in header]:
        raise NeuronError(
            f"missing column {', '.join(missing)}; the columns are {','.join(header)}",
            location=f"{name}:{lines[0][0]}",
            advice=f"a header {','.join(COLUMNS)}",
        )
    if len(set(header)) < len(header):
        twice = next(c for n, c in enumerate(header) if c in header[:n])
        raise NeuronError(f"column '{twice}' is there twice", location=f"{name}:{lines[0][0]}")
    kept = [n for n, column in enumerate(header) if column != "offset"]
    seen: dict[str, int] = {}
    buffers: list[Buffer] = []
    for position, (line, row) in enumerate(lines[1:]):
        where = f"{name}:{line}"
        if len(row) != len(header):
            raise NeuronError(f"{len(row)} fields, the header has {len(header)}", location=where)
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        if (first := seen.setdefault(cells["id"], line)) != line:
            raise NeuronError(f"id '{cells['id']}' is also that of line {first}", location=where)
        if buffer := _buffer(position, cells, where):
            buffers.append(buffer)
    rows = [[row[n] for n in kept] for _, row in lines[1:]]
    return Instance([header[n] for n in kept], rows, list(seen), buffers)


def write_plan(instance: Instance, offsets: Mapping[int, int]) -> str:
    """The same rows with their offsets, by position of the row; what takes no bytes is at 0."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*instance.header, "offset"])
    for position, row in enumerate(instance.rows):
        writer.writerow([*row, str(offsets.get(position, 0))])
    return text.getvalue()


def _rows(text: str) -> Sequence[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    return [(reader.line_num, row) for row in reader]


def _buffer(position: int, cells: Mapping[str, str], where: str) -> Buffer | None:
    lower, upper, size = (_number(cells, column, where) for column in COLUMNS[1:])
    alignment = _number(cells, "alignment", where) if cells.get("alignment") else 1
    if size < 0:
        raise NeuronError(f"size {size} is negative", location=where)
    if lower >= upper:
        raise NeuronError(f"lower {lower} is not less than upper {upper}", location=where)
    if alignment < 1:
        raise NeuronError(f"alignment {alignment} is less than 1", location=where)
    if cells.get("gaps"):
        raise NeuronError("buffers with gaps are not supported", location=where, advice="one row for each part")
    return Buffer(position, lower, upper - 1, size, alignment) if size else None


def _number(cells: Mapping[str, str], column: str, where: str) -> int:
    text = cells[column]
    try:
        if "_" in text:
            raise ValueError
        return int(text)
    except ValueError:
        raise NeuronError(f"{column} '{text}' is not a whole number", location=where) from None
