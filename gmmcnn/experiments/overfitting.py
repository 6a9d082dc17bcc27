"""H1: whether the number of anomaly filters rises because a network overfits.

The count is followed over training beside the generalisation gap (validation minus training loss). Two controls: the
same network trained for as many updates on so much data that it does not overfit, and held-out images in the probe set
in place of training images. A count that says something about memorised samples should rise in neither. Since the
control does not fit its images as closely after as many updates, the training loss is held too, as far as two networks
allow (:mod:`.following`).
"""

import pandas as pd
import plotly.express as px

from gmmcnn.analysis import Analysis
from gmmcnn.experiments.associations import by_seed, rise
from gmmcnn.experiments.following import at_the_same_fit, judge_over_training
from gmmcnn.experiments.laboratory import Condition, Laboratory, Network
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import Estimate, over_seeds
from gmmcnn.filters import screening

COUNTS = ("flagged", "unbalanced", "separated", "active")
"""What is counted: filters that meet all criteria, and each of them, in a probe batch on average."""


def run(laboratory: Laboratory) -> Outcome:
    """Follow the counts over training, and judge."""
    table = count_over_training(laboratory)
    verdicts = tuple(
        judge_over_training(table, column, f"H1, {CLAIMS[column]} rise with the generalisation gap")
        for column in COUNTS
    )
    fit = (
        f"As closely fitted: {at_the_same_fit(table)}. The control took longer to get there, so what rises with time "
        "alone comes out below 0: this does not tell what the count follows."
    )
    remark = f"Held-out images as probe: {beyond_held_out(table)} (above 0: training images are singled out more)."
    several = "The first verdict is on the claim; the others are on single criteria."
    return Outcome(table, verdicts, (several, _trainings(table), fit, remark), _figures(table))


CLAIMS = {
    "flagged": "filters that meet all criteria",
    "unbalanced": "unbalanced filters",
    "separated": "separated filters",
    "active": "active filters",
}
"""What a count counts, in words."""


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
    excess = by_seed(overfitting, lambda rows: rise(rows, "flagged") - rise(rows, "flagged_held_out"))
    return over_seeds("rise beyond the held-out images'", excess)


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
