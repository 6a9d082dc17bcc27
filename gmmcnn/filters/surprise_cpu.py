"""The sums over clusterings that scores of samples are made of, compiled: twins of :mod:`gmmcnn.filters.surprise`.

Each goes through the stored labels once. Shared clusters are counted in bytes, one row of the result at a time, which a
processor does for 32 or 64 samples at once; logarithms are looked up, since they are of counts. No result depends on
the number of threads: counts are exact, and sums are made in blocks of fixed size.
"""

import numpy as np
from numpy.typing import NDArray

from gmmcnn.filters import surprise
from gmmcnn.filters.surprise import PSEUDO_COUNT
from gmmcnn.hardware.compiled import compiled_entry
from gmmcnn.hardware.threads import for_blocks

_BYTE = 255
"""Clusterings that are counted in one byte a sample before they are added up."""
_AT_ONCE = 256
"""Clusterings in a block of the sum of surprises."""
_ROWS = 16
"""Samples whose rows of counts are made by one call."""


def total_surprise(
    clusters: NDArray[np.integer],
    labels: NDArray[np.integer],
    *,
    pseudo_count: float = PSEUDO_COUNT,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Sum of the label surprise of each sample over Q clusterings.

    Parameters
    ----------
    clusters, labels, pseudo_count
        As for :func:`gmmcnn.filters.surprise.label_surprise`.
    threads : int or None
        None takes one for each core this process may use.

    Returns
    -------
    (N,) float64
        Equal to :func:`gmmcnn.filters.surprise.total_surprise` but for the rounding of sums.
    """
    if clusters.shape[1] != len(labels):  # compiled code would read beyond their end
        raise ValueError(f"{clusters.shape[1]} samples in the clusterings, {len(labels)} labels")
    n_samples, n_clusters = len(labels), int(clusters.max(initial=0)) + 1
    share = np.bincount(labels) / n_samples
    # Indexed by counts of members, the sample itself among them.
    others = np.arange(n_samples + 1) - 1
    with np.errstate(divide="ignore", invalid="ignore"):  # at a count of 0, which no sample has
        alike = np.log(others + pseudo_count * share[:, None]) - np.log(share)[:, None]
        members = np.log(others + pseudo_count)
    sums = np.zeros((-(-len(clusters) // _AT_ONCE), n_samples))
    compact = _compact(clusters, n_clusters)

    def add(first: int, last: int) -> None:
        for block in range(first, last):
            some = compact[block * _AT_ONCE : (block + 1) * _AT_ONCE]
            _add_surprise(some, labels, n_clusters, alike, members, sums[block])

    for_blocks(add, len(sums), threads)
    return sums.sum(axis=0)


def times_together(clusters: NDArray[np.integer], *, threads: int | None = None) -> NDArray[np.float64]:
    """(N, N) number of the Q clusterings (Q, N) in which two samples share a cluster; exact."""
    n_samples = clusters.shape[1]
    counts = np.zeros((n_samples, n_samples), np.int64)
    compact = _compact(clusters, int(clusters.max(initial=0)) + 1)

    def count(first: int, last: int) -> None:
        _count_together(compact, first * _ROWS, min(last * _ROWS, n_samples), counts)

    for_blocks(count, -(-n_samples // _ROWS), threads)
    return counts.astype(np.float64)


def total_distances(points: NDArray[np.float32], *, threads: int | None = None) -> NDArray[np.float64]:
    """(N, N) sum over filters of the distances of the samples' points (F, d, N).

    Equal to :func:`gmmcnn.filters.surprise.total_distances` but for the rounding of each distance to single precision.
    """
    n_samples = points.shape[-1]
    total = np.zeros((n_samples, n_samples))
    points = np.ascontiguousarray(points, np.float32)

    def add(first: int, last: int) -> None:
        _add_distances(points, first * _ROWS, min(last * _ROWS, n_samples), total)

    for_blocks(add, -(-n_samples // _ROWS), threads)
    return total


def log_sizes(
    clusters: NDArray[np.integer], live: NDArray[np.bool_], *, threads: int | None = None
) -> NDArray[np.float64]:
    """Log size of each sample's cluster by filter, mean over live repeats; as of :func:`.surprise.log_sizes`."""
    n_samples, n_clusters = clusters.shape[-1], int(clusters.max(initial=0)) + 1
    logs = np.log(np.maximum(np.arange(n_samples + 1), 1))
    means = np.zeros((len(clusters), n_samples))

    def average(first: int, last: int) -> None:
        _average_log_sizes(clusters[first:last], live[first:last], n_clusters, logs, means[first:last])

    for_blocks(average, len(clusters), threads)
    return means


def _compact(clusters: NDArray[np.integer], n_clusters: int) -> NDArray[np.integer]:
    """Clusters in bytes where these suffice, contiguous."""
    return np.ascontiguousarray(clusters, np.uint8 if n_clusters <= _BYTE else np.int64)


@compiled_entry(surprise)
def _add_surprise(clusters, labels, n_clusters, alike, members, total):  # type: ignore[no-untyped-def]
    """Add the surprise in clusterings (Q, N) to ``total`` (N,), by tables of logarithms."""
    n_classes = len(alike)
    counts = np.empty((n_clusters, n_classes), np.int64)
    sizes = np.empty(n_clusters, np.int64)
    for row in clusters:
        counts[:] = 0
        for n in range(len(labels)):
            counts[row[n], labels[n]] += 1
        for k in range(n_clusters):
            sizes[k] = counts[k].sum()
        for n in range(len(labels)):
            total[n] += members[sizes[row[n]]] - alike[labels[n], counts[row[n], labels[n]]]


@compiled_entry()
def _count_together(clusters, first, last, counts):  # type: ignore[no-untyped-def]
    """Count rows first … last - 1 of the samples that share a cluster, over clusterings (Q, N), into ``counts``."""
    n_clusterings, n_samples = clusters.shape
    in_bytes = np.empty(n_samples, np.uint8)
    for start in range(0, n_clusterings, _BYTE):
        some = clusters[start : start + _BYTE]
        for i in range(first, last):
            in_bytes[:] = 0
            for row in some:
                own = row[i]
                for j in range(n_samples):
                    in_bytes[j] += np.uint8(row[j] == own)
            for j in range(n_samples):
                counts[i, j] += in_bytes[j]


@compiled_entry()
def _add_distances(points, first, last, total):  # type: ignore[no-untyped-def]
    """Add the distances of samples first … last - 1 to all points (F, d, N), filter by filter, to ``total`` (N, N)."""
    n_filters, n_dims, n_samples = points.shape
    squares = np.empty(n_samples, np.float32)
    for f in range(n_filters):
        for i in range(first, last):
            squares[:] = 0
            for c in range(n_dims):
                own = points[f, c, i]
                for j in range(n_samples):
                    squares[j] += (points[f, c, j] - own) * (points[f, c, j] - own)
            for j in range(n_samples):
                total[i, j] += np.sqrt(squares[j])


@compiled_entry()
def _average_log_sizes(clusters, live, n_clusters, logs, means):  # type: ignore[no-untyped-def]
    """Put the mean of the log sizes in clusterings (F, R, N), infinite without any, into ``means`` (F, N)."""
    n_filters, n_repeats, n_samples = clusters.shape
    sizes = np.empty(n_clusters, np.int64)
    for f in range(n_filters):
        n_live = 0
        for r in range(n_repeats):
            if live[f, r]:
                n_live += 1
                sizes[:] = 0
                for n in range(n_samples):
                    sizes[clusters[f, r, n]] += 1
                for n in range(n_samples):
                    means[f, n] += logs[sizes[clusters[f, r, n]]]
        for n in range(n_samples):
            means[f, n] = means[f, n] / n_live if n_live else np.inf
