"""Where buffers go: how many slots each gets, and addresses that keep what is alive apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from neuron_mlir.machine import Machine, cost
from neuron_mlir.passes.core.allocation.buffers import Local, StageCode
from neuron_mlir.passes.core.allocation.durations import TimeLine
from neuron_mlir.passes.core.allocation.stream import MIN_REGION, Streams, place_streams
from neuron_mlir.solvers.memory_plan import Buffer, Plan, lower_bound, plan, plan_without_sharing

MAX_DEPTH = 6
"""Most slots of a buffer that DMA fills."""

SEARCH_WORK = 2_000_000
"""Steps of the exact search for addresses that fit, at most some 0.2 s each time."""
TIGHTEN_WORK = 4_000_000
"""Steps of the search for the lowest addresses of a layout that fits, once for each memory of a stage."""

KNOWN = 256
"""Problems whose answers are remembered."""
TRAITS = ("bytes", "lower", "upper", "instances", "resident", "per_request", "dma_filled", "dma_used")
"""What of a buffer matters to where it goes, beside its shape."""
Around = Literal["both", "filled", "none"]
"""What is kept apart from one request to the next: what transfers fill at its beginning and empty at its end, the
former alone, nothing."""
LONG = 6
"""How many of the distances are long enough for a transfer from one request to the next."""
Sharing = Literal["own", "apart", "ahead", "any"]
"""What buffers may share: nothing; bytes, but inputs of the next request are apart; bytes, but transfers can run ahead;
bytes."""
ENOUGH = 2
"""A region that holds one part in so many of what a request streams may be small for the sake of inputs."""


@dataclass(frozen=True)
class Layout:
    """How the slots of a buffer lie: the shape of each (padded so that none crosses a bank), bytes from the first to
    the last, and where the first begins after an aligned offset.
    """

    shape: tuple[int, ...]
    size: int
    lead: int = 0
    alignment: int = 64
    boundary: int = 0


@dataclass(frozen=True)
class Placement:
    """Depth, layout and address of each buffer of one memory of a stage, and the plan they come from."""

    depths: dict[Local, int]
    layouts: dict[Local, Layout]
    addresses: dict[Local, int]
    plan: Plan


@dataclass(frozen=True)
class Request:
    """What to place and how.

    Attributes:
        code: the stage.
        base: bytes in use below (rings, other stages of the core).
        alignment: bytes.
        depth: slots of a rotating buffer in SBUF, where they fit.
        psum_depth: most slots of a rotating buffer in PSUM.
    """

    code: StageCode
    machine: Machine
    base: int
    alignment: int
    depth: int
    psum_depth: int

    def align(self, local: Local) -> int:
        """The alignment of a buffer: of one smaller than the common alignment, the next power of two."""
        return min(self.alignment, 1 << (local.bytes - 1).bit_length())

    @cached_property
    def line(self) -> TimeLine:
        """When statements begin."""
        return TimeLine(self.code.statements, self.machine)

    @property
    def bank_bytes(self) -> int:
        """Bytes of a PSUM bank in each partition."""
        return self.machine.psum.bytes_per_partition // self.machine.psum.banks


def place_sbuf(request: Request) -> Placement | None:
    """A placement of the stage's SBUF buffers within capacity; None when even one slot for each does not fit.

    The less is shared, the less waits: first own bytes for each buffer, then a rest between two users of the same
    bytes, then at least room for transfers to run ahead, and only then fewer slots.
    """
    streams, buffers = Streams.of(request.code), request.code.of_space("sbuf")
    numbers = {b: n for n, b in enumerate(buffers)}
    problem = (
        request.machine,
        (request.base, request.alignment, request.depth, request.code.load_end),
        tuple(request.line.begin),
        tuple((tuple(b.type.get_shape()), *(getattr(b, name) for name in TRAITS)) for b in buffers),
        tuple(numbers[b] for b in streams.buffers),
    )
    if problem not in _known:
        found = _search_sbuf(request, streams, buffers)
        while len(_known) >= KNOWN:
            del _known[next(iter(_known))]
        _known[problem] = None if found is None else _Numbered.of(found, buffers)
    known = _known[problem]
    return None if known is None else known.placement(buffers)


@dataclass(frozen=True)
class _Numbered:
    """A placement of buffers by their numbers: also that of a stage equal but for names."""

    each: tuple[tuple[int, Layout, int], ...]
    plan: Plan

    @staticmethod
    def of(found: Placement, buffers: Sequence[Local]) -> _Numbered:
        return _Numbered(tuple((found.depths[b], found.layouts[b], found.addresses[b]) for b in buffers), found.plan)

    def placement(self, buffers: Sequence[Local]) -> Placement:
        both = list(zip(buffers, self.each, strict=True))
        depths = {b: depth for b, (depth, _, _) in both}
        return Placement(
            depths, {b: layout for b, (_, layout, _) in both}, {b: at for b, (_, _, at) in both}, self.plan
        )


_known: dict[object, _Numbered | None] = {}
"""What was found for the last problems. A network of equal blocks has many equal stages."""


def _search_sbuf(request: Request, streams: Streams, buffers: Sequence[Local]) -> Placement | None:
    total = streams.total(request.alignment)
    # Where a region holds much of a request's constants anyway, inputs of the next request come before a larger one.
    for apart in (True, False):
        for size, through in streams.regions(request.alignment):
            if apart and size * ENOUGH < total:
                continue
            within = place_streams(size, through, request.alignment)
            if within is None:
                continue
            rest = replace(request, base=request.base + size)
            beside = [b for b in buffers if b not in through]
            found = _place_beside(rest, beside, apart=apart, with_fewer_slots=size == MIN_REGION)
            if found is not None:
                return _with_streams(request, found, size, *within)
    return _place_beside(request, buffers)


def _with_streams(
    request: Request, found: Placement, size: int, depths: dict[Local, int], offsets: dict[Local, int]
) -> Placement:
    """A placement of all others with the region for streamed constants below it."""
    layouts = {b: Layout(tuple(b.type.get_shape()), b.bytes * n, 0, request.alignment) for b, n in depths.items()}
    addresses = {b: request.base + offset for b, offset in offsets.items()}
    answer = replace(found.plan, method=f"{found.plan.method}, beside {size} bytes for streams")
    return Placement(found.depths | depths, found.layouts | layouts, found.addresses | addresses, answer)


def _place_beside(
    request: Request, buffers: Sequence[Local], *, apart: bool = False, with_fewer_slots: bool = True
) -> Placement | None:
    """A placement of these buffers above `request.base`; with `apart`, only one that keeps inputs of the next request
    apart.
    """
    capacity = request.machine.sbuf.bytes_per_partition - request.base
    for depths, within in _tries(request, buffers, capacity, apart, with_fewer_slots):
        layouts = {b: _whole(request, b, depths[b]) for b in buffers}
        found = _place(request, buffers, depths, layouts, capacity, within)
        if found is not None:
            return found
    return None


def _whole(request: Request, local: Local, depth: int) -> Layout:
    """Slots one after the other. A buffer has whole multiples of its alignment, so that what is above it begins without
    a gap: padding that only the smallest could use would keep plans from being proven the best.
    """
    alignment = request.align(local)
    return Layout(tuple(local.type.get_shape()), _round_up(local.bytes * depth, alignment), 0, alignment)


def _tries(
    request: Request, buffers: Sequence[Local], capacity: int, apart: bool, with_fewer_slots: bool
) -> Iterator[tuple[dict[Local, int], Sharing]]:
    """Slots and what may be shared, the best first."""
    first = list(_full_depths(request, buffers))
    yield _twice(request, first[0], False), "own"
    yield _twice(request, first[0], True), "own"
    for depths in first:
        yield depths, "apart" if apart else "ahead"
    if apart:
        return
    for depths in first:
        yield depths, "any"
    for depths in _fewer_slots(request, buffers, first[-1], capacity) if with_fewer_slots else ():
        yield depths, "any"


def _twice(request: Request, depths: dict[Local, int], dma_only: bool) -> dict[Local, int]:
    """Slots for two requests for what is made once for each: the next request may begin while this one ends."""
    return {
        b: request.depth if b.per_request and (b.dma_used or not dma_only) else depth for b, depth in depths.items()
    }


def place_psum(request: Request) -> Placement | None:
    """A placement of the stage's PSUM buffers within the banks; None when there is none."""
    buffers = request.code.of_space("psum")
    capacity = request.machine.psum.bytes_per_partition - request.base
    for most in range(request.psum_depth, 0, -1):
        depths, layouts = _psum_layouts(request, buffers, most)
        found = _place(request, buffers, depths, layouts, capacity)
        if found is not None:
            return found
    # Several buffers to a bank, the last resort: engines then share banks.
    depths = dict.fromkeys(buffers, 1)
    layouts = {b: Layout(tuple(b.type.get_shape()), b.bytes, 0, request.align(b), request.bank_bytes) for b in buffers}
    return _place(request, buffers, depths, layouts, capacity)


def live_at(request: Request, buffers: Sequence[Local]) -> tuple[int, int, list[Local]]:
    """The time at which most bytes are alive with one slot for each buffer, those bytes, and what is alive then,
    largest first.
    """
    code = request.code
    change = [0] * (len(code.statements) + 2)
    for b in buffers:
        change[b.lower] += b.bytes
        change[b.upper + 1] -= b.bytes
    worst, most, live = 0, -1, 0
    for time, delta in enumerate(change):
        live += delta
        if live > most:
            worst, most = time, live
    alive = [b for b in buffers if b.lower <= worst <= b.upper]
    return worst, most, sorted(alive, key=lambda b: (-b.bytes, b.label))


def packed_bytes(request: Request, space: str) -> int:
    """What the best packing found takes, with one slot for each buffer."""
    bank = request.bank_bytes if space == "psum" else 0
    buffers = request.code.of_space(space)
    return plan([Buffer(n, b.lower, b.upper, b.bytes, request.align(b), bank) for n, b in enumerate(buffers)]).peak


def _place(
    request: Request,
    buffers: Sequence[Local],
    depths: dict[Local, int],
    layouts: dict[Local, Layout],
    capacity: int,
    within: Sharing = "any",
) -> Placement | None:
    """Addresses within the capacity that share as late as possible; None when there are none, or only such as share
    more than `within` allows.
    """
    start = request.code.load_end
    line = request.line

    def items(rest: int, lead: int, around: Around = "none") -> list[Buffer]:
        found: list[Buffer] = []
        end, near = len(line.begin) - 2, max(rest, lead)
        for number, b in enumerate(buffers):
            lower, upper = b.lower, b.upper
            if around != "none" and b.per_request and b.dma_used:
                # Transfers of the next request begin before this one ends, and those of the last one end after it.
                if b.dma_filled and line.begin[b.lower] - line.begin[start] < near:
                    upper = end
                elif around == "both" and not b.dma_filled and line.total - line.begin[b.upper + 1] < near:
                    lower = start
            if lead and b.dma_filled and lower >= start:
                lower = max(start, line.earlier(lower, lead))
            if rest and lower >= start:
                upper = line.later(upper, rest)
            layout = layouts[b]
            found.append(Buffer(number, lower, upper, layout.size, layout.alignment, layout.boundary))
        return found

    def placement(answer: Plan, method: str) -> Placement:
        addresses = {b: request.base + answer.offsets[n] + layouts[b].lead for n, b in enumerate(buffers)}
        peak, bound = answer.peak + request.base, answer.lower_bound + request.base
        return Placement(depths, layouts, addresses, Plan(answer.offsets, peak, bound, method))

    if sum(layout.size for layout in layouts.values()) <= capacity:
        answer = plan_without_sharing(items(0, 0))
        if answer.peak <= capacity:
            return placement(answer, answer.method)
    if within == "own" or lower_bound(items(0, 0)) > capacity:
        return None
    total = line.total - line.begin[start]
    transfers = any(b.dma_filled and b.lower >= start for b in buffers)
    for around, rest, lead in _distances(total, cost.dma_fixed_ps(request.machine) if transfers else 0):
        if within == "apart" and around == "none":
            continue
        wide = items(rest, lead, around)
        if lower_bound(wide) > capacity:
            continue
        answer = plan(wide, capacity, effort=4, work=0)
        if answer.peak <= capacity:
            # It fits; with that rest, how low can it be?
            tight = plan(wide, effort=4, work=TIGHTEN_WORK)
            answer = tight if tight.peak <= answer.peak else answer
            apart = [f"a rest of {rest // 1000} ns" if rest > 1 else "neighbours apart"] if rest else []
            apart += [f"transfers {lead // 1000} ns ahead"] if lead else []
            apart += (
                []
                if around == "none"
                else ["inputs apart from outputs" if around == "filled" else "inputs and outputs apart"]
            )
            return placement(answer, ", ".join([answer.method, *apart]))
    if within in ("apart", "ahead"):
        return None
    answer = plan(items(0, 0), capacity, work=SEARCH_WORK)
    if answer.peak > capacity:
        return None
    tight = plan(items(0, 0), work=TIGHTEN_WORK)
    answer = tight if tight.peak <= answer.peak else answer
    return placement(answer, answer.method)


def _distances(total: int, latency: int) -> Iterator[tuple[Around, int, int]]:
    """What transfers have to themselves, rest between two users of some bytes, and how far transfers run ahead, in ps;
    the best first. `latency` is that of a transfer, 0 when there are none.
    """
    parts = [(total // part, 0) for part in (2, 4, 8, 16)]
    ahead = [(rest, times * latency) for times in (64, 32, 16, 8, 4, 2) for rest in (1, 0)]
    if not latency:
        for rest, _ in parts:
            yield "none", rest, 0
        for part in (32, 64, 128, total):
            yield "none", max(1, total // max(part, 1)), 0
        return
    apart: tuple[Around, ...] = ("both", "filled")
    for around in apart:
        for rest, lead in (*parts, *ahead[:LONG]):
            yield around, rest, lead
    # The least rest keeps neighbouring statements apart.
    for rest, lead in (*parts, *ahead):
        yield "none", rest, lead


def _full_depths(request: Request, buffers: Sequence[Local]) -> Iterator[dict[Local, int]]:
    """Slots enough to hide DMA latency, then `depth` for each."""
    wanted = {b: min(b.instances, request.depth) for b in buffers}
    wanted |= {b: _even(b, min(b.instances, _latency_depth(request, b))) for b in buffers if b.dma_filled}
    yield wanted
    depths = {b: min(b.instances, request.depth) for b in buffers}
    if depths != wanted:
        yield depths


def _fewer_slots(
    request: Request, buffers: Sequence[Local], depths: dict[Local, int], capacity: int
) -> Iterator[dict[Local, int]]:
    """One slot for more and more of the buffers that take most at the peak."""
    import numpy as np

    # Thousands of buffers and statements, and a step for each buffer: bytes alive at each time are kept up to date.
    live = np.zeros(len(request.code.statements) + 1, np.int64)
    for b in buffers:
        live[b.lower : b.upper + 1] += b.bytes * depths[b]
    rotating = sorted((b for b in buffers if depths[b] > 1), key=lambda b: (-b.bytes * (depths[b] - 1), b.lower))
    depths, step = dict(depths), 1
    while rotating:
        for _ in range(min(step, len(rotating))):
            worst = int(live.argmax())
            largest = next((n for n, b in enumerate(rotating) if b.lower <= worst <= b.upper), 0)
            b = rotating.pop(largest)
            live[b.lower : b.upper + 1] -= b.bytes * (depths[b] - 1)
            depths[b] = 1
        if live.max() > capacity:
            continue
        alive = [Buffer(n, b.lower, b.upper, b.bytes * depths[b], request.align(b)) for n, b in enumerate(buffers)]
        if lower_bound(alive) <= capacity:
            yield dict(depths)
            # Greedy placement needs some room to breathe: give it more each time.
            step *= 2


def _latency_depth(request: Request, local: Local) -> int:
    """Slots that keep a queue busy while the first byte of a transfer is on its way."""
    if request.depth < 2:
        return request.depth
    machine = request.machine
    total = local.bytes * local.type.get_shape()[0]
    rate = min(cost.core_dma_bytes_per_s(machine), cost.dram_bytes_per_s(machine))
    service = max(1, cost.service_ps(total, rate))
    return max(request.depth, min(MAX_DEPTH, 1 + -(-(cost.dma_fixed_ps(machine) + service) // service)))


def _even(local: Local, depth: int) -> int:
    """`depth`, or one or two more when that divides the instances: then slots follow each other from request to
    request, too.
    """
    return next((d for d in range(depth, min(local.instances, depth + 2) + 1) if local.instances % d == 0), depth)


def _psum_layouts(
    request: Request, buffers: Sequence[Local], most: int
) -> tuple[dict[Local, int], dict[Local, Layout]]:
    """Depths and layouts in whole banks. Half of the banks are left to the statement before and after."""
    rotating: dict[int, int] = {}
    for b in buffers:
        if b.instances > 1:
            rotating[b.lower] = rotating.get(b.lower, 0) + 1
    depths: dict[Local, int] = {}
    layouts: dict[Local, Layout] = {}
    for b in buffers:
        share = request.machine.psum.banks // (2 * rotating.get(b.lower, 1))
        depth = max(1, min(b.instances, most, max(2, share)))
        layout = bank_layout(b, depth, request.bank_bytes)
        while layout is None:
            depth -= 1
            layout = bank_layout(b, depth, request.bank_bytes)
        depths[b], layouts[b] = depth, layout
    return depths, layouts


def bank_layout(local: Local, depth: int, bank: int) -> Layout | None:
    """Slots so that none crosses a bank: the first free dimension is padded where that is what it takes.

    Small slots share a bank. None when padding does not help; one slot always works.
    """
    shape = tuple(local.type.get_shape())
    size = local.bytes
    if depth * size <= bank:
        return Layout(shape, bank, 0, bank)
    if depth == 1:
        return Layout(shape, _round_up(size, bank), 0, bank)
    axis = next((a for a in range(1, len(shape)) if shape[a] > 1), len(shape) - 1)
    row = size // shape[axis]
    best: Layout | None = None
    for rows in range(shape[axis], max(shape[axis], _round_up(size, bank) // row + 1) + 1):
        stride = rows * row
        # Slots a little shorter than a bank creep towards its beginning: the first begins that much later.
        creep = _round_up(-(stride - _round_up(stride, bank)) * (depth - 1), 64)
        for lead in (0, creep, -size % bank):
            if any(_crosses(lead + slot * stride, size, bank) for slot in range(depth)):
                continue
            total = _round_up(lead + depth * stride, bank)
            if best is None or total < best.size:
                best = Layout((*shape[:axis], rows, *shape[axis + 1 :]), total, lead, bank)
    return best


def _crosses(start: int, size: int, bank: int) -> bool:
    if size > bank:
        return start % bank != 0
    return start // bank != (start + size - 1) // bank


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
