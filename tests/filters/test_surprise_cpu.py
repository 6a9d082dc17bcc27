"""Compiled sums over clusterings against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.filters import surprise, surprise_cpu

SUMS = {"rtol": 1e-12, "atol": 1e-10}
"""A few hundred numbers of size 1, added in another order."""


@given(
    n_clusterings=st.integers(0, 600),  # more than a byte counts, more than one block of a sum
    n_samples=st.integers(1, 40),
    n_clusters=st.sampled_from([1, 3, 10, 300]),  # and more clusters than a byte names
    n_classes=st.sampled_from([1, 2, 10]),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_are_those_of_the_definitions(n_clusterings, n_samples, n_clusters, n_classes, seed):
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, n_clusters, (n_clusterings, n_samples)).astype(np.int16)
    labels = rng.integers(0, n_classes, n_samples)  # some classes may have no sample
    np.testing.assert_array_equal(surprise_cpu.times_together(clusters), surprise.times_together(clusters))
    np.testing.assert_allclose(
        surprise_cpu.total_surprise(clusters, labels), surprise.total_surprise(clusters, labels), **SUMS
    )


@given(
    n_filters=st.integers(0, 6),
    n_repeats=st.integers(1, 4),
    n_samples=st.integers(1, 40),
    n_clusters=st.sampled_from([1, 3, 60]),
    seed=st.integers(0, 2**32 - 1),
)
def test_sizes_are_those_of_the_definition(n_filters, n_repeats, n_samples, n_clusters, seed):
    rng = np.random.default_rng(seed)
    live = rng.random((n_filters, n_repeats)) < 0.6
    clusters = rng.integers(0, n_clusters, (n_filters, n_repeats, n_samples)).astype(np.int16)
    clusters[~live] = -1
    found = [surprise_cpu.log_sizes(clusters, live, threads=threads) for threads in (1, 2)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0], surprise.log_sizes(clusters, live), rtol=1e-14)


@pytest.mark.parametrize("n_dims", [1, 2, 5])
def test_distances_are_those_of_the_definition(n_dims):
    points = np.random.default_rng(0).normal(size=(40, n_dims, 37)).astype(np.float32)
    found = [surprise_cpu.total_distances(points, threads=threads) for threads in (1, 2, 5)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[0], surprise.total_distances(points), rtol=1e-6)  # of float32 terms
    np.testing.assert_array_equal(found[0], found[0].T)


@pytest.mark.parametrize("pseudo_count", [1e-3, 1.0, 50.0])
def test_the_pseudo_count_is_that_of_the_definition(pseudo_count):
    rng = np.random.default_rng(0)
    clusters, labels = rng.integers(0, 7, (30, 50)), rng.integers(0, 4, 50)
    found, expected = (m.total_surprise(clusters, labels, pseudo_count=pseudo_count) for m in (surprise_cpu, surprise))
    np.testing.assert_allclose(found, expected, **SUMS)


@pytest.mark.parametrize("number", [256, 257, 1000])
def test_a_pair_that_is_always_together_is_counted_every_time(number):
    """A count that is kept in a byte may not start again from 0."""
    np.testing.assert_array_equal(surprise_cpu.times_together(np.zeros((number, 3), np.int16)), number)


def test_nothing_depends_on_threads_or_the_layout_of_clusterings():
    rng = np.random.default_rng(1)
    clusters, labels = rng.integers(0, 9, (700, 61)).astype(np.int16), rng.integers(0, 5, 61)
    for given_clusters in (clusters, np.asfortranarray(clusters), clusters.astype(np.int64)):
        for threads in (1, 2, 5):
            np.testing.assert_array_equal(
                surprise_cpu.total_surprise(given_clusters, labels, threads=threads),
                surprise_cpu.total_surprise(clusters, labels, threads=1),
            )
            np.testing.assert_array_equal(
                surprise_cpu.times_together(given_clusters, threads=threads), surprise.times_together(clusters)
            )


def test_labels_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="5 samples in the clusterings, 6 labels"):
        surprise_cpu.total_surprise(np.zeros((2, 5), int), np.zeros(6, int))
