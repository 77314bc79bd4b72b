"""`neuron-cc --batch-size`: the batch that serves most inferences, and the largest that fits when one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.compiler import CompileOptions, collector_paused, import_for, load_machine_for
from neuron_mlir.runtime.explore import EstimateTask, Refused, SimulateTask, digest_of, estimate, simulate
from neuron_mlir.runtime.plans import rate_estimate

BATCH_MAX = 256
"""`auto` tries none beyond."""
GAIN = 0.02
"""A larger batch has to serve at least so many more inferences per second, as a share, to be worth its latency."""
NEAR = (0.01, 0.05, 0.1)
"""Simulated are the smallest batches whose estimates are within these shares of the best."""
MEMORIES = ("SBUF", "PSUM", "DRAM")

Say = Callable[[str], None]
"""Told what is being tried."""


@dataclass(frozen=True)
class Tried:
    """Inferences per second of a batch; `simulated` None where it was not, `refused` where it cannot be."""

    batch: int
    estimated: float
    simulated: float | None = None
    refused: str | None = None


def choose_batch(model: str, options: CompileOptions, say: Say) -> tuple[int, list[Tried]]:
    """The batch with the highest simulated throughput on these cores, and all that was tried, by batch.

    Batches double while the estimate gains, and the neighbours of the best are tried as well; then the smallest that
    come within 1, 5 and 10% of the best estimate are compiled and simulated, clock only. Of those within 2% of the best
    simulated the smallest is taken, which answers soonest.

    Raises:
        NeuronError: the model or an option is wrong, or no batch fits.
    """
    digest, machine = digest_of(model), load_machine_for(options)
    tried: dict[int, Tried] = {}

    def guess(batch: int) -> float:
        if batch not in tried:
            say(f"estimating batch {batch}")
            (found,) = estimate(EstimateTask(model, digest, options, batch, ((options.cores, options.shard_cores),)))
            if isinstance(found, Refused):
                tried[batch] = Tried(batch, 0.0, refused=found.reason)
            else:
                tried[batch] = Tried(
                    batch, rate_estimate(machine, replace(found.plan, copies=options.replicas), found).throughput_per_s
                )
        return tried[batch].estimated

    best = 1
    step = 2
    guess(1)
    while step <= BATCH_MAX and guess(step) > guess(best) * (1 + GAIN):
        best, step = step, step * 2
    for near in (best * 3 // 4, best * 5 // 4, best * 3 // 2):
        if near >= 1:
            guess(near)
    possible = [t for t in tried.values() if t.refused is None]
    while possible and not any(t.simulated is not None for t in tried.values()):
        top = max(t.estimated for t in possible)
        for batch in sorted({min(t.batch for t in possible if t.estimated >= top * (1 - near)) for near in NEAR}):
            say(f"simulating batch {batch}")
            answer = simulate(SimulateTask(model, digest, replace(options, batch_size=batch)))
            if isinstance(answer, Refused):
                tried[batch] = replace(tried[batch], refused=answer.reason)
            else:
                tried[batch] = replace(tried[batch], simulated=answer["throughput_per_s"] * batch)
        possible = [t for t in tried.values() if t.refused is None]
    measured = [t for t in tried.values() if t.simulated is not None]
    if not measured:
        raise NeuronError(f"no batch can run: {'; '.join(dict.fromkeys(t.refused or '' for t in tried.values()))}")
    most = max(t.simulated or 0.0 for t in measured)
    chosen = min(t.batch for t in measured if (t.simulated or 0.0) >= most * (1 - GAIN))
    return chosen, sorted(tried.values(), key=lambda t: t.batch)


def fits(model: str, options: CompileOptions, batch: int) -> bool:
    """Whether a batch finds room, as far as `core-allocate` can tell, which is where memory runs out."""
    from neuron_mlir.passes.pipelines import load_pipeline
    from neuron_mlir.runtime.modules import make_context

    options = replace(options, batch_size=batch)
    with collector_paused():
        module, _, factor = import_for(Path(model), options, load_machine_for(options))
        context = make_context()
        try:
            for step in load_pipeline(replace(options, batch=factor).pipeline().expand()):
                if step.name == "core-schedule":
                    break
                step.apply(context, module)
        except NeuronError as error:
            if is_shortage(error):
                return False
            raise
    return True


def is_shortage(error: NeuronError) -> bool:
    """Whether an error says that a memory is too small for what a request takes."""
    resource = error.resource or ""
    return resource.startswith(MEMORIES) and "for weights" not in resource


def largest_that_fits(model: str, options: CompileOptions, too_large: int, guess: int, say: Say) -> int | None:
    """The largest batch below one that does not fit; None when not even 1 does.

    A batch that fits is taken to mean that smaller ones do. The search goes from the guess up or down in growing steps
    until it has passed the limit, then by bisection.

    Raises:
        NeuronError: a batch fails for another reason than room.
    """
    low, high = 0, too_large
    middle = min(max(1, guess), too_large - 1)
    step = max(1, middle // 16)
    while high - low > 1:
        say(f"trying batch {middle}: the largest that fits is {low or 'below'} to {high - 1}")
        if fits(model, options, middle):
            low = middle
            middle = middle + step
        else:
            high = middle
            middle = middle - step
        step *= 2
        if not low < middle < high or (low and high < too_large):
            middle = (low + high) // 2
    return low or None


def refuse_batch(error: NeuronError, model: str, options: CompileOptions, say: Say) -> NeuronError:
    """The error of a batch that is too large, with the largest that fits; other errors as they are."""
    batch = options.batch_size
    if batch is None or batch == 1 or not is_shortage(error):
        return error
    guess = batch // 2
    if isinstance(error.needed, int) and isinstance(error.available, int):
        guess = batch * error.available // error.needed
    largest = largest_that_fits(model, options, batch, guess, say)
    error.message = f"batch {batch} is too large: {error.message}"
    error.advice = (
        f"--batch-size {largest}, the largest that fits"
        if largest
        else f"not even one inference at a time fits; {error.advice or 'another model'}"
    )
    return error
