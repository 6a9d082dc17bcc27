"""Which of the three criteria does the work: each alone, in pairs, and all together.

For every combination the filters that meet it are counted over training, and the count is judged as in the experiment
on overfitting, with the same networks and the same control. No fit is made for it that the other did not make.
"""

from itertools import combinations

import pandas as pd
import plotly.express as px

from gmmcnn.analysis import Analysis
from gmmcnn.experiments.laboratory import Laboratory
from gmmcnn.experiments.outcome import Outcome
from gmmcnn.experiments.statistics import judge_over_training
from gmmcnn.progress import progress

CRITERIA = ("unbalanced", "separated", "active")
COMBINATIONS = {" + ".join(chosen): list(chosen) for n in (1, 2, 3) for chosen in combinations(CRITERIA, n)}
"""Name of each combination → columns that must all hold."""


def run(laboratory: Laboratory) -> Outcome:
    """Count over training by every combination, and judge each."""
    table = measure(laboratory)
    verdicts = tuple(
        judge_over_training(table, name, f"Filters that are {name} rise with the generalisation gap")
        for name in COMBINATIONS
    )
    remark = "Seven combinations are judged at once: expect one in forty to look supported by chance alone."
    return Outcome(table, verdicts, (remark,), _figures(table))


def measure(laboratory: Laboratory) -> pd.DataFrame:
    """Tabulate one row per network and round: the columns of :meth:`Laboratory.metrics`, and a count a combination."""
    networks = list(laboratory.networks())
    tables = []
    with progress("analyses", len(networks) * laboratory.size.rounds, "analyses") as advance:
        for network in networks:
            counted = []
            for number in laboratory.rounds:
                counted.append(counts(laboratory.analysis(network, number)))
                advance()
            tables.append(laboratory.metrics(network).join(pd.DataFrame(counted)))
    return pd.concat(tables, ignore_index=True)


def counts(analysis: Analysis) -> dict[str, float]:
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
