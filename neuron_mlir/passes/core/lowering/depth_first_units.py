"""A layer of a depth-first group as it is in one step: a copy of its op with the types of a tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Attribute, Block, Operation, SSAValue

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import ints
from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.core.lowering.context import shape_of, tensor_type
from neuron_mlir.passes.depth_first_rows import Unit, UnitRead
from neuron_mlir.passes.phases import phases_of
from neuron_mlir.passes.unfolding import ROWS, packing_before
from neuron_mlir.solvers.row_schedule import Read


def specialise(
    unit: Unit,
    tile_of: Callable[[SSAValue, UnitRead], SSAValue],
    images: int,
    rows: int,
    packed: SSAValue | None = None,
) -> Operation:
    """A copy of a unit that computes `rows` rows of `images` images; padding above and below is in its operands.
    `packed` takes the place of what its convolution unfolds.
    """
    op = unit.op
    if not isinstance(op, nn.FusedOp):
        reads = {r.operand: r for r in unit.reads}
        return _resized(op, [tile_of(v, reads[v]) if v in reads else v for v in op.operands], images, rows)
    by_operand: dict[SSAValue, list[UnitRead]] = {}
    for read in unit.reads:
        by_operand.setdefault(read.operand, []).append(read)
    body = Block()
    inputs: list[SSAValue] = []

    def argument(outer: SSAValue, read: UnitRead | None) -> SSAValue:
        """The copy's argument for an operand (as a certain reader sees it)."""
        value = outer if read is None else tile_of(outer, read)
        if value in inputs:
            return body.args[inputs.index(value)]
        inputs.append(value)
        made = body.insert_arg(value.type, len(body.args))
        made.name_hint = value.name_hint
        return made

    outside: dict[SSAValue, SSAValue] = dict(zip(op.body.block.args, op.inputs, strict=True))
    made: dict[SSAValue, SSAValue] = {}
    windows = {r.operand: r for r in unit.reads if r.read != Read(0) or r.fill is not None}
    plain = {r.operand: r for r in unit.reads if r not in windows.values()}

    def operand(value: SSAValue, window: bool) -> SSAValue:
        if value in made:
            return made[value]
        if value not in outside:
            raise NeuronError("a group reads a value from nowhere", op=op)
        outer = outside[value]
        if outer not in by_operand:
            return argument(outer, None)
        chosen = windows.get(outer) if window else plain.get(outer)
        return argument(outer, chosen or by_operand[outer][0])

    root = next((o for o in op.body.block.ops if isinstance(o, (nn.ConvOp, nn.ConvTransposeOp, nn.PoolOp))), None)
    feeding = _feeding(root)
    unfolded = packing_before(root) if root is not None and packed is not None else ()
    if packed is not None and root is not None:
        inputs.append(packed)
        made[root.operands[0]] = body.insert_arg(packed.type, len(body.args))
    for layer in op.body.block.ops:
        if layer in unfolded:
            continue
        operands = [operand(v, layer is root or layer in feeding) for v in layer.operands]
        if isinstance(layer, nn.YieldOp):
            body.add_op(nn.YieldOp(*operands))
            continue
        if isinstance(layer, (nn.WeightOp, nn.ConstOp)):
            copy = layer.clone()
        else:
            count = shape_of(operands[0])[ROWS] if layer in feeding else rows
            copy = _resized(layer, operands, images, count)
        copy.location = layer.location
        body.add_op(copy)
        for before, after in zip(layer.results, copy.results, strict=True):
            made[before] = after
            after.name_hint = before.name_hint
    result = _tile_type(op.results[0], images, rows)
    copied = nn.FusedOp(inputs, [result], body, op.kind)
    copied.results[0].name_hint = op.results[0].name_hint
    return copied


def _feeding(root: Operation | None) -> list[Operation]:
    """Casts between a group's operand and its root."""
    found: list[Operation] = []
    owner = root.operands[0].owner if root is not None else None
    while isinstance(owner, nn.CastOp):
        found.append(owner)
        owner = owner.x.owner
    return found


def _resized(op: Operation, operands: Sequence[SSAValue], images: int, rows: int) -> Operation:
    """A layer on other operands whose result has so many images and rows; windows see no padding above and below."""
    properties = dict(op.properties)
    if isinstance(op, (nn.ConvOp, nn.PoolOp)):
        _, left, _, right = op.pads
        properties["pads"] = ints((0, left, 0, right))
    if isinstance(op, nn.ConvTransposeOp):
        pads, beyond = _transposed_pads(op, shape_of(operands[0])[ROWS], rows)
        properties["pads"], properties["output_padding"] = ints(pads), ints((beyond, op.output_padding[1]))
    copy = type(op).create(
        operands=list(operands),
        result_types=[_tile_type(result, images, rows) for result in op.results],
        properties=properties,
        attributes=dict(op.attributes),
    )
    for before, after in zip(op.results, copy.results, strict=True):
        after.name_hint = before.name_hint
    return copy


def _transposed_pads(op: nn.ConvTransposeOp, given: int, rows: int) -> tuple[tuple[int, int, int, int], int]:
    """Pads of a transposed convolution that makes `rows` rows of `given` ones, from a whole phase on: the first row
    given is the first that these rows read. And how many rows it makes beyond the last product.
    """
    stride = op.strides[0]
    _, left, _, right = op.pads
    top = op.pads[0] - stride * min(phase.start for phase in phases_of(op, 0))
    bottom = (given - 1) * stride + shape_of(op.w)[ROWS] - top - rows
    return (top, left, max(0, bottom), right), max(0, -bottom)


def _tile_type(value: SSAValue, images: int, rows: int) -> Attribute:
    shape = list(shape_of(value))
    if len(shape) == 4:
        shape[0], shape[ROWS] = images, rows
    return TensorType(tensor_type(value).element_type, shape)
