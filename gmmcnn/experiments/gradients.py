"""H2: whether outlier samples have larger gradients than normal ones, in well-trained and in overfitted networks.

The overfitted network is the one trained on few samples, after its last round; the well-trained one is its control.
Compared are the samples' gradient norms over the whole network, the same per unit error (a sample that the network gets
wrong pulls harder, whatever else it is), and the norms over the weights of the very filter that singles a sample out.

The control: filters drawn at random from the unflagged live ones of the same layers. Their smallest clusters make
"outliers" too, and if those pull as hard, being singled out by an *anomaly* filter means nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmmcnn.analysis import Analysis
from gmmcnn.constants import Stream
from gmmcnn.experiments.associations import auc, bootstrap_interval
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import Verdict, judge, over_seeds
from gmmcnn.filters.fits import cluster_sizes, is_live
from gmmcnn.filters.outliers import small_members
from gmmcnn.models.gradients import SampleGradients, sample_gradients

MEASURES = {
    "norm": "the gradient",
    "per_error": "the gradient per unit error",
    "own_filter": "the gradient of the filter that singles them out",
}
SMALLEST_AUC = 0.05
"""Smallest difference of an AUC of interest: 0.55 where outliers and normal samples do not differ in 0.5."""
NETWORKS = {Condition.OVERFITTING: "overfitted", Condition.CONTROL: "well-trained"}


def run(laboratory: Laboratory) -> Outcome:
    """Compare outliers with normal samples, and judge."""
    table = compare_outliers(laboratory)
    verdicts = tuple(verdict_on(table, measure) for measure in MEASURES)
    return Outcome(table, verdicts, (_wrong_labels(table),), _figures(table))


def compare_outliers(laboratory: Laboratory) -> pd.DataFrame:
    """Tabulate AUCs.

    Returns
    -------
    DataFrame
        One row per seed, condition and measure: ``auc`` (probability that an outlier's value exceeds a normal
        sample's) with its bootstrap interval ``low``, ``high``, ``auc_random`` of the control's outliers (mean over
        draws), ``outliers`` (their number), ``noisy_outliers`` and ``noisy_others`` (shares with a wrong label). NaN
        where no sample is an outlier.
    """
    return laboratory.of_each(list(laboratory.networks()), "gradients", _of_network)


def verdict_on(table: pd.DataFrame, measure: str) -> Verdict:
    """Judge the claim by one measure: it must hold in overfitted and well-trained networks, beyond random filters."""
    rows = table[table["measure"] == measure]
    effects, checks = [], []
    for condition, name in NETWORKS.items():
        own = rows[rows["condition"] == condition]
        effects.append(
            over_seeds(f"AUC in {name} networks", own["auc"], null=0.5, smallest=SMALLEST_AUC, possible=(0, 1))
        )
        beyond = own["auc"] - own["auc_random"]
        checks.append(
            over_seeds(
                f"AUC beyond random filters' in {name} networks", beyond, smallest=SMALLEST_AUC, possible=(-1, 1)
            )
        )
    return judge(f"H2, outliers exceed normal samples in {MEASURES[measure]}", effects, checks)


@dataclass(frozen=True)
class Selection:
    """Samples that a filter singles out in a probe batch: positions in the probe set."""

    layer: str
    filter: int
    batch: int
    members: NDArray[np.int64]


def _of_network(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Rows of one network, by measure."""
    number = laboratory.rounds[-1]
    analysis = laboratory.analysis(network, number)
    probe = laboratory.probe(network)
    labels, noisy = trained_labels(laboratory, network, probe.samples)
    gradients = sample_gradients(laboratory.model(network, number), probe.images, labels)
    flagged = list(flagged_selections(analysis))
    rng = np.random.default_rng([network.seed, Stream.RANDOM_SELECTIONS])
    draws = [list(random_selections(analysis, flagged, rng)) for _ in range(laboratory.size.controls)]
    outliers = _union(flagged, len(probe.samples))
    common = {
        "outliers": int(outliers.sum()),
        "noisy_outliers": noisy[outliers].mean() if outliers.any() else np.nan,
        "noisy_others": noisy[~outliers].mean(),
    }
    rows: list[dict[str, object]] = []
    for name, values in (("norm", gradients.norm), ("per_error", gradients.per_error)):
        low, high = bootstrap_interval(values[outliers], values[~outliers], seed=network.seed)
        random = [_auc(values, _union(draw, len(values))) for draw in draws]
        rows.append(
            {"measure": name, "auc": _auc(values, outliers), "low": low, "high": high} | _random_mean(random) | common
        )
    own = {"measure": "own_filter", "auc": own_filter_auc(gradients, flagged, analysis), "low": np.nan, "high": np.nan}
    rows.append(own | _random_mean([own_filter_auc(gradients, draw, analysis) for draw in draws]) | common)
    return pd.DataFrame([{"seed": network.seed, "condition": network.condition} | row for row in rows])


def trained_labels(laboratory: Laboratory, network: Network, samples: pd.DataFrame) -> tuple[Tensor, NDArray[np.bool_]]:
    """Labels of probe samples as this network was trained with them, and which of those are wrong.

    The wrong labels of the overfitting network and of its control are drawn apart.
    """
    splits = laboratory.data(network)
    position = np.searchsorted(splits.train_indices.numpy(), samples["dataset_index"].to_numpy())
    return splits.train.labels[torch.from_numpy(position)], np.isin(position, splits.noisy.numpy())


def _random_mean(values: list[float]) -> dict[str, float]:
    known = [value for value in values if not np.isnan(value)]
    return {"auc_random": float(np.mean(known)) if known else np.nan}


def flagged_selections(analysis: Analysis) -> Iterator[Selection]:
    """Members of the small clusters of every filter, in each probe batch whose first clustering flags it."""
    fits = analysis.fits
    for row in analysis.screening.batches.query("flagged and repeat == 0").itertuples():
        members = small_members(fits, row.layer, row.filter, row.batch, analysis.small_cluster)
        yield Selection(row.layer, row.filter, row.batch, row.batch * fits.n_samples + members)


def random_selections(analysis: Analysis, flagged: list[Selection], rng: np.random.Generator) -> Iterator[Selection]:
    """For each flagged filter, the smallest cluster of a random unflagged live filter of its layer, in its batch.

    Where a layer has no such filter left, the flagged one has no counterpart.
    """
    batches = analysis.screening.batches.query("repeat == 0")
    candidates = batches[is_live(batches["status"]) & ~batches["flagged"]].groupby(["layer", "batch"])["filter"]
    by_place = {place: filters.to_numpy() for place, filters in candidates}
    for selection in flagged:
        filters = by_place.get((selection.layer, selection.batch))
        if filters is not None:
            chosen = int(rng.choice(filters))
            labels = analysis.fits.layers[selection.layer].labels[chosen, selection.batch, 0]
            members = smallest_cluster(labels)
            yield Selection(
                selection.layer, chosen, selection.batch, selection.batch * analysis.fits.n_samples + members
            )


def smallest_cluster(labels: NDArray) -> NDArray[np.int64]:
    """Positions of the members of the smallest non-empty cluster, the first one on a tie."""
    sizes = cluster_sizes(labels, int(labels.max()) + 1)
    return np.flatnonzero(labels == np.where(sizes > 0, sizes, len(labels) + 1).argmin())


def own_filter_auc(gradients: SampleGradients, selections: list[Selection], analysis: Analysis) -> float:
    """Mean over filters: members against the rest of their probe batch, in the gradient of the filter itself."""
    n_samples = analysis.fits.n_samples
    found = []
    for selection in selections:
        batch = slice(selection.batch * n_samples, (selection.batch + 1) * n_samples)
        values = gradients.filters[selection.layer][batch, selection.filter]
        members = np.zeros(n_samples, bool)
        members[selection.members - batch.start] = True
        found.append(_auc(values, members))
    return float(np.mean(found)) if found else np.nan


def _union(selections: list[Selection], n_samples: int) -> NDArray[np.bool_]:
    singled_out = np.zeros(n_samples, bool)
    for selection in selections:
        singled_out[selection.members] = True
    return singled_out


def _auc(values: NDArray, chosen: NDArray[np.bool_]) -> float:
    return auc(values[chosen], values[~chosen])


def _wrong_labels(table: pd.DataFrame) -> str:
    shares = table[table["measure"] == "norm"].groupby("condition")[["noisy_outliers", "noisy_others", "outliers"]]
    parts = [
        f"{NETWORKS[Condition(condition)]} {row['noisy_outliers']:.1%} of {row['outliers']:.0f} outliers, "
        f"{row['noisy_others']:.1%} of the others"
        for condition, row in shares.mean().iterrows()
    ]
    return "Wrong labels, means over seeds: " + "; ".join(parts) + "."


def _figures(table: pd.DataFrame) -> dict[str, object]:
    long = table.rename(columns={"auc": "anomaly filters", "auc_random": "random filters"}).melt(
        ["seed", "condition", "measure"], ["anomaly filters", "random filters"], "outliers of", value_name="AUC"
    )
    figure = px.strip(
        long, x="measure", y="AUC", color="outliers of", facet_col="condition", hover_data=["seed"],
        title="Outliers against normal samples: probability of the larger gradient, a point a seed",
    )  # fmt: skip
    figure.add_hline(0.5, line_dash="dot")
    return {"auc": figure}
