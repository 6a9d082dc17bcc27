"""One checkpoint's way from weights to fits: feature maps in a store, fits beside them, an analysis of both."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from gmmcnn import fitting
from gmmcnn.analysis import Analysis
from gmmcnn.errors import ConfigurationError
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.featuremaps.stream import extract as stream_maps
from gmmcnn.featuremaps.stream import fingerprint, import_activations, skipped_layers
from gmmcnn.fits import Fits
from gmmcnn.probe import thumbnails
from gmmcnn.progress import progress
from gmmcnn.run_folder import Checkpoint, Run, write_aside


def extract(job: Run, checkpoint: Checkpoint) -> None:
    """Stream a checkpoint's feature maps to its store.

    Maps that are there, or were fitted and deleted, are not made again; fits of other maps in the same folder are
    removed.
    """
    if checkpoint.weights is None:
        _import(job, checkpoint)
        return
    model = job.load_weights(checkpoint)
    settings, probe = job.settings.extract, job.probe
    identity = _identity(job, model)
    if _is_done(job, checkpoint, identity):
        return
    with job.timed("extract"), progress(f"{checkpoint.name}: maps", len(probe.samples), "samples") as advance:
        store = stream_maps(
            model,
            probe.images,
            checkpoint.maps,
            tap=settings.tap,
            layers=settings.layers,
            dtype=settings.dtype,
            batch_samples=settings.batch_samples,
            block_samples=probe.batch_samples,
            attributes={"model": job.settings.model.name, "checkpoint": checkpoint.name},
            overwrite=True,
            advance=advance,
        )
    _write_record(checkpoint, store, probe.batch_samples, identity)


def _is_done(job: Run, checkpoint: Checkpoint, identity: str) -> bool:
    """Whether these very maps are fitted already; what is left of other maps is removed, a half-made store is not."""
    found = _record(checkpoint).get("identity", identity)
    if found != identity:
        shutil.rmtree(checkpoint.folder)
    return _fits(job, checkpoint) is not None


def fit(job: Run, checkpoint: Checkpoint) -> None:
    """Fit every filter of a checkpoint's store; what is fitted already is kept.

    Raises
    ------
    StoreNotFoundError
        There are no feature maps yet.
    """
    if _fits(job, checkpoint) is not None:
        return
    store = ActivationStore.open(checkpoint.maps)
    batch_samples = _record(checkpoint)["batch_samples"]
    n_fits = fitting.n_fits(store, batch_samples)
    with job.timed("fit"), progress(f"{checkpoint.name}: fits", n_fits, "fits") as advance:
        fitting.fit_store(store, checkpoint.fits, batch_samples=batch_samples, settings=job.settings, advance=advance)


def analysis(job: Run, checkpoint: Checkpoint) -> Analysis:
    """Screen a checkpoint's fits.

    Raises
    ------
    ConfigurationError
        There are no fits for these settings yet.
    """
    fits = _fits(job, checkpoint)
    if fits is None:
        raise ConfigurationError(
            f"{checkpoint.folder}: no fits for these settings; fit first: gmmcnn task=fit run={job.folder}"
        )
    imported = checkpoint.weights is None
    if not imported and (fits.n_batches, fits.n_samples) != (job.probe.n_batches, job.probe.batch_samples):
        raise ConfigurationError(
            f"{checkpoint.folder}: holds fits of {fits.n_batches} batches of {fits.n_samples} samples; expected "
            f"{job.probe.n_batches} of {job.probe.batch_samples}; extract again: gmmcnn task=extract run={job.folder}"
        )
    return Analysis(
        fits=fits,
        samples=_unknown_samples(fits) if imported else job.probe.samples,
        thumbnails=np.empty((0, 1, 1), np.uint8) if imported else thumbnails(job.probe.images),
        settings=job.settings.screen,
        skipped=tuple((layer, reason) for layer, reason in _record(checkpoint)["skipped"]),
        name=job.title if checkpoint.epoch is None else f"{job.title}, epoch {checkpoint.epoch}",
    )


def _import(job: Run, checkpoint: Checkpoint) -> None:
    """Bring in feature maps that someone else made."""
    source = str(job.settings.extract.source)
    identity = f"{Path(source).absolute()} {_modified(Path(source))} {job.settings.extract.dtype}"
    if _is_done(job, checkpoint, identity):
        return
    store = import_activations(
        source, checkpoint.maps, dtype=job.settings.extract.dtype, attributes={"source": source}, overwrite=True
    )
    n_samples = store.n_samples
    batch_samples = job.settings.probe.samples if n_samples % job.settings.probe.samples == 0 else n_samples
    _write_record(checkpoint, store, batch_samples, identity)


def _modified(source: Path) -> int:
    """When a file, or any file of a Zarr array, was last written, in nanoseconds; 0 where there is none."""
    files = source.rglob("*") if source.is_dir() else [source]
    return max((path.stat().st_mtime_ns for path in files if path.is_file()), default=0)


def _unknown_samples(fits: Fits) -> pd.DataFrame:
    """Samples of which only the batch is known."""
    return pd.DataFrame({"batch": np.repeat(np.arange(fits.n_batches), fits.n_samples), "label": pd.NA})


def _identity(job: Run, model: nn.Module) -> str:
    """Name of everything that feature maps depend on."""
    settings = job.settings.extract
    digest = hashlib.sha256(fingerprint(model).encode())
    digest.update(np.ascontiguousarray(job.probe.images.numpy()).data)
    digest.update(json.dumps([settings.tap, settings.layers, settings.dtype, job.probe.batch_samples]).encode())
    return digest.hexdigest()[:16]


def _record(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the last extraction into this folder wrote about itself; empty where there was none."""
    return json.loads(checkpoint.taps.read_text()) if checkpoint.taps.exists() else {}


def _write_record(checkpoint: Checkpoint, store: ActivationStore, batch_samples: int, identity: str) -> None:
    record = {
        "identity": identity,
        "batch_samples": batch_samples,
        "analysed": {layer: tap.description for layer, tap in store.layers.items()},
        "skipped": skipped_layers(store),
    }
    write_aside(checkpoint.taps, json.dumps(record, indent=1) + "\n")


def _fits(job: Run, checkpoint: Checkpoint) -> Fits | None:
    """Fits for the settings in force, None where they are not all there."""
    record = _record(checkpoint)
    if not record:
        return None
    return fitting.load_fits(checkpoint.fits, list(record["analysed"]), record["batch_samples"], job.settings)
