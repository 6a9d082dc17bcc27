"""As much of CuPy as gmmcnn uses, over NumPy and the fiber device; ``install`` puts it in the place of ``cupy``.

Fresh memory holds garbage (NaN, or a byte pattern), and lies where freed memory lay, as a pool gives it out again.
Copies on a stream that nobody has waited for have not happened: they run when an event behind them is waited for, or
when :func:`let_time_pass` says so, whatever lies at their addresses by then; so that a missing wait shows. Memory is
counted against ``limits.total_bytes``.
"""

import ctypes
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_shim import device


class ndarray(np.ndarray):
    """A NumPy array that says it lies on a device."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.__array_interface__, "version": 3}

    def __array_finalize__(self, parent: Any) -> None:
        self._device = getattr(parent, "_device", None) or Device()

    @property
    def device(self) -> "Device":
        return self._device

    def set(self, values: np.ndarray, stream: "Stream | None" = None) -> None:
        source, target = _memory_of(values), _memory_of(self)
        (stream or get_current_stream()).submit(lambda: np.copyto(target, source))


class OutOfMemoryError(MemoryError):
    pass


class CUDARuntimeError(RuntimeError):
    pass


limits = SimpleNamespace(total_bytes=2**34, in_use=0, n_devices=1, allocations=0, multiprocessor_bytes=233472)


class _Pool:
    """Memory that was freed is given out again, the smallest piece that suffices; none goes back before the end."""

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []

    def take(self, n_bytes: int) -> np.ndarray:
        """An array of so many bytes, which are the pool's again once nothing refers to it."""
        with _one_at_a_time:
            return self._take(n_bytes)

    def _take(self, n_bytes: int) -> np.ndarray:
        sufficient = [i for i in reversed(range(len(self.free))) if len(self.free[i]) >= n_bytes]  # freed last, first
        chosen = min(sufficient, key=lambda i: len(self.free[i]), default=None)
        piece = np.empty(max(n_bytes, 1), np.uint8) if chosen is None else self.free.pop(chosen)
        taken = _memory_of(piece[:n_bytes])
        weakref.finalize(taken, self.free.append, piece)
        taken[:] = 0xFF  # NaN, -1, True
        return taken


_one_at_a_time = threading.RLock()  # threads of several devices share what stands in for them

pools = SimpleNamespace(device=_Pool(), pinned=_Pool())


def _memory_of(array: np.ndarray) -> np.ndarray:
    """Bytes of a contiguous array by their address, as a copy engine has them: nobody's reference keeps them."""
    address = array.__array_interface__["data"][0]
    return np.frombuffer((ctypes.c_uint8 * array.nbytes).from_address(address), np.uint8)


def let_time_pass() -> None:
    """Let every copy that is under way be done."""
    for stream in list(_lazy_streams):
        stream.synchronize()


def _count(array: np.ndarray) -> ndarray:
    with _one_at_a_time:
        if limits.in_use + array.nbytes > limits.total_bytes:
            raise OutOfMemoryError(f"{array.nbytes} bytes")
        limits.in_use += array.nbytes
        limits.allocations += 1
    on_device = array.view(ndarray)
    weakref.finalize(on_device, _release, array.nbytes)
    return on_device


def _release(n_bytes: int) -> None:
    with _one_at_a_time:
        limits.in_use -= n_bytes


def empty(shape: Any, dtype: Any = np.float64) -> ndarray:
    dtype = np.dtype(dtype)
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    return _count(pools.device.take(n_bytes).view(dtype).reshape(shape))


def zeros(shape: Any, dtype: Any = np.float64) -> ndarray:
    fresh = empty(shape, dtype)
    fresh[...] = 0
    return fresh


class Stream:
    """Work that is done when somebody waits for it; the default stream does it at once."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.lazy, self.done = non_blocking, 0
        self.queue: list[Callable[[], None]] = []
        if non_blocking:
            _lazy_streams.append(self)  # its work goes on, whoever forgets it

    @classmethod
    def from_external(cls, foreign: Any) -> "Stream":
        version, pointer = foreign.__cuda_stream__()
        assert version == 0
        stream = cls()
        stream.ptr = pointer
        external_streams.append(pointer)
        return stream

    def submit(self, work: Callable[[], None]) -> None:
        self.queue.append(work)
        if not self.lazy:
            self.run(len(self.queue))

    def run(self, end: int) -> None:
        while self.done < end:
            self.done += 1
            self.queue[self.done - 1]()

    def wait_event(self, event: "Event") -> None:
        self.submit(event.synchronize)

    def synchronize(self) -> None:
        self.run(len(self.queue))

    def __enter__(self) -> "Stream":
        _streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _streams.pop()


class Event:
    def __init__(self) -> None:
        self.stream, self.position = Stream(), 0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or get_current_stream()
        self.position = len(self.stream.queue)

    def synchronize(self) -> None:
        self.stream.run(self.position)


_streams = [Stream()]
_lazy_streams: list[Stream] = []
external_streams: list[int] = []


def get_current_stream() -> Stream:
    return _streams[-1]


class Device:
    """A device by its number; without one, the current one of this thread."""

    def __init__(self, index: int | None = None) -> None:
        self.id = _current_devices()[-1] if index is None else index
        self.attributes = {"MaxSharedMemoryPerMultiprocessor": limits.multiprocessor_bytes, "MultiProcessorCount": 132}
        self.mem_info = (limits.total_bytes - limits.in_use, limits.total_bytes)
        self.compute_capability = "90"

    def __enter__(self) -> "Device":
        _current_devices().append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        _current_devices().pop()


_of_thread = threading.local()


def _current_devices() -> list[int]:
    """Numbers of the devices that this thread has entered, the current one last."""
    if not hasattr(_of_thread, "devices"):
        _of_thread.devices = [0]
    return _of_thread.devices


class RawModule(device.RawModule):
    """Kernels of one device, which reach the memory of no other one."""

    def get_function(self, name: str) -> device.Kernel:
        return _Kernel(self, super().get_function(name).name)


class _Kernel(device.Kernel):
    def __call__(self, grid: Any, block: Any, args: Sequence[Any], **options: Any) -> None:
        here = Device().id
        for array in args:
            if isinstance(array, ndarray) and array.device.id != here:
                raise CUDARuntimeError(f"cudaErrorIllegalAddress: memory of device {array.device.id} on device {here}")
        with _one_at_a_time:
            launched.append((here, self.name))
            super().__call__(grid, block, args, **options)


launched: list[tuple[int, str]] = []
"""Device and name of the kernels launched so far."""


def _device_count() -> int:
    if limits.n_devices == 0:
        raise CUDARuntimeError("cudaErrorInsufficientDriver")
    return limits.n_devices


def _on_device(function: Callable[..., np.ndarray]) -> Callable[..., ndarray]:
    return lambda *args, **kwargs: _count(np.array(function(*args, **kwargs)))


def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Make ``import cupy`` find this module's names until the test ends."""
    from gmmcnn.hardware import kernel_loader

    cupy = ModuleType("cupy")
    pool = SimpleNamespace(free_all_blocks=lambda: None, free_bytes=lambda: 0)
    runtime = SimpleNamespace(
        getDeviceCount=_device_count, CUDARuntimeError=CUDARuntimeError, runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000, getDeviceProperties=lambda _: {"name": b"fibers on a CPU"},
    )  # fmt: skip
    cuda = SimpleNamespace(
        runtime=runtime, Device=Device, Stream=Stream, Event=Event,
        get_current_stream=get_current_stream, alloc_pinned_memory=lambda n: pools.pinned.take(n),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )  # fmt: skip
    names: dict[str, Any] = {
        "__version__": "0", "ndarray": ndarray, "empty": empty, "cuda": cuda, "RawModule": RawModule,
        "get_default_memory_pool": lambda: pool, "get_default_pinned_memory_pool": lambda: pool,
        "asnumpy": lambda a: np.array(a, subok=False),
        "from_dlpack": lambda a: np.from_dlpack(a).view(ndarray),
        "ascontiguousarray": lambda a: a if a.flags.c_contiguous else _count(np.array(a)),
    }  # fmt: skip
    names["zeros"] = zeros
    for name in ("asarray", "arange", "maximum"):
        names[name] = _on_device(getattr(np, name))
    vars(cupy).update(names)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for name, value in {
        "n_devices": 1,
        "total_bytes": 2**34,
        "in_use": 0,
        "allocations": 0,
        "multiprocessor_bytes": 233472,
    }.items():
        monkeypatch.setattr(limits, name, value)
    _lazy_streams.clear()
    launched.clear()
    monkeypatch.setattr(pools, "device", _Pool())
    monkeypatch.setattr(pools, "pinned", _Pool())
    kernel_loader.clear()
    return cupy
