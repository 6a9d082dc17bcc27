"""A store gives back what was written, and says what is wrong with it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from gmmcnn.errors import StoreError, StoreNotFoundError
from gmmcnn.featuremaps import ActivationStore, Tap
from gmmcnn.featuremaps.store import discard
from gmmcnn.files import write_record

CONV1, CONV2 = Tap("features.conv1", 3, 4, 5, "after relu"), Tap("features.conv2", 2, 2, 2, "after relu")
N_SAMPLES, BLOCK = 11, 4


def maps_of(tap: Tap, n_samples: int = N_SAMPLES) -> np.ndarray:
    """(C, N, H, W) with half of the values zero, and one filter dead."""
    generator = np.random.default_rng(tap.n_filters)
    maps = np.maximum(generator.standard_normal((tap.n_filters, n_samples, tap.height, tap.width), np.float32), 0)
    maps[1] = 0
    return maps


def fill(store: ActivationStore, blocks=None) -> ActivationStore:
    for block in range(store.n_blocks) if blocks is None else blocks:
        for layer, tap in store.layers.items():
            store.write(layer, block, maps_of(tap)[:, store.block(block)])
        store.commit(block)
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "maps.store"


@pytest.fixture
def empty(path: Path) -> ActivationStore:
    return ActivationStore.create(path, [CONV1, CONV2], N_SAMPLES, block_samples=BLOCK, attributes={"model": "lenet5"})


@pytest.fixture
def full(empty: ActivationStore, path: Path) -> ActivationStore:
    fill(empty)
    return ActivationStore.open(path)


def a_shard(store: ActivationStore) -> Path:
    return store.path / "maps" / "000.features.conv1" / "c.0.1.0.0"


def test_what_is_written_is_read(full: ActivationStore) -> None:
    for layer, tap in full.layers.items():
        maps = full.read(layer)
        assert maps.dtype == np.float32
        np.testing.assert_array_equal(maps, maps_of(tap).reshape(tap.n_filters, N_SAMPLES, -1))
    assert list(full.layers.values()) == [CONV1, CONV2]
    assert (full.n_samples, full.n_blocks, full.attributes) == (11, 3, {"model": "lenet5"})
    assert full.nbytes == 4 * 11 * (3 * 20 + 2 * 4)
    assert full.stored_bytes == sum(file.stat().st_size for file in full.path.rglob("c.*"))
    assert full.verify() == []


slices = st.builds(slice, *[st.none() | st.integers(-13, 13)] * 2)


@given(filters=slices, samples=slices)
def test_any_part_can_be_read(tmp_path_factory: pytest.TempPathFactory, filters: slice, samples: slice) -> None:
    path = tmp_path_factory.getbasetemp() / "any-part.store"
    if not path.exists():
        fill(ActivationStore.create(path, [CONV1], N_SAMPLES, block_samples=BLOCK))
    part = ActivationStore.open(path).read(CONV1.layer, filters, samples)
    np.testing.assert_array_equal(part, maps_of(CONV1).reshape(3, 11, 20)[filters, samples])


def test_the_schema_is_the_documented_one(full: ActivationStore) -> None:
    group = zarr.open_group(full.path / "maps", mode="r")
    array = group["000.features.conv1"]
    assert array.shape == (3, 11, 4, 5)
    assert array.shards == (3, 4, 4, 5)
    assert array.chunks == (3, 4, 4, 5)
    assert array.metadata.dimension_names == ("filter", "sample", "row", "column")
    assert np.isnan(array.fill_value)
    assert group.attrs["layers"][1] == {
        "layer": "features.conv2", "n_filters": 2, "height": 2, "width": 2, "description": "after relu",
        "kind": "Conv2d", "size": "", "coupled": False,
    }  # fmt: skip
    record = json.loads((full.path / "complete" / "000002.json").read_text())
    assert record["samples"] == [8, 11]
    assert record["shards"].keys() == full.layers.keys()


def test_large_maps_have_a_chunk_of_their_own_and_small_ones_share(path: Path) -> None:
    taps = [Tap("large", 6, 32, 32, ""), Tap("small", 6, 16, 16, ""), Tap("tiny", 6, 2, 2, "")]
    ActivationStore.create(path, taps, 128, block_samples=100)  # one filter: 400 KB, 100 KB, 2 KB
    group = zarr.open_group(path / "maps", mode="r")
    assert [group[name].chunks[0] for name in ("000.large", "001.small", "002.tiny")] == [1, 2, 6]


def test_float16_halves_the_bytes_and_rounds(path: Path) -> None:
    store = fill(ActivationStore.create(path, [CONV1], N_SAMPLES, block_samples=BLOCK, dtype="float16"))
    expected = maps_of(CONV1).astype(np.float16).astype(np.float32).reshape(3, 11, 20)
    np.testing.assert_array_equal(store.read(CONV1.layer), expected)
    assert store.nbytes == 2 * 11 * 60


@pytest.mark.parametrize(
    "names", [["..", "."], ["a/b", "a_b", "a b"], ["__x", ""], ["Conv", "conv"], ["ü", "x" * 300]], ids=str
)
def test_any_layer_name(path: Path, names: list[str]) -> None:
    fill(ActivationStore.create(path, [Tap(name, 2, 2, 2, "") for name in names], N_SAMPLES, block_samples=BLOCK))
    store = ActivationStore.open(path)
    assert list(store.layers) == names
    for name in names:
        np.testing.assert_array_equal(store.read(name), maps_of(CONV2).reshape(2, 11, 4))
    assert not [file for file in path.parent.iterdir() if file != path]


def test_an_empty_folder_is_as_good_as_none_and_any_other_is_refused(path: Path) -> None:
    path.mkdir()
    fill(ActivationStore.create(path, [CONV1], N_SAMPLES, block_samples=BLOCK))
    assert ActivationStore.open(path).verify() == []
    with pytest.raises(StoreError, match="already exists"):
        ActivationStore.create(path, [CONV1], N_SAMPLES, block_samples=BLOCK)


# ----------------------------------------------------------------------------------------------------- refused to write


def test_values_that_do_not_fit_name_layer_filter_and_sample(path: Path) -> None:
    store = ActivationStore.create(path, [CONV1], N_SAMPLES, block_samples=BLOCK, dtype="float16")
    maps = maps_of(CONV1)[:, :4]
    maps[2, 1, 0, 0] = 1e5
    with pytest.raises(StoreError, match=r"'features.conv1', filter 2, sample 5: .* fit into float16"):
        store.write(CONV1.layer, 1, maps)


def test_a_block_of_another_shape_is_refused(empty: ActivationStore) -> None:
    with pytest.raises(StoreError, match=r"block 2: expected maps of shape \(3, 3, 4, 5\), got \(3, 4, 4, 5\)"):
        empty.write(CONV1.layer, 2, maps_of(CONV1)[:, :4])


def test_a_block_is_not_committed_before_all_layers_are_written(empty: ActivationStore) -> None:
    empty.write(CONV1.layer, 0, maps_of(CONV1)[:, :4])
    with pytest.raises(StoreError, match=r"block 0 has not been written for features.conv2"):
        empty.commit(0)
    assert empty.missing_blocks == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "got 0 layers, 11 samples"),
        ({"n_samples": 0}, "got 1 layers, 0 samples"),
        ({"dtype": "float64"}, "dtype=float64: expected one of float32, float16"),
    ],
)
def test_an_impossible_store_is_refused(path: Path, changes: dict, message: str) -> None:
    arguments = {"layers": [CONV1], "n_samples": 11, "block_samples": 4} | changes
    with pytest.raises(StoreError, match=message):
        ActivationStore.create(path, **arguments)
    assert not path.exists()


def test_nothing_is_overwritten(full: ActivationStore) -> None:
    with pytest.raises(StoreError, match="already exists"):
        ActivationStore.create(full.path, [CONV1], 3, block_samples=1)
    assert full.verify() == []


def test_only_stores_are_discarded(full: ActivationStore, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    with pytest.raises(StoreError, match="is no store of feature maps"):
        discard(tmp_path / "thesis")
    discard(full.path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis"]


# ------------------------------------------------------------------------------------------------------- damaged stores


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="there is no store of feature maps"):
        ActivationStore.open(tmp_path / "nowhere")


def test_a_store_of_another_version(full: ActivationStore) -> None:
    metadata = full.path / "maps" / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(StoreError, match=r"expected a store of \('gmmcnn feature maps', 1\), found .*99"):
        ActivationStore.open(full.path)


def test_an_incomplete_store_is_not_opened_to_read(empty: ActivationStore, path: Path) -> None:
    fill(empty, blocks=[0, 2])
    with pytest.raises(StoreError, match="incomplete: block 1 of 3 has no completion record; gmmcnn task=verify"):
        ActivationStore.open(path)
    assert ActivationStore.open(path, partial=True).missing_blocks == [1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"block": 1}'])
def test_a_torn_record_counts_as_none(full: ActivationStore, content: str) -> None:
    (full.path / "complete" / "000001.json").write_text(content)
    store = ActivationStore.open(full.path, partial=True)
    assert store.missing_blocks == [1]
    with pytest.raises(StoreError, match="incomplete"):
        ActivationStore.open(full.path)
    assert "block 1" in store.verify()[0]


def test_a_missing_shard(full: ActivationStore) -> None:
    a_shard(full).unlink()
    with pytest.raises(StoreError, match=r"'features.conv1', block 1 \(maps/000.features.conv1/c.0.1.0.0\): missing"):
        ActivationStore.open(full.path)
    with pytest.raises(StoreError, match=r"layer 'features.conv1': maps are missing"):
        full.read(CONV1.layer)  # opened while it was whole
    assert full.read(CONV1.layer, samples=slice(0, 4)).shape == (3, 4, 20)


def test_a_truncated_shard(full: ActivationStore) -> None:
    size = a_shard(full).stat().st_size
    os.truncate(a_shard(full), size - 7)
    with pytest.raises(StoreError, match=f"{size - 7} bytes instead of {size}"):
        ActivationStore.open(full.path)
    with pytest.raises(StoreError, match=r"layer 'features.conv1': corrupted"):
        full.read(CONV1.layer)


def test_every_flipped_byte_is_found(full: ActivationStore) -> None:
    shard = a_shard(full)
    content = shard.read_bytes()
    unharmed = maps_of(CONV1).reshape(3, 11, 20)
    for position in range(0, len(content), 11):
        shard.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        assert full.verify() == [
            "layer 'features.conv1', block 1 (maps/000.features.conv1/c.0.1.0.0): corrupted, its checksum differs"
        ]
        try:
            maps = full.read(CONV1.layer)
        except StoreError:
            continue
        np.testing.assert_array_equal(maps, unharmed)  # a byte that no chunk uses


def test_what_is_damaged_is_forgotten_and_written_anew(full: ActivationStore) -> None:
    a_shard(full).write_bytes(bytes(a_shard(full).stat().st_size))
    store = ActivationStore.open(full.path, partial=True)
    assert store.missing_blocks == []  # sizes do not tell
    store.forget_damaged()
    assert store.missing_blocks == [1]
    fill(store, [1])
    assert store.verify() == []
    np.testing.assert_array_equal(full.read(CONV1.layer), maps_of(CONV1).reshape(3, 11, 20))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "float64", None])
def test_a_damaged_description_of_a_layer(full: ActivationStore, content: str | None) -> None:
    description = full.path / "maps" / "000.features.conv1" / "zarr.json"
    whole = description.read_text()
    description.unlink()
    if content is not None:
        description.write_text(whole.replace("float32", "float64") if content == "float64" else content)
    store = ActivationStore.open(full.path, partial=True)
    assert store.verify() == ["layer 'features.conv1' (maps/000.features.conv1/zarr.json): damaged"]
    for ask in (store.forget_damaged, lambda: ActivationStore.open(full.path).read(CONV1.layer)):
        with pytest.raises(StoreError, match=r"conv1/zarr\.json\): damaged; gmmcnn task=verify run=FOLDER names"):
            ask()


def test_a_damaged_header(full: ActivationStore) -> None:
    header = full.path / "maps" / "zarr.json"
    header.write_text(header.read_text().replace('"layers"', '"lairs"'))
    with pytest.raises(StoreError, match=r"header maps/zarr\.json is damaged .*; gmmcnn task=extract run=FOLDER"):
        ActivationStore.open(full.path)


@pytest.mark.parametrize("name", ["", "000.features.conv1", "001.features.conv2"])
def test_every_changed_byte_of_a_description_is_found(full: ActivationStore, name: str) -> None:
    """Also one that reads as well as the true one, as another level of compression does."""
    file = full.path / "maps" / name / "zarr.json"
    content = bytearray(file.read_bytes())
    for place in range(0, len(content), 37):
        for bit in (1, 4):
            file.write_bytes(bytes([*content[:place], content[place] ^ bit, *content[place + 1 :]]))
            with pytest.raises(StoreError, match=r"damaged|no store|expected a store"):
                ActivationStore.open(full.path, partial=True).forget_damaged()
            if name:
                assert "damaged" in "".join(ActivationStore.open(full.path, partial=True).verify())
    file.write_bytes(bytes(content))
    assert ActivationStore.open(full.path).verify() == []


def test_a_store_whose_records_say_nothing_of_its_descriptions_is_read(full: ActivationStore) -> None:
    for path in (full.path / "complete").iterdir():
        record = json.loads(path.read_text())
        write_record(path, {key: record[key] for key in ("block", "samples", "shards")})
    np.testing.assert_array_equal(ActivationStore.open(full.path).read(CONV1.layer), full.read(CONV1.layer))
    assert ActivationStore.open(full.path).verify() == []


def test_orphans_are_reported_and_removed(full: ActivationStore) -> None:
    orphan = full.path / "maps" / "000.features.conv1" / "c.0.1.0.b4ab.partial"
    orphan.write_bytes(b"half a shard")
    assert full.verify() == ["maps/000.features.conv1/c.0.1.0.b4ab.partial: left behind by an interrupted writer"]
    full.remove_orphans()
    assert full.verify() == []


def test_an_unknown_layer_is_named_with_the_nearest(full: ActivationStore) -> None:
    with pytest.raises(StoreError, match=r"no layer 'conv2'; the nearest is 'features.conv2'"):
        full.read("conv2")
