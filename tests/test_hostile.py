"""Of 500 hostile files and names nothing is executed, nothing outside their folder touched, and memory is bounded."""

import os
import pickle
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import pytest

N = 500
EXECUTING = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "os.fork")
CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod")
LARGEST = 2**31
"""Bytes of memory that may be added: what an archive may unpack to, twice."""

watched: list[str] = []
"""What was seen while ``inside`` was set."""
inside: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not inside:
        return
    if event in EXECUTING and not (event == "pickle.find_class" and arguments[0] in SAFE):
        watched.append(f"{event} {arguments}")
    opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (event in CHANGING or opened) and not str(arguments[0]).startswith((inside[0], "/dev/")):
        watched.append(f"{event} {arguments}")


SAFE = ("torch._utils", "collections")
"""Where what torch's loader of tensors looks up by itself lies."""


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[None]:
    sys.addaudithook(_watch)
    inside.append(str(tmp_path))
    yield
    inside.clear()


def test_nothing_is_executed_or_touched_and_memory_is_bounded(tmp_path, monkeypatch, watching):
    monkeypatch.chdir(tmp_path)
    before, came = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, Counter()
    unforeseen: list[str] = []
    warnings.simplefilter("ignore")
    for what, read in hostile.inputs(tmp_path, N):
        try:
            came[hostile.outcome(read)] += 1
        except Exception as error:  # noqa: BLE001 - whatever gets out is told
            unforeseen.append(f"{what}: {type(error).__name__}: {error}")
        assert not watched, what
    assert not (tmp_path / "executed").exists()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < LARGEST
    assert unforeseen == []
    assert came.total() == N
    assert came["values"] < N / 2


def test_the_watch_sees_what_it_is_for(watching):
    with pytest.raises(AttributeError):
        pickle.loads(pickle.dumps(hostile.Bait()).replace(b"system", b"sysXem"))
    assert watched
    watched.clear()
