"""The tables of a run: CSV and Parquet files, and the one on the console."""

from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table

from gmmcnn.analysis import Analysis
from gmmcnn.files import write_table
from gmmcnn.filters.fits import is_live
from gmmcnn.filters.samples import most_surprising, surprising_layers
from gmmcnn.run.folder import Checkpoint

NAMES = ("filters.csv", "filters.parquet", "outliers.csv", "samples.csv", "metrics.csv")
"""Files that :func:`write` writes."""
PRUNED = ("mask.json", "masking.csv", "pruning.csv", "pruned.pt", "pruned.pt2")
"""Files that pruning writes."""
SHOWN = 16
"""Samples in the table for the console; ``samples.csv`` holds all of them."""


def write(folder: Path, analyses: dict[Checkpoint, Analysis], metrics: pd.DataFrame | None) -> pd.DataFrame:
    """Write ``filters.csv`` and ``.parquet``, ``outliers.csv``, ``samples.csv`` and ``metrics.csv``.

    Rows of all checkpoints follow each other; ``checkpoint`` and ``epoch`` say which they belong to. The counts of the
    analysed epochs stand in ``metrics.csv`` beside losses and accuracies.

    Parameters
    ----------
    folder : Path
    analyses : dict of Checkpoint to Analysis
    metrics : DataFrame or None
        Losses and accuracies by epoch; None for a network that was not trained here.

    Returns
    -------
    DataFrame
        What stands in ``metrics.csv``.
    """
    filters = joined({checkpoint: analysis.filters for checkpoint, analysis in analyses.items()})
    write_table(folder / "filters.csv", filters)
    write_table(folder / "filters.parquet", filters)
    outliers = joined({checkpoint: analysis.outliers for checkpoint, analysis in analyses.items()})
    write_table(folder / "outliers.csv", outliers)
    write_samples(folder, analyses)
    counted = pd.DataFrame([counts(checkpoint, analysis) for checkpoint, analysis in analyses.items()])
    if metrics is not None:
        counted = metrics.merge(counted.drop(columns="checkpoint"), on="epoch", how="left")
    write_table(folder / "metrics.csv", counted)
    return counted


def write_samples(folder: Path, analyses: dict[Checkpoint, Analysis]) -> None:
    """Write ``samples.csv``, the scores of every probe sample at every checkpoint."""
    samples = joined({checkpoint: analysis.samples for checkpoint, analysis in analyses.items()})
    write_table(folder / "samples.csv", samples)


def surprising(analysis: Analysis) -> Table:
    """Table for the console: the samples whose labels surprise most."""
    title = f"{analysis.name}: labels that surprise most, by memorisation rank"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("sample", "label", "clusters say", "surprise", "rank", "surprising in", "memorised from"):
        table.add_column(column, justify="left" if column.endswith(("in", "from")) else "right")
    for row in most_surprising(analysis.samples, SHOWN).to_dict("records"):
        where, memorised_from = surprising_layers(row)
        numbers = (row["sample"], row["label"], row["cluster_label"], f"{row['label_surprise']:.2f}")
        table.add_row(*map(str, numbers), f"{row['memorisation_rank']:.3f}", ", ".join(where), memorised_from or "")
    return table


def layers(analysis: Analysis) -> Table:
    """Table for the console: one row per layer."""
    table = Table(title=analysis.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for column in ("filters", "live", "unbalanced", "separated", "active", "anomalous"):
        table.add_column(column, justify="right")
    for layer, rows in analysis.filters.groupby("layer", sort=False):
        live = is_live(rows["status"]).sum()
        criteria = [rows[name].sum() for name in ("unbalanced", "separated", "active", "anomalous")]
        table.add_row(str(layer), *(f"{int(n)}" for n in (len(rows), live, *criteria)))
    return table


def joined(tables: dict[Checkpoint, pd.DataFrame]) -> pd.DataFrame:
    """Rows of all checkpoints, with ``checkpoint`` and ``epoch`` in front of the other columns."""
    parts = [table.assign(checkpoint=place.name, epoch=place.epoch) for place, table in tables.items()]
    together = pd.concat(parts, ignore_index=True)
    return together[["checkpoint", "epoch", *tables[next(iter(tables))].columns]]


def counts(checkpoint: Checkpoint, analysis: Analysis) -> dict[str, object]:
    """What an analysis counts: a row of ``metrics.csv``."""
    filters = analysis.filters
    return {
        "checkpoint": checkpoint.name,
        "epoch": checkpoint.epoch,
        "anomalous_filters": int(filters["anomalous"].sum()),
        "flagged_per_batch": analysis.screening.flagged_per_batch,
        "live_filters": int(is_live(filters["status"]).sum()),
        "outlier_samples": len(analysis.outliers),
    }
