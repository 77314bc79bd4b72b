"""10,000 calls of random size through dynamic batching: `python -m benchmarks batching`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import Result, cpu_of

CALLS, ROWS_MAX, POOL, SEED = 10_000, 8, 24, 20200922
SEQUENCE, BATCH, CORES = 16, 4, 4
AGREE = 0.05
"""How far bf16 may take a value of the network's outputs, which are about 1, from ONNX Runtime's."""

Arrays = dict[str, NDArray[Any]]


def batching(_: Sequence[str]) -> Result:
    """A BERT of two layers on 4 cores, a batch of 4, called 10,000 times with 1 to 8 sequences from a pool. What each
    sequence gives in each place of a request, with zeros for neighbours, is computed before; every answer has to be
    those very bits, in the order of the calls. Queue of 7 requests, as AWS's default has it."""
    import neuron_mlir
    from neuron_mlir.models.bert import CONFIGS, write_bert
    from neuron_mlir.tools.demo import reference

    result = Result(
        "batching",
        "Dynamic batching, 10,000 calls",
        batching,
        [
            "network",
            "calls",
            "rows",
            "compiled requests",
            "lost",
            "changed or out of order",
            "largest difference to ONNX Runtime",
            "simulated rows/s",
            "CPU s",
        ],
    )
    generator = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as folder, neuron_mlir.Instance() as instance:
        path = write_bert(Path(folder) / "b.onnx", CONFIGS["bert-tiny"], seq=SEQUENCE)
        model = neuron_mlir.compile(
            path,
            compiler_args=["--neuroncore-pipeline-cores", str(CORES)],
            dynamic_batch_size=True,
            batch_size=BATCH,
            instance=instance,
        )
        names = [port.name for port in model.inputs]
        pool = {name: np.ones((POOL, SEQUENCE), np.int64) for name in names}
        pool["input_ids"] = generator.integers(0, CONFIGS["bert-tiny"].vocabulary, (POOL, SEQUENCE))
        alone = [_in_place(model, pool, place) for place in range(BATCH)]
        wanted = reference(path, {name: array[:1] for name, array in pool.items()}, [p.name for p in model.outputs])
        distance = max(float(np.abs(alone[0][name][:1] - array).max()) for name, array in wanted.items())
        calls = [generator.integers(0, POOL, generator.integers(1, ROWS_MAX + 1)) for _ in range(CALLS)]
        start = instance.now_ms

        def run() -> tuple[int, int]:
            answered = changed = 0
            answers = model.map({name: array[rows] for name, array in pool.items()} for rows in calls)
            for rows, answer in zip(calls, answers, strict=False):
                assert isinstance(answer, dict)
                answered += 1
                changed += any(
                    array.tobytes() != np.stack([alone[i % BATCH][name][row] for i, row in enumerate(rows)]).tobytes()
                    for name, array in answer.items()
                )
            return answered, changed

        seconds, (answered, changed) = cpu_of(run)
        total = sum(map(len, calls))
        requests = sum(-(-len(rows) // BATCH) for rows in calls)
        rate = total / (instance.now_ms - start) * 1000
        result.add("bert-tiny", CALLS, total, requests, CALLS - answered, changed, distance, rate, seconds)
    result.limit("no result lost", answered == CALLS)
    result.limit("no result changed by its neighbours or out of order", changed == 0)
    result.limit(f"within {AGREE:g} of ONNX Runtime", distance < AGREE)
    return result


def _in_place(model: Any, pool: Arrays, place: int) -> Arrays:
    """What each row of the pool gives in a place of a request, alone there."""
    answers: list[Arrays] = []
    for row in range(POOL):
        feed = {name: np.zeros((place + 1, *array.shape[1:]), array.dtype) for name, array in pool.items()}
        for name, array in pool.items():
            feed[name][place] = array[row]
        answers.append({name: array[place] for name, array in model(feed).items()})
    return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}
