"""Every pass of the whole set held to what it declares, on values (`neuron-opt --validate-each`), a process to a plan.

`python -m benchmarks.validate SPEC FILE` is that process: a line of JSON for each pass as it ends.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.models import MODELS, model_file
from benchmarks.networks import WORK
from benchmarks.runs import Spec, sources
from benchmarks.tables import Result

SHARDED = {"cores": 2, "shard_cores": 4}
LARGE = ("resnet50-1440", "yolov3-1440", "bert-large-128")
"""One plan is enough for these: their values take minutes."""


@dataclass(frozen=True)
class Checked:
    """A pass that has run between two simulations.

    Attributes:
        name: of the pass, with its options.
        relation: what it declares.
        deviation: the largest difference of an output over the largest magnitude of that output; of integer outputs
            the share that differ.
        seconds: CPU, of the pass and of the simulation behind it.
        ops: in the module after it.
        error: in one line, if it is not as declared or something failed.
    """

    name: str
    relation: str
    deviation: float
    seconds: float
    ops: int
    error: str = ""


def plans(name: str) -> list[tuple[str, Spec]]:
    """What is validated of a network, in words."""
    model = MODELS[name]
    several = Spec(name, {"cores": model.cores, "rematerialize": True, "batch_size": 2, "replicas": 2})
    found = [(f"{model.cores} stages, batch 2, 2 copies", several)]
    if name in LARGE:
        return [(f"{model.cores} stages", Spec(name, {"cores": model.cores, "rematerialize": True}))]
    one = Spec(name, {"cores": 1, "rematerialize": True})
    return [("one core", one), *found, ("2 stages over 4 cores", Spec(name, SHARDED))]


def check(spec: Spec, told: Callable[[Checked], None]) -> tuple[list[Checked], str]:
    """The passes of one plan, and why it ended early, if so; from before when nothing has changed since."""
    path = model_file(spec.model)
    files = [sources(), Path(__file__).read_text(encoding="utf-8"), asdict(spec)]
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:24]
    kept = WORK / "validated" / f"{key}.json"
    if kept.exists():
        return [Checked(**each) for each in json.loads(kept.read_text(encoding="utf-8"))], ""
    command = [sys.executable, "-m", "benchmarks.validate", json.dumps(asdict(spec)), str(path)]
    found: list[Checked] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            found.append(Checked(**json.loads(line)))
            told(found[-1])
        words = [line for line in process.stderr.read().strip().splitlines() if line.strip()]
    if process.returncode:
        return found, (words[-1] if words else f"exit code {process.returncode}")[:300]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps([asdict(each) for each in found]), encoding="utf-8")
    return found, ""


def validation(names: Sequence[str]) -> Result:
    """Each network run on values before and after each of its passes, on the same random inputs, as `neuron-opt
    --validate-each` does it; what a pass declares it is held to (docs/tools.md). `exact`: passes that changed no bit.
    Deviation: the largest of the others', over the largest magnitude of the output, and whose it was. The last three
    passes give core code, addresses and engine streams, so that the simulated machine computes all of it, and its
    hazards are checked. CPU seconds of one thread."""
    result = Result(
        "validate",
        "Values checked around every pass",
        validation,
        ["network", "plan", "passes", "exact", "worst deviation", "of pass", "final ops", "CPU s", "slowest", "green"],
    )
    for name in [name for name in MODELS if name in names or not set(names) & set(MODELS)]:
        for words, spec in plans(name):
            print(f"  {name}, {words}", flush=True)
            found, ended = check(
                spec, lambda each: print(f"    {each.name}: {each.deviation:.2g}, {each.seconds:.1f} s {each.error}")
            )
            errors = [f"{each.name}: {each.error}" for each in found if each.error] + ([ended] if ended else [])
            worst = max(found, key=lambda each: each.deviation, default=None)
            slowest = max(found, key=lambda each: each.seconds, default=None)
            result.add(
                name,
                words,
                len(found),
                sum(each.deviation == 0 for each in found),
                0.0 if worst is None else worst.deviation,
                "" if worst is None or not worst.deviation else worst.name,
                found[-1].ops if found else 0,
                sum(each.seconds for each in found),
                "" if slowest is None else slowest.name,
                not errors,
            )
            result.limit(f"{name}, {words}: every pass as declared" + "".join(f"; {e}" for e in errors), not errors)
    return result


# In the process -------------------------------------------------------------------------------------------------------


def check_here(spec: Spec, path: Path, told: Callable[[Checked], None]) -> None:
    """Run the passes of a plan one by one, with the simulator in between."""
    from dataclasses import replace

    from neuron_mlir.errors import NeuronError
    from neuron_mlir.passes.base import NeuronPass, Relation
    from neuron_mlir.passes.pipelines import load_pipeline
    from neuron_mlir.runtime.compiler import CompileOptions, cpu_seconds, import_for, load_machine_for
    from neuron_mlir.runtime.modules import make_context
    from neuron_mlir.simulator.validate import ValidationError, Validator

    options = CompileOptions(**spec.options)
    validator, context = Validator(), make_context()
    try:
        module, _, batch = import_for(path, options, load_machine_for(options))
        steps = load_pipeline(replace(options, batch=batch).pipeline().expand())
    except NeuronError as error:
        told(Checked("import", "", 0.0, 0.0, 0, error.line))
        return
    for step in steps:
        start, wrong = cpu_seconds(), ""
        relation = step.relation if isinstance(step, NeuronPass) else Relation.EXACT
        try:
            validator.before(module, step)
            step.apply(context, module)
            module.verify()
            validator.after(module, step)
        except ValidationError as error:
            wrong = error.line
        except NeuronError as error:
            told(Checked(step.name, str(relation), 0.0, cpu_seconds() - start, 0, error.line))
            return
        ops = sum(1 for _ in module.walk())
        told(
            Checked(
                str(step) if isinstance(step, NeuronPass) else step.name,
                str(relation),
                validator.deviation,
                cpu_seconds() - start,
                ops,
                wrong,
            )
        )


def main() -> int:
    """What the process runs."""
    values: dict[str, Any] = json.loads(sys.argv[1])
    values["without"] = tuple(values["without"])
    check_here(Spec(**values), Path(sys.argv[2]), lambda each: print(json.dumps(asdict(each)), flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
