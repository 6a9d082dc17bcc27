from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from gmmcnn.report.images import LONGEST_SIDE_PIXELS, data_uri


def decoded(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(BytesIO(b64decode(data))))


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (32, 32, 3), (20, 70)])
def test_small_images_come_back_pixel_by_pixel(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decoded(data_uri(image)), image)


def test_large_images_are_scaled_down_in_proportion() -> None:
    image = np.zeros((400, 200, 3), dtype=np.uint8)
    assert decoded(data_uri(image)).shape == (LONGEST_SIDE_PIXELS, LONGEST_SIDE_PIXELS // 2, 3)
