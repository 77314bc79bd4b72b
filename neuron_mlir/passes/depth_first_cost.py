"""What a depth-first group costs: SBUF for its line buffers, DRAM traffic at its ends, and time its steps add."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial

from xdsl.ir import Operation, SSAValue

from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.machine import Machine
from neuron_mlir.machine.cost import core_dma_bytes_per_s, dma_bytes_charged, engine_ps, service_ps
from neuron_mlir.passes.depth_first_rows import GroupRows, goes_by_rows, height
from neuron_mlir.passes.estimate import TILE_BYTES, TILES_AT_ONCE, charged_bytes, row_bytes
from neuron_mlir.passes.layouts import element_bytes, is_large
from neuron_mlir.passes.unfolding import Unfolding, unfolding_of
from neuron_mlir.solvers.row_schedule import Rows, RowTotals, most_alive, schedule_rows

STEP_PS = 1_200_000
"""What each layer adds in each step: its last tile leaves PSUM before the next layer can begin (measured)."""
NARROW = 60
"""Columns' worth of time that a matmul and what drains it cost besides its columns."""
F32_BYTES = 4
WORTH_PERCENT = 10
"""What keeping rows may cost, in percent of the layers' own time, before computing them again is tried."""
SLACK_PERCENT = 3
"""How much longer a step of fewer rows may take, where stages work in step."""
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
    dram_bytes: int
    """DRAM traffic of maps that enter and leave, for the whole batch."""
    time_ps: int
    """Layers (rows again, moves in line buffers, narrow tiles and steps included) or DMA, whichever takes longer, and
    the first load and last store, which nothing hides.
    """
    own_ps: int = 0
    """Without DMA."""
    dma_ps: int = 0
    """All that the core's DMA moves, packing and what goes to other stages by rows included."""
    host_bytes: int = 0
    """What of `dram_bytes` are inputs and outputs of the whole network."""
    steps: int = 1
    """For the whole batch."""
    ring_bytes: int = 0
    """What of `line_bytes` are rings through which rows come from other stages, about."""
    in_step: bool = False
    """Whether other stages wait while a map goes through DRAM."""

    def time_at(self, rate: int) -> int:
        """`time_ps` if DRAM moved `rate` bytes per second."""
        moving = max(self.dma_ps, service_ps(self.dram_bytes, rate))
        if self.in_step:
            waiting = service_ps(self.dram_bytes - self.host_bytes, rate)
            return max(self.own_ps + waiting, moving) + (moving - waiting) // self.steps
        return max(self.own_ps, moving) + moving // self.steps


def working_bytes(machine: Machine, op: Operation, alone: int) -> int:
    """What a unit's temporaries take in every SBUF partition inside a group, of what they take `alone`: tiles on their
    way from and to DRAM, and what packs an input, are with the line buffers (`tile_cost`).
    """
    if unfolding_of(op) is not None:
        return 2 * F32_BYTES * machine.tensor_engine.moving_columns_max
    large = any(is_large(machine, v) for v in (*op.operands, *op.results))
    return alone - TILES_AT_ONCE * TILE_BYTES if large and alone >= TILES_AT_ONCE * TILE_BYTES else alone


@dataclass(frozen=True)
class Packing:
    """A map that a packed convolution makes, as far as it costs.

    Attributes:
        made: the map.
        row_bytes: SBUF bytes per partition of a row of the unfolded map.
        moved: DMA bytes that a row of it takes from SBUF to SBUF, all channels.
        halo: rows of it besides those made.
        stride: rows that are unfolded into one.
        beyond: rows that are unfolded besides, in each step.
    """

    made: int
    row_bytes: int
    moved: int
    halo: int
    stride: int
    beyond: int


@dataclass(frozen=True)
class MapCost:
    """What a map of a group costs, besides how its rows are scheduled.

    Attributes:
        height: its rows.
        width: its columns.
        inside: whether a unit of the group makes it.
        in_dram: whether it comes from or goes to DRAM.
        by_rows: whether it comes from or goes to another stage by rows.
        hosted: whether it comes from the host, or only goes there, through DRAM.
        charged: bytes that the whole of it counts for in a transfer, when it does either.
        line: SBUF bytes per partition of a row of one image of its buffers; 0 for what is read in place.
        fixed: SBUF bytes per partition besides.
        packings: what is unfolded from this one.
        tiles: tiles of 128 channels.
        span_ps: time of the unit that makes it, alone.
    """

    height: int
    width: int
    inside: bool
    in_dram: bool
    by_rows: bool
    hosted: bool
    charged: int
    line: int
    fixed: int
    packings: tuple[Packing, ...]
    tiles: int
    span_ps: int


@dataclass(frozen=True)
class GroupCost:
    """A group, as far as its cost goes. Equal ones cost the same.

    Attributes:
        rate: bytes per second of DRAM that the core can count on.
        in_step: whether the stage works in step with others, through streams of rows: while a map goes through DRAM,
            those wait.
    """

    rows: tuple[Rows, ...]
    maps: tuple[MapCost, ...]
    batch: int
    rate: int
    in_step: bool = False


class Facts:
    """What the costs of groups ask of values and layers, each of which is in many groups: told once."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.in_dram = cache(partial(stays_in_dram, machine))
        self.row_bytes = cache(partial(row_bytes, machine))
        self.charged_bytes = cache(partial(charged_bytes, machine))
        self.shape = cache(_shape)
        self.unfolding = cache(unfolding_of)


def group_cost(
    facts: Facts,
    group: GroupRows,
    spans: Sequence[int],
    in_dram: Sequence[bool],
    rate: int,
    by_rows: Collection[SSAValue] = (),
    in_step: bool = False,
    hosted: Collection[SSAValue] = (),
) -> GroupCost:
    """What there is to know of a group before its tile is chosen.

    Args:
        facts: of the values and layers.
        group: its maps and units.
        spans: time of each unit on the whole batch, ps.
        in_dram: for each map, whether it comes from or goes to DRAM.
        rate: bytes per second of DRAM that the core can count on.
        by_rows: maps that come from another stage by rows, or go there, instead.
        in_step: whether the stage works in step with others.
        hosted: inputs and outputs of the network.
    """
    outside = len(group.maps) - len(group.units)
    packings = {i: u for i, unit in enumerate(group.units) if (u := facts.unfolding(unit.op)) is not None}
    found: list[MapCost] = []
    for index, value in enumerate(group.maps):
        shape = facts.shape(value)
        unfoldings = [
            (outside + i, u) for i, u in packings.items() if any(r.operand is value for r in group.units[i].reads[:1])
        ]
        inside = index >= outside
        streamed = value in by_rows
        moves = in_dram[index] or streamed
        in_place = not moves and (not inside or group.rows[index].is_result)
        line = 0 if unfoldings or in_place else facts.row_bytes(value)
        found.append(
            MapCost(
                shape[2],
                shape[3],
                inside,
                in_dram[index] and not streamed,
                streamed,
                value in hosted,
                facts.charged_bytes(value) if moves else 0,
                line,
                unfoldings[0][1].buffer_bytes() if unfoldings else 0,
                tuple(
                    _packing(facts.machine, made, unfolding, height(group.maps[made])) for made, unfolding in unfoldings
                ),
                -(-shape[1] // facts.machine.sbuf.partitions),
                spans[index - outside] if inside else 0,
            )
        )
    return GroupCost(group.rows, tuple(found), facts.shape(group.maps[-1])[0], rate, in_step)


def tile_cost(machine: Machine, group: GroupCost, images: int, rows: int, recompute: bool) -> TileCost:
    """The cost of running a group by tiles of `images` images and `rows` rows of the tallest result."""
    totals, steps = _totals(group.rows, rows, recompute)
    turns = -(-group.batch // images)
    lines = rings = dram = hosted = beside = 0
    anew = [0] * len(group.maps)
    time = STEP_PS * turns * (steps * sum(m.inside for m in group.maps) - 1)
    for index, own in enumerate(group.maps):
        loaded = own.height if own.inside else totals.computed[index]
        for packing in own.packings:
            rows_packed = totals.computed[packing.made] + packing.halo * (steps if recompute else 1)
            beside += group.batch * packing.moved * rows_packed
            lines += 2 * images * (totals.buffer[packing.made] + packing.halo) * packing.row_bytes
            loaded = min(rows_packed * packing.stride, own.height * steps) + packing.beyond * steps
        if own.in_dram:
            dram += own.charged * loaded // own.height
            hosted += own.charged * loaded // own.height if own.hosted else 0
        if own.by_rows and own.inside:
            beside += own.charged
        elif own.by_rows:
            # A ring of what both sides have in hand, and copies from it.
            rings += 2 * images * -(-own.height // steps) * own.line
            time += engine_ps(machine, "vector", images * own.height * own.width * own.tiles).occupancy * turns
        lines += own.fixed
        if totals.kept[index] or own.in_dram or own.by_rows:
            twice = own.in_dram or (own.by_rows and own.inside)  # one on its way, one in use
            lines += (1 + (twice and steps * turns > 1)) * images * totals.buffer[index] * own.line
        else:
            anew[index] = images * totals.buffer[index] * own.line
        kept = totals.kept[index] * images * own.width * own.tiles
        if kept and (own.inside or own.in_dram or own.by_rows):
            time += engine_ps(machine, "vector", kept).occupancy * turns
        if not own.inside:
            continue
        span = own.span_ps * totals.computed[index] // own.height
        pixels = images * own.width * max(1, own.height // steps)
        time += span + span * NARROW // min(MOVING, pixels) - span * NARROW // MOVING
    # Of what nothing is kept a new buffer is made in each step: those that are not in use together share SBUF.
    lines += most_alive(group.rows, anew) + rings
    dma_ps = service_ps(dram + beside, core_dma_bytes_per_s(machine))
    cost = TileCost(images, rows, recompute, lines, dram, 0, time, dma_ps, hosted, steps * turns, rings, group.in_step)
    return replace(cost, time_ps=cost.time_at(group.rate))


@lru_cache(maxsize=8192)
def _totals(values: tuple[Rows, ...], rows: int, recompute: bool) -> tuple[RowTotals, int]:
    """Sums over the steps of a schedule, and how many there are. The same layers are asked about as parts of stages and
    as stages of their own, with other ends.
    """
    schedule = schedule_rows(values, rows, recompute=recompute)
    return schedule.totals, schedule.steps


def _packing(machine: Machine, made: int, unfolding: Unfolding, rows: int) -> Packing:
    """What an unfolding for a map of so many rows costs."""
    _, channels, packed, columns = unfolding.shape
    row = columns * element_bytes(type_of(unfolding.op.result).element_type)
    moved = dma_bytes_charged(machine, row, channels * row)
    stride = unfolding.op.strides[0]
    return Packing(made, row, moved, packed - rows, stride, (unfolding.reach - 1) * stride)


def choose_tile(
    machine: Machine, group: GroupCost, capacity: int, rows_wanted: int = 0, recompute_only: bool = False
) -> TileCost | None:
    """The cheapest tile whose buffers take at most `capacity` bytes per partition; None when even single rows take
    more. `rows_wanted` (when not 0) and `recompute_only` leave no choice. Computing again is tried where nothing else
    fits, and where keeping rows costs more than `WORTH_PERCENT` of the layers' own time; not where maps come or go by
    rows, each of which is there once.
    """
    best: TileCost | None = None
    if not recompute_only:
        best = _best_rows(machine, group, capacity, rows_wanted, recompute=False)
        alone = sum(own.span_ps for own in group.maps)
        enough = best is not None and (best.time_ps - alone) * 100 <= alone * WORTH_PERCENT
        if enough or any(own.by_rows for own in group.maps):
            return best
    again = _best_rows(machine, group, capacity, rows_wanted, recompute=True)
    return min((c for c in (best, again) if c is not None), key=lambda c: c.time_ps, default=None)


def _best_rows(
    machine: Machine, group: GroupCost, capacity: int, rows_wanted: int, *, recompute: bool
) -> TileCost | None:
    """The cheapest number of rows, or of images where all rows fit."""
    tallest = max(r.height for r in group.rows if r.is_result)
    choices = [min(rows_wanted, tallest)] if rows_wanted else _divided(tallest)
    known: dict[int, TileCost] = {}

    def cost(choice: int) -> TileCost:
        if choice not in known:
            known[choice] = tile_cost(machine, group, 1, choice, recompute)
        return known[choice]

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
    if not fitting:
        return None
    if fitting[0].rows == tallest:
        more = [tile_cost(machine, group, images, tallest, recompute) for images in _divided(group.batch)]
        fitting += [c for c in more if c.line_bytes <= capacity]
    best = min(fitting, key=lambda c: c.time_ps)
    if not group.in_step:
        return best
    # Rings are as deep as the steps of both sides: taller ones than gain anything only make neighbours' rings deeper.
    near = [c for c in fitting if c.time_ps * 100 <= best.time_ps * (100 + SLACK_PERCENT)]
    return min(near, key=lambda c: c.line_bytes)


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


def group_in_dram(facts: Facts, group: GroupRows) -> list[bool]:
    """Which maps of a group pass DRAM: those from outside and results that are too large for SBUF."""
    outside = len(group.maps) - len(group.units)
    return [
        (index < outside or group.rows[index].is_result) and facts.in_dram(value)
        for index, value in enumerate(group.maps)
    ]


def _shape(value: SSAValue) -> tuple[int, ...]:
    return tuple(type_of(value).get_shape())


def stays_in_dram(machine: Machine, value: SSAValue) -> bool:
    """Whether a value is too large for SBUF, and all who make and read it can do with tiles of rows."""
    return is_large(machine, value) and goes_by_rows(value)
