"""What each task of the command line does, and the record of how it went."""

from collections.abc import Callable
from pathlib import Path

from gmmcnn import experiments, pipeline
from gmmcnn.config import Settings
from gmmcnn.report import compose
from gmmcnn.run_folder import Run


def execute(settings: Settings, folder: Path) -> None:
    """Carry out ``settings.task`` in a run folder, and record there how it went."""
    job = Run(settings, folder)
    with job.recorded():
        TASKS[settings.task](job)


def run(job: Run) -> None:
    """The whole pipeline, and the page about it."""
    pipeline.run(job)
    compose.write(job)


TASKS: dict[str, Callable[[Run], None]] = {
    "run": run,
    "train": pipeline.train,
    "extract": pipeline.extract,
    "fit": pipeline.fit,
    "screen": pipeline.screen,
    "prune": pipeline.prune,
    "report": compose.write,
    "experiment": experiments.run,
}
