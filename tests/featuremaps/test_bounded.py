"""Chunks that would become too large are refused by what they hold, and no other is."""

import json
import resource
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.errors import StoreError
from gmmcnn.featuremaps.bounded import COMPRESSORS, Layout, is_larger
from gmmcnn.featuremaps.foreign import open_maps
from gmmcnn.featuremaps.store import ActivationStore
from gmmcnn.featuremaps.taps import Tap

A_BLOCK = 128 << 10
SHAPE = (4, 2, 3, 3)
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def codec(name: str):
    return numcodecs.get_codec({"id": name})


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
@given(n_bytes=st.integers(1, 1 << 19), seed=st.integers(0, 3), level=st.sampled_from([1, 40, 256]))
def test_what_is_measured_is_what_is_decoded(name, n_bytes, seed, level):
    content = np.random.default_rng(seed).integers(0, level, n_bytes, np.uint8).tobytes()
    encoded = bytes(codec(name).encode(content))
    assert not is_larger(encoded, name, n_bytes)
    assert not is_larger(encoded + zlib.crc32(encoded).to_bytes(4, "little"), name, n_bytes)
    if n_bytes > 3 * A_BLOCK:
        assert is_larger(encoded, name, n_bytes - 3 * A_BLOCK)


@pytest.mark.parametrize("name", sorted({"zstd", "gzip", "bz2", "lzma"}))
def test_parts_that_follow_each_other_are_added(name):
    encoded = bytes(codec(name).encode(bytes(1 << 20)))
    assert not is_larger(encoded, name, 1 << 20)
    assert is_larger(encoded * 3, name, 2 << 20)


@pytest.mark.parametrize(
    "encoded", [b"", b"\x28\xb5\x2f\xfd", b"\x1f\x8b", bytes(3), b"\x28\xb5\x2f\xfd\xff" + bytes(40)]
)
@pytest.mark.parametrize("name", sorted(COMPRESSORS - {"lz4"}))  # which believes any four bytes
def test_what_the_decoder_refuses_is_left_to_it(name, encoded):
    assert not is_larger(encoded, name, 100)


@pytest.fixture(scope="module", params=[2, 3])
def zarr_format(request):
    return request.param


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_a_chunk_that_holds_more_than_it_should_is_not_decoded(tmp_path, zarr_format, name):
    about: dict = {"shape": SHAPE, "fill_value": 0, "zarr_format": zarr_format}
    if zarr_format == 2:
        about |= {
            "chunks": SHAPE,
            "dtype": "<f4",
            "order": "C",
            "filters": None,
            "compressor": codec(name).get_config(),
        }
    else:
        if name not in ("gzip", "zstd", "blosc"):
            pytest.skip("no codec of Zarr 3's own")
        configured = {
            "gzip": {"level": 5}, "zstd": {"level": 1, "checksum": False},
            "blosc": {"typesize": 4, "cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0},
        }  # fmt: skip
        about |= {
            "node_type": "array", "data_type": "float32", "attributes": {},
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": SHAPE}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [BYTES, {"name": name, "configuration": configured[name]}],
        }  # fmt: skip
    (tmp_path / (".zarray" if zarr_format == 2 else "zarr.json")).write_text(json.dumps(about))
    chunk = tmp_path / ("0.0.0.0" if zarr_format == 2 else "c/0/0/0/0")
    chunk.parent.mkdir(parents=True, exist_ok=True)
    maps = np.arange(72, dtype="<f4").reshape(SHAPE)
    chunk.write_bytes(codec(name).encode(maps))
    np.testing.assert_array_equal(open_maps(tmp_path).read(slice(0, 4)), maps)
    chunk.write_bytes(codec(name).encode(bytes(100 << 20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreError, match="a chunk of more than the 1152 bytes that its description allows"):
        open_maps(tmp_path).read(slice(0, 1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def with_a_large_chunk(shard: Path, n_chunks: int, compressor: str = "zstd") -> bytes:
    """A shard whose first chunk holds 200 MiB."""
    index = np.frombuffer(shard.read_bytes()[-16 * n_chunks - 4 : -4], "<u8").reshape(n_chunks, 2).copy()
    bomb = bytes(codec(compressor).encode(bytes(100 << 20)))
    index[0] = 0, len(bomb)
    return bomb + index.tobytes()


def test_neither_is_one_in_a_shard(tmp_path):
    path = tmp_path / "maps.zarr"
    array = zarr.create_array(
        path, shape=(8, 2, 3, 3), shards=(8, 2, 3, 3), chunks=(2, 2, 3, 3), dtype="f4",
        compressors=[zarr.codecs.ZstdCodec(level=1)],
    )  # fmt: skip
    array[:] = maps = np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
    np.testing.assert_array_equal(open_maps(path).read(slice(0, 3)), maps[:3])
    shard = next(path.rglob("c/0/0/0/0"))
    content = with_a_large_chunk(shard, 4)
    shard.write_bytes(content + shard.read_bytes()[-4:])
    with pytest.raises(StoreError, match="a chunk of more than"):
        open_maps(path).read(slice(0, 1))


def test_nor_one_in_a_store_of_ours(tmp_path):
    store = ActivationStore.create(tmp_path / "maps.zarr", [Tap("conv", 4, 3, 3, "")], 6, block_samples=3)
    maps = np.random.default_rng(0).normal(size=(4, 6, 3, 3)).astype(np.float32)
    for block in range(2):
        store.write("conv", block, maps[:, store.block(block)])
        store.commit(block)
    opened = ActivationStore.open(store.path)
    np.testing.assert_array_equal(opened.read("conv"), maps.reshape(4, 6, 9))
    shard = store.path / "maps" / "000.conv" / "c.0.1.0.0"
    shard.write_bytes(with_a_large_chunk(shard, 1, "blosc") + shard.read_bytes()[-4:])
    opened = ActivationStore.open(store.path, partial=True)
    np.testing.assert_array_equal(opened.read("conv", samples=slice(0, 3)), maps[:, :3].reshape(4, 3, 9))
    with pytest.raises(
        StoreError, match=r"layer 'conv': corrupted \(c.0.1.0.0 holds a chunk of more than the \d+ bytes"
    ):
        opened.read("conv")


@pytest.mark.parametrize(
    "codecs",
    [
        [BYTES, {"name": "gzip"}, {"name": "zstd"}],
        [BYTES, {"name": "zstd"}, {"name": "numcodecs.shuffle"}],
        [{"name": "sharding_indexed", "configuration": {}}, {"name": "gzip"}],
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(codecs):
    grid = {"configuration": {"chunk_shape": SHAPE}}
    with pytest.raises(ValueError, match=r"several compressors|behind zstd|shards that are compressed"):
        Layout.of({"zarr_format": 3, "chunk_grid": grid, "codecs": codecs})
