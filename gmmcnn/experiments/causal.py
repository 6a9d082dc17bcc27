"""Whether outlier samples are a cause of overfitting: networks trained again without them.

That a network's outliers go with its overfitting is an association. Here they are left out, and the network is trained
again from the same initial weights for as many epochs. Leaving out any samples changes a network, so the same number is
left out in three other ways: drawn at random, those with the highest label surprise (from the same clusterings), and
drawn among those whose labels are known to be wrong. The last is the positive control: wrong labels are what such a
network overfits to, and where leaving *them* out shows nothing, nothing can be concluded from the outliers.

The gap is the accuracy on training samples, of those left, minus that on held-out ones. Held-out labels are right.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import plotly.express as px
from numpy.typing import NDArray

from gmmcnn.constants import Stream
from gmmcnn.experiments.gradients import flagged_selections
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import Estimate, Verdict, judge, over_seeds

CHOICES = {
    "outliers": "outlier samples",
    "surprise": "the samples whose labels surprise most",
    "wrong": "samples with wrong labels",
}
"""What is left out, beside as many at random."""
DRAWS = 3
"""Random choices for each network: each is a training."""
SMALLEST = {"accuracy_gap": 0.01, "validation_accuracy": 0.01}
"""Smallest effects of interest: one point."""


def run(laboratory: Laboratory) -> Outcome:
    """Leave out, train again, compare, judge."""
    networks = [Network(seed, Condition.OVERFITTING) for seed in laboratory.seeds]
    table = laboratory.of_each(networks, "causal", of_network)
    verdicts = tuple(verdict_on(table, choice) for choice in CHOICES)
    return Outcome(table, verdicts, (*_remarks(table),), _figures(table))


def of_network(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Train a network again without some samples.

    Returns
    -------
    DataFrame
        One row per choice (``none``, those of :data:`CHOICES`, ``random``) and ``draw``: ``seed``, ``left_out`` (number
        of samples), ``wrong_labels`` (share of them), accuracies and losses after the last round, ``accuracy_gap``,
        ``loss_gap``. The first row alone where no sample is an outlier.
    """
    noisy = np.isin(np.arange(len(laboratory.data(network).train)), laboratory.data(network).noisy.numpy())
    rows = []
    for choice, draw, samples in choices(laboratory, network, noisy):
        found = laboratory.without(network, samples)
        rows.append(
            {
                "seed": network.seed,
                "choice": choice,
                "draw": draw,
                "left_out": len(samples),
                "wrong_labels": noisy[samples].mean() if len(samples) else np.nan,
                **found,
                "accuracy_gap": found["train_accuracy"] - found["validation_accuracy"],
                "loss_gap": found["validation_loss"] - found["train_loss"],
            }
        )
    return pd.DataFrame(rows)


def choices(
    laboratory: Laboratory, network: Network, noisy: NDArray[np.bool_]
) -> Iterator[tuple[str, int, NDArray[np.int64]]]:
    """What to leave out of a network's training samples: name, number of the draw, places of the samples.

    Outliers are the members of the small clusters of the filters flagged in a probe batch, in the network after its
    last round. Only probed samples can be outliers or surprise, and random ones are drawn among these. Where there are
    fewer wrong labels than outliers, all of them are left out.

    Parameters
    ----------
    laboratory, network
    noisy : (N,) bool
        Which training samples have a wrong label.
    """
    yield "none", 0, np.array([], np.int64)
    analysis, probe = laboratory.analysis(network, laboratory.rounds[-1]), laboratory.probe(network)
    indices = laboratory.data(network).train_indices.numpy()
    places = np.searchsorted(indices, probe.samples["dataset_index"].to_numpy())
    members = [selection.members for selection in flagged_selections(analysis)]
    outliers = places[np.unique(np.concatenate(members))] if members else np.array([], np.int64)
    if not len(outliers):
        return
    rng = np.random.default_rng([network.seed, Stream.LEFT_OUT])
    yield "outliers", 0, outliers
    surprise = analysis.samples["label_surprise"].fillna(-np.inf).to_numpy()
    yield "surprise", 0, places[np.argsort(-surprise, kind="stable")[: len(outliers)]]
    wrong = np.flatnonzero(noisy)
    yield "wrong", 0, rng.permutation(wrong)[: len(outliers)]
    for draw in range(DRAWS):
        yield "random", draw, rng.permutation(places)[: len(outliers)]


def verdict_on(table: pd.DataFrame, choice: str) -> Verdict:
    """Judge whether leaving some samples out narrows the gap and raises validation accuracy, beyond random ones."""
    effects, checks = [], []
    for column, name in (
        ("accuracy_gap", "gap in accuracy, by which it narrows"),
        ("validation_accuracy", "validation accuracy"),
    ):
        sign = -1 if column == "accuracy_gap" else 1
        by_choice = partial(_by_seed, table, column)
        estimate = partial(_estimate, smallest=SMALLEST[column])
        effects.append(estimate(name, sign * (by_choice(choice) - by_choice("none"))))
        checks.append(estimate(f"{name}, beyond random samples", sign * (by_choice(choice) - by_choice("random"))))
    claim = f"Trained without {CHOICES[choice]}, a network overfits less"
    return judge(claim, effects, checks)


def _by_seed(table: pd.DataFrame, column: str, choice: str) -> pd.Series:
    return table[table["choice"] == choice].groupby("seed")[column].mean()


def _estimate(name: str, values: pd.Series, smallest: float) -> Estimate:
    return over_seeds(name, values, smallest=smallest, possible=(-2, 2))


def _remarks(table: pd.DataFrame) -> Iterator[str]:
    for choice, rows in table.groupby("choice", sort=False):
        means = rows.groupby("seed").mean(numeric_only=True).mean()
        wrong = "" if np.isnan(means["wrong_labels"]) else f", {means['wrong_labels']:.0%} of them with wrong labels"
        yield (
            f"Without {means['left_out']:.0f} samples ({choice}{wrong}; {rows['seed'].nunique()} seeds): training "
            f"accuracy {means['train_accuracy']:.3f}, validation accuracy {means['validation_accuracy']:.3f}, gap "
            f"{means['accuracy_gap']:.3f}; losses {means['train_loss']:.3f} and {means['validation_loss']:.3f}."
        )
    without = sorted(set(table["seed"]) - set(table.loc[table["choice"] == "outliers", "seed"]))
    if without:
        yield f"No outlier samples, nothing to leave out: seeds {', '.join(map(str, without))}."


def _figures(table: pd.DataFrame) -> dict[str, object]:
    means = table.groupby(["seed", "choice"], sort=False)[["accuracy_gap", "validation_accuracy"]].mean().reset_index()
    long = means.melt(["seed", "choice"], var_name="measure", value_name="share")
    return {
        "without": px.strip(
            long, x="choice", y="share", facet_col="measure", hover_data=["seed"],
            title="Trained again without some samples, a point a seed",
        ).update_yaxes(matches=None, showticklabels=True)
    }  # fmt: skip
