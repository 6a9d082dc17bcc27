"""Random numbers, k-means++ and Lloyd, compiled: the same as the plain ones."""

import numpy as np
import pytest
from numba import njit

from gmmcnn.hardware.vectors import aligned_empty, lanes
from gmmcnn.mixture import cpu, cpu_start
from gmmcnn.mixture.cpu_layout import Samples
from gmmcnn.mixture.initialise import kmeans_labels
from gmmcnn.mixture.random_numbers import uniforms


def test_compiled_draws_are_the_same():
    @njit
    def draws(seed, key, n):
        return [cpu_start.uniform(seed, key, 7, 3, i) for i in range(n)]

    seed, key = 2**64 - 3, 2**40 + 12345
    np.testing.assert_array_equal(draws(np.uint64(seed), np.uint64(key), 9), uniforms(seed, key, 7, 3, 9))


def compiled_labels(points, k, seed, key, dtype):
    """Labels of k-means on the CPU engine."""
    n_samples, n_dims = points.shape
    stride = -(-n_samples // lanes(dtype)) * lanes(dtype)
    rows = aligned_empty(n_dims * stride, dtype)
    rows[:] = 0
    rows.reshape(n_dims, stride)[:, :n_samples] = points.T
    samples = Samples(rows, n_samples, stride, (0.0,) * n_dims)
    space = cpu.workspace(n_dims, k, stride, np.dtype(dtype))
    cpu_start.seed_centres(samples, k, np.uint64(seed), np.uint64(key), 0, space)
    cpu_start.lloyd(samples, k, space)
    assert (space.labels[n_samples:] == -1).all()
    return space.labels[:n_samples].astype(int)


@pytest.mark.parametrize(
    ("n_samples", "n_dims", "dtype"), [(77, 2, "float32"), (1100, 2, "float64"), (90, 3, "float64")]
)
def test_compiled_kmeans_gives_the_same_labels(n_samples, n_dims, dtype):
    for seed in range(6):
        points = np.random.default_rng(seed).normal(size=(n_samples, n_dims)).astype(dtype).astype(float)
        expected = kmeans_labels(points, 6, seed, 11, 0)
        np.testing.assert_array_equal(compiled_labels(points, 6, seed, 11, dtype), expected)


def test_distinct_points_are_taken():
    points = np.repeat(np.arange(5.0), 20)[:, None] * [1.0, 2.0]
    for seed in range(20):
        assert len(set(compiled_labels(points, 5, seed, 0, "float32"))) == 5
