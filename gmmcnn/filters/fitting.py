"""From stored maps to fits: PCA, mixture sweep and CH index for every filter, block by block.

A block is as many filters of one layer as fit into memory comfortably, each with all its probe batches (or some of
them, where the maps are very large); while one block is computed the next is read. No result depends on where blocks
begin.
"""

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.errors import ConfigurationError, ConvergenceWarning, StoreError
from gmmcnn.featuremaps.activation import activation_statistics
from gmmcnn.featuremaps.memory import Maps
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.featuremaps.stream import filter_slices, read_ahead
from gmmcnn.featuremaps.taps import Tapped
from gmmcnn.files import file_name, name_of, read_record, without_unusual, write_record
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.hardware import gpu
from gmmcnn.hardware.workers import Workers
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.principal_components.pca import pca
from gmmcnn.progress import Advance

_PART = re.compile(r"batch-\d{4,}/filter-\d{6,}\.npz")
BYTES_PER_BLOCK = 64 * 2**20
_FORMAT = 2  # raised when fits of an earlier version must not be reused


def fit_store(
    store: ActivationStore,
    folder: Path,
    *,
    n_samples: int,
    settings: config.Settings,
    of: str = "",
    advance: Advance = lambda n=1, /: None,
    workers: Workers | None = None,
) -> Fits:
    """Fit every filter of a store, and keep the fits in ``folder``; what is already there is read, not fitted again.

    Parameters
    ----------
    store : ActivationStore
        Complete store of B * N samples.
    folder : Path
        Holds one sub-folder for each set of settings that fits depend on.
    n_samples : int
        N, samples in a probe batch.
    settings : config.Settings
        Its ``pca``, ``gmm``, ``engine`` and ``seed``.
    of : str
        Names the maps; kept with their fits, for :func:`wrong_parts` to know them by.
    advance : Advance
        Called with the number of fits just done, or found done; one for each filter and probe batch.
    workers : Workers, optional
        Who fits blocks in place of this process; they see the store and the folder under the same paths.

    Returns
    -------
    Fits

    Raises
    ------
    ConfigurationError
        The store's samples are no whole number of batches.
    """
    if store.n_samples % n_samples:
        raise ConfigurationError(
            f"probe.samples={n_samples}: the store has {store.n_samples} samples; expected a divisor of that"
        )
    fitted_in = folder / fit_key(settings, n_samples)
    if workers is not None:
        _share_out(store, fitted_in, n_samples, settings, of, advance, workers)
        advance = _counted_already
    layers = {layer: _fit_layer(store, layer, fitted_in, n_samples, settings, of, advance) for layer in store.layers}
    return Fits(layers, settings.gmm.k_min, settings.gmm.k_max, tapped_of(store))


def tapped_of(maps: Maps) -> dict[str, Tapped]:
    """What each layer's maps are."""
    return {layer: tap.tapped for layer, tap in maps.layers.items()}


def n_fits(store: Maps, n_samples: int) -> int:
    """Number of fits that a store asks for: one for each filter and probe batch."""
    return sum(tap.n_filters for tap in store.layers.values()) * (store.n_samples // n_samples)


def load_fits(folder: Path, layers: list[str], n_samples: int, settings: config.Settings) -> Fits | None:
    """Read the fits that :func:`fit_store` kept for these settings; None where they are not all there."""
    parts = find_fits(folder, layers, n_samples, settings)
    return None if parts is None else read_fits(parts, settings)


def read_fits(
    parts: dict[str, list[Path]], settings: config.Settings, tapped: Mapping[str, Tapped] | None = None
) -> Fits:
    """Read the files that :func:`find_fits` found; what the layers' maps are does not stand in them."""
    layers = {layer: gather(files) for layer, files in parts.items()}
    return Fits(layers, settings.gmm.k_min, settings.gmm.k_max, tapped or {})


def find_fits(
    folder: Path, layers: list[str], n_samples: int, settings: config.Settings
) -> dict[str, list[Path]] | None:
    """Files of the fits that :func:`fit_store` kept for these settings, by layer; None where they are not all there."""
    for key in (fit_key(settings, n_samples), *_earlier_keys(settings, n_samples)):
        parts = {layer: _complete_parts(folder_of(folder / key, layer)) for layer in layers}
        if all(parts.values()):
            return parts
    return None


def mark(of: str, file: Path, layer: str, fits: LayerFits) -> str:
    """Name of what the fits of a file are of, whose place says settings, first batch and first filter."""
    place = [file.parent.parent.parent.name, layer, file.parent.name, file.name]
    return name_of([of, *place, fits.scores.shape]) if of else ""


def wrong_parts(fitted_in: Path, layers: Iterable[str], of: str) -> list[Path]:
    """Files of fits that are damaged, or of other maps, settings, filters or batches than their place says.

    Parameters
    ----------
    fitted_in : Path
        Folder of the fits for some settings.
    layers : iterable of str
    of : str
        Names the maps, as it was given to :func:`fit_store`. Fits that name nothing are taken for what they are.
    """
    wrong = []
    for layer in layers:
        for file in sorted(folder_of(fitted_in, layer).glob("batch-*/filter-*.npz")):
            try:
                fits, (_, found) = LayerFits.load(file), LayerFits.said_of(file)
            except StoreError:
                wrong.append(file)
                continue
            if found and of and found != mark(of, file, layer, fits):
                wrong.append(file)
    return wrong


def unfinished(fitted_in: Path, layers: Iterable[str]) -> list[str]:
    """Layers whose fits for some settings are not all there, or without a sound record that they are."""
    return [layer for layer in layers if not _complete_parts(folder_of(fitted_in, layer))]


def forget(files: Iterable[Path]) -> None:
    """Remove files of fits, and the records that name them first: they will be fitted again."""
    for file in files:
        completion(file.parent.parent).unlink(missing_ok=True)
        file.unlink(missing_ok=True)


def engines_of(parts: dict[str, list[Path]]) -> list[str]:
    """Names of the engines that made the fits in some files, as :func:`find_fits` returns them, sorted.

    Engines agree within their tolerances, so fits of several may lie together; those of a version that did not record
    the engine are not named.
    """
    made_by = {LayerFits.said_of(file)[0] for files in parts.values() for file in files}
    return sorted(made_by - {""})


def fit_key(settings: config.Settings, n_samples: int) -> str:
    """Name of the settings that fits depend on: the same for equal settings, another for others.

    Not of the engine: the engines agree within their tolerances, so fits that one of them made serve all.
    """
    return name_of([config.deciding(settings, "fits"), n_samples, _FORMAT, BYTES_PER_BLOCK])


def _earlier_keys(settings: config.Settings, n_samples: int) -> list[str]:
    """Names that earlier versions gave to fits, each engine's its own."""
    what = [asdict(settings.pca), asdict(settings.gmm), settings.seed, n_samples]
    return [name_of([*what, [1, BYTES_PER_BLOCK, engine]]) for engine in ("cpu", "cuda", "reference")]


def _fit_layer(
    store: ActivationStore,
    layer: str,
    fitted_in: Path,
    n_samples: int,
    settings: config.Settings,
    of: str,
    advance: Advance,
) -> LayerFits:
    blocks, folder = blocks_of(store, layer, n_samples), folder_of(fitted_in, layer)
    missing = [block for block in blocks if not block.file(folder).exists()]
    n_missing = sum(block.n_fits for block in missing)
    advance(store.layers[layer].n_filters * (store.n_samples // n_samples) - n_missing)
    parts = [block.part(n_samples) for block in missing]
    maps = read_ahead(store, layer, parts)
    for block in missing:
        file = block.file(folder)
        fits = fit_maps(next(maps), layer, block.filters, block.batches, settings)
        fits.save(file, engine=gpu.resolved(settings.engine.name), of=mark(of, file, layer, fits))
        advance(block.n_fits)
    return completed(folder, blocks)


def _share_out(
    store: ActivationStore,
    fitted_in: Path,
    n_samples: int,
    settings: config.Settings,
    of: str,
    advance: Advance,
    workers: Workers,
) -> None:
    """Have the blocks of all layers that are not fitted yet fitted by workers, each of which writes its file."""
    blocks = [(layer, block) for layer in store.layers for block in blocks_of(store, layer, n_samples)]
    missing = [(layer, block) for layer, block in blocks if not block.file(folder_of(fitted_in, layer)).exists()]
    advance(sum(block.n_fits for _, block in blocks) - sum(block.n_fits for _, block in missing))
    own = config.of_a_worker(settings)
    calls = [partial(_fit_block, store.path, layer, block, fitted_in, n_samples, own, of) for layer, block in missing]
    for number, _ in workers.do(calls):
        advance(missing[number][1].n_fits)


def _counted_already(n: int = 1, /) -> None:
    """Stand in for a bar that has been told."""


def _fit_block(
    path: Path, layer: str, block: "Block", fitted_in: Path, n_samples: int, settings: config.Settings, of: str
) -> None:
    """Read, fit and keep one block, unless whoever did it before was killed afterwards."""
    file = block.file(folder_of(fitted_in, layer))
    if file.exists():
        return
    maps = _opened(path).read(layer, *block.part(n_samples))
    fits = fit_maps(maps, layer, block.filters, block.batches, settings)
    fits.save(file, engine=gpu.resolved(settings.engine.name), of=mark(of, file, layer, fits))


@lru_cache(maxsize=1)
def _opened(path: Path) -> ActivationStore:
    return ActivationStore.open(path)


def completed(folder: Path, blocks: Sequence["Block"]) -> LayerFits:
    """Record that the files of all blocks of a layer are there, and read them."""
    files = [block.file(folder) for block in blocks]
    write_record(completion(folder), {"parts": [str(file.relative_to(folder)) for file in files]})
    return gather(files)


@dataclass(frozen=True)
class Block:
    """What is read, fitted and kept together."""

    filters: range
    batches: range

    @property
    def n_fits(self) -> int:
        """One for each filter and probe batch."""
        return len(self.filters) * len(self.batches)

    def file(self, folder: Path) -> Path:
        """Where its fits are kept in the folder of its layer."""
        return folder / f"batch-{self.batches.start:04d}" / f"filter-{self.filters.start:06d}.npz"

    def part(self, n_samples: int) -> tuple[slice, slice]:
        """Filters and samples."""
        samples = slice(self.batches.start * n_samples, self.batches.stop * n_samples)
        return slice(self.filters.start, self.filters.stop), samples


def blocks_of(store: Maps, layer: str, n_samples: int) -> list[Block]:
    """Divide a layer: by filters, and by probe batches too where one filter's maps of all of them are too large."""
    tap = store.layers[layer]
    n_batches = store.n_samples // n_samples
    at_once = min(n_batches, max(1, BYTES_PER_BLOCK // (n_samples * tap.height * tap.width * 4)))
    blocks = []
    for first in range(0, n_batches, at_once):
        batches = range(first, min(first + at_once, n_batches))
        samples = slice(0, len(batches) * n_samples)
        slices = filter_slices(store, layer, samples=samples, bytes_per_block=BYTES_PER_BLOCK)
        blocks += [Block(range(filters.start, filters.stop), batches) for filters in slices]
    return blocks


def folder_of(folder: Path, layer: str) -> Path:
    """Folder of a layer's fits; that of earlier versions, which took the name as it was, where it can be one."""
    could_be_one = layer == without_unusual(layer) and layer.strip(".") and len(layer) < 256
    earlier = folder / layer if could_be_one else None
    return earlier if earlier and earlier.is_dir() else folder / file_name(layer)


def completion(folder: Path) -> Path:
    """Record of the files that a layer's fits consist of, once they are all there."""
    return folder / "complete.json"


def _complete_parts(folder: Path) -> list[Path]:
    """Files of a layer's fits; none where there is no record of them, or one of them is lost."""
    try:
        record = read_record(completion(folder), {"parts": [str]}, remedy="fit again")
    except StoreError:
        return []
    if record is None or not all(_PART.fullmatch(name) for name in record["parts"]):
        return []
    files = [folder / name for name in record["parts"]]
    return files if all(file.exists() for file in files) else []


def gather(files: list[Path]) -> LayerFits:
    """Read the parts of a layer, and join them."""
    return join([(file.parent, LayerFits.load(file)) for file in sorted(files)])


def join(parts: Iterable[tuple[object, LayerFits]]) -> LayerFits:
    """Join parts, each beside what names its probe batches: filters along the first axis, batches along the second."""
    by_batches = [LayerFits.concatenate([part for _, part in same]) for _, same in groupby(parts, key=itemgetter(0))]
    return LayerFits.concatenate(by_batches, axis=1)


@dataclass(frozen=True, eq=False)
class Reduced:
    """PCA and activation of some filters (F) over some probe batches (B): all that their mixtures need of the maps."""

    layer: str
    filters: range
    batches: range
    scores: NDArray
    """(F, B, N, d) float32, or float64 where they exceed that."""
    explained_variance: NDArray[np.float64]
    """(F, B, d)"""
    mean_activation: NDArray[np.float64]
    """(F, B)"""
    active_share: NDArray[np.float64]
    """(F, B)"""

    @property
    def arrays(self) -> dict[str, NDArray]:
        """Its arrays by name."""
        return {name: getattr(self, name) for name in REDUCED}

    def part(self, filters: range, batches: range) -> "Reduced":
        """Some of its filters and batches, as views."""
        rows = slice(filters.start - self.filters.start, filters.stop - self.filters.start)
        columns = slice(batches.start - self.batches.start, batches.stop - self.batches.start)
        return Reduced(
            self.layer, filters, batches, **{name: array[rows, columns] for name, array in self.arrays.items()}
        )


REDUCED = ("scores", "explained_variance", "mean_activation", "active_share")
"""Names of the arrays of :class:`Reduced`, as :class:`~gmmcnn.filters.fits.LayerFits` has them too."""


def fit_maps(maps: Any, layer: str, filters: range, batches: range, settings: config.Settings) -> LayerFits:
    """Reduce and cluster the maps of some filters of a layer; arguments as of :func:`reduce_maps`."""
    [fits] = cluster([reduce_maps(maps, layer, filters, batches, settings)], settings)
    return fits


def reduce_maps(maps: Any, layer: str, filters: range, batches: range, settings: config.Settings) -> Reduced:
    """Principal components and activation of some filters of a layer.

    Parameters
    ----------
    maps : (F, B * N, P) float
        Feature maps: an array, or for the CUDA engine a tensor on a device, where they stay.
    layer : str
        Name of the layer; with the filter and the batch it names the random stream of a fit.
    filters : range
        Which filters of the layer these are.
    batches : range
        Which probe batches; the samples are divided equally among them.
    settings : config.Settings
        Its ``pca`` and ``engine``.
    """
    problems = maps.reshape(len(filters) * len(batches), -1, maps.shape[-1])
    engine, threads = settings.engine.name, settings.engine.threads
    mean_activation, active_share = activation_statistics(problems, threads, engine=engine)
    reduced = pca(problems, settings.pca.dims, engine=engine, threads=threads)

    def by_batch(flat: NDArray) -> NDArray:
        return flat.reshape(len(filters), len(batches), *flat.shape[1:])

    return Reduced(
        layer,
        filters,
        batches,
        scores=by_batch(reduced.scores),
        explained_variance=by_batch(reduced.explained_variance),
        mean_activation=by_batch(mean_activation),
        active_share=by_batch(active_share),
    )


def cluster(parts: Sequence[Reduced], settings: config.Settings) -> list[LayerFits]:
    """Mixtures of several parts, of any layers, in one sweep.

    Parameters
    ----------
    parts : Reduced
        With the same number of samples and dimensions.
    settings : config.Settings
        Its ``gmm``, ``engine`` and ``seed``.
    """
    repeats = range(settings.gmm.repeats)
    keys = [
        stream_key(part.layer, filter, batch, repeat)
        for part in parts
        for filter in part.filters
        for batch in part.batches
        for repeat in repeats
    ]
    scores = np.concatenate([part.scores.reshape(-1, *part.scores.shape[2:]) for part in parts])
    engine, threads = settings.engine.name, settings.engine.threads
    starts = {"random_state": settings.seed + settings.gmm.random_state}
    more = {"engine": engine, "threads": threads, "cuml": settings.engine.cuml}
    sweep = GaussianMixtureSweep(**settings.gmm.of_a_sweep | starts | more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # kept for each fit in ``converged``
        sweep.fit(np.repeat(scores, len(repeats), axis=0), keys=np.array(keys, np.uint64))
    fits, first = [], 0
    for part in parts:
        size = part.mean_activation.size * len(repeats)
        fits.append(_fits_of(part, sweep, slice(first, first + size), len(repeats)))
        first += size
    return fits


def _fits_of(part: Reduced, sweep: GaussianMixtureSweep, problems: slice, n_repeats: int) -> LayerFits:
    """Fits of one part, whose mixtures are some of a sweep's problems."""

    def by_repeat(flat: NDArray) -> NDArray:
        return flat[problems].reshape(len(part.filters), len(part.batches), n_repeats, *flat.shape[1:])

    return LayerFits(
        scores=part.scores.astype(np.float32),
        explained_variance=part.explained_variance,
        mean_activation=part.mean_activation,
        active_share=part.active_share,
        status=by_repeat(np.asarray(sweep.status_)),
        n_components=by_repeat(sweep.n_components_),
        labels=by_repeat(sweep.labels_.astype(np.int16)),
        calinski_harabasz=by_repeat(sweep.calinski_harabasz_),
        lower_bound=by_repeat(sweep.lower_bound_),
        n_iter=by_repeat(sweep.n_iter_),
        converged=by_repeat(sweep.converged_),
        weights=by_repeat(sweep.weights_),
        means=by_repeat(sweep.means_),
        covariances=by_repeat(sweep.covariances_),
    )


def stream_key(layer: str, filter: int, batch: int, repeat: int = 0) -> int:
    """Name of a fit's random stream: 64 bits that depend on nothing but which maps these are, and how often fitted."""
    name = f"{layer}/{filter}/{batch}" + (f"/{repeat}" if repeat else "")
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
