"""Whether outlier samples are a cause of overfitting: networks trained again without them.

That a network's outliers go with its overfitting is an association. Here they are left out, and the network is trained
again from the same initial weights for as many epochs. Leaving out any samples changes a network, so the same number is
left out in three other ways: drawn at random, those with the highest label surprise (from the same clusterings), and
drawn among those whose labels are known to be wrong. The last is the positive control: wrong labels are what such a
network overfits to, and where leaving *them* out shows nothing, nothing can be concluded from the outliers.

Outliers are *few*, and leaving out few samples of any kind does little. So *many* are left out as well, as many as
there are wrong labels: those that flagged filters singled out most often, over all rounds and repeats.

Judged is validation accuracy (held-out labels are right). The gap to training accuracy is told and not judged: where
wrong labels are left out, what is left is fitted more easily, so that training accuracy rises as well.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.express as px
from numpy.typing import NDArray

from gmmcnn.constants import Stream
from gmmcnn.experiments.gradients import flagged_selections
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import Estimate, Verdict, judge, over_seeds
from gmmcnn.filters.outliers import times_singled_out

CHOICES = {
    "outliers": "outliers",
    "surprise": "the samples whose labels surprise most",
    "wrong": "samples with wrong labels",
}
"""What is left out, beside as many at random."""
DRAWS = 3
"""Random choices for each network: each is a training."""
DOSES = ("few", "many")
SMALLEST = 0.01
"""Smallest effect of interest: one point of validation accuracy."""


def run(laboratory: Laboratory) -> Outcome:
    """Leave out, train again, compare, judge."""
    networks = [Network(seed, Condition.OVERFITTING) for seed in laboratory.seeds]
    table = laboratory.of_each(networks, "without", of_network)
    verdicts = tuple(verdict_on(table, dose, choice) for dose in DOSES for choice in CHOICES)
    return Outcome(table, verdicts, (*_remarks(table),), _figures(table))


def of_network(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Train a network again without some samples.

    Returns
    -------
    DataFrame
        One row per ``dose`` (``none``, and those of :data:`DOSES`), ``choice`` (``none``, those of :data:`CHOICES`,
        ``random``) and ``draw``: ``seed``, ``left_out`` (number of samples), ``wrong_labels`` (share of them),
        accuracies and losses after the last round, ``accuracy_gap``, ``loss_gap``. No ``few`` where no sample is an
        outlier, no ``many`` where no label is wrong.
    """
    noisy = np.isin(np.arange(len(laboratory.data(network).train)), laboratory.data(network).noisy.numpy())
    rows = []
    for dose, choice, draw, samples in choices(laboratory, network, noisy):
        found = laboratory.without(network, samples)
        rows.append(
            {
                "seed": network.seed,
                "dose": dose,
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
) -> Iterator[tuple[str, str, int, NDArray[np.int64]]]:
    """What to leave out of a network's training samples: dose, choice, number of the draw, places of the samples.

    Outliers are the members of the small clusters of the filters flagged in a probe batch, in the network after its
    last round. Only probed samples can be outliers or surprise, and random ones are drawn among these. Where there are
    fewer wrong labels than outliers, all of them are left out.

    Parameters
    ----------
    laboratory, network
    noisy : (N,) bool
        Which training samples have a wrong label.
    """
    yield "none", "none", 0, np.array([], np.int64)
    last, probe = laboratory.analysis(network, laboratory.rounds[-1]), laboratory.probe(network)
    places = np.searchsorted(laboratory.data(network).train_indices.numpy(), probe.samples["dataset_index"].to_numpy())
    members = [selection.members for selection in flagged_selections(last)]
    often = _times_singled_out(laboratory, network)
    outliers = {
        "few": np.unique(np.concatenate(members)) if members else np.array([], np.int64),
        "many": np.argsort(-often, kind="stable")[: min(noisy.sum(), np.count_nonzero(often))],
    }
    surprising = np.argsort(-last.samples["label_surprise"].fillna(-np.inf).to_numpy(), kind="stable")
    for number, dose in enumerate(DOSES):
        if n_left_out := len(outliers[dose]):
            rng = np.random.default_rng([network.seed, Stream.LEFT_OUT, number])
            yield dose, "outliers", 0, places[outliers[dose]]
            yield dose, "surprise", 0, places[surprising[:n_left_out]]
            yield dose, "wrong", 0, rng.permutation(np.flatnonzero(noisy))[:n_left_out]
            for draw in range(DRAWS):
                yield dose, "random", draw, rng.permutation(places)[:n_left_out]


def _times_singled_out(laboratory: Laboratory, network: Network) -> NDArray[np.int64]:
    analyses = (laboratory.analysis(network, number) for number in laboratory.rounds)
    return np.sum([times_singled_out(a.fits, a.screening, a.small_cluster) for a in analyses], axis=0)


def verdict_on(table: pd.DataFrame, dose: str, choice: str) -> Verdict:
    """Judge whether leaving some samples out raises validation accuracy, and more than leaving out random ones."""
    without, unchanged, random = (
        _by_seed(table, *kind) for kind in ((dose, choice), ("none", "none"), (dose, "random"))
    )
    effect = _estimate("validation accuracy", without - unchanged)
    check = _estimate("validation accuracy beyond that without random samples", without - random)
    return judge(f"Trained without {dose} samples, {CHOICES[choice]}, a network is better", [effect], [check])


def _by_seed(table: pd.DataFrame, dose: str, choice: str) -> pd.Series:
    return table[(table["dose"] == dose) & (table["choice"] == choice)].groupby("seed")["validation_accuracy"].mean()


def _estimate(name: str, values: pd.Series) -> Estimate:
    return over_seeds(name, values, smallest=SMALLEST, possible=(-1, 1))


def _remarks(table: pd.DataFrame) -> Iterator[str]:
    for (dose, choice), rows in table.groupby(["dose", "choice"], sort=False):
        means = rows.groupby("seed").mean(numeric_only=True).mean()
        wrong = "" if np.isnan(means["wrong_labels"]) else f", {means['wrong_labels']:.0%} of them with wrong labels"
        yield (
            f"Without {means['left_out']:.0f} samples ({dose}, {choice}{wrong}; {rows['seed'].nunique()} seeds): "
            f"training accuracy {means['train_accuracy']:.3f}, validation accuracy {means['validation_accuracy']:.3f}, "
            f"gap {means['accuracy_gap']:.3f}; losses {means['train_loss']:.3f} and {means['validation_loss']:.3f}."
        )
    for dose in DOSES:
        without = sorted(set(table["seed"]) - set(table.loc[table["dose"] == dose, "seed"]))
        if without:
            yield f"No outliers, nothing to leave out: {dose}, seeds {', '.join(map(str, without))}."


def _figures(table: pd.DataFrame) -> dict[str, object]:
    means = (
        table.groupby(["seed", "dose", "choice"], sort=False)[["validation_accuracy", "accuracy_gap"]]
        .mean()
        .reset_index()
    )
    long = means.melt(["seed", "dose", "choice"], var_name="measure", value_name="share")
    return {
        "without": px.strip(
            long, x="choice", y="share", color="dose", facet_col="measure", hover_data=["seed"],
            title="Trained again without some samples, a point a seed",
        ).update_yaxes(matches=None, showticklabels=True)
    }  # fmt: skip
