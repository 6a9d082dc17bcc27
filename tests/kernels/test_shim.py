"""The emulated device itself: it computes what CUDA would, and its check mode finds what must not be."""

import numpy as np
import pytest
from cuda_shim.device import SCHEDULES, KernelError, RawModule, device

SUM_OF_ROWS = """
extern __shared__ __align__(16) unsigned char shared_memory[];
extern "C" __global__ void __launch_bounds__(128) sum_of_rows(
    const float* __restrict__ x, double* __restrict__ out, int n) {
    __shared__ int seen[4];
    double* sums = (double*)shared_memory;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[(size_t)blockIdx.x * n + i];
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (lane == 0) sums[warp] = sum;
    if (lane == 0) seen[warp] = warp;
    __syncthreads();
    if (threadIdx.x > 0) return;
    sum = 0;
    for (int w = 0; w < blockDim.x / 32; w++) sum += sums[seen[w]];
    out[blockIdx.x] = sum;
}
"""

PLANTED = {
    "missing barrier": ("    __syncthreads();\n", "", "race|uninitialised"),
    "past shared memory": ("sums[warp] = sum;", "sums[warp + 1] = sum;", "out of bounds.*shared memory"),
    "past an array": ("i < n; i", "i <= n; i", "out of bounds.*argument 0"),
    "write past an array": ("out[blockIdx.x] = sum", "out[blockIdx.x + 1] = sum", "out of bounds.*argument 1"),
    "write to an input": ("out[blockIdx.x] = sum", "((float*)x)[0] = sum", "write to a read-only array"),
    "divergent barrier": (
        "    __syncthreads();\n",
        "    __syncthreads();\n    if (warp == 0) __syncthreads();\n",
        "divergent",
    ),
    "two barriers": (
        "    __syncthreads();\n",
        "    if (warp == 0)\n        __syncthreads();\n    else\n        __syncthreads();\n",
        "divergent barrier",
    ),
    "divergent shuffle": ("    for (int lanes = 16;", "    if (lane < 31) for (int lanes = 16;", "divergent"),
    "unwritten static memory": ("seen[warp] = warp;", "seen[0] = warp;", "race|uninitialised"),
    "two blocks, one number": ("out[blockIdx.x] = sum", "out[0] = sum", "race"),
    "misaligned vector": (
        "sum += x[(size",
        "sum += ((const float2*)(x + 1))->x + x[(size",
        "misaligned|undefined behaviour",
    ),
}


def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 301)).astype(np.float32)


def launch(source: str, x: np.ndarray) -> np.ndarray:
    out = np.full(len(x), np.nan)
    kernel = RawModule(source).get_function("sum_of_rows")
    kernel((len(x),), (128,), (x, out, np.int32(x.shape[1])), shared_mem=32)
    return out


@pytest.mark.parametrize("check", [False, True])
def test_sums_are_right_and_bitwise_equal_under_every_schedule(check: bool) -> None:
    results = []
    for schedule in SCHEDULES:
        with device(schedule=schedule, check=check):
            results.append(launch(SUM_OF_ROWS, rows()))
    np.testing.assert_allclose(results[0], rows().sum(axis=1, dtype=np.float64), atol=1e-12)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


@pytest.mark.parametrize("name", PLANTED)
def test_check_mode_catches_planted_bugs(name: str) -> None:
    old, new, message = PLANTED[name]
    assert old in SUM_OF_ROWS
    with device(check=True), pytest.raises(KernelError, match=message):
        launch(SUM_OF_ROWS.replace(old, new), rows())


def test_a_missing_barrier_shows_without_the_check_mode_under_some_schedule() -> None:
    broken = SUM_OF_ROWS.replace("    __syncthreads();\n", "")
    wrong = []
    for schedule in SCHEDULES:
        with device(schedule=schedule):
            wrong.append(not np.array_equal(launch(broken, rows()), launch(SUM_OF_ROWS, rows())))
    assert any(wrong)


def test_warp_intrinsics_are_those_of_cuda() -> None:
    source = """
    extern "C" __global__ void intrinsics(const int* x, int* out) {
        int lane = threadIdx.x;
        out[lane] = __shfl_sync(0xffffffffu, x[lane], 5);
        out[32 + lane] = __shfl_up_sync(0xffffffffu, x[lane], 3);
        out[64 + lane] = __shfl_down_sync(0xffffffffu, x[lane], 3);
        out[96 + lane] = __shfl_xor_sync(0xffffffffu, x[lane], 6);
        out[128 + lane] = __ballot_sync(0xffffffffu, x[lane] > 100);
        out[160 + lane] = __shfl_down_sync(0xffffffffu, x[lane], 1, 8);
        out[192 + lane] = __any_sync(0xffffffffu, x[lane] > 100) + 2 * __all_sync(0xffffffffu, x[lane] > 100);
    }"""
    x = np.random.default_rng(0).integers(0, 200, 32).astype(np.int32)
    out = np.zeros((7, 32), np.int32)
    RawModule(source).get_function("intrinsics")((1,), (32,), (x, out))
    lane = np.arange(32)
    assert (out[0] == x[5]).all()
    assert (out[1] == x[np.where(lane < 3, lane, lane - 3)]).all()
    assert (out[2] == x[np.where(lane + 3 > 31, lane, lane + 3)]).all()
    assert (out[3] == x[lane ^ 6]).all()
    assert (out[4].view(np.uint32) == sum(1 << int(i) for i in np.flatnonzero(x > 100))).all()
    assert (out[5] == x[np.where(lane % 8 == 7, lane, lane + 1)]).all()
    assert (out[6] == (x > 100).any() + 2 * (x > 100).all()).all()


def test_atomics_add_up_over_blocks() -> None:
    source = 'extern "C" __global__ void count(int* total, float* sum) { atomicAdd(total, 2); atomicAdd(sum, 0.5f); }'
    total, sum_ = np.zeros(1, np.int32), np.zeros(1, np.float32)
    for check in (False, True):
        with device(check=check):
            RawModule(source).get_function("count")((5,), (64,), (total, sum_))
    assert total[0] == 2 * 2 * 5 * 64
    assert sum_[0] == 2 * 0.5 * 5 * 64


def test_launch_refuses_what_a_device_would_misread() -> None:
    kernel = RawModule(SUM_OF_ROWS).get_function("sum_of_rows")
    x, out, n = rows(), np.zeros(3), np.int32(301)
    with pytest.raises(TypeError, match="argument 0 is a float64 array, expected a contiguous float32 array"):
        kernel((3,), (128,), (x.astype(np.float64), out, n))
    with pytest.raises(TypeError, match="argument 0 is a float32 array, expected a contiguous"):
        kernel((3,), (128,), (x[:, ::2], out, n))
    with pytest.raises(TypeError, match="argument 2 is 301 \\(int\\), expected a int32 scalar"):
        kernel((3,), (128,), (x, out, 301))
    with pytest.raises(TypeError, match="2 arguments, expected 3"):
        kernel((3,), (128,), (x, out))
    with pytest.raises(ValueError, match="multiple of 32"):
        kernel((3,), (100,), (x, out, n))
    with pytest.raises(ValueError, match="50000 bytes of shared memory, but 49152 were opted in to"):
        kernel((3,), (128,), (x, out, n), shared_mem=50000)
    with pytest.raises(ValueError, match="empty or too large"):
        kernel((1, 70000), (128,), (x, out, n))
