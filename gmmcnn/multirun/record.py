"""What a sweep was asked for, and what became of each job.

    SWEEP/sweep.json          the jobs, written before the first of them starts
    SWEEP/seed-0_k_max-4/     one run folder a job, named by what varies
    SWEEP/.jobs/NAME.json     who does a job, and how it ended; NAME.log, what it wrote
    SWEEP/.jobs/submitted/    what was handed to a scheduler, written before it was
    SWEEP/jobs.csv, aggregate.csv, sweep.html

Nothing is returned from job to launcher: whoever looks, reads the folders, and whoever is killed, loses no more than
its own work. A job is done once however many launchers start it: under a lock on the sweep, its process looks whether
somebody does it or has done it, and writes down that it does so now.
"""

import fcntl
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from gmmcnn.errors import ConfigurationError
from gmmcnn.files import name_of, read_json, write_json
from gmmcnn.multirun.queue import Queue
from gmmcnn.run import alive

NAME = "sweep.json"
_LONGEST = 80
"""Characters of a folder's name."""


class Status(StrEnum):
    """What became of a job."""

    WAITING = "waiting"
    """Nobody has begun it."""
    QUEUED = "queued"
    """A scheduler has it, and has not begun it, or will begin it again."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """It was asked to end, and goes on where it stopped."""
    LOST = "lost"
    """It was killed, or its machine was."""
    UNCERTAIN = "uncertain"
    """Nobody here can tell whether it still runs."""


UNFINISHED = (Status.WAITING, Status.FAILED, Status.INTERRUPTED, Status.LOST)
"""What the same command starts again."""
UNDER_WAY = (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True)
class State:
    """A job's state, and what is known about it.

    Attributes
    ----------
    status : Status
    line : str
        Why it failed, in one line; empty else.
    about : mapping
        ``host``, ``pid``, ``slurm_job``, ``since``, as far as they are known.
    """

    status: Status
    line: str
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One run of a sweep: the name of its folder, and its settings as on the command line."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and its jobs."""

    folder: Path
    jobs: tuple[Job, ...]

    @classmethod
    def read(cls, folder: Path) -> "Sweep":
        """Read the record of a sweep.

        Raises
        ------
        ConfigurationError
            There is none, or it is damaged.
        """
        content = read_json(folder / NAME)
        try:
            jobs = tuple(Job(str(job["name"]), tuple(map(str, job["overrides"]))) for job in content["jobs"])
        except (LookupError, TypeError):
            what = "damaged" if (folder / NAME).exists() else "missing"
            raise ConfigurationError(
                f"{folder / NAME}: {what}; expected the record of a sweep: sweep=FOLDER, as gmmcnn -m ... said it"
            ) from None
        return cls(folder, jobs)

    @classmethod
    def opened(cls, folder: Path, asked: Sequence[Sequence[str]]) -> "Sweep":
        """Write down the jobs that are asked for, beside those that the folder knows already.

        Parameters
        ----------
        folder : Path
        asked : sequence of sequence of str
            Each job's settings as on the command line.
        """
        (folder / ".jobs").mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            known = cls.read(folder).jobs if (folder / NAME).exists() else ()
            there = {frozenset(job.overrides) for job in known}
            fresh = [tuple(overrides) for overrides in asked if frozenset(overrides) not in there]
            names = _names([*(job.overrides for job in known), *fresh])[len(known) :]
            jobs = (*known, *_unlike(known, names, fresh))
            if fresh:
                content = [{"name": job.name, "overrides": job.overrides} for job in jobs]
                write_json(folder / NAME, {"format": 1, "written": alive.now(), "jobs": content}, indent=1)
        return cls(folder, jobs)

    def folder_of(self, job: Job) -> Path:
        """The job's run folder."""
        return self.folder / job.name

    def log_of(self, job: Job) -> Path:
        """What the job wrote."""
        return self.folder / ".jobs" / f"{job.name}.log"

    def job(self, name: str) -> Job:
        """The job of a name."""
        return next(job for job in self.jobs if job.name == name)

    def state(self, job: Job, queue: Queue) -> State:
        """What became of a job, by its folder, its process and the scheduler."""
        claim, run = read_json(self._claim(job)), read_json(self.folder_of(job) / "run.json")
        by_hand = not claim or str(run.get("started", "")) > str(claim.get("ended", "~"))
        same_process = all(run.get(key) == claim.get(key) for key in ("host", "pid", "born"))
        heartbeat = {"heartbeat": run["heartbeat"]} if same_process and "heartbeat" in run else {}
        about = run if by_hand else claim | heartbeat
        known = {key: about[key] for key in ("host", "pid", "slurm_job") if about.get(key)}
        known["since"] = about.get("started", "")
        waits = queue.waits(self.folder, job.name)
        if about.get("status", "running") == "running" and about:
            works = _works(about, queue)
            if works is not False:
                return State(Status.RUNNING if works else Status.UNCERTAIN, "", known)
            if waits:
                return State(Status.QUEUED, "", known)
            return State(Status.DONE if run.get("status") == "done" else Status.LOST, "", known)
        if run.get("status") == "done" or about.get("status") == "done":
            return State(Status.DONE, "", known)
        if waits:
            return State(Status.QUEUED, "", known)
        if waits is None and not about:
            return State(Status.UNCERTAIN, "", known)
        return State(Status(about.get("status", "waiting")), str(about.get("line", about.get("error", ""))), known)

    def states(self, queue: Queue | None = None) -> dict[str, State]:
        """State of every job, by name."""
        queue = queue or Queue.asked(self.folder)
        return {job.name: self.state(job, queue) for job in self.jobs}

    def claim(self, job: Job) -> bool:
        """Write down that this process does a job, unless it is done, or somebody does it or may do it."""
        with _alone(self.folder):
            claimed, me = read_json(self._claim(job)), alive.this_process()
            requeued = (
                "slurm_job" in me and me["slurm_job"] == claimed.get("slurm_job") and me["host"] != claimed["host"]
            )
            state = self.state(job, Queue.asked(self.folder))
            if state.status in (Status.DONE, Status.RUNNING, Status.UNCERTAIN) and not requeued:
                return False
            write_json(self._claim(job), me | {"started": alive.now(), "heartbeat": alive.now()})
            return True

    def end(self, job: Job, exit_code: int) -> None:
        """Write down how a job of this process ended."""
        claim, run = read_json(self._claim(job)), read_json(self.folder_of(job) / "run.json")
        if run.get("pid") == claim.get("pid") and run.get("status") in ("done", "failed", "interrupted"):
            status, line = run["status"], run.get("error", "")
        else:
            status = "done" if exit_code == 0 else "interrupted" if exit_code in (130, 143) else "failed"
            line = _last_line(self.log_of(job))
        ended = {"status": status, "exit_code": exit_code, "ended": alive.now(), "heartbeat": alive.now()}
        write_json(self._claim(job), claim | ended | ({"line": line} if status == "failed" else {}))

    def _claim(self, job: Job) -> Path:
        return self.folder / ".jobs" / f"{job.name}.json"


def folder_for(asked: Sequence[Sequence[str]]) -> Path:
    """Folder of a sweep that names none: the same for the same jobs, so that the same command finds it again."""
    varied = [key.rpartition(".")[2] for key in _varied(asked)]
    return (
        Path("multirun") / f"{_plain('_'.join(varied))[:_LONGEST] or 'sweep'}-{name_of(sorted(map(sorted, asked)), 8)}"
    )


def values_of(job: Job) -> dict[str, str]:
    """The job's settings: key → value as it was written."""
    pairs = (override.partition("=") for override in job.overrides)
    return {key.lstrip("+~"): value for key, _, value in pairs}


def varied(sweep: Sweep) -> list[str]:
    """Settings that differ from job to job, in the order of the command."""
    return _varied([job.overrides for job in sweep.jobs])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other launchers and jobs of the sweep waiting while the block looks and writes."""
    with (folder / ".jobs" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _works(about: Mapping[str, Any], queue: Queue) -> bool | None:
    """Whether somebody does a job: on this machine its process tells, on others the scheduler, or the heartbeat."""
    elsewhere = about.get("slurm_job") and about.get("host") != platform.node()
    word = queue.has(str(about["slurm_job"])) if elsewhere else None
    return alive.is_alive(about) if word is None else word


def _varied(jobs: Sequence[Sequence[str]]) -> list[str]:
    values = [values_of(Job("", tuple(job))) for job in jobs]
    keys = dict.fromkeys(key for job in values for key in job)
    return [key for key in keys if len({job.get(key) for job in values}) > 1]


def _names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Readable names of folders: what varies, each setting by the last part of its name where that says which."""
    keys = _varied(jobs)
    short = {key: key.rpartition(".")[2] for key in keys}
    short = {key: last if list(short.values()).count(last) == 1 else key for key, last in short.items()}
    names = []
    for overrides in jobs:
        values = values_of(Job("", tuple(overrides)))
        name = "_".join(f"{short[key]}-{_plain(values[key])}" for key in keys if key in values) or "job"
        too_long = len(name) > _LONGEST
        names.append(f"{name[: _LONGEST - 9]}-{name_of(sorted(overrides), 8)}" if too_long else name)
    return names


def _unlike(known: Sequence[Job], names: Sequence[str], jobs: Sequence[tuple[str, ...]]) -> list[Job]:
    """Jobs under their names, with a digest where a name is taken."""
    taken, made = {job.name.lower() for job in known}, []
    for name, overrides in zip(names, jobs, strict=True):
        unique = f"{name}-{name_of(sorted(overrides), 8)}" if name.lower() in taken else name
        taken.add(unique.lower())
        made.append(Job(unique, overrides))
    return made


def _plain(text: str) -> str:
    """A value as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip("-.") or "none"


def _last_line(log: Path) -> str:
    """What the command line said last about its failure."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.removeprefix("gmmcnn: ") for line in lines if line.startswith("gmmcnn: ")]
    return (said or lines or [""])[-1]
