"""Scores of every probe sample, read from stored fits: what its label and its place in the clusters say about it.

Label surprise, cluster and map evidence and memorisation rank are those of :mod:`gmmcnn.filters.surprise`, over all
live clusterings of a sample's probe batch: those of filters that are neither dead nor near-dead, all repeats. Samples
whose label is not known have none of them, and do not count among the members of a cluster.

The filters that *carry* a sample are those that put it into the smallest clusters, near-dead ones among them: when they
are masked, memorised labels fall before other predictions change (:mod:`gmmcnn.experiments.carriers`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn.filters.density import density_rank
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.filters.surprise import cluster_evidence, map_evidence, memorisation_rank, of_unit_size
from gmmcnn.filters.surprise_cpu import log_sizes, times_together, total_distances, total_surprise
from gmmcnn.hardware.threads import one_blas_thread

PROFILE = "label_surprise:"
"""Begin of the names of the columns that hold the label surprise in one layer."""
CARRIERS = 3
"""Filters named beside each sample, at most."""
_LEAST_SAMPLES = 3
"""With a known label, in a batch: fewer say nothing about each other."""


def score_samples(fits: Fits, labels: pd.Series, min_active_share: float) -> pd.DataFrame:
    """Score every probe sample; nothing is fitted again.

    Parameters
    ----------
    fits : Fits
        B batches of N samples.
    labels : (B * N,) Series of int
        Class of each sample, missing where it is not known.
    min_active_share : float
        Filters active on a smaller share of a batch are near-dead and asked nothing.

    Returns
    -------
    DataFrame
        One row per sample: ``cluster_label``, the class that its clusters speak for; ``label_surprise``, nats;
        ``cluster_evidence`` and ``map_evidence`` for its own label; ``memorisation_rank`` in its batch, from 0 to 1;
        ``density``, its mean rank over live filters, from usual (0) to rare (1); ``carried_by``, what
        :func:`carriers` says; and ``label_surprise:LAYER`` in each layer. Missing where a sample has no label, or no
        filter lives.
    """
    columns = ("label_surprise", "cluster_evidence", "map_evidence", "memorisation_rank", "density")
    scores = pd.DataFrame(np.nan, labels.index, [*columns, *(PROFILE + layer for layer in fits.layers)])
    scores.insert(0, "cluster_label", pd.array([pd.NA] * len(labels), "Int64"))
    carried_by = [carriers(fits, batch) for batch in range(fits.n_batches)]
    scores.insert(len(columns) + 1, "carried_by", pd.array(np.concatenate(carried_by), "string"))
    for batch in range(fits.n_batches):
        rows = slice(batch * fits.n_samples, (batch + 1) * fits.n_samples)
        known = labels.iloc[rows].notna().to_numpy()
        live = {layer: _Live(fits.layers[layer], batch, min_active_share) for layer in fits.layers}
        n_live = sum(map(len, live.values()))
        if n_live:
            ranks = np.concatenate([of_layer.density_ranks() for of_layer in live.values()])
            scores.iloc[rows, scores.columns.get_loc("density")] = ranks.mean(axis=0)
        if n_live and known.sum() >= _LEAST_SAMPLES:
            classes, own = np.unique(labels.iloc[rows][known].to_numpy(np.int64), return_inverse=True)
            clusters = {layer: of_layer.clusters[:, known] for layer, of_layer in live.items()}
            found = _by_labels(clusters, [of_layer.maps[:, known] for of_layer in live.values()], own)
            found["cluster_label"] = classes[found["cluster_label"]]
            for name, values in found.items():
                scores.iloc[np.arange(rows.start, rows.stop)[known], scores.columns.get_loc(name)] = values
    return scores


def carriers(fits: Fits, batch: int, number: int = CARRIERS) -> NDArray[np.object_]:
    """Name the filters that put each sample of a batch into the smallest clusters, mean over repeats.

    Returns
    -------
    (N,) object
        ``"conv1:3, conv2:7"``, the smallest cluster first and of equal ones that of the earlier filter; None where no
        filter has clusters.
    """
    names = np.array([f"{layer}:{index}" for layer, fit in fits.layers.items() for index in range(len(fit))], object)
    sizes = np.concatenate([log_sizes(fit.labels[:, batch], fit.live[:, batch]) for fit in fits.layers.values()])
    smallest = np.argsort(sizes, axis=0, kind="stable")[:number]
    there = np.isfinite(np.take_along_axis(sizes, smallest, axis=0))
    chosen = names[smallest].T
    return np.array([", ".join(row[kept]) or None for row, kept in zip(chosen, there.T, strict=True)], object)


def most_surprising(samples: pd.DataFrame, number: int) -> pd.DataFrame:
    """Rows of the samples that stand first by memorisation rank, then by label surprise; those without a label never.

    Parameters
    ----------
    samples : DataFrame
        With the columns of :func:`score_samples`.
    number : int
        At most.
    """
    ranked = samples.dropna(subset="memorisation_rank")
    return ranked.sort_values(["memorisation_rank", "label_surprise"], ascending=False, kind="stable").head(number)


def surprising_layers(row: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """Where a sample's label surprises, and from where on it is memorised.

    Parameters
    ----------
    row : mapping
        A row of the samples' scores.

    Returns
    -------
    surprising : list of str
        Layers whose clusters speak against the label, by more than its frequency would: a surprise above 0.
    memorised_from : str or None
        The layer from which on all clusters speak for the label, though an earlier layer's spoke against it.
    """
    profile = {name.removeprefix(PROFILE): value for name, value in row.items() if name.startswith(PROFILE)}
    judged = [(layer, value > 0) for layer, value in profile.items() if np.isfinite(value)]
    surprising = [layer for layer, surprises in judged if surprises]
    last = max((place for place, (_, surprises) in enumerate(judged) if surprises), default=len(judged))
    return surprising, judged[last + 1][0] if last + 1 < len(judged) else None


class _Live:
    """The live clusterings of a layer in one batch, Q of them."""

    def __init__(self, layer: LayerFits, batch: int, min_active_share: float) -> None:
        enough = layer.active_share[:, batch] >= min_active_share
        self._where = layer.live[:, batch] & enough[:, None]
        self._layer, self._batch = layer, batch

    def __len__(self) -> int:
        return int(self._where.sum())

    @property
    def clusters(self) -> NDArray[np.int16]:
        """(Q, N) cluster of each sample."""
        return self._layer.labels[:, self._batch][self._where]

    @property
    def filters(self) -> NDArray[np.intp]:
        """Filters with a live clustering, ascending."""
        return np.flatnonzero(self._where.any(axis=1))

    @property
    def maps(self) -> NDArray[np.float32]:
        """(F, N, d) their reduced maps."""
        return self._layer.scores[self.filters, self._batch]

    def density_ranks(self) -> NDArray[np.float64]:
        """(F, N) each sample's rank in the first live clustering of each filter: repeats hardly differ."""
        layer, batch, filters = self._layer, self._batch, self.filters
        repeats = self._where[filters].argmax(axis=1)
        mixtures = (array[filters, batch, repeats] for array in (layer.weights, layer.means, layer.covariances))
        return density_rank(self.maps, *mixtures)


def _by_labels(
    clusters: dict[str, NDArray[np.int16]], maps: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]
) -> dict[str, NDArray]:
    """Scores of a batch by name: of N samples with labels from 0.

    Parameters
    ----------
    clusters : dict of (Q, N) int16
        Live clusterings of each layer.
    maps : sequence of (F, N, d) float32
        Reduced maps of the live filters, layer by layer.
    labels : (N,) int64
    """
    sums = {layer: total_surprise(of_layer, labels) for layer, of_layer in clusters.items()}
    surprise = np.sum(list(sums.values()), axis=0) / sum(map(len, clusters.values()))
    together = np.sum([times_together(of_layer) for of_layer in clusters.values()], axis=0)
    distances = np.sum([total_distances(of_unit_size(of_layer)) for of_layer in maps], axis=0) / sum(map(len, maps))
    with one_blas_thread():  # several would wait for each other longer than they compute
        evidence, by_maps = cluster_evidence(together, labels), map_evidence(distances, labels)
    own, own_by_maps = (found[np.arange(len(labels)), labels] for found in (evidence, by_maps))
    profile = {PROFILE + layer: sums[layer] / len(clusters[layer]) for layer in clusters if len(clusters[layer])}
    return {
        "cluster_label": evidence.argmax(axis=1),
        "label_surprise": surprise,
        "cluster_evidence": own,
        "map_evidence": own_by_maps,
        "memorisation_rank": memorisation_rank(surprise, own_by_maps),
        **profile,
    }
