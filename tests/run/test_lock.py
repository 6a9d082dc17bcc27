"""One writer to a run folder: whoever comes second is told who works there, and nothing of the first is touched."""

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gmmcnn.errors import BusyError
from gmmcnn.run import alive, lock
from gmmcnn.run.lock import one_writer

HOLD = """
import sys
from pathlib import Path
from gmmcnn.run.lock import one_writer
with one_writer(Path(sys.argv[1]), "fit"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=-1, stdout=-1, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_works_there_and_since_when(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(BusyError) as caught, one_writer(tmp_path, "run"):
            pass
        process.communicate("")
    said = rf"{tmp_path}: task=fit works there since 20\d\d-.*, process {process.pid} on {platform.node()}; wait for"
    assert caught.match(said)
    with one_writer(tmp_path, "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_no_obstacle(tmp_path):
    with holder(tmp_path) as process:
        process.kill()
    assert (tmp_path / lock.NAME).exists()
    with one_writer(tmp_path, "run"):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_never_two_at_once(tmp_path):
    inside, most, turns = 0, 0, 0

    def work(_: int) -> None:
        nonlocal inside, most, turns
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            try:
                with one_writer(tmp_path, "run"):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(1e-4)
                    inside -= 1
                    turns += 1
            except BusyError:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert most == 1
    assert turns > 4


@pytest.mark.parametrize(
    ("record", "busy"),
    [
        ({}, True),
        ({"heartbeat": "2001-01-01T00:00:00+00:00"}, False),
        ({"status": "interrupted"}, False),
        ({"slurm_job": "17"}, False),
        ({"slurm_job": "18"}, True),
        ({"heartbeat": 3}, False),
    ],
)
def test_on_another_machine_the_heartbeat_decides(tmp_path, monkeypatch, record, busy):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    running = {"status": "running", "task": "run", "host": "elsewhere", "pid": 1, "heartbeat": alive.now()}
    (tmp_path / "run.json").write_text(json.dumps(running | record))
    if busy:
        with pytest.raises(BusyError, match=r"process 1 on elsewhere with its last sign of life at 20\d\d"):
            one_writer(tmp_path, "fit").__enter__()
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    else:
        with one_writer(tmp_path, "fit"):
            pass


def test_where_the_file_system_has_no_locks_the_work_goes_on(tmp_path, monkeypatch):
    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with one_writer(tmp_path, "fit"):
        pass
