"""The page of a run: the analysis of its network as it is now, with what the folder holds beside it."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from gmmcnn import config
from gmmcnn.analysis import Analysis
from gmmcnn.files import write_text
from gmmcnn.progress import say
from gmmcnn.pruning.masks import load_mask
from gmmcnn.report.compose import page_of
from gmmcnn.run.folder import Run
from gmmcnn.run.stages import Analysed


def write(job: Run, found: Analysed) -> None:
    """Write the page on a run's network as it is now; beside the caller where the folder cannot be written."""
    page = page_of(
        found.analysis,
        facts=_settings_as_facts(job.settings, found.engines),
        metrics=job.metrics(),
        masking=_masking(job, found.analysis),
        class_names=list(found.class_names) if found.class_names else None,
    )
    path = job.folder / "report.html"
    try:
        write_text(path, page)
    except OSError as error:
        elsewhere = Path.cwd() / f"{job.folder.absolute().name}-report.html"
        say(f"{path}: cannot be written ({error.strerror}), so the page goes elsewhere")
        path = elsewhere
        write_text(path, page)
    say(f"Report: {path}")


def _masking(job: Run, analysis: Analysis) -> pd.DataFrame | None:
    """What masking does to the network; None where nothing was masked, or other filters than are anomalous now."""
    mask, masking = job.folder / "mask.json", job.folder / "masking.csv"
    if not (mask.exists() and masking.exists()) or load_mask(mask) != analysis.screening.anomalous:
        return None
    return job.table(masking.name, "prune", ("mask", "n_filters"))


def _settings_as_facts(settings: config.Settings, engines: tuple[str, ...]) -> dict[str, str]:
    """Settings that a reader of the report asks for, and the engines that made the fits."""
    train, engine = settings.train, ", ".join(engines) or settings.engine.name
    facts = {"Seed": str(settings.seed), "Engine": engine, "Feature maps": settings.extract.tap}
    if not (settings.model.checkpoint or settings.extract.source):
        facts["Training"] = (
            f"{train.epochs} epochs of {train.optimizer}, "
            f"learning rate {train.learning_rate:g}, batches of {train.batch_size}"
        )
    gmm = {key: value for key, value in asdict(settings.gmm).items() if key not in ("k_min", "k_max")}
    facts["Mixtures"] = ", ".join(f"{key} {value:g}" for key, value in gmm.items())
    return facts | {name: version(name) for name in ("gmmcnn", "torch")}
