"""Surprise and evidence against their definitions, spelled out sample by sample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist
from sklearn.linear_model import Ridge

from gmmcnn.filters.surprise import (
    cluster_evidence,
    label_surprise,
    log_sizes,
    map_evidence,
    memorisation_rank,
    of_unit_size,
    times_together,
    total_distances,
    total_surprise,
)


@pytest.fixture
def clustered():
    """Six clusterings of 40 samples of 3 classes, half of them by class but for two samples with wrong labels."""
    rng = np.random.default_rng(3)
    truth = np.arange(40) % 3
    by_class = np.where(rng.random((3, 40)) < 0.9, truth, rng.integers(0, 3, (3, 40)))
    labels = truth.copy()
    labels[[4, 11]] = (truth[[4, 11]] + 1) % 3
    return np.concatenate([by_class, rng.integers(0, 5, (3, 40))]), labels


def surprise_of(clusters, labels, sample, m):
    """Step 7 of the method for one sample and clustering."""
    share = (labels == labels[sample]).mean()
    members = [n for n in range(len(labels)) if clusters[n] == clusters[sample] and n != sample]
    alike = sum(labels[n] == labels[sample] for n in members)
    return -np.log((alike + m * share) / (len(members) + m)) + np.log(share)


@given(
    clusters=arrays(np.int16, (3, 12), elements=st.integers(0, 4)),
    labels=arrays(np.int64, 12, elements=st.integers(0, 3)),
    m=st.sampled_from([0.5, 5.0, 20.0]),
)
def test_surprise_is_that_of_the_definition(clusters, labels, m):
    expected = [[surprise_of(row, labels, n, m) for n in range(12)] for row in clusters]
    np.testing.assert_allclose(label_surprise(clusters, labels, pseudo_count=m), expected, atol=1e-12)


def test_total_is_the_sum_over_clusterings(clustered):
    clusters, labels = clustered
    expected = sum(label_surprise(row[None], labels)[0] for row in clusters)
    np.testing.assert_allclose(total_surprise(clusters, labels), expected)


def test_a_lone_sample_says_nothing():
    clusters, labels = np.array([[0, 1, 1, 1]]), np.array([0, 1, 1, 0])
    assert label_surprise(clusters, labels)[0, 0] == 0


def test_wrong_labels_surprise_where_clusters_follow_the_class(clustered):
    clusters, labels = clustered
    surprise = label_surprise(clusters, labels)[:3].mean(axis=0)
    assert set(np.argsort(surprise)[-2:]) == {4, 11}


def test_sizes_are_means_over_the_repeats_that_there_are():
    clusters = np.array([[[0, 0, 0, 1], [0, 1, 1, 1], [-1, -1, -1, -1]], [[-1] * 4] * 3])
    live = np.array([[True, True, False], [False] * 3])
    expected = np.log([[3, 3, 3, 1], [1, 3, 3, 3]]).mean(axis=0)
    np.testing.assert_allclose(log_sizes(clusters, live), [expected, [np.inf] * 4])


def test_times_together_counts_shared_clusters(clustered):
    clusters, _ = clustered
    expected = (clusters[:, :, None] == clusters[:, None, :]).sum(axis=0)
    np.testing.assert_array_equal(times_together(clusters), expected)


def test_evidence_is_what_a_regression_without_the_sample_predicts(clustered):
    clusters, labels = clustered
    evidence = cluster_evidence(times_together(clusters), labels, ridge=0.3, sharpness=5.0)
    separated = (clusters[:, :, None] != clusters[:, None, :]).mean(axis=0)
    kernel = np.exp(-5.0 * separated)
    # The centre is that of all samples, as in the hat matrix; what is left out is the sample's label.
    centring = np.eye(len(labels)) - 1 / len(labels)
    centred = centring @ kernel @ centring
    size, directions = np.linalg.eigh(centred)
    features = directions * np.sqrt(np.maximum(size, 0))
    for sample in (0, 4, 11, 39):
        rest = np.arange(len(labels)) != sample
        model = Ridge(alpha=0.3 * np.trace(centred) / len(labels)).fit(features[rest], np.eye(3)[labels[rest]])
        np.testing.assert_allclose(evidence[sample], model.predict(features[[sample]])[0], atol=1e-8)


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_maps_of_unit_size_do_not_depend_on_their_units(scale, shift):
    scores = np.random.default_rng(0).normal(size=(3, 20, 2))
    points = of_unit_size(scores)
    np.testing.assert_allclose((points.astype(float) ** 2).sum(axis=1).mean(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(of_unit_size(scale * scores + shift), points, atol=1e-5)
    assert of_unit_size(np.ones((1, 5, 2))).tolist() == np.zeros((1, 2, 5)).tolist()


def test_distances_are_those_of_scipy():
    points = np.random.default_rng(0).normal(size=(4, 3, 15)).astype(np.float32)
    np.testing.assert_allclose(total_distances(points), sum(cdist(p.T, p.T) for p in points), atol=1e-5)


def test_map_evidence_is_what_a_regression_without_the_sample_predicts():
    rng = np.random.default_rng(1)
    labels = np.arange(30) % 3
    distances = total_distances(of_unit_size(rng.normal(size=(5, 30, 2)) + labels[:, None])) / 5
    evidence = map_evidence(distances, labels, ridge=0.3, reach=3.0)
    centring = np.eye(30) - 1 / 30
    centred = centring @ np.exp(-3.0 * distances) @ centring
    size, directions = np.linalg.eigh(centred)
    features = directions * np.sqrt(np.maximum(size, 0))
    for sample in (0, 7, 29):
        rest = np.arange(30) != sample
        model = Ridge(alpha=0.3 * np.trace(centred) / 30).fit(features[rest], np.eye(3)[labels[rest]])
        np.testing.assert_allclose(evidence[sample], model.predict(features[[sample]])[0], atol=1e-8)
    np.testing.assert_allclose(evidence.sum(axis=1), 1)


def test_evidence_does_not_depend_on_how_often_all_clusterings_are_counted(clustered):
    clusters, labels = clustered
    once, twice = (cluster_evidence(n * times_together(clusters), labels) for n in (1, 2))
    np.testing.assert_allclose(once, twice, atol=1e-12)


def test_evidence_speaks_for_the_class_that_a_wrong_label_hides(clustered):
    clusters, labels = clustered
    evidence = cluster_evidence(times_together(clusters), labels)
    np.testing.assert_allclose(evidence.sum(axis=1), 1)
    np.testing.assert_array_equal(evidence[[4, 11]].argmax(axis=1), np.array([4, 11]) % 3)


def test_evidence_of_clusterings_of_one_cluster_is_the_frequency_of_the_other_labels():
    labels = np.array([0, 0, 1, 1, 1])
    evidence = cluster_evidence(times_together(np.zeros((4, 5), int)), labels)
    np.testing.assert_allclose(evidence[:2, 0], 1 / 4)
    np.testing.assert_allclose(evidence[2:, 1], 2 / 4)


def test_nothing_depends_on_the_order_of_samples_or_clusterings(clustered):
    clusters, labels = clustered
    order = np.random.default_rng(0).permutation(len(labels))
    mixed = clusters[::-1][:, order]
    np.testing.assert_allclose(
        label_surprise(mixed, labels[order]).mean(axis=0), label_surprise(clusters, labels).mean(axis=0)[order]
    )
    np.testing.assert_allclose(
        cluster_evidence(times_together(mixed), labels[order]),
        cluster_evidence(times_together(clusters), labels)[order],
    )


def test_rank_is_one_for_the_most_surprising_with_the_least_evidence():
    rank = memorisation_rank(np.array([0.1, 0.9, 0.5]), np.array([0.8, 0.1, 0.3]))
    np.testing.assert_allclose(rank, [0, 1, 0.5])
    np.testing.assert_allclose(memorisation_rank(np.zeros(4), np.zeros(4)), 0.5)
