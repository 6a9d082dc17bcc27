"""Feature maps of other writers: what is read has the writer's values, and nothing else gets through."""

import json
import warnings
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from gmmcnn.errors import DataWarning, GmmcnnError, StoreError
from gmmcnn.featuremaps import import_activations
from gmmcnn.featuremaps.foreign import CODECS, open_maps

MAPS = np.random.default_rng(0).random((12, 3, 4, 5)).astype(np.float32)
BY_FILTER = MAPS.swapaxes(0, 1).reshape(3, 12, 20)


def write(path, data=MAPS, **options):
    options = {"chunks": (5, *data.shape[1:])} | options
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, **options)
    array[:] = data
    return path


def chunk_files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json")))


# ------------------------------------------------------------------------------------------------------- what is right

OPTIONS = {
    "zarr 3": {},
    "gzip": {"compressors": zarr.codecs.GzipCodec()},
    "blosc": {"compressors": zarr.codecs.BloscCodec()},
    "no compression": {"compressors": None},
    "sharded": {"shards": (10, 3, 4, 5)},
    "by filter": {"chunks": (5, 1, 4, 5)},
    "zarr 2": {"zarr_format": 2},
    "zarr 2 without compression": {"zarr_format": 2, "compressors": None},
    "zarr 2, delta and zlib": {
        "zarr_format": 2,
        "filters": [numcodecs.Shuffle(4)],
        "compressors": [numcodecs.Zlib()],
    },
    "zarr 2, order F": {"zarr_format": 2, "order": "F"},
    "transposed": {"filters": [zarr.codecs.TransposeCodec(order=(1, 0, 2, 3))]},
}


@pytest.mark.parametrize("form", OPTIONS)
def test_every_usual_zarr_array_is_taken(tmp_path, form):
    store = import_activations(write(tmp_path / "array", **OPTIONS[form]), tmp_path / "store", probe_samples=4)
    np.testing.assert_array_equal(store.read("imported"), BY_FILTER)


@pytest.mark.parametrize("kind", ["zarr", "zarr 2", "npy"])
@pytest.mark.parametrize("dtype", ["?", "u1", "<i2", ">i4", "<i8", "<f2", ">f4", ">f8", "<f8"])
def test_every_type_of_real_numbers_keeps_its_values(tmp_path, kind, dtype):
    data = (MAPS * 200).astype(np.dtype(dtype))
    if kind == "npy":
        np.save(tmp_path / "a.npy", data)
        path = tmp_path / "a.npy"
    else:
        path = write(tmp_path / "a", data, **({"zarr_format": 2} if kind == "zarr 2" else {}))
    store = import_activations(path, tmp_path / "store", probe_samples=4)
    np.testing.assert_array_equal(store.read("imported"), data.astype(np.float32).swapaxes(0, 1).reshape(3, 12, 20))


def test_long_doubles_and_flipped_arrays_of_a_file(tmp_path):
    np.save(tmp_path / "wide.npy", MAPS.astype(np.longdouble)[::-1])
    store = import_activations(tmp_path / "wide.npy", tmp_path / "store")
    np.testing.assert_array_equal(store.read("imported"), BY_FILTER[:, ::-1])


def test_an_array_in_memory_is_taken_too(tmp_path):
    array = zarr.create_array(MemoryStore(), shape=MAPS.shape, chunks=(5, 3, 4, 5), dtype="f4")
    array[:] = MAPS
    np.testing.assert_array_equal(import_activations(array, tmp_path / "store").read("imported"), BY_FILTER)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("dtype", ["U4", "S3", "c8", "M8[s]", "m8[s]"])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification")
def test_other_types_are_refused_by_name(tmp_path, dtype, zarr_format):
    path = tmp_path / "array"
    zarr.create_array(path, shape=(4, 3, 5), chunks=(4, 3, 5), dtype=dtype, zarr_format=zarr_format)[:] = 1
    with pytest.raises(StoreError, match=r"array: holds values of type .*; expected one array of real numbers"):
        import_activations(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


class Program:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("codec", ["pickle", "json2", "msgpack2", "vlen-utf8", "categorize", "packbits", "nonsense"])
def test_codecs_that_may_run_code_are_refused_before_any_is_called(tmp_path, codec, monkeypatch):
    folder = tmp_path / "array"
    folder.mkdir()
    about = {
        "zarr_format": 2, "shape": [4, 3, 5], "chunks": [4, 3, 5], "dtype": "|O", "fill_value": None, "order": "C",
        "compressor": None, "filters": [{"id": codec}],
    }  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(about))
    content = np.empty((4, 3, 5), object)
    content.fill(Program(tmp_path / "was run"))
    (folder / "0.0.0").write_bytes(numcodecs.Pickle().encode(content))
    monkeypatch.setattr(zarr, "open", None)
    with pytest.raises(StoreError, match=rf"array: is encoded by '{codec}', which is not read from a foreign file"):
        import_activations(folder, tmp_path / "store")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("place", ["codecs", "shard", "index"])
def test_codecs_of_zarr_3_are_looked_for_in_shards_too(tmp_path, place):
    path = write(tmp_path / "array", shards=(10, 3, 4, 5))
    about = json.loads((path / "zarr.json").read_text())
    inner = about["codecs"][0]["configuration"]
    {"codecs": about["codecs"], "shard": inner["codecs"], "index": inner["index_codecs"]}[place].append(
        {"name": "numcodecs.pickle", "configuration": {}}
    )
    (path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(StoreError, match=r"is encoded by 'numcodecs\.pickle'"):
        import_activations(path, tmp_path / "store")


def test_the_codecs_read_decode_numbers_only():
    assert not CODECS & {"pickle", "json", "json2", "msgpack", "msgpack2", "vlen-array", "vlen-bytes", "vlen-utf8"}


# ----------------------------------------------------------------------------------------------------- missing, damaged


@pytest.mark.parametrize("form", ["zarr 3", "by filter", "zarr 2", "sharded"])
def test_missing_chunks_are_told(tmp_path, form):
    path = write(tmp_path / "array", **OPTIONS[form])
    files = chunk_files(path)
    files[-1].unlink()
    message = rf"array: 1 of {len(files)} chunks are not stored and read as 0\.0"
    with pytest.warns(DataWarning, match=message):
        import_activations(path, tmp_path / "store")
    (path / "a note").touch()  # hides none
    with pytest.warns(DataWarning, match=message):
        import_activations(path, tmp_path / "store", overwrite=True)
    for file in files[:-1]:
        file.unlink()
    (path / "a note").unlink()
    with pytest.raises(StoreError, match=f"array: none of its {len(files)} chunks is stored; write it again"):
        import_activations(path, tmp_path / "store", overwrite=True)


def test_missing_chunks_of_an_array_in_memory_are_told(tmp_path):
    array = zarr.create_array(MemoryStore(), shape=MAPS.shape, chunks=(5, 3, 4, 5), shards=(10, 3, 4, 5), dtype="f4")
    array[:10] = MAPS[:10]
    with pytest.warns(DataWarning, match="1 of 2 chunks are not stored"):
        import_activations(array, tmp_path / "store")


def test_a_shape_out_of_all_proportion_is_no_endless_loop(tmp_path):
    path = write(tmp_path / "array")
    about = json.loads((path / "zarr.json").read_text())
    about["shape"][0] = 10**15
    (path / "zarr.json").write_text(json.dumps(about))
    with pytest.warns(DataWarning, match="199999999999997 of 200000000000000 chunks are not stored"):
        assert open_maps(path).shape[0] == 10**15


@pytest.mark.parametrize("form", ["zarr 3", "gzip", "blosc", "no compression", "sharded", "zarr 2"])
def test_truncated_chunks_are_damage_of_named_samples(tmp_path, form):
    path = write(tmp_path / "array", **OPTIONS[form])
    first = chunk_files(path)[0]
    first.write_bytes(first.read_bytes()[:20])
    with pytest.raises(StoreError, match=r"array: samples 0 to 3 cannot be read, .*; write it again"):
        import_activations(path, tmp_path / "store", probe_samples=4)


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_to_a_file_is_an_error_of_ours_or_noticed_by_nobody(tmp_path_factory, data):
    """Bytes changed anywhere: the maps as written, other finite maps (no format has a checksum), or one clear error."""
    folder = tmp_path_factory.mktemp("fuzz")
    path = write(folder / "array", **OPTIONS[data.draw(st.sampled_from(sorted(OPTIONS)))])
    file = data.draw(st.sampled_from(sorted(p for p in path.rglob("*") if p.is_file())))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            maps = import_activations(path, folder / "store").read("imported")
        except GmmcnnError as error:
            message = str(error)
        else:
            assert np.isfinite(maps).all()
            return
    assert "\n" not in message


# ------------------------------------------------------------------------------------------------------------ narrowing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps: maps + 1e8, r"filter 0 by up to 1, where its samples differ by 0\.93 at most; subtract"),
        (lambda maps: np.round(maps * 9).astype(np.int64) + 10**12, "float32 would move values of filter 0"),
        (lambda maps: maps * 1e-60, "float32 would move values of filter 0"),
        (lambda maps: maps * 1e60, "filter 0 has values beyond the range of float32"),
    ],
)
@pytest.mark.parametrize("probe_samples", [1, 12])
def test_maps_that_float32_does_not_hold_are_refused(tmp_path, change, message, probe_samples):
    np.save(tmp_path / "a.npy", change(MAPS.astype(np.float64)))
    with pytest.raises(StoreError, match=message):
        import_activations(tmp_path / "a.npy", tmp_path / "store", probe_samples=probe_samples)


def test_wide_maps_that_float32_holds_are_taken(tmp_path):
    maps = MAPS.astype(np.float64) + 100
    maps[:, 1] = 1 / 3
    np.save(tmp_path / "a.npy", maps)
    store = import_activations(tmp_path / "a.npy", tmp_path / "store", probe_samples=3)
    np.testing.assert_allclose(store.read("imported"), maps.swapaxes(0, 1).reshape(3, 12, 20), rtol=1e-7)
