"""One job in a process of its own."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gmmcnn.multirun import work
from gmmcnn.multirun.queue import Queue
from gmmcnn.multirun.record import Status, Sweep


class _Log(io.StringIO):
    """Standard error that is a file, without this process's own being touched."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def flush(self) -> None:
        self.path.write_text(self.getvalue())


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Sweep:
    monkeypatch.setattr(work, "_write_to", lambda log: monkeypatch.setattr(sys, "stderr", _Log(log)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Sweep.opened(tmp_path / "a sweep", [["seed=0"], ["seed=1", "engine.threads=3"]])


def ends(exit_code: int, seen: list) -> Callable[[Sequence[str]], int]:
    def command_line(arguments: Sequence[str]) -> int:
        seen.append(list(arguments))
        if exit_code:
            sys.stderr.write("gmmcnn: it went wrong\n")
        return exit_code

    return command_line


def test_a_job_is_the_command_with_its_folder_and_its_share(sweep):
    seen = []
    for job in sweep.jobs:
        assert work.do(str(sweep.folder), job.name, ends(0, seen), threads=1) == 0
    folders = [f"run='{sweep.folder_of(job)}'" for job in sweep.jobs]
    assert seen == [["seed=0", "engine.threads=1", folders[0]], ["seed=1", "engine.threads=3", folders[1]]]
    assert work.do(str(sweep.folder), sweep.jobs[0].name, ends(1, seen)) == 0
    assert len(seen) == 2  # done is done


def test_what_went_wrong_is_told(sweep):
    job = sweep.jobs[0]
    assert work.do(str(sweep.folder), job.name, ends(1, [])) == 1
    state = sweep.state(job, Queue())
    assert (state.status, state.line) == (Status.FAILED, "it went wrong")


def test_what_breaks_out_of_the_command_fails_the_job(sweep):
    def breaks(arguments: Sequence[str]) -> int:
        raise MemoryError

    with pytest.raises(MemoryError):
        work.do(str(sweep.folder), sweep.jobs[0].name, breaks)
    assert sweep.state(sweep.jobs[0], Queue()).status is Status.FAILED


@pytest.mark.parametrize(("visible", "exit_code"), [(None, 1), ("", 1), ("0", 0)])
def test_a_job_that_was_promised_a_gpu_and_sees_none_fails(sweep, monkeypatch, visible, exit_code):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    job, seen = sweep.jobs[0], []
    assert work.do(str(sweep.folder), job.name, ends(0, seen), needs_gpu="gpus_per_node=1") == exit_code
    assert len(seen) == 1 - exit_code
    expected = f"gpus_per_node=1: this job sees no GPU (CUDA_VISIBLE_DEVICES={visible!r})" if exit_code else ""
    assert sweep.state(job, Queue()).line == expected


def test_everything_that_is_written_goes_to_the_log(tmp_path):
    log = tmp_path / "log"
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
        assert log.read_bytes() == b"one\ntwo\n"
    else:
        work._write_to(log)
        os.write(1, b"one\n")
        os.write(2, b"two\n")
        os._exit(0)
