"""Where networks run: the device that ``device=`` names, and the ways of images to it and of feature maps from it.

Copies go through page-locked memory on streams of their own, beside the computation: images ahead of the forward pass
that needs them, maps behind the one that made them. Page-locked memory comes from torch's allocator, which gives a
piece out again once the copy that used it is done.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gmmcnn.errors import EngineError, EngineWarning, one_line
from gmmcnn.hardware.gpu import visible_devices

CPU = torch.device("cpu")

Tensors = tuple[Tensor, ...]


def chosen(name: str) -> torch.device:
    """The device of a name, made the current one for all that runs on GPUs in this thread.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "cuda:0", "cuda:1", …}
        ``auto`` is ``cuda`` where torch sees a device that does its work, else ``cpu``.

    Raises
    ------
    EngineError
        There is no such device, or it cannot be used; the message says what to do.

    Warns
    -----
    EngineWarning
        ``auto``, and a device is visible that cannot be used; once in a process.
    """
    if name == "cpu":
        return CPU
    if name == "auto" and not torch.cuda.is_available():
        return CPU
    device = torch.device("cuda" if name == "auto" else name)
    reason = _why_unusable(device)
    if reason and name == "auto":
        _warn_once(reason)
        return CPU
    if reason:
        raise EngineError(f"device={name}: {reason}; or use device=cpu")
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def title(device: torch.device) -> str:
    """Name of a device as a record has it: ``cpu``, or ``cuda:0, NVIDIA H200``."""
    if device.type != "cuda":
        return str(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    return f"cuda:{index}, {torch.cuda.get_device_name(index)}"


def wait(device: torch.device) -> None:
    """Wait until all that a device was given to do is done, as whoever takes the time must."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_of(model: nn.Module) -> torch.device:
    """Where a module's parameters lie; the CPU where it has none."""
    parameter = next(model.parameters(), None)
    return CPU if parameter is None else parameter.device


def uploaded(batches: Iterable[Tensors], device: torch.device) -> Iterator[Tensors]:
    """Batches of tensors on a device, each on its way there while the one before is worked on.

    Parameters
    ----------
    batches : iterable of tuples of Tensor
    device : torch.device

    Yields
    ------
    tuple of Tensor
        Only one batch more than the one in hand is asked for, and lies on the device.
    """
    if device.type != "cuda":
        for batch in batches:
            yield tuple(tensor.to(device) for tensor in batch)
        return
    beside, ahead = torch.cuda.Stream(device), deque[tuple[Tensors, torch.cuda.Event]]()
    for batch in batches:
        with torch.cuda.stream(beside):
            on_device = tuple(_begun(tensor, device) for tensor in batch)
            ahead.append((on_device, beside.record_event()))
        if len(ahead) > 1:
            yield _arrived(*ahead.popleft())
    while ahead:
        yield _arrived(*ahead.popleft())


def host_copy(tensor: Tensor) -> Callable[[], NDArray[np.float32]]:
    """Begin to copy a tensor to host memory, as float32 in C order.

    The tensor may be overwritten by whatever comes next on its stream.

    Returns
    -------
    callable
        Waits for the copy, in whatever thread, and returns it.
    """
    if not tensor.is_cuda:
        copy = tensor.to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format).numpy()
        return lambda: copy
    compact = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    beside = _download_stream(tensor.device)
    beside.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(beside):
        pinned = torch.empty(compact.shape, dtype=compact.dtype, pin_memory=True)
        pinned.copy_(compact, non_blocking=True)
        done = beside.record_event()
    compact.record_stream(beside)

    def arrived() -> NDArray[np.float32]:
        done.synchronize()
        return pinned.numpy()

    return arrived


def _begun(tensor: Tensor, device: torch.device) -> Tensor:
    source = tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()
    return source.to(device, non_blocking=True)


def _arrived(tensors: Tensors, event: torch.cuda.Event) -> Tensors:
    """Let the current stream wait for tensors, whose memory is its own from now on."""
    for tensor in tensors:
        current = torch.cuda.current_stream(tensor.device)
        current.wait_event(event)
        tensor.record_stream(current)
    return tensors


@cache
def _download_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _why_unusable(device: torch.device) -> str | None:
    """Why a CUDA device cannot be used, with what to do about it; None where it can."""
    if not torch.cuda.is_available():
        if not torch.backends.cuda.is_built():
            return f"this build of torch ({torch.__version__}) has no CUDA: install one that has (pytorch.org)"
        return f"torch sees no CUDA device; {visible_devices()} (gmmcnn task=doctor tells more)"
    n_devices = torch.cuda.device_count()
    if device.index is not None and device.index >= n_devices:
        return f"torch sees {n_devices} CUDA device{'s' * (n_devices > 1)}, counted from cuda:0; {visible_devices()}"
    return _why_broken(device)


@cache
def _why_broken(device: torch.device) -> str | None:
    """Why the first small piece of work on a device fails, as on a busy or exclusive one; None where it does not."""
    try:
        total = int(torch.arange(3, device=device).sum())
    except RuntimeError as error:  # torch's errors of the driver and of memory are of this kind
        return f"the CUDA device cannot be used ({one_line(error)}): nvidia-smi shows who uses it; {visible_devices()}"
    return None if total == 3 else f"the CUDA device computes wrong results ({total} for 3); do not use it"


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"device=auto: {reason}; the network runs on the CPU", EngineWarning, stacklevel=3)
