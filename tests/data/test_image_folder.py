"""Pictures in folders: which they are, what is done to them, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gmmcnn import config
from gmmcnn.data import Splits, load
from gmmcnn.data.image_folder import Preparation
from gmmcnn.errors import ConfigurationError, DataError, DataNotFoundError, DataWarning


def picture(path: Path, colour=(255, 51, 0), size=(6, 4), mode="RGB", **saving) -> None:
    """A picture of one colour, its size as (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **saving)


def folder(root: Path, *sides: str) -> Path:
    """Three classes of eight pictures; the blue channel numbers them."""
    for side in sides or ("",):
        for c, name in enumerate(("cat", "dog", "emu")):
            for n in range(8):
                picture(root / side / name / f"{n}.png", (255, 0, 10 * c + n))
    return root


def read(root: Path, seed: int = 0, **settings) -> Splits:
    return load(config.Data(name="image_folder", root=str(root), **settings), seed)


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 2, 0, 0] * 255).round().int().tolist()


def test_classes_are_subfolders_and_part_is_held_out(tmp_path):
    data = read(folder(tmp_path), validation_share=0.25)
    assert data.class_names == ("cat", "dog", "emu")
    assert (len(data.train), len(data.validation)) == (18, 6)
    assert data.train.images.shape == (18, 3, 4, 6)
    for side in (data.train, data.validation):
        assert [number // 10 for number in numbers(side.images)] == side.labels.tolist()
    assert data.train.images[:, 0].unique().tolist() == [1.0]
    assert sorted(numbers(data.train.images) + numbers(data.validation.images)) == [
        10 * c + n for c in range(3) for n in range(8)
    ]


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "test"])
def test_train_and_validation_folders_are_the_two_sides(tmp_path, validation):
    folder(tmp_path, "train")
    picture(tmp_path / validation / "dog" / "deep" / "in.JPEG", quality=100)
    picture(tmp_path / validation / "emu" / "1.jpg", quality=100)
    data = read(tmp_path, train_samples=10)
    assert (len(data.train), data.validation.labels.tolist()) == (10, [1, 2])
    assert data.validation.images[0, :, 2, 2].tolist() == pytest.approx([1.0, 0.2, 0.0], abs=0.02)


def test_a_training_folder_alone_is_split(tmp_path):
    data = read(folder(tmp_path, "train"))
    assert (len(data.train), len(data.validation), data.class_names) == (19, 5, ("cat", "dog", "emu"))


def test_train_may_be_the_name_of_a_class(tmp_path):
    for name in ("train", "tram"):
        for n in range(4):
            picture(tmp_path / name / f"{n}.png")
    assert read(tmp_path).class_names == ("train", "tram")


def test_other_files_are_not_looked_at(tmp_path):
    folder(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "cat" / "._0.png").write_text("of another system")
    (tmp_path / ".thumbnails").mkdir()
    picture(tmp_path / ".thumbnails" / "0.png")
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "beside.png")
    assert len(read(tmp_path).train) + len(read(tmp_path).validation) == 24


def test_pictures_of_formats_that_are_not_read_are_counted(tmp_path):
    folder(tmp_path)
    for name in ("cat/a.webp", "cat/b.WEBP", "dog/more/c.bmp", ".hidden/d.bmp", "dog/.e.bmp", "beside.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(DataWarning, match=r"1 \.bmp, 2 \.webp left out; expected PNG or JPEG"):
        assert len(read(tmp_path).train) + len(read(tmp_path).validation) == 24


# ---------------------------------------------------------------------------------------------------------- preparation


def prepared(path: Path, **kwargs) -> torch.Tensor:
    return Preparation.of(kwargs)(path)


def test_values_are_scaled_and_normalised(tmp_path):
    picture(tmp_path / "a.png")
    assert prepared(tmp_path / "a.png")[:, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])
    normal = prepared(tmp_path / "a.png", mean=[0.5, 0.2, 0.1], std=0.5)
    assert normal[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, -0.2])
    grey = prepared(tmp_path / "a.png", channels=1)
    assert grey.shape == (1, 4, 6)
    assert grey[0, 0, 0].item() == pytest.approx((0.299 * 255 + 0.587 * 51) / 255, abs=0.003)


def test_a_picture_is_scaled_to_cover_the_size_and_its_middle_taken(tmp_path):
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = prepared(tmp_path / "a.png", size=5)
    assert small.shape == (3, 5, 5)
    assert (small > 0.6).all()  # the sides are cut off, not squeezed in
    assert prepared(tmp_path / "a.png", size=[2, 7], channels=1).shape == (1, 2, 7)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 51, [0.2] * 3),
        ("1", 1, [1.0] * 3),
        ("P", 0, None),
        ("LA", (51, 0), [0.2] * 3),
        ("RGBA", (255, 51, 0, 0), [1.0, 0.2, 0.0]),
        ("I;16", 13107, [0.2] * 3),
    ],
)
@pytest.mark.parametrize("size", [None, 3])
def test_every_kind_of_png_keeps_its_values(tmp_path, mode, colour, expected, size):
    picture(tmp_path / "a.png", colour, mode=mode)
    values = prepared(tmp_path / "a.png", size=size)
    assert values.shape == ((3, 4, 6) if size is None else (3, 3, 3))
    if expected is not None:
        assert values[:, 1, 1].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_palette_with_transparency_and_a_turned_photograph(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 51, 0])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert prepared(tmp_path / "a.png")[:, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])
    turned = Image.Exif()
    turned[274] = 6  # the camera was held upright
    picture(tmp_path / "b.jpg", exif=turned)
    assert prepared(tmp_path / "b.jpg").shape == (3, 6, 4)
    picture(tmp_path / "c.jpg", (0, 0, 0, 0), mode="CMYK")
    assert prepared(tmp_path / "c.jpg").min() > 0.98


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"sise": 3},
            r"data\.kwargs\.sise: no such setting of image_folder; .*did you mean size",
        ),
        ({"size": 0}, r"data\.kwargs\.size=0: expected pixels"),
        ({"size": [3, 4, 5]}, r"data\.kwargs\.size=\[3, 4, 5\]"),
        ({"size": 3.5}, r"data\.kwargs\.size=3\.5"),
        ({"size": "3"}, r"data\.kwargs\.size='3'"),
        ({"channels": 4}, r"data\.kwargs\.channels=4: expected 3 for colour or 1 for grey"),
        ({"channels": [3]}, r"data\.kwargs\.channels=\[3\]"),
        (
            {"mean": [0.5, 0.5]},
            r"data\.kwargs\.mean=\[0\.5, 0\.5\]: expected one number, or one for each of 3",
        ),
        ({"mean": "imagenet"}, r"data\.kwargs\.mean='imagenet'"),
        ({"std": 0}, r"data\.kwargs\.std=0: expected one positive number"),
        ({"std": float("nan")}, r"data\.kwargs\.std=nan"),
    ],
)
def test_impossible_settings_are_named(tmp_path, kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        read(folder(tmp_path), kwargs=kwargs)


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_is_no_folder_of_classes(tmp_path):
    with pytest.raises(ConfigurationError, match=r"data\.root: image_folder needs one"):
        load(config.Data(name="image_folder"), 0)
    with pytest.raises(DataNotFoundError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")
    picture(tmp_path / "flat" / "a.png")
    with pytest.raises(DataError, match=r"flat: no pictures in subfolders; expected .*flat/CLASS"):
        read(tmp_path / "flat")
    folder(tmp_path / "half", "val")
    with pytest.raises(DataError, match=r"half: has val/ with a subfolder for each class; expected train/ beside it"):
        read(tmp_path / "half")
    folder(tmp_path / "more", "train", "val")
    picture(tmp_path / "more" / "val" / "fox" / "1.png")
    with pytest.raises(DataError, match="fox: a class without training images; expected one of cat, dog, emu"):
        read(tmp_path / "more")


def test_pictures_of_different_sizes_need_one(tmp_path):
    picture(folder(tmp_path) / "emu" / "9.png", size=(7, 4))
    with pytest.raises(DataError, match=r"9\.png: 4 × 7 pixels, .*png has 4 × 6; .*: set data\.kwargs\.size"):
        read(tmp_path, validation_share=0.04)
    assert read(tmp_path, kwargs={"size": 4}).train.images.shape[1:] == (3, 4, 4)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_picture_is_a_picture_or_named(tmp_path_factory, data):
    form = data.draw(st.sampled_from(["PNG", "JPEG"]))
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)).save(buffer, form)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.png"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        values = prepared(path, size=4)
    except DataError as error:
        message = str(error)
    else:
        assert values.shape == (3, 4, 4)
        assert values.isfinite().all()
        return
    assert message.startswith(f"{path}: no readable PNG or JPEG")
    assert "\n" not in message


def test_a_picture_that_unpacks_to_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: no readable PNG or JPEG \(Image size \(24 pixels\) exceeds limit"):
        prepared(tmp_path / "a.png")
