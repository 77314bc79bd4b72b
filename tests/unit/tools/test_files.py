"""Output files and small inputs of tools."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.flags import read_io_config
from neuron_mlir.tools._files import check_writable, write_text


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        write_text(str(file), "new \ud800")
    assert file.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_modes_and_links_are_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "a.txt", tmp_path / "link"
    file.write_text("old", encoding="utf-8")
    file.chmod(0o640)
    link.symlink_to(file)
    write_text(str(link), "new")
    assert link.is_symlink() and file.read_text(encoding="utf-8") == "new"
    assert file.stat().st_mode & 0o777 == 0o640
    plain = tmp_path / "plain"
    plain.write_text("", encoding="utf-8")
    write_text(str(tmp_path / "made"), "")
    assert (tmp_path / "made").stat().st_mode == plain.stat().st_mode


def test_special_files_are_written_not_replaced() -> None:
    write_text(os.devnull, "text")
    assert not os.path.isfile(os.devnull)


def test_unwritable_places(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "new"))
    with pytest.raises(NeuronError, match="is a directory"):
        check_writable(str(tmp_path))
    with pytest.raises(NeuronError, match="in a directory that does not exist"):
        check_writable(str(tmp_path / "no" / "file"))


def test_io_config(tmp_path: Path) -> None:
    value = {"inputs": {"x": [[1, 8], "int32"]}}
    text = '{"inputs": {"x": [[1, 8], "int32"]}}'
    assert read_io_config(text) == value
    file = tmp_path / "io.json"
    file.write_text(text, encoding="utf-8")
    assert read_io_config(str(file)) == value
    with pytest.raises(NeuronError, match="is not JSON: line 1, column 2"):
        read_io_config("{")
    with pytest.raises(NeuronError, match="cannot be read: No such file"):
        read_io_config(str(tmp_path / "none.json"))
    file.write_text("[1]", encoding="utf-8")
    with pytest.raises(NeuronError, match="is not a JSON object"):
        read_io_config(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(NeuronError, match="is not UTF-8 text"):
        read_io_config(str(file))
