"""The reference engine by hand, step by step, and against scikit-learn from the same start."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning as SklearnConvergenceWarning
from sklearn.metrics import calinski_harabasz_score
from sklearn.mixture import GaussianMixture

from gmmcnn.constants import MIN_MEMBERSHIP, MIN_VARIANCE
from gmmcnn.mixture import reference
from gmmcnn.mixture.initialise import kmeans_labels
from gmmcnn.mixture.problem import MixtureSettings
from gmmcnn.mixture.reference import Mixture
from gmmcnn.mixture.sweep import GaussianMixtureSweep

POINTS = np.random.default_rng(0).normal(size=(40, 2)) + np.repeat([[0, 0], [3, 1]], 20, axis=0)
HALVES = np.repeat([0, 1], 20)


def mixture_of(weights, means, covariances) -> Mixture:
    factors = np.array([np.linalg.cholesky(covariance) for covariance in np.asarray(covariances, float)])
    return Mixture(np.array(weights, float), np.array(means, float), factors)


TWO = mixture_of([0.25, 0.75], [[0, 0], [2, 1]], [[[1, 0.3], [0.3, 2]], [[0.5, -0.2], [-0.2, 1]]])


def densities(mixture: Mixture, points: np.ndarray) -> np.ndarray:
    """Weighted densities (N, K) by SciPy."""
    covariances = mixture.cholesky @ mixture.cholesky.transpose(0, 2, 1)
    components = zip(mixture.weights, mixture.means, covariances, strict=True)
    return np.stack(
        [w * multivariate_normal(mean, covariance).pdf(points) for w, mean, covariance in components], axis=1
    )


def test_standardised_scores_have_no_mean_and_mean_variance_one():
    scores = np.random.default_rng(0).normal(size=(50, 3)) * [5, 1, 0.1] + [100, -3, 0]
    points, centre, scale = reference.standardise(scores)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    assert points.var(axis=0).mean() == pytest.approx(1)
    np.testing.assert_allclose(points * scale + centre, scores)
    assert scale == pytest.approx(np.sqrt(np.trace(np.cov(scores.T, bias=True)) / 3))


@pytest.mark.parametrize(("share", "dead"), [(0.9, True), (1.1, False)])
def test_scores_that_differ_by_rounding_only_do_not_vary(share, dead):
    """The largest difference from the first sample, over the largest size, is a little below and above one unit."""
    precision = 2.0**-20
    for sign in (1, -1):
        scores = sign * np.array([[1.0], [1 - share * precision]])
        assert (reference.standardise(scores, precision) is None) == dead


def test_log_joint_is_that_of_scipy():
    np.testing.assert_allclose(np.exp(reference.log_joint(POINTS, TWO)), densities(TWO, POINTS), rtol=1e-12)
    for d in (1, 3):
        points = np.random.default_rng(d).normal(size=(5, d))
        single = mixture_of([1.0], [np.full(d, 0.5)], [np.eye(d) + 0.2])
        np.testing.assert_allclose(np.exp(reference.log_joint(points, single)), densities(single, points), rtol=1e-12)


def test_responsibilities_are_shares_of_the_density_and_the_bound_its_mean_logarithm():
    responsibilities, lower_bound = reference.expect(POINTS, TWO)
    expected = densities(TWO, POINTS)
    np.testing.assert_allclose(responsibilities, expected / expected.sum(axis=1, keepdims=True), rtol=1e-12)
    assert lower_bound == pytest.approx(np.log(expected.sum(axis=1)).mean(), rel=1e-12)


def test_samples_far_from_every_component_have_responsibilities_all_the_same():
    responsibilities, lower_bound = reference.expect(POINTS + 1e4, TWO)
    np.testing.assert_allclose(responsibilities.sum(axis=1), 1)
    assert -1e9 < lower_bound < -1e6


def test_a_component_of_weight_zero_takes_no_sample():
    none = TWO._replace(weights=np.array([0.0, 1.0]))
    assert np.isneginf(reference.log_joint(POINTS, none)[:, 0]).all()
    assert reference.expect(POINTS, none)[0][:, 0].tolist() == [0] * len(POINTS)
    assert set(reference.predict(POINTS, none)) == {1}


def test_the_label_is_the_component_of_largest_density_the_first_on_a_tie():
    np.testing.assert_array_equal(reference.predict(POINTS, TWO), densities(TWO, POINTS).argmax(axis=1))
    assert set(reference.predict(POINTS, mixture_of([0.5] * 2, [[0, 0]] * 2, [np.eye(2)] * 2))) == {0}


def test_the_m_step_takes_weighted_moments():
    responsibilities = np.random.default_rng(1).dirichlet([1, 1], 40)
    found = reference.maximise(POINTS, responsibilities, TWO, 0.01)
    for k in range(2):
        r = responsibilities[:, k]
        assert found.weights[k] == pytest.approx(r.sum() / 40)
        np.testing.assert_allclose(found.means[k], np.average(POINTS, axis=0, weights=r))
        covariance = np.cov(POINTS.T, aweights=r, bias=True) + 0.01 * np.eye(2)
        np.testing.assert_allclose(found.cholesky[k] @ found.cholesky[k].T, covariance)


@pytest.mark.parametrize(("membership", "alive"), [(0.9 * MIN_MEMBERSHIP, False), (MIN_MEMBERSHIP, True)])
def test_a_component_that_holds_nothing_keeps_its_place(membership, alive):
    responsibilities = np.zeros((40, 2))
    responsibilities[:, 1] = 1
    responsibilities[3, 0] = membership
    before = Mixture(*(array.copy() for array in TWO))
    found = reference.maximise(POINTS, responsibilities, TWO, 1e-6)
    assert (found.weights[0] > 0) == alive
    assert np.array_equal(found.means[0], TWO.means[0]) != alive
    assert np.array_equal(found.cholesky[0], TWO.cholesky[0]) != alive
    for array, kept in zip(TWO, before, strict=True):
        np.testing.assert_array_equal(array, kept)


@given(arrays(np.float64, (3, 3), elements=st.integers(-3, 3).map(float)))
def test_the_factor_is_that_of_cholesky_where_there_is_one(root):
    matrix = root @ root.T + np.eye(3)
    np.testing.assert_allclose(reference.cholesky(matrix, 1e-10), np.linalg.cholesky(matrix), atol=1e-12)


def test_pivots_are_clamped_from_below():
    singular = np.array([[4.0, 2.0], [2.0, 1.0]])
    factor = reference.cholesky(singular, 1e-4)
    np.testing.assert_allclose(factor, [[2, 0], [1, 1e-2]])
    assert reference.cholesky(np.array([[-1.0]]), 0.25) == 0.5


def test_em_does_one_m_step_on_the_labels_and_then_both_steps_in_turn():
    mixture = reference.maximise(POINTS, np.eye(2)[HALVES], TWO, 1e-6)
    bounds = []
    for _ in range(3):
        responsibilities, bound = reference.expect(POINTS, mixture)
        bounds.append(bound)
        mixture = reference.maximise(POINTS, responsibilities, mixture, 1e-6)
        fit = reference.expectation_maximisation(POINTS, HALVES, 2, MixtureSettings(tol=0, max_iter=len(bounds)))
        assert (fit.n_iter, fit.converged, fit.lower_bound) == (len(bounds), False, bound)
        for found, expected in zip(fit.mixture, mixture, strict=True):
            np.testing.assert_array_equal(found, expected)
    gain = bounds[2] - bounds[1]
    at, above = (
        reference.expectation_maximisation(POINTS, HALVES, 2, MixtureSettings(tol=tol, max_iter=50))
        for tol in (gain, np.nextafter(gain, 1))
    )
    assert above.converged
    assert (above.n_iter, above.lower_bound) == (3, bounds[2])
    assert at.n_iter > 3  # a gain of tol is not below it


def test_the_first_iteration_is_never_the_last_unless_it_is_the_only_one():
    huge = reference.expectation_maximisation(POINTS, HALVES, 2, MixtureSettings(tol=1e300))
    assert (huge.n_iter, huge.converged) == (2, True)
    only = reference.expectation_maximisation(POINTS, HALVES, 2, MixtureSettings(tol=1e300, max_iter=1))
    assert (only.n_iter, only.converged) == (1, False)


@pytest.mark.parametrize(("reg_covar", "variance"), [(0.04, 0.04), (0.0, MIN_VARIANCE)])
def test_a_label_that_occurs_nowhere_leaves_a_component_at_the_centre_with_weight_zero(reg_covar, variance):
    fit = reference.expectation_maximisation(POINTS, 2 * HALVES, 3, MixtureSettings(reg_covar=reg_covar))
    assert fit.mixture.weights[1] == 0
    assert fit.mixture.weights.sum() == pytest.approx(1)
    assert not fit.mixture.means[1].any()
    np.testing.assert_allclose(fit.mixture.cholesky[1], np.sqrt(variance) * np.eye(2))
    assert set(reference.predict(POINTS, fit.mixture)) <= {0, 2}


def test_of_all_starts_the_likeliest_is_kept_and_a_given_one_is_the_only_one():
    points = reference.standardise(np.random.default_rng(3).normal(size=(60, 2))).points
    one_start = MixtureSettings(seed=5)
    bounds = [
        reference.expectation_maximisation(points, kmeans_labels(points, 4, 5, 11, start), 4, one_start).lower_bound
        for start in range(5)
    ]
    kept = reference.best_fit(points, 4, 11, MixtureSettings(seed=5, n_init=5), None)
    assert kept.lower_bound == max(bounds) > min(bounds)
    labels = np.arange(60) % 4
    given_fit = reference.best_fit(points, 4, 11, MixtureSettings(seed=5, n_init=5), labels)
    assert given_fit.lower_bound == reference.expectation_maximisation(points, labels, 4, one_start).lower_bound


@given(factor=st.sampled_from([2.0**-20, 2.0**15]), offset=st.integers(-4, 4))
@settings(max_examples=6)
def test_mixtures_come_back_in_the_units_of_the_scores(factor, offset):
    sweep = MixtureSettings(k_min=2, k_max=3)
    keys = np.zeros(1, np.uint64)
    base = reference.fit_mixtures(POINTS[None], keys, sweep, {})
    other = reference.fit_mixtures(factor * (POINTS[None] + offset), keys, sweep, {})
    np.testing.assert_array_equal(other.labels, base.labels)
    np.testing.assert_allclose(other.lower_bound, base.lower_bound - 2 * np.log(factor), rtol=1e-9)
    np.testing.assert_allclose(other.means, factor * (base.means + offset), rtol=1e-9)
    np.testing.assert_allclose(other.covariances, factor**2 * base.covariances, rtol=1e-9)
    np.testing.assert_allclose(other.weights, base.weights, rtol=1e-9)
    np.testing.assert_allclose(other.calinski_harabasz, base.calinski_harabasz, rtol=1e-9)


def test_as_many_components_as_distinct_points_are_fitted_and_no_more():
    scores = np.repeat([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]], [5, 5, 2], axis=0)[None]
    result = reference.fit_mixtures(scores, np.zeros(1, np.uint64), MixtureSettings(k_min=2, k_max=5), {})
    assert (result.n_iter[0] > 0).tolist() == [True, True, False, False]
    assert np.isfinite(result.lower_bound[0]).tolist() == [True, True, False, False]
    assert not result.converged[0, 2:].any()
    three = reference.fit_mixtures(scores, np.zeros(1, np.uint64), MixtureSettings(k_min=3, k_max=3), {})
    four = reference.fit_mixtures(scores, np.zeros(1, np.uint64), MixtureSettings(k_min=4, k_max=4), {})
    assert three.n_iter[0, 0] > 0
    assert four.n_iter[0, 0] == 0


def test_a_filter_that_does_not_vary_is_not_fitted_and_its_neighbours_are():
    scores = np.stack([POINTS, np.full_like(POINTS, 3.0), POINTS])
    result = reference.fit_mixtures(scores, np.zeros(3, np.uint64), MixtureSettings(k_min=2, k_max=3), {})
    assert result.n_components[1] == 0
    assert (result.labels[1] == -1).all()
    assert not result.n_iter[1].any()
    for name in ("calinski_harabasz", "lower_bound", "weights", "means", "covariances"):
        assert np.isnan(getattr(result, name)[1]).all(), name
    np.testing.assert_array_equal(result.labels[0], result.labels[2])
    assert result.labels[0].min() == 0
    k = result.n_components[0]
    assert np.isfinite(result.weights[0, :k]).all()
    assert np.isnan(result.weights[0, k:]).all()


def test_each_filter_has_its_own_random_stream_and_its_own_given_start():
    rng = np.random.default_rng(1)
    scores = np.repeat(rng.normal(size=(1, 60, 2)), 3, axis=0)
    sweep = MixtureSettings(k_min=5, k_max=6)
    keys = np.array([4, 9, 4], np.uint64)
    result = reference.fit_mixtures(scores, keys, sweep, {})
    np.testing.assert_array_equal(result.lower_bound[0], result.lower_bound[2])
    assert (result.lower_bound[0] != result.lower_bound[1]).all()
    labels = rng.integers(0, 5, (3, 60))
    mixed = reference.fit_mixtures(scores, keys, sweep, {5: labels})
    np.testing.assert_array_equal(mixed.lower_bound[:, 1], result.lower_bound[:, 1])
    assert len(set(mixed.lower_bound[:, 0])) == 3


class MixtureFromLabels(GaussianMixture):
    """scikit-learn's mixture, started from given hard labels."""

    def __init__(self, labels, **kwargs):
        super().__init__(**kwargs)
        self.labels = labels

    def _initialize_parameters(self, X, random_state, xp=None):
        self._initialize(X, np.eye(self.n_components)[self.labels])


def sklearn_fit(scores, labels, k, tol=1e-3, max_iter=100, reg_covar=1e-6):
    """Fit with a regularisation relative to the mean score variance; return the mixture and its labels."""
    mixture = MixtureFromLabels(
        labels, n_components=k, tol=tol, max_iter=max_iter, reg_covar=reg_covar * scores.var(axis=0).mean()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SklearnConvergenceWarning)
        return mixture, mixture.fit_predict(scores)


def starts(scores, k_max):
    """k-means labels of every filter for every K, from the engine's own random numbers."""
    standardised = [reference.standardise(filter_scores).points for filter_scores in scores]
    return {
        k: np.array([kmeans_labels(points, k, 7, f, 0) for f, points in enumerate(standardised)])
        for k in range(2, k_max + 1)
    }


def test_equals_scikit_learn_from_the_same_start(lenet_scores):
    scores = lenet_scores[:12]
    initial = starts(scores, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sweep = GaussianMixtureSweep(k_max=6, engine="reference").fit(scores, initial)
    index = np.full((len(scores), 5), np.nan)
    for f, filter_scores in enumerate(scores):
        fits = [sklearn_fit(filter_scores, initial[k][f], k) for k in range(2, 7)]
        index[f] = [calinski_harabasz_score(filter_scores, labels) for _, labels in fits]
        np.testing.assert_allclose(sweep.lower_bound_[f], [mixture.lower_bound_ for mixture, _ in fits], rtol=1e-9)
        np.testing.assert_array_equal(sweep.n_iter_[f], [mixture.n_iter_ for mixture, _ in fits])
        k = sweep.n_components_[f]
        mixture, labels = fits[k - 2]
        np.testing.assert_array_equal(sweep.labels_[f], labels)
        scale = filter_scores.std()
        np.testing.assert_allclose(sweep.weights_[f, :k], mixture.weights_, atol=1e-9)
        np.testing.assert_allclose(sweep.means_[f, :k], mixture.means_, atol=1e-8 * scale)
        np.testing.assert_allclose(sweep.covariances_[f, :k], mixture.covariances_, atol=1e-8 * scale**2)
    np.testing.assert_allclose(sweep.calinski_harabasz_, index, rtol=1e-9)
    np.testing.assert_array_equal(sweep.n_components_, index.argmax(axis=1) + 2)


def test_lower_bound_of_its_own_start_is_no_worse_than_scikit_learns(lenet_scores):
    scores = lenet_scores[:10]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = GaussianMixtureSweep(k_min=5, k_max=5, n_init=3, engine="reference").fit(scores).lower_bound_[:, 0]
        theirs = [
            GaussianMixture(5, n_init=3, reg_covar=1e-6 * x.var(axis=0).mean(), random_state=0).fit(x).lower_bound_
            for x in scores
        ]
    assert ours.mean() >= np.mean(theirs) - 0.01  # both vary by some hundredths between seeds


@given(
    scores=arrays(np.float64, (40, 2), elements=st.floats(-100, 100, width=32), unique=True),
    k=st.integers(2, 6),
    seed=st.integers(0, 2**64 - 1),
)
def test_likelihood_never_falls(scores, k, seed):
    """EM is monotone; the regularisation may cost a little, so it is left out and only the variance floor remains."""
    points = reference.standardise(scores).points
    labels = kmeans_labels(points, k, seed, 0, 0)
    bounds = [
        reference.expectation_maximisation(
            points, labels, k, MixtureSettings(tol=0, max_iter=i, reg_covar=0)
        ).lower_bound
        for i in range(1, 8)
    ]
    assert np.diff(bounds).min() > -1e-6
