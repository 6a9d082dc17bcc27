"""Calls that workers make; importable in their processes."""

import os
import signal
import time
from pathlib import Path

from gmmcnn.errors import StoreError


def square(n: int) -> int:
    return n * n


def process(n: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def refuse(n: int) -> int:
    if n == 3:
        raise StoreError("damaged: the third")
    return n


def die_once(place: Path, n: int) -> int:
    """End the process in which this is done first."""
    if n == 2:
        try:
            place.touch(exist_ok=False)
        except FileExistsError:
            return n
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def die(n: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return n


def pid() -> int:
    return os.getpid()


def job(n: int) -> str:
    time.sleep(0.2)
    return os.environ["SLURM_JOB_ID"]


_under_way = 0


def how_many_at_once(n: int) -> int:
    global _under_way
    _under_way += 1
    time.sleep(0.02)
    seen = _under_way
    _under_way -= 1
    return seen
