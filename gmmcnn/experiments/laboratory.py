"""The networks that the experiments look at: trained once, analysed once, and kept.

For every seed there are two. The *overfitting* one sees few samples again and again. Its *control* is the same network
with the same initial weights, trained for as many updates on ``factor`` times the samples, so that each of them is
seen ``factor`` times less often. Both keep their weights after every ``factor`` epochs of the first, which are one
epoch of the second: after round r both have made the same number of updates. The probe images are the same for both,
and training images of both: the smaller training set is part of the larger one.

Weights and fits lie under names that tell what they depend on. Whoever asks again, in this experiment or another one
in the same run folder, gets them from there; an interrupted experiment goes on where it stopped.
"""

import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache, lru_cache
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from gmmcnn import config, data, models
from gmmcnn.analysis import Analysis, load
from gmmcnn.api import analyze_samples
from gmmcnn.constants import Stream
from gmmcnn.data.probe import ProbeSet, draw_probe
from gmmcnn.data.splits import Images, Splits
from gmmcnn.experiments.sizes import SIZES, Size
from gmmcnn.files import add_digest, name_of, read_record, require_as_recorded, write_record, write_table
from gmmcnn.hardware import device
from gmmcnn.models import retraining, training
from gmmcnn.models.training import TrainingResult, checkpoint_path
from gmmcnn.progress import progress
from gmmcnn.pruning.masks import Mask, masked


class Condition(StrEnum):
    """How a network was trained."""

    OVERFITTING = "overfitting"
    CONTROL = "control"


@dataclass(frozen=True)
class Network:
    """One training."""

    seed: int
    condition: Condition


class Laboratory:
    """Trained networks, their probe sets and their analyses, made when first asked for.

    Parameters
    ----------
    settings : config.Settings
        Of the experiment; data, model, training and clustering follow them but for what the size decides.
    folder : Path
        Where ``networks/`` lies, and ``log.csv``, one line for each piece of work done.
    """

    def __init__(self, settings: config.Settings, folder: Path) -> None:
        given = {field.name: getattr(settings.experiment, field.name) for field in fields(Size)}
        size = SIZES[settings.experiment.size]
        self.size = replace(size, **{key: value for key, value in given.items() if value is not None})
        # λ stays what it is for these settings where another one, such as K_max, is varied around them.
        size_of_small = settings.screen.small_cluster_for(settings.probe.samples, settings.gmm.k_max)
        self.settings = replace(settings, screen=replace(settings.screen, small_cluster=size_of_small))
        self.folder = folder
        self.data = lru_cache(maxsize=2)(self._data)
        self.trained = cache(self._trained)

    def beside(self, settings: config.Settings) -> "Laboratory":
        """Look at the same networks with other settings of what comes after training; images are read only once."""
        other = Laboratory(settings, self.folder)
        other.data = self.data
        return other

    @property
    def seeds(self) -> list[int]:
        """Seeds of the networks, from the run's own upwards."""
        return [self.settings.seed + number for number in range(self.size.seeds)]

    @property
    def rounds(self) -> list[int]:
        """Numbers of the checkpoints, from 1."""
        return list(range(1, self.size.rounds + 1))

    def networks(self) -> Iterator[Network]:
        """Every seed under both conditions."""
        for seed in self.seeds:
            for condition in Condition:
                yield Network(seed, condition)

    def settings_of(self, network: Network) -> config.Settings:
        """Settings of one network's training and clustering."""
        size, scale = self.size, 1 if network.condition == Condition.OVERFITTING else self.size.factor
        epochs_a_round = size.factor // scale
        return replace(
            self.settings,
            seed=network.seed,
            data=replace(self.settings.data, train_samples=size.train_samples * scale),
            train=replace(
                self.settings.train,
                epochs=epochs_a_round * size.rounds,
                checkpoint_epochs=[epochs_a_round * number for number in self.rounds],
                evaluate="kept",
            ),
        )

    def _data(self, network: Network) -> Splits:
        """Training and held-out images of a network (kept for the last two asked for).

        Held-out images are drawn anew for each seed, so that no set of them decides what all seeds say.
        """
        splits = data.load(self.settings_of(network).data, network.seed)
        limit, available = self.size.validation_samples, len(splits.validation)
        if limit is None or limit >= available:
            return splits
        drawn = np.random.default_rng([network.seed, Stream.VALIDATION]).choice(available, limit, replace=False)
        drawn.sort()
        held_out = Images(splits.validation.images[drawn], splits.validation.labels[drawn])
        return replace(splits, validation=held_out)

    def _trained(self, network: Network) -> TrainingResult:
        """Train a network, or read the training that is there."""
        started = time.perf_counter()
        settings = self.settings_of(network)
        model = self._untrained(network)
        folder = self._folder(network) / "checkpoints"
        already = folder.exists()
        result = training.train(model, self.data(network), settings.train, folder, seed=network.seed)
        if not already:
            self._log("train", network, started)
        return result

    def retrained(self) -> list[Path]:
        """Train again what is damaged or lost of the networks that are there; the files made again."""
        made = []
        for network in self.networks():
            folder, settings = self._folder(network) / "checkpoints", self.settings_of(network).train
            if folder.is_dir() and retraining.problems(folder):
                model, data = self._untrained(network), self.data(network)
                names = retraining.again(model, data, settings, folder, seed=network.seed)
                made += [folder / name for name in names]
        return made

    def metrics(self, network: Network) -> pd.DataFrame:
        """Losses and accuracies at the end of each round, with ``seed``, ``condition``, ``round`` and ``epoch``.

        ``epoch`` counts those of the overfitting network; the control has made as many updates.
        """
        metrics = self.trained(network).metrics.drop(columns="epoch")
        metrics.insert(0, "seed", network.seed)
        metrics.insert(1, "condition", network.condition)
        metrics.insert(2, "round", self.rounds)
        metrics.insert(3, "epoch", [number * self.size.factor for number in self.rounds])
        metrics["gap"] = metrics["validation_loss"] - metrics["train_loss"]
        return metrics

    def model(self, network: Network, number: int) -> nn.Module:
        """Network with its weights after a round, on its device, in eval mode."""
        self.trained(network)
        model = self._untrained(network)
        epoch = self.settings_of(network).train.kept_epochs[number - 1]
        models.load_checkpoint(model, checkpoint_path(self._folder(network) / "checkpoints", epoch))
        return model.eval()

    def probe(self, network: Network, source: str = "training") -> ProbeSet:
        """Probe images: ``training`` images, the same under both conditions, or ``held_out`` ones."""
        splits = self.data(Network(network.seed, Condition.OVERFITTING))
        if source == "held_out":
            none = torch.empty(0, dtype=torch.int64)
            splits = replace(
                splits, train=splits.validation, train_indices=torch.arange(len(splits.validation)), noisy=none
            )
        return draw_probe(splits, self.settings.probe, seed=network.seed)

    def analysis(self, network: Network, number: int, source: str = "training") -> Analysis:
        """Clustering of a network after a round on its probe images, screened by the thresholds in force."""
        settings = self.settings_of(network)
        path = self._folder(network) / f"fits-{self._fits_name(settings)}" / f"{source}-{number:03d}.npz"
        if not path.exists():
            model, probe = self.model(network, number), self.probe(network, source)
            started = time.perf_counter()
            found = analyze_samples(model, probe.images, probe.samples, settings, layers=settings.extract.layers)
            replace(found, thumbnails=found.thumbnails[:0]).save(path)
            add_digest(path)
            self._log(f"analyse {source} {number}", network, started)
        require_as_recorded(path)
        return replace(load(path), settings=self.settings.screen)

    def finetuned(self, network: Network, number: int, mask: Mask) -> dict[str, float]:
        """Losses and accuracies of a network that went on from a round with some filters masked.

        It was trained for ``experiment.finetune_epochs`` more on the same images, by an optimiser that starts anew.
        Masked filters output zero all the while and get no gradient: this trains what is left when they are removed.
        """
        settings = self.settings_of(network)
        epochs = settings.experiment.finetune_epochs
        chosen = {layer: sorted(int(index) for index in filters) for layer, filters in mask.items()}
        path = self._folder(network) / f"finetuned-{number:03d}-{epochs}" / f"{name_of(chosen, 10)}.json"
        if not path.exists():
            model, started = self.model(network, number), time.perf_counter()
            train = replace(settings.train, epochs=epochs, checkpoint_epochs=[epochs])
            with masked(model, chosen), TemporaryDirectory(prefix="gmmcnn-") as scratch:
                result = training.train(model, self.data(network), train, Path(scratch), seed=network.seed)
            write_record(path, result.metrics.iloc[-1].drop("epoch").to_dict())
            self._log(f"fine-tune {sum(map(len, chosen.values()))} masked", network, started)
        return self._measured(path)

    def without(self, network: Network, samples: NDArray[np.int64]) -> dict[str, float]:
        """Losses and accuracies of a network that was trained from the same initial weights without some samples.

        Parameters
        ----------
        network : Network
        samples : (M,) int64
            Their places among its training samples.

        Returns
        -------
        dict
            After the last round, as :meth:`metrics`; those of training are of the samples that were left.
        """
        left_out = np.unique(samples)
        path = self._folder(network) / "without" / f"{name_of(left_out.tolist(), 10)}.json"
        if not path.exists():
            started, data, settings = time.perf_counter(), self.data(network), self.settings_of(network).train
            kept = torch.from_numpy(np.setdiff1d(np.arange(len(data.train)), left_out))
            train = Images(data.train.images[kept], data.train.labels[kept])
            settings = replace(settings, checkpoint_epochs=[settings.epochs])
            with TemporaryDirectory(prefix="gmmcnn-") as scratch:
                rest = replace(data, train=train)
                result = training.train(self._untrained(network), rest, settings, Path(scratch), seed=network.seed)
            write_record(path, result.metrics.iloc[-1].drop("epoch").to_dict())
            self._log(f"train without {len(left_out)}", network, started)
        return self._measured(path)

    def _measured(self, path: Path) -> dict[str, float]:
        kinds = dict.fromkeys(training.METRICS[1:], float)
        return read_record(path, kinds, remedy="delete it: task=experiment makes it again") or {}

    def checkpoints(self, rounds: Sequence[int] | None = None) -> Iterator[tuple[Network, int]]:
        """Every network after every round, or after some of them; how many are done is shown meanwhile."""
        places = list(product(self.networks(), self.rounds if rounds is None else rounds))
        with progress("analyses", len(places), "checkpoints") as advance:
            for network, number in places:
                yield network, number
                advance()

    def over_training(self, observe: Callable[[Network, int], Mapping[str, float]]) -> pd.DataFrame:
        """Tabulate what there is to see of every network after every round.

        Parameters
        ----------
        observe : callable
            (network, round) → numbers by name.

        Returns
        -------
        DataFrame
            One row per network and round: the columns of :meth:`metrics`, and a column for each name.
        """
        tables = [
            self.metrics(network).join(pd.DataFrame([observe(*place) for place in places]))
            for network, places in groupby(self.checkpoints(), key=itemgetter(0))
        ]
        return pd.concat(tables, ignore_index=True)

    def of_each(
        self, networks: Sequence[Network], work: str, make: Callable[["Laboratory", Network], pd.DataFrame]
    ) -> pd.DataFrame:
        """Join the tables that some work makes of each network; what it made by the same settings before is read."""
        with progress(work, len(networks), "networks") as advance:
            tables = []
            for network in networks:
                tables.append(self._kept(network, work, make))
                advance()
        return pd.concat(tables, ignore_index=True)

    def _kept(self, network: Network, work: str, make: Callable[["Laboratory", Network], pd.DataFrame]) -> pd.DataFrame:
        depends_on = self.behind(self.settings_of(network), seeds=1)  # of which this network is one
        path = self._folder(network) / f"{work}-{name_of(depends_on, 10)}.parquet"
        if not path.exists():
            started = time.perf_counter()
            table = make(self, network)
            write_table(path, table)
            add_digest(path)
            self._log(work, network, started)
        require_as_recorded(path)
        return pd.read_parquet(path)

    def behind(self, settings: config.Settings, **changes: int) -> dict[str, Any]:
        """Everything that a finding on these networks depends on; what the size decides, and ``changes``, in place."""
        size = {f"experiment.{key}": value for key, value in asdict(replace(self.size, **changes)).items()}
        return config.behind(settings, "cell") | size | {"experiment.size": None}

    def _untrained(self, network: Network) -> nn.Module:
        splits = self.data(network)
        model = models.build(
            self.settings.model,
            in_channels=splits.in_channels,
            image_size=splits.image_size,
            n_classes=splits.n_classes,
            seed=network.seed,
        )
        return model.to(device.chosen(self.settings.device))

    def _folder(self, network: Network) -> Path:
        settings = self.settings_of(network)
        name = name_of([config.behind(settings, "weights"), self.size.validation_samples, "drawn by seed"], 10)
        return self.folder / "networks" / f"{network.condition}-{network.seed}-{name}"

    def _fits_name(self, settings: config.Settings) -> str:
        """Name of everything but the network that fits depend on.

        The probe images are drawn from those of the overfitting network, of which a control's folder does not tell.
        """
        depends_on = config.deciding(settings, "maps") | config.deciding(settings, "fits")
        return name_of([depends_on, self.size.train_samples], 10)

    def _log(self, what: str, network: Network, started: float) -> None:
        path = self.folder / "log.csv"
        header = not path.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if header:
                writer.writerow(["finished", "work", "condition", "seed", "seconds"])
            finished = datetime.now(UTC).isoformat(timespec="seconds")
            seconds = round(time.perf_counter() - started, 2)
            writer.writerow([finished, what, network.condition, network.seed, seconds])
