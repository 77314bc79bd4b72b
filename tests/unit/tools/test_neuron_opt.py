"""neuron-opt, run in this process with passes that misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from xdsl.context import Context
from xdsl.dialects.arith import AddiOp, MuliOp
from xdsl.dialects.builtin import ModuleOp, i64
from xdsl.passes import ModulePass
from xdsl.utils.exceptions import PassFailedException

from neuron_mlir.errors import NeuronError
from neuron_mlir.passes.base import NeuronPass, NeuronPipeline, option
from neuron_mlir.tools import neuron_opt

TEXT = """func.func @main(%x: i32) -> i32 {
  %a = arith.addi %x, %x : i32 loc("layer1")
  %b = arith.addi %x, %x : i32
  %c = arith.muli %a, %b : i32
  func.return %c : i32
}
"""


@dataclass(frozen=True)
class Count(NeuronPass):
    """Count the additions."""

    name = "test-count"
    summary = "count additions"
    statistics_help: ClassVar[Mapping[str, str]] = {"adds": "additions seen", "note": "a text", "never": "stays zero"}
    by: int = option(1, "what each one counts")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        self.count("adds", sum(self.by for o in op.walk() if isinstance(o, AddiOp)))
        self.record("note", "seen")


@dataclass(frozen=True)
class Fail(NeuronPass):
    """Fail in one of the ways a pass can."""

    name = "test-fail"
    summary = "fail"
    how: Literal["user", "bug", "xdsl", "type", "order", "none"] = option("user", "the way")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        add = next(o for o in op.walk() if isinstance(o, AddiOp))
        if self.how == "user":
            raise NeuronError("too big", op=add, resource="SBUF", needed="2 B", available="1 B", advice="less")
        if self.how == "bug":
            raise IndexError("oops")
        if self.how == "xdsl":
            raise PassFailedException("not today")
        if self.how == "type":
            object.__setattr__(add.result, "_type", i64)
        if self.how == "order":
            mul = next(o for o in op.walk() if isinstance(o, MuliOp))
            block = mul.parent_block()
            assert block is not None
            mul.detach()
            block.insert_op_before(mul, add)


@dataclass(frozen=True)
class Both(NeuronPipeline):
    """Count, then cse."""

    name = "test-both"
    summary = "count and cse"
    by: int = option(2, "what each one counts")

    def expand(self) -> str:
        return f"test-count{{by={self.by}}},cse"


PASSES: tuple[type[ModulePass], ...] = (Count, Fail, Both)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the tool on a text; gives the exit code, standard output, standard error."""
    upstream = neuron_opt.NeuronOptMain.register_all_passes

    def register(self: neuron_opt.NeuronOptMain) -> None:
        upstream(self)
        for pass_type in PASSES:
            self.register_pass(pass_type.name, lambda pass_type=pass_type: pass_type)

    monkeypatch.setattr(neuron_opt.NeuronOptMain, "register_all_passes", register)

    def tool(*arguments: str, text: str | None = TEXT, name: str = "input.mlir") -> tuple[int, str, str]:
        files: list[str] = []
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
            files = [str(tmp_path / name)]
        code = neuron_opt.main([*files, *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return tool


ERRORS: dict[str, tuple[list[str], str]] = {
    "unknown pass": (["-p", "canonicalise"], "there is no pass named 'canonicalise'; try: canonicalize"),
    "unknown option": (["-p", "test-count{bye=1}"], "pass 'test-count' has no option 'bye'; try: one of by"),
    "option type": (["-p", "test-count{by=x}"], "option 'by' of pass 'test-count' takes int, not x"),
    "option choice": (["-p", "test-fail{how=no}"], "option 'how' of pass 'test-fail' takes user or bug or"),
    "option of a pass of xDSL": (["-p", "cse{a=1}"], "pass 'cse': Provided arguments"),
    "pipeline syntax": (["-p", "cse{a="], "pipeline 'cse{a=', column 7: Unknown argument value"),
    "pass fails": (["-p", "test-fail"], "too big [at 'arith.addi', \"layer1\"] (SBUF: needs 2 B, has 1 B); try: less"),
    "pass fails as xDSL's do": (["-p", "test-fail{how=xdsl}"], "pass 'test-fail': not today"),
    "pass breaks types": (["-p", "test-fail{how=type}"], "invalid IR after pass 'test-fail': "),
    "pass breaks order": (["-p", "test-fail{how=order}"], "of 'arith.muli', the result of 'arith.addi', does not dom"),
    "dump of a pass not run": (["-p", "cse", "--print-ir-after", "dce"], "--print-ir-after: pass 'dce' is not in the"),
    "no directory for output": (["-o", "/nonexistent/x"], "output '/nonexistent/x' is in a directory that does not"),
    "output is a directory": (["-o", "/"], "output '/' is a directory"),
    "help on an unknown pass": (["--help-pass", "test-coun"], "there is no pass named 'test-coun'; try: test-count"),
    "no reproducer": (["--run-reproducer"], "is not a reproducer: it does not begin with a line"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_user_errors_are_one_line_and_the_op(run: Run, name: str) -> None:
    arguments, message = ERRORS[name]
    code, out, err = run(*arguments)
    first, *rest = err.splitlines()
    assert code == 1 and out == ""
    assert first.startswith("error: ") and message in first
    assert all(line.startswith("  ") for line in rest)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("func.func @f( {", "a.mlir", "a.mlir:1:15: Expected argument or type"),
        ('"no.such"() : () -> ()', "a.mlir", "Operation no.such is not registered"),
        ("", "a.txt", "cannot tell what kind of file"),
        ("func.func @f() -> i32 { func.return }", "a.mlir", "invalid IR: Expected arguments to have the same types"),
        ('func.func @f() { "test.op"(%a) : (i32) -> () %a = "test.op"() : () -> i32 func.return }', "a.mlir", "domin"),
    ],
)
def test_bad_input(run: Run, text: str, name: str, message: str) -> None:
    code, _, err = run(text=text, name=name)
    assert code == 1
    assert message in err.splitlines()[0]


def test_an_op_without_location_is_found_in_the_source(run: Run, tmp_path: Path) -> None:
    bad = "func.func @g() {\n  %a = arith.constant 1 : i32\n  func.return %a : i32\n}\n"
    _, _, err = run("--split-input-file", text=f"{TEXT}// -----\n{bad}")
    assert f"[at 'func.return', \"{tmp_path}/input.mlir:10:3\"]" in err.splitlines()[0]
    _, _, err = run("-p", "test-fail{how=order}", text=TEXT.replace('loc("layer1")', ""))
    assert f"[at 'arith.muli', \"{tmp_path}/input.mlir:4:3\"]" in err.splitlines()[0]


def test_missing_and_binary_files(run: Run, tmp_path: Path) -> None:
    code, _, err = run(str(tmp_path / "none.mlir"), text=None)
    assert (code, err) == (1, f"error: {tmp_path}/none.mlir: No such file or directory\n")
    (tmp_path / "binary.mlir").write_bytes(b"\xff\xfe\x80\x81")
    code, _, err = run(str(tmp_path / "binary.mlir"), text=None)
    assert code == 1 and "Traceback" not in err


def test_a_bug_is_called_one(run: Run) -> None:
    code, _, err = run("-p", "test-fail{how=bug}")
    assert code == 70
    assert err == "internal error in pass 'test-fail': IndexError: oops; this is a bug; --traceback shows where\n"
    _, _, err = run("-p", "test-fail{how=bug}", "--traceback")
    assert 'raise IndexError("oops")' in err


def test_verify_diagnostics_takes_a_refusal_for_one(run: Run) -> None:
    code, out, _ = run("-p", "test-fail", "--verify-diagnostics", "--split-input-file", text=f"{TEXT}// -----\n{TEXT}")
    assert code == 0
    assert out.count("too big [at 'arith.addi'") == 2


def test_output_appears_whole_or_not_at_all(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.mlir"
    output.write_text("old", encoding="utf-8")
    assert run("-p", "test-fail", "-o", str(output))[0] == 1
    assert output.read_text(encoding="utf-8") == "old"
    assert run("-p", "cse", "-o", str(output))[0] == 0
    assert "arith.muli %a, %a" in output.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.mlir", "out.mlir"]


def test_dumps(run: Run, tmp_path: Path) -> None:
    _, _, err = run("-p", "test-count,cse,dce", "--print-ir-before", "cse", "--print-ir-after=test-count,dce")
    assert [line for line in err.splitlines() if "IR Dump" in line] == [
        "// -----// IR Dump After test-count //----- //",
        "// -----// IR Dump Before cse //----- //",
        "// -----// IR Dump After dce //----- //",
    ]
    _, _, err = run("-p", "test-count,cse,dce", "--print-ir-after-change")
    assert err.count("IR Dump") == 1 and "IR Dump After cse" in err
    _, _, err = run("-p", "test-fail{how=order}", "--print-ir-after-failure")
    assert "IR Dump After test-fail Failed" in err and err.index("arith.muli") < err.index("arith.addi")
    dumps = tmp_path / "dumps"
    _, _, err = run(
        "-p", "test-count,cse", "--print-ir-after-all", "--print-ir-before-all", "--print-ir-dir", str(dumps)
    )
    assert err == ""
    assert sorted(path.name for path in dumps.iterdir()) == [
        "000_before_test-count.mlir",
        "001_after_test-count.mlir",
        "002_before_cse.mlir",
        "003_after_cse.mlir",
    ]
    code, out, _ = run(text=(dumps / "003_after_cse.mlir").read_text(encoding="utf-8"))
    assert code == 0 and "arith.muli %a, %a" in out


def test_timing_is_a_tree(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    code, _, err = run("-p", "test-both,dce", "--timing", "--statistics", "--json", str(file))
    assert code == 0
    names = [line[21:] for line in err.splitlines() if line[8:9] == "." or ("%)" in line)]
    assert [name for name in names if name.strip() not in ("(verify)", "Rest", "Total")] == [
        "parse",
        "test-both",
        "  test-count{by=2}",
        "  cse",
        "dce",
        "print",
    ]
    timing = json.loads(file.read_text(encoding="utf-8"))["timing"]
    both = next(node for node in timing["children"] if node["name"] == "test-both")
    assert both["seconds"] == pytest.approx(sum(node["seconds"] for node in both["children"]), abs=1e-5)
    assert sum(node["seconds"] for node in timing["children"]) <= timing["seconds"] + 1e-5


def test_statistics(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    _, _, err = run("-p", "test-count,test-both", "--statistics", "--json", str(file))
    assert "'test-count'\n  (S) 2 adds - additions seen\n  (S) seen note - a text\n  (S) 0 never - stays zero\n" in err
    assert "'test-count{by=2}'\n  (S) 4 adds" in err
    data = json.loads(file.read_text(encoding="utf-8"))["statistics"]
    assert data[0] == {"pass": "test-count", "statistics": {"adds": 2, "note": "seen", "never": 0}}


def test_undeclared_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="declares no statistic 'subs'"):
        Count().count("subs")


def test_pipelines_print_as_plain_passes(run: Run) -> None:
    code, out, _ = run("-p", " test-both{by=3} , dce", "--print-pipeline", text=None)
    assert (code, out) == (0, "test-count{by=3},cse,dce\n")
    assert run("-p", out.strip())[1] == run("-p", "test-both{by=3},dce")[1]


def test_listing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "passes.json"
    code, out, _ = run("--list-passes", "--json", str(file), text=None)
    assert code == 0
    assert out.index("count additions") < out.index("Passes of xDSL:") < out.index("canonicalize ")
    entry = next(e for e in json.loads(file.read_text(encoding="utf-8"))["passes"] if e["name"] == "test-count")
    assert entry["relation"] == "exact"
    assert entry["options"] == [
        {"name": "by", "type": "int", "default": 1, "help": "what each one counts", "choices": None}
    ]
    code, out, _ = run("--help-pass", "test-both", text=None)
    assert code == 0
    for part in ("count and cse", "by (int, default 2)", "Stands for:\n  test-count{by=2},cse"):
        assert part in out


def test_reproducer(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "crash.mlir"
    code, _, err = run("-p", "test-count,cse,test-fail,dce", "--crash-reproducer", str(file))
    assert code == 1 and f"note: reproducer written to {file}" in err
    text = file.read_text(encoding="utf-8")
    assert text.startswith("// neuron-opt failed in pass 'test-fail': too big")
    assert "// configuration: -p test-fail,dce\n" in text
    # The IR is that before the failed pass, with its locations.
    assert "arith.muli %a, %a" in text and 'loc("layer1")' in text
    code, _, again = run(str(file), "--run-reproducer", text=None)
    assert code == 1 and again == err.replace(f"note: reproducer written to {file}\n", "")
    code, out, _ = run(str(file), "--run-reproducer", "-p", "cse", text=None)
    assert code == 0 and "arith.muli" in out
    file.unlink()
    assert run("-p", "cse", "--crash-reproducer", str(file))[0] == 0
    assert not file.exists()


def test_flags_of_xdsl_opt(run: Run) -> None:
    _, out, _ = run("--print-op-generic")
    assert '"arith.muli"' in out
    _, out, _ = run("--print-debuginfo")
    assert 'loc("layer1")' in out
    _, out, _ = run("--split-input-file", text=f"{TEXT}// -----\n{TEXT}")
    assert out.count("// -----") == 1 and out.count("func.func") == 2
    _, out, _ = run("-p", "cse,dce", "--time-passes", "--print-between-passes")
    assert "Pass cse took" in out and "IR after cse:" in out
    _, out, _ = run("--parsing-diagnostics", text="func.func @f( {")
    assert "Expected argument or type" in out
    code, out, _ = run("--disable-verify", text="func.func @f() -> i32 { func.return }")
    assert code == 0


def test_start_up_loads_no_heavy_package() -> None:
    program = (
        "import sys\n"
        "from neuron_mlir.tools.neuron_opt import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'onnx', 'ortools', 'numpy', 'networkx', 'rich', 'safetensors', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
