"""Locations survive rewrites and print with the IR."""

from __future__ import annotations

from io import StringIO

from xdsl.context import Context
from xdsl.dialects import test
from xdsl.dialects.builtin import ArrayAttr, Builtin, FusedLoc, ModuleOp, NoneAttr, UnknownLoc, i32
from xdsl.ir import Block, Operation, Region
from xdsl.parser import Parser
from xdsl.pattern_rewriter import PatternRewriter, PatternRewriteWalker, RewritePattern
from xdsl.printer import Printer

from neuron_mlir.ir.locations import CarryLocations, fuse_locations, insert_before, name_location, replace

TEXT = """
%0 = "test.op"() {n = 0} : () -> i32 loc("conv1")
"test.op"(%0) {n = 1} : (i32) -> () loc(unknown)
"""


def parse() -> tuple[ModuleOp, Operation, Operation]:
    ctx = Context()
    ctx.load_dialect(Builtin)
    ctx.load_dialect(test.Test)
    module = Parser(ctx, TEXT).parse_module()
    first, second = module.body.ops
    return module, first, second


def locations(module: ModuleOp) -> list[str]:
    return [str(op.location) for op in module.walk() if op is not module]


def test_replace_gives_new_and_nested_ops_the_location() -> None:
    module, first, _ = parse()
    ops = [test.TestOp(regions=[Region(Block([test.TestOp()]))]), test.TestOp(result_types=[i32])]
    ops[1].location = name_location("own")
    replace(first, ops)
    assert locations(module) == ['loc("conv1")', 'loc("conv1")', 'loc("own")', "loc(unknown)"]


def test_insert_before() -> None:
    module, first, _ = parse()
    insert_before(first, test.TestOp())
    assert locations(module)[:2] == ['loc("conv1")', 'loc("conv1")']


class _Double(RewritePattern):
    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter, /) -> None:
        if "n" in op.attributes and op.results:
            rewriter.replace(op, [test.TestOp(result_types=[i32])])


def test_patterns_lose_locations_unless_wrapped() -> None:
    module, _, _ = parse()
    PatternRewriteWalker(_Double(), apply_recursively=False).rewrite_module(module)
    assert locations(module)[0] == "loc(unknown)"
    module, _, _ = parse()
    PatternRewriteWalker(CarryLocations(_Double()), apply_recursively=False).rewrite_module(module)
    assert locations(module)[0] == 'loc("conv1")'


def test_printed_locations_parse_again() -> None:
    module, first, _ = parse()
    replace(first, [test.TestOp(result_types=[i32])])
    stream = StringIO()
    Printer(stream=stream, print_debuginfo=True).print_op(module)
    ctx = Context()
    ctx.load_dialect(Builtin)
    ctx.load_dialect(test.Test)
    assert locations(Parser(ctx, stream.getvalue()).parse_module()) == locations(module)


def test_fused_locations_are_flat_unique_and_in_order() -> None:
    a, b, c = (name_location(name) for name in "abc")
    assert fuse_locations([UnknownLoc(), a, a]) == a
    assert fuse_locations([]) == UnknownLoc()
    two = fuse_locations([b, a])
    assert two == FusedLoc(ArrayAttr([b, a]), NoneAttr())
    assert fuse_locations([two, UnknownLoc(), a, c]) == FusedLoc(ArrayAttr([b, a, c]), NoneAttr())
