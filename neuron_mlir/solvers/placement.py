"""Stages along a chain of chips: where to go on to the next chip before one is full.

Stages lie on neighbouring cores in their order. What passes between those before a border of chips and those behind it
crosses the link there, and the stages of a chip share its DRAM. Leaving cores of a chip idle moves the border: to where
less crosses, or so that fewer stages share. A dynamic program over the first stage of each chip tries all that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """Cores of stages, and the time per request of the busiest DRAM or link, picoseconds."""

    cores: tuple[int, ...]
    worst_ps: int


def place_on_chain(
    dram_ps: Sequence[int], crossing_ps: Sequence[int], per_chip: int, first: int, room: int, enough_ps: int = 0
) -> Placement:
    """A core for every stage: the busiest DRAM or link as little busy as possible, then as few cores skipped as that
    takes.

    Args:
        dram_ps: time per request of a chip's DRAM that each stage takes.
        crossing_ps: time per request of a link with all before a stage on one side and the rest on the other.
        per_chip: cores of a chip.
        first: core of the first stage.
        room: cores from the first on that may be used or skipped; at least as many as stages.
        enough_ps: no need to be faster than this.
    """
    count = len(dram_ps)
    total = [0]
    for time in dram_ps:
        total.append(total[-1] + time)
    # By the number of stages placed: of each first free core, the least worst time, and how it came about.
    reached: list[dict[int, tuple[int, tuple[int, int] | None]]] = [{} for _ in range(count + 1)]
    reached[0][first] = (enough_ps, None)
    for done in range(count):
        for start in sorted(reached[done]):
            before = reached[done][start][0]
            here = max(before, crossing_ps[done] if done else 0)
            for more in range(1, min(per_chip - start % per_chip, count - done) + 1):
                worst = max(here, total[done + more] - total[done])
                last = done + more == count
                after = start + more if last else (start // per_chip + 1) * per_chip
                # What is left has to find a core each.
                if after - first + count - done - more > room:
                    continue
                known = reached[done + more].get(after)
                if known is None or worst < known[0]:
                    reached[done + more][after] = worst, (done, start)
    after = min(reached[count], key=lambda core: (reached[count][core][0], core))
    worst_ps, step = reached[count][after]
    cores: list[int] = []
    end = count
    while step is not None:
        done, start = step
        cores[:0] = range(start, start + end - done)
        end, step = done, reached[done][start][1]
    return Placement(tuple(cores), worst_ps)
