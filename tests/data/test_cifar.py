import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from gmmcnn import config
from gmmcnn.data import Splits, load
from gmmcnn.errors import DataError, DataNotFoundError

N_RECORDS = 10_000  # of every CIFAR-10 file
RECORD_BYTES = 3073


@pytest.fixture(scope="module")
def records() -> NDArray[np.uint8]:
    """One CIFAR-10 file: (10000, 3073)."""
    records = np.random.default_rng(0).integers(0, 256, (N_RECORDS, RECORD_BYTES), dtype=np.uint8)
    records[:, 0] %= 10
    return records


@pytest.fixture(scope="module")
def cifar10_files(records: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six files; the same records in each, since all are links to one."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(records.tobytes())
    for i in range(1, 6):
        os.link(folder / "test_batch.bin", folder / f"data_batch_{i}.bin")
    (folder / "batches.meta.txt").write_text("\n".join(f"class-{i}" for i in range(10)) + "\n\n")
    return folder


@pytest.fixture
def linked_files(cifar10_files: Path, tmp_path: Path) -> Path:
    """The same files in a folder of the test's own; to change one, unlink it first."""
    for path in cifar10_files.iterdir():
        os.link(path, tmp_path / path.name)
    return tmp_path


def load_cifar(name: str, root: Path) -> Splits:
    return load(config.Data(name=name, root=str(root), train_samples=300), seed=0)


@pytest.mark.parametrize("above", [False, True])
def test_cifar10_is_read_record_by_record(cifar10_files: Path, records: NDArray[np.uint8], above: bool) -> None:
    data = load_cifar("cifar10", cifar10_files.parent if above else cifar10_files)

    assert data.train.images.shape == (300, 3, 32, 32)
    assert len(data.validation) == N_RECORDS
    assert data.class_names == tuple(f"class-{i}" for i in range(10))
    assert data.train_indices.max() >= 4 * N_RECORDS  # from the last of the five files too
    sample, index = 7, int(data.train_indices[7])
    record = records[index % N_RECORDS]
    assert int(data.train.labels[sample]) == record[0]
    red, blue = record[1 : 1 + 1024], record[1 + 2048 :]
    assert np.array_equal((data.train.images[sample, 0] * 255).round().flatten(), red)
    assert np.array_equal((data.train.images[sample, 2] * 255).round().flatten(), blue)


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, n_records in (("train.bin", 50_000), ("test.bin", 10_000)):
        content = np.zeros((n_records, 3074), np.uint8)
        content[:, 0] = 19  # coarse
        content[:, 1] = rng.integers(0, 100, n_records)
        content[:, 2] = content[:, 1]  # the first red pixel repeats the fine label
        (tmp_path / name).write_bytes(content.tobytes())

    data = load_cifar("cifar100", tmp_path)

    assert data.n_classes == 100
    assert data.class_names[:3] == ("0", "1", "2")  # no fine_label_names.txt
    assert np.array_equal((data.train.images[:, 0, 0, 0] * 255).round(), data.train.labels)
    assert len(set(data.validation.labels.tolist())) == 100


def test_a_truncated_file(linked_files: Path, records: NDArray[np.uint8]) -> None:
    path = linked_files / "data_batch_3.bin"
    path.unlink()
    path.write_bytes(records[:-1].tobytes())
    with pytest.raises(DataError, match=r"data_batch_3\.bin: 30726927 bytes; expected 30730000, 10000 records of 3073"):
        load_cifar("cifar10", linked_files)


def test_a_label_out_of_range(linked_files: Path, records: NDArray[np.uint8]) -> None:
    path = linked_files / "test_batch.bin"
    path.unlink()
    wrong = records.copy()
    wrong[41, 0] = 10
    path.write_bytes(wrong.tobytes())
    with pytest.raises(DataError, match=r"test_batch\.bin: record 41 has label 10; expected 0 to 9; unpack https"):
        load_cifar("cifar10", linked_files)


def test_a_missing_file(linked_files: Path) -> None:
    (linked_files / "data_batch_5.bin").unlink()
    with pytest.raises(DataNotFoundError, match=r"data_batch_5\.bin: no such file; unpack .*cifar-10-binary\.tar\.gz"):
        load_cifar("cifar10", linked_files)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_files_and_no_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    (tmp_path / "cifar-10-batches-py").mkdir()  # the pickled version is not looked at
    with pytest.raises(DataNotFoundError, match=rf"{name}: no files in {tmp_path}; unpack .*-binary\.tar\.gz"):
        load_cifar(name, tmp_path)


def test_torchvision_fetches_the_binary_version(
    cifar10_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = []

    def download_and_extract_archive(url: str, root: str, md5: str) -> None:
        asked_for.append(url)
        (tmp_path / "cifar-10-batches-bin").symlink_to(cifar10_files)

    module = ModuleType("torchvision.datasets")
    module.utils = SimpleNamespace(download_and_extract_archive=download_and_extract_archive)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)

    assert len(load_cifar("cifar10", tmp_path).train) == 300
    assert len(load_cifar("cifar10", tmp_path).train) == 300
    assert asked_for == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
