"""The cost model, against numbers worked out by hand at 1 ns per cycle."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import cost, load_machine
from neuron_mlir.machine.topology import Link, chip_of, chips_used, links_between, smallest_instance

M = load_machine()


def test_matmul() -> None:
    assert cost.matmul_ps(M, 512) == (512_000, 60_000)
    assert cost.matmul_ps(M, 64) == cost.matmul_ps(M, 1) == (64_000, 60_000)
    assert cost.stationary_load_ps(M) == 32_000
    assert cost.stationary_exposed_ps(M, 0) == 32_000
    assert cost.stationary_exposed_ps(M, cost.matmul_ps(M, 1).occupancy) == 0


def test_lane_engines_and_semaphores() -> None:
    assert cost.engine_ps(M, "scalar", 512) == (572_000, 0)
    assert cost.engine_ps(M, "vector", 1) == (61_000, 0)
    fast = load_machine(overrides={"vector_engine.elements_per_lane_per_cycle": 2})
    assert cost.engine_ps(fast, "vector", 511) == (316_000, 0)
    assert cost.engine_ps(fast, "scalar", 511) == (571_000, 0)
    assert cost.semaphore_ps(M) == 50_000


def test_dma() -> None:
    assert cost.dma_bytes_charged(M, 2, 200) == 6400
    assert cost.dma_bytes_charged(M, 64, 128) == 128
    assert cost.dma_bytes_charged(M, 100, 200) == 256
    assert cost.dma_bytes_charged(M, 100, 250) == 320
    assert cost.dma_alone_ps(M, 24_000) == 2_000_000 + 1_000_000
    with pytest.raises(NeuronError, match="must be positive"):
        cost.dma_bytes_charged(M, 0, 5)


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_service_and_its_inverse(size: int, rate: int) -> None:
    time = cost.service_ps(size, rate)
    assert cost.bytes_within(time, rate) >= size
    assert time == 0 or cost.bytes_within(time - 1, rate) < size


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_charge_is_at_least_what_is_moved(run: int, runs: int) -> None:
    charged = cost.dma_bytes_charged(M, run, run * runs)
    assert run * runs <= charged < run * runs + 64 * runs


def test_gemm_at_full_rate_is_peak() -> None:
    work = cost.gemm_work(M, 1024, 1024, [1024])
    flops = 2 * 1024**3
    assert flops * 10**12 // work.tensor_ps == 2 * 128 * 64 * 10**9
    assert cost.gemm_work(M, 1, 1, [1]).tensor_ps == 64_000
    # 513 columns are moved as 257 and 256.
    assert cost.gemm_work(M, 129, 65, [513]).tensor_ps == 4 * 513 * 1000


def test_moving_tiles_are_whole_rows_of_even_height() -> None:
    assert cost.moving_tiles(M, [1, 56, 56]) == [1, 8, 56]
    assert cost.moving_tiles(M, [16, 7, 7]) == [8, 7, 7]
    assert cost.moving_tiles(M, [2, 600]) == [1, 300]
    assert cost.moving_columns(M, [3, 10, 100]) == [(6, 500)]
    assert cost.moving_columns(M, [1, 11, 100]) == [(2, 400), (1, 300)]


@given(st.lists(st.integers(1, 700), min_size=1, max_size=3))
def test_moving_tiles_cover_everything_once(extents: list[int]) -> None:
    tiles = cost.moving_columns(M, extents)
    assert sum(n * columns for n, columns in tiles) == math.prod(extents)
    assert all(1 <= columns <= 512 for _, columns in tiles)


def test_conv_is_a_product_per_tap() -> None:
    first = cost.gemm_work(M, 3, 64, [1, 112, 112], taps=49)
    assert first.tensor_ps == 49 * 112 * 112 * 1000
    late = cost.gemm_work(M, 512, 512, [1, 7, 7], taps=9)
    assert late.tensor_ps == 4 * 8 * 9 * 64 * 1000
    assert cost.gemm_work(M, 64, 64, [3, 10, 50]).tensor_ps == 3 * 500 * 1000


def test_work_adds_up() -> None:
    drain = cost.drain_work(M, "scalar", 65, [1024])
    assert drain.scalar_ps == 2 * 2 * 572_000
    lanes = cost.elementwise_work(M, "vector", 129, 2049, passes=3)
    assert lanes.vector_ps == 2 * 3 * 2109 * 1000
    both = (drain + lanes + cost.Work(dma_bytes=7)).times(2)
    assert both == cost.Work(0, 2 * drain.scalar_ps, 2 * lanes.vector_ps, 14)
    assert both.bottleneck_ps == both.vector_ps
    assert cost.Work(dma_bytes=10**9).bottleneck_ps == 0


def test_topology() -> None:
    assert [chip_of(M, c) for c in (0, 3, 4, 63)] == [0, 0, 1, 15]
    assert chips_used(M, [9, 1, 2, 8]) == [0, 2]
    assert links_between(M, 0, 3) == []
    assert links_between(M, 2, 9) == [Link(0, 1), Link(1, 2)]
    assert [link.name for link in links_between(M, 9, 2)] == ["link 2->1", "link 1->0"]
    assert [smallest_instance(M, c) for c in (1, 4, 5, 17)] == [
        "inf1.xlarge",
        "inf1.xlarge",
        "inf1.6xlarge",
        "inf1.24xlarge",
    ]
    with pytest.raises(NeuronError, match="cores: needs 65, has 64"):
        chip_of(M, 64)
    with pytest.raises(NeuronError, match="no instance"):
        smallest_instance(M, 65)
