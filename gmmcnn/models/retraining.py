"""Weights that were lost or damaged, made again: training is deterministic, so it leads to the same ones.

Nothing in a training's folder is touched until its successors lie, whole, in another one beside it. They take its place
only where they are what was recorded, bit for bit; another machine, or another number of threads, may make others.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from gmmcnn import config
from gmmcnn.data.splits import Splits
from gmmcnn.errors import ModelError, StoreError, TrainingError
from gmmcnn.files import DIGESTS, PARTIAL, read_digests, replacing, sha256
from gmmcnn.models import training
from gmmcnn.models.checkpoints import read_state
from gmmcnn.models.training import BEST, LAST, TABLE, checkpoint_path
from gmmcnn.progress import Advance


def problems(folder: Path) -> dict[str, str]:
    """What is wrong with the files of a training.

    Returns
    -------
    dict
        Name of a file → what is wrong with it; empty where all is well. Of a training of an earlier version, which
        recorded no digests, only torch's own checksums are known.
    """
    found: dict[str, str] = {}
    try:
        state = training.last_state(folder)
    except TrainingError:
        state, found[LAST] = {}, "damaged"
    if state:
        found |= training.spoilt_files(folder, state)
        found |= {path.name: "damaged" for path in _unrecorded(folder, state) if not _readable(path)}
    try:
        recorded = read_digests(folder)
    except StoreError:
        recorded, found[DIGESTS] = {}, "damaged"
    for name, digest in (recorded or {}).items():
        path = folder / name
        if name not in found and (not path.exists() or sha256(path) != digest):
            found[name] = "damaged" if path.exists() else "missing"
    if recorded is None and "digests" in state and state["epoch"] == state["identity"]["train.epochs"]:
        found[DIGESTS] = "missing"
    return found


def _unrecorded(folder: Path, state: Mapping[str, Any]) -> Iterator[Path]:
    """Weights of a training that are there, and of which it recorded no digest."""
    return (path for path in folder.glob("*.pt") if path.name not in {LAST, *state.get("digests", {})})


def _readable(path: Path) -> bool:
    try:
        read_state(path)
    except ModelError:
        return False
    return True


def again(
    model: nn.Module, data: Splits, settings: config.Train, folder: Path, *, seed: int, advance: Advance | None = None
) -> list[str]:
    """Make the files of a training again that :func:`problems` finds; those that are good stay.

    Parameters
    ----------
    model : nn.Module
        With its initial weights; trained in place.
    data, settings, folder, seed, advance
        As in :func:`~gmmcnn.models.training.train`.

    Returns
    -------
    list of str
        Names of the files made again.

    Raises
    ------
    TrainingError
        The folder holds a training from other settings, data or initial weights, or training here leads to others than
        those recorded; everything is then left as it was.
    """
    spoilt = problems(folder)
    if not spoilt:
        return []
    state = {} if LAST in spoilt else training.last_state(folder)
    if state:
        training.require_same(folder, data, settings, seed=seed, model=model)
    if weights := [name for name in spoilt if name.endswith(".pt")]:
        _train_again(model, data, settings, folder, seed=seed, weights=weights, state=state, advance=advance)
        state = training.last_state(folder)
    if state:
        training.finish(folder, state["rows"], state.get("digests", {}))
    return list(spoilt)


def _train_again(
    model: nn.Module,
    data: Splits,
    settings: config.Train,
    folder: Path,
    *,
    seed: int,
    weights: Sequence[str],
    state: dict[str, Any],
    advance: Advance | None,
) -> None:
    """Train beside the folder as far as the spoilt weights ask for, and put them in their places."""
    epochs = {checkpoint_path(folder, epoch).name: epoch for epoch in settings.kept_epochs}
    shorter = settings
    if state:  # only weights on the way: what comes after them need not be trained
        epochs[BEST] = _best_epoch(state["rows"])
        wanted = sorted({epochs[name] for name in weights})
        shorter = replace(settings, epochs=wanted[-1], checkpoint_epochs=wanted, evaluate="kept")
    scratch = folder.with_name(f".{folder.name}.again{PARTIAL}")
    try:
        training.train(model, data, shorter, scratch, seed=seed, advance=advance)
    except TrainingError:  # another one's, or damaged itself
        shutil.rmtree(scratch)
        raise
    source = {name: scratch / (checkpoint_path(folder, epochs[name]).name if state else name) for name in epochs}
    if not state:
        source |= {name: scratch / name for name in (BEST, LAST)}
    recorded = _recorded(folder) | state.get("digests", {})
    for name, digest in recorded.items():
        if name in source and source[name].exists() and sha256(source[name]) != digest:
            shutil.rmtree(scratch)
            raise TrainingError(
                f"{folder / name}: trained again, its weights are not bit by bit those recorded: this machine, or its "
                f"number of threads, computes otherwise; repair it where it was trained, or delete {folder}"
            )
    for name in weights if recorded else source:
        with replacing(folder / name) as file, source[name].open("rb") as made:
            shutil.copyfileobj(made, file)
    shutil.rmtree(scratch)


def _best_epoch(rows: Sequence[dict[str, float]]) -> int:
    return int(min(rows, key=lambda row: row["validation_loss"])["epoch"])


def _recorded(folder: Path) -> dict[str, str]:
    """Digests that are recorded; those of the table are left out, for it is written from ``last.pt``."""
    try:
        digests = read_digests(folder) or {}
    except StoreError:
        return {}
    return {name: digest for name, digest in digests.items() if name not in (LAST, TABLE)}
