"""How much faster fits are by more workers, what a killed one costs, and what 100 nodes would make of a million.

    python -m benchmarks.bench_workers [--json FILE]

Fits of a store of thousands of filters by 1, 2 and 4 of Dask's workers, each with one thread, of a quarter and a half
of it by 1 and 2, and beside them by as many processes that share nothing, which is the ceiling that the machine allows.
Workers have everything loaded before time is taken. The measured times of blocks, and of a task's way through the
scheduler, then go into a simulation, which is checked against the measured times and asked for a million filters on up
to 1,000 nodes.
"""

import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from joblib import Parallel, delayed
from torch import nn

from benchmarks import cases, cluster_model, timing
from gmmcnn import config
from gmmcnn.featuremaps import ActivationStore, extract
from gmmcnn.filters import fitting
from gmmcnn.hardware.threads import available_cores
from gmmcnn.multirun.distributed import DaskWorkers

N = 200
SETTINGS = config.Settings(engine=config.Engine(name="cpu", threads=1))
NODES, WORKERS_A_NODE, FILTERS = (1, 10, 100, 1000), 16, 10**6
FILE_SYSTEM = 10e9
"""Bytes a second that the nodes read together, as a parallel file system of a middling site gives."""
STARTED = 0.2
"""Seconds after which a worker is killed, as a share of the undisturbed time."""


def make_store(folder: Path, n_layers: int, n_filters: int) -> ActivationStore:
    """Maps of a deep, wide network with weights as they are drawn, on real images."""
    _, images, _ = cases.trained_network()
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(images.shape[1], n_filters, 5, stride=2), nn.ReLU()]
    for _ in range(n_layers - 1):
        layers += [nn.Conv2d(n_filters, n_filters, 3, padding=1), nn.BatchNorm2d(n_filters), nn.ReLU()]
    network = nn.Sequential(*layers).eval()
    return extract(network, images[: 5 * N], folder / "maps.zarr", probe_samples=N)


def calls_of(store: ActivationStore, folder: Path) -> list[Callable[[], None]]:
    """The pieces of work that fitting a store comes to."""
    shutil.rmtree(folder, ignore_errors=True)
    blocks = [(layer, block) for layer in store.layers for block in fitting.blocks_of(store, layer, N)]
    return [partial(fitting._fit_block, store.path, layer, block, folder, N, SETTINGS, "") for layer, block in blocks]


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call, measured where it is made."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rest(_: int) -> int:
    """Nothing, for long enough that every worker gets some of it, with everything loaded."""
    time.sleep(0.2)
    return os.getpid()


def by_workers(
    store: ActivationStore, folder: Path, n_workers: int, *, one_in: int = 1, kill: float = 0
) -> tuple[float, list[float], float]:
    """Seconds of all blocks, or one in some, by workers; of each; of a task that does nothing, in the scheduler."""
    with DaskWorkers(config.Cluster(name="dask", workers=n_workers)) as workers:
        for number in range(2):  # so that each has compiled code in memory
            list(workers.do(calls_of(store, folder / f"warm-{number}")[: 2 * n_workers]))
        nothing = [partial(abs, n) for n in range(300)]
        overhead = timed(lambda: list(workers.do(nothing))) / len(nothing)
        calls = [partial(timed, call) for call in calls_of(store, folder / "fits")[::one_in]]
        if kill:
            pid = next(pid for _, pid in workers.do([partial(rest, 0)]))
            threading.Timer(kill, os.kill, (pid, signal.SIGKILL)).start()
        each: list[float] = []
        whole = timed(lambda: each.extend(seconds for _, seconds in workers.do(calls)))
    return whole, each, overhead


def by_processes(store: ActivationStore, folder: Path, n_processes: int) -> float:
    """Seconds of all blocks by so many processes, each with its own share of them, which share nothing."""
    calls = calls_of(store, folder / "apart")
    shares = [calls[first::n_processes] for first in range(n_processes)]
    with Parallel(n_jobs=available_cores()) as pool:  # of one job it would make none, and give it all threads
        pool(delayed(all_of)(calls_of(store, folder / "warm-apart")[:2]) for _ in shares)
        return timed(lambda: pool(delayed(all_of)(share) for share in shares))


def all_of(calls: list[Callable[[], None]]) -> None:
    """Make calls, one after the other."""
    for call in calls:
        call()


def main() -> None:
    parser = cases.parser(__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--filters", type=int, default=96, help="of each layer")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gmmcnn-workers-"))
    store = make_store(folder, arguments.layers, arguments.filters)
    n_filters = sum(tap.n_filters for tap in store.layers.values())
    size = (
        f"{n_filters} filters, 5 batches of N = {N}, {SETTINGS.gmm.repeats} starts, {store.nbytes / 1e6:.0f} MB of maps"
    )
    print(f"{size}, {available_cores()} cores")
    rounds: dict[str, list[float]] = {}
    blocks: list[float] = []
    overheads: list[float] = []
    for _ in range(arguments.rounds):
        for n in (1, 2, 4):
            whole, each, overhead = by_workers(store, folder, n)
            rounds.setdefault(f"{n} workers", []).append(whole)
            overheads.append(overhead)
            if n == 1:
                blocks += each
        for n in (1, 2):
            part = by_workers(store, folder, n, one_in=4 // n)[0]
            rounds.setdefault(f"{n} on {n}/4 of it", []).append(part)
            rounds.setdefault(f"{n} processes apart", []).append(by_processes(store, folder, n))
        killed = by_workers(store, folder, 2, kill=STARTED * rounds["2 workers"][-1])[0]
        rounds.setdefault("2 workers, one killed", []).append(killed)
    seconds = {name: statistics.median(found) for name, found in rounds.items()}
    ratios = {name: [b / t for b, t in zip(rounds["1 workers"], found, strict=True)] for name, found in rounds.items()}
    for name, found in rounds.items():
        faster = f"{statistics.median(ratios[name]):.2f} ({min(ratios[name]):.2f} to {max(ratios[name]):.2f})"
        print(f"{name:24s} {statistics.median(found):6.1f} s   {faster} × as fast as one worker")
    lost = [b / t - 1 for b, t in zip(rounds["2 workers, one killed"], rounds["2 workers"], strict=True)]
    print(f"a killed one of 2 costs {statistics.median(lost):.0%}")
    apart = statistics.median(rounds["1 processes apart"]) / statistics.median(rounds["2 processes apart"])
    n_blocks = len(blocks) // arguments.rounds
    measured = cluster_model.Measured(
        blocks, statistics.median(overheads), store.stored_bytes / n_blocks, n_filters / n_blocks, shared_core=2 / apart
    )
    print(f"a task in the scheduler: {1e3 * measured.overhead:.1f} ms; a block: {statistics.median(blocks):.2f} s")
    checks = cluster_model.checked(measured, n_blocks, seconds, available_cores())
    for name, predicted in checks.items():
        beside = f"measured {seconds[name]:.1f} s ({predicted / seconds[name] - 1:+.0%})"
        print(f"simulated, {name}: {predicted:.1f} s, {beside}")
    asked = [cluster_model.asked(measured, FILTERS, nodes, WORKERS_A_NODE, FILE_SYSTEM) for nodes in NODES]
    for answer in asked:
        print(answer)
    content = {"seconds": rounds, "checks": checks, "asked": [vars(answer) for answer in asked]}
    timing.write_json(arguments.json, {"title": "bench_workers", **content})
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
