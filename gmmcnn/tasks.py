"""What each task of the command line does, and the record of how it went."""

from collections.abc import Callable
from pathlib import Path

from gmmcnn import pipeline
from gmmcnn.config import Settings
from gmmcnn.errors import EngineError, StoreError, StoreNotFoundError
from gmmcnn.experiments import running as experiments
from gmmcnn.featuremaps import ActivationStore, find_taps
from gmmcnn.progress import say
from gmmcnn.report.views import plural
from gmmcnn.run import page
from gmmcnn.run.doctor import JobSize, run_doctor
from gmmcnn.run.folder import Run


def execute(settings: Settings, folder: Path) -> None:
    """Carry out ``settings.task`` in a run folder, and record there how it went."""
    job = Run(settings, folder)
    with job.recorded():
        TASKS[settings.task](job)


def run(job: Run) -> None:
    """The whole pipeline, and the page about it."""
    pipeline.run(job)
    page.write(job)


def verify(job: Run) -> None:
    """Say of every store of feature maps in the run folder whether it is complete and undamaged.

    Raises
    ------
    StoreNotFoundError
        There is no store.
    StoreError
        Anything is missing, damaged, or left behind by an interrupted writer.
    """
    stores = sorted((job.folder / "activations").glob("*/maps.zarr"))
    if not stores:
        raise StoreNotFoundError(
            f"{job.folder}: holds no feature maps; gmmcnn task=extract run={job.folder} makes them"
        )
    problems = {path: _problems(path) for path in stores}
    for path, found in problems.items():
        say(f"{path}: {'; '.join(found) or 'complete'}")
    if n_wrong := sum(bool(found) for found in problems.values()):
        raise StoreError(
            f"{n_wrong} of {plural(len(stores), 'store')} not as recorded: see above; "
            f"made again by: gmmcnn task=extract run={job.folder}"
        )


def _problems(path: Path) -> list[str]:
    """What is wrong with a store."""
    try:
        return ActivationStore.open(path, partial=True).verify()
    except StoreError as error:
        return [str(error)]


def doctor(job: Run) -> None:
    """Say what this machine offers and whether its engines agree with the reference."""
    text, exit_code = run_doctor(job.settings, job=_size(job) if job.settings.estimate else None)
    say(text)
    if exit_code:
        raise EngineError("an engine that should run here does not, or disagrees with the reference: see above")


def _size(job: Run) -> JobSize:
    """What fitting this network at all its checkpoints comes to."""
    settings = job.settings
    taps = find_taps(job.model, job.data.train.images[:1], tap=settings.extract.tap, layers=settings.extract.layers)
    layers = tuple((tap.n_filters, tap.height * tap.width) for tap in taps.analysed)
    n_checkpoints = 1 if settings.model.checkpoint else len(settings.train.kept_epochs)
    return JobSize(layers, n_checkpoints, job.probe.n_batches)


TASKS: dict[str, Callable[[Run], None]] = {
    "run": run,
    "train": pipeline.train,
    "extract": pipeline.extract,
    "fit": pipeline.fit,
    "screen": pipeline.screen,
    "prune": pipeline.prune,
    "report": page.write,
    "verify": verify,
    "experiment": experiments.run,
    "doctor": doctor,
}
