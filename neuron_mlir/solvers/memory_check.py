"""Is a memory plan valid? `python -m neuron_mlir.solvers.memory_check PLAN.csv --capacity N`.

Reads the rows `id,lower,upper,size,offset` (`upper` not included) and looks at nothing else: it shares no code with
what makes plans. Exit codes: 0 valid; 1 not valid, with each mistake in a line; 2 the input makes no sense.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuron_mlir.errors import NeuronError


@dataclass(frozen=True, slots=True)
class Row:
    """A buffer in bytes [offset, offset + size) at times [lower, upper)."""

    id: str
    lower: int
    upper: int
    size: int
    alignment: int
    offset: int


def read_rows(path: str, planned: bool = True) -> list[Row]:
    """The rows of a file; without offsets they are 0. Raises `NeuronError` with the line of what is no row."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            needed = ["id", "lower", "upper", "size"] + (["offset"] if planned else [])
            header = [name.strip() for name in reader.fieldnames or ()]
            if missing := [name for name in needed if name not in header]:
                raise NeuronError(f"missing column {', '.join(missing)}", location=path)
            reader.fieldnames = header
            return [_row(cells, planned, f"{path}:{reader.line_num}") for cells in reader]
    except OSError as error:
        raise NeuronError(f"cannot read the file: {error.strerror}", location=path) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise NeuronError(f"not a CSV file: {error}", location=path) from None


def _row(cells: dict[str, str | None], planned: bool, where: str) -> Row:
    numbers: dict[str, int] = {}
    for name in ("lower", "upper", "size", "alignment", "offset"):
        if (name == "alignment" and not cells.get(name)) or (name == "offset" and not planned):
            numbers[name] = 1 if name == "alignment" else 0
            continue
        try:
            numbers[name] = int(cells.get(name) or "")
        except ValueError:
            raise NeuronError(f"{name} '{cells.get(name)}' is not a whole number", location=where) from None
    row = Row((cells["id"] or "").strip(), **numbers)
    if row.size < 0 or row.lower >= row.upper or row.alignment < 1:
        raise NeuronError(f"'{row.id}' is not a buffer: {row.lower} to {row.upper}, {row.size} bytes", location=where)
    return row


def mistakes(rows: Sequence[Row], capacity: int | None = None) -> list[str]:
    """What is wrong with a plan, a line each; empty for a valid one."""
    found: list[str] = []
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            found.append(f"id '{row.id}' is there twice")
        seen.add(row.id)
        if row.offset < 0:
            found.append(f"'{row.id}' is at {row.offset}, below 0")
        if row.offset % row.alignment:
            found.append(f"'{row.id}' at {row.offset} is not aligned to {row.alignment}")
        if capacity is not None and row.offset + row.size > capacity:
            found.append(f"'{row.id}' ends at {row.offset + row.size}, above the capacity {capacity}")
    return found + _overlaps(rows)


def _overlaps(rows: Sequence[Row]) -> list[str]:
    """Sweep over time: what starts must not touch its neighbours in bytes among what is alive."""
    found: list[str] = []
    events = [(r.lower, 1, n) for n, r in enumerate(rows) if r.size] + [
        (r.upper, 0, n) for n, r in enumerate(rows) if r.size
    ]
    live: list[tuple[int, int]] = []
    """Offset and number, by offset. Once two overlap, the later one is left out."""
    skipped: set[int] = set()
    for time, starts, n in sorted(events):
        row = rows[n]
        if not starts:
            if n not in skipped:
                del live[bisect_left(live, (row.offset, n))]
            continue
        at = bisect_left(live, (row.offset, n))
        near = [live[i][1] for i in (at - 1, at) if 0 <= i < len(live)]
        clash = [
            m for m in near if rows[m].offset < row.offset + row.size and row.offset < rows[m].offset + rows[m].size
        ]
        for m in clash:
            found.append(f"'{rows[m].id}' at {rows[m].offset} and '{row.id}' at {row.offset} overlap at time {time}")
        if clash:
            skipped.add(n)
        else:
            insort(live, (row.offset, n))
    return found


def live_peak(rows: Sequence[Row]) -> int:
    """The most bytes alive at one time: no plan needs less."""
    changes = sorted([(r.lower, 1, r.size) for r in rows] + [(r.upper, 0, -r.size) for r in rows])
    live = most = 0
    for _, _, change in changes:
        live += change
        most = max(most, live)
    return most


def _differences(rows: Sequence[Row], wanted: Sequence[Row]) -> list[str]:
    """What a plan has other than the instance it should be of."""
    plan, instance = ({r.id: (r.lower, r.upper, r.size, r.alignment) for r in some} for some in (rows, wanted))
    found = [f"'{name}' of the instance is not in the plan" for name in instance if name not in plan]
    found += [f"'{name}' of the plan is not in the instance" for name in plan if name not in instance]
    return found + [
        f"'{name}' is another buffer in the instance" for name in plan if plan[name] != instance.get(name, plan[name])
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a file. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m neuron_mlir.solvers.memory_check", description="Say whether a memory plan is valid."
    )
    parser.add_argument("plan", help="CSV with the columns id,lower,upper,size,offset (upper not included)")
    parser.add_argument("--capacity", type=int, help="bytes there are")
    parser.add_argument("--instance", help="CSV that the plan should be of: the same ids, times and sizes")
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    args = parser.parse_args(arguments)
    try:
        rows = read_rows(args.plan)
        wrong = mistakes(rows, args.capacity)
        if args.instance:
            wrong += _differences(rows, read_rows(args.instance, planned=False))
    except NeuronError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 2
    peak = max((r.offset + r.size for r in rows), default=0)
    if args.json:
        answer = {
            "valid": not wrong,
            "buffers": len(rows),
            "peak": peak,
            "live_peak": live_peak(rows),
            "mistakes": wrong,
        }
        print(json.dumps(answer, indent=1))
    elif not wrong:
        print(f"valid: {len(rows)} buffers, peak {peak}, most bytes alive {live_peak(rows)}")
    else:
        print("\n".join([f"not valid: {len(wrong)} mistakes", *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
