"""What a sweep remembers, and what it makes of what it finds."""

import json
import platform
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gmmcnn.errors import ConfigurationError
from gmmcnn.multirun.queue import Queue
from gmmcnn.multirun.record import Job, Status, Sweep, folder_for, values_of, varied
from gmmcnn.run import alive

JOBS = [["seed=0", "gmm.k_max=4"], ["seed=1", "gmm.k_max=4"]]


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    return Sweep.opened(tmp_path / "sweep", JOBS)


def claimed(sweep: Sweep, **content: object) -> None:
    (sweep.folder / ".jobs" / "seed-0.json").write_text(json.dumps(content))


def recorded(sweep: Sweep, **content: object) -> None:
    run = sweep.folder / "seed-0"
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps(content))


def ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).isoformat(timespec="seconds")


def state(sweep: Sweep, queue: Queue | None = None) -> Status:
    return sweep.state(sweep.jobs[0], queue or Queue()).status


ELSEWHERE = {"host": "node7", "pid": 12, "born": 3, "started": ago(hours=1)}
NOW = "now"
"""Stands for the time at which a test runs, which may be long after it was collected."""
DEAD_HERE = {"host": platform.node(), "pid": 2**22 + 1, "born": 1, "started": ago(hours=1)}


def test_what_is_asked_for_is_written_down_and_read_again(sweep):
    assert [job.name for job in sweep.jobs] == ["seed-0", "seed-1"]
    assert Sweep.read(sweep.folder) == sweep
    assert varied(sweep) == ["seed"]
    assert values_of(sweep.jobs[0]) == {"seed": "0", "gmm.k_max": "4"}


@pytest.mark.parametrize(
    ("jobs", "names"),
    [
        ([["seed=0", "gmm.k_max=4"], ["seed=1", "gmm.k_max=6"]], ["seed-0_k_max-4", "seed-1_k_max-6"]),
        ([["data.name=a", "model.name=b"], ["data.name=c", "model.name=d"]], ["data.name-a_model.name-b", None]),
        ([["model.kwargs.x='a b/c'"], ["model.kwargs.x='../..'"]], ["x-a-b-c", "x-none"]),
        ([["data=digits"]], ["job"]),
        ([["seed=0"], ["seed=0", "model=lenet5"]], ["job", "model-lenet5"]),
        ([["x.y=A"], ["x.y=a"]], ["y-A", None]),
    ],
)
def test_folders_are_named_by_what_varies(tmp_path, jobs, names):
    sweep = Sweep.opened(tmp_path, jobs)
    for job, name in zip(sweep.jobs, names, strict=True):
        assert name is None or job.name == name
    assert len({job.name.lower() for job in sweep.jobs}) == len(jobs)


def test_long_names_are_cut_and_stay_different(tmp_path):
    sweep = Sweep.opened(tmp_path, [[f"model.name={'x' * 200}{i}"] for i in range(3)])
    assert len({job.name for job in sweep.jobs}) == 3
    assert all(len(job.name) <= 80 for job in sweep.jobs)


def test_more_jobs_join_those_that_are_there_under_their_names(sweep):
    more = Sweep.opened(sweep.folder, [list(reversed(JOBS[1])), ["seed=2", "gmm.k_max=4"], ["seed=1", "gmm.k_max=5"]])
    assert more.jobs[:2] == sweep.jobs
    assert [job.name for job in more.jobs[2:]] == ["seed-2_k_max-4", "seed-1_k_max-5"]
    assert Sweep.read(sweep.folder) == more


def test_the_same_jobs_have_the_same_folder_and_others_another():
    assert folder_for(JOBS) == folder_for(list(reversed(JOBS)))
    assert folder_for(JOBS) != folder_for(JOBS[:1])
    assert folder_for(JOBS).name.startswith("seed-")


@pytest.mark.parametrize("content", [None, "{", '{"jobs": 3}', '{"jobs": [{"name": "a"}]}'])
def test_a_record_that_is_missing_or_damaged_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"sweep\.json: (missing|damaged); expected the record of a sweep"):
        Sweep.read(tmp_path)


@pytest.mark.parametrize(
    ("claim", "run", "expected"),
    [
        (None, None, Status.WAITING),
        (alive.this_process(), None, Status.RUNNING),
        (DEAD_HERE, None, Status.LOST),
        (DEAD_HERE, DEAD_HERE | {"status": "running"}, Status.LOST),
        (DEAD_HERE, DEAD_HERE | {"status": "done"}, Status.DONE),  # killed before its claim said so
        (ELSEWHERE, None, Status.UNCERTAIN),
        (ELSEWHERE | {"heartbeat": ago(hours=1)}, None, Status.LOST),
        (ELSEWHERE | {"heartbeat": ago(hours=1)}, ELSEWHERE | {"heartbeat": NOW}, Status.RUNNING),
        (ELSEWHERE | {"status": "failed", "line": "no", "ended": ago(minutes=1)}, None, Status.FAILED),
        (ELSEWHERE | {"status": "failed", "ended": ago(hours=2)}, ELSEWHERE | {"status": "done"}, Status.DONE),
        (ELSEWHERE | {"status": "interrupted", "ended": ago(minutes=1)}, ELSEWHERE, Status.INTERRUPTED),
        (None, ELSEWHERE | {"status": "failed", "error": "by hand"}, Status.FAILED),
        (None, DEAD_HERE | {"status": "running"}, Status.LOST),
        (None, {"status": "running", "started": ago(hours=1)}, Status.UNCERTAIN),  # of an earlier version
    ],
)
def test_the_state_is_what_folder_and_process_say(sweep, claim, run, expected):
    if claim is not None:
        claimed(sweep, **claim)
    if run is not None:
        recorded(sweep, **{name: ago(seconds=5) if value == NOW else value for name, value in run.items()})
    assert state(sweep) is expected


@pytest.mark.parametrize(
    ("claim", "queue", "expected"),
    [
        (None, Queue({"5_0": "PENDING"}, {"seed-0": ["5_0"]}, asked_slurm=True), Status.QUEUED),
        (None, Queue({}, {}, asked_slurm=True), Status.WAITING),  # gone before it began
        (None, Queue(None, {}, asked_slurm=True), Status.UNCERTAIN),  # no answer
        (ELSEWHERE | {"slurm_job": "5_0"}, Queue({"5_0": "RUNNING"}, {}, asked_slurm=True), Status.RUNNING),
        (ELSEWHERE | {"slurm_job": "5_0"}, Queue({}, {}, asked_slurm=True), Status.LOST),
        (
            ELSEWHERE | {"slurm_job": "5_0"},
            Queue({"5_0": "PENDING"}, {"seed-0": ["5_0"]}, asked_slurm=True),
            Status.QUEUED,  # requeued
        ),
        (
            DEAD_HERE | {"status": "interrupted", "ended": ago(minutes=1)},
            Queue({"5_0": "PENDING"}, {"seed-0": ["5_0"]}, asked_slurm=True),
            Status.QUEUED,
        ),
        (ELSEWHERE | {"slurm_job": "5_0"}, Queue(None, {}, asked_slurm=True), Status.UNCERTAIN),
    ],
)
def test_the_scheduler_is_heard(sweep, claim, queue, expected):
    if claim is not None:
        claimed(sweep, **claim)
    assert state(sweep, queue) is expected


def test_a_job_that_somebody_does_or_did_is_not_claimed(sweep):
    job = sweep.jobs[0]
    assert sweep.claim(job)
    assert not sweep.claim(job)
    sweep.end(job, 1)
    assert sweep.claim(job)
    sweep.end(job, 0)
    assert not sweep.claim(job)
    assert state(sweep) is Status.DONE


def test_one_of_many_gets_a_job(sweep):
    got, together = [], threading.Barrier(8)

    def try_it() -> None:
        together.wait()
        got.append(sweep.claim(sweep.jobs[0]))

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_a_job_that_slurm_requeued_to_another_node_is_its_own_again(sweep, monkeypatch):
    claimed(sweep, **ELSEWHERE, slurm_job="5_0", heartbeat=ago(seconds=1))
    assert not sweep.claim(sweep.jobs[0])
    monkeypatch.setenv("SLURM_JOB_ID", "5_0")
    assert sweep.claim(sweep.jobs[0])


@pytest.mark.parametrize(
    ("exit_code", "status"), [(0, "done"), (1, "failed"), (130, "interrupted"), (143, "interrupted")]
)
def test_how_a_job_ended_is_told_by_its_exit_code_where_it_left_no_record(sweep, exit_code, status):
    job = sweep.jobs[0]
    sweep.claim(job)
    sweep.log_of(job).write_text("some warning\ngmmcnn: gmm.k_max=1: expected more\n")
    sweep.end(job, exit_code)
    found = sweep.state(job, Queue())
    assert found.status == status
    assert found.line == ("gmm.k_max=1: expected more" if status == "failed" else "")


def test_a_run_of_this_process_tells_how_it_ended(sweep):
    job = sweep.jobs[0]
    sweep.claim(job)
    recorded(sweep, **alive.this_process(), status="interrupted", error="")
    sweep.end(job, 255)
    assert state(sweep) is Status.INTERRUPTED


def test_a_job_has_a_name_a_folder_and_a_log(sweep):
    job = sweep.job("seed-1")
    assert job == Job("seed-1", tuple(JOBS[1]))
    assert sweep.folder_of(job) == sweep.folder / "seed-1"
    assert sweep.log_of(job) == Path(sweep.folder) / ".jobs" / "seed-1.log"
