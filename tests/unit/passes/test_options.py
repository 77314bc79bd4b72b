"""Options of passes: what may be typed, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects import test
from xdsl.dialects.builtin import ModuleOp, i32
from xdsl.utils.arg_spec import parse_spec

from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.base import NeuronPass, NeuronPipeline, format_spec, option


@dataclass(frozen=True)
class Options(NeuronPass):
    """Every type of option."""

    name = "test-options"
    flag: bool = option(False, "a flag")
    size: int = option(1, "an integer")
    share: float = option(0.5, "a float")
    label: str = option("a", "a text")
    cores: int | Literal["auto"] = option("auto", "a number or a word")
    tiles: tuple[int, ...] = option((1,), "a list")
    two_words: int | None = option(None, "may be nothing")
    mode: str = option("all", "one of some", choices=("all", "none"))

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        pass


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Options()),
        ("{flag}", Options(flag=True)),
        ("{flag=false size=-3}", Options(size=-3)),
        ("{share=1}", Options(share=1.0)),
        ("{share=1e-5}", Options(share=1e-5)),
        ("{share=2.5e3}", Options(share=2500.0)),
        ("{label=7 mode=none}", Options(label="7", mode="none")),
        ('{label="two words"}', Options(label="two words")),
        ("{cores=4 tiles=3}", Options(cores=4, tiles=(3,))),
        ("{tiles=3,2,1 two-words=5}", Options(tiles=(3, 2, 1), two_words=5)),
        ("{two_words=none}", Options()),
    ],
)
def test_accepted(text: str, expected: Options) -> None:
    instance = Options.from_spec(parse_spec(f"test-options{text}"))
    assert instance == expected
    assert type(instance.share) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{size=1.5}", "option 'size' of pass 'test-options' takes int, not 1.5"),
        ("{size=true}", "takes int, not True"),
        ("{size}", "takes int, not nothing"),
        ("{size=1,2}", "takes int, not 1,2"),
        ("{share=much}", "takes float, not much"),
        ("{flag=1}", "takes bool, not 1"),
        ("{cores=some}", "takes int or auto, not some"),
        ("{tiles=a}", "takes list of int, not a"),
        ("{mode=some}", "option 'mode' of pass 'test-options' is one of all, none, not some"),
        ("{no-such=1}", "pass 'test-options' has no option 'no-such'; try: one of flag, size,"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(NeuronError) as caught:
        Options.from_spec(parse_spec(f"test-options{text}"))
    assert message in caught.value.line


@given(
    st.builds(
        Options,
        flag=st.booleans(),
        size=st.integers(),
        share=st.floats(allow_nan=False, allow_infinity=False),
        label=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
        cores=st.one_of(st.just("auto"), st.integers(1, 64)),
        tiles=st.lists(st.integers(), min_size=1, max_size=4).map(tuple),
        two_words=st.one_of(st.none(), st.integers()),
        mode=st.sampled_from(["all", "none"]),
    )
)
def test_printed_passes_parse_to_themselves(instance: Options) -> None:
    assert Options.from_spec(parse_spec(format_spec(instance.spec()))) == instance
    assert Options.from_spec(parse_spec(str(instance))) == instance


@dataclass(frozen=True)
class Clean(NeuronPipeline):
    """Two passes of xDSL."""

    name = "test-clean"

    def expand(self) -> str:
        return "cse,dce"


def test_a_pipeline_runs_as_one_pass_too() -> None:
    unused = [test.TestPureOp(result_types=[i32]) for _ in range(2)]
    kept = test.TestOp()
    module = ModuleOp([*unused, kept])
    Clean().apply(Context(), module)
    assert list(module.body.ops) == [kept]
