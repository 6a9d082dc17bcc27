"""What each task of the command line does, and the record of how it went."""

from collections.abc import Callable
from pathlib import Path

from gmmcnn import experiments, pipeline
from gmmcnn.config import Settings
from gmmcnn.console import say
from gmmcnn.doctor import run_doctor
from gmmcnn.errors import EngineError
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


def doctor(job: Run) -> None:
    """Say what this machine offers and whether its engines agree with the reference."""
    text, exit_code = run_doctor(job.settings, estimate=job.settings.estimate)
    say(text)
    if exit_code:
        raise EngineError("an engine that should run here does not, or disagrees with the reference: see above")


TASKS: dict[str, Callable[[Run], None]] = {
    "run": run,
    "train": pipeline.train,
    "extract": pipeline.extract,
    "fit": pipeline.fit,
    "screen": pipeline.screen,
    "prune": pipeline.prune,
    "report": compose.write,
    "experiment": experiments.run,
    "doctor": doctor,
}
