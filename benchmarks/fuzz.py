"""Whether damaged and forged artifacts are refused in one line, or run as they say: `python -m benchmarks fuzz`."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.damage import CANARY, KINDS, Case, cases
from benchmarks.tables import Result

CASES, SEED = 2000, 20200922
MEMORY_LIMIT = 4 << 30
"""Bytes of address space that a loading process has: what goes beyond fails there, and not on the machine."""
PEAK_LIMIT_KIB = 600 << 10
"""What the process may really take at any time."""
TIME_LIMIT_S = 60.0
GOOD = ("refused", "ran")


@dataclass(frozen=True)
class Outcome:
    """What came of a case: `refused` with one line, `ran` as the plain interpreter says; all else is a failure."""

    case: Case
    outcome: str
    text: str
    peak_kib: int

    @property
    def good(self) -> bool:
        return self.outcome in GOOD and self.peak_kib <= PEAK_LIMIT_KIB


class Worker:
    """A process that loads artifacts under limits; a new one when it dies or does not answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.peak_kib = 0

    def judge(self, case: Case) -> Outcome:
        """Load one case."""
        path = self.folder / "case.neff"
        path.write_bytes(case.data)
        process = self.process or self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(TIME_LIMIT_S) else None
        if not line:
            self.stop()
            return Outcome(case, "hung" if line is None else "died", f"no answer; exit code {process.returncode}", 0)
        answer = json.loads(line)
        if (self.folder / CANARY).exists():
            return Outcome(case, "escaped", "the canary was made", answer["peak_kib"])
        return Outcome(case, answer["outcome"], answer["text"], answer["peak_kib"])

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-m", "benchmarks._fuzz_worker", str(MEMORY_LIMIT)]
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self.process

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


def outcomes(found: Iterable[Case]) -> Iterator[Outcome]:
    """Load cases one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder))
        try:
            for case in found:
                yield worker.judge(case)
        finally:
            worker.stop()


def bases() -> list[bytes]:
    """Good artifacts of several kinds: a pipeline over cores, copies, a convolution, and one of tensors."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from neuron_mlir.runtime.compiler import CompileOptions, compile_model, save
    from neuron_mlir.runtime.modules import parse_module
    from neuron_mlir.runtime.package import write_artifact

    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.standard_normal(shape, np.float32), name)

    def model(nodes: list[onnx.NodeProto], shape: list[int], out: list[int], weights: list[onnx.TensorProto]) -> bytes:
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", out))]
        graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        data: bytes = made.SerializeToString()
        return data

    chain = model(
        [
            helper.make_node("MatMul", ["x", "w0"], ["a"], name="fc0"),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("MatMul", ["b", "w1"], ["y"], name="fc1"),
        ],
        [1, 16],
        [1, 8],
        [weight("w0", 16, 24), weight("w1", 24, 8)],
    )
    image = model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("MaxPool", ["r"], ["y"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        ],
        [1, 3, 8, 8],
        [1, 4, 4, 4],
        [weight("w", 4, 3, 3, 3)],
    )
    found: list[bytes] = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "m.onnx", Path(folder) / "m.neff"
        for data, options in (
            (chain, CompileOptions(cores=2, batch_size=2, dynamic_batch_size=True)),
            (chain, CompileOptions(replicas=2)),
            (image, CompileOptions()),
        ):
            source.write_bytes(data)
            save(compile_model(source, options), str(target))
            found.append(target.read_bytes())
        text = """func.func @main(%x: tensor<2x3xf32> {nn.name = "x"}) -> (tensor<2x4xf32> {nn.name = "y"}) {
          %w = nn.weight "w" seeded<3> : tensor<3x4xf32>
          %y = nn.matmul %x, %w : (tensor<2x3xf32>, tensor<3x4xf32>) -> tensor<2x4xf32>
          func.return %y : tensor<2x4xf32>
        }"""
        write_artifact(str(target), parse_module(text, "tensors"), None, {})
        found.append(target.read_bytes())
    return found


def fuzz(_: Sequence[str]) -> Result:
    """Artifacts that were flipped, cut, forged or signed with nonsense inside, each loaded and called twice in a
    process with little memory and an audit hook. Each has to be refused with one line, or to run as the plain
    interpreter runs the same text; nothing may be executed, unpickled or opened, and memory stays bounded."""
    result = Result(
        "fuzz",
        "Damaged and forged artifacts",
        fuzz,
        ["how", "cases", "refused", "ran", "failed", "largest process, MiB"],
    )
    by_kind: dict[str, list[Outcome]] = {kind: [] for kind in KINDS}
    for outcome in outcomes(cases(bases(), SEED, CASES)):
        by_kind[outcome.case.kind].append(outcome)
        if not outcome.good:
            print(f"case {outcome.case.number}, {outcome.case.kind}: {outcome.outcome}: {outcome.text}", flush=True)
        if outcome.case.number % 200 == 199:
            print(f"{outcome.case.number + 1} of {CASES}", flush=True)
    for kind, found in by_kind.items():
        count = Counter(outcome.outcome for outcome in found)
        bad = sum(not outcome.good for outcome in found)
        peak = max((outcome.peak_kib for outcome in found), default=0) >> 10
        result.add(kind, len(found), count["refused"], count["ran"], bad, peak)
        result.limit(f"{kind}: refused or run", bad == 0)
    return result
