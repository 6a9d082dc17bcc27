"""Training that can be killed at any moment and ends with the same weights.

All randomness of an epoch (order of the samples, dropout) comes from a generator keyed by (seed, epoch), so the state
to resume from is the weights, the optimiser and the number of epochs done. It is kept in ``last.pt``, which is written
aside and renamed after every epoch; the other files of an epoch are written before it, and written again with the same
content where a killed process did not come as far as ``last.pt``. It holds the SHA-256 of those files, so that damage
is found; once training is finished they stand in ``digests.json``, too, which whoever reads weights looks at.

On one machine with the same number of torch threads, the weights are the same bit by bit. CUDA's convolutions add in an
order of their own, unless ``torch.use_deterministic_algorithms`` is set. Files hold the weights as in host memory,
whatever the device, so that a training goes on, and is read, on any machine.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmmcnn import config
from gmmcnn.data.splits import Images, Splits
from gmmcnn.errors import StoreError, TrainingError, one_line
from gmmcnn.files import (
    digest_tensors,
    make_folder,
    read_digests,
    replacing,
    run_of,
    sha256,
    write_digests,
    write_table,
)
from gmmcnn.hardware.device import device_of, uploaded
from gmmcnn.models.checkpoints import damaged_part
from gmmcnn.names import command
from gmmcnn.progress import Advance

BEST, LAST, TABLE = "best.pt", "last.pt", "metrics.csv"
NEXT_BEST = "best.pt.next"
"""Weights that are the best once ``last.pt`` says so: until then the former ones stay, whose digest it holds."""
METRICS = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
"""Columns of ``metrics.csv``. Losses are mean cross-entropies in nats, accuracies shares from 0 to 1; both sides are
evaluated in eval mode at the end of the epoch, on all images, against the labels trained on (wrong ones included)."""


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A finished training.

    Attributes
    ----------
    folder : Path
    kept_epochs : list of int
        Epochs, counted from 1, whose weights were kept, ascending.
    metrics : DataFrame
        One row per epoch that was measured, with the columns :data:`METRICS`.
    """

    folder: Path
    kept_epochs: list[int]
    metrics: pd.DataFrame

    @property
    def checkpoints(self) -> list[tuple[int, Path]]:
        """Kept epochs and their state dicts."""
        return [(epoch, checkpoint_path(self.folder, epoch)) for epoch in self.kept_epochs]

    @property
    def best(self) -> Path:
        """State dict of the epoch with the lowest validation loss."""
        return self.folder / BEST

    @property
    def best_epoch(self) -> int:
        """Measured epoch with the lowest validation loss, the first one on a tie."""
        return int(self.metrics["epoch"].iloc[self.metrics["validation_loss"].argmin()])


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Path of the state dict kept after an epoch."""
    return folder / f"epoch-{epoch:04d}.pt"


def train(
    model: nn.Module,
    data: Splits,
    settings: config.Train,
    folder: Path,
    *,
    seed: int,
    advance: Advance | None = None,
    log: Callable[[Mapping[str, float]], None] = lambda row: None,
) -> TrainingResult:
    """Train a model on cross-entropy, or go on where a killed process stopped.

    Parameters
    ----------
    model : nn.Module
        Trained in place, on its own device; ends with the weights of the last epoch and in the mode it came in.
    data : Splits
    settings : config.Train
    folder : Path
        Made if need be. Holds afterwards ``epoch-NNNN.pt`` for every kept epoch, ``best.pt`` (lowest validation loss),
        ``metrics.csv`` (:data:`METRICS`), ``last.pt``, the state to resume from, and ``digests.json``, the SHA-256 of
        each of them. Where the training is already finished, its results are returned at once.
    seed : int
        Of the order of the samples, and of dropout.
    advance : Advance, optional
        Called with 1 after each epoch, and first with the number of epochs found done.
    log : callable
        Called with the metrics (:data:`METRICS`) of each epoch that is measured now, once they are kept.

    Raises
    ------
    TrainingError
        The loss became NaN or infinite, the folder holds a training from other settings, data or initial weights, or a
        file of it is damaged or missing.
    """
    make_folder(folder)
    with modes_restored(model):
        rows, digests = _train(model, data, settings, folder, seed, advance or (lambda n=1, /: None), log)
    return TrainingResult(folder, settings.kept_epochs, finish(folder, rows, digests))


def _train(
    model: nn.Module,
    data: Splits,
    settings: config.Train,
    folder: Path,
    seed: int,
    advance: Advance,
    log: Callable[[Mapping[str, float]], None],
) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Train the epochs that the folder does not hold yet; return metrics of all, and the digests of weights."""
    optimizer = _optimizer(model, settings)
    identity = _identity(settings, seed, data, model)
    done, rows, digests = _resume(folder, model, optimizer, identity)
    if done:
        advance(done)
    for epoch in range(done + 1, settings.epochs + 1):
        _train_epoch(model, optimizer, data.train, settings.batch_size, seed, epoch)
        if settings.evaluate == "all" or epoch in settings.kept_epochs:
            rows.append(_measure(model, data, epoch))
            if all(rows[-1]["validation_loss"] < row["validation_loss"] for row in rows[:-1]):
                digests[BEST] = _save(folder / NEXT_BEST, model.state_dict())
        if epoch in settings.kept_epochs:
            path = checkpoint_path(folder, epoch)
            digests[path.name] = _save(path, model.state_dict())
        state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        _save(folder / LAST, state | {"rows": rows, "identity": identity, "digests": digests})
        _promote(folder, digests)
        _write_metrics(folder, rows)
        if rows and rows[-1]["epoch"] == epoch:
            log(rows[-1])
        advance(1)
    return rows, digests


def require_same(
    folder: Path, data: Splits | None, settings: config.Train, *, seed: int, model: nn.Module | None = None
) -> None:
    """Check that the training in a folder, if it holds one, is from this data and these settings.

    Parameters
    ----------
    folder, settings, seed
        As in :func:`train`.
    data : Splits, optional
        None does not compare the data.
    model : nn.Module, optional
        With its initial weights; None does not compare them.

    Raises
    ------
    TrainingError
        It is from others, or the folder's ``last.pt`` is damaged.
    """
    state = last_state(folder)
    if state:
        _require_identity(folder, state["identity"], _identity(settings, seed, data, model))


def require_settings(folder: Path, found: dict[str, Any], settings: config.Train, *, seed: int) -> None:
    """Raise TrainingError if a training whose settings are known by name, ``train.epochs`` and so on, is from others.

    Parameters
    ----------
    folder : Path
        Where the training lies, for the error's message.
    found : dict
        What it was trained with; names that are missing there are not compared.
    settings, seed
        What is expected.
    """
    expected = _identity(settings, seed)
    _require_identity(folder, found, {name: value for name, value in expected.items() if name in found})


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Give every submodule its own training or eval mode back after the block."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of a model in eval mode.

    Parameters
    ----------
    model : nn.Module
        Left in the mode it came in.
    images : (N, C, H, W) float32
    labels : (N,) int64
    batch_size : int
        Images in one forward pass.

    Returns
    -------
    loss : float
        In nats; summed in float64.
    accuracy : float
        Share of images whose largest logit is that of their label.
    """
    loss, n_right = 0.0, 0
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    with modes_restored(model), torch.no_grad():
        model.eval()
        for batch, expected in uploaded(batches, device_of(model)):
            logits = model(batch)
            loss += float(F.cross_entropy(logits, expected, reduction="none").double().sum())
            n_right += int((logits.argmax(dim=1) == expected).sum())
    return loss / len(labels), n_right / len(labels)


def accuracies(model: nn.Module, data: Splits) -> dict[str, float]:
    """Accuracies and losses on the training and the validation images, by their names in :data:`METRICS`."""
    train_loss, train_accuracy = evaluate(model, data.train.images, data.train.labels)
    validation_loss, validation_accuracy = evaluate(model, data.validation.images, data.validation.labels)
    return {
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "validation_accuracy": validation_accuracy,
        "validation_loss": validation_loss,
    }


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, samples: Images, batch_size: int, seed: int, epoch: int
) -> None:
    """Pass once over the samples in batches of as equal a size as possible: no lone last one upsets BatchNorm."""
    device = device_of(model)
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_epoch_seed(seed, epoch))
        order = torch.randperm(len(samples))
        chosen = order.tensor_split(-(-len(samples) // batch_size))
        batches = ((samples.images[batch], samples.labels[batch]) for batch in chosen)
        for images, labels in uploaded(batches, device):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _measure(model: nn.Module, data: Splits, epoch: int) -> dict[str, float]:
    """Row of the metrics table."""
    found = {"epoch": epoch} | accuracies(model, data)
    if not np.isfinite([found["train_loss"], found["validation_loss"]]).all():
        raise TrainingError(
            f"epoch {epoch}: training loss {found['train_loss']}, validation loss {found['validation_loss']}; expected "
            "finite ones: lower train.learning_rate"
        )
    return {name: found[name] for name in METRICS}


def _optimizer(model: nn.Module, settings: config.Train) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)


def _identity(
    settings: config.Train, seed: int, data: Splits | None = None, model: nn.Module | None = None
) -> dict[str, Any]:
    """What trained weights depend on, by the name under which an error reports it; the content of what is given."""
    decided = config.deciding(config.Settings(train=settings, seed=seed), "weights")
    identity = {name: value for name, value in decided.items() if name.startswith(("train.", "seed"))}
    if data is not None:
        tensors = (data.train.images, data.train.labels, data.validation.images, data.validation.labels)
        identity["data"] = _digest(tensors)
    if model is not None:
        identity["initial weights"] = _digest(model.state_dict().values())
    return identity


def _resume(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[int, list[dict[str, float]], dict[str, str]]:
    """Bring model and optimiser to the state of ``last.pt``; return epochs done, metrics and digests up to there."""
    state = last_state(folder)
    if not state:
        return 0, [], {}
    _require_identity(folder, state["identity"], identity)
    _promote(folder, state.get("digests", {}))
    if spoilt := spoilt_files(folder, state):
        name, why = next(iter(spoilt.items()))
        raise TrainingError(
            f"{folder / name}: {why} in a training that came to epoch {state['epoch']}; "
            f"trained again by: {command('repair', run_of(folder))}"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"], state["rows"], state.get("digests", {})


def _promote(folder: Path, digests: Mapping[str, str]) -> None:
    """Put the next best weights in the place of the best ones, if they are those that ``last.pt`` speaks of."""
    path = folder / NEXT_BEST
    if path.exists():
        if sha256(path) == digests.get(BEST):
            path.replace(folder / BEST)
        else:
            path.unlink()


def spoilt_files(folder: Path, state: Mapping[str, Any]) -> dict[str, str]:
    """Weights that a training should have left behind up to a state, and are not there as it left them.

    Parameters
    ----------
    folder : Path
    state : mapping
        As :func:`last_state` reads it.

    Returns
    -------
    dict
        Name → ``missing`` or ``damaged``. A training of an earlier version recorded no digests: what is damaged there
        shows only in its own checksums.
    """
    digests = state.get("digests", {})
    kept = [checkpoint_path(folder, epoch).name for epoch in state["identity"]["train.checkpoint_epochs"]]
    done = [name for name in kept if name <= checkpoint_path(folder, state["epoch"]).name]
    best = [BEST] if state["rows"] else []
    found = {}
    for path in (folder / name for name in done + best):
        if not path.exists():
            found[path.name] = "missing"
        elif path.name in digests and sha256(path) != digests[path.name]:
            found[path.name] = "damaged"
    return found


def last_state(folder: Path) -> dict[str, Any]:
    """Content of ``last.pt``, in host memory; empty where there is none. TrainingError if it is damaged."""
    path = folder / LAST
    if not path.exists():
        return {}
    try:
        if part := damaged_part(path):
            raise ValueError(f"its part {part} has another checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["identity"]  # a file of something else has none
    except Exception as error:  # noqa: BLE001 - torch's reader raises whatever it stumbles on
        raise TrainingError(
            f"{path}: damaged, or something else ({one_line(error)}); "
            f"trained again by: {command('repair', run_of(path))}"
        ) from None
    return state


def _require_identity(folder: Path, recorded: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise TrainingError with the first of the names that stand for something else in the folder's training."""
    for key, expected in identity.items():
        if (found := recorded.get(key)) != expected:
            raise TrainingError(
                f"{folder}: was trained with {key}={found}; expected {key}={expected}; "
                "give what it was trained with, choose another folder, or delete this one"
            )


def _save(path: Path, content: object) -> str:
    """Write a file of torch's; return its SHA-256."""
    with replacing(path) as file:
        torch.save(_in_host_memory(content), file)
    return sha256(path)


def _in_host_memory(content: Any) -> Any:
    """The same tensors in the same dictionaries and lists; what is in host memory stays as it is."""
    if isinstance(content, Tensor):
        return content.cpu()
    if isinstance(content, dict):
        held = copy.copy(content)  # a state dict has attributes
        held.update({key: _in_host_memory(value) for key, value in content.items()})
        return held
    return [_in_host_memory(value) for value in content] if isinstance(content, list) else content


def finish(folder: Path, rows: list[dict[str, float]], digests: dict[str, str]) -> pd.DataFrame:
    """Write the table of a training, and the record of what its files hold; returns the table."""
    metrics = _write_metrics(folder, rows)
    held = digests | {name: sha256(folder / name) for name in (LAST, TABLE)}
    if held != _recorded(folder):
        write_digests(folder, held)
    return metrics


def _recorded(folder: Path) -> dict[str, str] | None:
    """What is recorded of the files in a folder; None where that is missing or damaged."""
    try:
        return read_digests(folder)
    except StoreError:
        return None


def _write_metrics(folder: Path, rows: list[dict[str, float]]) -> pd.DataFrame:
    metrics = pd.DataFrame(rows, columns=list(METRICS))
    write_table(folder / TABLE, metrics)
    return metrics


def _digest(tensors: Any) -> str:
    """Fingerprint of the shapes, types and values of tensors."""
    return digest_tensors(tensors, "{dtype}{shape}")[:16]
