"""Fits of every filter of a network: what screening, outliers and reports read.

A fit is made once and kept; everything later (thresholds, criteria, pictures) reads it and refits nothing.
On disk a layer is a folder of ``.npz`` parts, one per block of filters that was fitted together, each written aside
and then renamed. Whoever is interrupted loses the block in hand and no other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn.constants import Status
from gmmcnn.featuremaps.taps import Tapped
from gmmcnn.files import arrays_in, write_arrays


def is_live(status: Any) -> Any:
    """Where a status, an array or a column of them, says that there is a clustering to be judged."""
    return (status == Status.OK) | (status == Status.PERFECTLY_SEPARATED)


@dataclass(frozen=True)
class LayerFits:
    """PCA and mixture sweep of one layer: F filters, B probe batches of N samples, d dimensions, at most K components.

    What the maps decide, from ``scores`` to ``active_share``, has the axes (F, B, ...). What the mixtures decide, from
    ``status`` on, has (F, B, R, ...): every batch is clustered R times. ``S = k_max - k_min + 1`` is the number of K
    values tried.
    """

    scores: NDArray[np.float32]
    """(F, B, N, d) PCA scores, in the unit of the activations."""
    explained_variance: NDArray[np.float64]
    """(F, B, d)"""
    mean_activation: NDArray[np.float64]
    """(F, B) mean of the activations' absolute values over samples and pixels."""
    active_share: NDArray[np.float64]
    """(F, B) share of samples on which the filter has any positive activation."""
    status: NDArray[np.str_]
    """(F, B, R) a :class:`~gmmcnn.constants.Status`: ``ok``, ``dead`` or the reason why no clustering exists."""
    n_components: NDArray[np.int64]
    """(F, B, R) chosen K, 0 where none."""
    labels: NDArray[np.int16]
    """(F, B, R, N) cluster of each sample for the chosen K, -1 where none."""
    calinski_harabasz: NDArray[np.float64]
    """(F, B, R, S) NaN where undefined."""
    lower_bound: NDArray[np.float64]
    """(F, B, R, S) mean log-likelihood of a sample."""
    n_iter: NDArray[np.int64]
    """(F, B, R, S) EM iterations of the best start."""
    converged: NDArray[np.bool_]
    """(F, B, R, S)"""
    weights: NDArray[np.float64]
    """(F, B, R, K) of the chosen K, NaN-padded, like the next two."""
    means: NDArray[np.float64]
    """(F, B, R, K, d)"""
    covariances: NDArray[np.float64]
    """(F, B, R, K, d, d)"""

    def __len__(self) -> int:
        return len(self.status)

    @property
    def live(self) -> NDArray[np.bool_]:
        """(F, B, R) where there is a clustering."""
        return is_live(self.status)

    @cached_property
    def cluster_sizes(self) -> NDArray[np.int64]:
        """(F, B, R, K) samples of each cluster; counted once, whatever the thresholds."""
        return cluster_sizes(self.labels, self.weights.shape[-1])

    def save(self, path: Path, *, engine: str = "", of: str = "") -> None:
        """Write to ``path`` (``.npz``), complete or not at all.

        Parameters
        ----------
        path : Path
        engine : str
            Name of the engine that made them.
        of : str
            Names what they are fits of: maps, settings, layer, filters and batches.
        """
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        write_arrays(path, arrays | {"engine": np.array(engine), "of": np.array(of)})

    @classmethod
    def load(cls, path: Path) -> "LayerFits":
        """Read what :meth:`save` wrote. StoreError if the file is damaged."""
        with arrays_in(path, remedy=_REMEDY) as arrays:
            return cls(**_with_repeats({f.name: arrays[f.name] for f in fields(cls)}))

    @staticmethod
    def said_of(path: Path) -> tuple[str, str]:
        """Engine that made the fits of a file, and what they are fits of; empty where that was not recorded."""
        with arrays_in(path, remedy=_REMEDY) as arrays:
            engine, of = (str(arrays[name]) if name in arrays else "" for name in ("engine", "of"))
            return engine, of

    @classmethod
    def concatenate(cls, parts: Sequence["LayerFits"], axis: int = 0) -> "LayerFits":
        """Join blocks of filters (axis 0) or of probe batches (axis 1), in order."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts], axis) for f in fields(cls)})


def cluster_sizes(labels: np.ndarray, k_max: int) -> np.ndarray:
    """Count the samples of each cluster.

    Parameters
    ----------
    labels : (..., N) int
        Cluster of each sample; -1 belongs to none.
    k_max : int
        Number of cluster slots.

    Returns
    -------
    (..., k_max) int64
    """
    counts = np.empty((*labels.shape[:-1], k_max), np.int64)
    for slot in range(k_max):  # five times as fast as a bincount of all
        counts[..., slot] = np.count_nonzero(labels == slot, axis=-1)
    return counts


_REMEDY = "fit again: gmmcnn task=fit run=FOLDER"
_OF_THE_MAPS = ("scores", "explained_variance", "mean_activation", "active_share")


def _with_repeats(arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """Arrays of a file as they are, or as (F, B, R, ...) where an earlier version wrote (F, B R, ...)."""
    if arrays["status"].ndim == 3:
        return arrays
    n_batches = arrays["scores"].shape[1]
    return {
        name: array if name in _OF_THE_MAPS else array.reshape(len(array), n_batches, -1, *array.shape[2:])
        for name, array in arrays.items()
    }


@dataclass(frozen=True)
class Fits:
    """Fits of all analysed layers, in the order of the forward pass."""

    layers: dict[str, LayerFits]
    k_min: int
    """Smallest K tried."""
    k_max: int
    tapped: Mapping[str, Tapped] = field(default_factory=dict)
    """Layer → what its maps are; without those of which nothing is recorded."""

    @property
    def n_filters(self) -> int:
        """Filters over all layers."""
        return sum(len(layer) for layer in self.layers.values())

    @property
    def n_batches(self) -> int:
        """Probe batches (B)."""
        return next(iter(self.layers.values())).scores.shape[1]

    @property
    def n_repeats(self) -> int:
        """Clusterings of each filter in each probe batch (R)."""
        return next(iter(self.layers.values())).status.shape[2]

    @property
    def n_samples(self) -> int:
        """Samples in a probe batch (N)."""
        return next(iter(self.layers.values())).labels.shape[3]
