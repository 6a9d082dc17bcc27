"""Fits made by hand: clusters, indices and activations are given, so that verdicts can be told by hand."""

from dataclasses import replace

import numpy as np

from gmmcnn import config
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.filters.screening import Screening, screen

K_MIN, K_MAX, N = 2, 3, 40


def layer_of(sizes: list[list[int]], ch: list[float], activation: list[float], **changes) -> LayerFits:
    """Filters in one batch with clusters of these sizes, these CH values and mean activations."""
    n_filters = len(sizes)
    labels = np.full((n_filters, 1, 1, N), -1, np.int16)
    for row, counts in zip(labels[:, 0, 0], sizes, strict=True):
        filled = np.repeat(np.arange(len(counts)), counts)
        row[: len(filled)] = filled
    chosen = np.array([len(counts) for counts in sizes])[:, None, None]
    index = np.full((n_filters, 1, 1, K_MAX - K_MIN + 1), np.nan)
    for row, k, value in zip(index[:, 0, 0], chosen.ravel(), ch, strict=True):
        if k:
            row[k - K_MIN] = value
    shape = (n_filters, 1)
    clusterings = (*shape, 1)
    used = (np.arange(K_MAX) < chosen[..., None])[..., None]
    fits = LayerFits(
        scores=np.zeros((*shape, N, 2), np.float32),
        explained_variance=np.ones((*shape, 2)),
        mean_activation=np.array(activation)[:, None],
        active_share=np.ones(shape),
        status=np.where(chosen > 0, "ok", "dead"),
        n_components=chosen,
        labels=labels,
        calinski_harabasz=index,
        lower_bound=np.zeros(index.shape),
        n_iter=np.ones(index.shape, np.int64),
        converged=np.ones(index.shape, bool),
        weights=np.where(used[..., 0], 1 / np.maximum(chosen, 1)[..., None], np.nan),
        means=np.where(used, np.zeros((*clusterings, K_MAX, 2)), np.nan),
        covariances=np.where(used[..., None], np.eye(2), np.nan),
    )
    return replace(fits, **changes)


def batches_of(*batches: LayerFits) -> LayerFits:
    """Put the batches of the same filters beside each other."""
    names = LayerFits.__dataclass_fields__
    return LayerFits(**{name: np.concatenate([getattr(b, name) for b in batches], axis=1) for name in names})


def repeats_of(*clusterings: LayerFits) -> LayerFits:
    """Clusterings of the same batch beside each other."""
    names = list(LayerFits.__dataclass_fields__)
    of_clusterings = names[names.index("status") :]
    joined = {name: np.concatenate([getattr(c, name) for c in clusterings], axis=2) for name in of_clusterings}
    return replace(clusterings[0], **joined)


def fits_of(*layers: LayerFits) -> Fits:
    """Layers ``conv1``, ``conv2``, … of a network."""
    return Fits({f"conv{number}": layer for number, layer in enumerate(layers, 1)}, K_MIN, K_MAX)


def screened(*layers: LayerFits, **thresholds) -> Screening:
    """Outcome for these layers under the default thresholds, or others."""
    return screen(fits_of(*layers), config.Screen(**thresholds))


# Filter 0 has all three marks; each of the others lacks one; filter 4 is dead.
ONE_OF_EACH = layer_of(
    sizes=[[37, 3], [20, 20], [37, 3], [37, 3], []],
    ch=[100, 100, 10, 100, 0],
    activation=[1.0, 1.0, 1.0, 0.1, 9.0],
)
