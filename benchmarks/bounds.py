"""How much of the machine's limits plans reach, and how near DRAM traffic is to what there is no way around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.passes import COLUMNS, cells
from benchmarks.runs import Run, Spec, measure
from benchmarks.tables import Result

MEMORY_SHARE, COMPUTE_SHARE, LARGE_SHARE = 0.85, 0.60, 0.50


@dataclass(frozen=True)
class Claim:
    """Plans, the best of which has to reach a share of its own bound.

    Attributes:
        words: what is compiled.
        plans: options, by what they are called.
        least: share of the program bound; None: what its binding resource calls for.
        traffic: DRAM bytes per inference, as a factor on weights, input and output; None: no claim.
        requests: to time; 0: as many as it takes for a steady state. More for a long pipeline whose intervals never
            repeat, where the mean is over filling and draining as well.
    """

    words: str
    model: str
    plans: dict[str, dict[str, int]]
    least: float | None = None
    traffic: float | None = None
    requests: int = 0


def _four(batch: int) -> dict[str, dict[str, int]]:
    return {
        "4 stages": {"cores": 4, "batch_size": batch},
        "2 copies of 2 stages": {"cores": 2, "replicas": 2, "batch_size": batch},
        "4 copies": {"cores": 1, "replicas": 4, "batch_size": batch},
    }


def _large() -> dict[str, dict[str, int]]:
    return {"1 core": {"cores": 1}, **_four(1), "8 stages": {"cores": 8}, "16 stages": {"cores": 16}}


CLAIMS = (
    Claim("batch 5, 4 cores", "resnet50-224", _four(5)),
    Claim("batch 10, 4 cores", "resnet50-224", _four(10)),
    Claim("batch 10", "resnet50-224", {"1 core": {"cores": 1, "batch_size": 10}}),
    Claim("batch 6, 4 cores", "bert-base-128", {"4 copies": {"cores": 1, "replicas": 4, "batch_size": 6}}),
    Claim("16 cores", "bert-base-128", {"16 stages": {"cores": 16}}),
    Claim("16 cores", "bert-large-128", {"16 stages": {"cores": 16}}),
    Claim("64 cores", "bert-large-128", {"64 stages": {"cores": 64}}, requests=1000),
    Claim("1440 x 1440", "resnet50-1440", _large(), LARGE_SHARE, 1.3),
    Claim("1440 x 1440", "yolov3-1440", {**_large(), "20 stages": {"cores": 20}}, LARGE_SHARE, 1.5),
)


def wanted(run: Run) -> float:
    """The share of the program bound that a plan has to reach by what binds it."""
    return COMPUTE_SHARE if run.report["bound"]["binding"] == "compute" else MEMORY_SHARE


def bounds(names: Sequence[str]) -> Result:
    """Simulated throughput against the program bound (what this program computes and moves) and the model bound (what
    any program of the network on these cores must). `DRAM / least`: bytes charged at DRAM for an inference, over
    weights, input and output, each once. All passes on as `neuron-cc` has them."""
    result = Result("bounds", "Shares of the bounds", bounds, ["network", "plan", *COLUMNS, "DRAM / least"])
    highest = 0.0
    for claim in CLAIMS:
        reached: list[tuple[float, float]] = []
        traffic: list[float] = []
        errors: list[str] = []
        for words, options in claim.plans.items():
            run = measure(Spec(claim.model, dict(options), requests=claim.requests))
            title = words if words == claim.words else f"{claim.words}: {words}"
            if run.error:
                result.add(claim.model, title, *(None,) * (len(COLUMNS) + 1))
                errors.append(run.error)
                print(f"    {run.error}", flush=True)
                continue
            factor = run.dram_bytes / run.compulsory_bytes
            result.add(claim.model, title, *cells(run), factor)
            share = run.share("bound")
            highest = max(highest, share, run.share("model_bound"))
            least = wanted(run) if claim.least is None else claim.least
            reached.append((share, least))
            traffic.append(factor)
        failed = f" ({'; '.join(errors)})" if errors else ""
        share, least = max(reached, key=lambda pair: pair[0] - pair[1], default=(0.0, claim.least or MEMORY_SHARE))
        result.limit(
            f"{claim.model}, {claim.words}: {share:.1%} of the program bound, at least {least:.0%}{failed}",
            share >= least,
        )
        if claim.traffic is not None:
            factor = min(traffic, default=float("inf"))
            result.limit(
                f"{claim.model}: DRAM bytes per inference {factor:.2f} x weights, input and output; at most "
                f"{claim.traffic:g} x",
                factor <= claim.traffic,
            )
    result.limit(f"none above 100% of either bound (highest {highest:.1%})", highest <= 1)
    return result
