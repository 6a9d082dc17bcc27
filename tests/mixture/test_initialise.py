"""k-means++ and Lloyd's iteration against scikit-learn, and by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import KMeans

from gmmcnn.constants import MAX_COMPONENTS
from gmmcnn.mixture import initialise
from gmmcnn.mixture.initialise import kmeans_labels, kmeans_plusplus, lloyd, n_candidates
from gmmcnn.mixture.random_numbers import uniforms

point_sets = arrays(np.float64, (30, 2), elements=st.floats(-10, 10, width=32))


def inertia(points, labels):
    """Sum of squared distances from the means of the clusters."""
    return sum(((points[labels == k] - points[labels == k].mean(axis=0)) ** 2).sum() for k in set(labels))


def test_candidates_are_those_of_scikit_learn():
    assert [n_candidates(k) for k in range(2, MAX_COMPONENTS + 1)] == [
        2 + int(np.log(k)) for k in range(2, MAX_COMPONENTS + 1)
    ]
    assert (n_candidates(2), n_candidates(3), n_candidates(8), n_candidates(32)) == (2, 3, 4, 5)


def test_the_first_centre_is_drawn_among_all_and_the_next_by_distance():
    """Points 0, 1, 3, 10; the first draw takes 1. Squared distances 1, 0, 4, 81 make cumulative sums 1, 1, 5, 86."""
    points = np.array([0.0, 1.0, 3.0, 10.0])[:, None]
    for draw, second in ((0.99 / 86, 0), (1.01 / 86, 3), (4.99 / 86, 3), (5.01 / 86, 10), (0.999, 10)):
        assert kmeans_plusplus(points, 2, np.array([0.49, draw, draw])).ravel().tolist() == [1, second]


def test_of_the_candidates_the_one_that_leaves_least_is_taken():
    points = np.array([0.0, 5.0, 5.1, -4.0])[:, None]
    to_five, to_minus_four = 0.1, 0.9  # cumulative squared distances from 0: 0, 25, 51.01, 67.01
    for draws in ((to_five, to_minus_four), (to_minus_four, to_five)):
        assert kmeans_plusplus(points, 2, np.array([0.0, *draws])).ravel().tolist() == [0, 5]


def test_where_all_points_are_alike_candidates_are_drawn_among_all(monkeypatch):
    chosen = []
    distances = initialise._squared_distances
    monkeypatch.setattr(initialise, "_squared_distances", lambda x, c: chosen.append(c.tolist()) or distances(x, c))
    assert kmeans_plusplus(np.ones((4, 1)), 2, np.array([0.1, 0.3, 0.99])).tolist() == [[1], [1]]
    assert [len(c) for c in chosen] == [1, 2]


@given(points=point_sets, k=st.integers(2, 6), seed=st.integers(0, 2**64 - 1))
def test_centres_are_points_and_never_more_alike_than_they_must_be(points, k, seed):
    centres = kmeans_plusplus(points, k, uniforms(seed, 0, k, 0, 1 + (k - 1) * n_candidates(k)))
    assert centres.shape == (k, 2)
    assert all((points == centre).all(axis=1).any() for centre in centres)
    assert len(np.unique(centres, axis=0)) == min(k, len(np.unique(points, axis=0)))


@given(points=point_sets, k=st.integers(2, 6), seed=st.integers(0, 100))
def test_lloyd_never_raises_the_inertia_and_ends_at_the_nearest_centre(points, k, seed):
    centres = kmeans_plusplus(points, k, uniforms(seed, 0, k, 0, 1 + (k - 1) * n_candidates(k)))
    before = ((points[:, None] - centres) ** 2).sum(axis=2).min(axis=1).sum()
    assert inertia(points, lloyd(points, centres)) <= before * (1 + 1e-12)


def test_a_sample_between_two_centres_goes_to_the_first_and_an_empty_one_stays():
    points = np.array([[-1.0], [0.0], [1.0]])
    assert lloyd(points, np.array([[-1.0], [1.0], [50.0]])).tolist() == [0, 0, 1]
    assert lloyd(points, np.array([[50.0], [1.0], [-1.0]])).tolist() == [2, 1, 1]


def test_lloyd_stops_when_centres_settle_or_at_its_cap(monkeypatch):
    rounds = []
    moved = initialise._moved
    monkeypatch.setattr(initialise, "_moved", lambda *arguments: rounds.append(1) or moved(*arguments))
    points = np.random.default_rng(0).normal(size=(500, 2))
    labels = lloyd(points, points[:7])
    settled = len(rounds)
    assert 3 < settled < initialise.LLOYD_MAX_ITER
    monkeypatch.setattr(initialise, "LLOYD_MAX_ITER", 2)
    rounds.clear()
    assert (lloyd(points, points[:7]) != labels).any()
    assert len(rounds) == 2
    rounds.clear()
    monkeypatch.setattr(initialise, "LLOYD_TOL", np.inf)
    lloyd(points, points[:7])
    assert len(rounds) == 1


def test_labels_are_those_of_the_address():
    points = np.random.default_rng(0).normal(size=(200, 2))
    n_draws = 1 + 4 * n_candidates(5)
    expected = lloyd(points, kmeans_plusplus(points, 5, uniforms(3, 4, 5, 6, n_draws)))
    np.testing.assert_array_equal(kmeans_labels(points, 5, 3, 4, 6), expected)


def test_lloyd_equals_scikit_learn_from_the_same_centres():
    points = np.random.default_rng(1).normal(size=(300, 2))
    points /= points.std()
    centres = kmeans_plusplus(points, 5, uniforms(0, 0, 5, 0, 13))
    expected = KMeans(5, init=centres, n_init=1, tol=1e-4).fit(points).labels_
    np.testing.assert_array_equal(lloyd(points, centres), expected)


def test_kmeans_is_as_good_as_scikit_learns():
    points = np.random.default_rng(2).normal(size=(500, 2))
    ours = [inertia(points, kmeans_labels(points, 8, seed, 0, 0)) for seed in range(30)]
    theirs = [KMeans(8, n_init=1, random_state=seed).fit(points).inertia_ for seed in range(30)]
    assert np.mean(ours) < 1.02 * np.mean(theirs)  # the standard error of either mean is about 1 %


def test_kmeans_plusplus_takes_distinct_points():
    points = np.repeat(np.arange(5.0), 20)[:, None] * [1.0, 2.0]
    for seed in range(20):
        assert len(np.unique(kmeans_plusplus(points, 5, uniforms(seed, 0, 5, 0, 13)), axis=0)) == 5
