"""Arrays that pass through device memory, on the emulated device; and how the absence of one is told."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cuda_shim import fake_cupy
from cuda_shim.fixtures import _emulated, fibers

from gmmcnn import config
from gmmcnn.errors import EngineError, EngineWarning
from gmmcnn.hardware import gpu, kernel_loader
from gmmcnn.run.doctor import run_doctor

__all__ = ["fibers"]

N_ROWS, ROW_BYTES = 11, 40
ARRAY = np.random.default_rng(0).normal(size=(N_ROWS, ROW_BYTES // 8))


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let so many rows fit into a block."""

    def of(rows: int) -> None:
        monkeypatch.setattr(gpu, "_free_bytes", lambda _: (rows + 0.5) * ROW_BYTES / gpu.FREE_MEMORY_SHARE)

    return of


def taken(cupy: Any, array: Any, **options: Any) -> tuple[list[int], np.ndarray]:
    """Sizes of the blocks, and what they held, joined."""
    sizes: list[int] = []

    def work(rows: slice, block: Any) -> np.ndarray:
        assert isinstance(block, cupy.ndarray)
        assert block.flags.c_contiguous
        assert len(block) == rows.stop - rows.start
        sizes.append(len(block))
        return cupy.asnumpy(block)

    return sizes, np.concatenate(gpu.map_blocks(array, ROW_BYTES, work, **options))


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1] * 11), (4, [4, 4, 3]), (5, [5, 5, 1]), (11, [11]), (99, [11])])
def test_blocks_are_as_large_as_memory_allows(fibers: Any, room: Any, rows: int, sizes: list[int]) -> None:
    room(rows)
    found, whole = taken(fibers, ARRAY)
    assert found == sizes
    np.testing.assert_array_equal(whole, ARRAY)


def test_a_caller_may_want_smaller_blocks(fibers: Any, room: Any) -> None:
    room(5)
    assert taken(fibers, ARRAY, max_rows=3)[0] == [3, 3, 3, 2]
    assert taken(fibers, ARRAY, max_rows=50)[0] == [5, 5, 1]


def test_where_nothing_seems_free_a_row_at_a_time_is_tried(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_free_bytes", lambda _: 0)
    sizes, whole = taken(fibers, ARRAY)
    assert sizes == [1] * N_ROWS
    np.testing.assert_array_equal(whole, ARRAY)


def test_rows_that_are_not_contiguous_arrive_as_they_are(fibers: Any, room: Any) -> None:
    room(4)
    strided = np.repeat(ARRAY, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(taken(fibers, strided)[1], ARRAY)
    on_device = fibers.asarray(np.repeat(ARRAY, 2, axis=1))[:, ::2]
    np.testing.assert_array_equal(taken(fibers, on_device)[1], ARRAY)


def test_what_lies_on_the_device_is_not_copied(fibers: Any, room: Any) -> None:
    room(4)
    gpu.require()  # tries the device once
    on_device = fibers.asarray(ARRAY)
    allocations = fake_cupy.limits.allocations
    assert taken(fibers, on_device)[0] == [4, 4, 3]
    assert fake_cupy.limits.allocations == allocations


def test_no_rows_give_no_results(fibers: Any) -> None:
    assert gpu.map_blocks(ARRAY[:0], ROW_BYTES, lambda rows, block: 1) == []


def test_memory_that_runs_out_halves_the_blocks_and_loses_none(fibers: Any, room: Any) -> None:
    room(8)
    sizes: list[int] = []

    def work(rows: slice, block: Any) -> np.ndarray:
        if len(block) > 2:
            raise fake_cupy.OutOfMemoryError
        sizes.append(len(block))
        return fibers.asnumpy(block)

    np.testing.assert_array_equal(np.concatenate(gpu.map_blocks(ARRAY, ROW_BYTES, work)), ARRAY)
    assert sizes == [2] * 5 + [1]


def out_of_memory_once(fibers: Any) -> list[np.ndarray]:
    """Work through the array where the first block runs out of memory, and copies take their time."""
    calls: list[int] = []

    def work(rows: slice, block: Any) -> np.ndarray:
        calls.append(len(block))
        if len(calls) == 1:
            raise fake_cupy.OutOfMemoryError
        fake_cupy.let_time_pass()
        return fibers.asnumpy(block)

    return gpu.map_blocks(ARRAY, ROW_BYTES, work)


def test_a_copy_under_way_when_memory_ran_out_writes_into_nothing_that_came_after(fibers: Any, room: Any) -> None:
    room(4)
    np.testing.assert_array_equal(np.concatenate(out_of_memory_once(fibers)), ARRAY)


def test_without_waiting_for_that_copy_rows_would_be_wrong(
    fibers: Any, room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulated device can show the fault that the test before would miss."""
    monkeypatch.setattr(gpu._Upload, "finish", lambda upload: None)
    room(4)
    assert not np.array_equal(np.concatenate(out_of_memory_once(fibers)), ARRAY)


def test_what_torch_holds_unused_is_given_back_before_another_try(
    fibers: Any, room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = []
    for name, value in {"is_available": lambda: True, "is_initialized": lambda: True}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append("torch"))
    monkeypatch.setattr(fibers.get_default_memory_pool(), "free_all_blocks", lambda: freed.append("CuPy"))
    room(4)
    out_of_memory_once(fibers)
    assert set(freed) == {"torch", "CuPy"}


def test_streams_of_others_are_taken_as_each_version_of_cupy_does(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu._stream_at(fibers, 17).ptr == 17
    old = SimpleNamespace(cuda=SimpleNamespace(Stream=object, ExternalStream=lambda pointer: ("external", pointer)))
    assert gpu._stream_at(old, 17) == ("external", 17)


def test_a_row_that_does_not_fit_is_named_with_its_size(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_free_bytes", lambda _: 3 * 2**20)

    def work(rows: slice, block: Any) -> None:
        raise fake_cupy.OutOfMemoryError

    with pytest.raises(EngineError, match=r"about 5 MiB of device memory and 3 MiB are free: .*use engine=cpu"):
        gpu.map_blocks(ARRAY, 5 * 2**20, work)


def test_free_memory_includes_what_the_pool_holds(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.limits, "total_bytes", 1000)
    monkeypatch.setattr(fake_cupy.limits, "in_use", 300)
    monkeypatch.setattr(fibers.get_default_memory_pool(), "free_bytes", lambda: 50)
    assert gpu._free_bytes(fibers) == 750


def test_blocks_are_joined_array_by_array() -> None:
    blocks = [(np.arange(3), np.ones((3, 2))), (np.arange(3, 4), np.zeros((1, 2)))]
    first, second = gpu.concatenate(blocks)
    assert first.tolist() == [0, 1, 2, 3]
    assert second.tolist() == [[1, 1]] * 3 + [[0, 0]]


def test_a_device_array_says_so_itself(fibers: Any) -> None:
    assert gpu.is_device_array(fibers.asarray(ARRAY))
    assert not gpu.is_device_array(ARRAY)
    assert not gpu.is_device_array([[1.0]])


def test_shared_memory_is_that_of_the_device(fibers: Any) -> None:
    assert gpu.shared_bytes_per_multiprocessor() == fake_cupy.limits.multiprocessor_bytes


def test_cupys_own_arrays_stay_on_cupys_stream(fibers: Any) -> None:
    streams = len(fake_cupy.external_streams)
    for array in (ARRAY, fibers.asarray(ARRAY)):
        with gpu.callers_stream(array):
            pass
    assert len(fake_cupy.external_streams) == streams


def test_auto_takes_the_device_that_answers_and_names_stay(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.is_available()
    assert [gpu.resolved(name) for name in ("auto", "cpu", "cuda", "reference")] == ["cuda", "cpu", "cuda", "reference"]
    monkeypatch.setattr(fake_cupy.limits, "n_devices", 0)
    assert not gpu.is_available()
    assert [gpu.resolved(name) for name in ("auto", "cuda")] == ["cpu", "cuda"]


class CompileException(Exception):
    """As CuPy's: no RuntimeError."""


FAULTS = {
    "busy": (RuntimeError("cudaErrorDevicesUnavailable: all CUDA-capable devices are busy"), "exclusive to another"),
    "old": (CompileException("nvrtc: error: invalid value for --gpu-architecture (-arch)"), r"gmmcnn\[gpu-cu12\]"),
    "no compiler": (OSError("libnvrtc.so.13: cannot open shared object file"), r"gmmcnn\[gpu-cu12\]"),
    "full": (fake_cupy.OutOfMemoryError("Out of memory allocating 512 bytes"), "free memory on it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_device_that_fails_is_told_once_and_the_cpu_takes_its_place(
    fibers: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    error, remedy = FAULTS[fault]
    tried = []

    def fails(*given: Any, **macros: Any) -> None:
        tried.append(given)
        raise error

    monkeypatch.setattr(gpu, "kernel", fails)
    gpu._warn_once.cache_clear()
    with pytest.warns(EngineWarning, match=rf"the CUDA device cannot be used \({type(error).__name__}: .*{remedy}"):
        assert gpu.resolved("auto") == "cpu"
    assert gpu.resolved("auto") == "cpu"  # and says nothing more
    with pytest.raises(EngineError, match=rf"engine=cuda: .*{remedy}.*; or use engine=cpu"):
        gpu.require()
    assert len(tried) == 1
    text, code = run_doctor(config.Settings(engine=config.Engine(name="cuda")))
    assert code == 1
    assert "cuda      not available: the CUDA device cannot be used" in text


def test_a_device_that_computes_wrong_results_is_not_used(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "kernel", lambda *given, **macros: lambda *launch: None)
    assert "computes wrong results ([-1, -1] for [3, 0])" in str(gpu.why_unavailable())


def test_each_kind_of_absence_is_told_with_what_to_do(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.why_unavailable() is None
    assert gpu.require() is fibers
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(fake_cupy.limits, "n_devices", 0)
    with pytest.raises(EngineError, match=r"engine=cuda: no CUDA device answers .* is not set; or use engine=cpu"):
        gpu.require()
    monkeypatch.setattr(fibers.cuda.runtime, "getDeviceCount", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert gpu.why_unavailable() == "no CUDA device is visible; CUDA_VISIBLE_DEVICES='3'"
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "install gmmcnn[gpu-cu12] or gmmcnn[gpu-cu13]" in str(gpu.why_unavailable())


def test_kernels_of_the_emulated_device_are_forgotten_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in _emulated(monkeypatch):
        assert device is sys.modules["cupy"]
        kernel_loader.kernel("gmm_em", "standardise", DIMS=2, REAL="float", SCORE="float", MAX_K=16, RESIDENT=1)
        assert kernel_loader._module.cache_info().currsize == 1
    assert kernel_loader._module.cache_info().currsize == 0
