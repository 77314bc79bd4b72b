"""Placing a plain weighted DAG on devices: the largest load as small as possible.

Nodes have a cost, bytes, and a transfer: what handing on their output costs. Devices are numbered so that every edge
stays on its device or goes to a later one (then no cycle of devices arises). A device's load is the sum of

- the costs of its nodes,
- the transfer of each of its nodes that another device uses, once,
- the transfer of each node elsewhere that it uses, once.

Nodes of one colour stay together, and the bytes of a device's nodes fit its capacity. Devices may stay empty. This is
the problem of throughput by pipelining of Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph
Operators" (NeurIPS 2020), without CPUs and with the devices' order topological for all nodes.

`place` answers with a plan and a proven lower bound. Weights are taken as the decimal numbers they are written as and
put on a grid of integers, exactly where 52 bits allow, else rounded down for the bound (an error below 1e-11).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

from neuron_mlir.errors import NeuronError
from neuron_mlir.solvers.certificate import Certificate

DEVICES_MAX = 1_000_000
"""More is taken for a mistake: a plan lists the load of each."""
GRID_BITS = 52
"""All weights together stay below 2 to this power on the grid, so that float64 products of them are exact."""

Number = int | float | Decimal | Fraction


@dataclass(frozen=True, slots=True)
class WorkNode:
    """A piece of work. `color`: None, or whatever names the class of nodes that stay together."""

    id: int | str
    cost: Number
    bytes: Number = 0
    transfer: Number = 0
    color: int | str | None = None


@dataclass(frozen=True, slots=True)
class DeviceProblem:
    """A DAG (edges as indices into `nodes`), the number of devices, and the bytes each holds (None: no limit)."""

    nodes: tuple[WorkNode, ...]
    edges: tuple[tuple[int, int], ...]
    devices: int
    capacity: Number | None = None


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A device for every node, in the order of the nodes, and what it is worth."""

    device_of: tuple[int, ...]
    objective: float
    """The largest load, in the unit of the costs."""
    lower_bound: float
    """No plan's largest load is below this."""
    certificate: Certificate
    """The same on the integer grid."""
    interrupted: bool = False
    """Whether the search was ended by Ctrl-C."""

    @property
    def gap(self) -> float:
        """The part of the objective that is not proven necessary, 0 to 1."""
        return (self.objective - self.lower_bound) / self.objective if self.objective else 0.0

    @property
    def optimal(self) -> bool:
        """Whether the plan is proven to be the best, to within 1e-9 where weights had to be rounded to the grid."""
        return self.certificate.proven_optimal and self.gap <= 1e-9


class NoPlan(NeuronError):
    """No device assignment keeps the capacity, or none was found."""


@dataclass(frozen=True)
class GridProblem:
    """A problem in integers. `costs` and `transfers` times `scale` are the weights, rounded down if not `exact`."""

    costs: tuple[int, ...]
    transfers: tuple[int, ...]
    at_least_bytes: tuple[int, ...]
    """Rounded down, for bounds."""
    at_most_bytes: tuple[int, ...]
    """Rounded up, for plans."""
    colors: tuple[int, ...]
    """A number per colour; -1: none."""
    edges: tuple[tuple[int, int], ...]
    devices: int
    capacity: int
    scale: Fraction
    exact: bool


def device_loads(problem: DeviceProblem, device_of: Sequence[int]) -> list[Fraction]:
    """The load of every device, exactly. Raises `NeuronError` for an assignment that is none: a device that does not
    exist, an edge to an earlier device, a colour torn apart, a capacity exceeded.
    """
    nodes = problem.nodes
    if len(device_of) != len(nodes) or not all(0 <= d < problem.devices for d in device_of):
        raise NeuronError(f"an assignment names one of {problem.devices} devices for each of {len(nodes)} nodes")
    loads = [Fraction(0)] * problem.devices
    held = [Fraction(0)] * problem.devices
    readers: list[set[int]] = [set() for _ in nodes]
    where: dict[int | str, int] = {}
    for node, device in zip(nodes, device_of, strict=True):
        loads[device] += exact(node.cost)
        held[device] += exact(node.bytes)
        if node.color is not None and where.setdefault(node.color, device) != device:
            raise NeuronError(f"nodes of color {node.color} are on devices {where[node.color]} and {device}")
    for source, target in problem.edges:
        if device_of[source] > device_of[target]:
            raise NeuronError(f"the edge from node {nodes[source].id} to {nodes[target].id} goes to an earlier device")
        if device_of[source] != device_of[target]:
            readers[source].add(device_of[target])
    for source, devices in enumerate(readers):
        for device in sorted(devices):
            loads[device] += exact(nodes[source].transfer)
        if devices:
            loads[device_of[source]] += exact(nodes[source].transfer)
    if problem.capacity is not None:
        for device, amount in enumerate(held):
            if amount > exact(problem.capacity):
                raise NoPlan(
                    f"device {device} does not hold its nodes",
                    resource="bytes",
                    needed=_plain(amount),
                    available=_plain(exact(problem.capacity)),
                )
    return loads


def exact(number: Number) -> Fraction:
    """A weight as the decimal number it is written as: 0.1 is a tenth."""
    return Fraction(Decimal(repr(number))) if isinstance(number, float) else Fraction(number)


def to_grid(problem: DeviceProblem) -> GridProblem:
    """Check a problem and put it on the integer grid.

    Raises `NeuronError` for a senseless one (no device, negative weights, a cycle), `NoPlan` if it cannot have a plan
    because all nodes together are too big.
    """
    if problem.devices < 1:
        raise NeuronError(f"a plan needs at least one device, got {problem.devices}")
    if problem.devices > DEVICES_MAX:
        raise NeuronError("too many devices", resource="devices", needed=problem.devices, available=DEVICES_MAX)
    for node in problem.nodes:
        for name, value in (("cost", node.cost), ("bytes", node.bytes), ("transfer", node.transfer)):
            if not math.isfinite(value) or value < 0:
                raise NeuronError(f"node {node.id} has a {name} of {value}: it must be a number of at least 0")
    edges = tuple(dict.fromkeys(problem.edges))
    _check_acyclic(problem, edges)
    costs, transfers = [exact(n.cost) for n in problem.nodes], [exact(n.transfer) for n in problem.nodes]
    sizes = [exact(n.bytes) for n in problem.nodes]
    room = sum(sizes, Fraction(0)) if problem.capacity is None else exact(problem.capacity)
    room = min(room, sum(sizes, Fraction(0)))
    if room < 0:
        raise NeuronError(f"a capacity of {problem.capacity} bytes is negative")
    _drop_what_is_never_paid(costs, transfers, edges, room == sum(sizes, Fraction(0)))
    weights = costs + transfers
    total = sum(weights, Fraction(0))
    unit = math.lcm(1, *(w.denominator for w in weights))
    fits = 2 * total * unit < 1 << GRID_BITS
    scale = Fraction(1, unit) if fits else 2 * total / (1 << GRID_BITS)
    byte_unit = math.lcm(1, *(s.denominator for s in sizes), room.denominator)
    if sum(sizes, Fraction(0)) * byte_unit >= 1 << 60:
        byte_unit = Fraction(1 << 50) / max(Fraction(1), sum(sizes, Fraction(0)))
    colors: dict[int | str, int] = {}
    return GridProblem(
        tuple(math.floor(c / scale) for c in costs),
        tuple(math.floor(t / scale) for t in transfers),
        tuple(math.floor(s * byte_unit) for s in sizes),
        tuple(math.ceil(s * byte_unit) for s in sizes),
        tuple(-1 if n.color is None else colors.setdefault(n.color, len(colors)) for n in problem.nodes),
        edges,
        # More devices than nodes stay empty.
        min(problem.devices, max(1, len(problem.nodes))),
        math.floor(room * byte_unit),
        scale,
        fits,
    )


def _drop_what_is_never_paid(
    costs: Sequence[Fraction], transfers: list[Fraction], edges: Sequence[tuple[int, int]], all_on_one: bool
) -> None:
    """Make large transfers small where that changes no best plan: the grid is as fine as the largest weights allow.

    What nobody uses is not handed on. If one device may hold all, a plan that pays more than all costs is not the best.
    """
    used = {source for source, _ in edges}
    enough = 2 * sum(costs, Fraction(0))
    for node, transfer in enumerate(transfers):
        if node not in used:
            transfers[node] = Fraction(0)
        elif all_on_one and 0 < enough < transfer:
            transfers[node] = enough


def _check_acyclic(problem: DeviceProblem, edges: Sequence[tuple[int, int]]) -> None:
    """Raise `NeuronError` naming the nodes of a cycle, if there is one."""
    waiting = [0] * len(problem.nodes)
    readers: list[list[int]] = [[] for _ in problem.nodes]
    for source, target in edges:
        waiting[target] += 1
        readers[source].append(target)
    ready = [n for n, count in enumerate(waiting) if not count]
    for node in ready:
        for reader in readers[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if len(ready) == len(problem.nodes):
        return
    sources: dict[int, int] = {target: source for source, target in edges if waiting[source] and waiting[target]}
    node, seen = min(sources), dict[int, None]()
    while node not in seen:
        seen[node] = None
        node = sources[node]
    walk = list(seen)
    cycle = [str(problem.nodes[n].id) for n in reversed(walk[walk.index(node) :])]
    shown = cycle if len(cycle) <= 8 else [*cycle[:7], "..", cycle[-1]]
    raise NeuronError(f"the graph has a cycle: {' -> '.join([*shown, cycle[0]])}")


def read_graph(data: object, devices: int, capacity: Number | None = None) -> DeviceProblem:
    """A problem from parsed JSON: `{"nodes": [{"id", "cost", "bytes", "transfer", "color"}], "edges": [[id, id]]}`.

    `bytes` and `transfer` are 0 and `color` is null when left out; keys that are not known are ignored. Raises
    `NeuronError` for anything else.
    """
    if not isinstance(data, Mapping):
        raise NeuronError('a graph is an object with "nodes" and "edges"')
    graph = cast(Mapping[str, Any], data)
    for key in ("nodes", "edges"):
        if not isinstance(graph.get(key), list):
            raise NeuronError(f'a graph has a list of "{key}"')
    index: dict[int | str, int] = {}
    named: set[str] = set()
    nodes: list[WorkNode] = []
    for place, entry in enumerate(cast(list[object], graph["nodes"])):
        if not isinstance(entry, Mapping):
            raise NeuronError(f'entry {place} of "nodes" is not an object')
        node = cast(Mapping[str, object], entry)
        name = node.get("id")
        if not isinstance(name, int | str) or isinstance(name, bool):
            raise NeuronError(f'entry {place} of "nodes" has no "id" that is a whole number or a string')
        # A plan names nodes by their ids as text.
        if str(name) in named:
            raise NeuronError(f"two nodes have the id {name}")
        named.add(str(name))
        index[name] = place
        color = node.get("color")
        if isinstance(color, bool) or not isinstance(color, int | str | None):
            raise NeuronError(f'node {name} has a "color" that is no whole number, string or null')
        if "cost" not in node:
            raise NeuronError(f'node {name} has no "cost"')
        cost, size, transfer = (_weight(node, name, key) for key in ("cost", "bytes", "transfer"))
        nodes.append(WorkNode(name, cost, size, transfer, color))
    edges: list[tuple[int, int]] = []
    for place, entry in enumerate(cast(list[object], graph["edges"])):
        if not isinstance(entry, list) or len(cast(list[object], entry)) != 2:
            raise NeuronError(f'entry {place} of "edges" is not a pair of ids')
        pair = cast(list[object], entry)
        for end in pair:
            if isinstance(end, bool) or not isinstance(end, int | str) or end not in index:
                raise NeuronError(f'entry {place} of "edges" names node {end}, which is not among the nodes')
        source, target = cast(list[int | str], pair)
        edges.append((index[source], index[target]))
    return DeviceProblem(tuple(nodes), tuple(edges), devices, capacity)


def _weight(node: Mapping[str, object], name: int | str, key: str) -> Number:
    value = node.get(key)
    if value is None and key != "cost":
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise NeuronError(f'node {name} has a "{key}" that is no number')
    if not math.isfinite(value) or value < 0:
        raise NeuronError(f"node {name} has a {key} of {value}: it must be a number of at least 0")
    if value and not -400 < Decimal(value).adjusted() < 60:
        # Fractions of such numbers have thousands of digits.
        raise NeuronError(f"node {name} has a {key} of {value}: it must be 0 or between 1e-400 and 1e60")
    return value


def _plain(amount: Fraction) -> str:
    return str(amount) if amount.denominator == 1 else f"{float(amount):.6g}"
