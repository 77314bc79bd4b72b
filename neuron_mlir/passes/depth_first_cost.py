"""What a depth-first group costs: SBUF for its line buffers, DRAM traffic at its ends, and time its steps add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import core_dma_bytes_per_s, engine_ps, service_ps
from neuron_mlir.passes.depth_first_rows import GroupRows, goes_by_rows
from neuron_mlir.passes.estimate import TILE_BYTES, TILES_AT_ONCE, charged_bytes, most_alive, row_bytes
from neuron_mlir.passes.estimate_nests import element_bytes, is_large
from neuron_mlir.passes.unfolding import Unfolding, unfolding_of
from neuron_mlir.solvers.row_schedule import Rows, RowSchedule, schedule_rows

STEP_PS = 1_200_000
"""What each layer adds in each step: its last tile leaves PSUM before the next layer can begin (measured)."""
NARROW = 60
"""Columns' worth of time that a matmul and what drains it cost besides its columns."""
F32_BYTES = 4
MOVING = 512
"""Most columns of a matmul."""


@dataclass(frozen=True)
class TileCost:
    """A choice of rows for a group."""

    images: int
    rows: int
    recompute: bool
    line_bytes: int
    """SBUF bytes per partition of line buffers and of tiles on their way from and to DRAM."""
    dma_bytes: int
    """DRAM traffic of maps that enter and leave, for the whole batch."""
    time_ps: int
    """Layers (rows again, moves in line buffers, narrow tiles and steps included) or DMA, whichever takes longer, and
    the first load and last store, which nothing hides.
    """


@lru_cache(maxsize=4096)
def _schedule(rows: tuple[Rows, ...], tile: int, recompute: bool) -> RowSchedule:
    return schedule_rows(rows, tile, recompute=recompute)


def working_bytes(machine: Machine, op: Operation, alone: int) -> int:
    """What a unit's temporaries take in every SBUF partition inside a group, of what they take `alone`: tiles on their
    way from and to DRAM, and what packs an input, are with the line buffers (`tile_cost`).
    """
    if unfolding_of(op) is not None:
        return 2 * F32_BYTES * machine.tensor_engine.moving_columns_max
    large = any(is_large(machine, v) for v in (*op.operands, *op.results))
    return alone - TILES_AT_ONCE * TILE_BYTES if large and alone >= TILES_AT_ONCE * TILE_BYTES else alone


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
    packings = {i: u for i, unit in enumerate(group.units) if (u := unfolding_of(unit.op)) is not None}
    packed = {read.operand: u for i, u in packings.items() for read in group.units[i].reads[:1]}
    lines = dma = 0
    time = STEP_PS * turns * (schedule.steps * len(group.units) - 1)
    for index, value in enumerate(group.maps):
        total = group.rows[index].height
        if in_dram[index]:
            moved = total
            if index < outside:
                moved = sum(max(0, min(p[index].top, total) - max(p[index].base, 0)) for p in schedule.parts)
            dma += charged_bytes(machine, value) * moved // total
        elif index < outside:
            continue
        if value in packed:
            lines += packed[value].buffer_bytes()
            lines += sum(
                2 * images * schedule.buffer_rows(outside + position) * _row_of(unfolding)
                for position, unfolding in packings.items()
                if unfolding is packed[value]
            )
        elif schedule.steps > 1 or in_dram[index]:
            lines += (2 if in_dram[index] else 1) * images * schedule.buffer_rows(index) * row_bytes(machine, value)
        if index < outside:
            continue
        shape = type_of(value).get_shape()
        span = spans[index - outside] * schedule.computed_rows(index) // total
        pixels = images * shape[3] * max(1, total // schedule.steps)
        time += span + span * NARROW // min(MOVING, pixels) - span * NARROW // MOVING
        kept = schedule.kept_rows(index) * images * shape[3] * -(-shape[1] // machine.sbuf.partitions)
        if kept:
            time += engine_ps(machine, "vector", kept).occupancy * turns
    if schedule.steps == 1:
        lines += images * most_alive(machine, group, schedule, in_dram)
    moving = service_ps(dma, core_dma_bytes_per_s(machine))
    return TileCost(images, rows, recompute, lines, dma, max(time, moving) + moving // (schedule.steps * turns))


def _row_of(unfolding: Unfolding) -> int:
    """Bytes per partition of a row of the unfolded map."""
    return unfolding.shape[3] * element_bytes(type_of(unfolding.op.result).element_type)


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

        whole = cost(choices[0])  # in a single step maps share bytes: two steps may take more
        low, high = 1, len(choices)
        while low < high:  # the first that fits: fewer rows take less
            middle = (low + high) // 2
            if cost(choices[middle]).line_bytes <= capacity:
                high = middle
            else:
                low = middle + 1
        fitting = [whole] if whole.line_bytes <= capacity else []
        fitting += [cost(choices[n]) for n in _spread(low, len(choices))]
        if fitting and fitting[0].rows == tallest:
            more = [cost(tallest, images) for images in _divided(batch)]
            fitting += [c for c in more if c.line_bytes <= capacity]
        for found in fitting:
            if best is None or found.time_ps < best.time_ps:
                best = found
    return best


def _spread(first: int, stop: int) -> list[int]:
    """Some of the numbers from `first` on, ever further apart."""
    found: list[int] = []
    step = 1
    while first < stop:
        found.append(first)
        first += step
        step *= 2
    return found


def _divided(total: int) -> list[int]:
    """`total` in 1, 2, 3.. equal parts, the largest first, without repetition."""
    return list(dict.fromkeys(-(-total // parts) for parts in range(1, total + 1)))


def group_in_dram(machine: Machine, group: GroupRows) -> list[bool]:
    """Which maps of a group pass DRAM: those from outside and results that are too large for SBUF."""
    outside = len(group.maps) - len(group.units)
    return [
        (index < outside or group.rows[index].is_result) and stays_in_dram(machine, value)
        for index, value in enumerate(group.maps)
    ]


def stays_in_dram(machine: Machine, value: SSAValue) -> bool:
    """Whether a value is too large for SBUF, and all who make and read it can do with tiles of rows."""
    return is_large(machine, value) and goes_by_rows(value)
