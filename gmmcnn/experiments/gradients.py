"""H2: whether outlier samples have larger gradients than normal ones, in well-trained and in overfitted networks.

The overfitted network is the one trained on few samples, after its last round. Two count as well-trained: its control,
and the same network *stopped early*, after the round with the lowest validation loss. How the difference comes and goes
over training is shown for all rounds.

Compared are the samples' gradient norms over the whole network, the same per unit error (a sample that the network gets
wrong pulls harder, whatever else it is), and the norms over the weights of the very filter that singles a sample out.

The controls have as many "outliers", filter by filter. Some are drawn from the smallest clusters of filters that are
drawn at random among the unflagged live ones of the same layers: if these pull as hard, being singled out by an
*anomaly* filter means nothing. Others are drawn from all samples of the probe batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

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
from gmmcnn.experiments.statistics import Estimate, Verdict, judge, over_seeds
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
NETWORKS = {
    "overfitted": (Condition.OVERFITTING, "last"),
    "well-trained": (Condition.CONTROL, "last"),
    "early-stopped": (Condition.OVERFITTING, "best"),
}
"""Name → condition, and the column that says which round it is."""
CONTROLS = {"auc_random": "as many of random filters'", "auc_samples": "as many random samples'"}
"""Column → whose AUC it is."""


def run(laboratory: Laboratory) -> Outcome:
    """Compare outliers with normal samples, and judge."""
    table = compare_outliers(laboratory)
    verdicts = tuple(verdict_on(table, measure) for measure in MEASURES)
    return Outcome(table, verdicts, (_wrong_labels(table), *_over_training(table)), _figures(table))


def compare_outliers(laboratory: Laboratory) -> pd.DataFrame:
    """Tabulate AUCs.

    Returns
    -------
    DataFrame
        One row per seed, condition, round and measure: ``auc`` (probability that an outlier's value exceeds a normal
        sample's), after the last round with its bootstrap interval ``low``, ``high``; those of the controls'
        (:data:`CONTROLS`, means over draws); ``outliers`` (their number), ``noisy_outliers`` and ``noisy_others``
        (shares with a wrong label); whether the round is the ``last``, and whether it is the one with the lowest
        validation loss, ``best``. NaN where no sample is an outlier.
    """
    return laboratory.of_each(list(laboratory.networks()), "gradients over training", _of_network)


def verdict_on(table: pd.DataFrame, measure: str) -> Verdict:
    """Judge the claim by one measure: it must hold in overfitted and well-trained networks, beyond the controls."""
    effects, checks = [], []
    for name, (condition, which) in NETWORKS.items():
        own = table[(table["measure"] == measure) & (table["condition"] == condition) & table[which]]
        effects.append(_auc_over_seeds(f"AUC in {name} networks", own["auc"], 0.5))
        checks += [
            _auc_over_seeds(f"AUC beyond {control} in {name} networks", own["auc"] - own[column], 0.0)
            for column, control in CONTROLS.items()
        ]
    return judge(f"H2, outliers exceed normal samples in {MEASURES[measure]}", effects, checks)


def _auc_over_seeds(name: str, values: pd.Series, null: float) -> Estimate:
    return over_seeds(name, values, null, smallest=SMALLEST_AUC, possible=(0, 1) if null else (-1, 1))


@dataclass(frozen=True)
class Selection:
    """Samples that a filter singles out in a probe batch: positions in the probe set."""

    layer: str
    filter: int
    batch: int
    members: NDArray[np.int64]


def _of_network(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Rows of one network, by round and measure."""
    best = laboratory.rounds[int(laboratory.metrics(network)["validation_loss"].argmin())]
    parts = [
        _after(laboratory, network, number).assign(last=number == laboratory.rounds[-1], best=number == best)
        for number in laboratory.rounds
    ]
    return pd.concat(parts, ignore_index=True)


def _after(laboratory: Laboratory, network: Network, number: int) -> pd.DataFrame:
    """Rows of one network after a round, by measure."""
    analysis = laboratory.analysis(network, number)
    probe = laboratory.probe(network)
    labels, noisy = trained_labels(laboratory, network, probe.samples)
    gradients = sample_gradients(laboratory.model(network, number), probe.images, labels)
    flagged = list(flagged_selections(analysis))
    rng = np.random.default_rng([network.seed, Stream.RANDOM_SELECTIONS])
    n_draws = range(laboratory.size.controls)
    drawn = {
        "auc_random": [list(random_selections(analysis, flagged, rng)) for _ in n_draws],
        "auc_samples": [list(random_samples(analysis, flagged, rng)) for _ in n_draws],
    }
    outliers = _union(flagged, len(probe.samples))
    common = {
        "outliers": int(outliers.sum()),
        "noisy_outliers": noisy[outliers].mean() if outliers.any() else np.nan,
        "noisy_others": noisy[~outliers].mean(),
    }
    rows: list[dict[str, object]] = []
    for name, values in (("norm", gradients.norm), ("per_error", gradients.per_error)):
        low, high = np.nan, np.nan
        if number == laboratory.rounds[-1]:  # a thousand AUCs
            low, high = bootstrap_interval(values[outliers], values[~outliers], seed=network.seed)
        controls = {
            column: _mean(_auc(values, _union(draw, len(values))) for draw in draws) for column, draws in drawn.items()
        }
        rows.append({"measure": name, "auc": _auc(values, outliers), "low": low, "high": high} | controls | common)
    own = {"measure": "own_filter", "auc": own_filter_auc(gradients, flagged, analysis), "low": np.nan, "high": np.nan}
    controls = {
        column: _mean(own_filter_auc(gradients, draw, analysis) for draw in draws) for column, draws in drawn.items()
    }
    rows.append(own | controls | common)
    place = {"seed": network.seed, "condition": network.condition, "round": number}
    return pd.DataFrame([place | row for row in rows])


def trained_labels(laboratory: Laboratory, network: Network, samples: pd.DataFrame) -> tuple[Tensor, NDArray[np.bool_]]:
    """Labels of probe samples as this network was trained with them, and which of those are wrong.

    The wrong labels of the overfitting network and of its control are drawn apart.
    """
    splits = laboratory.data(network)
    position = np.searchsorted(splits.train_indices.numpy(), samples["dataset_index"].to_numpy())
    return splits.train.labels[torch.from_numpy(position)], np.isin(position, splits.noisy.numpy())


def _mean(values: Iterable[float]) -> float:
    """Mean of those that are known; NaN without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def flagged_selections(analysis: Analysis) -> Iterator[Selection]:
    """Members of the small clusters of every filter, in each probe batch whose first clustering flags it."""
    fits = analysis.fits
    for row in analysis.screening.batches.query("flagged and repeat == 0").itertuples():
        members = small_members(fits, row.layer, row.filter, row.batch, analysis.small_cluster)
        yield Selection(row.layer, row.filter, row.batch, row.batch * fits.n_samples + members)


def random_selections(analysis: Analysis, flagged: list[Selection], rng: np.random.Generator) -> Iterator[Selection]:
    """For each flagged filter, as many of the smallest cluster of a random unflagged live one of its layer and batch.

    That cluster is the larger one as a rule, and its members are drawn; where it has fewer, all of them count. Where a
    layer has no such filter left, the flagged one has no counterpart.
    """
    batches = analysis.screening.batches.query("repeat == 0")
    candidates = batches[is_live(batches["status"]) & ~batches["flagged"]].groupby(["layer", "batch"])["filter"]
    by_place = {place: filters.to_numpy() for place, filters in candidates}
    for selection in flagged:
        filters = by_place.get((selection.layer, selection.batch))
        if filters is not None:
            chosen = int(rng.choice(filters))
            labels = analysis.fits.layers[selection.layer].labels[chosen, selection.batch, 0]
            members = rng.permutation(smallest_cluster(labels))[: len(selection.members)]
            yield Selection(
                selection.layer, chosen, selection.batch, selection.batch * analysis.fits.n_samples + members
            )


def random_samples(analysis: Analysis, flagged: list[Selection], rng: np.random.Generator) -> Iterator[Selection]:
    """For each flagged filter, as many samples of its batch."""
    n_samples = analysis.fits.n_samples
    for selection in flagged:
        members = rng.permutation(n_samples)[: len(selection.members)]
        yield replace(selection, members=selection.batch * n_samples + members)


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
    parts = []
    for name, (condition, which) in NETWORKS.items():
        rows = table[(table["measure"] == "norm") & (table["condition"] == condition) & table[which]]
        row = rows[["noisy_outliers", "noisy_others", "outliers"]].mean()
        parts.append(
            f"{name} {row['noisy_outliers']:.1%} of {row['outliers']:.0f} outliers, "
            f"{row['noisy_others']:.1%} of the others"
        )
    return "Wrong labels, means over seeds: " + "; ".join(parts) + "."


def _over_training(table: pd.DataFrame) -> Iterator[str]:
    """One sentence per measure and condition: the mean AUC after each round, and how much it changes."""
    for (measure, condition), rows in table.groupby(["measure", "condition"], sort=False):
        by_round = rows.pivot(index="seed", columns="round", values="auc")
        change = _auc_over_seeds("from the first to the last", by_round.iloc[:, -1] - by_round.iloc[:, 0], 0.0)
        means = ", ".join(f"{value:.2f}" for value in by_round.mean())
        yield f"Over training, {MEASURES[str(measure)]}, {condition}: AUC {means} by round; {change}."


def _figures(table: pd.DataFrame) -> dict[str, object]:
    kinds = {"auc": "anomaly filters", "auc_random": "random filters", "auc_samples": "random samples"}
    long = table.rename(columns=kinds).melt(
        ["seed", "condition", "round", "measure", "last"], list(kinds.values()), "outliers of", value_name="AUC"
    )
    figure = px.strip(
        long[long["last"]], x="measure", y="AUC", color="outliers of", facet_col="condition", hover_data=["seed"],
        title="Outliers against normal samples: probability of the larger gradient, a point a seed",
    )  # fmt: skip
    figure.add_hline(0.5, line_dash="dot")
    means = long.groupby(["condition", "round", "measure", "outliers of"], sort=False)["AUC"].mean().reset_index()
    over = px.line(
        means, x="round", y="AUC", color="outliers of", facet_col="measure", facet_row="condition", markers=True,
        title="The same over training: means over seeds",
    )  # fmt: skip
    over.add_hline(0.5, line_dash="dot")
    return {"auc": figure, "over_training": over}
