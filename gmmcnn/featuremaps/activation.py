"""How strongly and how often filters are active, from maps in host memory or on a CUDA device (``activation.cu``).

Both sum in float64, in an order that depends on nothing but the filter.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn.hardware import gpu
from gmmcnn.hardware.kernel_loader import kernel
from gmmcnn.hardware.threads import for_blocks

_THREADS = 256
Activation = tuple[NDArray[np.float64], NDArray[np.float64]]


def activation_statistics(maps: Any, threads: int | None = None, *, engine: str = "cpu") -> Activation:
    """How strongly and how often each filter is active.

    Parameters
    ----------
    maps : (F, N, P) float
        An array in host memory, or float32 or float64 on a device (CuPy, torch), where they stay.
    threads : int or None
        CPU threads; None takes all cores.
    engine : {"auto", "cpu", "cuda", "reference"}
        For maps in host memory; ``cuda`` takes them to the device, so that its results are the same for both.

    Returns
    -------
    mean_activation : (F,) float64
        Mean of the absolute values over samples and pixels: the mean, where the activation is never negative.
    active_share : (F,) float64
        Share of the samples whose map has a value above 0.
    """
    on_device = gpu.is_device_array(maps) or gpu.resolved(engine) == "cuda"
    return _on_device(maps) if on_device else _on_host(maps, threads)


def _on_host(maps: NDArray, threads: int | None) -> Activation:
    mean_activation, active_share = np.empty(len(maps)), np.empty(len(maps))

    def fill_in(first: int, last: int) -> None:
        for f in range(first, last):  # one by one: the order of summation depends on nothing but the filter
            mean_activation[f] = _magnitudes(np.ascontiguousarray(maps[f])).mean(dtype=np.float64)
            active_share[f] = (maps[f].max(axis=1) > 0).mean()

    for_blocks(fill_in, len(maps), threads)
    return mean_activation, active_share


def _magnitudes(values: NDArray) -> NDArray:
    """Absolute values, without a copy where nothing is negative: the maps of one filter may be large."""
    return np.abs(values) if values.min() < 0 else values


@gpu.engine_errors()
def _on_device(maps: Any) -> Activation:
    cupy = gpu.require()
    n_samples, n_pixels = tuple(maps.shape)[1:]

    def measure(_: slice, block: Any) -> tuple[NDArray, ...]:
        strength, active = cupy.empty(block.shape[:2], np.float64), cupy.empty(block.shape[:2], np.bool_)
        n_maps = len(block) * n_samples
        grid = math.ceil(n_maps / (_THREADS // 32))
        run = kernel("activation", "activation", REAL="float" if block.dtype == np.float32 else "double")
        run((grid,), (_THREADS,), (block, np.int32(n_maps), np.int32(n_pixels), strength, active))
        return cupy.asnumpy(strength), cupy.asnumpy(active)

    with gpu.callers_stream(maps):
        n_bytes = n_samples * (n_pixels * 8 + 9)
        strength, active = gpu.concatenate(gpu.map_blocks(maps, n_bytes, measure))
    return strength.mean(axis=1) / n_pixels, active.mean(axis=1)
