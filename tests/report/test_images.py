from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from gmmcnn.report import images
from gmmcnn.report.images import LONGEST_SIDE_PIXELS, sheet


def decoded(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(BytesIO(b64decode(data))))


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (32, 32, 3), (20, 70)])
@pytest.mark.parametrize("number", [1, 2, 7])
def test_small_images_come_back_pixel_by_pixel_from_their_places(shape: tuple[int, ...], number: int) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(number)]
    made = sheet(pictures)
    assert made is not None
    whole, (height, width) = decoded(made.uri), shape[:2]
    assert whole.shape == (made.rows * height, made.columns * width, 3)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, made.columns)
        tile = whole[row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert np.array_equal(tile, picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1))


def test_large_images_are_scaled_down_and_none_make_no_sheet() -> None:
    made = sheet([np.zeros((400, 200, 3), np.uint8), np.zeros((10, 200, 3), np.uint8)])
    assert made is not None
    assert decoded(made.uri).shape[0] == LONGEST_SIDE_PIXELS * made.rows
    assert sheet([]) is None


def test_of_more_images_than_there_is_room_for_the_first_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST_SHEET_BYTES", 20_000)
    noise = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
    made = sheet(list(noise))
    assert made is not None
    assert 10 < made.n_images < 80
    assert len(made.uri) * 3 / 4 <= 20_100
