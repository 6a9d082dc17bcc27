"""Work for jobs of sweeps that is done in no time; importable in the processes that launchers start."""

import json
import os
import time
from pathlib import Path

from gmmcnn.multirun.record import Sweep
from gmmcnn.run import alive


def do(folder: str, name: str, **share: object) -> int:
    """Claim a job, work ``seconds``, note in its folder that it was done, by whom and with what, and end as it says.

    The job's settings are ``seconds=…``, ``exit_code=…``.
    """
    sweep = Sweep.read(Path(folder))
    job = sweep.job(name)
    if not sweep.claim(job):
        return 0
    values = dict(override.split("=") for override in job.overrides)
    run = sweep.folder_of(job)
    run.mkdir(exist_ok=True)
    about = {"status": "running", "started": alive.now()} | alive.this_process()
    (run / "run.json").write_text(json.dumps(about))
    time.sleep(float(values.get("seconds", 0)))
    visible = {key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    with (run / "done.txt").open("a") as done:
        done.write(json.dumps(share | visible | {"pid": os.getpid()}) + "\n")
    exit_code = int(values.get("exit_code", 0))
    status = {"status": "failed" if exit_code else "done", "error": "as it was told" if exit_code else ""}
    (run / "run.json").write_text(json.dumps(about | status))
    sweep.end(job, exit_code)
    return exit_code


def ran(sweep: Sweep) -> dict[str, int]:
    """How often each job's work was done to its end."""
    paths = {job.name: sweep.folder_of(job) / "done.txt" for job in sweep.jobs}
    return {name: path.read_text().count("\n") if path.exists() else 0 for name, path in paths.items()}
