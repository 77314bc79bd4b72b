"""Damaged and forged artifacts: a seeded part of `benchmarks.fuzz`, and what it once found."""

from __future__ import annotations

import re
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import neuron_mlir
from benchmarks.damage import KINDS, Case, cases, sections_of, signed
from benchmarks.fuzz import PEAK_LIMIT_KIB, outcomes
from neuron_mlir import Instance, NeuronRuntimeError, Status
from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime import limits
from neuron_mlir.runtime.artifact import PROGRAM, read_artifact
from neuron_mlir.simulator.placement import check_bounded
from neuron_mlir.simulator.program import read_program


def test_some_of_each_kind(pipeline: str, single: str) -> None:
    bases = [Path(pipeline).read_bytes(), Path(single).read_bytes()]
    found = list(outcomes([Case(-1, "good", bases[0]), *cases(bases, 3, 4 * len(KINDS))]))
    assert found[0].outcome == "ran"
    bad = [f"{o.case.number} {o.case.kind}: {o.outcome}: {o.text}" for o in found if not o.good]
    assert not bad, "\n".join(bad)
    assert Counter(o.outcome for o in found)["refused"] > 35
    assert max(o.peak_kib for o in found) <= PEAK_LIMIT_KIB


def test_cases_are_the_same_for_the_same_seed(single: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, now = [Path(single).read_bytes()], time.time()
    first, other = (list(cases(data, seed, 28)) for seed in (1, 2))
    # On another day too: archives carry the time they are made.
    monkeypatch.setattr(time, "time", lambda: now + 86_400)
    assert first == list(cases(data, 1, 28))
    assert first != other
    assert {case.kind for case in first} == set(KINDS)


def test_signing_again_changes_nothing(pipeline: str) -> None:
    data = Path(pipeline).read_bytes()
    assert signed(sections_of(data)) == data


def forged(path: str, folder: Path, change: Callable[[str], str]) -> str:
    sections = sections_of(Path(path).read_bytes())
    text = sections[PROGRAM].decode()
    changed = change(text)
    assert changed != text
    sections[PROGRAM] = changed.encode()
    target = folder / "forged.neff"
    target.write_bytes(signed(sections))
    return str(target)


def refused(path: str, status: Status = Status.NRT_INVALID) -> NeuronRuntimeError:
    with Instance() as instance:
        with pytest.raises(NeuronRuntimeError) as caught:
            neuron_mlir.load(path, instance=instance)
        assert caught.value.status is status
        assert len(instance.free_cores) == 64
    return caught.value


def test_the_machine_is_not_a_file(single: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "machine.toml").write_text('base = "inferentia1"\n')
    monkeypatch.chdir(tmp_path)
    for name in ("machine.toml", "/etc/passwd"):
        path = forged(single, tmp_path, lambda text, name=name: text.replace('"inferentia1"', f'"{name}"'))
        assert f"unknown machine '{name}'" in refused(path).line


def test_a_loop_of_years(pipeline: str, tmp_path: Path) -> None:
    loop = "affine.for %i = 0 to 1000000000000 {\n core.signal %vector\n }\n core.signal %vector"
    path = forged(pipeline, tmp_path, lambda text: text.replace("core.signal %vector", loop, 1))
    error = refused(path)
    assert error.resource == "steps" and int(str(error.needed)) > 10**12


def test_a_stream_that_waits_for_nobody(pipeline: str, tmp_path: Path) -> None:
    text = read_artifact(pipeline).program
    check_bounded(read_program(read_artifact(pipeline).module()))
    body = re.search(r"core\.engine scalar \{.*?\n        \}", text, re.DOTALL)
    assert body is not None
    for wait in ("", "core.wait %scalar >= %r\n", "core.wait %tensor >= %r mod 2\n"):
        free = re.sub(r"core\.wait [^\n]*\n", wait, body[0])
        path = forged(pipeline, tmp_path, lambda text, free=free: text.replace(body[0], free, 1))
        assert "would run ahead forever" in refused(path).line


def test_host_memory(pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = limits.host_bytes(read_program(read_artifact(pipeline).module()))
    assert 1000 < needed < 10**6
    monkeypatch.setattr(limits, "free_memory", lambda: needed)
    error = refused(pipeline, Status.NRT_FAIL_HOST_MEM_ALLOC)
    assert error.needed == needed and error.available == int(needed * limits.MEMORY_SHARE)
    monkeypatch.setattr(limits, "free_memory", lambda: None)
    with Instance() as instance:
        neuron_mlir.load(pipeline, instance=instance)


def test_free_memory() -> None:
    free = limits.free_memory()
    assert free is not None and free > 1 << 20
    old = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, old[1]))
        bounded = limits.free_memory()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)
    assert bounded is not None and bounded < 1 << 40


def test_other_versions(single: str, tmp_path: Path) -> None:
    data = bytearray(Path(single).read_bytes())
    data[8] = 2
    (tmp_path / "new.neff").write_bytes(data)
    refused(str(tmp_path / "new.neff"), Status.NRT_UNSUPPORTED_NEFF_VERSION)


def test_what_is_not_lowered(tmp_path: Path) -> None:
    from neuron_mlir.runtime.modules import parse_module
    from neuron_mlir.runtime.package import write_artifact

    text = """func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
      %0 = nn.relu %x : tensor<4xf32>
      func.return %0 : tensor<4xf32>
    }"""
    write_artifact(str(tmp_path / "t.neff"), parse_module(text, "t"), None, {})
    assert isinstance(refused(str(tmp_path / "t.neff")), NeuronError)


def test_arrays_that_unpack_without_end(tmp_path: Path) -> None:
    import numpy as np

    from neuron_mlir.runtime.files import read_npz

    path = str(tmp_path / "zeros.npz")
    np.savez_compressed(path, x=np.zeros(1 << 20, np.uint8))
    assert Path(path).stat().st_size < 5000
    assert read_npz(path)["x"].nbytes == 1 << 20
    with pytest.raises(NeuronError, match="too large when unpacked"):
        read_npz(path, limit=1 << 19)


def test_names_of_any_length() -> None:
    assert len(NeuronError("x" * 10**6, advice="y" * 10**6).line) == 2000
