"""A sweep of real jobs of which some, and the process that starts them, are killed: is any lost, or done twice?"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gmmcnn.multirun.record import Status, Sweep

TINY = ("debug=tiny", "debug=false", "train.epochs=1", "probe.batches=1", "quiet=true")


def command(folder: Path, n_jobs: int) -> list[str]:
    return [
        sys.executable, "-m", "gmmcnn", "-m", f"seed=range(0,{n_jobs})", *TINY, f"sweep={folder}",
        "hydra.launcher.jobs=2", "hydra.launcher.threads=1",
    ]  # fmt: skip


def records(sweep: Sweep) -> dict[str, Mapping[str, Any]]:
    """``run.json`` of every job that has one."""
    found = {}
    for job in sweep.jobs:
        with suppress(OSError, ValueError):
            found[job.name] = json.loads((sweep.folder_of(job) / "run.json").read_text())
    return found


def kill(folder: Path, n_jobs: int, n_killed: int, draw: random.Random) -> list[str]:
    """Start a sweep, kill some of its jobs and then the launcher; what is wrong after the same command again.

    Parameters
    ----------
    folder : Path
        Of the sweep; not there yet.
    n_jobs, n_killed : int
    draw : random.Random
    """
    started = subprocess.Popen(command(folder, n_jobs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed: dict[str, int] = {}
    while len(killed) < n_killed:
        if started.poll() is not None:
            return [f"the sweep ended when {len(killed)} jobs had been killed"]
        time.sleep(draw.uniform(0.05, 0.5))
        running = {name: run["pid"] for name, run in _found(folder).items() if run["status"] == "running"}
        if fresh := {name: pid for name, pid in running.items() if name not in killed}:
            name = draw.choice(sorted(fresh))
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(fresh[name], signal.SIGKILL)
                killed[name] = fresh[name]
    started.kill()
    started.wait()
    sweep = Sweep.read(folder)
    while any(state.status is Status.RUNNING for state in sweep.states().values()):
        time.sleep(0.1)  # jobs outlive who started them
    before = {name: run for name, run in records(sweep).items() if run["status"] == "done"}
    again = subprocess.run(command(folder, n_jobs), capture_output=True, text=True, check=False)
    wrong = [f"the same command ends with {again.returncode}: {again.stderr[-400:]}"] if again.returncode else []
    after = records(sweep)
    wrong += [f"{job.name}: lost" for job in sweep.jobs if after.get(job.name, {}).get("status") != "done"]
    wrong += [f"{name}: done twice" for name, run in before.items() if after[name]["started"] != run["started"]]
    return wrong + [f"{name}: taken for done" for name, pid in killed.items() if before.get(name, {}).get("pid") == pid]


def _found(folder: Path) -> dict[str, Mapping[str, Any]]:
    return records(Sweep.read(folder)) if (folder / "sweep.json").exists() else {}
