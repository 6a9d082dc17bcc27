"""What each task of the command line does, and the record of how it went."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from gmmcnn import pipeline
from gmmcnn.config import Settings
from gmmcnn.errors import EngineError, StoreError, StoreNotFoundError
from gmmcnn.experiments import running as experiments
from gmmcnn.featuremaps import ActivationStore, find_taps
from gmmcnn.names import command
from gmmcnn.progress import say
from gmmcnn.report.views import plural
from gmmcnn.run import page
from gmmcnn.run.doctor import JobSize, run_doctor
from gmmcnn.run.folder import Run


def execute(settings: Settings, folder: Path) -> None:
    """Carry out ``settings.task`` in a run folder, and record there how it went, if it does more than look."""
    job = Run(settings, folder)
    with nullcontext() if settings.task == "verify" else job.recorded():
        TASKS[settings.task](job)


def run(job: Run) -> None:
    """The whole pipeline, and the page about it."""
    page.write(job, pipeline.run(job))


def report(job: Run) -> None:
    """The page about the network as it is now."""
    page.write(job, pipeline.latest(job))


def experiment(job: Run) -> None:
    """A question about the method, and its answer beside controls."""
    experiments.require_possible(job.settings)
    job.accept()
    with job.timed(job.settings.experiment.name):
        experiments.run(job.settings, job.folder)


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
        raise StoreNotFoundError(f"{job.folder}: holds no feature maps; {command('extract', job.folder)} makes them")
    problems = {path: _problems(path) for path in stores}
    for path, found in problems.items():
        say(f"{path}: {'; '.join(found) or 'complete'}")
    if n_wrong := sum(bool(found) for found in problems.values()):
        raise StoreError(
            f"{n_wrong} of {plural(len(stores), 'store')} not as recorded: see above; "
            f"made again by: {command('extract', job.folder)}"
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
    taps = find_taps(
        job.network(), job.data().train.images[:1], tap=settings.extract.tap, layers=settings.extract.layers
    )
    layers = tuple((tap.n_filters, tap.height * tap.width) for tap in taps.analysed)
    n_checkpoints = 1 if settings.model.checkpoint else len(settings.train.kept_epochs)
    return JobSize(layers, n_checkpoints, job.probe().n_batches)


TASKS: dict[str, Callable[[Run], None]] = {
    "run": run,
    "train": pipeline.train,
    "extract": pipeline.extract,
    "fit": pipeline.fit,
    "screen": pipeline.screen,
    "samples": pipeline.samples,
    "prune": pipeline.prune,
    "report": report,
    "verify": verify,
    "experiment": experiment,
    "doctor": doctor,
}
