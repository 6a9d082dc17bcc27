"""A real Slurm: a sweep, disturbed in every way that a cluster knows, and one run whose work Dask's workers share."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import slurm_cluster
from worker_calls import job

from gmmcnn.config import Cluster
from gmmcnn.errors import EngineError
from gmmcnn.multirun.distributed import DaskWorkers
from gmmcnn.multirun.queue import Queue
from gmmcnn.multirun.record import Status, Sweep

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

QUICK = ["debug=tiny", "task=train", "train.epochs=150", "train.evaluate=kept"]
FAILING = ["debug=tiny", "task=train", "train.epochs=1", "data=cifar10", "data.root=nowhere", "debug='false'"]
LAUNCHER = [
    "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=1", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=10",
]  # fmt: skip
OF_DASK = {"interface": "lo", "memory": "1GB", "walltime": "00:10:00"}


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
    wait_for(lambda: status(6) in (Status.QUEUED, Status.RUNNING), seconds=60)  # uncertain, while Slurm does not answer
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


@pytest.fixture
def its_environment(slurm, tmp_path, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")
    monkeypatch.chdir(tmp_path)


def test_the_work_of_a_cancelled_job_is_done_by_another(its_environment):
    with DaskWorkers(Cluster(name="slurm", workers=2, options=OF_DASK)) as workers:
        done = workers.do([partial(job, n) for n in range(40)])
        ran = [next(done)[1]]
        subprocess.run(["scancel", "--signal=KILL", "--full", ran[0]], check=True)
        ran += [name for _, name in done]
        deadline = time.monotonic() + 120
        while len(set(ran)) < 3:  # the two first, and the one that came for the cancelled one
            assert time.monotonic() < deadline, set(ran)
            ran += [name for _, name in workers.do([partial(job, n) for n in range(8)])]


def test_what_slurm_refuses_is_told_in_one_line(its_environment):
    with (
        DaskWorkers(Cluster(name="slurm", options=OF_DASK | {"queue": "nosuch"})) as workers,
        pytest.raises(EngineError, match=r"cluster=slurm: sbatch says: .*nosuch.*see cluster\.options"),
    ):
        list(workers.do([partial(job, 0)]))


def test_fits_by_jobs_are_those_of_one_process(its_environment):
    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", "gmmcnn", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    run("debug=tiny", "train.epochs=2", "engine.threads=1", "task=train", "run=alone")
    run("run=alone", "task=extract")
    shutil.copytree("alone", "shared")
    run("run=alone", "task=fit")
    run("run=shared", "task=fit", "cluster=dask_slurm", *(f"cluster.options.{k}='{v}'" for k, v in OF_DASK.items()))
    alone, shared = (
        {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.npz")}
        for folder in ("alone", "shared")
    )
    assert alone
    assert shared == alone
