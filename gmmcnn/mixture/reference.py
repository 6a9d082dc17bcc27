"""The mixture sweep, written to be read: NumPy, float64, one problem after the other.

It is the specification of the fast engines.

Algorithm, for one filter's scores (N, d) and one K
---------------------------------------------------
*Standardise.* Subtract the mean and divide by the root of the mean variance (trace of the covariance over d), so that
the mixture does not depend on the unit of the activations and ``reg_covar`` is relative. Lower bounds, means and
covariances are given back in the units of the scores.

*Start.* Hard labels, from k-means (:mod:`gmmcnn.mixture.initialise`) or given. One M-step on them gives the first
mixture.

*EM* for p(x) = Σ_k π_k N(x | μ_k, Σ_k) with full covariances, as ``sklearn.mixture.GaussianMixture`` does it.
Iteration i = 1, 2, …:

- E-step: r_nk ∝ π_k N(x_n | μ_k, Σ_k), and the lower bound ℓ_i = mean over n of log Σ_k π_k N(x_n | μ_k, Σ_k);
- M-step: n_k = Σ_n r_nk, π_k = n_k / N, μ_k = Σ_n r_nk x_n / n_k, Σ_k = Σ_n r_nk (x_n − μ_k)(x_n − μ_k)ᵀ / n_k +
  reg_covar · I;
- converged, and the last iteration, if |ℓ_i − ℓ_{i−1}| < tol (never for i = 1). At most ``max_iter`` iterations.

The mixture is the one after the last M-step, its lower bound ℓ_i, its labels argmax_k of π_k N(x_n | μ_k, Σ_k), the
lowest k on a tie.

*Emptied components.* Where n_k < ``MIN_MEMBERSHIP``, μ_k and Σ_k stay as they are and π_k = 0: the component holds
nothing from then on. If that happens in the first M-step (a label that occurs nowhere), μ_k = 0 and Σ_k = reg_covar ·
I.

*Variance floor.* In exact arithmetic no pivot of the Cholesky factor of Σ_k is below ``reg_covar``; pivots are
clamped from below at max(reg_covar, ``MIN_VARIANCE``), which undoes rounding and keeps ``reg_covar = 0`` harmless.

*Starts.* Of ``n_init`` starts the one with the largest lower bound is kept, the first on a tie. A start that is given
is the only one.

*Not fitted.* K greater than the number of distinct points. A filter with fewer than k_min distinct points is not
fitted at all, nor is a dead one: none of its points is farther from the first than one unit in the last place of the
largest score, as its dtype holds it.

*Choice of K.* Largest Calinski-Harabasz index of the labels (:mod:`gmmcnn.mixture.calinski_harabasz`). It is infinite
for perfectly separated clusters, of which the fewest win. Their precision is that of the coarser of the scores' dtype
and ``settings.dtype``, whatever the engine, so that all engines agree on the status.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import MIN_MEMBERSHIP, MIN_VARIANCE
from gmmcnn.mixture.calinski_harabasz import calinski_harabasz, choose_n_components
from gmmcnn.mixture.initialise import kmeans_labels
from gmmcnn.mixture.problem import (  # fmt: skip
    DEAD,
    OK,
    PERFECTLY_SEPARATED,
    TOO_FEW_DISTINCT,
    UNDEFINED,
    MixtureSettings,
    SweepResult,
)

LOG_2_PI = float(np.log(2 * np.pi))


class Mixture(NamedTuple):
    """Parameters of a Gaussian mixture."""

    weights: NDArray[np.float64]
    """(K,)"""
    means: NDArray[np.float64]
    """(K, d)"""
    cholesky: NDArray[np.float64]
    """(K, d, d) lower triangular L with Σ = L Lᵀ."""


class Fit(NamedTuple):
    """Outcome of EM from one start."""

    lower_bound: float
    n_iter: int
    converged: bool
    mixture: Mixture


class Standardised(NamedTuple):
    """Scores without unit: ``points = (scores - centre) / scale``."""

    points: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: float


def fit_mixtures(
    scores: NDArray, keys: NDArray[np.uint64], settings: MixtureSettings, initial_labels: Mapping[int, NDArray]
) -> SweepResult:
    """Fit every K of the sweep to every filter and choose K.

    Parameters
    ----------
    scores : (F, N, d) float32 or float64
        Finite.
    keys : (F,) uint64
        Names of the filters' random streams.
    settings : MixtureSettings
    initial_labels : mapping from K to (F, N) int
        Starts that are given, 0 … K - 1; every other K starts from k-means.
    """
    n_filters, n_samples, n_dims = scores.shape
    n_k, k_max = len(settings.component_counts), settings.k_max
    status = np.full(n_filters, OK, dtype=np.int8)
    index = np.full((n_filters, n_k), np.nan)
    lower_bound = np.full((n_filters, n_k), np.nan)
    n_iter = np.zeros((n_filters, n_k), dtype=np.int32)
    converged = np.zeros((n_filters, n_k), dtype=bool)
    labels = np.full((n_filters, n_samples), -1, dtype=np.int8)
    weights = np.full((n_filters, k_max), np.nan)
    means = np.full((n_filters, k_max, n_dims), np.nan)
    covariances = np.full((n_filters, k_max, n_dims, n_dims), np.nan)
    chosen = np.zeros(n_filters, dtype=np.int32)

    for f, filter_scores in enumerate(scores.astype(np.float64)):
        standardised = standardise(filter_scores, float(np.finfo(scores.dtype).eps))
        n_distinct = len(np.unique(filter_scores, axis=0))
        if standardised is None or n_distinct < settings.k_min:
            status[f] = DEAD if standardised is None else TOO_FEW_DISTINCT
            continue
        points, centre, scale = standardised
        fits: dict[int, Fit] = {}
        for i, k in enumerate(settings.component_counts):
            if k > n_distinct:
                continue
            given = initial_labels[k][f] if k in initial_labels else None
            fits[k] = fit = best_fit(points, k, int(keys[f]), settings, given)
            lower_bound[f, i] = fit.lower_bound - n_dims * np.log(scale)
            n_iter[f, i], converged[f, i] = fit.n_iter, fit.converged
            labelled = predict(points, fit.mixture)[None]
            index[f, i] = calinski_harabasz(points[None], labelled, k, settings.precision(scores.dtype))[0]
        chosen[f] = k = choose_n_components(index[f : f + 1], settings.k_min)[0]
        if k == 0:
            status[f] = UNDEFINED
            continue
        if np.isposinf(index[f, k - settings.k_min]):
            status[f] = PERFECTLY_SEPARATED
        mixture = fits[k].mixture
        labels[f] = predict(points, mixture)
        weights[f, :k] = mixture.weights
        means[f, :k] = mixture.means * scale + centre
        with np.errstate(over="ignore", under="ignore"):  # squares that float64 does not hold
            covariances[f, :k] = mixture.cholesky @ mixture.cholesky.transpose(0, 2, 1) * np.float64(scale) ** 2
    return SweepResult(
        status, index, lower_bound, n_iter, converged, chosen, labels, weights, means, covariances
    )  # fmt: skip


def standardise(scores: NDArray, precision: float = float(np.finfo(np.float64).eps)) -> Standardised | None:
    """Centre the scores (N, d) and divide them by the root of their mean variance; None where they do not vary.

    They are divided by a power of two first, and neither sums nor squares leave the range of float64.
    """
    largest = np.abs(scores).max()
    if np.abs(scores - scores[0]).max() <= precision * largest:
        return None
    exponent = int(np.frexp(largest)[1])
    scaled = np.ldexp(scores, -exponent)
    centre = scaled.mean(axis=0)
    offsets = scaled - centre
    scale = float(np.sqrt((offsets**2).mean()))
    return Standardised(offsets / scale, np.ldexp(centre, exponent), float(np.ldexp(scale, exponent)))


def best_fit(points: NDArray, n_components: int, key: int, settings: MixtureSettings, given: NDArray | None) -> Fit:
    """Run EM from the given labels (N,), or from ``n_init`` k-means starts, and keep the largest lower bound."""
    if given is not None:
        return expectation_maximisation(points, given, n_components, settings)
    starts = (
        kmeans_labels(points, n_components, settings.seed, key, start) for start in range(settings.n_init)
    )  # fmt: skip
    fits = [expectation_maximisation(points, labels, n_components, settings) for labels in starts]
    return max(fits, key=lambda fit: fit.lower_bound)


def expectation_maximisation(points: NDArray, labels: NDArray, n_components: int, settings: MixtureSettings) -> Fit:
    """EM from hard labels (N,) on standardised points (N, d)."""
    variance_floor = max(settings.reg_covar, MIN_VARIANCE)
    n_dims = points.shape[1]
    nothing = Mixture(
        np.zeros(n_components),
        np.zeros((n_components, n_dims)),
        np.sqrt(variance_floor) * np.broadcast_to(np.eye(n_dims), (n_components, n_dims, n_dims)),
    )
    membership = (labels[:, None] == np.arange(n_components)).astype(np.float64)
    mixture = maximise(points, membership, nothing, settings.reg_covar)
    lower_bound, converged = -np.inf, False
    for n_iter in range(1, settings.max_iter + 1):  # noqa: B007
        previous = lower_bound
        responsibilities, lower_bound = expect(points, mixture)
        mixture = maximise(points, responsibilities, mixture, settings.reg_covar)
        converged = abs(lower_bound - previous) < settings.tol
        if converged:
            break
    return Fit(lower_bound, n_iter, converged, mixture)


def log_joint(points: NDArray, mixture: Mixture) -> NDArray[np.float64]:
    """Log of π_k N(x_n | μ_k, Σ_k), shape (N, K); -inf for a component of weight 0."""
    offsets = points[:, None, :] - mixture.means  # (N, K, d)
    whitened = np.linalg.solve(mixture.cholesky, offsets[..., None])[..., 0]
    log_determinant = np.log(np.diagonal(mixture.cholesky, axis1=1, axis2=2)).sum(axis=1)
    log_weights = np.log(mixture.weights, out=np.full(len(mixture.weights), -np.inf), where=mixture.weights > 0)
    return log_weights - log_determinant - 0.5 * (points.shape[1] * LOG_2_PI + (whitened**2).sum(axis=2))


def expect(points: NDArray, mixture: Mixture) -> tuple[NDArray[np.float64], float]:
    """E-step: responsibilities (N, K) and the mean log-likelihood of a sample."""
    joint = log_joint(points, mixture)
    largest = joint.max(axis=1, keepdims=True)
    likelihood = np.exp(joint - largest)
    total = likelihood.sum(axis=1, keepdims=True)
    return likelihood / total, float((np.log(total) + largest).mean())


def maximise(points: NDArray, responsibilities: NDArray, previous: Mixture, reg_covar: float) -> Mixture:
    """M-step; a component that holds nothing keeps its place in ``previous`` with weight 0."""
    sizes = responsibilities.sum(axis=0)
    alive = sizes >= MIN_MEMBERSHIP
    weights = np.where(alive, sizes / len(points), 0.0)
    means, factors = previous.means.copy(), previous.cholesky.copy()
    for k in np.flatnonzero(alive):
        share = responsibilities[:, k] / sizes[k]
        means[k] = share @ points
        offsets = points - means[k]
        covariance = (share[:, None] * offsets).T @ offsets + reg_covar * np.eye(points.shape[1])
        factors[k] = cholesky(covariance, max(reg_covar, MIN_VARIANCE))
    return Mixture(weights, means, factors)


def cholesky(covariance: NDArray, min_pivot: float) -> NDArray[np.float64]:
    """Lower Cholesky factor (d, d) with pivots clamped from below, so that it exists whatever rounding did."""
    factor = np.zeros_like(covariance)
    for j in range(len(covariance)):
        pivot = covariance[j, j] - factor[j, :j] @ factor[j, :j]
        factor[j, j] = np.sqrt(max(pivot, min_pivot))
        factor[j + 1 :, j] = (covariance[j + 1 :, j] - factor[j + 1 :, :j] @ factor[j, :j]) / factor[j, j]
    return factor


def predict(points: NDArray, mixture: Mixture) -> NDArray[np.intp]:
    """Component of largest responsibility for every point, shape (N,)."""
    return log_joint(points, mixture).argmax(axis=1)
