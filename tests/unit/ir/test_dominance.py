"""The dominance check, against hand-made cases, a slow definition of dominance, and the clock."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects import test
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.cf import Cf
from xdsl.dialects.func import Func
from xdsl.ir import Block, Operation, Region
from xdsl.parser import Parser

from neuron_mlir.ir.dominance import DominanceError, check_dominance


def parse(text: str) -> ModuleOp:
    ctx = Context()
    for dialect in (Builtin, Func, Cf, test.Test):
        ctx.load_dialect(dialect)
    module = Parser(ctx, text).parse_module()
    module.verify()
    return module


GOOD = {
    "in order": 'func.func @f() { %a = "test.op"() : () -> i32 "test.op"(%a) : (i32) -> () func.return }',
    "a module is a graph region": '"test.op"(%a) : (i32) -> ()\n %a = "test.op"() : () -> i32',
    "a nested region sees what is outside": """
        func.func @f(%x: i32) { "test.op"() ({ "test.op"(%x) : (i32) -> () "test.termop"() : () -> () }) : () -> ()
        func.return }""",
    "a diamond sees its head": """
        func.func @f(%c: i1) { %a = "test.op"() : () -> i32
          cf.cond_br %c, ^b, ^d
        ^b: "test.op"(%a) : (i32) -> ()
          cf.br ^e
        ^d: cf.br ^e
        ^e: "test.op"(%a) : (i32) -> ()
          func.return }""",
    "an unreachable block is not checked": """
        func.func @f() { func.return
        ^b: "test.op"(%a) : (i32) -> ()
          %a = "test.op"() : () -> i32
          cf.br ^b }""",
}
BAD = {
    "use before definition": 'func.func @f() { "test.op"(%a) : (i32) -> () %a = "test.op"() : () -> i32 func.return }',
    "its own operand": 'func.func @f() { %a = "test.op"(%a) : (i32) -> i32 func.return }',
    "from one side of a diamond": """
        func.func @f(%c: i1) { cf.cond_br %c, ^b, ^d
        ^b: %a = "test.op"() : () -> i32
          cf.br ^e
        ^d: cf.br ^e
        ^e: "test.op"(%a) : (i32) -> ()
          func.return }""",
    "around a loop": """
        func.func @f(%c: i1) { cf.br ^b
        ^b: "test.op"(%a) : (i32) -> ()
          %a = "test.op"() : () -> i32
          cf.cond_br %c, ^b, ^e
        ^e: func.return }""",
}


@pytest.mark.parametrize("name", GOOD)
def test_accepts(name: str) -> None:
    check_dominance(parse(GOOD[name]))


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str) -> None:
    with pytest.raises(DominanceError, match=r"operand #0 \(%a\) of 'test.op', .* does not dominate this use"):
        check_dominance(parse(BAD[name]))


@pytest.mark.parametrize("where", ["sibling", "outside"])
def test_a_value_is_out_of_scope_outside_its_region(where: str) -> None:
    inner = test.TestOp(result_types=[test.TestType("t")])
    user = test.TestOp(operands=[inner.results[0]])
    regions = [Region(Block([inner]))] + ([Region(Block([user]))] if where == "sibling" else [])
    after = [user] if where == "outside" else []
    with pytest.raises(DominanceError):
        check_dominance(test.TestOp(regions=[Region(Block([test.TestOp(regions=regions), *after]))]))


def test_an_isolated_region_sees_nothing_from_above() -> None:
    value = test.TestOp(result_types=[test.TestType("t")])
    isolated = ModuleOp([test.TestOp(operands=[value.results[0]])])
    with pytest.raises(DominanceError):
        check_dominance(test.TestOp(regions=[Region(Block([value, isolated]))]))


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    """Successor lists of up to 8 blocks; block 0, the entry, has no predecessor."""
    n = draw(st.integers(2, 8))
    return [draw(st.lists(st.integers(1, n - 1), max_size=3)) for _ in range(n)]


def _reaches(successors: list[list[int]], target: int, without: int) -> bool:
    """Whether the entry reaches `target` on a path that avoids the block `without`."""
    stack, seen = [0] if without != 0 else [], {0}
    while stack:
        block = stack.pop()
        if block == target:
            return True
        for successor in successors[block]:
            if successor not in seen and successor != without:
                seen.add(successor)
                stack.append(successor)
    return False


@settings(max_examples=150, deadline=None)
@given(graphs(), st.data())
def test_agrees_with_the_definition(successors: list[list[int]], data: st.DataObject) -> None:
    """`a` dominates `b` when no path from the entry to `b` avoids `a`."""
    n = len(successors)
    source, sink = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    blocks = [Block() for _ in range(n)]
    definition = test.TestOp(result_types=[test.TestType("t")])
    user = test.TestOp(operands=[definition.results[0]])
    blocks[source].add_op(definition)
    blocks[sink].add_op(user)
    for block, targets in zip(blocks, successors, strict=True):
        block.add_op(test.TestTermOp(successors=[blocks[t] for t in targets]))
    module = ModuleOp([test.TestOp(regions=[Region(blocks)])])
    dominates = source == sink or not _reaches(successors, sink, without=source)
    try:
        check_dominance(module)
        accepted = True
    except DominanceError:
        accepted = False
    assert accepted == dominates


def _chain(n: int, groups: int) -> ModuleOp:
    ops: list[Operation] = [test.TestOp(result_types=[test.TestType("t")])]
    for i in range(n):
        regions = [Region(Block([ModuleOp([])]))] if i % (n // groups) == 0 else []
        ops.append(test.TestOp(operands=[ops[-1].results[0]], result_types=[test.TestType("t")], regions=regions))
    return ModuleOp([test.TestOp(regions=[Region(Block(ops))])])


def test_time_is_linear_in_ops_and_isolated_regions() -> None:
    def seconds(module: ModuleOp) -> float:
        times: list[float] = []
        for _ in range(3):
            start = time.process_time()
            check_dominance(module)
            times.append(time.process_time() - start)
        return min(times)

    small, large = seconds(_chain(2000, 500)), seconds(_chain(16000, 4000))
    # Eight times the ops; a quadratic check would take 64 times as long.
    assert large < 24 * small + 0.02


def test_deep_nests_do_not_recurse() -> None:
    op: Operation = test.TestOp()
    for _ in range(5000):
        op = test.TestOp(regions=[Region(Block([op]))])
    check_dominance(op)
