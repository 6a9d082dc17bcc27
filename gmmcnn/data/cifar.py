"""CIFAR-10 and CIFAR-100, read from their binary versions.

A file is a sequence of records, with no header: the label (CIFAR-100: the coarse, then the fine label, of which the
fine one is used), then 3 × 32 × 32 bytes, channel after channel, row after row. Source: Krizhevsky, "Learning Multiple
Layers of Features from Tiny Images" (2009), and the data set's page, www.cs.toronto.edu/~kriz/cifar.html.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from gmmcnn.data import downloads
from gmmcnn.data.splits import BytePool, Source
from gmmcnn.errors import DataError, DataNotFoundError

IMAGE_SHAPE = (3, 32, 32)
_N_PIXEL_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Format:
    """The files of one of the two data sets."""

    name: str
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    train_records_per_file: int
    n_labels: int
    """Label bytes of a record; the last one is used."""
    n_classes: int
    archive: str
    archive_md5: str

    @property
    def remedy(self) -> str:
        """What to do where a file is missing or wrong."""
        return (
            f"unpack {self.archive} and set data.root to the folder that holds {self.folder}, "
            "or install gmmcnn[vision] to download it"
        )


CIFAR10 = Format(
    name="cifar10",
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test_file="test_batch.bin",
    names_file="batches.meta.txt",
    train_records_per_file=10_000,
    n_labels=1,
    n_classes=10,
    archive="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
)
CIFAR100 = Format(
    name="cifar100",
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_file="test.bin",
    names_file="fine_label_names.txt",
    train_records_per_file=50_000,
    n_labels=2,
    n_classes=100,
    archive="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    archive_md5="03b5dce01913d631647c71ecec9e9cb8",
)
N_TEST_RECORDS = 10_000


def cifar10(root: Path | None) -> Source:
    """Read CIFAR-10 from ``root``, or from the downloads."""
    return _source(CIFAR10, root)


def cifar100(root: Path | None) -> Source:
    """Read CIFAR-100 with its fine labels from ``root``, or from the downloads."""
    return _source(CIFAR100, root)


def _source(form: Format, root: Path | None) -> Source:
    folder = _find(form, root or downloads.cache_folder())
    parts = [_read(folder / name, form, form.train_records_per_file) for name in form.train_files]
    train = BytePool(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))
    validation = _read(folder / form.test_file, form, N_TEST_RECORDS)
    return Source("photographs of animals and things", _class_names(folder / form.names_file, form), train, validation)


def _find(form: Format, root: Path) -> Path:
    """Return the folder with the files, downloaded if need be."""
    names = (*form.train_files, form.test_file)
    folder = downloads.first_with(
        [root, root / form.folder], lambda folder: any((folder / name).is_file() for name in names)
    )
    if folder is None:
        downloads.download(form.name, root, lambda datasets: _download(datasets, form, root), form.remedy)
        return root / form.folder
    return folder


def _download(datasets: ModuleType, form: Format, root: Path) -> None:
    datasets.utils.download_and_extract_archive(form.archive, str(root), md5=form.archive_md5)


def _read(path: Path, form: Format, n_records: int) -> BytePool:
    """Read one file of ``n_records`` records."""
    if not path.is_file():
        raise DataNotFoundError(f"{path}: no such file; {form.remedy}")
    n_record_bytes = form.n_labels + _N_PIXEL_BYTES
    n_bytes = n_records * n_record_bytes
    if path.stat().st_size != n_bytes:
        raise DataError(
            f"{path}: {path.stat().st_size} bytes; expected {n_bytes}, {n_records} records of {n_record_bytes}; "
            f"{form.remedy}"
        )
    records = np.fromfile(path, np.uint8).reshape(n_records, n_record_bytes)
    labels = records[:, form.n_labels - 1]
    if labels.max() >= form.n_classes:
        record = int(labels.argmax())
        raise DataError(
            f"{path}: record {record} has label {labels[record]}; expected 0 to {form.n_classes - 1}; {form.remedy}"
        )
    return BytePool(records[:, form.n_labels :].reshape(-1, *IMAGE_SHAPE), labels)


def _class_names(path: Path, form: Format) -> tuple[str, ...]:
    """Read the names from the text file beside the images; numbers where it is missing or of another length."""
    names = tuple(path.read_text(encoding="utf-8").split()) if path.is_file() else ()
    return names if len(names) == form.n_classes else tuple(str(label) for label in range(form.n_classes))
