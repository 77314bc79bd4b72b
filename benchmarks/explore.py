"""What `neuron-explore` finds for each network, held against the bound that no plan beats.

`python -m benchmarks.explore NAME FILE` explores one network in a process of its own, and prints what it found as JSON.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.models import MODELS, model_file
from benchmarks.networks import WORK
from benchmarks.runs import MEMORY_LIMIT, sources
from benchmarks.tables import Result

SHARE = 0.5
CPU_S = 600
"""For the whole table."""
CPU_LIMIT_S = 300
"""For one network: it is a row without numbers if it takes longer."""


@dataclass(frozen=True)
class Search:
    """What is tried for a network: less than `neuron-explore` tries by itself, so that the table takes minutes.

    Attributes:
        cores: the fewest and the most.
        batches: inferences per request.
        simulations: plans that are simulated at most; all are estimated.
    """

    cores: tuple[int, int]
    batches: tuple[int, ...]
    simulations: int = 4

    def __str__(self) -> str:
        first, last = self.cores
        cores = f"{first} to {last} cores" if first < last else f"{first} cores"
        return f"{cores}, batch {', '.join(map(str, self.batches))}"


SEARCHES: Mapping[str, Search] = {
    "resnet50-224": Search((1, 4), (5, 10, 16), 6),
    "resnet50-1440": Search((1, 4), (1, 2)),
    "yolov3-416": Search((1, 4), (1, 4, 8)),
    "yolov3-1440": Search((1, 4), (1,)),
    "vgg16": Search((1, 4), (1, 8, 16)),
    "bert-base-128": Search((1, 4), (1, 6, 12)),
    "bert-large-128": Search((16, 16), (1,)),
    "dlrm": Search((1, 4), (64, 256)),
    "unet-512": Search((1, 4), (1,)),
}


def exploration(names: Sequence[str]) -> Result:
    """`neuron-explore` on each network: all plans of a batch, stages and copies within what was searched are estimated,
    and of the front as many as it says simulated. Best: the most inferences for a dollar, as the tool chooses by
    default. Nearest: of the simulated plans the one that reaches most of the model bound, which no program for as many
    cores beats (docs/simulator.md). CPU seconds of one process and thread."""
    result = Result(
        "explore",
        "The best plans that neuron-explore finds",
        exploration,
        [
            "network",
            "searched",
            "estimated",
            "simulated",
            "best plan",
            "inferences/s",
            "p99, ms",
            "$/million",
            "of program bound",
            "of model bound",
            "bound by",
            "nearest to its model bound",
            "inferences/s there",
            "share there",
            "CPU s",
        ],
    )
    total = 0.0
    for name in [name for name in MODELS if name in names or not set(names) & set(MODELS)]:
        found = explored(name)
        total += found["cpu_s"]
        if "error" in found:
            result.add(name, str(SEARCHES[name]), *(None,) * 12, found["cpu_s"])
            result.limit(f"{name}: {found['error']}", False)
            continue
        best, near = found["best"], found["nearest"]
        result.add(
            name,
            str(SEARCHES[name]),
            found["estimated"],
            found["simulated"],
            best["plan"],
            best["inferences_per_s"],
            best["p99_ms"],
            best["dollars_per_million"],
            f"{best['bound_share']:.0%}",
            f"{best['model_share']:.0%}",
            best["bound"],
            near["plan"],
            near["inferences_per_s"],
            f"{near['model_share']:.0%}",
            found["cpu_s"],
        )
        share = max(best["model_share"], near["model_share"])
        result.limit(
            f"{name}: {share:.0%} of the model bound ({near['model_bound']}), at least {SHARE:.0%}", share >= SHARE
        )
        result.limit(f"{name}: no plan above it", share <= 1)
    result.limit(f"{total:.0f} CPU s, at most {CPU_S}", total <= CPU_S)
    return result


def explored(name: str) -> dict[str, Any]:
    """What exploring a network gave; from before when nothing has changed since."""
    path = model_file(name)
    files = [sources(), Path(__file__).read_text(encoding="utf-8"), name, asdict(SEARCHES[name])]
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:24]
    kept = WORK / "explored" / f"{key}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "benchmarks.explore", name, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=None, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        why = "over its limit of CPU time" if done.returncode == -24 else f"exit code {done.returncode}"
        return {"error": why, "cpu_s": float(CPU_LIMIT_S) if done.returncode == -24 else 0.0}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(lines[-1], encoding="utf-8")
    return json.loads(lines[-1])


# In the process -------------------------------------------------------------------------------------------------------


def explore_here(search: Search, path: Path) -> dict[str, Any]:
    """Explore."""
    from neuron_mlir.errors import NeuronError
    from neuron_mlir.runtime.compiler import CompileOptions, cpu_seconds
    from neuron_mlir.runtime.explore import Simulated, explore
    from neuron_mlir.runtime.workers import open_workers

    start, wall = cpu_seconds(), time.monotonic()

    def watch(phase: str, done: int, total: int, last: str) -> None:
        print(f"    {time.monotonic() - wall:6.0f} s {phase} {done} of {total} {last}", file=sys.stderr, flush=True)

    def numbers(each: Simulated) -> dict[str, Any]:
        report = each.report
        per_s = report["throughput_per_s"]
        return {
            "plan": str(each.plan),
            "inferences_per_s": each.rating.throughput_per_s,
            "p99_ms": each.rating.latency_ms,
            "dollars_per_million": each.rating.dollars_per_million,
            "estimate_per_s": each.estimate.throughput_per_s,
            "bound": report["bound"]["resource"],
            "bound_share": per_s / report["bound"]["throughput_per_s"],
            "model_bound": report["model_bound"]["resource"],
            "model_share": per_s / report["model_bound"]["throughput_per_s"],
        }

    try:
        with open_workers(jobs=1, scheduler=None) as workers:
            found = explore(
                str(path),
                CompileOptions(),
                search.batches,
                search.cores,
                workers,
                simulations=search.simulations,
                watch=watch,
            )
        best = found.best("cost")
    except NeuronError as error:
        return {"error": error.line, "cpu_s": cpu_seconds() - start}
    near = max(found.simulated, key=lambda each: numbers(each)["model_share"])
    return {
        "estimated": len(found.estimates),
        "simulated": len(found.simulated),
        "best": numbers(best),
        "nearest": numbers(near),
        "all": [numbers(each) for each in found.simulated],
        "refused": [f"{each.batch}, {each.stages}: {each.reason}" for each in found.refused],
        "cpu_s": cpu_seconds() - start,
    }


def main() -> int:
    """What the process runs."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    print(json.dumps(explore_here(SEARCHES[sys.argv[1]], Path(sys.argv[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
