"""The machine's numbers, and a user's overrides of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import load_machine, machine_names
from neuron_mlir.machine.description import STATUSES


def test_inferentia1_is_what_aws_publishes() -> None:
    machine = load_machine()
    tensor = machine.tensor_engine
    assert 2 * tensor.rows * tensor.columns * 10**12 // machine.clock.cycle_ps == 16_384_000_000_000
    assert abs(tensor.flops_per_s / 16_384_000_000_000 - 1) < 0.03
    assert machine.sbuf.size_bytes == 12 << 20
    assert machine.psum.bank_bytes == 4 * tensor.moving_columns_max
    assert machine.dma.bytes_per_s_per_core == 24_000_000_000
    assert machine.dram.effective_bytes_per_s == 39_000_000_000
    assert machine.cores_max == 64
    assert [(i.name, i.chips) for i in machine.instances] == [
        ("inf1.xlarge", 1),
        ("inf1.2xlarge", 1),
        ("inf1.6xlarge", 4),
        ("inf1.24xlarge", 16),
    ]


def test_every_number_says_where_it_is_from() -> None:
    facts = load_machine().facts
    assert len(facts) > 40
    for fact in facts:
        assert fact.status in STATUSES and fact.status != "overridden", fact
        assert len(fact.source) > 15, fact


def test_every_number_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "machine.md").read_text(encoding="utf-8")
    for fact in load_machine().facts:
        assert f"| `{fact.key}` | {fact.value:_} | {fact.status} |" in page, fact.key
    fitted = [fact for fact in load_machine("inferentia1-fitted").facts if fact.status == "fitted"]
    assert 0 < len(fitted) <= 3
    for fact in fitted:
        assert f"| `{fact.key}` | {fact.value:_} | {load_machine().value(fact.key):_} |" in page, fact.key


def test_a_machine_of_the_package_may_have_a_base() -> None:
    base, fitted = load_machine(), load_machine("inferentia1-fitted")
    changed = {fact.key: fact.value for fact in fitted.facts if fact.status == "fitted"}
    assert [fact.key for fact in fitted.facts] == [fact.key for fact in base.facts]
    assert all(fact.value == changed.get(fact.key, base.value(fact.key)) for fact in fitted.facts)
    assert not fitted.overrides and fitted.sbuf != base.sbuf and fitted.chip == base.chip
    assert load_machine("inferentia1-fitted", overrides={"sbuf.bytes_per_partition": 98_304}).sbuf == base.sbuf


def test_user_file_overrides_some_keys(tmp_path: Path) -> None:
    file = tmp_path / "wide.toml"
    file.write_text(
        'base = "inferentia1"\nname = "wide"\n[sbuf]\nbytes_per_partition = 131072\n'
        '[dma]\nfixed_ps = { value = 1_000_000, status = "assumed", source = "a guess" }\n[chip]\ncores = 4\n'
    )
    machine = load_machine(file)
    assert machine.sbuf.bytes_per_partition == 131072
    assert machine.dma.fixed_ps == 1_000_000
    assert machine.overrides == (("dma.fixed_ps", 1_000_000), ("sbuf.bytes_per_partition", 131072))
    assert machine.value("sbuf.bytes_per_partition") == 131072
    assert {f.key for f in machine.facts if f.status == "overridden"} == {"dma.fixed_ps", "sbuf.bytes_per_partition"}
    assert machine == load_machine(overrides=dict(machine.overrides))
    assert machine != load_machine()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sbuf]\npartition = 3\n", "unknown key 'sbuf.partition'; try: did you mean 'sbuf.partitions'?"),
        ("[sbuff]\npartitions = 3\n", "unknown key 'sbuff'; try: did you mean 'sbuf'?"),
        ("sbuf = 3\n", "'sbuf' is a table; try: [sbuf] with keys such as partitions"),
        ("[sbuf]\npartitions = 'many'\n", "'sbuf.partitions' must be an integer, got 'many'"),
        ("[sbuf]\npartitions = [1]\n", "'sbuf.partitions' must be an integer, got [1]"),
        ("[sbuf]\npartitions = true\n", "'sbuf.partitions' must be an integer, got True"),
        ("[sbuf]\npartitions = 0\n", "'sbuf.partitions' must be positive, got 0"),
        ("[sbuf]\npartitions = 5_000_000_000_000_000_000\n", "must be below 2^62"),
        ("[sbuf.partitions]\nstatus = 'assumed'\n", "'sbuf.partitions' must be an integer, got None"),
        ("[dram]\nefficiency_permille = 1001\n", "(permille: needs 1001, has 1000)"),
        ("[psum]\nbanks = 7\n", "is not a multiple of 'psum.banks'"),
        ("[sbuf]\npartitions = 64\n", "tensor_engine.rows does not fit sbuf.partitions"),
        ("base = 'inferentia3'\n", "unknown base 'inferentia3'"),
        ("base = 3\n", "unknown base '3'"),
        ("[sbuf\n", "is not valid TOML"),
    ],
)
def test_mistakes_in_a_user_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "m.toml"
    file.write_text(text)
    with pytest.raises(NeuronError) as caught:
        load_machine(file)
    assert message in caught.value.line


def test_unknown_names() -> None:
    with pytest.raises(NeuronError, match="unknown machine 'trn1'; try: use one of inferentia1"):
        load_machine("trn1")
    with pytest.raises(NeuronError, match="cannot read machine file"):
        load_machine("no/such/file.toml")
    with pytest.raises(NeuronError, match=r"unknown key 'dma.fixed'; try: did you mean 'dma.fixed_ps'"):
        load_machine(overrides={"dma.fixed": 1})
    with pytest.raises(NeuronError, match="unknown key"):
        load_machine().value("dma")
    assert "inferentia1" in machine_names()


def test_importing_the_machine_is_cheap() -> None:
    code = "import neuron_mlir.machine, neuron_mlir.machine.cost, sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "neuron_mlir.machine.cost" in out
    assert not {"xdsl", "numpy", "onnx", "ortools"} & set(out)
