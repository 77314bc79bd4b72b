"""What AWS has published for real Inf1 chips, beside what the simulated ones do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.runs import Spec, measure
from benchmarks.tables import Result


@dataclass(frozen=True)
class Published:
    """A row of AWS's tables.

    Attributes:
        what: the network and how it was run.
        spec: the same here.
        per_s: inferences per second.
        p50_ms: None where none is given.
    """

    what: str
    spec: Spec
    per_s: float
    p50_ms: float | None = None


def _resnet(batch: int) -> dict[str, Any]:
    return {"cores": 1, "replicas": 16, "batch_size": batch, "fp32_cast": "all-fp16"}


PUBLISHED = (
    *(
        Published(f"ResNet-50 fp16, 16 single cores, batch {batch}", Spec("resnet50-224", _resnet(batch)), rate)
        for batch, rate in zip((1, 2, 3, 4, 5), (3115, 5150, 5820, 6200, 6400), strict=True)
    ),
    Published(
        "BERT-base, sequence 128, 16-core pipeline, batch 1, 12 requests in flight",
        Spec("bert-base-128", {"cores": 16}, in_flight=12, requests=400),
        2009,
        5.9,
    ),
    Published(
        "BERT-base, sequence 128, one core, batch 1",
        Spec("bert-base-128", {"cores": 1}, in_flight=1, requests=20),
        126,
        7.9,
    ),
)


def aws(names: Sequence[str]) -> Result:
    """AWS's own measurements of real Inf1 chips (Neuron SDK documentation and samples: ResNet-50 on an inf1.6xlarge,
    BERT-base on a pipeline of 16 NeuronCores and on one) beside the simulated machine with the same cores, batch,
    precision and requests in flight. Difference: ours over theirs, less one. Weights are seeded, not trained, which
    changes no time."""
    result = Result(
        "aws",
        "AWS's published numbers beside ours",
        aws,
        [
            "what",
            "AWS, /s",
            "ours, /s",
            "difference",
            "AWS p50, ms",
            "ours p50, ms",
            "difference of p50",
            "our program's bound, /s",
            "bound by",
        ],
    )
    for each in PUBLISHED:
        run = measure(each.spec)
        if run.error:
            result.add(each.what, each.per_s, None, None, each.p50_ms, None, None, None, run.error)
            result.limit(f"{each.what}: runs", False)
            continue
        p50 = run.report["latency_ms"]["p50"]
        result.add(
            each.what,
            each.per_s,
            run.throughput,
            f"{run.throughput / each.per_s - 1:+.0%}",
            each.p50_ms,
            p50,
            f"{p50 / each.p50_ms - 1:+.0%}" if each.p50_ms else None,
            run.report["bound"]["throughput_per_s"] * run.batch,
            run.report["bound"]["resource"],
        )
    result.notes = READING
    return result


READING = ""
"""What the differences mean."""
