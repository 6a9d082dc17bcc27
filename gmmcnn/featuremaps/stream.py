"""Stream feature maps from a model to a store, and from a store to whoever fits them.

The unit of the stream is a block of samples: one forward pass, one shard a layer, one completion record. A block is
as large as the probe batch where that fits, and smaller where the largest tensor of the forward pass would pass
:data:`BYTES_PER_BLOCK`. Each layer's maps are handed to one background writer as they are computed and at most two
wait there, so memory depends on that bound alone, not on the number of samples or the depth of the network. Blocks
are the same however often an extraction is interrupted, so a resumed store equals an uninterrupted one bit for bit.
A block of one sample goes through the network twice at once, so that it equals its part of a larger block.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor, nn

from gmmcnn.config import Extract
from gmmcnn.data.samples import Given, Samples
from gmmcnn.errors import CaptureError, DataError, StoreError, StoreNotFoundError
from gmmcnn.featuremaps.capture import capture, find_taps, require_finite, unwrapped
from gmmcnn.featuremaps.foreign import ForeignMaps, open_maps
from gmmcnn.featuremaps.memory import Maps, MapsInMemory
from gmmcnn.featuremaps.store import ALL, ActivationStore, discard
from gmmcnn.featuremaps.taps import Tap, Taps
from gmmcnn.files import digest_tensors
from gmmcnn.hardware.arrays import Loss, float_type
from gmmcnn.hardware.device import device_of, host_copy, uploaded
from gmmcnn.progress import Advance

BYTES_PER_BLOCK = 64 << 20
"""Largest tensor of one forward pass, and so the largest block of one layer."""


def extract(
    model: nn.Module,
    images: Given,
    path: str | os.PathLike[str],
    *,
    tap: str = Extract.tap,
    layers: list[str] | None = None,
    dtype: str = Extract.dtype,
    forward_samples: int = Extract.forward_samples,
    probe_samples: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    advance: Advance | None = None,
    taps: Taps | None = None,
) -> ActivationStore:
    """Feature maps of all images, in a store.

    A complete store of the same model, images, layers and attributes at ``path`` is reused, an incomplete one is
    resumed.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode; comes back as it was.
    images : Tensor, ndarray, Dataset or DataLoader
        Scaled as the model was trained on them; the first element where a data set gives tuples. See
        :class:`~gmmcnn.data.samples.Samples`.
    path : path
        Folder of the store.
    tap, layers
        As in :func:`~gmmcnn.featuremaps.capture.find_taps`.
    dtype : {"float32", "float16"}
        Of the stored values.
    forward_samples : int
        Samples in one forward pass, at most.
    probe_samples : int, optional
        Samples that will be read together: N, the size of a probe batch; None takes all. Blocks are this size, or
        equal parts of it where it is too large.
    attributes : mapping, optional
        JSON kept in the store: model, checkpoint, probe samples.
    overwrite : bool
        Replace a store of something else at ``path``.
    advance : callable, optional
        Called with the number of samples just finished.
    taps : Taps, optional
        What :func:`~gmmcnn.featuremaps.capture.find_taps` found with ``tap`` and ``layers``; None finds it.

    Raises
    ------
    CaptureError
        No layer can be analysed, or a map holds NaN or infinite values.
    StoreError
        ``path`` holds something else.
    """
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws from it, and a data set may
        source = Samples(images, "images")
        taps = taps or find_taps(model, source.take(range(1))[0], tap=tap, layers=layers)
        require_analysed(taps)
        store = store_for(
            model, source, taps, path, dtype=dtype, forward_samples=forward_samples, probe_samples=probe_samples,
            attributes=attributes, overwrite=overwrite,
        )  # fmt: skip
        _fill(store, model, taps, source, advance or (lambda n=1, /: None))
    return ActivationStore.open(path)


def store_for(
    model: nn.Module,
    images: Samples,
    taps: Taps,
    path: str | os.PathLike[str],
    *,
    dtype: str,
    forward_samples: int,
    probe_samples: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ActivationStore:
    """The store that :func:`extract` fills: what is there of the same maps, or a new one; arguments as there."""
    origin = {
        "tap": taps.tap,
        "model_sha256": fingerprint(model),
        "images_sha256": images.fingerprint(),
        "skipped": [asdict(skipped) for skipped in taps.skipped],
    }
    if taps.autocast:
        origin["autocast"] = taps.autocast
    contents: _Contents = {
        "layers": taps.analysed,
        "n_samples": len(images),
        "dtype": dtype,
        "attributes": _as_json({**(attributes or {}), "extraction": origin}),
    }
    block = block_samples(taps, probe_samples or len(images), len(images), forward_samples)
    return _open_or_create(Path(path), contents, block, overwrite=overwrite)


def feature_maps(
    model: nn.Module,
    images: Tensor,
    taps: Taps,
    *,
    dtype: str = Extract.dtype,
    forward_samples: int = Extract.forward_samples,
    probe_samples: int | None = None,
    advance: Advance = lambda n=1, /: None,
) -> MapsInMemory:
    """Feature maps of all images, in memory: what :func:`extract` would store.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode; comes back as it was.
    images : (N, …) Tensor
    taps : Taps
        What :func:`~gmmcnn.featuremaps.capture.find_taps` found for this model.
    dtype, forward_samples, probe_samples, advance
        As in :func:`extract`.

    Raises
    ------
    CaptureError
        A map holds NaN or infinite values, or values that do not fit into ``dtype``.
    """
    shapes = {tap.layer: (tap.n_filters, len(images), tap.height, tap.width) for tap in taps.analysed}
    gathered = {layer: torch.empty(shape) for layer, shape in shapes.items()}
    size = block_samples(taps, probe_samples or len(images), len(images), forward_samples)
    for start in range(0, len(images), size):
        samples = slice(start, start + size)

        def gather(layer: str, by_filter: Tensor, samples: slice = samples) -> None:
            stored = by_filter.to(getattr(torch, dtype))
            require_fitting(layer, stored, samples.start)
            gathered[layer][:, samples] = stored

        capture_by_filter(model, images[samples], taps, gather, start)
        advance(len(images[samples]))
    by_layer = {layer: maps.flatten(2).numpy() for layer, maps in gathered.items()}
    return MapsInMemory({tap.layer: tap for tap in taps.analysed}, len(images), by_layer)


def require_fitting(layer: str, stored: Tensor, sample_offset: int, first_filter: int = 0) -> None:
    """Raise CaptureError if a value of finite maps (F, N, H, W) became infinite in the type that they have now."""
    if stored.dtype == torch.float16 and not torch.isfinite(stored).all():
        channel, sample, *_ = torch.nonzero(~torch.isfinite(stored))[0].tolist()
        raise CaptureError(
            f"layer {layer!r}, filter {channel + first_filter}, sample {sample + sample_offset}: the feature map does "
            "not fit into float16; expected dtype=float32"
        )


def require_analysed(taps: Taps) -> None:
    """Raise CaptureError with the reasons if there is no layer to analyse."""
    if not taps.analysed:
        reasons = "; ".join(f"{skipped.layer}: {skipped.reason}" for skipped in taps.skipped)
        raise CaptureError(f"no layer can be analysed: {reasons}")


def skipped_layers(store: ActivationStore) -> list[tuple[str, str]]:
    """Convolutions that :func:`extract` left out of a store, each with the reason."""
    extraction = store.attributes.get("extraction", {})
    return [(entry["layer"], entry["reason"]) for entry in extraction.get("skipped", [])]


def filter_blocks(
    store: ActivationStore, layer: str, *, samples: slice = ALL, bytes_per_block: int = BYTES_PER_BLOCK
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Read a layer by blocks of filters; the next block is read while the caller works on this one.

    Yields
    ------
    filters : slice
    maps : (F, N, P) float32
        At most ``bytes_per_block``, but at least one filter.
    """
    store.tap(layer)  # raises the error that names a layer that is none of the store's
    blocks = filter_slices(store, layer, samples=samples, bytes_per_block=bytes_per_block)
    yield from zip(blocks, read_ahead(store, layer, [(block, samples) for block in blocks]), strict=True)


def filter_slices(
    store: Maps, layer: str, *, samples: slice = ALL, bytes_per_block: int = BYTES_PER_BLOCK
) -> list[slice]:
    """Divide the filters of a layer into blocks whose maps fill at most ``bytes_per_block``, or hold one filter."""
    n_filters, height, width = store.layers[layer].shape
    n_samples = len(range(*samples.indices(store.n_samples)))
    step = max(1, bytes_per_block // max(1, n_samples * height * width * 4))
    return [slice(start, min(start + step, n_filters)) for start in range(0, n_filters, step)]


def read_ahead(
    store: ActivationStore, layer: str, parts: Sequence[tuple[slice, slice]]
) -> Iterator[NDArray[np.float32]]:
    """Read one part (filters, samples) of a layer after the other, each while the caller works on the one before.

    Parts of more than ``BYTES_PER_BLOCK`` are read when it is their turn: two of them need not be in memory at once.

    Yields
    ------
    (F, N, P) float32
    """
    if any(_part_bytes(store, layer, part) > BYTES_PER_BLOCK for part in parts):
        yield from (store.read(layer, *part) for part in parts)
        return
    with ThreadPoolExecutor(1, "gmmcnn-reader") as reader:
        ahead = None
        for part in (*parts, None):
            ready, ahead = ahead, reader.submit(store.read, layer, *part) if part else None
            if ready:
                yield ready.result()


def _part_bytes(store: ActivationStore, layer: str, part: tuple[slice, slice]) -> int:
    filters, samples = part
    n_filters, height, width = store.tap(layer).shape
    return 4 * len(range(*filters.indices(n_filters))) * len(range(*samples.indices(store.n_samples))) * height * width


def import_activations(
    source: str | os.PathLike[str] | zarr.Array,
    path: str | os.PathLike[str],
    *,
    layer: str = "imported",
    dtype: str = Extract.dtype,
    probe_samples: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    advance: Advance | None = None,
) -> ActivationStore:
    """Make a store of one layer from activations that exist already.

    Parameters
    ----------
    source : path or zarr.Array
        A ``.npy`` file or a Zarr array of shape (N, C, H, W) or (N, C, P); the latter is stored with maps of one row.
    path : path
        Folder of the store.
    layer : str
        The name that the layer gets.

    Raises
    ------
    StoreError
        The source is neither, damaged, of another shape or of no real numbers; float32 does not hold the differences
        between its samples; or ``path`` holds a store and ``overwrite`` is not set.
    CaptureError
        A map holds NaN or infinite values.
    """
    given = open_maps(source)
    n_samples, n_filters, height, width = given.shape
    tap = Tap(layer, n_filters, height, width, "imported", kind="imported")
    taps = Taps("imported", (tap,), (), peak_bytes_per_sample=n_filters * height * width * 4)
    if overwrite and Path(path).exists():
        discard(path)
    block = block_samples(taps, probe_samples or n_samples, n_samples, n_samples)
    store = ActivationStore.create(
        path, [tap], n_samples, block_samples=block, dtype=dtype, attributes=_as_json(attributes or {})
    )
    loss = Loss()
    for index in range(store.n_blocks):
        samples = store.block(index)
        maps = _narrowed(given, samples, loss, last=index == store.n_blocks - 1)
        require_finite(layer, torch.from_numpy(maps), samples.start)
        store.write(layer, index, np.ascontiguousarray(maps.swapaxes(0, 1)))
        store.commit(index)
        if advance:
            advance(_length(samples))
    return ActivationStore.open(path)


def _narrowed(given: ForeignMaps, samples: slice, loss: Loss, *, last: bool) -> NDArray[np.float32]:
    """Maps (N, C, H, W) of some samples as float32; StoreError, with the last ones, if that loses what counts."""
    values = given.read(samples)
    with np.errstate(over="ignore", under="ignore"):
        maps = values.astype(np.float32, copy=False)
    if float_type(values.dtype) == np.float32:
        return maps
    loss.add(values.swapaxes(0, 1), maps.swapaxes(0, 1))
    try:
        loss.require_in_range(given.name, np.float32)
        if last:
            loss.require_small(given.name, np.float32)
    except DataError as error:
        raise StoreError(str(error)) from None
    return maps


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, with their names, types and shapes."""
    state = unwrapped(model).state_dict()
    return digest_tensors({name: value for name, value in state.items() if isinstance(value, Tensor)})


class Writer:
    """One background thread that writes in the order of the calls; at most ``waiting`` writes wait."""

    def __init__(self, waiting: int = 2) -> None:
        self._thread = ThreadPoolExecutor(1, "gmmcnn-writer")
        self._waiting = waiting
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)  # what waits is finished in any case: blocks that are complete shall count
        if error is None:
            self._collect(0)

    def __call__(self, work: Callable[..., None], *args: Any) -> None:
        """Do ``work(*args)`` when all before it is done; waits, and raises what went wrong, while too many wait."""
        self._collect(self._waiting)
        self._pending.append(self._thread.submit(work, *args))

    def _collect(self, waiting: int) -> None:
        """Wait until no more than ``waiting`` writes are left, and raise what went wrong in the others."""
        while len(self._pending) > waiting:
            self._pending.popleft().result()


def _fill(store: ActivationStore, model: nn.Module, taps: Taps, images: Samples, advance: Advance) -> None:
    """Write the blocks that are missing."""
    missing = store.missing_blocks
    if not missing:
        advance(store.n_samples)
        return
    store.remove_orphans()
    advance(store.n_samples - sum(_length(store.block(index)) for index in missing))
    with Writer() as writer:
        batches = ((_taken(images, store.block(block)),) for block in missing)
        for block, (batch,) in zip(missing, uploaded(batches, device_of(model)), strict=True):

            def write(layer: str, by_filter: Tensor, block: int = block) -> None:
                copy = host_copy(by_filter)  # now: the model's next operation may overwrite the tensor
                writer(lambda: store.write(layer, block, copy()))

            capture_by_filter(model, batch, taps, write, store.block(block).start)
            writer(store.commit, block)
            advance(len(batch))


def _taken(images: Samples, samples: slice) -> Tensor:
    batch, _ = images.take(range(samples.start, samples.stop))
    return batch


def capture_by_filter(
    model: nn.Module, images: Tensor, taps: Taps, consume: Callable[[str, Tensor], None], sample_offset: int
) -> None:
    """:func:`capture`, with maps as (F, N, H, W)."""
    n_samples = len(images)
    if n_samples == 1:  # torch computes a batch of one by other algorithms, with other last bits
        images = torch.cat([images, images])

    def turn(layer: str, maps: Tensor) -> None:
        consume(layer, maps[:n_samples].transpose(0, 1))

    capture(model, images, taps, turn, sample_offset=sample_offset)


def _open_or_create(path: Path, contents: "_Contents", block_samples: int, *, overwrite: bool) -> ActivationStore:
    """The store at ``path`` if it holds (part of) the same, else a new one.

    A store that holds nothing yet is made anew as well: no record says whether its descriptions are sound.
    """
    try:
        store = ActivationStore.open(path, partial=True)
    except StoreNotFoundError:
        return ActivationStore.create(path, block_samples=block_samples, **contents)
    except StoreError:
        if not overwrite:
            raise
        differences, begun = ["format"], True
    else:
        found: _Contents = {
            "layers": tuple(store.layers.values()),
            "n_samples": store.n_samples,
            "dtype": str(store.dtype),
            "attributes": store.attributes,
        }
        differences = _differences(found, contents)
        # A block is a forward pass, so an incomplete store has to keep its own; a complete one's do not matter.
        if store.block_samples != block_samples and store.missing_blocks:
            differences.append("block_samples")
        begun = len(store.missing_blocks) < store.n_blocks
    if not differences and begun:
        return store
    if differences and not overwrite:
        raise StoreError(
            f"{path}: holds other feature maps (other {', '.join(differences)}); overwrite it or choose another path"
        )
    discard(path)
    return ActivationStore.create(path, block_samples=block_samples, **contents)


class _Contents(TypedDict):
    """What makes two stores the same."""

    layers: tuple[Tap, ...]
    n_samples: int
    dtype: str
    attributes: dict[str, Any]


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the entries that differ."""
    names: list[str] = []
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        one, other = found.get(key), wanted.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            names += _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            names.append(prefix + key)
    return names


def block_samples(taps: Taps, probe_samples: int, n_samples: int, forward_samples: int) -> int:
    """Samples of one forward pass: equal parts of a probe batch, each small enough."""
    probe_samples = min(probe_samples, n_samples)
    most = max(1, min(forward_samples, BYTES_PER_BLOCK // taps.peak_bytes_per_sample))
    return math.ceil(probe_samples / math.ceil(probe_samples / most))


def importable_samples(source: str | os.PathLike[str]) -> int:
    """Samples that :func:`import_activations` would take from a source. StoreError if it would refuse it."""
    return open_maps(source).shape[0]


def _as_json(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as they come back from a store, so that they compare equal."""
    try:
        return json.loads(json.dumps(dict(attributes), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(f"attributes: expected what JSON can hold: {error}") from error


def _length(samples: slice) -> int:
    return samples.stop - samples.start
