"""Our mixtures beside scikit-learn's in float64, fit by fit: ``benchmarks.quality`` on fewer filters."""

import numpy as np
import pytest
from joblib import Parallel

from benchmarks import quality
from benchmarks.quality import SAME_BOUND, SAME_LABELS, Fits, by_sklearn, by_us, compare, kmeans_starts

FILTERS = 12


@pytest.fixture(autouse=True)
def few_components(monkeypatch):
    monkeypatch.setattr(quality, "COUNTS", range(2, 8))


@pytest.fixture
def pool():
    return Parallel(n_jobs=1)


@pytest.fixture
def scores(lenet_scores):
    return lenet_scores[:FILTERS].astype(np.float32)


def test_from_the_same_start_the_mixtures_are_scikit_learns(scores, pool):
    compared = compare(by_us(scores, starts=kmeans_starts(scores, pool)), by_sklearn(scores, 1, pool))
    assert compared.problems == 6 * FILTERS
    assert compared.largest_difference <= SAME_BOUND
    assert compared.equal_labels >= SAME_LABELS


def test_from_starts_of_its_own_the_mixtures_are_as_good(scores, pool):
    compared = compare(by_us(scores, 3), by_sklearn(scores, 3, pool))
    assert compared.above + compared.below > 0  # other starts, other optima
    assert compared.mean_difference > -3 * compared.standard_error
    assert compared.chance > 1e-3  # equally good programs are below this once in a thousand seeds


def test_worse_labels_and_bounds_are_seen():
    expected = Fits(np.zeros((2, 3)), np.array([[True, True, False]] * 2), np.zeros((2, 3, 5), np.int8))
    bounds = np.array([[-0.5, 0.5, 0.0], [-0.5, 0.0005, -0.0005]])
    labels = np.zeros((2, 3, 5), np.int8)
    labels[0, 0, 0] = labels[:, 2] = 1  # the last fits did not converge and do not count
    compared = compare(Fits(bounds, np.ones((2, 3), bool), labels), expected)
    assert (compared.problems, compared.above, compared.below) == (6, 1, 2)
    assert compared.largest_difference == 0.5
    assert compared.within_bound == pytest.approx(1 / 6)
    assert compared.equal_labels == pytest.approx(19 / 20)
    assert compared.chance == 1
    assert "FAILS" in quality.describe(compared, "same start")
    assert "FAILS" in quality.describe(compared, "own start")
