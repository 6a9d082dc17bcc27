"""Which filters are anomalous: rules over stored fits, nothing refitted.

A filter is screened in each probe batch on its own and is *flagged* there when all rules hold; the share of batches
that flag it is its flag frequency, and an *anomaly filter* is flagged in at least ``min_frequency`` of them. (arXiv
2412.10457, anomaly filter criteria; averages over live filters and the frequency are this project's.)

Dead filters (no variance) and near-dead ones (active on too few samples) have a status of their own. They are never
anomalous and take part in no average: a filter that fires on three samples of 200 reaches a CH index of 1e10.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from gmmcnn import config
from gmmcnn.fits import Fits, LayerFits

FILTER = ["layer", "filter"]


class Rule(Protocol):
    """One criterion: a column name and the test of every row of the table of :func:`measure`."""

    @property
    def name(self) -> str:
        """Column that says where the criterion holds."""
        ...

    def __call__(self, batches: pd.DataFrame) -> pd.Series:
        """Test every row."""
        ...


@dataclass(frozen=True)
class Unbalanced:
    """Criterion 1: at least ``min_small_clusters`` (α) clusters are small."""

    min_small_clusters: int
    name: str = "unbalanced"

    def __call__(self, batches: pd.DataFrame) -> pd.Series:
        """Test every row by its number of small clusters."""
        return batches["n_small_clusters"] >= self.min_small_clusters


@dataclass(frozen=True)
class Separated:
    """Criterion 2: CH exceeds ``ratio`` (β) times the average CH."""

    ratio: float
    name: str = "separated"

    def __call__(self, batches: pd.DataFrame) -> pd.Series:
        """Test every row by its CH over the average; an undefined CH is not separated."""
        return batches["ch_over_average"] > self.ratio


@dataclass(frozen=True)
class Active:
    """Criterion 3: the mean activation exceeds ``ratio`` (θ) times the average."""

    ratio: float
    name: str = "active"

    def __call__(self, batches: pd.DataFrame) -> pd.Series:
        """Test every row by its activation over the average."""
        return batches["activation_over_average"] > self.ratio


def rules_of(settings: config.Screen) -> tuple[Rule, ...]:
    """Build the three criteria with their thresholds from the settings."""
    return (
        Unbalanced(settings.min_small_clusters),
        Separated(settings.ch_ratio),
        Active(settings.activation_ratio),
    )


@dataclass(frozen=True)
class Screening:
    """The outcome of a screening.

    Attributes
    ----------
    batches : DataFrame
        One row per filter and probe batch, with everything the rules looked at and ``flagged``.
    filters : DataFrame
        One row per filter; see :func:`summarise`.
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
        return float(self.batches.groupby("batch")["flagged"].sum().mean())


def screen(fits: Fits, settings: config.Screen, rules: Sequence[Rule] | None = None) -> Screening:
    """Apply the criteria to every filter in every probe batch.

    Parameters
    ----------
    fits : Fits
        Stored fits.
    settings : config.Screen
        Thresholds, scope and kind of the averages.
    rules : sequence of Rule, optional
        Criteria to use in place of the settings' three.

    Returns
    -------
    Screening
    """
    batches = measure(fits, settings)
    applied = rules_of(settings) if rules is None else tuple(rules)
    live = batches["status"] == "ok"
    for rule in applied:
        batches[rule.name] = rule(batches) & live
    batches["flagged"] = batches[[rule.name for rule in applied]].all(axis=1)
    return Screening(batches, summarise(batches, [rule.name for rule in applied], settings))


def measure(fits: Fits, settings: config.Screen) -> pd.DataFrame:
    """Tabulate what the criteria look at: one row per filter and probe batch.

    Returns
    -------
    DataFrame
        ``layer, filter, batch, status, n_components, calinski_harabasz, smallest_cluster, n_small_clusters,
        mean_activation, active_share, ch_over_average, activation_over_average``; CH and sizes are NaN where there is
        no clustering.
    """
    parts = [_measure_layer(name, layer, fits.k_min, settings) for name, layer in fits.layers.items()]
    batches = pd.concat(parts, ignore_index=True)
    live = batches["status"] == "ok"
    scope = ["batch", "layer"] if settings.scope == "layer" else ["batch"]
    groups = [batches[key] for key in scope]
    average_ch = batches["calinski_harabasz"].where(live).groupby(groups).transform(settings.average)
    average_activation = batches["mean_activation"].where(live).groupby(groups).transform("mean")
    batches["ch_over_average"] = batches["calinski_harabasz"] / average_ch
    batches["activation_over_average"] = batches["mean_activation"] / average_activation
    return batches


def _measure_layer(name: str, fits: LayerFits, k_min: int, settings: config.Screen) -> pd.DataFrame:
    n_filters, n_batches = fits.status.shape
    sizes = cluster_sizes(fits.labels, fits.weights.shape[2])  # (F, B, K)
    occupied = np.where(sizes > 0, sizes, np.nan)
    clustered = fits.n_components > 0
    smallest = np.full(fits.status.shape, np.nan)
    smallest[clustered] = np.nanmin(occupied[clustered], axis=-1)
    chosen = np.maximum(fits.n_components - k_min, 0)[..., None]
    index = np.take_along_axis(fits.calinski_harabasz, chosen, axis=2)[..., 0]
    near_dead = (fits.active_share < settings.min_active_share) & (fits.status != "dead")
    columns = {
        "status": np.where(near_dead, "near_dead", fits.status),
        "n_components": fits.n_components,
        "calinski_harabasz": np.where(clustered, index, np.nan),
        "smallest_cluster": smallest,
        "n_small_clusters": (occupied <= settings.small_cluster).sum(axis=-1),
        "mean_activation": fits.mean_activation,
        "active_share": fits.active_share,
    }
    rows, batch = np.meshgrid(np.arange(n_filters), np.arange(n_batches), indexing="ij")
    return pd.DataFrame(
        {"layer": name, "filter": rows.ravel(), "batch": batch.ravel()} | {key: v.ravel() for key, v in columns.items()}
    )


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
    rows = labels.reshape(-1, labels.shape[-1]).astype(np.int64)
    slots = rows + 1 + (k_max + 1) * np.arange(len(rows))[:, None]  # slot 0 of each row counts the -1
    counts = np.bincount(slots.ravel(), minlength=len(rows) * (k_max + 1)).reshape(len(rows), k_max + 1)
    return counts[:, 1:].reshape(*labels.shape[:-1], k_max)


def summarise(batches: pd.DataFrame, criteria: Sequence[str], settings: config.Screen) -> pd.DataFrame:
    """Bring the probe batches of each filter together: one row per filter.

    ``status`` and ``n_components`` are the most frequent, ``calinski_harabasz`` and ``smallest_cluster`` the median,
    ``n_small_clusters``, ``mean_activation`` and ``active_share`` the mean over batches; each criterion says whether
    it held in at least ``min_frequency`` of the batches, ``flag_frequency`` in what share all held together,
    ``reason`` says it in words.
    """
    by_filter = batches.groupby(FILTER, sort=False)
    median = by_filter[["calinski_harabasz", "smallest_cluster", "ch_over_average", "activation_over_average"]].median()
    mean = by_filter[["n_small_clusters", "mean_activation", "active_share"]].mean()
    held = by_filter[list(criteria)].mean() >= settings.min_frequency
    frequency = by_filter["flagged"].mean()
    filters = pd.concat(
        [
            _most_frequent(batches, "status"),
            _most_frequent(batches, "n_components"),
            median[["calinski_harabasz", "smallest_cluster"]],
            mean,
            held,
            (frequency >= settings.min_frequency).rename("anomalous"),
            frequency.rename("flag_frequency"),
            median[["ch_over_average", "activation_over_average"]],
        ],
        axis=1,
    ).reset_index()
    filters["reason"] = [_reason(row, settings) for row in filters.itertuples()]
    return filters


def _most_frequent(batches: pd.DataFrame, column: str) -> pd.Series:
    """Most frequent value of each filter, the smallest of equals."""
    counts = batches.groupby([*FILTER, column], sort=True).size().rename("count").reset_index(column)
    counts = counts.sort_values("count", ascending=False, kind="stable")
    order = pd.MultiIndex.from_frame(batches[FILTER].drop_duplicates())
    return counts[~counts.index.duplicated()][column].reindex(order)


_NO_CLUSTERING = {
    "dead": "constant on every sample",
    "near_dead": "active on too few samples to be judged",
}


def _reason(row: Any, settings: config.Screen) -> str:
    """Say in words what decided about a filter, a row of the summary."""
    if row.status != "ok":
        return _NO_CLUSTERING.get(row.status, row.status.replace("_", " "))
    average = f"{settings.scope} {settings.average}"
    return (
        f"smallest cluster {row.smallest_cluster:.0f}, CH {row.ch_over_average:.1f} × {average}, "
        f"activation {row.activation_over_average:.1f} × {settings.scope} mean"
    )


def saturation(n_samples: int, k_max: int, small_cluster: int) -> tuple[float, str]:
    """Judge whether the first criterion can tell filters apart.

    It asks for a cluster of at most λ samples. With N/K_max samples in an average cluster, λ·K_max/N says how small
    "small" is: far below 0.1 hardly any filter qualifies, above 0.3 chance alone makes small clusters.

    Returns
    -------
    ratio : float
        λ·K_max/N.
    comment : str
        What to think of it, and what to change.
    """
    ratio = small_cluster * k_max / n_samples
    at = f"λ·K_max/N = {small_cluster}·{k_max}/{n_samples} = {ratio:.2f}"
    if ratio > 0.3:
        return ratio, f"{at}: saturated, many filters have a small cluster by chance; raise probe.samples"
    if ratio < 0.1:
        return (
            ratio,
            f"{at}: strict, only isolated samples are found; to follow a count over training aim for 0.2 to 0.25",
        )
    return ratio, f"{at}: informative"
