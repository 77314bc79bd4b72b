"""Where the feature maps of a depth-first group are: whole, in line buffers, or in tiles made anew in each step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from xdsl.ir import SSAValue

from neuron_mlir.dialects.core.access import Linear
from neuron_mlir.dialects.core.compute import CopyOp, MemsetOp
from neuron_mlir.passes.core.lowering.builder import segments
from neuron_mlir.passes.core.lowering.context import Context, Padding, shape_of, tensor_type
from neuron_mlir.passes.core.lowering.layout import LANES, Factor, Home
from neuron_mlir.passes.core.lowering.rings import RowStream
from neuron_mlir.passes.unfolding import ROWS
from neuron_mlir.solvers.row_schedule import Part


@dataclass
class GroupMap:
    """A feature map of the group.

    Attributes:
        whole: where all of it is, for what comes from or goes to outside.
        line: its line buffer, as tall as it needs to be; None for what is read or written in place, and for tiles that
            are made anew in each step.
        tile: where the rows of the current step are.
        rings: where all of it goes besides.
        comes: the ring through which rows of it come, for what comes from outside.
        in_place: whether these are read in the ring.
        goes: the rings through which rows of it leave the stage.
    """

    value: SSAValue
    fill: float | None = None
    columns: tuple[int, int] = (0, 0)
    whole: Home | None = None
    line: Home | None = None
    tile: Home | None = None
    rings: list[Home] = field(default_factory=list[Home])
    comes: RowStream | None = None
    in_place: bool = False
    goes: list[RowStream] = field(default_factory=list[RowStream])


def buffer(context: Context, entry: GroupMap, rows: int, images: int, slots: int = 1) -> Home:
    """A buffer for some rows of a map, its left and right border set; or so many of them in one."""
    shape = list(shape_of(entry.value))
    shape[0], shape[ROWS] = images, rows
    padding = None
    if entry.fill is not None and any(entry.columns):
        padding = Padding({ROWS + 1: entry.columns}, entry.fill)
    element = tensor_type(entry.value).element_type
    home = context.sbuf_home(context.label(entry.value), shape, element, (1,), padding, slots=slots)
    return home if entry.fill is None else replace(home, pad_value=entry.fill)


def anew(context: Context, entry: GroupMap, part: Part, images: int) -> Home:
    """A buffer for the rows of one step, of which nothing is kept for another; rows of padding are set."""
    tile = buffer(context, entry, part.top - part.base, images)
    fill(context, entry, tile, max(0, -part.base), max(0, part.top - shape_of(entry.value)[ROWS]))
    return tile


def advance(context: Context, entry: GroupMap, part: Part, moved: int, images: int, number: Linear) -> Home:
    """Make room in a line buffer, whose last row is `moved` rows further on than before: what is kept moves to the
    front; rows of padding are set. Gives the rows from `part.base` on.

    Two buffers in one take turns, step by step (this one is `number`): rows come in or go out while others are in use.
    """
    assert entry.line is not None
    line = before = entry.line
    if line.slot is not None:
        line, before = (line.in_slot(Linear(number.terms, number.constant + back, mod=2)) for back in (0, 1))
    total = line.logical[ROWS]
    held = part.top - part.base
    tile = cut(line, Linear(), images, Linear.wrap(total - held), held)
    above = max(0, -part.base)
    first = total - held + above
    done = 0
    while done < part.kept and (moved or line is not before):
        rows = part.kept if line is not before else min(moved, part.kept - done)
        copy_rows(context, before, first + done + moved, line, first + done, rows)
        done += rows
    settled = line is before and part.kept and part.start
    fill(context, entry, tile, 0 if settled else above, max(0, part.top - shape_of(entry.value)[ROWS]))
    return tile


def copy_rows(context: Context, line: Home, source: int, into: Home, target: int, rows: int) -> None:
    """Copy rows of a line buffer, left and right border included, to others that do not overlap, there or in one like
    it.
    """
    dim = line.free_dim(ROWS)
    assert dim is not None
    sizes = {d: line.shape[d] for d in range(line.first_free, len(line.shape))}
    sizes[dim] = rows
    code = context.code
    for part in segments(line.lanes, LANES):
        with code.loop(part.count) as index:
            to, start = [
                replace(home, low=(Linear(),) * len(line.shape)).access(
                    {dim: row}, sizes, None, (0, part.size), index + part.start // LANES
                )
                for home, row in ((into, target), (line, source))
            ]
            code.add(CopyOp(to, start))


def fill(context: Context, entry: GroupMap, tile: Home, above: int, below: int) -> None:
    """Set rows of padding at the top and the bottom of a tile."""
    if entry.fill is None or not (above or below):
        return
    dim = tile.free_dim(ROWS)
    assert dim is not None
    rows = tile.logical[ROWS]
    code = context.code
    for start, count in ((0, above), (rows - below, below)):
        if not count:
            continue
        sizes = {d: tile.shape[d] for d in range(tile.first_free, len(tile.shape))}
        sizes[dim] = count
        at_edge = replace(tile, low=tuple(o if d == dim else Linear() for d, o in enumerate(tile.low)))
        for part in segments(tile.lanes, LANES):
            with code.loop(part.count) as index:
                access = at_edge.access({dim: start}, sizes, None, (0, part.size), index + part.start // LANES)
                code.add(MemsetOp(access, entry.fill))


def cut(home: Home, image: Linear, images: int, row: Linear, rows: int) -> Home:
    """Some images and rows of a place of a map; rows may begin in the padding."""
    part = home if home.logical[0] == images else home.part(0, image, images)
    assert part is not None
    dim = part.free_dim(ROWS)
    if dim is None:
        return part
    low = tuple(offset + row if d == dim else offset for d, offset in enumerate(part.low))
    axes = tuple((Factor(rows, dim),) if a == ROWS else axis for a, axis in enumerate(part.axes))
    pads = part.pad
    if pads:
        pads = tuple((0, 0) if d == dim else pad for d, pad in enumerate(pads))
    return replace(part, low=low, axes=axes, pad=pads)
