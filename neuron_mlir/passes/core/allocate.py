"""The pass `core-allocate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase, IntegerAttr, ModuleOp, StringAttr, i64
from xdsl.ir import Operation

from neuron_mlir.dialects.core.memory import AllocOp, ConstOp, buffer_bytes, space_name
from neuron_mlir.dialects.pipe.ops import CertificateAttr, ProgramOp, RingOp, StageOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.locations import has_location
from neuron_mlir.ir.machine_attr import machine_of
from neuron_mlir.machine import Machine
from neuron_mlir.passes.base import NeuronPass, Relation, option

if TYPE_CHECKING:
    from xdsl.context import Context

    from neuron_mlir.passes.core.allocation.buffers import Local, StageCode
    from neuron_mlir.passes.core.allocation.place import Placement, Request


@dataclass(frozen=True)
class CoreAllocate(NeuronPass):
    """Give every buffer of sequential `core` code an address, and rotating buffers their slots.

    A buffer made in a loop is a fresh one each time. It gets a few *slots*, and iteration `n` of all the loops around
    it uses slot `n mod depth`: while one slot is being read, the next is being written. `depth` slots for what
    engines write; enough to hide the latency of a transfer for what DMA fills; up to `psum-depth` in PSUM, where no
    slot crosses a bank.

    A buffer at the top level of `pipe.run` is alive from its first to its last use, one that the stage declares always.
    If everything has room, each buffer keeps its own bytes; if there is room for two, one for each of two requests in
    turn, so that the next request begins while this one ends. If not, buffers share, with the longest rest between two
    users of the same bytes that fits, so that the second need not wait for the first; then with room for transfers to
    run ahead; then with fewer slots. If one slot for each is still too much, buffers that rest between two uses go to
    DRAM and come back (`core.spills` names them). What still does not fit is an error that names the place and the
    largest buffers there.

    `core.sbuf_plan` and `core.psum_plan` are the certificates of the addresses: peak and lower bound, in bytes per
    partition, of the live ranges and slots that the method names. Not done here: moving statements so that less is
    alive at once, and spills of buffers made in loops.

    Before:

    ```mlir
    pipe.program @p {
      %x = pipe.ring "x" depth 2 on chip 0 : memref<2x4x128x512xbf16, #core.dram>
      pipe.input "x" to %x
      pipe.stage @s0 cores [0] (%x) {
      ^bb0(%xr: memref<2x4x128x512xbf16, #core.dram>):
        %w = core.alloc "w" : memref<128x4x64xbf16, #core.sbuf>
        pipe.load {
          core.memset %w, 1.0
        }
        pipe.run (%r) {
          %acc = core.alloc "acc" : memref<64x512xf32, #core.psum>
          affine.for %k = 0 to 4 {
            %t = core.alloc "t" : memref<128x512xbf16, #core.sbuf>
            core.dma %xr[%r mod 2, %k, 0, 0] [1, 1, 128, 512] -> %t
            core.matmul %acc, %w[0, %k, 0] [128, 1, 64], %t init %k
          }
        }
      }
    }
    ```

    After:

    ```mlir
    pipe.program @p {
      %x = pipe.ring "x" depth 2 on chip 0 at 0 : memref<2x4x128x512xbf16, #core.dram>
      pipe.input "x" to %x
      pipe.stage @s0 cores [0] (%x) attributes {
        core.sbuf_plan = #pipe.certificate<4608.0, 4608.0, "bytes per partition", "own bytes for each">,
        core.psum_plan = #pipe.certificate<2048.0, 2048.0, "bytes per partition", "own bytes for each">
      } {
      ^bb0(%xr: memref<2x4x128x512xbf16, #core.dram>):
        %w = core.alloc "w" at 0 : memref<128x4x64xbf16, #core.sbuf>
        %t = core.alloc "t" at 512 : memref<128x4x512xbf16, #core.sbuf>
        %acc = core.alloc "acc" at 0 : memref<64x512xf32, #core.psum>
        pipe.load {
          core.memset %w, 1.0
        }
        pipe.run (%r) {
          affine.for %k = 0 to 4 {
            core.dma %xr[%r mod 2, %k, 0, 0] [1, 1, 128, 512] -> %t[0, %k mod 4, 0] [128, 1, 512]
            core.matmul %acc, %w[0, %k, 0] [128, 1, 64], %t[0, %k mod 4, 0] [128, 1, 512] init %k
          }
        }
      }
    }
    ```
    """

    name = "core-allocate"
    summary: ClassVar[str] = "place buffers in SBUF, PSUM banks and DRAM; spill what does not fit"
    relation: ClassVar[Relation] = Relation.EXACT
    statistics_help: ClassVar[dict[str, str]] = {
        "buffers": "buffers placed, rings not counted",
        "rotating buffers": "buffers with more than one slot",
        "sbuf peak": "most SBUF bytes per partition that a core uses",
        "live peak": "most SBUF bytes per partition of a request that are alive at once, with one slot for each buffer",
        "psum peak": "most PSUM bytes per partition that a core uses",
        "spilled buffers": "buffers sent to DRAM and back",
        "spilled bytes": "bytes that spills write to DRAM for each request",
    }

    alignment: int = option(64, "addresses in SBUF and DRAM are multiples of this, bytes")
    depth: int = option(2, "slots of a buffer that is made anew in each iteration, where they fit")
    psum_depth: int = option(4, "most slots of such a buffer in PSUM")
    spill: bool = option(True, "whether values may go to DRAM and come back; where not, too little SBUF is an error")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        program = next((o for o in op.body.block.ops if isinstance(o, ProgramOp)), None)
        if program is None or not any(stage.in_memory_form for stage in program.stages()):
            raise NeuronError("there is no core code to allocate", op=program or op, advice="run core-lower first")
        if all(
            (o.addresses if isinstance(o, RingOp) else o.address) is not None
            for o in program.walk()
            if isinstance(o, (RingOp, AllocOp))
        ):
            return
        if min(self.alignment, self.depth, self.psum_depth) < 1:
            raise NeuronError(f"options of pass '{self.name}' are at least 1, not {self}")
        _Allocation(self, program, machine_of(op)).run()


class _Allocation:
    """One run of the pass. `used` is the first free byte of each memory."""

    def __init__(self, owner: CoreAllocate, program: ProgramOp, machine: Machine):
        self.owner = owner
        self.program = program
        self.machine = machine
        self.used: dict[tuple[str, int], int] = {}

    def run(self) -> None:
        for op in self.program.body.block.ops:
            if isinstance(op, RingOp):
                space = space_name(op.type.memory_space)
                addresses = [self.take(space, place, buffer_bytes(op.type)) for place in op.place_list()]
                op.properties["addresses"] = DenseArrayBase.from_list(i64, addresses)
        for stage in self.program.stages():
            if stage.in_memory_form:
                self.stage(stage)
        self.check_dram()

    def take(self, space: str, place: int, size: int) -> int:
        """The next free, aligned bytes of a memory."""
        unit = self.owner.alignment
        start = -(-self.used.get((space, place), 0) // unit) * unit
        self.used[space, place] = start + size
        return start

    def stage(self, stage: StageOp) -> None:
        """Place the buffers of a stage; spill until they fit."""
        from neuron_mlir.passes.core.allocation.buffers import read_stage
        from neuron_mlir.passes.core.allocation.place import live_at, place_psum, place_sbuf
        from neuron_mlir.passes.core.allocation.spill import spill_one

        code = read_stage(stage)
        if not self.owner.spill:
            self.check_dram_values(code)
        spilled: list[str] = []
        wanted = self.request(code, "sbuf")
        placement = place_sbuf(wanted)
        while placement is None:
            spill = spill_one(wanted) if self.owner.spill else None
            if spill is None:
                raise self.overflow(wanted, "sbuf")
            spilled.append(spill[0])
            self.owner.count("spilled bytes", spill[1])
            code = read_stage(stage)
            wanted = self.request(code, "sbuf")
            placement = place_sbuf(wanted)
        if spilled:
            stage.attributes["core.spills"] = ArrayAttr([StringAttr(name) for name in spilled])
            self.owner.count("spilled buffers", len(spilled))
        _, live, _ = live_at(wanted, [b for b in code.of_space("sbuf") if not b.resident])
        self.owner.record("live peak", max(cast(int, self.owner.statistics["live peak"]), live))
        self.commit(code, placement, "sbuf")
        wanted = self.request(code, "psum")
        placement = place_psum(wanted)
        if placement is None:
            raise self.overflow(wanted, "psum")
        self.commit(code, placement, "psum")
        self.dram(code)

    def check_dram_values(self, code: StageCode) -> None:
        """Raise `NeuronError` for a value of a request that lowering has put in DRAM as too large for SBUF."""
        from neuron_mlir.passes.layouts import LARGE_BYTES

        # Smaller ones are how lowering re-arranges data, not where values live.
        values = [v for v in code.of_space("dram") if v.bytes > LARGE_BYTES * self.machine.sbuf.partitions]
        if not values:
            return
        largest = max(values, key=lambda local: local.bytes)
        count = "1 value" if len(values) == 1 else f"{len(values)} values"
        raise NeuronError(
            f"stage @{code.name} keeps {count} in DRAM, and spills are off; the largest is '{largest.label}', "
            f"{largest.bytes} bytes",
            op=_located(largest.op),
            resource="SBUF bytes per partition for one value",
            needed=-(-largest.bytes // self.machine.sbuf.partitions),
            available=LARGE_BYTES,
            advice="a smaller batch, depth-first groups (nn-fuse-depth-first), or spills",
        )

    def dram(self, code: StageCode) -> None:
        """Place what a stage keeps in DRAM: each replica has its own, as far from its base as the others."""
        stage, unit = code.stage, self.owner.alignment
        chips = [core // self.machine.chip.cores for core in stage.core_list()]
        size = 0
        for local in code.of_space("dram"):
            depth = self.owner.depth if local.per_request else min(local.instances, self.owner.depth)
            start = self.take("dram", chips[0], local.bytes * depth) if len(chips) == 1 else -(-size // unit) * unit
            size = start + local.bytes * depth
            self.settle(code, local, depth, tuple(local.type.get_shape()), start)
        if size and len(chips) > 1:
            bases = [self.take("dram", chip, size) for chip in chips]
            stage.properties["dram_base"] = DenseArrayBase.from_list(i64, bases)

    def request(self, code: StageCode, space: str) -> Request:
        """What to place, above what the core already uses."""
        from neuron_mlir.passes.core.allocation.place import Request

        unit = self.owner.alignment
        if space == "psum":
            unit = self.machine.psum.bytes_per_partition // self.machine.psum.banks
        used = max(self.used.get((space, core), 0) for core in code.stage.core_list())
        base = -(-used // unit) * unit
        return Request(code, self.machine, base, self.owner.alignment, self.owner.depth, self.owner.psum_depth)

    def commit(self, code: StageCode, placement: Placement, space: str) -> None:
        """Rewrite the code to a placement, and record it."""
        stage, answer = code.stage, placement.plan
        for core in stage.core_list():
            self.used[space, core] = answer.peak
        if placement.addresses:
            stage.attributes[f"core.{space}_plan"] = CertificateAttr.of(
                answer.peak, answer.lower_bound, "bytes per partition", answer.method
            )
        peak = f"{space} peak"
        self.owner.record(peak, max(cast(int, self.owner.statistics[peak]), answer.peak))
        for local in code.of_space(space):
            layout = placement.layouts[local]
            self.settle(code, local, placement.depths[local], layout.shape, placement.addresses[local])

    def settle(self, code: StageCode, local: Local, depth: int, shape: tuple[int, ...], address: int) -> None:
        """Give one buffer its address and slots, at the level of the stage."""
        from xdsl.rewriter import InsertPoint, Rewriter

        from neuron_mlir.passes.core.allocation.rotate import hoist, with_slots

        self.owner.count("buffers")
        if local.resident:
            local.op.properties["address"] = IntegerAttr(address, i64)
            return
        if depth > 1:
            self.owner.count("rotating buffers")
        type = with_slots(local.type, depth, local.space, shape)
        new = hoist(local.op, type, address, local.loops, depth, local.space, code.run.request)
        Rewriter.insert_op(new, InsertPoint.before(code.load))

    def overflow(self, request: Request, space: str) -> NeuronError:
        """What does not fit, where, and what takes most."""
        from neuron_mlir.passes.core.allocation.place import live_at, packed_bytes

        code = request.code
        time, live, alive = live_at(request, code.of_space(space))
        # What is alive may fit and yet not pack: then the packing is what is too large.
        needed = request.base + max(live, packed_bytes(request, space))
        available = (self.machine.sbuf if space == "sbuf" else self.machine.psum).bytes_per_partition
        largest = ", ".join(f"'{b.label}' {b.bytes}" for b in alive[:3])
        where = code.statements[time] if code.statements else code.stage
        return NeuronError(
            f"stage @{code.name} does not fit the {space.upper()} of core {code.stage.core_list()[0]}; "
            f"largest buffers there: {largest}",
            op=_located(where),
            resource=f"{space.upper()} bytes per partition",
            needed=needed,
            available=available,
            advice="smaller tiles, more cores, or fewer resident weights",
        )

    def check_dram(self) -> None:
        """Raise `NeuronError` when rings, scratch and constants are more than a chip's DRAM."""
        total: dict[int, int] = {}
        for (space, place), used in self.used.items():
            if space == "dram":
                total[place] = used
        for stage in self.program.stages():
            for chip in {core // self.machine.chip.cores: None for core in stage.core_list()}:
                for op in stage.body.block.ops:
                    if isinstance(op, ConstOp):
                        total[chip] = total.get(chip, 0) + buffer_bytes(op.type)
        for chip, needed in sorted(total.items()):
            if needed > self.machine.dram.bytes_per_chip:
                raise NeuronError(
                    f"rings, scratch and constants do not fit the DRAM of chip {chip}",
                    op=self.program,
                    resource="DRAM bytes",
                    needed=needed,
                    available=self.machine.dram.bytes_per_chip,
                    advice="spread the stages over more chips",
                )


def _located(op: Operation) -> Operation:
    """The op, or the first inside it whose location is known."""
    return next((inner for inner in op.walk() if has_location(inner)), op)
