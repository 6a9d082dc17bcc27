"""Calinski-Harabasz index of many clusterings at once, and the choice of K by it.

CH = (SSB / (K - 1)) / (SSW / (N - K)), Caliński and Harabasz, "A dendrite method for cluster analysis" (1974);
the same quantity as ``sklearn.metrics.calinski_harabasz_score``, which returns 1.0 where this is infinite or undefined.

Clusters are *perfectly separated*, and the index infinite, where SSW is 0 or, at the precision of the data, not to be
told from 0: where in every cluster and coordinate Σ_n (x_n − mean)² ≤ Σ_n (``CH_ROUNDING`` ε x_n)², x_n the offset of a
sample from the grand mean. Cluster by cluster and coordinate by coordinate: a single sample far out does not make the
spread of the others rounding.
"""

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import CH_ROUNDING, CH_TIE


def calinski_harabasz(
    scores: NDArray, labels: NDArray, k_max: int, precision: float | None = None
) -> NDArray[np.float64]:
    """Between-cluster over within-cluster dispersion of every filter's clustering.

    Parameters
    ----------
    scores : (F, N, d) float
        PCA scores, any scale: the index has no unit.
    labels : (F, N) int
        Cluster of each sample, 0 … k_max - 1; empty clusters are allowed and do not count.
    k_max : int
        Number of cluster slots.
    precision : float, optional
        ε: distance of 1 from the next number at the precision of the data; by default that of the scores' dtype.

    Returns
    -------
    (F,) float64
        Infinite where clusters are perfectly separated; NaN where the index is undefined: fewer than two occupied
        clusters, as many clusters as samples, or samples that are all alike.
    """
    precision = float(np.finfo(scores.dtype).eps) if precision is None else precision
    offsets = scores.astype(np.float64)
    for _ in range(2):  # the second time takes what rounding left
        offsets -= offsets.mean(axis=1, keepdims=True)
    membership = (labels[..., None] == np.arange(k_max)).astype(np.float64)  # (F, N, K)
    sizes = membership.sum(axis=1)
    means = _cluster_means(offsets, membership)  # (F, K, d)
    between = np.einsum("fk,fkd,fkd->f", sizes, means, means)
    rows = labels[..., None].astype(np.intp)
    residuals = offsets - np.take_along_axis(means, rows, axis=1)
    residuals -= np.take_along_axis(_cluster_means(residuals, membership), rows, axis=1)
    within = np.einsum("fnd,fnd->f", residuals, residuals)
    rounding = (CH_ROUNDING * precision) ** 2 * np.einsum("fnk,fnd->fkd", membership, offsets**2)
    perfect = (np.einsum("fnk,fnd->fkd", membership, residuals**2) <= rounding).all(axis=(1, 2))

    n_samples, n_clusters = scores.shape[1], (sizes > 0).sum(axis=1)
    defined = (n_clusters > 1) & (n_clusters < n_samples) & (between > rounding.sum(axis=(1, 2)))
    index = np.where(defined & perfect, np.inf, np.nan)
    np.divide(between * (n_samples - n_clusters), within * (n_clusters - 1), out=index, where=defined & ~perfect)
    return index


def choose_n_components(calinski_harabasz: NDArray, k_min: int) -> NDArray[np.int32]:
    """K with the largest index, the smallest such K on a tie, 0 where no index is defined.

    Parameters
    ----------
    calinski_harabasz : (F, n_k) float
        Index for K = k_min, k_min + 1, …; NaN where undefined; an infinite one wins. Two indices within a share of
        ``CH_TIE`` of each other tie: the same clustering found with one component more, which stays empty, differs by
        rounding only.
    k_min : int

    Returns
    -------
    (F,) int32
    """
    index = np.where(np.isnan(calinski_harabasz), -np.inf, calinski_harabasz)
    best = index.max(axis=1, keepdims=True)
    first = np.argmax(index >= best * (1 - CH_TIE), axis=1)
    return np.where(np.isneginf(best[:, 0]), 0, first + k_min).astype(np.int32)


def _cluster_means(offsets: NDArray, membership: NDArray) -> NDArray:
    """Means (F, K, d) of offsets (F, N, d) by membership (F, N, K); the mean of an empty cluster is 0."""
    return np.einsum("fnk,fnd->fkd", membership, offsets) / np.maximum(membership.sum(axis=1), 1)[..., None]
