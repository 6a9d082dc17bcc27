"""Telling work that goes on from work that was killed."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from gmmcnn.run import alive


def ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).isoformat()


def test_this_process_is_alive_whatever_its_heartbeat_says():
    assert alive.is_alive(alive.this_process() | {"heartbeat": ago(days=1)}) is True


def test_a_killed_process_is_not_nor_is_a_later_one_of_its_number():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = alive.this_process() | {"pid": process.pid, "born": alive._born(process.pid), "heartbeat": ago(seconds=0)}
    assert alive.is_alive(record) is True
    assert alive.is_alive(record | {"born": record["born"] - 1}) is False
    process.kill()
    while alive._born(process.pid) is not None:  # a zombie is no process at work
        time.sleep(0.01)
    assert alive.is_alive(record) is False
    process.communicate()
    assert alive.is_alive(record) is False


@pytest.mark.parametrize(
    ("heartbeat", "expected"),
    [({"seconds": 20}, True), ({"minutes": 30}, False), (None, None), ("yesterday", None), ("2020-01-01", None)],
    ids=["20 seconds ago", "half an hour ago", "never", "no date", "no time zone"],
)
def test_of_another_machine_the_heartbeat_tells(heartbeat, expected):
    beat = ago(**heartbeat) if isinstance(heartbeat, dict) else heartbeat
    assert alive.is_alive({"host": "elsewhere", "pid": 1, "born": 1, "heartbeat": beat}) is expected


def test_a_record_of_earlier_versions_tells_nothing():
    assert alive.is_alive({"status": "running", "started": ago(days=3)}) is None


def test_the_heart_beats_while_the_block_runs_and_failures_do_not_stop_it():
    beats = []

    def beat() -> None:
        beats.append(len(beats))
        if len(beats) == 1:
            raise OSError("disk full")

    with alive.beating(beat, seconds=0.01):
        deadline = time.monotonic() + 10
        while len(beats) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    n_beats = len(beats)
    assert n_beats >= 3
    time.sleep(0.05)
    assert len(beats) == n_beats


def test_the_job_of_slurm_is_named(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "slurm_job" not in alive.this_process()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert alive.this_process()["slurm_job"] == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert alive.this_process()["slurm_job"] == "10_3"
