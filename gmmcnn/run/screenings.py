"""One run screened by several settings, side by side: nothing is fitted again, and the run's own tables stay.

    RUN/screenings/ch_ratio/asked.json          settings of each screening, by its name
    RUN/screenings/ch_ratio/screenings.csv      a row for each of them and checkpoint: what it counts
    RUN/screenings/ch_ratio/ch_ratio-0.5/       filters.csv, outliers.csv

A folder is named after the settings that are varied. More values of the same settings are added to it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from rich import box
from rich.table import Table

from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.errors import ConfigurationError, StoreError
from gmmcnn.files import make_folder, name_of, read_record, write_record, write_table
from gmmcnn.names import did_you_mean
from gmmcnn.progress import progress, say
from gmmcnn.run import stages, tables
from gmmcnn.run.folder import Checkpoint, Run
from gmmcnn.run.record import settings_of

FOLDER, ASKED, COUNTED = "screenings", "asked.json", "screenings.csv"
DECIDING = tuple(
    dict.fromkeys(name for product in ("fits", "screening") for name in config.DECIDED_BY[product] if name != "seed")
)
"""Settings that screenings of the same feature maps may differ in."""
WRITTEN = ("filters.csv", "outliers.csv")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9.+_-]+")
_LONGEST = 80
"""Characters of a folder's name."""

Asked = Mapping[str, Mapping[str, Any]]
"""Name of a screening → its value of each of :data:`DECIDING`."""


def require_settings_that_decide(keys: Iterable[str]) -> None:
    """Raise ConfigurationError if a setting decides more than fits and screening, or neither.

    Parameters
    ----------
    keys : iterable of str
        Settings that are varied, or groups of them such as ``screen``.
    """
    groups = {name.partition(".")[0] for name in DECIDING}
    for key in keys:
        if key not in DECIDING and key not in groups:
            raise ConfigurationError(
                f"{key}: cannot differ within one run; expected settings of gmm, pca or screen"
                f"{did_you_mean(key, DECIDING)}"
            )


def name_by(values: Mapping[str, str]) -> str:
    """Name of what some settings make, as part of a path: ``ch_ratio-0.5_k_max-12``.

    Parameters
    ----------
    values : mapping
        Setting → value as it was written, or nothing, for a name of the settings alone.
    """
    parts = [f"{key.rpartition('.')[2]}-{value}".removesuffix("-") for key, value in values.items()]
    name = _NOT_IN_A_NAME.sub("-", "_".join(parts)).strip("-.") or "own"
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 9]}-{name_of(dict(values), 8)}"


def screen(job: Run, varied: Sequence[str], asked: Mapping[str, config.Settings]) -> None:
    """Screen a run by several settings, and tell what each counts.

    Parameters
    ----------
    job : Run
    varied : sequence of str
        Settings that differ.
    asked : mapping of str to Settings
        By name, as :func:`name_by` makes it.

    Raises
    ------
    ConfigurationError
        There are no fits for some of the settings.
    """
    place = job.folder / FOLDER / name_by(dict.fromkeys(varied, ""))
    known = _asked_for(place)
    fresh = {name: {key: config.value_of(settings, key) for key in DECIDING} for name, settings in asked.items()}
    counted = _write(job, place, {**known, **fresh})
    say(_shown(counted, varied))
    say(f"Tables: {place / COUNTED}, and a folder for each")


def screen_again(job: Run) -> None:
    """Write all screenings of a run anew, as they were asked for. StoreError if the record of that is damaged."""
    for path in sorted((job.folder / FOLDER).glob(f"*/{ASKED}")):
        _write(job, path.parent, _asked_for(path.parent))


def _asked_for(place: Path) -> dict[str, dict[str, Any]]:
    """Settings of the screenings in a folder; none where there are none yet."""
    path, remedy = place / ASKED, "delete the folder, and ask for its screenings again"
    content = read_record(path, {"screenings": {str: dict}}, remedy=remedy) or {"screenings": {}}
    for name, values in content["screenings"].items():
        if _NOT_IN_A_NAME.search(name) or name.startswith(".") or values.keys() != set(DECIDING):
            raise StoreError(f"{path}: damaged, or of another version; {remedy}")
    return dict(content["screenings"])


def _write(job: Run, place: Path, asked: Asked) -> pd.DataFrame:
    """Write what is asked for; the table of all of it."""
    variants = {name: _with(job, values) for name, values in asked.items()}
    filters: dict[str, dict[Checkpoint, pd.DataFrame]] = {name: {} for name in asked}
    outliers: dict[str, dict[Checkpoint, pd.DataFrame]] = {name: {} for name in asked}
    rows = []
    checkpoints = job.checkpoints()
    with progress("screening", len(asked) * len(checkpoints), "screenings") as advance:
        for checkpoint in checkpoints:
            for name, analysis in _analyses(checkpoint, variants):
                filters[name][checkpoint], outliers[name][checkpoint] = analysis.filters, analysis.outliers
                rows.append({"screening": name, **asked[name], **tables.counts(checkpoint, analysis)})
                advance()
    job.accept()
    make_folder(place)
    write_record(place / ASKED, {"screenings": asked})
    for name in asked:
        make_folder(place / name)
        for table, parts in zip(WRITTEN, (filters[name], outliers[name]), strict=True):
            write_table(place / name / table, tables.joined(parts))
    counted = pd.DataFrame(rows)
    counted = counted.sort_values("screening", key=lambda names: names.map(list(asked).index), kind="stable")
    write_table(place / COUNTED, counted)
    written = [place / ASKED, place / COUNTED, *(place / name / table for name in asked for table in WRITTEN)]
    job.keep(*(path.relative_to(job.folder).as_posix() for path in written))
    return counted


def _with(job: Run, values: Mapping[str, Any]) -> Run:
    """The run with other settings in force, which the folder's record does not take over."""
    settings = OmegaConf.structured(job.settings)
    for key, value in values.items():
        OmegaConf.update(settings, key, value, merge=False)
    return Run(settings_of(settings), job.folder, beside=True)


def _analyses(checkpoint: Checkpoint, variants: Mapping[str, Run]) -> Iterator[tuple[str, Analysis]]:
    """Analyses of a checkpoint; fits are read once for all that have them in common, one after the other."""
    stage = stages.open_checkpoint(checkpoint)
    by_fits: dict[str, list[str]] = {}
    for name, variant in variants.items():
        by_fits.setdefault(name_of(config.deciding(variant.settings, "fits")), []).append(name)
    for names in by_fits.values():
        analysis = stages.analyse(variants[names[0]], stage).analysis
        for name in names:
            yield name, replace(analysis, settings=variants[name].settings.screen)


def _shown(counted: pd.DataFrame, varied: Sequence[str]) -> Table:
    """Table for the console: what each screening counts in the network as it is now."""
    last = counted[counted["checkpoint"] == counted["checkpoint"].iloc[-1]]
    of = "" if pd.isna(last["epoch"].iloc[0]) else f" at epoch {int(last['epoch'].iloc[0])}"
    table = Table(title=f"by screening{of}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    settings = [name for name in DECIDING if name in varied or counted[name].astype(str).nunique() > 1]
    for name in settings:
        table.add_column(name.rpartition(".")[2])
    for heading in ("anomalous", "flagged", "live", "outliers"):
        table.add_column(heading, justify="right")
    for row in last.to_dict("records"):
        numbers = [row["anomalous_filters"], f"{row['flagged_per_batch']:.1f}", row["live_filters"]]
        table.add_row(*(str(row[name]) for name in settings), *map(str, numbers), str(row["outlier_samples"]))
    return table
