"""Calinski-Harabasz index of many clusterings at once, and the choice of K by it.

CH = (SSB / (K - 1)) / (SSW / (N - K)), Caliński and Harabasz, "A dendrite method for cluster analysis" (1974);
the same quantity as ``sklearn.metrics.calinski_harabasz_score``, which returns 1.0 where this returns NaN.
"""

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import CH_MIN_WITHIN, CH_TIE


def calinski_harabasz(scores: NDArray, labels: NDArray, k_max: int) -> NDArray[np.float64]:
    """Between-cluster over within-cluster dispersion of every filter's clustering.

    Parameters
    ----------
    scores : (F, N, d) float
        PCA scores, any scale: the index has no unit.
    labels : (F, N) int
        Cluster of each sample, 0 … k_max - 1; empty clusters are allowed and do not count.
    k_max : int
        Number of cluster slots.

    Returns
    -------
    (F,) float64
        NaN where the index is undefined: fewer than two occupied clusters, as many clusters as samples, or no spread
        within any cluster (less than ``CH_MIN_WITHIN`` of the total).
    """
    scores = scores.astype(np.float64)
    scores -= scores.mean(axis=1, keepdims=True)
    sizes, means = _cluster_means(scores, labels, k_max)  # (F, K), (F, K, d)
    between = np.einsum("fk,fkd,fkd->f", sizes, means, means)
    residuals = scores - np.take_along_axis(means, labels[..., None].astype(np.intp), axis=1)
    within = np.einsum("fnd,fnd->f", residuals, residuals)

    n_samples, n_clusters = scores.shape[1], (sizes > 0).sum(axis=1)
    defined = (n_clusters > 1) & (n_clusters < n_samples) & (within > CH_MIN_WITHIN * (within + between))
    index = np.full(len(scores), np.nan)
    np.divide(between * (n_samples - n_clusters), within * (n_clusters - 1), out=index, where=defined)
    return index


def choose_n_components(calinski_harabasz: NDArray, k_min: int) -> NDArray[np.int32]:
    """K with the largest index, the smallest such K on a tie, 0 where no index is defined.

    Parameters
    ----------
    calinski_harabasz : (F, n_k) float
        Index for K = k_min, k_min + 1, …; NaN where undefined. Two indices within a share of ``CH_TIE`` of each other
        tie: the same clustering found with one component more, which stays empty, differs by rounding only.
    k_min : int

    Returns
    -------
    (F,) int32
    """
    index = np.where(np.isnan(calinski_harabasz), -np.inf, calinski_harabasz)
    best = index.max(axis=1, keepdims=True)
    first = np.argmax(index >= best * (1 - CH_TIE), axis=1)
    return np.where(np.isneginf(best[:, 0]), 0, first + k_min).astype(np.int32)


def _cluster_means(scores: NDArray, labels: NDArray, k_max: int) -> tuple[NDArray, NDArray]:
    """Sizes (F, K) and means (F, K, d); the mean of an empty cluster is 0."""
    membership = (labels[..., None] == np.arange(k_max)).astype(np.float64)  # (F, N, K)
    sizes = membership.sum(axis=1)
    sums = np.einsum("fnk,fnd->fkd", membership, scores)
    return sizes, sums / np.maximum(sizes, 1)[..., None]
