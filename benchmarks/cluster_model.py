"""Fits shared out over many workers, simulated from what one of them was measured to need.

A scheduler makes tasks ready one after the other, and hands each to whoever is free first. A task waits for its maps,
which one file system delivers in the order in which they are asked for, and then takes a measured time, drawn anew.
"""

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

START = 8.0
"""Seconds until a worker that is started has everything loaded: Python, torch, compiled code."""


@dataclass(frozen=True)
class Measured:
    """What was measured on one machine.

    Attributes
    ----------
    blocks : sequence of float
        Seconds of each block, by one worker, reading included.
    overhead : float
        Seconds that the scheduler is busy with a task.
    bytes_a_block, filters_a_block : float
        Read from disk, and fitted.
    shared_core : float
        How much longer work takes with every core of the machine busy; 1 where cores share nothing.
    """

    blocks: Sequence[float]
    overhead: float
    bytes_a_block: float
    filters_a_block: float
    shared_core: float


@dataclass(frozen=True)
class Answer:
    """What so many nodes make of the work.

    Attributes
    ----------
    nodes, workers, tasks : int
    seconds : float
        From the start of the workers to the last fit.
    efficiency : float
        Share of the workers' time that goes into fits.
    limit : str
        What costs most of the rest.
    """

    nodes: int
    workers: int
    tasks: int
    seconds: float
    efficiency: float
    limit: str

    def __str__(self) -> str:
        head = f"{self.nodes} nodes, {self.workers} workers, {self.tasks} tasks"
        return f"{head}: {self.seconds:.0f} s, {self.efficiency:.0%} of it fits; most of the rest: {self.limit}"


def simulate(
    measured: Measured,
    n_tasks: int,
    n_workers: int,
    *,
    slower: float = 1.0,
    bandwidth: float = np.inf,
    start: float = 0.0,
) -> float:
    """Seconds until all tasks are done.

    Parameters
    ----------
    measured : Measured
    n_tasks, n_workers : int
    slower : float
        Factor on every block's time.
    bandwidth : float
        Bytes a second of the file system. A block's own reading is part of its time; what it waits for is the others'.
    start : float
        Seconds before the first task.
    """
    random = np.random.default_rng(0)
    durations = random.choice(np.asarray(measured.blocks), n_tasks) * slower
    reading = measured.bytes_a_block / bandwidth
    free = [start] * n_workers
    scheduler = delivered = end = start
    for seconds in durations:
        scheduler = max(scheduler + measured.overhead, free[0])
        begun = max(scheduler, delivered)
        delivered = begun + reading
        done = begun + seconds
        heapq.heapreplace(free, done)
        end = max(end, done)
    return end


def checked(measured: Measured, n_tasks: int, seconds: Mapping[str, float], n_cores: int) -> dict[str, float]:
    """Simulated seconds of what was measured: 1, 2 and 4 workers, which divide the cores of one machine."""
    found = {}
    for name in seconds:
        number, _, what = name.partition(" ")
        if what == "workers":
            n = int(number)
            slower = 1.0 if n == 1 else measured.shared_core * max(1.0, n / n_cores)
            found[name] = simulate(measured, n_tasks, n, slower=slower)
    return found


def asked(measured: Measured, n_filters: int, nodes: int, workers_a_node: int, bandwidth: float) -> Answer:
    """What a cluster makes of many filters, and what keeps it from more."""
    n_tasks, n_workers = round(n_filters / measured.filters_a_block), nodes * workers_a_node
    work = n_tasks * statistics.mean(measured.blocks) * measured.shared_core / n_workers
    more = {"slower": measured.shared_core, "bandwidth": bandwidth, "start": START}
    whole = simulate(measured, n_tasks, n_workers, **more)
    free = {
        "starting": {**more, "start": 0.0},
        "the file system": {**more, "bandwidth": np.inf},
    }
    gains = {name: whole - simulate(measured, n_tasks, n_workers, **given) for name, given in free.items()}
    unhindered = Measured(measured.blocks, 0.0, measured.bytes_a_block, measured.filters_a_block, measured.shared_core)
    gains["the scheduler"] = whole - simulate(unhindered, n_tasks, n_workers, **more)
    gains["workers without work at the end"] = (
        simulate(unhindered, n_tasks, n_workers, slower=measured.shared_core) - work
    )
    return Answer(nodes, n_workers, n_tasks, whole, work / whole, max(gains, key=lambda name: gains[name]))
