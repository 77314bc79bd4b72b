"""A function as what `pipe-stage` cuts between: nodes that each stay on one core, and the values between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar, cast

from xdsl.dialects.builtin import ArrayAttr, FusedLoc, IntegerType, NameLoc
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Block, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.pipe.ops import StageOp, YieldOp
from neuron_mlir.errors import NeuronError, location_text
from neuron_mlir.ir.functions import body_of
from neuron_mlir.machine import Machine, cost
from neuron_mlir.passes.depth_first_cost import stays_in_dram
from neuron_mlir.passes.estimate import (
    GroupEstimate,
    charged_bytes,
    element_bytes,
    estimate_group,
    is_constant,
    is_large,
    partition_bytes,
    repeated_bytes,
    stored_with_its_layer,
    tensor_bytes,
)

if TYPE_CHECKING:
    from neuron_mlir.passes.depth_first_runs import RunCosts
    from neuron_mlir.passes.pipe._pieces import Division
    from neuron_mlir.solvers.partition import Intervals, PartitionProblem

T = TypeVar("T")

EXPOSED_PERCENT = 85
"""How much of a stage's DMA its compute does not hide, streamed weights apart. Lowering loads what a layer needs when
its turn comes, so that little of it runs ahead; measured on stages of ResNet-50 and BERT-base, which stay within 20% of
the estimate.
"""
EXPOSED_STREAM_PERCENT = 70
"""The same of streamed weights: they run ahead of their layers as far as the region they pass through allows. Alone, a
stage of BERT-base hides half of them; beside three others that stream from the same DRAM, less.
"""
EXPOSED_STREAM_PERCENT_OF_CHIPS = 100
"""The same in a pipeline over several chips. DRAMs have streams between stages to move as well, and the pipeline is as
slow as the one of all stages whose weights come last. BERT-large on 64 cores, reckoned with 70: stages that stream
should take 224 us, and take 260 to 275 us in the simulator; with 100 other stages, that have room, hold those weights,
and the slowest takes what it should, 228 us. Not where maps go by rows: beside groups in steps weights come ahead as on
one chip (ResNet-50 at 1440 on 8 cores: 159/s, and 138 if counted in full).
"""
MOVING_PERCENT = 50
"""How many of the cores of a chip read or write maps in DRAM at a time. What they move in all is counted besides."""
WORKING_STEPS = 128
"""Memory for activations is rounded up to parts of SBUF as fine as this."""


@dataclass(frozen=True)
class Graph:
    """A function as nodes that each stay on one core: lists of ops, in topological order."""

    nodes: list[list[Operation]]
    node_of: dict[Operation, int]
    estimates: list[GroupEstimate]
    values: list[tuple[SSAValue, list[int]]]
    """Arguments and results that nodes use, with the nodes that do."""
    outputs: tuple[SSAValue, ...]
    parameters: int
    """Numbers in all weights, each counted once."""
    live: list[int]
    """Of each node: bytes per partition of SBUF that values take while it runs, its temporaries included."""
    order: tuple[tuple[int, int], ...] = ()
    """Pairs of nodes of which the second is in no earlier stage than the first, though it does not read it."""

    @staticmethod
    def of(
        owner: FuncOp | StageOp,
        machine: Machine,
        depth_first: bool,
        together: Sequence[Sequence[Operation]] = (),
        divisions: Sequence[Division] = (),
    ) -> Graph:
        """The graph of a function or stage; each list of `together` is one node, and each piece of a layer of
        `divisions`. What puts pieces together is no node: who reads the whole, reads the pieces.

        Raises `NeuronError` for one that is not a single block of `nn` ops.
        """
        nodes: list[list[Operation]] = []
        node_of: dict[Operation, int] = {}
        waiting: dict[Operation, list[Operation]] = {}
        block = body_of(owner) if isinstance(owner, FuncOp) else owner.body.block
        last = block.last_op
        if not isinstance(last, (ReturnOp, YieldOp)):
            raise NeuronError("pipe-stage needs a function that ends in func.return", op=owner)
        preparations = preparations_of(block)
        joins = {division.join for division in divisions}
        together = [*together, *(piece.ops for division in divisions for piece in division.pieces)]
        kept = {op: number for number, ops in enumerate(together) for op in ops}
        started: dict[int, int] = {}
        for op in block.ops:
            if op is last or is_constant(op) or op in preparations or op in joins:
                continue
            if not op.name.startswith("nn."):
                raise NeuronError("pipe-stage cuts functions of nn ops only", op=op)
            reader = _only_reader(op) if op not in kept else None
            if reader is not None:
                waiting.setdefault(reader, []).append(op)
                continue
            home = started.get(kept[op]) if op in kept else _only_source(op, node_of)
            if home is None:
                home = len(nodes)
                nodes.append([])
            if op in kept:
                started[kept[op]] = home
            for member in (*_with_waiting(op, waiting), op):
                nodes[home].append(member)
                node_of[member] = home
        for op in reversed(preparations):
            # No node of its own: it goes with the first that uses it, and others repeat it.
            home = min(node_of[use.operation] for r in op.results for use in r.uses if use.operation in node_of)
            nodes[home].insert(0, op)
            node_of[op] = home
        alone = [[estimate_group(machine, op) for op in ops] for ops in nodes]
        estimates = [_sum(found) for found in alone]
        if depth_first:
            estimates = [replace(e, dram_bytes=e.dram_bytes - e.map_bytes) for e in estimates]
        sources = [*block.args, *(r for ops in nodes for op in ops for r in op.results)]
        values: list[tuple[SSAValue, list[int]]] = []
        for value in sources:
            users = sorted({node_of[reader] for reader in readers(value, joins) if reader in node_of})
            values.append((value, users))
        weights = {op.key: tensor_bytes(op.type) // _item(op) for op in owner.walk() if isinstance(op, nn.WeightOp)}
        live = [
            _inner_bytes(machine, ops, [e.working_bytes for e in found])
            for ops, found in zip(nodes, alone, strict=True)
        ]
        for value, users in values:
            homes = [node_of[value.owner], *users] if isinstance(value.owner, Operation) else users
            first, last_user = min(homes, default=0), max(homes, default=0)
            if homes and (first < last_user or not isinstance(value.owner, Operation)):
                size = _held_bytes(machine, value)
                for node in range(first, last_user + 1):
                    live[node] += size
        for division in divisions:
            # Pieces in one stage are one layer: what it holds beside its result grows with each, as that does.
            before = 0
            for piece in division.pieces:
                *slices, layer = piece.ops
                live[node_of[layer]] += before
                before += sum(_held_bytes(machine, op.results[0]) for op in slices) + repeated_bytes(machine, layer)[0]
        for node, ops in enumerate(nodes):
            live[node] += max(repeated_bytes(machine, op)[1] for op in ops)
        order = tuple(
            (node_of[a.ops[-1]], node_of[b.ops[-1]]) for division in divisions for a, b in pairwise(division.pieces)
        )
        return Graph(nodes, node_of, estimates, values, tuple(last.operands), sum(weights.values()), live, order)

    def problem(
        self,
        machine: Machine,
        stages: int,
        capacity: int,
        first_core: int,
        runs: RunCosts | None = None,
        limit: int = 0,
    ) -> PartitionProblem:
        """The partition problem of this graph on a machine's cores, with `capacity` bytes per partition for weights.

        `runs` has what runs of layers cost that go depth first; where stages may take `limit` ps.
        """
        from neuron_mlir.solvers.partition import Node, PartitionProblem, Value

        step = machine.sbuf.bytes_per_partition // WORKING_STEPS
        intervals = None if runs is None else self._intervals(runs, limit)
        nodes = tuple(
            Node(
                self.label(n),
                estimate.span_ps,
                estimate.weight_bytes,
                estimate.resident_bytes,
                estimate.dram_bytes,
                # What packs inputs of depth-first groups goes on beside their steps.
                estimate.work.dma_bytes if intervals is None else 0,
                -(-live // step) * step,
                -(-(live + estimate.streaming_bytes) // step) * step,
            )
            for n, (estimate, live) in enumerate(zip(self.estimates, self.live, strict=True))
        )
        core_rate, link_rate = cost.core_dma_bytes_per_s(machine), cost.chip_link_bytes_per_s(machine)
        values: list[Value] = []
        for value, users in self.values:
            maker = self.node_of[value.owner] if isinstance(value.owner, Operation) else None
            others = tuple(user for user in users if user != maker)
            size, leaves = charged_bytes(machine, value), maker is not None and value in self.outputs
            by_rows = intervals is not None and stays_in_dram(machine, value)
            host = tensor_bytes(cast(nn.Tensor, value.type)) if leaves or maker is None else 0
            values.append(Value(maker, others, size, leaves, by_rows, host))
        values += [Value(first, (second,), 0) for first, second in self.order]
        one_chip = first_core % machine.chip.cores + stages <= machine.chip.cores
        hidden = one_chip or intervals is not None
        exposed_stream = EXPOSED_STREAM_PERCENT if hidden else EXPOSED_STREAM_PERCENT_OF_CHIPS
        return PartitionProblem(
            nodes,
            tuple(values),
            stages,
            exactly=stages <= len(nodes),
            capacity_bytes=capacity,
            core_bytes_per_s=core_rate,
            exposed_ps_per_byte=EXPOSED_PERCENT * cost.PS_PER_S // (100 * core_rate),
            exposed_stream_ps_per_byte=exposed_stream * cost.PS_PER_S // (100 * core_rate),
            exposed_link_ps_per_byte=max(0, EXPOSED_PERCENT * (cost.PS_PER_S // link_rate - cost.PS_PER_S // core_rate))
            // 100,
            dram_bytes_per_s=cost.dram_bytes_per_s(machine),
            link_bytes_per_s=cost.chip_link_bytes_per_s(machine),
            host_bytes_per_s=cost.host_link_bytes_per_s(machine),
            cores_per_chip=machine.chip.cores,
            first_core=first_core,
            intervals=intervals,
        )

    def _intervals(self, runs: RunCosts, limit: int) -> Intervals | None:
        """What runs of nodes cost; None if nodes are not runs of layers, in order."""
        from neuron_mlir.solvers.partition import Intervals

        homes: list[int] = []
        for op in runs.layers:
            # What puts pieces together goes with the last of them.
            homes.append(self.node_of.get(op, homes[-1] if homes else -1))
        if homes != sorted(homes) or homes[:1] != [0]:
            return None
        borders = [bisect_left(homes, node) for node in range(len(self.nodes) + 1)]

        times, sizes, fits = runs.within(limit)

        def between(table: list[list[T]], without: T) -> tuple[tuple[T, ...], ...]:
            return tuple(tuple(table[a][b] if a < b else without for b in borders) for a in borders)

        return Intervals(between(times, 0), between(sizes, 0), between(fits, False))

    def replace(self, old: Sequence[Operation], new: Sequence[Operation]) -> None:
        """Other ops stand for the first of the nodes that hold `old`; the others lose theirs."""
        gone = set(old)
        homes = list(dict.fromkeys(self.node_of.pop(op) for op in old))
        for home in homes:
            kept = [op for op in self.nodes[home] if op not in gone]
            self.nodes[home] = [*new, *kept] if home == homes[0] else kept
        self.node_of.update(dict.fromkeys(new, homes[0]))

    def label(self, node: int) -> str:
        """A name for messages: that of the node's first op in the model, else the op's kind."""
        op = self.nodes[node][0]
        location: Attribute = op.location
        while isinstance(location, FusedLoc):
            location = cast("ArrayAttr[Attribute]", location.locations).data[0]
        if isinstance(location, NameLoc):
            return location.desc.data
        return location_text(location) or op.name


def map_rates(machine: Machine, cores: int) -> tuple[int, int]:
    """Bytes per second that a core counts on for maps in DRAM when so many are in use: when groups are chosen, and when
    their time is reckoned.
    """
    core = cost.core_dma_bytes_per_s(machine)
    rate = cost.dram_bytes_per_s(machine) // min(cores, machine.chip.cores)
    return min(core, rate), min(core, 100 * rate // MOVING_PERCENT)


_MOVEMENTS = (nn.ReshapeOp, nn.TransposeOp)


def readers(value: SSAValue, joins: Container[Operation]) -> Iterator[Operation]:
    """The ops that use a value, or what puts it together with others."""
    for use in value.uses:
        if use.operation in joins:
            yield from readers(use.operation.results[0], joins)
        else:
            yield use.operation


def _only_source(op: Operation, node_of: dict[Operation, int]) -> int | None:
    """The node a reshape or transpose goes with: that of the value it alone uses. It leaves as many bytes, so that a
    cut before it is never better than one behind it."""
    if not isinstance(op, _MOVEMENTS) or not isinstance(op.x.owner, Operation) or not op.x.has_one_use():
        return None
    return node_of.get(op.x.owner)


def _only_reader(op: Operation) -> Operation | None:
    """The op that a reshape or transpose goes with instead, as it splits an axis for it alone.

    Attention takes the heads of a projection apart and puts those of its result together again. Whole rows go between
    cores in bursts; heads that lie across partitions would go element by element. So of a row of such ops the end with
    fewer axes is where a cut may be.
    """
    if not isinstance(op, _MOVEMENTS) or not op.x.has_one_use():
        return None
    first: nn.ReshapeOp | nn.TransposeOp = op
    while isinstance(first.x.owner, _MOVEMENTS) and first.x.owner.x.has_one_use():
        first = first.x.owner
    last: Operation = op
    while True:
        uses = [use.operation for use in last.results[0].uses]
        if len(uses) != 1 or isinstance(uses[0], (ReturnOp, YieldOp)):
            return None
        if not isinstance(uses[0], _MOVEMENTS):
            break
        last = uses[0]
    if _axes(first.x) >= _axes(last.results[0]):
        return None
    return next(use.operation for use in op.results[0].uses)


def _axes(value: SSAValue) -> int:
    return sum(size > 1 for size in cast(nn.Tensor, value.type).get_shape())


def _with_waiting(op: Operation, waiting: dict[Operation, list[Operation]]) -> list[Operation]:
    """The ops that wait for their only reader, those that wait for them first."""
    return [member for other in waiting.get(op, []) for member in (*_with_waiting(other, waiting), other)]


def _inner_bytes(machine: Machine, ops: Sequence[Operation], working: Sequence[int]) -> int:
    """Most bytes per partition that a node's temporaries (`working`, of each op), and values that do not leave it, take
    at one time.
    """
    last: dict[SSAValue, int] = {}
    made: dict[SSAValue, int] = {}
    leaving: list[SSAValue] = []
    for position, op in enumerate(ops):
        for value in map(_stored, op.operands):
            if value in made:
                last[value] = position
        for result in op.results:
            if _stored(result) is result:
                made[result] = last[result] = position
            if any(use.operation not in ops for use in result.uses):
                leaving.append(_stored(result))
    # What leaves is counted where it goes from node to node.
    sizes = {value: 0 if value in leaving else _held_bytes(machine, value) for value in made}
    return max(
        own + sum(size for value, size in sizes.items() if made[value] <= position <= last[value])
        for position, own in enumerate(working)
    )


def _stored(value: SSAValue) -> SSAValue:
    """The value whose buffer a value is a view of: reshapes and transposes relabel."""
    while isinstance(value.owner, _MOVEMENTS):
        value = value.owner.x
    return value


def _held_bytes(machine: Machine, value: SSAValue) -> int:
    """What a value takes in every partition of SBUF from its maker to its last reader."""
    uses = [use.operation for use in value.uses]
    if is_large(machine, value) or any(isinstance(use, nn.CastOp) and stored_with_its_layer(use) for use in uses):
        return 0
    return partition_bytes(machine, value)


def _sum(parts: list[GroupEstimate]) -> GroupEstimate:
    total = parts[0]
    for part in parts[1:]:
        total = GroupEstimate(
            total.work + part.work,
            total.weight_bytes + part.weight_bytes,
            total.resident_bytes + part.resident_bytes,
            total.dram_bytes + part.dram_bytes,
            total.parameters + part.parameters,
            total.span_ps + part.span_ps,
            max(total.working_bytes, part.working_bytes),
            max(total.streaming_bytes, part.streaming_bytes),
            total.map_bytes + part.map_bytes,
        )
    return total


def _item(op: nn.WeightOp) -> int:
    return element_bytes(op.type.element_type)


PREPARATIONS = (nn.ReshapeOp, nn.TransposeOp, nn.CastOp, nn.UnaryOp, nn.BinaryOp)
PREPARATION_BYTES = 4096
"""An op on integer graph inputs alone that makes no more than this (an attention mask) is done in every stage that
wants it: the host sends each stage its copy of the input, and no stage has to feed all the others."""


def preparations_of(block: Block) -> dict[Operation, tuple[SSAValue, ...]]:
    """Those ops, with their operands as they are before ops move to stages."""
    found: dict[Operation, tuple[SSAValue, ...]] = {}
    for op in block.ops:
        if not isinstance(op, PREPARATIONS) or tensor_bytes(op.results[0].type) > PREPARATION_BYTES:
            continue
        if all(value.owner in found or _is_number(value) for value in op.operands):
            found[op] = tuple(op.operands)
    # Outputs, and what nobody uses, are layers like any other.
    for op in reversed(list(found)):
        users = [use.operation for r in op.results for use in r.uses]
        if not users or any(isinstance(user, (ReturnOp, YieldOp)) for user in users):
            del found[op]
    return found


def _is_number(value: SSAValue) -> bool:
    """Whether a value is a constant, or a graph input of integers: ids and masks."""
    if isinstance(value.owner, Operation):
        return is_constant(value.owner)
    return isinstance(cast(nn.Tensor, value.type).element_type, IntegerType)
