"""Dask's workers: processes of this machine, of a scheduler that runs already, Slurm jobs, or one a GPU.

A piece of work whose process is killed is done again by another. Which of them does what decides nothing.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from gmmcnn.config import Cluster
from gmmcnn.errors import ConfigurationError, EngineError, GmmcnnError, one_line
from gmmcnn.progress import note
from gmmcnn.report.views import plural

R = TypeVar("R")
ATTEMPTS = 3
"""How often a piece of work may take its process with it before it is given up."""
_NEEDS = {"dask": "dask", "slurm": "dask", "cuda": "gpu-cu12 or gpu-cu13"}
"""Extra that brings what a cluster needs."""


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
            A piece of work has ended three processes, or all workers are gone.
        """
        if not calls:
            return
        client = self._client = self._client or self._started()
        from distributed import KilledWorker, as_completed

        futures = {client.submit(_called, call, pure=False): number for number, call in enumerate(calls)}
        try:
            for future in as_completed(list(futures)):
                yield futures[future], future.result()
        except KilledWorker as error:
            raise EngineError(
                f"{self._name}: a piece of work ended {ATTEMPTS} workers, most likely for want of memory "
                f"({one_line(error)}); take fewer workers, or give each more memory in cluster.options"
            ) from error
        finally:
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
        # A killed worker is no news: its work is done again.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        self._held.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS - 1}))
        try:
            at = self._settings.address or self._held.enter_context(_cluster(self._settings))
            client = self._held.enter_context(distributed.Client(at))
        except GmmcnnError:
            raise
        except Exception as error:  # what the scheduler, the network, sbatch or the driver raise
            where = f" at {self._settings.address}" if self._settings.address else ""
            raise ConfigurationError(
                f"{self._name}: no cluster{where} ({one_line(error)}); without one: cluster.name=none"
            ) from error
        note(f"Dask: {self._settings.address or plural(self._settings.workers, 'worker')}, {client.dashboard_link}")
        return client


def _called(call: Callable[[], R]) -> R:
    return call()


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

            jobs = SLURMCluster(cores=settings.threads, processes=1, **{"memory": "4GB"} | settings.options)
            jobs.adapt(minimum=settings.workers, maximum=settings.workers)  # scale() would not replace a lost one
            return jobs
        from distributed import LocalCluster
    except ImportError as error:
        raise _missing(settings, error) from error
    return LocalCluster(
        n_workers=settings.workers, threads_per_worker=1, **{"dashboard_address": ":0"} | settings.options
    )
