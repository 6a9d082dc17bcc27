"""How rare a sample is among the others, to a filter: the density of its mixture at the sample. Asks for no label."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

_VALUES_AT_ONCE = 2**13
"""Samples of some clusterings that are worked on together: what stays in a processor's cache."""
_LEAST_VARIANCE = 1e-12
"""Of a component, relative to its largest: less is rounding."""


def density_rank(
    scores: NDArray[np.floating],
    weights: NDArray[np.floating],
    means: NDArray[np.floating],
    covariances: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Rank each sample by −log of the density of each of Q mixtures: 0 the most usual sample, 1 the rarest.

    Ranks, since densities of different filters have different units. Samples of equal density share a rank.

    Parameters
    ----------
    scores, weights, means, covariances
        As for :func:`log_density`.

    Returns
    -------
    (Q, N) float64
    """
    n_clusterings, n_samples = scores.shape[:2]
    ranks = np.empty((n_clusterings, n_samples))
    at_once = max(1, _VALUES_AT_ONCE // n_samples)
    for first in range(0, n_clusterings, at_once):
        some = slice(first, first + at_once)
        rarity = -log_density(scores[some], weights[some], means[some], covariances[some])
        ranks[some] = rankdata(rarity, axis=1)
    return (ranks - 1) / max(n_samples - 1, 1)


def log_density(
    scores: NDArray[np.floating],
    weights: NDArray[np.floating],
    means: NDArray[np.floating],
    covariances: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Logarithm of the density of each of Q mixtures at the samples that it was fitted to.

    Parameters
    ----------
    scores : (Q, N, d) float
        In any unit.
    weights : (Q, K) float
        NaN, or 0, where there is no component.
    means : (Q, K, d) float
    covariances : (Q, K, d, d) float

    Returns
    -------
    (Q, N) float64
        Natural logarithm, of a density in the unit of the scores to the power of −d.
    """
    dims, used = scores.shape[-1], np.nan_to_num(weights) > 0
    variances, directions = np.linalg.eigh(covariances[used])
    variances = np.maximum(variances, _LEAST_VARIANCE * variances[:, -1:])
    whitening = np.zeros(covariances.shape)
    whitening[used] = directions / np.sqrt(variances)[:, None, :]
    height = np.full(weights.shape, -np.inf)  # logarithm of each component's weighted density at its mean
    height[used] = np.log(weights[used]) - 0.5 * (np.log(variances).sum(axis=1) + dims * np.log(2 * np.pi))
    coordinates = scores.astype(np.float64).transpose(2, 0, 1)  # (d, Q, N)
    centres = np.where(used[..., None], means, 0).transpose(1, 2, 0)[..., None]  # (K, d, Q, 1)
    axes = whitening.transpose(1, 3, 2, 0)[..., None]  # (K, d of the component, d of the scores, Q, 1)
    logs = np.empty((used.shape[1], *scores.shape[:2]))
    for k, log in enumerate(logs):
        log[:] = height[:, k, None]
        from_centre = [x - centre for x, centre in zip(coordinates, centres[k], strict=True)]
        for axis in axes[k]:
            white = sum(x * part for x, part in zip(from_centre, axis, strict=True))
            log -= 0.5 * white * white
    peak = logs.max(axis=0)
    logs -= peak
    return peak + np.log(sum(np.exp(log, out=log) for log in logs))
