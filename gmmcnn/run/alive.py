"""Whose work a record speaks of, and whether it still goes on: host, process, and a heartbeat.

A record that says ``running`` may have been left by a process that was killed. On the same machine the process is
looked up; on another one the heartbeat tells, if it is long past. Where neither can, nobody knows.
"""

import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

HEARTBEAT_S = 15.0
"""Seconds from one heartbeat to the next."""
SILENT = timedelta(minutes=5)
"""Without a heartbeat for so long, work on another machine is lost: clocks differ, file systems cache."""


def now() -> str:
    """The time, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_process() -> dict[str, Any]:
    """``host``, ``pid``, and ``born``, which tells it from a later process of that number; the job of Slurm, too."""
    job = os.environ.get("SLURM_JOB_ID")
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array and "SLURM_ARRAY_TASK_ID" in os.environ else job
    slurm = {"slurm_job": name} if name else {}
    return {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid())} | slurm


@contextmanager
def beating(beat: Callable[[], None], seconds: float | None = None) -> Iterator[None]:
    """Call ``beat`` every so many seconds while the block runs; one that fails is left out."""
    ended = threading.Event()

    def keep_beating() -> None:
        while not ended.wait(seconds or HEARTBEAT_S):
            with suppress(OSError):
                beat()

    thread = threading.Thread(target=keep_beating, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_alive(record: Mapping[str, Any]) -> bool | None:
    """Whether the process that a record names still works; None where that cannot be known.

    Parameters
    ----------
    record : mapping
        With ``host``, ``pid``, ``born`` and ``heartbeat``, as ``run.json`` has them.
    """
    pid = record.get("pid")
    if record.get("host") == platform.node() and isinstance(pid, int) and Path("/proc/self").exists():
        return _born(pid) is not None and _born(pid) == record.get("born")
    try:
        silent = datetime.now(UTC) - datetime.fromisoformat(str(record.get("heartbeat")))
    except (ValueError, TypeError):
        return None
    return silent < SILENT


def _born(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where there is none of that number, or no telling."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
