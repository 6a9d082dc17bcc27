"""Jobs on this machine: shared out, and neither lost nor done twice when processes are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import killed_sweep
import pytest
import sweep_work

from gmmcnn import progress
from gmmcnn.config import LocalLauncher
from gmmcnn.errors import ConfigurationError
from gmmcnn.multirun import local
from gmmcnn.multirun.record import Status, Sweep
from gmmcnn.run import signals


@pytest.fixture(autouse=True)
def _quick_to_start(monkeypatch):
    monkeypatch.setattr(local, "_PRELOADED", ["sweep_work"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    forkserver._forkserver._stop()  # of an earlier test: it has imported other modules, for other threads


def shares(n_jobs: int, **settings: int) -> tuple[int, tuple[str | None, ...]]:
    found = local.Shares.of_this_machine(LocalLauncher(**settings), n_jobs)
    return found.threads, found.gpus


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    monkeypatch.setattr(local, "visible_gpus", list)
    assert shares(100) == (1, (None,) * 8)
    assert shares(3) == (2, (None,) * 3)
    assert shares(100, jobs=2) == (4, (None,) * 2)
    assert shares(100, jobs=2, threads=1) == (1, (None,) * 2)
    assert shares(1) == (8, (None,))


def test_each_job_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert shares(100) == (4, ("2", "5"))
    assert shares(100, jobs=4) == (2, ("2", "5", "2", "5"))
    assert shares(100, gpus_per_job=0) == (1, (None,) * 8)


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_a_gpu_that_is_asked_for_and_not_there_is_refused(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.visible_gpus() == []
    with pytest.raises(ConfigurationError, match=r"gpus_per_job=1: this machine has no GPU, or none is visible"):
        shares(2, gpus_per_job=1)


def test_every_job_runs_once_with_its_share(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    sweep = Sweep.opened(tmp_path / "sweep", [[f"seed={seed}", f"exit_code={int(seed == 2)}"] for seed in range(4)])
    names, counted = [job.name for job in sweep.jobs], []
    local.run(sweep, names, LocalLauncher(threads=1), sweep_work.do, counted.append)
    assert sum(counted) == 4
    assert set(sweep_work.ran(sweep).values()) == {1}
    done = [json.loads((sweep.folder / name / "done.txt").read_text()) for name in names]
    assert {found["CUDA_VISIBLE_DEVICES"] for found in done} == {"0", "1"}
    assert {found["threads"] for found in done} == {1}
    statuses = [state.status for state in sweep.states().values()]
    assert [status is Status.FAILED for status in statuses] == [job.overrides[1] == "exit_code=1" for job in sweep.jobs]
    assert "OMP_NUM_THREADS" in os.environ or all(found["OMP_NUM_THREADS"] for found in done)


def test_who_is_asked_to_end_asks_the_jobs(tmp_path):
    sweep = Sweep.opened(tmp_path / "sweep", [["seed=0", "seconds=60"], ["seed=1", "seconds=60"]])

    def advance(n: int = 1, /) -> None:
        if all(state.status is Status.RUNNING for state in sweep.states().values()):
            raise progress.Ended

    began = time.monotonic()
    with pytest.raises(progress.Ended), signals.heeded():
        local.run(sweep, [job.name for job in sweep.jobs], LocalLauncher(jobs=2), sweep_work.do, advance)
    assert time.monotonic() - began < 30
    assert set(sweep_work.ran(sweep).values()) == {0}
    assert {state.status for state in sweep.states().values()} == {Status.LOST}  # this work knows no better end


LAUNCH = """
if __name__ == "__main__":  # the jobs import this file as well
    import sys
    from pathlib import Path
    import sweep_work
    from gmmcnn.config import LocalLauncher
    from gmmcnn.multirun import local
    from gmmcnn.multirun.record import UNFINISHED, Sweep

    local._PRELOADED = ["sweep_work"]
    sweep = Sweep.read(Path(sys.argv[1]))
    missing = [name for name, state in sweep.states().items() if state.status in UNFINISHED]
    local.run(sweep, missing, LocalLauncher(jobs=4, threads=1), sweep_work.do, lambda n=1: None)
"""


def test_jobs_and_launcher_may_be_killed_and_two_launchers_may_work_at_once(tmp_path):
    sweep = Sweep.opened(tmp_path / "sweep", [[f"seed={seed}", "seconds=0.1"] for seed in range(16)])
    (tmp_path / "launch_it.py").write_text(LAUNCH)
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}

    def launcher() -> subprocess.Popen:
        command = [sys.executable, "launch_it.py", str(sweep.folder)]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    first, killed = launcher(), set()
    while len(killed) < 3:
        assert first.poll() is None
        for name, state in sweep.states().items():
            if state.status is Status.RUNNING and len(killed) < 3 and name not in killed:
                os.kill(state.about["pid"], signal.SIGKILL)
                killed.add(name)
    first.kill()
    first.wait()
    assert min(sweep_work.ran(sweep).values()) == 0
    for process in [launcher(), launcher()]:
        assert process.wait(timeout=120) == 0
    assert {state.status for state in sweep.states().values()} == {Status.DONE}
    assert set(sweep_work.ran(sweep).values()) == {1}


@pytest.mark.slow
def test_no_job_of_a_real_sweep_is_lost_or_done_twice_when_jobs_and_launcher_are_killed(tmp_path):
    assert killed_sweep.kill(tmp_path / "sweep", n_jobs=3, n_killed=1, draw=random.Random(0)) == []
