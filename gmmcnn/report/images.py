"""Probe images on one sheet, so that the page needs no other file."""

import math
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST_SHEET_BYTES = 400_000
LONGEST_SIDE_PIXELS = 96
_MOST_PIXELS_WITHOUT_LOSS = 600_000
_QUALITIES = (80, 60)
"""Of WebP, where a sheet without loss would be too large; the better with which it is small enough is taken."""
_MOST_IMAGES = 10_000


class Sheet(NamedTuple):
    """Images side by side, row by row, in the order in which they came."""

    uri: str
    """The picture as a ``data:`` address."""
    columns: int
    rows: int
    n_images: int
    """How many of the images found room."""


def sheet(images: Sequence[NDArray[np.uint8]]) -> Sheet | None:
    """Put images on a sheet; of too many, the first ones. None where there are none.

    Parameters
    ----------
    images : sequence of (H, W) or (H, W, 3) uint8
        All are scaled to the frame of the largest, or of ``LONGEST_SIDE_PIXELS``.
    """
    shown = list(images[:_MOST_IMAGES])
    while shown:
        picture, columns, rows = _joined(shown)
        lossless = picture.width * picture.height <= _MOST_PIXELS_WITHOUT_LOSS
        for quality in _QUALITIES:
            buffer = BytesIO()
            picture.save(buffer, "WEBP", lossless=lossless, quality=quality, method=1)
            lossless = False
            if buffer.tell() <= LARGEST_SHEET_BYTES or len(shown) == 1:
                uri = "data:image/webp;base64," + b64encode(buffer.getvalue()).decode("ascii")
                return Sheet(uri, columns, rows, len(shown))
        shown = shown[: max(1, int(0.9 * len(shown) * LARGEST_SHEET_BYTES / buffer.tell()))]
    return None


def _joined(images: Sequence[NDArray[np.uint8]]) -> tuple[Image.Image, int, int]:
    """One picture, with its columns and rows."""
    height, width = (min(LONGEST_SIDE_PIXELS, max(image.shape[axis] for image in images)) for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(images) * height / width))
    rows = math.ceil(len(images) / columns)
    picture = Image.new("RGB", (columns * width, rows * height))
    for number, image in enumerate(images):
        tile = Image.fromarray(image).convert("RGB")
        if tile.size != (width, height):
            tile = tile.resize((width, height))
        picture.paste(tile, (number % columns * width, number // columns * height))
    return picture, columns, rows
