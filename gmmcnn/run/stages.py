"""One checkpoint's way from weights to fits: feature maps in a store, fits beside them, an analysis of both."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from gmmcnn.analysis import Analysis
from gmmcnn.data.probe import thumbnails
from gmmcnn.errors import ConfigurationError, StoreError
from gmmcnn.featuremaps.capture import find_taps
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.featuremaps.stream import extract as stream_maps
from gmmcnn.featuremaps.stream import import_activations, importable_samples, require_analysed, skipped_layers
from gmmcnn.filters import fitting
from gmmcnn.filters.fits import Fits
from gmmcnn.mixture.sweep import mixture_engine
from gmmcnn.progress import progress
from gmmcnn.run import provenance
from gmmcnn.run.folder import Checkpoint, Run


def extract(job: Run, checkpoint: Checkpoint) -> None:
    """Stream a checkpoint's feature maps to its store.

    Maps that are there, or were fitted and deleted, are not made again; damaged ones are. Fits of other maps in the
    same folder are removed, once it is known that the new maps can be made.
    """
    identity = provenance.identity(job, checkpoint)
    others, damaged = provenance.differences(checkpoint, identity), _forget_damage(checkpoint.maps)
    if not (others or damaged) and _fits(job, checkpoint) is not None:
        return
    imported = checkpoint.weights is None
    n_samples = _check_source(job) if imported else _check_model(job, checkpoint)
    if others:
        checkpoint.taps.unlink(missing_ok=True)
        shutil.rmtree(checkpoint.fits, ignore_errors=True)
    with job.timed("extract"):
        store = _import(job, checkpoint) if imported else _stream(job, checkpoint)
    record = {
        "n_samples": n_samples,
        "analysed": {layer: tap.description for layer, tap in store.layers.items()},
        "skipped": skipped_layers(store),
    }
    provenance.write(job, checkpoint, identity, record)


def fit(job: Run, checkpoint: Checkpoint) -> None:
    """Fit every filter of a checkpoint's store; what is fitted already is kept.

    Raises
    ------
    StoreNotFoundError
        There are no feature maps yet.
    ConfigurationError
        The feature maps are not those of the settings in force.
    """
    record = provenance.require_own(job, checkpoint)
    if _fits(job, checkpoint) is not None:
        return
    store = ActivationStore.open(checkpoint.maps)
    n_samples = record["n_samples"]
    n_fits = fitting.n_fits(store, n_samples)
    with job.timed("fit"), progress(f"{checkpoint.name}: fits", n_fits, "fits") as advance:
        fitting.fit_store(store, checkpoint.fits, n_samples=n_samples, settings=job.settings, advance=advance)


def analysis(job: Run, checkpoint: Checkpoint) -> Analysis:
    """Screen a checkpoint's fits.

    Raises
    ------
    StoreNotFoundError
        There are no feature maps yet.
    ConfigurationError
        The feature maps are not those of the settings in force, or there are no fits for these settings yet.
    """
    record = provenance.require_own(job, checkpoint)
    fits = _fits(job, checkpoint)
    if fits is None:
        raise ConfigurationError(
            f"{checkpoint.folder}: no fits for these settings; fit first: gmmcnn task=fit run={job.folder}"
        )
    imported = checkpoint.weights is None
    return Analysis(
        fits=fits,
        known=_unknown_samples(fits) if imported else job.probe.samples,
        thumbnails=np.empty((0, 1, 1), np.uint8) if imported else thumbnails(job.probe.images),
        settings=job.settings.screen,
        skipped=tuple((layer, reason) for layer, reason in record["skipped"]),
        name=job.title if checkpoint.epoch is None else f"{job.title}, epoch {checkpoint.epoch}",
    )


def _check_model(job: Run, checkpoint: Checkpoint) -> int:
    """Raise CaptureError if a checkpoint's maps cannot be taken; N, samples in a batch, if they can."""
    settings = job.settings.extract
    model = job.load_weights(checkpoint)
    require_analysed(find_taps(model, job.probe.images[:1], tap=settings.tap, layers=settings.layers))
    return job.probe.n_samples


def _stream(job: Run, checkpoint: Checkpoint) -> ActivationStore:
    """Take the maps of a checkpoint."""
    settings, probe = job.settings.extract, job.probe
    with progress(f"{checkpoint.name}: maps", len(probe.samples), "samples") as advance:
        return stream_maps(
            job.load_weights(checkpoint),
            probe.images,
            checkpoint.maps,
            tap=settings.tap,
            layers=settings.layers,
            dtype=settings.dtype,
            forward_samples=settings.forward_samples,
            probe_samples=probe.n_samples,
            attributes={"model": job.settings.model.name, "checkpoint": checkpoint.name},
            overwrite=True,
            advance=advance,
        )


def _check_source(job: Run) -> int:
    """Raise an error if maps from elsewhere cannot be imported; N, samples in a batch, if they can.

    Where there are fewer than ``probe.samples``, they are one batch.
    """
    source, wanted = str(job.settings.extract.source), job.settings.probe.samples
    n_samples = importable_samples(source)
    if n_samples > wanted and n_samples % wanted:
        raise ConfigurationError(
            f"probe.samples={wanted}: {source} has {n_samples} samples, which is no multiple of it; "
            f"expected a divisor, or probe.samples={n_samples} for one batch of all"
        )
    return min(n_samples, wanted)


def _import(job: Run, checkpoint: Checkpoint) -> ActivationStore:
    """Bring in maps from elsewhere."""
    source, dtype = str(job.settings.extract.source), job.settings.extract.dtype
    return import_activations(source, checkpoint.maps, dtype=dtype, attributes={"source": source}, overwrite=True)


def _forget_damage(maps: Path) -> bool:
    """Whether anything of a store is damaged or not there; what is damaged counts as not there from now on."""
    if not maps.exists():
        return False
    try:
        store = ActivationStore.open(maps, partial=True)
        store.forget_damaged()
    except StoreError:
        shutil.rmtree(maps)
        return True
    return bool(store.missing_blocks)


def _unknown_samples(fits: Fits) -> pd.DataFrame:
    """Samples of which only the batch is known."""
    return pd.DataFrame({"batch": np.repeat(np.arange(fits.n_batches), fits.n_samples), "label": pd.NA})


def _fits(job: Run, checkpoint: Checkpoint) -> Fits | None:
    """Fits for the settings in force, None where they are not all there."""
    record = provenance.read(checkpoint)
    if not record:
        return None
    return fitting.load_fits(checkpoint.fits, list(record["analysed"]), record["n_samples"], job.settings)


def require_possible(job: Run) -> None:
    """Draw the probe set, find the layers and look for the engine, as the stages after a long training would.

    Parameters
    ----------
    job : Run
        Its data, network and probe set are loaded, and kept for the stages.

    Raises
    ------
    ConfigurationError
        The training set is too small for the probe set, or a layer asked for is not in the network.
    CaptureError
        No layer of the network can be analysed.
    EngineError
        The engine does not run on this machine.
    """
    settings = job.settings
    mixture_engine(settings.engine.name)
    if not settings.extract.source:
        example = job.probe.images[:1]
        require_analysed(find_taps(job.model, example, tap=settings.extract.tap, layers=settings.extract.layers))
