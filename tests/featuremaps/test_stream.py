"""Extraction streams, survives being killed, and its store equals a plain forward pass bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from gmmcnn.errors import CaptureError, ConfigurationError, StoreError, StoreNotFoundError
from gmmcnn.featuremaps import ActivationStore, extract, filter_blocks, import_activations
from gmmcnn.featuremaps import stream as stream_module


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True))


@pytest.fixture
def model() -> nn.Module:
    return small_model()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(11, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "maps.store"


def contents(store: ActivationStore) -> dict[str, np.ndarray]:
    return {layer: store.read(layer) for layer in store.layers}


def assert_same(one: ActivationStore, other: ActivationStore) -> None:
    assert list(one.layers) == list(other.layers)
    for layer in one.layers:
        np.testing.assert_array_equal(one.read(layer), other.read(layer))


# -------------------------------------------------------------------------------------------------------------- extract


def test_the_store_equals_a_plain_forward_pass_bit_for_bit(case, path: Path) -> None:
    store = extract(case.model, case.images, path, tap="post_activation", probe_samples=4)
    plain = [case.maps(case.images[store.block(block)]) for block in range(store.n_blocks)]
    assert store.n_blocks == 3
    assert list(store.layers) == list(plain[0])
    for layer in store.layers:
        expected = torch.cat([maps[layer] for maps in plain]).transpose(0, 1).flatten(2)
        np.testing.assert_array_equal(store.read(layer), expected.numpy())
    assert store.verify() == []
    assert case.model.training


@pytest.mark.parametrize("forward_samples", [1, 3])
def test_the_maps_do_not_depend_on_the_batch(case, tmp_path: Path, forward_samples: int) -> None:
    whole = extract(case.model, case.images[:5], tmp_path / "whole")
    assert_same(whole, extract(case.model, case.images[:5], tmp_path / "parts", forward_samples=forward_samples))


class Pairs(Dataset):
    """(image, label), as most data sets give them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % 3


SOURCES = {
    "ndarray": lambda images: images.numpy(),
    "float64 ndarray": lambda images: images.numpy().astype(np.float64),
    "TensorDataset": lambda images: TensorDataset(images),
    "Dataset of pairs": Pairs,
    "Subset": lambda images: Subset(Pairs(images), range(11)),
    "DataLoader": lambda images: DataLoader(Pairs(images), batch_size=3),
    "shuffling DataLoader": lambda images: DataLoader(Pairs(images), batch_size=2, shuffle=True),
    "DataLoader of a subset": lambda images: DataLoader(Pairs(images), sampler=SubsetRandomSampler(range(11))),
    "DataLoader with workers": lambda images: DataLoader(Pairs(images), batch_size=2, num_workers=1),
}


@pytest.mark.parametrize("source", SOURCES)
def test_images_of_any_source(model: nn.Module, images: Tensor, tmp_path: Path, source: str) -> None:
    random_state = torch.get_rng_state()
    store = extract(model, SOURCES[source](images), tmp_path / "source", probe_samples=4)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert_same(store, extract(model, images, tmp_path / "tensor", probe_samples=4))


class Endless(IterableDataset):
    def __iter__(self):
        return iter([torch.rand(1, 8, 8)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda images: [1, 2].__iter__(), "expected a Tensor, ndarray, map-style Dataset or DataLoader"),
        (lambda images: Endless(), "images: a Endless; expected a Tensor"),
        (lambda images: images[:0], "there are no samples"),
        (
            lambda images: DataLoader(Pairs(images), sampler=WeightedRandomSampler([1.0] * 11, 5)),
            "WeightedRandomSampler; give the",
        ),
        (lambda images: DataLoader(Pairs(images), batch_sampler=[[1, 2]]), "draws its samples by list"),
    ],
)
def test_images_that_have_no_fixed_order_are_refused(
    model: nn.Module, images: Tensor, path: Path, source, message
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        extract(model, source(images), path)
    assert not path.exists()


def test_large_maps_are_taken_in_equal_smaller_blocks(
    model: nn.Module, images: Tensor, path: Path, monkeypatch
) -> None:
    largest_bytes = 4 * 4 * 6 * 6  # conv1: 4 filters of 6 × 6 float32; conv2: 6 of 4 × 4
    monkeypatch.setattr(stream_module, "BYTES_PER_BLOCK", 5 * largest_bytes)
    assert extract(model, images, path, probe_samples=11).block_samples == 4  # 11 in three parts of at most 5


def test_progress_counts_every_sample_once(model: nn.Module, images: Tensor, path: Path) -> None:
    done: list[int] = []
    extract(model, images, path, probe_samples=4, advance=done.append)
    extract(model, images, path, probe_samples=4, advance=done.append)
    assert done == [0, 4, 4, 3, 11]


def test_a_map_that_is_not_finite_names_its_sample(model: nn.Module, images: Tensor, path: Path) -> None:
    images[9, 0, 3, 3] = torch.nan
    with pytest.raises(CaptureError, match=r"layer '0', filter 0, sample 9: "):
        extract(model, images, path, probe_samples=4)
    assert ActivationStore.open(path, partial=True).missing_blocks == [2]


def test_a_map_that_overflows_float16_names_its_sample(model: nn.Module, images: Tensor, path: Path) -> None:
    images[6] = 1e6
    with pytest.raises(StoreError, match=r"layer '\d', filter \d, sample 6: .*float16"):
        extract(model, images, path, probe_samples=4, dtype="float16")


def test_no_layer_to_analyse_says_why(path: Path) -> None:
    with pytest.raises(CaptureError, match="no layer can be analysed: 0: no activation follows it"):
        extract(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.rand(2, 1, 8, 8), path, tap="post_activation")
    assert not path.exists()


def test_skipped_layers_and_origin_are_kept_in_the_store(images: Tensor, path: Path) -> None:
    model = nn.Sequential(*small_model(), nn.Conv2d(6, 2, 1))
    store = extract(model, images, path, tap="post_activation", attributes={"checkpoint": 3})
    assert store.attributes["checkpoint"] == 3
    assert store.attributes["extraction"]["tap"] == "post_activation"
    assert [skipped["layer"] for skipped in store.attributes["extraction"]["skipped"]] == ["4"]


# ------------------------------------------------------------------------------------------------ reuse and replacement


def test_a_complete_store_of_the_same_is_reused(model: nn.Module, images: Tensor, path: Path) -> None:
    first = extract(model, images, path, probe_samples=4, attributes={"epoch": 1})
    times = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    again = extract(model, images, path, probe_samples=5, attributes={"epoch": 1})
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == times
    assert_same(first, again)


CHANGES = {
    "attributes.epoch": {"attributes": {"epoch": 2}},
    "attributes.extraction.model_sha256": {"model": small_model(seed=5)},
    "attributes.extraction.images_sha256": {"images": torch.ones(11, 1, 8, 8)},
    "n_samples": {"images": torch.ones(10, 1, 8, 8)},
    "dtype": {"dtype": "float16"},
    "layers": {"layers": ["0"]},
    "attributes.extraction.tap": {"tap": "pre_activation"},
}


@pytest.mark.parametrize("difference", CHANGES)
def test_a_store_of_something_else_is_replaced_only_when_asked(
    model: nn.Module, images: Tensor, path: Path, difference: str
) -> None:
    arguments = {"model": model, "images": images, "path": path, "attributes": {"epoch": 1}}
    before = contents(extract(**arguments))
    changed = arguments | CHANGES[difference]
    with pytest.raises(StoreError, match=rf"holds other feature maps \(other .*{difference}"):
        extract(**changed)
    np.testing.assert_equal(contents(ActivationStore.open(path)), before)
    replaced = extract(**changed, overwrite=True)
    assert_same(replaced, extract(**changed | {"path": path.with_name("fresh")}))


def test_a_folder_that_is_no_store_is_never_replaced(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match="already exists"):
        extract(model, images, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_damaged_blocks_are_extracted_again(model: nn.Module, images: Tensor, path: Path) -> None:
    before = contents(extract(model, images, path, probe_samples=4))
    shards = sorted(path.rglob("c.0.1.0.0"))
    shards[0].unlink()
    os.truncate(next(path.rglob("c.0.2.0.0")), 5)
    done: list[int] = []
    store = extract(model, images, path, probe_samples=4, advance=done.append)
    assert done == [4, 4, 3]
    np.testing.assert_equal(contents(store), before)
    assert store.verify() == []


def test_an_unfinished_store_keeps_its_blocks(model: nn.Module, images: Tensor, path: Path) -> None:
    extract(model, images, path, probe_samples=4)
    (path / "complete" / "000001.json").unlink()
    with pytest.raises(StoreError, match=r"other block_samples"):
        extract(model, images, path, probe_samples=2)
    assert extract(model, images, path, probe_samples=2, overwrite=True).block_samples == 2


def test_attributes_that_json_cannot_hold_are_refused(model: nn.Module, images: Tensor, path: Path) -> None:
    with pytest.raises(StoreError, match="expected what JSON can hold"):
        extract(model, images, path, attributes={"model": model})


# ----------------------------------------------------------------------------------------------- real processes, killed

WORKER = """
import sys, time, torch
from torch import nn
from gmmcnn.featuremaps import extract

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.ReLU(inplace=True), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
)
images = torch.rand(400, 1, 16, 16)
extract(model, images, sys.argv[1], probe_samples=10, advance=lambda n: print(n, flush=True))
"""


def start_worker(path: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_an_extraction_killed_again_and_again_ends_with_the_same_store(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    undisturbed = start_worker(whole)
    reported = []
    for blocks_seen, delay_s in ((3, 0.0), (5, 0.013)):
        worker = start_worker(killed)
        resumed_at = int(worker.stdout.readline())
        for _ in range(blocks_seen):
            worker.stdout.readline()
        time.sleep(delay_s)
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        assert worker.returncode == -signal.SIGKILL
        reported.append(resumed_at)
        with pytest.raises(StoreError, match="incomplete"):
            ActivationStore.open(killed)
    worker = start_worker(killed)
    reported.append(int(worker.stdout.readline()))
    worker.communicate()
    assert worker.returncode == 0
    undisturbed.communicate()
    assert undisturbed.returncode == 0
    assert reported[0] == 0
    assert reported == sorted(set(reported)), "every start resumes after the blocks of the one before"
    one, other = ActivationStore.open(killed), ActivationStore.open(whole)
    assert_same(one, other)
    assert one.verify() == []
    shards = [{f.name: f.read_bytes() for f in folder.rglob("c.*")} for folder in (killed / "maps", whole / "maps")]
    assert shards[0] == shards[1]


MEMORY = """
import resource, sys, torch
from torch import nn
from gmmcnn.featuremaps import extract, stream

stream.BYTES_PER_BLOCK = 4 << 20
torch.set_num_threads(1)

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return int(sys.argv[2])
    def __getitem__(self, index):
        return torch.full((1, 32, 32), index / 1000)

def network(depth):
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(inplace=True)]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

extract(network(1), Images(), sys.argv[1] + "/small", layers=["0"])
before = peak_mib()
store = extract(network(int(sys.argv[3])), Images(), sys.argv[1] + "/large")
print(store.nbytes, before, peak_mib())
"""


@pytest.mark.slow
def test_memory_grows_neither_with_the_samples_nor_with_the_depth(tmp_path: Path) -> None:
    """450 samples, 16 layers: holding one block of all layers would take 60 MiB, all blocks of one layer 56 MiB."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path), "450", "16"]
    n_bytes, before_mib, after_mib = map(float, subprocess.check_output(command, text=True).split())
    assert n_bytes == 450 * 16 * 32 * 32 * 32 * 4
    assert after_mib - before_mib < 45


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.fixture
def store(model: nn.Module, images: Tensor, path: Path) -> ActivationStore:
    return extract(model, images, path, probe_samples=4)


@pytest.mark.parametrize("bytes_per_block", [1, 4 * 11 * 16 * 4, 1 << 20])
def test_filter_blocks_cover_a_layer_in_order(store: ActivationStore, bytes_per_block: int) -> None:
    blocks = list(filter_blocks(store, "2", bytes_per_block=bytes_per_block))
    assert [filters.start for filters, _ in blocks] == {1: [*range(6)], 2816: [0, 4], 1 << 20: [0]}[bytes_per_block]
    np.testing.assert_array_equal(np.concatenate([maps for _, maps in blocks]), store.read("2"))
    assert all(maps.nbytes <= max(bytes_per_block, 11 * 16 * 4) for _, maps in blocks)


def test_filter_blocks_of_some_samples(store: ActivationStore) -> None:
    [(filters, maps)] = filter_blocks(store, "2", samples=slice(3, 9))
    assert filters == slice(0, 6)
    np.testing.assert_array_equal(maps, store.read("2")[:, 3:9])


def test_filter_blocks_can_be_left_early_and_raise_what_reading_raises(store: ActivationStore) -> None:
    for _ in filter_blocks(store, "2", bytes_per_block=1):
        break
    os.truncate(next(store.path.rglob("001.2/c.0.1.0.0")), 20)
    with pytest.raises(StoreError, match="layer '2': corrupted"):
        list(filter_blocks(store, "2", bytes_per_block=1))
    with pytest.raises(StoreError, match="no layer 'conv'"):
        next(filter_blocks(store, "conv"))


# ------------------------------------------------------------------------------------------------- existing activations


@pytest.fixture
def activations() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((11, 3, 4, 5), np.float32)


@pytest.mark.parametrize("kind", ["npy", "fortran npy", "zarr path", "zarr array", "float64 npy", "pixels npy"])
def test_existing_activations_become_a_store(activations: np.ndarray, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "activations"
    if kind.startswith("zarr"):
        array = zarr.create_array(source, shape=activations.shape, dtype="float32", chunks=(2, 2, 4, 5))
        array[:] = activations
        source = array if kind == "zarr array" else source
    else:
        saved = {"fortran npy": np.asfortranarray(activations), "float64 npy": activations.astype(np.float64)}
        np.save(source, saved.get(kind, activations.reshape(11, 3, 20) if kind == "pixels npy" else activations))
        source = source.with_suffix(".npy")
    store = import_activations(source, tmp_path / "store", layer="conv1", probe_samples=4, attributes={"from": kind})
    np.testing.assert_array_equal(store.read("conv1"), activations.swapaxes(0, 1).reshape(3, 11, 20))
    assert store.tap("conv1").shape == ((3, 1, 20) if kind == "pixels npy" else (3, 4, 5))
    assert store.attributes == {"from": kind}
    assert store.verify() == []


def test_imported_activations_must_be_finite(activations: np.ndarray, tmp_path: Path) -> None:
    activations[9, 2, 0, 0] = np.inf
    np.save(tmp_path / "a.npy", activations)
    with pytest.raises(CaptureError, match="layer 'conv1', filter 2, sample 9: "):
        import_activations(tmp_path / "a.npy", tmp_path / "store", layer="conv1", probe_samples=4)


def test_a_store_is_imported_again_only_when_asked(activations: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", activations)
    import_activations(tmp_path / "a.npy", tmp_path / "store")
    with pytest.raises(StoreError, match="already exists"):
        import_activations(tmp_path / "a.npy", tmp_path / "store")
    import_activations(tmp_path / "a.npy", tmp_path / "store", overwrite=True)


def test_what_cannot_be_imported_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.ones((4, 5)))
    np.save(tmp_path / "empty.npy", np.ones((0, 5, 2)))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.savez(tmp_path / "two.npz", a=np.ones(3))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "nothing-in-it.npy").touch()
    (tmp_path / "no-zip.npy").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array"')
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    zarr.create_group(tmp_path / "group")
    for name, message in {
        "flat.npy": r"expected activations of shape \(N, C, H, W\) or \(N, C, P\), got \(4, 5\)",
        "empty.npy": r"got \(0, 5, 2\)",
        "text.npy": "expected one array of real numbers",
        "two.npz": "expected a .npy file of numbers",
        "broken.npy": "expected a .npy file of numbers",
        "object.npy": "expected a .npy file of numbers",
        "nothing-in-it.npy": "nothing-in-it.npy: expected a .npy file of numbers",
        "no-zip.npy": "no-zip.npy: expected a .npy file of numbers",
        "folder": "folder: expected a .npy file of numbers or a Zarr array",
        "torn": "torn: expected a .npy file of numbers or a Zarr array",
        "half": "half: expected a .npy file of numbers or a Zarr array",
        "group": "is a Zarr group",
    }.items():
        with pytest.raises(StoreError, match=message):
            import_activations(tmp_path / name, tmp_path / "store")
    with pytest.raises(StoreNotFoundError, match="there are no activations"):
        import_activations(tmp_path / "nothing.npy", tmp_path / "store")
    assert not (tmp_path / "store").exists()
