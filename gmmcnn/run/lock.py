"""One writer to a run folder: two tasks at once would mix their files, or remove each other's.

The lock is the operating system's (``flock``), on a file in the folder: it goes with the process, however that ends.
Some network file systems do not pass it on to other machines. There the heartbeat in ``run.json`` decides
(:mod:`gmmcnn.run.alive`). Whoever only reads needs no lock: files take each other's place whole.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gmmcnn.errors import BusyError
from gmmcnn.files import read_json, sync
from gmmcnn.run import alive

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks answer."""


@contextmanager
def one_writer(folder: Path, task: str) -> Iterator[None]:
    """Be the only one that writes to a run folder, while the block runs.

    Parameters
    ----------
    folder : Path
        Made if need be.
    task : str
        What others are told that is being done here.

    Raises
    ------
    BusyError
        Another process works in the folder: which, where, and since when, is said.
    OSError
        The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # where the folder above cannot be read
        sync(folder.absolute().parent)
    path = folder / NAME
    descriptor = _locked(path)
    try:
        recorded = read_json(folder / "run.json")
        if _works_elsewhere(recorded):
            raise BusyError(_refusal(folder, recorded))
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({**alive.this_process(), "task": task, "started": alive.now()}).encode(), 0)
        yield
    finally:
        with suppress(OSError):  # of a full disk, say: the lock goes with the descriptor, whether its file stays or not
            path.unlink()  # whoever waits for this very file looks whether it is still the one in place
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Descriptor of a lock file that is ours, and in place."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise BusyError(_refusal(path.parent, read_json(path))) from None
            raise
        if _is_in_place(path, descriptor):
            return descriptor
        os.close(descriptor)  # of one who has just gone, and taken it away


def _is_in_place(path: Path, descriptor: int) -> bool:
    """Whether a file that is open still has its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _works_elsewhere(recorded: Mapping[str, Any]) -> bool:
    """Whether a record is of a process on another machine that still works; a job of Slurm's that began anew is not."""
    now = alive.this_process()
    again = "slurm_job" in now and now["slurm_job"] == recorded.get("slurm_job")
    elsewhere = recorded.get("host") not in (None, now["host"])
    return recorded.get("status") == "running" and elsewhere and not again and bool(alive.is_alive(recorded))


def _refusal(folder: Path, by: Mapping[str, Any]) -> str:
    """Message that names who works in a folder, as far as that is known."""
    if "pid" not in by:
        return f"{folder}: another process works there; wait for its end"
    beat = by.get("heartbeat")
    silent = f" with its last sign of life at {beat}" if beat else ""
    return (
        f"{folder}: task={by.get('task')} works there since {by.get('started')}, process {by['pid']} on "
        f"{by.get('host')}{silent}; wait for its end, or stop it"
    )
