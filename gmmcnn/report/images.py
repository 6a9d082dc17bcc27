"""Probe images as data URIs, so that the page needs no other file."""

from base64 import b64encode
from io import BytesIO

from numpy.typing import NDArray
from PIL import Image

LONGEST_SIDE_PIXELS = 96
"""Larger images are scaled down: the page shows them no larger, and grows by each of them."""


def data_uri(image: NDArray) -> str:
    """PNG of a (H, W) or (H, W, 3) uint8 image, as a ``data:`` address."""
    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST_SIDE_PIXELS, LONGEST_SIDE_PIXELS))
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode("ascii")
