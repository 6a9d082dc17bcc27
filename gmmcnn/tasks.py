"""What each task of the command line does, and the record of how it went."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from gmmcnn import pipeline, tracking
from gmmcnn.config import Settings
from gmmcnn.errors import EngineError, StoreError
from gmmcnn.experiments import running as experiments
from gmmcnn.hardware import gpu
from gmmcnn.hardware.workers import Workers
from gmmcnn.names import command
from gmmcnn.progress import say
from gmmcnn.report.views import plural
from gmmcnn.run import page, preview, screenings, verify
from gmmcnn.run.doctor import run_doctor
from gmmcnn.run.folder import Run
from gmmcnn.run.tables import NAMES, PRUNED

TRACKED = ("run", "train", "screen")
"""Tasks that tell the services of ``tracking`` how they go."""


def execute(settings: Settings, folder: Path, workers: Workers | None = None) -> None:
    """Carry out ``settings.task`` in a run folder, and record there how it went, if it does more than look.

    Parameters
    ----------
    settings : Settings
    folder : Path
    workers : Workers, optional
        Who fits in place of this process.
    """
    job = Run(settings, folder)
    job.workers = workers
    gpu.share_out(settings.engine.gpus)
    if settings.dry_run:
        preview.show(job)
        return
    if settings.task in TRACKED:
        tracking.require(job.trackers)
    with nullcontext() if settings.task == "verify" else job.recorded():
        if settings.task in TRACKED:
            job.open_trackers()
        TASKS[settings.task](job)


def execute_beside(settings: Settings, folder: Path, varied: Sequence[str], asked: Mapping[str, Settings]) -> None:
    """Carry out a task in one run folder by several settings, whose results lie side by side; its own settings stay.

    Parameters
    ----------
    settings : Settings
        The folder's own, with the task.
    folder : Path
    varied : sequence of str
        Settings that differ.
    asked : mapping of str to Settings
        Those of each piece of work, by name.
    """
    job = Run(settings, folder)
    gpu.share_out(settings.engine.gpus)
    with job.recorded():
        if settings.task == "screen":
            screenings.screen(job, varied, asked)
        else:
            for variant in asked.values():
                pipeline.fit(Run(variant, folder, beside=True))


def run(job: Run) -> None:
    """The whole pipeline, and the page about it."""
    page.write(job, pipeline.run(job))


def report(job: Run) -> None:
    """The page about the network as it is now."""
    page.write(job, pipeline.analysed(job))


def experiment(job: Run) -> None:
    """A question about the method, and its answer beside controls."""
    experiments.require_possible(job.settings)
    job.accept()
    with job.timed(job.settings.experiment.name):
        written = experiments.run(job.settings, job.folder)
    job.keep(*(str(path.relative_to(job.folder)) for path in written))


def repair(job: Run) -> None:
    """Make again what is damaged or lost in the run folder, from what is there, and say what was done.

    Weights are trained again, bit by bit the same; feature maps and fits are made from them; tables from the fits.

    Raises
    ------
    StoreError
        Something is still wrong afterwards.
    """
    problems = verify.wrong(job.folder, verify.parts(job.folder))
    tables = _unsound_tables(job, problems)
    if not problems and not tables:
        say(f"{job.folder}: nothing to repair")
        return
    for part, lines in problems.items():
        say(f"{part.path}: {'; '.join(lines)}")
    kinds = {part.kind for part in problems}
    verify.remove_leftovers(problems)
    if "weights" in kinds:
        for name in [*pipeline.retrain(job), *experiments.retrain(job.settings, job.folder)]:
            say(f"{name}: trained again")
    if kinds & {"maps", "record", "probe", "fits", "table"} and (job.folder / "activations").is_dir():
        pipeline.fit_again(job)
    for write in _writers(job, tables):
        write(job)
    if "kept" in kinds:
        say(f"What an experiment had kept is made again by: {command('experiment', job.folder)}")
    left = verify.wrong(job.folder, verify.parts(job.folder, job.digests()))
    if left:
        part, lines = next(iter(left.items()))
        raise StoreError(f"{part.path}: {lines[0]}; it cannot be made again from what is here")
    say(f"{job.folder}: repaired, {plural(len(problems) or len(tables), 'part')} in all")


def _unsound_tables(job: Run, problems: Iterable[verify.Part]) -> list[Path]:
    """Tables that are not as recorded; all that are there, where the record of them was lost itself."""
    if not job.digests():
        return [path for name in (*NAMES, *PRUNED, "report.html") if (path := job.folder / name).exists()]
    return [part.path for part in problems if part.kind == "table"]


def _writers(job: Run, tables: Sequence[Path]) -> Sequence[Callable[[Run], None]]:
    """What writes some tables again."""
    names = {path.name for path in tables if path.parent == job.folder}
    writers = [(pipeline.screen, set(NAMES)), (pipeline.prune, set(PRUNED)), (report, {"report.html"})]
    elsewhere = {path.relative_to(job.folder).parts[0] for path in tables}
    in_folders = [("experiments", experiment), (screenings.FOLDER, screenings.screen_again)]
    return [write for write, written in writers if written & names] + [w for name, w in in_folders if name in elsewhere]


def doctor(job: Run) -> None:
    """Say what this machine offers and whether its engines agree with the reference."""
    text, exit_code = run_doctor(job.settings, job=preview.size_of(job) if job.settings.estimate else None)
    say(text)
    if exit_code:
        raise EngineError("an engine that should run here does not, or disagrees with the reference: see above")


TASKS: dict[str, Callable[[Run], None]] = {
    "run": run,
    "train": pipeline.train,
    "extract": pipeline.extract,
    "fit": pipeline.fit,
    "screen": pipeline.screen,
    "samples": pipeline.samples,
    "prune": pipeline.prune,
    "report": report,
    "verify": lambda job: verify.verify(job.folder),
    "repair": repair,
    "experiment": experiment,
    "doctor": doctor,
}
