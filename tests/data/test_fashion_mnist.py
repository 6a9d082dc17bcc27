import gzip
import struct
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.data import fashion_mnist, load
from gmmcnn.data.fashion_mnist import read_idx
from gmmcnn.errors import DataError, DataNotFoundError

N_IMAGES = {"train": 20, "t10k": 10}


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_files(folder: Path, *, gzipped: bool = False) -> dict[str, NDArray[np.uint8]]:
    """Write the four files with images at random; return the arrays by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n_images in N_IMAGES.items():
        arrays[f"{split}-images-idx3-ubyte"] = rng.integers(0, 256, (n_images, 28, 28), dtype=np.uint8)
        arrays[f"{split}-labels-idx1-ubyte"] = (np.arange(n_images) % 10).astype(np.uint8)
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / f"{name}.gz").write_bytes(gzip.compress(content)) if gzipped else (folder / name).write_bytes(content)
    return arrays


def settings_for(folder: Path) -> config.Data:
    return config.Data(name="fashion_mnist", root=str(folder))


@pytest.mark.parametrize("gzipped", [False, True])
def test_files_are_read_as_they_are(tmp_path: Path, gzipped: bool) -> None:
    arrays = write_files(tmp_path, gzipped=gzipped)

    data = load(settings_for(tmp_path), seed=0)

    assert np.array_equal((data.train.images[:, 0] * 255).round().numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal((data.validation.images[:, 0] * 255).round().numpy(), arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(data.validation.labels.numpy(), arrays["t10k-labels-idx1-ubyte"])
    assert data.train_indices.tolist() == list(range(20))
    assert data.class_names[9] == "Ankle boot"


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)))
def test_idx_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, array: NDArray[np.uint8]) -> None:
    path = tmp_path_factory.mktemp("idx") / "values-ubyte"
    path.write_bytes(idx_bytes(array))
    assert np.array_equal(read_idx(path, array.ndim), array)


@given(cut=st.integers(1, 16 + 2 * 3 * 4), gzipped=st.booleans())
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int, gzipped: bool) -> None:
    content = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    path = tmp_path_factory.mktemp("idx") / ("values-ubyte.gz" if gzipped else "values-ubyte")
    path.write_bytes(gzip.compress(content)[:-cut] if gzipped else content[:-cut])
    with pytest.raises(DataError, match="values-ubyte"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-1], r"train-images-idx3-ubyte: 15695 bytes; expected 15696"),
        ("train-images-idx3-ubyte", lambda b: b + b"\0", r"15697 bytes; expected 15696"),
        ("t10k-images-idx3-ubyte", lambda b: b"\0\0\x0d\x03" + b[4:], r"starts with 0x00000d03; expected 0x00000803"),
        ("train-labels-idx1-ubyte", lambda b: b"<html>", r"starts with 0x3c68746d; expected 0x00000801"),
        ("train-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0a", r"label 10; expected 0 to 9"),
        (
            "train-labels-idx1-ubyte",
            lambda b: idx_bytes(np.zeros(19, np.uint8)),
            r"19 labels; expected one for each of 20",
        ),
        ("t10k-images-idx3-ubyte", lambda b: idx_bytes(np.zeros((10, 8, 8), np.uint8)), r"images of \(8, 8\) pixels"),
        ("t10k-images-idx3-ubyte", lambda b: b"", r"starts with 0x; expected"),
    ],
)
def test_a_wrong_file_is_named_with_the_remedy(tmp_path: Path, name: str, damage, message: str) -> None:
    write_files(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load(settings_for(tmp_path), seed=0)
    assert str(path) in str(caught.value)
    assert "dataset-fashion-mnist" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("announced", [(3, 28, 28), (60_000, 28, 28), (2**32 - 1, 28, 28), (20, 2**31, 28)])
def test_of_a_gzip_bomb_no_more_is_read_than_the_header_announces(tmp_path: Path, announced: tuple[int, ...]) -> None:
    """80 MB of zeros in 80 kB: refused with no more in memory than 47 MB grow to, the whole data set's size."""
    write_files(tmp_path, gzipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, *announced) + bytes(80_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: (\d+ bytes or more; expected|announces values)"):
        load(settings_for(tmp_path), seed=0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < (75_000_000 if announced[0] == 60_000 else 1_000_000)


def test_a_file_that_is_no_gzip(tmp_path: Path) -> None:
    write_files(tmp_path, gzipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: truncated or damaged"):
        load(settings_for(tmp_path), seed=0)


def test_one_missing_file_is_named(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataNotFoundError, match=r"t10k-labels-idx1-ubyte\[\.gz\]: no such file; install Debian's"):
        load(settings_for(tmp_path), seed=0)


def test_an_empty_root_is_not_replaced_by_the_system_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # as where torchvision is not installed
    with pytest.raises(FileNotFoundError, match=rf"fashion_mnist: no files in {tmp_path}; install Debian's") as caught:
        load(settings_for(tmp_path), seed=0)
    assert isinstance(caught.value, DataNotFoundError)


def _torchvision(monkeypatch: pytest.MonkeyPatch, fashion_mnist_class: object) -> None:
    module = ModuleType("torchvision.datasets")
    module.FashionMNIST = fashion_mnist_class  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_torchvision_downloads_where_no_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download_into(root: Path, download: bool) -> None:
        assert download
        write_files(Path(root) / "FashionMNIST" / "raw")

    _torchvision(monkeypatch, download_into)
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "nothing")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    data = load(config.Data(name="fashion_mnist"), seed=0)

    assert len(data.train) == 20
    assert (tmp_path / "cache" / "gmmcnn" / "FashionMNIST" / "raw").is_dir()

    _torchvision(monkeypatch, None)  # the second time, nothing is downloaded
    assert torch.equal(load(config.Data(name="fashion_mnist"), seed=0).train.images, data.train.images)


def test_a_failed_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path, download: bool) -> None:
        raise OSError("Network is\nunreachable")

    _torchvision(monkeypatch, fail)
    with pytest.raises(DataNotFoundError, match=r"their download failed \(Network is unreachable\); install Debian's"):
        load(settings_for(tmp_path), seed=0)


@pytest.mark.fashion_mnist
def test_the_real_files(fashion_mnist_root: Path) -> None:
    data = load(config.Data(name="fashion_mnist", train_samples=1000), seed=0)  # found without data.root

    assert data.train.images.shape == (1000, 1, 28, 28)
    assert torch.bincount(data.validation.labels).tolist() == [1000] * 10
    assert (float(data.train.images.min()), float(data.train.images.max())) == (0.0, 1.0)
    whole = load(settings_for(fashion_mnist_root), seed=0)
    assert len(whole.train) == 60_000
    assert round(float(whole.train.images.mean()), 4) == 0.2860  # as published for this data set
    assert torch.equal(whole.train.images[data.train_indices], data.train.images)
