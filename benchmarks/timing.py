"""The only timer: contestants in one process, in turn, round after round."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

OURS = "gmmcnn"


@dataclass(frozen=True)
class Comparison:
    """One rival beside us on the same work."""

    rival: str
    rival_s: float
    """Median seconds, scaled to the whole work where the rival did a part of it."""
    our_s: float
    ratio: float
    """Median over rounds of the rival's time over ours in that round."""
    lowest_ratio: float
    highest_ratio: float
    share_of_work: float
    """Share of the work that the rival did; its time is for the whole, in proportion."""


def compare(
    ours: Callable[[], object], rivals: Mapping[str, tuple[Callable[[], object], float]], rounds: int
) -> list[Comparison]:
    """Time us and the rivals in turn, ``rounds`` times, each warmed up by one run.

    Parameters
    ----------
    ours : callable
        Does the whole work.
    rivals : mapping from name to (callable, share)
        Each does that share of the work.
    rounds : int
    """
    ours()
    for rival, _ in rivals.values():
        rival()
    our_times: list[float] = []
    rival_times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        our_times.append(seconds(ours))
        for name, (rival, share) in rivals.items():
            rival_times[name].append(seconds(rival) / share)
    return [
        Comparison(
            rival=name,
            rival_s=statistics.median(times),
            our_s=statistics.median(our_times),
            ratio=statistics.median(ratios := [t / o for t, o in zip(times, our_times, strict=True)]),
            lowest_ratio=min(ratios),
            highest_ratio=max(ratios),
            share_of_work=rivals[name][1],
        )
        for name, times in rival_times.items()
    ]


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best(work: Callable[[], object], rounds: int) -> float:
    """Shortest of several runs: for rates, which a busy machine can only lower."""
    return min(seconds(work) for _ in range(rounds))


def report(title: str, comparisons: list[Comparison], sizes: Mapping[str, Any], path: Path | None) -> None:
    """Print a table, and write it as JSON."""
    print(f"{title}  ({', '.join(f'{k} = {v}' for k, v in sizes.items())})")
    for c in comparisons:
        spread = f"{c.lowest_ratio:.1f} to {c.highest_ratio:.1f}"
        print(f"  {c.rival:42s} {c.rival_s:9.3f} s   {OURS} {c.our_s:7.3f} s   ratio {c.ratio:7.1f}  ({spread})")
    write_json(path, {"title": title, "sizes": dict(sizes), "results": [asdict(c) for c in comparisons]})


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Append a result, with the machine it was measured on, to a list in a file."""
    if path is None:
        return
    earlier = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*earlier, {**content, "machine": machine()}], indent=2))


def machine() -> dict[str, Any]:
    """What a time depends on."""
    return {
        "processor": next(
            (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
        ),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
