"""Samples of every source: which they are, how they are joined, and what is refused."""

import numpy as np
import pytest
import torch
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

from gmmcnn.data.samples import Samples
from gmmcnn.errors import ConfigurationError

IMAGES = torch.arange(20.0).reshape(20, 1, 1, 1)
DATA = TensorDataset(IMAGES, torch.arange(20))


def numbers(given) -> list[int]:
    source = Samples(given, "images")
    return source.take(range(len(source)))[0].flatten().int().tolist()


def test_arrays_and_data_sets_are_taken_by_number():
    for given in (IMAGES, IMAGES.numpy(), DATA, list(IMAGES)):
        images, beside = Samples(given, "images").take(np.array([3, 1]))
        assert images.tolist() == IMAGES[[3, 1]].tolist()
        assert beside is None if given is not DATA else beside.tolist() == [3, 1]


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
    ("given", "message"),
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
def test_what_is_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        numbers(given)
