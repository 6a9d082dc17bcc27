"""A folder of pictures, a subfolder for each class: ``data.name=image_folder data.root=DIR``.

``DIR/cat/1.png, DIR/dog/holiday/2.jpg, …``: PNG and JPEG files, at any depth below the folder of their class. Where
``DIR`` has folders ``train`` and ``val`` (or ``valid``, ``validation``, ``test``) with such subfolders, they are the
two sides; elsewhere part of the images is held out. Files are opened when they are drawn and read by pillow.
"""

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from gmmcnn.data.samples import stacked
from gmmcnn.data.splits import Images, Source
from gmmcnn.errors import ConfigurationError, DataError, DataNotFoundError, DataWarning, one_line
from gmmcnn.names import did_you_mean

NAME = "image_folder"
SUFFIXES = (".png", ".jpg", ".jpeg")
UNREAD = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".avif", ".heic")
"""Pictures that are told of, and left out."""
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
"""The first that is there holds the validation images, beside ``train``."""

_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_WHITE = {True: 65535, False: 255}
"""Largest value of a pixel of 16 bits, or else 8."""


@dataclass(frozen=True)
class Preparation:
    """What is done to each picture; the settings of ``data.kwargs``."""

    size: Any = None
    """Pixels: one number for a square, or (height, width). The picture is scaled to cover it, and its middle is taken.
    None takes the pictures as they are, which must then be of one size."""
    channels: Any = 3
    """3 for colour, 1 for grey."""
    mean: Any = 0.0
    """Subtracted from values of 0 … 1: one number, or one for each channel."""
    std: Any = 1.0
    """Then divided by: one number, or one for each channel."""

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> "Preparation":
        """Check and normalise settings. ConfigurationError if one is unknown or impossible."""
        names = [field.name for field in fields(cls)]
        for name in kwargs:
            if name not in names:
                raise ConfigurationError(
                    f"data.kwargs.{name}: no such setting of {NAME}; expected one of {', '.join(names)}"
                    f"{did_you_mean(str(name), names)}"
                )
        given = cls(**kwargs)
        if given.channels not in tuple(_MODES) or isinstance(given.channels, bool):
            raise ConfigurationError(f"data.kwargs.channels={given.channels!r}: expected 3 for colour or 1 for grey")
        return cls(
            size=_size(given.size),
            channels=int(given.channels),
            mean=_by_channel("mean", given.mean, given.channels),
            std=_by_channel("std", given.std, given.channels, positive=True),
        )

    def __call__(self, path: Path) -> Tensor:
        """Read a picture: (C, H, W) float32. DataError if it is none, or damaged."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=("PNG", "JPEG")) as picture:
                    picture.load()
                    pixels = self._pixels(picture)
        except Exception as error:  # pillow's decoders raise whatever they stumble on
            raise DataError(f"{path}: no readable PNG or JPEG ({one_line(error)}); replace or remove it") from error
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _pixels(self, picture: Image.Image) -> Tensor:
        """Values of 0 … 1, (C, H, W) float32."""
        upright = ImageOps.exif_transpose(picture)
        if upright.mode == "P":  # a palette may have a transparent entry, which only RGBA holds
            upright = upright.convert("RGBA")
        deep = upright.mode in _DEEP_MODES
        # Of 16 bits pillow would cut off all above 255; a float keeps them.
        plain = upright.convert("F") if deep else upright.convert(_MODES[self.channels])
        if self.size is not None:
            height, width = self.size
            plain = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(plain, np.float32)) / _WHITE[deep]
        return values.permute(2, 0, 1) if values.ndim == 3 else values[None].repeat(self.channels, 1, 1)


@dataclass(frozen=True, eq=False)
class PicturePool:
    """Pictures with their classes, read when they are taken."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    prepare: Preparation

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: NDArray[np.int64]) -> Images:
        """Read the pictures at ``indices``. DataError if one is damaged, or of another size than the first."""
        paths = [self.paths[index] for index in indices]
        images = [self.prepare(path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape != images[0].shape:
                raise DataError(
                    f"{path}: {image.shape[1]} × {image.shape[2]} pixels, {paths[0]} has {images[0].shape[1]} × "
                    f"{images[0].shape[2]}; expected one size: set data.kwargs.size"
                )
        return Images(stacked(images, NAME, indices), torch.from_numpy(self.labels[indices]))


def source(root: Path | None, kwargs: Mapping[str, Any]) -> Source:
    """Find the pictures of a folder.

    Raises
    ------
    ConfigurationError
        There is no ``data.root``, or ``data.kwargs`` do not fit.
    DataNotFoundError, DataError
        The folder is missing or has no pictures in subfolders, or the validation side has a class of its own.

    Warns
    -----
    DataWarning
        There are pictures of formats that are not read.
    """
    prepare = Preparation.of(kwargs)
    if root is None:
        raise ConfigurationError(f"data.root: {NAME} needs one: the folder that holds a subfolder for each class")
    if not root.is_dir():
        raise DataNotFoundError(
            f"{root}: no such folder; expected one that holds a subfolder of pictures for each class"
        )
    train = root / "train" if _by_class(root / "train") else root
    held_out = next((root / name for name in VALIDATION_FOLDERS if _by_class(root / name)), None)
    pictures = _by_class(train)
    if not pictures:
        raise DataError(f"{root}: no pictures in subfolders; expected {root}/CLASS/*.png or *.jpg, a folder a class")
    names = tuple(pictures)
    if unread := _unread(train) + (_unread(held_out) if held_out else Counter()):
        said = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(unread.items()))
        warnings.warn(f"{root}: {said} left out; expected PNG or JPEG: convert them", DataWarning, stacklevel=2)
    if train == root and held_out is not None and any(path.is_dir() for path in held_out.iterdir()):
        raise DataError(f"{root}: has {held_out.name}/ with a subfolder for each class; expected train/ beside it")
    validation = None if held_out is None else _pool(_by_class(held_out), names, prepare, held_out)
    return Source("pictures by folder", names, _pool(pictures, names, prepare, train), validation)


def _by_class(folder: Path) -> dict[str, list[Path]]:
    """Class → its pictures, both by name; folders without pictures are no classes."""
    if not folder.is_dir():
        return {}
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    pictures = {subfolder.name: sorted(filter(_is_picture, subfolder.rglob("*"))) for subfolder in subfolders}
    return {name: paths for name, paths in pictures.items() if paths}


def _unread(folder: Path) -> Counter[str]:
    """Numbers of pictures of other formats in the folders of classes, by suffix."""
    below = (path for path in folder.rglob("*") if path.parent != folder and path.is_file())
    seen = (path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return Counter(suffix for path in seen if (suffix := path.suffix.lower()) in UNREAD)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _pool(
    pictures: Mapping[str, list[Path]], names: tuple[str, ...], prepare: Preparation, folder: Path
) -> PicturePool:
    if strangers := [name for name in pictures if name not in names]:
        raise DataError(f"{folder / strangers[0]}: a class without training images; expected one of {', '.join(names)}")
    paths = tuple(path for found in pictures.values() for path in found)
    labels = np.repeat([names.index(name) for name in pictures], [len(found) for found in pictures.values()])
    return PicturePool(paths, labels.astype(np.int64), prepare)


def _size(given: Any) -> tuple[int, int] | None:
    """Height and width of one number or two."""
    if given is None:
        return None
    sides = list(given) if isinstance(given, list | tuple) else [given, given]
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in sides)
    if len(sides) != 2 or not whole or min(sides) < 1:
        raise ConfigurationError(f"data.kwargs.size={given!r}: expected pixels, one number or [height, width]")
    height, width = map(int, sides)
    return height, width


def _by_channel(name: str, given: Any, n_channels: int, *, positive: bool = False) -> tuple[float, ...]:
    """One number for each channel, of one or as many."""
    values = list(given) if isinstance(given, list | tuple) else [given] * n_channels
    numbers = all(isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) for value in values)
    if len(values) != n_channels or not numbers or (positive and min(values) <= 0):
        kind = "positive number" if positive else "number"
        raise ConfigurationError(
            f"data.kwargs.{name}={given!r}: expected one {kind}, or one for each of {n_channels} channels"
        )
    return tuple(map(float, values))
