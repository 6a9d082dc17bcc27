"""The GPU: whether one answers, whose stream work goes to, and how a large array passes through its memory in blocks.

CuPy is imported when a device is first asked for, so that everything else works without it.
"""

import os
import re
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from traceback import clear_frames
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gmmcnn.errors import EngineError, EngineWarning, GmmcnnError, one_line
from gmmcnn.hardware.kernel_loader import kernel
from gmmcnn.hardware.upload import Upload

FREE_MEMORY_SHARE = 0.6
"""Share of the free device memory that one block may take: allocators round up, and others use the device too."""

_shared = SimpleNamespace(n_devices=1)
"""Over how many devices rows in host memory are shared out."""

_DEVICE_LIBRARIES = ("cupy", "cupy_backends", "cuml", "rmm", "pylibraft")
_SAYS_DEVICE = re.compile(r"cuda(?!_shim)|\brmm\b|\braft\b|nvrtc|cupy", re.IGNORECASE)
_LOST = ("illegal", "misaligned", "launch failure", "launchfailure", "launchtimeout", "launch timed out", "ecc")
"""Words of errors after which CUDA refuses every further call of a process."""

T = TypeVar("T")


def why_unavailable() -> str | None:
    """Why no device can be used, in one line that says what to do; None where one is there and does its work."""
    return _why_absent() or _why_broken(sys.modules["cupy"])


def _why_absent() -> str | None:
    """Why no device is visible; None where one is."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}): install gmmcnn[gpu-cu12] or gmmcnn[gpu-cu13], as the driver allows"
    except OSError as error:
        return f"CuPy cannot be loaded ({one_line(error)}); {_remedy(error)}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no CUDA device answers ({error}); {visible_devices()}"
    return None if count else f"no CUDA device is visible; {visible_devices()}"


def require_loadable() -> None:
    """Load CuPy, where it is installed, ahead of other libraries that do so on their own.

    Raises
    ------
    EngineError
        It cannot make its folder of compiled kernels; the message says what to do.
    """
    try:
        import cupy  # noqa: F401
    except ImportError:
        return
    except OSError as error:
        raise EngineError(_why_absent()) from error


def is_available() -> bool:
    """Whether a CUDA device is there and does its work."""
    return why_unavailable() is None


@cache
def _why_broken(cupy: Any) -> str | None:
    """Why the device that is visible cannot do the engine's work; None where it can.

    A small kernel is compiled and run, and its result compared: that takes about a second once in a process, and tells
    of a busy or exclusive device, of one that the compiler does not know any more, of a missing compiler, and of a
    device without memory, before any work is spent on them.
    """
    index = np.array([[1.0, 3.0, 2.0], [np.nan, np.nan, np.nan]])
    try:
        found = cupy.empty(len(index), np.int32)
        choose = kernel("calinski_harabasz", "choose_n_components", DIMS=2, REAL="float")
        sizes = np.int32(2), np.int32(index.shape[1]), np.int32(len(index))
        choose((1,), (32,), (cupy.asarray(index), *sizes, found))
        chosen = cupy.asnumpy(found).tolist()
    except Exception as error:  # noqa: BLE001 - of the driver, the runtime, the compiler or an allocator
        return f"the CUDA device cannot be used ({type(error).__name__}: {one_line(error)}); {_remedy(error)}"
    return None if chosen == [3, 0] else f"the CUDA device computes wrong results ({chosen} for [3, 0]); do not use it"


def _remedy(error: Exception) -> str:
    """What to do about a device that fails, by what it says."""
    said = f"{type(error).__name__} {error}".lower()
    if any(word in said for word in _LOST):
        return "this process can use it no more: start again, what is finished is kept"
    if isinstance(error, OSError) and error.filename:
        return f"compiled kernels are kept in {cache_folder()}: set CUPY_CACHE_DIR to a folder that can be written"
    if "memory" in said or "alloc" in said:
        return "free memory on it (nvidia-smi shows who uses it)"
    if "compile" in said or "nvrtc" in said or "architecture" in said or "library" in said:
        return "CuPy and its NVRTC must be made for this driver and device: gmmcnn[gpu-cu12] or gmmcnn[gpu-cu13]"
    return f"it may be busy, or exclusive to another process (nvidia-smi shows); {visible_devices()}"


def resolved(engine: str) -> str:
    """Turn ``auto`` into ``cuda`` where a device does its work and into ``cpu`` elsewhere; other names stay.

    Warns
    -----
    EngineWarning
        A device is visible and cannot be used; once in a process.
    """
    if engine != "auto":
        return engine
    if _why_absent():
        return "cpu"
    reason = why_unavailable()
    if reason:
        _warn_once(reason)
    return "cpu" if reason else "cuda"


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"engine=auto: {reason}; the CPU engine takes its place", EngineWarning, stacklevel=3)


def require() -> Any:
    """Import CuPy.

    Raises
    ------
    EngineError
        No CUDA device answers; the message says why and names ``CUDA_VISIBLE_DEVICES``.
    """
    reason = why_unavailable()
    if reason is not None:
        raise EngineError(f"engine=cuda: {reason}; or use engine=cpu")
    import cupy

    return cupy


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn errors of the driver, the runtime, the compiler, allocators and cuML into EngineError.

    Serves as a decorator too.

    Raises
    ------
    EngineError
        The device failed in the midst of work; the message has what it said, and what to do.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, GmmcnnError) or not _is_of_device(error):
            raise
        raise EngineError(
            f"engine=cuda: the device failed ({type(error).__name__}: {one_line(error)}); {_remedy(error)}; "
            "or use engine=cpu"
        ) from error


def _is_of_device(error: Exception) -> bool:
    """Whether an error comes from the device: by the library that raised it, or by what it says."""
    library = type(error).__module__.partition(".")[0]
    if library in _DEVICE_LIBRARIES:
        return True
    return library != "numpy" and (isinstance(error, MemoryError) or _SAYS_DEVICE.search(str(error)) is not None)


def is_device_array(array: Any) -> bool:
    """Whether an array (CuPy, torch, …) lies in device memory."""
    return hasattr(array, "__cuda_array_interface__")


def without_gradients(array: Any) -> Any:
    """What is read of an array: a tensor that requires gradients shows its memory only when it is detached."""
    return array.detach() if getattr(array, "requires_grad", False) else array


@contextmanager
def callers_stream(array: Any) -> Iterator[None]:
    """Launch on the device that holds the array and on the stream that its owner uses.

    That is torch's current stream for a torch tensor, and CuPy's for anything else.
    """
    cupy = require()
    if not is_device_array(array):
        yield
        return
    if isinstance(array, cupy.ndarray):
        with array.device:
            yield
        return
    import torch

    with (
        cupy.cuda.Device(array.device.index),
        _stream_at(cupy, torch.cuda.current_stream(array.device).cuda_stream),
    ):
        yield


def _stream_at(cupy: Any, pointer: int) -> Any:
    """A stream that another library made, as CuPy 14 takes it, or as the versions before did."""
    stream = cupy.cuda.Stream
    if hasattr(stream, "from_external"):
        return stream.from_external(_ForeignStream(pointer))
    return cupy.cuda.ExternalStream(pointer)


class _ForeignStream:
    """A stream that says where it is by the protocol of CUDA's Python libraries."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


def share_out(n_devices: int) -> None:
    """Let this process share out what lies in host memory over the first n visible devices; no result depends on it.

    Raises
    ------
    EngineError
        Devices are visible, but fewer.
    """
    if n_devices > 1 and _why_absent() is None:
        visible = sys.modules["cupy"].cuda.runtime.getDeviceCount()
        if n_devices > visible:
            raise EngineError(f"engine.gpus={n_devices}: {visible} CUDA devices are visible; {visible_devices()}")
    _shared.n_devices = n_devices


def map_blocks(array: Any, bytes_per_row: int, work: Callable[[slice, Any], T], max_rows: int | None = None) -> list[T]:
    """Work through an array, block of rows by block of rows, in device memory.

    Parameters
    ----------
    array : (F, …) array
        In host memory, from where blocks are uploaded (:mod:`gmmcnn.hardware.upload`), to several devices after
        :func:`share_out`; or in device memory, from where they are taken as they are.
    bytes_per_row : int
        Device memory that ``work`` needs for a row, the row itself included.
    work : callable
        ``work(rows, block)`` with the block, a C-contiguous CuPy array, in memory of the current device; of several
        devices, each calls it from a thread of its own.
    max_rows : int, optional
        Largest block; by default device memory alone decides.

    Returns
    -------
    list
        What ``work`` returned, in order.

    Raises
    ------
    EngineError
        Device memory does not suffice for a single row.
    """
    cupy = require()
    n_devices = 1 if is_device_array(array) else min(_shared.n_devices, len(array))
    if n_devices <= 1:
        return _map_rows(cupy, array, slice(0, len(array)), bytes_per_row, work, max_rows)
    bounds = [len(array) * i // n_devices for i in range(n_devices + 1)]

    def on_device(i: int) -> list[T]:
        with cupy.cuda.Device(i):
            return _map_rows(cupy, array, slice(bounds[i], bounds[i + 1]), bytes_per_row, work, max_rows)

    with ThreadPoolExecutor(n_devices) as pool:
        return [result for results in pool.map(on_device, range(n_devices)) for result in results]


def _map_rows(
    cupy: Any, array: Any, rows: slice, bytes_per_row: int, work: Callable[[slice, Any], T], max_rows: int | None
) -> list[T]:
    """:func:`map_blocks` of some rows, on the current device."""
    n_rows = rows.stop - rows.start
    block_rows = max(1, min(n_rows, max_rows or n_rows, int(FREE_MEMORY_SHARE * _free_bytes(cupy)) // bytes_per_row))
    finished: list[tuple[int, T]] = []
    while (done := finished[-1][0] if finished else rows.start) < rows.stop:
        try:
            _work_through(_blocks(cupy, array, slice(done, rows.stop), block_rows), work, finished)
        except MemoryError as error:  # CuPy's, or that of an allocator in its place
            if not _is_of_device(error):
                raise
            clear_frames(error.__traceback__)  # their variables hold memory of the try that failed
            _free_unused(cupy)
            if block_rows == 1:
                raise EngineError(
                    f"engine=cuda: one filter needs about {bytes_per_row / 2**20:.0f} MiB of device memory and "
                    f"{_free_bytes(cupy) / 2**20:.0f} MiB are free: free memory on the device, or use engine=cpu"
                ) from error
            block_rows = (block_rows + 1) // 2
    return [result for _, result in finished]


def _work_through(
    blocks: Generator[tuple[slice, Any], None, None], work: Callable[[slice, Any], T], finished: list[tuple[int, T]]
) -> None:
    """Append, block by block, where its rows end and what ``work`` returned."""
    with closing(blocks):
        for rows, block in blocks:
            finished.append((rows.stop, work(rows, block)))


def concatenate(blocks: list[tuple[NDArray, ...]]) -> tuple[NDArray, ...]:
    """Join the arrays of successive blocks, each with the others in its place."""
    return tuple(np.concatenate(arrays) for arrays in zip(*blocks, strict=True))


def shared_bytes_per_multiprocessor() -> int:
    """Shared memory of a multiprocessor of the current device, in bytes."""
    return int(require().cuda.Device().attributes["MaxSharedMemoryPerMultiprocessor"])


def _blocks(cupy: Any, array: Any, rows: slice, block_rows: int) -> Generator[tuple[slice, Any], None, None]:
    parts = [slice(i, min(i + block_rows, rows.stop)) for i in range(rows.start, rows.stop, block_rows)]
    if is_device_array(array):
        on_device = array if isinstance(array, cupy.ndarray) else cupy.from_dlpack(array)
        for part in parts:
            yield part, cupy.ascontiguousarray(on_device[part])
        return
    upload = Upload(cupy, array, block_rows)
    try:
        for part in parts:
            yield part, upload.block(part)
    finally:
        upload.finish()


def _free_unused(cupy: Any) -> None:
    """Give back to the device what the allocators of CuPy, and of torch where it uses the device, hold unused."""
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
    torch = sys.modules.get("torch")  # who has not loaded it, has nothing there
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _free_bytes(cupy: Any) -> int:
    """Free device memory, what CuPy's pool holds unused included."""
    return int(cupy.cuda.Device().mem_info[0] + cupy.get_default_memory_pool().free_bytes())


def cache_folder() -> str:
    """Where CuPy keeps compiled kernels for the next process."""
    return os.environ.get("CUPY_CACHE_DIR") or str(Path("~/.cupy/kernel_cache").expanduser())


def visible_devices() -> str:
    """What the environment says about which devices a process may see."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "CUDA_VISIBLE_DEVICES is not set" if value is None else f"CUDA_VISIBLE_DEVICES={value!r}"
