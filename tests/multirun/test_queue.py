"""What Slurm says, from a program of its name."""

import os
from pathlib import Path

import pytest

from gmmcnn.multirun.queue import Queue, squeue, write_submission


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Let ``squeue`` print some lines, or fail."""

    def says(lines: str, exit_code: int = 0) -> None:
        program = tmp_path / "bin" / "squeue"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexit {exit_code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return says


def test_jobs_are_found_by_the_name_of_their_submission(tmp_path, slurm):
    write_submission(tmp_path, "gmmcnn-a", ["seed-0", "seed-1", "seed-2"])
    slurm("7_0|gmmcnn-a|RUNNING\n7_2|gmmcnn-a|PENDING\n8_0|another|RUNNING")
    queue = Queue.asked(tmp_path)
    assert [queue.waits(tmp_path, f"seed-{seed}") for seed in range(3)] == [True, False, True]
    assert [queue.has(number) for number in ("7_0", "7_1", "7_2")] == [True, False, False]


def test_an_array_of_one_job_has_no_index(tmp_path, slurm):
    write_submission(tmp_path, "gmmcnn-a", ["seed-0"])
    slurm("7|gmmcnn-a|PENDING")
    assert Queue.asked(tmp_path).submitted == {"seed-0": ["7"]}


def test_slurm_is_not_asked_where_nothing_was_handed_to_it(tmp_path, slurm):
    slurm("", exit_code=1)
    queue = Queue.asked(tmp_path)
    assert queue.waits(tmp_path, "seed-0") is False
    assert queue.has("7_0") is None


@pytest.mark.parametrize("missing", [True, False])
def test_where_it_does_not_answer_nothing_is_known(tmp_path, slurm, monkeypatch, missing):
    write_submission(tmp_path, "gmmcnn-a", ["seed-0"])
    slurm("7_0|gmmcnn-a|RUNNING", exit_code=1)
    if missing:
        monkeypatch.setenv("PATH", str(Path(tmp_path) / "nothing"))
    assert squeue() is None
    queue = Queue.asked(tmp_path)
    assert queue.waits(tmp_path, "seed-0") is None
    assert queue.has("7_0") is None
