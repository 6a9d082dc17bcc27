"""Jobs of a sweep on this machine, several at once, with its cores and GPUs shared out."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from gmmcnn.config import LocalLauncher
from gmmcnn.errors import ConfigurationError
from gmmcnn.hardware.threads import available_cores
from gmmcnn.multirun.record import Sweep
from gmmcnn.progress import Advance

Work = Callable[..., int]
"""What does a job of a sweep, by the sweep's folder and the job's name, and returns an exit code."""
_PRELOADED = ["gmmcnn.cli", "gmmcnn.tasks", "torch._dynamo"]
"""What every job imports for seconds: once, in a process that does nothing else, and from which jobs are forked."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Shares:
    """What each of the jobs at work gets: so many threads, and a GPU where there are some."""

    threads: int
    gpus: tuple[str | None, ...]
    """One for each job at work; None for one without."""

    @classmethod
    def of_this_machine(cls, settings: LocalLauncher, n_jobs: int) -> "Shares":
        """Divide the machine among jobs.

        Raises
        ------
        ConfigurationError
            GPUs are asked for and there are none.
        """
        gpus, cores = visible_gpus(), available_cores()
        if settings.gpus_per_job and not gpus:
            raise ConfigurationError(
                f"hydra.launcher.gpus_per_job={settings.gpus_per_job}: this machine has no GPU, or none is visible "
                f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}); see gmmcnn task=doctor"
            )
        uses_gpus = gpus and settings.gpus_per_job != 0
        at_once = settings.jobs or (len(gpus) if uses_gpus else cores)
        at_once = max(1, min(at_once, n_jobs))
        given = [gpus[job % len(gpus)] if uses_gpus else None for job in range(at_once)]
        return cls(settings.threads or max(1, cores // at_once), tuple(given))


def visible_gpus() -> list[str]:
    """GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    devices = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted((name for name in devices if name.isdigit()), key=int)


def run(sweep: Sweep, names: Sequence[str], settings: LocalLauncher, work: Work, advance: Advance) -> None:
    """Do jobs, as many at once as the machine has room for; each in a process of its own, which outlives this one.

    Parameters
    ----------
    sweep : Sweep
    names : sequence of str
    settings : config.LocalLauncher
    work : callable
    advance : Advance
        Called after each job.
    """
    shares = Shares.of_this_machine(settings, len(names))
    waiting, free = deque(names), list(range(len(shares.gpus)))
    running: dict[int, tuple[ForkServerProcess, int]] = {}
    with _fork_server(shares.threads) as start:
        try:
            while waiting or running:
                while waiting and free:
                    share, name = free.pop(0), waiting.popleft()
                    process = start(_in_its_share, (work, str(sweep.folder), name, shares.threads, shares.gpus[share]))
                    running[process.sentinel] = process, share
                connection.wait(list(running), timeout=0.5)
                ended = [sentinel for sentinel, (process, _) in running.items() if not process.is_alive()]
                for sentinel in ended:
                    _, share = running.pop(sentinel)
                    free.append(share)
                advance(len(ended))
        except BaseException:
            for process, _ in running.values():
                process.terminate()  # finishes what it has in hand
            for process, _ in running.values():
                process.join()
            raise


@contextmanager
def _fork_server(threads: int) -> Iterator[Callable[..., ForkServerProcess]]:
    """Start processes that have imported everything, and compute with so many threads."""
    before = {name: os.environ.get(name) for name in _THREADS}
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))

    def start(target: Callable[..., None], arguments: tuple[object, ...]) -> ForkServerProcess:
        process = context.Process(target=target, args=arguments)
        process.start()
        return process

    try:
        yield start
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _in_its_share(work: Work, folder: str, name: str, threads: int, gpu: str | None) -> None:
    """Do one job with its share of the machine."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    raise SystemExit(work(folder, name, threads=threads))
