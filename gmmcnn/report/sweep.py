"""The page of a sweep: its runs beside each other, one file that opens anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from gmmcnn.report.page import template
from gmmcnn.report.views import number

SCRIPTS = ("core", "drawing", "sweep")
QUANTITIES = {
    "flagged_per_batch": "filters flagged per batch",
    "anomalous_filters": "anomalous filters",
    "outlier_samples": "outlier samples",
    "train_accuracy": "training accuracy",
    "validation_accuracy": "validation accuracy",
    "train_loss": "training loss",
    "validation_loss": "validation loss",
}
"""Columns of ``metrics.csv`` that are drawn → what they are called."""


@dataclass(frozen=True, eq=False)
class RunOfSweep:
    """One run, as far as it has come.

    Attributes
    ----------
    name, status, line : str
        Of its folder; what became of it; why it failed, empty else.
    settings : mapping
        Those that vary: key → value.
    group : str
        Those that are not averaged over, as a heading.
    seconds : float or None
    report : str or None
        Address of its own page, from the sweep's.
    metrics : DataFrame or None
        Its ``metrics.csv``; None where there is none yet.
    layers : mapping
        Layer → numbers of anomalous and of all filters, at the end.
    ranks : mapping
        Number of a sample in the data set → its memorisation rank at the end.
    """

    name: str
    status: str
    line: str
    settings: Mapping[str, str]
    group: str
    seconds: float | None
    report: str | None
    metrics: pd.DataFrame | None = None
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    ranks: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SweepContent:
    """What the page shows.

    Attributes
    ----------
    title, headline : str
    settings : sequence of str
        Names of those that vary, the one that is averaged over too.
    over : str
        That one.
    jobs : sequence of RunOfSweep
    found : DataFrame
        As :func:`gmmcnn.multirun.aggregate.aggregate` returns it.
    """

    title: str
    headline: str
    settings: Sequence[str]
    over: str
    jobs: Sequence[RunOfSweep]
    found: pd.DataFrame


def render_sweep(content: SweepContent) -> str:
    """Complete HTML page, to be written in UTF-8; every text of ``content`` is escaped."""
    measured = [job.metrics for job in content.jobs if job.metrics is not None]
    known = [
        name for name in QUANTITIES if any(name in metrics and metrics[name].notna().any() for metrics in measured)
    ]
    return template("sweep.html").render(
        content=content,
        scripts=SCRIPTS,
        table=_table(content.found),
        data={
            "over": content.over,
            "settings": list(content.settings),
            "quantities": [{"name": name, "label": QUANTITIES[name]} for name in known],
            "jobs": [_as_json(job, known) for job in content.jobs],
        },
    )


def _as_json(job: RunOfSweep, quantities: Sequence[str]) -> dict[str, Any]:
    metrics = None
    if job.metrics is not None and not job.metrics.empty:
        columns = ["epoch", *(name for name in quantities if name in job.metrics)]
        metrics = {name: [None if pd.isna(x) else float(x) for x in job.metrics[name]] for name in columns}
    ranks = {str(sample): round(float(rank), 4) for sample, rank in job.ranks.items()}
    return asdict(job) | {"metrics": metrics, "ranks": ranks}


def _table(found: pd.DataFrame) -> dict[str, Any] | None:
    """Heads and rows of the means; None where nothing is done yet."""
    chosen = found[found["quantity"].isin(list(QUANTITIES))]
    if chosen.empty:
        return None
    settings = list(found.columns[: found.columns.get_loc("quantity")])
    known = [name for name in QUANTITIES if name in set(chosen["quantity"]) and not name.endswith("loss")]
    rows = []
    groups = chosen.groupby(settings, sort=False, dropna=False) if settings else [((), chosen)]
    for values, cells in groups:
        by_name = cells.set_index("quantity")
        means = [_mean(by_name.loc[name]) if name in by_name.index else "" for name in known]
        rows.append([*(map(str, values) if settings else ["all runs"]), str(int(cells["n"].max())), *means])
    return {"heads": [*(settings or ["runs"]), "n", *(QUANTITIES[name] for name in known)], "rows": rows}


def _mean(row: pd.Series) -> str:
    interval = "" if np.isnan(row["low"]) else f" [{number(row['low'])}, {number(row['high'])}]"
    return f"{number(row['mean'])}{interval}"
