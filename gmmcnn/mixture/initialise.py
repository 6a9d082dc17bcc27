"""The start of EM: k-means++ seeding and Lloyd's iteration, for one problem, in NumPy and float64.

The compiled engines do the same on the same random numbers (:mod:`gmmcnn.mixture.random_numbers`):

k-means++ (Arthur and Vassilvitskii 2007, the greedy variant of scikit-learn). The first centre is sample ``floor(u_0
N)``. Every further centre is the best of ``T = 2 + floor(ln K)`` candidates. With D_n the squared distance of sample
n from the nearest centre so far, candidate t of centre c is the first sample n whose cumulative sum D_0 + … + D_n
exceeds u_i ΣD, where ``i = 1 + (c - 1) T + t``; where ΣD = 0 it is sample ``floor(u_i N)``. The candidate that leaves
the smallest ΣD is taken, the first one on a tie.

Lloyd. Each sample belongs to the nearest centre, the lowest numbered on a tie; each centre moves to the mean of its
samples; a centre without samples stays. The centres have settled when the sum of their squared moves is at most
``LLOYD_TOL``. After that, or after ``LLOYD_MAX_ITER`` rounds, the samples are assigned once more, to the final
centres.
"""

import math

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import LLOYD_MAX_ITER, LLOYD_TOL
from gmmcnn.mixture.random_numbers import uniforms


def kmeans_labels(points: NDArray, n_components: int, seed: int, key: int, start: int) -> NDArray[np.intp]:
    """Hard labels from which EM starts.

    Parameters
    ----------
    points : (N, d) float64
        Scores divided by the root of their mean variance: ``LLOYD_TOL`` is relative to that.
    n_components : int
        K.
    seed, key, start : int
        Address of the random numbers.

    Returns
    -------
    (N,) int
        0 … K - 1.
    """
    n_draws = 1 + (n_components - 1) * n_candidates(n_components)
    centres = kmeans_plusplus(points, n_components, uniforms(seed, key, n_components, start, n_draws))
    return lloyd(points, centres)


def n_candidates(n_components: int) -> int:
    """Candidates drawn for each centre of k-means++."""
    return 2 + int(math.log(n_components))


def kmeans_plusplus(points: NDArray, n_components: int, uniform: NDArray) -> NDArray[np.float64]:
    """Choose K of the points (N, d) as centres (K, d), far from each other."""
    n_samples, n_trials = len(points), n_candidates(n_components)
    chosen = [int(uniform[0] * n_samples)]
    nearest = _squared_distances(points, points[chosen])[:, 0]  # (N,) from the nearest centre so far
    for draws in uniform[1:].reshape(n_components - 1, n_trials):
        cumulative = np.cumsum(nearest)
        if cumulative[-1] > 0:
            candidates = np.searchsorted(cumulative, draws * cumulative[-1], side="right")
        else:
            candidates = (draws * n_samples).astype(np.intp)
        candidates = np.minimum(candidates, n_samples - 1)
        left = np.minimum(nearest[:, None], _squared_distances(points, points[candidates]))  # (N, T)
        best = left.sum(axis=0).argmin()
        chosen.append(int(candidates[best]))
        nearest = left[:, best]
    return points[chosen]


def lloyd(points: NDArray, centres: NDArray) -> NDArray[np.intp]:
    """Labels (N,) of the points (N, d) after Lloyd's iteration from centres (K, d)."""
    for _ in range(LLOYD_MAX_ITER):
        previous, centres = centres, _moved(points, _nearest(points, centres), centres)
        if ((centres - previous) ** 2).sum() <= LLOYD_TOL:
            break
    return _nearest(points, centres)


def _moved(points: NDArray, labels: NDArray, centres: NDArray) -> NDArray:
    membership = labels[:, None] == np.arange(len(centres))  # (N, K)
    sizes = membership.sum(axis=0)[:, None]
    return np.where(sizes > 0, (membership.T @ points) / np.maximum(sizes, 1), centres)


def _nearest(points: NDArray, centres: NDArray) -> NDArray[np.intp]:
    return _squared_distances(points, centres).argmin(axis=1)


def _squared_distances(points: NDArray, centres: NDArray) -> NDArray:
    return ((points[:, None] - centres) ** 2).sum(axis=2)
