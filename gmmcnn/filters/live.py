"""From a network that is run now to fits: PCA as the maps are made, then the mixtures of all layers together.

The maps of a round are reduced to scores, which are a few kilobytes a filter, and forgotten; thousands of mixtures are
then fitted in one sweep. What is kept on disk are the same files as :func:`gmmcnn.filters.fitting.fit_store` makes,
with the same bits; scores of rounds that are done lie beside them until the last mixture is fitted, so an interrupted
fit loses the round, or the sweep, in hand and no other.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gmmcnn import config
from gmmcnn.errors import StoreError
from gmmcnn.featuremaps.live import LiveMaps
from gmmcnn.files import arrays_in, remove_folder, write_arrays
from gmmcnn.filters.fits import Fits, LayerFits
from gmmcnn.filters.fitting import (
    REDUCED,
    Block,
    Reduced,
    blocks_of,
    cluster,
    completed,
    fit_key,
    folder_of,
    join,
    mark,
    reduce_maps,
    tapped_of,
)  # fmt: skip
from gmmcnn.hardware import gpu
from gmmcnn.hardware.workers import Workers
from gmmcnn.progress import Advance

PROBLEMS_PER_SWEEP = 4096
"""Mixture problems, each with all its K, that are fitted in one call; enough to fill a GPU or to balance any cores."""

BYTES_PER_SWEEP = 64 << 20
"""Scores of one call, at most, where there is more than one block of them."""

_Place = tuple[str, Block]


def fit_live(
    maps: LiveMaps,
    folder: Path | None,
    *,
    n_samples: int,
    settings: config.Settings,
    of: str = "",
    reducing: Advance = lambda n=1, /: None,
    advance: Advance = lambda n=1, /: None,
) -> Fits:
    """Fit every filter of a network while it is run.

    Parameters
    ----------
    maps : LiveMaps
    folder : Path or None
        Where the fits are kept, as :func:`~gmmcnn.filters.fitting.fit_store` does, and those that are there are read;
        None keeps nothing.
    n_samples : int
        N, samples in a probe batch.
    settings : config.Settings
        Its ``pca``, ``gmm``, ``engine`` and ``seed``.
    of : str
        Names the maps, as for :func:`~gmmcnn.filters.fitting.fit_store`.
    reducing : Advance
        Called with the number of probe batches whose maps were just reduced.
    advance : Advance
        Called with the number of fits just done, or found done; one for each filter and probe batch.
    """
    reduced = reduce_live(maps, folder, n_samples=n_samples, settings=settings, of=of, advance=reducing)
    return cluster_live(maps, reduced, folder, n_samples=n_samples, settings=settings, of=of, advance=advance)


def reduce_live(
    maps: LiveMaps,
    folder: Path | None,
    *,
    n_samples: int,
    settings: config.Settings,
    of: str = "",
    advance: Advance = lambda n=1, /: None,
    workers: Workers | None = None,
    elsewhere: Callable[[], LiveMaps] | None = None,
) -> dict[str, Reduced]:
    """First half of :func:`fit_live`: run the network, and reduce what no fits are there of.

    Parameters
    ----------
    maps, folder, n_samples, settings, of, advance
        As of :func:`fit_live`.
    workers : Workers, optional
        Who runs the network on its rounds in place of this process. Of maps that are kept no more is stored then.
    elsewhere : callable, optional
        Makes the same maps in a worker; to be pickled.

    Returns
    -------
    dict of layer to Reduced
        Of all batches; those that are not needed are NaN.
    """
    fitted_in, places = _fitted_in(folder, settings, n_samples), _places(maps, n_samples)
    missing = _missing(places, fitted_in)
    if workers is None or elsewhere is None:
        return _reduced(maps, _aside(fitted_in), missing, of, advance, partial(_here, maps, settings))
    share_out = partial(_by_workers, workers, elsewhere, config.of_a_worker(settings))
    return _reduced(maps, _aside(fitted_in), missing, of, advance, share_out)


def cluster_live(
    maps: LiveMaps,
    reduced: dict[str, Reduced],
    folder: Path | None,
    *,
    n_samples: int,
    settings: config.Settings,
    of: str = "",
    advance: Advance = lambda n=1, /: None,
    workers: Workers | None = None,
) -> Fits:
    """Second half of :func:`fit_live`: the mixtures of what the first half returned.

    Parameters
    ----------
    maps, folder, n_samples, settings, of, advance
        As of :func:`fit_live`.
    reduced : dict of layer to Reduced
    workers : Workers, optional
        Who fits, and keeps the fits in the folder, in place of this process.
    """
    fitted_in, places = _fitted_in(folder, settings, n_samples), _places(maps, n_samples)
    missing = _missing(places, fitted_in)
    advance(sum(block.n_fits for _, block in places) - sum(block.n_fits for _, block in missing))
    fitted: list[tuple[_Place, LayerFits]] = []
    sweeps = list(_sweeps(missing, n_samples, settings))
    if workers is not None and fitted_in is not None:
        own = config.of_a_worker(settings)
        calls = [partial(_fit_and_keep, fitted_in, together, _parts(reduced, together), own, of) for together in sweeps]
        for number, _ in workers.do(calls):
            advance(sum(block.n_fits for _, block in sweeps[number]))
        sweeps = []
    for together in sweeps:
        parts = _parts(reduced, together)
        if fitted_in is None:
            fitted += zip(together, cluster(parts, settings), strict=True)
        else:
            _fit_and_keep(fitted_in, together, parts, settings, of)
        advance(sum(block.n_fits for _, block in together))
    layers = {}
    for layer in maps.layers:
        if fitted_in is None:
            layers[layer] = join((block.batches, fits) for (of, block), fits in fitted if of == layer)
        else:
            layers[layer] = completed(folder_of(fitted_in, layer), [block for of, block in places if of == layer])
    forget_reduced(folder, n_samples, settings)
    return Fits(layers, settings.gmm.k_min, settings.gmm.k_max, tapped_of(maps))


def _parts(reduced: dict[str, Reduced], places: list[_Place]) -> list[Reduced]:
    return [reduced[layer].part(block.filters, block.batches) for layer, block in places]


def _fit_and_keep(
    fitted_in: Path, places: list[_Place], parts: list[Reduced], settings: config.Settings, of: str
) -> None:
    """Mixtures of some blocks, each kept in its file."""
    for place, fits in zip(places, cluster(parts, settings), strict=True):
        file = _file(fitted_in, place)
        fits.save(file, engine=gpu.resolved(settings.engine.name), of=mark(of, file, place[0], fits))


def forget_reduced(folder: Path | None, n_samples: int, settings: config.Settings) -> None:
    """Remove what an interrupted :func:`fit_live` had reduced: once the fits are there, nobody needs it."""
    if aside := _aside(_fitted_in(folder, settings, n_samples)):
        remove_folder(aside)


def _fitted_in(folder: Path | None, settings: config.Settings, n_samples: int) -> Path | None:
    return None if folder is None else folder / fit_key(settings, n_samples)


def _aside(fitted_in: Path | None) -> Path | None:
    """Folder of the scores of rounds that are done, until the last mixture is fitted."""
    return None if fitted_in is None else fitted_in.with_name(f"{fitted_in.name}.scores")


def _places(maps: LiveMaps, n_samples: int) -> list[_Place]:
    return [(layer, block) for layer in maps.layers for block in blocks_of(maps, layer, n_samples)]


def _missing(places: list[_Place], fitted_in: Path | None) -> list[_Place]:
    return [place for place in places if fitted_in is None or not _file(fitted_in, place).exists()]


def _file(fitted_in: Path, place: _Place) -> Path:
    layer, block = place
    return block.file(folder_of(fitted_in, layer))


def _sweeps(places: list[_Place], n_samples: int, settings: config.Settings) -> Iterator[list[_Place]]:
    """Divide blocks, in their order, into what one call fits."""
    a_fit = settings.gmm.repeats * n_samples * settings.pca.dims * 4
    most = min(PROBLEMS_PER_SWEEP // settings.gmm.repeats, BYTES_PER_SWEEP // a_fit)
    together: list[_Place] = []
    for place in places:
        if together and sum(block.n_fits for _, block in [*together, place]) > most:
            yield together
            together = []
        together.append(place)
    if together:
        yield together


def _as_taken(maps: Tensor, engine: config.Engine) -> Any:
    """Maps as an engine takes them: where they lie on a device, and it works there, they stay."""
    stay = gpu.is_device_array(maps) and gpu.resolved(engine.name) == "cuda"
    return maps if stay else maps.cpu().numpy()


_Done = Callable[[range, list[Reduced]], None]
"""Told of each round whose maps are reduced."""


def _here(maps: LiveMaps, settings: config.Settings, rounds: list[range], done: _Done) -> None:
    """Run the network on rounds, one after the other, and reduce their maps."""
    in_hand: list[Reduced] = []

    def finished(_: int = 1, /) -> None:
        done(in_hand[0].batches, in_hand.copy())
        in_hand.clear()

    with closing(maps.take(rounds, finished)) as taken:
        for held in taken:
            given = _as_taken(held.maps, settings.engine)
            in_hand.append(reduce_maps(given, held.layer, held.filters, held.batches, settings))


def _by_workers(
    workers: Workers, elsewhere: Callable[[], LiveMaps], settings: config.Settings, rounds: list[range], done: _Done
) -> None:
    """Have the network run on rounds, and their maps reduced, by workers."""
    for number, parts in workers.do([partial(_reduce_round, elsewhere, settings, batches) for batches in rounds]):
        done(rounds[number], parts)


def _reduce_round(elsewhere: Callable[[], LiveMaps], settings: config.Settings, batches: range) -> list[Reduced]:
    reduced: list[Reduced] = []
    _here(elsewhere(), settings, [batches], lambda _, parts: reduced.extend(parts))
    return reduced


def _reduced(
    maps: LiveMaps,
    aside: Path | None,
    missing: list[_Place],
    of: str,
    advance: Advance,
    take: Callable[[list[range], _Done], None],
) -> dict[str, Reduced]:
    """PCA of the layers and batches that fits are missing of; what is kept in ``aside`` is read."""
    found: dict[range, list[Reduced]] = {}
    due = []
    for batches in maps.rounds:
        wanted = any(set(batches) & set(block.batches) for _, block in missing)
        read = _read(aside, maps, batches, of) if wanted and aside else None
        if read:
            found[batches] = read
        if (wanted and not read) or not maps.is_kept(batches):
            due.append(batches)
        else:
            advance(len(batches))

    def done(batches: range, parts: list[Reduced]) -> None:
        found[batches] = parts
        if aside is not None:
            _write(aside, batches, parts, of)
        advance(len(batches))

    take(due, done)
    layers: dict[str, list[Reduced]] = {}
    for parts in found.values():
        for part in parts:
            layers.setdefault(part.layer, []).append(part)
    return {layer: _joined(parts, maps.layers[layer].n_filters) for layer, parts in layers.items()}


def _joined(parts: list[Reduced], n_filters: int) -> Reduced:
    """Parts of one layer, groups of filters within rounds of batches, as one; batches that are not there are NaN."""
    n_batches = max(part.batches.stop for part in parts)
    arrays: dict[str, NDArray] = {}
    for name in REDUCED:
        kind = np.result_type(*(part.arrays[name].dtype for part in parts))
        arrays[name] = np.full((n_filters, n_batches, *parts[0].arrays[name].shape[2:]), np.nan, kind)
        for part in parts:
            rows = slice(part.filters.start, part.filters.stop)
            arrays[name][rows, part.batches.start : part.batches.stop] = part.arrays[name]
    return Reduced(parts[0].layer, range(n_filters), range(n_batches), **arrays)


def _write(aside: Path, batches: range, parts: list[Reduced], of: str) -> None:
    """Keep what a round was reduced to, with what its parts are."""
    arrays = {f"{number}.{name}": array for number, part in enumerate(parts) for name, array in part.arrays.items()}
    filters = np.array([[part.filters.start, part.filters.stop] for part in parts])
    layers = np.array([part.layer for part in parts])
    write_arrays(aside / _name(batches), arrays | {"filters": filters, "layers": layers, "of": np.array(of)})


def _read(aside: Path, maps: LiveMaps, batches: range, of: str) -> list[Reduced]:
    """What a round was reduced to; nothing where that is not there, not whole, or of other maps or layers."""
    path = aside / _name(batches)
    if not path.exists():
        return []
    try:
        with arrays_in(path, remedy="delete it") as arrays:
            if str(arrays["of"]) != of:
                return []
            parts = [
                Reduced(str(layer), range(*ends), batches, **{name: arrays[f"{number}.{name}"] for name in REDUCED})
                for number, (layer, ends) in enumerate(zip(arrays["layers"], arrays["filters"].tolist(), strict=True))
            ]
    except StoreError:
        return []
    there = {(part.layer, filter) for part in parts for filter in part.filters}
    wanted = {(layer, filter) for layer, tap in maps.layers.items() for filter in range(tap.n_filters)}
    return parts if there == wanted else []


def _name(batches: range) -> str:
    return f"{batches.start:04d}-{batches.stop:04d}.npz"
