"""The jobs of a sweep in one table, and what they found in another, also while the sweep runs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from scipy import stats

from gmmcnn.config import DECIDED_BY
from gmmcnn.files import read_json, write_table
from gmmcnn.multirun.record import State, Status, Sweep, values_of, varied

CONFIDENCE = 0.95
"""Of the intervals over seeds."""
OVER = "seed"
"""The setting that jobs are averaged over."""
_SHOWN = {
    "anomalous_filters": "anomalous",
    "flagged_per_batch": "flagged",
    "outlier_samples": "outliers",
    "train_accuracy": "training",
    "validation_accuracy": "validation",
}
"""Quantities of the table for the console → heads of its columns."""


def aggregate(sweep: Sweep) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write ``jobs.csv`` and ``aggregate.csv`` into the sweep's folder.

    Returns
    -------
    jobs : DataFrame
        One row a job: ``job`` (its folder), ``status``, ``line`` (why it failed), ``host``, ``pid``, ``slurm_job``,
        ``since``, ``seconds``, and the settings that vary.
    found : DataFrame
        One row a quantity and combination of the settings that vary, over seeds and jobs that are done: ``quantity``,
        ``mean``, ``low`` and ``high`` (the interval of the mean by Student's t, of confidence :data:`CONFIDENCE`;
        missing for one job), ``n`` jobs. Of a verdict, whose quantity is ``verdict: CLAIM: WORD``, the mean is the
        share of jobs that came to it.
    """
    states = sweep.states()
    jobs, found = _jobs(sweep, states), _found(sweep, states)
    write_table(sweep.folder / "jobs.csv", jobs)
    write_table(sweep.folder / "aggregate.csv", found)
    return jobs, found


def summary(jobs: pd.DataFrame) -> str:
    """How many jobs are in which state, in one line."""
    counted = jobs["status"].value_counts()
    said = [f"{counted[status]} {status}" for status in map(str, Status) if status in counted]
    return f"{len(jobs)} job{'s' * (len(jobs) != 1)}: {', '.join(said)}"


def shown(found: pd.DataFrame) -> Table | None:
    """Table for the console: counts and accuracies by what varies; None where nothing is done yet."""
    chosen = found[found["quantity"].isin(_SHOWN)]
    if chosen.empty:
        return None
    settings = list(found.columns[: found.columns.get_loc("quantity")])
    table = Table(title="mean [95 % interval] over seeds", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    quantities = [name for name in _SHOWN if name in set(chosen["quantity"])]
    for column in [*settings, "n", *(_SHOWN[name] for name in quantities)]:
        table.add_column(column, justify="left" if column in settings else "right")
    groups = chosen.groupby(settings, sort=False, dropna=False) if settings else [((), chosen)]
    for values, rows in groups:
        by_name = rows.set_index("quantity")
        cells = [_cell(by_name.loc[name]) if name in by_name.index else "" for name in quantities]
        table.add_row(*map(str, values), str(int(rows["n"].max())), *cells)
    return table


def _cell(row: pd.Series) -> str:
    interval = "" if np.isnan(row["low"]) else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{row['mean']:.3g}{interval}"


def _jobs(sweep: Sweep, states: dict[str, State]) -> pd.DataFrame:
    columns = ("host", "pid", "slurm_job", "since")
    rows = []
    for job in sweep.jobs:
        state = states[job.name]
        about = {name: state.about.get(name) for name in columns}
        seconds = read_json(sweep.folder_of(job) / "run.json").get("seconds", {}).get("total")
        settings = {key: values_of(job).get(key) for key in varied(sweep)}
        rows.append(
            {"job": job.name, "status": str(state.status), "line": state.line, **about, "seconds": seconds, **settings}
        )
    return pd.DataFrame(rows).astype({"pid": "Int64"})


def _found(sweep: Sweep, states: dict[str, State]) -> pd.DataFrame:
    settings = [key for key in varied(sweep) if key != OVER and key not in DECIDED_BY["nothing"]]
    done = [job for job in sweep.jobs if states[job.name].status is Status.DONE]
    rows: list[dict[str, object]] = [
        {**{key: values_of(job).get(key, "") for key in settings}, "quantity": quantity, "value": value}
        for job in done
        for quantity, value in _quantities(sweep.folder_of(job))
    ]
    tidy = pd.DataFrame(rows, columns=[*settings, "quantity", "value"])
    grouped = _shares(tidy, settings).groupby([*settings, "quantity"], sort=False, dropna=False)["value"]
    found = grouped.agg(mean="mean", spread="std", n="count").reset_index()
    half = stats.t.ppf((1 + CONFIDENCE) / 2, (found["n"] - 1).clip(lower=1)) * found["spread"] / np.sqrt(found["n"])
    found = found.assign(low=found["mean"] - half, high=found["mean"] + half)
    return found[[*settings, "quantity", "mean", "low", "high", "n"]]


def _shares(tidy: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """Put numbers in the place of verdicts: 1 for the word that a job came to, 0 for those of the others alike."""
    is_word = tidy["value"].map(lambda value: isinstance(value, str)).astype(bool)
    parts = [tidy[~is_word]]
    for (*_, quantity), rows in tidy[is_word].groupby([*settings, "quantity"], sort=False, dropna=False):
        for word in sorted(set(rows["value"])):
            parts.append(rows.assign(quantity=f"{quantity}: {word}", value=(rows["value"] == word).astype(float)))
    joined = pd.concat([part for part in parts if len(part)] or parts[:1])
    return joined.astype({"value": "float64"})


def _quantities(run: Path) -> Iterator[tuple[str, float | str]]:
    """What a run found, by name: of the network as it is now; numbers, and the words of verdicts."""
    metrics = table_of(run / "metrics.csv")
    metrics = table_of(run / "checkpoints" / "metrics.csv") if metrics is None else metrics
    if metrics is not None:
        last = metrics.select_dtypes("number").drop(columns="epoch", errors="ignore").iloc[-1]
        yield from ((str(name), float(value)) for name, value in last.items() if not np.isnan(value))
    masking = table_of(run / "masking.csv")
    if masking is not None:
        means = masking.drop(columns="control", errors="ignore").groupby("mask", sort=False).mean(numeric_only=True)
        for mask, values in means.iterrows():
            yield from ((f"{mask} masked: {name}", float(value)) for name, value in values.items())
    for path in sorted(run.glob("experiments/*/estimates.csv")):
        estimates = table_of(path)
        if estimates is None:
            continue
        for row in estimates.to_dict("records"):
            yield f"{path.parent.name}: {row['name']}", float(row["value"])
        for claim, rows in estimates.groupby("claim", sort=False):
            yield f"verdict: {claim}", str(rows["verdict"].iloc[0])


def table_of(path: Path) -> pd.DataFrame | None:
    """A table of a run; None where it is missing, damaged or empty."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError):
        return None
    return table if len(table) else None
