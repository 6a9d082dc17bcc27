"""One run folder: what it holds by name, and what is needed to work in it, loaded when first asked for."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import nn

from gmmcnn import config, data, models
from gmmcnn.data.probe import ProbeSet, draw_probe
from gmmcnn.errors import ConfigurationError, TrainingError
from gmmcnn.files import read_json, read_table, write_json, write_text
from gmmcnn.models import training

_VERSIONS = ("gmmcnn", "torch", "numpy", "numba", "scikit-learn", "zarr")


@dataclass(frozen=True)
class Checkpoint:
    """Weights to be analysed, and the folder of what is found with them."""

    name: str
    """``epoch-0030``, ``best``, ``given`` or ``imported``."""
    epoch: int | None
    weights: Path | None
    """State dict; None for feature maps that came from elsewhere."""
    folder: Path

    @property
    def maps(self) -> Path:
        """Store of the feature maps."""
        return self.folder / "maps.zarr"

    @property
    def fits(self) -> Path:
        """Folder of the fits."""
        return self.folder / "fits"

    @property
    def taps(self) -> Path:
        """What was tapped, and what not: kept where the maps are not."""
        return self.folder / "taps.json"


class Run:
    """A run folder and its settings; data, model and probe set are loaded when first asked for."""

    def __init__(self, settings: config.Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.timings: dict[str, float] = {}

    @cached_property
    def data(self) -> data.Splits:
        """Training and validation images."""
        return data.load(self.settings.data, self.settings.seed)

    @cached_property
    def model(self) -> nn.Module:
        """The network, with its initial weights."""
        return models.build(
            self.settings.model,
            in_channels=self.data.in_channels,
            image_size=self.data.image_size,
            n_classes=self.data.n_classes,
            seed=self.settings.seed,
        )

    @cached_property
    def probe(self) -> ProbeSet:
        """The samples whose feature maps are clustered."""
        return draw_probe(self.data, self.settings.probe, seed=self.settings.seed)

    def load_weights(self, checkpoint: Checkpoint) -> nn.Module:
        """Give the network a checkpoint's weights."""
        assert checkpoint.weights is not None
        models.load_checkpoint(self.model, checkpoint.weights)
        return self.model

    @property
    def title(self) -> str:
        """The network and the data, as a heading."""
        if self.settings.extract.source:
            return f"feature maps of {Path(self.settings.extract.source).name}"
        noise = f" with {self.settings.data.label_noise:.0%} wrong labels" if self.settings.data.label_noise else ""
        return f"{self.settings.model.name} on {self.settings.data.name}{noise}"

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """What there is to analyse, by epoch; the last one is the network as it is now.

        Raises
        ------
        ConfigurationError
            The folder has no finished training.
        """
        if self.settings.extract.source:
            return [self._checkpoint("imported", None, None)]
        if self.settings.model.checkpoint:
            return [self._checkpoint("given", None, Path(self.settings.model.checkpoint))]
        weights = self.folder / "checkpoints"
        kept = self.settings.train.kept_epochs
        for epoch in kept:
            path = training.checkpoint_path(weights, epoch)
            if not path.exists():
                raise ConfigurationError(f"{path} is missing; train first: gmmcnn task=train run={self.folder}")
        found = [self._checkpoint(f"epoch-{e:04d}", e, training.checkpoint_path(weights, e)) for e in kept]
        metrics = self.training_metrics
        best = int(metrics["epoch"][metrics["validation_loss"].idxmin()])
        if best not in kept:
            found.append(self._checkpoint("best", best, weights / "best.pt"))
        return sorted(found, key=lambda checkpoint: checkpoint.epoch or 0)

    @property
    def training_metrics(self) -> pd.DataFrame:
        """Losses and accuracies by epoch. StoreError if their file is missing or damaged."""
        path = self.folder / "checkpoints" / "metrics.csv"
        return read_table(path, training.METRICS, remedy=f"write it again: gmmcnn task=train run={self.folder}")

    def require_own_training(self) -> None:
        """Raise TrainingError if the folder's network was trained with other settings or data than those in force."""
        if not (self.settings.model.checkpoint or self.settings.extract.source):
            weights = self.folder / "checkpoints"
            training.require_same(weights, self.data, self.settings.train, seed=self.settings.seed)

    @property
    def metrics(self) -> pd.DataFrame | None:
        """Losses, accuracies and counts by epoch; None for a network that was not trained here.

        Raises
        ------
        StoreError
            The filters have not been screened yet, or the file is damaged.
        """
        metrics = self.table("metrics.csv", "screen", ("epoch", "flagged_per_batch"))
        return metrics if metrics["epoch"].notna().all() else None

    def table(self, name: str, task: str, columns: Sequence[str]) -> pd.DataFrame:
        """Read a table that a task writes. StoreError, which names the task, if it is missing or damaged."""
        return read_table(self.folder / name, columns, remedy=f"write it: gmmcnn task={task} run={self.folder}")

    def _checkpoint(self, name: str, epoch: int | None, weights: Path | None) -> Checkpoint:
        return Checkpoint(name, epoch, weights, self.folder / "activations" / name)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that the block takes to the stage's timing."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write ``config.yaml`` and ``run.json``, which says how the work goes and how long it took.

        Settings that are refused made nothing, so an earlier task's ``config.yaml`` comes back in place of theirs.
        ``status`` is running, done, failed or interrupted. ``seconds`` are those that each stage has taken in this
        folder so far, in all tasks together, and the ``total`` of this task alone.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        resolved = self.folder / "config.yaml"
        earlier = resolved.read_text() if resolved.exists() else None
        write_text(resolved, OmegaConf.to_yaml(OmegaConf.structured(self.settings)))
        record: dict[str, Any] = {
            "status": "running",
            "task": self.settings.task,
            "seed": self.settings.seed,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in _VERSIONS} | {"python": platform.python_version()},
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "torch_threads": torch.get_num_threads(),
            },
            "git_commit": _git_commit(),
            "seconds": self._earlier_seconds(),
        }
        self._write_record(record)
        start = time.perf_counter()
        try:
            yield
        except BaseException as error:
            record |= {"status": "failed" if isinstance(error, Exception) else "interrupted", "error": str(error)}
            if earlier is not None and isinstance(error, ConfigurationError | TrainingError):
                write_text(resolved, earlier)
            raise
        else:
            record["status"] = "done"
        finally:
            for stage, seconds in self.timings.items():
                record["seconds"][stage] = round(record["seconds"].get(stage, 0) + seconds, 3)
            record["seconds"]["total"] = round(time.perf_counter() - start, 3)
            self._write_record(record)

    def _earlier_seconds(self) -> dict[str, float]:
        """What earlier tasks took, by stage; nothing where their record is missing or damaged."""
        seconds = read_json(self.folder / "run.json").get("seconds", {})
        return {stage: value for stage, value in seconds.items() if stage != "total"}

    def _write_record(self, record: dict[str, Any]) -> None:
        write_json(self.folder / "run.json", record, indent=1)


def _git_commit() -> str | None:
    """Commit checked out in the working folder, None where there is none."""
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
