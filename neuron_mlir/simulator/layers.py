"""Where the time of a request goes, layer by layer: what binds each, and what the shape of the PE array costs it.

A layer is what instructions of the final form name as where they come from: the nodes of the model that were made into
one. Instructions are charged as the clock charges them. Formulas: docs/simulator.md, "Layers".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, cast

from xdsl.dialects.builtin import ArrayAttr, FusedLoc
from xdsl.ir import Attribute

from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.errors import location_text
from neuron_mlir.machine import cost
from neuron_mlir.simulator.costs import StepCosts
from neuron_mlir.simulator.program import Program, Step, Stream, walk

if TYPE_CHECKING:
    from xdsl.ir import Operation

UNNAMED = "(no name)"
"""The layer of instructions that do not say where they come from."""


@dataclass(frozen=True)
class ArrayTime:
    """What the TensorEngine spends on one request, picoseconds; all parts together are its time at work.

    Attributes:
        useful: what the multiply-adds of the instructions would take with the whole array at work.
        rows: rows left empty: fewer than 128 (the machine's number) to a contraction.
        columns: columns left empty, of the rows in use.
        short: fewer moving columns than the least an instruction takes.
        moves: transposes, which multiply nothing.
        loads: loads of stationary operands that were not hidden behind the instruction before.
    """

    useful: int = 0
    rows: int = 0
    columns: int = 0
    short: int = 0
    moves: int = 0
    loads: int = 0

    @property
    def total(self) -> int:
        """The time at work."""
        return self.useful + self.rows + self.columns + self.short + self.moves + self.loads

    def __add__(self, other: ArrayTime) -> ArrayTime:
        mine, theirs = asdict(self), asdict(other)
        return ArrayTime(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True)
class LayerTime:
    """One layer of a program, for one request.

    Attributes:
        name: of the first of its nodes.
        nodes: all nodes of the model that it was made from.
        cores: where it runs.
        busy_ps: by engine (`tensor`, `scalar`, `vector`), server (`dma`, `dram`) and link, how long the one that it
            keeps longest is at work for it.
        binding: the one of these that takes longest.
        time_ps: how long that is.
        share: of the sum of `time_ps` over all layers.
        macs: multiply-adds of its instructions.
        dram_bytes: charged at DRAM.
        pe_rows, pe_columns: of the PE array in use, on average over its multiply-adds' time; 0 without any.
        mac_utilization: multiply-adds over those of the whole array in the time that the TensorEngine is at work.
        array_ps: where the TensorEngine's time goes.
    """

    name: str
    nodes: tuple[str, ...]
    cores: tuple[int, ...]
    busy_ps: dict[str, int]
    binding: str
    time_ps: int
    share: float
    macs: int
    dram_bytes: int
    pe_rows: float
    pe_columns: float
    mac_utilization: float
    array_ps: ArrayTime

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, for `json.dumps`."""
        return asdict(self)


@dataclass
class _Sum:
    """What is added up for a layer."""

    name: str
    nodes: dict[str, None] = field(default_factory=dict[str, None])
    cores: dict[int, None] = field(default_factory=dict[int, None])
    busy_ps: dict[tuple[str, str, int], int] = field(default_factory=dict[tuple[str, str, int], int])
    """By kind of resource, its name, and which of the replicas that take turns uses it."""
    array: ArrayTime = ArrayTime()
    macs: int = 0
    dram_bytes: int = 0
    moving_ps: int = 0
    """Of matmuls, shorter ones as long as they move."""
    row_time: int = 0
    column_time: int = 0
    """Rows and columns in use, times how long."""

    def busy(self, kind: str, name: str, replica: int, time: int) -> None:
        key = kind, name, replica
        self.busy_ps[key] = self.busy_ps.get(key, 0) + time


def layer_times(
    program: Program,
    exposed_loads: Mapping[Step, int] | None = None,
    requests: int = 1,
    costs: StepCosts | None = None,
) -> list[LayerTime]:
    """The layers of a scheduled program, in the order in which they come in its streams.

    What replicas do is that of one of them. Transfers of the host belong to no layer.

    Args:
        program: in the final form.
        exposed_loads: of a run of it (`MachineRun.exposed_loads`); without, `ArrayTime.loads` is 0.
        requests: how many that run had.
        costs: of the program, when there are some already.
    """
    costs = StepCosts(program) if costs is None else costs
    sums: dict[str, _Sum] = {}
    order: list[str] = []
    for stream in _in_order(program):
        # Of a new stage layers come behind all others; one that an engine before had no part in, behind its neighbour.
        before: str | None = None
        for step, times in walk(stream.run):
            if not step.touches:
                continue
            layer = _sum_of(sums, step.op)
            _charge(layer, step, stream, times, costs)
            if layer.name not in order:
                order.insert(len(order) if before is None else order.index(before) + 1, layer.name)
            before = layer.name
            count = (exposed_loads or {}).get(step, 0)
            if count:
                _charge_loads(layer, stream, count, requests, program)
    found = [_finish(sums[name]) for name in order]
    total = sum(layer.time_ps for layer in found)
    return [_with_share(layer, total) for layer in found]


def _in_order(program: Program) -> Iterator[Stream]:
    """Streams as stages come; of a stage compute engines first, which have every layer in its order."""
    stages = list(dict.fromkeys(stream.stage for stream in program.streams))
    engines = ("tensor", "vector", "scalar")
    yield from sorted(
        program.streams,
        key=lambda stream: (
            stages.index(stream.stage),
            engines.index(stream.engine) if stream.engine in engines else len(engines),
            stream.number,
        ),
    )


def node_names(op: Operation) -> tuple[str, ...]:
    """The nodes of the model that an instruction's location names."""
    location = op.location
    parts: Sequence[Attribute] = (location,)
    if isinstance(location, FusedLoc):
        parts = cast("ArrayAttr[Attribute]", location.locations).data
    names = [location_text(part) for part in parts]
    return tuple(dict.fromkeys(name for name in names if name))


def _sum_of(sums: dict[str, _Sum], op: Operation) -> _Sum:
    nodes = node_names(op) or (UNNAMED,)
    layer = sums.setdefault(nodes[0], _Sum(nodes[0]))
    layer.nodes.update(dict.fromkeys(nodes))
    return layer


def _charge(layer: _Sum, step: Step, stream: Stream, times: int, costs: StepCosts) -> None:
    """Add what an instruction takes, `times` over, on one replica's turn."""
    replica, every = stream.turns.first, stream.turns.every
    layer.cores[stream.core] = None
    transfer = costs.transfer(step, stream)
    if transfer is not None:
        layer.dram_bytes += transfer.dram_bytes * times // every
        for name, time in transfer.busy_ps():
            layer.busy(name.split(" ")[0], name, replica, time * times)
        return
    occupancy = costs.issue(step, stream)[0]
    layer.busy(stream.engine, f"{stream.engine} of core {stream.core}", replica, occupancy * times)
    if stream.engine != "tensor":
        return
    if not isinstance(step.op, MatmulOp):
        layer.array += ArrayTime(moves=occupancy * times // every)
        return
    tensor = costs.machine.tensor_engine
    _, stationary, moving = step.touches
    rows, columns, count = stationary.sizes[0], prod(stationary.sizes[1:]), prod(moving.sizes[1:])
    time = count * costs.machine.clock.cycle_ps * times // every
    in_rows = time * rows // tensor.rows
    useful = in_rows * columns // tensor.columns
    layer.array += ArrayTime(useful, time - in_rows, in_rows - useful, occupancy * times // every - time)
    layer.macs += rows * columns * count * times // every
    layer.moving_ps += time
    layer.row_time += time * rows
    layer.column_time += time * columns


def _charge_loads(layer: _Sum, stream: Stream, count: int, requests: int, program: Program) -> None:
    """Add loads that were not hidden, so many in a run of so many requests."""
    turns = max(1, stream.turns.count(requests))
    time = count * cost.stationary_load_ps(program.machine) // turns
    layer.busy("tensor", f"tensor of core {stream.core}", stream.turns.first, time)
    layer.array += ArrayTime(loads=time // stream.turns.every)


def _finish(layer: _Sum) -> LayerTime:
    busy: dict[str, int] = {}
    for (kind, _, _), time in layer.busy_ps.items():
        busy[kind] = max(busy.get(kind, 0), time)
    binding, time = max(busy.items(), key=lambda item: item[1])
    total = layer.array.total
    moving = max(1, layer.moving_ps)
    return LayerTime(
        name=layer.name,
        nodes=tuple(layer.nodes),
        cores=tuple(sorted(layer.cores)),
        busy_ps=busy,
        binding=binding,
        time_ps=time,
        share=0.0,
        macs=layer.macs,
        dram_bytes=layer.dram_bytes,
        pe_rows=round(layer.row_time / moving, 3),
        pe_columns=round(layer.column_time / moving, 3),
        mac_utilization=round(layer.array.useful / total, 6) if total else 0.0,
        array_ps=layer.array,
    )


def _with_share(layer: LayerTime, total: int) -> LayerTime:
    return replace(layer, share=round(layer.time_ps / total, 6) if total else 0.0)
