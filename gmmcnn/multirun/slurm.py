"""Jobs of a sweep on a cluster, as one array of Slurm jobs, by submitit."""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from gmmcnn.config import SlurmLauncher
from gmmcnn.errors import ConfigurationError, EngineError, one_line
from gmmcnn.multirun.queue import Queue, write_submission
from gmmcnn.multirun.record import UNDER_WAY, Status, Sweep
from gmmcnn.progress import Advance, say

_COMMON = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes")
"""Parameters that submitit has for every scheduler; it wants the others with ``slurm_`` in front."""
_POLL_S = 3.0
_NO_ANSWER_S = 600.0
"""Seconds that Slurm may leave unanswered before nobody waits any more."""


class ArrayJob:
    """One job of the array; called in it by submitit, and called again when it was requeued at its time limit."""

    def __init__(self, work: Callable[..., int], needs_gpu: str) -> None:
        self.work = work
        self.needs_gpu = needs_gpu

    def __call__(self, folder: str, name: str) -> int:
        """Do the job, or go on with it."""
        return self.work(folder, name, needs_gpu=self.needs_gpu)

    def checkpoint(self, folder: str, name: str) -> Any:
        """What to do after a requeue: the same again, since everything that is done lies in the job's folder."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, folder, name)


def submit(sweep: Sweep, names: Sequence[str], settings: SlurmLauncher, work: Callable[..., int]) -> None:
    """Hand jobs to Slurm, and write down before that they will be.

    Raises
    ------
    ConfigurationError
        The extra is missing.
    EngineError
        There is no Slurm here, or it refuses the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigurationError("hydra/launcher=slurm: needs submitit: pip install 'gmmcnn[slurm]'") from error
    slurm_name = f"gmmcnn-{secrets.token_hex(5)}"
    needs_gpu = f"hydra.launcher.gpus_per_node={settings.gpus_per_node}" if settings.gpus_per_node else ""
    given = {key: value for key, value in asdict(settings).items() if value is not None and key not in ("name", "wait")}
    retries = given.pop("max_num_timeout")
    parameters = {key if key in _COMMON else f"slurm_{key}": value for key, value in given.items()}
    write_submission(sweep.folder, slurm_name, names)
    with _told():
        executor = submitit.AutoExecutor(
            sweep.folder.absolute() / ".jobs" / "slurm" / "%j", cluster="slurm", slurm_max_num_timeout=retries
        )
        executor.update_parameters(name=slurm_name, **parameters)
        folder = str(sweep.folder.absolute())
        jobs = executor.map_array(ArrayJob(work, needs_gpu), [folder] * len(names), list(names))
    say(f"Slurm: array job {str(jobs[0].job_id).partition('_')[0]} of {len(jobs)}, called {slurm_name}")


def wait(sweep: Sweep, names: Sequence[str], advance: Advance) -> None:
    """Wait until none of some jobs is queued or running, as their folders and Slurm say."""
    left, answered = set(names), time.monotonic()
    while left:
        queue = Queue.asked(sweep.folder)
        states = {name: sweep.state(sweep.job(name), queue).status for name in left}
        if queue.states is not None:
            answered = time.monotonic()
        if time.monotonic() - answered > _NO_ANSWER_S:
            raise EngineError(f"squeue has not answered for {_NO_ANSWER_S:.0f} s; the jobs may go on: {sweep.folder}")
        going_on = UNDER_WAY if queue.states is not None else (*UNDER_WAY, Status.UNCERTAIN)
        ended = {name for name, status in states.items() if status not in going_on}
        left -= ended
        advance(len(ended))
        if left:
            time.sleep(_POLL_S)


@contextmanager
def _told() -> Any:
    """Turn what submitit raises into one line."""
    try:
        yield
    except Exception as error:  # whatever submitit, or Slurm behind it, raises
        raise EngineError(f"hydra/launcher=slurm: {one_line(error)}; see sbatch --version, sinfo") from error
