"""`pipe-replicate`: which cores copies get, and mistakes named."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, i64
from xdsl.parser import Parser

from neuron_mlir.dialects import pipe
from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import load_machine
from neuron_mlir.passes.pipe.replicate import PipeReplicate, copy_starts
from neuron_mlir.passes.pipelines import load_pipeline
from neuron_mlir.runtime.modules import make_context


def chain(times: list[int], dram: int = 0) -> ModuleOp:
    """A program of so many stages that take so long."""
    lines = ['%v0 = pipe.input "x" : !pipe.stream<tensor<4x8xf32>>']
    for i, time in enumerate(times):
        lines.append(
            f"%v{i + 1} = pipe.stage @s{i} cores [{i}] (%v{i}) attributes "
            f"{{cost_ps = {time} : i64, dram_bytes = {dram} : i64}} {{\n^bb0(%v: tensor<4x8xf32>):\n"
            "%r = nn.relu %v : tensor<4x8xf32>\n pipe.yield %r : tensor<4x8xf32>\n"
            "} -> (!pipe.stream<tensor<4x8xf32>>)"
        )
    lines.append(f'pipe.output "y", %v{len(times)} : !pipe.stream<tensor<4x8xf32>>')
    return Parser(make_context(), "pipe.program @net {" + "\n".join(lines) + "}").parse_module()


def cores_after(module: ModuleOp, a_pass: PipeReplicate) -> list[tuple[int, ...]]:
    a_pass.apply(make_context(), module)
    module.verify()
    (program,) = (op for op in module.ops if isinstance(op, pipe.ProgramOp))
    return [stage.core_list() for stage in program.stages()]


def test_copies_of_copies_stay_together() -> None:
    """A stage with two replicas in each of two copies: those that share requests are neighbours."""
    module = chain([1, 2, 1])
    cores_after(module, PipeReplicate(2, "s1"))
    assert cores_after(module, PipeReplicate(2)) == [(0, 4), (1, 5, 2, 6), (3, 7)]


def test_copies_begin_on_a_chip_if_there_is_room() -> None:
    machine = load_machine("inferentia1")
    assert copy_starts(3, 4, 0, machine) == [0, 4, 8, 12]
    assert copy_starts(1, 5, 0, machine) == [0, 1, 2, 3, 4]
    assert copy_starts(2, 3, 1, machine) == [1, 4, 6]
    assert copy_starts(6, 3, 0, machine) == [0, 6, 12]
    assert copy_starts(3, 21, 0, machine) == [3 * n for n in range(21)]  # 64 cores do not hold 21 with gaps


def test_dram_is_in_the_certificate() -> None:
    """What DRAM takes does not shrink with copies on the same chip, so that a third one is not worth its core."""
    module = chain([40_000_000, 10_000_000], dram=500_000)
    a_pass = PipeReplicate(cores=4)
    assert cores_after(module, a_pass) == [(0, 1), (2,)]
    assert a_pass.statistics["bottleneck-ps"] == 25_641_026
    (program,) = (op for op in module.ops if isinstance(op, pipe.ProgramOp))
    certificate = program.attributes["replication"]
    assert isinstance(certificate, pipe.CertificateAttr) and certificate.gap == 0


def test_whole_copies_where_links_would_be_slow() -> None:
    """Four stages, eight cores: two copies, each on a chip of its own, rather than streams across the chain."""
    module = chain([1_000_000] * 4)
    assert cores_after(module, PipeReplicate(cores=8)) == [(0, 4), (1, 5), (2, 6), (3, 7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copies": 0}, "at least 1, not 0"),
        ({"cores": -1}, "at least 0, not -1"),
        ({"cores": 4, "copies": 2}, "not both"),
        ({"stage": "nobody", "copies": 2}, "there is no stage @nobody.*has s0, s1"),
        ({"copies": 33}, "66 copies of 2 stages need a core each.*needs 66, has 64"),
        ({"cores": 1}, "more stages than cores to spend"),
    ],
)
def test_mistakes(options: dict[str, int | str], message: str) -> None:
    with pytest.raises(NeuronError, match=message):
        PipeReplicate(**options).apply(make_context(), chain([1, 2]))  # pyright: ignore[reportArgumentType]


def test_without_estimates() -> None:
    module = chain([1, 2])
    (program,) = (op for op in module.ops if isinstance(op, pipe.ProgramOp))
    del program.stages()[0].attributes["cost_ps"]
    with pytest.raises(NeuronError, match="no estimate of their time"):
        PipeReplicate(cores=4).apply(make_context(), module)
    program.stages()[0].attributes["cost_ps"] = IntegerAttr(1, i64)
    for step in load_pipeline("core-lower"):
        step.apply(make_context(), module)
    with pytest.raises(NeuronError, match="code on buffers already"):
        PipeReplicate(2).apply(make_context(), module)
    with pytest.raises(NeuronError, match="needs a pipe"):
        PipeReplicate(2).apply(make_context(), ModuleOp([]))
