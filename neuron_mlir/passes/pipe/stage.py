"""The pass `pipe-stage`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from xdsl.dialects.builtin import (
    IntegerAttr,
    ModuleOp,
    StringAttr,
    i64,
)
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, Operation, Region, SSAValue

from neuron_mlir.dialects import nn, pipe
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.functions import body_of, input_names, output_names
from neuron_mlir.ir.machine_attr import machine_of, record_machine
from neuron_mlir.machine import Machine
from neuron_mlir.passes.base import NeuronPass, Relation, option
from neuron_mlir.passes.estimate import is_constant
from neuron_mlir.passes.nn._groups import attention_groups, dissolve
from neuron_mlir.passes.pipe._graph import Graph, map_rates, preparations_of, readers
from neuron_mlir.passes.pipe._pieces import Division, divide, unite

EVEN_OUT = 0.009
"""How much longer than the best the slowest resource may take for stages that take similar times."""

WORTH_DIVIDING = 0.05
"""How much shorter the slowest resource has to be for layers to be divided."""

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xdsl.context import Context

    from neuron_mlir.passes.pipe._core_count import CoreCount
    from neuron_mlir.passes.pipe._splitting import Spare
    from neuron_mlir.solvers.partition import Partition


@dataclass(frozen=True)
class PipeStage(NeuronPass):
    """Cut a network into stages, one core each, so that the slowest takes as little time as possible.

    Each `nn.fused` and each op outside one goes to a core as a whole (attention groups are dissolved, but what they
    hold stays together); values only go to the same or a later core. What
    is minimised is the time per request of the slowest of: a stage (its engines, and what they do not hide of its DMA:
    weights that do not fit beside its values in SBUF, values in and out), a chip's DRAM, a link between chips, the link
    to the host. Of cuts as good to within 0.9% one with even stages is taken. The program carries a certificate of the
    answer in picoseconds. Weights are copied to each stage that uses them; a value used by several later stages is one
    stream that each of them reads.

    Layers with large weights may be divided between neighbouring stages by output channels, so that SBUFs fill evenly;
    who reads the result puts the parts together. Where feature maps do not fit SBUF, a stage costs what
    `nn-fuse-depth-first` will make of it, and only cuts of the program's order are looked at.

    `cores=auto` takes the fewest cores whose SBUF holds all weights, beside its values. The program
    says why.

    Not done here: splitting the work of a layer on one request over cores at once, and copying stages.

    Before:

    ```mlir
    func.func @main(%x: tensor<128x128xf32> {nn.name = "x"}) -> (tensor<128x128xf32> {nn.name = "y"}) {
      %w = nn.weight "w" : tensor<128x128xf32>
      %a = nn.matmul %x, %w : (tensor<128x128xf32>, tensor<128x128xf32>) -> tensor<128x128xf32>
      %b = nn.softmax %a axis 1 : (tensor<128x128xf32>) -> tensor<128x128xf32>
      func.return %b : tensor<128x128xf32>
    }
    ```

    After `pipe-stage{cores=2}`:

    ```mlir
    builtin.module attributes {core.machine = "inferentia1"} {
      pipe.program @main attributes {
          bottleneck = "DRAM of chip 0",
          certificate = #pipe.certificate<10082462.0, 10082462.0, "ps", "interval DP over all orders">,
          reason = "2 cores: as asked for"} {
        %x = pipe.input "x" : !pipe.stream<tensor<128x128xf32>>
        %a = pipe.stage @s0 cores [0] (%x) attributes {
            compute_ps = 614000 : i64, cost_ps = 5461334 : i64, dram_bytes = 131072 : i64, weight_bytes = 65536 : i64} {
        ^bb0(%x_1: tensor<128x128xf32>):
          %w = nn.weight "w" : tensor<128x128xf32>
          %a_1 = nn.matmul %x_1, %w : (tensor<128x128xf32>, tensor<128x128xf32>) -> tensor<128x128xf32>
          pipe.yield %a_1 : tensor<128x128xf32>
        } -> (!pipe.stream<tensor<128x128xf32>>)
        %b = pipe.stage @s1 cores [1] (%a) attributes {
            compute_ps = 1074000 : i64, cost_ps = 5661520 : i64, dram_bytes = 262144 : i64, weight_bytes = 0 : i64} {
        ^bb0(%a_1: tensor<128x128xf32>):
          %b_1 = nn.softmax %a_1 axis 1 : (tensor<128x128xf32>) -> tensor<128x128xf32>
          pipe.yield %b_1 : tensor<128x128xf32>
        } -> (!pipe.stream<tensor<128x128xf32>>)
        pipe.output "y", %b : !pipe.stream<tensor<128x128xf32>>
      }
    }
    ```
    """

    name = "pipe-stage"
    summary: ClassVar[str] = "cut the network into pipeline stages with the least bottleneck, one core each"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "stages": "stages made, one core each",
        "groups": "groups that were cut between",
        "divided": "layers of which neighbouring stages make some output channels each",
        "split": "stages whose work on each request is split over cores",
        "streams": "values that go from one stage to others",
        "bottleneck-ps": "estimated time per request of the slowest resource, picoseconds",
        "lower-bound-ps": "proven: no cut of these groups over these cores is faster, picoseconds",
        "bottleneck": "the slowest resource",
        "streamed-weight-bytes": "weights that do not fit SBUF and are read for every request",
        "aws-formula-cores": "what AWS's rule 4 * round(weights / 2e7) says, for comparison",
        "reason": "why this many cores",
    }

    cores: int | Literal["auto"] = option(
        cast("int | Literal['auto']", "auto"), "stages to make; auto: the fewest cores that hold all weights"
    )
    reserve_percent: int = option(
        0, "part of every core's SBUF kept free beside weights and activations, percent (0 to 99)"
    )
    piece_percent: int = option(
        12,
        "layers whose weights take more than this part of a core's SBUF may be divided between neighbouring stages "
        "by output channels, percent; 0: layers stay whole",
    )
    first_core: int = option(0, "core of the first stage; the others follow along the chain of chips")
    depth_first: bool = option(
        True, "feature maps between layers of a stage do not pass DRAM, as after nn-fuse-depth-first"
    )

    split: bool = option(
        False,
        "where one layer keeps more stages from being faster, make fewer and split it over the cores left, as "
        "pipe-shard does, if that wins",
    )

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        function = _function_of(op)
        machine = machine_of(op)
        self._check_options(machine)
        # The cut changes the function.
        trial = function.clone() if self.split and self.cores != 1 else None
        if trial is not None:
            _copy_locations(function, trial)
        graph, partition, joins, count, spare = self._cut(function, machine)
        reason = count.reason
        if joins:
            self.weaken(Relation.REASSOCIATES)
        self.record("divided", len(joins))
        streamed = sum(stage.streamed_bytes for stage in partition.stages)
        if self.cores == "auto" and streamed:
            reason += f"; the fastest cut streams {streamed} bytes of them"
        program = _build(function, graph, partition, self.first_core, joins)
        program.attributes["reason"] = StringAttr(reason)
        if count.certificate is not None:
            fewest = count.certificate
            program.attributes["fewest_cores"] = pipe.CertificateAttr.of(
                fewest.objective, fewest.lower_bound, fewest.unit, fewest.method
            )
        record_machine(op, machine)
        self._report(partition, graph, reason)
        if spare is not None and trial is not None:
            alone = f"more stages do not help '{graph.label(spare.node)}', whose stage takes {spare.time_ps} ps"
            program = self._split(ctx, program, spare, alone, trial, len(partition.stages))
        stages = program.stages()
        self.record("stages", len(stages))
        self.record("streams", sum(any(r.uses) for stage in stages for r in stage.results_))

    def _split(
        self, ctx: Context, program: pipe.ProgramOp, spare: Spare, alone: str, trial: FuncOp, cores: int
    ) -> pipe.ProgramOp:
        """Put a program with split stages in the place of one with a stage for every core, if that wins; the one that
        stays.
        """
        from neuron_mlir.passes.pipe._splitting import split_instead

        if not spare.stages:
            busy = spare.bottleneck or "a stage"
            program.attributes["sharding_reason"] = StringAttr(
                f"{alone}; in parts it would not be 10% faster: {busy} takes {spare.ideal_ps} ps then"
            )
            return program
        fewer = replace(self, cores=spare.stages, split=False)
        machine = machine_of(program)
        found, reason, counted = split_instead(
            ctx, program, trial, lambda module: fewer.apply(ctx, module), cores, machine
        )
        kept = found or program
        kept.attributes["sharding_reason"] = StringAttr(f"{alone}; {reason}")
        if found is None:
            return program
        why = program.attributes["reason"]
        assert isinstance(why, StringAttr)
        stages = "1 stage" if spare.stages == 1 else f"{spare.stages} stages"
        found.attributes["reason"] = StringAttr(f"{why.data}; {stages}, split over {counted['cores']} cores")
        parent = program.parent_block()
        assert parent is not None
        parent.insert_op_before(found, program)
        program.detach()
        program.erase()
        self.weaken(Relation.REASSOCIATES)
        self.record("split", cast(int, counted["sharded"]))
        for key in ("bottleneck", "bottleneck-ps", "lower-bound-ps"):
            self.record(key, cast("int | str", counted[key]))
        return found

    def _cut(
        self, function: FuncOp, machine: Machine
    ) -> tuple[Graph, Partition, list[nn.ConcatOp], CoreCount, Spare | None]:
        """What is cut, how, what puts divided layers together, why so many stages, and which layer bounds them."""
        from neuron_mlir.passes.depth_first_runs import run_costs
        from neuron_mlir.solvers.partition import partition_dag

        block = function.body.block
        together = [dissolve(group) for group in attention_groups(block)]
        graph = Graph.of(function, machine, self.depth_first, together)
        if not graph.nodes:
            raise NeuronError(
                "there is nothing to cut: the function has no layers, its outputs are inputs or constants",
                op=function,
                advice="compute it on the host; a core has nothing to do for it",
            )
        capacity = machine.sbuf.bytes_per_partition * (100 - self.reserve_percent) // 100
        divisions: list[Division] = []
        if self.piece_percent and self.cores != 1:
            kept = [op for ops in together for op in ops]
            divisions = divide(block, machine, capacity * self.piece_percent // 100, kept)
        finer = Graph.of(function, machine, self.depth_first, together, divisions) if divisions else graph
        count = self._choose_cores(machine, finer, capacity)
        cores = count.cores
        partition = pieces = runs = None
        if self.depth_first and 1 < cores <= len(finer.nodes):
            runs = run_costs(machine, block, cores, *map_rates(machine, cores))

        def cut(graph: Graph, stages: int) -> Partition:
            problem = graph.problem(machine, stages, capacity, self.first_core, runs)
            found = partition_dag(problem, even_out=EVEN_OUT)
            if runs is None:
                return found
            # Stages that take no longer as a single group spare DRAM: with those there may be a better cut.
            limit = found.certificate.objective
            again = graph.problem(machine, stages, capacity, self.first_core, runs, limit)
            return found if again == problem else partition_dag(again, even_out=EVEN_OUT)

        if runs is None and cores <= len(graph.nodes):
            partition = cut(graph, cores)
        if runs is not None or (divisions and 1 < cores <= len(finer.nodes)):
            pieces = cut(finer, cores)
        spare = None
        found = pieces or partition
        if self.split and found is not None:
            from neuron_mlir.passes.pipe._splitting import spare_cores

            used = graph if pieces is None else finer
            spare = spare_cores(lambda stages: cut(used, stages), found, cores, [e.span_ps for e in used.estimates])
        if pieces is not None and (
            partition is None or pieces.certificate.objective < (1 - WORTH_DIVIDING) * partition.certificate.objective
        ):
            stages = {node: number for number, load in enumerate(pieces.stages) for node in load.nodes}
            return finer, pieces, unite(divisions, lambda op: stages[finer.node_of[op]], finer.replace), count, spare
        unite(divisions, lambda _: 0, lambda _, __: None)
        if partition is None:
            raise NeuronError(
                f"cannot cut {len(finer.nodes)} groups into {cores} stages",
                op=function,
                resource="groups",
                needed=cores,
                available=len(finer.nodes),
                advice=f"cores={len(finer.nodes)} or fewer, or cores=auto",
            )
        return graph, partition, [], count, spare

    def _check_options(self, machine: Machine) -> None:
        if not 0 <= self.reserve_percent < 100:
            raise NeuronError(f"option 'reserve-percent' of pass '{self.name}' is 0 to 99, not {self.reserve_percent}")
        if not 0 <= self.piece_percent <= 100:
            raise NeuronError(f"option 'piece-percent' of pass '{self.name}' is 0 to 100, not {self.piece_percent}")
        if not 0 <= self.first_core < machine.cores_max:
            raise NeuronError(
                f"option 'first-core' of pass '{self.name}' is 0 to {machine.cores_max - 1}, not {self.first_core}"
            )
        room = machine.cores_max - self.first_core
        if self.cores != "auto" and not 1 <= self.cores <= room:
            raise NeuronError(
                f"option 'cores' of pass '{self.name}' is 1 to {room} or auto, not {self.cores}",
                resource=f"cores of {machine.name} from core {self.first_core} on",
                needed=self.cores,
                available=room,
            )

    def _choose_cores(self, machine: Machine, graph: Graph, capacity: int) -> CoreCount:
        """The number of stages and the reason for it."""
        from neuron_mlir.passes.pipe._core_count import CoreCount, choose_cores, cores_text

        if self.cores != "auto":
            return CoreCount(self.cores, f"{cores_text(self.cores)}: as asked for")
        most = min(machine.cores_max - self.first_core, len(graph.nodes))
        problem = graph.problem(machine, 1, capacity, self.first_core)
        return choose_cores(problem, [graph.label(node) for node in range(len(graph.nodes))], most)

    def _report(self, partition: Partition, graph: Graph, reason: str) -> None:
        self.record("groups", len(graph.nodes))
        self.record("bottleneck-ps", partition.certificate.objective)
        self.record("lower-bound-ps", partition.certificate.lower_bound)
        self.record("bottleneck", partition.bottleneck)
        self.record("streamed-weight-bytes", sum(s.streamed_bytes for s in partition.stages))
        self.record("aws-formula-cores", 4 * round(graph.parameters / 2e7))
        self.record("reason", reason)


def _function_of(module: ModuleOp) -> FuncOp:
    """The one function of a module."""
    functions = [op for op in module.ops if isinstance(op, FuncOp) and not op.is_declaration]
    if len(functions) == 1:
        body_of(functions[0])
        return functions[0]
    if any(isinstance(op, pipe.ProgramOp) for op in module.ops):
        raise NeuronError("the module is staged already", advice="run pipe-stage on the nn function, once")
    names = ", ".join(f"@{f.sym_name.data}" for f in functions) or "none"
    raise NeuronError(f"pipe-stage cuts one function, the module has {len(functions)} ({names})", op=module)


def _build(
    function: FuncOp, graph: Graph, partition: Partition, first_core: int, joins: Sequence[nn.ConcatOp]
) -> pipe.ProgramOp:
    """Put a program in the place of a function."""
    block = Block()
    streams: dict[SSAValue, SSAValue] = {}
    for name, argument in zip(input_names(function), function.body.block.args, strict=True):
        entry = pipe.InputOp(name, pipe.StreamType(argument.type))
        block.add_op(entry)
        entry.result[0].name_hint = argument.name_hint
        streams[argument] = entry.result[0]
    position = {op: index for index, op in enumerate(function.body.block.ops)}
    constants = [value for value in graph.outputs if isinstance(value.owner, Operation) and is_constant(value.owner)]
    filled = [stage for stage in partition.stages if stage.nodes]
    repeated = preparations_of(function.body.block) | {join: tuple(join.operands) for join in joins}
    for index, load in enumerate(filled):
        ops = sorted((op for node in load.nodes for op in graph.nodes[node]), key=lambda op: position[op])
        extra = constants if index == len(filled) - 1 else []
        stage = _stage(index, first_core + index, ops, extra, streams, graph.outputs, repeated)
        stage.attributes |= {
            "compute_ps": IntegerAttr(load.compute_ps, i64),
            "cost_ps": IntegerAttr(load.cost_ps, i64),
            "dram_bytes": IntegerAttr(load.dram_bytes, i64),
            "weight_bytes": IntegerAttr(load.weight_bytes, i64),
        }
        if load.streamed_bytes:
            stage.attributes["streamed_bytes"] = IntegerAttr(load.streamed_bytes, i64)
        block.add_op(stage)
    for name, value in zip(output_names(function), graph.outputs, strict=True):
        block.add_op(pipe.OutputOp(name, streams[value]))
    program = pipe.ProgramOp(function.sym_name.data, Region(block))
    certificate = partition.certificate
    program.attributes["bottleneck"] = StringAttr(partition.bottleneck)
    program.attributes["certificate"] = pipe.CertificateAttr.of(
        certificate.objective, certificate.lower_bound, certificate.unit, certificate.method
    )
    program.location = function.location
    parent = function.parent_block()
    assert parent is not None
    parent.insert_op_before(program, function)
    # Ops moved out leave uses of each other behind: the function goes last, with what is left of it.
    for op in reversed(list(function.body.block.ops)):
        op.detach()
        op.erase(safe_erase=False)
    function.detach()
    function.erase()
    return program


def _stage(
    index: int,
    core: int,
    ops: list[Operation],
    constants: list[SSAValue],
    streams: dict[SSAValue, SSAValue],
    outputs: tuple[SSAValue, ...],
    repeated: dict[Operation, tuple[SSAValue, ...]],
) -> pipe.StageOp:
    """A stage of the given ops, which are moved into it; `streams` maps values to streams and gets those the stage
    makes.

    `constants` are yielded besides. What `repeated` ops of other stages make is computed here again.
    """
    inside = dict.fromkeys(ops)
    body = Block()
    local: dict[SSAValue, SSAValue] = {}
    arguments: list[SSAValue] = []

    def constant(value: SSAValue) -> SSAValue:
        if value not in local:
            source = cast(Operation, value.owner)
            copy = source.clone()
            _copy_locations(source, copy)
            body.add_op(copy)
            copy.results[0].name_hint = value.name_hint
            local[value] = copy.results[0]
        return local[value]

    def here(value: SSAValue) -> SSAValue:
        """What stands for a value inside the stage."""
        owner = value.owner
        if isinstance(owner, Operation) and (owner in inside or owner.parent_block() is body):
            return value
        if isinstance(owner, Operation) and is_constant(owner):
            return constant(value)
        if value in local:
            return local[value]
        if isinstance(owner, Operation) and owner in repeated:
            operands = [here(operand) for operand in repeated[owner]]
            copy = owner.clone()
            copy.operands = operands
            _copy_locations(owner, copy)
            body.add_op(copy)
            local[value] = copy.results[0]
        else:
            arguments.append(streams[value])
            local[value] = body.insert_arg(value.type, len(body.args))
        local[value].name_hint = value.name_hint
        return local[value]

    for op in ops:
        op.operands = [here(value) for value in op.operands]
        op.detach()
        body.add_op(op)
    leaving = [
        r
        for op in ops
        for r in op.results
        if r in outputs
        or (op not in repeated and any(reader.parent_block() is not body for reader in readers(r, repeated)))
    ]
    for op in reversed(ops):
        if op in repeated and not any(use.operation in inside for r in op.results for use in r.uses):
            # Later stages make their own copy of it from its operands; what still refers to it is in the function.
            op.detach()
            del inside[op]
    yielded = leaving + [constant(value) for value in constants]
    body.add_op(pipe.YieldOp(yielded))
    types = [pipe.StreamType(value.type) for value in yielded]
    stage = pipe.StageOp(f"s{index}", [core], arguments, Region(body), types)
    for value, stream in zip(yielded, stage.results_, strict=True):
        stream.name_hint = value.name_hint
    streams.update(zip(leaving + constants, stage.results_, strict=True))
    return stage


def _copy_locations(source: Operation, copy: Operation) -> None:
    """Cloning forgets locations."""
    for old, new in zip(source.walk(), copy.walk(), strict=True):
        new.location = old.location
