"""Which filters carry a memorised sample: those whose masking lets the memorised label fall before anything else.

For every memorised wrong label the filters of a network are ordered in several ways, the first ones of each order are
masked, and two things are counted: whether the network still gives the memorised label, and how many of the other
training samples' predictions change. An order is good where the one falls long before the others do.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from gmmcnn.constants import Stream
from gmmcnn.data.splits import Images
from gmmcnn.experiments import rivals
from gmmcnn.experiments.statistics import over_seeds
from gmmcnn.featuremaps.capture import find_taps
from gmmcnn.featuremaps.stream import feature_maps
from gmmcnn.filters.fits import Fits
from gmmcnn.filters.surprise import label_surprise
from gmmcnn.filters.surprise_cpu import log_sizes
from gmmcnn.models.gradients import sample_gradients
from gmmcnn.pruning.masks import Mask, masked

SHARES = (0.02, 0.05, 0.1, 0.2)
"""Of all filters, masked."""
ORDERS = ("agreeing clusters", "small clusters", "gradient", "UnitMem", "random, as active")
"""By how well the clusters agree with the sample's label; by how small the sample's cluster is; by the norm of the
gradient of the sample's loss over the filter's weights; by how far its activation exceeds the others'."""
SAMPLES = 16
"""Memorised samples of a network, at most."""
OTHERS = 200
"""Samples that nothing is wrong with, at most, of which predictions are compared."""
_NEAREST = 3

ByFilter = NDArray[np.float64]
"""(filters of all layers, samples)"""


def fallen_labels(
    model: nn.Module, fits: Fits, train: Images, memorised: NDArray[np.int64], others: NDArray[np.int64], *, seed: int
) -> pd.DataFrame:
    """Mask the filters that carry each memorised sample, and look which predictions change.

    Parameters
    ----------
    model : nn.Module
        The network; comes back as it was.
    fits : Fits
        Of its filters on all training samples, in their order, in one probe batch.
    train : Images
        N training samples with the labels trained on.
    memorised : (M,) int
        Positions of samples whose label the network gives.
    others : (O,) int
        Positions of samples that nothing is wrong with.
    seed : int
        Of the random draws.

    Returns
    -------
    DataFrame
        One row per sample, ``order`` and ``share`` of filters masked: ``sample``, ``n_filters``, ``fallen`` (1 where
        the memorised label is no longer given), ``others_changed`` (share of the others whose prediction changed).
    """
    columns = ["sample", "order", "share", "n_filters", "fallen", "others_changed"]
    if not len(memorised):
        return pd.DataFrame(columns=columns)
    filters = [(layer, index) for layer, of_layer in fits.layers.items() for index in range(len(of_layer))]
    shown = Images(train.images[memorised], train.labels[memorised])
    rest = train.images[others]
    before = rivals.logits(model, rest).argmax(dim=1)
    active = activations(model, fits, torch.cat([shown.images, rest]))
    scores = {
        "agreeing clusters": -surprise(fits, train.labels.numpy())[:, memorised],
        "small clusters": -cluster_sizes(fits)[:, memorised],
        "gradient": _gradients(model, fits, shown),
        "UnitMem": selectivity(active, len(shown)),
    }
    rng = np.random.default_rng([seed, Stream.CARRIERS])
    rows = []
    for place, sample in enumerate(memorised):
        orders = {name: np.argsort(-values[:, place], kind="stable") for name, values in scores.items()}
        most = max(1, round(SHARES[-1] * len(filters)))
        orders["random, as active"] = as_active(orders["agreeing clusters"][:most], filters, active[:, place], rng)
        for name in ORDERS:
            for share in SHARES:
                chosen = orders[name][: max(1, round(share * len(filters)))]
                with masked(model, as_mask(filters, chosen)):
                    fallen = rivals.logits(model, shown.images[[place]]).argmax(dim=1) != shown.labels[place]
                    changed = rivals.logits(model, rest).argmax(dim=1) != before
                found = {"fallen": float(fallen), "others_changed": float(changed.float().mean())}
                rows.append({"sample": sample, "order": name, "share": share, "n_filters": len(chosen)} | found)
    return pd.DataFrame(rows, columns=columns)


def surprise(fits: Fits, labels: NDArray[np.int64]) -> ByFilter:
    """Label surprise of every sample in every filter, mean over its repeats; infinite for filters without clusters."""
    return _of_clusterings(fits, lambda clusters: label_surprise(clusters, labels))


def cluster_sizes(fits: Fits) -> ByFilter:
    """Log size of every sample's cluster by filter, mean over repeats; infinite for those without clusters."""
    return np.concatenate([log_sizes(layer.labels[:, 0], layer.live[:, 0]) for layer in fits.layers.values()])


def _of_clusterings(fits: Fits, measure: Callable[[NDArray], NDArray[np.float64]]) -> ByFilter:
    """Mean over the live repeats of each filter of what is measured of clusterings (Q, N), as (Q, N)."""
    parts = []
    for layer in fits.layers.values():
        means = np.full((len(layer), layer.labels.shape[-1]), np.inf)
        for index, live in enumerate(layer.live[:, 0]):
            if live.any():
                means[index] = measure(layer.labels[index, 0][live]).mean(axis=0)
        parts.append(means)
    return np.concatenate(parts)


def activations(model: nn.Module, fits: Fits, images: torch.Tensor) -> ByFilter:
    """Mean absolute activation of every filter on every image."""
    taps = find_taps(model, images[:2], layers=list(fits.layers))
    maps = feature_maps(model, images, taps).by_layer
    return np.concatenate([np.abs(maps[layer]).mean(axis=2) for layer in fits.layers]).astype(np.float64)


def selectivity(active: ByFilter, n_shown: int) -> ByFilter:
    """UnitMem of the first ``n_shown`` images: (a − b) / (a + b), a the activation on it and b the mean on the rest."""
    shown, rest = active[:, :n_shown], active[:, n_shown:].mean(axis=1, keepdims=True)
    return (shown - rest) / np.maximum(shown + rest, np.finfo(float).tiny)


def as_active(
    chosen: NDArray[np.int64], filters: list[tuple[str, int]], active: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Replace each filter by another of its layer, drawn among the three that are most nearly as active on the sample.

    No filter is drawn twice, none of ``chosen`` is drawn, and where a layer has none left all layers are drawn from;
    where these have none, fewer are drawn.
    """
    free = [index for index in range(len(filters)) if index not in set(chosen.tolist())]
    drawn = []
    for index in chosen[: len(free)]:
        same_layer = [other for other in free if filters[other][0] == filters[index][0]]
        candidates = sorted(same_layer or free, key=lambda other: abs(active[other] - active[index]))
        drawn.append(int(rng.choice(candidates[:_NEAREST])))
        free.remove(drawn[-1])
    return np.array(drawn, dtype=np.int64)


def _gradients(model: nn.Module, fits: Fits, shown: Images) -> ByFilter:
    norms = sample_gradients(model, shown.images, shown.labels).filters
    return np.concatenate([norms[layer].T for layer in fits.layers])


def as_mask(filters: list[tuple[str, int]], chosen: NDArray[np.int64]) -> Mask:
    """Mask of the filters that stand at some places of a list."""
    mask: dict[str, list[int]] = {}
    for place in chosen:
        layer, index = filters[place]
        mask.setdefault(layer, []).append(index)
    return mask


def in_words(table: pd.DataFrame, share: float = 0.1) -> Iterator[str]:
    """One sentence per order on what masking a share of the filters does."""
    rows = table[table["share"] == share]
    for order in ORDERS:
        means = rows[rows["order"] == order].groupby("seed")[["fallen", "others_changed"]].mean()
        if len(means):
            ahead = over_seeds("ahead", means["fallen"] - means["others_changed"], possible=(-1, 1))
            yield (
                f"Masked {share:.0%} of the filters, by {order}: {means['fallen'].mean():.0%} of the memorised labels "
                f"fell, {means['others_changed'].mean():.0%} of the other predictions changed ({ahead})."
            )
