"""H1 where fit, gap, time and data size come apart: one regression over trainings of many kinds.

A network and its control (:mod:`.overfitting`) differ in gap, fit, and size of the training set at once, so they cannot
tell which of these a count follows. Here every seed trains a network in each cell of ``experiment.grid``: training sets
of several sizes, with shares of wrong labels, with and without regularisation. The same gap is then reached after few
and many updates, at small and large training losses, and one can ask what the count owes to the gap *given* the others.

The ranks of count, gap, updates and training loss over all trainings and rounds of a seed are regressed on each other,
and each seed gives one number: the partial rank correlation of count and gap. What is said of it is said over seeds, of
whose initial weights and images the networks of other seeds know nothing; that of one seed are related, and are one
observation.
"""

from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
from numpy.typing import ArrayLike, NDArray

from gmmcnn.experiments.associations import by_seed, partial_spearman, rank_regression, spearman
from gmmcnn.experiments.following import SMALLEST_CORRELATION
from gmmcnn.experiments.grids import grid, with_cell
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.overfitting import CLAIMS, COUNTS, count_by_criteria
from gmmcnn.experiments.statistics import Estimate, Verdict, judge, over_seeds
from gmmcnn.progress import progress

HELD = ("updates", "train_loss")
"""What moves with the gap in every training, and is held."""
CAUSES = ("train_samples", "passes", "wrong_labels")
"""What the gap is made by: sizes of training sets, how often each sample was seen, and wrong labels. A count may follow
these themselves."""
TOGETHER = ("gap", *HELD)
"""What the count is regressed on together."""


def run(laboratory: Laboratory) -> Outcome:
    """Train in every cell, count, regress, judge."""
    table = trained_in_cells(laboratory)
    verdicts = tuple(judge_crossed(table, column, f"H1, {CLAIMS[column]} follow the gap itself") for column in COUNTS)
    coefficients = pd.DataFrame(
        {"count": column, **vars(estimate)} for column in COUNTS for estimate in regressed(table, column)
    )
    together = "Ranks of the count regressed on all together, standardised: " + "; ".join(
        map(str, regressed(table, COUNTS[0]))
    )
    remarks = (together + ".", how_far_apart(table))
    return Outcome(table, verdicts, remarks, _figures(table, coefficients), {"coefficients": coefficients})


def trained_in_cells(laboratory: Laboratory) -> pd.DataFrame:
    """Train a network of every seed in every cell of the grid, and count its filters after every round.

    Returns
    -------
    DataFrame
        One row per cell, seed and round: the columns of :meth:`Laboratory.metrics`; ``cell``, ``updates`` (steps of the
        optimiser), ``train_samples``, ``passes`` (epochs), ``wrong_labels`` (share, as set), ``accuracy_gap``; the
        counts of :mod:`.overfitting`, means over probe batches.
    """
    cells = {cell: with_cell(laboratory.settings, cell) for cell in grid(laboratory.settings.experiment.grid)}
    tables = []
    with progress("cells", len(cells), "cells") as advance:
        for cell, settings in cells.items():
            own = Laboratory(settings, laboratory.folder)
            networks = [Network(seed, Condition.OVERFITTING) for seed in own.seeds]
            tables.append(own.of_each(networks, "counted", of_network).assign(cell=cell))
            advance()
    return pd.concat(tables, ignore_index=True)


def of_network(laboratory: Laboratory, network: Network) -> pd.DataFrame:
    """Measure one network after every round; the columns are those of :func:`trained_in_cells` without ``cell``."""
    table = laboratory.metrics(network).drop(columns="condition")
    settings, n_samples = laboratory.settings_of(network), len(laboratory.data(network).train)
    steps_an_epoch = -(-n_samples // settings.train.batch_size)
    table["passes"] = settings.train.kept_epochs
    table["updates"] = table["passes"] * steps_an_epoch
    table["train_samples"] = n_samples
    table["wrong_labels"] = settings.data.label_noise
    table["accuracy_gap"] = table["train_accuracy"] - table["validation_accuracy"]
    counts = [count_by_criteria(laboratory.analysis(network, number)) for number in laboratory.rounds]
    return table.join(pd.DataFrame(counts))


def judge_crossed(table: pd.DataFrame, column: str, claim: str) -> Verdict:
    """Judge whether a count follows the gap, given how long and how closely a network was trained.

    Parameters
    ----------
    table : DataFrame
        As from :func:`trained_in_cells`.
    column : str
        Column of the count.
    claim : str
        In words.

    Returns
    -------
    Verdict
        Its effect is the rank correlation of count and gap over all trainings of a seed. What goes beyond updates and
        training loss is its control. Besides, it must be there given what the cells differ in, and with the gap of
        accuracies in place of that of losses.
    """

    def of(name: str) -> list[NDArray[np.float64]]:
        return [rows[name].to_numpy(float) for _, rows in table.groupby("seed", sort=True)]

    names = (column, "gap", "accuracy_gap", *HELD, *CAUSES)
    seeds = [associated(*values) for values in zip(*map(of, names), strict=True)]
    return judge_associations(claim, *(np.array(values) for values in zip(*seeds, strict=True)))


def associated(
    count: ArrayLike,
    gap: ArrayLike,
    accuracy_gap: ArrayLike,
    updates: ArrayLike,
    train_loss: ArrayLike,
    *causes: ArrayLike,
) -> tuple[Any, Any, Any, Any]:
    """Rank correlations of count and gap in the trainings of one seed; (R,) each, or (R, G) of G seeds.

    Parameters
    ----------
    count, gap, accuracy_gap, updates, train_loss, *causes : (R,) or (R, G)
        Columns of :func:`trained_in_cells`; the last ones are :data:`CAUSES`.

    Returns
    -------
    tuple of four, float or (G,) float64
        Of themselves; given updates and training loss; given the causes as well; and given updates and
        training loss, of the gap of accuracies.
    """
    held = (updates, train_loss)
    return (
        spearman(count, gap),
        partial_spearman(count, gap, *held, degree=3),
        partial_spearman(count, gap, *held, *causes, degree=3),
        partial_spearman(count, accuracy_gap, *held, degree=3),
    )


def judge_associations(
    claim: str, plain: ArrayLike, given_fit: ArrayLike, given_causes: ArrayLike, of_accuracies: ArrayLike
) -> Verdict:
    """Judge by what :func:`associated` finds in each seed: (S,) numbers each."""

    def correlation(name: str, values: ArrayLike) -> Estimate:
        return over_seeds(name, values, smallest=SMALLEST_CORRELATION, possible=(-1, 1))

    return judge(
        claim,
        [correlation("Spearman with the gap over all trainings", plain)],
        [correlation("given updates and training loss", given_fit)],
        besides=[
            correlation("given size of the training set, passes through it and wrong labels as well", given_causes),
            correlation("with the gap of accuracies, given updates and training loss", of_accuracies),
        ],
        confounded=True,
    )


def regressed(table: pd.DataFrame, column: str) -> list[Estimate]:
    """What gap, updates and training loss add to each other: standardised coefficients of ranks, over seeds."""
    of_seeds = [rank_regression(rows[column], *(rows[name] for name in TOGETHER)) for _, rows in table.groupby("seed")]
    return [over_seeds(name, values) for name, values in zip(TOGETHER, np.transpose(of_seeds), strict=True)]


def how_far_apart(table: pd.DataFrame) -> str:
    """How closely gap, updates and training loss go together: where closely, little can be told of each."""

    def r(x: str, y: str) -> float:
        return float(by_seed(table, lambda rows: spearman(rows[x], rows[y])).mean())

    left = by_seed(table, lambda rows: 1 - unexplained(rows)).mean()
    return (
        f"Spearman of the gap with updates {r('gap', 'updates'):+.2f}, with the training loss "
        f"{r('gap', 'train_loss'):+.2f}, of these {r('updates', 'train_loss'):+.2f}; "
        f"both and their squares explain {left:.0%} of the ranks of the gap."
    )


def unexplained(rows: pd.DataFrame) -> float:
    """Share of the variance of the ranks of the gap that updates, training loss and their squares leave over."""
    held = [rows[name].rank().to_numpy() for name in HELD]
    curves = [(rank - rank.mean()) ** 2 for rank in held]
    predictors = np.column_stack([np.ones(len(rows)), *held, *curves])
    gap = rows["gap"].rank().to_numpy()
    residual = gap - predictors @ np.linalg.lstsq(predictors, gap, rcond=None)[0]
    return float(residual.var() / gap.var()) if gap.var() else 1.0


def _figures(table: pd.DataFrame, coefficients: pd.DataFrame) -> dict[str, object]:
    points = px.scatter(
        table, x="gap", y="flagged", color="train_loss", symbol="train_samples", hover_data=["cell", "seed", "round"],
        labels={"gap": "validation − training loss (nats)", "flagged": "filters flagged in a probe batch"},
        title="Every training after every round",
    )  # fmt: skip
    bars = px.scatter(
        coefficients, x="value", y="count", color="name", labels={"value": "standardised coefficient of ranks"},
        error_x=coefficients["high"] - coefficients["value"], error_x_minus=coefficients["value"] - coefficients["low"],
        title="Counts regressed on gap, updates and training loss together",
    )  # fmt: skip
    return {"trainings": points, "coefficients": bars}
