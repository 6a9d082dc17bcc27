"""The page of a run: the analysis of its network as it is now, with what the folder holds beside it."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.files import read_json, write_text
from gmmcnn.names import command
from gmmcnn.progress import say
from gmmcnn.pruning.masks import load_mask
from gmmcnn.report.compose import page_of
from gmmcnn.run import record
from gmmcnn.run.folder import Run
from gmmcnn.run.stages import Analysed


def write(job: Run, analysed: Sequence[Analysed]) -> None:
    """Write the page on a run; beside the caller where the folder cannot be written.

    Parameters
    ----------
    job : Run
    analysed : sequence of Analysed
        Of all checkpoints; the last is the network as it is now, which the page is about.
    """
    found, by_epoch = analysed[-1], {one.checkpoint.epoch: one.analysis for one in analysed}
    page = page_of(
        found.analysis,
        earlier={epoch: by_epoch[epoch] for epoch in by_epoch if epoch is not None and epoch != found.checkpoint.epoch},
        facts=_settings_as_facts(job.settings, found.engines) | _provenance(job),
        metrics=_course(job.metrics(), by_epoch),
        masking=_masking(job, found.analysis),
        class_names=list(found.class_names) if found.class_names else None,
        command=command("screen", job.folder),
        epoch=found.checkpoint.epoch,
    )
    path = job.folder / "report.html"
    try:
        write_text(path, page)
    except OSError as error:
        elsewhere = Path.cwd() / f"{job.folder.absolute().name}-report.html"
        say(f"{path}: cannot be written ({error.strerror}), so the page goes elsewhere")
        path = elsewhere
        write_text(path, page)
    else:
        job.keep(path.name)
    say(f"Report: {path}")


def _course(metrics: pd.DataFrame | None, analyses: Mapping[int | None, Analysis]) -> pd.DataFrame | None:
    """Losses and accuracies by epoch, with the counts of the thresholds in force: the table's may be of others."""
    if metrics is None:
        return None
    known = {epoch: analysis for epoch, analysis in analyses.items() if epoch is not None}
    return metrics.assign(
        anomalous_filters=metrics["epoch"].map({e: int(a.filters["anomalous"].sum()) for e, a in known.items()}),
        flagged_per_batch=metrics["epoch"].map({e: a.screening.flagged_per_batch for e, a in known.items()}),
    )


def _masking(job: Run, analysis: Analysis) -> pd.DataFrame | None:
    """What masking does to the network; None where nothing was masked, or other filters than are anomalous now."""
    mask, masking = job.folder / "mask.json", job.folder / "masking.csv"
    job.require_kept(mask.name, "prune")
    if not (mask.exists() and masking.exists()) or load_mask(mask) != analysis.screening.anomalous:
        return None
    return job.table(masking.name, "prune", ("mask", "n_filters"), numbers=("n_filters",))


def _settings_as_facts(settings: config.Settings, engines: tuple[str, ...]) -> dict[str, str]:
    """Settings that a reader of the report asks for, and the engines that made the fits."""
    train, engine = settings.train, ", ".join(engines) or f"not recorded; asked for: {settings.engine.name}"
    facts = {"Seed": str(settings.seed), "Engine": engine, "Feature maps": settings.extract.tap}
    if not (settings.model.checkpoint or settings.extract.source):
        facts["Training"] = (
            f"{train.epochs} epochs of {train.optimizer}, "
            f"learning rate {train.learning_rate:g}, batches of {train.batch_size}"
        )
    gmm = {key: value for key, value in asdict(settings.gmm).items() if key not in ("k_min", "k_max")}
    return facts | {"Mixtures": ", ".join(f"{key} {value:g}" for key, value in gmm.items())}


def _provenance(job: Run) -> dict[str, str]:
    """When, where, by what and from what the page was made."""
    defaults, own = record.values_of(config.Settings()), record.values_of(job.settings)
    changed = [f"{key}={own[key]}" for key in own if own[key] != defaults[key] and key not in record.OF_A_COMMAND]
    versions = [f"{name} {version(name)}" for name in ("gmmcnn", "torch", "numpy")]
    facts = {
        "Settings changed": ", ".join(changed) or "none",
        "Written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "Written by": command(job.settings.task, job.folder),
        "Machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
        "Versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
    }
    commit = read_json(job.folder / "run.json").get("git_commit")
    return facts | ({"Commit": str(commit)} if commit else {})
