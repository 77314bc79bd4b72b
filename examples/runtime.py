"""Two models on one simulated instance: copies, calls of any size, requests that overlap, return codes.

python examples/runtime.py
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import numpy as np

import neuron_mlir
from neuron_mlir.models.bert import CONFIGS, write_bert


async def clients(model: neuron_mlir.Model, feeds: list[dict[str, np.ndarray]]) -> list[float]:
    """Each client sends its request at the same simulated time; the latencies they see."""
    calls = [model.submit(feed) for feed in feeds]
    for call in calls:
        await call
    return [call.latency_ms for call in calls]


def main() -> None:
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, neuron_mlir.Instance("inf1.xlarge") as instance:
        path = write_bert(Path(folder) / "tiny.onnx", CONFIGS["bert-tiny"], seq=16)
        pipeline = neuron_mlir.compile(
            path,
            compiler_args=["--neuroncore-pipeline-cores", "2"],
            dynamic_batch_size=True,
            batch_size=2,
            instance=instance,
        )
        pipeline.save(f"{folder}/tiny.neff")
        print(f"on cores {pipeline.cores}, loaded in {pipeline.load_ms:.3f} ms, queue of {pipeline.options.in_flight}")

        def feed(rows: int) -> dict[str, np.ndarray]:
            ones = np.ones((rows, 16), np.int64)
            return {
                "input_ids": generator.integers(0, CONFIGS["bert-tiny"].vocabulary, (rows, 16)),
                "attention_mask": ones,
                "token_type_ids": ones * 0,
            }

        five = pipeline.submit(feed(5))
        print(
            f"5 rows are {five.requests} requests: {five.outputs()['pooler_output'].shape} in {five.latency_ms:.3f} ms"
        )
        latencies = asyncio.run(clients(pipeline, [feed(1) for _ in range(6)]))
        print("6 clients at once wait", ", ".join(f"{latency:.3f}" for latency in latencies), "ms")
        copies = neuron_mlir.compile(path, instance=instance, replicas="all")
        print(f"another model has the cores that are left: {copies.cores}")
        try:
            neuron_mlir.load(f"{folder}/tiny.neff", instance=instance)
        except neuron_mlir.NeuronRuntimeError as error:
            print(f"{error.status.name}: {error}")


if __name__ == "__main__":
    main()
