"""H1: whether the number of anomaly filters rises because a network overfits.

The count is followed over training beside the generalisation gap (validation minus training loss). Two controls: the
same network trained for as many updates on so much data that it does not overfit, and held-out images in the probe set
in place of training images. A count that says something about memorised samples should rise in neither. Since the
control does not fit its images as closely after as many updates, the two are compared at the same training loss too.
"""

import numpy as np
import pandas as pd
import plotly.express as px

from gmmcnn.analysis import Analysis
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import Estimate, by_seed, judge_over_training, over_seeds, rise
from gmmcnn.filters import screening

COUNTS = ("flagged", "unbalanced", "separated", "active")
"""What is counted: filters that meet all criteria, and each of them, in a probe batch on average."""


def run(laboratory: Laboratory) -> Outcome:
    """Follow the counts over training, and judge."""
    table = count_over_training(laboratory)
    verdicts = tuple(
        judge_over_training(table, column, f"H1, {_CLAIMS[column]} rise with the generalisation gap")
        for column in COUNTS
    )
    fit = f"As closely fitted: {at_the_same_fit(table)} (above 0: more filters are flagged with the wider gap)."
    remark = f"Held-out images as probe: {beyond_held_out(table)} (above 0: training images are singled out more)."
    several = "The first verdict is on the claim; those on single criteria are not corrected for their number."
    return Outcome(table, verdicts, (several, _trainings(table), fit, remark), _figures(table))


_CLAIMS = {
    "flagged": "filters that meet all criteria",
    "unbalanced": "unbalanced filters",
    "separated": "separated filters",
    "active": "active filters",
}


def count_over_training(laboratory: Laboratory) -> pd.DataFrame:
    """Tabulate counts beside losses and accuracies.

    Returns
    -------
    DataFrame
        One row per network and round: the columns of :meth:`Laboratory.metrics`, the :data:`COUNTS` on training images
        and, ending in ``_held_out``, on held-out ones; means over probe batches.
    """

    def observe(network: Network, number: int) -> dict[str, float]:
        held_out = count_by_criteria(laboratory.analysis(network, number, "held_out"))
        return count_by_criteria(laboratory.analysis(network, number)) | {
            f"{name}_held_out": count for name, count in held_out.items()
        }

    return laboratory.over_training(observe)


def count_by_criteria(analysis: Analysis) -> dict[str, float]:
    """Mean over probe batches of the number of filters that meet each criterion, and all of them."""
    found = screening.counts(analysis.fits, analysis.settings)
    return {column: found[column] for column in COUNTS}


def beyond_held_out(table: pd.DataFrame) -> Estimate:
    """How much more the count rises on training images than on held-out ones, in the overfitting networks."""
    overfitting = table[table["condition"] == Condition.OVERFITTING]
    excess = [rise(rows, "flagged") - rise(rows, "flagged_held_out") for _, rows in overfitting.groupby("seed")]
    return over_seeds("rise beyond the held-out images'", excess)


def at_the_same_fit(table: pd.DataFrame, column: str = "flagged") -> Estimate:
    """How much higher the count is in the overfitting networks than in their controls at the same training loss.

    The rounds of an overfitting network at which its training loss is one that the control of its seed had too, against
    the control's count there (linear between its rounds), on average. At the same epoch the network with the wider gap
    is the one that fits its images more closely, so a count that follows the fit alone looks there like one that
    follows the gap; here it comes out at zero. What is not the same here is the epoch: the control took longer.
    """

    def excess(rows: pd.DataFrame) -> float:
        overfitting, control = (rows[rows["condition"] == condition] for condition in Condition)
        control = control.sort_values("train_loss")
        shared = overfitting[overfitting["train_loss"].between(*control["train_loss"].agg(["min", "max"]))]
        expected = np.interp(shared["train_loss"], control["train_loss"], control[column])
        return (shared[column] - expected).mean()

    return over_seeds("beyond the control's at the same training loss", by_seed(table, excess))


def _trainings(table: pd.DataFrame) -> str:
    parts = []
    for condition, rows in table.groupby("condition"):
        by_round = rows.groupby("round")[["gap", "train_accuracy", "flagged"]].mean()
        first, last = by_round.iloc[0], by_round.iloc[-1]
        parts.append(
            f"{condition} gap {first['gap']:.2f} → {last['gap']:.2f} nats, training accuracy "
            f"{first['train_accuracy']:.0%} → {last['train_accuracy']:.0%}, {first['flagged']:.1f} → "
            f"{last['flagged']:.1f} filters"
        )
    return "First and last round, means over seeds: " + "; ".join(parts) + "."


def _figures(table: pd.DataFrame) -> dict[str, object]:
    shown = {
        "flagged": "filters flagged, training images",
        "flagged_held_out": "filters flagged, held-out images",
        "gap": "validation − training loss (nats)",
    }
    long = table.rename(columns=shown).melt(["seed", "condition", "epoch"], list(shown.values()), "measure")
    figure = px.line(
        long, x="epoch", y="value", color="condition", line_group="seed", facet_col="measure", markers=True,
        labels={"value": ""}, title="Counts beside the generalisation gap, a line a seed",
    )  # fmt: skip
    figure.update_yaxes(matches=None, showticklabels=True)
    return {"over_training": figure}
