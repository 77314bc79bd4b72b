"""neuron-profile: its files, its mistakes, and the page in a browser."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser

from neuron_mlir.runtime.modules import read_module
from neuron_mlir.runtime.package import write_artifact
from neuron_mlir.tools import neuron_profile

GOLDEN = Path(__file__).parents[2] / "lit" / "golden" / "two_stage_final.mlir"
STATISTICS = [{"pass": "nn-fuse", "statistics": {"layers": 3, "groups": 0}}]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "golden.neff"
    write_artifact(str(path), read_module(GOLDEN), None, {"statistics": STATISTICS, "options": {"cores": 2}})
    return path


@pytest.fixture(scope="module")
def profile(golden: Path) -> Path:
    """A folder with `p.html` and `p.json`."""
    folder = golden.parent
    arguments = [str(golden), "--html", str(folder / "p.html"), "--json", str(folder / "p.json"), "--quiet"]
    assert neuron_profile.main(arguments) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error line of a run that has to fail."""
    assert neuron_profile.main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err.splitlines()[0]


def test_without_outputs_page_and_trace_are_beside_the_program(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "net.neff"
    program.write_bytes(golden.read_bytes())
    assert neuron_profile.main([str(program)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.html", "net.neff", "net.trace.json"]
    out = capsys.readouterr().out
    assert "throughput" in out and "Layers that take longest" in out and "Engines that stood still" in out
    assert f"wrote {tmp_path / 'net.html'}" in out
    assert json.loads((tmp_path / "net.trace.json").read_text())["traceEvents"]


def test_the_same_run_gives_the_same_bytes(golden: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        files = [f"{tmp_path / name}{suffix}" for suffix in (".html", ".trace.json.gz", ".json")]
        arguments = [str(golden), "--html", files[0], "--trace", files[1], "--json", files[2], "-q"]
        assert neuron_profile.main(arguments) == 0
    for suffix in (".html", ".trace.json.gz", ".json"):
        assert Path(f"{tmp_path / 'a'}{suffix}").read_bytes() == Path(f"{tmp_path / 'b'}{suffix}").read_bytes()
    assert json.loads(gzip.decompress((tmp_path / "a.trace.json.gz").read_bytes()))["displayTimeUnit"] == "ns"


def test_json_on_standard_output(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert neuron_profile.main([str(golden), "--json", "-", "--first", "0", "--show", "1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["window"]["start_ps"] == 0
    assert data["decisions"]["passes"] == STATISTICS and data["producer"].startswith("neuron-mlir")


def test_mistakes(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--requests must be at least 1" in refused(capsys, str(golden), "--requests", "0")
    assert "--first must be one of" in refused(capsys, str(golden), "--requests", "4", "--first", "4")
    assert "no such request" in refused(capsys, str(golden), "--json", "-", "--first", "100000")
    assert "does not exist" in refused(capsys, str(golden), "--html", str(tmp_path / "no" / "p.html"))
    values = tmp_path / "net.mlir"
    values.write_text(
        'func.func @main(%x: tensor<2xf32> {nn.name = "x"}) -> (tensor<2xf32> {nn.name = "y"}) {\n'
        "  %0 = nn.relu %x : tensor<2xf32>\n  func.return %0 : tensor<2xf32>\n}\n"
    )
    assert "only the final form has a clock" in refused(capsys, str(values))
    assert not list(tmp_path.glob("*.html")), "nothing is left behind"


# The page in a browser ------------------------------------------------------------------------------------------------


TIMES = {"s": 1e12, "ms": 1e9, "µs": 1e6, "ns": 1e3, "ps": 1.0}
SIZES = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}
RATES = {"Top/s": 1e12, "Gop/s": 1e9, "Mop/s": 1e6, "op/s": 1.0}
PREFIXES = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "%": 0.01, "/s": 1.0, "": 1.0}
UNITS = TIMES | SIZES | RATES | PREFIXES


def read_number(text: str, kind: str) -> tuple[float, float]:
    """What a number on the page says, and by how much it may be off: half of its last digit."""
    match = re.fullmatch(r"(-?[\d,]+(?:\.(\d+))?(?:e[+-]?\d+)?) ?(\D*)", text)
    assert match is not None, text
    number, places, unit = match[1].replace(",", ""), len(match[2] or ""), match[3]
    factor = UNITS[unit] / (1e9 if kind == "ms" else 1.0)
    exponent = float("1" + number[number.index("e") :]) if "e" in number else 1.0
    # Trailing zeros are not written: four digits are promised, and never less than the places shown.
    last = max(abs(float(number)) * 10**-3.0, 0.0) if kind != "percent" else 10.0**-places * exponent
    return float(number) * factor, 0.5 * last * factor


def at(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = data[int(part) if part.isdigit() else part]
    return data


@pytest.fixture(scope="module", params=["light", "dark"])
def opened(request: pytest.FixtureRequest, profile: Path) -> Iterator[Any]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on the path (apt-get install chromium-headless-shell), nor in $CHROMIUM")
    with Browser(program, profile / f"browser-{request.param}", dark=request.param == "dark") as browser:
        browser.open(profile / "p.html")
        yield browser


def test_page_loads_alone_and_without_errors(opened: Any) -> None:
    assert opened.evaluate("document.documentElement.dataset.ready") == "true"
    assert opened.messages == []
    assert [address for address in opened.requested if not address.startswith("file:///")] == []
    assert len(opened.requested) == 1


def test_numbers_on_the_page_are_those_of_the_json(opened: Any, profile: Path) -> None:
    data = json.loads((profile / "p.json").read_text())
    opened.evaluate(
        "document.querySelectorAll('section button').forEach(b => b.textContent.startsWith('Show all') && b.click())"
    )
    shown = opened.evaluate(
        "[...document.querySelectorAll('[data-path]')].map(n =>"
        " [n.dataset.path, n.dataset.format, n.dataset.value ?? null, n.textContent])"
    )
    paths = {path for path, *_ in shown}
    assert {"report.throughput_per_s", "report.latency_ms.p99", "memory.0.peak"} <= paths
    for number in range(len(data["layers"])):
        assert {f"layers.{number}.time_ps", f"layers.{number}.ops_per_s"} <= paths
    for path, kind, value, text in shown:
        known = at(data, path)
        assert float(value) == known, path
        said, off = read_number(text, kind)
        assert abs(said - known) <= off + 1e-12, (path, text, known)
    assert (
        opened.evaluate("JSON.stringify(JSON.parse(document.getElementById('data').textContent))")
        == json.dumps(data, separators=(",", ":"), ensure_ascii=False)
        or json.loads(opened.evaluate("document.getElementById('data').textContent")) == data
    )


def test_what_is_drawn(opened: Any, profile: Path) -> None:
    """Every layer is on the roofline; canvases are not empty; every chart has a text."""
    data = json.loads((profile / "p.json").read_text())
    marks = opened.evaluate("[...document.querySelectorAll('circle.layer')].map(n => n.getAttribute('aria-label'))")
    assert len(marks) == len(data["layers"])
    assert all(layer["name"] in mark for layer, mark in zip(data["layers"], marks, strict=True))
    for name in ("timeline", "servers", "sbuf", "psum"):
        canvas = f"document.getElementById('{name}-canvas')"
        colours = opened.evaluate(
            f"new Set(new Uint32Array({canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, {canvas}.height)"
            ".data.buffer)).size"
        )
        assert colours > 4, name
        assert opened.evaluate(f"{canvas}.getAttribute('aria-label')")
    assert opened.evaluate("[...document.querySelectorAll('th')].filter(n => !n.scope).length") == 0


def test_tables_sort_and_charts_zoom(opened: Any) -> None:
    column = "[...document.querySelectorAll('#layers-table tbody tr')].map(r => Number(r.cells[0].dataset.value))"
    first = opened.evaluate(column)
    assert first == sorted(first, reverse=True)
    opened.evaluate("document.querySelector('#layers-table th button').click()")
    assert opened.evaluate(column) == sorted(first)
    assert opened.evaluate("document.querySelector('#layers-table th').getAttribute('aria-sort')") == "ascending"
    opened.evaluate("document.querySelector('#layers-table th button').click()")
    before = opened.evaluate("document.getElementById('view').textContent")
    opened.evaluate("document.querySelector('[data-zoom=in]').click()")
    assert opened.evaluate("document.getElementById('view').textContent") != before
    opened.evaluate("document.querySelector('[data-zoom=all]').click()")
    assert opened.evaluate("document.getElementById('view').textContent") == before
    assert opened.messages == []


def test_colours_follow_the_scheme(opened: Any) -> None:
    """Text stands out from its background by at least 4.5 to 1, as WCAG 2.1 asks for."""
    back = luminance(opened.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor"))
    for name in ("td", "th", "figcaption", ".note", ".card b", ".card span", "caption", "a"):
        ink = luminance(opened.evaluate(f"getComputedStyle(document.querySelector('main {name}, nav {name}')).color"))
        assert (max(ink, back) + 0.05) / (min(ink, back) + 0.05) >= 4.5, name
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (back < 0.2) == dark


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2.1 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
