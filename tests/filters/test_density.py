"""Densities beside those of scipy, and ranks that can be told by hand."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from gmmcnn.filters.density import density_rank, log_density

Q, N, K = 5, 40, 4


def mixtures(dims: int) -> tuple[np.ndarray, ...]:
    """Scores, weights, means and covariances; the first mixture has a single component, NaN elsewhere."""
    rng = np.random.default_rng(dims)
    scores = rng.normal(size=(Q, N, dims))
    weights = rng.dirichlet(np.ones(K), Q)
    factors = rng.normal(size=(Q, K, dims, dims)) + 2 * np.eye(dims)
    means, covariances = rng.normal(size=(Q, K, dims)), factors @ factors.swapaxes(-1, -2)
    weights[0] = [np.nan, 1, 0, np.nan]
    for array in (means, covariances):
        array[0, [0, 3]] = np.nan
    return scores, weights, means, covariances


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_density_is_that_of_scipy(dims):
    scores, weights, means, covariances = mixtures(dims)
    expected = np.zeros((Q, N))
    for q in range(Q):
        for k in np.flatnonzero(np.nan_to_num(weights[q]) > 0):
            normal = multivariate_normal(means[q, k], covariances[q, k])
            expected[q] += weights[q, k] * normal.pdf(scores[q]).reshape(N)
    np.testing.assert_allclose(log_density(scores, weights, means, covariances), np.log(expected), rtol=1e-9)


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e15])
def test_the_unit_of_the_scores_moves_no_rank(unit):
    scores, weights, means, covariances = mixtures(2)
    ranks = density_rank(scores, weights, means, covariances)
    rescaled = density_rank(scores * unit, weights, means * unit, covariances * unit**2)
    np.testing.assert_allclose(rescaled, ranks, atol=1e-12)


def test_ranks_go_from_the_centre_to_the_rarest_and_equals_share_one():
    scores = np.array([[[0.0], [0.1], [-0.1], [5.0]]])
    ranks = density_rank(scores, np.ones((1, 1)), np.zeros((1, 1, 1)), np.ones((1, 1, 1, 1)))
    np.testing.assert_allclose(ranks, [[0, 0.5, 0.5, 1]])


def test_ranks_do_not_depend_on_what_is_worked_on_together(monkeypatch):
    together = density_rank(*mixtures(2))
    monkeypatch.setattr("gmmcnn.filters.density._VALUES_AT_ONCE", 1)
    np.testing.assert_array_equal(density_rank(*mixtures(2)), together)


def test_a_component_without_extent_in_one_direction_still_has_a_density():
    flat = np.array([[[[1.0, 1.0], [1.0, 1.0]]]])
    density = log_density(np.array([[[1.0, 1.0], [1.0, -1.0]]]), np.ones((1, 1)), np.zeros((1, 1, 2)), flat)
    assert np.isfinite(density).all()
    assert density[0, 0] > density[0, 1]
