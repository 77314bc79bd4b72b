"""The pass `core-lower`."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.builtin import IntegerAttr, ModuleOp, i64
from xdsl.ir import Block, Operation, Region, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.core.memory import SBUF, AllocOp, buffer_bytes, element_bytes
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.dialects.pipe.attributes import CertificateAttr
from neuron_mlir.dialects.pipe.ops import (
    LoadOp,
    OutputOp,
    ProgramOp,
    RingOp,
    RunOp,
    StageOp,
    YieldOp,
)
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.machine_attr import machine_of
from neuron_mlir.machine import Machine
from neuron_mlir.passes.base import NeuronPass, Relation
from neuron_mlir.passes.core.allocation.buffers import LARGE_LOOP
from neuron_mlir.passes.core.lowering.builder import Code
from neuron_mlir.passes.core.lowering.context import (
    EXPORT_QUEUE,
    STORE_QUEUE,
    WEIGHT_QUEUE,
    Context,
    shape_of,
    tensor_type,
)
from neuron_mlir.passes.core.lowering.copying import copy_by_dma
from neuron_mlir.passes.core.lowering.layout import Home
from neuron_mlir.passes.core.lowering.plan import is_layer
from neuron_mlir.passes.core.lowering.residency import Residency, cheapest, dram_traffic, streaming_rate
from neuron_mlir.passes.core.lowering.rings import Rings, RowStream, ring_home
from neuron_mlir.passes.core.lowering.row_constants import RowConstants
from neuron_mlir.passes.core.lowering.stage import StageLowering
from neuron_mlir.passes.core.lowering.turned import turned_axes
from neuron_mlir.passes.estimate import estimate_group
from neuron_mlir.passes.layouts import LARGE_BYTES, STREAM_BYTES
from neuron_mlir.passes.nn._groups import attention_groups, dissolve
from neuron_mlir.passes.phases import transposed_flops
from neuron_mlir.solvers.certificate import Certificate

if TYPE_CHECKING:
    from xdsl.context import Context as IrContext

FEW_RINGS = 8
"""A stage with more rings has no queue of its own for what leaves the chip: each ring takes semaphores, each queue one
more."""
STREAMED = "streamed_weights"
"""Attribute of a program: the certificate of which weights are streamed, for its slowest stage that streams some."""

ATTEMPTS = 6
"""How often a stage is lowered anew with fewer resident weights before `core-allocate` has to spill."""
MARGIN = 256
"""Bytes per partition given up beyond the excess found, for alignment."""
SLACK = 128
"""The same where buffers of loops are counted once, and so could take no less."""
PACKING = 4096
"""Bytes per partition that weights leave free beside depth-first groups: their buffers, of all sizes, have few slots to
give up where they do not pack without gaps.
"""


@dataclass(frozen=True)
class CoreLower(NeuronPass):
    """Turns the layers of every stage into tiled instructions on buffers, in program order.

    Streams become rings in DRAM. Each layer (a fused group or a lone op) becomes loops over tiles of 128 partitions:
    contractions sum in PSUM over channel tiles and taps, reading their input in place; what follows in the group runs
    on each finished tile. Weights that fit are loaded once into SBUF, the others are streamed for every request.
    Feature maps too large for SBUF stay in DRAM and pass through in tiles of rows. `docs/lowering.md` tells more.

    Not done here: addresses (`core-allocate`) and order across engines (`core-schedule`). Sums are taken in another
    order than `nn` takes them; on whole numbers that makes no difference. What the device has no code for (`arg_max`,
    products of f32) is an error that says what to do instead.

    Before:

    ```mlir
    pipe.program @net {
      %a = pipe.input "data" : !pipe.stream<tensor<1x8x6x6xbf16>>
      %c = pipe.stage @s0 cores [0] (%a) {
      ^bb0(%x: tensor<1x8x6x6xbf16>):
        %w = nn.weight "w" : tensor<16x8x3x3xbf16>
        %y = nn.conv %x, %w : (tensor<1x8x6x6xbf16>, tensor<16x8x3x3xbf16>) -> tensor<1x16x4x4xf32>
        pipe.yield %y : tensor<1x16x4x4xf32>
      } -> (!pipe.stream<tensor<1x16x4x4xf32>>)
      pipe.output "prob", %c : !pipe.stream<tensor<1x16x4x4xf32>>
    }
    ```

    After:

    ```mlir
    pipe.program @net attributes {pipe.model_flops = 36864 : i64, pipe.model_weight_bytes = 2304 : i64} {
      %a = pipe.ring "data" depth 2 on chip 0 : memref<2x1x8x6x6xbf16, #core.dram>
      pipe.input "data" to %a
      %c = pipe.ring "c" depth 2 on chip 0 : memref<2x1x16x4x4xf32, #core.dram>
      pipe.stage @s0 cores [0] (%a, %c) {
      ^bb0(%from: memref<2x1x8x6x6xbf16, #core.dram>, %to: memref<2x1x16x4x4xf32, #core.dram>):
        %stored = core.const "w" {
          %w = nn.weight "w" : tensor<16x8x3x3xbf16>
          %1 = nn.reshape %w : (tensor<16x8x3x3xbf16>) -> tensor<16x8x9xbf16>
          %2 = nn.pad %1 low [0, 0, 0] high [48, 0, 0] value 0.0 : (tensor<16x8x9xbf16>) -> tensor<64x8x9xbf16>
          %3 = nn.reshape %2 : (tensor<64x8x9xbf16>) -> tensor<1x64x1x8x9xbf16>
          %4 = nn.transpose %3 perm [0, 3, 2, 4, 1] : (tensor<1x64x1x8x9xbf16>) -> tensor<1x8x1x9x64xbf16>
          nn.yield %4 : tensor<1x8x1x9x64xbf16>
        } : memref<1x8x1x9x64xbf16, #core.dram>
        %kept = core.alloc "w" : memref<8x1x1x9x64xbf16, #core.sbuf>
        pipe.load {
          core.dma %stored -> %kept queue 2
        }
        pipe.run (%r) {
          %in = core.alloc "x" : memref<8x1x6x6xbf16, #core.sbuf>
          core.dma %from[%r mod 2, 0, 0, 0, 0] [1, 1, 8, 6, 6] -> %in queue 0
          %out = core.alloc "y" : memref<16x1x4x4xf32, #core.sbuf>
          %acc = core.alloc "acc" : memref<16x1x4x4xf32, #core.psum>
          affine.for %i = 0 to 3 {
            affine.for %j = 0 to 3 {
              core.matmul %acc, %kept[0, 0, 0, %i * 3 + %j, 0] [8, 1, 1, 1, 16], %in[0, 0, %i, %j] [8, 1, 4, 4]
                  init %i * 3 + %j
            }
          }
          core.copy %out, %acc
          core.dma %out -> %to[%r mod 2, 0, 0, 0, 0] [1, 1, 16, 4, 4] queue 1
        }
      }
      pipe.output "prob" from %c
    }
    ```
    """

    name = "core-lower"
    summary: ClassVar[str] = "lower the layers of every stage to tiled instructions on buffers"
    relation: ClassVar[Relation] = Relation.REASSOCIATES
    statistics_help: ClassVar[dict[str, str]] = {
        "layers": "fused groups and lone ops lowered",
        "re-layouts": "copies made because two layers want a value laid out differently",
        "in place": "results stored over a residual that nobody reads afterwards",
        "resident weights": "weights loaded once into SBUF",
        "divided weights": "weights of which a part is loaded once and the rest read for every request",
        "streamed weights": "weights read from DRAM for every request",
    }

    def apply(self, ctx: IrContext, op: ModuleOp) -> None:
        programs = [p for p in op.body.block.ops if isinstance(p, ProgramOp)]
        if not programs:
            raise NeuronError("core-lower needs a pipe.program", op=op, advice="run pipe-stage{cores=1} first")
        machine = machine_of(op)
        for program in programs:
            if any(stage.in_memory_form for stage in program.stages()):
                continue
            self.lower_program(program, machine)

    def lower_program(self, program: ProgramOp, machine: Machine) -> None:
        """Replace the program's value form by its memory form."""
        program.attributes["pipe.model_flops"] = IntegerAttr(_flops(program), i64)
        program.attributes["pipe.model_weight_bytes"] = IntegerAttr(_weight_bytes(program), i64)
        for stage in program.stages():
            for group in attention_groups(stage.body.block):
                dissolve(group)
        old = list(program.body.block.ops)
        rings = Rings(program, machine)
        chosen: list[Certificate] = []
        for op in old:
            if isinstance(op, StageOp) and (found := self.lower_stage(op, rings, machine)) is not None:
                chosen.append(found)
        if chosen:
            # Of the slowest stage: the others wait for it.
            slowest = max(chosen, key=lambda found: found.objective)
            bound = max(found.lower_bound for found in chosen)
            program.attributes[STREAMED] = CertificateAttr.of(slowest.objective, bound, slowest.unit, slowest.method)
        for op in old:
            if isinstance(op, OutputOp):
                new = OutputOp(op.label.data, rings.ring_to(op.source, op).result)
                new.location = op.location
                program.body.block.add_op(new)
        for op in reversed(old):
            op.detach()
            op.erase()

    def lower_stage(self, stage: StageOp, rings: Rings, machine: Machine) -> Certificate | None:
        """Write the memory form of one stage at the end of the program; which of its weights are streamed, as a
        certificate, if any are.
        """
        inputs = [rings.ring_to(operand, stage) for operand in stage.arguments]
        last = stage.body.block.last_op
        assert isinstance(last, YieldOp)
        outputs = [
            (value, ring)
            for value, result in zip(last.values, stage.results_, strict=True)
            for ring in rings.from_(result)
        ]
        every = [*inputs, *(ring for _, ring in outputs)]
        whole = machine.sbuf.bytes_per_partition - rings.sbuf_bytes(stage)
        depth_first = any(isinstance(op, nn.FusedOp) and op.tile is not None for op in stage.body.block.ops)
        capacity = whole - PACKING if depth_first else whole
        lower = partial(self.lower_body, stage, inputs, outputs, machine, rings.turned)

        top, context = lower(Residency(capacity))
        first = context.residency
        unkept = first.asked - first.rows - first.kept
        # Two buffers in the loops at the worst moment are worth less than the last weights to stay, not than any.
        compact = not depth_first and sbuf_need(top, with_streams=False, slots=1) + SLACK + unkept <= capacity

        def need(top: Block) -> int:
            most = sbuf_need(top)
            return min(most, sbuf_need(top, slots=1) + SLACK) if compact else most

        spans: dict[Operation, int] = {}
        for _ in range(ATTEMPTS - 1):
            excess = need(top) - capacity
            residency = context.residency
            # What was served first come, first served is only good enough if nothing had to be streamed.
            settled = context.rows is not None or residency.kept == residency.asked
            if (excess <= 0 and settled) or (residency.budget == 0 and context.rows is not None):
                break
            budget = max(0, min(residency.budget, residency.kept) - excess - MARGIN)
            spans = spans or {op: estimate_group(machine, op).span_ps for op in _layers(stage)}
            if context.rows is None:
                # With rows kept once instead of on every partition there may be room for all.
                work, total = sbuf_need(top, with_streams=False) - residency.kept, residency.asked - residency.rows
                residency = Residency(total if work + total <= capacity else budget, total, spans)
            else:
                residency = Residency(budget, residency.asked, spans)
            top, context = lower(residency, RowConstants())
        held = context.residency.held
        if context.residency.kept < held <= capacity:
            residency = Residency(held, context.residency.asked, only_held=True)
            other, beside = lower(residency, RowConstants())
            if sbuf_need(other) <= capacity and beside.residency.kept > context.residency.kept:
                top, context = other, beside
        if sbuf_need(top) > whole and depth_first:
            residency = Residency(0, context.residency.asked, spans)
            top, context = lower(residency, RowConstants(), tile_slots=1)
        slots = context.tile_slots
        if need(top) > whole:
            # Maps of a batch that are kept whole are too much here: those go by rows that would of a single image.
            residency = Residency(0, context.residency.asked, spans)
            top, context = lower(residency, RowConstants(), LARGE_BYTES, slots)
            room = whole - sbuf_need(top) - MARGIN
            if room > 0:
                residency = Residency(room, context.residency.asked, spans)
                more = lower(residency, RowConstants(), LARGE_BYTES, slots)
                top, context = more if sbuf_need(more[0]) <= whole else (top, context)
        room = capacity - need(top)
        if room >= 0:
            top, context, certificate = self._cheapest(stage, top, context, machine, lower, need, room)
        else:
            certificate = None
        new = StageOp(
            stage.sym_name.data,
            stage.core_list(),
            [ring.result for ring in every],
            Region(top),
            replicas=stage.replicas is not None,
            attributes={name: value for name, value in stage.attributes.items() if name != "pipe.streams"},
        )
        new.location = stage.location
        rings.program.body.block.add_op(new)
        for name, n in context.counts.items():
            self.count(name, n)
        return certificate

    def _cheapest(
        self,
        stage: StageOp,
        top: Block,
        context: Context,
        machine: Machine,
        lower: Callable[..., tuple[Block, Context]],
        need: Callable[[Block], int],
        room: int,
    ) -> tuple[Block, Context, Certificate | None]:
        """The stage with other weights in SBUF, if that makes a request shorter by the estimate, and the certificate of
        those that stay; none where all do.
        """
        known = context.residency
        if known.kept == known.asked:
            return top, context, None
        rate = streaming_rate(machine, *dram_traffic(machine, stage))
        spans = {op: estimate_group(machine, op).span_ps for op in _layers(stage)}
        region = STREAM_BYTES * machine.sbuf.partitions
        rows = None if context.rows is None else RowConstants()
        certificate: Certificate | None = None
        # What else streams changes what the rest of the stage takes: with all the room there is it may be too much.
        for budget in dict.fromkeys((known.kept + max(0, room - MARGIN), known.kept)):
            found = cheapest(known, budget, spans, region, rate)
            if found is None:
                return top, context, None
            certificate = found.before
            if found.asks is None:
                break
            residency = Residency(budget, known.asked, known.spans, chosen=found.asks)
            other, beside = lower(residency, rows, context.large_bytes, context.tile_slots)
            if need(other) <= need(top) + room:
                return other, beside, found.after
        return top, context, certificate

    def lower_body(
        self,
        stage: StageOp,
        inputs: Sequence[RingOp],
        outputs: Sequence[tuple[SSAValue, RingOp]],
        machine: Machine,
        turned: Container[RingOp],
        residency: Residency,
        rows: RowConstants | None = None,
        large_bytes: int | None = None,
        tile_slots: int = 2,
    ) -> tuple[Block, Context]:
        """The stage in memory form, with the weights kept in SBUF that `residency` has room for; maps of more than
        `large_bytes` per partition stay in DRAM, and depth-first groups have `tile_slots` buffers for what comes from
        there or goes there.
        """
        every = [*inputs, *(ring for _, ring in outputs)]
        last = stage.body.block.last_op
        assert last is not None
        top = Block(arg_types=[ring.type for ring in every])
        for ring, arg in zip(every, top.args, strict=True):
            arg.name_hint = ring.result.name_hint
        replicas = len(stage.core_list())
        load, run = LoadOp(), RunOp(replicas=replicas > 1)
        run.request.name_hint = "r" if replicas == 1 else "q"
        if run.replica is not None:
            run.replica.name_hint = "i"
        code = Code(run.body.block)
        context = Context(machine, top, code, Code(load.body.block), residency=residency, rows=rows)
        context.large_bytes, context.tile_slots = large_bytes, tile_slots
        for argument, ring, arg in zip(stage.body.block.args, inputs, top.args, strict=False):
            if ring.parts > 1:
                context.row_inputs[argument] = RowStream.of(ring, arg, run, shape_of(argument))
            else:
                axes = turned_axes(argument) if ring in turned else None
                context.define(argument, ring_home(ring, arg, run, replicas, axes))
                if axes is not None:
                    context.turned.add(argument)
        lowering = StageLowering(context, stage)
        targets: list[Home | None] = []
        for (value, ring), arg in zip(outputs, list(top.args)[len(inputs) :], strict=True):
            if ring.parts > 1:
                context.row_outputs.setdefault(value, []).append(RowStream.of(ring, arg, run, shape_of(value)))
                targets.append(None)
            else:
                target = ring_home(ring, arg, run, replicas, turned_axes(value) if ring in turned else None)
                targets.append(target)
                context.leaves.setdefault(value, []).append(target)
            if any(use.operation is not last for use in value.uses):
                context.read_here.add(value)
        lowering.run()
        for stream in (*context.row_inputs.values(), *(s for streams in context.row_outputs.values() for s in streams)):
            if stream not in context.by_rows:
                raise NeuronError(
                    f"stream '{stream.ring.label.data}' goes by rows, but the stage does not",
                    op=stage,
                    advice="whole requests (pipe-stream-rows knows which streams can go by rows)",
                )
        near = {core // machine.chip.cores for core in stage.core_list()}
        for (value, ring), target in zip(outputs, targets, strict=True):
            if target is None or any(target is home for home in context.left):
                continue  # computed there
            code.location = value.owner.location if isinstance(value.owner, Operation) else last.location
            if context.is_constant(value):
                source = context.constant(value, context.label(value))
            elif ring in turned:
                source = lowering.want(value, (len(shape_of(value)) - 1,), last)
            else:
                source = lowering.in_rows(value, last)
            # A link takes some times as long as DRAM does: what stays on the chip need not wait for it.
            far = len(every) <= FEW_RINGS and not near.issuperset(ring.place_list())
            copy_by_dma(code, source, target, last, EXPORT_QUEUE if far else STORE_QUEUE)
        top.add_ops([load, run])
        return top, context


def _layers(stage: StageOp) -> list[Operation]:
    return [op for op in stage.body.block.ops if is_layer(op)]


def sbuf_need(top: Block, with_streams: bool = True, slots: int = 2) -> int:
    """Bytes per partition of SBUF a stage needs at its worst moment, with a region that constants are streamed through.

    Buffers of loops that DMA fills or empties count twice (one on its way, one in use), others of small loops `slots`
    times.
    """
    run = next(op for op in top.ops if isinstance(op, RunOp)).body.block
    always = sum(_sbuf_bytes(op) for op in top.ops)
    streamed = _streamed(run)
    if with_streams:
        always += min(STREAM_BYTES, 2 * sum(streamed.values()))
    return always + _most_alive(run, streamed, 1, slots)


def _most_alive(block: Block, streamed: dict[Operation, int], slots: int, inner: int) -> int:
    """Bytes per partition at the statement of a block where most are alive; `slots` for each buffer of the block that
    DMA fills or empties, `inner` for those of loops in it.
    """
    statements = list(block.ops)
    change = [0] * (len(statements) + 1)
    inside = [0] * len(statements)
    position: dict[Operation, int] = {op: i for i, op in enumerate(statements)}
    for i, op in enumerate(statements):
        size = 0 if op in streamed else _sbuf_bytes(op)
        if size:
            users = [use.operation for use in op.results[0].uses]
            last = max((position[_statement(user, block)] for user in users), default=i)
            size *= slots if _dma_used(op) else 1
            change[i] += size
            change[last + 1] -= size
        elif op.regions:
            allocs = [nested for nested in op.walk() if isinstance(nested, AllocOp)]
            if len(allocs) > LARGE_LOOP:
                inside[i] = max(_most_alive(region.block, streamed, 2, inner) for region in op.regions)
            else:
                inside[i] = sum(
                    (2 if _dma_used(nested) else inner) * _sbuf_bytes(nested)
                    for nested in allocs
                    if nested not in streamed
                )
    alive = peak = 0
    for i in range(len(statements)):
        alive += change[i]
        peak = max(peak, alive + inside[i])
    return peak


def _dma_used(op: Operation) -> bool:
    return any(isinstance(use.operation, DmaOp) for use in op.results[0].uses)


def _streamed(run: Block) -> dict[Operation, int]:
    """Buffers that constants are streamed through, two of which fit the region for them, with their bytes."""
    found: dict[Operation, int] = {}
    for op in run.walk():
        if isinstance(op, DmaOp) and op.engine == f"dma{WEIGHT_QUEUE}":
            buffer = op.buffers[0].owner
            if isinstance(buffer, AllocOp) and 2 * _sbuf_bytes(buffer) <= STREAM_BYTES:
                found[buffer] = _sbuf_bytes(buffer)
    return found


def _sbuf_bytes(op: Operation) -> int:
    return buffer_bytes(op.type) if isinstance(op, AllocOp) and op.type.memory_space == SBUF else 0


def _statement(op: Operation, block: Block) -> Operation:
    """The op of `block` that `op` is or is inside of."""
    while op.parent_block() is not block:
        parent = op.parent_op()
        assert parent is not None
        op = parent
    return op


def _flops(program: ProgramOp) -> int:
    """Multiplications and additions of all contractions, per request."""
    total = 0
    for op in program.walk():
        if isinstance(op, nn.ConvOp):
            total += 2 * math.prod(shape_of(op.result)) * math.prod(shape_of(op.w)[1:])
        elif isinstance(op, nn.ConvTransposeOp):
            total += transposed_flops(op)
        elif isinstance(op, nn.MatmulOp):
            total += 2 * math.prod(shape_of(op.result)) * shape_of(op.lhs)[-1]
    return total


def _weight_bytes(program: ProgramOp) -> int:
    """Bytes of constants that a request has to read: each constant once, of a table that is only gathered from the
    rows gathered.
    """
    sizes: dict[str, int] = {}
    gathered = 0
    for stage in program.stages():
        for op in stage.body.block.ops:
            if not isinstance(op, (nn.WeightOp, nn.ConstOp)):
                continue
            uses = [use.operation for use in op.results[0].uses]
            if uses and all(isinstance(use, nn.GatherOp) and use.data is op.results[0] for use in uses):
                gathered += sum(_tensor_bytes(use.results[0]) for use in uses)
            else:
                sizes[str(op)] = _tensor_bytes(op.results[0])
    return sum(sizes.values()) + gathered


def _tensor_bytes(value: SSAValue) -> int:
    return math.prod(shape_of(value)) * element_bytes(tensor_type(value).element_type)
