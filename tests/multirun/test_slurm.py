"""What is handed to Slurm, and how long anybody waits for it; a real Slurm is in test_cluster.py."""

import sys
import types

import pytest

from gmmcnn.config import SlurmLauncher
from gmmcnn.errors import ConfigurationError, EngineError
from gmmcnn.files import read_json
from gmmcnn.multirun import slurm
from gmmcnn.multirun.queue import Queue
from gmmcnn.multirun.record import Sweep


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    return Sweep.opened(tmp_path / "sweep", [["seed=0"], ["seed=1"]])


class Executor:
    """Stands in for submitit's: keeps what it is given."""

    given: dict
    jobs: list
    refuses = False

    def __init__(self, folder, **options) -> None:
        type(self).given = {"folder": folder} | options

    def update_parameters(self, **parameters) -> None:
        type(self).given |= parameters

    def map_array(self, job, folders, names) -> list:
        if self.refuses:
            raise RuntimeError("sbatch: error:\n invalid partition")
        type(self).jobs = [(job, *arguments) for arguments in zip(folders, names, strict=True)]
        return [types.SimpleNamespace(job_id=f"12_{number}") for number in range(len(names))]


@pytest.fixture
def submitit(monkeypatch):
    helpers = types.SimpleNamespace(DelayedSubmission=lambda *call: call)
    module = types.SimpleNamespace(AutoExecutor=Executor, helpers=helpers)
    monkeypatch.setattr(Executor, "refuses", False)
    monkeypatch.setitem(sys.modules, "submitit", module)
    return module


def submissions(sweep: Sweep) -> list[dict]:
    return [read_json(path) for path in (sweep.folder / ".jobs" / "submitted").glob("*.json")]


@pytest.mark.usefixtures("submitit")
def test_jobs_go_out_as_one_array_that_was_written_down_before(sweep):
    done = []
    settings = SlurmLauncher(partition="gpu", gpus_per_node=1, mem_gb=8, max_num_timeout=5)
    slurm.submit(sweep, ["seed-0", "seed-1"], settings, lambda *job, **needs: done.append((*job, needs)))
    given, (submission,) = Executor.given, submissions(sweep)
    assert submission["jobs"] == ["seed-0", "seed-1"]
    assert given["name"] == submission["slurm_name"]
    assert (given["slurm_partition"], given["gpus_per_node"], given["mem_gb"]) == ("gpu", 1, 8)
    assert (given["slurm_max_num_timeout"], given["timeout_min"]) == (5, 60)
    assert not {"slurm_wait", "wait", "slurm_name", "slurm_account"} & given.keys()
    job, *arguments = Executor.jobs[1]
    job(*arguments)
    folder = str(sweep.folder.absolute())
    assert done == [(folder, "seed-1", {"needs_gpu": "hydra.launcher.gpus_per_node=1"})]
    assert job.checkpoint(*arguments) == (job, folder, "seed-1")


@pytest.mark.usefixtures("submitit")
def test_what_slurm_refuses_is_told_in_one_line(sweep, monkeypatch):
    monkeypatch.setattr(Executor, "refuses", True)
    with pytest.raises(EngineError, match=r"^hydra/launcher=slurm: sbatch: error: invalid partition; see "):
        slurm.submit(sweep, ["seed-0"], SlurmLauncher(), lambda: 0)
    assert len(submissions(sweep)) == 1


def test_without_the_extra_its_name_is_told(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'gmmcnn\[slurm\]'"):
        slurm.submit(sweep, ["seed-0"], SlurmLauncher(), lambda: 0)
    assert not submissions(sweep)


def test_waiting_ends_with_the_jobs(sweep, monkeypatch):
    monkeypatch.setattr(slurm, "_POLL_S", 0)
    queues = iter([
        Queue({"1_0": "RUNNING", "1_1": "PENDING"}, {"seed-0": ["1_0"], "seed-1": ["1_1"]}, asked_slurm=True),
        Queue(asked_slurm=True),  # no answer
        Queue({"1_1": "PENDING"}, {"seed-1": ["1_1"]}, asked_slurm=True),
        Queue({}, {}, asked_slurm=True),
    ])  # fmt: skip
    monkeypatch.setattr(slurm.Queue, "asked", lambda folder: next(queues))
    ended = []
    slurm.wait(sweep, ["seed-0", "seed-1"], ended.append)
    assert ended == [0, 0, 1, 1]


def test_nobody_waits_for_ever_for_a_scheduler_that_does_not_answer(sweep, monkeypatch):
    monkeypatch.setattr(slurm, "_POLL_S", 0)
    monkeypatch.setattr(slurm, "_NO_ANSWER_S", -1)
    monkeypatch.setattr(slurm.Queue, "asked", lambda folder: Queue(asked_slurm=True))
    with pytest.raises(EngineError, match="squeue has not answered"):
        slurm.wait(sweep, ["seed-0"], lambda n=1: None)
