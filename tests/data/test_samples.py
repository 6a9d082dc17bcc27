"""Samples of every source: which they are, how they are joined, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from gmmcnn.data.samples import Samples, as_image, class_numbers
from gmmcnn.errors import ConfigurationError, DataError

IMAGES = torch.arange(20.0).reshape(20, 1, 1, 1)
DATA = TensorDataset(IMAGES, torch.arange(20))


def numbers(samples) -> list[int]:
    source = Samples(samples, "images")
    return source.take(range(len(source)))[0].flatten().int().tolist()


def test_arrays_and_data_sets_are_taken_by_number():
    for source in (IMAGES, IMAGES.numpy(), DATA, list(IMAGES)):
        images, beside = Samples(source, "images").take(np.array([3, 1]))
        assert images.tolist() == IMAGES[[3, 1]].tolist()
        assert beside is None if source is not DATA else [int(label) for label in beside] == [3, 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shuffle": True}, list(range(20))),
        ({"sampler": RandomSampler(DATA, replacement=True, num_samples=5)}, list(range(20))),
        ({"sampler": SequentialSampler(DATA)}, list(range(20))),
        ({"sampler": DistributedSampler(DATA, num_replicas=2, rank=0)}, list(range(20))),
        ({"sampler": SubsetRandomSampler([7, 2, 5])}, [7, 2, 5]),
        ({"batch_size": None}, list(range(20))),
    ],
)
def test_of_a_loader_its_sampler_says_which_samples_there_are(options, expected):
    assert numbers(DataLoader(DATA, **options)) == expected


def test_a_loaders_collate_function_joins_the_samples():
    def collate(samples):
        return torch.stack([image + 100 for image, _ in samples]), torch.tensor([label for _, label in samples])

    images, labels = Samples(DataLoader(DATA, batch_size=4, collate_fn=collate), "images").take(range(20))
    assert images.flatten().tolist() == list(range(100, 120))
    assert labels.tolist() == list(range(20))


class Halves(BatchSampler):
    """Batches drawn in a way of their own."""


class Wrapper(DistributedSampler):
    """Like Lightning's, around any other sampler."""


class Stream(IterableDataset):
    """Samples without numbers."""

    def __iter__(self):
        return iter(DATA)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 20, 5)), "by WeightedRandomSampler; give the data set"),
        (DataLoader(DATA, sampler=Wrapper(SubsetRandomSampler([1]), num_replicas=1, rank=0)), "by Wrapper"),
        (DataLoader(DATA, batch_sampler=Halves(SequentialSampler(DATA), 4, drop_last=False)), "by Halves"),
        (Stream(), "images: a Stream; expected a Tensor, ndarray, map-style Dataset or DataLoader"),
        (IMAGES[:0], "images: there are no samples"),
        (DataLoader(DATA, sampler=SubsetRandomSampler([])), "images: there are no samples"),
        (IMAGES[0], r"images: shape \(1, 1, 1\) in a batch"),
    ],
)
def test_what_is_refused(samples, message):
    with pytest.raises(ConfigurationError, match=message):
        numbers(samples)


# ---------------------------------------------------------------------------------------------------------------- types

PIXELS = np.random.default_rng(0).random((6, 2, 3, 4))


class Items:
    """A data set without torch: arrays with their numbers."""

    def __init__(self, images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.images[index], np.float32(index)


LAYOUTS = {
    "plain": lambda a: a,
    "flipped": lambda a: a[..., ::-1].copy()[..., ::-1],
    "channels last": lambda a: a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "every other": lambda a: np.repeat(a, 2, axis=0)[::2],
}
CONTAINERS = {
    "array": lambda a: a,
    "items": Items,
    "list": list,
    "loader": lambda a: DataLoader(Items(a), batch_size=2),
}


@given(
    dtype=st.sampled_from(["u1", "f2", "<f4", ">f4", "<f8", ">f8", "g"]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    container=st.sampled_from(sorted(CONTAINERS)),
    indices=st.lists(st.integers(0, 5), min_size=1, max_size=6),
)
def test_images_of_any_type_layout_and_container_have_the_same_pixels(dtype, layout, container, indices):
    array = (PIXELS * 255 if dtype == "u1" else PIXELS).astype(dtype)
    images, beside = Samples(CONTAINERS[container](LAYOUTS[layout](array)), "images").take(np.array(indices))
    expected = (array[indices] / np.float32(255) if dtype == "u1" else array[indices]).astype(np.float64)
    assert images.is_floating_point()
    np.testing.assert_array_equal(images.double().numpy(), expected)
    assert beside is None or class_numbers(beside, len(indices)).tolist() == indices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_that_require_gradients_come_without_them(dtype):
    images, _ = Samples(torch.ones(3, 1, 2, 2, dtype=dtype, requires_grad=True) * 2, "images").take(range(3))
    assert not images.requires_grad
    assert images.dtype == dtype


def test_pictures_of_a_data_set_are_taken():
    pictures = [(Image.new("RGB", (4, 3), (0, 51, 255)), 1), (Image.new("RGB", (4, 3)), 2)]
    images, labels = Samples(pictures, "images").take(range(2))
    assert images.shape == (2, 3, 3, 4)
    assert images[0, :, 0, 0].tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert labels == [1, 2]
    assert as_image(Image.new("L", (4, 3), 255), "it").tolist() == [[[1.0] * 4] * 3]


def test_a_view_of_negated_values_has_them():
    images, _ = Samples(torch.ones(3, 1, 2, 2)._neg_view(), "images").take(range(3))
    assert images.numpy().tolist() == (-np.ones((3, 1, 2, 2))).tolist()


class Leaving(Items):
    def __getitem__(self, index):
        raise SystemExit(3)


def failing(samples):
    raise RuntimeError("no batch")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((3, 1, 2, 2), np.int64), "images: pixels of type int64; expected floats, scaled as the model was"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.bool), "images: pixels of type bool; expected floats"),
        (np.zeros((3, 1, 2, 2), complex), "images: values of type complex128; expected real numbers"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.complex64), "images: pixels of type complex64"),
        (np.full((3, 1, 2, 2), "a"), "images: values of type str32"),
        (np.zeros((3, 1, 2, 2), object), "images: values of type object"),
        (np.ma.masked_less(np.zeros((3, 1, 2, 2)), 1), "images: a masked array with masked values"),
        (np.ma.masked_less(np.zeros((3, 1, 2, 2), np.uint8), 1), "images: a masked array with masked values"),
        (torch.zeros(3, 1, 2, 2).to_sparse(), r"images: a tensor of layout torch\.sparse_coo on cpu; expected a plain"),
        (torch.zeros(3, 1, 2, 2, device="meta"), r"images: a tensor of layout torch\.strided on meta"),
        (np.float32([0, 0, np.inf]).reshape(3, 1, 1, 1), "images: sample 2 has infinite pixels"),
        (np.longdouble([0, "1e4000", 0]).reshape(3, 1, 1, 1), "images: sample 1 has infinite pixels"),
        ("images.npy", "images: sample 0 is a str; expected a tensor"),
        ({0: torch.zeros(1, 2, 2), 2: 0}, r"images: sample 1 cannot be read \(1\)"),
        ([torch.zeros(1, 2, 2), torch.zeros(1, 2, 3)], r"images: sample 1 has shape \(1, 2, 3\), others \(1, 2, 2\)"),
        ([{"image": torch.zeros(1, 2, 2)}], "images: sample 0 is a dict; expected a tensor"),
        ([Image.new("P", (2, 2))], "images: sample 0 is a PIL image of mode P; expected L or RGB"),
        ([()], "images: sample 0 is a NoneType"),
        (DataLoader(DATA, collate_fn=failing), r"images: the loader's collate function fails \(no batch\)"),
        (Leaving(PIXELS), r"images: sample 0 cannot be read \(it called sys.exit\(3\)\)"),
        (np.array(1.0), "images: a ndarray without a length"),
    ],
)
def test_what_has_no_pixels_is_refused_by_name(samples, message):
    with pytest.raises((ConfigurationError, DataError), match=message):
        numbers(samples)


# --------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "labels",
    [
        [0, 2, 1], (0, 2, 1), [0.0, 2.0, 1.0], np.array([0, 2, 1], ">i2"), np.array([0, 2, 1], np.longdouble),
        np.array([[0], [2], [1]]), torch.tensor([0, 2, 1]), torch.tensor([0.0, 2.0, 1.0], requires_grad=True),
        torch.tensor([0, 2, 1], dtype=torch.bfloat16), [torch.tensor(0), torch.tensor(2), torch.tensor(1)],
        [np.float32(0), 2, True], np.array([2, 1, 0], np.uint64)[[2, 0, 1]],
    ],
)  # fmt: skip
def test_labels_are_whole_numbers_of_any_type(labels):
    assert class_numbers(labels, 3).tolist() == [0, 2, 1]
    assert class_numbers(labels, 3).dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels have shape \(2,\) and type int64; expected \(3,\) whole numbers, one for each image"),
        ([0, 1, 2.5], r"labels have 2\.5 for sample 2; expected \(3,\) whole numbers"),
        ([0, np.nan, 2], "labels have nan for sample 1"),
        ([np.inf, 1, 2], "labels have inf for sample 0"),
        ([0, 1e30, 2], r"labels have 1e\+30 for sample 1"),
        (np.array([0, 2**63, 1], np.uint64), "labels have 9223372036854775808 for sample 1"),
        (["cat", "dog", "cat"], r"labels have shape \(3,\) and type <U3"),
        ([None, 1, 2], r"labels have shape \(3,\) and type object"),
        (np.eye(3), r"labels have shape \(3, 3\)"),
        (3, r"labels have shape \(\)"),
        ([[0], [1, 2], 3], "labels"),
    ],
)
def test_what_are_no_labels(labels, message):
    with pytest.raises(ConfigurationError, match=message):
        class_numbers(labels, 3)
