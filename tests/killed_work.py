"""A run that is killed at its n-th file operation, in a process of its own that has imported everything before."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from gmmcnn import config
from gmmcnn.tasks import execute

SETTINGS = config.Settings(
    task="run",
    data=config.Data(train_samples=60),
    train=config.Train(epochs=2, checkpoint_epochs=[1, 2]),
    probe=config.Probe(samples=30, batches=2),
    extract=config.Extract(forward_samples=16, keep_maps="all"),
    gmm=config.Gmm(k_max=3, n_init=1, repeats=1),
    screen=config.Screen(ch_ratio=0.0, activation_ratio=0.0),
    prune=config.Prune(controls=1),
    engine=config.Engine(name="cpu", threads=1),
    quiet=True,
)
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
"""Events of Python that announce a change; ``open`` too, where it is for writing. Zarr's compiled part, which writes
the chunks, announces none: its work lies between those of others."""


def attempt(folder: str, killed_at: int, counted: Any) -> None:
    """Do the run in a folder, as far as the operation of that number; 0 does all. ``counted.value`` counts."""
    import torch

    torch.set_num_threads(1)
    changes = 0

    def announced(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event != "open" and event not in CHANGES:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not str(arguments[0]).startswith(folder):
            return
        changes += 1
        counted.value = changes
        if changes == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(announced)
    execute(SETTINGS, Path(folder))
