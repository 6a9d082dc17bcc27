"""Thresholds chosen by data: many tried on the networks of some seeds, the best of them judged on those of others.

Stored fits are screened by every point of a grid. The *score* of a point is that of the weakest of three things that a
verdict on H1 needs, all without a unit: association of the count with the generalisation gap within seeds, the same
given the epoch, and the rise of the count beyond that of the control network, as a share of the count's range. (Given
the training loss too, a few seeds are too few to choose by.) The
point with the highest mean score is chosen. Among thousands the best looks good by chance; only seeds that had no part
in the choice can say whether it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.experiments.associations import partial_spearman, rise, spearman
from gmmcnn.experiments.following import judge_over_training
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.statistics import Verdict
from gmmcnn.filters.fits import Fits, is_live
from gmmcnn.filters.rules import Active, Separated, Unbalanced
from gmmcnn.filters.screening import measure, usual_status

Grid = Mapping[str, tuple]
"""Values of λ, α, β, θ and of the frequency, by their names in :class:`gmmcnn.config.Screen`, in this order. Without a
frequency (None) the count is that of the filters flagged in a probe batch, with one that of the anomaly filters."""

GRID: Grid = {
    "small_cluster": (1, 2, 3, 5, 8, 12, 20),
    "min_small_clusters": (1, 2, 3),
    "ch_ratio": (0.0, 0.5, 0.8, 1.0, 1.25, 1.6),
    "activation_ratio": (0.0, 0.25, 0.5, 0.75, 1.0),
    "min_frequency": (None, 0.2, 0.5, 0.8),
}
NEEDED = ("association", "given_epoch", "beyond_control")
"""What a point is scored by."""


def points(grid: Grid = GRID) -> Iterator[str]:
    """Names of a grid's points, ``"small_cluster=5 …"``, in the order of :func:`count_by_thresholds`."""
    for values in product(*grid.values()):
        yield " ".join(f"{key}={value:g}" for key, value in zip(grid, values, strict=True) if value is not None)


def point(screen: config.Screen, *, by_frequency: bool = False) -> Grid:
    """Grid of one point: the thresholds in force."""
    values: dict[str, Any] = {key: (getattr(screen, key),) for key in GRID}
    return values if by_frequency else values | {"min_frequency": (None,)}


def count_by_thresholds(fits: Fits, screen: config.Screen, grid: Grid = GRID) -> NDArray[np.float64]:
    """Count filters by every point of a grid.

    Parameters
    ----------
    fits : Fits
        Of one network; nothing is fitted again.
    screen : config.Screen
        Scope and kind of the averages.
    grid : Grid
        Thresholds.

    Returns
    -------
    (λ, α, β, θ, frequency) float64
        Filters flagged in a probe batch, mean over batches; or anomaly filters.
    """
    return np.stack(
        [_of_one_size(measure(fits, replace(screen, small_cluster=size)), grid) for size in grid["small_cluster"]]
    )


def _of_one_size(measured: dict[str, NDArray], grid: Grid) -> NDArray[np.float64]:
    """Counts for one λ: (α, β, θ, frequency)."""
    unbalanced = np.stack([Unbalanced(least)(measured) for least in grid["min_small_clusters"]])
    separated = np.stack([Separated(ratio)(measured) for ratio in grid["ch_ratio"]])
    active = np.stack([Active(ratio)(measured) for ratio in grid["activation_ratio"]])
    live = is_live(measured["status"])
    flagged = (unbalanced & live)[:, None, None] & separated[:, None] & active  # (α, β, θ, F, B, R)
    frequency = flagged.mean(axis=(-2, -1)) * is_live(usual_status(measured["status"]))
    by_frequency = [
        flagged.sum(axis=-3).mean(axis=(-2, -1)) if least is None else (frequency >= least).sum(axis=-1)
        for least in grid["min_frequency"]
    ]
    return np.stack(by_frequency, axis=-1).astype(float)


def thresholds_over_training(laboratory: Laboratory, grid: Grid = GRID) -> pd.DataFrame:
    """Tabulate one row per network and round: the columns of :meth:`Laboratory.metrics`, and a count a point."""
    names = list(points(grid))

    def observe(network: Network, number: int) -> dict[str, float]:
        analysis = laboratory.analysis(network, number)
        counted = count_by_thresholds(analysis.fits, analysis.settings, grid)
        return dict(zip(names, counted.ravel(), strict=True))

    return laboratory.over_training(observe)


def scores(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Score counts.

    Parameters
    ----------
    table : DataFrame
        As for :func:`gmmcnn.experiments.following.judge_over_training`.
    columns : list of str
        Counts.

    Returns
    -------
    DataFrame
        By column: the means over seeds of what is :data:`NEEDED` (given the epoch NaN where the gap is a function of
        it), and the smallest of them as ``score``.
    """
    of_seeds = [_of_a_seed(rows, columns) for _, rows in table.groupby("seed")]
    found = pd.concat(of_seeds).groupby(level="thresholds", sort=False).mean()
    return found.assign(score=found.min(axis=1))


def _of_a_seed(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """What is needed, by column, for one seed; the rise is 0 for a constant count."""
    overfitting, control = (rows[rows["condition"] == condition] for condition in Condition)
    beyond = rise(overfitting, columns) - rise(control, columns)
    span = np.ptp(rows[columns].to_numpy(float), axis=0)
    needed = (
        spearman(overfitting[columns], overfitting["gap"]),
        partial_spearman(rows[columns], rows["gap"], rows["epoch"]),
        beyond / np.where(span > 0, span, 1),
    )
    return pd.DataFrame(dict(zip(NEEDED, needed, strict=True)), index=pd.Index(columns, name="thresholds"))


@dataclass(frozen=True)
class Choice:
    """Thresholds chosen on some seeds, and what the others say of them.

    Attributes
    ----------
    thresholds : str
        The point chosen.
    scores : DataFrame
        By point: the columns of :func:`scores` on the tuning seeds, and ``held_out``, the score on the held-out ones.
    verdict : Verdict
        On the point chosen, by the held-out seeds alone.
    """

    thresholds: str
    scores: pd.DataFrame
    verdict: Verdict

    def __str__(self) -> str:
        best = self.scores.loc[self.thresholds]
        agreement = spearman(self.scores["score"], self.scores["held_out"])
        return (
            f"Thresholds chosen among {len(self.scores)}: {self.thresholds}; score {best['score']:+.2f} on the seeds "
            f"they were chosen on, {best['held_out']:+.2f} on held-out ones (best possible there "
            f"{self.scores['held_out'].max():+.2f}); rank correlation of all scores between the two {agreement:+.2f}."
        )


def choose(tuning: pd.DataFrame, held_out: pd.DataFrame, columns: list[str]) -> Choice:
    """Choose the count with the highest score on some seeds, the first of equals, and judge it on others.

    Parameters
    ----------
    tuning, held_out : DataFrame
        As for :func:`gmmcnn.experiments.following.judge_over_training`, with no seed in common.
    columns : list of str
        Counts to choose from.
    """
    scored = scores(tuning, columns).assign(held_out=scores(held_out, columns)["score"])
    best = str(scored["score"].idxmax())
    claim = f"H1 by the chosen thresholds ({best}), on held-out seeds"
    return Choice(best, scored, judge_over_training(held_out, best, claim))
