"""One checkpoint's way from weights to fits: feature maps in a store, fits beside them, an analysis of both.

A checkpoint is opened once: the :class:`Stage` that this gives goes from step to step, and each step reads from it
what the one before knew.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gmmcnn import config, models
from gmmcnn.analysis import Analysis
from gmmcnn.data.probe import ProbeSet
from gmmcnn.data.samples import Samples
from gmmcnn.errors import ConfigurationError, StoreError
from gmmcnn.featuremaps.capture import find_taps
from gmmcnn.featuremaps.live import LiveMaps
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.featuremaps.stream import extract as stream_maps
from gmmcnn.featuremaps.stream import (
    import_activations,
    importable_samples,
    require_analysed,
    skipped_layers,
    store_for,
)
from gmmcnn.featuremaps.taps import Tapped, Taps
from gmmcnn.files import digest_tensors, name_of, remove_folder
from gmmcnn.filters import fitting
from gmmcnn.filters.live import cluster_live, forget_reduced, reduce_live
from gmmcnn.hardware import gpu
from gmmcnn.mixture.sweep import mixture_engine
from gmmcnn.names import command
from gmmcnn.progress import progress, say
from gmmcnn.report.views import plural
from gmmcnn.run import disk, probed, provenance
from gmmcnn.run.compiling import compile_ahead
from gmmcnn.run.folder import Checkpoint, Run
from gmmcnn.run.provenance import Record
from gmmcnn.run.record import read as read_settings
from gmmcnn.run.record import values_of


@dataclass(frozen=True, eq=False)
class Stage:
    """A checkpoint, opened.

    Attributes
    ----------
    checkpoint : Checkpoint
    record : Record or None
        Of the feature maps in its folder; None where there is none.
    digest : str or None
        SHA-256 of its weights; None where they are not there, and of imported maps.
    weights : mapping of name to Tensor, or None
        State dict; None where it is not there, or not needed any more.
    """

    checkpoint: Checkpoint
    record: Record | None
    digest: str | None
    weights: Mapping[str, Tensor] | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class Analysed:
    """A checkpoint's analysis, and what its page says beside it.

    Attributes
    ----------
    checkpoint : Checkpoint
    analysis : Analysis
    class_names : tuple of str, or None
    engines : tuple of str
        Which made the fits; empty where that was not recorded.
    """

    checkpoint: Checkpoint
    analysis: Analysis
    class_names: tuple[str, ...] | None
    engines: tuple[str, ...] = ()


def open_checkpoint(checkpoint: Checkpoint) -> Stage:
    """Read a checkpoint's weights, if they are there, and what is recorded of its feature maps."""
    path = checkpoint.weights
    weights = models.read_state(path) if path is not None and path.exists() else None
    return Stage(
        checkpoint,
        Record.read(checkpoint.taps),
        None if weights is None else digest_tensors({n: w for n, w in weights.items() if isinstance(w, Tensor)}),
        weights,
    )


def extract(job: Run, stage: Stage) -> Stage:
    """Make sure that a checkpoint's folder holds its feature maps, or their fits, for the settings in force.

    Maps that are there, or were fitted and deleted, are not made again; damaged ones are. Fits of other maps in the
    same folder are removed, once it is known that the new maps can be made.

    Returns
    -------
    Stage
        With the record of the maps, and without the weights.
    """
    return _extract(job, stage, damaged=_forget_damage(stage.checkpoint.maps))


def _extract(job: Run, stage: Stage, *, damaged: bool) -> Stage:
    checkpoint, settings = stage.checkpoint, job.settings
    record, wanted = stage.record, _wanted(job, stage)
    _forget_wrong_fits(stage, settings)
    if wanted.others or damaged or _fitted_files(stage, settings) is None:
        if wanted.probe is None:
            n_samples = _batch_of_source(settings)
        else:
            n_samples = wanted.probe.n_samples
            network = job.network(stage.weights, checkpoint.weights)
            taps = taps_of(network, wanted.probe, settings.extract)
        job.accept()
        if wanted.others:
            _forget_fits(checkpoint)
        with job.timed("extract"):
            if wanted.probe is None:
                store = _import(settings, checkpoint)
            else:
                store = _stream(network, wanted.probe, taps, checkpoint, settings)
        analysed = {layer: tap.tapped for layer, tap in store.layers.items()}
        record = wanted.record(n_samples, analysed, skipped_layers(store))
    return _recorded(job, stage, wanted, record)


def fit_as_made(job: Run, stage: Stage, *, keep: bool) -> Stage:
    """Fit every filter of a checkpoint while its feature maps are made; fits that are there already are kept.

    The maps themselves are stored, if they are to be kept, while others are fitted. Maps that are stored already are
    fitted from there.

    Returns
    -------
    Stage
        With the record of the maps, and without the weights.
    """
    checkpoint, settings = stage.checkpoint, job.settings
    damaged = _forget_damage(checkpoint.maps)
    stored_first = job.workers is not None and keep  # workers read what one process writes
    if checkpoint.weights is None or stored_first or (checkpoint.maps.exists() and not damaged):
        stage = _extract(job, stage, damaged=damaged)
        fit(job, stage)
        return stage
    record, wanted = stage.record, _wanted(job, stage)
    _forget_wrong_fits(stage, settings)
    if wanted.others or (damaged and keep) or _fitted_files(stage, settings) is None:
        network, probe = job.network(stage.weights, checkpoint.weights), job.probe()
        taps = taps_of(network, probe, settings.extract)
        job.accept()
        if wanted.others:
            _forget_fits(checkpoint)
        analysed = {tap.layer: tap.tapped for tap in taps.analysed}
        record = wanted.record(probe.n_samples, analysed, ((layer.layer, layer.reason) for layer in taps.skipped))
        probed.keep(job.folder, probe, job.data().class_names)
        record.write(checkpoint.taps)  # before its fits: what an interruption leaves of them is known by it
        _fit_live(job, network, probe, taps, checkpoint, record.of, keep=keep)
    elif record is not None:
        forget_reduced(checkpoint.fits, record.n_samples, settings)
    return _recorded(job, stage, wanted, record)


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What a checkpoint's maps have to be of."""

    identity: Mapping[str, Any]
    origin: Mapping[str, Any]
    others: Sequence[str]
    """Names of what the recorded maps do not share with it."""
    probe: ProbeSet | None
    """None for imported maps."""

    def record(self, n_samples: int, analysed: Mapping[str, Tapped], skipped: Iterable[tuple[str, str]]) -> Record:
        return Record(self.identity, self.origin, n_samples, analysed, tuple(skipped))


def _wanted(job: Run, stage: Stage) -> _Wanted:
    checkpoint = stage.checkpoint
    if checkpoint.weights is not None and stage.weights is None:
        models.read_state(checkpoint.weights)  # says what is wrong
    probe = None if checkpoint.weights is None else job.probe()
    identity = provenance.identity(job.settings, stage.digest, probe.fingerprint if probe else None)
    others = provenance.differences(stage.record, identity)
    if stage.record and not others:
        identity = dict(stage.record.identity)  # an earlier version's may say more; fits are known by it
    return _Wanted(identity, config.behind(job.settings, "maps"), others, probe)


def _forget_fits(checkpoint: Checkpoint) -> None:
    """Remove fits of other maps, and the record of these."""
    checkpoint.taps.unlink(missing_ok=True)
    remove_folder(checkpoint.fits)


def _recorded(job: Run, stage: Stage, wanted: _Wanted, record: Record | None) -> Stage:
    """Keep what is known of the probe samples, and the record of maps that are there."""
    assert record is not None, "maps that were not recorded differ from those wanted, so they were made"
    if wanted.probe is not None:
        probed.keep(job.folder, wanted.probe, job.data().class_names)
    record = replace(record, origin=wanted.origin)
    if stage.record != record or not stage.checkpoint.taps.exists():
        record.write(stage.checkpoint.taps)
    return replace(stage, record=record, weights=None)


def fit(job: Run, stage: Stage) -> None:
    """Fit every filter of a checkpoint's store; what is fitted already is kept.

    Raises
    ------
    StoreNotFoundError
        There are no feature maps yet.
    ConfigurationError
        The feature maps are not those of the settings in force.
    """
    record = require_own(job, stage)
    _forget_wrong_fits(stage, job.settings)
    if _fitted_files(stage, job.settings) is not None:
        forget_reduced(stage.checkpoint.fits, record.n_samples, job.settings)
        return
    if stage.weights is not None and not stage.checkpoint.maps.exists():
        fit_as_made(job, stage, keep=False)
        return
    store = ActivationStore.open(stage.checkpoint.maps)
    if gpu.resolved(job.settings.engine.name) == "cuda":
        job.device()  # of several GPUs, this one
    job.accept()
    n_fits = fitting.n_fits(store, record.n_samples)
    with job.timed("fit"), progress(f"{stage.checkpoint.name}: fits", n_fits, "fits") as advance:
        fitting.fit_store(
            store, stage.checkpoint.fits, n_samples=record.n_samples, settings=job.settings, of=record.of,
            advance=advance, workers=job.workers,
        )  # fmt: skip
    forget_reduced(stage.checkpoint.fits, record.n_samples, job.settings)


def analyse(job: Run, stage: Stage) -> Analysed:
    """Screen a checkpoint's fits, from the run folder alone.

    Raises
    ------
    StoreNotFoundError
        There are no feature maps yet.
    ConfigurationError
        The feature maps are not those of the settings in force, or there are no fits for these settings yet.
    """
    record, checkpoint = require_own(job, stage), stage.checkpoint
    files = _fitted_files(stage, job.settings)
    if files is None:
        again = command("fit", job.folder, *_of_other_fits(job), sweep=job.beside)
        raise ConfigurationError(f"{checkpoint.folder}: no fits for these settings; fit first: {again}")
    fits = fitting.read_fits(files, job.settings, record.analysed)
    probe = probed.unknown(fits)
    if checkpoint.weights is not None:
        probe = probed.read(job.folder, str(record.identity.get("probe samples")))
    analysis = Analysis(
        fits=fits,
        known=probe.known,
        thumbnails=probe.thumbnails,
        settings=job.settings.screen,
        skipped=record.skipped,
        name=job.title if checkpoint.epoch is None else f"{job.title}, epoch {checkpoint.epoch}",
    )
    return Analysed(checkpoint, analysis, probe.class_names, tuple(fitting.engines_of(files)))


def _of_other_fits(job: Run) -> list[str]:
    """Settings of the fits that are asked for, where the folder's are others: as on the command line."""
    kept = read_settings(job.folder)
    asked = config.deciding(job.settings, "fits")
    return [f"{name}={value}" for name, value in asked.items() if kept and config.value_of(kept, name) != value]


def require_own(job: Run, stage: Stage) -> Record:
    """Record of a checkpoint's maps, if they are those of the settings in force; errors as :mod:`provenance` has."""
    return provenance.require_own(stage.record, job.settings, stage.digest, stage.checkpoint.folder)


def taps_of(network: nn.Module, probe: ProbeSet, settings: config.Extract) -> Taps:
    """Find what is tapped. CaptureError if there is nothing."""
    example = probe.images[:1]
    taps = find_taps(network, example, tap=settings.tap, layers=settings.layers, autocast=settings.autocast)
    require_analysed(taps)
    return taps


def _stream(
    network: nn.Module, probe: ProbeSet, taps: Taps, checkpoint: Checkpoint, settings: config.Settings
) -> ActivationStore:
    """Take the maps of a checkpoint."""
    with progress(f"{checkpoint.name}: maps", len(probe.samples), "samples") as advance:
        return stream_maps(
            network,
            probe.images,
            checkpoint.maps,
            tap=settings.extract.tap,
            layers=settings.extract.layers,
            **_kept_as(probe, checkpoint, settings),
            advance=advance,
            taps=taps,
        )


def _fit_live(
    job: Run, network: nn.Module, probe: ProbeSet, taps: Taps, checkpoint: Checkpoint, name: str, *, keep: bool
) -> None:
    """Take the maps of a checkpoint, fit them as they come, and store them if they are to be kept."""
    settings, images = job.settings, Samples(probe.images, "images")
    store = store_for(network, images, taps, checkpoint.maps, **_kept_as(probe, checkpoint, settings)) if keep else None
    maps = LiveMaps(network, probe.images, taps, probe.n_samples, settings.extract, keep=store)
    n_batches, n_fits = len(probe.samples) // probe.n_samples, fitting.n_fits(maps, probe.n_samples)
    of: dict[str, Any] = {"n_samples": probe.n_samples, "settings": settings, "of": name}
    elsewhere = partial(maps_in_a_worker, settings, job.folder, checkpoint.name)
    with job.timed("extract"), progress(f"{checkpoint.name}: maps", n_batches, "batches") as advance:
        reduced = reduce_live(maps, checkpoint.fits, **of, advance=advance, workers=job.workers, elsewhere=elsewhere)
    with job.timed("fit"), progress(f"{checkpoint.name}: fits", n_fits, "fits") as advance:
        cluster_live(maps, reduced, checkpoint.fits, **of, advance=advance, workers=job.workers)


_in_this_worker: dict[str, LiveMaps] = {}
"""Of the checkpoint that a worker was asked for last."""


def maps_in_a_worker(settings: config.Settings, folder: Path, name: str) -> LiveMaps:
    """Feature maps of a checkpoint of a run, to be made in a process of a cluster; kept there for the next round."""
    key = name_of([str(folder), name, values_of(settings)])
    if key not in _in_this_worker:
        _in_this_worker.clear()
        job = Run(settings, folder)
        checkpoint = next(found for found in job.checkpoints() if found.name == name)
        network, probe = job.network(open_checkpoint(checkpoint).weights, checkpoint.weights), job.probe()
        taps = taps_of(network, probe, settings.extract)
        _in_this_worker[key] = LiveMaps(network, probe.images, taps, probe.n_samples, settings.extract)
    return _in_this_worker[key]


def _kept_as(probe: ProbeSet, checkpoint: Checkpoint, settings: config.Settings) -> dict[str, Any]:
    """How a checkpoint's maps are stored."""
    return {
        "dtype": settings.extract.dtype,
        "forward_samples": settings.extract.forward_samples,
        "probe_samples": probe.n_samples,
        "attributes": {"model": settings.model.name, "checkpoint": checkpoint.name},
        "overwrite": True,
    }


def _batch_of_source(settings: config.Settings) -> int:
    """Raise an error if maps from elsewhere cannot be imported; N, samples in a batch, if they can.

    Where there are fewer than ``probe.samples``, they are one batch.
    """
    source, wanted = str(settings.extract.source), settings.probe.samples
    n_samples = importable_samples(source)
    if n_samples > wanted and n_samples % wanted:
        raise ConfigurationError(
            f"probe.samples={wanted}: {source} has {n_samples} samples, which is no multiple of it; "
            f"expected a divisor, or probe.samples={n_samples} for one batch of all"
        )
    return min(n_samples, wanted)


def _import(settings: config.Settings, checkpoint: Checkpoint) -> ActivationStore:
    """Bring in maps from elsewhere."""
    source, dtype = str(settings.extract.source), settings.extract.dtype
    return import_activations(source, checkpoint.maps, dtype=dtype, attributes={"source": source}, overwrite=True)


def _forget_damage(maps: Path) -> bool:
    """Whether anything of a store is damaged or not there; what is damaged counts as not there from now on."""
    if not maps.exists():
        return False
    try:
        store = ActivationStore.open(maps, partial=True)
        store.forget_damaged()
    except StoreError:
        remove_folder(maps)
        return True
    return bool(store.missing_blocks)


def _forget_wrong_fits(stage: Stage, settings: config.Settings) -> None:
    """Remove fits for the settings in force that are damaged or of something else; says how many."""
    record, folder = stage.record, stage.checkpoint.fits
    if record is None:
        return
    wrong = fitting.wrong_parts(folder / fitting.fit_key(settings, record.n_samples), record.analysed, record.of)
    fitting.forget(wrong)
    if wrong:
        say(f"{stage.checkpoint.name}: {plural(len(wrong), 'file')} of fits damaged or of something else: fitted again")


def _fitted_files(stage: Stage, settings: config.Settings) -> dict[str, list[Path]] | None:
    """Files of the fits for the settings in force, by layer; None where they are not all there."""
    record = stage.record
    if record is None:
        return None
    return fitting.find_fits(stage.checkpoint.fits, list(record.analysed), record.n_samples, settings)


def require_possible(job: Run) -> None:
    """Draw the probe set, find the layers and look for the engine, as the stages after a long training would.

    Parameters
    ----------
    job : Run
        Its data, network and probe set are loaded, and kept for the stages.

    Raises
    ------
    ConfigurationError
        The training set is too small for the probe set, a layer asked for is not in the network, or the disk has less
        room than the run will take.
    CaptureError
        No layer of the network can be analysed.
    EngineError
        The device or the engine does not work on this machine.
    """
    job.device()
    mixture_engine(job.settings.engine.name)
    if gpu.resolved(job.settings.engine.name) == "cpu":
        compile_ahead([job.settings.pca.dims])
    if not job.settings.extract.source:
        network = job.network()
        taps = taps_of(network, job.probe(), job.settings.extract)
        if not (job.folder / "activations").exists():  # else part of it is there already
            disk.require_room(job.folder, disk.needed(job.settings, network, taps, job.probe()))
