"""The reference engine against scikit-learn, from the same start."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.exceptions import ConvergenceWarning as SklearnConvergenceWarning
from sklearn.metrics import calinski_harabasz_score
from sklearn.mixture import GaussianMixture

from gmmcnn.mixture import reference
from gmmcnn.mixture.initialise import kmeans_labels
from gmmcnn.mixture.problem import MixtureSettings
from gmmcnn.mixture.sweep import GaussianMixtureSweep


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


def test_emptied_component_holds_nothing():
    points = np.random.default_rng(0).normal(size=(50, 2))
    fit = reference.expectation_maximisation(points, np.repeat([0, 2], 25), 3, MixtureSettings())
    assert fit.mixture.weights[1] == 0
    assert fit.mixture.weights.sum() == pytest.approx(1)
    assert set(reference.predict(points, fit.mixture)) <= {0, 2}
