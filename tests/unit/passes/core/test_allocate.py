"""Allocation: slots, banks, sharing, spills, and what it says when nothing helps."""

from __future__ import annotations

from typing import Any

import pytest
from reading import parse
from xdsl.dialects.builtin import ModuleOp

from neuron_mlir.dialects.core.memory import AllocOp
from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.dialects.pipe.ops import CertificateAttr, StageOp
from neuron_mlir.errors import NeuronError, location_text
from neuron_mlir.passes.core.allocate import CoreAllocate
from neuron_mlir.passes.core.allocation.buffers import Local, read_stage
from neuron_mlir.passes.core.allocation.place import bank_layout
from neuron_mlir.runtime.modules import make_context


def allocate(text: str, sbuf_bytes: int | None = None, **options: Any) -> tuple[ModuleOp, CoreAllocate]:
    """The program with addresses, for a machine with that much SBUF."""
    if sbuf_bytes is not None:
        override = f"core.machine_overrides = {{sbuf.bytes_per_partition = {sbuf_bytes} : i64}}"
        text = f'builtin.module attributes {{core.machine = "inferentia1", {override}}} {{ {text} }}'
    module = parse(text)
    owner = CoreAllocate(**options)
    owner.apply(make_context(), module)
    again = parse(str(module))
    assert again.is_structurally_equivalent(module)
    return again, owner


def stage(run: str, load: str = "", resident: str = "", name: str = "s0", core: int = 0) -> str:
    return f"""
      pipe.stage @{name} cores [{core}] () {{
        {resident}
        pipe.load {{ {load} }}
        pipe.run (%r) {{ {run} }}
      }}"""


def program(*stages: str) -> str:
    return f"pipe.program @p {{ {' '.join(stages)} }}"


def sbuf(label: str, columns: int = 256, rows: int = 64, element: str = "f32") -> str:
    return f'%{label} = core.alloc "{label}" : memref<{rows}x{columns}x{element}, #core.sbuf>'


def addresses(module: ModuleOp) -> dict[str, int]:
    """Addresses by label; every alloc has one and is at the level of a stage."""
    found: dict[str, int] = {}
    for op in module.walk():
        if isinstance(op, AllocOp):
            assert op.address is not None
            assert isinstance(op.parent_op(), StageOp)
            found[op.label.data] = op.address.value.data
    return found


CHAIN = f"""
  {sbuf("a")} core.memset %a, 1.0
  {sbuf("b")} core.copy %b, %a
  {sbuf("c")} core.copy %c, %b
  {sbuf("d")} core.copy %d, %c"""
"""Four buffers of 1 KiB, of which two are alive at once."""


def test_own_bytes_for_two_requests_where_there_is_room() -> None:
    module, owner = allocate(program(stage(CHAIN)))
    assert addresses(module) == {"a": 0, "b": 2048, "c": 4096, "d": 6144}
    assert owner.statistics["rotating buffers"] == 4
    assert "%a[0, %r mod 2, 0] [64, 1, 256]" in str(module)


def test_own_bytes_when_two_do_not_fit() -> None:
    module, owner = allocate(program(stage(CHAIN)), 4096 + 2048)
    assert addresses(module) == {"a": 0, "b": 1024, "c": 2048, "d": 3072}
    assert owner.statistics["rotating buffers"] == 0


def test_the_longest_rest_that_fits() -> None:
    """Room for three: bytes are used again two statements after their last use, not one."""
    found = addresses(allocate(program(stage(CHAIN)), 3072)[0])
    assert found["d"] == found["a"] and len({found["a"], found["b"], found["c"]}) == 3
    found = addresses(allocate(program(stage(CHAIN)), 2048)[0])
    assert found["a"] == found["c"] and found["b"] == found["d"]


def test_the_certificate_is_that_of_the_plan() -> None:
    module, _ = allocate(program(stage(CHAIN)), 2048)
    certificate = next(op for op in module.walk() if isinstance(op, StageOp)).attributes["core.sbuf_plan"]
    assert isinstance(certificate, CertificateAttr)
    assert certificate.objective.value.data == certificate.lower_bound.value.data == 2048
    assert certificate.gap == 0


def test_what_the_load_needs_is_free_afterwards() -> None:
    """A buffer of the load and one of the run share; what the stage declares keeps its bytes through both."""
    load = f"{sbuf('t')} core.memset %t, 2.0 core.copy %w, %t"
    run = f"{sbuf('a')} core.copy %a, %w core.copy %a, %w"
    found = addresses(allocate(program(stage(run, load, sbuf("w"))), 2048)[0])
    assert found["t"] == found["a"] != found["w"]


def test_stages_of_one_core_share_its_memory() -> None:
    module, owner = allocate(program(stage(CHAIN), stage(sbuf("x") + "core.memset %x, 0.0", name="s1")), 3072 + 2048)
    found = addresses(module)
    assert found["x"] >= max(found[n] for n in "abcd") + 1024
    assert owner.statistics["sbuf peak"] == found["x"] + 1024 or owner.statistics["sbuf peak"] == found["x"] + 2048


def test_a_buffer_without_uses_vanishes() -> None:
    module, owner = allocate(program(stage(CHAIN + sbuf("unused", 100_000))))
    assert "unused" not in addresses(module)
    assert owner.statistics["buffers"] == 4


def test_alignment() -> None:
    """Small buffers are aligned to their size only."""
    text = program(stage(f"{sbuf('a', 40)} core.memset %a, 1.0 {sbuf('b', 40)} core.copy %b, %a"))
    assert addresses(allocate(text)[0]) == {"a": 0, "b": 320}
    assert addresses(allocate(text, alignment=128)[0]) == {"a": 0, "b": 384}
    text = program(stage(f"{sbuf('a', 1)} core.memset %a, 1.0 {sbuf('b', 1)} core.copy %b, %a"))
    assert addresses(allocate(text)[0]) == {"a": 0, "b": 8}


def test_what_does_not_pack_is_told_apart() -> None:
    """920 bytes are alive, but the second of the two begins at a multiple of 64."""
    run = f"{sbuf('a', 114)} {sbuf('b', 116)} core.memset %a, 1.0 core.copy %b[0, 0] [64, 114], %a"
    with pytest.raises(NeuronError) as caught:
        allocate(program(stage(run)), 960)
    assert (caught.value.needed, caught.value.available) == (512 + 456, 960)


# Slots


def nest(body: str, *trips: int) -> str:
    opened = "".join(f"affine.for %i{n} = 0 to {count} {{" for n, count in enumerate(trips))
    return opened + body + "}" * len(trips)


@pytest.mark.parametrize(
    "trips, options, slot",
    [
        ((5,), {}, "%i0 mod 2"),
        ((6,), {"depth": 3}, "%i0 mod 3"),
        ((2, 4), {}, "%i1 mod 2"),
        ((2, 3), {}, "(%i0 + %i1) mod 2"),
        ((4, 2), {"depth": 3}, "(%i0 * 2 + %i1) mod 3"),
        ((3, 1), {"depth": 4}, "(%i0 + %i1) mod 3"),
    ],
)
def test_slots_follow_each_other_over_all_loops(trips: tuple[int, ...], options: dict[str, int], slot: str) -> None:
    """Neighbouring iterations never share a slot; no more slots than iterations."""
    module, _ = allocate(program(stage(nest(sbuf("a") + "core.memset %a, 1.0", *trips))), **options)
    assert f"core.memset %a[0, {slot}, 0] [64, 1, 256], 1.0" in str(module)


def test_one_iteration_needs_one_slot() -> None:
    module, owner = allocate(program(stage(nest(sbuf("a") + "core.memset %a, 1.0", 1))))
    assert "core.memset %a, 1.0" in str(module)
    assert owner.statistics["rotating buffers"] == 0


def test_loops_with_steps_count_iterations() -> None:
    body = f"affine.for %i = 4 to 20 step 5 {{ {sbuf('a')} core.memset %a, 1.0 }}"
    assert "(%i - 4) floordiv 5" in str(allocate(program(stage(body)))[0])


def test_inner_loops_use_the_slot_of_the_alloc() -> None:
    body = nest(sbuf("a") + "affine.for %k = 0 to 3 { core.memset %a[0, %k] [64, 1], 1.0 }", 4)
    assert "core.memset %a[0, %i0 mod 2, %k] [64, 1, 1], 1.0" in str(allocate(program(stage(body)))[0])


def test_fewer_slots_before_spills() -> None:
    """Two slots of `a` and `b` do not fit; the larger gives one up."""
    body = nest(f"{sbuf('a')} {sbuf('b', 64)} core.memset %a, 1.0 core.memset %b, 1.0", 4)
    text = str(allocate(program(stage(body)), 1024 + 2 * 256)[0])
    assert "core.memset %a, 1.0" in text
    assert "core.memset %b[0, %i0 mod 2, 0] [64, 1, 64], 1.0" in text


def test_dma_gets_slots_enough_to_hide_its_latency() -> None:
    """Small tiles need more slots than large ones: 2 us pass before the first byte comes."""
    source = '%d = core.alloc "d" : memref<64x4096xbf16, #core.dram>'
    for columns, slots in ((32, 6), (4096, 3)):
        transfer = f"core.dma %d[0, 0] [64, {columns}] -> %a"
        body = nest(f"{sbuf('a', columns, element='bf16')} {transfer}", 997)
        module, _ = allocate(program(stage(body, resident=source)))
        (type,) = [op.type for op in module.walk() if isinstance(op, AllocOp) and op.label.data == "a"]
        assert type.get_shape()[1] == slots


# PSUM


def psum_local(*shape: int) -> Local:
    text = "x".join(map(str, shape))
    alloc = f'%a = core.alloc "a" : memref<{text}xf32, #core.psum>'
    module = parse(program(stage(f"{alloc} core.memset %a, 0.0")))
    (local,) = read_stage(next(op for op in module.walk() if isinstance(op, StageOp))).locals
    return local


@pytest.mark.parametrize(
    "shape", [(64, 512), (64, 500), (64, 8, 56), (64, 1, 4, 112), (64, 7, 7), (64, 14, 14), (64, 18, 28), (64, 1)]
)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_no_slot_crosses_a_bank(shape: tuple[int, ...], depth: int) -> None:
    bank = 2048
    local = psum_local(*shape)
    layout = bank_layout(local, depth, bank)
    if layout is None:
        assert depth > 1, "one slot always has a layout"
        return
    stride = 4
    for extent in layout.shape[1:]:
        stride *= extent
    assert all(a >= b for a, b in zip(layout.shape, shape, strict=True))
    for slot in range(depth):
        start = layout.lead + slot * stride
        assert start // bank == (start + local.bytes - 1) // bank
        assert start + stride <= layout.size or slot == depth - 1
    assert layout.lead + depth * stride <= layout.size
    assert layout.alignment == bank


def test_successive_groups_use_other_banks() -> None:
    """Four slots each: the second group need not wait for the first."""
    body = ""
    for group in range(4):
        body += f'affine.for %i{group} = 0 to 8 {{ %a{group} = core.alloc "a{group}" : memref<64x512xf32, #core.psum>'
        body += f" core.memset %a{group}, 0.0 }}"
    found = addresses(allocate(program(stage(body)))[0])
    assert [found[f"a{n}"] for n in range(4)] in ([0, 8192, 0, 8192], [8192, 0, 8192, 0])


def test_psum_overflow() -> None:
    body = "".join(f'%p{n} = core.alloc "p{n}" : memref<64x512xf32, #core.psum>' for n in range(9))
    body += "".join(f"core.memset %p{n}, 0.0 " for n in range(9)) * 2
    with pytest.raises(NeuronError, match="PSUM of core 0") as caught:
        allocate(program(stage(body)))
    assert (caught.value.needed, caught.value.available) == (9 * 2048, 16384)


# Spills and overflow

RESTS = f"""
  {sbuf("a")} core.memset %a, 1.0
  {sbuf("b")} core.memset %b, 2.0
  {sbuf("c")} core.copy %c, %b
  core.tensor_tensor add %c, %c, %b
  core.tensor_tensor add %c, %c, %a"""


def test_spill() -> None:
    module, owner = allocate(program(stage(RESTS)), 2048)
    assert owner.statistics["spilled buffers"] == 1
    assert owner.statistics["spilled bytes"] == 64 * 256 * 4
    (found,) = [op for op in module.walk() if isinstance(op, StageOp)]
    assert str(found.attributes["core.spills"]) == '["a"]'
    assert sum(isinstance(op, DmaOp) for op in module.walk()) == 2


def test_a_buffer_that_rests_twice_is_written_once() -> None:
    """It comes back unchanged, so the copy in DRAM still holds."""
    again = """
      %e = core.alloc "e" : memref<64x256xf32, #core.sbuf>
      core.memset %e, 3.0
      %f = core.alloc "f" : memref<64x256xf32, #core.sbuf>
      core.copy %f, %e
      core.tensor_tensor add %f, %f, %e
      core.tensor_tensor add %f, %f, %a"""
    module, owner = allocate(program(stage(RESTS + again)), 2048)
    assert owner.statistics["spilled buffers"] == 2
    assert owner.statistics["spilled bytes"] == 64 * 256 * 4
    assert sum(isinstance(op, DmaOp) for op in module.walk()) == 3


@pytest.mark.parametrize(
    "written, fits",
    [
        ("core.memset %a, 1.0", True),
        ("core.memset %a[0, 0] [64, 128], 1.0 core.memset %a[0, 128] [64, 128], 1.0", True),
        ("affine.for %i = 0 to 8 { core.memset %a[0, %i * 32] [64, 32], 1.0 }", True),
        (
            "affine.for %i = 0 to 2 { affine.for %j = 0 to 4 { core.memset %a[0, %i * 128 + %j * 32] [64, 32], 1.0 } }",
            True,
        ),
        ("core.memset %a[0, 0] [64, 255], 1.0", False),
        ("core.memset %a[0, 0] [32, 256], 1.0", False),
        ("affine.for %i = 0 to 8 { core.memset %a[0, %i * 32] [64, 31], 1.0 }", False),
        ("affine.for %i = 0 to 8 { core.memset %a[0, (%i mod 2) * 128] [64, 128], 1.0 }", False),
        ("core.memset %a[0, 0] [64, 128] [1, 2], 1.0", False),
    ],
)
def test_only_what_is_written_as_a_whole_is_spilled(written: str, fits: bool) -> None:
    """The checker would rightly complain of a transfer that reads what nobody wrote."""
    text = program(stage(RESTS.replace("core.memset %a, 1.0", written)))
    if fits:
        assert allocate(text, 2048)[1].statistics["spilled buffers"] == 1
        return
    with pytest.raises(NeuronError, match="does not fit"):
        allocate(text, 2048)


def test_overflow_says_where_and_what() -> None:
    run = f"""
      {sbuf("a", 64)} core.memset %a, 1.0
      {sbuf("big", 1000)} core.memset %big, 1.0 loc("conv7")
      core.tensor_scalar %big, %big op0 add 1.0 loc("relu7")
      core.tensor_tensor add %a, %a, %w[0, 0] [64, 64]"""
    with pytest.raises(NeuronError) as caught:
        allocate(program(stage(run, "core.memset %w, 1.0", sbuf("w", 512))), 4096)
    error = caught.value
    assert "stage @s0 does not fit the SBUF of core 0" in error.message
    assert "largest buffers there: 'big' 4000, 'w' 2048" in error.message, "'a' has been spilled by then"
    assert error.resource == "SBUF bytes per partition"
    assert (error.needed, error.available) == (4000 + 2048, 4096)
    assert error.location == "conv7" and error.op == "core.memset"
    assert error.advice is not None and "more cores" in error.advice


def test_spilled_transfers_have_the_location_of_their_neighbours() -> None:
    text = RESTS.replace("core.memset %a, 1.0", 'core.memset %a, 1.0 loc("first")')
    override = "core.machine_overrides = {sbuf.bytes_per_partition = 2048 : i64}"
    module = parse(
        f'builtin.module attributes {{core.machine = "inferentia1", {override}}} {{ {program(stage(text))} }}'
    )
    CoreAllocate().apply(make_context(), module)
    store = next(op for op in module.walk() if isinstance(op, DmaOp))
    assert location_text(store.location) == "first"


def test_dram_overflow() -> None:
    scratch = "".join(f'%d{n} = core.alloc "d{n}" : memref<1073741824xf32, #core.dram>' for n in range(3))
    with pytest.raises(NeuronError, match="DRAM of chip 0") as caught:
        allocate(program(stage("", resident=scratch)))
    assert caught.value.needed == 3 << 32


@pytest.mark.parametrize(
    "text, words",
    [
        ("pipe.program @p { }", "no core code"),
        ("func.func @main() { func.return }", "no core code"),
        (program(stage("core.engine vector { }", resident=sbuf("a"))), "scheduled already"),
    ],
)
def test_not_sequential_code(text: str, words: str) -> None:
    with pytest.raises(NeuronError, match=words):
        allocate(text)


def test_options_are_positive() -> None:
    with pytest.raises(NeuronError, match="at least 1"):
        allocate(program(stage(CHAIN)), depth=0)


def test_twice_is_the_same_as_once() -> None:
    """What has addresses keeps them."""
    module, _ = allocate(program(stage(CHAIN)), 2048)
    text = str(module)
    CoreAllocate().apply(make_context(), module)
    assert str(module) == text


def test_a_slot_dimension_joins_the_order_of_a_transfer() -> None:
    text = """
    pipe.program @turn {
      %y = pipe.ring "y" depth 2 on chip 0 : memref<2x4x8x2xf32, #core.dram>
      pipe.stage @s0 cores [0] (%y) {
      ^bb0(%out: memref<2x4x8x2xf32, #core.dram>):
        pipe.load {
        }
        pipe.run (%r) {
          affine.for %i = 0 to 4 {
            %a = core.alloc "a" : memref<2x8xf32, #core.sbuf>
            core.memset %a, 1.0
            core.dma %a -> %out[%r mod 2, %i, 0, 0] [1, 1, 8, 2] permute [1, 0]
          }
        }
      }
      pipe.output "y" from %y
    }
    """
    module, _ = allocate(text)
    module.verify()
    orders = [op.permutation() for op in module.walk() if isinstance(op, DmaOp)]
    assert orders == [(1, 2, 0)]
