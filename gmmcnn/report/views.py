"""From the report's content to what its template and filter table need; pure functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from gmmcnn.filters.fits import is_live
from gmmcnn.filters.samples import surprising_layers
from gmmcnn.report.content import ReportContent

MOST_SAMPLES = 120
"""Samples in the gallery by each ranking; ``samples.csv`` and ``outliers.csv`` hold all."""
RANKINGS = ("n_anomalous", "n_filters", "memorisation_rank", "label_surprise", "density")
"""Columns by which the gallery can be ranked, greatest first."""
SIGNIFICANCE = 0.05
"""Level of the one-sided rank tests against random masks."""


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


def class_name(label: int, names: Sequence[str] | None) -> str:
    """Name of a class, or its number where it has no name."""
    return names[label] if names and 0 <= label < len(names) else f"class {label}"


def curves(metrics: pd.DataFrame | None) -> dict[str, list[float | None]] | None:
    """Columns of the course of training that the page draws; None below two epochs."""
    if metrics is None or len(metrics) < 2:
        return None
    drawn = ("epoch", "anomalous_filters", "flagged_per_batch", "train_accuracy", "validation_accuracy")
    return {name: finite(metrics[name]) for name in drawn if name in metrics}


def tiles(content: ReportContent) -> list[tuple[str, str, str]]:
    """Key figures: value, what it is, a remark."""
    filters = content.filters
    n_anomalous, n_live = int(filters["anomalous"].sum()), int(is_live(filters["status"]).sum())
    n_out = len(filters) - n_live
    by_anomalous = int((_with_filters(content)["n_anomalous"] > 0).sum())
    others = len(content.outliers) - by_anomalous
    by_others = f"; {others:,} more by filters flagged too rarely" if others else ""
    shown = [
        (f"{n_anomalous:,}", "anomaly filters", f"of {plural(n_live, 'live filter')}"),
        (f"{by_anomalous:,}", "outlier samples", f"singled out by anomaly filters{by_others}"),
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


def sample_rows(content: ReportContent) -> list[dict[str, Any]]:
    """Samples that stand first by any ranking, with all that their cards say."""
    table = _with_filters(content)
    if table.empty:
        return []
    known = [name for name in RANKINGS if name in table]
    first = {index for name in known for index in table[table[name] > 0].nlargest(MOST_SAMPLES, name).index}
    return [_card(row, known, content.class_names) for row in table.loc[sorted(first)].to_dict("records")]


def _with_filters(content: ReportContent) -> pd.DataFrame:
    """Scores of all samples, with the filters that single them out and how many of these are anomalous."""
    outliers = content.outliers.set_index("sample")
    filters = content.filters[content.filters["anomalous"]]
    anomalous = {f"{row.layer}:{row.filter}" for row in filters.itertuples()}
    counted = [sum(name in anomalous for name in names.split(", ")) for names in outliers["filters"]]
    found = outliers.assign(n_anomalous=pd.Series(counted, outliers.index, dtype=int))
    if content.samples.empty:
        return found.reset_index()
    singled_out = content.samples["sample"].map(found["filters"]).astype(object).fillna("")
    n_anomalous = content.samples["sample"].map(found["n_anomalous"]).fillna(0).astype(int)
    return content.samples.assign(filters=singled_out, n_anomalous=n_anomalous)


def _card(row: dict[str, Any], rankings: list[str], names: list[str] | None) -> dict[str, Any]:
    label: Any = row.get("label")
    return {
        "sample": int(row["sample"]),
        "class": None if pd.isna(label) else class_name(int(label), names),
        "filters": row["filters"].split(", ") if row["filters"] else [],
        "sentence": in_words(row, names) if pd.notna(row.get("cluster_label")) and pd.notna(label) else None,
        **{name: finite([row[name]])[0] for name in rankings},
        **_badges(row),
    }


def _badges(row: dict[str, Any]) -> dict[str, Any]:
    """What is known to be odd about a sample: the kind that was planted, empty if none; whether its label is wrong."""
    kind = row.get("planted")
    return {
        "planted": kind.replace("_", " ") if isinstance(kind, str) else "",
        "wrong": row.get("noisy_label", False) == True,  # noqa: E712 - NaN and None are not True
    }


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
