"""What Slurm knows about the jobs of a sweep.

What was handed to it was written down before, under a name that only that submission has; so the jobs of a launcher
that was killed in between are found as well. Whether a job is waiting, running or gone is all that is asked: how it
ended, its folder says. A preempted or requeued job waits.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gmmcnn.files import read_json, write_json

_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "PREEMPTED"}
_SECONDS_TO_ANSWER = 20


@dataclass(frozen=True)
class Queue:
    """Slurm's word on the jobs of a sweep.

    Attributes
    ----------
    states : mapping or None
        Slurm's number of a job, as ``12_3``, → its state; None where Slurm did not answer, or was not asked.
    submitted : mapping
        Name of a job → Slurm's numbers for it.
    asked_slurm : bool
        Whether anything of the sweep was ever handed to Slurm.
    """

    states: Mapping[str, str] | None = None
    submitted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    asked_slurm: bool = False

    @classmethod
    def asked(cls, folder: Path) -> "Queue":
        """Ask about a sweep's jobs; not at all where none was handed to Slurm."""
        submissions = [read_json(path) for path in sorted(_submitted(folder).glob("*.json"))]
        if not submissions:
            return cls()
        listed = squeue()
        if listed is None:
            return cls(asked_slurm=True)
        states = {number: state for number, _, state in listed}
        submitted: dict[str, list[str]] = {}
        by_name = {str(submission.get("slurm_name")): submission.get("jobs", []) for submission in submissions}
        for number, slurm_name, _ in listed:
            jobs, index = by_name.get(slurm_name, []), number.partition("_")[2] or "0"  # an array of one is no array
            if index.isdigit() and int(index) < len(jobs):
                submitted.setdefault(str(jobs[int(index)]), []).append(number)
        return cls(states, submitted, asked_slurm=True)

    def has(self, number: str) -> bool | None:
        """Whether a job of Slurm is at work; None where Slurm does not answer."""
        if self.states is None:
            return None
        return number in self.states and self.states[number] not in _WAITING

    def waits(self, folder: Path, job: str) -> bool | None:
        """Whether Slurm has a job of the sweep; None where it does not answer, and may have it."""
        if not self.asked_slurm:
            return False
        if self.states is None:
            return None
        return job in self.submitted


def write_submission(folder: Path, slurm_name: str, jobs: Sequence[str]) -> None:
    """Write down what is about to be handed to Slurm: an array of jobs under a name that it alone has."""
    write_json(_submitted(folder) / f"{slurm_name}.json", {"slurm_name": slurm_name, "jobs": list(jobs)})


def squeue() -> list[tuple[str, str, str]] | None:
    """Numbers, names and states of this user's jobs that wait or run; None where Slurm does not answer."""
    program = shutil.which("squeue")
    if program is None:
        return None
    command = [program, "--noheader", "--array", "--me", "--format=%i|%j|%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS_TO_ANSWER)
    except (subprocess.SubprocessError, OSError):
        return None
    fields = [line.split("|") for line in done.stdout.splitlines()]
    return [(number, name, state) for number, name, state in (line for line in fields if len(line) == 3)]


def _submitted(folder: Path) -> Path:
    return folder / ".jobs" / "submitted"
