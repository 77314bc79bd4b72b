"""What runs of layers cost as stages of their own, grouped depth first: what `pipe-stage` cuts by."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from xdsl.ir import Block, Operation

from neuron_mlir.machine import Machine
from neuron_mlir.passes.depth_first_cost import TileCost
from neuron_mlir.passes.depth_first_grouping import LONGEST, Ends, Grouping
from neuron_mlir.solvers.fusion import cover_intervals

LONG = 3
"""How many times its even share of the layers' time a stage may take to be looked at as one group."""


@dataclass(frozen=True)
class RunCosts:
    """What runs of the layers of a block cost as stages of their own, in the groups that the pass would make.

    Attributes:
        layers: the layers, in order.
        time_ps: of layers `start` to `stop - 1`, as `[start][stop]`: theirs, and what maps in DRAM add.
        dram_bytes: of their maps in DRAM, those that enter and leave the run included.
        shared_ps: their time when all cores of a chip move maps all the time.
        streamed: of runs that can be one group which takes and gives its maps by rows (`pipe-stream-rows`), with all
            weights in SBUF: its time, and its bytes of the network's inputs and outputs in DRAM.
    """

    layers: list[Operation]
    time_ps: list[list[int]]
    dram_bytes: list[list[int]]
    shared_ps: list[list[int]]
    streamed: dict[tuple[int, int], tuple[int, int]]

    def within(self, limit: int) -> tuple[list[list[int]], list[list[int]], list[list[bool]]]:
        """Time and DRAM bytes of runs where stages may take `limit` ps, and whether each is one group: if it then takes
        no longer than that, or than several groups.
        """
        times, sizes = ([list(row) for row in table] for table in (self.time_ps, self.dram_bytes))
        fits = [[False] * len(row) for row in times]
        for (start, stop), (time, size) in self.streamed.items():
            if time <= max(limit, self.shared_ps[start][stop]):
                times[start][stop], sizes[start][stop], fits[start][stop] = time, size, True
        return times, sizes, fits


def run_costs(machine: Machine, block: Block, cores: int, rate: int, eased: int) -> RunCosts | None:
    """What runs of a block's layers cost as stages on so many cores; None where no map is too large for SBUF.

    Groups are made for cores that can count on `rate` bytes per second of DRAM each; what those take that pass maps
    through DRAM is reckoned with `eased`, as not all cores of a chip do so all the time.
    """
    grouping = Grouping(machine, block, Ends())
    if not any(grouping.moves):
        return None

    def tile(start: int, stop: int) -> TileCost | None:
        grouping.rate = rate
        return grouping.tiles.get((start, stop)) if grouping.is_group(start, stop) else None

    def cost(start: int, stop: int) -> int | None:
        grouping.rate = rate
        return grouping.cost(start, stop)

    def time(start: int, stop: int) -> int:
        found = tile(start, stop)
        grouping.rate = eased
        return grouping.alone(start) if found is None else found.time_at(eased)

    def moved(start: int, stop: int) -> int:
        found = tile(start, stop)
        alone = grouping.alone_bytes(start) + grouping.again_bytes(start)
        return alone if found is None else found.dram_bytes

    def shared(start: int, stop: int) -> int:
        return cost(start, stop) or 0

    count = len(grouping.layers)
    amounts = (time, moved, shared)
    times, sizes, costs = cover_intervals(count, cost, amounts, longest=LONGEST, least=grouping.least)
    single = grouping.with_ends(Ends.of_any_stage(block))
    single.rate = eased
    longest = LONG * single.spans[-1] // cores + max(b - a for a, b in pairwise(single.spans))
    streamed: dict[tuple[int, int], tuple[int, int]] = {}
    for start in range(count):
        for stop in range(start + 1, min(count, start + LONGEST) + 1):
            if single.spans[stop] - single.spans[start] > longest or not single.able_together(start, stop):
                break
            if not any(grouping.moves[start:stop]):
                # Its maps are whole in SBUF, as several layers as well.
                continue
            found = single.tile(start, stop)
            if found is None:
                break
            streamed[start, stop] = found.time_ps, found.dram_bytes
    return RunCosts(grouping.layers, times, sizes, costs, streamed)
