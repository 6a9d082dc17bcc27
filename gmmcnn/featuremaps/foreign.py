"""Feature maps that somebody else wrote: a ``.npy`` file or a Zarr array, looked at before anything is decoded.

What stands in a Zarr array's metadata decides which code reads its chunks: a codec for objects runs whatever program a
chunk holds. So the metadata are read as plain JSON first, and only types of real numbers and the codecs listed here go
any further.
"""

import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.storage import LocalStore

from gmmcnn.errors import DataWarning, StoreError, StoreNotFoundError, one_line
from gmmcnn.featuremaps.bounded import BoundedStore, Layout
from gmmcnn.featuremaps.remote import Remote, is_remote
from gmmcnn.files import LARGEST_OF_SMALL, LARGEST_RATIO
from gmmcnn.hardware.arrays import is_real

CODECS = frozenset(
    (
        *("bytes", "endian", "transpose", "sharding_indexed"),  # layout
        *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),  # compression
        *("bitround", "delta", "fixedscaleoffset", "quantize", "shuffle"),  # of numbers
        *("adler32", "crc32", "crc32c", "fletcher32"),  # checksums
    )
)
"""Codecs that decode to numbers and nothing else, by their names in Zarr 2 (``id``) and 3 (``name``)."""

MOST_ASKED_FOR = 10_000
"""Chunks that a server which does not list them is asked for, one by one."""

_EXPECTED = "expected a .npy file of numbers or a Zarr array"


@dataclass(frozen=True)
class ForeignMaps:
    """Feature maps (N, C, H, W) of one layer, read by ranges of samples."""

    name: str
    """For messages."""
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    _part: Callable[[slice], Any]

    def read(self, samples: slice) -> NDArray:
        """Maps (N, C, H, W) of some samples in their own type, native byte order.

        Raises
        ------
        StoreError
            They are damaged, or what lies at a URL cannot be read.
        """
        try:
            part = np.asarray(self._part(samples))
        except StoreError:  # of what is far away, and did not answer
            raise
        except Exception as error:  # whatever a codec raises
            raise StoreError(
                f"{self.name}: samples {samples.start} to {samples.stop - 1} cannot be read, their part of the file is "
                f"damaged ({one_line(error)}); write it again"
            ) from error
        return part.astype(self.dtype, copy=False).reshape(-1, *self.shape[1:])


def open_maps(source: str | os.PathLike[str] | zarr.Array) -> ForeignMaps:
    """Find out what a source of feature maps holds.

    Parameters
    ----------
    source : path or zarr.Array
        A ``.npy`` file or a Zarr array of shape (N, C, H, W) or (N, C, P); the latter at a URL, too.

    Raises
    ------
    StoreNotFoundError
        There is nothing at that path.
    StoreError
        It is something else, of another shape or type, or by a codec that may run code; or none of it is stored.

    Warns
    -----
    DataWarning
        Chunks of a Zarr array are missing: they were never written, or hold nothing but the fill value.
    """
    if isinstance(source, zarr.Array):
        name, part, shape, dtype = _of_zarr(source)
    else:
        name, part, shape, dtype = _of_url(str(source)) if is_remote(str(source)) else _of_path(Path(source))
    if not is_real(dtype):
        raise StoreError(f"{name}: holds values of type {dtype.name}; expected one array of real numbers")
    if len(shape) not in (3, 4) or 0 in shape:
        raise StoreError(f"{name}: expected activations of shape (N, C, H, W) or (N, C, P), got {shape}")
    n_samples, n_filters, *pixels = shape
    height, width = pixels if len(pixels) == 2 else (1, *pixels)
    return ForeignMaps(name, (n_samples, n_filters, height, width), dtype.newbyteorder("="), part)


_Found = tuple[str, Callable[[slice], Any], tuple[int, ...], np.dtype]


def _of_path(path: Path) -> _Found:
    if not path.exists():
        raise StoreNotFoundError(f"{path}: there are no activations; expected a .npy file or a Zarr array")
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_file(path: Path) -> _Found:
    try:
        array = open_memmap(path, mode="r")
    except Exception as error:  # NumPy's parser of the header raises whatever it stumbles on
        raise StoreError(f"{path}: {_EXPECTED}: {one_line(error)}") from error
    # Mapped anew for each block: pages of a mapping that stays open would count as memory in use.
    return str(path), lambda samples: np.array(open_memmap(path, mode="r")[samples]), array.shape, array.dtype


def _of_url(url: str) -> _Found:
    remote = Remote(url)
    return _of_zarr(_opened(remote.store(), remote.metadata(), url), remote)


def _of_folder(path: Path) -> _Found:
    return _of_zarr(_opened(LocalStore(path, read_only=True), _metadata(path), str(path)))


def _opened(store: Store, metadata: Mapping[str, Any], path: str) -> zarr.Array:
    """The array in a store, whose chunks are measured as they are read; StoreError if it is not one to be read."""
    if metadata.get("node_type") == "group":
        raise StoreError(f"{path}: is a Zarr group; give the path of one array in it")
    _require_known_codecs(metadata, path)
    try:
        layout = Layout.of(metadata)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreError(
            f"{path}: {_EXPECTED} whose chunks are measured before they are decoded, found {one_line(error)}; write it "
            "with one compressor, or none"
        ) from error
    try:
        array = zarr.open(BoundedStore(store, layout), mode="r")
    except Exception as error:  # Zarr's parser of metadata raises whatever it stumbles on
        raise StoreError(f"{path}: {_EXPECTED}: {one_line(error)}") from error
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{path}: {_EXPECTED}, got a {type(array).__name__}")
    return array


def _of_zarr(array: zarr.Array, remote: Remote | None = None) -> _Found:
    name = remote.url if remote else str(_folder(array) or array.store_path)
    _require_known_codecs(json.loads(json.dumps(array.metadata.to_dict(), default=str)), name)
    files = _files(array, remote)
    _require_moderate_parts(array, name, files)
    _look_for_chunks(array, name, files)
    if remote is None:
        return name, lambda samples: array[samples], array.shape, array.dtype
    return name, lambda samples: remote.told(lambda: array[samples]), array.shape, array.dtype


def _folder(array: zarr.Array) -> Path | None:
    """Where an array lies, if it lies on disk."""
    store = array.store.within if isinstance(array.store, BoundedStore) else array.store
    return store.root / array.path if isinstance(store, LocalStore) else None


def _metadata(path: Path) -> dict[str, Any]:
    """Metadata of a Zarr array or group; StoreError where there are none."""
    if (path / ".zgroup").is_file() and not (path / "zarr.json").is_file():
        return {"node_type": "group"}
    for name in ("zarr.json", ".zarray"):
        try:
            content = json.loads((path / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{path}: {_EXPECTED}: {name} is damaged ({one_line(error)})") from error
        if isinstance(content, dict):
            return content
    raise StoreError(f"{path}: {_EXPECTED}: there is no zarr.json or .zarray that says what it is")


def _require_known_codecs(metadata: Mapping[str, Any], name: str) -> None:
    for codec in _codecs(metadata):
        if codec.removeprefix("numcodecs.") not in CODECS:
            raise StoreError(
                f"{name}: is encoded by {codec!r}, which is not read from a foreign file: it may run code; "
                f"write the array with zstd, gzip or blosc (read are {', '.join(sorted(CODECS))})"
            )


def _codecs(metadata: Any) -> Iterator[str]:
    """Names of all codecs in the metadata of an array, those within a shard included."""
    if not isinstance(metadata, Mapping):
        return
    for key in ("codecs", "index_codecs", "filters", "compressor", "compressors"):
        value = metadata.get(key)
        for codec in value if isinstance(value, list | tuple) else [value]:
            if codec is None:
                continue
            given = codec if isinstance(codec, Mapping) else {"name": codec}
            yield str(given.get("name", given.get("id")))
            yield from _codecs(given.get("configuration"))


_Files = Mapping[str, int]
"""Name → bytes of what is stored of an array."""


def _files(array: zarr.Array, remote: Remote | None) -> _Files | None:
    """Files of an array, its metadata included where they are listed; None for one in memory."""
    folder = _folder(array)
    if folder:
        return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    if remote is None:
        return None
    try:
        return remote.files()
    except StoreError as error:  # web servers list nothing
        n_chunks = math.prod(_grid(array))
        if n_chunks > MOST_ASKED_FOR:
            raise StoreError(
                f"{remote.url}: has {n_chunks} chunks, and nothing there lists which of them are stored (asked for one "
                f"by one are {MOST_ASKED_FOR}); copy it to a file system"
            ) from error
        return remote.sizes(_chunk_keys(array))


def _grid(array: zarr.Array) -> list[int]:
    """Chunks, or shards where there are some, along each axis."""
    return [math.ceil(size / chunk) for size, chunk in zip(array.shape, array.shards or array.chunks, strict=True)]


def _chunk_keys(array: zarr.Array) -> Iterator[str]:
    return map(array.metadata.encode_chunk_key, itertools.product(*map(range, _grid(array))))


def _require_moderate_parts(array: zarr.Array, name: str, files: _Files | None) -> None:
    """Raise StoreError if a chunk, which is decoded whole, or a sample would take far more memory than there is data.

    Of an array in memory nobody needs to be warned.
    """
    if files is None or not is_real(array.dtype):
        return
    stored = sum(files.values())
    largest = array.dtype.itemsize * max(math.prod(array.chunks), math.prod(array.shape[1:]))
    if largest > max(LARGEST_OF_SMALL, LARGEST_RATIO * stored):
        raise StoreError(
            f"{name}: a chunk or sample of it would take {largest / 2**30:.1f} GiB of memory, and all that is stored "
            f"has {stored / 2**20:.1f} MiB; write it again in smaller chunks"
        )


def _look_for_chunks(array: zarr.Array, name: str, files: _Files | None) -> None:
    """Raise StoreError if no chunk is stored, and warn if some are missing."""
    n_chunks = math.prod(_grid(array))
    n_missing = _n_missing(array, n_chunks, files)
    if n_chunks and n_missing >= n_chunks:
        raise StoreError(f"{name}: none of its {n_chunks} chunks is stored; write it again")
    if n_missing:
        warnings.warn(
            f"{name}: {n_missing} of {n_chunks} chunks are not stored and read as {array.fill_value}; right if they "
            "hold nothing else (Zarr leaves such chunks out), wrong if their writing was interrupted",
            DataWarning,
            stacklevel=2,
        )


def _n_missing(array: zarr.Array, n_chunks: int, files: _Files | None) -> int:
    """Chunks, or shards where there are some, that are not stored; of more chunks than files, their difference."""
    if files is None:
        per_shard = math.prod(array.shards or array.chunks) // math.prod(array.chunks)
        return n_chunks - array.nchunks_initialized // per_shard
    chunks = {file for file in files if not Path(file).name.startswith((".", "zarr.json"))}
    if n_chunks > len(chunks):
        return n_chunks - len(chunks)
    return sum(key not in chunks for key in _chunk_keys(array))
