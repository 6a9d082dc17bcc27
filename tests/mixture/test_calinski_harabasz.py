"""The index against scikit-learn's, its invariances, and the choice of K by it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import calinski_harabasz_score

from gmmcnn.constants import CH_ROUNDING, CH_TIE
from gmmcnn.mixture.calinski_harabasz import calinski_harabasz, choose_n_components

N, K = 9, 4
clusterings = st.tuples(
    arrays(np.float64, (2, N, 2), elements=st.integers(-1000, 1000).map(float)),
    arrays(np.int8, (2, N), elements=st.integers(0, K - 1)),
)


def test_a_hand_computed_index():
    """Two clusters of two samples, means -5 and 5: SSB = 100, SSW = 4, CH = (100 / 1) / (4 / 2) = 50."""
    scores = np.array([-6.0, -4.0, 4.0, 6.0]).reshape(1, 4, 1)
    assert calinski_harabasz(scores, np.array([[0, 0, 1, 1]]), 2) == 50.0
    assert calinski_harabasz(scores + 1e6, np.array([[0, 0, 1, 1]]), 2) == pytest.approx(50.0)


def test_float32_scores_are_summed_in_float64_and_left_as_they_are():
    scores = np.random.default_rng(0).normal(size=(2, 3000, 2)).astype(np.float32) + np.float32(1000)
    labels = np.random.default_rng(1).integers(0, 3, (2, 3000))
    before = scores.copy()
    expected = [calinski_harabasz_score(x.astype(float), y) for x, y in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(calinski_harabasz(scores, labels, 3), expected, rtol=1e-9)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_samples_that_are_all_alike_have_no_index(value):
    assert np.isnan(calinski_harabasz(np.full((1, 4, 2), value), np.array([[0, 0, 1, 1]]), 2)).all()


def test_filters_do_not_meet():
    """Of defined and undefined filters in one call, each gets its own."""
    scores = np.random.default_rng(0).normal(size=(3, 20, 2))
    labels = np.random.default_rng(1).integers(0, 3, (3, 20))
    labels[1] = 0
    together = calinski_harabasz(scores, labels, 3)
    alone = [calinski_harabasz(scores[f : f + 1], labels[f : f + 1], 3)[0] for f in range(3)]
    np.testing.assert_array_equal(together, alone)
    assert np.isnan(together).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("units", "perfect"), [(0.5, True), (2.0, False)])
def test_spread_within_is_rounding_below_some_units_of_the_last_place(dtype, units, perfect):
    """Clusters at ±1, each of two samples, each of them so many times ``CH_ROUNDING`` ε from its mean."""
    eps = float(np.finfo(dtype).eps)
    half = units * CH_ROUNDING * eps
    scores = np.array([-1 - half, -1 + half, 1 - half, 1 + half]).reshape(1, 4, 1)
    found = calinski_harabasz(scores, np.array([[0, 0, 1, 1]]), 2, precision=eps)[0]
    assert np.isposinf(found) == perfect
    if not perfect:
        assert found == pytest.approx(4 / (4 * half**2) * 2, rel=0.1 if dtype == "float64" else 1e-6)


def test_a_sample_far_out_does_not_make_the_spread_of_the_others_rounding():
    scores = np.random.default_rng(0).normal(size=(1, 200, 2)).astype(np.float32)
    scores[0, 7] = [3e7, 0]
    labels = np.zeros((1, 200), int)
    labels[0, 7] = 1
    assert np.isfinite(calinski_harabasz(scores, labels, 2)).all()
    scores[0, np.arange(200) != 7] = 1.5
    assert np.isposinf(calinski_harabasz(scores, labels, 2)).all()


def test_ties_are_of_a_share_of_the_index_not_of_its_size():
    large = np.array([[1e9, 1e9 + 0.5], [1e9, 1e9 + 2.0], [1e-9, 2e-9]])
    assert choose_n_components(large, 2).tolist() == [2, 3, 3]
    assert choose_n_components(large, 2).dtype == np.int32
    edge = np.array([[7.0 * (1 - CH_TIE), 7.0]])
    assert choose_n_components(edge, 2) == 2
    assert choose_n_components(np.nextafter(edge, [[0.0, 9.0]]), 2) == 3


def test_undefined_without_two_clusters_or_with_as_many_as_samples():
    scores = np.repeat(np.arange(4.0), 5).reshape(1, 20, 1)
    one_cluster, every_sample = np.zeros((1, 20), int), np.arange(20)[None]
    for labels in (one_cluster, every_sample):
        assert np.isnan(calinski_harabasz(scores, labels, 20)).all()


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e7])
def test_infinite_without_spread_within(offset):
    scores = np.repeat(np.arange(4.0), 5).reshape(1, 20, 1) + offset
    assert np.isposinf(calinski_harabasz(scores, np.repeat(np.arange(4), 5)[None], 20)).all()


def test_smallest_k_wins_a_tie_and_undefined_never_wins():
    index = np.array([[3.0, 5.0, 5.0 + 1e-12, 4.0], [np.nan, np.nan, 2.0, 1.0], [np.nan] * 4])
    np.testing.assert_array_equal(choose_n_components(index, 2), [3, 4, 0])


def test_the_fewest_perfectly_separated_clusters_win():
    index = np.array([[1e9, np.nan, np.inf, np.inf], [np.inf, 3.0, np.inf, 2.0]])
    np.testing.assert_array_equal(choose_n_components(index, 2), [4, 2])


@given(clusterings)
def test_equals_scikit_learn_with_any_clusters_empty(clustering):
    scores, labels = clustering
    index = calinski_harabasz(scores, labels, K)
    for found, filter_scores, filter_labels in zip(index, scores, labels, strict=True):
        clusters = [filter_scores[filter_labels == k] for k in set(filter_labels)]
        if 1 < len(clusters) < N and any(np.ptp(cluster, axis=0).any() for cluster in clusters):
            assert found == pytest.approx(calinski_harabasz_score(filter_scores, filter_labels), rel=1e-6)
        elif 1 < len(clusters) < N and np.ptp(filter_scores, axis=0).any():
            assert np.isposinf(found)
        else:
            assert np.isnan(found)


@given(clusterings, st.permutations(range(N)), st.permutations(range(K)), st.sampled_from([2.0**-40, 4.0, 2.0**60]))
def test_order_of_samples_names_of_clusters_and_unit_do_not_matter(clustering, samples, names, unit):
    scores, labels = clustering
    expected = calinski_harabasz(scores, labels, K)
    renamed = np.array(names, np.int8)[labels][:, samples]
    np.testing.assert_allclose(calinski_harabasz(unit * scores[:, samples], renamed, K), expected, rtol=1e-9)


@given(clusterings)
def test_slots_that_nobody_takes_do_not_matter(clustering):
    scores, labels = clustering
    expected = calinski_harabasz(scores, labels, K)
    np.testing.assert_array_equal(calinski_harabasz(scores, labels, K + 3), expected)
    np.testing.assert_array_equal(calinski_harabasz(scores, labels + np.int8(2), K + 2), expected)


@given(arrays(np.float64, (6, 5), elements=st.floats(1e-6, 1e12) | st.just(np.nan)), st.integers(2, 20))
def test_the_first_of_the_largest_wins_and_undefined_never_does(index, k_min):
    for chosen, row in zip(choose_n_components(index, k_min), index, strict=True):
        if np.isnan(row).all():
            assert chosen == 0
        else:
            best = row[chosen - k_min]
            assert best >= np.nanmax(row) * (1 - CH_TIE)
            assert not (row[: chosen - k_min] >= np.nanmax(row) * (1 - CH_TIE)).any()
