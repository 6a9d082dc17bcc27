"""Dask's workers: real processes, some of them killed, and the same bits as without."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import dask
import pytest
from worker_calls import die, die_once, how_many_at_once, pid, process, refuse, square

from gmmcnn import cli
from gmmcnn.config import Cluster
from gmmcnn.errors import ConfigurationError, EngineError, StoreError
from gmmcnn.multirun import distributed
from gmmcnn.multirun.distributed import ATTEMPTS, DaskWorkers

TINY = ["debug=tiny", "debug=false", "train.epochs=2", "engine.threads=1"]


@pytest.fixture(scope="module")
def workers() -> Iterator[DaskWorkers]:
    with DaskWorkers(Cluster(name="dask")) as started:
        yield started


def test_each_call_is_made_and_numbered(workers):
    assert dict(workers.do([partial(square, n) for n in range(20)])) == {n: n * n for n in range(20)}
    assert list(workers.do([])) == []


def test_several_processes_share_the_work(workers):
    assert len(set(dict(workers.do([partial(process, n) for n in range(12)])).values()) - {os.getpid()}) == 2


def test_what_a_call_raises_gets_here(workers):
    with pytest.raises(StoreError, match="damaged: the third"):
        list(workers.do([partial(refuse, n) for n in range(20)]))
    assert dict(workers.do([partial(square, 3)])) == {0: 9}


def test_the_work_of_a_killed_process_is_done_again(workers, tmp_path):
    place = tmp_path / "killed"
    assert dict(workers.do([partial(die_once, place, n) for n in range(6)])) == {n: n for n in range(6)}
    assert place.exists()


def test_work_that_kills_whoever_does_it_is_given_up(workers):
    with pytest.raises(EngineError, match=rf"cluster=dask: a piece of work ended {ATTEMPTS} workers, .* memory"):
        list(workers.do([partial(die, 0)]))


@pytest.mark.parametrize(("name", "missing", "extra"), [("dask", "distributed", "dask"), ("cuda", "dask_cuda", "gpu")])
def test_a_package_that_is_missing_is_named(monkeypatch, name, missing, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    with (
        DaskWorkers(Cluster(name=name)) as started,
        pytest.raises(ConfigurationError, match=rf"cluster={name}: needs {missing}.*: pip install 'gmmcnn\[{extra}"),
    ):
        list(started.do([partial(square, 3)]))


def test_a_scheduler_that_does_not_answer_is_named():
    settings = Cluster(name="dask", address="tcp://127.0.0.1:9")
    said = r"cluster=dask: no cluster at tcp://127.0.0.1:9 \(.*cluster\.name=none"
    patience = dask.config.set({"distributed.comm.timeouts.connect": "0.3s"})
    with patience, DaskWorkers(settings) as started, pytest.raises(ConfigurationError, match=said):
        list(started.do([partial(square, 3)]))


@pytest.fixture(scope="module")
def scheduler() -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """Address of a scheduler that somebody else started, and its process, to which tests may add workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    started = [program("scheduler", "--host", at, "--no-dashboard")]
    yield at, started
    for each in started:
        each.kill()
        each.wait()


def program(name: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def test_processes_of_another_version_are_refused(scheduler, monkeypatch):
    monkeypatch.setattr(distributed, "__version__", "99")
    said = r"its processes have gmmcnn [\d.]+\S*, this one 99"
    with (
        DaskWorkers(Cluster(name="dask", address=scheduler[0])) as workers,
        pytest.raises(ConfigurationError, match=said),
    ):
        list(workers.do([partial(square, 3)]))


def test_a_scheduler_of_others_is_used_and_missed(scheduler, monkeypatch):
    at, started = scheduler

    def come(line: str) -> None:
        if "no worker has come yet" in line:
            started.append(program("worker", at, "--nthreads", "4", "--no-nanny", "--no-dashboard"))

    monkeypatch.setattr(distributed, "PATIENCE", 0.1)
    monkeypatch.setattr(distributed, "note", come)
    patience = dask.config.set({"distributed.comm.timeouts.connect": "5s"})
    with patience, DaskWorkers(Cluster(name="dask", address=at)) as workers:
        assert {n for _, n in workers.do([partial(how_many_at_once, n) for n in range(12)])} == {1}
        calls = workers.do([partial(process, n) for n in range(1000)])
        assert next(calls)[1] == started[1].pid
        started[0].kill()
        with pytest.raises(EngineError, match="cluster=dask: the scheduler is gone"):
            list(calls)


def test_without_slurm_nobody_waits_for_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = Cluster(name="slurm", options={"interface": "lo"})
    with (
        DaskWorkers(settings) as workers,
        pytest.raises(ConfigurationError, match=r"cluster=slurm: no cluster \(.*sbatch"),
    ):
        list(workers.do([partial(square, 3)]))


@pytest.fixture
def gmmcnn(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(cli, "_exit_codes", [])
        monkeypatch.setattr(sys, "argv", [])
        return cli._command_line(arguments), capsys.readouterr().err

    return run


def kept(folder: Path) -> dict[str, bytes]:
    names = ("filters.csv", "outliers.csv", "samples.csv", "metrics.csv", "masking.csv")
    files = [*folder.rglob("*.npz"), *folder.glob("activations/*/maps.zarr/complete/*"), *(folder / n for n in names)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_run_shared_out_gives_the_same_bits_however_its_workers_end(tmp_path, gmmcnn, monkeypatch, workers):
    """Feature maps of one checkpoint are kept, so fitted from their store, the other's where they are made."""
    alone, shared, killed = (tmp_path / name for name in ("alone", "shared", "killed"))
    assert gmmcnn(*TINY, f"run={alone}")[0] == 0
    monkeypatch.setattr("gmmcnn.multirun.distributed.DaskWorkers", lambda settings: _open(workers))
    shutil.copytree(alone / "checkpoints", shared / "checkpoints")
    shutil.copytree(alone / "checkpoints", killed / "checkpoints")
    for folder in (shared, killed):
        shutil.copy(alone / "config.yaml", folder)
    code, stderr = gmmcnn(f"run={shared}", "cluster=dask")
    assert code == 0, stderr
    assert kept(shared) == kept(alone)

    def kill() -> None:
        time.sleep(1)
        os.kill(workers._client.run(pid).popitem()[1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    code, stderr = gmmcnn(f"run={killed}", "cluster=dask")
    killer.join()
    assert code == 0, stderr
    assert kept(killed) == kept(alone)


class _open:
    """Workers that stay when a command has ended."""

    def __init__(self, workers: DaskWorkers) -> None:
        self.workers = workers

    def __enter__(self) -> DaskWorkers:
        return self.workers

    def __exit__(self, *_: object) -> None:
        pass
