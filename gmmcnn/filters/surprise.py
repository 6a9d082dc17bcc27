"""How surprising a sample's label is, given the clusters that the sample lies in.

A network that has learned a pattern puts samples of a class into clusters with others of that class. A sample that it
could only memorise, because its label is wrong or its image odd, lies in clusters whose other members have other
labels, in most filters but perhaps those of the last layers. Three scores ask for that, and all leave the sample itself
out of what they compare it with:

- *Label surprise*, for every clustering: −log of the share of the sample's label among the other members of its
  cluster, smoothed, in units of what the label's frequency would give. Its mean over the clusterings of a layer is a
  profile over depth, its mean over those of the whole network a score, in nats.
- *Cluster evidence*, for all clusterings at once: two samples are as alike as the share of clusterings that put them
  into one cluster is large, and the label of each sample is predicted from those of the others by kernel ridge
  regression. It asks for samples that are alike in many filters at once, where the surprise asks filter by filter.
- *Map evidence*, the same with the distance of two samples in the reduced maps that were clustered, mean over filters:
  near each other they are alike on both sides of a border between clusters, too.

The *memorisation rank* is the mean of the sample's ranks by surprise and map evidence. Everything is read from stored
fits; nothing is fitted again, and neither the network nor the maps are needed. Labels of the samples are.

Which filters *carry* a sample is asked without its label: those whose clusters it lies in are smallest.

What goes through all clusterings or filters (:func:`total_surprise`, :func:`times_together`, :func:`log_sizes`,
:func:`total_distances`) is here as it is defined, and compiled in :mod:`gmmcnn.filters.surprise_cpu`.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

PSEUDO_COUNT = 5.0
"""Members with the batch's own label frequencies that every cluster is taken to have beside its own (m)."""
RIDGE = 0.3
"""Penalty, in units of the mean diagonal of the centred kernel."""
SHARPNESS = 5.0
"""γ of the kernel exp(−γ d), d the share of clusterings that separate two samples."""
REACH = 3.0
"""γ of the kernel exp(−γ d), d the mean distance of two samples in maps of unit size."""


def label_surprise(
    clusters: NDArray[np.integer], labels: NDArray[np.integer], *, pseudo_count: float = PSEUDO_COUNT
) -> NDArray[np.float64]:
    """Surprise of each sample's label in each of Q clusterings of the same N samples, leave-one-out.

    With n_c members of cluster c, n_cy of them with label y, and π_y the share of y in the batch,
    s(n) = −log[(n_cy − 1 + m π_y) / (n_c − 1 + m)] + log π_y.

    Parameters
    ----------
    clusters : (Q, N) int
        Cluster of each sample, from 0.
    labels : (N,) int
        Class of each sample, from 0.
    pseudo_count : float
        m > 0.

    Returns
    -------
    (Q, N) float64
        In nats; 0 where the cluster says no more than the label's frequency, positive where it speaks against it.
    """
    n_classes = int(labels.max()) + 1
    n_clusters = int(clusters.max(initial=0)) + 1
    share = (np.bincount(labels, minlength=n_classes) / len(labels))[labels]
    at = np.arange(len(clusters))[:, None] * n_clusters + clusters  # a number for each cluster of each clustering
    sizes = np.bincount(at.ravel(), minlength=len(clusters) * n_clusters)
    alike = at * n_classes + labels
    counts = np.bincount(alike.ravel(), minlength=len(sizes) * n_classes)
    expected = (counts[alike] - 1 + pseudo_count * share) / (sizes[at] - 1 + pseudo_count)
    return np.log(share) - np.log(expected)


def total_surprise(
    clusters: NDArray[np.integer], labels: NDArray[np.integer], *, pseudo_count: float = PSEUDO_COUNT
) -> NDArray[np.float64]:
    """(N,) sum of the label surprise of each sample over Q clusterings; arguments as of :func:`label_surprise`."""
    return label_surprise(clusters, labels, pseudo_count=pseudo_count).sum(axis=0)


def times_together(clusters: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N, N) number of the Q clusterings (Q, N) in which two samples share a cluster."""
    return (clusters[:, :, None] == clusters[:, None, :]).sum(axis=0).astype(np.float64)


def of_unit_size(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Centre the reduced maps of each filter, and divide them by the root of their mean square distance from there.

    Parameters
    ----------
    scores : (F, N, d) float
        Of filters that are not dead.

    Returns
    -------
    (F, d, N) float32
        Dimension by dimension; all zero for a filter without spread.
    """
    centred = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    size = np.sqrt((centred**2).sum(axis=2).mean(axis=1))[:, None, None]
    return np.ascontiguousarray((centred / np.where(size > 0, size, 1)).transpose(0, 2, 1), np.float32)


def total_distances(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, N) sum over filters of the Euclidean distances of the samples' points (F, d, N)."""
    n_samples = points.shape[-1]
    total = np.zeros((n_samples, n_samples))
    for of_filter in points.astype(np.float64):
        total += np.sqrt(((of_filter[:, :, None] - of_filter[:, None, :]) ** 2).sum(axis=0))
    return total


def log_sizes(clusters: NDArray[np.integer], live: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Log size of each sample's cluster by filter, mean over its live repeats.

    Parameters
    ----------
    clusters : (F, R, N) int
        Cluster of each sample, from 0 where live.
    live : (F, R) bool
        Where there is a clustering.

    Returns
    -------
    (F, N) float64
        Infinite for a filter without one.
    """
    means = np.full((len(clusters), clusters.shape[-1]), np.inf)
    for of_filter, repeats, row in zip(means, live, clusters, strict=True):
        if repeats.any():
            of_filter[:] = np.mean([np.log(np.bincount(labels)[labels]) for labels in row[repeats]], axis=0)
    return means


def cluster_evidence(
    together: NDArray[np.float64], labels: NDArray[np.integer], *, ridge: float = RIDGE, sharpness: float = SHARPNESS
) -> NDArray[np.float64]:
    """Predict each sample's label from those of the others, by the clusters that they share.

    Kernel ridge regression with an intercept of one-hot labels Y, with the kernel exp(−γ d) of the share d of the
    clusterings that separate two samples (a Laplacian kernel on memberships, whatever their number). With H its hat
    matrix, the exact prediction without sample n is (H Y − h_nn Y)_n / (1 − h_nn): no folds, no random numbers.

    Parameters
    ----------
    together : (N, N) float64
        What :func:`times_together` counts; of several layers, a sum. The diagonal is the number of clusterings.
    labels : (N,) int
        Class of each sample, from 0.
    ridge, sharpness : float
        > 0.

    Returns
    -------
    (N, n_classes) float64
        Each row sums to 1; values below 0 and above 1 occur.
    """
    return _predicted_by_others(np.exp(sharpness * (together / together[0, 0] - 1)), labels, ridge)


def map_evidence(
    distances: NDArray[np.float64], labels: NDArray[np.integer], *, ridge: float = RIDGE, reach: float = REACH
) -> NDArray[np.float64]:
    """Predict each sample's label from those of the others, by how near their reduced maps are.

    As :func:`cluster_evidence`, with the kernel exp(−γ d) of the mean distance d over filters, in maps of unit size.

    Parameters
    ----------
    distances : (N, N) float64
        What :func:`total_distances` sums, over the number of filters.
    labels : (N,) int
        Class of each sample, from 0.
    ridge, reach : float
        > 0.

    Returns
    -------
    (N, n_classes) float64
        Each row sums to 1; values below 0 and above 1 occur.
    """
    return _predicted_by_others(np.exp(-reach * distances), labels, ridge)


def _predicted_by_others(kernel: NDArray[np.float64], labels: NDArray[np.integer], ridge: float) -> NDArray[np.float64]:
    """Exact leave-one-out predictions (N, n_classes) of kernel ridge regression with an intercept."""
    n_samples = len(labels)
    mean = kernel.mean(axis=0)
    centred = kernel - mean - mean[:, None] + mean.mean()
    penalty = ridge * max(np.trace(centred) / n_samples, np.finfo(np.float64).tiny)
    hat = np.linalg.solve(centred + penalty * np.eye(n_samples), centred) + 1 / n_samples
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    own = np.diagonal(hat)[:, None]
    return (hat @ one_hot - own * one_hot) / (1 - own)


def memorisation_rank(surprise: NDArray[np.float64], evidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean rank of each sample by two scores, from 0 to 1: 1 for the most surprising label with the least evidence.

    Parameters
    ----------
    surprise : (N,) float
        Mean label surprise over the clusterings.
    evidence : (N,) float
        Map evidence for the sample's own label.
    """
    ranks = rankdata(surprise) + rankdata(-evidence)
    return (ranks - 2) / max(2 * (len(surprise) - 1), 1)
