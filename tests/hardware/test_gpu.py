"""Arrays that pass through device memory, on the emulated device; and how the absence of one is told."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cuda_shim import fake_cupy
from cuda_shim.fixtures import _emulated, fibers

from gmmcnn import config
from gmmcnn.errors import CaptureError, EngineError, EngineWarning
from gmmcnn.featuremaps import activation
from gmmcnn.hardware import gpu, kernel_loader
from gmmcnn.mixture import cuda
from gmmcnn.mixture.problem import MixtureSettings
from gmmcnn.principal_components import cuda as pca_cuda
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


@pytest.mark.parametrize("error", [fake_cupy.OutOfMemoryError(), MemoryError("std::bad_alloc: RMM failure")])
def test_memory_that_runs_out_halves_the_blocks_and_loses_none(fibers: Any, room: Any, error: MemoryError) -> None:
    room(8)
    sizes: list[int] = []

    def work(rows: slice, block: Any) -> np.ndarray:
        if len(block) > 2:
            raise error
        sizes.append(len(block))
        return fibers.asnumpy(block)

    np.testing.assert_array_equal(np.concatenate(gpu.map_blocks(ARRAY, ROW_BYTES, work)), ARRAY)
    assert sizes == [2] * 5 + [1]


def test_lack_of_host_memory_is_not_the_devices(fibers: Any) -> None:
    unable = np._core._exceptions._ArrayMemoryError((10,), np.dtype(float))

    def work(rows: slice, block: Any) -> None:
        raise unable

    with pytest.raises(MemoryError) as caught:
        gpu.map_blocks(ARRAY, ROW_BYTES, work)
    assert caught.value is unable


def out_of_memory_once(fibers: Any) -> list[np.ndarray]:
    """Work through the array where the first block runs out of memory, and copies take their time."""
    calls: list[int] = []

    def work(rows: slice, block: Any) -> np.ndarray:
        calls.append(len(block))
        taken = fibers.empty(100)
        if len(calls) == 1:
            raise fake_cupy.OutOfMemoryError
        assert len(taken)
        fake_cupy.let_time_pass()
        return fibers.asnumpy(block)

    return gpu.map_blocks(ARRAY, ROW_BYTES, work)


def test_nothing_of_a_try_that_failed_is_kept_when_memory_is_given_back(
    fibers: Any, room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.require()
    gc.collect()  # what earlier tests left is none of ours
    before, left = fake_cupy.limits.in_use, []
    monkeypatch.setattr(gpu, "_free_unused", lambda _: left.append(fake_cupy.limits.in_use - before))
    room(4)
    out_of_memory_once(fibers)
    assert left == [0]
    monkeypatch.setattr(gpu, "clear_frames", lambda traceback: None)
    out_of_memory_once(fibers)
    assert left[1] >= 800  # what the emulated device shows without


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


def test_an_array_is_worked_on_where_it_lies(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.limits, "n_devices", 2)
    keys, settings = np.arange(3, dtype=np.uint64), MixtureSettings(k_max=2)
    scores = np.random.default_rng(0).normal(size=(3, 60, 2))
    here = cuda.fit_mixtures(fibers.asarray(scores), keys, settings, {})
    with fibers.cuda.Device(1):
        elsewhere = fibers.asarray(scores)
    fake_cupy.launched.clear()
    there = cuda.fit_mixtures(elsewhere, keys, settings, {})
    assert {device for device, _ in fake_cupy.launched} == {1}
    np.testing.assert_array_equal(here.lower_bound, there.lower_bound)
    assert fibers.cuda.Device().id == 0
    message = r"cudaErrorIllegalAddress: memory of device 1 on device 0.*start again"
    with pytest.raises(EngineError, match=message), gpu.engine_errors():  # where nobody goes there
        cuda._fit_block(elsewhere, keys, settings, {})


@pytest.fixture
def two_devices(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Filters in host memory are shared out over two devices."""
    monkeypatch.setattr(fake_cupy.limits, "n_devices", 2)
    monkeypatch.setattr(gpu._shared, "n_devices", 1)  # as it was, afterwards
    gpu.require()
    fake_cupy.launched.clear()
    return fibers


@pytest.mark.parametrize("n_filters", [1, 2, 7])
@pytest.mark.parametrize("filters_per_block", [2, 100])
def test_two_devices_give_the_same_bits_as_one(
    two_devices: Any, monkeypatch: pytest.MonkeyPatch, n_filters: int, filters_per_block: int
) -> None:
    keys, settings = np.arange(n_filters, dtype=np.uint64), MixtureSettings(k_max=3)
    maps = np.random.default_rng(0).normal(size=(n_filters, 40, 6)).astype(np.float32)
    labels = {2: np.random.default_rng(1).integers(0, 2, (n_filters, 40)).astype(np.int8)}

    def fits() -> list[np.ndarray]:
        reduced = pca_cuda.pca_on_device(maps)
        fitted = cuda.fit_mixtures(reduced.scores, keys, settings, labels)
        return [*vars(reduced).values(), *activation.activation_statistics(maps, engine="cuda"), *vars(fitted).values()]

    one = fits()
    assert {device for device, _ in fake_cupy.launched} == {0}
    gpu.share_out(2)
    per_filter = cuda.bytes_per_filter(40, 2, settings)
    monkeypatch.setattr(gpu, "_free_bytes", lambda _: (filters_per_block + 0.5) * per_filter / gpu.FREE_MEMORY_SHARE)
    two = fits()
    assert {device for device, _ in fake_cupy.launched} == set(range(min(n_filters, 2)))
    for found, expected in zip(two, one, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_each_of_two_devices_halves_its_own_blocks(two_devices: Any, room: Any) -> None:
    gpu.share_out(2)
    room(4)
    sizes: dict[int, list[int]] = {0: [], 1: []}

    def work(rows: slice, block: Any) -> np.ndarray:
        device = two_devices.cuda.Device().id
        if device == 1 and len(block) > 2:
            raise fake_cupy.OutOfMemoryError
        sizes[device].append(len(block))
        return two_devices.asnumpy(block)

    np.testing.assert_array_equal(np.concatenate(gpu.map_blocks(ARRAY, ROW_BYTES, work)), ARRAY)
    assert sizes == {0: [4, 1], 1: [2, 2, 2]}


def test_a_filter_is_named_by_its_number_whichever_device_has_it(two_devices: Any) -> None:
    gpu.share_out(2)
    scores = np.random.default_rng(0).normal(size=(7, 40, 2))
    scores[5, 3] = np.nan
    with pytest.raises(CaptureError, match="filter 5, sample 3"):
        cuda.fit_mixtures(scores, np.arange(7, dtype=np.uint64), MixtureSettings(k_max=2), {})


def test_more_devices_than_there_are_is_an_error(two_devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"engine\.gpus=3: 2 CUDA devices are visible; CUDA_VISIBLE_DEVICES"):
        gpu.share_out(3)
    monkeypatch.setattr(fake_cupy.limits, "n_devices", 0)
    gpu.share_out(3)  # without any, which engine is taken tells more


def test_a_tensor_is_worked_on_in_the_current_stream_of_its_device(
    fibers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = {0: 10, 1: 11}
    current = lambda device=None: SimpleNamespace(cuda_stream=streams[device.index if device else 0])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_stream", current)
    tensor = SimpleNamespace(__cuda_array_interface__={}, device=torch.device("cuda", 1))
    with gpu.callers_stream(tensor):
        assert fibers.cuda.Device().id == 1
        assert fibers.cuda.get_current_stream().ptr == 11


class RMMError(Exception):
    """As rmm's: its library tells where it comes from."""

    __module__ = "rmm._lib"


AT_WORK = {
    "driver": (RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"), "start again"),
    "runtime": (fake_cupy.CUDARuntimeError("cudaErrorECCUncorrectable: uncorrectable ECC error"), "start again"),
    "gone": (fake_cupy.CUDARuntimeError("cudaErrorDevicesUnavailable: all devices are busy"), "may be busy"),
    "compiler": (RuntimeError("NVRTC_ERROR_COMPILATION (6)"), r"gmmcnn\[gpu-cu12\]"),
    "home": (PermissionError(13, "Permission denied", "/home/me/.cupy/kernel_cache/1"), "set CUPY_CACHE_DIR"),
    "pinned": (fake_cupy.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"), "free memory on it"),
    "cuML": (MemoryError("std::bad_alloc: out_of_memory: CUDA error"), "free memory on the device"),
    "rmm": (RMMError("maximum pool size exceeded: alloc"), "free memory on it"),
}


@pytest.mark.parametrize("fault", AT_WORK)
def test_what_fails_on_the_device_in_the_midst_of_work_is_an_engine_error(
    fibers: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    error, remedy = AT_WORK[fault]

    def fails(*given: Any, **options: Any) -> None:
        raise error

    gpu.require()
    for module in (cuda, pca_cuda, activation):
        monkeypatch.setattr(module, "kernel", fails)
    scores = fibers.asarray(ARRAY[None])
    for work in (
        lambda: cuda.fit_mixtures(scores, np.zeros(1, np.uint64), MixtureSettings(k_max=2), {}),
        lambda: pca_cuda.pca_on_device(ARRAY[None]),
        lambda: activation.activation_statistics(scores),
    ):
        with pytest.raises(EngineError, match=rf"engine=cuda: .*{remedy}.* or use engine=cpu"):
            work()


def test_errors_of_the_program_itself_are_not_taken_for_the_devices(fibers: Any) -> None:
    unable = np._core._exceptions._ArrayMemoryError((10,), np.dtype(float))
    for error in (ValueError("scores have shape (3,)"), RuntimeError("no idea"), unable, CaptureError("cuda")):
        with pytest.raises(type(error)) as caught, gpu.engine_errors():
            raise error
        assert caught.value is error


def test_doctor_tells_of_a_device_that_fails_later(fibers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.require()

    def fails(*given: Any, **options: Any) -> None:
        raise CompileException("nvrtc: error: out of registers")

    monkeypatch.setattr(cuda, "kernel", fails)
    text, code = run_doctor(config.Settings())
    assert code == 1
    assert "cuda      sweep   WRONG  engine=cuda: the device failed (CompileException: nvrtc: error" in text


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
    "home": (OSError(30, "Read-only file system", "/home/me/.cupy"), "set CUPY_CACHE_DIR to a folder that can be"),
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


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CuPy that cannot make its folder of compiled kernels, which it does when it is loaded."""
    package = tmp_path / "cupy"
    package.mkdir()
    (package / "__init__.py").write_text("raise PermissionError(13, 'Permission denied', '/home/me/.cupy')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setenv("CUPY_CACHE_DIR", "/home/me/.cupy")
    return tmp_path


def test_a_cupy_that_cannot_be_loaded_for_want_of_a_folder_says_what_to_do(homeless: Path) -> None:
    assert "kernels are kept in /home/me/.cupy: set CUPY_CACHE_DIR" in str(gpu.why_unavailable())
    assert gpu.resolved("auto") == "cpu"
    with pytest.raises(EngineError, match=r"cannot be loaded \(.*Permission denied.*set CUPY_CACHE_DIR to a folder"):
        gpu.require_loadable()


def test_the_command_line_says_so_too(homeless: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gmmcnn", "data=digits", f"run={homeless / 'run'}"],
        env={**os.environ, "PYTHONPATH": str(homeless)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "set CUPY_CACHE_DIR to a folder that can be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_kernels_of_the_emulated_device_are_forgotten_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in _emulated(monkeypatch):
        assert device is sys.modules["cupy"]
        kernel_loader.kernel("gmm_em", "standardise", DIMS=2, REAL="float", SCORE="float", MAX_K=16, RESIDENT=1)
        assert kernel_loader._module.cache_info().currsize == 1
    assert kernel_loader._module.cache_info().currsize == 0
