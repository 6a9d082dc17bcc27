"""The only timer: contestants in one process, in turn, round after round."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

OURS = "gmmcnn"


@dataclass
class Contestant:
    """Work to be timed."""

    work: Callable[[], Any]
    share: float = 1.0
    """Share of the whole work that this does; its time is scaled to the whole."""
    answer: Any = None
    """What it returned last."""
    apart: Callable[[], object] | None = None
    """Work that it contains and that is not counted: done once more beside it, to take its time off."""

    def seconds(self) -> float:
        """Time of one run, scaled to the whole work."""
        not_counted = seconds(self.apart) if self.apart else 0.0
        start = time.perf_counter()
        self.answer = self.work()
        return (time.perf_counter() - start - not_counted) / self.share


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


def compare(ours: Contestant, rivals: Mapping[str, Contestant], rounds: int) -> list[Comparison]:
    """Time us and the rivals in turn, ``rounds`` times, each warmed up by one run."""
    for contestant in (ours, *rivals.values()):
        contestant.seconds()
    times = [(ours.seconds(), {name: rival.seconds() for name, rival in rivals.items()}) for _ in range(rounds)]
    our_s = statistics.median(our for our, _ in times)
    comparisons = []
    for name, rival in rivals.items():
        ratios = [theirs[name] / our for our, theirs in times]
        comparisons.append(
            Comparison(
                rival=name,
                rival_s=statistics.median(theirs[name] for _, theirs in times),
                our_s=our_s,
                ratio=statistics.median(ratios),
                lowest_ratio=min(ratios),
                highest_ratio=max(ratios),
                share_of_work=rival.share,
            )
        )
    return comparisons


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best(work: Callable[[], object], rounds: int) -> float:
    """Shortest of several runs: for rates, which a busy machine can only lower."""
    return min(seconds(work) for _ in range(rounds))


def report(
    title: str,
    comparisons: list[Comparison],
    sizes: Mapping[str, Any],
    path: Path | None,
    checks: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Print a table, and write it as JSON; ``checks`` says of rivals how their answer compares with ours."""
    print(f"{title}  ({', '.join(f'{k} = {v}' for k, v in sizes.items())})")
    for c in comparisons:
        times = f"{c.rival:14s} {c.rival_s:9.3f} s   {OURS} {c.our_s:7.3f} s"
        ratios = f"ratio {c.ratio:7.1f}  ({c.lowest_ratio:.1f} to {c.highest_ratio:.1f})"
        print(f"  {times}   {ratios:32s} {checks.get(c.rival, '')}")
    content = {"title": title, "sizes": dict(sizes), "results": [asdict(c) for c in comparisons]}
    write_json(path, {**content, "checks": dict(checks)})


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
