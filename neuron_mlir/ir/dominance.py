"""SSA dominance, in time linear in the size of the IR.

xDSL's `verify` accepts a use before its definition; MLIR's refuses it. This check closes the gap. It walks the IR once
with the set of values that may be used: a region sees what its op sees, an isolated region only its own, a block what
its dominators define. (A check made of `is_before_in_block`, which is linear, would be quadratic.)

Region kinds follow MLIR: the body of a `builtin.module` is a graph region, where order does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.traits import IsolatedFromAbove
from xdsl.utils.exceptions import VerifyException


class DominanceError(VerifyException):
    """An operand is used where its definition does not dominate it."""

    def __init__(self, op: Operation, index: int) -> None:
        self.op = op
        self.operand_index = index
        name = op.operands[index].name_hint
        value = f" (%{name})" if name else ""
        owner = op.operands[index].owner
        source = f"the result of '{owner.name}'" if isinstance(owner, Operation) else "a block argument"
        super().__init__(f"operand #{index}{value} of '{op.name}', {source}, does not dominate this use")


def check_dominance(root: Operation) -> None:
    """Check that every operand below `root` is defined before it is used.

    Values of blocks that no path reaches are not checked, as in MLIR.

    Raises:
        DominanceError: for the first offending operand in walk order.
    """
    # A stack of generators instead of recursion: a region nest may be deeper than Python's stack allows.
    stack: list[Iterator[_Nested]] = [_op_regions(root, set())]
    while stack:
        nested = next(stack[-1], None)
        if nested is None:
            stack.pop()
        else:
            stack.append(_check_region(*nested))


_Nested = tuple[Region, set[SSAValue]]
"""A region to check, and the values it may use."""


def _op_regions(op: Operation, visible: set[SSAValue]) -> Iterator[_Nested]:
    isolated = op.has_trait(IsolatedFromAbove, value_if_unregistered=False)
    for region in op.regions:
        # A fresh set, not a copy: a module has many isolated groups, and copies would make the check quadratic.
        yield region, set() if isolated else visible


def _check_region(region: Region, visible: set[SSAValue]) -> Iterator[_Nested]:
    """Check the ops of a region; yields each nested region at the moment the values it may use are right."""
    blocks = list(region.blocks)
    if len(blocks) == 1:
        defined: list[SSAValue] = []
        if isinstance(region.parent_op(), ModuleOp):
            defined += [result for op in blocks[0].ops for result in op.results]
            visible.update(defined)
        yield from _check_block(blocks[0], visible, defined)
        visible.difference_update(defined)
        return
    if not blocks:
        return
    children = _dominator_children(blocks)
    # Preorder over the dominator tree; None marks the moment to forget what a block defined.
    work: list[tuple[Block, list[SSAValue] | None]] = [(blocks[0], None)]
    while work:
        block, done = work.pop()
        if done is not None:
            visible.difference_update(done)
            continue
        defined = []
        yield from _check_block(block, visible, defined)
        work.append((block, defined))
        work += [(child, None) for child in reversed(children.get(block, ()))]


def _check_block(block: Block, visible: set[SSAValue], defined: list[SSAValue]) -> Iterator[_Nested]:
    visible.update(block.args)
    defined += block.args
    for op in block.ops:
        for index, operand in enumerate(op.operands):
            if operand not in visible:
                raise DominanceError(op, index)
        if op.regions:
            yield from _op_regions(op, visible)
        visible.update(op.results)
        defined += op.results


def _dominator_children(blocks: Sequence[Block]) -> dict[Block, list[Block]]:
    """The dominator tree of the reachable blocks: block to the blocks it dominates at once.

    Cooper, Harvey, Kennedy: "A Simple, Fast Dominance Algorithm" (2001); a few sweeps over the blocks in practice.
    """
    entry = blocks[0]
    order = _reverse_postorder(entry)
    number = {block: i for i, block in enumerate(order)}
    predecessors: dict[Block, list[int]] = {block: [] for block in order}
    for block in order:
        for successor in _successors(block):
            predecessors[successor].append(number[block])
    idom: list[int] = [0] + [-1] * (len(order) - 1)
    changed = True
    while changed:
        changed = False
        for i in range(1, len(order)):
            known = [p for p in predecessors[order[i]] if idom[p] >= 0]
            new = known[0]
            for other in known[1:]:
                new = _intersect(idom, new, other)
            if idom[i] != new:
                idom[i] = new
                changed = True
    children: dict[Block, list[Block]] = {}
    for i in range(1, len(order)):
        children.setdefault(order[idom[i]], []).append(order[i])
    return children


def _intersect(idom: Sequence[int], a: int, b: int) -> int:
    while a != b:
        while a > b:
            a = idom[a]
        while b > a:
            b = idom[b]
    return a


def _successors(block: Block) -> Sequence[Block]:
    return block.last_op.successors if block.last_op is not None else ()


def _reverse_postorder(entry: Block) -> list[Block]:
    seen = {entry}
    postorder: list[Block] = []
    stack = [(entry, iter(_successors(entry)))]
    while stack:
        block, successors = stack[-1]
        for successor in successors:
            if successor not in seen:
                seen.add(successor)
                stack.append((successor, iter(_successors(successor))))
                break
        else:
            postorder.append(block)
            stack.pop()
    return postorder[::-1]
