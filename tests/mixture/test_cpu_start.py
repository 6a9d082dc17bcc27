"""Random numbers, k-means++ and Lloyd: plain against compiled, and against what they are known to be."""

import numpy as np
import pytest
from numba import njit
from sklearn.cluster import KMeans

from gmmcnn.hardware.vectors import aligned_empty, lanes
from gmmcnn.mixture import cpu_start
from gmmcnn.mixture.initialise import kmeans_labels, kmeans_plusplus, lloyd
from gmmcnn.mixture.random_numbers import philox, uniforms


def test_philox_gives_the_published_numbers():
    """Known answers of Random123, the authors' own library (kat_vectors, philox4x32 10)."""
    ones = 0xFFFFFFFF
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(counter, key) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_draws_are_uniform_and_differ_by_every_part_of_their_address():
    base = {"seed": 3, "key": 5, "n_components": 4, "start": 0, "n_draws": 4000}
    draws = uniforms(**base)
    assert abs(draws.mean() - 0.5) < 0.02  # four standard errors
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.07
    for part in ("seed", "key", "n_components", "start"):
        for larger in (base[part] + 1, base[part] + 2**34) if part in ("seed", "key") else (base[part] + 1,):
            assert abs(np.corrcoef(draws, uniforms(**{**base, part: larger}))[0, 1]) < 0.07


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
    labels, nearest = aligned_empty(stride, dtype), aligned_empty(stride, dtype)
    centres, sums = np.empty(k * n_dims, dtype), np.empty(k * (n_dims + 1))
    dims = (0.0,) * n_dims
    cpu_start.kmeans_plusplus(
        rows, n_samples, stride, dims, k, np.uint64(seed), np.uint64(key), 0, centres, nearest, np.empty(stride)
    )
    cpu_start.lloyd(rows, n_samples, stride, dims, k, centres, labels, sums)
    assert (labels[n_samples:] == -1).all()
    return labels[:n_samples].astype(int)


@pytest.mark.parametrize(
    ("n_samples", "n_dims", "dtype"), [(77, 2, "float32"), (1100, 2, "float64"), (90, 3, "float64")]
)
def test_compiled_kmeans_gives_the_same_labels(n_samples, n_dims, dtype):
    for seed in range(6):
        points = np.random.default_rng(seed).normal(size=(n_samples, n_dims)).astype(dtype).astype(float)
        expected = kmeans_labels(points, 6, seed, 11, 0)
        np.testing.assert_array_equal(compiled_labels(points, 6, seed, 11, dtype), expected)


def test_lloyd_equals_scikit_learn_from_the_same_centres():
    points = np.random.default_rng(1).normal(size=(300, 2))
    points /= points.std()
    centres = kmeans_plusplus(points, 5, uniforms(0, 0, 5, 0, 13))
    expected = KMeans(5, init=centres, n_init=1, tol=1e-4).fit(points).labels_
    np.testing.assert_array_equal(lloyd(points, centres), expected)


def test_kmeans_is_as_good_as_scikit_learns():
    points = np.random.default_rng(2).normal(size=(500, 2))

    def inertia(labels):
        return sum(((points[labels == k] - points[labels == k].mean(axis=0)) ** 2).sum() for k in set(labels))

    ours = [inertia(kmeans_labels(points, 8, seed, 0, 0)) for seed in range(30)]
    theirs = [KMeans(8, n_init=1, random_state=seed).fit(points).inertia_ for seed in range(30)]
    assert np.mean(ours) < 1.02 * np.mean(theirs)  # the standard error of either mean is about 1 %


def test_kmeans_plusplus_takes_distinct_points():
    points = np.repeat(np.arange(5.0), 20)[:, None] * [1.0, 2.0]
    for seed in range(20):
        centres = kmeans_plusplus(points, 5, uniforms(seed, 0, 5, 0, 13))
        assert len(np.unique(centres, axis=0)) == 5
        assert len(set(compiled_labels(points, 5, seed, 0, "float32"))) == 5
