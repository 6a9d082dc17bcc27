"""Which filters are anomalous: rules over stored fits, nothing refitted.

A filter is screened in each probe batch on its own and is *flagged* there when all rules hold; the share of batches
that flag it is its flag frequency, and an *anomaly filter* is flagged in at least ``min_frequency`` of them. (arXiv
2412.10457, anomaly filter criteria; averages over live filters and the frequency are this project's.) Where batches
were clustered repeatedly, each clustering is screened as if it were a batch of its own.

Dead filters (no variance) and near-dead ones (active on too few samples) have a status of their own. They are never
anomalous and take part in no average: a filter that fires on three samples of 200 reaches a CH index of 1e10.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.constants import SATURATED, STRICT, Status
from gmmcnn.featuremaps.taps import Tapped
from gmmcnn.filters.fits import Fits, LayerFits, is_live
from gmmcnn.filters.rules import rules_of

FILTER = ["layer", "filter"]


@dataclass(frozen=True)
class Screening:
    """The outcome of a screening.

    Attributes
    ----------
    batches : DataFrame
        One row per filter, probe batch and repeat, with everything the rules looked at and ``flagged``.
    filters : DataFrame
        One row per filter; see :func:`summarise`. Then ``tap``, ``kind`` and ``map_shape`` of its layer, as in
        :class:`~gmmcnn.featuremaps.taps.Tapped`.
    """

    batches: pd.DataFrame
    filters: pd.DataFrame

    @property
    def anomalous(self) -> dict[str, list[int]]:
        """Anomaly filters by layer: the mask that takes them out."""
        found = self.filters[self.filters["anomalous"]]
        return {str(layer): rows["filter"].tolist() for layer, rows in found.groupby("layer", sort=False)}

    @property
    def flagged_per_batch(self) -> float:
        """Mean number of filters flagged in a probe batch: the count that is followed over training."""
        return float(self.batches.groupby(["batch", "repeat"])["flagged"].sum().mean())


def screen(fits: Fits, settings: config.Screen) -> Screening:
    """Apply the three criteria to every filter in every probe batch.

    Parameters
    ----------
    fits : Fits
        Stored fits.
    settings : config.Screen
        Thresholds, scope and kind of the averages.

    Returns
    -------
    Screening
    """
    batches = _tabulate(fits, judge(fits, settings))
    filters = summarise(batches, settings)
    return Screening(batches, filters.join(_what_was_tapped(fits), on="layer"))


def _what_was_tapped(fits: Fits) -> pd.DataFrame:
    """``tap``, ``kind`` and ``map_shape`` of each layer, missing where they are not recorded."""
    names = [field.name for field in fields(Tapped)]
    rows = [[getattr(fits.tapped.get(layer), name, None) for name in names] for layer in fits.layers]
    return pd.DataFrame(rows, index=list(fits.layers), columns=names, dtype="str")


def judge(fits: Fits, settings: config.Screen) -> dict[str, NDArray]:
    """Apply the criteria to every filter in every probe batch: :func:`screen` without its tables, in a millisecond.

    Returns
    -------
    dict of (F, B, R) arrays
        What :func:`measure` measures, a bool for each criterion under its name, and ``flagged``, where all hold;
        filters of all layers one after the other.
    """
    measured = measure(fits, settings)
    live = is_live(measured["status"])
    held = {rule.name: rule(measured) & live for rule in rules_of(settings)}
    return measured | held | {"flagged": np.logical_and.reduce([live, *held.values()])}


def counts(fits: Fits, settings: config.Screen) -> dict[str, float]:
    """Count filters in a probe batch, on average over batches and repeats.

    Returns
    -------
    dict
        ``flagged`` by all criteria; ``unbalanced``, ``separated``, ``active`` by each of them; ``live`` filters, which
        can be judged; ``near_dead`` and ``dead`` ones.
    """
    judged = judge(fits, settings)
    counted = {name: judged[name] for name in ("flagged", *(rule.name for rule in rules_of(settings)))}
    counted["live"] = is_live(judged["status"])
    counted |= {str(status): judged["status"] == status for status in (Status.NEAR_DEAD, Status.DEAD)}
    return {name: float(held.sum(axis=0).mean()) for name, held in counted.items()}


def measure(fits: Fits, settings: config.Screen) -> dict[str, NDArray]:
    """Measure what the criteria look at, for every filter, probe batch and repeat.

    Returns
    -------
    dict of (F, B, R) arrays
        ``status, n_components, calinski_harabasz, smallest_cluster, n_small_clusters, mean_activation, active_share,
        ch_over_average, activation_over_average``; CH and sizes are NaN where there is no clustering; filters of all
        layers one after the other.
    """
    small = settings.small_cluster_for(fits.n_samples, fits.k_max)
    layers = [_measure_layer(layer, fits.k_min, small, settings) for layer in fits.layers.values()]
    measured = {name: np.concatenate([layer[name] for layer in layers]) for name in layers[0]}
    groups = _averaged_together(fits, settings.scope)
    live = is_live(measured["status"])
    average = np.median if settings.average == "median" else np.mean
    measured["ch_over_average"] = _over_average(measured["calinski_harabasz"], live, groups, average)
    measured["activation_over_average"] = _over_average(measured["mean_activation"], live, groups, np.mean)
    return measured


def _averaged_together(fits: Fits, scope: str) -> list[NDArray[np.intp]]:
    """Filters that share an average: those of a layer, or of the network, where layers of one-pixel maps stand apart.

    A map of one number, as in squeeze-and-excitation, has other activations and indices than a map of places.
    """
    groups = list(range(len(fits.layers)))
    if scope == "network":
        groups = [int(layer in fits.tapped and fits.tapped[layer].one_pixel) for layer in fits.layers]
    group_of = np.repeat(groups, [len(layer) for layer in fits.layers.values()])
    return [np.flatnonzero(group_of == group) for group in np.unique(group_of)]


def _tabulate(fits: Fits, columns: Mapping[str, NDArray]) -> pd.DataFrame:
    """Arrays (F, B, R) as columns, beside the names of their filters, batches and repeats."""
    sizes = [len(layer) for layer in fits.layers.values()]
    shape = (sum(sizes), fits.n_batches, fits.n_repeats)
    row, batch, repeat = (index.ravel() for index in np.indices(shape))
    names = {
        "layer": np.repeat(np.array(list(fits.layers), object), sizes)[row],
        "filter": np.concatenate([np.arange(size) for size in sizes])[row],
        "batch": batch,
        "repeat": repeat,
    }
    return pd.DataFrame(names | {name: values.ravel() for name, values in columns.items()})


def _over_average(
    values: NDArray, live: NDArray[np.bool_], groups: Sequence[NDArray[np.intp]], average: Callable[[NDArray], Any]
) -> NDArray[np.float64]:
    """Divide (F, B, R) values by the average over the live filters of their group in each clustering of a batch.

    NaN where none lives. An infinite value, as of perfectly separated clusters, is above any average; it takes part in
    an average that stays finite with it.
    """
    averages = np.full(values.shape, np.nan)
    n_batches, n_repeats = values.shape[1:]
    for group, batch, repeat in product(groups, range(n_batches), range(n_repeats)):
        among = values[group, batch, repeat][live[group, batch, repeat]]
        finite = among[np.isfinite(among)]
        if finite.size:
            whole = average(among)
            averages[group, batch, repeat] = whole if np.isfinite(whole) else average(finite)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isposinf(values) & live, np.inf, values / averages)


def _measure_layer(fits: LayerFits, k_min: int, small_cluster: int, settings: config.Screen) -> dict[str, NDArray]:
    occupied = np.where(fits.cluster_sizes > 0, fits.cluster_sizes, np.nan)  # (F, B, R, K)
    clustered = fits.n_components > 0
    smallest = np.full(fits.status.shape, np.nan)
    smallest[clustered] = np.nanmin(occupied[clustered], axis=-1)
    chosen = np.maximum(fits.n_components - k_min, 0)[..., None]
    index = np.take_along_axis(fits.calinski_harabasz, chosen, axis=-1)[..., 0]
    mean_activation, active_share = (
        np.broadcast_to(values[..., None], fits.status.shape) for values in (fits.mean_activation, fits.active_share)
    )
    near_dead = (active_share < settings.min_active_share) & (fits.status != Status.DEAD)
    return {
        "status": np.where(near_dead, Status.NEAR_DEAD, fits.status),
        "n_components": fits.n_components,
        "calinski_harabasz": np.where(clustered, index, np.nan),
        "smallest_cluster": smallest,
        "n_small_clusters": (occupied <= small_cluster).sum(axis=-1),
        "mean_activation": mean_activation,
        "active_share": active_share,
    }


def summarise(batches: pd.DataFrame, settings: config.Screen) -> pd.DataFrame:
    """Bring the probe batches of each filter together: one row per filter.

    ``status`` and ``n_components`` are the most frequent, ``calinski_harabasz`` and ``smallest_cluster`` the median,
    ``n_small_clusters``, ``mean_activation`` and ``active_share`` the mean over batches; ``n_components_share`` is the
    share of fits that chose the most frequent K. Each criterion says whether it held in at least ``min_frequency`` of
    the batches, ``flag_frequency`` in what share all held together, with the ends of its 95 % interval
    (:func:`wilson_interval`) as ``flag_frequency_low`` and ``flag_frequency_high``; ``reason`` says it in words.
    ``anomalous`` is a filter that is flagged often enough and can be judged in most batches.
    """
    by_filter = batches.groupby(FILTER, sort=False)
    median = by_filter[["calinski_harabasz", "smallest_cluster", "ch_over_average", "activation_over_average"]].median()
    mean = by_filter[["n_small_clusters", "mean_activation", "active_share"]].mean()
    held = by_filter[[rule.name for rule in rules_of(settings)]].mean() >= settings.min_frequency
    frequency = by_filter["flagged"].mean()
    low, high = wilson_interval(frequency, batches["batch"].nunique())
    status, most_frequent = _most_frequent(batches, "status"), _most_frequent(batches, "n_components")
    chose_it = batches["n_components"] == most_frequent.loc[pd.MultiIndex.from_frame(batches[FILTER])].to_numpy()
    filters = pd.concat(
        [
            status,
            most_frequent,
            chose_it.groupby([batches[key] for key in FILTER], sort=False).mean().rename("n_components_share"),
            median[["calinski_harabasz", "smallest_cluster"]],
            mean,
            held,
            ((frequency >= settings.min_frequency) & is_live(status)).rename("anomalous"),
            frequency.rename("flag_frequency"),
            low.rename("flag_frequency_low"),
            high.rename("flag_frequency_high"),
            median[["ch_over_average", "activation_over_average"]],
        ],
        axis=1,
    ).reset_index()
    filters["reason"] = [_reason(row, settings) for row in filters.itertuples()]
    return filters


def wilson_interval(share: pd.Series, n_batches: int) -> tuple[pd.Series, pd.Series]:
    """95 % interval of the frequency with which batches like these flag a filter.

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927), with the probe batches as
    observations: what batches and starts of the mixtures leave open, both. Repeats of a batch are none of their own,
    hence with repeats the interval is too wide rather than too narrow.

    Parameters
    ----------
    share : Series
        Share of batches that flag a filter.
    n_batches : int

    Returns
    -------
    low, high : Series
    """
    z2 = 1.96**2
    centre = share + z2 / (2 * n_batches)
    half_width = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * n_batches)) / n_batches)
    scale = 1 + z2 / n_batches
    return ((centre - half_width) / scale).clip(0, share), ((centre + half_width) / scale).clip(share, 1)


def usual_status(status: NDArray) -> NDArray:
    """Most frequent status of each filter, the first by name of equals: (F, B, R) to (F,)."""
    names = np.unique(status)
    return names[np.argmax([(status == name).sum(axis=(1, 2)) for name in names], axis=0)]


def _most_frequent(batches: pd.DataFrame, column: str) -> pd.Series:
    """Most frequent value of each filter, the smallest of equals."""
    counts = batches.groupby([*FILTER, column], sort=True).size().rename("count").reset_index(column)
    counts = counts.sort_values("count", ascending=False, kind="stable")
    order = pd.MultiIndex.from_frame(batches[FILTER].drop_duplicates())
    return counts[~counts.index.duplicated()][column].reindex(order)


_NO_CLUSTERING = {
    Status.DEAD: "constant on every sample",
    Status.NEAR_DEAD: "active on too few samples to be judged",
}


def _reason(row: Any, settings: config.Screen) -> str:
    """Say in words what decided about a filter, a row of the summary."""
    if not is_live(row.status):
        return _NO_CLUSTERING.get(row.status, row.status.replace("_", " "))
    average = f"{settings.scope} {settings.average}"
    return (
        f"smallest cluster {row.smallest_cluster:.0f}, CH {row.ch_over_average:.1f} × {average}, "
        f"activation {row.activation_over_average:.1f} × {settings.scope} mean"
    )


class Saturation(NamedTuple):
    """Whether the first criterion can tell filters apart."""

    ratio: float
    """λ·K_max/N."""
    comment: str
    """What to think of it, and what to change."""

    @property
    def is_saturated(self) -> bool:
        """Whether chance alone makes small clusters, so that a count of filters that have one says nothing."""
        return self.ratio > SATURATED


def saturation(n_samples: int, k_max: int, small_cluster: int) -> Saturation:
    """Judge whether the first criterion can tell filters apart.

    It asks for a cluster of at most λ samples. With N/K_max samples in an average cluster, λ·K_max/N says how small
    "small" is: far below 0.1 hardly any filter qualifies, above 0.3 chance alone makes small clusters.
    """
    ratio = small_cluster * k_max / n_samples
    at = f"λ·K_max/N = {small_cluster}·{k_max}/{n_samples} = {ratio:.2f}"
    if ratio > SATURATED:
        needed = math.ceil(small_cluster * k_max / SATURATED)
        largest = math.floor(SATURATED * n_samples / k_max)
        remedy = f"raise probe.samples to {needed} or more"
        if largest:
            remedy += f", or set screen.small_cluster={largest} or less"
        return Saturation(ratio, f"{at}: saturated, many filters have a small cluster by chance; {remedy}")
    if ratio < STRICT:
        strict = "strict, only isolated samples are found; to follow a count over training aim for 0.2 to 0.25"
        return Saturation(ratio, f"{at}: {strict}")
    return Saturation(ratio, f"{at}: informative")
