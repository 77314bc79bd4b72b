"""Making room: a buffer that rests between two uses goes to DRAM and comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import cast

from xdsl.ir import Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects.core.access import Access
from neuron_mlir.dialects.core.instruction import Instruction
from neuron_mlir.dialects.core.memory import DRAM, AllocOp, buffer_bytes, buffer_type
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.ir.locations import has_location
from neuron_mlir.passes.core._affine import Form, Loop, form_of, loops_around, read_loop
from neuron_mlir.passes.core.allocation.buffers import Local, StageCode
from neuron_mlir.passes.core.allocation.place import Request, live_at
from neuron_mlir.passes.core.allocation.rotate import move_access

SPILL_QUEUE = 3
"""DMA queue of spills, apart from what comes in (0), what goes out (1) and weights (2)."""
SUFFIX = ".spill"
"""Ends the names of the DRAM buffers that spills go to."""
_MAX_CELLS = 4096


@dataclass(frozen=True)
class Spill:
    """A buffer that goes out after `after` and comes back before `before` (times)."""

    local: Local
    after: int
    before: int

    @property
    def worth(self) -> int:
        """Bytes times the statements for which they are free."""
        return self.local.bytes * (self.before - self.after)


def spill_one(request: Request) -> tuple[str, int] | None:
    """Spill the buffer that frees most bytes for longest where the most bytes are alive. Its name and the bytes
    written to DRAM; None when nothing there can be spilled. The request is stale afterwards.

    Only buffers of the top level of `run` are considered that are written as a whole before they rest: what was never
    written is not copied.
    """
    code = request.code
    peak, _, alive = live_at(request, code.of_space("sbuf"))
    candidates = [c for c in (_rest_around(code, local, peak) for local in alive) if c is not None]
    for candidate in sorted(candidates, key=lambda c: (-c.worth, c.local.lower)):
        if _written_whole(code, candidate):
            return candidate.local.label, _apply(code, candidate)
    return None


def _rest_around(code: StageCode, local: Local, peak: int) -> Spill | None:
    """The rest of a buffer around the peak, long enough to free bytes at the peak."""
    if local.resident or local.loops or local.lower < code.load_end:
        return None
    times = _times(code, local)
    after = max((t for t in times if t < peak), default=None)
    before = min((t for t in times if t > peak), default=None)
    if after is None or before is None or peak in times:
        return None
    # A rest that ends at a spill's own transfer has been used already; without this, two buffers could push each
    # other out for ever.
    if _is_transfer(_top_at(code, after)) or _is_transfer(_top_at(code, before)):
        return None
    return Spill(local, after, before)


def _is_transfer(op: Operation) -> bool:
    """Whether a statement is a transfer of an earlier spill."""
    if not isinstance(op, DmaOp):
        return False
    owners = [buffer.owner for buffer in op.buffers]
    return any(isinstance(owner, AllocOp) and owner.label.data.endswith(SUFFIX) for owner in owners)


def _times(code: StageCode, local: Local) -> list[int]:
    touched = {_top(use.operation, code) for use in local.op.result.uses}
    spans = sorted(code.spans[top] for top in touched)
    return [time for first, last in spans for time in range(first, last + 1)]


def _top_at(code: StageCode, time: int) -> Operation:
    """The top-level statement that a time is in."""
    return _top(code.statements[time], code)


def _top(op: Operation, code: StageCode) -> Operation:
    block = code.run.body.block
    while op.parent is not block:
        parent = op.parent_op()
        assert parent is not None
        op = parent
    return op


def _apply(code: StageCode, spill: Spill) -> int:
    """Insert both transfers and point later uses at the new buffer. Returns the bytes written to DRAM."""
    local = spill.local
    out_of, back_to = _top_at(code, spill.after), _top_at(code, spill.before)
    scratch = _scratch_it_came_from(local)
    written = 0
    if scratch is None:
        shape = local.type.get_shape()
        home = AllocOp(local.label + SUFFIX, buffer_type(shape, local.type.element_type, DRAM))
        home.result.name_hint = f"{local.op.result.name_hint or 'b'}_spill"
        store = DmaOp(Access.of(local.op.result), Access.of(home.result), queue=SPILL_QUEUE)
        _insert([home], InsertPoint.before(out_of), out_of)
        _insert([store], InsertPoint.after(out_of), out_of)
        scratch = home.result
        written = buffer_bytes(home.type)
    again = AllocOp(local.label, local.type)
    again.result.name_hint = local.op.result.name_hint
    load = DmaOp(Access.of(scratch), Access.of(again.result), queue=SPILL_QUEUE)
    users: dict[Operation, None] = {
        use.operation: None
        for use in local.op.result.uses
        if code.spans.get(_top(use.operation, code), (-1, -1))[0] >= spill.before
    }
    for user in users:
        move_access(cast(Instruction, user), local.op.result, again.result)
    _insert([again, load], InsertPoint.before(back_to), back_to)
    return written


def _scratch_it_came_from(local: Local) -> SSAValue | None:
    """Where a buffer that was spilled before still stands unchanged in DRAM."""
    writes = [
        use.operation
        for use in local.op.result.uses
        if isinstance(use.operation, Instruction) and use.index < use.operation.WRITES
    ]
    if len(writes) != 1 or not isinstance(writes[0], DmaOp):
        return None
    source = writes[0].buffers[1]
    owner = source.owner
    return source if isinstance(owner, AllocOp) and owner.label.data == local.label + SUFFIX else None


def _insert(ops: Sequence[Operation], point: InsertPoint, near: Operation) -> None:
    location = next((op.location for op in near.walk() if has_location(op)), near.location)
    for op in ops:
        op.location = location
    Rewriter.insert_op(list(ops), point)


def _written_whole(code: StageCode, spill: Spill) -> bool:
    """Whether the writes before the rest cover every element."""
    shape = tuple(spill.local.type.get_shape())
    boxes: list[list[tuple[int, int]]] = []
    for use in spill.local.op.result.uses:
        op = use.operation
        if not isinstance(op, Instruction) or use.index >= op.WRITES or code.spans[_top(op, code)][0] > spill.after:
            continue
        box = _box(op, use.index, code)
        if box is not None:
            boxes.append(box)
    return _covers(boxes, shape)


def _box(op: Instruction, position: int, code: StageCode) -> list[tuple[int, int]] | None:
    """The elements an access covers over all its loops, as a range for each dimension; None when they are not such a
    box.
    """
    around = loops_around(op, code.run.body.block)
    loops = {number: read_loop(loop, number) for number, loop in enumerate(around, 1)}
    numbers: dict[SSAValue, int] = {loop.body.block.args[0]: number for number, loop in enumerate(around, 1)}
    variables = [numbers.get(index, 0) for index in op.indices]
    access = op.accesses.data[position]
    seen: set[int] = set()
    box: list[tuple[int, int]] = []
    for expr, size, step in zip(access.map.data.results, access.shape(), access.steps(), strict=True):
        form = form_of(expr, variables)
        mine = form.variables()
        if mine & seen or 0 in mine or (step != 1 and size != 1):
            return None
        seen |= mine
        covered = _run(form, size, loops)
        if covered is None:
            return None
        box.append(covered)
    return box


def _run(form: Form, size: int, loops: dict[int, Loop]) -> tuple[int, int] | None:
    """The unbroken run of elements that `[form, form + size)` covers over all iterations; None when it is broken."""
    if form.atoms:
        return None
    length = size
    for factor, trips in sorted((abs(f) * loops[v].step, loops[v].trips) for v, f in form.terms):
        if factor > length:
            return None
        length += factor * (trips - 1)
    low, _ = form.range(loops)
    return low, low + length


def _covers(boxes: Sequence[Sequence[tuple[int, int]]], shape: Sequence[int]) -> bool:
    """Whether boxes together cover an array: each cell between their borders is in one of them."""
    if any(all(low <= 0 and high >= extent for (low, high), extent in zip(box, shape, strict=True)) for box in boxes):
        return True
    borders: list[list[int]] = []
    cells = 1
    for axis, extent in enumerate(shape):
        points = {0, extent} | {p for box in boxes for p in box[axis] if 0 < p < extent}
        borders.append(sorted(points)[:-1])
        cells *= len(borders[-1])
    if not boxes or cells > _MAX_CELLS:
        return False
    return all(
        any(all(low <= p < high for p, (low, high) in zip(cell, box, strict=True)) for box in boxes)
        for cell in product(*borders)
    )
