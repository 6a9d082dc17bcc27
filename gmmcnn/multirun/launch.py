"""From the command line of a sweep to its jobs: what is asked is written down, what is missing is started.

Jobs are told apart by their settings alone, so the same command finds the same sweep again, skips what is done or
under way, and starts what failed or was lost; a command with more seeds adds to it when it names its folder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from gmmcnn.config import LocalLauncher, SlurmLauncher
from gmmcnn.multirun import local, page, slurm
from gmmcnn.multirun.aggregate import aggregate, shown, summary
from gmmcnn.multirun.record import UNFINISHED, Status, Sweep, folder_for
from gmmcnn.names import for_a_shell, quoted
from gmmcnn.progress import note, progress, say


def opened(folder: str | None, asked: Sequence[Sequence[str]]) -> Sweep:
    """Write down a sweep, or find it again.

    Parameters
    ----------
    folder : str or None
        Where; None names a folder after what varies.
    asked : sequence of sequence of str
        Settings of each job; none go on with those that the folder knows.
    """
    if folder and not any(asked):
        return Sweep.read(Path(folder))
    return Sweep.opened(Path(folder) if folder else folder_for(asked), asked)


def launch(sweep: Sweep, settings: LocalLauncher | SlurmLauncher, work: Callable[..., int]) -> int:
    """Start what is missing of a sweep, wait for it, and say how it went.

    Parameters
    ----------
    sweep : Sweep
    settings : config.LocalLauncher or config.SlurmLauncher
    work : callable
        Does one job, by the sweep's folder and the job's name.

    Returns
    -------
    int
        0 if all jobs are done or go on elsewhere, else 1.
    """
    states = sweep.states()
    missing = [job.name for job in sweep.jobs if states[job.name].status in UNFINISHED]
    skipped = len(sweep.jobs) - len(missing)
    done = sum(state.status is Status.DONE for state in states.values())
    left_alone = f"; {done} done and {skipped - done} under way are left alone" if skipped else ""
    say(f"Sweep: {sweep.folder}: {len(missing)} of {len(sweep.jobs)} jobs to do{left_alone}")
    if missing:
        with progress(sweep.folder.name, len(missing), "jobs") as advance:
            if isinstance(settings, SlurmLauncher):
                slurm.submit(sweep, missing, settings, work)
                if not settings.wait:
                    say(f"Look how they are: {look(sweep)}")
                    return 0
                slurm.wait(sweep, missing, advance)
            else:
                local.run(sweep, missing, settings, work, advance)
    return told(sweep)


def told(sweep: Sweep) -> int:
    """Aggregate a sweep, say how it stands, and return an exit code for it."""
    jobs, found = aggregate(sweep)
    table = shown(found)
    if table is not None:
        say(table)
    for row in jobs[jobs["status"].isin([Status.FAILED, Status.LOST, Status.UNCERTAIN])].to_dict("records"):
        say(f"{row['job']}: {row['status']}{': ' * bool(row['line'])}{row['line']}")
    say(f"{summary(jobs)}; tables: {sweep.folder / 'jobs.csv'}, {sweep.folder / 'aggregate.csv'}")
    say(f"Runs beside each other: {page.write(sweep, summary(jobs), found)}")
    if jobs["status"].isin(UNFINISHED).any():
        note(f"What is missing is done by the same command, or by: {again(sweep)}")
    return 0 if not jobs["status"].isin([*UNFINISHED, Status.UNCERTAIN]).any() else 1


def look(sweep: Sweep) -> str:
    """Command that shows how a sweep stands."""
    return f"gmmcnn task=aggregate {for_a_shell('sweep=' + quoted(str(sweep.folder)))}"


def again(sweep: Sweep) -> str:
    """Command that does what is missing of a sweep."""
    return f"gmmcnn -m {for_a_shell('sweep=' + quoted(str(sweep.folder)))}"
