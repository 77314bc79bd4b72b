"""Placing weighted DAGs on devices: operator graphs with the shape of known networks, and random ones.

`python -m benchmarks.partition FILE.json ..` places graphs in the format of the instances published with Tarnawski et
al., "Efficient Algorithms for Device Placement of DNN Graph Operators", NeurIPS 2020
(https://github.com/msr-fiddle/dnn-partitioning, directory throughput-inputs), accelerators only.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.tables import Result, cpu_of
from neuron_mlir.solvers.device_partition import DeviceProblem, WorkNode, device_loads, to_grid
from neuron_mlir.solvers.device_partition_graph import contract
from neuron_mlir.solvers.device_partition_place import place

DEVICES = (2, 4, 8, 16)
GAP_LIMIT, TIME_LIMIT_S = 0.01, 30.0
_COLUMNS = ["graph", "nodes", "contracted", "devices", "room", "largest load", "bound", "gap, %", "CPU s", "method"]
_ACTIVATION, _SCORES, _WIDE = 0.7, 5.9, 23.0


@dataclass
class _Builder:
    """A graph under construction."""

    nodes: list[WorkNode] = field(default_factory=list[WorkNode])
    edges: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def add(self, makers: Sequence[int], cost: float, transfer: float, size: int = 0, color: int | None = None) -> int:
        """A node; returns its number."""
        number = len(self.nodes)
        self.nodes.append(WorkNode(number, cost, size, transfer, color))
        self.edges += [(maker, number) for maker in makers]
        return number

    def weighted(self, makers: Sequence[int], cost: float, transfer: float, size: int) -> int:
        """A node with a weight as a node of its own, of the same colour."""
        color = len(self.nodes)
        weight = self.add([], 0, size * 4e-7, size, color)
        return self.add([*makers, weight], cost, transfer, 0, color)

    def chain(self, maker: int, costs: Sequence[float], transfer: float) -> int:
        """Nodes one after the other."""
        for cost in costs:
            maker = self.add([maker], cost, transfer)
        return maker

    def problem(self) -> DeviceProblem:
        """The graph, for one device."""
        return DeviceProblem(tuple(self.nodes), tuple(self.edges), 1)


def bert_operators(layers: int) -> DeviceProblem:
    """Operators of a transformer encoder, weights apart: three parallel projections, attention, a wide feed-forward
    part whose activations are dear to hand on, two residual sums a layer."""
    graph = _Builder()
    mask = graph.chain(graph.add([], 0.001, 0.011), (0.001, 0.0006, 0.0004, 0.0004), 0.0057)
    x = graph.weighted([], 0.049, _ACTIVATION, 15_630_336)
    for _ in range(layers):
        heads = [
            graph.chain(graph.weighted([x], 0.0345, _ACTIVATION, 65_536), (0.049, 0.0244, 0.049), _ACTIVATION)
            for _ in range(3)
        ]
        scores = graph.chain(graph.add(heads[:2], 0.2557, _SCORES), (0.5885,), _SCORES)
        scores = graph.chain(graph.add([scores, mask], 0.3919, _SCORES), (0.5885, 0.398), _SCORES)
        y = graph.chain(graph.add([scores, heads[2]], 0.5076, _ACTIVATION), (0.049, 0.0244), _ACTIVATION)
        y = graph.chain(graph.weighted([y], 0.0345, _ACTIVATION, 65_536), (0.049, 0.0498), _ACTIVATION)
        x = graph.weighted([graph.add([y, x], 0.049, _ACTIVATION)], 0.1968, _ACTIVATION, 1024)
        y = graph.chain(graph.weighted([x], 1.1034, _WIDE, 2_097_152), (1.5677, 2.3541), _WIDE)
        y = graph.chain(graph.weighted([y], 0.3465, _ACTIVATION, 2_097_152), (0.049, 0.0498), _ACTIVATION)
        x = graph.weighted([graph.add([y, x], 0.049, _ACTIVATION)], 0.1968, _ACTIVATION, 1024)
    return graph.problem()


def inception_layers() -> DeviceProblem:
    """Convolution, normalisation and activation of parallel branches, four or three to a block, eleven blocks."""
    graph, rng = _Builder(), random.Random(1)

    def convolve(x: int, cost: float, transfer: float) -> int:
        cost = round(cost * rng.uniform(0.8, 1.2), 4)
        x = graph.add([x], cost, transfer, int(cost * 1e6))
        return graph.chain(x, (round(cost * 0.2, 4), round(cost * 0.1, 4)), transfer)

    x = graph.add([], 0, 0.02)
    for cost in (1.1, 2.2, 3.1, 0.6, 2.0):
        x = convolve(x, cost, 0.3)
    blocks = [((0.4, 1), (0.5, 2), (0.6, 3), (0.2, 1))] * 3 + [((0.7, 1), (0.5, 3), (0.1, 0))]
    blocks += [((0.5, 1), (0.45, 3), (0.4, 5), (0.25, 1))] * 4 + [((0.5, 2), (0.5, 4), (0.1, 0))]
    blocks += [((0.3, 1), (0.5, 3), (0.5, 4), (0.2, 1))] * 2
    for number, branches in enumerate(blocks):
        ends: list[int] = []
        for cost, length in branches:
            y = x
            for _ in range(length):
                y = convolve(y, cost, 0.03 - 0.002 * number)
            ends.append(y if length else graph.add([x], cost, 0.03))
        x = graph.add(ends, 0.05, 0.09 - 0.006 * number)
    return graph.problem()


def layered(count: int, width: int, transfer: float, seed: int) -> DeviceProblem:
    """Layers of `width` nodes, each of which uses one to three of the layer before; some are used by none."""
    graph, rng = _Builder(), random.Random(seed)
    for number in range(count):
        first = number // width * width - width
        makers = rng.sample(range(first, first + width), min(width, rng.randint(1, 3))) if first >= 0 else []
        cost = round(rng.uniform(0.1, 2), 3)
        graph.add(makers, cost, round(rng.uniform(0, transfer), 3), rng.randint(0, 5000))
    return graph.problem()


def from_published(data: dict[str, Any]) -> DeviceProblem:
    """A published instance: accelerators, their memory, the cost of each node there; no CPUs."""
    index = {node["id"]: place for place, node in enumerate(data["nodes"])}
    transfers = {edge["sourceId"]: edge["cost"] for edge in data["edges"]}
    nodes = [
        WorkNode(n["id"], n["fpgaLatency"], n.get("size", 0), transfers.get(n["id"], 0), n.get("colorClass"))
        for n in data["nodes"]
    ]
    edges = tuple((index[e["sourceId"]], index[e["destId"]]) for e in data["edges"])
    return DeviceProblem(tuple(nodes), edges, data["maxFPGAs"], data["maxSizePerFPGA"])


GRAPHS: dict[str, tuple[Callable[[], DeviceProblem], bool]] = {
    "BERT operators, 3 layers": (lambda: bert_operators(3), True),
    "BERT operators, 12 layers": (lambda: bert_operators(12), True),
    "BERT operators, 24 layers": (lambda: bert_operators(24), True),
    "Inception layers": (inception_layers, True),
    "random, 300 in layers of 4": (lambda: layered(300, 4, 0.2, 3), False),
    "random, 2000 in layers of 20": (lambda: layered(2000, 20, 0.2, 2), False),
}
"""By name: what makes it, and whether its ideals are few enough for a proof."""


def device_partition(names: Sequence[str]) -> Result:
    """Weighted DAGs placed on 2 to 16 devices without a limit of memory and, the first four on 4, also with room
    for 1.15 times the even share, or for the largest node. The first four have the shape and roughly the weights of
    operator graphs published for device placement, but are not those; the random graphs have too many ideals for a
    proof. CPU seconds of one process, one thread."""
    result = Result(
        "partition",
        "Placing weighted graphs on devices",
        device_partition,
        _COLUMNS,
    )
    proven, in_time = True, True
    for name, (make, tractable) in GRAPHS.items():
        graph = make()
        sizes = [int(n.bytes) for n in graph.nodes]
        for devices in DEVICES if tractable else (4, 16):
            rooms = (None,) if devices != 4 or not tractable else (None, max(int(sum(sizes) / devices * 1.15), *sizes))
            for room in rooms:
                gap, seconds = _row(result, name, replace(graph, devices=devices, capacity=room))
                proven = proven and (gap <= GAP_LIMIT or not tractable)
                in_time = in_time and (seconds <= TIME_LIMIT_S or not tractable)
    result.limit(f"a gap of at most {GAP_LIMIT:.0%} on all but the random graphs", proven)
    result.limit(f"each of those in at most {TIME_LIMIT_S:.0f} CPU s", in_time)
    return result


def _row(result: Result, name: str, problem: DeviceProblem) -> tuple[float, float]:
    seconds, plan = cpu_of(lambda: place(problem))
    assert float(max(device_loads(problem, plan.device_of))) == plan.objective
    result.add(
        name,
        len(problem.nodes),
        len(contract(to_grid(problem)).cost),
        problem.devices,
        "any" if problem.capacity is None else f"{float(problem.capacity) / 1e6:.3g} MB",
        plan.objective,
        plan.lower_bound,
        100 * plan.gap,
        seconds,
        plan.certificate.method,
    )
    return plan.gap, seconds


def main(files: Sequence[str]) -> int:
    """Place published instances on the devices they name."""
    result = Result("partition", "Published", device_partition, _COLUMNS)
    for file in files:
        _row(result, Path(file).stem, from_published(json.loads(Path(file).read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
