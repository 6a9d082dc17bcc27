"""Feature maps on disk: a Zarr 3 store that is either complete or says what is missing.

Schema, version 1::

    PATH/maps/                  Zarr group; its attributes hold format, version, n_samples, block_samples,
                                dtype, layers (name, shape, description of each) and the writer's attributes
    PATH/maps/003.layer1.conv1  one array a layer: (C filters, N samples, H, W), float32 or float16
    PATH/complete/000012.json   one completion record a block of samples:
                                {"block", "samples", "shards": {layer: {"bytes", "crc32"}},
                                "descriptions": {file: crc32}}, of the zarr.json of the group and of each array

An array's name is the layer's position and its name with unusual characters replaced; the group's ``layers`` lists
the true names in the same order.

The samples come in blocks of ``block_samples``: what one forward pass makes. **A block of one layer is one shard** with
all filters, because a shard is what Zarr writes at once and whole. It is **chunked by filter**, because a fit reads one
filter over all samples; filters with small maps share a chunk (:data:`BYTES_PER_CHUNK`), which makes a layer three to
five times as fast to write and read, and a single filter hardly slower. Chunks are compressed with LZ4 in Blosc,
without shuffling (the maps of rectified layers repeat whole values), and end in a CRC-32C. They are written by Zarr
itself, and read by the zarrs pipeline, which decodes straight into the result: twice to three times as fast, and with
no second copy of what may be hundreds of megabytes. zarrs does not write here, since it does not write whole files.

The fill value is NaN, which no stored map holds: a missing part reads as NaN and is found out. Zarr itself would fill
it in without an error, so completeness has its own record: a block counts once all its shards are on disk (``fsync``)
and its record has been written aside and renamed. A writer killed at any moment leaves a store that resumes at the
block in hand.
"""

import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from gmmcnn.errors import StoreError, StoreNotFoundError, one_line
from gmmcnn.featuremaps.bounded import Layout
from gmmcnn.featuremaps.taps import Tap
from gmmcnn.files import (
    PARTIAL,
    Kinds,
    aside,
    crc32,
    make_folder,
    naming,
    read_json,
    read_record,
    remove_what_was_left,
    sync,
    sync_tree,
    without_unusual,
    write_record,
)

FORMAT, VERSION = "gmmcnn feature maps", 1
DTYPES = ("float32", "float16")
ALL = slice(None)

_REMADE = "gmmcnn task=extract run=FOLDER makes it"
_REMEDY = f"gmmcnn task=verify run=FOLDER names what is damaged, {_REMADE.removeprefix('gmmcnn ')} again"

COMPRESSORS = (BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle"),)
"""Of new stores: least processor time to write and read, of what also saves bytes (benchmarks/bench_codec.py). To
shuffle bytes, which brings like ones together, enlarges rectified maps: it takes their runs of zeros apart."""

_READING = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
_opening = threading.Lock()  # Zarr's choice of a pipeline is global; no writer may be opened during a reader's choice

MOST_BLOCKS = 10**6
"""As many as completion records have names."""
BYTES_PER_CHUNK = 1 << 18
"""Maps of several filters share a chunk up to this size: smaller chunks cost Zarr more time than their content."""


class ActivationStore:
    """Feature maps of several layers over the same samples; made by :meth:`create` or :meth:`open`.

    Attributes
    ----------
    path : Path
    layers : dict of str to Tap
        Layer name → shape and description, in the model's order.
    n_samples : int
    block_samples : int
        Samples in one block; the last one may have fewer.
    dtype : np.dtype
        Of the stored values; :meth:`read` gives float32 always.
    attributes : dict
        The writer's own JSON: model, checkpoint, probe samples.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self._pipeline = {} if writable else _READING
        self._group = zarr.open_group(path / "maps", mode="r+" if writable else "r")
        header: dict[str, Any] = dict(self._group.attrs)
        _require_sound(header)
        self.layers = {entry["layer"]: Tap(**entry) for entry in header["layers"]}
        self.n_samples: int = header["n_samples"]
        self.block_samples: int = header["block_samples"]
        self.dtype = np.dtype(header["dtype"])
        self.attributes: dict[str, Any] = header["attributes"]
        self._arrays: dict[str, zarr.Array] = {}
        self._bounded: set[Path] = set()
        self._written: dict[
            int, dict[str, dict[str, Any]]
        ] = {}  # block → layer → size and checksum, until the block is committed

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        layers: Sequence[Tap],
        n_samples: int,
        *,
        block_samples: int,
        dtype: str = "float32",
        attributes: Mapping[str, Any] | None = None,
    ) -> "ActivationStore":
        """Make an empty store; it appears at ``path`` whole, by a rename.

        Raises
        ------
        StoreError
            Something is at ``path`` already, no layer is given, or a size or the dtype is impossible.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path}: already exists; choose another path or ask to overwrite it")
        if not layers or n_samples < 1 or block_samples < 1:
            sizes = f"{len(layers)} layers, {n_samples} samples, {block_samples} a block"
            raise StoreError(f"{path}: a store needs at least one of each, got {sizes}")
        if dtype not in DTYPES:
            raise StoreError(f"{path}: dtype={dtype}: expected one of {', '.join(DTYPES)}")
        draft = aside(path.absolute())
        make_folder(path.absolute().parent)
        (draft / "complete").mkdir(parents=True)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "n_samples": n_samples,
            "block_samples": block_samples,
            "dtype": dtype,
            "layers": [asdict(tap) for tap in layers],
            "attributes": dict(attributes or {}),
        }
        group = zarr.create_group(draft / "maps", attributes=header)
        for index, tap in enumerate(layers):
            block = min(block_samples, n_samples)
            group.create_array(
                _array_name(index, tap.layer),
                shape=(tap.n_filters, n_samples, tap.height, tap.width),
                shards=(tap.n_filters, block, tap.height, tap.width),
                chunks=(_filters_per_chunk(tap, block), block, tap.height, tap.width),
                dtype=dtype,
                compressors=[*COMPRESSORS, Crc32cCodec()],
                fill_value=np.nan,
                chunk_key_encoding={"name": "default", "separator": "."},  # all shards of a layer in one folder
                dimension_names=("filter", "sample", "row", "column"),
            )
        sync_tree(draft)
        draft.rename(path)
        remove_what_was_left(path.absolute())
        sync(path.absolute().parent)
        return cls(path, writable=True)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, partial: bool = False) -> "ActivationStore":
        """Open a complete store to read, or with ``partial`` whatever is there, to resume or verify it.

        Raises
        ------
        StoreNotFoundError
            There is no store at ``path``.
        StoreError
            It is no store of this version, its header is damaged, or (unless ``partial``) blocks are missing or not as
            recorded; all are named.
        """
        path = Path(path)
        header = read_json(path / "maps" / "zarr.json").get("attributes", {})
        if not header:
            raise StoreNotFoundError(f"{path}: there is no store of feature maps; {_REMADE}")
        if (found := (header.get("format"), header.get("version"))) != (FORMAT, VERSION):
            raise StoreError(f"{path}: expected a store of {(FORMAT, VERSION)}, found {found}; {_REMADE}")
        try:
            store = cls(path, writable=partial)
        except (ValueError, TypeError, LookupError) as error:
            raise StoreError(f"{path}: its header maps/zarr.json is damaged ({one_line(error)}); {_REMADE}") from error
        if not store._as_described("maps/zarr.json"):
            raise StoreError(f"{path}: its header maps/zarr.json is damaged (not as it was written); {_REMADE}")
        if not partial and (problems := list(store._problems(checksums=False))):
            raise StoreError(f"{path}: incomplete: {_some(problems)}; {_REMEDY}")
        return store

    @property
    def n_blocks(self) -> int:
        """Number of blocks of samples."""
        return -(-self.n_samples // self.block_samples)

    @property
    def nbytes(self) -> int:
        """Bytes of all maps, uncompressed."""
        return self.n_samples * self.dtype.itemsize * sum(math.prod(tap.shape) for tap in self.layers.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of all recorded shards on disk."""
        records = (self._record(block) for block in range(self.n_blocks))
        return sum(shard["bytes"] for record in records if record for shard in record["shards"].values())

    @property
    def missing_blocks(self) -> list[int]:
        """Blocks without a completion record, or whose files are not of the recorded size."""
        return [block for block in range(self.n_blocks) if any(self._block_problems(block, checksums=False))]

    def tap(self, layer: str) -> Tap:
        """Shape and description of a layer's maps. StoreError if there is no layer of that name."""
        if layer not in self.layers:
            near = get_close_matches(layer, self.layers, n=1, cutoff=0) or list(self.layers)
            raise StoreError(f"{self.path}: no layer {layer!r}; the nearest is {near[0]!r}")
        return self.layers[layer]

    def block(self, index: int) -> slice:
        """Samples of one block."""
        start = index * self.block_samples
        return slice(start, min(start + self.block_samples, self.n_samples))

    def write(self, layer: str, block: int, maps: NDArray) -> None:
        """Write one block of one layer and force it to disk; it counts after :meth:`commit`.

        Parameters
        ----------
        maps : (C, samples of the block, H, W) float
            Converted to the store's dtype.

        Raises
        ------
        StoreError
            Wrong shape, or a value that is not finite in the store's dtype: layer, filter and sample are named.
        """
        array, samples = self._array(layer), self.block(block)
        expected = (array.shape[0], samples.stop - samples.start, *array.shape[2:])
        if maps.shape != expected:
            raise StoreError(
                f"{self.path}: layer {layer!r}, block {block}: expected maps of shape {expected}, got {maps.shape}"
            )
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(maps, self.dtype)
        if not (np.isfinite(stored.min()) and np.isfinite(stored.max())):
            channel, sample, *_ = np.argwhere(~np.isfinite(stored))[0].tolist()
            raise StoreError(
                f"{self.path}: layer {layer!r}, filter {channel}, sample {samples.start + sample}: "
                f"the feature map does not fit into {self.dtype}"
            )
        shard = self._shard(layer, block)
        self._record_path(block).unlink(missing_ok=True)  # a record never outlives its shards
        shard.unlink(missing_ok=True)  # else Zarr would read a damaged one before it writes the rest of it
        with naming(shard):
            array[:, samples] = stored
            sync(shard)
            sync(shard.parent)
        self._written.setdefault(block, {})[layer] = {"bytes": shard.stat().st_size, "crc32": crc32(shard)}

    def commit(self, block: int) -> None:
        """Record that a block is complete; StoreError if a layer of it has not been written yet."""
        shards = self._written.pop(block, {})
        if missing := self.layers.keys() - shards.keys():
            raise StoreError(f"{self.path}: block {block} has not been written for {_some(sorted(missing))}")
        samples = self.block(block)
        record = {"block": block, "samples": [samples.start, samples.stop], "shards": shards}
        write_record(self._record_path(block), record | {"descriptions": self._descriptions()})

    def read(self, layer: str, filters: slice = ALL, samples: slice = ALL) -> NDArray[np.float32]:
        """Maps of some filters over some samples.

        Returns
        -------
        (F, N, P) float32
            P = H·W pixels, row by row.

        Raises
        ------
        StoreError
            No layer of that name, or a part is missing or corrupted.
        """
        array = self._array(layer)
        try:
            self._require_bounded(layer, array, samples)
            maps = np.asarray(array[filters, samples])
        except (ValueError, RuntimeError, OSError) as error:
            raise StoreError(f"{self.path}: layer {layer!r}: corrupted ({one_line(error)}); {_REMEDY}") from error
        if maps.size and np.isnan(maps.min()):
            raise StoreError(f"{self.path}: layer {layer!r}: maps are missing; {_REMEDY}")
        return maps.reshape(*maps.shape[:2], math.prod(maps.shape[2:])).astype(np.float32, copy=False)

    def _require_bounded(self, layer: str, array: zarr.Array, samples: slice) -> None:
        """Raise ValueError if a chunk would be larger, decoded, than it may be."""
        start, stop, _ = samples.indices(self.n_samples)
        layout = Layout.of(array.metadata.to_dict())
        for block in range(start // self.block_samples, -(-stop // self.block_samples)):
            shard = self._shard(layer, block)
            if shard not in self._bounded and shard.is_file():
                with shard.open("rb") as file:
                    layout.require_bounded(memoryview(mmap(file.fileno(), 0, access=ACCESS_READ)), shard.name)
                self._bounded.add(shard)

    def verify(self) -> list[str]:
        """Read every file and compare it with its record.

        Returns
        -------
        list of str
            One line for each thing that is wrong: a layer whose description cannot be read, a block without a record,
            a shard that is missing, of another size, or of other content, a file that an interrupted writer left
            behind. Empty for a sound store.
        """
        orphans = [f"{file.relative_to(self.path)}: left behind by an interrupted writer" for file in self._orphans()]
        return [*self._unreadable_layers(), *self._problems(checksums=True), *orphans]

    def forget_damaged(self) -> None:
        """Remove the records of all blocks that are not as recorded: whoever resumes the store writes them anew.

        Raises
        ------
        StoreError
            A layer's description is damaged, so that it cannot be written: the store has to be made again.
        """
        for layer in self.layers:
            self._array(layer)
        for block in range(self.n_blocks):
            if any(self._block_problems(block, checksums=True)):
                self._record_path(block).unlink(missing_ok=True)

    def remove_orphans(self) -> None:
        """Remove what an interrupted writer left behind."""
        for file in self._orphans():
            file.unlink(missing_ok=True)

    def _unreadable_layers(self) -> Iterator[str]:
        for layer in self.layers:
            try:
                self._array(layer)
            except StoreError:
                yield f"layer {layer!r} (maps/{self._array_name(layer)}/zarr.json): damaged"

    def _problems(self, *, checksums: bool) -> Iterator[str]:
        for block in range(self.n_blocks):
            yield from self._block_problems(block, checksums=checksums)

    def _block_problems(self, block: int, *, checksums: bool) -> Iterator[str]:
        record = self._record(block)
        if not record:
            yield f"block {block} of {self.n_blocks} has no completion record"
            return
        for layer in self.layers:
            shard, recorded = self._shard(layer, block), record["shards"].get(layer, {})
            where = f"layer {layer!r}, block {block} ({shard.relative_to(self.path)})"
            if not shard.is_file():
                yield f"{where}: missing"
            elif (size := shard.stat().st_size) != recorded.get("bytes"):
                yield f"{where}: {size} bytes instead of {recorded.get('bytes')}"
            elif checksums and crc32(shard) != recorded.get("crc32"):
                yield f"{where}: corrupted, its checksum differs"

    def _descriptions(self) -> dict[str, str]:
        """Checksum of each file that says what the shards are."""
        names = ["", *(self._array_name(layer) for layer in self.layers)]
        files = [(Path("maps") / name / "zarr.json").as_posix() for name in names]
        return {file: crc32(self.path / file) for file in files}

    def _as_described(self, file: str) -> bool:
        """Whether a description is what completion records say: a changed one may read as well as the true one.

        It counts as such where no block is complete, or all are of before descriptions were recorded.
        """
        recorded = self._recorded_descriptions
        return file not in recorded or crc32(self.path / file) == recorded[file]

    @cached_property
    def _recorded_descriptions(self) -> dict[str, str]:
        records = (self._record(block).get("descriptions") for block in range(self.n_blocks))
        return next(filter(None, records), {})

    def _array(self, layer: str) -> zarr.Array:
        self.tap(layer)
        if layer not in self._arrays:
            self._arrays[layer] = self._open_array(layer)
        return self._arrays[layer]

    def _open_array(self, layer: str) -> zarr.Array:
        name, tap = self._array_name(layer), self.layers[layer]
        try:
            with _opening, zarr.config.set(self._pipeline):
                array = self._group[name]
        except (OSError, ValueError, TypeError, LookupError, AttributeError):  # what Zarr makes of a torn description
            array = None
        expected = ((tap.n_filters, self.n_samples, tap.height, tap.width), self.dtype)
        if (
            not isinstance(array, zarr.Array)
            or (array.shape, array.dtype) != expected
            or not self._as_described(f"maps/{name}/zarr.json")
        ):
            raise StoreError(f"{self.path}: layer {layer!r} (maps/{name}/zarr.json): damaged; {_REMEDY}")
        return array

    def _array_name(self, layer: str) -> str:
        return _array_name(list(self.layers).index(layer), layer)

    def _shard(self, layer: str, block: int) -> Path:
        return self.path / "maps" / self._array_name(layer) / f"c.0.{block}.0.0"

    def _record_path(self, block: int) -> Path:
        return self.path / "complete" / f"{block:06d}.json"

    def _record(self, block: int) -> dict[str, Any]:
        """Completion record of a block, empty if there is none, or a damaged one."""
        try:
            kinds: Kinds = {"shards": {str: dict}, "descriptions": ({str: str}, None)}
            return read_record(self._record_path(block), kinds, remedy=_REMEDY) or {}
        except StoreError:  # as good as none
            return {}

    def _orphans(self) -> list[Path]:
        return sorted(self.path.rglob(f"*{PARTIAL}"))


def discard(path: str | os.PathLike[str]) -> None:
    """Remove a store with all that lies beside its maps; it vanishes from ``path`` at once, by a rename.

    Raises
    ------
    StoreError
        What is at ``path`` is no store, so nothing is removed.
    """
    path = Path(path)
    if not (path / "maps" / "zarr.json").is_file():
        raise StoreError(f"{path}: is no store of feature maps, so it is not overwritten; choose another path")
    rubbish = aside(path.absolute())
    path.rename(rubbish)
    shutil.rmtree(rubbish)


def _require_sound(header: Mapping[str, Any]) -> None:
    """Raise ValueError unless a header's values are of the types, and in the ranges, that were written."""
    sizes = [header["n_samples"], header["block_samples"]]
    for entry in header["layers"]:
        sizes += [entry[name] for name in ("n_filters", "height", "width")]
    if not header["layers"] or not all(isinstance(size, int) and 0 < size < 2**31 for size in sizes):
        raise ValueError(f"sizes {sizes}")
    if not all(isinstance(entry["layer"], str) for entry in header["layers"]):
        raise ValueError("a layer's name is no text")
    if header["dtype"] not in DTYPES or not isinstance(header["attributes"], dict):
        raise ValueError(f"dtype {header['dtype']}")
    if header["n_samples"] > MOST_BLOCKS * header["block_samples"]:
        raise ValueError(f"more than {MOST_BLOCKS} blocks")


def _array_name(index: int, layer: str) -> str:
    return f"{index:03d}." + without_unusual(layer)[:100]


def _filters_per_chunk(tap: Tap, block_samples: int) -> int:
    """Largest divisor of the number of filters with which a chunk stays small."""
    most = max(1, BYTES_PER_CHUNK // (block_samples * tap.height * tap.width * 4))
    return max(n for n in range(1, tap.n_filters + 1) if tap.n_filters % n == 0 and n <= most)


def _some(problems: Sequence[str], shown: int = 3) -> str:
    rest = f" and {len(problems) - shown} more" if len(problems) > shown else ""
    return "; ".join(problems[:shown]) + rest
