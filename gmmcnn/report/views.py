"""From the report's content to what its template and filter table need; pure functions."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from gmmcnn.filters.fits import is_live
from gmmcnn.filters.samples import most_surprising, surprising_layers
from gmmcnn.report.content import ClusterPlot, ReportContent

MOST_PLOTS = 40
MOST_OUTLIERS = 400
"""Outlier samples in the gallery; ``outliers.csv`` holds all of them."""
MOST_SURPRISING = 24
"""Samples with surprising labels in theirs; ``samples.csv`` holds all."""
SIGNIFICANCE = 0.05
"""Level of the one-sided rank tests against random masks."""
FILTER_COLUMNS = [
    "layer",
    "filter",
    "status",
    "flag_frequency",
    "flag_frequency_low",
    "flag_frequency_high",
    "n_components",
    "calinski_harabasz",
    "smallest_cluster",
    "n_small_clusters",
    "mean_activation",
    "unbalanced",
    "separated",
    "active",
    "anomalous",
    "reason",
]


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits with thousands separated, a dash for what is missing."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share in [0, 1] in percent with one decimal."""
    return "–" if share is None or not np.isfinite(share) else f"{100 * share:.1f} %"


def points_of_percent(difference: float) -> str:
    """A difference of shares, signed, in percentage points."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: no negative zero


def plural(count: int, noun: str, several: str | None = None) -> str:
    """``1 filter``, ``1,200 filters``, ``2 batches``."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def finite(values: ArrayLike) -> list[float | None]:
    """Numbers for JSON: five significant digits, None for NaN and infinities."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=float).tolist()]


def class_name(label: int, names: list[str] | None) -> str:
    """Name of a class, or its number where it has no name."""
    return names[label] if names and 0 <= label < len(names) else f"class {label}"


def columns(frame: pd.DataFrame, names: list[str]) -> dict[str, list[Any]]:
    """The named columns that ``frame`` has, ready for JSON."""
    return {name: _plain(frame[name]) for name in names if name in frame}


def _plain(column: pd.Series) -> list[Any]:
    if pd.api.types.is_float_dtype(column):
        return finite(column)
    return [None if pd.isna(value) else value for value in column.tolist()]


def tiles(content: ReportContent) -> list[tuple[str, str, str]]:
    """Key figures: value, what it is, a remark."""
    filters = content.filters
    n_anomalous, n_live = int(filters["anomalous"].sum()), int(is_live(filters["status"]).sum())
    n_out = len(filters) - n_live
    shown = [
        (f"{n_anomalous:,}", "anomaly filters", f"of {plural(n_live, 'live filter')}"),
        (f"{len(content.outliers):,}", "outlier samples", "singled out by flagged filters"),
        (f"{n_out:,}", "filters left out", "dead, near-dead or too few distinct maps"),
    ]
    if content.metrics is not None and len(content.metrics):
        last = content.metrics.iloc[-1]
        train, validation = last.get("train_accuracy"), last.get("validation_accuracy")
        epoch = f"training {percent(train)}, epoch {int(last['epoch'])}"
        shown.append((percent(validation), "validation accuracy", epoch))
    return shown


def layers(filters: pd.DataFrame) -> list[dict[str, Any]]:
    """Filters of each layer by kind, in the order of the network."""
    rows = []
    for layer, group in filters.groupby("layer", sort=False):
        anomalous, live = int(group["anomalous"].sum()), int(is_live(group["status"]).sum())
        rows.append({"layer": layer, "total": len(group), "anomalous": anomalous, "live": live})
    return rows


def chosen_plots(clusters: list[ClusterPlot], filters: pd.DataFrame) -> list[ClusterPlot]:
    """At most ``MOST_PLOTS``, most flagged filters first; every filter is seen once before one is seen twice."""
    if not clusters:
        return []
    known = verdicts(filters)
    table = pd.DataFrame({"layer": [plot.layer for plot in clusters], "filter": [plot.filter for plot in clusters]})
    of_filter = table.groupby(["layer", "filter"], sort=False)
    table = table.assign(
        turn=of_filter.cumcount(),
        order=of_filter.ngroup(),
        frequency=[known.get((plot.layer, plot.filter), (False, 0.0))[1] for plot in clusters],
    )
    most_flagged = {"frequency": False, "order": True, "turn": True}
    chosen = table.sort_values(["turn", "frequency"], ascending=[True, False], kind="stable").head(MOST_PLOTS)
    chosen = chosen.sort_values(list(most_flagged), ascending=list(most_flagged.values()))
    return [clusters[position] for position in chosen.index]


def verdicts(filters: pd.DataFrame) -> dict[tuple[str, int], tuple[bool, float]]:
    """(layer, filter) → is it anomalous, and its flag frequency."""
    keys = zip(filters["layer"], filters["filter"], strict=True)
    return dict(zip(keys, zip(filters["anomalous"], filters["flag_frequency"], strict=True), strict=True))


def figure(plot: ClusterPlot, known: dict[tuple[str, int], tuple[bool, float]]) -> dict[str, Any]:
    """What stands around one scatter: its filter's verdict and the members of its small clusters."""
    anomalous, frequency = known.get((plot.layer, plot.filter), (False, None))
    sizes = np.bincount(plot.labels[plot.labels >= 0], minlength=len(plot.small))
    members = {int(k): plot.samples[plot.labels == k].tolist() for k in np.flatnonzero(plot.small & (sizes > 0))}
    return {
        "layer": plot.layer,
        "filter": plot.filter,
        "batch": plot.batch,
        "anomalous": bool(anomalous),
        "frequency": frequency,
        "n_samples": len(plot.samples),
        "n_clusters": int((sizes > 0).sum()),
        "members": list(members.values()),
    }


def gallery(outliers: pd.DataFrame) -> list[dict[str, Any]]:
    """Outlier samples, those singled out by most filters first."""
    ranked = outliers.sort_values("n_filters", ascending=False, kind="stable").head(MOST_OUTLIERS)
    return [
        {
            "sample": int(row["sample"]),
            "label": None if pd.isna(row["label"]) else int(row["label"]),
            "n_filters": int(row["n_filters"]),
            "filters": row["filters"],
            **_badges(row),
        }
        for row in ranked.to_dict("records")
    ]


def _badges(row: dict[str, Any]) -> dict[str, Any]:
    """What is known to be odd about a sample: the kind that was planted, empty if none; whether its label is wrong."""
    kind = row.get("planted")
    return {
        "planted": kind.replace("_", " ") if isinstance(kind, str) else "",
        "noisy_label": row.get("noisy_label", False) == True,  # noqa: E712 - NaN and None are not True
    }


def surprising(samples: pd.DataFrame, names: list[str] | None) -> list[dict[str, Any]]:
    """Samples whose labels their clusters speak against, by memorisation rank, each with a sentence."""
    if samples.empty:
        return []
    first = most_surprising(samples, MOST_SURPRISING).query("label_surprise > 0")
    return [
        {
            "sample": int(row["sample"]),
            "label": int(row["label"]),
            "sentence": in_words(row, names),
            "rank": row["memorisation_rank"],
            **_badges(row),
        }
        for row in first.to_dict("records")
    ]


def in_words(row: dict[str, Any], names: list[str] | None) -> str:
    """Say it in a sentence: "labelled shirt, clusters say bag; surprising in conv1, memorised from conv2"."""
    own, said = int(row["label"]), int(row["cluster_label"])
    clusters = "clusters agree in the end" if own == said else f"clusters say {class_name(said, names)}"
    where, memorised_from = surprising_layers(row)
    text = f"labelled {class_name(own, names)}, {clusters}; surprising in {_span(where)}"
    return f"{text}, memorised from {memorised_from}" if memorised_from else text


def _span(layers: list[str]) -> str:
    """A list of layers, or its two ends."""
    if len(layers) > 3:
        return f"{len(layers)} layers from {layers[0]} to {layers[-1]}"
    return ", ".join(layers) or "no layer alone"


def masking(masks: pd.DataFrame | None) -> dict[str, Any] | None:
    """Change of accuracy under each mask, and what it says; None where no anomaly filters were masked."""
    if masks is None or not {"none", "anomalous"} <= set(masks["mask"]):
        return None
    before, after = (masks[masks["mask"] == mask].iloc[0] for mask in ("none", "anomalous"))
    random = masks[masks["mask"] == "random"]
    lanes = []
    for name, column in [("training", "train_accuracy"), ("validation", "validation_accuracy")]:
        change, changes = after[column] - before[column], (random[column] - before[column]).to_numpy()
        lanes.append({"name": name, "anomalous": finite([change])[0], "random": finite(changes)})
    return {
        "n_filters": int(after["n_filters"]),
        "lanes": lanes,
        "before": before.to_dict(),
        "after": after.to_dict(),
        "n_random": len(random),
        "random_median": random.median(numeric_only=True).to_dict() if len(random) else None,
        "verdict": _verdict(change, changes),
    }


def _verdict(change: float, random: NDArray) -> str:
    """What the validation accuracy says: where the anomaly mask ranks among the random ones, ties against it."""
    seen = f"Validation accuracy changes by {points_of_percent(change)} points"
    n = len(random)
    if not n:
        return f"{seen}; no random masks were tried, so this says nothing about these filters in particular."
    spread = f"{points_of_percent(random.min())} to {points_of_percent(random.max())} points"
    seen = f"{seen}, under {plural(n, 'random mask')} by {spread}"
    better = (1 + int((random >= change).sum())) / (n + 1)
    worse = (1 + int((random <= change).sum())) / (n + 1)
    if 1 / (n + 1) > SIGNIFICANCE:
        return f"{seen}: too few to tell the difference from chance."
    if better <= SIGNIFICANCE:
        return f"{seen}: better than chance explains (one-sided rank test, p = {better:.2f}), in this one network."
    if worse <= SIGNIFICANCE:
        return f"{seen}: these filters matter more than random ones (one-sided rank test, p = {worse:.2f})."
    return f"{seen}: no different from what random masks do."
