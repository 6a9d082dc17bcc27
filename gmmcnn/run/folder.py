"""One run folder: what it holds by name, what is needed to work in it, and the record of how the work went."""

import copy
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gmmcnn import config, data, models, tracking
from gmmcnn.data.probe import ProbeSet, draw_probe
from gmmcnn.errors import BusyError, ConfigurationError, StoreError, TrainingError
from gmmcnn.files import read_digests, read_table, sha256, write_record, write_text
from gmmcnn.hardware import device
from gmmcnn.hardware.workers import Workers
from gmmcnn.models import training
from gmmcnn.names import command
from gmmcnn.progress import note, say
from gmmcnn.run import alive, disk, record, status
from gmmcnn.run.lock import one_writer

_VERSIONS = ("gmmcnn", "torch", "numpy", "numba", "scikit-learn", "zarr")
_COUNTED = ("epoch", "flagged_per_batch")
_LOOKING = ("report", "verify", "doctor")
"""Tasks that do their work in a folder that cannot be written, too."""


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
    """A run folder and its settings.

    ``data()``, ``probe()``, ``device()`` and what ``network()`` starts from are loaded when first asked for, and kept.

    Parameters
    ----------
    settings : config.Settings
    folder : Path
    beside : bool
        Whether they are of one piece of work among others, so that the folder's record of settings stays as it is.
    """

    def __init__(self, settings: config.Settings, folder: Path, *, beside: bool = False) -> None:
        self.settings = settings
        self.beside = beside
        self.workers: Workers | None = None
        self.folder = folder
        self.timings: dict[str, float] = {}
        self.data = cache(self._data)
        self.probe = cache(self._probe)
        self.device = cache(self._device)
        self._initial = cache(self._build)
        self._earlier: str | None = None
        self._accepted = False
        self._kept: dict[str, str | None] = {}
        self._tracking = tracking.Trackers({})
        self._ran_on: str | None = None

    def _data(self) -> data.Splits:
        """Training and validation images."""
        return data.load(self.settings.data, self.settings.seed)

    def _probe(self) -> ProbeSet:
        """The samples whose feature maps are clustered."""
        return draw_probe(self.data(), self.settings.probe, seed=self.settings.seed)

    def _device(self) -> torch.device:
        """Where the network runs; EngineError if it cannot run there."""
        found = device.chosen(self.settings.device)
        self._ran_on = device.title(found)
        return found

    def _build(self) -> nn.Module:
        splits = self.data()
        return models.build(
            self.settings.model,
            in_channels=splits.in_channels,
            image_size=splits.image_size,
            n_classes=splits.n_classes,
            seed=self.settings.seed,
        )

    def network(self, weights: Mapping[str, Tensor] | None = None, path: Path | None = None) -> nn.Module:
        """Return the network on its device, a new one each time, with its initial weights or with those given.

        Parameters
        ----------
        weights : mapping of name to Tensor, optional
        path : Path, optional
            Where the weights come from, for the error's message.
        """
        network = copy.deepcopy(self._initial())
        if weights is not None:
            models.load_state(network, weights, path or "weights")
        return network.to(self.device())

    @property
    def title(self) -> str:
        """The network and the data, as a heading."""
        if self.settings.extract.source:
            return f"feature maps of {Path(self.settings.extract.source).name}"
        noise = f" with {self.settings.data.label_noise:.0%} wrong labels" if self.settings.data.label_noise else ""
        return f"{self.settings.model.name} on {self.settings.data.name}{noise}"

    @property
    def trained_here(self) -> bool:
        """Whether the weights are of a training in this folder."""
        return not (self.settings.model.checkpoint or self.settings.extract.source)

    def checkpoints(self) -> list[Checkpoint]:
        """Read what there is to analyse, by epoch; the last one is the network as it is now.

        Raises
        ------
        ConfigurationError
            The folder has no finished training.
        StoreError
            The metrics of the training are missing or damaged.
        """
        if self.settings.extract.source:
            return [self._checkpoint("imported", None, None)]
        if self.settings.model.checkpoint:
            return [self._checkpoint("given", None, Path(self.settings.model.checkpoint))]
        weights, kept = self.folder / "checkpoints", self.settings.train.kept_epochs
        found = [self._checkpoint(f"epoch-{e:04d}", e, training.checkpoint_path(weights, e)) for e in kept]
        for checkpoint in found:
            if not (checkpoint.weights and checkpoint.weights.exists()) and not checkpoint.taps.exists():
                again = command("train", self.folder)
                raise ConfigurationError(f"{checkpoint.weights} is missing; train first: {again}")
        if {path.name for path in weights.glob("*.pt")} - (read_digests(weights) or {}).keys():
            note(f"{weights}: holds weights without a recorded digest, as earlier versions left them: taken unverified")
        metrics = self.training_metrics()
        best = int(metrics["epoch"][metrics["validation_loss"].idxmin()])
        if best not in kept:
            found.append(self._checkpoint("best", best, weights / "best.pt"))
        return sorted(found, key=lambda checkpoint: checkpoint.epoch or 0)

    def training_metrics(self) -> pd.DataFrame:
        """Read losses and accuracies by epoch. StoreError if their file is missing or damaged."""
        path = self.folder / "checkpoints" / "metrics.csv"
        remedy = f"write it again: {command('train', self.folder)}"
        table = read_table(path, training.METRICS, remedy=remedy, numbers=training.METRICS)
        if (read_digests(path.parent) or {}).get(path.name) not in (None, sha256(path)):
            raise StoreError(f"{path}: damaged, its SHA-256 is not the one recorded; {remedy}")
        return table

    def require_own_training(self) -> None:
        """Raise TrainingError if the folder's network was trained with other settings or data than those in force."""
        if self.trained_here:
            weights = self.folder / "checkpoints"
            training.require_same(weights, self.data(), self.settings.train, seed=self.settings.seed)

    def metrics(self) -> pd.DataFrame | None:
        """Read losses, accuracies and counts by epoch; None for a network that was not trained here.

        Raises
        ------
        StoreError
            The filters have not been screened yet, or the file is damaged.
        """
        metrics = self.table("metrics.csv", "screen", _COUNTED, numbers=_COUNTED)
        return metrics if metrics["epoch"].notna().all() else None

    def table(self, name: str, task: str, columns: Sequence[str], numbers: Sequence[str] = ()) -> pd.DataFrame:
        """Read a table that a task writes. StoreError, which names the task, if it is missing or damaged."""
        remedy, digest = f"write it: {command(task, self.folder)}", self.digests().get(name)
        return status.read_table(self.folder, name, columns, remedy=remedy, digest=digest, numbers=numbers)

    def require_kept(self, name: str, task: str) -> None:
        """Raise StoreError if a file that a task has written is not as it left it."""
        if found := status.problem(self.folder, name, self.digests().get(name)):
            raise StoreError(f"{self.folder / name}: {found}; write it: {command(task, self.folder)}")

    def keep(self, *names: str) -> None:
        """Record with the end of the task what files that it has written hold now, or that they are gone."""
        for name in names:
            path = self.folder / name
            self._kept[name] = sha256(path) if path.exists() else None

    def digests(self) -> dict[str, str]:
        """What files of earlier tasks and of this one hold."""
        kept = status.digests(self.folder) | self._kept
        return {name: digest for name, digest in kept.items() if digest}

    def _checkpoint(self, name: str, epoch: int | None, weights: Path | None) -> Checkpoint:
        return Checkpoint(name, epoch, weights, self.folder / "activations" / name)

    @property
    def trackers(self) -> list[str]:
        """Names of the services that are told how the work goes."""
        return [name for name in tracking.KINDS if getattr(self.settings.tracking, name)]

    def open_trackers(self) -> None:
        """Open the services that are told. ConfigurationError if one is missing or refuses the run."""
        if self.trackers:
            name = f"{self.title}, {self.folder.name}"
            self._tracking = tracking.opened(self.trackers, self.folder, self.settings.tracking.project, name)
            self._tracking.describe({name: config.value_of(self.settings, name) for name in config.setting_names()})

    def track(self, values: Mapping[str, float], epoch: int) -> None:
        """Send numbers of an epoch to the services that are open."""
        self._tracking.log(values, epoch)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that the block takes to the stage's timing."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def accept(self) -> None:
        """Make the settings in force those of the folder: a task calls it once it knows that it can work with them."""
        path = self.folder / record.NAME
        if (
            self._accepted or self.beside or (self.settings.task == "repair" and path.exists())
        ):  # which changes no settings
            return
        self._earlier = path.read_text(encoding="utf-8") if path.exists() else None
        write_text(path, record.as_text(self.settings))
        self._accepted = True

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write ``run.json``, which says how the work goes and how long it took, and ``config.yaml`` once accepted.

        Settings that are refused after all made nothing, so an earlier task's ``config.yaml`` comes back in their
        place. ``status`` is running, done, failed or interrupted; whether what is running still is, its ``host``,
        ``pid`` and ``heartbeat`` tell (:mod:`gmmcnn.run.alive`). ``seconds`` are those that each stage has taken in
        this folder so far, in all tasks together, and the ``total`` of this task alone.

        Raises
        ------
        ConfigurationError
            The folder cannot be written, and the task does more than look.
        BusyError
            Another process works in the folder.
        """
        with ExitStack() as held:
            about: dict[str, Any] = {}
            try:
                held.enter_context(one_writer(self.folder, self.settings.task))
                about = self._about()
                self._write(about)
            except OSError as error:
                try:
                    self._require_only_looking(error)
                except Exception as refusal:
                    with suppress(OSError):  # what failed may have been the forcing to disk of a record that is there
                        if about:
                            self._write(about | {"status": "failed", "error": str(refusal)})
                    raise
                yield
                return
            held.callback(lambda: self._tracking.close())
            start = time.perf_counter()
            try:
                with alive.beating(lambda: self._write(about)):
                    yield
                self.accept()
                self._write(self._ended(about, start) | {"status": "done"})
            except BaseException as error:
                refused = disk.told(error, self.folder, self.settings.task) if isinstance(error, Exception) else None
                said = str(refused or error)
                about |= {"status": "failed" if isinstance(error, Exception) else "interrupted", "error": said}
                with suppress(OSError):  # of a full disk, say: what went wrong is in hand already
                    if self._earlier is not None and isinstance(error, ConfigurationError | TrainingError):
                        write_text(self.folder / record.NAME, self._earlier)
                    self._write(self._ended(about, start))
                if refused:
                    raise refused from error
                raise

    def _about(self) -> dict[str, Any]:
        """What ``run.json`` says when a task begins."""
        return {
            "status": "running",
            "task": self.settings.task,
            "seed": self.settings.seed,
            "started": alive.now(),
            "heartbeat": None,
            **alive.this_process(),
            "versions": {name: version(name) for name in _VERSIONS} | {"python": platform.python_version()},
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "torch_threads": torch.get_num_threads(),
            },
            "git_commit": _git_commit(),
            "seconds": self._earlier_seconds(),
            "files": status.digests(self.folder),
        }

    def _write(self, about: Mapping[str, Any]) -> None:
        """Write ``run.json``, with a heartbeat."""
        write_record(self.folder / status.NAME, {**about, "heartbeat": alive.now()})

    def _ended(self, about: Mapping[str, Any], start: float) -> dict[str, Any]:
        """What ``run.json`` says when a task ends: with the seconds that it took added, and what its tables hold."""
        seconds = dict(about["seconds"])
        for stage, taken in self.timings.items():
            seconds[stage] = round(seconds.get(stage, 0) + taken, 3)
        seconds["total"] = round(time.perf_counter() - start, 3)
        machine = about["machine"] | ({"device": self._ran_on} if self._ran_on else {})
        return {**about, "machine": machine, "seconds": seconds, "files": self.digests()}

    def _require_only_looking(self, error: OSError) -> None:
        """Raise an error unless the task can do its work in a folder that is not its own to write to; say so then."""
        busy = isinstance(error, BusyError)
        if self.settings.task not in _LOOKING or (busy and self.settings.task == "report"):
            if busy:
                raise error
            raise ConfigurationError(
                f"{self.folder}: cannot be written ({error.strerror}); expected a run folder that can: run=FOLDER"
            ) from error
        why = str(error) if busy else f"{self.folder}: cannot be written ({error.strerror})"
        say(f"{why}, so nothing is recorded there")

    def _earlier_seconds(self) -> dict[str, float]:
        """What earlier tasks took, by stage; nothing where their record is missing or damaged."""
        try:
            seconds = status.read(self.folder).get("seconds", {})
        except StoreError:
            return {}
        return {stage: value for stage, value in seconds.items() if stage != "total"}


def _git_commit() -> str | None:
    """Commit checked out in the working folder, None where there is none."""
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
