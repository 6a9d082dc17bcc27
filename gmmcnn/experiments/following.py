"""Whether a count follows the generalisation gap over training, and not what else changes meanwhile.

Count and gap both drift, so within a training they correlate whatever the count is about. Three things are held
against that, each by the seed: the *epoch* (over the overfitting network and its control, which have made as many
updates: has the one with the wider gap the higher count?), the *control's own rise*, and the epoch and the *training
loss* together. After as many updates the control fits its images less closely, so that a count which follows the loss
alone passes the first two.

Gap, loss and time hardly come apart in two networks of a seed. Given both others little is left of the gap, and only a
strong effect is found with few seeds; that it is not found then says nothing of a control. Comparing the two networks
at the same training loss (:func:`at_the_same_fit`) holds the loss and lets go of the time.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gmmcnn.experiments.associations import by_seed, partial_spearman, rise, spearman
from gmmcnn.experiments.laboratory import Condition
from gmmcnn.experiments.statistics import Estimate, Verdict, judge, over_seeds

SMALLEST_CORRELATION = 0.3
"""Smallest rank correlation of interest: less than a tenth of the variance of the ranks."""

SMALLEST_RISE = 0.1
"""Smallest rise beyond the control's of interest, as a share of the range of the count over all trainings."""


def judge_over_training(table: pd.DataFrame, column: str, claim: str) -> Verdict:
    """Judge whether a count follows the generalisation gap over training, and follows it for what it is.

    Parameters
    ----------
    table : DataFrame
        One row per network and epoch: ``seed``, ``condition`` (``overfitting`` or ``control``: the same network
        trained for as many updates without overfitting), ``epoch`` (comparable between the conditions),
        ``train_loss``, ``gap`` (validation minus training loss), and the count.
    column : str
        Column of the count.
    claim : str
        In words.

    Returns
    -------
    Verdict
        Its effect is the association within seeds (mean Spearman coefficient of count and gap). The checks are the
        association given the epoch, the rise of the count beyond that of the control of the same seed, and the
        association given the epoch and the training loss.
    """
    overfitting, control = (table[table["condition"] == condition] for condition in Condition)
    paired = sorted(set(overfitting["seed"]) & set(control["seed"]))
    both = table[table["seed"].isin(paired)]
    rises = [by_seed(rows[rows["seed"].isin(paired)], lambda own: rise(own, column)) for rows in (overfitting, control)]
    return judge_associations(
        claim,
        within=by_seed(overfitting, lambda rows: spearman(rows[column], rows["gap"])),
        given_epoch=by_seed(both, lambda rows: partial_spearman(rows[column], rows["gap"], rows["epoch"])),
        beyond_control=rises[0] - rises[1],
        given_fit=by_seed(both, lambda rows: given_the_fit(*(rows[name] for name in (column, "gap", *HELD)))),
        span=float(np.ptp(table[column])) if len(table) else np.nan,
    )


HELD = ("epoch", "train_loss")


def given_the_fit(count: ArrayLike, gap: ArrayLike, epoch: ArrayLike, train_loss: ArrayLike) -> Any:
    """Rank correlation of count and gap given epoch and training loss and their curves; (R,) or (R, G) each."""
    return partial_spearman(count, gap, epoch, train_loss, degree=2)


def judge_associations(
    claim: str,
    *,
    within: ArrayLike,
    given_epoch: ArrayLike,
    beyond_control: ArrayLike,
    given_fit: ArrayLike,
    span: float,
) -> Verdict:
    """Judge by what the seeds say.

    Parameters
    ----------
    claim : str
        In words.
    within, given_epoch, given_fit : (S,) float
        Rank correlations of count and gap.
    beyond_control : (S,) float
        Rise of the count beyond the control's.
    span : float
        Range of the count over all trainings.
    """

    def correlation(name: str, values: ArrayLike) -> Estimate:
        return over_seeds(name, values, smallest=SMALLEST_CORRELATION, possible=(-1, 1))

    return judge(
        claim,
        [correlation("Spearman with the gap within seeds", within)],
        [
            correlation("given the epoch", given_epoch),
            over_seeds("rise beyond the control's", beyond_control, smallest=SMALLEST_RISE * span),
        ],
        besides=[correlation("given the epoch and the training loss", given_fit)],
        confounded=True,
    )


def at_the_same_fit(table: pd.DataFrame, column: str = "flagged") -> Estimate:
    """How much higher the count is in the overfitting networks than in their controls at the same training loss.

    The rounds of an overfitting network at which its training loss is one that the control of its seed had too, against
    the control's count there (linear between its rounds), on average. What is not the same here is the epoch: the
    control took longer, so that a count which rises with time alone comes out *below* zero, and one that rises with
    time and with the gap may. A description of what was measured, and no test of what the count follows.
    """

    def excess(rows: pd.DataFrame) -> float:
        overfitting, control = (rows[rows["condition"] == condition] for condition in Condition)
        control = control.sort_values("train_loss")
        shared = overfitting[overfitting["train_loss"].between(*control["train_loss"].agg(["min", "max"]))]
        expected = np.interp(shared["train_loss"], control["train_loss"], control[column])
        return (shared[column] - expected).mean()

    return over_seeds("beyond the control's at the same training loss", by_seed(table, excess))
