"""What an error says, and how."""

from __future__ import annotations

from xdsl.dialects import test
from xdsl.dialects.builtin import FileLineColLoc, IntAttr, StringAttr, UnknownLoc
from xdsl.ir import Block, Region

from neuron_mlir.errors import MAX_OP_TEXT, NeuronError, location_text
from neuron_mlir.ir.locations import fuse_locations, name_location


def test_all_parts_in_one_line() -> None:
    error = NeuronError(
        "tile does not fit",
        op="nn.conv",
        location="conv1",
        resource="SBUF bytes per partition of core 0",
        needed=120_000,
        available=98_304,
        advice="pipe-stage{cores=8}",
    )
    assert (
        error.render()
        == str(error)
        == (
            "tile does not fit [at 'nn.conv', \"conv1\"] (SBUF bytes per partition of core 0: needs 120000, has 98304)"
            "; try: pipe-stage{cores=8}"
        )
    )


def test_parts_left_out() -> None:
    assert str(NeuronError("wrong")) == "wrong"
    assert str(NeuronError("wrong", location="a")) == 'wrong [at "a"]'
    assert str(NeuronError("wrong", needed=2)) == "wrong (needs 2)"
    assert str(NeuronError("wrong", needed=0, available=0)) == "wrong (needs 0, has 0)"
    assert str(NeuronError("wrong", resource="PSUM bank 3")) == "wrong (PSUM bank 3)"
    assert str(NeuronError("two\n  lines")) == "two lines"


def test_an_op_gives_name_location_and_short_print() -> None:
    inner = test.TestOp(regions=[Region(Block([test.TestOp()]))])
    inner.location = name_location("conv1")
    error = NeuronError("wrong", op=inner)
    assert error.line == "wrong [at 'test.op', \"conv1\"]"
    assert error.render() == f'{error.line}\n  "test.op"() ({{'
    long = test.TestOp(attributes={"a": StringAttr("x" * 1000)})
    text = NeuronError("wrong", op=long).op_text
    assert text is not None and len(text) == MAX_OP_TEXT and text.endswith(" ...")


def test_locations() -> None:
    assert location_text(None) is None
    assert location_text(UnknownLoc()) is None
    assert location_text(name_location("layer1/conv")) == "layer1/conv"
    assert location_text(FileLineColLoc(StringAttr("a.mlir"), IntAttr(3), IntAttr(7))) == "a.mlir:3:7"
    assert location_text(fuse_locations([name_location("a"), name_location("b")])) == "fused[a, b]"
