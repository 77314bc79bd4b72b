"""Plans to run a model with, as plain data: which there are, what they are rated, and which no other beats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuron_mlir.machine import Machine
    from neuron_mlir.runtime.compiler import CompileOptions


PS_PER_S = 10**12
RING_SLOTS = 2
"""Requests that wait between two stages when the program is saturated; lowering gives every stream that many slots."""


@dataclass(frozen=True, order=True)
class Plan:
    """How a model runs: `batch` inferences to a request, `copies` of a pipeline of `stages`.

    A copy has `width` cores: as many as stages, or more, when the slowest stages are split.
    """

    batch: int
    stages: int
    width: int
    copies: int

    @property
    def cores(self) -> int:
        """Cores that work."""
        return self.width * self.copies

    def chips(self, cores_per_chip: int) -> int:
        """Chips it takes: a copy goes on as few as hold it, and small ones share."""
        if self.width >= cores_per_chip:
            return self.copies * -(-self.width // cores_per_chip)
        return -(-self.copies // (cores_per_chip // self.width))

    def copies_on_a_chip(self, cores_per_chip: int) -> int:
        """Copies that share a chip's DRAM."""
        return min(self.copies, max(1, cores_per_chip // self.width))

    def options(self, common: CompileOptions) -> CompileOptions:
        """The options that compile it."""
        return replace(
            common,
            cores=self.stages,
            shard_cores=self.width if self.width > self.stages else 0,
            replicas=self.copies,
            batch_size=self.batch,
        )

    def __str__(self) -> str:
        parts = [f"batch {self.batch}", _plural(self.stages, "stage", "stages")]
        if self.width > self.stages:
            parts.append(f"split over {self.width} cores")
        return ", ".join([*parts, _plural(self.copies, "copy", "copies")])


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


@dataclass(frozen=True)
class StageEstimate:
    """What one copy of a pipeline costs, for one request."""

    batch: int
    stages: int
    width: int
    """Cores of a copy."""
    request_ps: int
    """Time of the slowest resource."""
    dram_bytes: int
    """Of all stages."""
    bottleneck: str

    @property
    def plan(self) -> Plan:
        """With one copy."""
        return Plan(self.batch, self.stages, self.width, 1)


@dataclass(frozen=True)
class Rating:
    """How good a plan is: estimated, or simulated."""

    throughput_per_s: float
    """Inferences per second: requests times batch."""
    latency_ms: float
    """Of a request of the saturated program: estimated, or the 99th percentile."""
    instance: str
    dollars_per_million: float
    """Inferences, on the cheapest instance with enough chips, on demand, this program being all it runs."""

    def beats(self, other: Rating) -> bool:
        """At least as good in all three, better in one."""
        mine, theirs = self.key(), other.key()
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    def key(self) -> tuple[float, float, float]:
        """The three numbers, less being better; latency first."""
        return self.latency_ms, -self.throughput_per_s, self.dollars_per_million


def rate(machine: Machine, plan: Plan, throughput_per_s: float, latency_ms: float) -> Rating:
    """A plan's numbers with the instance to rent for it. Raises `NeuronError` when none is large enough."""
    from neuron_mlir.machine.topology import smallest_instance

    name = smallest_instance(machine, plan.chips(machine.chip.cores) * machine.chip.cores)
    price = next(i.microdollars_per_hour for i in machine.instances if i.name == name)
    # Microdollars per second over inferences per second are dollars per million.
    return Rating(throughput_per_s, latency_ms, name, price / 3600 / throughput_per_s)


def rate_estimate(machine: Machine, plan: Plan, stage: StageEstimate) -> Rating:
    """What copies make of one pipeline: as many times the throughput, as far as a chip's DRAM serves its copies."""
    from neuron_mlir.machine import cost

    shared = plan.copies_on_a_chip(machine.chip.cores)
    request_ps = stage.request_ps
    if plan.width <= machine.chip.cores:
        request_ps = max(request_ps, cost.service_ps(shared * stage.dram_bytes, cost.dram_bytes_per_s(machine)))
    in_flight = 1 + RING_SLOTS * plan.stages
    return rate(
        machine,
        plan,
        plan.copies * plan.batch * PS_PER_S / max(1, request_ps),
        in_flight * request_ps / (PS_PER_S / 1000),
    )


def plans_of(batches: Iterable[int], shards: Iterable[int], least: int, most: int) -> list[Plan]:
    """Every plan that keeps `least` to `most` cores busy, with stages alone and with so many cores to a stage."""
    return [
        Plan(batch, stages, stages * ways, copies)
        for batch in sorted(set(batches))
        for stages in range(1, most + 1)
        for ways in sorted({1, *shards})
        for copies in range(1, most // (stages * ways) + 1)
        if least <= stages * ways * copies <= most
    ]


def front(ratings: Sequence[tuple[Plan, Rating]]) -> list[tuple[Plan, Rating]]:
    """Those that no other beats, slowest answer last; of equals the first."""
    kept: list[tuple[Plan, Rating]] = []
    # Sorted so, none beats one before it.
    for plan, rating in sorted(ratings, key=lambda item: (*item[1].key(), item[0])):
        if not any(other.beats(rating) or other.key() == rating.key() for _, other in kept):
            kept.append((plan, rating))
    return kept


def corrected(
    estimates: Sequence[tuple[Plan, Rating]], simulated: Sequence[tuple[Plan, Rating, Rating]]
) -> list[tuple[Plan, Rating]]:
    """Estimates with what simulating some plans has taught: simulated ratings where there are some; others scaled as
    the simulated plans of their kind (stages split or whole) were off, in the median.

    Args:
        estimates: of all plans.
        simulated: plans with their estimate and what the simulator says.
    """
    found = {plan: rating for plan, _, rating in simulated}
    factors: dict[bool, tuple[float, float]] = {}
    for split in (False, True):
        kind = [(guess, rating) for plan, guess, rating in simulated if (plan.width > plan.stages) == split]
        if kind:
            faster = median(rating.throughput_per_s / guess.throughput_per_s for guess, rating in kind)
            later = median(rating.latency_ms / guess.latency_ms for guess, rating in kind)
            factors[split] = faster, later
    result: list[tuple[Plan, Rating]] = []
    for plan, guess in estimates:
        faster, later = factors.get(plan.width > plan.stages, (1.0, 1.0))
        scaled = replace(
            guess,
            throughput_per_s=guess.throughput_per_s * faster,
            latency_ms=guess.latency_ms * later,
            dollars_per_million=guess.dollars_per_million / faster,
        )
        result.append((plan, found.get(plan, scaled)))
    return result


def choose_for_simulation(
    members: Sequence[tuple[Plan, Rating]], count: int, latency_ms: float | None
) -> list[tuple[Plan, Rating]]:
    """As many of a front as are to be simulated: the best of each kind within the latency, and others spread evenly."""
    within = [m for m in members if latency_ms is None or m[1].latency_ms <= latency_ms] or list(members[:1])
    if not within:
        return []
    if len(within) <= count:
        return within
    best = (
        min(within, key=lambda m: (m[1].dollars_per_million, m[0])),
        max(within, key=lambda m: (m[1].throughput_per_s, -m[0].cores)),
        within[0],
    )
    chosen = list(dict.fromkeys(best))[:count]
    for index in range(count):
        member = within[index * (len(within) - 1) // max(1, count - 1)]
        if len(chosen) < count and member not in chosen:
            chosen.append(member)
    for member in within:
        if len(chosen) < count and member not in chosen:
            chosen.append(member)
    return sorted(chosen, key=lambda m: within.index(m))


def aws_batch(machine: Machine, flops: int, weight_bytes: int) -> int:
    """The batch that AWS's rule of thumb gives: half of what makes compute and weight traffic take as long.

    `ceil(0.5 * (peak FLOPS / DRAM bytes per second) / (model FLOPs / (parameters * bytes each)))`, of a chip; AWS
    Neuron documentation, "NeuronCore batching".

    Args:
        flops: of one inference, two per multiply-add.
        weight_bytes: of the network, as it is computed with.
    """
    if not flops or not weight_bytes:
        return 1
    peak = machine.chip.cores * machine.tensor_engine.flops_per_s / machine.dram.bytes_per_s
    return math.ceil(0.5 * peak / (flops / weight_bytes))
