"""The memory plan on instances without slack: `python -m benchmarks.memory_plan`, or `memory_plan` of the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from benchmarks.memory_instances import cut_rectangle, refilled
from benchmarks.tables import Result, cpu_of
from neuron_mlir.solvers.memory_plan import Buffer, check_plan, plan

CAPACITY = 1 << 20
SEEDS = (0,)
WORK = 80_000_000
LIMIT_S = 30.0


def memory_plans(networks: Sequence[str] = ()) -> Result:
    """Rectangles of time and bytes cut to pieces at random: all bytes are alive at all times, so the optimum is the
    capacity, 2^20, and no byte may be lost. Pinwheels are the share of cuts in five pieces that no straight cut
    separates; over few moments many begin and end together, and sizes say less of what fits what. Where no share is
    named, the rectangle is filled from moment to moment: what ends leaves room for others, and only the whole is a
    rectangle. Best fit is the best of the greedy orders, as a multiple of the capacity; the search may take 80 million
    steps. The networks named do not matter.
    """
    result = Result(
        "memory_plan",
        "Memory plans without slack",
        memory_plans,
        ("moments", "pinwheels", "buffers", "seed", "best fit", "solved", "method", "CPU s"),
    )
    solved = timely = count = 0
    for moments, pinwheels, seed, instance in _instances():
        greedy = plan(instance, CAPACITY, work=0)
        seconds, answer = cpu_of(lambda instance=instance: plan(instance, CAPACITY, work=WORK))
        check_plan(instance, answer)
        good = answer.peak <= CAPACITY
        result.add(moments, pinwheels, len(instance), seed, greedy.peak / CAPACITY, good, answer.method, seconds)
        count += 1
        solved += good
        timely += good and seconds <= LIMIT_S
    result.limit(f"most of {count} solved within {LIMIT_S:.0f} CPU s: {timely}", 2 * timely > count)
    return result


def _instances() -> Iterator[tuple[int, float | None, int, list[Buffer]]]:
    """Moments, share of pinwheels, seed, buffers."""
    for moments in (60, 1000, 1 << 20):
        for pinwheels in (0.0, 0.3, 1.0):
            for buffers in (150, 300, 450):
                for seed in SEEDS:
                    yield moments, pinwheels, seed, cut_rectangle(buffers, moments, CAPACITY, seed, pinwheels)
    for width, life in ((8, 30), (20, 60)):
        for buffers in (150, 300, 450):
            for seed in SEEDS:
                instance = refilled(buffers, width, life, CAPACITY, seed)
                yield max(b.upper for b in instance) + 1, None, seed, instance


if __name__ == "__main__":
    table = memory_plans()
    table.write()
    print("\n" + table.markdown())
    sys.exit(0 if table.good else 1)
