"""What is drawn of a filter: dots in their places, all of the small clusters, ellipses of the mixture."""

from dataclasses import replace

import numpy as np
import pytest
from report_outcomes import random_outcome

from gmmcnn.filters.fits import Fits
from gmmcnn.report import scatter
from gmmcnn.report.content import NO_CLUSTER, Scatters
from gmmcnn.report.scatter import FINER, STEPS, scatters

OUTCOME = random_outcome({"conv1": 5, "conv2": 4}, n_batches=2, n_repeats=2, n_samples=50, images=False)


def of_filter(drawn: Scatters, f: int) -> tuple[np.ndarray, ...]:
    """Samples, x, y, clusters of one filter."""
    ends = np.cumsum(drawn.n_points)
    dots = slice(ends[f] - drawn.n_points[f], ends[f])
    return np.cumsum(drawn.step[dots].astype(int)) - 1, drawn.x[dots], drawn.y[dots], drawn.cluster[dots]


def test_every_sample_is_a_dot_at_its_place_with_its_cluster():
    fits, clusterings = OUTCOME.fits, np.arange(9) % 4
    drawn = scatters(fits, clusterings)
    layers = [(layer, index) for layer in fits.layers.values() for index in range(len(layer))]
    for f, (layer, index) in enumerate(layers):
        samples, x, y, cluster = of_filter(drawn, f)
        batch, repeat = divmod(f % 4, 2)
        assert samples.tolist() == list(range(50))
        places, labels = layer.scores[index, batch].astype(float), layer.labels[index, batch, repeat]
        assert np.array_equal(np.where(labels < 0, NO_CLUSTER, labels), cluster)
        share = (places - places.min(axis=0)) / np.ptp(places, axis=0)
        assert np.abs(np.column_stack([x, y]) / STEPS - share).max() <= 0.5 / STEPS + 1e-9


def test_of_many_samples_the_small_clusters_stay_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scatter, "_MOST_POINTS", 30)
    labels = np.zeros((5, 2, 2, 50), np.int16)
    labels[..., [3, 40]] = 1
    layer = replace(OUTCOME.fits.layers["conv1"], labels=labels)
    drawn = scatters(Fits({"conv1": layer}, 2, 6), np.zeros(5, int))
    samples, _, _, cluster = of_filter(drawn, 0)
    assert 28 <= len(samples) <= 30
    assert samples[cluster == 1].tolist() == [3, 40]
    assert np.diff(samples).max() <= 3


def test_ellipses_are_the_components_in_the_coordinates_of_the_dots():
    layer = OUTCOME.fits.layers["conv1"]
    index, (batch, repeat) = next((f, (0, 0)) for f in range(5) if layer.n_components[f, 0, 0] > 1)
    drawn = scatters(OUTCOME.fits, np.zeros(9, int))
    first, k = int(drawn.n_ellipses[:index].sum()), int(layer.n_components[index, batch, repeat])
    assert drawn.n_ellipses[index] == k
    places = layer.scores[index, batch].astype(float)
    scale = STEPS / np.ptp(places, axis=0)
    for component, (x, y, xx, yx, yy) in enumerate(drawn.ellipses[first : first + k] / FINER):
        assert np.allclose([x, y], (layer.means[index, 0, 0, component] - places.min(axis=0)) * scale, atol=1 / FINER)
        root = np.array([[xx, 0], [yx, yy]])
        expected = layer.covariances[index, 0, 0, component] * np.outer(scale, scale)
        assert np.allclose(root @ root.T, expected, rtol=0.01, atol=2)


def test_scores_of_one_dimension_constant_or_not_finite_are_drawn_as_far_as_they_can():
    layer = OUTCOME.fits.layers["conv1"]
    flat = replace(layer, scores=layer.scores[..., :1])
    drawn = scatters(Fits({"conv1": flat}, 2, 6), np.zeros(5, int))
    assert drawn.n_ellipses.tolist() == [0] * 5
    assert len(np.unique(of_filter(drawn, 0)[2])) > 40
    odd = layer.scores.copy()
    odd[0, 0, 7], odd[1, 0] = np.nan, 3
    drawn = scatters(Fits({"conv1": replace(layer, scores=odd)}, 2, 6), np.zeros(5, int))
    assert 7 not in of_filter(drawn, 0)[0]
    assert set(of_filter(drawn, 1)[1]) == {0}
