"""Executes docs/write-a-pass.md: its files, its commands, in an environment of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "write-a-pass.md"
FILE = re.compile(r"^`([\w.]+)`,[^`]*?(?:`[^`]*`[^`]*?)*:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    return dict(FILE.findall(PAGE.read_text(encoding="utf-8")))


def commands() -> list[str]:
    (block,) = COMMANDS.findall(PAGE.read_text(encoding="utf-8"))
    return block.strip().splitlines()


def test_the_page_is_short_enough() -> None:
    """Under 30 lines of code, blank lines apart; the test input is IR, not code."""
    assert sorted(files()) == ["pyproject.toml", "relu_of_abs.mlir", "relu_of_abs.py"]
    code = [line for name, text in files().items() if not name.endswith(".mlir") for line in text.splitlines()]
    assert sum(1 for line in code if line.strip()) < 30


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The page's directory, its package installed beside it, and the environment to run commands in."""
    root = tmp_path_factory.mktemp("write-a-pass")
    work, site = root / "relu-of-abs", root / "site"
    work.mkdir()
    for name, text in files().items():
        (work / name).write_text(text, encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(site),
        # `pip install .` without network, and without touching the environment the tests run in.
        "PIP_TARGET": str(site),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    install, *_ = commands()
    assert install == "pip install ."
    _run(f"{sys.executable} -m {install}", work, environment)
    return work, environment


def _run(command: str, work: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def test_the_pass_is_found(package: tuple[Path, dict[str, str]]) -> None:
    assert "remove a relu after an abs" in _run(commands()[1], *package).stdout
    assert "relu-of-abs" in _run("neuron-opt --list-passes", *package).stdout
    _run("xdsl-opt relu_of_abs.mlir -p relu-of-abs | filecheck relu_of_abs.mlir", *package)


def test_the_pass_does_what_its_test_says(package: tuple[Path, dict[str, str]]) -> None:
    assert "| filecheck" in commands()[2]
    _run(commands()[2], *package)


def test_the_test_of_the_page_can_fail(package: tuple[Path, dict[str, str]]) -> None:
    work, environment = package
    without_pass = commands()[2].replace("-p relu-of-abs ", "")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", without_pass], cwd=work, env=environment, capture_output=True, check=False
    )
    assert done.returncode != 0


def test_the_pass_keeps_the_values(package: tuple[Path, dict[str, str]]) -> None:
    assert "--validate-each" in commands()[3]
    assert "(S) 1 removed - relus taken out" in _run(commands()[3], *package).stderr
