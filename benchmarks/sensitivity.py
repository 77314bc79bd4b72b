"""How far results lean on the numbers of the machine that are assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.networks import WORK
from benchmarks.runs import Run, Spec, measure
from benchmarks.tables import Result

MIB = 1024 * 1024
VARIED: dict[str, tuple[tuple[str, dict[str, int]], ...]] = {
    "SBUF": tuple((f"{size} MiB", {"sbuf.bytes_per_partition": size * MIB // 128}) for size in (10, 12, 16)),
    "DMA latency": tuple((f"{us:g} us", {"dma.fixed_ps": round(us * 1e6)}) for us in (1, 2, 4)),
    "DRAM share": tuple((f"{share}%", {"dram.efficiency_permille": share * 10}) for share in (70, 78, 90)),
}
"""What is varied, and to what: the middle one is the machine as it is."""
NETWORKS = ("resnet50-224", "bert-base-128")


def machine_with(overrides: Mapping[str, int]) -> str:
    """A machine file, in the working directory, with some numbers changed."""
    folder = WORK / "machines"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("-".join(f"{key}={value}" for key, value in overrides.items()) + ".toml")
    lines = ['base = "inferentia1"', *(f"{key} = {value}" for key, value in overrides.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def _holds(run: Run) -> bool:
    return not run.error and max(run.share("bound"), run.share("model_bound")) <= 1


def sensitivity(names: Sequence[str]) -> Result:
    """How far results lean on what is assumed of the machine: ResNet-50 (224, batch 1) and BERT-base (sequence 128,
    batch 1) compiled for 4 cores of machines that differ in one number, and run on them."""
    result = Result(
        "sensitivity",
        "Sensitivity to what is assumed",
        sensitivity,
        ["network", "number", "value", "/s", "to the machine as it is", "p50, ms", "DRAM, MB", "bound by"],
    )
    for model in [name for name in NETWORKS if name in names] or NETWORKS:
        base = measure(Spec(model, {"cores": 4}))
        for number, values in VARIED.items():
            for words, overrides in values:
                run = measure(Spec(model, {"cores": 4, "machine": machine_with(overrides)}))
                result.limit(f"{model}, {number} {words}: runs, and not above its bounds", _holds(run))
                if run.error:
                    result.add(model, number, words, None, None, None, None, run.error)
                    continue
                result.add(
                    model,
                    number,
                    words,
                    run.throughput,
                    f"{run.throughput / base.throughput - 1:+.1%}",
                    run.report["latency_ms"]["p50"],
                    run.dram_bytes / 1e6,
                    run.report["bound"]["resource"],
                )
    return result
