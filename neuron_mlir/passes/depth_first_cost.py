"""What a depth-first group costs: SBUF for its line buffers, DRAM traffic at its ends, and time its steps add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import engine_ps
from neuron_mlir.passes.depth_first_rows import GroupRows
from neuron_mlir.passes.estimate_nests import element_bytes, is_large
from neuron_mlir.solvers.row_schedule import Rows, RowSchedule, schedule_rows

STEP_PS = 1_200_000
"""What each layer adds in each step: its last tile leaves PSUM before the next layer can begin (measured)."""


@dataclass(frozen=True)
class TileCost:
    """A choice of rows for a group."""

    images: int
    rows: int
    recompute: bool
    line_bytes: int
    """SBUF bytes per partition of line buffers and of tiles on their way from and to DRAM."""
    extra_ps: int
    """Time that the layers take more than if each ran on whole maps: rows again, moves in line buffers, steps."""
    loaded_rows: tuple[int, ...]
    """Rows read of each map from outside, for an image."""


@lru_cache(maxsize=4096)
def _schedule(rows: tuple[Rows, ...], tile: int, recompute: bool) -> RowSchedule:
    return schedule_rows(rows, tile, recompute=recompute)


def row_bytes(machine: Machine, value: SSAValue) -> int:
    """Bytes per partition of one row of one image of a map, with a border of a column on both sides."""
    shape = type_of(value).get_shape()
    return -(-shape[1] // machine.sbuf.partitions) * (shape[3] + 2) * element_bytes(type_of(value).element_type)


def tile_cost(
    machine: Machine,
    group: GroupRows,
    spans: Sequence[int],
    images: int,
    rows: int,
    recompute: bool,
    in_dram: Sequence[bool],
) -> TileCost:
    """The cost of running a group by tiles.

    Args:
        machine: of the core.
        group: its maps and units.
        spans: time of each unit on the whole batch, ps.
        images: of the batch at a time.
        rows: of the tallest result at a time.
        recompute: see `schedule_rows`.
        in_dram: for each map, whether it comes from or goes to DRAM.
    """
    schedule = _schedule(group.rows, rows, recompute)
    outside = len(group.maps) - len(group.units)
    batch = type_of(group.maps[-1]).get_shape()[0]
    turns = -(-batch // images)
    lines = extra = 0
    for index, value in enumerate(group.maps):
        if index < outside and not in_dram[index]:
            continue
        twice = 2 if in_dram[index] else 1
        lines += twice * images * schedule.buffer_rows(index) * row_bytes(machine, value)
        if index < outside:
            continue
        again = schedule.computed_rows(index) - group.rows[index].height
        extra += spans[index - outside] * again // group.rows[index].height
        shape = type_of(value).get_shape()
        kept = schedule.kept_rows(index) * images * shape[3] * -(-shape[1] // machine.sbuf.partitions)
        if kept:
            extra += engine_ps(machine, "vector", kept).occupancy * turns
    extra += STEP_PS * turns * (schedule.steps * len(group.units) - 1)
    loaded = tuple(
        sum(max(0, min(p[i].top, group.rows[i].height) - max(p[i].base, 0)) for p in schedule.parts)
        for i in range(outside)
    )
    return TileCost(images, rows, recompute, lines, extra, loaded)


def choose_tile(
    machine: Machine,
    group: GroupRows,
    spans: Sequence[int],
    in_dram: Sequence[bool],
    capacity: int,
    rows_wanted: int = 0,
    recompute_only: bool = False,
) -> TileCost | None:
    """The cheapest tile whose buffers take at most `capacity` bytes per partition; None when even single rows take
    more. `rows_wanted` (when not 0) and `recompute_only` leave no choice.
    """
    tallest = max(r.height for r in group.rows if r.is_result)
    batch = type_of(group.maps[-1]).get_shape()[0]
    best: TileCost | None = None
    for recompute in (True,) if recompute_only else (False, True):
        choices = [min(rows_wanted, tallest)] if rows_wanted else _divided(tallest)

        def cost(choice: int, images: int = 1, again: bool = recompute) -> TileCost:
            return tile_cost(machine, group, spans, images, choice, again, in_dram)

        low, high = 0, len(choices)
        while low < high:  # the first that fits: fewer rows take less
            middle = (low + high) // 2
            if cost(choices[middle]).line_bytes <= capacity:
                high = middle
            else:
                low = middle + 1
        if low == len(choices):
            continue
        found = cost(choices[low])
        if choices[low] == tallest:
            more = (cost(tallest, images) for images in _divided(batch))
            found = next((c for c in more if c.line_bytes <= capacity), found)
        if best is None or found.extra_ps < best.extra_ps:
            best = found
    return best


def _divided(total: int) -> list[int]:
    """`total` in 1, 2, 3.. equal parts, the largest first, without repetition."""
    return list(dict.fromkeys(-(-total // parts) for parts in range(1, total + 1)))


def group_in_dram(machine: Machine, group: GroupRows) -> list[bool]:
    """Which maps of a group pass DRAM: those from outside and results that are too large for SBUF."""
    found: list[bool] = []
    for index, value in enumerate(group.maps):
        inner = isinstance(value.owner, Operation) and index >= len(group.maps) - len(group.units)
        found.append((not inner or group.rows[index].is_result) and is_large(machine, value))
    return found
