"""The way of rows to the emulated device, whose copies take their time."""

from typing import Any

import numpy as np
import pytest
from cuda_shim import fake_cupy
from cuda_shim.fixtures import fibers

from gmmcnn.hardware import gpu, upload

__all__ = ["fibers"]

N_ROWS, ROW_BYTES = 11, 40
ARRAY = np.random.default_rng(0).normal(size=(N_ROWS, ROW_BYTES // 8))


def blocks_of(cupy: Any, array: np.ndarray) -> np.ndarray:
    """What arrived of an array in blocks of four rows, joined."""
    return np.concatenate(gpu.map_blocks(array, ROW_BYTES, lambda _, block: cupy.asnumpy(block), max_rows=4))


@pytest.mark.parametrize("alone", [0, upload.COPIED_ALONE])
def test_page_locked_memory_has_a_fixed_size(fibers: Any, monkeypatch: pytest.MonkeyPatch, alone: int) -> None:
    """Whatever passes through it: many rows in a piece, a row in many pieces, rows that are not contiguous."""
    monkeypatch.setattr(upload, "COPIED_ALONE", alone)
    locked: list[int] = []
    take = fake_cupy.pools.pinned.take
    monkeypatch.setattr(fibers.cuda, "alloc_pinned_memory", lambda n: locked.append(n) or take(n))
    strided = np.repeat(ARRAY, 2, axis=1)[:, ::2]
    for array in (ARRAY, strided, ARRAY.astype(np.float32), ARRAY.reshape(11, 1, 5)):
        for staging in (2 * 8, 2 * 24, 2 * ROW_BYTES, 2 * ROW_BYTES * 3 + 8, 2**20):
            locked.clear()
            monkeypatch.setattr(upload, "STAGING_BYTES", staging)
            np.testing.assert_array_equal(blocks_of(fibers, array), array)
            assert sum(locked) <= min(staging, 2 * 4 * ROW_BYTES)
    assert upload.STAGING_BYTES == 2**20
    monkeypatch.undo()
    assert upload.STAGING_BYTES == 256 * 2**20


def interrupted_upload(monkeypatch: pytest.MonkeyPatch, fibers: Any) -> np.ndarray:
    """Work through the array where the first upload ends after one of its pieces, which is still under way."""
    whole, calls = upload._pieces, []

    def pieces(rows: np.ndarray, capacity: int) -> Any:
        calls.append(capacity)
        for piece in whole(rows, capacity):
            yield piece
            if len(calls) == 1:
                raise fake_cupy.OutOfMemoryError

    def work(rows: slice, block: Any) -> np.ndarray:
        own = fibers.zeros(4 * ROW_BYTES // 8)  # lies where the first buffer lay
        fake_cupy.let_time_pass()
        return fibers.asnumpy(block) + own.sum()

    monkeypatch.setattr(upload, "_pieces", pieces)
    fibers.empty(2 * ROW_BYTES // 8)  # is free for the buffer of the second try
    return np.concatenate(gpu.map_blocks(ARRAY, ROW_BYTES, work, max_rows=4))


def test_a_copy_under_way_when_memory_ran_out_writes_into_nothing_that_came_after(
    fibers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "STAGING_BYTES", 2 * ROW_BYTES)
    np.testing.assert_array_equal(interrupted_upload(monkeypatch, fibers), ARRAY)


def test_without_waiting_for_that_copy_rows_would_be_wrong(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulated device can show the fault that the test before would miss."""
    monkeypatch.setattr(upload.Upload, "finish", lambda upload: None)
    monkeypatch.setattr(upload, "STAGING_BYTES", 2 * ROW_BYTES)
    assert not np.array_equal(interrupted_upload(monkeypatch, fibers), ARRAY)
