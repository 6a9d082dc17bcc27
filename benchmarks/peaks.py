"""What this machine can do at most: fused multiply-adds, and bytes read."""

from typing import Any

from numba import njit
from numpy.typing import NDArray

from benchmarks import timing
from gmmcnn.hardware.threads import for_blocks
from gmmcnn.hardware.vectors import aligned_empty, fma, lanes, load, registers, splat, store, total

CHAINS = 12
"""Independent chains of instructions: enough to hide the latency of each."""


def multiply_add(repeats: int = 3_000_000) -> float:
    """Flops a second of one core in float32, a fused multiply-add counting 2."""
    n_lanes = lanes("float32")
    numbers = aligned_empty((CHAINS + 2) * n_lanes, "float32")
    numbers[:] = 0.5
    return 2 * CHAINS * n_lanes * repeats / timing.best(lambda: _multiply_add(repeats, numbers), 10)


@njit(nogil=True, error_model="numpy")
def _multiply_add(repeats: Any, numbers: Any) -> None:
    n = 64 // numbers.itemsize
    chains = registers(load(numbers, 0))
    factor, summand = load(numbers, CHAINS * n), load(numbers, (CHAINS + 1) * n)
    for i in range(CHAINS):
        chains[i] = load(numbers, i * n)
    for _ in range(repeats):
        for i in range(CHAINS):
            chains[i] = fma(chains[i], factor, summand)
    for i in range(CHAINS):
        store(numbers, i * n, chains[i])


def read_filters(maps: NDArray, passes: NDArray, threads: int) -> None:
    """Read the maps (F, …) of each filter as often as ``passes`` (F,) says, and do nothing else."""
    flat = maps.reshape(len(maps), -1)
    for_blocks(lambda first, last: _read(flat[first:last], passes[first:last]), len(maps), threads)


@njit(nogil=True, error_model="numpy")
def _read(flat: Any, passes: Any) -> Any:
    """Sum of everything read, so that no reading can be left out."""
    n = 64 // flat.itemsize
    result = 0.0
    sums = registers(splat(flat.dtype.type(0)))
    for f in range(len(flat)):
        row = flat[f]
        for _ in range(passes[f]):
            for i in range(CHAINS):
                sums[i] = splat(row.dtype.type(0))
            for p in range(0, len(row) - CHAINS * n + 1, CHAINS * n):
                for i in range(CHAINS):
                    sums[i] = sums[i] + load(row, p + i * n)
            for i in range(CHAINS):
                result += total(sums[i])
    return result
