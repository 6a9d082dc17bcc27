"""Counts and floors of the cost model against counting by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.hardware import cost_model as cost

DEVICE = cost.Device("by hand", multiprocessors=10, clock_hz=1e9, bytes_per_second=1e12, shared_bytes=100 * 1024)


@pytest.mark.parametrize("n_dims", range(2, 9))
def test_a_further_dimension_adds_its_turn_of_every_loop(n_dims: int) -> None:
    """Offset, load and square of a row, its products below the diagonal; in the M-step two sums and d products."""
    (expect, maximise), (expect_less, maximise_less) = cost.em_instructions(n_dims), cost.em_instructions(n_dims - 1)
    whiten = 3 + (n_dims - 1)
    assert expect - expect_less == whiten
    assert maximise - maximise_less == whiten + 2 + n_dims
    assert cost.lloyd_instructions(n_dims) - cost.lloyd_instructions(n_dims - 1) == 2 * whiten


def test_in_two_dimensions_they_are_what_the_assembler_emits() -> None:
    assert cost.em_instructions(2) == (18, 27)
    assert cost.lloyd_instructions(2) == 35


@given(
    filters=st.integers(1, 50), samples=st.integers(1, 500), k_min=st.integers(2, 5), more=st.integers(0, 6),
    n_init=st.integers(1, 4),
)  # fmt: skip
def test_pairs_are_counted_over_filters_samples_components_and_starts(filters, samples, k_min, more, n_init) -> None:
    sweep = cost.Sweep(filters, samples, k_min=k_min, k_max=k_min + more, n_init=n_init)
    one_by_one = sum(1 for k in range(k_min, k_min + more + 1) for _ in range(k))
    assert sweep.pairs == filters * samples * n_init * one_by_one


def test_a_device_issues_four_warps_a_cycle_or_what_its_units_allow() -> None:
    assert DEVICE.instructions_per_second == 10 * 128 * 1e9
    few_units = cost.Device("few", 10, 1e9, 1e12, 100 * 1024, lanes=48)
    assert few_units.instructions_per_second == 10 * 64 * 1e9  # three of four instructions use those units


@pytest.mark.parametrize(
    ("stage", "seconds"),
    [
        (cost.Stage("arithmetic", 1, instructions=2 * 10 * 128 * 1e9, memory_bytes=1, link_bytes=1), 2),
        (cost.Stage("memory", 1, instructions=1, memory_bytes=3e12, link_bytes=1), 3),
        (cost.Stage("link", 0, instructions=1, memory_bytes=1, link_bytes=100e9), 4),
        (cost.Stage("host", 0, instructions=1, host_seconds=5), 5),
        (cost.Stage("launches", 10**6, instructions=1), 5),
    ],
)
def test_the_floor_is_that_of_the_slowest_part(stage: cost.Stage, seconds: float) -> None:
    assert stage.floor_seconds(DEVICE) == pytest.approx(seconds)


def test_stages_of_a_sweep_count_launches_bytes_and_instructions() -> None:
    sweep = cost.Sweep(7, 100, n_dims=2, k_min=2, k_max=4, n_init=3, em_iterations=10, lloyd_rounds=5)
    stages = {stage.name: stage for stage in cost.sweep_stages(sweep, itemsize=4)}
    assert list(stages) == ["upload", "standardise", "fit", "predict", "index and choice"]
    assert [stage.launches for stage in stages.values()] == [0, 1, 1, 1, 2]
    scores = 7 * 100 * 2 * 4
    assert stages["upload"].link_bytes == scores
    assert stages["standardise"].memory_bytes == 4 * scores
    assert stages["fit"].memory_bytes == 3 * scores
    assert stages["predict"].memory_bytes == 7 * 100 * 3
    assert stages["index and choice"].memory_bytes == 2 * 7 * 100 * 3 + scores
    iterations = 7 * 100 * 3 * (2 + 3 + 4) * (10 * (18 + 27) + 5 * 35)
    seeding = (5 * (4 + 9 + 16) + 50 * 9) * 7 * 100 * 3
    assert stages["fit"].instructions == (iterations + seeding) * 128 / 100  # two turns of 64 threads
    assert stages["predict"].instructions == 7 * 100 * 9 * 15


def test_stages_of_a_decomposition_read_the_maps_twice_a_round() -> None:
    upload, start, rounds = cost.pca_stages(3, 20, 50, rounds=6, itemsize=8)
    assert (upload.launches, start.launches, rounds.launches) == (0, 3, 18)
    assert upload.link_bytes == 3 * 20 * 50 * 8
    assert start.memory_bytes == 2 * upload.link_bytes
    assert rounds.memory_bytes == 12 * upload.link_bytes
    assert (start.instructions, rounds.instructions) == (10 * 3000, 20 * 3000 * 6)


@pytest.mark.parametrize(
    ("threads", "registers", "shared_bytes", "blocks"),
    [
        (256, 32, 0, 8),  # threads: 2048 of 256
        (128, 65, 0, 7),  # registers come in eights: 65536 over 72 · 128
        (128, 16, 30 * 1024, 3),  # 100 KiB over 30 KiB and the one that the system keeps
        (32, 16, 0, 32),  # never more
    ],
)
def test_resident_blocks_are_those_that_the_scarcest_resource_allows(threads, registers, shared_bytes, blocks) -> None:
    assert cost.resident_blocks(DEVICE, threads, registers, shared_bytes) == blocks


def test_a_smaller_device_holds_sixteen_blocks_at_most() -> None:
    t4 = next(device for device in cost.DEVICES if device.name == "T4")
    assert cost.resident_blocks(t4, 32, 16, 0) == 16


def test_the_devices_named_are_told_apart_by_name() -> None:
    assert len({device.name for device in cost.DEVICES}) == len(cost.DEVICES) >= 3


def test_lanes_without_a_sample_count_as_busy() -> None:
    assert cost.Sweep(1, 128).busy_lanes == 1
    assert cost.Sweep(1, 200).busy_lanes == 200 / 256
    even, ragged = (dict(zip("usfpi", cost.sweep_stages(cost.Sweep(64, n)), strict=True))["f"] for n in (192, 193))
    assert ragged.instructions / even.instructions == pytest.approx(256 / 192)


def test_a_store_adds_decoding_and_two_ways_to_the_device_and_smaller_blocks() -> None:
    sweep, maps = cost.Sweep(4096, 200), 4096 * 200 * 784 * 4
    live, stored = cost.way(sweep, 784), cost.way(sweep, 784, cores=2)
    assert [stage.name for stage in stored[:3]] == ["decode", "stage", "upload"]
    assert [stage.name for stage in stored[3:]] == [stage.name for stage in live]
    decode, staging, upload = stored[:3]
    assert decode.host_seconds == pytest.approx(maps / 0.35e9 / 2)
    assert staging.host_seconds == pytest.approx(2 * maps / 8e9)
    assert upload.link_bytes == 2 * maps
    n_live, n_stored = (next(stage.launches for stage in way if stage.name == "rounds") for way in (live, stored))
    assert n_live == 24 * -(-maps // (512 * 2**20))
    assert n_stored == 24 * -(-maps // (64 * 2**20))
    assert [stage.memory_bytes for stage in stored[3:]] == [stage.memory_bytes for stage in live]
