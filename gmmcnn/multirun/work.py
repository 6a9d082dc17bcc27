"""One job of a sweep, in a process of its own, whoever started it."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gmmcnn.multirun.record import Job, Sweep, values_of
from gmmcnn.names import quoted

CommandLine = Callable[[Sequence[str]], int]
"""What runs the arguments of a command and returns its exit code."""


def do(folder: str, name: str, command_line: CommandLine, *, needs_gpu: str = "", threads: int | None = None) -> int:
    """Do a job unless it is done, or somebody else does it; the exit code of its command.

    Parameters
    ----------
    folder, name : str
        The sweep's folder and the job's name.
    command_line : callable
    needs_gpu : str
        The setting that asked for a GPU, if one did: a job that sees none then fails, and does not do its work slowly.
    threads : int, optional
        The job's share, unless its settings say another.
    """
    sweep = Sweep.read(Path(folder))
    job = sweep.job(name)
    if not sweep.claim(job):
        return 0
    _write_to(sweep.log_of(job))
    exit_code = 1
    try:
        if needs_gpu and not os.environ.get("CUDA_VISIBLE_DEVICES"):
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            sys.stderr.write(f"gmmcnn: {needs_gpu}: this job sees no GPU (CUDA_VISIBLE_DEVICES={seen!r})\n")
        else:
            exit_code = command_line(_arguments(sweep, job, threads))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sweep.end(job, exit_code)
    return exit_code


def _arguments(sweep: Sweep, job: Job, threads: int | None) -> list[str]:
    """Arguments of the command that does a job."""
    share = [f"engine.threads={threads}"] if threads and "engine.threads" not in values_of(job) else []
    return [*job.overrides, *share, f"run={quoted(str(sweep.folder_of(job)))}"]


def _write_to(log: Path) -> None:
    """Let everything that this process writes from now on go to the job's log, libraries' output included."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
