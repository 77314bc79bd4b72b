"""Whether the hazard checker finds what goes wrong: programs of the compiler with one thing changed.

`python -m benchmarks hazards`. The ground truth is experiment, not the checker's own rules: a changed program is run
under random latencies on memories that are bytes (`neuron_mlir.simulator.timings`), and is broken when an output is not
that of the unchanged program, or none comes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.mutants import PROGRAMS, Mutation, Small, mutations
from benchmarks.tables import Result
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.hazards import requests_to_check
from neuron_mlir.simulator.program import read_program
from neuron_mlir.simulator.run import random_inputs, run_module
from neuron_mlir.simulator.timings import TimedRunner, Timing, same_outputs
from neuron_mlir.weights import open_weights

TIMINGS = 24
"""That a changed program is run under before it is taken for one that computes the same."""
CAUGHT_LIMIT = 0.99
REQUESTS = 20
"""That a changed program is given at most."""
PER_PROGRAM = 300
SAMPLES = {"attention": 120, "residual": 50}
"""Places changed in programs that take longer; of the others `PER_PROGRAM`, or all there are."""


@dataclass(frozen=True)
class Verdict:
    """Of one changed program.

    Attributes:
        broken: some timing changes an output.
        says: the checker's words, in short; empty when it finds nothing.
    """

    broken: bool
    says: str


class Judge:
    """Knows what a program computes, and judges changed copies of it."""

    def __init__(self, small: Small):
        self.small = small
        self.weights: Any = open_weights(small.module)
        program = read_program(small.module)
        self.requests = requests_to_check(program)
        self.feeds = [dict(random_inputs(small.module, seed)) for seed in range(min(self.requests, REQUESTS))]
        self.expected = TimedRunner(program, self.weights).run(self.feeds, Timing(0, spread=0))

    def says(self, module: Any) -> str:
        """What the simulator finds with its default settings, up to the first colon."""
        try:
            run_module(module, self.requests, values=False)
        except NeuronError as error:
            return error.message.split(":")[0].split(",")[0][:60]
        return ""

    def broken(self, module: Any, timings: int = TIMINGS) -> bool:
        """Whether some timing changes an output."""
        try:
            runner = TimedRunner(read_program(module), self.weights)
            for seed in range(timings):
                timing = Timing(seed, spread=0 if not seed else 3.0)
                if not same_outputs(runner.run(self.feeds, timing), self.expected):
                    return True
        except (NeuronError, ValueError, IndexError, TypeError):
            # It does not end, does not fit, or reaches outside a buffer.
            return True
        return False

    def judge(self, mutation: Mutation, timings: int = TIMINGS) -> Verdict:
        """Try a changed copy."""
        module = mutation.apply(self.small.module)
        return Verdict(self.broken(module, timings), self.says(module))


def sample(small: Small, count: int, seed: int = 0) -> list[Mutation]:
    """Places to change, evenly among the kinds, the same for a seed."""
    rnd = random.Random(seed)
    kinds: dict[str, list[Mutation]] = {}
    for mutation in mutations(small.module):
        kinds.setdefault(mutation.kind, []).append(mutation)
    for places in kinds.values():
        rnd.shuffle(places)
    found: list[Mutation] = []
    while len(found) < count and any(kinds.values()):
        found += [places.pop() for places in kinds.values() if places]
    return sorted(found[:count], key=lambda mutation: mutation.where)


def hazards(names: Sequence[str]) -> Result:
    """Small programs of the compiler with one thing wrong in their final form: a semaphore waited for too little or too
    late or signalled too early, an address shifted, a buffer made smaller. `broken`: of these, under one of 24 random
    timings an output differs or none comes. `found`: of the broken ones, the simulator refuses with its default
    settings. `found, harmless`: it refuses although no difference was seen: a race whose loser is never read, or that
    24 timings do not show. The unchanged program has to pass the checker, and to give the same under all timings."""
    result = Result(
        "hazards",
        "Hazards: programs with one thing wrong",
        hazards,
        ["program", "changed", "broken", "found", "share found", "found, harmless", "passes unchanged"],
    )
    missed: list[str] = []
    words: dict[str, int] = {}
    total = caught = 0
    for name, make in PROGRAMS.items():
        small = make()
        judge = Judge(small)
        good = not judge.says(small.module) and not judge.broken(small.module, 2 * TIMINGS)
        verdicts = [(mutation, judge.judge(mutation)) for mutation in sample(small, SAMPLES.get(name, PER_PROGRAM))]
        broken = [(mutation, verdict) for mutation, verdict in verdicts if verdict.broken]
        found = sum(bool(verdict.says) for _, verdict in broken)
        harmless = sum(bool(verdict.says) for _, verdict in verdicts) - found
        missed += [f"{name}: {mutation.kind}, operation {mutation.where}" for mutation, v in broken if not v.says]
        for _, verdict in verdicts:
            if verdict.says:
                words[verdict.says] = words.get(verdict.says, 0) + 1
        total, caught = total + len(broken), caught + found
        result.add(name, len(verdicts), len(broken), found, found / max(1, len(broken)), harmless, good)
        result.limit(f"{name}: passes unchanged", good)
    result.limit(f"at least {CAUGHT_LIMIT:.0%} of the {total:,} broken programs found", caught >= CAUGHT_LIMIT * total)
    said = "\n".join(f"- {text}: {count:,}" for text, count in sorted(words.items(), key=lambda item: -item[1]))
    result.notes = f"What the simulator said:\n\n{said}\n"
    if missed:
        result.notes += "\nNot found:\n\n" + "\n".join(f"- {text}" for text in missed) + "\n"
    return result
