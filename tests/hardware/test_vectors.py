"""Vector arithmetic against NumPy, with the instructions of this CPU and with portable ones."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from gmmcnn.hardware import vectors as v


@njit
def by_lane(x, y, results):
    n = 64 // x.itemsize
    for at in range(0, len(x), n):
        a, b = v.load(x, at), v.load(y, at)
        v.store(results[0], at, v.exp2(a))
        v.store(results[1], at, v.reciprocal(b))
        v.store(results[2], at, v.mantissa(b))
        v.store(results[3], at, v.exponent(b))
        v.store(results[4], at, v.fma(a, b, a) - v.fnma(a, b, b) * b / b)
        v.store(results[5], at, v.where(a < b, v.minimum(a, b), v.maximum(a, b)))


@njit
def over_lanes(x):
    a = v.load(x, 0)
    return v.total(a), v.product(a), v.any_lane(a > v.splat(x[3])), v.any_lane(a > a)


@njit
def part_of_array(x, first, count, result):
    v.prefetch(x, first)
    v.store(result, 0, v.load_first(x, first, count))


@njit
def sums_of_rows(x, result):
    n = 64 // x.itemsize
    rows = v.registers(v.load(x, 0))
    for i in range(n):
        rows[i] = v.load(x, i * n)
    v.store(result, 0, v.totals(rows, 0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lane_arithmetic(dtype):
    rng = np.random.default_rng(0)
    eps = np.finfo(dtype).eps
    x, y = (v.aligned_empty(4096, dtype) for _ in range(2))
    x[:] = rng.uniform(-100, 3, size=4096)
    y[:] = np.exp2(rng.uniform(-60, 60, size=4096))
    results = np.stack([v.aligned_empty(4096, dtype) for _ in range(6)])
    by_lane(x, y, results)
    fraction, power = np.frexp(y.astype(np.float64))
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(
        results[0], np.exp2(wide_x), rtol=4 * eps
    )  # polynomial 0.6, rounding of its steps the rest
    np.testing.assert_allclose(results[1], 1 / wide_y, rtol=2 * eps)
    np.testing.assert_array_equal(results[2], 2 * fraction)
    np.testing.assert_array_equal(results[3], power - 1)
    expected = (wide_x * wide_y + wide_x) - (wide_y - wide_x * wide_y)
    np.testing.assert_allclose(results[4], expected, rtol=8 * eps, atol=8 * eps * np.abs(wide_x * wide_y).max())
    np.testing.assert_array_equal(results[5], np.where(x < y, np.minimum(x, y), np.maximum(x, y)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp2_at_its_ends(dtype):
    x = v.aligned_empty(v.lanes(dtype), dtype)
    x[:] = 0
    x[:5] = [0, -1, -1e4, -np.inf, -2000]
    results = np.stack([v.aligned_empty(len(x), dtype) for _ in range(6)])
    by_lane(x, np.ones_like(x), results)
    np.testing.assert_allclose(results[0][:5], [1, 0.5, 0, 0, 0], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reductions(dtype):
    x = v.aligned_empty(v.lanes(dtype), dtype)
    x[:] = np.linspace(1, 2, len(x))
    total, product, some, none = over_lanes(x)
    assert total == pytest.approx(x.sum(dtype=np.float64), rel=1e-14)
    assert product == pytest.approx(x.prod(dtype=np.float64), rel=1e-14)
    assert some
    assert not none


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_part_of_a_vector(dtype):
    n = v.lanes(dtype)
    x, result = np.arange(3 * n, dtype=dtype), v.aligned_empty(n, dtype)
    for first, count in [(0, n), (5, 3), (3 * n - 1, 1), (3 * n, 0)]:  # the last two end with the array
        part_of_array(x, first, count, result)
        np.testing.assert_array_equal(result, np.pad(x[first : first + count], (0, n - count)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_many_vectors(dtype):
    n = v.lanes(dtype)
    x, result = v.aligned_empty(n * n, dtype), v.aligned_empty(n, dtype)
    x[:] = np.random.default_rng(0).integers(-1000, 1000, size=n * n)  # whole numbers: no rounding
    sums_of_rows(x, result)
    np.testing.assert_array_equal(result, x.reshape(n, n).sum(axis=1))


def test_arrays_are_aligned():
    for size in (1, 7, 64, 1000):
        assert v.aligned_empty(size, "float32").ctypes.data % 64 == 0


def test_portable_instructions_pass_the_same_tests():
    """On a CPU without AVX-512, which Numba is told this one is."""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "not portable"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout[-3000:]


@njit
def spread_over_lanes(x, index, result):
    v.store(result, 0, v.load_all(x, index))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_element_in_every_lane(dtype):
    x, result = v.aligned_empty(2 * v.lanes(dtype), dtype), v.aligned_empty(v.lanes(dtype), dtype)
    x[:] = np.arange(len(x))
    for index in (0, 3, len(x) - 1):
        spread_over_lanes(x, index, result)
        np.testing.assert_array_equal(result, x[index])
