from pathlib import Path

import pytest
import torch

from gmmcnn import config
from gmmcnn.data import Splits, load
from gmmcnn.errors import ConfigurationError, DataError

MODULE = '''
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

class Squares(Dataset):
    """Grey squares with their number as pixel value; label = number modulo 3."""
    classes = ["small", "middle", "large"]
    def __init__(self, train, root=None, size=4, n=30):
        self.offset, self.size, self.n = (0 if train else 100), size, n if train else 10
    def __len__(self):
        return self.n
    def image(self, index):
        return torch.full((1, self.size, self.size), self.offset + index, dtype=torch.uint8)
    def __getitem__(self, index):
        return self.image(index), index % 3

class Pictures(Squares):
    def image(self, index):
        pixels = np.zeros((4, 6, 3), np.uint8)
        pixels[..., 2] = index
        return Image.fromarray(pixels)

class OneSided(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return np.full((5, 5), index / 40), torch.tensor(index % 2)

class Jittered(OneSided):
    def __getitem__(self, index):
        return torch.rand(1, 3, 3), index % 2

class Growing(Squares):
    def image(self, index):
        return torch.zeros(1, 4 + index, 4)

class Palette(Squares):
    def image(self, index):
        return Image.new("P", (4, 4))

class Broken(Squares):
    def image(self, index):
        return torch.full((1, 4, 4), float("nan") if index == 2 else 0.0)

class Labelled(Squares):
    def __getitem__(self, index):
        return self.image(index), "cat"

class OutOfRange(Squares):
    def __getitem__(self, index):
        return self.image(index), index

class Bare(Squares):
    def __getitem__(self, index):
        return self.image(index)

class FromOne(OneSided):
    def __getitem__(self, index):
        return np.full((5, 5), index / 40), float(1 + index % 10)

class Unreadable(Squares):
    def __getitem__(self, index):
        raise OSError("no such picture")

class Stream(IterableDataset):
    def __init__(self, train):
        pass
    def __iter__(self):
        yield torch.zeros(1, 4, 4), 0

def failing(train):
    raise OSError("disk full")
'''


@pytest.fixture(autouse=True)
def my_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def load_by_name(name: str, seed: int = 0, **settings: object) -> Splits:
    return load(config.Data(name=f"my_data:{name}", **settings), seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["my_data:Squares", "my_data.Squares"])
def test_both_sides_of_a_data_set_with_two(name: str) -> None:
    data = load(config.Data(name=name, train_samples=12, kwargs={"size": 5}), seed=0)

    assert data.train.images.shape == (12, 1, 5, 5)
    assert torch.equal((data.train.images[:, 0, 0, 0] * 255).round().long(), data.train_indices)
    assert (data.validation.images[:, 0, 0, 0] * 255).round().tolist() == list(range(100, 110))
    assert torch.equal(data.train.labels, data.train_indices % 3)
    assert data.class_names == ("small", "middle", "large")


def test_a_data_set_with_one_side_is_split_by_seed() -> None:
    data = load_by_name("OneSided", validation_share=0.25)

    assert (len(data.train), len(data.validation)) == (30, 10)
    assert data.class_names == ("0", "1")
    assert data.train.images.shape == (30, 1, 5, 5)
    assert torch.allclose(data.train.images[:, 0, 0, 0], data.train_indices / 40)  # floats keep their values
    assert data.train.images.dtype == torch.float32


def test_labels_that_start_at_one_are_as_many_classes() -> None:
    data = load_by_name("FromOne")
    assert data.class_names == tuple(str(label) for label in range(1, 11))
    assert sorted(set(data.train.labels.tolist())) == list(range(10))
    assert torch.equal(data.train.labels, data.train_indices % 10)
    assert data.validation.labels.max() < data.n_classes


def test_pictures_become_channels_first() -> None:
    data = load_by_name("Pictures")
    assert data.train.images.shape == (30, 3, 4, 6)
    assert torch.equal((data.train.images[:, 2, 0, 0] * 255).round().long(), data.train_indices)
    assert not data.train.images[:, :2].any()


def test_random_transforms_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = load_by_name("Jittered", seed=4)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(load_by_name("Jittered", seed=4).train.images, first.train.images)
    assert not torch.equal(load_by_name("Jittered", seed=5).train.images, first.train.images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Growing", r"sample 1 has shape \(1, 5, 4\), others \(1, 4, 4\).*add a transform"),
        ("Palette", r"sample 0 is a PIL image of mode P; expected L or RGB: add a transform"),
        ("Broken", r"sample 2 has NaN or infinite pixels"),
        ("Labelled", r"the label of sample 0 is 'cat'; expected a class number"),
        ("OutOfRange", r"training sample 3 has label 3; expected 0 to 2"),
        ("Unreadable", r"sample 0 cannot be read \(no such picture\)"),
        ("Bare", r"sample 0 is a Tensor; expected \(image, label\)"),
        ("Stream", r"a Stream has no length or index; expected a map-style data set"),
        ("failing", r"cannot be opened with .*\(disk full\)"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_by_name(name)
    assert f"my_data:{name}" in str(caught.value)


def test_no_samples() -> None:
    with pytest.raises(DataError, match="has no samples"):
        load_by_name("Squares", kwargs={"n": 0})


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("my_data:Square", {}, r"no class or function 'Square'; did you mean Squares\?"),
        ("no_such_module.Data", {}, r"cannot import 'no_such_module'"),
        ("my_data:Squares", {"sise": 3}, r"data\.kwargs: .*'sise'; Squares accepts train, root, size, n"),
    ],
)
def test_a_name_or_argument_that_does_not_exist(name: str, kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(config.Data(name=name, kwargs=kwargs), seed=0)


def test_the_root_is_passed_on() -> None:
    with pytest.raises(ConfigurationError, match=r"OneSided accepts none"):
        load_by_name("OneSided", root="/somewhere")
    assert len(load_by_name("Squares", root="/somewhere").train) == 30


def test_modules_of_the_working_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "data_at_hand.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path / "here")
    assert len(load(config.Data(name="data_at_hand:Squares"), seed=0).train) == 30
