"""Locations, carried from the ONNX node to the last instruction.

xDSL's rewriter gives replaced ops `loc(unknown)`. A pass of this package uses `replace`, or wraps its patterns in
`CarryLocations`, so that each new op says which node of the model it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from xdsl.dialects.builtin import ArrayAttr, FusedLoc, LocationAttr, NameLoc, NoneAttr, StringAttr, UnknownLoc
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.pattern_rewriter import PatternRewriter, RewritePattern
from xdsl.rewriter import InsertPoint, Rewriter


def name_location(name: str) -> NameLoc:
    """`loc("name")`, as the parser makes it."""
    return NameLoc(StringAttr(name), NoneAttr())


def has_location(op: Operation) -> bool:
    """Whether an op's location is known."""
    return not isinstance(op.location, UnknownLoc)


def set_locations(ops: Iterable[Operation], location: LocationAttr) -> None:
    """Give `location` to every op, nested ones included, whose own is unknown."""
    if isinstance(location, UnknownLoc):
        return
    for root in ops:
        for op in root.walk():
            if isinstance(op.location, UnknownLoc):
                op.location = location


def fuse_locations(locations: Iterable[LocationAttr], unknown: LocationAttr | None = None) -> LocationAttr:
    """One location for an op made of several: each known one once, in order; `fused[..]` for more than one."""
    parts: list[Attribute] = []
    for location in locations:
        members: Sequence[Attribute] = (location,)
        if isinstance(location, FusedLoc):
            members = cast("ArrayAttr[Attribute]", location.locations).data
        parts += [part for part in members if part not in parts and not isinstance(part, UnknownLoc)]
    if not parts:
        return unknown or UnknownLoc()
    if len(parts) == 1 and isinstance(parts[0], LocationAttr):
        return parts[0]
    return FusedLoc(ArrayAttr(parts), NoneAttr())


def replace(
    op: Operation,
    new_ops: Operation | Sequence[Operation],
    new_results: Sequence[SSAValue | None] | None = None,
    *,
    rewriter: PatternRewriter | None = None,
) -> None:
    """Replace an op as `PatternRewriter.replace` does, the new ops taking its location where they have none.

    Without a rewriter the IR is changed directly, for passes that walk it themselves.
    """
    new_ops = (new_ops,) if isinstance(new_ops, Operation) else tuple(new_ops)
    set_locations(new_ops, op.location)
    if rewriter is not None:
        rewriter.replace(op, new_ops, new_results)
        return
    Rewriter.replace_op(op, new_ops, new_results)


def insert_before(op: Operation, new_ops: Operation | Sequence[Operation]) -> None:
    """Insert ops before `op`, with its location where they have none."""
    new_ops = (new_ops,) if isinstance(new_ops, Operation) else tuple(new_ops)
    set_locations(new_ops, op.location)
    Rewriter.insert_op(new_ops, InsertPoint.before(op))


@dataclass(frozen=True)
class CarryLocations(RewritePattern):
    """A pattern whose every inserted op gets the location of the op that was matched."""

    pattern: RewritePattern

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter, /) -> None:
        location = op.location

        def inserted(new: Operation) -> None:
            set_locations((new,), location)

        rewriter.operation_insertion_handler.append(inserted)
        try:
            self.pattern.match_and_rewrite(op, rewriter)
        finally:
            rewriter.operation_insertion_handler.remove(inserted)
