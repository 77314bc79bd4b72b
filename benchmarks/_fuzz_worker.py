"""Loads and calls what it is told to, under limits, and says what came of it: the other end of `benchmarks.fuzz`.

It reads the names of files, one a line, and answers each with a line of JSON. Whatever would be a way out of the
artifact (a process, a socket, an unpickled object, a file opened that is not the artifact's own) is an answer, too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from importlib import import_module
from typing import Any

FORBIDDEN = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pickle.",
    "socket.",
    "ctypes.",
    "shutil.",
)
"""Beginnings of audit events that nothing in an artifact may cause."""

MEMORY = ("/proc/meminfo", "/proc/self/statm")
"""What a loading process may ask the system."""


class Guard:
    """Notes forbidden audit events while an artifact is at work."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        self.path = ""
        self.python = tuple(os.path.realpath(path) + os.sep for path in (*sys.path[1:], sys.base_prefix) if path)
        """Where Python and what is installed are: imports, and the descriptions of machines."""
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event.startswith(FORBIDDEN):
            self.seen.append(event)
        elif event == "open":
            path, mode, flags = (*arguments, None, None)[:3]
            name = str(path)
            writes = bool(int(flags or 0) & (os.O_WRONLY | os.O_RDWR)) or "w" in str(mode or "")
            ours = name == self.path or name in MEMORY or os.path.realpath(name).startswith(self.python)
            if writes or not ours:
                self.seen.append(f"open {name}")


def judge(path: str, guard: Guard) -> dict[str, Any]:
    """Load a file, call it twice, and compare with the plain interpreter."""
    import numpy as np

    import neuron_mlir
    from neuron_mlir.errors import NeuronError
    from neuron_mlir.runtime.artifact import read_artifact
    from neuron_mlir.simulator.interface import program_of
    from neuron_mlir.simulator.run import random_inputs, run_module

    guard.seen, guard.path = [], path
    guard.on = True
    try:
        with neuron_mlir.Instance() as instance:
            artifact = read_artifact(path)
            module = artifact.module()
            feeds = [random_inputs(module, seed) for seed in range(2)]
            if program_of(module) is None:
                answers = run_module(module, feeds, weights=artifact.weights).requests
            else:
                model = neuron_mlir.load(path, instance=instance, dynamic_batch_size=False)
                calls = [model.submit(feed) for feed in feeds]
                answers = [call.outputs() for call in calls]
        plain = run_module(module, feeds, weights=artifact.weights, hazards=False, plain=True)
        for answer, wanted in zip(answers, plain.requests, strict=True):
            for name, value in wanted.items():
                if not np.allclose(answer[name], value, rtol=1e-4, atol=1e-5, equal_nan=True):
                    return {"outcome": "wrong", "text": f"output '{name}' is not what the plain interpreter gives"}
        answer: dict[str, Any] = {"outcome": "ran", "text": ""}
    except NeuronError as error:
        line = error.line
        good = "\n" not in line and len(line) < 3000
        answer = {"outcome": "refused" if good else "long", "text": line[:300]}
    except Exception as error:
        import traceback

        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(frames))
        answer = {"outcome": "crashed", "text": f"{type(error).__name__}: {error} ({where})"[:500]}
    finally:
        guard.on = False
    if guard.seen:
        answer = {"outcome": "escaped", "text": "; ".join(guard.seen[:5])}
    return answer


def peak_kib() -> int:
    """The most memory that this process has had. Not `ru_maxrss`, which begins with that of who started it."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def main() -> None:
    """Serve until the end of the input."""
    limit = int(sys.argv[1])
    import numpy as np

    # Imports, and the working memory of BLAS, are not the artifact's.
    for name in ("neuron_mlir.runtime.api", "neuron_mlir.simulator.run"):
        import_module(name)
    np.dot(np.zeros(4), np.zeros(4))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    guard = Guard()
    for line in sys.stdin:
        answer = judge(line.rstrip("\n"), guard)
        answer["peak_kib"] = peak_kib()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
