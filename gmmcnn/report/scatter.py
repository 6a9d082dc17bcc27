"""One clustering of each filter as a picture: dots and ellipses, each coordinate a byte or two.

A dot's place is a byte, 256 steps over the spread of its filter's maps, which is finer than a page can show. With
thousands of filters, or of samples, some dots are left out: evenly, and never those of the smallest clusters.
"""

import numpy as np
from numpy.typing import NDArray

from gmmcnn.filters.fits import Fits, LayerFits, cluster_sizes
from gmmcnn.report.content import NO_CLUSTER, Scatters

STEPS = 255
"""Of a coordinate, from the least to the greatest."""
FINER = 64
"""Steps of an ellipse's numbers in one of those."""
_MOST_POINTS = 1000
_POINTS_OF_A_PAGE = 150_000
_POINTS_OF_A_FILTER = 200
_SMALLEST_SHARE = 0.1
"""Clusters that together hold at most this share of the samples are drawn whole."""
_GOLDEN_RATIO = 0.618034


def scatters(fits: Fits, clusterings: NDArray[np.int64]) -> Scatters:
    """Draw one clustering of each filter.

    Parameters
    ----------
    fits : Fits
    clusterings : (F,) int
        Which of the M = B R, repeats of a batch side by side.
    """
    room = _POINTS_OF_A_PAGE // max(1, fits.n_filters) + _POINTS_OF_A_FILTER
    n_points = min(fits.n_samples, _MOST_POINTS, room)
    drawn = []
    first = 0
    for layer in fits.layers.values():
        for index, clustering in enumerate(clusterings[first : first + len(layer)].tolist()):
            batch, repeat = divmod(clustering, fits.n_repeats)
            drawn.append(_drawn(layer, index, batch, repeat, n_points))
        first += len(layer)
    steps, x, y, clusters, ellipses = zip(*drawn, strict=True)
    return Scatters(
        clusterings.astype(np.int32),
        np.array([len(one) for one in steps], np.uint16),
        np.array([len(one) for one in ellipses], np.uint8),
        *(np.concatenate(parts) for parts in (steps, x, y, clusters, ellipses)),
    )


def _drawn(layer: LayerFits, index: int, batch: int, repeat: int, n_points: int) -> tuple[NDArray, ...]:
    """Steps, coordinates and clusters of the dots of a filter, and its ellipses."""
    labels = layer.labels[index, batch, repeat]
    places = _flat_places(layer.scores[index, batch])
    kept = _kept(labels, np.asarray(np.isfinite(places).all(axis=1)), n_points)
    low = places[kept].min(axis=0, initial=np.inf)
    spread = places[kept].max(axis=0, initial=-np.inf) - low
    scale = STEPS / np.where(spread > 0, spread, 1)
    dots = ((places[kept] - low) * scale).round().astype(np.uint8)
    clusters = np.where(labels[kept] < 0, NO_CLUSTER, labels[kept]).astype(np.uint8)
    steps = np.diff(kept, prepend=-1).astype(np.uint16)
    return steps, dots[:, 0], dots[:, 1], clusters, _ellipses(layer, index, batch, repeat, low, scale)


def _flat_places(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 2) first two dimensions; where there is one, the height only spreads the dots."""
    x = scores[:, 0].astype(float)
    return np.column_stack([x, scores[:, 1] if scores.shape[1] > 1 else np.arange(len(x)) * _GOLDEN_RATIO % 1])


def _kept(labels: NDArray[np.int16], known: NDArray[np.bool_], n_points: int) -> NDArray[np.int64]:
    """Samples that are drawn: all of the smallest clusters, and so many of the others that there are about n_points."""
    if known.sum() <= n_points:
        return np.flatnonzero(known)
    sizes = cluster_sizes(labels, int(labels.max()) + 1)
    order = np.argsort(sizes, kind="stable")
    whole = order[np.cumsum(sizes[order]) <= _SMALLEST_SHARE * n_points]
    always = known & np.isin(labels, whole)
    others = np.flatnonzero(known & ~always)
    evenly = np.linspace(0, len(others) - 1, n_points - int(always.sum())).round().astype(int)
    return np.sort(np.concatenate([np.flatnonzero(always), others[np.unique(evenly)]]))


def _ellipses(layer: LayerFits, index: int, batch: int, repeat: int, low: NDArray, scale: NDArray) -> NDArray[np.int16]:
    """(K, 5) components of the mixture in the dots' coordinates; none in one dimension, or without a mixture."""
    weights = layer.weights[index, batch, repeat]
    used = np.flatnonzero(np.isfinite(weights) & (weights > 0))
    if layer.scores.shape[-1] < 2 or not np.isfinite(low).all():
        used = used[:0]
    means = (layer.means[index, batch, repeat, used, :2] - low) * scale
    covariances = layer.covariances[index, batch, repeat, used, :2, :2] * np.outer(scale, scale)
    xx, xy, yy = covariances[:, 0, 0], covariances[:, 0, 1], covariances[:, 1, 1]
    root = np.sqrt(np.maximum(xx, 1e-12))
    along = xy / root
    numbers = np.column_stack([means, root, along, np.sqrt(np.maximum(yy - along**2, 0))])
    limits = np.iinfo(np.int16)
    return np.nan_to_num(numbers * FINER).round().clip(limits.min, limits.max).astype(np.int16)
