"""Fashion-MNIST, read from its IDX files, gzipped or not.

The IDX format (Y. LeCun, "The MNIST database of handwritten digits"): two zero bytes, the type of the values (8:
unsigned bytes), the number of dimensions, each dimension as a big-endian 32-bit number, then the values in C order.

Data set: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms"
(2017).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gmmcnn.data import downloads
from gmmcnn.data.splits import BytePool, Source
from gmmcnn.errors import DataError, DataNotFoundError

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IMAGE_SIZE = (28, 28)
N_IMAGES = 60_000
"""Of the training side, the larger one."""
REMEDY = (
    "install Debian's package dataset-fashion-mnist, or put {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz] from "
    "github.com/zalandoresearch/fashion-mnist into a folder and set data.root to it, or install gmmcnn[vision] to "
    "download them"
)
_NAMES = {"images": "{split}-images-idx3-ubyte", "labels": "{split}-labels-idx1-ubyte"}
_UNSIGNED_BYTES = 8


def source(root: Path | None) -> Source:
    """Read the four files from ``root``; without a root from the system's folder, or from the downloads."""
    folder = _find(root)
    return Source("photographs of clothes", CLASS_NAMES, _read_split(folder, "train"), _read_split(folder, "t10k"))


def read_idx(path: Path, n_dimensions: int, largest: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, and of it no more than its header announces.

    Parameters
    ----------
    path : Path
        Gzipped where the name ends in ``.gz``.
    n_dimensions : int
        3 for images, 1 for labels.
    largest : tuple of int, optional
        Shape that the header may announce at most: a few bytes of gzip can stand for any number of zeros.

    Raises
    ------
    DataError
        The file is truncated, too long, or no such IDX file.
    """
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            shape = _read_header(file, path, n_dimensions, largest)
            n_values = math.prod(shape)
            values = file.read(n_values + 1) if packed or path.stat().st_size == file.tell() + n_values else b""
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error}); {REMEDY}") from error
    if len(values) != n_values:
        n_header_bytes = 4 + 4 * n_dimensions
        n_bytes = n_header_bytes + len(values) if packed else path.stat().st_size
        raise DataError(
            f"{path}: {n_bytes} bytes{' or more' if len(values) > n_values else ''}; expected "
            f"{n_header_bytes + n_values} for the shape {shape} in its header; {REMEDY}"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_header(
    file: BinaryIO | gzip.GzipFile, path: Path, n_dimensions: int, largest: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Shape that an IDX file announces."""
    magic, found = bytes([0, 0, _UNSIGNED_BYTES, n_dimensions]), file.read(4)
    if found != magic:
        raise DataError(
            f"{path}: starts with 0x{found.hex()}; expected 0x{magic.hex()}, an IDX file of unsigned bytes in "
            f"{n_dimensions} dimension(s); {REMEDY}"
        )
    sizes = file.read(4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise DataError(f"{path}: {4 + len(sizes)} bytes; expected a header of {4 + 4 * n_dimensions}; {REMEDY}")
    shape = struct.unpack(f">{n_dimensions}I", sizes)
    if largest is not None and any(size > most for size, most in zip(shape, largest, strict=True)):
        raise DataError(f"{path}: announces values of shape {shape}; expected {largest} at most; {REMEDY}")
    return shape


def _find(root: Path | None) -> Path:
    """Return the folder with the files, downloaded if need be."""
    download_root = root or downloads.cache_folder()
    raw = download_root / "FashionMNIST" / "raw"  # where torchvision puts them
    candidates = [download_root, raw] if root else [SYSTEM_FOLDER, raw]
    folder = downloads.first_with(candidates, lambda folder: any(folder.glob("*-ubyte*")))
    if folder is None:
        downloads.download(
            "fashion_mnist", root or SYSTEM_FOLDER,
            lambda datasets: datasets.FashionMNIST(download_root, download=True), REMEDY,
        )  # fmt: skip
        return raw
    return folder


def _read_split(folder: Path, split: str) -> BytePool:
    image_path, label_path = (_path(folder, name.format(split=split)) for name in _NAMES.values())
    images = read_idx(image_path, 3, (N_IMAGES, *IMAGE_SIZE))
    labels = read_idx(label_path, 1, (N_IMAGES,))
    if images.shape[1:] != IMAGE_SIZE:
        raise DataError(f"{image_path}: images of {images.shape[1:]} pixels; expected {IMAGE_SIZE}; {REMEDY}")
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{label_path}: {len(labels)} labels; expected one for each of {len(images)} images; {REMEDY}")
    if labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{label_path}: label {labels.max()}; expected 0 to {len(CLASS_NAMES) - 1}; {REMEDY}")
    return BytePool(images[:, None], labels)


def _path(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataNotFoundError(f"{folder / name}[.gz]: no such file; {REMEDY}")
