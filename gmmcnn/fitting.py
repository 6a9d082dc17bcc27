"""From stored maps to fits: PCA, mixture sweep and CH index for every filter, block by block.

A block is as many filters of one layer as fit into memory comfortably, each with all its probe batches; while one
block is computed the next is read. No result depends on where blocks begin.
"""

import hashlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.errors import ConfigurationError, ConvergenceWarning
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.featuremaps.stream import activation_statistics, filter_blocks
from gmmcnn.fits import Fits, LayerFits
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.pca import pca
from gmmcnn.progress import Advance

BYTES_PER_BLOCK = 64 * 2**20
_FORMAT = 1  # raised when fits of an earlier version must not be reused


def fit_store(
    store: ActivationStore,
    folder: Path,
    *,
    batch_samples: int,
    settings: config.Settings,
    advance: Advance = lambda n=1, /: None,
) -> Fits:
    """Fit every filter of a store, and keep the fits in ``folder``; what is already there is read, not fitted again.

    Parameters
    ----------
    store : ActivationStore
        Complete store of B * N samples.
    folder : Path
        Holds one sub-folder for each set of settings that fits depend on.
    batch_samples : int
        N, samples in a probe batch.
    settings : config.Settings
        Its ``pca``, ``gmm``, ``engine`` and ``seed``.
    advance : Advance
        Called with the number of filters just done.

    Returns
    -------
    Fits

    Raises
    ------
    ConfigurationError
        The store's samples are no whole number of batches.
    """
    if store.n_samples % batch_samples:
        raise ConfigurationError(
            f"probe.samples={batch_samples}: the store has {store.n_samples} samples; expected a divisor of that"
        )
    fitted_in = folder / fit_key(settings, batch_samples)
    layers = {
        layer: _fit_layer(store, layer, fitted_in / layer, batch_samples, settings, advance) for layer in store.layers
    }
    return Fits(layers, settings.gmm.k_min, settings.gmm.k_max)


def load_fits(folder: Path, layers: list[str], batch_samples: int, settings: config.Settings) -> Fits | None:
    """Read the fits that :func:`fit_store` kept for these settings; None where they are not all there."""
    fitted_in = folder / fit_key(settings, batch_samples)
    if not all((fitted_in / layer / "complete").exists() for layer in layers):
        return None
    loaded = {layer: _gather(fitted_in / layer) for layer in layers}
    return Fits(loaded, settings.gmm.k_min, settings.gmm.k_max)


def fit_key(settings: config.Settings, batch_samples: int) -> str:
    """Name of the settings that fits depend on: the same for equal settings, another for others."""
    how = [_FORMAT, BYTES_PER_BLOCK, settings.engine.name]
    what = [asdict(settings.pca), asdict(settings.gmm), settings.seed, batch_samples, how]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _fit_layer(
    store: ActivationStore,
    layer: str,
    folder: Path,
    batch_samples: int,
    settings: config.Settings,
    advance: Advance,
) -> LayerFits:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "complete").exists():
        for filters, maps in filter_blocks(store, layer, bytes_per_block=BYTES_PER_BLOCK):
            part = folder / f"{filters.start:06d}.npz"
            if not part.exists():
                fit_maps(maps, layer, filters, batch_samples, settings).save(part)
            advance(filters.stop - filters.start)
        (folder / "complete").touch()
    return _gather(folder)


def _gather(folder: Path) -> LayerFits:
    return LayerFits.concatenate([LayerFits.load(part) for part in sorted(folder.glob("*.npz"))])


def fit_maps(maps: NDArray, layer: str, filters: slice, batch_samples: int, settings: config.Settings) -> LayerFits:
    """Reduce and cluster the maps of some filters of a layer.

    Parameters
    ----------
    maps : (F, B * N, P) float
        Feature maps.
    layer : str
        Name of the layer; with the filter and the batch it names the random stream of a fit.
    filters : slice
        Which filters of the layer these are.
    batch_samples : int
        N.
    settings : config.Settings
        Its ``pca``, ``gmm``, ``engine`` and ``seed``.
    """
    n_filters, n_samples, n_pixels = maps.shape
    n_batches = n_samples // batch_samples
    problems = maps.reshape(n_filters * n_batches, batch_samples, n_pixels)
    keys = [
        stream_key(layer, index, batch) for index in range(filters.start, filters.stop) for batch in range(n_batches)
    ]
    engine, threads = settings.engine.name, settings.engine.threads
    mean_activation, active_share = activation_statistics(problems)
    reduced = pca(problems, settings.pca.dims, engine=engine, threads=threads)
    sweep = GaussianMixtureSweep(**asdict(settings.gmm), random_state=settings.seed, engine=engine, threads=threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # kept for each fit in ``converged``
        sweep.fit(reduced.scores, keys=np.array(keys, np.uint64))

    def by_batch(flat: NDArray) -> NDArray:
        return flat.reshape(n_filters, n_batches, *flat.shape[1:])

    return LayerFits(
        scores=by_batch(reduced.scores.astype(np.float32)),
        explained_variance=by_batch(reduced.explained_variance),
        mean_activation=by_batch(mean_activation),
        active_share=by_batch(active_share),
        status=by_batch(np.asarray(sweep.status_)),
        n_components=by_batch(sweep.n_components_),
        labels=by_batch(sweep.labels_.astype(np.int16)),
        calinski_harabasz=by_batch(sweep.calinski_harabasz_),
        lower_bound=by_batch(sweep.lower_bound_),
        n_iter=by_batch(sweep.n_iter_),
        converged=by_batch(sweep.converged_),
        weights=by_batch(sweep.weights_),
        means=by_batch(sweep.means_),
        covariances=by_batch(sweep.covariances_),
    )


def stream_key(layer: str, filter: int, batch: int) -> int:
    """Name of a fit's random stream: 64 bits that depend on nothing but which maps these are."""
    return int.from_bytes(hashlib.blake2b(f"{layer}/{filter}/{batch}".encode(), digest_size=8).digest(), "little")
