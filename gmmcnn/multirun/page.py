"""From the folders of a sweep to its page."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from gmmcnn.files import read_json, write_text
from gmmcnn.multirun.aggregate import OVER, table_of
from gmmcnn.multirun.record import Job, State, Sweep, values_of, varied
from gmmcnn.report.sweep import RunOfSweep, SweepContent, render_sweep

NAME = "sweep.html"
MOST_SAMPLES = 2000
"""Ranks of a run that the page holds, at most: those that stand first."""


def write(sweep: Sweep, headline: str, found: pd.DataFrame) -> Path:
    """Write the page on a sweep into its folder, from what its runs have written so far.

    Parameters
    ----------
    sweep : Sweep
    headline : str
        How it stands, in one line.
    found : DataFrame
        As :func:`~gmmcnn.multirun.aggregate.aggregate` returns it.
    """
    settings, states = varied(sweep), sweep.states()
    runs = [_run(sweep, job, states[job.name], settings) for job in sweep.jobs]
    path = sweep.folder / NAME
    write_text(path, render_sweep(SweepContent(sweep.folder.name, headline, settings, OVER, runs, found)))
    return path


def _run(sweep: Sweep, job: Job, state: State, settings: Sequence[str]) -> RunOfSweep:
    folder, values = sweep.folder_of(job), values_of(job)
    metrics = table_of(folder / "metrics.csv")
    if metrics is None:
        metrics = table_of(folder / "checkpoints" / "metrics.csv")
    filters, samples = _at_the_end(folder / "filters.csv"), _at_the_end(folder / "samples.csv")
    layers: dict[str, tuple[int, int]] = {}
    if filters is not None and {"layer", "anomalous"} <= set(filters.columns):
        by_layer = filters.groupby("layer", sort=False)["anomalous"]
        layers = {str(layer): (int(flags.sum()), len(flags)) for layer, flags in by_layer}
    ranks: dict[int, float] = {}
    if samples is not None and {"dataset_index", "memorisation_rank"} <= set(samples.columns):
        first = samples.dropna(subset=["dataset_index", "memorisation_rank"]).nlargest(
            MOST_SAMPLES, "memorisation_rank"
        )
        ranks = dict(zip(first["dataset_index"].astype(int), first["memorisation_rank"], strict=True))
    return RunOfSweep(
        name=job.name,
        status=str(state.status),
        line=state.line,
        settings={name: values[name] for name in settings if name in values},
        group=", ".join(f"{name}={values[name]}" for name in settings if name != OVER and name in values),
        seconds=read_json(folder / "run.json").get("seconds", {}).get("total"),
        report=quote(f"{job.name}/report.html") if (folder / "report.html").exists() else None,
        metrics=metrics,
        layers=layers,
        ranks=ranks,
    )


def _at_the_end(path: Path) -> pd.DataFrame | None:
    """Rows of a table that are of the last checkpoint; None where there is no such table."""
    table = table_of(path)
    return (
        None
        if table is None or "checkpoint" not in table
        else table[table["checkpoint"] == table["checkpoint"].iloc[-1]]
    )
