"""Which of the three criteria does the work: each alone, in pairs, and all together.

For every combination the filters that meet it are counted over training, and the count is judged as in the experiment
on overfitting, with the same networks and the same control. No fit is made for it that the other did not make.
"""

from itertools import combinations

import pandas as pd
import plotly.express as px

from gmmcnn.analysis import Analysis
from gmmcnn.experiments.following import judge_over_training
from gmmcnn.experiments.laboratory import Laboratory
from gmmcnn.experiments.outcome import Outcome

CRITERIA = ("unbalanced", "separated", "active")
COMBINATIONS = {" + ".join(chosen): list(chosen) for n in (1, 2, 3) for chosen in combinations(CRITERIA, n)}
"""Name of each combination → columns that must all hold."""


def run(laboratory: Laboratory) -> Outcome:
    """Count over training by every combination, and judge each."""
    table = laboratory.over_training(
        lambda network, number: count_by_combinations(laboratory.analysis(network, number))
    )
    verdicts = tuple(
        judge_over_training(table, name, f"Filters that are {name} rise with the generalisation gap")
        for name in COMBINATIONS
    )
    remark = "Seven combinations are judged at once, on the same networks: neither independent, nor corrected."
    return Outcome(table, verdicts, (remark,), _figures(table))


def count_by_combinations(analysis: Analysis) -> dict[str, float]:
    """Mean over probe batches of the number of live filters that meet each combination."""
    batches = analysis.screening.batches
    return {
        name: float(batches[columns].all(axis=1).groupby([batches["batch"], batches["repeat"]]).sum().mean())
        for name, columns in COMBINATIONS.items()
    }


def _figures(table: pd.DataFrame) -> dict[str, object]:
    means = table.groupby(["condition", "epoch"])[list(COMBINATIONS)].mean().reset_index()
    long = means.melt(["condition", "epoch"], var_name="criteria", value_name="filters in a probe batch")
    figure = px.line(
        long, x="epoch", y="filters in a probe batch", color="criteria", line_dash="condition", markers=True,
        title="Counts by criteria, means over seeds",
    )  # fmt: skip
    return {"criteria": figure}
