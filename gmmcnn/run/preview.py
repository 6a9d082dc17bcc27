"""What a run would do, before it does it: what is tapped, how much that is, how long it takes, what is left out."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import nn
from torch.nn import functional

from gmmcnn import models
from gmmcnn.data.probe import ProbeSet
from gmmcnn.errors import ConfigurationError
from gmmcnn.featuremaps.stream import importable_samples
from gmmcnn.featuremaps.taps import Tap, Taps
from gmmcnn.hardware import device, gpu
from gmmcnn.progress import say
from gmmcnn.report.views import plural
from gmmcnn.run import estimate
from gmmcnn.run.folder import Run
from gmmcnn.run.stages import taps_of

TASKS = ("run", "extract")
_MIB = 2**20
_BYTES = {"float32": 4, "float16": 2}


def intent(job: Run) -> str:
    """What a run with training sets out to do, in one line."""
    train, data = job.settings.train, job.data()
    return (
        f"{job.title}: {train.epochs} epochs on {len(data.train.labels):,} samples, then every filter of "
        f"{len(train.kept_epochs)} checkpoints and the best epoch's; results: {job.folder}"
    )


def size_of(job: Run, taps: Taps | None = None) -> estimate.JobSize:
    """What fitting this network at all its checkpoints comes to; its taps are looked for unless they are given."""
    settings = job.settings
    taps = taps or taps_of(job.network(), job.probe(), settings.extract)
    layers = tuple((tap.n_filters, tap.height * tap.width) for tap in taps.analysed)
    n_checkpoints = 1 if settings.model.checkpoint else len(settings.train.kept_epochs)
    return estimate.JobSize(layers, n_checkpoints, job.probe().n_batches)


def show(job: Run) -> None:
    """Say what ``task=run`` or ``task=extract`` would do, and do nothing.

    Raises
    ------
    ConfigurationError
        It is another task.
    CaptureError
        No layer of the network can be analysed.
    ModelError
        The file of weights is missing, damaged, or of another network.
    """
    settings = job.settings
    if settings.task not in TASKS:
        expected = " or ".join(f"task={task}" for task in TASKS)
        raise ConfigurationError(f"dry_run=true: shows what {expected} would do, not task={settings.task}")
    if settings.extract.source:
        n_samples = importable_samples(settings.extract.source)
        say(f"{settings.extract.source}: maps of {n_samples:,} samples, which are taken as they are")
        return
    probe = job.probe()
    taps = taps_of(_network(job), probe, settings.extract)
    size, engine = size_of(job, taps), gpu.resolved(settings.engine.name)
    seconds = estimate.probe(settings, engine, size)
    bytes_of = {tap.layer: _bytes(tap, probe, settings.extract.dtype) for tap in taps.analysed}
    table = Table("layer", "kind", "tapped", box=box.SIMPLE)
    for name in ("filters", "map", "MiB", "seconds"):
        table.add_column(name, justify="right")
    for tap in taps.analysed:
        fits = seconds.of(tap.n_filters, tap.height * tap.width) * probe.n_batches
        mib = f"{bytes_of[tap.layer] / _MIB:,.1f}"
        table.add_row(tap.layer, tap.kind, tap.description, f"{tap.n_filters:,}", tap.map_size, mib, f"{fits:.2g}")
    say(f"{job.title}: {plural(probe.n_batches, 'probe batch', 'probe batches')} of N = {probe.n_samples}")
    say(table)
    for skipped in taps.skipped:
        say(f"Left out: {skipped.layer}: {skipped.reason}")
    say(_summary(job, size, seconds, sum(bytes_of.values()), engine))


def _network(job: Run) -> nn.Module:
    """The network that would be looked at: with its initial weights where it would be trained."""
    checkpoint = job.settings.model.checkpoint
    if checkpoint is None:
        return job.network()
    return job.network(models.read_state(checkpoint), Path(checkpoint))


def _bytes(tap: Tap, probe: ProbeSet, dtype: str) -> int:
    """Bytes of a layer's maps at one checkpoint, before they are compressed."""
    return len(probe.samples) * tap.n_filters * tap.height * tap.width * _BYTES[dtype]


def _summary(job: Run, size: estimate.JobSize, seconds: estimate.Seconds, n_bytes: int, engine: str) -> str:
    """All layers together, and the network's own time."""
    settings, n_samples = job.settings, len(job.probe().samples)
    forward = _seconds_a_sample(job, _forward) * n_samples
    fits = sum(seconds.of(filters, pixels) for filters, pixels in size.layers) * size.n_batches
    parts = [
        f"A checkpoint: {size.n_filters:,} filters, {n_bytes / _MIB:,.1f} MiB of maps before compression, "
        f"{forward:.2g} s in the network, {fits:.2g} s of PCA and mixtures on the {engine} engine"
    ]
    if settings.task == "run" and job.trained_here:
        epochs, n_train = settings.train.epochs, len(job.data().train.labels)
        training = _seconds_a_sample(job, _step) * n_train * epochs
        parts.append(f"{size.n_checkpoints} checkpoints and the best epoch's")
        parts.append(f"{training:.2g} s for {epochs} epochs of training")
    elif size.n_checkpoints > 1:
        parts.append(f"{size.n_checkpoints} checkpoints")
    return "; ".join(parts) + ". Nothing was done or written."


def _seconds_a_sample(job: Run, work: Callable[[nn.Module, torch.Tensor, torch.Tensor], object]) -> float:
    """Seconds that a batch takes, for each of its samples: the shorter of two after one that is not counted."""
    train = job.data().train
    batch = min(job.settings.train.batch_size, len(train.labels))
    images, labels = (tensor[:batch].to(job.device()) for tensor in (train.images, train.labels))
    network = job.network()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work(network, images, labels)
        device.wait(job.device())
        taken.append(time.perf_counter() - start)
    return min(taken[1:]) / batch


def _forward(network: nn.Module, images: torch.Tensor, _: torch.Tensor) -> None:
    with torch.inference_mode():
        network.eval()(images)


def _step(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    network.train().zero_grad()
    functional.cross_entropy(network(images), labels).backward()
