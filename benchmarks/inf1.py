"""What AWS has published for real Inf1 chips, beside what the simulated ones do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.runs import Run, Spec, measure
from benchmarks.sensitivity import machine_with
from benchmarks.tables import Result
from neuron_mlir.machine import Fact, load_machine

READING = Path(__file__).with_name("inf1_reading.md")
"""What the differences mean; names in braces stand for numbers that are measured."""


FITTED = "inferentia1-fitted"
"""The machine with two assumed numbers chosen so that the two rows of BERT come out. `inferentia1` keeps its own; this
one says how far off the other rows are if BERT is right.
"""
PIPELINE, ALONE = 5, 6
"""Where the two rows of BERT are among `PUBLISHED`."""


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


def _yolo() -> dict[str, Any]:
    return {"cores": 1, "replicas": 4, "fp32_cast": "all-fp16"}


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
    Published(
        "YOLOv4 608, 4 single cores, batch 1, 4 requests in flight",
        Spec("yolov4-608", _yolo(), in_flight=4, requests=48),
        180,
    ),
    Published(
        "YOLOv4 608, 4 single cores, batch 1, as many in flight as go",
        Spec("yolov4-608", _yolo(), requests=64),
        267,
    ),
    *(
        Published(
            f"BERT-base, 16-core pipeline, 12 in flight; ours with an SBUF of {size} MiB",
            Spec(
                "bert-base-128",
                {"cores": 16, "sbuf_bytes_per_partition": size * 1024 * 1024 // 128},
                in_flight=12,
                requests=400,
            ),
            2009,
            5.9,
        )
        for size in (10, 16)
    ),
)


def inf1(names: Sequence[str]) -> Result:
    """AWS's own measurements of real Inf1 chips (Neuron SDK documentation and samples: ResNet-50 on an inf1.6xlarge,
    BERT-base on a pipeline of 16 NeuronCores and on one, YOLOv4 on the four of an inf1.xlarge) beside the simulated
    machine with the same cores, batch, precision and requests in flight. Difference: ours over theirs, less one.
    Weights are seeded, not trained, which changes no time. `fitted`: with the two numbers of the machine that are
    fitted to the two rows of BERT (machine `inferentia1-fitted`). `of the roofline`: of what the network's own
    operations and bytes allow."""
    result = Result(
        "inf1",
        "AWS's published numbers beside ours",
        inf1,
        [
            "what",
            "AWS, /s",
            "ours, /s",
            "difference",
            "fitted, /s",
            "difference, fitted",
            "of the roofline",
            "AWS p50, ms",
            "ours p50, ms",
            "difference of p50",
            "our DRAM, MB",
            "our program's bound, /s",
            "bound by",
        ],
    )
    runs: list[Run] = []
    for each in PUBLISHED:
        run = measure(each.spec)
        if run.error:
            result.add(
                each.what, each.per_s, None, None, None, None, None, each.p50_ms, None, None, None, None, run.error
            )
            result.limit(f"{each.what}: runs", False)
            continue
        runs.append(run)
        p50 = run.report["latency_ms"]["p50"]
        fitted = None if "sbuf_bytes_per_partition" in each.spec.options else measure(with_fitted(each.spec))
        within = [run, *([fitted] if fitted is not None and not fitted.error else [])]
        result.limit(f"{each.what}: below the roofline", all(r.share("model_bound") <= 1 for r in within))
        result.add(
            each.what,
            each.per_s,
            run.throughput,
            f"{run.throughput / each.per_s - 1:+.0%}",
            None if fitted is None or fitted.error else fitted.throughput,
            None if fitted is None or fitted.error else f"{fitted.throughput / each.per_s - 1:+.0%}",
            f"{run.share('model_bound'):.0%}",
            each.p50_ms,
            p50,
            f"{p50 / each.p50_ms - 1:+.0%}" if each.p50_ms else None,
            run.dram_bytes / 1e6,
            run.report["bound"]["throughput_per_s"] * run.batch,
            run.report["bound"]["resource"],
        )
    if len(runs) == len(PUBLISHED):
        result.notes = reading(runs) + "\n" + effects(runs[PIPELINE].throughput, runs[ALONE].throughput)
    return result


def with_fitted(spec: Spec) -> Spec:
    """The same on the machine with the fitted numbers."""
    return replace(spec, options={**spec.options, "machine": FITTED})


def fitted_facts() -> list[Fact]:
    """The numbers that are fitted, with what they are fitted to."""
    return [fact for fact in load_machine(FITTED).facts if fact.status == "fitted"]


def effects(pipeline: float, alone: float) -> str:
    """A table: what each fitted number does by itself to the two rows of BERT, which do so many inferences per second
    on the machine as it is."""
    lines = ["| fitted number | value | 16-core pipeline, /s | one core, /s | fitted |", "|---|--:|--:|--:|---|"]
    lines.append(f"| none |  | {pipeline:,.0f} | {alone:,.0f} |  |")
    for fact in fitted_facts():
        cells: list[str] = []
        for row, before in ((PIPELINE, pipeline), (ALONE, alone)):
            spec = PUBLISHED[row].spec
            run = measure(replace(spec, options={**spec.options, "machine": machine_with({fact.key: fact.value})}))
            cells.append(run.error or f"{run.throughput:,.0f} ({run.throughput / before - 1:+.0%})")
        lines.append(f"| `{fact.key}` | {fact.value:,} | {' | '.join(cells)} | {fact.source} |")
    return "\n".join(lines) + "\n"


def reading(runs: Sequence[Run]) -> str:
    """What the differences mean, with the numbers of these runs."""
    one, five, pipeline, alone, small, large = runs[0], runs[4], runs[PIPELINE], runs[ALONE], runs[9], runs[10]
    pipeline_rate, alone_rate = PUBLISHED[PIPELINE].per_s, PUBLISHED[ALONE].per_s
    machine = load_machine()
    flops = 2 * 4.1e9
    span = sorted(run.throughput for run in (pipeline, small, large))
    where = "below" if pipeline_rate < span[0] else "above" if pipeline_rate > span[-1] else "within"
    return READING.read_text(encoding="utf-8").format(
        fitted_machine=FITTED,
        fitted_numbers=" and ".join(
            f"`{fact.key}` ({fact.value:,} instead of {machine.value(fact.key):,})" for fact in fitted_facts()
        ),
        yolo_rate=runs[8].throughput,
        yolo_mb=runs[8].dram_bytes / 1e6,
        yolo_weights_mb=runs[8].weight_bytes / 1e6,
        yolo_resource=runs[8].report["bound"]["resource"],
        yolo_bound=runs[8].report["bound"]["throughput_per_s"],
        one_mb=one.dram_bytes / 1e6,
        five_mb=five.dram_bytes / 1e6,
        alone_mb=alone.dram_bytes / 1e6,
        pipeline_mb=pipeline.dram_bytes / 1e6,
        weights_mb=pipeline.weight_bytes / 1e6,
        room_mb=pipeline.report["cores"] * machine.sbuf.size_bytes / 1e6,
        alone_rate=alone_rate,
        alone_gb=alone_rate * alone.dram_bytes / 1e9,
        pipeline_rate=pipeline_rate,
        little_ms=12e3 / pipeline_rate,
        needed_gb=pipeline_rate * pipeline.dram_bytes / pipeline.report["chips"] / 1e9,
        real_share=PUBLISHED[4].per_s / 16 * flops / machine.tensor_engine.flops_per_s,
        tensor=five.report["engine_utilization"]["core 0"]["tensor"],
        five_rate=five.throughput,
        small_rate=small.throughput,
        large_rate=large.throughput,
        where=where,
        five_bound=five.report["bound"]["throughput_per_s"] * five.batch,
        five_resource=five.report["bound"]["resource"],
        pipeline_resource=pipeline.report["bound"]["resource"],
        pipeline_bound=pipeline.report["bound"]["throughput_per_s"],
    )
