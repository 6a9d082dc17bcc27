"""Dask's workers: processes of this machine, of a scheduler that runs already, Slurm jobs, or one a GPU.

A piece of work whose process is killed is done again by another. Which of them does what decides nothing.
"""

import logging
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from typing import Any, TypeVar

from gmmcnn import __version__
from gmmcnn.config import Cluster
from gmmcnn.errors import ConfigurationError, EngineError, GmmcnnError, one_line
from gmmcnn.progress import note
from gmmcnn.report.views import plural

R = TypeVar("R")
_ONE_AT_A_TIME = threading.Lock()
ATTEMPTS = 3
"""How often a piece of work may take its process with it before it is given up."""
PATIENCE = 15.0
"""Seconds without a worker after which it is said what is waited for."""
_NEEDS = {"dask": "dask", "slurm": "dask", "cuda": "gpu-cu12 or gpu-cu13"}
"""Extra that brings what a cluster needs."""
_WAITED_FOR = {
    "dask": "work begins with the first: dask worker ADDRESS --nthreads 1",
    "slurm": "squeue --me tells how its jobs are, cluster.options.log_directory=FOLDER keeps what they write",
    "cuda": "nvidia-smi tells how the GPUs are",
}
"""What can be looked at, or done, when no worker comes."""


class DaskWorkers:
    """Workers of a Dask cluster, which starts when there is work for it, and ends with the block of ``with``.

    Parameters
    ----------
    settings : config.Cluster
    """

    def __init__(self, settings: Cluster) -> None:
        self._settings = settings
        self._held = ExitStack()
        self._client: Any = None

    def __enter__(self) -> "DaskWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def do(self, calls: Sequence[Callable[[], R]]) -> Iterator[tuple[int, R]]:
        """Have calls made by the workers: as :class:`gmmcnn.hardware.workers.Workers`.

        Raises
        ------
        ConfigurationError
            Dask is not installed, or the cluster refuses to start.
        EngineError
            Slurm refuses the jobs, a piece of work has ended three processes, or the scheduler is gone.
        """
        if not calls:
            return
        client = self._client = self._client or self._started()
        from distributed import KilledWorker, as_completed
        from distributed.comm import CommClosedError

        futures = {client.submit(_called, call, pure=False): number for number, call in enumerate(calls)}
        try:
            for future in as_completed(list(futures)):
                yield futures[future], future.result()
        except KilledWorker as error:
            raise EngineError(
                f"{self._name}: a piece of work ended {ATTEMPTS} workers, most likely for want of memory "
                f"({one_line(error)}); take fewer workers, or give each more memory in cluster.options"
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise EngineError(
                f"{self._name}: the scheduler is gone; what is done is kept ({one_line(error)})"
            ) from error
        finally:
            if client.status == "running":
                client.cancel(list(futures))

    @property
    def _name(self) -> str:
        return f"cluster={self._settings.name}"

    def _started(self) -> Any:
        """The client of a cluster that is started."""
        try:
            import dask
            import distributed
        except ImportError as error:
            raise _missing(self._settings, error) from error
        # A killed worker is no news: its work is done again. What is, is raised.
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._held.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS - 1}))
        try:
            at = self._settings.address or self._held.enter_context(_cluster(self._settings))
            if self._settings.name == "slurm":
                _submit(at, self._settings.workers)
            client = self._held.enter_context(distributed.Client(at))
            _require_same_version(client, self._name)
        except GmmcnnError:
            raise
        except Exception as error:  # what the scheduler, the network, sbatch or the driver raise
            where = f" at {self._settings.address}" if self._settings.address else ""
            raise ConfigurationError(
                f"{self._name}: no cluster{where} ({one_line(error)}); without one: cluster.name=none"
            ) from error
        note(f"Dask: {self._settings.address or plural(self._settings.workers, 'worker')}, {client.dashboard_link}")
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            note(f"{self._name}: no worker has come yet; {_WAITED_FOR[self._settings.name]}")
        return client


def _called(call: Callable[[], R]) -> R:
    """Make a call. A worker that somebody started with several threads makes one at a time: each takes all threads."""
    with _ONE_AT_A_TIME:
        return call()


def _version() -> str:
    return __version__


def _require_same_version(client: Any, name: str) -> None:
    """See that the scheduler, which unpacks the work, and the workers have this package, in this version."""
    versions = {client.run_on_scheduler(_version), *client.run(_version).values()}
    if versions != {__version__}:
        found = ", ".join(sorted(versions))
        raise ConfigurationError(
            f"{name}: its processes have gmmcnn {found}, this one {__version__}; install one version"
        )


def _missing(settings: Cluster, error: ImportError) -> ConfigurationError:
    needed, extra = error.name or "a package", _NEEDS[settings.name]
    return ConfigurationError(f"cluster={settings.name}: needs {needed}: pip install 'gmmcnn[{extra}]'")


def _cluster(settings: Cluster) -> Any:
    """Start a cluster."""
    try:
        if settings.name == "cuda":
            from dask_cuda import LocalCUDACluster

            return LocalCUDACluster(**settings.options)
        if settings.name == "slurm":
            from dask_jobqueue import SLURMCluster

            # cores is how much Dask has a worker do at once; the threads are for the one piece in hand.
            given: dict[str, Any] = {"cores": 1, "job_cpu": settings.threads, "memory": "4GB"}
            return SLURMCluster(**given | settings.options)
        from distributed import LocalCluster
    except ImportError as error:
        raise _missing(settings, error) from error
    return LocalCluster(
        n_workers=settings.workers, threads_per_worker=1, **{"dashboard_address": ":0"} | settings.options
    )


def _submit(jobs: Any, n_workers: int) -> None:
    """Have so many Slurm jobs, always: ``scale()`` would not replace a lost one.

    Slurm is asked first whether it takes them. That it does not, Dask would only log, and wait for ever.
    """
    asked = subprocess.run(
        ["sbatch", "--test-only"], input=jobs.job_script(), text=True, capture_output=True, check=False
    )
    if asked.returncode:
        raise EngineError(f"cluster=slurm: sbatch says: {' '.join(asked.stderr.split())}; see cluster.options, sinfo")
    jobs.adapt(minimum=n_workers, maximum=n_workers)
