"""A sweep on a real Slurm, disturbed in every way that a cluster knows."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import slurm_cluster

from gmmcnn.multirun.queue import Queue
from gmmcnn.multirun.record import Status, Sweep

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

QUICK = ["debug=tiny", "task=train", "train.epochs=150", "train.evaluate=kept"]
FAILING = ["debug=tiny", "task=train", "train.epochs=1", "data=cifar10", "data.root=nowhere", "debug='false'"]
LAUNCHER = [
    "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=1", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment of the clients of a Slurm on this machine."""
    if missing := slurm_cluster.missing():
        stop = pytest.fail if os.environ.get("GMMCNN_REQUIRE_SLURM") else pytest.skip
        stop(f"no {', '.join(missing)}; remedy: apt-get install slurmctld slurmd slurm-client munge, as root")
    with slurm_cluster.slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {"OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gmmcnn", "-m", *arguments]


def wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_disturbed_sweep_is_told_truly_and_ends_like_an_undisturbed_one(slurm, tmp_path, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    seeds = "seed=0,1,2,3,4,5,6"

    def run(*arguments: str, exit_code: int) -> None:
        done = subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == exit_code, done.stdout + done.stderr

    submitter = subprocess.Popen(command("sweep=disturbed", seeds, *QUICK, *LAUNCHER), cwd=tmp_path)
    wait_for((tmp_path / "disturbed" / "sweep.json").exists)
    sweep = Sweep.read(tmp_path / "disturbed")

    def status(seed: int) -> Status:
        return sweep.states()[f"seed-{seed}"].status

    def in_the_midst(seed: int) -> dict:
        """The record of a job that has done some of its epochs."""
        run_folder = sweep.folder / f"seed-{seed}"
        wait_for(lambda: (run_folder / "checkpoints" / "last.pt").exists() or status(seed) is Status.DONE)
        assert status(seed) is Status.RUNNING
        return json.loads((run_folder / "run.json").read_text())

    killed = in_the_midst(0)
    os.kill(killed["pid"], signal.SIGKILL)
    requeued = in_the_midst(1)  # the jobs share one GPU
    submitter.kill()
    submitter.wait()
    subprocess.run(
        ["scancel", "--signal=USR2", requeued["slurm_job"] + ".0"], check=True
    )  # as Slurm does at the time limit
    assert {"host", "pid", "slurm_job", "heartbeat"} <= killed.keys()
    assert status(6) in (Status.QUEUED, Status.RUNNING)
    asked_to_end = in_the_midst(3)
    subprocess.run(["scancel", asked_to_end["slurm_job"]], check=True)
    wait_for(lambda: status(0) is Status.LOST, seconds=120)
    wait_for(lambda: not Queue.asked(sweep.folder).submitted)
    found = {name: state.status for name, state in sweep.states().items()}
    lost = {"seed-0": Status.LOST, "seed-3": Status.INTERRUPTED}
    assert found == dict.fromkeys(found, Status.DONE) | lost
    before = {name: (sweep.folder / name / "run.json").read_bytes() for name in found if name not in lost}
    assert len(before) == 5
    log = (sweep.folder / ".jobs" / "seed-1.log").read_text()
    assert log.count("Trained 150 epochs") == 1

    run("sweep=disturbed", *LAUNCHER, exit_code=0)
    run("sweep=disturbed", "seed=7", *FAILING, *LAUNCHER, exit_code=1)
    assert {name: (sweep.folder / name / "run.json").read_bytes() for name in before} == before
    run("sweep=undisturbed", seeds, *QUICK, exit_code=0)
    run("sweep=undisturbed", "seed=7", *FAILING, exit_code=1)
    disturbed, undisturbed = ((tmp_path / name / "aggregate.csv").read_bytes() for name in ("disturbed", "undisturbed"))
    assert disturbed == undisturbed
    jobs = pd.read_csv(tmp_path / "disturbed" / "jobs.csv")
    assert jobs["status"].tolist() == ["done"] * 7 + ["failed"]
    assert "nowhere" in jobs["line"].iloc[-1]
    assert jobs["slurm_job"].notna().all()
