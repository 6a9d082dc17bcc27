"""How large a compressed chunk becomes, before it is decoded: a few bytes may claim, or hold, gigabytes.

Decoders trust what they are given: they take the memory that a header asks for, or go on as long as there is output.
Here the size is read from the compressed bytes themselves, by whatever each format says of it, and where a format says
nothing, by decoding piece by piece and keeping none.
"""

import bz2
import lzma
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

_PIECE = 1 << 20
_ZSTD_FRAME, _ZSTD_SKIPPABLE, _ZSTD_BLOCK = 0xFD2FB528, range(0x184D2A50, 0x184D2A60), 128 << 10
_INDEX_ENTRY, _EMPTY = 16, 2**64 - 1


def _of_zstd(encoded: memoryview, limit: int) -> int:
    """Blocks of at most 128 KiB each, or as long as they say, in all frames (RFC 8878)."""
    size, at = 0, 0
    while at + 4 <= len(encoded) and size <= limit:
        (magic,) = struct.unpack_from("<I", encoded, at)
        if magic in _ZSTD_SKIPPABLE:
            at += 8 + struct.unpack_from("<I", encoded, at + 4)[0]
            continue
        if magic != _ZSTD_FRAME:
            break  # what the decoder refuses
        described = encoded[at + 4]
        single, checksum, dictionary, content = described >> 5 & 1, described >> 2 & 1, described & 3, described >> 6
        at += 5 + (not single) + (0, 1, 2, 4)[dictionary] + ((single, 2, 4, 8)[content])
        last = False
        while not last and size <= limit:
            header = int.from_bytes(encoded[at : at + 3], "little")
            last, kind, n_bytes = bool(header & 1), header >> 1 & 3, header >> 3
            size += n_bytes if kind in (0, 1) else _ZSTD_BLOCK
            at += 3 + (1 if kind == 1 else n_bytes)
            last = last or at >= len(encoded)
        at += 4 * checksum
    return size


def _by_pieces(start: Callable[[], Any]) -> Callable[[memoryview, int], int]:
    def measure(encoded: memoryview, limit: int) -> int:
        size, rest = 0, bytes(encoded)
        while rest and size <= limit:  # streams that follow each other are one
            decoder = start()
            try:
                size += len(decoder.decompress(rest, _PIECE))
                while not decoder.eof and size <= limit:
                    piece = decoder.decompress(getattr(decoder, "unconsumed_tail", b""), _PIECE)
                    if not piece:
                        return size  # cut short
                    size += len(piece)
            except (EOFError, OSError, zlib.error, lzma.LZMAError):
                break  # a checksum that follows, or what the decoder refuses
            rest = decoder.unused_data
        return size

    return measure


_MEASURES: Mapping[str, Callable[[memoryview, int], int]] = {
    "zstd": _of_zstd,
    "blosc": lambda encoded, limit: struct.unpack_from("<I", encoded, 4)[0],
    "lz4": lambda encoded, limit: struct.unpack_from("<I", encoded, 0)[0],
    "gzip": _by_pieces(lambda: zlib.decompressobj(wbits=31)),
    "zlib": _by_pieces(zlib.decompressobj),
    "bz2": _by_pieces(bz2.BZ2Decompressor),
    "lzma": _by_pieces(lzma.LZMADecompressor),
}
COMPRESSORS = frozenset(_MEASURES)
"""Codecs whose output may be larger than their input by more than a small factor, by name."""


@dataclass(frozen=True)
class Layout:
    """How the files of a Zarr array hold its chunks.

    Attributes
    ----------
    compressor : str
        One of :data:`COMPRESSORS`, or empty.
    limit : int
        Bytes that a decoded chunk may take: sixteen a number, the most that any real type has.
    n_chunks : int
        In a shard; 0 where each chunk is a file.
    index_first : bool
        Where a shard's index stands.
    """

    compressor: str
    limit: int
    n_chunks: int = 0
    index_first: bool = False

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "Layout":
        """Layout by an array's metadata, of Zarr 2 or 3.

        Raises
        ------
        ValueError
            It is one whose chunks cannot be measured: several compressors, anything but a CRC-32C behind one, shards in
            shards, or a shard's index that is encoded.
        """
        if metadata.get("zarr_format") == 2:
            compressor = _compressor([*(metadata["filters"] or ()), metadata["compressor"]])
            return cls(compressor, limit=_limit(metadata["chunks"]))
        codecs = metadata["codecs"]
        shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        n_chunks, index_first = 0, False
        for sharding in [codec for codec in codecs if codec["name"] == "sharding_indexed"]:
            if _compressor(codecs[codecs.index(sharding) + 1 :]) or n_chunks:
                raise ValueError("shards that are compressed, or hold shards")
            about, whole = sharding["configuration"], shape
            codecs, shape = about["codecs"], about["chunk_shape"]
            n_chunks = math.prod(-(-size // part) for size, part in zip(whole, shape, strict=True))
            index_first = about.get("index_location") == "start"
            if [codec["name"] for codec in about["index_codecs"]] != ["bytes", "crc32c"]:
                raise ValueError("an index of shards that is encoded")
        return cls(_compressor(codecs), _limit(shape), n_chunks=n_chunks, index_first=index_first)

    def require_bounded(self, content: memoryview, name: str) -> None:
        """Raise ValueError if a chunk in a file would become too large."""
        if not self.compressor:
            return
        for chunk in self._chunks(content):
            if is_larger(chunk, self.compressor, self.limit):
                raise ValueError(
                    f"{name} holds a chunk of more than the {self.limit} bytes that its description allows"
                )

    def _chunks(self, content: memoryview) -> Iterator[memoryview]:
        if not self.n_chunks:
            yield content
            return
        length = self.n_chunks * _INDEX_ENTRY
        index = content[:length] if self.index_first else content[-length - 4 : -4]
        for offset, size in struct.iter_unpack("<QQ", index[: len(index) // _INDEX_ENTRY * _INDEX_ENTRY]):
            if offset != _EMPTY:
                yield content[offset : offset + size]


def _limit(shape: Sequence[int]) -> int:
    return 16 * math.prod(shape)


def _compressor(codecs: Sequence[Any]) -> str:
    """The one compressor in a chain of codecs, or empty."""
    names = [str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.") for codec in codecs if codec]
    found = [name for name in names if name in COMPRESSORS]
    if len(found) > 1 or (found and "sharding_indexed" in names):
        raise ValueError(f"several compressors, {', '.join(found)}")
    if found and any(name != "crc32c" for name in names[names.index(found[0]) + 1 :]):
        raise ValueError(f"{names[-1]} behind {found[0]}")
    return found[0] if found else ""


def is_larger(encoded: bytes | memoryview, compressor: str, limit: int) -> bool:
    """Whether a compressed chunk becomes larger than ``limit`` bytes.

    Parameters
    ----------
    encoded : bytes-like
    compressor : str
        One of :data:`COMPRESSORS`.
    limit : int
        A Zstandard block counts as 128 KiB, the most that it may hold, so the limit is kept to within one of them.

    Returns
    -------
    bool
        False for what the decoder will refuse.
    """
    most = limit + _ZSTD_BLOCK
    try:
        return _MEASURES[compressor](memoryview(encoded), most) > most
    except (struct.error, IndexError):
        return False


class BoundedStore(WrapperStore[Store]):
    """A store from which no chunk is read that would become larger than it should.

    Parameters
    ----------
    store : Store
    layout : Layout
        Of the array that is read from it.
    """

    def __init__(self, store: Store, layout: Layout) -> None:
        super().__init__(store)
        self.layout = layout
        self._sound: set[str] = set()

    @property
    def within(self) -> Store:
        """The store that is wrapped."""
        return self._store

    def _with_store(self, store: Store) -> "BoundedStore":
        return BoundedStore(store, self.layout)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Content of a file, or part of it; ValueError if a chunk in it would become too large."""
        if key not in self._sound and not key.rpartition("/")[2].startswith((".z", "zarr.json")):
            whole = await self._store.get(key, prototype)
            if whole is not None:
                self.layout.require_bounded(memoryview(whole.to_bytes()), key)
            self._sound.add(key)
            if byte_range is None:
                return whole
        return await super().get(key, prototype, byte_range)
